//! The pages that each running request has in each group, and prefix hits. A hit at position p
//! needs all pages below p of a full-attention group, and the pages of the last window before p of
//! a window group. Pages below a hit are shared and only read: a hit ends on a page boundary of
//! every group, and rows start there or later.

use std::collections::{BTreeMap, BTreeSet};

use kilotok_abi::{PageId, TokenId};
use kilotok_engine::{Caps, PageGroup, PageRun};

use crate::pool::Pool;
use crate::prefix::{NodeId, Tree, TreePlace};

pub(crate) struct Pages {
    groups: Vec<Group>,
    tree: Tree,
    /// Tokens of one edge of the prefix tree: whole pages in every group.
    stride: u32,
    cached: bool,
}

struct Group {
    spec: PageGroup,
    pool: Pool,
    /// Index of its first page in a node of the tree.
    place: u32,
}

/// The pages of a running request.
pub(crate) struct RequestPages {
    /// By group.
    pub(crate) tables: Vec<Table>,
    /// The tree's node for its text, up to `named`.
    pub(crate) node: NodeId,
    /// Positions whose pages are in the tree.
    pub(crate) named: u32,
}

/// The request's pages in one group, without gaps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Page number of the first one in the text.
    pub(crate) first: u32,
    pub(crate) pages: Vec<PageId>,
}

/// Pages that a request has written, by group.
pub(crate) struct Written(Vec<BTreeSet<PageId>>);

