//! Logarithm and exponential in single precision, made of IEEE additions, multiplications and
//! divisions alone. The platforms' own functions differ in their last bits; these give the same
//! bits wherever operations are rounded to nearest and none are fused (on the GPU `__fadd_rn` and
//! its like, in `kernels/include/kilotok/sample/exact.cuh`). Knows nothing of logits or
//! probabilities.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// ln 2 in two parts, the first with so few bits that small multiples of it are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Natural logarithm of a positive normal number, within 1.5 units of the last place.
#[inline]
pub(crate) fn ln(x: f32) -> f32 {
    let (n, f) = split(x);
    ln_of_split(n, f)
}

/// ln(1 - v) for v in (0, 1), within 2.5 units of the last place however small v is.
#[inline]
pub(crate) fn ln_1m(v: f32) -> f32 {
    let (n, f) = split(1.0 - v);
    // Near 1, where `1 - v` rounds v's digits away, f is -v itself.
    ln_of_split(n, if n == 0.0 { -v } else { f })
}

/// x = 2^n (1 + f) with 1 + f in [√½, √2).
#[inline]
fn split(x: f32) -> (f32, f32) {
    const BASE: u32 = FRAC_1_SQRT_2.to_bits();
    let bits = x.to_bits().wrapping_add(1.0f32.to_bits() - BASE);
    let n = (bits >> 23) as i32 as f32 - 127.0;
    let f = f32::from_bits((bits & 0x007f_ffff) + BASE) - 1.0;
    (n, f)
}

/// n ln 2 + ln(1 + f). With s = f / (2 + f), ln(1 + f) = 2 artanh s = f - f²/2 + s (f²/2 + r),
/// r an even series in s with the coefficients of fdlibm's `logf`.
#[inline]
fn ln_of_split(n: f32, f: f32) -> f32 {
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let r = w * (0.400_009_72 + w * 0.242_790_79) + z * (0.666_666_6 + w * 0.284_987_87);
    let half = 0.5 * f * f;
    s * (half + r) + n * LN_2_LOW - half + f + n * LN_2_HIGH
}

/// e^x for x <= 0, within 1.5 units of the last place; 0 below -87, where the result would leave
/// the normal numbers. The coefficients are those of Cephes' `expf`.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    /// Added and taken away again, it rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let bounded = x.max(-87.0);
    let n = (bounded * LOG2_E + ROUND) - ROUND;
    let r = bounded - n * LN_2_HIGH - n * LN_2_LOW;
    let mut series = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        series = series * r + coefficient;
    }
    let value = (series * (r * r) + r) + 1.0;
    let scale = f32::from_bits(((n + 127.0) as i32 as u32) << 23);
    if x < -87.0 { 0.0 } else { value * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error over the given inputs, in units of the last place of the true value.
    fn worst(
        inputs: impl Iterator<Item = f32>,
        ours: fn(f32) -> f32,
        true_value: fn(f64) -> f64,
    ) -> f64 {
        inputs.fold(0.0, |worst, x| {
            let exact = true_value(f64::from(x));
            let place = (exact as f32).abs();
            let place = f64::from(place.next_up()) - f64::from(place);
            worst.max((f64::from(ours(x)) - exact).abs() / place)
        })
    }

    fn every_997th(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (from.to_bits()..to.to_bits()).step_by(997).map(f32::from_bits)
    }

    #[test]
    fn logarithms_are_accurate() {
        let error = worst(every_997th(f32::MIN_POSITIVE, f32::INFINITY), ln, f64::ln);
        assert!(error < 1.5, "{error}");
        let error = worst(every_997th(1e-10, 1.0), ln_1m, |v| (-v).ln_1p());
        assert!(error < 2.5, "{error}");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn exponential_is_accurate() {
        let error = worst(every_997th(1e-9, 87.0).map(|x| -x), exp, f64::exp);
        assert!(error < 1.5, "{error}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }
}
