//! The state of one reply in its grammar: which tokens may come next, after the reply and after
//! each of a row's drafts.

use std::sync::Arc;

use kilotok_abi::TokenId;

use llguidance::Matcher;

use super::compile::Compiled;
use super::listener::Listener;
use super::vocabulary::{Marker, Vocabulary};
use super::{GrammarError, library_error};
use crate::ReasoningStart;

/// The state of a reply in its grammar. Clones, made for other replies of the same request, are
/// independent.
#[derive(Clone)]
pub struct Grammar {
    /// The state before the reply's first token, or before the first token of a call within its
    /// text.
    begun: Arc<Compiled>,
    /// The last one follows the reply, or its latest call. While drafts are checked, the ones
    /// before it keep the state of the calls that the drafts have left.
    followers: Vec<Follower>,
    vocabulary: Arc<Vocabulary>,
    start: Place,
    place: Place,
    reply: Vec<TokenId>,
    /// Set once a draft has broken the matcher, see [`Self::start_over`].
    undrafted: bool,
    /// Whether the answer is free text, in which only calls are constrained.
    in_text: bool,
}

#[derive(Clone)]
struct Follower {
    compiled: Compiled,
    /// Number of tokens that the matcher has consumed.
    taken: usize,
}

/// The allowed tokens of a row. The first `draft_count` drafts are legal; there is one mask for the
/// position of each of them and one for the position after them. There are no masks if every token
/// is allowed and all drafts were followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masks {
    pub draft_count: u32,
    /// Bit `token % 32` of word `token / 32` is set if the token is allowed.
    pub masks: Vec<Vec<u32>>,
}

/// Masks of consecutive positions; `None` allows every token.
type MasksAhead = Vec<Option<Vec<u32>>>;

/// The state of a reply outside the matchers.
#[derive(Clone)]
struct Place {
    phase: Phase,
    /// Set as long as a call may begin within text.
    listener: Option<Listener>,
}

#[derive(Clone)]
enum Phase {
    /// The reply may open its reasoning or begin its answer.
    Maybe,
    /// Every token is allowed. If the end of reasoning is text and not a token, this has the last
    /// bytes, which may be its beginning.
    Reasoning(Vec<u8>),
    /// Reasoning has ended, followed by this many newlines so far.
    Gap(usize),
    Answer,
    /// Reasoning or an answer in which every token is allowed, until a call begins.
    Text,
    /// A call within text.
    Call,
    /// A header, or a message that the grammar constrains.
    Message,
}

impl Grammar {
    pub(super) fn new(
        begun: Arc<Compiled>,
        vocabulary: Arc<Vocabulary>,
        reasoning: ReasoningStart,
        listener: Option<Listener>,
        in_text: bool,
    ) -> Self {
        let phase = match (&listener, reasoning) {
            (Some(Listener::Messages(messages)), _) if !messages.is_free() => Phase::Message,
            (Some(Listener::Messages(_)), _) => Phase::Text,
            _ if in_text => Phase::Text,
            (_, ReasoningStart::Never) => Phase::Answer,
            (_, ReasoningStart::Maybe) if vocabulary.think().is_some() => Phase::Maybe,
            (_, ReasoningStart::Maybe | ReasoningStart::Begun) => Phase::Reasoning(Vec::new()),
        };
        let start = Place { phase, listener };
        let mut grammar = Self {
            begun,
            followers: Vec::new(),
            vocabulary,
            place: start.clone(),
            start,
            reply: Vec::new(),
            undrafted: false,
            in_text,
        };
        grammar.restart();
        grammar
    }

    /// Returns to the state before the first token.
    fn restart(&mut self) {
        self.place = self.start.clone();
        self.followers.clear();
        if !matches!(self.place.phase, Phase::Text) {
            self.follow();
        }
    }

    fn follow(&mut self) {
        self.followers.push(Follower { compiled: Compiled::clone(&self.begun), taken: 0 });
    }

