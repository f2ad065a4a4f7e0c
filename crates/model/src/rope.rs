//! Rotary position embedding: how fast each pair of dimensions turns, with YaRN where a model has
//! it. Engines take the numbers from here, so that they are computed once.

/// Rotation of dimensions i and i + dims / 2 of each head, for i below dims / 2, by position times
/// the pair's frequency; dimensions from `dims` on stay as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeSpec {
    pub dims: usize,
    /// Without YaRN pair i turns by base^(-2i / dims) a position.
    pub base: f64,
    pub yarn: Option<Yarn>,
}

/// YaRN (arXiv 2309.00071) stretches positions by `factor`: pairs that turn often keep their
/// frequency, pairs that turn less than once in the original context get a `factor`-th of it, and
/// those between a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    /// Positions that the model had been trained for before.
    pub original_positions: usize,
    /// Turns within the original positions from which on a pair keeps its frequency.
    pub beta_fast: f64,
    /// Turns at and below which a pair is stretched in full.
    pub beta_slow: f64,
    /// Whether both ends of the mixture are rounded outwards to whole pairs.
    pub truncate: bool,
    /// Multiplies every cosine and sine.
    pub magnitude: f32,
}

impl RopeSpec {
    /// Rotation without YaRN.
    pub fn plain(dims: usize, base: f64) -> Self {
        Self { dims, base, yarn: None }
    }

    /// Radians a position for each rotated pair, `[dims / 2]`. They are F32, as in the
    /// implementations that models are trained with: at long positions their rounding is part of
    /// the model.
    pub fn frequencies(self) -> impl ExactSizeIterator<Item = f32> {
        let Self { dims, base, yarn } = self;
        let ramp = yarn.map(|yarn| yarn.ramp(dims, base));
        (0..dims / 2).map(move |pair| {
            let exponent = (2 * pair) as f32 / dims as f32;
            let period = base.powf(f64::from(exponent)) as f32;
            let (Some(yarn), Some((low, high))) = (yarn, ramp) else { return 1.0 / period };
            let stretched = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
            let kept = 1.0 - stretched;
            1.0 / (yarn.factor as f32 * period) * (1.0 - kept) + 1.0 / period * kept
        })
    }

    /// What cosines and sines are multiplied by.
    pub fn magnitude(self) -> f32 {
        self.yarn.map_or(1.0, |yarn| yarn.magnitude)
    }
}

impl Yarn {
    /// The magnitude that goes with a factor, unless a config says another.
    pub fn usual_magnitude(factor: f64) -> f32 {
        (0.1 * factor.ln() + 1.0) as f32
    }

    /// The pairs between which frequencies are mixed.
    fn ramp(self, dims: usize, base: f64) -> (f32, f32) {
        // A gap of nothing would divide by zero.
        const GAP_MIN: f64 = 0.001;
        let pair = |turns: f64| {
            let period = self.original_positions as f64 / (turns * std::f64::consts::TAU);
            dims as f64 * period.ln() / (2.0 * base.ln())
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
        if low == high {
            high += GAP_MIN;
        }
        (low as f32, high as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(found: f32, exact: f64) {
        let error = (f64::from(found) / exact - 1.0).abs();
        assert!(error < 1e-6, "{found} is not {exact}");
    }

    #[test]
    fn frequencies_fall_from_one_by_equal_ratios() {
        let rope = RopeSpec::plain(8, 10_000.0);
        let frequencies: Vec<f32> = rope.frequencies().collect();
        assert_eq!((frequencies.len(), rope.magnitude()), (4, 1.0));
        for (frequency, exact) in frequencies.into_iter().zip([1.0, 0.1, 0.01, 0.001]) {
            near(frequency, exact);
        }
    }

    /// gpt-oss, whose ramp runs from pair 8.09 to pair 17.4.
    const STRETCHED: RopeSpec = RopeSpec {
        dims: 64,
        base: 150_000.0,
        yarn: Some(Yarn {
            factor: 32.0,
            original_positions: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            magnitude: 1.346_573_6,
        }),
    };

    /// Numbers computed in double precision by another program.
    #[test]
    fn yarn_stretches_slow_pairs_and_mixes_the_others() {
        let frequencies: Vec<f32> = STRETCHED.frequencies().collect();
        for (pair, exact) in [
            (0, 1.0),
            (8, 0.050_813_274_8),
            (9, 0.031_705_696_2),
            (12, 0.006_794_959_49),
            (16, 0.000_456_483_919),
            (17, 0.000_129_318_701),
            (18, 3.830_881_24e-5),
            (31, 3.023_511_43e-7),
        ] {
            near(frequencies[pair], exact);
        }
        near(Yarn::usual_magnitude(32.0), 1.346_573_590_279_972_7);
    }

    #[test]
    fn a_truncated_ramp_is_wider() {
        let yarn = STRETCHED.yarn.unwrap();
        let truncated = Yarn { truncate: true, ..yarn };
        assert_eq!(truncated.ramp(64, 150_000.0), (8.0, 18.0));
        let (low, high) = yarn.ramp(64, 150_000.0);
        near(low, 8.092_779_115_512_402);
        near(high, 17.398_024_501_588_56);
    }

    #[test]
    fn a_ramp_of_no_width_divides_by_no_zero() {
        let yarn = Yarn { beta_fast: 1.0, ..STRETCHED.yarn.unwrap() };
        let spec = RopeSpec { yarn: Some(yarn), ..STRETCHED };
        assert!(spec.frequencies().all(f32::is_finite));
    }
}
