//! When requests are sent: as soon as few enough are in flight, or at the random times of a Poisson
//! process, which depend only on the seed.

use std::time::Duration;

use kilotok_abi::Purpose;
use kilotok_sampling::Draws;

/// When each of `count` requests is due, from the start of the run.
pub(super) fn due(count: usize, rate: Option<f64>, seed: u64) -> Vec<Duration> {
    let Some(rate) = rate else { return vec![Duration::ZERO; count] };
    let draws = Draws::new(seed, 0, Purpose::Target);
    let mut at = 0.0;
    let gaps = (0..).take(count).map(|index| {
        let due = Duration::from_secs_f64(at);
        at -= f64::from(draws.uniform(index)).ln() / rate;
        due
    });
    gaps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let times = due(20_001, Some(50.0), 7);
        assert_eq!(times[0], Duration::ZERO);
        let gaps: Vec<f64> =
            times.windows(2).map(|pair| pair[1].as_secs_f64() - pair[0].as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let spread = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // The standard deviation of an exponential distribution equals its mean.
        assert!((spread.sqrt() / mean - 1.0).abs() < 0.05, "{spread}");
        assert_eq!(times, due(20_001, Some(50.0), 7));
        assert_ne!(times, due(20_001, Some(50.0), 8));
    }
}
