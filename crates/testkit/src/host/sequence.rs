//! A running request: makes its next row, applies the output, and checks that the output matches
//! the row.

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{Caps, PageRun, Row, RowOutput, RowTokens, SlotSetup, TokenLogprobs};

use super::pages::{Pools, Tables};
use super::{Drafts, HostError, How, Reply, Request};

pub(super) struct Sequence<'r> {
    request: &'r Request,
    how: &'r How,
    pub(super) slot: SlotId,
    /// The engine's slot has not been set up for the request yet.
    fresh: bool,
    /// Prompt and reply.
    known: Vec<TokenId>,
    /// The keys of positions below this are in the pages.
    done: u32,
    tables: Tables,
    /// The number of drafts in the slot, if the slot holds the newest token.
    held: Option<u32>,
    /// The drafts themselves, if they were reported.
    drafts: Vec<TokenId>,
    preempted: usize,
    rows: u32,
    reply: Reply,
    ended: bool,
}

impl<'r> Sequence<'r> {
    pub(super) fn new(request: &'r Request, how: &'r How, slot: SlotId, caps: &Caps) -> Self {
        let prefix = how.prefix.as_ref();
        Self {
            request,
            how,
            slot,
            fresh: true,
            known: request.prompt.clone(),
            done: prefix.map_or(0, |prefix| prefix.count),
            tables: prefix.map_or_else(|| Tables::new(&caps.groups), Tables::of_prefix),
            held: None,
            drafts: Vec::new(),
            preempted: 0,
            rows: 0,
            reply: Reply::default(),
            ended: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.ended
    }

    pub(super) fn is_paused(&self, step: u32) -> bool {
        self.how.pause.contains(&step)
    }

    /// The next row, of at most `budget` tokens; `None` if the budget is too small.
    pub(super) fn row(
        &mut self,
        caps: &Caps,
        budget: u32,
        wanted: u32,
        pools: &mut Pools,
    ) -> Result<Option<Row>, HostError> {
        let left = self.known.len() as u32 - self.done;
        let budget = if self.request.score { budget.min(wanted) } else { budget };
        let count = left.min(self.how.chunk.max(1)).min(budget);
        let sample = count == left;
        let chosen = if self.request.score { count } else { u32::from(sample) };
        if count == 0 || chosen > wanted {
            return Ok(None);
        }
        let room = if sample { self.draft_room((budget - count).min(wanted - chosen)) } else { 0 };
        let own = &self.known[self.done as usize..][..count as usize];
        let tokens = match (&self.how.drafts, self.held) {
            (Drafts::Held { used, .. }, Some(held)) => {
                RowTokens::Held { draft_count: held.min(*used).min(room) }
            }
            (Drafts::Given(guess), _) if sample => {
                let drafts = guess.drafts(self.known.len(), caps);
                let drafts = &drafts[..drafts.len().min(room as usize)];
                let draft_count = drafts.len() as u32;
                RowTokens::Given { tokens: [own, drafts].concat(), draft_count }
            }
            _ => RowTokens::Given { tokens: own.to_vec(), draft_count: 0 },
        };
        let mut row = Row {
            setup: self.fresh.then(|| Box::new(self.setup())),
            sample,
            logprobs: (sample || self.request.score).then_some(self.request.top),
            scored: self.scored(count),
            ..Row::new(self.slot, self.done, tokens)
        };
        if let Drafts::Held { made, .. } = self.how.drafts
            && sample
            && caps.drafter
        {
            row.draft_next = made.min(caps.draft_max);
            row.report_drafts = self.request.mask.is_some();
        }
        row.later_starts = self.later_starts(&row);
        row.masks = self.masks(&row, caps.vocab_size);
        row.pages = self.pages(&row, caps, pools)?;
        Ok(Some(row))
    }

    /// The number of drafts for which the reply and the step have room.
    fn draft_room(&self, budget: u32) -> u32 {
        let missing = self.request.token_max - self.reply.tokens.len() as u32;
        budget.min(missing.saturating_sub(1))
    }

    fn setup(&self) -> SlotSetup {
        let mut setup = self.request.setup.clone();
        setup.prompt_count = self.request.prompt.len() as u32;
        if setup.needs_history() {
            setup.history.clone_from(&self.known);
        }
        setup
    }

    /// The prompt tokens that follow the row's `count` own tokens.
    fn scored(&self, count: u32) -> Vec<TokenId> {
        let end = (self.done + count + 1).min(self.request.prompt.len() as u32);
        let already = self.request.prompt.len() as u32 <= self.done + 1 || self.preempted > 0;
        if !self.request.score || already {
            return Vec::new();
        }
        self.known[self.done as usize + 1..end as usize].to_vec()
    }

    /// Where rows may start that later read what this row writes: this request's next one, and
    /// those of requests to which its first positions are lent.
    fn later_starts(&self, row: &Row) -> Vec<u32> {
        let next = row.end() - row.tokens.draft_count();
        let lent = self.how.keep.filter(|kept| *kept < next);
        lent.into_iter().chain([next]).collect()
    }

    fn masks(&self, row: &Row, vocab_size: u32) -> Vec<Vec<u32>> {
        let Some(mask) = self.request.mask.filter(|_| row.sample) else {
            return Vec::new();
        };
        let mut text = self.known.clone();
        let mut masks = vec![mask(&text, vocab_size)];
        for draft in self.row_drafts(row) {
            text.push(draft);
            masks.push(mask(&text, vocab_size));
        }
        masks
    }

    /// The drafts of a row, if the host knows them.
    fn row_drafts(&self, row: &Row) -> Vec<TokenId> {
        let count = row.tokens.draft_count() as usize;
        match &row.tokens {
            RowTokens::Given { tokens, .. } => tokens[tokens.len() - count..].to_vec(),
            RowTokens::Held { .. } => self.drafts.iter().copied().take(count).collect(),
        }
    }

    fn pages(
        &mut self,
        row: &Row,
        caps: &Caps,
        pools: &mut Pools,
    ) -> Result<Vec<PageRun>, HostError> {
        self.tables.cover(&caps.groups, row.end(), pools)?;
        Ok(self.tables.runs(&caps.groups, row.start, row.end()))
    }

    /// Applies a row's output.
    ///
    /// # Errors
    /// Says what does not match the row.
    pub(super) fn take(&mut self, row: &Row, out: &RowOutput, caps: &Caps) -> Result<(), String> {
        let drafts = self.row_drafts(row);
        check(row, &drafts, out, caps)?;
        self.fresh = false;
        self.held = row.sample.then_some(out.held_count);
        self.drafts.clone_from(&out.drafts);
        self.reply.drafts.extend(&out.drafts);
        self.reply.scored.extend_from_slice(&out.scored);
        self.reply.fault = out.fault;
        self.ended = out.fault.is_some();
        self.done = row.end() - row.tokens.draft_count();
        self.reply.sampled_rows += u32::from(row.sample);
        self.done += (out.tokens.len() as u32).saturating_sub(1);
        for (token, logprobs) in out.tokens.iter().zip(&out.logprobs) {
            if self.ended && out.fault.is_none() {
                break;
            }
            self.known.push(*token);
            self.reply.tokens.push(*token);
            self.reply.logprobs.push(logprobs.clone());
            let count = self.reply.tokens.len() as u32;
            self.ended |=
                count == self.request.token_max || self.request.setup.end_tokens.contains(token);
        }
        self.rows += 1;
        self.ended |= self.how.leaves == Some(self.rows);
        Ok(())
    }

    /// Frees pages that have left the window; or all pages, when it is time to be preempted.
    pub(super) fn settle(&mut self, caps: &Caps, pools: &mut Pools, slots: &mut Vec<SlotId>) {
        let count = self.reply.tokens.len() as u32;
        let preempt = self.how.preempt.get(self.preempted);
        if !self.ended && preempt.is_some_and(|at| *at <= count) {
            self.preempted += 1;
            self.tables.release(pools);
            slots.insert(0, self.slot);
            self.slot = slots.pop().unwrap_or(self.slot);
            (self.fresh, self.done, self.held) = (true, 0, None);
        } else {
            self.tables.trim(&caps.groups, self.done, self.how.keep, pools);
        }
    }

    /// Gives back all pages except those to be kept.
    pub(super) fn finish(mut self, caps: &Caps, pools: &mut Pools) -> Reply {
        match self.how.keep {
            Some(count) => {
                self.reply.kept = Some(self.tables.into_prefix(&caps.groups, count, pools));
            }
            None => self.tables.release(pools),
        }
        self.reply
    }
}

impl super::Guess {
    /// Drafts for positions from `from` on.
    fn drafts(&self, from: usize, caps: &Caps) -> Vec<TokenId> {
        let text = self.text.iter().skip(from).take(self.count.min(caps.draft_max) as usize);
        let guess = |(index, token): (usize, &TokenId)| {
            if (index as u32) < self.right { *token } else { (token + 1) % caps.vocab_size }
        };
        text.enumerate().map(guess).collect()
    }
}

/// Checks that an output matches its row, as far as that can be known without the model.
fn check(row: &Row, drafts: &[TokenId], out: &RowOutput, caps: &Caps) -> Result<(), String> {
    let expect = |what: &str, found: usize, wanted: usize| {
        if found == wanted { Ok(()) } else { Err(format!("{found} {what}, expected {wanted}")) }
    };
    let count = out.tokens.len();
    if out.fault.is_none() {
        expect("scored tokens", out.scored.len(), row.scored.len())?;
    }
    expect(
        "log-probabilities",
        out.logprobs.len(),
        if row.logprobs.is_some() { count } else { 0 },
    )?;
    if !row.sample {
        expect("tokens of a row that does not sample", count, 0)?;
        expect("drafts of a row that does not sample", out.drafts.len(), 0)?;
        return if out.fault.is_none() { Ok(()) } else { Err(format!("{:?}", out.fault)) };
    }
    let most = row.tokens.draft_count() as usize + usize::from(out.fault.is_none());
    if count > most || (count == 0 && out.fault.is_none()) {
        return Err(format!("{count} tokens, at most {most} were possible"));
    }
    let accepted = count.saturating_sub(usize::from(out.fault.is_none()));
    if !drafts.is_empty() && out.tokens[..accepted] != drafts[..accepted] {
        return Err(format!("tokens {:?} although the drafts were {drafts:?}", out.tokens));
    }
    if let Some(token) = out.tokens.iter().find(|token| **token >= caps.vocab_size) {
        return Err(format!("token {token} of a vocabulary of {}", caps.vocab_size));
    }
    if out.fault.is_none() {
        expect("held drafts", out.held_count as usize, row.draft_next as usize)?;
        let reported = if row.report_drafts { row.draft_next } else { 0 };
        expect("drafts", out.drafts.len(), reported as usize)?;
    }
    let top = row.logprobs.unwrap_or_default().min(caps.vocab_size) as usize;
    for (logprobs, token) in out.logprobs.iter().zip(&out.tokens) {
        check_logprobs(logprobs, *token, top)?;
    }
    for (logprobs, token) in out.scored.iter().zip(&row.scored) {
        check_logprobs(logprobs, *token, top)?;
    }
    Ok(())
}

fn check_logprobs(found: &TokenLogprobs, token: TokenId, top: usize) -> Result<(), String> {
    let TokenLogprobs { chosen, rank, top: listed } = found;
    let in_order = listed.is_sorted_by(|a, b| a.logprob >= b.logprob);
    // Different logits may have log-probabilities that are rounded to the same number.
    let likelier = listed.iter().filter(|other| other.logprob > chosen.logprob).count();
    let rank_fits = match listed.iter().position(|other| other.token == token) {
        Some(place) => listed[place] == *chosen && (likelier..=place).contains(&(*rank as usize)),
        None => *rank as usize >= likelier,
    };
    let number = chosen.logprob.is_finite() && chosen.logprob <= 0.0;
    if chosen.token == token && listed.len() == top && in_order && rank_fits && number {
        Ok(())
    } else {
        Err(format!("log-probabilities {found:?} of token {token} with {top} alternatives"))
    }
}
