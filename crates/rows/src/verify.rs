//! Choosing tokens: each row's logits go to its slot's sampler, which accepts the drafts that it
//! would have chosen itself and adds one token of its own.

use kilotok_abi::TokenId;
use kilotok_engine::{RowFault, RowOutput, StepOutput, TokenLogprob, TokenLogprobs};
use kilotok_sampling::{Fault, Ranking, logprobs};

use crate::batch::{Batch, BatchRow};
use crate::slots::Slots;

/// Tokens of the batch after which logits are needed: scored ones, the last known one, drafts.
pub fn wanted_tokens(batch: &Batch<'_>) -> Vec<usize> {
    batch.rows.iter().flat_map(|row| wanted(row).map(|token| row.first + token)).collect()
}

fn wanted(row: &BatchRow<'_>) -> impl Iterator<Item = usize> {
    let first_sampled = if row.plan.sample { row.known() - 1 } else { row.count };
    let scored = row.plan.scored.len();
    (0..row.count).filter(move |&token| token < scored || token >= first_sampled)
}

/// Chooses every row's tokens by the logits of the wanted tokens, `[wanted, vocab]`. Returns the
/// tokens of the batch that are now part of their sequences.
pub fn verify(
    vocab_size: usize,
    batch: &Batch<'_>,
    logits: &[f32],
    slots: &mut Slots,
    out: &mut StepOutput,
) -> Vec<usize> {
    let mut committed = Vec::new();
    let mut rest = logits;
    for row in &batch.rows {
        let (own, others) = rest.split_at(wanted(row).count() * vocab_size);
        rest = others;
        let output = run_row(vocab_size, batch, row, own, slots);
        let accepted = output.tokens.len().saturating_sub(1);
        committed.extend(row.first..row.first + row.known() + accepted);
        out.rows.push(output);
    }
    committed
}

fn run_row(
    vocab_size: usize,
    batch: &Batch<'_>,
    row: &BatchRow<'_>,
    logits: &[f32],
    slots: &mut Slots,
) -> RowOutput {
    let mut out = RowOutput::default();
    let mut ranking = Ranking::default();
    let top_count = row.plan.logprobs.unwrap_or(0) as usize;
    for (i, logits) in logits.chunks_exact(vocab_size).take(row.plan.scored.len()).enumerate() {
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
    let slot = slots.slot_mut(row.plan.slot);
    let verified = slot.verify(first, drafts, &row.plan.masks, sampled, &mut out.tokens);
    out.fault = verified.err().map(|fault| at(fault, first + out.tokens.len() as u32));
    if row.plan.logprobs.is_some() {
        let rows = out.tokens.iter().zip(sampled.chunks_exact(vocab_size));
        // A token was chosen by these logits, so they are finite.
        let reports =
            rows.map_while(|(&token, row)| report(row, token, top_count, &mut ranking).ok());
        out.logprobs = reports.collect();
    }
    out
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

/// Index of the largest logit, of equals the first: how a draft is chosen.
pub fn likeliest(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as TokenId
}
