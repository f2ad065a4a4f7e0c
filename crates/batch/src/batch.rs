//! The rows of a plan as one run of tokens.

use kilotok_abi::TokenId;
use kilotok_engine::{EngineError, PageGroup, PageKind, Row, RowTokens, StepPlan, Verification};
use kilotok_sampling::assumed_accepted;

use crate::slots::Slots;

/// The tokens of a step: those of all rows, one row after the other.
pub struct Batch<'a> {
    pub rows: Vec<BatchRow<'a>>,
    pub tokens: Vec<TokenId>,
    pub positions: Vec<u32>,
    row_of: Vec<usize>,
}

/// A row and where its tokens lie in the batch.
pub struct BatchRow<'a> {
    pub plan: &'a Row,
    pub first: usize,
    pub count: usize,
    /// How its drafts are made, and how those that its slot holds are verified.
    pub rule: Verification,
}

impl<'a> Batch<'a> {
    /// Lays out the rows of a plan. Tokens that a row leaves to the engine come from its slot.
    ///
    /// # Errors
    /// [`EngineError::Plan`] when a slot does not hold the tokens that its row refers to.
    pub fn new(plan: &'a StepPlan, slots: &Slots) -> Result<Self, EngineError> {
        let (rows, row_of) = (Vec::with_capacity(plan.rows.len()), Vec::new());
        let mut batch = Self { rows, tokens: Vec::new(), positions: Vec::new(), row_of };
        for (index, row) in plan.rows.iter().enumerate() {
            let first = batch.tokens.len();
            slots.check(row).map_err(|reason| EngineError::Plan { row: index, reason })?;
            match &row.tokens {
                RowTokens::Given { tokens, .. } => batch.tokens.extend_from_slice(tokens),
                RowTokens::Held { draft_count } => {
                    batch.tokens.extend(slots.held(row.slot, *draft_count as usize));
                }
            }
            let count = batch.tokens.len() - first;
            batch.positions.extend(row.start..row.start + count as u32);
            batch.row_of.extend(std::iter::repeat_n(index, count));
            batch.rows.push(BatchRow { plan: row, first, count, rule: slots.rule(row) });
        }
        Ok(batch)
    }

    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// Index of the row that a token belongs to.
    pub fn row_index(&self, token: usize) -> usize {
        self.row_of[token]
    }

    /// For each token, whether later rows may read the drafter's keys and values of its position.
    /// Those of other tokens need not be computed.
    pub fn in_context(&self, groups: &[PageGroup]) -> Vec<bool> {
        let mut read = vec![false; self.token_count()];
        let drafters = groups.iter().filter(|group| group.kind == PageKind::Draft);
        for (group, row) in drafters.flat_map(|group| self.rows.iter().map(move |row| (group, row)))
        {
            let token = |position: u32| row.first + (position - row.plan.start) as usize;
            for range in group.read_later(row.plan) {
                read[token(range.start)..token(range.end)].fill(true);
            }
        }
        read
    }

    /// The plan's row that a token belongs to.
    pub fn row(&self, token: usize) -> &'a Row {
        self.rows[self.row_of[token]].plan
    }
}

impl BatchRow<'_> {
    /// Number of tokens that are not drafts.
    pub fn known(&self) -> usize {
        self.count - self.plan.tokens.draft_count() as usize
    }

    /// How many of its drafts count as accepted, where acceptance is assumed. The number is random,
    /// but always the same for the same row. A row with masks verifies its drafts instead, because
    /// a grammar cannot go on after a token that it forbids.
    pub fn assumed(&self) -> Option<u32> {
        let Verification::Assumed { chance } = self.rule else { return None };
        let first = self.plan.start + self.known() as u32;
        let (seed, drafts) = (u64::from(self.plan.slot.0), self.plan.tokens.draft_count());
        self.plan.masks.is_empty().then(|| assumed_accepted(chance, seed, first, drafts))
    }
}
