//! The pages that each running request has in each group, and prefix hits. A group without a window
//! holds every page of a text. A group with one holds what the next row reads and writes, and for
//! the prefix cache the windows before a few positions, see [`crate::tails`]; a hit ends at such a
//! position. Pages below a hit are shared and only read: a hit ends on a page boundary of every
//! group, and rows start there or later.
//!
//! A group may have as few pages as one row of one token needs, or those of the longest text if
//! that is less. So the first rank always advances: when the others are preempted, all pages but
//! its own are free or cached, and cached ones can be evicted.

use kilotok_abi::{PageId, TokenId};
use kilotok_engine::{Caps, PageGroup, PageRun, WINDOW_SLACK};

use crate::pool::Pool;
use crate::prefix::{NodeId, Released, Tree, TreePlace};
use crate::tails::Order;

/// At most one in this many pages of a window group is reserved for the tokens of a step: requests
/// that start do not take them.
const STEP_SHARE: u32 = 4;
/// A window group with pages for this many requests also keeps what hits near the ends of their
/// replies need.
const RETAINING_MIN: u32 = 2;

pub(crate) struct Pages {
    pub(crate) groups: Vec<Group>,
    pub(crate) tree: Tree,
    pub(crate) order: Order,
    /// Tokens of one edge of the prefix tree: whole pages in every group.
    pub(crate) stride: u32,
    pub(crate) cached: bool,
}

pub(crate) struct Group {
    pub(crate) spec: PageGroup,
    pub(crate) pool: Pool,
    /// Index of its first page in a node of the tree.
    pub(crate) place: u32,
    /// Tokens before the last node's end whose window is kept while a request runs, so that a hit
    /// can end near the end of its text. Absent in a group without a window, or too small for it.
    retained: Option<u32>,
}

/// The pages of a running request.
pub(crate) struct RequestPages {
    /// By group.
    pub(crate) tables: Vec<Table>,
    /// The tree's node for its text, up to `named`.
    pub(crate) node: NodeId,
    /// In groups without a window the pages of positions below this are in the tree.
    pub(crate) named: u32,
    pub(crate) prompt_count: u32,
    /// Position at which its text diverges from the cached ones.
    pub(crate) branch: u32,
    /// The last position on its text with a tail that is worth something.
    pub(crate) worthy: u32,
}

/// The request's pages in one group, without gaps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Page number of the first one in the text.
    pub(crate) first: u32,
    pub(crate) pages: Vec<PageId>,
}

/// Pages that hold a prefix of a text.
pub(crate) struct Hit {
    pub(crate) position: u32,
    node: Option<NodeId>,
    tables: Vec<Table>,
    /// Position at which the text diverges from the cached ones: the hit would end here if it had a
    /// tail.
    branch: u32,
    /// The last position before this one with a tail that is worth something.
    worthy: u32,
}

/// A group that has too few pages, and how many are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    group: usize,
    needed: u32,
}

impl Pages {
    pub(crate) fn new(caps: &Caps, cached: bool) -> Self {
        let stride = caps.groups.iter().fold(1, |stride, group| lcm(stride, group.page_tokens));
        let mut place = 0;
        let group = |spec: &PageGroup| {
            let group = Group::new(spec, place, stride, cached);
            place += stride / spec.page_tokens;
            group
        };
        let groups = caps.groups.iter().map(group).collect();
        Self { groups, tree: Tree::new(place as usize), order: Order::default(), stride, cached }
    }

    /// Largest number of positions for which a request can have pages when it runs alone.
    pub(crate) fn position_max(&self) -> u32 {
        let position_max = |group: &Group| {
            let PageGroup { page_tokens, page_count, .. } = group.spec;
            let endless = group.spec.window.is_some() && page_count >= group.needed(u32::MAX);
            if endless { u32::MAX } else { page_count.saturating_mul(page_tokens) }
        };
        self.groups.iter().map(position_max).min().unwrap_or(u32::MAX)
    }

