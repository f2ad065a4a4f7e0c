//! How each API tells a reply: whole, or piece by piece. Knows nothing of requests beyond what
//! their replies repeat.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod messages;
pub(crate) mod responses;
pub(crate) mod show;

use std::sync::Arc;

use crate::clock::unix_seconds;
use crate::said::Spelling;
use crate::service::Service;
use crate::tally::Tally;
use crate::wire::speed::Metrics;

/// What every piece of a reply begins with.
pub(crate) struct Letterhead {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) created: u64,
    pub(crate) service: Arc<Service>,
    /// What the client asked for and does not get.
    pub(crate) warnings: Vec<String>,
}

impl Letterhead {
    pub(crate) fn new(id: String, model: String, service: &Arc<Service>) -> Self {
        let (created, service) = (unix_seconds(), Arc::clone(service));
        Self { id, model, created, service, warnings: Vec::new() }
    }

    /// Speed of a request with one reply.
    pub(crate) fn metrics(&self, tally: &Tally) -> Metrics {
        tally.metrics(self.service.gate.caps().draft_max)
    }

    pub(crate) fn spelling(&self, as_ids: bool) -> Spelling<'_> {
        Spelling { text: &self.service.text, as_ids }
    }
}
