//! The pages of a sequence, and the free pages. Freed pages are handed out first, so that a
//! sequence that still reads such a page finds another sequence's keys in it.

use kilotok_abi::PageId;
use kilotok_engine::{Caps, PageGroup, PageRun};

use crate::mix::Stream;

use super::HostError;

/// The free pages of each group.
pub(super) struct Pools(Vec<Vec<PageId>>);

impl Pools {
    /// All pages of the engine, in an order that depends on the seed.
    pub(super) fn new(caps: &Caps, seed: u64) -> Self {
        let mut stream = Stream::new(seed);
        let shuffled = |group: &PageGroup| {
            let mut pages: Vec<_> = (0..group.page_count).map(PageId).collect();
            stream.shuffle(&mut pages);
            pages
        };
        Self(caps.groups.iter().map(shuffled).collect())
    }

    pub(super) fn free_counts(&self) -> Vec<usize> {
        self.0.iter().map(Vec::len).collect()
    }
}

/// The pages of a sequence in one group, without gaps.
#[derive(Clone, Debug, Default)]
struct Table {
    /// The number of the first of these pages within the sequence.
    first: u32,
    pages: Vec<PageId>,
    /// Pages below this number belong to another sequence.
    borrowed_end: u32,
}

/// The pages of a sequence, by group.
#[derive(Clone, Debug)]
pub(super) struct Tables(Vec<Table>);

/// The pages with the first `count` tokens of a text, as far as a sequence that continues the text
/// may read them.
#[derive(Clone, Debug)]
pub struct Prefix {
    pub(super) count: u32,
    tables: Tables,
}

impl Tables {
    pub(super) fn new(groups: &[PageGroup]) -> Self {
        Self(vec![Table::default(); groups.len()])
    }

    pub(super) fn of_prefix(prefix: &Prefix) -> Self {
        let mut tables = prefix.tables.clone();
        for table in &mut tables.0 {
            table.borrowed_end = table.first + table.pages.len() as u32;
        }
        tables
    }

    /// Makes borrowed pages the sequence's own.
    pub(super) fn own(&mut self) {
        for table in &mut self.0 {
            table.borrowed_end = 0;
        }
    }

    /// Takes pages until all positions below `end` have one.
    pub(super) fn cover(
        &mut self,
        groups: &[PageGroup],
        end: u32,
        pools: &mut Pools,
    ) -> Result<(), HostError> {
        for (index, (table, group)) in self.0.iter_mut().zip(groups).enumerate() {
            while table.end() < end.div_ceil(group.page_tokens) {
                let page = pools.0[index].pop().ok_or(HostError::OutOfPages { group: index })?;
                table.pages.push(page);
            }
        }
        Ok(())
    }

    /// Gives back the pages that a step starting at `start` can no longer read, except those of a
    /// prefix of `kept` positions.
    pub(super) fn trim(
        &mut self,
        groups: &[PageGroup],
        start: u32,
        kept: Option<u32>,
        pools: &mut Pools,
    ) {
        let start = kept.map_or(start, |kept| kept.min(start));
        for (index, (table, group)) in self.0.iter_mut().zip(groups).enumerate() {
            while table.first < group.first_needed(start) / group.page_tokens
                && !table.pages.is_empty()
            {
                let page = table.pages.remove(0);
                if table.first >= table.borrowed_end {
                    pools.0[index].push(page);
                }
                table.first += 1;
            }
        }
    }

    /// As few pages as a step over `start..end` needs.
    pub(super) fn runs(&self, groups: &[PageGroup], start: u32, end: u32) -> Vec<PageRun> {
        let run = |(table, group): (&Table, &PageGroup)| {
            let first = group.first_needed(start) / group.page_tokens;
            let count = end.div_ceil(group.page_tokens) - first;
            let pages = &table.pages[(first - table.first) as usize..][..count as usize];
            PageRun { first, pages: pages.to_vec() }
        };
        self.0.iter().zip(groups).map(run).collect()
    }

    /// Gives back all pages.
    pub(super) fn release(&mut self, pools: &mut Pools) {
        for (index, table) in self.0.iter_mut().enumerate() {
            let borrowed = table.borrowed_end.saturating_sub(table.first) as usize;
            let own = table.pages.drain(borrowed.min(table.pages.len())..);
            pools.0[index].extend(own);
            *table = Table::default();
        }
    }

    /// Splits off the pages of a prefix and gives back the others.
    pub(super) fn into_prefix(
        mut self,
        groups: &[PageGroup],
        count: u32,
        pools: &mut Pools,
    ) -> Prefix {
        self.trim(groups, count, None, pools);
        for (index, (table, group)) in self.0.iter_mut().zip(groups).enumerate() {
            while table.end() > count.div_ceil(group.page_tokens) {
                pools.0[index].extend(table.pages.pop());
            }
        }
        Prefix { count, tables: self }
    }
}

impl Table {
    fn end(&self) -> u32 {
        self.first + self.pages.len() as u32
    }
}
