//! One request: what was asked for, how far it is, and what its next row could be. Knows no other
//! request, and of pages only that it has some.

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{RowFault, RowOutput, SlotSetup, TokenLogprobs};

use crate::drafts::Acceptance;
use crate::pages::RequestPages;
use crate::scheduler::{Advance, Finish};

/// Identifies a request; ids are in the order of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A request as it is submitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    pub prompt: Vec<TokenId>,
    /// The scheduler fills in `prompt_count` and `history`. The caller has refused values that the
    /// engine's sampler does not accept.
    pub setup: SlotSetup,
    /// The reply ends after this many tokens, or with one of `setup.end_tokens`. May be 0 where the
    /// prompt is scored.
    pub token_max: u32,
    /// Lower goes first.
    pub priority: i32,
    /// Pages are shared only between requests with the same salt.
    pub cache_salt: String,
    /// Whether drafts may be used. They bias no token.
    pub drafts: bool,
    /// Whether each row that samples waits for [`crate::Scheduler::provide_masks`].
    pub needs_masks: bool,
    /// Log-probabilities of the chosen tokens and of this many alternatives.
    pub logprobs: Option<u32>,
    /// Whether all tokens of the prompt but the first get log-probabilities.
    pub score_prompt: bool,
}

impl Submission {
    /// A request with defaults for everything else.
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

/// Order of requests; the lowest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Number of replies of the same request before this one.
    pub(crate) copy: u32,
    /// Arrival number plus priority; it never changes.
    pub(crate) due: i64,
    pub(crate) id: RequestId,
}

pub(crate) struct Request {
    pub(crate) rank: Rank,
    /// The first reply of its family.
    pub(crate) family: RequestId,
    /// The reply that computes the same prompt, until that has its first token.
    pub(crate) follows: Option<RequestId>,
    /// `token_max` is cut to the context; the prompt is in `known`.
    pub(crate) asked: Submission,
    prompt_count: u32,
    /// Prompt and reply.
    pub(crate) known: Vec<TokenId>,
    /// Positions below this have their keys and values in the pages.
    pub(crate) computed: u32,
    /// Present while it runs.
    pub(crate) place: Option<Place>,
    /// Prompt tokens whose successors were scored.
    scored: u32,
    /// Prompt tokens found in the prefix cache when it first started.
    cached: Option<u32>,
    /// Pages of positions below this were written by others.
    pub(crate) written_from: u32,
    pub(crate) masks: Option<Masks>,
    /// Number of the last step that had a row of it.
    pub(crate) last_step: u64,
    pub(crate) acceptance: Acceptance,
}

/// What a request has while it runs.
pub(crate) struct Place {
    pub(crate) slot: SlotId,
    pub(crate) holding: RequestPages,
    /// The engine's slot has not been set up for the request yet.
    pub(crate) fresh: bool,
    /// Drafts in the slot, if the slot has the newest token.
    pub(crate) held: Option<u32>,
}

/// Allowed tokens of the next row that samples.
pub(crate) struct Masks {
    /// Number of drafts that are allowed.
    pub(crate) draft_count: u32,
    /// One more than drafts, or none when every token is allowed.
    pub(crate) masks: Vec<Vec<u32>>,
}

