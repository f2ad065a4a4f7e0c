//! The sampling parameters of one request, and their valid ranges.

use kilotok_abi::{Sampling, TokenId};

/// All sampling parameters of a request, fixed from its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    pub sampling: Sampling,
    /// Positions below this are the prompt; `min_tokens` counts from here.
    pub prompt_count: u32,
    /// Added to the logits of these tokens, once per entry; -infinity forbids the token.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Token sequences that must not be completed: the last token of each is forbidden whenever
    /// the tokens so far, prompt included, end with the others.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Tokens that end a request, forbidden until `sampling.min_tokens` were generated.
    pub end_tokens: Vec<TokenId>,
}

/// A value that a [`Setup`] cannot have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SetupError {
    #[error("{name} must be {rule}, not {value}")]
    Value { name: &'static str, rule: &'static str, value: f32 },
    #[error("{name} has token {token}, but the vocabulary ends at {vocab_count}")]
    Token { name: &'static str, token: TokenId, vocab_count: usize },
    #[error("bad_words has an empty sequence")]
    EmptyBadWord,
}

impl Setup {
    /// Largest magnitude of a number in a setup; sums of a few larger ones would be infinite.
    pub const MAGNITUDE_MAX: f32 = 1e6;

    /// `sampling` alone, with a prompt of `prompt_count` tokens.
    pub fn new(sampling: Sampling, prompt_count: u32) -> Self {
        Self {
            sampling,
            prompt_count,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            end_tokens: Vec::new(),
        }
    }

    /// Whether the likeliest token is always chosen.
    pub fn is_greedy(&self) -> bool {
        self.sampling.is_greedy()
    }

    /// Whether choosing a token reads the tokens before it.
    pub fn needs_history(&self) -> bool {
        self.sampling.has_penalty() || !self.bad_words.is_empty()
    }

    /// Whether the logits at `position` are the model's own, but for a mask.
    pub(crate) fn leaves_logits(&self, position: u32) -> bool {
        self.logit_bias.is_empty() && !self.needs_history() && !self.forbids_end(position)
    }

    /// Whether a request may not end with the token at `position`.
    pub(crate) fn forbids_end(&self, position: u32) -> bool {
        position.saturating_sub(self.prompt_count) < self.sampling.min_tokens
    }

    /// Refuses values without a meaning, for a vocabulary of `vocab_count` tokens. The other
    /// functions of this crate take a setup that passed.
    pub fn check(&self, vocab_count: usize) -> Result<(), SetupError> {
        const ABOVE: &str = "above 0 and at most 1e6";
        const WITHIN: &str = "between -1e6 and 1e6";
        const BIAS: &str = "between -1e6 and 1e6, or -infinity";
        let s = &self.sampling;
        let sane = |value: f32| value.abs() <= Self::MAGNITUDE_MAX;
        let rules: [(&'static str, f32, &'static str, bool); 6] = [
            ("temperature", s.temperature, "0 or more", s.temperature >= 0.0),
            ("top_p", s.top_p, "above 0 and at most 1", s.top_p > 0.0 && s.top_p <= 1.0),
            ("min_p", s.min_p, "between 0 and 1", (0.0..=1.0).contains(&s.min_p)),
            ("repetition_penalty", s.repetition_penalty, ABOVE, s.repetition_penalty > 0.0),
            ("presence_penalty", s.presence_penalty, WITHIN, true),
            ("frequency_penalty", s.frequency_penalty, WITHIN, true),
        ];
        let biases = self
            .logit_bias
            .iter()
            .map(|&(_, bias)| ("logit_bias", bias, BIAS, sane(bias) || bias == f32::NEG_INFINITY));
        let numbers = rules.map(|(name, value, rule, ok)| (name, value, rule, ok && sane(value)));
        for (name, value, rule, allowed) in numbers.into_iter().chain(biases) {
            if !allowed {
                return Err(SetupError::Value { name, rule, value });
            }
        }
        self.check_tokens(vocab_count)
    }

