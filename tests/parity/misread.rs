//! Ways to read a checkpoint wrongly, for `traps.rs`.

use kilotok_model::LayerWeight::{self, InputNorm, Key, Output, PostNorm, Qkv, Query, Sinks};
use kilotok_model::{
    AttentionSpec, Dtype, FP8_TILE, MXFP4_GROUP, Part, Ranks, Shard, Slice, WeightDecl, WeightId,
    declare,
};
use kilotok_weights::{Checkpoint, Tensor, TensorData, WeightError, WeightSource};

/// A checkpoint that one rank reads in a particular way.
pub(crate) struct Misread<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) read: Read,
}

pub(crate) type Read = fn(&Reading<'_>) -> Tensor;

/// The reading of a weight.
pub(crate) struct Reading<'a> {
    checkpoint: &'a Checkpoint,
    decl: &'a WeightDecl,
    slice: &'a Slice,
}

impl WeightSource for Misread<'_> {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        Ok((self.read)(&Reading { checkpoint: self.checkpoint, decl, slice }))
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        // A mistake may ask for a weight that does not exist.
        Ok(self.checkpoint.dtype(decl).unwrap_or(Dtype::F32))
    }
}

impl Reading<'_> {
    fn weight(&self) -> Option<LayerWeight> {
        match self.decl.id {
            WeightId::Layer(_, _, weight) | WeightId::Expert(_, _, weight) => Some(weight),
            _ => None,
        }
    }

    /// The attention of the target's layer to which the weight belongs.
    fn attention(&self) -> Option<&AttentionSpec> {
        match self.decl.id {
            WeightId::Layer(Part::Target, layer, _) => {
                Some(&self.checkpoint.spec().layers[layer].attention)
            }
            _ => None,
        }
    }

    /// All of another weight, as stored.
    fn other(&self, id: WeightId) -> Tensor {
        let decls = declare(self.checkpoint.spec());
        let decl = decls.iter().find(|decl| decl.id == id).unwrap();
        self.checkpoint.read(decl, &decl.slice(Ranks::ALONE)).unwrap()
    }

    /// Other rows of the same weight, as stored.
    fn rows(&self, rows: impl Iterator<Item = usize>) -> Tensor {
        let slice = Slice { rows: rows.map(|row| row..row + 1).collect(), ..self.slice.clone() };
        self.checkpoint.read(self.decl, &slice).unwrap()
    }
}

/// Reads correctly.
pub(crate) fn stored(reading: &Reading<'_>) -> Tensor {
    reading.checkpoint.read(reading.decl, reading.slice).unwrap()
}

/// Multiplies some weights by a factor.
pub(crate) fn scaled(reading: &Reading<'_>, factors: &[(LayerWeight, f32)]) -> Tensor {
    let factor = factors.iter().find(|(weight, _)| Some(*weight) == reading.weight());
    match factor {
        Some((_, factor)) => changed(&stored(reading), |value| value * factor),
        None => stored(reading),
    }
}

pub(crate) fn norms_plus_one(reading: &Reading<'_>) -> Tensor {
    match (reading.decl.id, reading.weight()) {
        (WeightId::FinalNorm, _) | (_, Some(InputNorm | PostNorm)) => {
            changed(&stored(reading), |value| value + 1.0)
        }
        _ => stored(reading),
    }
}

/// A sink of zero in layers for which the file has none.
pub(crate) fn sinks_or_zeros(reading: &Reading<'_>) -> Tensor {
    match (reading.weight(), reading.attention()) {
        (Some(Sinks), Some(attention)) if !attention.sinks => {
            let (rows, cols) = (1, attention.q_heads);
            Tensor { rows, cols, data: TensorData::F32(vec![0.0; cols]) }
        }
        _ => stored(reading),
    }
}

/// Gives each sink the share of two such sinks.
pub(crate) fn sinks_twice(reading: &Reading<'_>) -> Tensor {
    match reading.weight() {
        Some(Sinks) => changed(&stored(reading), |value| value + std::f32::consts::LN_2),
        _ => stored(reading),
    }
}

