//! Logit processors: from the model's logits to those that a token is sampled from, in place.
//!
//! The order: finite check, logit bias, penalties, bad words, end tokens, mask, temperature, min-p,
//! top-k, top-p. A forbidden token has the logit -infinity.

use kilotok_abi::{OUTPUT_COUNT_MAX, Sampling, TokenId};

use crate::logexp::{exp, ln};
use crate::{History, Ranking, Setup};

/// Why no token can be chosen by a row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A logit is NaN or infinite, or became so by bias, penalties or temperature.
    #[error("the logits are not finite")]
    NotFinite,
    /// Biases, bad words, end tokens and mask forbid every token.
    #[error("no token is allowed")]
    NothingAllowed,
}

/// Processes the logits `[vocab]` by which the token at the absolute `position` is chosen, after
/// the tokens of `history`.
///
/// - Bias: `x + bias`.
/// - Repetition penalty r, tokens in prompt or output: `x / r` if `x > 0`, else `x * r`.
/// - Frequency and presence penalties, tokens that are `count` times in the output, which counts
///   to 32,767: `x - frequency * count - presence`, in this order.
/// - Forbidden: the last token of a bad word whose others end the history; end tokens while
///   `position - prompt_count < min_tokens`; tokens whose bit `t % 32` of word `t / 32` is not set
///   in `mask`, of `vocab / 32` words, rounded up.
/// - Temperature: `x / temperature`. For a greedy request nothing is done from here on.
/// - Min-p: keeps `x >= max + ln(min_p)`, probabilities of at least `min_p` times the largest.
/// - Top-k: keeps the first k by (logit descending, id ascending).
/// - Top-p: keeps the shortest prefix of the same order that has at least `top_p` of the
///   probability of all that min-p and top-k left.
pub fn process(
    setup: &Setup,
    history: &History,
    position: u32,
    mask: Option<&[u32]>,
    logits: &mut [f32],
    ranking: &mut Ranking,
) -> Result<(), Fault> {
    check_finite(logits)?;
    for &(token, bias) in &setup.logit_bias {
        logits[token as usize] += bias;
    }
    penalize(&setup.sampling, history, logits);
    for word in &setup.bad_words {
        if let Some((&last, others)) = word.split_last()
            && history.ends_with(others)
        {
            logits[last as usize] = f32::NEG_INFINITY;
        }
    }
    if setup.forbids_end(position) {
        for &token in &setup.end_tokens {
            logits[token as usize] = f32::NEG_INFINITY;
        }
    }
    if let Some(mask) = mask {
        forbid(mask, logits);
    }
    if setup.is_greedy() {
        return highest(logits).map(|_| ());
    }
    divide(logits, setup.sampling.temperature);
    filter(&setup.sampling, logits, ranking)
}

/// Whether all logits are finite.
pub(crate) fn check_finite(logits: &[f32]) -> Result<(), Fault> {
    // No early exit: the loop runs at the speed of memory.
    let finite = logits.iter().fold(true, |finite, x| finite & x.is_finite());
    if finite { Ok(()) } else { Err(Fault::NotFinite) }
}

fn penalize(sampling: &Sampling, history: &History, logits: &mut [f32]) {
    if !sampling.has_penalty() {
        return;
    }
    for seen in history.seen() {
        let x = &mut logits[seen.token as usize];
        if *x > 0.0 {
            *x /= sampling.repetition_penalty;
        } else {
            *x *= sampling.repetition_penalty;
        }
        if seen.output_count > 0 {
            let count = seen.output_count.min(OUTPUT_COUNT_MAX);
            *x -= sampling.frequency_penalty * count as f32;
            *x -= sampling.presence_penalty;
        }
    }
}

fn forbid(mask: &[u32], logits: &mut [f32]) {
    assert_eq!(mask.len(), logits.len().div_ceil(32), "words of a mask");
    for (&word, tokens) in mask.iter().zip(logits.chunks_mut(32)) {
        if word == u32::MAX {
            continue;
        }
        for (bit, x) in tokens.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *x = f32::NEG_INFINITY;
            }
        }
    }
}

