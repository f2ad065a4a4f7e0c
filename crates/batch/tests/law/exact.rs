//! The target's distribution from the definitions, in f64 and without the `sampling` crate, and the
//! distance of draws from it.

use std::fmt::Debug;

use kilotok_abi::TokenId;

use super::setup::{HISTORY, PROMPT_COUNT, Row, VOCAB, mask_of, setup_of};
use super::{FALSE_ALARM, Setting, target_logits};

/// The distribution of the token after `tokens`, which begin with the history.
fn exact_law(combination: u32, tokens: &[TokenId]) -> Row<f64> {
    let setup = setup_of(combination);
    let s = &setup.sampling;
    let last = tokens[tokens.len() - 1];
    let output = &tokens[PROMPT_COUNT as usize..];
    let mut x = target_logits(tokens.len() - HISTORY.len(), last).map(f64::from);
    for (x, id) in x.iter_mut().zip(0..) {
        for &(_, bias) in setup.logit_bias.iter().filter(|bias| bias.0 == id) {
            *x += f64::from(bias);
        }
        if tokens.contains(&id) {
            let penalty = f64::from(s.repetition_penalty);
            *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
        }
        let count = output.iter().filter(|&&token| token == id).count() as f64;
        *x -= f64::from(s.frequency_penalty) * count;
        *x -= f64::from(s.presence_penalty) * count.min(1.0);
        let with_it = [tokens, &[id]].concat();
        let bad = setup.bad_words.iter().any(|word| with_it.ends_with(word));
        let early = output.len() < s.min_tokens as usize && setup.end_tokens.contains(&id);
        let masked = mask_of(combination, last) >> id & 1 == 0;
        if bad || early || masked {
            *x = f64::NEG_INFINITY;
        }
    }
    let mut weight = x.map(|x| (x / f64::from(s.temperature)).exp());
    let best = weight.iter().copied().fold(0.0, f64::max);
    weight = weight.map(|w| if w >= f64::from(s.min_p) * best { w } else { 0.0 });
    let is_before = |a: usize, b: usize| x[a] > x[b] || x[a] == x[b] && a < b;
    let before = |token: usize| (0..VOCAB).filter(move |&other| is_before(other, token));
    if s.top_k > 0 {
        let kept = |token| before(token).count() < s.top_k as usize;
        weight = std::array::from_fn(|token| if kept(token) { weight[token] } else { 0.0 });
    }
    if s.top_p < 1.0 {
        let enough = f64::from(s.top_p) * weight.iter().sum::<f64>();
        let kept = |token| before(token).map(|other| weight[other]).sum::<f64>() < enough;
        weight = std::array::from_fn(|token| if kept(token) { weight[token] } else { 0.0 });
    }
    let total: f64 = weight.iter().sum();
    weight.map(|w| w / total)
}

/// The probability of each sequence. The first token is the most significant digit of the index.
fn exact_joint(combination: u32, length: usize) -> Vec<f64> {
    let mut joint = vec![1.0];
    for offset in 0..length {
        let sequences = joint.into_iter().enumerate();
        joint = sequences
            .flat_map(|(sequence, probability)| {
                let digits = (0..offset).rev().map(|k| sequence / VOCAB.pow(k as u32) % VOCAB);
                let after = digits.map(|digit| digit as TokenId);
                let tokens: Vec<TokenId> = HISTORY.into_iter().chain(after).collect();
                exact_law(combination, &tokens).map(|p| p * probability)
            })
            .collect();
    }
    joint
}

/// The result of comparing draws with a distribution.
#[derive(Debug)]
pub(super) struct Finding {
    chi_square: f64,
    freedom: f64,
    /// Number of draws of sequences that cannot occur.
    impossible: u32,
}

impl Finding {
    pub(super) fn new(setting: Setting, counts: &[u32]) -> Self {
        Self::of(counts, &exact_joint(setting.combination, setting.length))
    }

    /// Compares draws with a distribution. Cells with an expected count below 5 are joined, the
    /// rarest first.
    pub(super) fn of(counts: &[u32], law: &[f64]) -> Self {
        let draws: f64 = counts.iter().map(|&count| f64::from(count)).sum();
        let cells = counts.iter().map(|&n| f64::from(n)).zip(law.iter().map(|p| p * draws));
        let (mut possible, never): (Vec<_>, Vec<_>) = cells.partition(|cell| cell.1 > 0.0);
        possible.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut joined: Vec<(f64, f64)> = Vec::new();
        for (count, expected) in possible {
            match joined.last_mut() {
                Some(cell) if cell.1 < 5.0 => *cell = (cell.0 + count, cell.1 + expected),
                _ => joined.push((count, expected)),
            }
        }
        Self {
            chi_square: joined.iter().map(|(n, e)| (n - e) * (n - e) / e).sum(),
            freedom: joined.len() as f64 - 1.0,
            impossible: never.iter().map(|cell| cell.0 as u32).sum(),
        }
    }

    /// The probability that a sampler with the right distribution is at least as far off:
    /// `Q(freedom / 2, chi_square / 2)`, the incomplete gamma function by its continued fraction.
    /// Below the mean, where that converges slowly, the result is simply 1.
    pub(super) fn probability(&self) -> f64 {
        let (a, x) = (self.freedom / 2.0, self.chi_square / 2.0);
        if self.freedom == 0.0 || x < a + 1.0 {
            return 1.0;
        }
        let mut ln_gamma =
            if self.freedom % 2.0 == 0.0 { 0.0 } else { std::f64::consts::PI.ln() / 2.0 };
        let mut below = a - 1.0;
        while below > 0.0 {
            ln_gamma += below.ln();
            below -= 1.0;
        }
        // Lentz's method.
        let mut b = x + 1.0 - a;
        let (mut c, mut d) = (f64::MAX, 1.0 / b);
        let mut fraction = d;
        for i in 1..1000 {
            let i = f64::from(i);
            b += 2.0;
            d = 1.0 / (-i * (i - a) * d + b);
            c = b - i * (i - a) / c;
            fraction *= c * d;
            if (c * d - 1.0).abs() < 1e-12 {
                break;
            }
        }
        (a * x.ln() - x - ln_gamma).exp() * fraction
    }

    /// Checks one of `setting_count` settings, of which none may fail.
    pub(super) fn assert_right(&self, setting: impl Debug, setting_count: usize) {
        assert_eq!(self.impossible, 0, "{setting:?} {self:?}");
        let probability = self.probability();
        let threshold = FALSE_ALARM / setting_count as f64;
        assert!(probability > threshold, "{setting:?} {self:?} {probability:e}");
    }
}

#[test]
fn chi_square_has_its_tabulated_values() {
    for (freedom, chi_square, probability) in [
        (1.0, 10.828, 1e-3),
        (2.0, 13.816, 1e-3),
        (10.0, 29.588, 1e-3),
        (15.0, 37.697, 1e-3),
        (100.0, 149.449, 1e-3),
    ] {
        let finding = Finding { chi_square, freedom, impossible: 0 };
        let error = finding.probability() / probability - 1.0;
        assert!(error.abs() < 2e-3, "{finding:?} {}", finding.probability());
    }
}