    fn check_tokens(&self, vocab_count: usize) -> Result<(), SetupError> {
        if self.bad_words.iter().any(Vec::is_empty) {
            return Err(SetupError::EmptyBadWord);
        }
        let biased = self.logit_bias.iter().map(|&(token, _)| ("logit_bias", token));
        let bad = self.bad_words.iter().flatten().map(|&token| ("bad_words", token));
        let end = self.end_tokens.iter().map(|&token| ("end_tokens", token));
        match biased.chain(bad).chain(end).find(|&(_, token)| token as usize >= vocab_count) {
            Some((name, token)) => Err(SetupError::Token { name, token, vocab_count }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_call_the_same_temperatures_greedy() {
        let header = include_str!("../../../kernels/include/kilotok/sample/row.cuh");
        let min = format!("constexpr float TEMPERATURE_MIN = {:?}f;\n", Sampling::TEMPERATURE_MIN);
        assert!(header.contains(&min), "{min}");
    }

    #[test]
    fn senseless_values_are_refused_by_name() {
        let check = |change: &dyn Fn(&mut Setup)| {
            let mut setup = Setup::new(Sampling::GREEDY, 0);
            change(&mut setup);
            setup.check(10).map_err(|error| error.to_string())
        };
        let refused = |change: &dyn Fn(&mut Setup), message: &str| {
            assert_eq!(check(change), Err(message.to_owned()));
        };
        refused(&|s| s.sampling.temperature = -0.1, "temperature must be 0 or more, not -0.1");
        refused(&|s| s.sampling.temperature = f32::NAN, "temperature must be 0 or more, not NaN");
        refused(
            &|s| s.sampling.temperature = f32::INFINITY,
            "temperature must be 0 or more, not inf",
        );
        refused(&|s| s.sampling.top_p = 0.0, "top_p must be above 0 and at most 1, not 0");
        refused(&|s| s.sampling.top_p = 1.5, "top_p must be above 0 and at most 1, not 1.5");
        refused(&|s| s.sampling.min_p = -1.0, "min_p must be between 0 and 1, not -1");
        refused(&|s| s.sampling.min_p = f32::NAN, "min_p must be between 0 and 1, not NaN");
        let rule = "repetition_penalty must be above 0 and at most 1e6, not 0";
        refused(&|s| s.sampling.repetition_penalty = 0.0, rule);
        let rule = "presence_penalty must be between -1e6 and 1e6, not inf";
        refused(&|s| s.sampling.presence_penalty = f32::INFINITY, rule);
        let rule = "frequency_penalty must be between -1e6 and 1e6, not NaN";
        refused(&|s| s.sampling.frequency_penalty = f32::NAN, rule);
        let rule = "logit_bias must be between -1e6 and 1e6, or -infinity, not 10000000";
        refused(&|s| s.logit_bias = vec![(1, 1e7)], rule);
        let rule = "logit_bias must be between -1e6 and 1e6, or -infinity, not inf";
        refused(&|s| s.logit_bias = vec![(1, 1.0), (1, f32::INFINITY)], rule);
        let beyond = "end_tokens has token 10, but the vocabulary ends at 10";
        refused(&|s| s.end_tokens = vec![9, 10], beyond);
        let beyond = "bad_words has token 11, but the vocabulary ends at 10";
        refused(&|s| s.bad_words = vec![vec![1], vec![2, 11]], beyond);
        let beyond = "logit_bias has token 12, but the vocabulary ends at 10";
        refused(&|s| s.logit_bias = vec![(12, 1.0)], beyond);
        refused(&|s| s.bad_words = vec![vec![1], vec![]], "bad_words has an empty sequence");
        assert_eq!(check(&|s| s.logit_bias = vec![(1, f32::NEG_INFINITY)]), Ok(()));
        assert_eq!(check(&|s| s.sampling.top_k = u32::MAX), Ok(()));
    }
}