pub(crate) fn divide(logits: &mut [f32], temperature: f32) {
    if temperature != 1.0 {
        for x in logits {
            *x /= temperature;
        }
    }
}

/// The highest logit, unless every token is forbidden.
pub(crate) fn highest(logits: &[f32]) -> Result<f32, Fault> {
    match logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) {
        f32::NEG_INFINITY => Err(Fault::NothingAllowed),
        f32::INFINITY => Err(Fault::NotFinite),
        max => Ok(max),
    }
}

/// Min-p, top-k and top-p.
pub(crate) fn filter(
    sampling: &Sampling,
    logits: &mut [f32],
    ranking: &mut Ranking,
) -> Result<(), Fault> {
    let max = highest(logits)?;
    if sampling.min_p > 0.0 {
        let floor = max + ln(sampling.min_p.max(f32::MIN_POSITIVE));
        for x in &mut *logits {
            if *x < floor {
                *x = f32::NEG_INFINITY;
            }
        }
    }
    if sampling.top_k == 0 && sampling.top_p >= 1.0 {
        return Ok(());
    }
    ranking.fill(logits);
    if sampling.top_k > 0 {
        ranking.keep(sampling.top_k as usize, logits);
    }
    if sampling.top_p < 1.0 {
        let mass_of = |token: TokenId| mass(logits[token as usize], max);
        let total: u64 = ranking.tokens().map(mass_of).sum();
        let enough = f64::from(sampling.top_p) * total as f64;
        let (mut sum, mut count) = (0, 0);
        while let Some(token) = ranking.nth(count) {
            sum += mass_of(token);
            count += 1;
            if sum as f64 >= enough {
                break;
            }
        }
        ranking.keep(count, logits);
    }
    Ok(())
}

