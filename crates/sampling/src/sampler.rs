//! The sampler of one slot: setup, history and scratch memory.

use std::slice::ChunksExact;

use kilotok_abi::{CANDIDATES_MAX, Candidate, Purpose, Sampling, TokenId};

use crate::logexp::exp;
use crate::process::{check_finite, kept_count, likeliest, total};
use crate::{
    Draws, Fault, History, Proposal, Ranking, Rule, Setup, TargetLaw, match_drafts, process,
};

/// Chooses the tokens of one request. Positions are absolute: the first token of the prompt has
/// position 0, and the position of a choice is that of the token chosen.
#[derive(Clone, Debug)]
pub struct Sampler {
    setup: Setup,
    history: History,
    row: Vec<f32>,
    ranking: Ranking,
}

impl Sampler {
    /// For a setup that passed its check, with the tokens known so far, prompt first; they may be
    /// left out where the setup [needs no history](Setup::needs_history).
    pub fn new(setup: Setup, tokens: &[TokenId]) -> Self {
        Self {
            history: History::new(&setup, tokens),
            setup,
            row: Vec::new(),
            ranking: Ranking::default(),
        }
    }

    /// Adds a token that was not chosen here, such as one of the prompt, to the history.
    pub fn push(&mut self, token: TokenId) {
        self.history.push(token);
    }

    /// Chooses the token at `position` by the target's logits `[vocab]`, without adding it to the
    /// history.
    pub fn choose(
        &mut self,
        position: u32,
        mask: Option<&[u32]>,
        logits: &[f32],
    ) -> Result<TokenId, Fault> {
        if self.setup.is_greedy() && mask.is_none() && self.setup.leaves_logits(position) {
            check_finite(logits)?;
            return likeliest(logits).ok_or(Fault::NothingAllowed);
        }
        self.row.clear();
        self.row.extend_from_slice(logits);
        let Self { setup, history, row, ranking } = self;
        process(setup, history, position, mask, row, ranking)?;
        pick(setup, position, row).ok_or(Fault::NothingAllowed)
    }

    /// Verifies drafts by sample and match, see [`match_drafts`]; without drafts, chooses one
    /// token. `position` is that of the first draft, `logits` are the target's, `[drafts + 1,
    /// vocab]`, row i those after i drafts; `masks` has one mask per row or is empty. Appends the
    /// accepted drafts and the target's token to `tokens` and to the history. A fault is that of
    /// the choice at `position` plus the number of tokens appended.
    pub fn verify(
        &mut self,
        position: u32,
        drafts: &[TokenId],
        masks: &[Vec<u32>],
        logits: &[f32],
        tokens: &mut Vec<TokenId>,
    ) -> Result<(), Fault> {
        let vocab_count = check_rows(drafts, masks, logits);
        match_drafts(drafts, tokens, |i| {
            let mask = masks.get(i).map(Vec::as_slice);
            let row = &logits[i * vocab_count..][..vocab_count];
            let token = self.choose(position + i as u32, mask, row)?;
            self.history.push(token);
            Ok(token)
        })
    }

    /// Appends the first `accepted` drafts, whatever the target would choose, and the token that it
    /// chooses after them, like [`Self::verify`] without masks.
    pub fn accept(
        &mut self,
        position: u32,
        drafts: &[TokenId],
        accepted: u32,
        logits: &[f32],
        tokens: &mut Vec<TokenId>,
    ) -> Result<(), Fault> {
        let vocab_count = check_rows(drafts, &[], logits);
        let (kept, row) = (accepted as usize, &logits[accepted as usize * vocab_count..]);
        drafts[..kept].iter().for_each(|draft| self.history.push(*draft));
        tokens.extend_from_slice(&drafts[..kept]);
        self.verify(position + accepted, &[], &[], &row[..vocab_count], tokens)
    }

