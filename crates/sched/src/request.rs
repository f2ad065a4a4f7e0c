//! One request: what was asked for, how far it is, and what its next row could be. Knows nothing
//! of other requests, and of pages only that it has some.

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{RowFault, RowOutput, SlotSetup, TokenLogprobs};

use crate::drafts::{Acceptance, RATE_STEP};
use crate::pages::Holding;
use crate::scheduler::{Advance, Finish};

/// Names a request, in the order in which they were admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    pub prompt: Vec<TokenId>,
    /// `prompt_count` and `history` are for the scheduler to fill in. Values that make no sense to
    /// the engine's sampler must have been refused before.
    pub setup: SlotSetup,
    /// The reply ends after this many tokens, or with one of `setup.end_tokens`. None at all is
    /// possible where the prompt is scored.
    pub token_max: u32,
    /// Lower goes first.
    pub priority: i32,
    /// Pages are shared only between requests with the same salt.
    pub cache_salt: String,
    /// Whether drafts may be used. They change no token.
    pub drafts: bool,
    /// Whether each row that chooses tokens waits for [`crate::Scheduler::provide_masks`].
    pub needs_masks: bool,
    /// Log-probabilities of the chosen tokens and of this many alternatives.
    pub logprobs: Option<u32>,
    /// Whether the prompt's own tokens get log-probabilities, all but the first.
    pub score_prompt: bool,
}

impl Submission {
    /// A prompt and how to go on, nothing else.
    pub fn new(prompt: Vec<TokenId>, setup: SlotSetup, token_max: u32) -> Self {
        Self {
            prompt,
            setup,
            token_max,
            priority: 0,
            cache_salt: String::new(),
            drafts: true,
            needs_masks: false,
            logprobs: None,
            score_prompt: false,
        }
    }
}

/// Who goes first: the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Replies of the same request before this one.
    pub(crate) copy: u32,
    /// It never changes.
    pub(crate) due: i64,
    pub(crate) id: RequestId,
}

pub(crate) struct Request {
    pub(crate) rank: Rank,
    /// The first of the replies that were asked for together.
    pub(crate) family: RequestId,
    /// Whose first token it waits for, to find the prompt in pages.
    pub(crate) follows: Option<RequestId>,
    /// `token_max` is at most what there is room for; the prompt is in `known`.
    pub(crate) asked: Submission,
    prompt_count: u32,
    /// Prompt and reply.
    pub(crate) known: Vec<TokenId>,
    /// Positions below this have their keys in the pages.
    pub(crate) computed: u32,
    /// There while it runs.
    pub(crate) place: Option<Place>,
    /// Prompt tokens whose successors were scored.
    scored: u32,
    /// Prompt tokens found in pages when it first started.
    cached: Option<u32>,
    /// It has written no pages of positions below this.
    pub(crate) written_from: u32,
    pub(crate) masks: Option<Masks>,
    pub(crate) acceptance: Acceptance,
}

/// What a request has while it runs.
pub(crate) struct Place {
    pub(crate) slot: SlotId,
    pub(crate) holding: Holding,
    /// The slot has not heard of the request yet.
    pub(crate) fresh: bool,
    /// Drafts in the slot, if that has the newest token.
    pub(crate) held: Option<u32>,
}

/// What the host allows in the next row that chooses tokens.
pub(crate) struct Masks {
    /// How many of the drafts are allowed.
    pub(crate) draft_count: u32,
    /// One more than drafts, or none when everything is allowed.
    pub(crate) masks: Vec<Vec<u32>>,
}

/// What of a row must be remembered until its output is there.
#[expect(clippy::struct_excessive_bools, reason = "four facts that do not exclude each other")]
pub(crate) struct Flight {
    pub(crate) id: RequestId,
    /// One past the row's last token that is not a draft.
    pub(crate) end: u32,
    pub(crate) start: u32,
    pub(crate) draft_count: u32,
    /// The draft after these was to be verified too, but is not allowed.
    pub(crate) draft_refused: bool,
    pub(crate) draft_next: u32,
    pub(crate) report_drafts: bool,
    pub(crate) sample: bool,
    pub(crate) scored_count: u32,
    pub(crate) logprobs: bool,
}

impl Request {
    pub(crate) fn new(
        rank: Rank,
        family: RequestId,
        mut asked: Submission,
        acceptance: Acceptance,
    ) -> Self {
        let known = std::mem::take(&mut asked.prompt);
        Self {
            rank,
            family,
            follows: None,
            prompt_count: known.len() as u32,
            known,
            asked,
            computed: 0,
            place: None,
            scored: 0,
            cached: None,
            written_from: u32::MAX,
            masks: None,
            acceptance,
        }
    }

    pub(crate) fn prompt_count(&self) -> u32 {
        self.prompt_count
    }

    /// Tokens chosen so far.
    pub(crate) fn reply_count(&self) -> usize {
        self.known.len() - self.prompt_count as usize
    }

    /// Tokens that may yet be chosen.
    pub(crate) fn remaining(&self) -> u32 {
        self.asked.token_max - self.reply_count() as u32
    }

    /// Positions to compute before the next token can be chosen; where none will be, all that the
    /// scores need.
    pub(crate) fn target(&self) -> u32 {
        self.known.len() as u32 - u32::from(self.asked.token_max == 0)
    }