/// Swaps dims as if the rotation paired 2 i and 2 i + 1 instead of i and i + half.
pub(crate) fn neighbours_paired(reading: &Reading<'_>) -> Tensor {
    let stored = stored(reading);
    let (Some(Query | Key | Qkv), Some(attention)) = (reading.weight(), reading.attention()) else {
        return stored;
    };
    let AttentionSpec { q_heads, kv_heads, qk_dim, rope, .. } = attention;
    let half = rope.dims / 2;
    picked(&stored, |row, col| {
        let dim = row % qk_dim;
        let is_rotated = row < (q_heads + kv_heads) * qk_dim && dim < rope.dims;
        let from = if is_rotated { dim % half * 2 + dim / half } else { dim };
        (row - dim + from, col)
    })
}

/// Divides scores by the root of a value's width instead of a key's.
pub(crate) fn scored_by_v_dim(reading: &Reading<'_>) -> Tensor {
    match (reading.weight(), reading.attention()) {
        (Some(Query), Some(AttentionSpec { qk_dim, v_dim, .. })) => {
            let ratio = (*qk_dim as f32 / *v_dim as f32).sqrt();
            changed(&stored(reading), |value| value * ratio)
        }
        _ => stored(reading),
    }
}

/// Orders query heads so that head j uses the K/V head j % `kv_heads`.
pub(crate) fn heads_in_turn(reading: &Reading<'_>) -> Tensor {
    let stored = stored(reading);
    let (Some(weight), Some(attention)) = (reading.weight(), reading.attention()) else {
        return stored;
    };
    let AttentionSpec { q_heads, kv_heads, qk_dim, v_dim, .. } = *attention;
    let group = q_heads / kv_heads;
    let from = |place: usize, dim: usize| {
        let head = place / dim;
        let other = if head < q_heads { head % group * kv_heads + head / group } else { head };
        other * dim + place % dim
    };
    match weight {
        Query | Qkv => picked(&stored, |row, col| (from(row, qk_dim), col)),
        Output => picked(&stored, |row, col| (row, from(col, v_dim))),
        Sinks => picked(&stored, |row, col| (row, from(col, 1))),
        _ => stored,
    }
}

/// Takes experts in the order of their names: 0, 1, 10, 11, 2.
pub(crate) fn experts_by_name(reading: &Reading<'_>) -> Tensor {
    let WeightId::Expert(layer, expert, weight) = reading.decl.id else { return stored(reading) };
    let ids = declare(reading.checkpoint.spec()).into_iter().map(|decl| decl.id);
    let mut experts: Vec<_> = ids
        .filter_map(|id| match id {
            WeightId::Expert(other, expert, _) if other == layer => Some(expert),
            _ => None,
        })
        .collect();
    experts.sort_by_key(usize::to_string);
    experts.dedup();
    reading.other(WeightId::Expert(layer, experts[expert], weight))
}

/// Reads all query heads, then all key heads, then all value heads.
pub(crate) fn as_one_chunk(reading: &Reading<'_>) -> Tensor {
    let mut decl = reading.decl.clone();
    if let Shard::Qkv { chunks, .. } = &mut decl.shard {
        *chunks = 1;
    }
    reading.rows(decl.slice(Ranks::ALONE).rows.into_iter().flatten())
}

/// Assumes a chunk for each K/V head of the layer; window layers have more of them than chunks.
pub(crate) fn chunks_by_own_heads(reading: &Reading<'_>) -> Tensor {
    let mut decl = reading.decl.clone();
    if let Shard::Qkv { chunks, kv_heads, .. } = &mut decl.shard {
        *chunks = *kv_heads;
    }
    reading.rows(decl.slice(Ranks::ALONE).rows.into_iter().flatten())
}

