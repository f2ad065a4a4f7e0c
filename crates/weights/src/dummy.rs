//! Dummy weights: a model of any declared shape without a checkpoint. A value depends only on the
//! seed, the tensor's name and the element's index in the whole tensor, so every rank, engine and
//! machine makes the same weights. Their scale is chosen so that activations keep their size
//! through many layers, logits distinguish tokens and every expert is chosen about equally often.
//!
//! **What a kernel must do to make the same bytes.** Each stored tensor, of values or of scales,
//! has random bytes of its own, its [`Stream`], and a [`Recipe`] whose integers the host chooses.
//! Element i, counted row by row through the whole tensor, is made from byte i, called u:
//!
//! | recipe | element i |
//! |---|---|
//! | `Float` | `(center + n) * 2^exponent`, n as below |
//! | `E4m3` | the code of `((u * 31 + 15) >> 8) - 15`; zero is `0x00` |
//! | `TileScale` | `factor * (12 + u % 8) * 2^exponent`, F32 |
//! | `E2m1` | u itself, two codes |
//! | `GroupScale` | `127 + exponent`, and one more if `u < raised` |
//!
//! `n = ((w * (2 * spread + 1) + spread) >> 16) - spread`, where w is bytes 2i and 2i + 1,
//! little-endian. Every product is exact in its format, so neither rounding mode nor order matters.

use kilotok_model::{Dtype, Format, LayerWeight, Slice, WeightDecl, WeightId};

use crate::gather::{Rows, check_slice, gather};
use crate::load::WeightSource;
use crate::problem::{Problem, WeightError};
use crate::stream::Stream;
use crate::tensor::Tensor;

/// The source of dummy weights.
#[derive(Clone, Copy, Debug)]
pub struct Dummy {
    seed: u64,
}

impl Dummy {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl WeightSource for Dummy {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        let fail = |reason| {
            let (file, tensor) = ("dummy weights".to_owned(), decl.name.clone());
            WeightError(Problem { file, tensor, reason })
        };
        check_slice(decl, slice).map_err(fail)?;
        let dtype = float_dtype(decl.id);
        let tensors = decl.stored().into_iter().zip(recipes(decl)).map(|(stored, recipe)| MadeUp {
            stream: Stream::new(self.seed, &stored.name),
            row_elements: stored.shape.iter().product::<usize>() / stored.rows,
            recipe,
        });
        let tensors: Vec<_> = tensors.collect();
        let rows: Vec<_> = tensors.iter().map(|tensor| tensor as &dyn Rows).collect();
        gather(decl, slice, dtype, &rows).map_err(|flaw| fail(flaw.to_string()))
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        Ok(match decl.format {
            Format::Float | Format::FloatToFp8 => float_dtype(decl.id),
            Format::Fp8 { .. } => Dtype::F8E4m3,
            Format::Mxfp4 => Dtype::U8,
        })
    }
}

/// How the elements of a stored tensor are made, see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recipe {
    /// `|center| + spread` is at most 255, which BF16 can still represent.
    Float {
        dtype: Dtype,
        center: i32,
        spread: u32,
        exponent: i32,
    },
    E4m3,
    TileScale {
        factor: u32,
        exponent: i32,
    },
    E2m1,
    GroupScale {
        exponent: i32,
        raised: u32,
    },
}

/// The element type of float weights, as in checkpoints.
fn float_dtype(id: WeightId) -> Dtype {
    match id {
        WeightId::Layer(_, _, LayerWeight::Router | LayerWeight::RouterCorrection) => Dtype::F32,
        _ => Dtype::Bf16,
    }
}

/// The recipes of a weight's stored tensors.
fn recipes(decl: &WeightDecl) -> Vec<Recipe> {
    let deviation = deviation(decl);
    match decl.format {
        Format::Float | Format::FloatToFp8 => vec![float_recipe(decl.id, deviation)],
        Format::Fp8 { .. } => {
            // In an E4M3 recipe, n is uniform from -15 to 15, and tile scales vary from 12/16 to
            // 19/16.
            let n_deviation = (((31 * 31 - 1) / 12) as f64).sqrt();
            let (factor, exponent) = split(deviation / n_deviation);
            vec![Recipe::E4m3, Recipe::TileScale { factor, exponent: exponent - 4 }]
        }
        Format::Mxfp4 => {
            // The mean square of all sixteen codes is 68.5 / 8. A fraction `raised` / 256 of the
            // groups has twice the scale of the others, which makes the mean square right.
            let scale = deviation / (68.5_f64 / 8.0).sqrt();
            let exponent = floor_log2(scale);
            let square = (scale / power_of_two(exponent)).powi(2);
            let raised = ((square - 1.0) / 3.0 * 256.0).round() as u32;
            vec![Recipe::E2m1, Recipe::GroupScale { exponent, raised }]
        }
    }
}

