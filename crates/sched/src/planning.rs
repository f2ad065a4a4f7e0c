//! Planning a step: which requests are preempted, which start, and how many tokens each row has.

#[cfg(test)]
mod tests;

use kilotok_engine::{Row, RowTokens, check_plan};

use crate::cost::{Beside, Size};
use crate::drafts::{DraftingRow, Drafts, share_drafts, try_drafts};
use crate::request::{InFlightRow, Rank};
use crate::scheduler::{Misuse, Plan, Scheduler};
use crate::shares::share_prompts;

/// A row that is being planned.
struct Share {
    rank: Rank,
    /// Drafts are not counted.
    token_count: u32,
    draft_count: u32,
    draft_refused: bool,
    draft_next: u32,
}

impl Scheduler {
    /// Decides the next step. A plan without rows must not be submitted: nothing can run until a
    /// request or masks arrive. A plan with rows is in flight until it is absorbed.
    pub fn plan(&mut self) -> Result<Plan, Misuse> {
        if self.in_flight.is_some() {
            return Err(Misuse::InFlight);
        }
        self.secure();
        self.start_waiting();
        let shares = self.share_tokens();
        let mut plan = Plan::default();
        let mut flights = Vec::with_capacity(shares.len());
        for share in shares {
            let row = self.row(&share);
            flights.push(Self::flight(&share, &row));
            let request = self.requests.get_mut(&share.rank.id).expect("who runs is known");
            request.last_step = self.stats.step_count;
            plan.ids.push(share.rank.id);
            plan.step.rows.push(row);
        }
        if !flights.is_empty() {
            self.stats.step_count += 1;
            self.in_flight = Some(flights);
        }
        debug_assert_eq!(check_plan(&self.caps, &plan.step), Ok(()));
        Ok(plan)
    }

    /// Gives every running request a page for its next token, in order of rank. When pages run out,
    /// the request with the last rank is preempted; if that is the request itself, it waits.
    fn secure(&mut self) {
        let ranks: Vec<Rank> = self.running.iter().copied().collect();
        for rank in ranks {
            while self.running.contains(&rank) && !self.secure_one(rank) {
                match self.running.last() {
                    Some(&last) if last > rank => self.preempt(last),
                    _ => break,
                }
            }
        }
    }

    /// False if there is no page for the next token.
    fn secure_one(&mut self, rank: Rank) -> bool {
        let request = self.requests.get_mut(&rank.id).expect("who runs is known");
        let next = request.computed + request.left().min(1);
        let Some(place) = &mut request.place else {
            return false;
        };
        let secured = self.pages.reach(&place.holding, next) == next;
        if secured {
            self.pages.cover(&mut place.holding, next);
        }
        secured
    }

    /// Starts waiting requests in order of rank, while there are a slot for the first of them and
    /// pages for all known tokens of it and of the running ones.
    fn start_waiting(&mut self) {
        if self.shortage.is_some_and(|shortage| !self.pages.is_over(shortage)) {
            return;
        }
        self.shortage = None;
        while let Some(&rank) = self.waiting.first() {
            if self.running.len() == self.running_max && !self.yield_to(rank) {
                return;
            }
            let request = &self.requests[&rank.id];
            let hit = self.pages.find(&request.asked.cache_salt, &request.known, request.hit_max());
            let fits = self.pages.fits(&hit, request.target() + 1, &self.spoken_for());
            // Alone it always fits: requests that never could were refused.
            if let Err(shortage) = fits {
                if self.yield_to(rank) {
                    continue;
                }
                self.shortage = Some(shortage);
                return;
            }
            let Some(slot) = self.slots.pop() else {
                return;
            };
            let prompt_count = request.prompt_count();
            let holding = self.pages.enter(&request.asked.cache_salt, hit, prompt_count);
            let request = self.requests.get_mut(&rank.id).expect("who waits is known");
            let first = request.start(slot, holding);
            if first {
                self.stats.prefix_queries += u64::from(request.prompt_count());
                self.stats.prefix_hits += u64::from(request.computed);
            }
            self.waiting.remove(&rank);
            self.running.insert(rank);
            self.secure_one(rank);
        }
    }

    /// Preempts the last running copy, if it has more replies of its request before it than the
    /// waiting one has. False if there is none.
    fn yield_to(&mut self, waiting: Rank) -> bool {
        let last = self.running.last().filter(|last| last.copy > waiting.copy).copied();
        last.inspect(|last| self.preempt(*last)).is_some()
    }

