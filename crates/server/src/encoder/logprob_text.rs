//! Log-probabilities with the texts of their tokens, in the form of each API.

use kilotok_abi::TokenId;
use kilotok_engine::{TokenLogprob, TokenLogprobs};
use kilotok_text::Text;

use crate::wire::logprobs::{ChatLogprob, Pairs, PromptLogprob, PromptLogprobs, TopLogprob};

/// How tokens are written: as text, or as `token_id:7`.
#[derive(Clone, Copy)]
pub(crate) struct LogprobText<'a> {
    pub(crate) text: &'a Text,
    pub(crate) as_ids: bool,
}

impl LogprobText<'_> {
    pub(crate) fn token(&self, token: TokenId) -> String {
        if self.as_ids { format!("token_id:{token}") } else { self.text.token_text(token) }
    }

    fn bytes(&self, token: TokenId) -> Option<Vec<u8>> {
        self.text.token_bytes(token).map(<[u8]>::to_vec)
    }

    /// An entry of a chat reply.
    pub(crate) fn chat(&self, logprobs: &TokenLogprobs, top_count: u32) -> ChatLogprob {
        let top = logprobs.top.iter().take(top_count as usize);
        let top = top.map(|TokenLogprob { token, logprob }| TopLogprob {
            token: self.token(*token),
            logprob: finite(*logprob),
            bytes: self.bytes(*token),
        });
        ChatLogprob {
            token: self.token(logprobs.chosen.token),
            logprob: finite(logprobs.chosen.logprob),
            bytes: self.bytes(logprobs.chosen.token),
            top_logprobs: top.collect(),
        }
    }

    /// The likeliest tokens of a position and the chosen one, as a map from text to
    /// log-probability. If several tokens have the same text, the likeliest counts.
    pub(crate) fn top(&self, logprobs: &TokenLogprobs, top_count: u32) -> Pairs<String, f32> {
        let mut pairs = Pairs(Vec::new());
        let top = logprobs.top.iter().take(top_count as usize);
        for TokenLogprob { token, logprob } in top.chain([&logprobs.chosen]) {
            pairs.add(self.token(*token), finite(*logprob));
        }
        pairs
    }

    /// The entries of a prompt, in vLLM's form. The first token has none.
    pub(crate) fn prompt(&self, logprobs: &[TokenLogprobs], top_count: u32) -> PromptLogprobs {
        let ranked = |rank, entry: &TokenLogprob| PromptLogprob {
            logprob: finite(entry.logprob),
            rank,
            decoded_token: self.text.token_text(entry.token),
        };
        let position = |logprobs: &TokenLogprobs| {
            let mut pairs = Pairs(Vec::new());
            for (rank, top) in (1..).zip(logprobs.top.iter().take(top_count as usize)) {
                pairs.add(top.token, ranked(rank, top));
            }
            let chosen = &logprobs.chosen;
            pairs.add(chosen.token, ranked(logprobs.rank + 1, chosen));
            Some(pairs)
        };
        std::iter::once(None).chain(logprobs.iter().map(position)).collect()
    }
}

/// Replaces infinity, which JSON cannot express, by -9999, as vLLM does.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(-9999.0) } else { -9999.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_have_a_number() {
        assert_eq!(finite(f32::NEG_INFINITY), -9999.0);
        assert_eq!(finite(-0.5), -0.5);
    }
}