fn float_recipe(id: WeightId, deviation: f64) -> Recipe {
    let dtype = float_dtype(id);
    let (center, spread, exponent) = match id {
        WeightId::FinalNorm
        | WeightId::DraftContextNorm
        | WeightId::DraftNorm
        | WeightId::Layer(
            _,
            _,
            LayerWeight::InputNorm
            | LayerWeight::PostNorm
            | LayerWeight::QueryNorm
            | LayerWeight::KeyNorm,
        ) => (128, 16, -7),
        WeightId::Layer(_, _, LayerWeight::Sinks) => (0, 128, -7),
        // Small compared with the spread of the sigmoids, about 0.2.
        WeightId::Layer(_, _, LayerWeight::RouterCorrection) => (0, 128, -13),
        // Small compared with the values to which they are added.
        WeightId::Layer(_, _, weight) if weight.is_bias() => (0, 128, -10),
        _ => {
            // Uniform numbers from -a to a have the standard deviation a / sqrt(3).
            let (spread, exponent) = split(deviation * 3.0_f64.sqrt());
            (0, spread, exponent)
        }
    };
    Recipe::Float { dtype, center, spread, exponent }
}

/// The standard deviation of a matrix's values. Inputs have deviation 1 after their norm.
fn deviation(decl: &WeightDecl) -> f64 {
    let gain = match decl.id {
        // Rows of an embedding are used as they are, not multiplied.
        WeightId::Embedding | WeightId::DraftMask => return 1.0,
        // Logits with a standard deviation of 4, so that the likeliest token stands out.
        WeightId::Head => 4.0,
        // The outputs that a layer adds to the residual stream stay smaller than the stream.
        WeightId::Layer(_, _, LayerWeight::Output | LayerWeight::Down)
        | WeightId::Expert(_, _, LayerWeight::Down) => 0.5,
        _ => 1.0,
    };
    gain / (decl.cols() as f64).sqrt()
}

/// x, approximately, as an integer from 128 to 255 times a power of two.
fn split(x: f64) -> (u32, i32) {
    let exponent = floor_log2(x) - 7;
    (((x / power_of_two(exponent)).round() as u32).min(255), exponent)
}

/// The rounded-down logarithm of a positive normal number.
fn floor_log2(x: f64) -> i32 {
    (x.to_bits() >> 52) as i32 - 1023
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// A stored tensor whose elements are made when they are read.
struct MadeUp {
    stream: Stream,
    row_elements: usize,
    recipe: Recipe,
}

impl Rows for MadeUp {
    fn fill(&self, row: usize, first: usize, out: &mut [u8]) {
        let start = row * self.row_elements;
        match self.recipe {
            Recipe::E2m1 => self.stream.fill(start + first, out),
            Recipe::E4m3 => {
                self.stream.fill(start + first, out);
                for out in out {
                    *out = e4m3_code(((i32::from(*out) * 31 + 15) >> 8) - 15);
                }
            }
            Recipe::GroupScale { exponent, raised } => {
                self.stream.fill(start + first, out);
                for out in out {
                    *out = (127 + exponent) as u8 + u8::from(u32::from(*out) < raised);
                }
            }
            Recipe::TileScale { factor, exponent } => {
                let unit = factor as f32 * power_of_two(exponent) as f32;
                self.fill_words(start + first / 4, out, |[byte]| {
                    (unit * f32::from(12 + byte % 8)).to_le_bytes()
                });
            }
            Recipe::Float { dtype, center, spread, exponent } => {
                let unit = power_of_two(exponent) as f32;
                let value = |word: [u8; 2]| {
                    let word = u32::from(u16::from_le_bytes(word));
                    let n = ((word * (2 * spread + 1) + spread) >> 16) as i32 - spread as i32;
                    (center + n) as f32 * unit
                };
                if dtype == Dtype::F32 {
                    self.fill_words(start + first / 4, out, |word| value(word).to_le_bytes());
                } else {
                    self.fill_words(start + first / 2, out, |word| {
                        let [_, _, low, high] = value(word).to_le_bytes();
                        [low, high]
                    });
                }
            }
        }
    }
}

impl MadeUp {
    /// Makes elements of `OUT` bytes, starting with number `first`, from `IN` random bytes each.
    fn fill_words<const IN: usize, const OUT: usize>(
        &self,
        first: usize,
        out: &mut [u8],
        make: impl Fn([u8; IN]) -> [u8; OUT],
    ) {
        const RUN: usize = 1024;
        let mut random = [[0; IN]; RUN];
        let (out, _) = out.as_chunks_mut::<OUT>();
        for (index, out) in out.chunks_mut(RUN).enumerate() {
            let random = &mut random[..out.len()];
            self.stream.fill((first + index * RUN) * IN, random.as_flattened_mut());
            for (out, random) in out.iter_mut().zip(random) {
                *out = make(*random);
            }
        }
    }
}

/// The E4M3 code of an integer from -15 to 15: the integer as F32, with the exponent's bias changed
/// from 127 to 7 and the mantissa cut to the 3 bits that it needs.
fn e4m3_code(n: i32) -> u8 {
    const BIAS: u32 = (127 - 7) << 3;
    let magnitude = (n.unsigned_abs() as f32).to_bits() >> 20;
    let code = magnitude.saturating_sub(BIAS) as u8;
    if n < 0 { code | 0x80 } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::e4m3_value;

    #[test]
    fn integers_have_their_e4m3_codes() {
        for n in -15..=15 {
            assert_eq!(e4m3_value(e4m3_code(n)), n as f32);
        }
        assert_eq!(e4m3_code(0), 0);
    }
}