    /// The longest prefix of a text, of at most `limit` tokens, that ends at a tail in the cache.
    pub(crate) fn find(&self, salt: &str, text: &[TokenId], limit: u32) -> Hit {
        let tables = vec![Table::default(); self.groups.len()];
        let mut hit = Hit { position: 0, node: None, tables, branch: 0, worthy: 0 };
        let Some(mut node) = self.tree.start(salt).filter(|_| self.cached) else {
            return hit;
        };
        let mut path = Vec::new();
        let mut worthy = 0;
        for edge in text[..limit as usize].chunks_exact(self.stride as usize) {
            let Some(child) = self.tree.child(node, edge) else {
                break;
            };
            node = child;
            path.push(node);
            hit.branch = path.len() as u32 * self.stride;
            if let Some(tail) = self.tree.tail(node) {
                (hit.position, hit.node, hit.worthy) = (hit.branch, Some(node), worthy);
                worthy = if tail.worth > 0 { hit.position } else { worthy };
            }
        }
        for (table, group) in hit.tables.iter_mut().zip(&self.groups) {
            table.first = group.first(hit.position);
            let numbers = table.first..hit.position / group.tokens();
            table.pages = numbers.filter_map(|number| self.page_at(&path, group, number)).collect();
        }
        hit
    }

    /// Page `number` of a text whose nodes are known.
    fn page_at(&self, path: &[NodeId], group: &Group, number: u32) -> Option<PageId> {
        let per_node = self.stride / group.tokens();
        let node = path[(number / per_node) as usize];
        self.tree.page(TreePlace { node, place: group.place + number % per_node })
    }

    /// Whether there are enough pages for a request of `count` tokens that starts with a hit, when
    /// `spoken` pages of each group are reserved for others.
    pub(crate) fn fits(&self, hit: &Hit, count: u32, spoken: &[u32]) -> Result<(), Shortage> {
        for (index, group) in self.groups.iter().enumerate() {
            let shared = &hit.tables[index].pages;
            let idle = shared.iter().filter(|page| group.pool.is_idle(**page)).count();
            let new = group.needed(count).saturating_sub(shared.len() as u32);
            let needed = new + idle as u32 + spoken[index];
            if needed > group.pool.available() {
                return Err(Shortage { group: index, needed });
            }
        }
        Ok(())
    }

    pub(crate) fn is_over(&self, shortage: Shortage) -> bool {
        self.groups[shortage.group].pool.available() >= shortage.needed
    }

    /// Pages of each group that a request still needs to hold `count` tokens.
    pub(crate) fn missing(&self, holding: &RequestPages, count: u32) -> impl Iterator<Item = u32> {
        let groups = self.groups.iter().zip(&holding.tables);
        groups
            .map(move |(group, table)| group.needed(count).saturating_sub(table.pages.len() as u32))
    }

    /// Pages of each group that requests leave to a step of `token_max` tokens when they start
    /// beside others: a chunk holds pages of a window group until its step is settled.
    pub(crate) fn step_reserve(&self, token_max: u32) -> impl Iterator<Item = u32> {
        self.groups.iter().map(move |group| {
            let share = group.spec.page_count / STEP_SHARE;
            group.spec.window.map_or(0, |_| token_max.div_ceil(group.tokens()).min(share))
        })
    }

    /// How many tokens `row_count` rows may have together beyond the next token of each, which has
    /// a page. Window groups have pages for all of them, however the tokens are shared out,
    /// although each row may leave a page incomplete.
    pub(crate) fn step_room(&self, row_count: u32) -> u32 {
        let windows = self.groups.iter().filter(|group| group.spec.window.is_some());
        let room = windows.map(|group| {
            let pages = group.pool.available().saturating_sub(row_count);
            pages.saturating_mul(group.tokens())
        });
        room.min().unwrap_or(u32::MAX)
    }

    /// Gives a request the pages of a hit.
    pub(crate) fn enter(&mut self, salt: &str, hit: Hit, prompt_count: u32) -> RequestPages {
        for (group, table) in self.groups.iter_mut().zip(&hit.tables) {
            for page in &table.pages {
                group.pool.share(*page);
            }
        }
        let node = match hit.node {
            Some(node) => {
                self.tree.pin(node);
                self.touch_tail(node, hit.position - hit.worthy);
                node
            }
            None => self.tree.enter(salt),
        };
        let Hit { position, tables, branch, .. } = hit;
        RequestPages { tables, node, named: position, prompt_count, branch, worthy: position }
    }

    /// The position up to which the request has pages or could take free ones, at most `end`.
    pub(crate) fn reach(&self, holding: &RequestPages, end: u32) -> u32 {
        let groups = self.groups.iter().zip(&holding.tables);
        let reach = groups.map(|(group, table)| {
            (table.end() + group.pool.available()).saturating_mul(group.tokens())
        });
        reach.min().map_or(end, |reach| reach.min(end))
    }

