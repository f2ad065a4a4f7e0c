//! Verification of drafts and sampling on the host: a row's logits go to its slot's sampler, which
//! accepts a prefix of the drafts and adds one token. The sampler also chooses the drafts.

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{
    RowFault, RowOutput, RowTokens, StepOutput, TokenLogprob, TokenLogprobs, Verification,
};
use kilotok_sampling::{Fault, Proposal, Ranking, Rule, Sampler, logprobs};

use crate::batch::{Batch, BatchRow};
use crate::slots::{Slots, sampling_setup};

/// Tokens of the batch whose logits are needed: scored ones, the last one that is no draft, and
/// drafts.
pub fn wanted_tokens(batch: &Batch<'_>) -> Vec<usize> {
    batch.rows.iter().flat_map(|row| wanted(row).map(|token| row.first + token)).collect()
}

/// The same for one row, as indices into it.
pub fn wanted(row: &BatchRow<'_>) -> impl Iterator<Item = usize> {
    let first_sampled = if row.plan.sample { row.known() - 1 } else { row.count };
    let scored = row.plan.scored.len();
    (0..row.count).filter(move |&token| token < scored || token >= first_sampled)
}

/// The samplers of all slots.
pub struct Samplers {
    vocab_size: usize,
    slots: Vec<Option<Informed>>,
}

/// A slot's sampler, and how many tokens it has seen.
struct Informed {
    sampler: Sampler,
    verification: Verification,
    /// Positions whose tokens are in its history.
    known: u32,
    /// The drafts that the slot holds, if they are to be verified by rejection sampling.
    proposal: Proposal,
}

impl Samplers {
    pub fn new(count: usize, vocab_size: usize) -> Self {
        Self { vocab_size, slots: (0..count).map(|_| None).collect() }
    }

    /// Samples every row's tokens from the logits of the wanted tokens, `[wanted, vocab]`. Returns
    /// the indices of those tokens of the batch that are now part of their sequences.
    pub fn verify(
        &mut self,
        batch: &Batch<'_>,
        logits: &[f32],
        slots: &mut Slots,
        out: &mut StepOutput,
    ) -> Vec<usize> {
        let mut committed = Vec::new();
        let mut rest = logits;
        for row in &batch.rows {
            let (own, others) = rest.split_at(wanted(row).count() * self.vocab_size);
            rest = others;
            let output = self.run_row(batch, row, own, slots);
            let accepted = output.tokens.len().saturating_sub(1);
            committed.extend(row.first..row.first + row.known() + accepted);
            out.rows.push(output);
        }
        committed
    }

    fn run_row(
        &mut self,
        batch: &Batch<'_>,
        row: &BatchRow<'_>,
        logits: &[f32],
        slots: &mut Slots,
    ) -> RowOutput {
        let vocab_size = self.vocab_size;
        let informed = self.inform(batch, row);
        let mut out = RowOutput::default();
        let mut ranking = Ranking::default();
        let top_count = row.plan.logprobs.unwrap_or(0) as usize;
        let rows = logits.chunks_exact(vocab_size);
        for (i, logits) in rows.take(row.plan.scored.len()).enumerate() {
            match report(logits, row.plan.scored[i], top_count, &mut ranking) {
                Ok(logprobs) => out.scored.push(logprobs),
                Err(fault) => {
                    out.fault = Some(at(fault, row.plan.start + i as u32 + 1));
                    return out;
                }
            }
        }
        if !row.plan.sample {
            return out;
        }
        let drafts = &batch.tokens[row.first + row.known()..row.first + row.count];
        let sampled = &logits[logits.len() - (drafts.len() + 1) * vocab_size..];
        let first = row.plan.start + row.known() as u32;
        let verified = informed.verify(row, first, drafts, sampled, &mut out.tokens);
        informed.known = first + out.tokens.len() as u32;
        slots.commit(row.plan.slot, first, &out.tokens);
        out.fault = verified.err().map(|fault| at(fault, informed.known));
        if row.plan.logprobs.is_some() {
            let rows = out.tokens.iter().zip(sampled.chunks_exact(vocab_size));
            // A token was chosen by these logits, so they are finite.
            let reports =
                rows.map_while(|(&token, row)| report(row, token, top_count, &mut ranking).ok());
            out.logprobs = reports.collect();
        }
        out
    }

