//! Which experts a token goes to, and with what weight.

use std::slice;

use kilotok_model::{ExpertsSpec, RouterScores};

use crate::math::{add_bias, exp, sigmoid};
use crate::matmul::{matmul, vectors};
use crate::weights::RouterWeights;

/// An expert that a token goes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Route {
    pub(crate) expert: usize,
    pub(crate) weight: f32,
}

/// The experts that a token goes to, in rising order.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    pub(crate) routes: Vec<Route>,
    /// How far the score of the last chosen expert is ahead of the next one's.
    pub(crate) lead: f32,
}

/// The routes of each token. `h` is normed, `[tokens, hidden]`.
pub(crate) fn run(spec: &ExpertsSpec, weights: &RouterWeights, h: &[f32]) -> Vec<Routes> {
    let w = &weights.matrix;
    let mut logits = matmul(slice::from_ref(w), &vectors(h, w.cols));
    let tokens = logits.chunks_exact_mut(spec.count).map(|logits| {
        add_bias(logits, &weights.bias);
        choose(spec, &weights.correction, logits)
    });
    tokens.collect()
}

/// The correction takes part in choosing, the weights come from the scores without it.
pub(super) fn choose(spec: &ExpertsSpec, correction: &[f32], logits: &[f32]) -> Routes {
    let (scores, total) = scores(spec.router.scores, logits);
    // The softmax of two different logits may round to the same score.
    let mut merits = match spec.router.scores {
        RouterScores::CorrectedSigmoid => scores.clone(),
        RouterScores::Softmax => logits.to_vec(),
    };
    add_bias(&mut merits, correction);
    let mut order: Vec<usize> = (0..spec.count).collect();
    // Stable: of equal ones the lower expert wins.
    order.sort_by(|&a, &b| merits[b].total_cmp(&merits[a]));
    let next = order.get(spec.top_k).map_or(f32::NEG_INFINITY, |&expert| merits[expert]);
    let lead = merits[order[spec.top_k - 1]] - next;
    order.truncate(spec.top_k);
    order.sort_unstable();
    let chosen: f32 = order.iter().map(|&expert| scores[expert]).sum();
    let divisor = match spec.router.normalise {
        // An expert whose score is NaN counts even if it was not chosen.
        _ if scores.iter().any(|score| score.is_nan()) => f32::NAN,
        true => chosen + 1e-20,
        false => total,
    };
    let weight = |expert: usize| scores[expert] / divisor * spec.router.scale;
    let route = |expert| Route { expert, weight: weight(expert) };
    Routes { routes: order.into_iter().map(route).collect(), lead }
}

/// Scores by expert, and the divisor of those chosen if they are not normalised.
fn scores(kind: RouterScores, logits: &[f32]) -> (Vec<f32>, f32) {
    match kind {
        RouterScores::CorrectedSigmoid => {
            (logits.iter().map(|logit| sigmoid(*logit)).collect(), 1.0)
        }
        RouterScores::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // A logit that overflowed must not get weight 0.
            let score = |logit: &f32| if logit.is_finite() { exp(logit - max) } else { f32::NAN };
            let scores: Vec<f32> = logits.iter().map(score).collect();
            let total = scores.iter().sum();
            (scores, total)
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kilotok_model::{Activation, ExpertLayout, RouterDtype, RouterSpec, WeightFormat};

    use super::*;

    pub(in crate::phase) fn spec(scores: RouterScores, normalise: bool) -> ExpertsSpec {
        ExpertsSpec {
            count: 4,
            top_k: 2,
            width: 1,
            format: WeightFormat::Float,
            activation: Activation::SiluMul,
            layout: ExpertLayout::Apart,
            bias: false,
            router: RouterSpec {
                scores,
                bias: false,
                normalise,
                scale: 1.0,
                dtype: RouterDtype::F32,
            },
        }
    }

    fn sigmoids(normalise: bool) -> ExpertsSpec {
        spec(RouterScores::CorrectedSigmoid, normalise)
    }

    #[test]
    fn the_correction_chooses_but_does_not_weigh() {
        let chosen = choose(&sigmoids(true), &[0.0, 0.0, 0.0, 9.0], &[2.0, 1.0, 0.0, -3.0]);
        let (first, last) = (sigmoid(2.0), sigmoid(-3.0));
        assert!((chosen.lead - (first - sigmoid(1.0))).abs() < 1e-6);
        let wanted = [(0, first / (first + last)), (3, last / (first + last))];
        for (route, (expert, weight)) in chosen.routes.iter().zip(wanted) {
            assert_eq!(route.expert, expert);
            assert!((route.weight - weight).abs() < 1e-6);
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_told() {
        for scores in [RouterScores::CorrectedSigmoid, RouterScores::Softmax] {
            for (nan, normalise) in [(f32::NAN, true), (-f32::NAN, true), (-f32::NAN, false)] {
                let logits = [1.0, nan, 2.0, 3.0];
                let Routes { routes, .. } = choose(&spec(scores, normalise), &[], &logits);
                assert_eq!(routes.len(), 2);
                assert!(routes.iter().all(|route| route.weight.is_nan()));
            }
        }
    }

    #[test]
    fn equal_scores_go_to_the_lower_expert() {
        let Routes { routes, .. } = choose(&sigmoids(false), &[0.0; 4], &[1.0; 4]);
        assert_eq!(routes.iter().map(|route| route.expert).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(routes[0].weight, sigmoid(1.0));
    }

    #[test]
    fn a_softmax_is_over_all_experts_or_over_the_chosen_ones() {
        let logits = [1.0, 3.0, 2.0, -50.0_f32];
        let exponentials = logits.map(f32::exp);
        for (normalise, among) in [(false, 4), (true, 2)] {
            let mut sorted = exponentials;
            sorted.sort_by(|a, b| b.total_cmp(a));
            let total: f32 = sorted[..among].iter().sum();
            let chosen = choose(&spec(RouterScores::Softmax, normalise), &[], &logits);
            assert!((chosen.lead - 1.0).abs() < 1e-6);
            for (route, expert) in chosen.routes.iter().zip([1, 2]) {
                assert_eq!(route.expert, expert);
                assert!((route.weight - exponentials[expert] / total).abs() < 1e-6);
            }
        }
    }
}
