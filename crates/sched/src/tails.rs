//! Tails: positions of cached texts at which a prefix hit may end. A tail keeps the windows before
//! its position in every group that has one. Windows take much more memory than the tokens between
//! them, so only chosen positions have a tail: ends of prompts and of replies, where a conversation
//! goes on; the position at which a text diverged from a cached one, such as the end of a common
//! system prompt; and one in every [`TAIL_INTERVAL`] tokens. Where no group has a window, every
//! position has one.
//!
//! The worth of a tail is the number of tokens that are computed again without it. Tails between
//! ends are worth nothing while the ends are there, so one long prompt evicts no tails of others.
//! The tail of least worth is evicted first, and worth fades as others are evicted (Greedy-Dual,
//! Young 1991). A tail leaves the cache with the pages before it.

use std::collections::BTreeSet;

use kilotok_abi::PageId;
use kilotok_engine::WINDOW_SLACK;

use crate::pages::{Pages, RequestPages};
use crate::prefix::{NodeId, Tail, TreePlace};

/// Tokens between two tails inside a long text. A request whose text diverges between them must
/// compute half of these tokens once more, on average, which takes a second at the slowest.
pub const TAIL_INTERVAL: u32 = 4096;

/// Why a position has a tail: it is near the prompt's end or where texts diverge, and so worth
/// something, or it is one of those in between.
enum TailKind {
    End,
    Between,
}

/// All tails by priority.
#[derive(Default)]
pub(crate) struct Order {
    pub(crate) tails: BTreeSet<(u64, u32)>,
    /// Priority of the tail that was evicted last, to which the priorities of later tails are
    /// added.
    floor: u64,
}

/// A page of a tail: its group, number in the text, and spot.
type TailPage = (usize, u32, TreePlace);

impl Pages {
    /// Adds a tail at the end of the named text, if this is one of the chosen positions.
    pub(crate) fn add_chosen_tail(&mut self, holding: &mut RequestPages) {
        let position = holding.named;
        match self.tail_kind(holding, position) {
            Some(TailKind::End) => {
                self.add_tail(holding, position - holding.worthy);
                // A later prompt hits only one of the tails near the end, so their worth counts
                // from the same position. Only the last of them moves it.
                if position == holding.branch || position + self.stride > holding.prompt_count {
                    holding.worthy = position;
                }
            }
            Some(TailKind::Between) => self.add_tail(holding, 0),
            None => (),
        }
    }

    /// Whether a text gets a tail at a position, a multiple of `stride`, once it is computed.
    fn tail_kind(&self, holding: &RequestPages, position: u32) -> Option<TailKind> {
        let interval = TAIL_INTERVAL.next_multiple_of(self.stride);
        // The next prompt may differ in the prompt's last tokens, which open the reply.
        let near_end = position <= holding.prompt_count
            && holding.prompt_count - position < self.stride + WINDOW_SLACK;
        if near_end || position == holding.branch {
            Some(TailKind::End)
        } else if position.is_multiple_of(interval) || !self.has_windows() {
            Some(TailKind::Between)
        } else {
            None
        }
    }

    /// The positions from which later rows may start that read what the row over `start..end`
    /// writes ([`kilotok_engine::Row::later_starts`]): the tails that the request gets in this row,
    /// and the last multiple of `stride` within the row and the prompt, from which on a later row
    /// may start anywhere. These are all, because:
    ///
    /// - The request's next row starts at `end`, or behind the drafts that are accepted. Rows with
    ///   drafts start behind the prompt.
    /// - A request that leaves or is preempted gets a tail at the last multiple of `stride` of what
    ///   is computed and kept, which is the prompt at least ([`Pages::leave`]).
    /// - A row of another request starts at a tail in the tree. The pages of its windows came into
    ///   the tree with a tail of the request that computed them, so they are complete.
    ///
    /// No row reads the windows between, and the drafter's are not computed.
    pub(crate) fn later_starts(&self, holding: &RequestPages, start: u32, end: u32) -> Vec<u32> {
        let stride = self.stride;
        let last = end.min(holding.prompt_count) / stride * stride;
        if start >= last || !self.has_windows() {
            return Vec::new();
        }
        let tails = (start / stride + 1..last / stride).map(|edge| edge * stride);
        let chosen =
            tails.filter(|position| self.cached && self.tail_kind(holding, *position).is_some());
        chosen.chain([last]).collect()
    }

    fn has_windows(&self) -> bool {
        self.groups.iter().any(|group| group.spec.window.is_some())
    }

    /// Adds a tail at the end of the named text, if all pages that it needs are there. If there is
    /// one already, notes that it was of use.
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

#[cfg(test)]
mod tests {
    use kilotok_abi::TokenId;
    use kilotok_engine::{Caps, PageGroup, PageKind};
    use kilotok_testkit::ScriptedEngine;

    use super::*;
    use crate::Limits;
    use crate::harness::{Harness, asked};

    const STRIDE: u32 = 8;

    fn group(kind: PageKind, page_tokens: u32, page_count: u32, window: Option<u32>) -> PageGroup {
        PageGroup { kind, page_tokens, page_count, window, page_bytes: 1 }
    }

