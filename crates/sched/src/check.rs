//! Consistency check of the scheduler's state: after every step in tests, and now and then in
//! service, for which it is cheap enough.

use std::collections::{BTreeMap, BTreeSet};

use kilotok_abi::PageId;

use crate::Scheduler;
use crate::pages::{Pages, RequestPages};
use crate::prefix::NodeId;
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

impl Pages {
    /// Checks that every page is used by the requests that list it, and that every text in the tree
    /// can be hit.
    pub(crate) fn check<'h>(
        &self,
        holdings: impl Iterator<Item = &'h RequestPages> + Clone,
    ) -> Result<(), String> {
        let mut named_count = 0;
        for (index, group) in self.groups.iter().enumerate() {
            let mut owner_counts = vec![0; group.spec.page_count as usize];
            for page in holdings.clone().flat_map(|holding| &holding.tables[index].pages) {
                owner_counts[page.0 as usize] += 1;
            }
            let named = |reason| format!("page group {index}: {reason}");
            group.pool.check(&owner_counts).map_err(named)?;
            for page in (0..group.spec.page_count).map(PageId) {
                let Some(spot) = group.pool.spot(page) else {
                    continue;
                };
                named_count += 1;
                let places = group.place..group.place + self.stride / group.tokens();
                if self.tree.page(spot) != Some(page) || !places.contains(&spot.place) {
                    return Err(format!("page group {index}: {page} is not at {spot:?}"));
                }
            }
        }
        let mut pins = BTreeMap::new();
        for holding in holdings {
            *pins.entry(holding.node.0).or_default() += 1;
        }
        let (nodes, found) = self.tree.check(&pins)?;
        if found != named_count {
            return Err(format!("the tree names {found} pages, {named_count} have a name"));
        }
        self.check_tails(&nodes)
    }

    /// Checks that a request has the pages that its next row reads.
    pub(crate) fn check_holding(
        &self,
        holding: &RequestPages,
        computed: u32,
    ) -> Result<(), String> {
        for (index, (group, table)) in self.groups.iter().zip(&holding.tables).enumerate() {
            let (first, end) = (group.first(computed), computed.div_ceil(group.tokens()));
            if table.first > first || table.end() < end {
                let held = (table.first, table.end());
                return Err(format!("page group {index}: {held:?} held, {first}..{end} needed"));
            }
        }
        Ok(())
    }

    /// Checks that every tail has its pages, that every page of a window group has the tails that
    /// it counts, and that every node has the pages of the other groups.
    fn check_tails(&self, nodes: &[NodeId]) -> Result<(), String> {
        let mut counts: BTreeMap<(usize, u32), u32> = BTreeMap::new();
        for node in nodes {
            let Some(tail) = self.tree.tail(*node) else {
                continue;
            };
            if !self.order.tails.contains(&(tail.priority, node.0)) {
                return Err(format!("the tail of node {} is in no order", node.0));
            }
            for (index, number, spot) in self.tail_pages(*node) {
                let page = self.tree.page(spot);
                let page = page.ok_or_else(|| format!("page {number} of {tail:?} is missing"))?;
                *counts.entry((index, page.0)).or_default() += 1;
            }
        }
        let tail_count = nodes.iter().filter(|node| self.tree.tail(**node).is_some()).count();
        if tail_count != self.order.tails.len() {
            return Err(format!("{tail_count} tails, {} in order", self.order.tails.len()));
        }
        for (index, group) in self.groups.iter().enumerate() {
            let windowed = group.spec.window.is_some();
            for page in (0..group.spec.page_count).map(PageId).filter(|_| windowed) {
                let (known, count) = (group.pool.tail_count(page), counts.get(&(index, page.0)));
                let named = group.pool.spot(page).is_some();
                if known != count.copied().unwrap_or_default() || named != (known > 0) {
                    return Err(format!("page {page} of group {index} counts {known} tails"));
                }
            }
            for node in nodes.iter().filter(|_| !windowed) {
                if group.spots(*node, self.stride).any(|spot| self.tree.page(spot).is_none()) {
                    return Err(format!("node {} lacks a page of group {index}", node.0));
                }
            }
        }
        Ok(())
    }
}
