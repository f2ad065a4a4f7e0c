//! Verification of drafts: which to keep, so that tokens follow the target's distribution whatever
//! the drafter proposes. Works on probabilities and random numbers, wherever they come from.

use std::borrow::Cow;

use kilotok_abi::{Candidate, Purpose, TokenId};

use crate::logexp::{exp, ln};
use crate::process::{MASS_ONE, highest, total};
use crate::{Draws, Fault};

/// Sample and match: the target chooses a token at every row, and the rows go on while it chose
/// the draft. `choose(i)` chooses after the first i drafts. The tokens, appended to `tokens`, are
/// the accepted drafts and one more, and each is the target's own choice: drafts cannot change
/// them, only how many there are. At a fault the tokens end before the row at fault.
pub fn match_drafts(
    drafts: &[TokenId],
    tokens: &mut Vec<TokenId>,
    mut choose: impl FnMut(usize) -> Result<TokenId, Fault>,
) -> Result<(), Fault> {
    for i in 0..=drafts.len() {
        let token = choose(i)?;
        tokens.push(token);
        if drafts.get(i) != Some(&token) {
            break;
        }
    }
    Ok(())
}

/// How many of a row's drafts count as accepted, if each does with probability `chance` after those
/// before it. `first` is the absolute position of the first.
pub fn assumed_accepted(chance: f32, seed: u64, first: u32, draft_count: u32) -> u32 {
    let accepted =
        |draft: &u32| Draws::of_draft(seed, first, *draft, Purpose::Accept).uniform(0) < chance;
    (0..draft_count).take_while(accepted).count() as u32
}

/// Drafts that were drawn at random, with the law (the distribution) of each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal {
    /// Absolute position of the first draft.
    pub first: u32,
    pub drafts: Vec<TokenId>,
    /// The law of each draft: the tokens that it could have been, itself among them.
    pub laws: Vec<Vec<Candidate>>,
}

/// The target's law of a token: processed logits `[vocab]`, whose softmax are the probabilities.
#[derive(Clone, Copy, Debug)]
pub struct TargetLaw<'a> {
    logits: &'a [f32],
    max: f32,
    total: f32,
}

impl<'a> TargetLaw<'a> {
    /// # Errors
    /// No token is allowed, or a logit is not finite.
    pub fn new(logits: &'a [f32]) -> Result<Self, Fault> {
        let max = highest(logits)?;
        Ok(Self { logits, max, total: total(logits, max) })
    }

    pub(crate) fn probability(&self, token: TokenId) -> f32 {
        exp(self.logits[token as usize] - self.max) / self.total
    }
}

/// How to judge a [`Proposal`] by the target's probabilities p.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Each draft d is accepted with probability min(1, p(d) / q(d)), up to the first refusal.
    /// After i drafts comes a token with probability proportional to max(p - q, 0), row i of
    /// each (Leviathan et al., arXiv 2211.17192).
    Token,
    /// Block verification (Sun et al., arXiv 2403.10444). With `P_0 = 1` and
    /// `P_i = min(1, P_{i-1} p(d_i) / q(d_i))`, the largest i is kept whose own uniform number is
    /// at most `h_i = Z_i / (Z_i + 1 - P_i)`, where `Z_i = sum max(P_i p - q, 0)` over row i,
    /// the one after i drafts; for all n drafts it is `h_n = P_n`. Then comes a token with
    /// probability proportional to `max(P_i p - q, 0)`. As p and q sum to 1, `Z_i` is
    /// `P_i - sum min(P_i p, q)`, to which only candidates of the draft contribute.
    ///
    /// Why: suppose i + 1 or more drafts are kept with probability `P_{i+1}` given `d_1..d_{i+1}`.
    /// Over `d_{i+1}` that is sum min(`P_i` p, q) = `P_i - Z_i`, so with `h_i` from above i or more
    /// are kept with probability `h_i + (1 - h_i) (P_i - Z_i) = P_i`, which holds from i = n down.
    /// Exactly i are kept with probability `Z_i`; so x follows `d_1..d_i` with probability
    /// q(x) `P_{i+1}` + max(`P_i` p(x) - q(x), 0) = `P_i` p(x), which is the target's law.
    Joint,
}

/// What became of a [`Proposal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How many of the first drafts are kept.
    pub accepted: usize,
    /// The token after them; `None` if its row of p is missing.
    pub next: Option<TokenId>,
}

