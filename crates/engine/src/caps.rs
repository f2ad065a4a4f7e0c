//! The limits of an engine, fixed at start.

use serde::{Deserialize, Serialize};

/// A group with a window keeps pages of this many more tokens before the end of a text, so that a
/// later text may differ in them and still start from the prefix cache. They are a stop string and
/// the drafts behind it, or the tokens with which a template opens a reply.
pub const WINDOW_SLACK: u32 = 16;

/// Limits of an engine. A plan that stays within them is accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Caps {
    pub vocab_size: u32,
    /// Positions are below this.
    pub position_max: u32,
    pub slot_count: u32,
    /// Rows of one step.
    pub row_max: u32,
    /// Tokens of one step, drafts included.
    pub token_max: u32,
    /// Tokens of one step whose logits are wanted, see [`crate::Row::wanted_count`].
    pub wanted_max: u32,
    /// Steps of this many tokens or more take the wide pass, which has its own base time and time
    /// per token; `None` for an engine with one pass.
    pub wide_from: Option<u32>,
    /// Drafts of one row, made by the engine or brought by the row.
    pub draft_max: u32,
    /// Whether the engine has a drafter of its own. Without one a row may still bring drafts.
    pub drafter: bool,
    /// Alternatives reported beside each token's log-probability.
    pub logprobs_max: u32,
    pub steps_in_flight_max: u32,
    /// In the order in which [`crate::Row::pages`] names them.
    pub groups: Vec<PageGroup>,
}

/// Layers with the same window, whose pages are taken and freed together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageGroup {
    pub kind: PageKind,
    /// Positions of one page.
    pub page_tokens: u32,
    pub page_count: u32,
    /// Keys that a position sees, itself included; `None` sees all. Older pages may be freed.
    pub window: Option<u32>,
    /// Bytes of one page on all ranks together.
    pub page_bytes: u64,
}

impl PageGroup {
    /// The oldest position that a step starting at `start` may read.
    pub fn first_needed(&self, start: u32) -> u32 {
        self.window.map_or(0, |keys| start.saturating_sub(keys - 1))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageKind {
    /// K/V of the target's full-attention layers.
    Full,
    /// K/V of the target's sliding-window layers.
    Window,
    /// Context K/V of the drafter.
    Draft,
}
