//! Weighted least squares over measured steps: a constant, a cost per token, and a cost per row
//! that makes drafts. The weight of older steps decays. A step that took much longer than estimated
//! is left out as an outlier, and a step is planned to be a few times the longest recent one at
//! most, because the estimate does not hold far beyond measured sizes.

use std::ops::Range;

use crate::cost::{Cost, Size};

/// Weight of the assumed slopes (the cost of a token and of a row's drafts), as a number of
/// measured steps that differ in tokens or in drafting rows.
const ASSUMED: f64 = 0.02;
/// Largest difference in tokens between those assumed steps. The weight of a step in the slope
/// grows with the square of that difference; with a larger one the assumption would outweigh all
/// short steps for good.
const ASSUMED_TOKENS: u32 = 64;
/// How far one step moves the assumed slopes towards the fitted ones; less if the steps differ
/// little.
const ASSUMED_STEP: f64 = 0.1;
/// A step is planned to have at most this many times the tokens of the longest recent one. The
/// estimate for longer steps may be far off, and each longer step improves it.
const GROWTH_MAX: f32 = 4.0;
/// A step that took more than this many times its estimate is an outlier, caused by something else
/// on the machine, unless steps of about that size were never seen or the last of them was as late.
const HELD_UP: f32 = 1.5;
/// Classes of step sizes, by powers of two of the number of tokens, and one more.
const SIZE_CLASSES: usize = 34;

/// Weighted least-squares plane through the measured steps.
#[derive(Clone)]
pub(crate) struct Fit {
    assumed: Cost,
    /// Weights of the assumed costs of a token and of drafts.
    assumed_weights: [f64; 2],
    seen: Sums,
    /// Factor by which a step's weight decays with each further step.
    memory: f64,
    /// Tokens of the longest recent step, which decays as the weights do.
    longest: f32,
    /// By size class, without drafts and with: measured over estimated time of the last step.
    lateness: [[Option<f32>; SIZE_CLASSES]; 2],
}

#[derive(Clone, Copy, Default)]
struct Sums {
    weight: f64,
    x: [f64; 2],
    y: f64,
    xx: [[f64; 2]; 2],
    xy: [f64; 2],
}

impl Fit {
    /// `assumed` is the cost before any step was measured, of steps of up to `token_max` tokens.
    pub(crate) fn new(assumed: Cost, token_max: u32, memory: f64) -> Self {
        let tokens = f64::from(token_max.clamp(2, ASSUMED_TOKENS));
        let assumed_weights = [ASSUMED * tokens * tokens, ASSUMED];
        let (seen, lateness) = (Sums::default(), [[None; SIZE_CLASSES]; 2]);
        Self { assumed, assumed_weights, seen, memory, longest: 0.0, lateness }
    }

    pub(crate) fn observe(&mut self, size: Size, us: f32) {
        let expected_us = self.cost().of(size).max(1.0);
        let late_max = self.late_max(size, us / expected_us);
        self.seen = self.seen.times(self.memory);
        self.seen.add(size, us.min(late_max * expected_us), 1.0);
        self.remember_slopes();
        self.longest = (self.longest * self.memory as f32).max(size.token_count as f32);
    }

    /// Moves the assumed slopes, so that later steps that are all alike keep the slopes that
    /// earlier ones showed.
    fn remember_slopes(&mut self) {
        let Cost { token_us, draft_us, .. } = self.cost();
        let Sums { weight, x, xx, .. } = self.seen;
        let moved = |index: usize, assumed: f32, found: f32| {
            let spread = (xx[index][index] - x[index] * x[index] / weight).max(0.0);
            let known = spread / (spread + self.assumed_weights[index]);
            assumed + (ASSUMED_STEP * known) as f32 * (found - assumed)
        };
        self.assumed.token_us = moved(0, self.assumed.token_us, token_us);
        self.assumed.draft_us = moved(1, self.assumed.draft_us, draft_us);
    }

    pub(crate) fn is_unseen(&self) -> bool {
        self.seen.weight == 0.0
    }

    /// Whether steps of about this many tokens were measured.
    pub(crate) fn has_seen(&self, token_count: u32) -> bool {
        self.lateness.iter().any(|classes| classes[near(token_count)].iter().any(Option::is_some))
    }

    /// Most tokens of a step that the fit is trusted for, see [`GROWTH_MAX`].
    pub(crate) fn known_max(&self) -> u32 {
        if self.longest > 0.0 { (GROWTH_MAX * self.longest) as u32 } else { u32::MAX }
    }