    /// Reserved pages of each group: those that running requests still need for their known tokens,
    /// one more for each to grow, and those of a step.
    fn spoken_for(&self) -> Vec<u32> {
        let mut spoken = vec![0; self.caps.groups.len()];
        if !self.running.is_empty() {
            spoken = self.pages.step_reserve(self.caps.token_max).collect();
        }
        for rank in &self.running {
            let request = &self.requests[&rank.id];
            let Some(place) = &request.place else {
                continue;
            };
            let missing = self.pages.missing(&place.holding, request.target());
            for (spoken, missing) in spoken.iter_mut().zip(missing) {
                *spoken += missing + 1;
            }
        }
        spoken
    }

    /// The step's tokens in order of rank: one for each decoding row, then drafts, then prompts.
    fn share_tokens(&mut self) -> Vec<Share> {
        let able = |rank: &&Rank| self.is_able(**rank);
        let ranks: Vec<Rank> = self.running.iter().filter(able).copied().collect();
        let (tips, prompts): (Vec<Rank>, Vec<Rank>) =
            ranks.iter().partition(|rank| self.is_tip(**rank));
        let (tips, others, prompts) = self.choose_rows(tips, prompts);
        let drafts = self.drafts(&tips, &prompts, others.len() as u32);
        let (tip_drafts, prompt_drafts) = drafts.split_at(tips.len());
        let tip = |rank: &Rank, drafts: &Drafts| {
            let request = &self.requests[&rank.id];
            let judgeable = request.judgeable();
            let matched = !request.asked.setup.verification.is_rejection();
            Share {
                rank: *rank,
                token_count: 1,
                draft_count: drafts.verified.min(judgeable),
                draft_refused: matched && drafts.verified > judgeable,
                draft_next: drafts.made,
            }
        };
        let mut shares: Vec<Share> =
            tips.iter().zip(tip_drafts).map(|(rank, drafts)| tip(rank, drafts)).collect();
        let beside = Size {
            token_count: shares.iter().map(|share| 1 + share.draft_count).sum(),
            drafting_count: shares.iter().filter(|share| share.draft_next > 0).count() as u32,
        };
        let waiting = others.iter().map(|rank| tip(rank, &Drafts::default())).collect::<Vec<_>>();
        let lefts: Vec<u32> = prompts.iter().map(|rank| self.requests[&rank.id].left()).collect();
        // Each row has pages for its next token.
        let row_count = (shares.len() + waiting.len() + prompts.len()) as u32;
        let spare = self.pages.step_room(row_count).saturating_sub(beside.token_count);
        let spare = spare.saturating_add(lefts.len() as u32);
        let decoding = (tips.len() as u32, others.len() as u32);
        let budget = self.prompt_budget(beside, decoding, &lefts).min(spare);
        if beside.token_count + budget > self.cost.pass_max(beside.token_count) {
            // The wide pass has room for all of them.
            shares.extend(waiting);
        }
        let counts = share_prompts(&lefts, budget);
        for ((rank, token_count), drafts) in prompts.iter().zip(counts).zip(prompt_drafts) {
            shares.push(Share {
                rank: *rank,
                token_count,
                draft_count: 0,
                draft_refused: false,
                draft_next: drafts.made,
            });
        }
        shares.retain(|share| share.token_count > 0);
        shares.sort_by_key(|share| share.rank);
        self.limit_scored(&mut shares);
        for share in &mut shares {
            self.cover(share);
        }
        shares
    }

    /// The rows of a step, at most [`Scheduler::row_max`]. Returns the decoding rows, the rows that
    /// decode only if the step takes the wide pass, and the prompts, which are at most half of the
    /// rows if others decode. The first rank always has a row, the others take turns.
    fn choose_rows(
        &self,
        mut tips: Vec<Rank>,
        mut prompts: Vec<Rank>,
    ) -> (Vec<Rank>, Vec<Rank>, Vec<Rank>) {
        let row_max = self.row_max as usize;
        let first = tips.first().copied();
        let prompt_leads = first.is_none_or(|tip| prompts.first().is_some_and(|own| *own < tip));
        let half = (row_max / 2).max(usize::from(prompt_leads));
        prompts.truncate(row_max.saturating_sub(tips.len()).max(half));
        let tips_max = tips.len().min(row_max - prompts.len());
        let count = self.tips_at_once(tips_max as u32, !prompts.is_empty()) as usize;
        if count < tips.len() {
            tips.sort_by_key(|rank| {
                (Some(*rank) != first, self.requests[&rank.id].last_step, *rank)
            });
        }
        tips.truncate(tips_max);
        let others = tips.split_off(count);
        (tips, others, prompts)
    }

