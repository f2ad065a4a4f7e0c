//! Random weights with healthy statistics: residual streams of order one, attention that is not
//! uniform, experts that are all used, logits with a standard deviation of about two, and replies
//! that do not converge to one token.

use kilotok_model::{FP8_TILE, Format, LayerWeight, MXFP4_GROUP, ModelSpec, WeightDecl, WeightId};

use crate::mix::Stream;

/// Amounts that are added to the logits of the favourite tokens.
const FAVOURS: [f32; 8] = [22.0, 14.0, 11.0, 9.5, 8.5, 8.0, 7.5, 7.0];
/// The amount that is subtracted from a token's logit after the token itself.
const AVERSION: f32 = 12.0;

/// The values of a weight, which depend only on its name and the seed.
pub(super) fn values(spec: &ModelSpec, decl: &WeightDecl, seed: u64) -> Vec<f32> {
    // Weights that share a tensor have the same name.
    let id = format!("{:?}", decl.id);
    let name = if decl.stack.is_some() { &id } else { &decl.name };
    let mut stream = Stream::named(name, seed);
    let (rows, cols) = (decl.rows(), decl.cols());
    let mut value = |row: usize, col: usize| match decl.id {
        // Every embedding has a component in one direction, which the head turns into the token's
        // favour.
        WeightId::Embedding => own(row, col) + 0.8 * direction(col),
        WeightId::DraftMask => 0.5 * stream.normal() + 0.7 * direction(col),
        WeightId::Head => {
            let bias = favour(row) * direction(col) - AVERSION * own(row, col);
            2.0 * stream.normal() / (cols as f32).sqrt() + bias / cols as f32
        }
        WeightId::Layer(_, _, LayerWeight::Sinks) => 0.5 + stream.normal(),
        WeightId::Layer(_, _, LayerWeight::RouterCorrection) => 0.3 * stream.normal(),
        WeightId::Layer(_, _, weight) if weight.is_bias() => 0.2 * stream.normal(),
        _ if rows == 1 => 1.0 + 0.2 * stream.normal(),
        id => gain(id) * stream.normal() / (cols as f32).sqrt(),
    };
    let mut values: Vec<f32> =
        (0..rows * cols).map(|index| value(index / cols, index % cols)).collect();
    emphasise(decl, &mut values);
    if let (WeightId::Embedding, Some(drafter)) = (decl.id, &spec.drafter)
        && drafter.own_mask
    {
        // In published tables this row is almost zero; the drafter has its own embedding.
        let row = drafter.mask_token as usize * cols..(drafter.mask_token as usize + 1) * cols;
        values[row].iter_mut().for_each(|value| *value *= 1e-5);
    }
    values
}

/// The component of an embedding that is specific to its token.
fn own(token: usize, col: usize) -> f32 {
    Stream::new((token as u64) << 20 | col as u64).normal()
}

/// A direction in which all dimensions have the same weight.
fn direction(col: usize) -> f32 {
    if (col * 7 + col / 5).is_multiple_of(3) { -1.0 } else { 1.0 }
}

/// The favourites are spread over the vocabulary, so that each rank has some of them.
fn favour(token: usize) -> f32 {
    let place = (0..FAVOURS.len()).find(|place| (37 * place + 11) % 256 == token);
    place.map_or(0.0, |place| FAVOURS[place])
}

/// The standard deviation of a product with a vector of ones.
fn gain(id: WeightId) -> f32 {
    match id {
        WeightId::Layer(_, _, weight) | WeightId::Expert(_, _, weight) => match weight {
            LayerWeight::Qkv | LayerWeight::Query | LayerWeight::Key => 1.8,
            LayerWeight::Output | LayerWeight::Down | LayerWeight::Router => 1.5,
            _ => 1.0,
        },
        _ => 1.0,
    }
}

/// Makes adjacent scales differ by a factor of two or more, so that the effect of a wrong scale
/// cannot be taken for rounding.
fn emphasise(decl: &WeightDecl, values: &mut [f32]) {
    let cols = decl.cols();
    for (index, value) in values.iter_mut().enumerate() {
        let (row, col) = (index / cols, index % cols);
        let place = match decl.format {
            Format::Float | Format::FloatToFp8 => return,
            Format::Fp8 { .. } => decl.format.scale_row(row) + col / FP8_TILE,
            Format::Mxfp4 => row + col / MXFP4_GROUP,
        };
        *value *= if place % 2 == 0 { 0.5 } else { 1.3 };
    }
}
