//! What a step costs: a part that every step has, and a part per token, fitted to the steps that
//! were measured. Old steps are forgotten little by little. Knows no clock; it is told.

/// Microseconds of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub base_us: f32,
    pub token_us: f32,
}

impl Cost {
    pub fn of(self, token_count: u32) -> f32 {
        self.base_us + self.token_us * token_count as f32
    }

    /// Tokens of a step that takes so long.
    pub(crate) fn tokens_within(self, us: u32) -> u32 {
        // A cast of a float ends at the limits of the integer.
        ((us as f32 - self.base_us) / self.token_us.max(1e-3)) as u32
    }
}

/// A step's weight after one more step.
const MEMORY: f64 = 0.98;
/// Weight of what was assumed before anything was measured, at each end of the line.
const ASSUMED: f64 = 0.02;

/// The straight line nearest to the steps seen, by weighted squares.
pub(crate) struct CostModel {
    assumed: Sums,
    seen: Sums,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl CostModel {
    pub(crate) fn new(cost: Cost, token_max: u32) -> Self {
        let mut assumed = Sums::default();
        for token_count in [1, token_max.max(2)] {
            assumed.add(token_count, cost.of(token_count), ASSUMED);
        }
        Self { assumed, seen: Sums::default() }
    }

    pub(crate) fn observe(&mut self, token_count: u32, us: f32) {
        let seen = &mut self.seen;
        for sum in [&mut seen.weight, &mut seen.x, &mut seen.y, &mut seen.xx, &mut seen.xy] {
            *sum *= MEMORY;
        }
        seen.add(token_count, us, 1.0);
    }

    pub(crate) fn cost(&self) -> Cost {
        let (a, b) = (self.assumed, self.seen);
        let weight = a.weight + b.weight;
        let (x, y) = ((a.x + b.x) / weight, (a.y + b.y) / weight);
        let covariance = (a.xy + b.xy) / weight - x * y;
        let variance = (a.xx + b.xx) / weight - x * x;
        // Noise must not make a token cheaper than none.
        let token_us = (covariance / variance).clamp(0.0, y / x);
        Cost { base_us: (y - token_us * x) as f32, token_us: token_us as f32 }
    }
}

impl Sums {
    fn add(&mut self, token_count: u32, us: f32, weight: f64) {
        let (x, y) = (f64::from(token_count), f64::from(us));
        self.weight += weight;
        self.x += weight * x;
        self.y += weight * y;
        self.xx += weight * x * x;
        self.xy += weight * x * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSUMPTION: Cost = Cost { base_us: 1000.0, token_us: 10.0 };

    #[test]
    fn without_steps_the_assumption_holds() {
        let cost = CostModel::new(ASSUMPTION, 512).cost();
        assert!((cost.of(1) - 1010.0).abs() < 1.0 && (cost.of(512) - 6120.0).abs() < 1.0);
        assert_eq!(ASSUMPTION.tokens_within(2000), 100);
        assert_eq!(ASSUMPTION.tokens_within(999), 0);
    }

    #[test]
    fn steps_are_learnt_and_old_ones_forgotten() {
        let mut model = CostModel::new(ASSUMPTION, 512);
        for truth in [Cost { base_us: 500.0, token_us: 3.0 }, Cost { base_us: 90.0, token_us: 7.0 }]
        {
            for step in 0..1000 {
                let token_count = 1 + step * 37 % 400;
                model.observe(token_count, truth.of(token_count));
            }
            for token_count in [1, 100, 400] {
                let (found, expected) = (model.cost().of(token_count), truth.of(token_count));
                assert!((found / expected - 1.0).abs() < 0.1, "{found} {expected}");
            }
        }
    }

    #[test]
    fn equal_steps_leave_the_slope_to_the_assumption() {
        let mut model = CostModel::new(ASSUMPTION, 512);
        for _ in 0..1000 {
            model.observe(8, 2000.0);
        }
        let cost = model.cost();
        assert!((cost.of(8) / 2000.0 - 1.0).abs() < 0.02, "{cost:?}");
        assert!(cost.token_us > 5.0 && cost.base_us > 0.0, "{cost:?}");
    }
}