    pub(crate) fn covers(&self, holding: &RequestPages, end: u32) -> bool {
        let mut groups = self.groups.iter().zip(&holding.tables);
        groups.all(|(group, table)| table.end() * group.tokens() >= end)
    }

    /// Takes pages for all positions below `end`, which [`Self::reach`] allowed.
    pub(crate) fn cover(&mut self, holding: &mut RequestPages, end: u32) {
        for (index, table) in holding.tables.iter_mut().enumerate() {
            while table.end() < end.div_ceil(self.groups[index].tokens()) {
                table.pages.push(self.take(index));
            }
        }
    }

    /// Takes a page of a group. If none is free, a window group loses tails, and another group
    /// loses the page that was unused for longest, with all texts that have it.
    fn take(&mut self, index: usize) -> PageId {
        let windowed = self.groups[index].spec.window.is_some();
        while windowed && !self.groups[index].pool.has_free() && self.evict_tail() {}
        let (page, evicted) = self.groups[index].pool.take().expect("the end is in reach");
        if let Some(spot) = evicted {
            self.tree.set_page(spot, None);
            let nodes = self.tree.below(spot.node);
            for node in &nodes {
                self.drop_tail(*node);
            }
            let released = self.tree.sweep(&nodes);
            self.release(released);
        }
        page
    }

    /// Clears the spots of pages that have left the tree.
    pub(crate) fn release(&mut self, released: Vec<Released>) {
        for (place, page) in released {
            let index = self.groups.partition_point(|group| group.place <= place) - 1;
            self.groups[index].pool.clear_spot(page);
        }
    }

    /// The pages that a row over `start..end` reads and writes.
    pub(crate) fn runs(&self, holding: &RequestPages, start: u32, end: u32) -> Vec<PageRun> {
        let run = |(group, table): (&Group, &Table)| {
            let first = group.first(start);
            let count = end.div_ceil(group.tokens()) - first;
            let pages = table.pages[(first - table.first) as usize..][..count as usize].to_vec();
            PageRun { first, pages }
        };
        self.groups.iter().zip(&holding.tables).map(run).collect()
    }

    /// After a step: puts complete pages and tails into the tree, and frees the pages that left the
    /// window.
    pub(crate) fn settle(&mut self, holding: &mut RequestPages, text: &[TokenId], computed: u32) {
        while self.cached && holding.named + self.stride <= computed {
            let edge = &text[holding.named as usize..][..self.stride as usize];
            holding.node = self.tree.advance(holding.node, edge);
            if !self.tree.is_lost(holding.node) {
                self.name(holding);
            }
            holding.named += self.stride;
            self.add_chosen_tail(holding);
        }
        for (group, table) in self.groups.iter_mut().zip(&mut holding.tables) {
            let count = group.first_kept(computed, self.stride).saturating_sub(table.first);
            for page in table.pages.drain(..count as usize) {
                group.pool.give_back(page);
            }
            table.first += count;
        }
    }

    /// Puts the pages of the node's last edge into the tree, in groups without a window. If another
    /// request with the same text has already put a page there, it replaces the request's own.
    fn name(&mut self, holding: &mut RequestPages) {
        let node = holding.node;
        for (group, table) in self.groups.iter_mut().zip(&mut holding.tables) {
            if group.spec.window.is_some() {
                continue;
            }
            let number = holding.named / group.tokens();
            let own = &mut table.pages[(number - table.first) as usize..];
            for (own, spot) in own.iter_mut().zip(group.spots(node, self.stride)) {
                if let Some(other) = self.tree.page(spot) {
                    group.pool.share(other);
                    group.pool.give_back(std::mem::replace(own, other));
                } else {
                    group.pool.name(*own, spot);
                    self.tree.set_page(spot, Some(*own));
                }
            }
        }
    }

    /// Removes all texts from the tree whose first edge is that of a request's text, because the
    /// request may have read or written any of their pages. Running requests with such texts put no
    /// more pages into the tree.
    pub(crate) fn invalidate(&mut self, holding: &RequestPages) {
        if let Some(&first) = self.tree.path(holding.node).get(1)
            && !self.tree.is_lost(first)
        {
            self.cut(first);
        }
    }

    /// The same for a text whose request has left.
    pub(crate) fn invalidate_text(&mut self, salt: &str, text: &[TokenId]) {
        if let Some(start) = self.tree.start(salt)
            && let Some(edge) = text.get(..self.stride as usize)
            && let Some(first) = self.tree.child(start, edge)
        {
            self.cut(first);
        }
    }