    /// Draws the next draft of a proposal by the drafter's logits `[vocab]` and adds it with its
    /// law. The law covers the [`CANDIDATES_MAX`] likeliest tokens, with the request's temperature
    /// times `draft_temperature`, which may be 0. The request's min-p, top-k and top-p apply too,
    /// because most drafts that they forbid would be refused.
    pub fn propose(
        &mut self,
        proposal: &mut Proposal,
        draft_temperature: f32,
        logits: &[f32],
    ) -> Result<TokenId, Fault> {
        check_finite(logits)?;
        self.ranking.fill(logits);
        let sampling = &self.setup.sampling;
        let temperature = sampling.temperature * draft_temperature;
        let greedy = temperature < Sampling::TEMPERATURE_MIN;
        let count = if greedy { 1 } else { CANDIDATES_MAX };
        let mut tokens: Vec<TokenId> = self.ranking.first(count).collect();
        let value = |&token: &TokenId| logits[token as usize] / temperature;
        let mut values: Vec<f32> = tokens.iter().map(value).collect();
        if greedy {
            values.fill(0.0);
        }
        let max = *values.first().ok_or(Fault::NothingAllowed)?;
        if !max.is_finite() {
            return Err(Fault::NotFinite);
        }
        let count = kept_count(sampling, &values);
        tokens.truncate(count);
        values.truncate(count);
        let offset = proposal.drafts.len() as u32;
        let draws = Draws::of_draft(sampling.seed, proposal.first, offset, Purpose::Draft);
        let kept = tokens.iter().copied().zip(values.iter().copied());
        let token = draws.race_among(kept.clone()).ok_or(Fault::NothingAllowed)?;
        let total = total(&values, max);
        let law =
            kept.map(|(token, value)| Candidate { token, probability: exp(value - max) / total });
        proposal.laws.push(law.collect());
        proposal.drafts.push(token);
        Ok(token)
    }

    /// Verifies a proposal by `rule`. Rows, masks, tokens and faults are as for [`verify`], with
    /// the proposal's first position and drafts. If there are masks for the drafts alone, no token
    /// comes after the drafts where all are accepted.
    ///
    /// [`verify`]: Self::verify
    pub fn judge(
        &mut self,
        rule: Rule,
        proposal: &Proposal,
        masks: &[Vec<u32>],
        logits: &[f32],
        tokens: &mut Vec<TokenId>,
    ) -> Result<(), Fault> {
        let row_max = proposal.drafts.len() + 1;
        let vocab_count = row_length(row_max, logits);
        let row_count = if masks.is_empty() { row_max } else { masks.len() };
        assert!((row_max - 1..=row_max).contains(&row_count), "a mask for each draft");
        let logits = logits[..row_count * vocab_count].chunks_exact(vocab_count);
        let computed = self.target_laws(proposal, masks, logits);
        let rows = self.row.chunks_exact(vocab_count);
        let laws: Result<Vec<_>, Fault> = rows.map(TargetLaw::new).collect();
        let laws = laws.expect("a processed row allows a token");
        let verdict = proposal.judge(rule, self.setup.sampling.seed, &laws);
        for token in proposal.drafts[..verdict.accepted].iter().copied().chain(verdict.next) {
            self.history.push(token);
            tokens.push(token);
        }
        if verdict.accepted == row_count { Ok(()) } else { check_next(verdict.next, computed) }
    }

    /// Fills `row` with the processed logits after 0, 1, .. drafts, up to a fault or a draft that
    /// is impossible. A greedy request allows the likeliest token alone. The history is unchanged.
    fn target_laws(
        &mut self,
        proposal: &Proposal,
        masks: &[Vec<u32>],
        logits: ChunksExact<'_, f32>,
    ) -> Result<(), Fault> {
        self.row.clear();
        let mut pushed = 0;
        let mut result = Ok(());
        for (i, logits) in logits.enumerate() {
            let start = self.row.len();
            self.row.extend_from_slice(logits);
            let row = &mut self.row[start..];
            let position = proposal.first + i as u32;
            let mask = masks.get(i).map(Vec::as_slice);
            result = process(&self.setup, &self.history, position, mask, row, &mut self.ranking)
                .and_then(|()| if self.setup.is_greedy() { allow_likeliest(row) } else { Ok(()) });
            if result.is_err() {
                self.row.truncate(start);
                break;
            }
            match proposal.drafts.get(i) {
                Some(&draft) if row[draft as usize] > f32::NEG_INFINITY => self.history.push(draft),
                _ => break,
            }
            pushed += 1;
        }
        for _ in 0..pushed {
            self.history.pop();
        }
        result
    }
}