    fn matcher(&mut self) -> Result<&mut Matcher, GrammarError> {
        let follower = self.followers.last_mut().map(|follower| &mut follower.compiled.matcher);
        follower.ok_or_else(|| GrammarError::Fault("no grammar is being followed".to_owned()))
    }

    /// Parts of the constraint that are not enforced, as messages.
    pub fn warnings(&self) -> &[String] {
        &self.begun.warnings
    }

    /// Whether the whole answer is constrained, so that the reply ends with it.
    pub fn ends_reply(&self) -> bool {
        !self.in_text
    }

    /// The fuel that the lexer spent on the last mask.
    #[cfg(test)]
    pub(super) fn fuel(&self) -> u64 {
        let follower = self.followers.last();
        let stats = follower.and_then(|follower| follower.compiled.matcher.last_step_stats().ok());
        stats.map_or(0, |stats| stats.lexer_cost)
    }

    /// Adds chosen tokens. A token that was not allowed is an internal error.
    pub fn accept(&mut self, tokens: &[TokenId]) -> Result<(), GrammarError> {
        for &token in tokens {
            if !self.advance(token)? {
                return Err(GrammarError::Fault(format!(
                    "token {token} was chosen, but the grammar does not allow it"
                )));
            }
            self.reply.push(token);
        }
        let last = self.followers.pop();
        self.followers.clear();
        self.followers.extend(last);
        Ok(())
    }

    /// Advances by `tokens`, and returns whether after them and after each draft every token is
    /// allowed. If not, the state stays as it was. Takes microseconds, because no matcher is
    /// involved.
    pub fn pass(&mut self, tokens: &[TokenId], drafts: &[TokenId]) -> bool {
        let before = self.place.clone();
        let mut after = None;
        let mut free = tokens.iter().all(|&token| self.pass_one(token)) && self.is_free();
        if free {
            after = Some(self.place.clone());
            free = drafts.iter().all(|&draft| self.pass_one(draft) && self.is_free());
        }
        self.place = after.filter(|_| free).unwrap_or(before);
        if free {
            self.reply.extend_from_slice(tokens);
        }
        free
    }

    /// Advances by a token of free text. Returns false if a constrained part begins with it.
    fn pass_one(&mut self, token: TokenId) -> bool {
        let Place { phase, listener } = &mut self.place;
        let known = (token as usize) < self.vocabulary.count();
        let stays = match phase {
            Phase::Text => true,
            Phase::Reasoning(tail) => after_reasoning(&self.vocabulary, tail, token).is_none(),
            Phase::Maybe | Phase::Gap(_) | Phase::Answer | Phase::Call | Phase::Message => false,
        };
        let hears = |listener: &mut Listener| listener.push(token, &self.vocabulary).is_some();
        known && stays && !listener.as_mut().is_some_and(hears)
    }

    fn is_free(&self) -> bool {
        let opening = |listener: &Listener| listener.opening(&self.vocabulary).is_some();
        matches!(self.place.phase, Phase::Text | Phase::Reasoning(_))
            && !self.place.listener.as_ref().is_some_and(opening)
    }

    /// The tokens that may come next, after the reply and after each draft. The state stays as it
    /// was. An error concerns the reply's own position, never one after a draft, which may not be
    /// accepted.
    pub fn masks(&mut self, drafts: &[TokenId]) -> Result<Masks, GrammarError> {
        let drafts = if self.undrafted { &[] } else { drafts };
        let (mut masks, followed) = self.masks_along(drafts);
        if let Err(error) = followed {
            if drafts.is_empty() {
                return Err(error);
            }
            self.start_over()?;
            let (first, followed) = self.masks_along(&[]);
            followed?;
            // The masks of drafts before the error stay. Otherwise, whether a draft is verified
            // would depend on the drafts after it.
            drop(masks.splice(..masks.len().min(1), first));
        }
        let draft_count = masks.len() as u32 - 1;
        if draft_count as usize == drafts.len() && masks.iter().all(Option::is_none) {
            return Ok(Masks { draft_count, masks: Vec::new() });
        }
        let masks =
            masks.into_iter().map(|mask| mask.unwrap_or_else(|| self.vocabulary.everything()));
        Ok(Masks { draft_count, masks: masks.collect() })
    }

