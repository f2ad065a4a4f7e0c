//! Plans and outputs. Prefill (a prompt chunk), decode and verification are one kind of row: tokens
//! at consecutive positions, the last few of which may be drafts.

use kilotok_abi::{Bias, PageId, Sampling, SlotId, TokenId};
use serde::{Deserialize, Serialize};

/// Identifies a submitted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub u64);

impl std::fmt::Display for StepId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One step: for every row, run the target over its tokens, sample or verify, commit what was
/// accepted, then draft the next tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepPlan {
    /// At most one row per slot.
    pub rows: Vec<Row>,
}

/// One sequence's share of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub slot: SlotId,
    /// Present when a request enters the slot; what the slot held before is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<Box<SlotSetup>>,
    /// Position of the first token. The K/V of all earlier positions are in the pages.
    pub start: u32,
    pub tokens: RowTokens,
    /// Whether to choose a token after the row's last one. A row with drafts always does; a
    /// prompt chunk that is not the last does not.
    pub sample: bool,
    /// One per page group of the engine, in its order.
    pub pages: Vec<PageRun>,
    /// Where rows may start that later read keys and values of this one, ascending: at one of these
    /// positions, or anywhere after the last of them. Empty if they may start anywhere.
    /// [`PageGroup::read_later`] says what follows for a group with a window.
    ///
    /// [`PageGroup::read_later`]: crate::PageGroup::read_later
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_starts: Vec<u32>,
    /// Allowed tokens, a bit each (bit t % 32 of word t / 32), for the position of each draft and
    /// the one after: `draft_count + 1` bitsets, or none when every token is allowed. Under
    /// [`Verification::Rejection`] the last may be missing if the drafts are held ones; then no
    /// token follows them when all are accepted. A draft that its mask forbids must be part of such
    /// a row: to leave it out because of what was drawn would change the tokens' distribution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masks: Vec<Vec<u32>>,
    /// Report log-probabilities of the chosen tokens and of this many of the likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Report the log-probability of `scored[i]` as the successor of the row's token i, with the
    /// same alternatives as `logprobs`. This is how a prompt is scored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scored: Vec<TokenId>,
    /// Drafts to make at the step's end and hold in the slot; 0 makes none.
    #[serde(default)]
    pub draft_next: u32,
    /// Report those drafts, for a host that must mask their positions.
    #[serde(default)]
    pub report_drafts: bool,
}

impl Row {
    /// A row that chooses a token and asks for nothing else. It has no pages yet.
    pub fn new(slot: SlotId, start: u32, tokens: RowTokens) -> Self {
        Self {
            slot,
            setup: None,
            start,
            tokens,
            sample: true,
            pages: Vec::new(),
            later_starts: Vec::new(),
            masks: Vec::new(),
            logprobs: None,
            scored: Vec::new(),
            draft_next: 0,
            report_drafts: false,
        }
    }
}

/// The source of a row's tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RowTokens {
    /// From the plan; the last `draft_count` are drafts to be verified.
    Given { tokens: Vec<TokenId>, draft_count: u32 },
    /// From the slot: the last chosen token, then this many of the drafts it holds.
    Held { draft_count: u32 },
}

impl RowTokens {
    /// Tokens in the row, drafts included.
    pub fn count(&self) -> u32 {
        match self {
            Self::Given { tokens, .. } => tokens.len() as u32,
            Self::Held { draft_count } => draft_count.saturating_add(1),
        }
    }

    pub fn draft_count(&self) -> u32 {
        match self {
            Self::Given { draft_count, .. } | Self::Held { draft_count } => *draft_count,
        }
    }
}

impl Row {
    /// One past the position of the row's last token.
    pub fn end(&self) -> u32 {
        self.start.saturating_add(self.tokens.count())
    }

    /// Tokens of the row whose logits are wanted: the scored ones and, if the row samples, the
    /// drafts and the last token before them.
    pub fn wanted_count(&self) -> u32 {
        let count = self.tokens.count();
        let sampled = if self.sample { self.tokens.draft_count().saturating_add(1) } else { 0 };
        (self.scored.len() as u32).saturating_add(sampled).min(count)
    }
}

/// Halvings of the interval from 0 to 1: enough for the precision of an F32.
const BISECTIONS: u32 = 40;

/// How the drafts of a slot are made and verified. The first two leave the tokens' distribution as
/// it is without drafts, whatever the drafter proposes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Verification {
    /// Sample and match: drafts are the drafter's likeliest tokens; the target samples after each
    /// and goes on while it sampled the draft. Drafts change no token.
    #[default]
    Match,
    /// Rejection sampling: drafts are drawn from the drafter's distribution, at the request's
    /// temperature times `draft_temperature`, and verified jointly (block verification). Tokens
    /// depend on how many drafts are verified. Drafts that a row brings itself are matched.
    Rejection { draft_temperature: f32 },
    /// For measuring with dummy weights, with which no draft is ever right: whatever the target
    /// would choose, each draft counts as accepted with this probability if all before it do.
    /// Drafts are made as under [`Self::Match`].
    Assumed { chance: f32 },
}

impl Verification {
    /// Whether drafts are drawn from the drafter's distribution and verified with it.
    pub fn is_rejection(&self) -> bool {
        matches!(self, Self::Rejection { .. })
    }