/// Chooses the token at the absolute `position` by processed logits `[vocab]`: the target's own
/// draw, or the likeliest token for a greedy request. `None` if all are forbidden.
pub fn pick(setup: &Setup, position: u32, logits: &[f32]) -> Option<TokenId> {
    let draws = Draws::new(setup.sampling.seed, position, Purpose::Target);
    if setup.is_greedy() { likeliest(logits) } else { draws.race_logits(logits) }
}

/// Forbids all tokens but the likeliest.
fn allow_likeliest(logits: &mut [f32]) -> Result<(), Fault> {
    let token = likeliest(logits).ok_or(Fault::NothingAllowed)?;
    logits.fill(f32::NEG_INFINITY);
    logits[token as usize] = 0.0;
    Ok(())
}

/// The vocabulary's size, once the sizes agree.
fn check_rows(drafts: &[TokenId], masks: &[Vec<u32>], logits: &[f32]) -> usize {
    let row_count = drafts.len() + 1;
    assert!(masks.is_empty() || masks.len() == row_count, "a mask for each row or none");
    row_length(row_count, logits)
}

fn row_length(row_count: usize, logits: &[f32]) -> usize {
    assert!(!logits.is_empty(), "no logits");
    assert!(logits.len().is_multiple_of(row_count), "whole rows of logits");
    logits.len() / row_count
}