/// A row in flight: what its output is checked and applied with.
#[expect(clippy::struct_excessive_bools, reason = "five facts that do not exclude each other")]
pub(crate) struct InFlightRow {
    pub(crate) id: RequestId,
    /// One past the row's last token that is not a draft.
    pub(crate) end: u32,
    pub(crate) start: u32,
    pub(crate) draft_count: u32,
    /// The draft after these would have been verified, but its mask does not allow it.
    pub(crate) draft_refused: bool,
    /// A token comes after the drafts if all are accepted.
    pub(crate) goes_on: bool,
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
            last_step: 0,
            acceptance,
        }
    }

    pub(crate) fn prompt_count(&self) -> u32 {
        self.prompt_count
    }

    /// Tokens of the reply so far.
    pub(crate) fn reply_count(&self) -> usize {
        self.known.len() - self.prompt_count as usize
    }

    /// Tokens that the reply may still get.
    pub(crate) fn remaining(&self) -> u32 {
        self.asked.token_max - self.reply_count() as u32
    }

    /// Positions to compute before the next token is sampled; without a next token, those that the
    /// scores need.
    pub(crate) fn target(&self) -> u32 {
        self.known.len() as u32 - u32::from(self.asked.token_max == 0)
    }

    /// Tokens that a row could have now, without drafts. The last one waits for masks.
    pub(crate) fn left(&self) -> u32 {
        let waits = self.asked.needs_masks && self.asked.token_max > 0 && self.masks.is_none();
        self.target() - self.computed - u32::from(waits)
    }

    /// Drafts that a row at the last known token can use.
    pub(crate) fn verifiable(&self) -> u32 {
        let held = self.place.as_ref().and_then(|place| place.held).unwrap_or_default();
        held.min(self.remaining().saturating_sub(1))
    }

    /// Drafts that a row may have by its masks: those that they allow. Under rejection sampling the
    /// first one that they forbid is judged too; [`kilotok_engine::Row::masks`] says why.
    pub(crate) fn judgeable(&self) -> u32 {
        let rejection = self.asked.setup.verification.is_rejection();
        self.masks.as_ref().map_or(u32::MAX, |Masks { draft_count, masks }| {
            draft_count + u32::from(rejection && !masks.is_empty())
        })
    }

    /// Drafts that the row after the next sampled token can use.
    pub(crate) fn draftable(&self, draft_max: u32) -> u32 {
        let wanted = if self.asked.drafts { draft_max } else { 0 };
        wanted.min(self.remaining().saturating_sub(2))
    }

    /// Longest useful prefix hit: one token must be computed, and all that are yet to be scored.
    pub(crate) fn hit_max(&self) -> u32 {
        let text = self.target() - 1;
        if self.asked.score_prompt { text.min(self.scored) } else { text }
    }

    /// Setup of its slot.
    pub(crate) fn setup(&self) -> SlotSetup {
        let mut setup = self.asked.setup.clone();
        setup.prompt_count = self.prompt_count();
        if setup.needs_history() {
            setup.history.clone_from(&self.known);
        }
        setup
    }

    /// The token of the prompt after each token of the row, if they are yet to be scored.
    pub(crate) fn to_score(&self, start: u32, end: u32) -> &[TokenId] {
        let end = (end + 1).min(self.prompt_count());
        if !self.asked.score_prompt || end <= self.scored + 1 || end <= start + 1 {
            return &[];
        }
        &self.known[start as usize + 1..end as usize]
    }

    /// Enters a slot with pages whose positions are computed. Returns whether this is the first
    /// time.
    pub(crate) fn start(&mut self, slot: SlotId, holding: RequestPages) -> bool {
        self.computed = holding.named;
        self.written_from = self.written_from.min(self.computed);
        self.place = Some(Place { slot, holding, fresh: true, held: None });
        let first = self.cached.is_none();
        self.cached.get_or_insert(self.computed);
        first
    }

    /// Gives up slot and pages.
    pub(crate) fn pause(&mut self) -> Option<Place> {
        self.computed = 0;
        self.place.take()
    }

    /// Applies the output of a row that passed its check; `all` is the acceptance of all requests.
    pub(crate) fn take(&mut self, row: &InFlightRow, out: RowOutput, all: &Acceptance) -> Advance {
        let RowOutput { mut tokens, mut logprobs, scored, held_count, drafts, fault } = out;
        let chosen = tokens.len() as u32;
        let accepted = chosen.saturating_sub(u32::from(fault.is_none()));
        let scored = self.take_scores(row, scored);
        let place = self.place.as_mut().expect("a request with a row has a place");
        place.fresh = false;
        place.held = row.sample.then_some(held_count);
        if row.sample {
            self.masks = None;
            self.acceptance.observe(row.judged(), accepted, all);
        }
        let end = tokens.iter().position(|token| self.asked.setup.end_tokens.contains(token));
        tokens.truncate(end.map_or(tokens.len(), |end| end + 1));
        logprobs.truncate(tokens.len());
        self.known.extend_from_slice(&tokens);
        // The last token has no keys yet, even if it is a draft whose successor could not be
        // chosen. Positions of drafts after the end were computed, but belong to no text.
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

    /// Leaves out scores that were reported before the request was preempted.
    fn take_scores(
        &mut self,
        row: &InFlightRow,
        mut scored: Vec<TokenLogprobs>,
    ) -> Vec<TokenLogprobs> {
        let known = self.scored.saturating_sub(row.start) as usize;
        scored.drain(..known.min(scored.len()));
        self.scored += scored.len() as u32;
        scored
    }

    fn finish(&self, ended: bool, fault: Option<RowFault>) -> Option<Finish> {
        // A fault after the end does not matter.
        if ended {
            Some(Finish::EndToken)
        } else if let Some(fault) = fault {
            Some(Finish::Fault(fault))
        } else {
            // Without a reply, the request ends when all scored positions are computed.
            let computed = self.asked.token_max > 0 || self.computed == self.target();
            (self.remaining() == 0 && computed).then_some(Finish::Length)
        }
    }

    /// Checks that its numbers are consistent.
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
