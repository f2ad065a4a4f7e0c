//! How many tokens a request took.

use kilotok_generation::ReplyStats;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompts. A prompt with several replies counts once.
    pub prompt_tokens: u32,
    /// Tokens of the replies, reasoning and calls included.
    pub completion_tokens: u32,
    pub total_tokens: u32,
    pub prompt_tokens_details: PromptDetails,
    pub completion_tokens_details: CompletionDetails,
}

impl Usage {
    /// Of several replies, `n` to each prompt: each prompt counts once.
    pub(crate) fn of(stats: &[ReplyStats], n: u32) -> Self {
        let mut usage = Self::default();
        for (index, stats) in stats.iter().enumerate() {
            if index % n.max(1) as usize == 0 {
                usage.prompt_tokens += stats.prompt_count;
                usage.prompt_tokens_details.cached_tokens += stats.cached_count;
            }
            usage.completion_tokens += stats.token_count;
            usage.completion_tokens_details.reasoning_tokens += stats.reasoning_count;
        }
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        usage
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Tokens of the prompts that were found in the prefix cache and not computed.
    pub cached_tokens: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct CompletionDetails {
    pub reasoning_tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_of_several_replies_counts_once() {
        let stats = ReplyStats { token_count: 2, cached_count: 3, ..ReplyStats::new(10) };
        let usage = Usage::of(&[stats.clone(), stats.clone(), stats.clone(), stats], 2);
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (20, 8));
        assert_eq!(usage.prompt_tokens_details.cached_tokens, 6);
        assert_eq!(usage.total_tokens, 28);
    }
}