    /// Feeds the reply to a fresh matcher, computing a mask at each position, which refills the
    /// matcher's fuel. The state is then as if nothing had been drafted, and from here on no drafts
    /// are followed. This is needed because a matcher does not recover from an error, and cloning
    /// it in every step would cost more than the masks. It happens at most once in a reply, and
    /// only in the few replies that are drafted into such a position.
    fn start_over(&mut self) -> Result<(), GrammarError> {
        self.undrafted = true;
        self.restart();
        for token in std::mem::take(&mut self.reply) {
            self.mask()?;
            self.accept(&[token])?;
        }
        Ok(())
    }

    /// The masks up to an error. After an error the matcher is unusable.
    fn masks_along(&mut self, drafts: &[TokenId]) -> (MasksAhead, Result<(), GrammarError>) {
        let before = self.place.clone();
        let (count, taken) = (self.followers.len(), self.followers.last().map(|last| last.taken));
        let mut masks = Vec::new();
        let followed = self.masks_ahead(drafts, &mut masks);
        self.place = before;
        self.followers.truncate(count);
        let followed = followed.and_then(|()| self.take_back(taken));
        (masks, followed)
    }

    /// Rolls the last matcher back to the state in which it had consumed `taken` tokens.
    fn take_back(&mut self, taken: Option<usize>) -> Result<(), GrammarError> {
        if let Some(last) = self.followers.last_mut()
            && Some(last.taken) != taken
        {
            let gone = last.taken - taken.unwrap_or_default();
            last.taken -= gone;
            last.compiled.matcher.rollback(gone).map_err(library_error)?;
            // The cache's keys are rows of the parser, and the contents of the rows have changed.
            last.compiled.matcher.invalidate_bias_cache();
        }
        Ok(())
    }

    fn masks_ahead(
        &mut self,
        drafts: &[TokenId],
        masks: &mut MasksAhead,
    ) -> Result<(), GrammarError> {
        masks.push(self.mask()?);
        for &draft in drafts {
            if !self.advance(draft)? {
                break;
            }
            masks.push(self.mask()?);
        }
        Ok(())
    }

    /// The mask at this position; `None` if every token is allowed.
    fn mask(&mut self) -> Result<Option<Vec<u32>>, GrammarError> {
        if let Phase::Reasoning(_) | Phase::Text = self.place.phase {
            return self.text_mask();
        }
        let mut allowed = self.matcher()?.compute_mask_or_eos().map_err(library_error)?;
        if !self.complete()? {
            // A grammar that allows any token also allows the end tokens.
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
            _ => {}
        }
        if allowed.is_zero() {
            let text = "the grammar has come to a place where nothing matches it";
            return Err(GrammarError::Invalid(text.to_owned()));
        }
        Ok(Some(self.vocabulary.mask(&allowed)))
    }

    /// The mask within free text: everything except tokens that begin a call wrongly.
    fn text_mask(&self) -> Result<Option<Vec<u32>>, GrammarError> {
        let opening = self.place.listener.as_ref();
        let opening = opening.and_then(|listener| listener.opening(&self.vocabulary));
        let Some((text, mut begins)) = opening else { return Ok(None) };
        let mut matcher = Compiled::clone(&self.begun).matcher;
        let tokens = self.vocabulary.tokens(&text);
        let taken = matcher.try_consume_tokens(&tokens).map_err(library_error)?;
        if taken == tokens.len() {
            let right = matcher.compute_mask_or_eos().map_err(library_error)?;
            begins.retain(|&token| !right.is_allowed(token));
        }
        if begins.is_empty() {
            return Ok(None);
        }
        let mut allowed = self.vocabulary.trie().alloc_token_set();
        allowed.set_all(true);
        for &token in &begins {
            allowed.disallow_token(token);
        }
        Ok(Some(self.vocabulary.mask(&allowed)))
    }

