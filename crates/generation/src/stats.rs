//! The cost of one reply so far: tokens, drafts and time.

use kilotok_engine::Verification;

/// Durations are in milliseconds, and 0 until the event that ends them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplyStats {
    pub prompt_count: u32,
    /// Tokens of the prompt that were found in the prefix cache and not computed.
    pub cached_count: u32,
    pub token_count: u32,
    /// Tokens before the end of reasoning.
    pub reasoning_count: u32,
    /// The index of the answer's first token, after all reasoning.
    pub answer_start: u32,
    /// From arrival to the first step.
    pub queue_ms: f64,
    /// From arrival to the first token.
    pub ttft_ms: f64,
    /// From the first token to the newest.
    pub decode_ms: f64,
    pub verification: Verification,
    pub drafted_count: u64,
    pub accepted_count: u64,
    /// Entry `n` counts the steps in which `n` drafts were accepted, among the steps that verified
    /// drafts.
    pub steps_by_accepted: Vec<u64>,
}

impl ReplyStats {
    pub fn new(prompt_count: u32) -> Self {
        Self { prompt_count, ..Self::default() }
    }

    /// Counts the drafts of a step.
    pub fn count_drafts(&mut self, drafted_count: u32, accepted_count: u32) {
        if drafted_count == 0 {
            return;
        }
        let accepted = accepted_count as usize;
        if self.steps_by_accepted.len() <= accepted {
            self.steps_by_accepted.resize(accepted + 1, 0);
        }
        self.steps_by_accepted[accepted] += 1;
        self.drafted_count += u64::from(drafted_count);
        self.accepted_count += u64::from(accepted_count);
    }
}