    /// How many of `count` rows decode in one step: all; or as many as the narrow pass takes, if
    /// the wide pass brings fewer tokens for its time. Prompts get some tokens of a narrow step.
    fn tips_at_once(&self, count: u32, prompts: bool) -> u32 {
        let narrow_max = self.round_cost.pass_max(1);
        let kept = if prompts { self.limits.chunk_min.min(narrow_max / 2) } else { 0 };
        let narrow = narrow_max - kept;
        if count <= narrow {
            return count;
        }
        let rate = |count: u32, token_count: u32| {
            let size = Size { token_count, drafting_count: 0 };
            count as f32 / self.round_cost.cost(token_count).of(size).max(1.0)
        };
        let wide = rate(count, count.max(narrow_max + 1));
        if rate(narrow, narrow_max) > wide { narrow } else { count }
    }

    /// Whether a request has a token to compute and a page for it.
    fn is_able(&self, rank: Rank) -> bool {
        let request = &self.requests[&rank.id];
        let next = request.computed + 1;
        let place = request.place.as_ref();
        let covered = place.is_some_and(|place| self.pages.covers(&place.holding, next));
        request.left() > 0 && covered
    }

    /// Whether only the last known token is left to compute: the request decodes.
    fn is_tip(&self, rank: Rank) -> bool {
        let request = &self.requests[&rank.id];
        request.computed + 1 == request.target()
    }

    /// Shortens scored prompts, in order of rank, so that a step wants no more logits than it can
    /// have. Each row keeps those of one token.
    fn limit_scored(&self, shares: &mut [Share]) {
        let others: u32 = shares.iter().map(|share| 1 + share.draft_count).sum();
        let mut room = self.caps.wanted_max - others;
        for share in shares.iter_mut() {
            if self.requests[&share.rank.id].asked.score_prompt {
                let more = (share.token_count - 1).min(room);
                share.token_count = 1 + more;
                room -= more;
            }
        }
    }

    /// Drafts of each decoding row, then of each prompt. Half of the room is left for prompts.
    /// `others` are further rows that the step may have.
    fn drafts(&mut self, tips: &[Rank], prompts: &[Rank], others: u32) -> Vec<Drafts> {
        let used = tips.len() as u32;
        // Drafts do not push a step into the wide pass, whose base time is worth many of them.
        let room = self.caps.token_max.min(self.round_cost.pass_max(used)) - used;
        let room = if prompts.is_empty() { room } else { room / 2 };
        let room = room.min(self.caps.wanted_max - used - prompts.len() as u32 - others);
        let held = |rank: &Rank| self.requests[&rank.id].verifiable();
        let drafters: Vec<_> = tips
            .iter()
            .map(|rank| self.drafter(*rank, held(rank)))
            .chain(prompts.iter().map(|rank| self.drafter(*rank, 0)))
            .collect();
        let mut cost = self.draft_costs.cost(used, self.cost(used));
        if !prompts.is_empty() {
            let size = Size { token_count: drafters.len() as u32, drafting_count: 0 };
            cost.alone_us = cost.drafting.of(size);
        }
        let mut drafts = share_drafts(&drafters, cost, room);
        let can_try = room > 0 && drafters.iter().any(|row| row.next_max > 0);
        if prompts.is_empty() && can_try && self.trials.is_due(used) {
            let none_drafts = drafts.iter().all(|drafts| drafts.made == 0);
            let tried = if none_drafts { room } else { 0 };
            drafts = try_drafts(&drafters, tried);
            self.trials.begin(used, none_drafts);
        }
        drafts
    }