    /// Whether the reply, or the call, may end here.
    fn complete(&mut self) -> Result<bool, GrammarError> {
        self.matcher()?.is_accepting().map_err(library_error)
    }

    /// Advances by a token, if it is allowed.
    fn advance(&mut self, token: TokenId) -> Result<bool, GrammarError> {
        if token as usize >= self.vocabulary.count() {
            return Ok(false);
        }
        let listener = self.place.listener.as_mut();
        let begun = listener.and_then(|listener| listener.push(token, &self.vocabulary));
        if let (Some(tokens), Phase::Text | Phase::Reasoning(_)) = (begun, &self.place.phase) {
            return self.begin_call(&tokens);
        }
        match &mut self.place.phase {
            Phase::Text => return Ok(true),
            Phase::Reasoning(tail) => {
                if let Some(rest) = after_reasoning(&self.vocabulary, tail, token) {
                    self.place = Place { phase: Phase::Gap(0), listener: None };
                    self.take_text(&rest)?;
                }
                return Ok(true);
            }
            Phase::Maybe if self.vocabulary.think() == Some(token) => {
                self.place.phase = Phase::Reasoning(Vec::new());
                return Ok(true);
            }
            _ => {}
        }
        if self.vocabulary.is_end(token) {
            // The matcher need not consume it: either no token follows, or the request ignores end
            // tokens.
            return self.complete();
        }
        if self.take(token)? {
            match (&self.place.phase, &self.place.listener) {
                (Phase::Message, Some(Listener::Messages(messages))) => {
                    if messages.is_free() {
                        self.place.phase = Phase::Text;
                    }
                }
                (Phase::Call, _) => {
                    if self.complete()? {
                        self.place.phase = Phase::Text;
                    }
                }
                _ => self.place = Place { phase: Phase::Answer, listener: None },
            }
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

    /// Begins a call or a message, whose first tokens these are, within text or reasoning. Returns
    /// false if they are not allowed.
    fn begin_call(&mut self, tokens: &[TokenId]) -> Result<bool, GrammarError> {
        let in_text = matches!(self.place.phase, Phase::Text);
        if in_text {
            self.follow();
        }
        for &token in tokens {
            if !self.take(token)? {
                return Ok(false);
            }
        }
        if let Some(Listener::Messages(_)) = self.place.listener {
            self.place.phase = Phase::Message;
        } else if !in_text {
            self.place = Place { phase: Phase::Answer, listener: None };
        } else if !self.complete()? {
            self.place.phase = Phase::Call;
        }
        Ok(true)
    }

    fn take(&mut self, token: TokenId) -> Result<bool, GrammarError> {
        let taken = self.matcher()?.try_consume_tokens(&[token]).map_err(library_error)?;
        if let Some(follower) = self.followers.last_mut() {
            follower.taken += taken;
        }
        Ok(taken == 1)
    }

    /// Begins the answer within the token that ended reasoning. White space before the answer is
    /// not part of it. Text that the grammar does not accept is not an error, because no mask was
    /// applied.
    fn take_text(&mut self, bytes: &[u8]) -> Result<(), GrammarError> {
        let tokens = self.vocabulary.trie().greedy_tokenize(bytes.trim_ascii_start());
        let legal = self.matcher()?.validate_tokens(&tokens).map_err(library_error)?;
        if legal == tokens.len() && legal > 0 {
            for token in tokens {
                self.take(token)?;
            }
            self.place.phase = Phase::Answer;
        }
        Ok(())
    }
}

/// The bytes after the end of reasoning, if this token completes it. `tail` has the bytes before
/// the token.
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