/// Without a token after the drafts there is a fault, even where every row could be computed.
fn check_next(next: Option<TokenId>, computed: Result<(), Fault>) -> Result<(), Fault> {
    match next {
        Some(_) => Ok(()),
        None => computed.and(Err(Fault::NothingAllowed)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VOCAB: usize = 40;

    /// A model whose logits depend on the position and the token before it.
    fn logits_after(position: u32, last: TokenId) -> Vec<f32> {
        let draws = Draws::new(9, position, Purpose::Weight);
        (0..VOCAB as u32).map(|t| draws.uniform(64 * last + t) * 8.0 - 4.0).collect()
    }

    /// What a grammar would allow: three of four tokens, others after each token.
    fn mask_after(last: TokenId) -> Vec<u32> {
        vec![!(0x1111_1111 << (last % 4)), !(0x11 << (last % 4))]
    }

    fn rows(
        last: TokenId,
        position: u32,
        drafts: &[TokenId],
        masked: bool,
    ) -> (Vec<f32>, Vec<Vec<u32>>) {
        let before = || [last].into_iter().chain(drafts.iter().copied());
        let logits = before().zip(position..).flat_map(|(t, at)| logits_after(at, t)).collect();
        let masks = before().filter(|_| masked).map(mask_after).collect();
        (logits, masks)
    }

    /// One setup per processor, then all at once; greedy and sampled.
    fn setups() -> Vec<(Setup, bool)> {
        let plain = Sampling { seed: 77, temperature: 1.0, ..Sampling::GREEDY };
        let one = |change: &dyn Fn(&mut Setup)| {
            let mut setup = Setup::new(plain, 3);
            change(&mut setup);
            setup
        };
        let bias = |s: &mut Setup| s.logit_bias = vec![(3, 2.0), (9, f32::NEG_INFINITY)];
        let bad = |s: &mut Setup| {
            s.bad_words = (0..39).map(|t| vec![t, t + 1]).chain([vec![5]]).collect();
        };
        let end = |s: &mut Setup| {
            s.end_tokens = (0..20).collect();
            s.sampling.min_tokens = 6;
        };
        let changes: [&dyn Fn(&mut Setup); 10] = [
            &|s| s.sampling.temperature = 0.6,
            &|s| s.sampling.top_p = 0.7,
            &|s| s.sampling.min_p = 0.1,
            &|s| s.sampling.top_k = 5,
            &|s| s.sampling.repetition_penalty = 1.5,
            &|s| s.sampling.presence_penalty = 1.0,
            &|s| s.sampling.frequency_penalty = 0.7,
            &bias,
            &bad,
            &end,
        ];
        let all = one(&|s| changes.iter().for_each(|change| change(s)));
        let mut setups: Vec<_> = changes.iter().map(|change| (one(change), false)).collect();
        setups.extend([(Setup::new(plain, 3), false), (Setup::new(plain, 3), true), (all, true)]);
        let greedy = setups.clone().into_iter().map(|(mut setup, masked)| {
            setup.sampling.temperature = 0.0;
            (setup, masked)
        });
        setups.extend(greedy);
        setups
    }

    /// 30 tokens after the prompt; `round(sampler, position, last, masked, tokens)` appends some.
    fn run(
        setup: &Setup,
        masked: bool,
        mut round: impl FnMut(&mut Sampler, u32, TokenId, bool, &mut Vec<TokenId>),
    ) -> Vec<TokenId> {
        let mut tokens = vec![1, 2, 3];
        let mut sampler = Sampler::new(setup.clone(), &tokens);
        while tokens.len() < 33 {
            let last = tokens[tokens.len() - 1];
            round(&mut sampler, tokens.len() as u32, last, masked, &mut tokens);
            assert_eq!(sampler.history, History::new(setup, &tokens), "history follows");
        }
        tokens.truncate(33);
        tokens
    }

    #[test]
    fn drafts_change_no_token() {
        for (setup, masked) in setups() {
            let verify =
                |sampler: &mut Sampler, at, drafts: &[TokenId], last, masked, tokens: &mut _| {
                    let (logits, masks) = rows(last, at, drafts, masked);
                    sampler.verify(at, drafts, &masks, &logits, tokens).unwrap();
                };
            let plain = run(&setup, masked, |sampler, at, last, masked, tokens| {
                verify(sampler, at, &[], last, masked, tokens);
            });
            for drafter in 0..6 {
                let drafted = run(&setup, masked, |sampler, at, last, masked, tokens| {
                    // The true tokens for `drafter` positions, then wrong ones.
                    let ahead = plain.iter().skip(tokens.len()).take(drafter).copied();
                    let drafts: Vec<_> = ahead.chain([7, at % 40]).collect();
                    let before = tokens.len();
                    verify(sampler, at, &drafts, last, masked, tokens);
                    assert!(tokens.len() - before > drafter.min(33 - before), "accepts the truth");
                });
                assert_eq!(drafted, plain, "{setup:?}");
            }
        }
    }

    #[test]
    fn any_rule_gives_the_greedy_tokens() {
        for (setup, masked) in setups().into_iter().filter(|(setup, _)| setup.is_greedy()) {
            let plain = run(&setup, masked, |sampler, at, last, masked, tokens| {
                let (logits, masks) = rows(last, at, &[], masked);
                sampler.verify(at, &[], &masks, &logits, tokens).unwrap();
            });
            for rule in [Rule::Token, Rule::Joint] {
                let judged = run(&setup, masked, |sampler, at, last, masked, tokens| {
                    let mut proposal = Proposal { first: at, ..Proposal::default() };
                    let mut last_draft = last;
                    for i in 0..3 {
                        let logits = logits_after(at + i, last_draft);
                        last_draft = sampler.propose(&mut proposal, 1.0, &logits).unwrap();
                    }
                    let (logits, masks) = rows(last, at, &proposal.drafts, masked);
                    sampler.judge(rule, &proposal, &masks, &logits, tokens).unwrap();
                });
                assert_eq!(judged, plain, "{setup:?}");
            }
        }
    }

    #[test]
    fn ties_go_to_the_lower_id() {
        let mut sampler = Sampler::new(Setup::new(Sampling::GREEDY, 0), &[]);
        assert_eq!(sampler.choose(0, None, &[0.0, 3.0, 3.0]), Ok(1));
        assert_eq!(sampler.choose(0, None, &[-0.0, 0.0]), Ok(0));
        assert_eq!(sampler.choose(0, Some(&[0b101]), &[0.0, 3.0, 3.0]), Ok(2));
    }

    #[test]
    fn faults_come_after_the_tokens_before_them() {
        let setup = Setup::new(Sampling::GREEDY, 0);
        let logits = [0.0, 1.0, 1.0, 0.0, f32::NAN, 0.0];
        let masks = [vec![3], vec![0], vec![3]];
        let side = |token| Candidate { token, probability: 0.5 };
        let laws = vec![vec![side(0), side(1)]; 2];
        let proposal = Proposal { first: 0, drafts: vec![1, 0], laws };
        for (masks, fault) in [(&[][..], Fault::NotFinite), (&masks, Fault::NothingAllowed)] {
            let accepted = if fault == Fault::NotFinite { 2 } else { 1 };
            let mut tokens = Vec::new();
            let mut sampler = Sampler::new(setup.clone(), &[]);
            assert_eq!(sampler.verify(0, &[1, 0], masks, &logits, &mut tokens), Err(fault));
            assert_eq!(tokens, [1, 0][..accepted]);
            for rule in [Rule::Token, Rule::Joint] {
                tokens.clear();
                assert_eq!(sampler.judge(rule, &proposal, masks, &logits, &mut tokens), Err(fault));
                assert_eq!(tokens, [1, 0][..accepted]);
            }
        }
        // The row after a draft that the target cannot choose is not read.
        let mut tokens = Vec::new();
        let wrong = Proposal { drafts: vec![0, 0], ..proposal };
        let mut sampler = Sampler::new(setup, &[]);
        assert_eq!(sampler.judge(Rule::Joint, &wrong, &[], &logits, &mut tokens), Ok(()));
        assert_eq!(tokens, [1]);
    }

    #[test]
    fn no_token_after_the_drafts_is_a_fault() {
        let not_finite = Err(Fault::NotFinite);
        assert_eq!(check_next(Some(1), not_finite), Ok(()), "of a row that was not reached");
        assert_eq!(check_next(None, not_finite), not_finite);
        assert_eq!(check_next(None, Ok(())), Err(Fault::NothingAllowed));
    }

    /// Where the mask after the last draft is missing, as after a draft that a grammar does not
    /// follow: the draft is judged, and no token comes after it.
    #[test]
    fn without_a_mask_no_token_comes_after_the_drafts() {
        let setup = Setup::new(Sampling { temperature: 1.0, ..Sampling::GREEDY }, 0);
        let sure = |token| vec![Candidate { token, probability: 1.0 }];
        let proposal = Proposal { first: 0, drafts: vec![1, 0], laws: vec![sure(1), sure(0)] };
        let judge = |masks: &[Vec<u32>]| {
            let (mut tokens, mut sampler) = (Vec::new(), Sampler::new(setup.clone(), &[]));
            let judged = sampler.judge(Rule::Joint, &proposal, masks, &[0.0; 6], &mut tokens);
            assert_eq!(judged, Ok(()));
            tokens
        };
        assert_eq!(judge(&[vec![0b10], vec![0b01]]), [1, 0]);
        assert_eq!(judge(&[vec![0b10], vec![0b10]]), [1, 1]);
        assert_eq!(judge(&[vec![0b01], vec![0b01]]), [0]);
        assert_eq!(judge(&[vec![0b10], vec![0b01], vec![0b10]]), [1, 0, 1]);
    }

    #[test]
    fn a_draft_temperature_of_zero_proposes_the_likeliest_token() {
        let sampling = Sampling { temperature: 0.8, ..Sampling::GREEDY };
        let mut sampler = Sampler::new(Setup::new(sampling, 0), &[]);
        let mut proposal = Proposal::default();
        assert_eq!(sampler.propose(&mut proposal, 0.0, &[1.0, 3.0, 2.0]), Ok(1));
        assert_eq!(proposal.laws, [[Candidate { token: 1, probability: 1.0 }]]);
    }

    #[test]
    fn a_failed_draft_leaves_the_proposal() {
        let mut sampler = Sampler::new(Setup::new(Sampling::GREEDY, 0), &[]);
        let mut proposal = Proposal::default();
        assert_eq!(sampler.propose(&mut proposal, 1.0, &[0.0, f32::NAN]), Err(Fault::NotFinite));
        assert_eq!(proposal, Proposal::default());
    }

    proptest! {
        /// With q = p every draft is kept, whatever the rule.
        #[test]
        fn perfect_drafts_are_kept(seed: u64, top_k in 0u32..5, joint: bool) {
            let sampling = Sampling { seed, top_k, temperature: 0.8, ..Sampling::GREEDY };
            let mut sampler = Sampler::new(Setup::new(sampling, 1), &[5]);
            let mut proposal = Proposal { first: 1, ..Proposal::default() };
            let mut last = 5;
            for at in 1..4 {
                last = sampler.propose(&mut proposal, 1.0, &logits_after(at, last)).unwrap();
            }
            let (logits, _) = rows(5, 1, &proposal.drafts, false);
            let rule = if joint { Rule::Joint } else { Rule::Token };
            let mut tokens = Vec::new();
            sampler.judge(rule, &proposal, &[], &logits, &mut tokens).unwrap();
            prop_assert_eq!(&tokens[..3], &proposal.drafts[..]);
            prop_assert_eq!(tokens.len(), 4);
        }
    }
}
