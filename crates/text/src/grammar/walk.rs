//! One reply on its way through its grammar: which tokens may come next, for each of a row's
//! drafts as well, and which came. It does not know how a grammar came to be.

use std::sync::Arc;

use kilotok_abi::TokenId;

use super::compile::Compiled;
use super::vocabulary::{Marker, Vocabulary};
use super::{GrammarError, library_error};
use crate::ReasoningStart;

/// Where one reply is in its grammar. A clone is for another choice of the same request: nothing
/// that happens to one is seen by the other.
#[derive(Clone)]
pub struct Grammar {
    /// As it was before the reply's first token.
    begun: Arc<Compiled>,
    compiled: Compiled,
    vocabulary: Arc<Vocabulary>,
    start: Place,
    place: Place,
    reply: Vec<TokenId>,
    /// A draft has broken the matcher, see [`Self::start_over`].
    undrafted: bool,
}

/// What may be chosen in a row: the first `draft_count` drafts are legal, and there is one mask
/// for each of them and one for the token after. No masks if everything is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masks {
    pub draft_count: u32,
    /// Bit `token % 32` of word `token / 32` is set if the token is allowed.
    pub masks: Vec<Vec<u32>>,
}

/// All of a reply's state that the matcher does not hold.
#[derive(Clone)]
struct Place {
    phase: Phase,
    /// Tokens that the matcher has taken.
    taken: usize,
}

#[derive(Clone)]
enum Phase {
    /// The reply may open its reasoning; otherwise its answer begins.
    Maybe,
    /// Everything goes. Where the end of reasoning is text: the last bytes, too few to be it.
    Reasoning(Vec<u8>),
    /// Reasoning has just ended, with so many newlines since.
    Gap(usize),
    Answer,
}

impl Grammar {
    pub(super) fn new(
        begun: Arc<Compiled>,
        vocabulary: Arc<Vocabulary>,
        reasoning: ReasoningStart,
    ) -> Self {
        let phase = match reasoning {
            ReasoningStart::Never => Phase::Answer,
            ReasoningStart::Maybe if vocabulary.think().is_some() => Phase::Maybe,
            ReasoningStart::Maybe | ReasoningStart::Begun => Phase::Reasoning(Vec::new()),
        };
        let start = Place { phase, taken: 0 };
        Self {
            compiled: Compiled::clone(&begun),
            begun,
            vocabulary,
            place: start.clone(),
            start,
            reply: Vec::new(),
            undrafted: false,
        }
    }

    /// What of the constraint is not enforced, for people.
    pub fn warnings(&self) -> &[String] {
        &self.compiled.warnings
    }

    /// What the lexer spent on the last mask.
    #[cfg(test)]
    pub(super) fn fuel(&self) -> u64 {
        self.compiled.matcher.last_step_stats().map_or(0, |stats| stats.lexer_cost)
    }

    /// Tokens that were chosen. An error if one was not allowed, which is a fault of ours.
    pub fn accept(&mut self, tokens: &[TokenId]) -> Result<(), GrammarError> {
        for &token in tokens {
            if !self.advance(token)? {
                return Err(GrammarError::Fault(format!(
                    "token {token} was chosen, but the grammar does not allow it"
                )));
            }
            self.reply.push(token);
        }
        Ok(())
    }

    /// What may be chosen next, given drafts. The state is as before afterwards. An error is one
    /// of the place that the reply has come to, never one of a draft's, which may not be chosen.
    pub fn masks(&mut self, drafts: &[TokenId]) -> Result<Masks, GrammarError> {
        let drafts = if self.undrafted { &[] } else { drafts };
        match self.masks_along(drafts) {
            Err(_) if !drafts.is_empty() => {
                self.start_over()?;
                self.masks_along(&[])
            }
            masks => masks,
        }
    }

    /// Goes the reply's way once more, with a mask at each place, which fills the matcher's fuel
    /// up: from here on all is as if nothing had been drafted, and no draft is followed any more.
    /// A matcher does not recover from an error, and its clone at every step would cost more than
    /// the masks. This happens once, to the few replies that are drafted into such a place.
    fn start_over(&mut self) -> Result<(), GrammarError> {
        self.undrafted = true;
        self.compiled = Compiled::clone(&self.begun);
        self.place = self.start.clone();
        for token in std::mem::take(&mut self.reply) {
            self.mask()?;
            self.accept(&[token])?;
        }
        Ok(())
    }

    fn masks_along(&mut self, drafts: &[TokenId]) -> Result<Masks, GrammarError> {
        let before = self.place.clone();
        let masks = self.masks_ahead(drafts);
        let gone = self.place.taken - before.taken;
        self.place = before;
        let masks = masks?;
        if gone > 0 {
            self.compiled.matcher.rollback(gone).map_err(library_error)?;
            // It is keyed by rows, and what is in a row has changed.
            self.compiled.matcher.invalidate_bias_cache();
        }
        let draft_count = masks.len() as u32 - 1;
        if masks.iter().all(Option::is_none) {
            return Ok(Masks { draft_count, masks: Vec::new() });
        }
        let masks =
            masks.into_iter().map(|mask| mask.unwrap_or_else(|| self.vocabulary.everything()));
        Ok(Masks { draft_count, masks: masks.collect() })
    }