/// Pages that hold a prefix of a text.
pub(crate) struct Hit {
    pub(crate) position: u32,
    node: Option<NodeId>,
    tables: Vec<Table>,
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
            let group = Group { spec: spec.clone(), pool: Pool::new(spec.page_count), place };
            place += stride / spec.page_tokens;
            group
        };
        let groups = caps.groups.iter().map(group).collect();
        Self { groups, tree: Tree::new(place as usize), stride, cached }
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

    /// The longest prefix of a text, of at most `limit` tokens, that is in the cache.
    pub(crate) fn find(&self, salt: &str, text: &[TokenId], limit: u32) -> Hit {
        let mut hit = Hit { position: 0, node: None, tables: self.empty_tables() };
        let Some(mut node) = self.tree.start(salt).filter(|_| self.cached) else {
            return hit;
        };
        let mut path = Vec::new();
        // Pages of each group that are present without a gap, up to the end of the path.
        let mut unbroken = vec![0; self.groups.len()];
        let edges = text[..limit as usize].chunks_exact(self.stride as usize);
        for edge in edges {
            let Some(child) = self.tree.child(node, edge) else {
                break;
            };
            node = child;
            path.push(node);
            for (count, group) in unbroken.iter_mut().zip(&self.groups) {
                for spot in group.spots(node, self.stride) {
                    *count = if self.tree.page(spot).is_some() { *count + 1 } else { 0 };
                }
            }
            let end = path.len() as u32 * self.stride;
            let mut groups = unbroken.iter().zip(&self.groups);
            if groups.all(|(count, group)| *count >= end / group.tokens() - group.first(end)) {
                (hit.position, hit.node) = (end, Some(node));
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

    fn empty_tables(&self) -> Vec<Table> {
        vec![Table::default(); self.groups.len()]
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

    /// Gives a request the pages of a hit.
    pub(crate) fn enter(&mut self, salt: &str, hit: Hit) -> RequestPages {
        for (group, table) in self.groups.iter_mut().zip(&hit.tables) {
            for page in &table.pages {
                group.pool.share(*page);
            }
        }
        let node = match hit.node {
            Some(node) => {
                self.tree.pin(node);
                node
            }
            None => self.tree.enter(salt),
        };
        RequestPages { tables: hit.tables, node, named: hit.position }
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
        for (group, table) in self.groups.iter_mut().zip(&mut holding.tables) {
            while table.end() < end.div_ceil(group.tokens()) {
                let (page, evicted) = group.pool.take().expect("the end is in reach");
                if let Some(spot) = evicted {
                    self.tree.clear(spot);
                }
                table.pages.push(page);
            }
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

    /// After a step: puts complete pages into the tree, and frees those that left the window.
    pub(crate) fn settle(&mut self, holding: &mut RequestPages, text: &[TokenId], computed: u32) {
        while self.cached && holding.named + self.stride <= computed {
            let edge = &text[holding.named as usize..][..self.stride as usize];
            holding.node = self.tree.advance(holding.node, edge);
            for (group, table) in self.groups.iter_mut().zip(&holding.tables) {
                let number = holding.named / group.tokens();
                for (number, spot) in (number..).zip(group.spots(holding.node, self.stride)) {
                    // If the tree already has another request's page with this content, this one is
                    // not named.
                    if let Some(page) = table.page(number)
                        && self.tree.page(spot).is_none()
                        && group.pool.name(page, spot)
                    {
                        self.tree.set_page(spot, page);
                    }
                }
            }
            holding.named += self.stride;
        }
        for (group, table) in self.groups.iter_mut().zip(&mut holding.tables) {
            let count = group.first(computed).saturating_sub(table.first);
            for page in table.pages.drain(..count as usize) {
                group.pool.give_back(page);
            }
            table.first += count;
        }
    }

    /// Removes from the tree all pages of a request's text, and of all texts that continue what it
    /// wrote, which starts at position `written_from`. Returns what it wrote, by group.
    pub(crate) fn invalidate(&mut self, holding: &RequestPages, written_from: u32) -> Written {
        let number = written_from / self.stride;
        let path = self.tree.path(holding.node);
        let mut suspects = path.clone();
        // The first node belongs to the salt.
        let mut own = (number..).zip(path.iter().skip(1 + number as usize));
        let root = own.find(|(number, node)| self.is_written(holding, *number, **node));
        if let Some((_, root)) = root {
            suspects.extend(self.tree.below(*root));
        }
        for node in suspects {
            for group in &mut self.groups {
                for spot in group.spots(node, self.stride) {
                    if let Some(page) = self.tree.page(spot) {
                        group.pool.forget(page);
                        self.tree.clear(spot);
                    }
                }
            }
        }
        let written = |(group, table): (&Group, &Table)| {
            let first = (written_from / group.tokens()).saturating_sub(table.first);
            table.pages.iter().skip(first as usize).copied().collect()
        };
        Written(self.groups.iter().zip(&holding.tables).map(written).collect())
    }

    /// Whether the request itself wrote one of a node's pages.
    fn is_written(&self, holding: &RequestPages, number: u32, node: NodeId) -> bool {
        self.groups.iter().zip(&holding.tables).any(|(group, table)| {
            let first = number * self.stride / group.tokens();
            let mut spots = (first..).zip(group.spots(node, self.stride));
            spots.any(|(number, spot)| {
                table.page(number).is_some_and(|page| self.tree.page(spot) == Some(page))
            })
        })
    }

    /// Frees all pages of a request. Those beyond the first `kept` positions leave the cache.
    pub(crate) fn leave(&mut self, holding: RequestPages, kept: u32) {
        for (group, table) in self.groups.iter_mut().zip(holding.tables) {
            let kept_count = (kept / group.tokens()).saturating_sub(table.first);
            for page in table.pages.iter().skip(kept_count as usize) {
                if let Some(spot) = group.pool.unname(*page) {
                    self.tree.clear(spot);
                }
            }
            // Later pages are evicted first: without the pages before them they cannot be hit.
            for page in table.pages.into_iter().rev() {
                group.pool.give_back(page);
            }
        }
        self.tree.unpin(holding.node);
    }

    /// Pages of each group: all, used, cached.
    pub(crate) fn usage(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.groups.iter().map(|group| {
            let pool = &group.pool;
            (pool.page_count(), pool.page_count() - pool.available(), pool.idle_count())
        })
    }

    /// Checks that every page is used by the requests that list it.
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
        let found = self.tree.check(&pins)?;
        if found != named_count {
            return Err(format!("the tree names {found} pages, {named_count} have a name"));
        }
        Ok(())
    }

    /// Whether another request could hit a prefix of a prompt of this length.
    pub(crate) fn can_share(&self, prompt_count: u32) -> bool {
        // The last token is always computed.
        self.cached && prompt_count > self.stride
    }

    /// Checks that a request has the pages that its next row reads.
    pub(crate) fn check_holding(
        &self,
        holding: &RequestPages,
        computed: u32,
    ) -> Result<(), String> {
        for (index, (group, table)) in self.groups.iter().zip(&holding.tables).enumerate() {
            let (first, end) = (group.first(computed), computed.div_ceil(group.tokens()));
            if table.first != first || table.end() < end {
                let held = (table.first, table.end());
                return Err(format!("page group {index}: {held:?} held, {first}..{end} needed"));
            }
        }
        Ok(())
    }
}

impl Group {
    fn tokens(&self) -> u32 {
        self.spec.page_tokens
    }

    /// The oldest page that a row starting at `start` may read.
    fn first(&self, start: u32) -> u32 {
        self.spec.first_needed(start) / self.tokens()
    }

    /// Pages without which a request of `count` tokens cannot run.
    fn needed(&self, count: u32) -> u32 {
        let all = count.div_ceil(self.tokens());
        self.spec.window.map_or(all, |keys| all.min((keys - 1).div_ceil(self.tokens()) + 1))
    }

    /// Spots of its pages in a node of the tree, in order.
    fn spots(&self, node: NodeId, stride: u32) -> impl Iterator<Item = TreePlace> + use<> {
        let places = self.place..self.place + stride / self.tokens();
        places.map(move |place| TreePlace { node, place })
    }
}

impl RequestPages {
    pub(crate) fn has_any(&self, written: &Written) -> bool {
        let mut groups = self.tables.iter().zip(&written.0);
        groups.any(|(table, written)| table.pages.iter().any(|page| written.contains(page)))
    }
}

impl Table {
    fn end(&self) -> u32 {
        self.first + self.pages.len() as u32
    }

    fn page(&self, number: u32) -> Option<PageId> {
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
        let mut holding = pages.enter(salt, hit);
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
