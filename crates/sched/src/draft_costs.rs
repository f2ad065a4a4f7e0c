//! What drafts cost, by the number of rows that decode. A step's time is not linear in its rows: on
//! one H100 a row of gpt-oss-20b makes drafts in 1.1 ms by itself and in 0.3 ms beside seven
//! others, and a token costs 0.3 ms in the first case and 0.1 ms in the second. So each class of
//! row counts has fits of its own, which it keeps while the batch has other sizes: one of all
//! steps, and one of steps without drafts. The first drafts cost more than further ones, so where
//! most steps draft, the fit of all steps says too little about steps that do not.

use std::collections::BTreeMap;

use crate::cost::{Cost, Size};
use crate::fit::Fit;
use crate::scheduler::ROUND_MEMORY;

/// Classes of row counts: 1, 2, 3 and 4, 5 to 8, and so on.
pub(crate) const CLASS_COUNT: usize = u32::BITS as usize + 1;

pub(crate) struct DraftCosts {
    /// The classes of which steps were measured.
    classes: BTreeMap<usize, Class>,
    token_max: u32,
}

struct Class {
    /// The fit of steps that neither verify nor make drafts.
    alone: Fit,
    /// The fit of all steps.
    all: Fit,
}

/// The cost of steps of some number of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DraftCost {
    /// Microseconds of a step without any drafts.
    pub(crate) alone_us: f32,
    /// The cost of other steps.
    pub(crate) drafting: Cost,
}

impl DraftCosts {
    /// Costs of steps of up to `token_max` tokens.
    pub(crate) fn new(token_max: u32) -> Self {
        Self { classes: BTreeMap::new(), token_max }
    }

    /// Records a step without prompts. `assumed` is the cost of such steps before this class has
    /// measured any.
    pub(crate) fn observe(&mut self, row_count: u32, size: Size, us: f32, assumed: Cost) {
        let new = || {
            let fit = Fit::new(assumed, self.token_max, ROUND_MEMORY);
            Class { alone: fit.clone(), all: fit }
        };
        let class = self.classes.entry(class(row_count)).or_insert_with(new);
        class.all.observe(size, us);
        if size.token_count == row_count && size.drafting_count == 0 {
            class.alone.observe(size, us);
        }
    }

    /// The cost of steps of `row_count` rows, by `assumed` where none were measured.
    pub(crate) fn cost(&self, row_count: u32, assumed: Cost) -> DraftCost {
        let class = self.classes.get(&class(row_count));
        let (alone, drafting) =
            class.map_or((assumed, assumed), |class| (class.alone.cost(), class.all.cost()));
        let size = Size { token_count: row_count, drafting_count: 0 };
        DraftCost { alone_us: alone.of(size), drafting }
    }
}

pub(crate) fn class(row_count: u32) -> usize {
    (u32::BITS - row_count.saturating_sub(1).leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two() {
        let rows = [0, 1, 2, 3, 4, 5, 8, 9, 64, 65, u32::MAX];
        assert_eq!(rows.map(class), [0, 0, 1, 2, 2, 3, 3, 4, 6, 7, 32]);
    }

    #[test]
    fn what_one_row_costs_is_kept_while_eight_decode() {
        let one = Cost { base_us: 1300.0, token_us: 300.0, draft_us: 1100.0 };
        let eight = Cost { base_us: 3100.0, token_us: 100.0, draft_us: 300.0 };
        // Time that a step with any drafts takes besides.
        let jump_us = 1000.0;
        let truth = |cost: Cost, rows: u32, size: Size| {
            let drafts = size.token_count > rows || size.drafting_count > 0;
            cost.of(size) + if drafts { jump_us } else { 0.0 }
        };
        let assumed = Cost { base_us: 2000.0, token_us: 20.0, draft_us: 200.0 };
        let mut costs = DraftCosts::new(64);
        for (rows, cost) in [(1, one), (8, eight)] {
            for step in 0..2000_u32 {
                // One step in 64 makes no drafts, and the next verifies none.
                let size = Size {
                    token_count: if step % 64 == 1 { rows } else { rows + step % 5 * rows },
                    drafting_count: if step % 64 == 0 || step % 64 == 1 { 0 } else { rows },
                };
                costs.observe(rows, size, truth(cost, rows, size), assumed);
            }
        }
        for (rows, cost) in [(1, one), (8, eight)] {
            let DraftCost { alone_us, drafting } = costs.cost(rows, assumed);
            let near = |found: f32, expected: f32| (found / expected - 1.0).abs() < 0.05;
            let alone = Size { token_count: rows, drafting_count: 0 };
            assert!(near(alone_us, cost.of(alone)), "{rows}: {alone_us}");
            for token_count in [rows, 2 * rows, 4 * rows] {
                let size = Size { token_count, drafting_count: rows };
                let (found, expected) = (drafting.of(size), truth(cost, rows, size));
                assert!(near(found, expected), "{rows} {size:?}: {found} {expected}");
            }
        }
    }
}
