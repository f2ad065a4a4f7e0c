//! The sizes that an engine is started with, and the limits that follow from them.

use kilotok_engine::{Caps, PageGroup, WINDOW_SLACK};
use kilotok_model::ModelSpec;

use crate::groups::Grouping;

/// Alternatives that a row may ask for beside each token; OpenAI's API allows as many.
const LOGPROBS_MAX: u32 = 20;
/// Drafts that a row may bring itself to an engine without a drafter.
const GIVEN_DRAFTS_MAX: u32 = 7;
/// Largest number of slots. A step has a row for each, so a larger one is a mistake.
pub const SLOTS_MAX: u32 = 1 << 16;

/// The prefix cache has room for one tail (the windows before one position) for every so many
/// tokens of context. For an eighth of MiMo-V2.5-Pro, tails are an eighth of a GPU's keys and
/// values.
const TAIL_TOKENS: u32 = 8192;

#[derive(Clone, Debug)]
pub struct Sizes {
    /// Tensor-parallel ranks that share the model: 1, 2, 4 or 8.
    pub rank_count: usize,
    pub slot_count: u32,
    /// Tokens of one step.
    pub token_max: u32,
    /// Positions of a sequence.
    pub position_max: u32,
    pub page_tokens: u32,
    /// Pages of a group that holds all positions of a text. See [`Sizes::groups`] for the others.
    pub page_count: u32,
}

/// A size that is 0 or too large for any engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeError {
    pub name: &'static str,
    pub max: u32,
}

impl std::fmt::Display for SizeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} must be from 1 to {}", self.name, self.max)
    }
}

impl std::error::Error for SizeError {}

impl Default for Sizes {
    /// Enough for a few short conversations.
    fn default() -> Self {
        Self {
            rank_count: 1,
            slot_count: 8,
            token_max: 512,
            position_max: 4096,
            page_tokens: 16,
            page_count: 1024,
        }
    }
}

impl Sizes {
    /// # Errors
    /// The first size that is 0 or above its limit.
    pub fn check(&self) -> Result<(), SizeError> {
        for (name, value, max) in [
            ("slot_count", self.slot_count, SLOTS_MAX),
            ("token_max", self.token_max, u32::MAX),
            ("position_max", self.position_max, u32::MAX),
            ("page_tokens", self.page_tokens, u32::MAX),
            ("page_count", self.page_count, u32::MAX),
        ] {
            if value == 0 || value > max {
                return Err(SizeError { name, max });
            }
        }
        Ok(())
    }

    /// The page groups of an engine that stores an element of a key or value in `value_bytes`.
    /// Takes no memory.
    ///
    /// A group with a window has pages for the window of each slot, for the tokens of a step, and
    /// for the windows that the prefix cache keeps, but never more pages than a group that holds
    /// all positions.
    pub fn groups(&self, spec: &ModelSpec, value_bytes: usize) -> Grouping {
        let mut grouping = Grouping::new(spec, self.rank_count, self.page_tokens, value_bytes);
        for group in &mut grouping.groups {
            group.page_count = self.group_page_count(group, draft_max(spec));
        }
        grouping
    }

    fn group_page_count(&self, group: &PageGroup, draft_max: u32) -> u32 {
        let Some(keys) = group.window else { return self.page_count };
        let pages = |tokens: u32| u64::from(tokens.div_ceil(self.page_tokens.max(1)));
        // The window before a position on a page boundary, and the text that a hit may leave
        // unused.
        let tail = pages(keys.saturating_sub(1)) + pages(WINDOW_SLACK);
        let tail_count =
            u64::from(self.page_count) * u64::from(self.page_tokens) / u64::from(TAIL_TOKENS);
        // The page of the next token, and those of its drafts.
        let row = tail + 1 + pages(draft_max);
        let count = u64::from(self.slot_count) * row + pages(self.token_max) + tail_count * tail;
        u32::try_from(count).unwrap_or(u32::MAX).min(self.page_count)
    }

    /// The limits of an engine of these sizes that samples as [`crate::Samplers`] does.
    pub fn caps(&self, spec: &ModelSpec, grouping: &Grouping) -> Caps {
        Caps {
            vocab_size: spec.vocab_size as u32,
            position_max: self.position_max.min(spec.position_max as u32),
            slot_count: self.slot_count,
            row_max: self.slot_count,
            token_max: self.token_max,
            wanted_max: self.token_max,
            wide_from: None,
            draft_max: draft_max(spec),
            drafter: spec.drafter.is_some(),
            logprobs_max: LOGPROBS_MAX.min(spec.vocab_size as u32),
            steps_in_flight_max: 1,
            groups: grouping.groups.clone(),
        }
    }
}

fn draft_max(spec: &ModelSpec) -> u32 {
    spec.drafter.as_ref().map_or(GIVEN_DRAFTS_MAX, |drafter| drafter.rows as u32 - 1)
}
