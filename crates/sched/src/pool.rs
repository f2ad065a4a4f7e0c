//! The pages of one group, with reference counts: which are used, free, or unused but cached for
//! later requests. Does not know their content.

use std::collections::BTreeMap;

use kilotok_abi::PageId;

use crate::prefix::TreePlace;

pub(crate) struct Pool {
    pages: Vec<Page>,
    free: Vec<PageId>,
    /// Cached pages without a user, by the time at which they were given back.
    idle: BTreeMap<u64, PageId>,
    clock: u64,
}

#[derive(Clone, Default)]
struct Page {
    owner_count: u32,
    /// Its place in the prefix tree, if it is there.
    spot: Option<TreePlace>,
    /// Tails of the prefix tree that need it, if its group has a window.
    tail_count: u32,
    /// Its key in `idle`, if it is there.
    given_back: u64,
}

impl Pool {
    pub(crate) fn new(page_count: u32) -> Self {
        Self {
            pages: vec![Page::default(); page_count as usize],
            free: (0..page_count).rev().map(PageId).collect(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Pages that can be taken.
    pub(crate) fn available(&self) -> u32 {
        (self.free.len() + self.idle.len()) as u32
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub(crate) fn idle_count(&self) -> u32 {
        self.idle.len() as u32
    }

    pub(crate) fn page_count(&self) -> u32 {
        self.pages.len() as u32
    }

    pub(crate) fn is_idle(&self, page: PageId) -> bool {
        let page = &self.pages[page.0 as usize];
        page.owner_count == 0 && page.spot.is_some()
    }

    /// Takes a free page, or evicts the cached page that was unused for longest. Returns also the
    /// evicted page's spot, which the caller clears in the tree.
    pub(crate) fn take(&mut self) -> Option<(PageId, Option<TreePlace>)> {
        let page = self.free.pop().or_else(|| Some(self.idle.pop_first()?.1))?;
        let state = &mut self.pages[page.0 as usize];
        debug_assert_eq!(state.owner_count, 0, "page {page} is in use");
        state.owner_count = 1;
        Some((page, state.spot.take()))
    }

    /// Adds a user to a cached page.
    pub(crate) fn share(&mut self, page: PageId) {
        let state = &mut self.pages[page.0 as usize];
        debug_assert!(state.spot.is_some(), "page {page} has no name to be found by");
        if state.owner_count == 0 {
            self.idle.remove(&state.given_back);
        }
        state.owner_count += 1;
    }

    /// Removes a user. Pages given back earlier are evicted earlier.
    pub(crate) fn give_back(&mut self, page: PageId) {
        let state = &mut self.pages[page.0 as usize];
        state.owner_count -= 1;
        if state.owner_count > 0 {
            return;
        }
        if state.spot.is_some() {
            self.clock += 1;
            state.given_back = self.clock;
            self.idle.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
    }

    /// Records a used page's spot in the tree. It has none yet.
    pub(crate) fn name(&mut self, page: PageId, spot: TreePlace) {
        let state = &mut self.pages[page.0 as usize];
        debug_assert!(state.owner_count > 0, "page {page} is not in use");
        debug_assert_eq!(state.spot, None, "page {page} has a name");
        state.spot = Some(spot);
    }

    /// Counts a tail that needs the page.
    pub(crate) fn add_tail(&mut self, page: PageId) {
        self.pages[page.0 as usize].tail_count += 1;
    }

    /// Uncounts a tail that needed the page. After the last one the page has no spot any more; the
    /// spot that it had is returned.
    pub(crate) fn drop_tail(&mut self, page: PageId) -> Option<TreePlace> {
        let state = &mut self.pages[page.0 as usize];
        state.tail_count -= 1;
        let spot = state.spot.filter(|_| state.tail_count == 0);
        spot.inspect(|_| self.clear_spot(page))
    }

    pub(crate) fn tail_count(&self, page: PageId) -> u32 {
        self.pages[page.0 as usize].tail_count
    }

    /// Removes the spot from a page, whether requests use it or not.
    pub(crate) fn clear_spot(&mut self, page: PageId) {
        let state = &mut self.pages[page.0 as usize];
        let named = state.spot.take().is_some();
        if named && state.owner_count == 0 {
            self.idle.remove(&state.given_back);
            self.free.push(page);
        }
    }

    pub(crate) fn spot(&self, page: PageId) -> Option<TreePlace> {
        self.pages[page.0 as usize].spot
    }

    /// Checks that each page is in exactly one state, given its number of users.
    pub(crate) fn check(&self, owner_counts: &[u32]) -> Result<(), String> {
        let mut places = vec![0; self.pages.len()];
        for page in self.free.iter().chain(self.idle.values()) {
            places[page.0 as usize] += 1;
        }
        for (index, page) in self.pages.iter().enumerate() {
            let (owners, known) = (owner_counts[index], page.owner_count);
            if owners != known {
                return Err(format!("page {index} counts {known} users, it has {owners}"));
            }
            if places[index] != u32::from(owners == 0) {
                return Err(format!("page {index}: {owners} users, in {} lists", places[index]));
            }
            let idle = self.idle.get(&page.given_back) == Some(&PageId(index as u32));
            if idle != (owners == 0 && page.spot.is_some()) {
                return Err(format!("page {index}: kept {idle}, {owners} users, {:?}", page.spot));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::NodeId;

    fn spot(place: u32) -> TreePlace {
        TreePlace { node: NodeId(1), place }
    }

    #[test]
    fn named_pages_are_kept_and_the_oldest_goes_first() {
        let mut pool = Pool::new(3);
        let pages: Vec<_> = (0..3).map(|_| pool.take().unwrap().0).collect();
        assert_eq!(pool.take(), None);
        pool.name(pages[0], spot(0));
        pool.name(pages[1], spot(1));
        for page in [pages[1], pages[2], pages[0]] {
            pool.give_back(page);
        }
        pool.check(&[0; 3]).unwrap();
        assert_eq!((pool.available(), pool.idle_count()), (3, 2));
        assert_eq!(pool.take(), Some((pages[2], None)));
        assert_eq!(pool.take(), Some((pages[1], Some(spot(1)))));
        pool.share(pages[0]);
        assert_eq!(pool.available(), 0);
        pool.give_back(pages[0]);
        assert_eq!(pool.take(), Some((pages[0], Some(spot(0)))));
    }

    #[test]
    fn a_shared_page_stays_until_the_last_user_and_the_last_tail_are_gone() {
        let mut pool = Pool::new(1);
        let (page, _) = pool.take().unwrap();
        pool.name(page, spot(0));
        (0..2).for_each(|_| pool.add_tail(page));
        pool.share(page);
        assert_eq!(pool.drop_tail(page), None);
        pool.give_back(page);
        assert_eq!(pool.available(), 0);
        pool.give_back(page);
        assert_eq!((pool.available(), pool.idle_count()), (1, 1));
        assert_eq!(pool.drop_tail(page), Some(spot(0)));
        assert_eq!((pool.available(), pool.idle_count()), (1, 0));
        pool.check(&[0]).unwrap();
    }

    #[test]
    fn a_forgotten_page_has_no_name_also_while_it_is_used() {
        let mut pool = Pool::new(2);
        let [shared, idle] = [0, 1].map(|place| {
            let (page, _) = pool.take().unwrap();
            pool.name(page, spot(place));
            page
        });
        pool.share(shared);
        pool.give_back(idle);
        for page in [shared, idle] {
            pool.clear_spot(page);
            assert_eq!(pool.spot(page), None);
        }
        assert_eq!((pool.available(), pool.idle_count()), (1, 0));
        pool.give_back(shared);
        pool.give_back(shared);
        assert_eq!((pool.available(), pool.idle_count()), (2, 0));
        pool.check(&[0; 2]).unwrap();
    }
}
