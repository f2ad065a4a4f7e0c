//! Vector arithmetic, compiled for the widest vector unit that the machine has.

use kilotok_model::Activation;
use pulp::{Arch, Simd, WithSimd};

use crate::products::{add_scaled, dots};

/// Work that is compiled once for every vector unit, its `run` and all that inlines into it. A
/// closure would not do: whether it inlines is the compiler's choice.
pub(crate) trait Vectorised: Sized {
    /// Marked `#[inline(always)]` by every implementor.
    fn run<S: Simd>(self, simd: S);

    /// Runs on the widest vector unit of this machine.
    fn dispatch(self) {
        Arch::new().dispatch(Work(self));
    }
}

struct Work<T>(T);

impl<T: Vectorised> WithSimd for Work<T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.0.run(simd);
    }
}

/// y += x
pub(crate) fn add(y: &mut [f32], x: &[f32]) {
    debug_assert_eq!(y.len(), x.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// Adds a bias to a row. An empty one, of a model that has none, adds nothing.
pub(crate) fn add_bias(row: &mut [f32], bias: &[f32]) {
    debug_assert!(bias.is_empty() || bias.len() == row.len());
    for (value, bias) in row.iter_mut().zip(bias) {
        *value += bias;
    }
}

/// RMS norm of each row: x / sqrt(mean(x^2) + eps) * weight.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    rms_norm_in_place(&mut out, weight, eps);
    out
}

pub(crate) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    RmsNorm { x, weight, eps }.dispatch();
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Vectorised for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.x.chunks_exact_mut(self.weight.len()) {
            let [[squares]] = dots(simd, [&*row], [&*row]);
            let scale = 1.0 / (squares / row.len() as f32 + self.eps).sqrt();
            // Squares that overflow would make a row of zeros, which looks sound.
            let scale = if squares.is_finite() { scale } else { f32::NAN };
            for (value, weight) in row.iter_mut().zip(self.weight) {
                *value = *value * scale * weight;
            }
        }
    }
}

/// exp(x) within 2 units in the last place, the same bits on every machine: 2^n * e^r with n
/// the nearest integer to x / ln 2 and e^r by the Taylor polynomial of degree 7, |r| < 0.35. It is
/// at least exp(-87), and infinite where n is 128.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // ln 2 in two parts, so that r is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // A number of this size has no bits for a fraction, and its lowest bits are the integer's.
    const INTEGERS: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 89.0);
    let rounded = x * std::f32::consts::LOG2_E + INTEGERS;
    let n = rounded - INTEGERS;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// gate = activation(gate, up)
pub(crate) struct Activate<'a> {
    pub(crate) activation: Activation,
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: &'a [f32],
}

impl Vectorised for Activate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let pairs = self.gate.iter_mut().zip(self.up);
        match self.activation {
            Activation::SiluMul => {
                for (gate, up) in pairs {
                    *gate = *gate * sigmoid(*gate) * up;
                }
            }
            Activation::ClampedSwiglu { alpha, limit } => {
                for (gate, up) in pairs {
                    // Unlike `min`, comparisons keep NaN.
                    let cut = if *gate > limit { limit } else { *gate };
                    *gate = cut * sigmoid(alpha * cut) * (up.clamp(-limit, limit) + 1.0);
                }
            }
        }
    }
}

/// y += a * x
pub(crate) struct AddScaled<'a> {
    pub(crate) y: &'a mut [f32],
    pub(crate) a: f32,
    pub(crate) x: &'a [f32],
}

impl Vectorised for AddScaled<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        add_scaled(self.y, self.a, self.x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for step in -8700..8800 {
            let x = step as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.0));
        assert_eq!([89.0, 1e3, f32::INFINITY].map(exp), [f32::INFINITY; 3]);
    }

    #[test]
    fn norm_of_a_hand_made_row() {
        let out = rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0);
        let rms = 12.5_f32.sqrt();
        assert!((out[0] - 3.0 / rms).abs() < 1e-6 && (out[1] - 8.0 / rms).abs() < 1e-6);
    }

    #[test]
    fn a_row_too_large_to_square_is_nan_and_its_neighbour_is_not() {
        let out = rms_norm(&[3.0, 1e20, 3.0, 3.0], &[1.0, 1.0], 0.0);
        assert!(out[..2].iter().all(|value| value.is_nan()));
        assert_eq!(out[2..], [1.0, 1.0]);
    }

    /// gpt-oss cuts the gate from above only, and adds one to up after cutting it.
    #[test]
    fn a_clamped_gate_has_no_lower_end() {
        let activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
        let activate = |gate: f32, up: f32| {
            let mut gates = [gate];
            Activate { activation, gate: &mut gates, up: &[up] }.dispatch();
            gates[0]
        };
        let gate = |x: f64| x / (1.0 + (-1.702 * x).exp());
        for (found, exact) in [
            (activate(2.0, 0.5), gate(2.0) * 1.5),
            (activate(9.0, 0.0), gate(7.0)),
            (activate(-9.0, 0.0), gate(-9.0)),
            (activate(1.0, 9.0), gate(1.0) * 8.0),
            (activate(1.0, -9.0), gate(1.0) * -6.0),
        ] {
            assert!((f64::from(found) - exact).abs() < 1e-6 * exact.abs().max(1e-3), "{found}");
        }
        assert!(activate(f32::NAN, 1.0).is_nan() && activate(1.0, f32::NAN).is_nan());
        let mut gates = [2.0];
        Activate { activation: Activation::SiluMul, gate: &mut gates, up: &[3.0] }.dispatch();
        assert!((gates[0] - 6.0 * sigmoid(2.0)).abs() < 1e-6);
    }
}
