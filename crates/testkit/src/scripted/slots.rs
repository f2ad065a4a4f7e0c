//! The state of a scripted engine's slots, and the choice of a row's tokens, for which it uses
//! `sampling`.

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{
    Row, RowFault, RowOutput, RowTokens, SlotSetup, TokenLogprob, TokenLogprobs, Verification,
};
use kilotok_sampling::{
    Fault, Proposal, Ranking, Rule, Sampler, Setup, assumed_accepted, logprobs,
};

use super::likeliest;

pub(super) struct Slots {
    slots: Vec<Option<Slot>>,
    vocab_size: usize,
}

struct Slot {
    sampler: Sampler,
    /// The start of the next row that takes its tokens from this slot, and the last chosen token.
    newest: Option<(u32, TokenId)>,
    drafts: Vec<TokenId>,
    verification: Verification,
    /// With rejection sampling: the drafts, and the distribution from which each was drawn.
    proposal: Proposal,
}

impl Slots {
    pub(super) fn new(count: u32, vocab_size: u32) -> Self {
        let slots = (0..count).map(|_| None).collect();
        Self { slots, vocab_size: vocab_size as usize }
    }

    /// Checks that the row's setup is valid, or that the slot holds what the row refers to.
    pub(super) fn check(&self, row: &Row) -> Result<(), String> {
        if let Some(setup) = &row.setup {
            let checked = sampler_setup(setup).check(self.vocab_size);
            return checked.map_err(|error| error.to_string());
        }
        let slot = self.slots[row.slot.0 as usize].as_ref();
        let slot = slot.ok_or_else(|| format!("slot {} was never set up", row.slot))?;
        let RowTokens::Held { draft_count } = row.tokens else {
            return Ok(());
        };
        let held = slot.drafts.len();
        let lacks_mask = !row.masks.is_empty() && row.masks.len() <= draft_count as usize;
        match slot.newest {
            _ if lacks_mask && !slot.verification.is_rejection() => {
                Err(format!("{} masks for {draft_count} drafts", row.masks.len()))
            }
            None => Err(format!("slot {} holds no token", row.slot)),
            Some((start, _)) if start != row.start => {
                Err(format!("starts at {}, slot {} at {start}", row.start, row.slot))
            }
            Some(_) if (draft_count as usize) > held => {
                Err(format!("{draft_count} drafts, slot {} holds {held}", row.slot))
            }
            Some(_) => Ok(()),
        }
    }

    /// Sets the slot up if the row has a setup, and returns the row's tokens.
    pub(super) fn enter(&mut self, row: &Row) -> Vec<TokenId> {
        let place = &mut self.slots[row.slot.0 as usize];
        if let Some(setup) = &row.setup {
            let sampler = Sampler::new(sampler_setup(setup), &setup.history);
            *place = Some(Slot {
                sampler,
                newest: None,
                drafts: Vec::new(),
                verification: setup.verification,
                proposal: Proposal::default(),
            });
        }
        let slot = place.as_mut().expect("checked: the slot was set up");
        let (newest, drafts) = (slot.newest.take(), std::mem::take(&mut slot.drafts));
        match &row.tokens {
            RowTokens::Given { tokens, .. } => tokens.clone(),
            RowTokens::Held { draft_count } => {
                let newest = newest.map(|(_, token)| token);
                newest.into_iter().chain(drafts.into_iter().take(*draft_count as usize)).collect()
            }
        }
    }

    /// Chooses the row's tokens from the logits after each of its tokens.
    pub(super) fn choose(
        &mut self,
        row: &Row,
        tokens: &[TokenId],
        logits: &dyn Fn(usize) -> Vec<f32>,
    ) -> RowOutput {
        let slot = self.slots[row.slot.0 as usize].as_mut().expect("the row entered it");
        let top = row.logprobs.unwrap_or_default();
        let report_at = |index: usize, token| report(&logits(index), token, top);
        let scored = row.scored.iter().enumerate();
        let mut out = RowOutput {
            scored: scored.map(|(index, token)| report_at(index, *token)).collect(),
            ..RowOutput::default()
        };
        if !row.sample {
            return out;
        }
        let draft_count = row.tokens.draft_count();
        let first = tokens.len() - draft_count as usize;
        let position = row.end() - draft_count;
        let rows: Vec<f32> = (first - 1..tokens.len()).flat_map(logits).collect();
        let drafts = &tokens[first..];
        let mut proposal = std::mem::take(&mut slot.proposal);
        let held = matches!(row.tokens, RowTokens::Held { .. });
        let verified = if let Verification::Assumed { chance } = slot.verification
            && row.masks.is_empty()
        {
            let accepted = assumed_accepted(chance, 0, position, draft_count);
            slot.sampler.accept(position, drafts, accepted, &rows, &mut out.tokens)
        } else if !slot.verification.is_rejection() || !held {
            slot.sampler.verify(position, drafts, &row.masks, &rows, &mut out.tokens)
        } else {
            proposal.first = position;
            proposal.drafts.truncate(drafts.len());
            proposal.laws.truncate(drafts.len());
            slot.sampler.judge(Rule::Joint, &proposal, &row.masks, &rows, &mut out.tokens)
        };
        let next = position + out.tokens.len() as u32;
        out.fault = verified.err().map(|fault| match fault {
            Fault::NotFinite => RowFault::NotFinite { position: next },
            Fault::NothingAllowed => RowFault::NothingAllowed { position: next },
        });
        if row.logprobs.is_some() {
            let chosen = out.tokens.iter().enumerate();
            let reports = chosen.map(|(index, token)| report_at(first - 1 + index, *token));
            out.logprobs = reports.collect();
        }
        slot.newest = out.tokens.last().map(|token| (next - 1, *token));
        out
    }

    /// Chooses the next draft from the drafter's logits. The first draft is for the position
    /// `first`.
    pub(super) fn draft(&mut self, slot: SlotId, first: u32, logits: &[f32]) -> TokenId {
        let slot = self.slots[slot.0 as usize].as_mut().expect("the row entered it");
        let Verification::Rejection { draft_temperature } = slot.verification else {
            return likeliest(logits);
        };
        slot.proposal.first = first;
        let drawn = slot.sampler.propose(&mut slot.proposal, draft_temperature, logits);
        drawn.expect("scripted logits are finite")
    }

    pub(super) fn hold(&mut self, slot: SlotId, drafts: Vec<TokenId>) {
        if let Some(slot) = &mut self.slots[slot.0 as usize] {
            slot.drafts = drafts;
        }
    }
}

fn sampler_setup(setup: &SlotSetup) -> Setup {
    Setup {
        logit_bias: setup.biases(),
        bad_words: setup.bad_words.clone(),
        end_tokens: setup.end_tokens.clone(),
        ..Setup::new(setup.sampling, setup.prompt_count)
    }
}

fn report(logits: &[f32], token: TokenId, top: u32) -> TokenLogprobs {
    let found = logprobs(logits, token, top as usize, &mut Ranking::default());
    let found = found.expect("scripted logits are finite");
    let pair = |(token, logprob)| TokenLogprob { token, logprob };
    TokenLogprobs {
        chosen: pair((token, found.chosen)),
        rank: found.rank,
        top: found.top.into_iter().map(pair).collect(),
    }
}