    /// Removes a node of a first edge and all below it.
    fn cut(&mut self, first: NodeId) {
        let nodes = self.tree.below(first);
        for node in &nodes {
            self.drop_tail(*node);
        }
        for node in &nodes {
            for group in &mut self.groups {
                for spot in group.spots(*node, self.stride) {
                    if let Some(page) = self.tree.page(spot) {
                        group.pool.clear_spot(page);
                        self.tree.set_page(spot, None);
                    }
                }
            }
        }
        self.tree.cut(first);
        let released = self.tree.sweep(&nodes);
        debug_assert_eq!(released, [], "all pages were forgotten");
    }

    /// Whether a request may have read what another one wrote, from position `written_from` on:
    /// their texts are the same beyond it.
    pub(crate) fn may_read(
        &self,
        own: &RequestPages,
        of: &RequestPages,
        written_from: u32,
    ) -> bool {
        let number = 1 + (written_from / self.stride) as usize;
        let written = self.tree.path(of.node).get(number).copied();
        written.is_some() && self.tree.path(own.node).get(number).copied() == written
    }

    /// Frees all pages of a request. Those beyond the first `kept` positions leave the cache.
    pub(crate) fn leave(&mut self, mut holding: RequestPages, kept: u32) {
        while holding.named > kept {
            self.retreat(&mut holding);
        }
        if holding.named > 0 {
            self.add_tail(&holding, holding.named.saturating_sub(holding.worthy));
        }
        for (group, table) in self.groups.iter_mut().zip(holding.tables) {
            // Later pages are evicted first: without the pages before them they cannot be hit.
            for page in table.pages.into_iter().rev() {
                group.pool.give_back(page);
            }
        }
        let released = self.tree.unpin(holding.node);
        self.release(released);
    }

    /// Takes the last edge from the request's text.
    fn retreat(&mut self, holding: &mut RequestPages) {
        let last = holding.node;
        holding.node = self.tree.parent(last);
        holding.named -= self.stride;
        self.tree.pin(holding.node);
        if self.tree.is_alone(last) {
            self.drop_tail(last);
        }
        let released = self.tree.unpin(last);
        self.release(released);
    }

    /// Pages of each group: all, used, cached.
    pub(crate) fn usage(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.groups.iter().map(|group| {
            let pool = &group.pool;
            (pool.page_count(), pool.page_count() - pool.available(), pool.idle_count())
        })
    }

    /// Whether another request could hit a prefix of a prompt of this length.
    pub(crate) fn can_share(&self, prompt_count: u32) -> bool {
        // The last token is always computed.
        self.cached && prompt_count > self.stride
    }
}

impl Group {
    fn new(spec: &PageGroup, place: u32, stride: u32, cached: bool) -> Self {
        let pool = Pool::new(spec.page_count);
        let mut group = Self { spec: spec.clone(), pool, place, retained: None };
        if cached && spec.window.is_some() {
            group.retained = Some(WINDOW_SLACK.next_multiple_of(stride) + stride);
            if group.needed(u32::MAX).saturating_mul(RETAINING_MIN) > spec.page_count {
                group.retained = None;
            }
        }
        group
    }

    pub(crate) fn tokens(&self) -> u32 {
        self.spec.page_tokens
    }

    /// The oldest page that a row starting at `start` may read.
    pub(crate) fn first(&self, start: u32) -> u32 {
        self.spec.first_needed(start) / self.tokens()
    }

    /// The oldest page that is kept for a request with `computed` positions: its next row may read
    /// it, or a prefix hit that ends shortly before.
    fn first_kept(&self, computed: u32, stride: u32) -> u32 {
        let retained = self.retained.map_or(computed, |retained| {
            (computed / stride * stride + stride).saturating_sub(retained)
        });
        self.first(retained)
    }

    /// Pages without which a request of `count` tokens cannot run.
    fn needed(&self, count: u32) -> u32 {
        let all = count.div_ceil(self.tokens());
        let own = self.retained.map_or(1, |retained| retained / self.tokens());
        self.spec.window.map_or(all, |keys| all.min((keys - 1).div_ceil(self.tokens()) + own))
    }