/// Scales row r of the whole fused matrix by scale row r / 128.
pub(crate) fn scale_rows_run_on(reading: &Reading<'_>) -> Tensor {
    let mut stored = stored(reading);
    let (Some(Qkv), TensorData::Fp8 { scales, .. }) = (reading.weight(), &mut stored.data) else {
        return stored;
    };
    let under = |scale_row| {
        let mut rows = 0..reading.decl.rows();
        rows.find(|row| reading.decl.format.scale_row(*row) == scale_row).unwrap()
    };
    let rows = reading.slice.rows.iter().cloned().flatten();
    let wrong = reading.rows(rows.map(|row| under(row / FP8_TILE)));
    if let TensorData::Fp8 { scales: wrong, .. } = wrong.data {
        *scales = wrong;
    }
    stored
}

/// Takes the name `weight_scale_inv` literally, and divides by the scale.
pub(crate) fn scales_divide(reading: &Reading<'_>) -> Tensor {
    let mut stored = stored(reading);
    if let TensorData::Fp8 { scales, .. } = &mut stored.data {
        for scale in scales {
            *scale = scale.recip();
        }
    }
    stored
}

/// Takes the next scale along each row.
pub(crate) fn scale_of_next_tile(reading: &Reading<'_>) -> Tensor {
    let mut stored = stored(reading);
    if let TensorData::Fp8 { scales, .. } = &mut stored.data {
        for row in scales.chunks_exact_mut(stored.cols.div_ceil(FP8_TILE)) {
            row.rotate_left(1);
        }
    }
    stored
}

/// Takes the even column from the high nibble.
pub(crate) fn nibbles_swapped(reading: &Reading<'_>) -> Tensor {
    let mut stored = stored(reading);
    if let TensorData::Mxfp4 { codes, .. } = &mut stored.data {
        for code in codes {
            *code = code.rotate_left(4);
        }
    }
    stored
}

/// Takes the next scale along each row.
pub(crate) fn scale_of_next_group(reading: &Reading<'_>) -> Tensor {
    let mut stored = stored(reading);
    if let TensorData::Mxfp4 { scales, .. } = &mut stored.data {
        for row in scales.chunks_exact_mut(stored.cols / MXFP4_GROUP) {
            row.rotate_left(1);
        }
    }
    stored
}

pub(crate) fn mask_of_table(reading: &Reading<'_>) -> Tensor {
    let (WeightId::DraftMask, Some(drafter)) =
        (reading.decl.id, &reading.checkpoint.spec().drafter)
    else {
        return stored(reading);
    };
    let table = reading.other(WeightId::Embedding);
    let mut mask = vec![0.0; table.cols];
    table.decode_row(drafter.mask_token as usize, &mut mask);
    Tensor { rows: 1, cols: table.cols, data: TensorData::F32(mask) }
}

pub(crate) fn norm_of_target(reading: &Reading<'_>) -> Tensor {
    match reading.decl.id {
        WeightId::DraftNorm => reading.other(WeightId::FinalNorm),
        _ => stored(reading),
    }
}

/// Leaves the drafter's biases out.
pub(crate) fn drafter_unbiased(reading: &Reading<'_>) -> Tensor {
    let is_bias = reading.decl.name.rsplit('.').next() == Some("bias");
    if reading.decl.part == Part::Drafter && is_bias {
        changed(&stored(reading), |_| 0.0)
    } else {
        stored(reading)
    }
}

/// Changes every value.
fn changed(tensor: &Tensor, change: impl Fn(f32) -> f32) -> Tensor {
    let values = values(tensor).into_iter().map(change).collect();
    Tensor { data: TensorData::F32(values), ..*tensor }
}

/// Takes the value at each row and column from another place.
fn picked(tensor: &Tensor, from: impl Fn(usize, usize) -> (usize, usize)) -> Tensor {
    let (values, cols) = (values(tensor), tensor.cols);
    let at = |place: usize| {
        let (row, col) = from(place / cols, place % cols);
        values[row * cols + col]
    };
    Tensor { data: TensorData::F32((0..values.len()).map(at).collect()), ..*tensor }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    for (row, out) in values.chunks_exact_mut(tensor.cols).enumerate() {
        tensor.decode_row(row, out);
    }
    values
}