    /// Full attention in pages of 8, and windows of 16 and 50 in pages of 4 and 8.
    fn caps(full: u32, windows: [u32; 2]) -> Caps {
        let groups = vec![
            group(PageKind::Full, 8, full, None),
            group(PageKind::Window, 4, windows[0], Some(16)),
            group(PageKind::Draft, 8, windows[1], Some(50)),
        ];
        Caps { groups, position_max: 1 << 20, ..ScriptedEngine::caps() }
    }

    fn text(count: u32, seed: u32) -> Vec<TokenId> {
        (0..count).map(|index| (index * 31 + (index >> 7) + seed * 101) % 256).collect()
    }

    /// Computes a text in chunks of 32 tokens and leaves. Returns how much of it was found.
    fn compute(pages: &mut Pages, text: &[TokenId]) -> u32 {
        let end = text.len() as u32;
        let hit = pages.find("", text, end - 1);
        let found = hit.position;
        let mut holding = pages.enter("", hit, end);
        let mut computed = found;
        while computed < end {
            computed = (computed + 32).min(end);
            assert_eq!(pages.reach(&holding, computed), computed);
            pages.cover(&mut holding, computed);
            pages.settle(&mut holding, text, computed);
        }
        pages.leave(holding, end);
        found
    }

    #[test]
    fn one_long_prompt_evicts_nothing_of_others() {
        let mut pages = Pages::new(&caps(40_000, [80, 100]), true);
        let short = [1, 2, 3].map(|seed| text(30, seed));
        assert_eq!(short.each_ref().map(|text| compute(&mut pages, text)), [0; 3]);
        // Its tails in between need more than all pages.
        let long = text(40 * TAIL_INTERVAL + 9, 4);
        assert_eq!(compute(&mut pages, &long), 0);
        pages.check([].iter()).unwrap();
        assert_eq!(short.each_ref().map(|text| compute(&mut pages, text)), [24; 3]);
        assert_eq!(compute(&mut pages, &long), long.len() as u32 - 1);
        // Where it is left in between, the nearest tail counts that is still there.
        let other = [&long[..40 * TAIL_INTERVAL as usize - 50], &[7; 50]].concat();
        assert_eq!(compute(&mut pages, &other), 39 * TAIL_INTERVAL);
        // But a long text outlives many short ones.
        for seed in 10..60 {
            compute(&mut pages, &text(60, seed));
        }
        assert_eq!(compute(&mut pages, &short[0]), 0);
        assert_eq!(compute(&mut pages, &long), long.len() as u32 - 1);
        pages.check([].iter()).unwrap();
    }

    #[test]
    fn a_third_text_starts_where_the_second_left_the_first() {
        let mut pages = Pages::new(&caps(1000, [100, 100]), true);
        let texts = [1, 2, 3].map(|seed| [text(403, 0), text(100, seed)].concat());
        assert_eq!(texts.map(|text| compute(&mut pages, &text)), [0, 0, 400]);
    }

    #[test]
    fn a_tail_goes_with_the_pages_before_it() {
        let mut pages = Pages::new(&caps(64, [100, 100]), true);
        compute(&mut pages, &text(256, 1));
        let tails = |pages: &Pages| pages.order.tails.len();
        let one = tails(&pages);
        compute(&mut pages, &text(256, 2));
        assert_eq!(tails(&pages), 2 * one);
        // One page of the first is taken: its last one.
        compute(&mut pages, &text(8, 3));
        assert!(tails(&pages) <= 2 * one && pages.find("", &text(256, 1), 255).position < 250);
        compute(&mut pages, &text(300, 4));
        assert_eq!(pages.find("", &text(256, 1), 255).position, 0);
        pages.check([].iter()).unwrap();
    }

    /// Runs a prompt until it ends, or is stopped when it has more than `kept` tokens. Returns how
    /// much of it was found, and the reply.
    fn run(
        harness: &mut Harness,
        prompt: &[TokenId],
        count: u32,
        kept: u32,
    ) -> (u32, Vec<TokenId>) {
        let id = harness.sched.admit(asked(prompt.to_vec(), count)).unwrap();
        let (mut found, mut reply) = (0, Vec::new());
        while !harness.sched.is_idle() {
            for advance in harness.step().1 {
                found = advance.cached_count;
                reply.extend(advance.tokens);
            }
            if reply.len() as u32 > kept && harness.sched.stop(id, kept) {
                reply.truncate(kept as usize);
            }
        }
        harness.sched.check().unwrap();
        (found, reply)
    }