    /// Spots of its pages in a node of the tree, in order.
    pub(crate) fn spots(
        &self,
        node: NodeId,
        stride: u32,
    ) -> impl Iterator<Item = TreePlace> + use<> {
        let places = self.place..self.place + stride / self.tokens();
        places.map(move |place| TreePlace { node, place })
    }
}

impl Table {
    pub(crate) fn end(&self) -> u32 {
        self.first + self.pages.len() as u32
    }

    pub(crate) fn page(&self, number: u32) -> Option<PageId> {
        let index = number.checked_sub(self.first)?;
        self.pages.get(index as usize).copied()
    }
}

fn lcm(a: u32, b: u32) -> u32 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use kilotok_engine::PageKind;

    use super::*;

    /// A full-attention group in pages of 4, and a window of 5 in pages of 2.
    fn pages(full: u32, window: u32) -> Pages {
        let mut caps = kilotok_testkit::ScriptedEngine::caps();
        caps.groups.truncate(2);
        let group = |kind, page_tokens, page_count, window| PageGroup {
            kind,
            page_tokens,
            page_count,
            window,
            page_bytes: 1,
        };
        caps.groups =
            vec![group(PageKind::Full, 4, full, None), group(PageKind::Window, 2, window, Some(5))];
        Pages::new(&caps, true)
    }

    /// Computes a text in one go.
    fn compute(pages: &mut Pages, salt: &str, text: &[TokenId]) -> RequestPages {
        let end = text.len() as u32;
        let hit = pages.find(salt, text, end - 1);
        let mut holding = pages.enter(salt, hit, end);
        assert_eq!(pages.reach(&holding, end), end);
        pages.cover(&mut holding, end);
        pages.settle(&mut holding, text, end);
        pages.check_holding(&holding, end).unwrap();
        holding
    }

    #[test]
    fn a_hit_needs_all_pages_of_one_group_and_a_window_of_the_other() {
        let mut pages = pages(8, 10);
        let text: Vec<TokenId> = (0..17).collect();
        let first = compute(&mut pages, "", &text);
        assert_eq!(first.tables[0].pages.len(), 5);
        assert_eq!(first.tables[1].first, 6, "positions from 13 on are needed");
        let hit = pages.find("", &text, 16);
        assert_eq!((hit.position, hit.tables[0].pages.len()), (16, 4));
        assert_eq!((hit.tables[1].first, hit.tables[1].pages.len()), (6, 2));
        assert_eq!(pages.find("", &text, 15).position, 12);
        assert_eq!(pages.find("other", &text, 16).position, 0);
        let other: Vec<TokenId> = (0..8).chain(90..99).collect();
        assert_eq!(pages.find("", &other, 16).position, 8);
        pages.leave(first, 17);
        pages.check([].iter()).unwrap();
        // Without any window page there is no hit.
        let long: Vec<TokenId> = (100..120).collect();
        let second = compute(&mut pages, "", &long);
        assert_eq!(pages.find("", &text, 16).position, 0);
        pages.check([&second].into_iter()).unwrap();
    }

    #[test]
    fn what_was_not_kept_is_not_found() {
        let mut pages = pages(8, 10);
        let text: Vec<TokenId> = (0..17).collect();
        let holding = compute(&mut pages, "", &text);
        pages.leave(holding, 13);
        assert_eq!(pages.find("", &text, 16).position, 12);
        pages.check([].iter()).unwrap();
    }

    #[test]
    fn equal_texts_share_pages_and_the_last_page_is_private() {
        let mut pages = pages(8, 16);
        let text: Vec<TokenId> = (0..10).collect();
        let holdings = [compute(&mut pages, "", &text), compute(&mut pages, "", &text)];
        let [first, second] = &holdings;
        assert_eq!(first.tables[0].pages[..2], second.tables[0].pages[..2]);
        assert_ne!(first.tables[0].pages[2], second.tables[0].pages[2]);
        pages.check(holdings.iter()).unwrap();
        let [first, second] = holdings;
        pages.leave(first, 10);
        pages.check([&second].into_iter()).unwrap();
        pages.leave(second, 10);
        pages.check([].iter()).unwrap();
        assert_eq!(pages.usage().next(), Some((8, 0, 2)));
    }

    #[test]
    fn a_request_alone_has_what_all_pages_hold() {
        assert_eq!(pages(8, 10).position_max(), 32);
        assert_eq!(pages(80, 3).position_max(), 320);
        assert_eq!(pages(80, 2).position_max(), 4);
        assert_eq!(lcm(6, 4), 12);
    }
}