/// The part of a rule that needs no random number: the thresholds by which drafts are kept.
#[derive(Clone, Debug)]
pub struct Acceptance {
    rule: Rule,
    /// One for each draft that is judged.
    thresholds: Vec<Threshold>,
}

#[derive(Clone, Copy, Debug)]
struct Threshold {
    /// The draft, and under [`Rule::Joint`] those before it, is kept if its uniform number is at
    /// most this.
    uniform: f32,
    /// The factor P of the target's law after the draft.
    mass: f32,
}

impl Acceptance {
    /// How many drafts are kept, given the uniform number of each.
    pub fn accepted(&self, uniform: impl Fn(usize) -> f32) -> usize {
        let kept = |i: &usize| uniform(*i) <= self.thresholds[*i].uniform;
        let mut drafts = 0..self.thresholds.len();
        match self.rule {
            Rule::Token => drafts.take_while(kept).count(),
            Rule::Joint => drafts.rfind(kept).map_or(0, |i| i + 1),
        }
    }

    /// The factor of the target's law after `accepted` drafts.
    fn mass(&self, accepted: usize) -> f32 {
        accepted.checked_sub(1).map_or(1.0, |i| self.thresholds[i].mass)
    }
}

impl Proposal {
    /// Judges the drafts by the target's laws, of which law i is that of the token after i drafts.
    /// There is one for each draft and one more. Fewer laws judge fewer drafts: a law that cannot
    /// be computed, and those after it, may be left out without a change of the tokens'
    /// distribution.
    pub fn judge(&self, rule: Rule, seed: u64, target: &[TargetLaw<'_>]) -> Verdict {
        let acceptance = self.acceptance(rule, target);
        let draws = |i| Draws::of_draft(seed, self.first, i as u32, Purpose::Accept);
        let accepted = acceptance.accepted(|i| draws(i).uniform(0));
        let next = self.next(&acceptance, target, accepted).and_then(|(purpose, logits)| {
            Draws::new(seed, self.first + accepted as u32, purpose).race_logits(&logits)
        });
        Verdict { accepted, next }
    }

    /// When to keep drafts, by the laws of [`judge`](Self::judge).
    pub fn acceptance(&self, rule: Rule, target: &[TargetLaw<'_>]) -> Acceptance {
        let judged = self.drafts.len().min(target.len());
        let mut mass = 1.0;
        let threshold = |i| match rule {
            Rule::Token => Threshold { uniform: self.ratio(i, 1.0, target), mass },
            Rule::Joint => {
                mass = self.ratio(i, mass, target).min(1.0);
                let after = i + 1;
                let uniform = if after == judged {
                    mass
                } else {
                    // 0 / 0 if p equals q: the next draft is sure to be kept, so any value will do.
                    let residual = self.residual_mass(after, mass, target);
                    residual / (residual + (1.0 - mass))
                };
                Threshold { uniform, mass }
            }
        };
        Acceptance { rule, thresholds: (0..judged).map(threshold).collect() }
    }

    /// The logits by which the token after `accepted` drafts is drawn, and the purpose of its
    /// random numbers: the target's own after all drafts that are judged, otherwise those of the
    /// residual. Rounding can leave no residual where p is almost q; then the target's law stands
    /// in, with the residual's numbers. `None` if the row of p is missing.
    pub fn next<'a>(
        &self,
        acceptance: &Acceptance,
        target: &[TargetLaw<'a>],
        accepted: usize,
    ) -> Option<(Purpose, Cow<'a, [f32]>)> {
        let own = target.get(accepted)?.logits;
        if accepted == acceptance.thresholds.len() {
            return Some((Purpose::Target, own.into()));
        }
        let residual = self.residual(accepted, acceptance.mass(accepted), target);
        let possible = residual.iter().any(|logit| *logit > f32::NEG_INFINITY);
        Some((Purpose::Residual, if possible { residual.into() } else { own.into() }))
    }

    /// The logits of the residual `max(mass * p - q, 0)` after `accepted` drafts, up to a constant
    /// summand: they are the target's logits, reduced at the draft's candidates.
    fn residual(&self, accepted: usize, mass: f32, target: &[TargetLaw<'_>]) -> Vec<f32> {
        let target = &target[accepted];
        let mut logits = target.logits.to_vec();
        for candidate in &self.laws[accepted] {
            let p = mass * target.probability(candidate.token);
            let left = p - candidate.probability;
            let logit = &mut logits[candidate.token as usize];
            *logit = if left > 0.0 { *logit + ln(left / p) } else { f32::NEG_INFINITY };
        }
        logits
    }

    /// `mass * p(d) / q(d)` of draft i; 0 of a draft without a probability.
    fn ratio(&self, i: usize, mass: f32, target: &[TargetLaw<'_>]) -> f32 {
        let draft = self.drafts[i];
        let own = self.laws[i].iter().find(|candidate| candidate.token == draft);
        own.map_or(0.0, |own| mass * target[i].probability(draft) / own.probability)
    }

    /// The sum of `max(mass * p - q, 0)` after `accepted` drafts. What p and q share is summed in
    /// integers for the reason given at `process::mass`.
    fn residual_mass(&self, accepted: usize, mass: f32, target: &[TargetLaw<'_>]) -> f32 {
        let target = &target[accepted];
        let shared = self.laws[accepted].iter().map(|candidate| {
            let p = mass * target.probability(candidate.token);
            (p.min(candidate.probability) * MASS_ONE) as u64
        });
        (mass - shared.sum::<u64>() as f32 / MASS_ONE).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: [Rule; 2] = [Rule::Token, Rule::Joint];

    /// Two drafts of token 0 from fair coins.
    fn coins() -> Proposal {
        let side = |token| Candidate { token, probability: 0.5 };
        let law = vec![side(0), side(1)];
        Proposal { first: 3, drafts: vec![0, 0], laws: vec![law.clone(), law] }
    }

    /// Judges by rows of the target's probabilities of two or three tokens.
    fn judge<const N: usize>(
        proposal: &Proposal,
        rule: Rule,
        seed: u64,
        target: &[[f32; N]],
    ) -> Verdict {
        let logits: Vec<_> = target.iter().map(|row| row.map(f32::ln)).collect();
        let laws: Vec<_> = logits.iter().map(|row| TargetLaw::new(row).unwrap()).collect();
        proposal.judge(rule, seed, &laws)
    }

    #[test]
    fn matching_stops_at_the_first_difference() {
        let target = [4, 5, 6, 7];
        for (drafts, count) in [(&[][..], 1), (&[9, 5], 1), (&[4, 9, 6], 2), (&[4, 5, 6], 4)] {
            let mut tokens = Vec::new();
            match_drafts(drafts, &mut tokens, |i| Ok(target[i])).unwrap();
            assert_eq!(tokens, target[..count]);
        }
    }

    #[test]
    fn sure_and_impossible_drafts() {
        for rule in RULES {
            for seed in 0..1000 {
                let sure = judge(&coins(), rule, seed, &[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]);
                assert_eq!(sure, Verdict { accepted: 2, next: Some(1) });
                let second = judge(&coins(), rule, seed, &[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]);
                assert_eq!(second, Verdict { accepted: 1, next: Some(1) });
                let none = judge(&coins(), rule, seed, &[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]);
                assert_eq!(none, Verdict { accepted: 0, next: Some(1) });
            }
        }
    }

    #[test]
    fn missing_rows_judge_fewer_drafts() {
        for rule in RULES {
            let of_two = judge(&coins(), rule, 0, &[[1.0, 0.0], [1.0, 0.0]]);
            assert_eq!(of_two, Verdict { accepted: 2, next: None });
            let of_one = judge(&coins(), rule, 0, &[[1.0, 0.0]]);
            assert_eq!(of_one, Verdict { accepted: 1, next: None });
            assert_eq!(coins().judge(rule, 0, &[]), Verdict { accepted: 0, next: None });
        }
    }

    #[test]
    fn without_drafts_the_target_draws() {
        for seed in 0..100 {
            let p = [0.2f32, 0.0, 0.8];
            let none = Proposal { first: 9, ..Proposal::default() };
            let drawn = Draws::new(seed, 9, Purpose::Target).race_logits(&p.map(f32::ln));
            let verdict = judge(&none, Rule::Joint, seed, &[p]);
            assert_eq!(verdict, Verdict { accepted: 0, next: drawn });
        }
    }

    #[test]
    fn equal_laws_keep_all_drafts() {
        for rule in RULES {
            for seed in 0..1000 {
                assert_eq!(judge(&coins(), rule, seed, &[[0.5; 2]; 3]).accepted, 2);
            }
        }
    }
}