    /// The largest ratio of measured to estimated time that counts. Records `late`, the step's own
    /// ratio.
    fn late_max(&mut self, size: Size, late: f32) -> f32 {
        let lateness = &mut self.lateness[usize::from(size.drafting_count > 0)];
        let near = &lateness[near(size.token_count)];
        let last = near.iter().flatten().copied().reduce(f32::max);
        lateness[class(size.token_count)] = Some(late);
        last.map_or(f32::INFINITY, |last| last.max(HELD_UP))
    }

    pub(crate) fn cost(&self) -> Cost {
        let Sums { weight, x, y, xx, xy } = self.seen;
        if weight == 0.0 {
            return self.assumed;
        }
        let (x, y) = (x.map(|x| x / weight), y / weight);
        let covariance = |i: usize, j: usize| xx[i][j] - weight * x[i] * x[j];
        let [token_weight, draft_weight] = self.assumed_weights;
        let (token, draft) = (covariance(0, 0) + token_weight, covariance(1, 1) + draft_weight);
        let both = covariance(0, 1);
        let [token_y, draft_y] = [0, 1].map(|i| xy[i] - weight * x[i] * y);
        let token_y = token_y + token_weight * f64::from(self.assumed.token_us);
        let draft_y = draft_y + draft_weight * f64::from(self.assumed.draft_us);
        // The weights of the assumptions keep this above 0.
        let spread = token * draft - both * both;
        let token_us = (token_y * draft - draft_y * both) / spread;
        let draft_us = (draft_y * token - token_y * both) / spread;
        // Noise can make a slope negative; it becomes 0, and the other slope is fitted alone.
        let (token_us, draft_us) = match (token_us < 0.0, draft_us < 0.0) {
            (false, false) => (token_us, draft_us),
            (true, _) => (0.0, (draft_y / draft).max(0.0)),
            (false, true) => ((token_y / token).max(0.0), 0.0),
        };
        let parts = token_us * x[0] + draft_us * x[1];
        let share = if parts > y { y / parts } else { 1.0 };
        Cost {
            base_us: (y - share * parts) as f32,
            token_us: (share * token_us) as f32,
            draft_us: (share * draft_us) as f32,
        }
    }
}

fn class(token_count: u32) -> usize {
    token_count.checked_ilog2().map_or(0, |log| log as usize + 1)
}

/// The class of a size and those beside it.
fn near(token_count: u32) -> Range<usize> {
    let class = class(token_count);
    class.saturating_sub(1)..SIZE_CLASSES.min(class + 2)
}

impl Sums {
    fn add(&mut self, size: Size, us: f32, weight: f64) {
        let (x, y) = ([size.token_count, size.drafting_count].map(f64::from), f64::from(us));
        let of_one = Self {
            weight: 1.0,
            x,
            y,
            xx: x.map(|left| x.map(|right| left * right)),
            xy: x.map(|x| x * y),
        };
        *self = self.and(&of_one.times(weight));
    }

    fn times(&self, factor: f64) -> Self {
        Self {
            weight: self.weight * factor,
            x: self.x.map(|x| x * factor),
            y: self.y * factor,
            xx: self.xx.map(|row| row.map(|xx| xx * factor)),
            xy: self.xy.map(|xy| xy * factor),
        }
    }