/// How many of the first tokens of a ranking min-p, top-k and top-p keep, given their logits.
pub(crate) fn kept_count(sampling: &Sampling, logits: &[f32]) -> usize {
    let max = logits[0];
    let mut count = logits.len();
    if sampling.min_p > 0.0 {
        let floor = max + ln(sampling.min_p.max(f32::MIN_POSITIVE));
        count = logits.iter().take_while(|&&x| x >= floor).count();
    }
    if sampling.top_k > 0 {
        count = count.min(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let enough = f64::from(sampling.top_p) * mass_sum(&logits[..count], max) as f64;
        let short = |&count: &usize| (mass_sum(&logits[..count], max) as f64) < enough;
        count = (1..count).take_while(short).count() + 1;
    }
    count
}

fn mass_sum(logits: &[f32], max: f32) -> u64 {
    logits.iter().map(|&x| mass(x, max)).sum()
}

/// e^(logit - max) in units of 2^-40, rounded down. Sums of probabilities are sums of these: being
/// integers they are the same in every order, on a GPU and over a split vocabulary, and up to
/// 2^24 tokens fit.
pub(crate) fn mass(logit: f32, max: f32) -> u64 {
    (exp(logit - max) * MASS_ONE) as u64
}

/// The sum of e^(logit - max).
pub(crate) fn total(logits: &[f32], max: f32) -> f32 {
    mass_sum(logits, max) as f32 / MASS_ONE
}

pub(crate) const MASS_ONE: f32 = 1_099_511_627_776.0;

/// Turns processed logits `[vocab]` into the probabilities a token is chosen with: all on the
/// likeliest one for a greedy request, the softmax otherwise.
pub fn probabilities(setup: &Setup, logits: &mut [f32]) -> Result<(), Fault> {
    let max = highest(logits)?;
    if setup.is_greedy() {
        let chosen = likeliest(logits);
        logits.fill(0.0);
        if let Some(token) = chosen {
            logits[token as usize] = 1.0;
        }
    } else {
        let total = total(logits, max);
        for x in logits {
            *x = exp(*x - max) / total;
        }
    }
    Ok(())
}

/// The token with the highest logit, of equals the lowest id; `None` if all are -infinity.
pub(crate) fn likeliest(logits: &[f32]) -> Option<TokenId> {
    let mut best = f32::NEG_INFINITY;
    let mut token = None;
    for (&x, id) in logits.iter().zip(0..) {
        if x > best {
            best = x;
            token = Some(id);
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORBIDDEN: f32 = f32::NEG_INFINITY;

    fn processed(
        change: impl Fn(&mut Setup),
        tokens: &[TokenId],
        mask: Option<&[u32]>,
        logits: &[f32],
    ) -> Result<Vec<f32>, Fault> {
        let mut setup = Setup::new(Sampling { temperature: 1.0, ..Sampling::GREEDY }, 2);
        change(&mut setup);
        setup.check(logits.len()).unwrap();
        let history = History::new(&setup, tokens);
        let mut row = logits.to_vec();
        let position = tokens.len() as u32;
        process(&setup, &history, position, mask, &mut row, &mut Ranking::default())?;
        Ok(row)
    }

    #[test]
    fn nothing_set_changes_nothing() {
        let row = [1.5, -2.0, 0.0];
        assert_eq!(processed(|_| {}, &[0, 1, 2], None, &row).unwrap(), row);
    }

    #[test]
    fn bias_adds_once_per_entry() {
        let bias = |s: &mut Setup| s.logit_bias = vec![(0, 1.0), (0, 0.5), (2, FORBIDDEN)];
        assert_eq!(processed(bias, &[], None, &[1.0, 1.0, 1.0]).unwrap(), [2.5, 1.0, FORBIDDEN]);
    }

    #[test]
    fn penalties_count_prompt_and_output_apart() {
        // Prompt 0 1, output 1 2 2.
        let tokens = [0, 1, 1, 2, 2];
        let row = [2.0, -2.0, 4.0, 1.0];
        let repetition = |s: &mut Setup| s.sampling.repetition_penalty = 2.0;
        assert_eq!(processed(repetition, &tokens, None, &row).unwrap(), [1.0, -4.0, 2.0, 1.0]);
        let presence = |s: &mut Setup| s.sampling.presence_penalty = 0.5;
        assert_eq!(processed(presence, &tokens, None, &row).unwrap(), [2.0, -2.5, 3.5, 1.0]);
        let frequency = |s: &mut Setup| s.sampling.frequency_penalty = 0.5;
        assert_eq!(processed(frequency, &tokens, None, &row).unwrap(), [2.0, -2.5, 3.0, 1.0]);
    }

    #[test]
    fn bias_comes_before_repetition() {
        let both = |s: &mut Setup| {
            s.logit_bias = vec![(0, 3.0)];
            s.sampling.repetition_penalty = 2.0;
        };
        assert_eq!(processed(both, &[0], None, &[-1.0, 0.0]).unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn bad_words_are_not_completed() {
        let bad = |s: &mut Setup| s.bad_words = vec![vec![3], vec![1, 2], vec![0, 1, 0]];
        let forbidden = |tokens: &[TokenId]| {
            let row = processed(bad, tokens, None, &[0.0; 4]).unwrap();
            (0..4).filter(|&t| row[t] == FORBIDDEN).collect::<Vec<_>>()
        };
        assert_eq!(forbidden(&[]), [3]);
        assert_eq!(forbidden(&[2, 1]), [2, 3]);
        assert_eq!(forbidden(&[0, 1]), [0, 2, 3]);
        assert_eq!(forbidden(&[0, 1, 3]), [3]);
    }

    #[test]
    fn occurrences_count_to_their_limit() {
        let often = |count: u32| {
            let tokens = vec![0; count as usize + 2];
            let frequent = |s: &mut Setup| s.sampling.frequency_penalty = 0.5;
            processed(frequent, &tokens, None, &[0.0; 2]).unwrap()[0]
        };
        assert_eq!(often(OUTPUT_COUNT_MAX - 1), -0.5 * (OUTPUT_COUNT_MAX - 1) as f32);
        assert_eq!(often(OUTPUT_COUNT_MAX + 9), -0.5 * OUTPUT_COUNT_MAX as f32);
    }

    #[test]
    fn end_tokens_wait_for_min_tokens() {
        let end = |s: &mut Setup| {
            s.end_tokens = vec![1];
            s.sampling.min_tokens = 2;
        };
        for (tokens, allowed) in [(&[0, 0][..], false), (&[0, 0, 0], false), (&[0; 4], true)] {
            let row = processed(end, tokens, None, &[0.0; 2]).unwrap();
            assert_eq!(row[1] == 0.0, allowed);
        }
    }

    #[test]
    fn mask_bits_are_little_endian() {
        let row = processed(|_| {}, &[], Some(&[!0, 0b10]), &[0.0; 35]).unwrap();
        let allowed: Vec<_> = (0..35).filter(|&t| row[t] == 0.0).collect();
        assert_eq!(allowed, (0..32).chain([33]).collect::<Vec<_>>());
    }

    #[test]
    fn faults() {
        let plain = |row: &[f32]| processed(|_| {}, &[], None, row);
        for bad in [f32::NAN, f32::INFINITY, FORBIDDEN] {
            assert_eq!(plain(&[0.0, bad]), Err(Fault::NotFinite));
        }
        let overflow = |s: &mut Setup| s.sampling.temperature = 0.5;
        assert_eq!(processed(overflow, &[], None, &[f32::MAX, 0.0]), Err(Fault::NotFinite));
        let nothing = processed(|_| {}, &[], Some(&[0]), &[0.0, 1.0]);
        assert_eq!(nothing, Err(Fault::NothingAllowed));
    }

    #[test]
    fn min_p_one_keeps_the_equals_of_the_best() {
        let row = processed(|s| s.sampling.min_p = 1.0, &[], None, &[2.0, 1.0, 2.0]).unwrap();
        assert_eq!(row, [2.0, FORBIDDEN, 2.0]);
    }

    #[test]
    fn top_k_prefers_lower_ids() {
        let top = |k| processed(move |s| s.sampling.top_k = k, &[], None, &[0.0, 2.0, -0.0, 2.0]);
        assert_eq!(top(1).unwrap(), [FORBIDDEN, 2.0, FORBIDDEN, FORBIDDEN]);
        assert_eq!(top(3).unwrap(), [0.0, 2.0, FORBIDDEN, 2.0]);
        assert_eq!(top(9).unwrap(), [0.0, 2.0, 0.0, 2.0]);
    }

    proptest! {
        #[test]
        fn filters_match_a_full_sort(
            halves in prop::collection::vec(-20i32..20, 1..300),
            min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
            top_k in 0u32..40,
            top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        ) {
            let row: Vec<f32> = halves.iter().map(|&x| x as f32 / 2.0).collect();
            let result = processed(
                |s| (s.sampling.min_p, s.sampling.top_k, s.sampling.top_p) = (min_p, top_k, top_p),
                &[],
                None,
                &row,
            );
            let result = result.unwrap();
            let kept: Vec<usize> =
                (0..row.len()).filter(|&token| result[token] > FORBIDDEN).collect();

            let weight = |t: usize| f64::from(row[t]).exp();
            let best = (0..row.len()).map(weight).fold(0.0, f64::max);
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order.retain(|&t| weight(t) >= f64::from(min_p) * best * (1.0 - 1e-6));
            if top_k > 0 {
                order.truncate(top_k as usize);
            }
            let enough = f64::from(top_p) * order.iter().map(|&t| weight(t)).sum::<f64>();
            let sum = |count: usize| order[..count].iter().map(|&t| weight(t)).sum::<f64>();
            let count = kept.len();
            if top_p < 1.0 {
                prop_assert!(sum(count) >= enough * (1.0 - 1e-6));
                prop_assert!(sum(count - 1) < enough * (1.0 + 1e-6));
            } else {
                prop_assert_eq!(count, order.len());
            }
            order.truncate(count);
            order.sort_unstable();
            prop_assert_eq!(kept, order);
        }

        #[test]
        fn probabilities_are_the_softmax(row in prop::collection::vec(-30f32..30.0, 1..200)) {
            let setup = Setup::new(Sampling { temperature: 1.0, ..Sampling::GREEDY }, 0);
            let mut p = row.clone();
            probabilities(&setup, &mut p).unwrap();
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            for (p, x) in p.iter().zip(&row) {
                let exact = f64::from(*x).exp() / total;
                prop_assert!((f64::from(*p) - exact).abs() <= exact * 4e-6);
            }
        }
    }
}