    /// The assumed acceptance with which rows of `draft_max` drafts bring `length` tokens on
    /// average; `None` if they cannot. Rows of fewer drafts bring fewer tokens.
    pub fn assumed(length: f64, draft_max: u32) -> Option<Self> {
        if !(1.0..=f64::from(draft_max) + 1.0).contains(&length) {
            return None;
        }
        let tokens = |chance: f64| (0..=draft_max as i32).map(|drafts| chance.powi(drafts)).sum();
        let (mut below, mut above) = (0.0, 1.0);
        for _ in 0..BISECTIONS {
            let chance = f64::midpoint(below, above);
            let brings: f64 = tokens(chance);
            *(if brings < length { &mut below } else { &mut above }) = chance;
        }
        Some(Self::Assumed { chance: above as f32 })
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Setup of a slot for the request that enters it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotSetup {
    pub sampling: Sampling,
    #[serde(default, skip_serializing_if = "is_default")]
    pub verification: Verification,
    /// Positions below this are the prompt; `min_tokens` counts from here.
    pub prompt_count: u32,
    /// All tokens known so far, prompt first, the row's own (but not its drafts) included. Only
    /// penalties and bad words read it; without them it may be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<TokenId>,
    /// Added to the logits of these tokens, their sum where a token has several; finite. A
    /// token with [`kilotok_abi::FORBIDDEN`] or less is never chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Token sequences that must not be completed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_words: Vec<Vec<TokenId>>,
    /// Tokens that end a request, impossible before `sampling.min_tokens`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end_tokens: Vec<TokenId>,
}

impl SlotSetup {
    /// `sampling` alone, with a prompt of `prompt_count` tokens.
    pub fn new(sampling: Sampling, prompt_count: u32) -> Self {
        Self {
            sampling,
            verification: Verification::Match,
            prompt_count,
            history: Vec::new(),
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            end_tokens: Vec::new(),
        }
    }

    /// The biases added up, one number for each token; -infinity for a token that is never chosen.
    pub fn biases(&self) -> Vec<(TokenId, f32)> {
        Bias::of_each(&self.logit_bias).iter().map(|bias| (bias.token, bias.bias)).collect()
    }

    /// Whether choosing a token reads the tokens before it.
    pub fn needs_history(&self) -> bool {
        self.sampling.has_penalty() || !self.bad_words.is_empty()
    }
}

/// The pages of one group that a row reads and writes: page `first + i` of the sequence, which
/// holds its positions from `(first + i) * page_tokens`, is `pages[i]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRun {
    pub first: u32,
    pub pages: Vec<PageId>,
}

/// The output of a step, rows in plan order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepOutput {
    pub rows: Vec<RowOutput>,
}

/// The output of one row. Keys and values of the row's own tokens and of all chosen tokens but the
/// last are in the pages, the drafter's too, even where a fault ended the row. So the next row
/// starts at `row.end() - draft_count`, plus `tokens.len() - 1` if tokens were chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowOutput {
    /// Accepted drafts, then the one token the target adds, unless the mask for it is missing;
    /// empty when the row did not sample.
    pub tokens: Vec<TokenId>,
    /// One per token when the row asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// One per entry of [`Row::scored`], or up to the first that a fault kept from being scored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scored: Vec<TokenLogprobs>,
    /// Drafts that the slot now holds: [`Row::draft_next`], or fewer where the drafter's logits are
    /// not finite; none without a token.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_count: u32,
    /// Those drafts, when the row asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drafts: Vec<TokenId>,
    /// Set when no token could be chosen or scored at some position; `tokens` ends before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<RowFault>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Log-probabilities at one position, from the target's own distribution before any processing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprobs {
    pub chosen: TokenLogprob,
    /// How many tokens are likelier than the chosen one.
    pub rank: u32,
    /// The likeliest tokens, best first; of equals the lower id first.
    pub top: Vec<TokenLogprob>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprob {
    pub token: TokenId,
    pub logprob: f32,
}

/// Why a row could not choose a token. The other rows of the step are not affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum RowFault {
    /// The model computed NaN or infinity.
    #[error("the model's logits at position {position} are not finite")]
    NotFinite { position: u32 },
    /// Mask, bad words and biases together leave nothing to choose.
    #[error("no token is allowed at position {position}")]
    NothingAllowed { position: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assumed_acceptance_brings_that_many_tokens() {
        for (length, draft_max) in [(1.0, 7), (2.5, 7), (5.3, 7), (8.0, 7), (1.5, 1), (1.0, 0)] {
            let Some(Verification::Assumed { chance }) = Verification::assumed(length, draft_max)
            else {
                panic!("{length} of {draft_max} drafts")
            };
            let chance = f64::from(chance);
            let tokens: f64 = (0..=draft_max as i32).map(|drafts| chance.powi(drafts)).sum();
            assert!((tokens - length).abs() < 1e-5, "{tokens}, not {length}");
        }
        for (length, draft_max) in [(0.9, 7), (8.1, 7), (f64::NAN, 7), (1.1, 0)] {
            assert_eq!(Verification::assumed(length, draft_max), None);
        }
    }
}