    /// A row that holds `held` drafts. Above [`crate::Limits::draft_rows_max`] rows none drafts.
    fn drafter(&self, rank: Rank, held: u32) -> DraftingRow<'_> {
        let request = &self.requests[&rank.id];
        let crowded = self.running.len() > self.limits.draft_rows_max as usize;
        let drafts = self.caps.drafter && !crowded;
        DraftingRow {
            acceptance: &request.acceptance,
            held: if drafts { held } else { 0 },
            next_max: if drafts { request.draftable(self.caps.draft_max) } else { 0 },
        }
    }

    /// Tokens of prompts that a step has beside `decoding` rows and `others` that would decode with
    /// them in a wide step; `lefts` are the prompts' tokens that are yet to be computed.
    ///
    /// Decoding requests wait for the step, so it keeps to `step_us_max`, or to twice the time that
    /// it takes without prompts. It takes longer if that costs the decoding requests less than the
    /// prompts would lose, unless `stall_free` forbids it. It has `chunk_min` tokens of prompts in
    /// any case: they never starve.
    fn prompt_budget(
        &mut self,
        beside: Size,
        (decoding, others): (u32, u32),
        lefts: &[u32],
    ) -> u32 {
        let left = lefts.iter().fold(0, |sum: u32, left| sum.saturating_add(*left));
        let used = beside.token_count;
        let room = (self.caps.token_max - used).saturating_sub(others);
        let most = left.min(room).min(self.limits.chunk_max);
        let own_us = self.cost.cost(used).of(beside) as u32;
        let us_max = self.limits.step_us_max.max(own_us.saturating_mul(2));
        // `chunk_min` does not push a step into the wide pass.
        let same_pass = self.cost.pass_max(used).saturating_sub(used).max(1);
        let beside = Beside {
            size: beside,
            us_max: (used > 0).then_some(us_max),
            decoding: decoding + others,
            others,
            prompts: lefts.len() as u32,
            left,
            least: self.limits.chunk_min.min(same_pass).max(1),
            stall_free: self.limits.stall_free,
        };
        self.cost.chunk(beside, most, self.limits.learning_share > 0.0)
    }

    /// Takes pages for as many of the share's tokens as possible.
    fn cover(&mut self, share: &mut Share) {
        let request = self.requests.get_mut(&share.rank.id).expect("who runs is known");
        let Some(place) = &mut request.place else {
            return;
        };
        let end = request.computed + share.token_count + share.draft_count;
        let end = self.pages.reach(&place.holding, end);
        self.pages.cover(&mut place.holding, end);
        let covered = end - request.computed;
        share.token_count = share.token_count.min(covered);
        let draft_count = covered - share.token_count;
        // Where pages cut the row short, the draft before the refused one is not judged.
        share.draft_refused &= draft_count == share.draft_count;
        share.draft_count = draft_count;
    }

    fn row(&self, share: &Share) -> Row {
        let request = &self.requests[&share.rank.id];
        let place = request.place.as_ref().expect("who runs has a place");
        let (start, draft_count) = (request.computed, share.draft_count);
        let end = start + share.token_count;
        let sample = end == request.target() && request.asked.token_max > 0;
        let tokens = if place.held.is_some() {
            RowTokens::Held { draft_count }
        } else {
            let tokens = request.known[start as usize..end as usize].to_vec();
            RowTokens::Given { tokens, draft_count: 0 }
        };
        let masks = request.masks.as_ref().filter(|_| sample);
        let masks = masks.map_or(&[][..], |masks| &masks.masks[..]);
        let scored = request.to_score(start, end).to_vec();
        let logprobs = request.asked.logprobs.filter(|_| sample || !scored.is_empty());
        let draft_next = if sample { share.draft_next } else { 0 };
        Row {
            slot: place.slot,
            setup: place.fresh.then(|| Box::new(request.setup())),
            start,
            tokens,
            sample,
            pages: self.pages.runs(&place.holding, start, end + draft_count),
            later_starts: self.pages.later_starts(&place.holding, start, end + draft_count),
            masks: masks.iter().take(draft_count as usize + 1).cloned().collect(),
            logprobs,
            scored,
            draft_next,
            report_drafts: draft_next > 0 && request.asked.needs_masks,
        }
    }

    fn flight(share: &Share, row: &Row) -> InFlightRow {
        let draft_count = row.tokens.draft_count();
        InFlightRow {
            id: share.rank.id,
            start: row.start,
            end: row.end() - draft_count,
            draft_count,
            draft_refused: share.draft_refused,
            goes_on: row.masks.is_empty() || row.masks.len() > draft_count as usize,
            draft_next: row.draft_next,
            report_drafts: row.report_drafts,
            sample: row.sample,
            scored_count: row.scored.len() as u32,
            logprobs: row.logprobs.is_some(),
        }
    }
}
