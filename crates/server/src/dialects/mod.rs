//! How each API tells a reply: whole, or piece by piece. Knows nothing of requests beyond what
//! their replies repeat.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod messages;
pub(crate) mod responses;

use std::sync::Arc;

use crate::clock::unix_seconds;
use crate::said::Spelling;
use crate::service::Service;
use crate::tally::Tally;
use crate::wire::sampled::StreamOptions;
use crate::wire::speed::Metrics;

/// What every piece of a reply begins with.
pub(crate) struct Letterhead {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) created: u64,
    pub(crate) service: Arc<Service>,
}

impl Letterhead {
    pub(crate) fn new(id: String, model: String, service: &Arc<Service>) -> Self {
        Self { id, model, created: unix_seconds(), service: Arc::clone(service) }
    }

    /// Speed of a request with one reply; several have none in common.
    pub(crate) fn metrics(&self, tallies: &[Tally]) -> Option<Metrics> {
        match tallies {
            [only] => Some(only.metrics(self.service.gate.caps().draft_max)),
            _ => None,
        }
    }

    pub(crate) fn spelling(&self, as_ids: bool) -> Spelling<'_> {
        Spelling { text: &self.service.text, as_ids }
    }
}

/// What a stream tells besides the reply.
#[derive(Clone, Copy, Default)]
pub(crate) struct Extras {
    pub(crate) usage: bool,
    pub(crate) running_usage: bool,
}

impl Extras {
    pub(crate) fn of(options: Option<StreamOptions>) -> Self {
        let options = options.unwrap_or_default();
        Self {
            usage: options.include_usage.unwrap_or_default(),
            running_usage: options.continuous_usage_stats.unwrap_or_default(),
        }
    }
}
