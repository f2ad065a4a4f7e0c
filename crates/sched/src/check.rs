//! Consistency check of the scheduler's state: after every step in tests, and now and then in
//! service, for which it is cheap enough.

use std::collections::BTreeSet;

use crate::Scheduler;
use crate::request::Request;

impl Scheduler {
    /// Checks that every page is free, cached, or used by exactly the requests that list it; that
    /// every slot is free or belongs to one request; that every request runs or waits and has the
    /// pages that its next row reads.
    ///
    /// # Errors
    /// The first inconsistency.
    pub fn check(&self) -> Result<(), String> {
        let followers = self.requests.values().filter(|request| request.follows.is_some()).count();
        let ranked = self.waiting.len() + self.running.len() + followers;
        if ranked != self.requests.len() || self.running.len() > self.running_max {
            let count = self.requests.len();
            return Err(format!("{count} requests, {ranked} run, wait or follow"));
        }
        for rank in self.waiting.iter().chain(&self.running) {
            let request = self.requests.get(&rank.id).filter(|request| request.rank == *rank);
            let request = request.ok_or_else(|| format!("{rank:?} is unknown"))?;
            if request.place.is_some() != self.running.contains(rank) || request.follows.is_some() {
                return Err(format!("request {} has a place only if it runs", rank.id));
            }
            self.check_request(request)?;
        }
        self.check_families()?;
        self.check_slots()?;
        let places = self.requests.values().filter_map(|request| request.place.as_ref());
        self.pages.check(places.map(|place| &place.holding))
    }

    fn check_request(&self, request: &Request) -> Result<(), String> {
        request.check()?;
        let Some(place) = &request.place else {
            return Ok(());
        };
        if place.held.is_some() && request.computed + 1 != request.known.len() as u32 {
            return Err(format!("request {} holds a token that is old", request.rank.id));
        }
        let checked = self.pages.check_holding(&place.holding, request.computed);
        checked.map_err(|reason| format!("request {}: {reason}", request.rank.id))
    }

    fn check_slots(&self) -> Result<(), String> {
        let places = self.requests.values().filter_map(|request| request.place.as_ref());
        let used = places.map(|place| place.slot).chain(self.slots.iter().copied());
        let slots: BTreeSet<_> = used.clone().collect();
        let count = self.caps.slot_count as usize;
        if slots.len() == count && used.count() == count {
            return Ok(());
        }
        Err(format!("{} slots are accounted for, of {count}", slots.len()))
    }
}
