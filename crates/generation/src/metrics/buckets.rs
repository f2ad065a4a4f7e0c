//! Upper bounds of histogram buckets: all of vLLM's, because dashboards know them, preceded by
//! smaller ones for a fast engine.

pub(super) fn first_token() -> Vec<f64> {
    vec![
        0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
        7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
    ]
}

/// Times between tokens, for which vLLM starts at 10 ms.
pub(super) fn between_tokens() -> Vec<f64> {
    vec![
        0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
        0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    ]
}

/// Times of whole requests and their parts, for which vLLM starts at 300 ms.
pub(super) fn request() -> Vec<f64> {
    vec![
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0,
        10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
    ]
}

/// Times of host work and of the engine's steps.
pub(super) fn short() -> Vec<f64> {
    vec![
        0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02,
        0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    ]
}

/// 1, 2, 5, 10 ... up to `most`.
pub(super) fn counts(most: u32) -> Vec<f64> {
    let powers = (0..10).map(|power| 10_u64.pow(power));
    let all = powers.flat_map(|power| [1, 2, 5].map(|digit| digit * power));
    all.take_while(|bound| *bound <= u64::from(most.max(1))).map(|bound| bound as f64).collect()
}

pub(super) fn replies() -> Vec<f64> {
    vec![1.0, 2.0, 5.0, 10.0, 20.0]
}

pub(super) fn step_tokens() -> Vec<f64> {
    let powers = (3..=14).map(|power| f64::from(1 << power));
    std::iter::once(1.0).chain(powers).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_go_as_far_as_they_may() {
        assert_eq!(super::counts(50), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(super::counts(49).last(), Some(&20.0));
        assert_eq!(super::step_tokens()[..3], [1.0, 8.0, 16.0]);
        assert_eq!(super::step_tokens().last(), Some(&16384.0));
    }
}
