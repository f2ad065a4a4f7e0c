//! Which experts a token goes to, and with what weight.

use std::slice;

use kilotok_model::ExpertsSpec;

use crate::math::sigmoid;
use crate::matmul::{matmul, vectors};
use crate::weights::RouterWeights;

/// An expert that a token goes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Route {
    pub(crate) expert: usize,
    pub(crate) weight: f32,
}

/// Where a token goes, by expert.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    pub(crate) routes: Vec<Route>,
    /// How far the score of the last one that was chosen is ahead of the next.
    pub(crate) lead: f32,
}

/// The routes of each token. `h` is normed, `[tokens, hidden]`.
pub(crate) fn run(spec: &ExpertsSpec, weights: &RouterWeights, h: &[f32]) -> Vec<Routes> {
    let w = &weights.matrix;
    let logits = matmul(slice::from_ref(w), &vectors(h, w.cols));
    logits.chunks_exact(spec.count).map(|logits| choose(spec, &weights.bias, logits)).collect()
}

/// The bias takes part in choosing, the weights come from the scores without it.
fn choose(spec: &ExpertsSpec, bias: &[f32], logits: &[f32]) -> Routes {
    let scores: Vec<f32> = logits.iter().map(|logit| sigmoid(*logit)).collect();
    let mut order: Vec<usize> = (0..spec.count).collect();
    let biased = |expert: usize| scores[expert] + bias[expert];
    // Stable: of equal scores the lower expert wins.
    order.sort_by(|&a, &b| biased(b).total_cmp(&biased(a)));
    let next = order.get(spec.top_k).map_or(f32::NEG_INFINITY, |&expert| biased(expert));
    let lead = biased(order[spec.top_k - 1]) - next;
    order.truncate(spec.top_k);
    order.sort_unstable();
    let total: f32 = order.iter().map(|&expert| scores[expert]).sum();
    let divisor = match spec.router.normalise {
        // It may have lost against every other expert.
        _ if scores.iter().any(|score| score.is_nan()) => f32::NAN,
        true => total + 1e-20,
        false => 1.0,
    };
    let weight = |expert: usize| scores[expert] / divisor * spec.router.scale;
    let route = |expert| Route { expert, weight: weight(expert) };
    Routes { routes: order.into_iter().map(route).collect(), lead }
}

#[cfg(test)]
mod tests {
    use kilotok_model::{RouterDtype, RouterSpec, WeightFormat};

    use super::*;

    fn spec(normalise: bool) -> ExpertsSpec {
        let router = RouterSpec { normalise, scale: 1.0, dtype: RouterDtype::F32 };
        ExpertsSpec { count: 4, top_k: 2, width: 1, format: WeightFormat::Float, router }
    }

    #[test]
    fn the_bias_chooses_but_does_not_weigh() {
        let chosen = choose(&spec(true), &[0.0, 0.0, 0.0, 9.0], &[2.0, 1.0, 0.0, -3.0]);
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
        for (nan, normalise) in [(f32::NAN, true), (-f32::NAN, true), (-f32::NAN, false)] {
            let Routes { routes, .. } = choose(&spec(normalise), &[0.0; 4], &[1.0, nan, 2.0, 3.0]);
            assert_eq!(routes.len(), 2);
            assert!(routes.iter().all(|route| route.weight.is_nan()));
        }
    }

    #[test]
    fn equal_scores_go_to_the_lower_expert() {
        let Routes { routes, .. } = choose(&spec(false), &[0.0; 4], &[1.0; 4]);
        assert_eq!(routes.iter().map(|route| route.expert).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(routes[0].weight, sigmoid(1.0));
    }
}