    fn and(&self, other: &Self) -> Self {
        let add = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
        Self {
            weight: self.weight + other.weight,
            x: add(self.x, other.x),
            y: self.y + other.y,
            xx: [add(self.xx[0], other.xx[0]), add(self.xx[1], other.xx[1])],
            xy: add(self.xy, other.xy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSUMPTION: Cost = Cost { base_us: 1000.0, token_us: 10.0, draft_us: 100.0 };
    const MEMORY: f64 = 0.98;

    fn size(token_count: u32, drafting_count: u32) -> Size {
        Size { token_count, drafting_count }
    }

    #[test]
    fn without_steps_the_assumption_holds() {
        let cost = Fit::new(ASSUMPTION, 512, MEMORY).cost();
        for (size, us) in [(size(1, 0), 1010.0), (size(512, 0), 6120.0), (size(512, 3), 6420.0)] {
            assert!((cost.of(size) - us).abs() < 1.0, "{cost:?}");
        }
        assert_eq!(ASSUMPTION.tokens_within(2000, 0), 100);
        assert_eq!(ASSUMPTION.tokens_within(2000, 2), 80);
        assert_eq!(ASSUMPTION.tokens_within(999, 0), 0);
    }

    #[test]
    fn steps_are_learnt_and_old_ones_forgotten() {
        let mut model = Fit::new(ASSUMPTION, 512, MEMORY);
        let first = Cost { base_us: 500.0, token_us: 3.0, draft_us: 800.0 };
        let second = Cost { base_us: 90.0, token_us: 7.0, draft_us: 0.0 };
        for truth in [first, second] {
            for step in 0..1000 {
                let size = size(1 + step * 37 % 400, step % 3);
                model.observe(size, truth.of(size));
            }
            for size in [size(1, 0), size(1, 1), size(100, 1), size(400, 2)] {
                let (found, expected) = (model.cost().of(size), truth.of(size));
                assert!((found / expected - 1.0).abs() < 0.1, "{size:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn equal_steps_leave_the_slopes_to_the_assumption() {
        let mut model = Fit::new(ASSUMPTION, 512, MEMORY);
        for _ in 0..1000 {
            model.observe(size(8, 1), 2000.0);
        }
        let cost = model.cost();
        assert!((cost.of(size(8, 1)) / 2000.0 - 1.0).abs() < 0.02, "{cost:?}");
        assert!(cost.token_us > 5.0 && cost.base_us > 0.0, "{cost:?}");
    }

    #[test]
    fn a_few_other_steps_say_what_tokens_and_drafts_cost() {
        let truth = Cost { base_us: 3500.0, token_us: 1240.0, draft_us: 5400.0 };
        let mut model = Fit::new(ASSUMPTION, 8, 0.998);
        for step in 0..200 {
            let size = match step % 50 {
                0 => size(1, 0),
                1 => size(1, 1),
                _ => size(8, 1),
            };
            model.observe(size, truth.of(size));
        }
        for size in [size(1, 0), size(1, 1), size(4, 1), size(8, 1)] {
            let (found, expected) = (model.cost().of(size), truth.of(size));
            assert!((found / expected - 1.0).abs() < 0.03, "{size:?}: {found} {expected}");
        }
    }

    #[test]
    fn a_step_that_was_held_up_is_not_believed() {
        let truth = Cost { base_us: 1500.0, token_us: 500.0, draft_us: 2000.0 };
        let mut model = Fit::new(ASSUMPTION, 8, 0.998);
        for step in 0..400 {
            let size = if step % 20 == 0 { size(1, 0) } else { size(8, 1) };
            let late = if step % 25 == 24 { 20.0 } else { 1.0 };
            model.observe(size, late * truth.of(size));
        }
        for size in [size(1, 0), size(8, 1)] {
            let (found, expected) = (model.cost().of(size), truth.of(size));
            assert!((found / expected - 1.0).abs() < 0.1, "{size:?}: {found} {expected}");
        }
    }

    #[test]
    fn chunks_soon_take_the_time_that_they_may() {
        for (base_us, token_us) in [(5000.0, 300.0), (3000.0, 1000.0), (1000.0, 30.0), (200.0, 2.0)]
        {
            let truth = Cost { base_us, token_us, draft_us: 0.0 };
            let mut model = Fit::new(crate::Limits::default().cost, 8192, MEMORY);
            // Many steps of eight decode rows, then prompts beside them.
            (0..500).for_each(|_| model.observe(size(8, 0), truth.of(size(8, 0))));
            for step in 0..300 {
                let token_count = model.cost().tokens_within(20_000, 0).clamp(8 + 1, 8192);
                let us = truth.of(size(token_count, 0));
                model.observe(size(token_count, 0), us);
                let timely = us < 22_000.0 && (us > 15_000.0 || token_count == 8192);
                assert!(step < 3 || timely, "step {step}: {token_count} tokens in {us} us");
            }
        }
    }

    #[test]
    fn steps_that_are_slower_from_now_on_are_believed() {
        let mut model = Fit::new(ASSUMPTION, 8, 0.998);
        for late in [1.0, 10.0] {
            (0..100).for_each(|_| model.observe(size(8, 1), 2000.0 * late));
        }
        assert!(model.cost().of(size(8, 1)) > 8000.0, "{:?}", model.cost());
    }

    #[test]
    fn nothing_is_ever_cheaper_than_nothing() {
        let mut model = Fit::new(ASSUMPTION, 8, MEMORY);
        for step in 0..500 {
            let size = size(1 + step % 8, step % 2);
            model.observe(size, 1000.0 / (1 + size.token_count + size.drafting_count) as f32);
            let Cost { base_us, token_us, draft_us } = model.cost();
            assert!(base_us >= 0.0 && token_us >= 0.0 && draft_us >= 0.0);
        }
    }
}
