//! Log-probabilities as reported to the user: of the model's own distribution, before anything is
//! processed. Knows nothing of how the token was chosen.

use kilotok_abi::TokenId;

use crate::logexp::ln;
use crate::process::{check_finite, highest, total};
use crate::{Fault, Ranking};

/// Natural log-probabilities at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The log-probability of the chosen token.
    pub chosen: f32,
    /// How many tokens have a higher logit than the chosen one.
    pub rank: u32,
    /// The likeliest tokens, best first; of equals the lower id first.
    pub top: Vec<(TokenId, f32)>,
}

/// The log-softmax of raw logits `[vocab]` at `chosen` and at the `top_count` likeliest tokens:
/// `(logit - max) - ln(sum e^(logit - max))`, the sum as for top-p, the same in every order.
pub fn logprobs(
    logits: &[f32],
    chosen: TokenId,
    top_count: usize,
    ranking: &mut Ranking,
) -> Result<Logprobs, Fault> {
    check_finite(logits)?;
    let max = highest(logits)?;
    let ln_total = ln(total(logits, max));
    let logprob = |token: TokenId| (logits[token as usize] - max) - ln_total;
    let mut top = Vec::with_capacity(top_count.min(logits.len()));
    if top_count > 0 {
        ranking.fill(logits);
        top.extend(ranking.first(top_count).map(|token| (token, logprob(token))));
    }
    Ok(Logprobs {
        chosen: logprob(chosen),
        rank: logits.iter().filter(|&&x| x > logits[chosen as usize]).count() as u32,
        top,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_ties() {
        let row = [0.0, 2.0, 1.0, 2.0, 0.0];
        let result = logprobs(&row, 2, 3, &mut Ranking::default()).unwrap();
        assert_eq!(result.rank, 2);
        assert_eq!(result.top.iter().map(|x| x.0).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(result.top[2].1, result.chosen);
        let tied = logprobs(&row, 3, 0, &mut Ranking::default()).unwrap();
        assert_eq!((tied.rank, tied.top.len()), (0, 0));
        let all = logprobs(&row, 3, 100, &mut Ranking::default()).unwrap();
        assert_eq!(all.top.len(), 5);
    }

    #[test]
    fn values_are_the_log_softmax() {
        let row: Vec<f32> = (0..50_000).map(|t| (t as f32 * 0.37).sin() * 12.0).collect();
        let ln_total = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        let result = logprobs(&row, 17, 20, &mut Ranking::default()).unwrap();
        for (token, logprob) in result.top.into_iter().chain([(17, result.chosen)]) {
            let exact = f64::from(row[token as usize]) - ln_total;
            assert!((f64::from(logprob) - exact).abs() < 4e-6, "{token}: {logprob} for {exact}");
        }
    }

    #[test]
    fn numbers_only() {
        let result = logprobs(&[0.0, f32::NAN], 0, 1, &mut Ranking::default());
        assert_eq!(result, Err(Fault::NotFinite));
    }
}