    /// Tokens that a row could have now, drafts apart. The last one waits for masks.
    pub(crate) fn left(&self) -> u32 {
        let waits = self.asked.needs_masks && self.asked.token_max > 0 && self.masks.is_none();
        self.target() - self.computed - u32::from(waits)
    }

    /// Drafts that are of use in a row at the last known token.
    pub(crate) fn verifiable(&self) -> u32 {
        let held = self.place.as_ref().and_then(|place| place.held).unwrap_or_default();
        held.min(self.remaining().saturating_sub(1))
    }

    /// How many drafts its masks allow.
    pub(crate) fn allowed(&self) -> u32 {
        self.masks.as_ref().map_or(u32::MAX, |masks| masks.draft_count)
    }

    /// Drafts that will be of use in the row after one that chooses a token.
    pub(crate) fn draftable(&self, draft_max: u32) -> u32 {
        let wanted = if self.asked.drafts { draft_max } else { 0 };
        wanted.min(self.remaining().saturating_sub(2))
    }

    /// Longest prefix that need not be computed: one token must be, and all that are yet to be
    /// scored.
    pub(crate) fn hit_max(&self) -> u32 {
        let text = self.target() - 1;
        if self.asked.score_prompt { text.min(self.scored) } else { text }
    }

    /// What its slot must know.
    pub(crate) fn setup(&self) -> SlotSetup {
        let mut setup = self.asked.setup.clone();
        setup.prompt_count = self.prompt_count();
        if setup.needs_history() {
            setup.history.clone_from(&self.known);
        }
        setup
    }

    /// The prompt's tokens after each of the row's, if they are yet to be scored.
    pub(crate) fn to_score(&self, start: u32, end: u32) -> &[TokenId] {
        let end = (end + 1).min(self.prompt_count());
        if !self.asked.score_prompt || end <= self.scored + 1 || end <= start + 1 {
            return &[];
        }
        &self.known[start as usize + 1..end as usize]
    }

    /// Enters a slot, with so many positions computed already. Returns whether for the first time.
    pub(crate) fn start(&mut self, slot: SlotId, holding: Holding) -> bool {
        self.computed = holding.named;
        self.written_from = self.written_from.min(self.computed);
        self.place = Some(Place { slot, holding, fresh: true, held: None });
        let first = self.cached.is_none();
        self.cached.get_or_insert(self.computed);
        first
    }

    /// Loses its place, and everything that came with it.
    pub(crate) fn pause(&mut self) -> Option<Place> {
        self.computed = 0;
        self.place.take()
    }

    /// Takes what came of a row that was checked to fit.
    pub(crate) fn take(&mut self, row: &Flight, out: RowOutput) -> Advance {
        let RowOutput { mut tokens, mut logprobs, scored, drafts, fault } = out;
        let chosen = tokens.len() as u32;
        let accepted = chosen.saturating_sub(u32::from(fault.is_none()));
        let scored = self.take_scores(row, scored);
        let place = self.place.as_mut().expect("a request with a row has a place");
        place.fresh = false;
        let made = if row.report_drafts { drafts.len() as u32 } else { row.draft_next };
        place.held = row.sample.then_some(made);
        if row.sample {
            self.masks = None;
            self.acceptance.observe(RATE_STEP, row.judged(), accepted);
        }
        let end = tokens.iter().position(|token| self.asked.setup.end_tokens.contains(token));
        tokens.truncate(end.map_or(tokens.len(), |end| end + 1));
        logprobs.truncate(tokens.len());
        self.known.extend_from_slice(&tokens);
        // The last token has no keys yet, not even where it is a draft behind which a fault came.
        // Positions of drafts after the end were computed, but are nobody's text.
        self.computed = (row.end + chosen.saturating_sub(1)).min(self.known.len() as u32);
        Advance {
            id: self.rank.id,
            finish: self.finish(end.is_some(), fault),
            tokens,
            logprobs,
            scored,
            drafts,
            drafted_count: row.draft_count,
            accepted_count: accepted,
            cached_count: self.cached.unwrap_or_default(),
        }
    }

    /// Leaves out what was reported before the request was preempted.
    fn take_scores(&mut self, row: &Flight, mut scored: Vec<TokenLogprobs>) -> Vec<TokenLogprobs> {
        let known = self.scored.saturating_sub(row.start) as usize;
        scored.drain(..known.min(scored.len()));
        self.scored += scored.len() as u32;
        scored
    }

    fn finish(&self, ended: bool, fault: Option<RowFault>) -> Option<Finish> {
        // A fault after the end is nobody's.
        if ended {
            Some(Finish::EndToken)
        } else if let Some(fault) = fault {
            Some(Finish::Fault(fault))
        } else {
            // Without tokens to choose, all that is to be scored must be computed.
            let computed = self.asked.token_max > 0 || self.computed == self.target();
            (self.remaining() == 0 && computed).then_some(Finish::Length)
        }
    }

    /// Whether its numbers fit each other.
    pub(crate) fn check(&self) -> Result<(), String> {
        let known = self.known.len() as u32;
        let ordered = self.computed < known && self.prompt_count() <= known;
        let bounded = known - self.prompt_count() < self.asked.token_max.max(1);
        let named = self.place.as_ref().map_or(0, |place| place.holding.named);
        if ordered && bounded && named <= self.computed && self.scored <= self.prompt_count() {
            return Ok(());
        }
        let (id, computed) = (self.rank.id, self.computed);
        Err(format!("request {id}: {named} named, {computed} computed, {known} known"))
    }
}