    #[test]
    fn ends_of_prompts_and_replies_are_hit_whole() {
        let whole = |count: u32| count / STRIDE * STRIDE;
        for seed in 0..150 {
            // Windows of two requests, and a step of 64 tokens.
            let mut caps = caps(1000, [2 * 10 + 16 + 60, 2 * 10 + 8 + 60]);
            caps.token_max = 64;
            let mut harness = Harness::new(caps, Limits::default());
            let (prompt_count, reply_count) = (1 + seed * 37 % 500, 1 + seed * 11 % 70);
            let prompt = text(prompt_count, seed);
            let (_, reply) = run(&mut harness, &prompt, reply_count, u32::MAX);
            let (again, same) = run(&mut harness, &prompt, reply_count, u32::MAX);
            assert_eq!((again, &same), (whole(prompt_count - 1), &reply), "seed {seed}");
            // The last token of a reply has no keys.
            let next = [&prompt[..], &reply, &[9, 9]].concat();
            let (found, _) = run(&mut harness, &next, 1, u32::MAX);
            assert_eq!(found, whole(prompt_count + reply_count - 1), "seed {seed}");
            // A prompt that opens the reply in other words.
            let shared = prompt_count.saturating_sub(seed % (WINDOW_SLACK + 1));
            let other = [&prompt[..shared as usize], &[200; 30]].concat();
            let (found, _) = run(&mut harness, &other, 1, u32::MAX);
            assert!(found >= whole(shared), "seed {seed}: {found} of {shared}");
            // A reply that a stop string ended.
            let kept = seed % 30;
            let prompt = text(prompt_count, seed + 1000);
            let (_, reply) = run(&mut harness, &prompt, 90, kept);
            let next = [&prompt[..], &reply, &[9, 9]].concat();
            let (found, _) = run(&mut harness, &next, 1, u32::MAX);
            assert_eq!(found, whole(prompt_count + kept), "seed {seed}");
        }
    }

    #[test]
    fn later_rows_start_at_tails_or_behind_the_last_edge() {
        let mut pages = Pages::new(&caps(2000, [200, 200]), true);
        let hit = pages.find("", &[], 0);
        let mut holding = pages.enter("", hit, 8500);
        let starts = |pages: &Pages, holding: &RequestPages, row: std::ops::Range<u32>| {
            pages.later_starts(holding, row.start, row.end)
        };
        assert_eq!(starts(&pages, &holding, 0..1003), [1000]);
        assert_eq!(starts(&pages, &holding, 0..8192), [4096, 8192]);
        assert_eq!(starts(&pages, &holding, 8192..8500), [8480, 8488, 8496], "the prompt's end");
        assert_eq!(starts(&pages, &holding, 4100..9000), [8192, 8480, 8488, 8496], "it was longer");
        assert_eq!(starts(&pages, &holding, 8499..8500), [0; 0], "all may be read");
        assert_eq!(starts(&pages, &holding, 9000..9008), [0; 0]);
        holding.branch = 2000;
        assert_eq!(starts(&pages, &holding, 1000..2000), [2000]);
        assert_eq!(starts(&pages, &holding, 1000..3000), [2000, 3000]);
        assert_eq!(starts(&pages, &holding, 2000..3000), [3000]);
        pages.cached = false;
        assert_eq!(starts(&pages, &holding, 0..8192), [8192], "the request's own next row");
        pages.groups.truncate(1);
        assert_eq!(starts(&pages, &holding, 0..8192), [0; 0], "without windows");
    }

    /// The engine fails where a row may read what was left out.
    #[test]
    fn texts_that_leave_a_long_one_start_at_its_tails() {
        let mut caps = caps(6000, [4000, 4000]);
        caps.token_max = 3000;
        let mut harness = Harness::new(caps.clone(), Limits::default());
        let long = text(2 * TAIL_INTERVAL + 300, 1);
        run(&mut harness, &long, 9, u32::MAX);
        for (left_at, found) in [(5000, TAIL_INTERVAL), (8300, 2 * TAIL_INTERVAL)] {
            let other = [&long[..left_at], &[7; 200]].concat();
            let mut alone = Harness::new(caps.clone(), Limits::default());
            let (_, expected) = run(&mut alone, &other, 9, u32::MAX);
            assert_eq!(run(&mut harness, &other, 9, u32::MAX), (found, expected));
        }
    }

    #[test]
    fn the_smallest_groups_are_enough() {
        // A window of 16 in pages of 4 and one of 50 in pages of 8, before a token and with it.
        let harness = |windows| {
            let mut harness = Harness::new(caps(1000, windows), Limits::default());
            harness.sched.admit(asked(text(300, 1), 40)).unwrap();
            harness.sched.admit(asked(text(200, 2), 40)).unwrap();
            let mut tokens = Vec::new();
            while !harness.sched.is_idle() {
                for advance in harness.step().1 {
                    tokens.extend(advance.tokens.into_iter().map(|token| (advance.id, token)));
                }
            }
            tokens.sort_by_key(|(id, _)| *id);
            tokens
        };
        assert_eq!(harness([5, 8]), harness([500, 500]));
    }

    #[test]
    fn prompts_share_the_pages_of_windows_as_they_share_tokens() {
        let mut harness = Harness::new(caps(1000, [40, 200]), Limits::default());
        for (seed, count) in [(1, 150), (2, 60)] {
            harness.sched.admit(asked(text(count, seed), 1)).unwrap();
        }
        // 38 pages of 4 tokens are left, one of each row may be incomplete.
        assert_eq!(harness.step().0, [(0, 86), (1, 60)]);
    }
}