    /// Chooses drafts for the positions from `first` on by the drafter's logits `[drafts, vocab]`.
    /// They end before logits that are not finite, if they are drawn.
    pub fn draft(&mut self, slot: SlotId, first: u32, logits: &[f32]) -> Vec<TokenId> {
        let informed = self.slots[slot.0 as usize].as_mut();
        let informed = informed.expect("a row that drafts is set up");
        let rows = logits.chunks_exact(self.vocab_size);
        let Verification::Rejection { draft_temperature } = informed.verification else {
            return rows.map(likeliest).collect();
        };
        let Informed { sampler, proposal, .. } = informed;
        *proposal = Proposal { first, ..Proposal::default() };
        for row in rows {
            if sampler.propose(proposal, draft_temperature, row).is_err() {
                break;
            }
        }
        proposal.drafts.clone()
    }

    /// The row's sampler, after all tokens of the row that are no drafts went into its history.
    fn inform(&mut self, batch: &Batch<'_>, row: &BatchRow<'_>) -> &mut Informed {
        let informed = &mut self.slots[row.plan.slot.0 as usize];
        if let Some(setup) = &row.plan.setup {
            let sampler = Sampler::new(sampling_setup(setup), &setup.history);
            let (verification, known) = (setup.verification, setup.history.len() as u32);
            *informed =
                Some(Informed { sampler, verification, known, proposal: Proposal::default() });
        }
        let informed = informed.as_mut().expect("a checked row's slot is set up");
        let tokens = &batch.tokens[row.first..row.first + row.known()];
        for (token, position) in tokens.iter().zip(row.plan.start..) {
            if position == informed.known {
                informed.sampler.push(*token);
                informed.known += 1;
            }
        }
        informed
    }
}

impl Informed {
    /// Verifies the row's drafts, whose first is at the position `first`, by the target's logits
    /// `[drafts + 1, vocab]`. Drafts that a row brings itself are matched: no distribution that
    /// they were drawn from is known.
    fn verify(
        &mut self,
        row: &BatchRow<'_>,
        first: u32,
        drafts: &[TokenId],
        logits: &[f32],
        tokens: &mut Vec<TokenId>,
    ) -> Result<(), Fault> {
        let mut proposal = std::mem::take(&mut self.proposal);
        let masks = &row.plan.masks;
        if let Some(count) = row.assumed() {
            return self.sampler.accept(first, drafts, count, logits, tokens);
        }
        let held = matches!(row.plan.tokens, RowTokens::Held { .. });
        if !self.verification.is_rejection() || !held {
            return self.sampler.verify(first, drafts, masks, logits, tokens);
        }
        proposal.first = first;
        proposal.drafts.truncate(drafts.len());
        proposal.laws.truncate(drafts.len());
        self.sampler.judge(Rule::Joint, &proposal, masks, logits, tokens)
    }
}

fn at(fault: Fault, position: u32) -> RowFault {
    match fault {
        Fault::NotFinite => RowFault::NotFinite { position },
        Fault::NothingAllowed => RowFault::NothingAllowed { position },
    }
}

fn report(
    logits: &[f32],
    token: TokenId,
    top_count: usize,
    ranking: &mut Ranking,
) -> Result<TokenLogprobs, Fault> {
    let found = logprobs(logits, token, top_count, ranking)?;
    let entry = |(token, logprob)| TokenLogprob { token, logprob };
    Ok(TokenLogprobs {
        chosen: entry((token, found.chosen)),
        rank: found.rank,
        top: found.top.into_iter().map(entry).collect(),
    })
}

/// Index of the largest logit, the first of equal ones: drafts are chosen greedily.
fn likeliest(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as TokenId
}