    fn masks_ahead(&mut self, drafts: &[TokenId]) -> Result<Vec<Option<Vec<u32>>>, GrammarError> {
        let mut masks = vec![self.mask()?];
        for &draft in drafts {
            if !self.advance(draft)? {
                break;
            }
            masks.push(self.mask()?);
        }
        Ok(masks)
    }

    /// What is allowed here; `None` for everything.
    fn mask(&mut self) -> Result<Option<Vec<u32>>, GrammarError> {
        if let Phase::Reasoning(_) = self.place.phase {
            return Ok(None);
        }
        let mut allowed = self.compiled.matcher.compute_mask_or_eos().map_err(library_error)?;
        if !self.complete()? {
            // A grammar over any token names them too.
            for &end in &self.vocabulary.end_tokens {
                allowed.disallow_token(end);
            }
        }
        match self.place.phase {
            Phase::Maybe => {
                if let Some(think) = self.vocabulary.think() {
                    allowed.allow_token(think);
                }
            }
            Phase::Gap(used) => {
                for (token, _) in self.vocabulary.gap(used) {
                    allowed.allow_token(token);
                }
            }
            Phase::Reasoning(_) | Phase::Answer => {}
        }
        if allowed.is_zero() {
            let text = "the grammar has come to a place where nothing matches it";
            return Err(GrammarError::Invalid(text.to_owned()));
        }
        Ok(Some(self.vocabulary.mask(&allowed)))
    }

    /// Whether the reply may end here.
    fn complete(&mut self) -> Result<bool, GrammarError> {
        self.compiled.matcher.is_accepting().map_err(library_error)
    }

    /// Goes on by a token, if it is allowed.
    fn advance(&mut self, token: TokenId) -> Result<bool, GrammarError> {
        if token as usize >= self.vocabulary.count() {
            return Ok(false);
        }
        match &mut self.place.phase {
            Phase::Reasoning(tail) => {
                if let Some(rest) = after_reasoning(&self.vocabulary, tail, token) {
                    self.place.phase = Phase::Gap(0);
                    self.take_text(&rest)?;
                }
                return Ok(true);
            }
            Phase::Maybe if self.vocabulary.think() == Some(token) => {
                self.place.phase = Phase::Reasoning(Vec::new());
                return Ok(true);
            }
            Phase::Maybe | Phase::Gap(_) | Phase::Answer => {}
        }
        if self.vocabulary.is_end(token) {
            // The matcher need not know: after it nothing comes, or the request ignores its end.
            return self.complete();
        }
        if self.take(token)? {
            self.place.phase = Phase::Answer;
            return Ok(true);
        }
        if let Phase::Gap(used) = self.place.phase {
            let newlines = self.vocabulary.gap(used).find(|&(newline, _)| newline == token);
            if let Some((_, count)) = newlines {
                self.place.phase = Phase::Gap(used + count);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take(&mut self, token: TokenId) -> Result<bool, GrammarError> {
        let taken = self.compiled.matcher.try_consume_tokens(&[token]).map_err(library_error)?;
        self.place.taken += taken;
        Ok(taken == 1)
    }

    /// The answer has begun within the token that ended reasoning. White space before it is no
    /// part of it, and what the grammar does not take is left to the model: nothing was masked.
    fn take_text(&mut self, bytes: &[u8]) -> Result<(), GrammarError> {
        let tokens = self.vocabulary.trie().greedy_tokenize(bytes.trim_ascii_start());
        let legal = self.compiled.matcher.validate_tokens(&tokens).map_err(library_error)?;
        if legal == tokens.len() && legal > 0 {
            for token in tokens {
                self.take(token)?;
            }
            self.place.phase = Phase::Answer;
        }
        Ok(())
    }
}

/// The bytes after the end of reasoning, if the token ends it. `tail` is what came before.
fn after_reasoning(vocabulary: &Vocabulary, tail: &mut Vec<u8>, token: TokenId) -> Option<Vec<u8>> {
    let marker = match vocabulary.end_think {
        Marker::Token(end) => return (token == end).then(Vec::new),
        Marker::Text(marker) => marker.as_bytes(),
    };
    if vocabulary.trie().is_special_token(token) {
        tail.clear();
        return None;
    }
    tail.extend_from_slice(vocabulary.trie().token(token));
    let found = tail.windows(marker.len()).position(|window| window == marker);
    if let Some(start) = found {
        return Some(tail.split_off(start + marker.len()));
    }
    tail.drain(..tail.len().saturating_sub(marker.len() - 1));
    None
}
