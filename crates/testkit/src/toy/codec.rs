//! Number formats of checkpoints, for writing and reading. The code is written from the formats'
//! definitions and independent of the code that serves models. Scales are chosen so that code times
//! scale is exact in F32.

use half::bf16;
use kilotok_model::{FP8_TILE, Format, LayerWeight, MXFP4_GROUP, WeightDecl, WeightId};
use safetensors::Dtype;

/// The magnitudes of E2M1.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// A weight as a checkpoint stores it.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Fp8 { codes: Vec<u8>, scales: Vec<f32> },
    Mxfp4 { codes: Vec<u8>, scales: Vec<u8> },
}

impl Stored {
    /// Rounds values to the weight's own format. Floats are BF16, except in routers.
    pub(super) fn quantise(decl: &WeightDecl, values: &[f32]) -> Self {
        match (decl.format, decl.id) {
            (
                Format::Float,
                WeightId::Layer(_, _, LayerWeight::Router | LayerWeight::RouterCorrection),
            ) => Self::F32(values.to_vec()),
            (Format::Float | Format::FloatToFp8, _) => {
                Self::Bf16(values.iter().copied().map(bf16::from_f32).collect())
            }
            (Format::Fp8 { .. }, _) => fp8(decl, values),
            (Format::Mxfp4, _) => mxfp4(values),
        }
    }

    /// The values that an engine must read.
    pub(super) fn values(&self, decl: &WeightDecl) -> Vec<f32> {
        let cols = decl.cols();
        let tile = |index: usize| fp8_tile(decl, index / cols, index % cols);
        match self {
            Self::F32(values) => values.clone(),
            Self::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Self::Fp8 { codes, scales } => {
                let codes = codes.iter().enumerate();
                codes.map(|(index, code)| e4m3_value(*code) * scales[tile(index)]).collect()
            }
            Self::Mxfp4 { codes, scales } => {
                let nibbles = codes.iter().flat_map(|pair| [pair & 15, pair >> 4]).enumerate();
                nibbles
                    .map(|(index, code)| e2m1_value(code) * e8m0_value(scales[index / MXFP4_GROUP]))
                    .collect()
            }
        }
    }

    /// The tensors' element types and bytes: values, then scales.
    pub(super) fn tensors(&self) -> Vec<(Dtype, Vec<u8>)> {
        let f32_bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        match self {
            Self::F32(values) => vec![(Dtype::F32, f32_bytes(values))],
            Self::Bf16(values) => {
                vec![(Dtype::BF16, values.iter().flat_map(|v| v.to_le_bytes()).collect())]
            }
            Self::Fp8 { codes, scales } => {
                vec![(Dtype::F8_E4M3, codes.clone()), (Dtype::F32, f32_bytes(scales))]
            }
            Self::Mxfp4 { codes, scales } => {
                vec![(Dtype::U8, codes.clone()), (Dtype::U8, scales.clone())]
            }
        }
    }
}

/// The index of an FP8 value's scale: tiles of 128 columns, and rows as the format counts them.
fn fp8_tile(decl: &WeightDecl, row: usize, col: usize) -> usize {
    decl.format.scale_row(row) * decl.cols().div_ceil(FP8_TILE) + col / FP8_TILE
}

fn fp8(decl: &WeightDecl, values: &[f32]) -> Stored {
    let cols = decl.cols();
    let tile = |index: usize| fp8_tile(decl, index / cols, index % cols);
    let scale_count: usize = decl.stored()[1].shape.iter().product();
    let mut scales = vec![0.0f32; scale_count];
    for (index, value) in values.iter().enumerate() {
        let largest = &mut scales[tile(index)];
        *largest = largest.max(value.abs());
    }
    // Scales have twelve significant bits, rounded up; codes have four.
    for scale in &mut scales {
        *scale = f32::from_bits(((*scale / 448.0).to_bits() | 0xfff) + 1);
    }
    let values = values.iter().enumerate();
    let codes = values.map(|(index, value)| e4m3_code(value / scales[tile(index)])).collect();
    Stored::Fp8 { codes, scales }
}

fn mxfp4(values: &[f32]) -> Stored {
    let mut codes = Vec::with_capacity(values.len() / 2);
    let mut scales = Vec::with_capacity(values.len() / MXFP4_GROUP);
    for group in values.chunks_exact(MXFP4_GROUP) {
        let largest = group.iter().fold(f32::MIN_POSITIVE, |max, value| max.max(value.abs()));
        // The largest value of a group becomes a number from 4 to 8; values above 6 are clipped.
        let scale = (largest.log2().floor() as i32 - 2 + 127) as u8;
        scales.push(scale);
        let code = |value: f32| e2m1_code(value / e8m0_value(scale));
        codes.extend(group.chunks_exact(2).map(|pair| code(pair[0]) | code(pair[1]) << 4));
    }
    Stored::Mxfp4 { codes, scales }
}

/// Sign, 4 exponent bits of bias 7, 3 mantissa bits; exponent 0 is subnormal.
fn e4m3_value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// The nearest code, at most 448.
fn e4m3_code(value: f32) -> u8 {
    let magnitude = value.abs().min(448.0);
    let exponent = (magnitude.max(f32::MIN_POSITIVE).log2().floor() as i32).max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round() as u8;
    // Steps are counted from the exponent below, so rounding up to the next exponent needs no
    // special case.
    let code = ((exponent + 6) as u8 * 8) + steps;
    if value < 0.0 { code | 128 } else { code }
}

fn e2m1_value(code: u8) -> f32 {
    let magnitude = E2M1[code as usize & 7];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// The nearest code.
fn e2m1_code(value: f32) -> u8 {
    let distance = |code: &u8| (E2M1[*code as usize] - value.abs()).abs();
    let nearest = (0..8).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or_default();
    if value < 0.0 { nearest | 8 } else { nearest }
}

fn e8m0_value(code: u8) -> f32 {
    2f32.powi(i32::from(code) - 127)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_nearest() {
        for code in (0..=u8::MAX).filter(|code| code & 127 != 127) {
            let value = e4m3_value(code);
            assert_eq!(e4m3_value(e4m3_code(value)), value);
            // A third of the way to the next larger value.
            let above = e4m3_value(code & 128 | ((code & 127).min(125) + 1));
            assert_eq!(e4m3_value(e4m3_code(value + (above - value) * 0.3)), value, "{code:#x}");
        }
        assert_eq!((e4m3_code(1e9), e4m3_value(0x7e)), (0x7e, 448.0));
        for code in 0..16 {
            assert_eq!(e2m1_value(e2m1_code(e2m1_value(code) * 1.05)), e2m1_value(code));
        }
    }
}
