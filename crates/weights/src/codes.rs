//! The values of codes in each number format. The code has no tables and no branches, so that loops
//! over it are vectorised. Every result is exact.

/// BF16 is the upper half of an F32.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the caller chooses the vector unit")]
pub(crate) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// FP8 E4M3 (OCP, finite only): sign, 4 exponent bits of bias 7, 3 mantissa bits. Exponent 0 is
/// subnormal, mantissa * 2^-9. `0x7f` and `0xff` are NaN in the standard and 480 here; they are
/// refused where weights are read.
#[inline(always)]
pub(crate) fn e4m3_value(code: u8) -> f32 {
    const EXPONENT_SHIFT: u32 = (127 - 7) << 23;
    const SUBNORMAL_STEP: f32 = 1.0 / 512.0;
    let magnitude = u32::from(code & 0x7f);
    let normal = f32::from_bits((magnitude << 20) + EXPONENT_SHIFT);
    let subnormal = magnitude as f32 * SUBNORMAL_STEP;
    let value = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(value.to_bits() | (u32::from(code & 0x80) << 24))
}

/// The E4M3 code nearest to a value. A tie goes to the even code; larger values get the largest
/// code.
pub(crate) fn e4m3_code(value: f32) -> u8 {
    const EXPONENT_SHIFT: u32 = (127 - 7) << 3;
    const NORMAL_MIN: f32 = 1.0 / 64.0;
    const SUBNORMAL_STEPS: f32 = 512.0;
    const CODE_MAX: u32 = 0x7e;
    let magnitude = value.abs();
    let code = if magnitude < NORMAL_MIN {
        // 8 subnormal steps are the first normal number, whose code is 8.
        (magnitude * SUBNORMAL_STEPS).round_ties_even() as u32
    } else {
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7ffff + (bits >> 20 & 1);
        ((rounded >> 20) - EXPONENT_SHIFT).min(CODE_MAX)
    };
    code as u8 | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// FP4 E2M1 in the low 4 bits: bit 3 is the sign, the others mean 0, 0.5, 1, 1.5, 2, 3, 4, 6. The
/// result is in halves. Negative zero becomes zero, which makes no difference in a sum of products.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the caller chooses the vector unit")]
pub(crate) fn e2m1_halves(code: u8) -> i8 {
    let magnitude = code & 7;
    let halves = magnitude + magnitude.saturating_sub(4) + 2 * magnitude.saturating_sub(6);
    if code & 8 == 0 { halves as i8 } else { -(halves as i8) }
}

/// E8M0: 2^(code - 127). 255 is NaN in the standard and infinite here; it is refused where weights
/// are read.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the caller chooses the vector unit")]
pub(crate) fn e8m0_value(code: u8) -> f32 {
    // 2^-127 is subnormal in F32.
    let bits = if code == 0 { 1 << 22 } else { u32::from(code) << 23 };
    f32::from_bits(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in wider arithmetic: (1 + mantissa / 8) * 2^(exponent - 7). If the exponent
    /// is 0, the 1 is left out and the exponent counts as 1.
    #[test]
    fn e4m3_is_as_defined() {
        for code in 0..=u8::MAX {
            if code & 0x7f == 0x7f {
                continue;
            }
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let magnitude = if exponent == 0 {
                mantissa / 8.0 * 2.0_f64.powi(-6)
            } else {
                (1.0 + mantissa / 8.0) * 2.0_f64.powi(exponent - 7)
            };
            let value = e4m3_value(code);
            assert_eq!(f64::from(value.abs()), magnitude, "{code:#04x}");
            assert_eq!(value.is_sign_negative(), code >= 0x80, "{code:#04x}");
        }
        assert_eq!(e4m3_value(0x7e), 448.0);
        assert_eq!(e4m3_value(0x81), -1.0 / 512.0);
    }

    #[test]
    fn the_nearest_e4m3_code_is_found() {
        for code in 0..0x7e_u8 {
            let (low, high) = (e4m3_value(code), e4m3_value(code + 1));
            let middle = f32::midpoint(low, high);
            let even = code + code % 2;
            for (value, expected) in [
                (low, code),
                (high, code + 1),
                (middle.next_down(), code),
                (middle, even),
                (middle.next_up(), code + 1),
            ] {
                assert_eq!(e4m3_code(value), expected, "{value}");
                assert_eq!(e4m3_code(-value), expected | 0x80, "-{value}");
            }
        }
        assert_eq!([449.0, 1e9].map(e4m3_code), [0x7e; 2]);
    }

    #[test]
    fn e2m1_is_as_defined() {
        let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (code, magnitude) in (0..).zip(magnitudes) {
            assert_eq!(f32::from(e2m1_halves(code)) * 0.5, magnitude);
            assert_eq!(f32::from(e2m1_halves(code | 8)) * 0.5, -magnitude);
        }
    }

    #[test]
    fn e8m0_is_a_power_of_two_at_both_ends() {
        for code in 0..=254 {
            assert_eq!(f64::from(e8m0_value(code)), 2.0_f64.powi(i32::from(code) - 127));
        }
    }

    #[test]
    fn bf16_is_the_upper_half_of_f32() {
        for bits in [0, 0x8000, 0x3f80, 0x0001, 0x7f7f, 0xc2f7] {
            assert_eq!(bf16_value(bits).to_bits(), half::bf16::from_bits(bits).to_f32().to_bits());
        }
    }
}
