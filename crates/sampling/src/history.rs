//! The tokens of one request so far, with counts for penalties and bad words. Adding or removing a
//! token takes constant time, so that each row of a verified draft is processed with exactly the
//! tokens before it.

use std::collections::HashMap;

use kilotok_abi::TokenId;

use crate::Setup;

/// Prompt and output of one request; stays empty if the setup needs no history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    kept: bool,
    prompt_count: usize,
    tokens: Vec<TokenId>,
    /// One entry per distinct token, in the order of first occurrence.
    seen: Vec<Seen>,
    /// Index of a token in `seen`.
    places: HashMap<TokenId, usize>,
}

/// How often a token occurred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) token: TokenId,
    /// Occurrences in prompt and output.
    pub(crate) count: u32,
    pub(crate) output_count: u32,
}

impl History {
    /// The history of the tokens known so far, prompt first.
    pub fn new(setup: &Setup, tokens: &[TokenId]) -> Self {
        let mut history = Self {
            kept: setup.needs_history(),
            prompt_count: setup.prompt_count as usize,
            ..Self::default()
        };
        for &token in tokens {
            history.push(token);
        }
        history
    }

    /// Appends a token. Those before the prompt's end belong to the prompt.
    pub fn push(&mut self, token: TokenId) {
        if !self.kept {
            return;
        }
        let place = *self.places.entry(token).or_insert(self.seen.len());
        if place == self.seen.len() {
            self.seen.push(Seen { token, count: 0, output_count: 0 });
        }
        self.seen[place].count += 1;
        self.seen[place].output_count += u32::from(self.tokens.len() >= self.prompt_count);
        self.tokens.push(token);
    }

    /// Removes the last token.
    pub fn pop(&mut self) {
        let Some(token) = self.tokens.pop() else {
            return;
        };
        let place = self.places[&token];
        self.seen[place].count -= 1;
        self.seen[place].output_count -= u32::from(self.tokens.len() >= self.prompt_count);
        if self.seen[place].count == 0 {
            // Its first occurrence was the last token, so no token was first seen after it.
            assert_eq!(place, self.seen.len() - 1);
            self.seen.pop();
            self.places.remove(&token);
        }
    }

    /// Whether the tokens so far end with `suffix`; an empty one always does.
    pub(crate) fn ends_with(&self, suffix: &[TokenId]) -> bool {
        self.tokens.ends_with(suffix)
    }

    pub(crate) fn seen(&self) -> &[Seen] {
        &self.seen
    }
}

#[cfg(test)]
mod tests {
    use kilotok_abi::Sampling;
    use proptest::prelude::*;

    use super::*;

    fn penalized(prompt_count: u32) -> Setup {
        let sampling = Sampling { presence_penalty: 1.0, ..Sampling::GREEDY };
        Setup::new(sampling, prompt_count)
    }

    #[test]
    fn nothing_is_kept_that_nothing_reads() {
        let mut history = History::new(&Setup::new(Sampling::GREEDY, 1), &[1, 2]);
        history.push(3);
        history.pop();
        history.pop();
        assert_eq!(history.tokens, []);
    }

    proptest! {
        #[test]
        fn pop_undoes_push(
            kept in prop::collection::vec(0u32..6, 0..20),
            drafts in prop::collection::vec(0u32..6, 0..20),
            prompt_count in 0u32..30,
        ) {
            let before = History::new(&penalized(prompt_count), &kept);
            let mut history = before.clone();
            for &draft in &drafts {
                history.push(draft);
            }
            for _ in &drafts {
                history.pop();
            }
            prop_assert_eq!(history, before);
        }

        #[test]
        fn counts_are_counts(
            tokens in prop::collection::vec(0u32..6, 0..30),
            prompt_count in 0u32..30,
        ) {
            let history = History::new(&penalized(prompt_count), &tokens);
            let count = |tokens: &[TokenId], t| tokens.iter().filter(|&&x| x == t).count() as u32;
            let output = &tokens[tokens.len().min(prompt_count as usize)..];
            for token in 0..6 {
                let seen = history.seen.iter().find(|seen| seen.token == token);
                prop_assert_eq!(seen.map_or(0, |s| s.count), count(&tokens, token));
                prop_assert_eq!(seen.map_or(0, |s| s.output_count), count(output, token));
            }
        }
    }
}
