//! Tails: positions of cached texts at which a prefix hit may end. A tail keeps the windows before
//! its position in every group that has one. Windows take much more memory than the tokens between
//! them, so only chosen positions have a tail: ends of prompts and of replies, where a conversation
//! goes on; the position at which a text has left a cached one, as the end of a common system
//! prompt does; and one in every [`TAIL_INTERVAL`] tokens. Where no group has a window, every
//! position has one.
//!
//! A tail is worth the tokens that are computed again without it. Those between ends are worth
//! nothing while the ends are there, so one long prompt evicts nothing of others. What is worth
//! least is evicted first, and worth fades as others are evicted (Greedy-Dual, Young 1991). A tail
//! leaves the cache with the pages before it.

use std::collections::BTreeSet;

use kilotok_abi::PageId;
use kilotok_engine::WINDOW_SLACK;

use crate::pages::{Pages, RequestPages};
use crate::prefix::{NodeId, Tail, TreePlace};

/// Tokens between two tails inside a long text. A request that leaves the text in between computes
/// half as many again, on average; a second at the slowest.
const TAIL_INTERVAL: u32 = 4096;

/// All tails by priority.
#[derive(Default)]
pub(crate) struct Order {
    pub(crate) tails: BTreeSet<(u64, u32)>,
    /// Priority of the last one that was evicted. Later ones start from it.
    floor: u64,
}

/// A page of a tail: its group, number in the text, and spot.
type TailPage = (usize, u32, TreePlace);

impl Pages {
    /// Adds a tail at the end of the named text, if this is one of the chosen positions.
    pub(crate) fn add_chosen_tail(&mut self, holding: &mut RequestPages) {
        let position = holding.named;
        let interval = TAIL_INTERVAL.next_multiple_of(self.stride);
        // The next prompt may differ in the prompt's last tokens, which open the reply.
        let near_end = position <= holding.prompt_count
            && holding.prompt_count - position < self.stride + WINDOW_SLACK;
        if near_end || position == holding.branch {
            self.add_tail(holding, position - holding.worthy);
            holding.worthy = position;
        } else if position.is_multiple_of(interval) || !self.has_windows() {
            self.add_tail(holding, 0);
        }
    }

    fn has_windows(&self) -> bool {
        self.groups.iter().any(|group| group.spec.window.is_some())
    }

    /// Adds a tail at the end of the named text, or notes that it was of use, if all pages are
    /// there that it needs.
    pub(crate) fn add_tail(&mut self, holding: &RequestPages, worth: u32) {
        let node = holding.node;
        if self.tree.tail(node).is_some() {
            self.touch_tail(node, worth);
            return;
        }
        if self.tree.is_lost(node) {
            return;
        }
        let spots = self.tail_pages(node);
        let page = |(index, number, spot): &TailPage| {
            self.tree.page(*spot).or_else(|| holding.tables[*index].page(*number))
        };
        let Some(pages) = spots.iter().map(page).collect::<Option<Vec<PageId>>>() else {
            return;
        };
        for ((index, _, spot), page) in spots.into_iter().zip(pages) {
            let pool = &mut self.groups[index].pool;
            if self.tree.page(spot).is_none() {
                pool.name(page, spot);
                self.tree.set_page(spot, Some(page));
            }
            pool.add_tail(page);
        }
        self.set_tail(node, worth);
    }

    /// Notes that a tail was of use. `worth` counts if it was worth nothing before.
    pub(crate) fn touch_tail(&mut self, node: NodeId, worth: u32) {
        let Some(tail) = self.tree.tail(node) else {
            return;
        };
        self.order.tails.remove(&(tail.priority, node.0));
        self.set_tail(node, if tail.worth == 0 { worth } else { tail.worth });
    }

    fn set_tail(&mut self, node: NodeId, worth: u32) {
        let priority = self.order.floor + u64::from(worth);
        self.order.tails.insert((priority, node.0));
        self.tree.set_tail(node, Some(Tail { worth, priority }));
    }

    /// Removes the tail of a node, if it has one. The node stays.
    pub(crate) fn drop_tail(&mut self, node: NodeId) {
        let Some(tail) = self.tree.tail(node) else {
            return;
        };
        self.order.tails.remove(&(tail.priority, node.0));
        self.tree.set_tail(node, None);
        for (index, _, spot) in self.tail_pages(node) {
            let page = self.tree.page(spot).expect("a tail's pages are in the tree");
            if self.groups[index].pool.drop_tail(page).is_some() {
                self.tree.set_page(spot, None);
            }
        }
    }

    /// Removes the tail that is worth least, and the text that ends with it. False if there is
    /// none.
    pub(crate) fn evict_tail(&mut self) -> bool {
        let Some(&(priority, node)) = self.order.tails.first() else {
            return false;
        };
        self.order.floor = priority;
        self.drop_tail(NodeId(node));
        let released = self.tree.prune(NodeId(node));
        self.release(released);
        true
    }

    /// The pages that a tail needs, those of groups with a window.
    pub(crate) fn tail_pages(&self, node: NodeId) -> Vec<TailPage> {
        let position = self.tree.token_count(node);
        let mut pages = Vec::new();
        for (index, group) in self.groups.iter().enumerate() {
            let (first, per_node) = (group.first(position), self.stride / group.tokens());
            if group.spec.window.is_none() {
                continue;
            }
            let first_node = first / per_node;
            let nodes = self.tree.last(node, position / self.stride - first_node);
            pages.extend((first..position / group.tokens()).map(|number| {
                let node = nodes[(number / per_node - first_node) as usize];
                (index, number, TreePlace { node, place: group.place + number % per_node })
            }));
        }
        pages
    }
}
