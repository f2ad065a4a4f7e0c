//! Turns weights from the checkpoint's layout into the kernels'. Independent of files and devices:
//! a weight comes in, and bytes for an offset of a buffer come out.

mod chunk;
mod matrix;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use half::bf16;
use half::slice::HalfFloatSliceExt;
use kilotok_model::{LayerWeight, Part, RouterDtype, WeightDecl, WeightId};
use kilotok_weights::{Tensor, TensorData};

use self::chunk::{STEP_COLUMNS, STEP_VALUES, router_place};
use crate::buffers::{Buffer, CHUNK_ROWS, LayerBuffer, Matrix};
use crate::constants::{Constants, LayerKinds};

/// Bytes for an offset of a buffer. Those of all weights together fill every buffer.
#[derive(Debug)]
pub(crate) struct Repacked {
    pub(crate) buffer: Buffer,
    pub(crate) offset: usize,
    pub(crate) bytes: Vec<u8>,
}

/// A weight that the kernels cannot read.
#[derive(Debug, thiserror::Error)]
#[error("{tensor} {reason}")]
pub(crate) struct RepackError {
    pub(crate) tensor: String,
    pub(crate) reason: String,
}

type Parts = BTreeMap<(Buffer, usize), Vec<Option<Tensor>>>;

/// Repacks one rank's weights, which may come in any order and from many threads.
pub(crate) struct Repacker<'a> {
    constants: &'a Constants,
    /// Tensors that become one matrix, by buffer and offset in it, until all have arrived.
    parts: Mutex<Parts>,
}

impl<'a> Repacker<'a> {
    pub(crate) fn new(constants: &'a Constants) -> Self {
        Self { constants, parts: Mutex::default() }
    }

    /// The bytes of a rank's part of a weight; none while other tensors of the same matrix are
    /// missing.
    ///
    /// # Errors
    /// A weight that the kernels cannot read.
    pub(crate) fn repack(
        &self,
        decl: &WeightDecl,
        tensor: Tensor,
    ) -> Result<Option<Repacked>, RepackError> {
        let as_vector = |buffer| Ok(Some(whole(buffer, vector(&tensor))));
        let repacked = match decl.id {
            WeightId::Embedding => Ok(Some(whole(Buffer::Embedding, bf16_bytes(&tensor)))),
            WeightId::FinalNorm => as_vector(Buffer::FinalNorm),
            WeightId::DraftContextNorm => as_vector(Buffer::DraftContextNorm),
            WeightId::DraftNorm => as_vector(Buffer::DraftNorm),
            WeightId::DraftMask => as_vector(Buffer::DraftMask),
            WeightId::Head => plain(Buffer::Head, 0, self.constants.head(), tensor),
            WeightId::DraftFc => plain(Buffer::DraftFc, 0, self.constants.fuse(), tensor),
            WeightId::Layer(part, index, weight) => self.layer(part, index, weight, tensor),
            WeightId::Expert(index, expert, weight) => {
                self.network(Part::Target, index, expert, weight, tensor)
            }
        };
        repacked.map_err(|reason| RepackError { tensor: decl.name.clone(), reason })
    }

    fn kinds(&self, part: Part, index: usize) -> LayerKinds {
        match part {
            Part::Target => self.constants.layers[index],
            Part::Drafter => self.constants.draft_layers[index],
        }
    }

    fn layer(
        &self,
        part: Part,
        index: usize,
        weight: LayerWeight,
        tensor: Tensor,
    ) -> Result<Option<Repacked>, String> {
        let kind = self.kinds(part, index).attention;
        let buffer = |buffer| Buffer::Layer(part, index, buffer);
        let as_vector = |place| Ok(Some(whole(buffer(place), vector(&tensor))));
        match weight {
            LayerWeight::InputNorm => as_vector(LayerBuffer::InputNorm),
            LayerWeight::QueryNorm => as_vector(LayerBuffer::QueryNorm),
            LayerWeight::KeyNorm => as_vector(LayerBuffer::KeyNorm),
            LayerWeight::Sinks => as_vector(LayerBuffer::Sinks),
            LayerWeight::PostNorm => as_vector(LayerBuffer::PostNorm),
            LayerWeight::RouterBias | LayerWeight::RouterCorrection => {
                as_vector(LayerBuffer::RouterBias)
            }
            LayerWeight::QueryBias
            | LayerWeight::KeyBias
            | LayerWeight::ValueBias
            | LayerWeight::OutputBias
            | LayerWeight::GateBias
            | LayerWeight::UpBias
            | LayerWeight::DownBias => Ok(self.biases(part, index, weight, tensor)),
            LayerWeight::Router => {
                let bytes = self.router(self.kinds(part, index).feed_forward, &tensor);
                Ok(Some(whole(buffer(LayerBuffer::Router), bytes)))
            }
            LayerWeight::Output => {
                plain(buffer(LayerBuffer::Output), 0, self.constants.output(kind), tensor)
            }
            LayerWeight::Qkv => {
                let attention = &self.constants.attentions[kind];
                let queries = attention.q_heads * attention.qk_dim;
                let mut rows = matrix::fused(tensor.rows, queries, attention.key_row());
                matrix::pair(&mut rows, attention);
                let bytes = matrix::pack(self.constants.qkv(kind), &[tensor], &rows)?;
                Ok(Some(whole(buffer(LayerBuffer::Qkv), bytes)))
            }
            LayerWeight::Query | LayerWeight::Key | LayerWeight::Value => {
                let place = weight as usize - LayerWeight::Query as usize;
                let qkv = buffer(LayerBuffer::Qkv);
                let Some(tensors) = self.gather(qkv, 0, place, 3, tensor) else { return Ok(None) };
                let mut rows = matrix::stacked(&tensors, CHUNK_ROWS);
                matrix::pair(&mut rows, &self.constants.attentions[kind]);
                let bytes = matrix::pack(self.constants.qkv(kind), &tensors, &rows)?;
                Ok(Some(whole(qkv, bytes)))
            }
            LayerWeight::Gate | LayerWeight::Up | LayerWeight::Down => {
                self.network(part, index, 0, weight, tensor)
            }
        }
    }

    /// Biases of a layer's matrices.
    fn biases(
        &self,
        part: Part,
        index: usize,
        weight: LayerWeight,
        tensor: Tensor,
    ) -> Option<Repacked> {
        let LayerKinds { attention, feed_forward } = self.kinds(part, index);
        let buffer = |buffer| Buffer::Layer(part, index, buffer);
        let repacked = match weight {
            LayerWeight::QueryBias | LayerWeight::KeyBias | LayerWeight::ValueBias => {
                let place = weight as usize - LayerWeight::QueryBias as usize;
                let bias = buffer(LayerBuffer::QkvBias);
                let tensors = self.gather(bias, 0, place, 3, tensor)?;
                whole(bias, self.qkv_bias(attention, &tensors))
            }
            LayerWeight::GateBias | LayerWeight::UpBias => {
                let bias = buffer(LayerBuffer::GateUpBias);
                let place = usize::from(weight == LayerWeight::UpBias);
                let tensors = self.gather(bias, 0, place, 2, tensor)?;
                let [gates, ups] = [0, 1].map(|index| all_values(&tensors[index]));
                let pairs = gates.into_iter().zip(ups).flat_map(|(gate, up)| [gate, up]);
                whole(bias, f32_bytes(&pairs.collect::<Vec<_>>()))
            }
            LayerWeight::DownBias => {
                whole(buffer(LayerBuffer::DownBias), self.down_bias(feed_forward, &tensor))
            }
            _ => {
                let mut bias = values(&tensor);
                bias.resize(self.constants.output(attention).padded_rows(), 0.0);
                whole(buffer(LayerBuffer::OutputBias), f32_bytes(&bias))
            }
        };
        Some(repacked)
    }

    /// The biases of q, k and v in the order of the matrix's rows, with zeros up to its last unit.
    fn qkv_bias(&self, kind: usize, tensors: &[Tensor]) -> Vec<u8> {
        let mut rows = matrix::in_turn(tensors.iter().map(|tensor| tensor.cols), CHUNK_ROWS);
        matrix::pair(&mut rows, &self.constants.attentions[kind]);
        let values: Vec<_> = tensors.iter().map(values).collect();
        let mut bias: Vec<_> = (rows.into_iter())
            .map(|source| source.map_or(0.0, |(tensor, row)| values[tensor][row]))
            .collect();
        bias.resize(self.constants.qkv(kind).padded_rows(), 0.0);
        f32_bytes(&bias)
    }

    /// The biases of `down` of all experts; zeros on ranks that have none of them.
    fn down_bias(&self, kind: usize, tensor: &Tensor) -> Vec<u8> {
        let mut values = all_values(tensor);
        values.resize(self.constants.feed_forwards[kind].experts * self.constants.hidden, 0.0);
        f32_bytes(&values)
    }

    /// Gate, up or down of an expert or of the dense network.
    fn network(
        &self,
        part: Part,
        index: usize,
        expert: usize,
        weight: LayerWeight,
        tensor: Tensor,
    ) -> Result<Option<Repacked>, String> {
        let kind = self.kinds(part, index).feed_forward;
        if weight == LayerWeight::Down {
            let buffer = Buffer::Layer(part, index, LayerBuffer::Down);
            let matrix = self.constants.down(kind);
            return plain(buffer, expert * matrix.bytes(), matrix, tensor);
        }
        let buffer = Buffer::Layer(part, index, LayerBuffer::GateUp);
        let matrix = self.constants.gate_up(kind);
        let offset = expert * matrix.bytes();
        let place = usize::from(weight == LayerWeight::Up);
        let Some(tensors) = self.gather(buffer, offset, place, 2, tensor) else { return Ok(None) };
        let rows = matrix::interleaved(self.constants.feed_forwards[kind].width);
        let bytes = matrix::pack(matrix, &tensors, &rows)?;
        Ok(Some(Repacked { buffer, offset, bytes }))
    }

    /// All `count` tensors of a matrix, once the last one has arrived.
    fn gather(
        &self,
        buffer: Buffer,
        offset: usize,
        place: usize,
        count: usize,
        tensor: Tensor,
    ) -> Option<Vec<Tensor>> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = parts.entry((buffer, offset)).or_default();
        own.resize(count, None);
        own[place] = Some(tensor);
        if own.contains(&None) {
            return None;
        }
        parts.remove(&(buffer, offset))?.into_iter().collect()
    }

    /// `[owner units][tiles of 16 experts][steps of 16 columns]`: an owner multiplies its part of
    /// the stream with all experts' columns. Zeros after the last column and expert.
    fn router(&self, kind: usize, tensor: &Tensor) -> Vec<u8> {
        let bf16 = self.constants.feed_forwards[kind].router_dtype == RouterDtype::Bf16;
        let width = self.constants.router_width(kind);
        let owner_rows = self.constants.owner_rows();
        let mut values = vec![0.0; self.constants.owner_units() * owner_rows * width];
        let mut row = vec![0.0; tensor.cols];
        for expert in 0..tensor.rows {
            tensor.decode_row(expert, &mut row);
            for (column, value) in row.iter().enumerate() {
                let (unit, column) = (column / owner_rows, column % owner_rows);
                let tile = unit * (width / CHUNK_ROWS) + expert / CHUNK_ROWS;
                let step = tile * (owner_rows / STEP_COLUMNS) + column / STEP_COLUMNS;
                let place = router_place(expert % CHUNK_ROWS, column % STEP_COLUMNS, bf16);
                values[step * STEP_VALUES + place] = *value;
            }
        }
        if bf16 {
            values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
        } else {
            f32_bytes(&values)
        }
    }
}

fn whole(buffer: Buffer, bytes: Vec<u8>) -> Repacked {
    Repacked { buffer, offset: 0, bytes }
}

/// A tensor's rows in their own order.
fn plain(
    buffer: Buffer,
    offset: usize,
    matrix: Matrix,
    tensor: Tensor,
) -> Result<Option<Repacked>, String> {
    let tensors = [tensor];
    let bytes = matrix::pack(matrix, &tensors, &matrix::stacked(&tensors, 1))?;
    Ok(Some(Repacked { buffer, offset, bytes }))
}

fn vector(tensor: &Tensor) -> Vec<u8> {
    f32_bytes(&values(tensor))
}

/// The values of a vector; zeros on ranks that have none of them.
fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.cols];
    if tensor.rows > 0 {
        tensor.decode_row(0, &mut values);
    }
    values
}

/// The values of all rows, one row after the other.
fn all_values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    for (row, values) in values.chunks_exact_mut(tensor.cols).enumerate() {
        tensor.decode_row(row, values);
    }
    values
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Rows in BF16, in their own order.
fn bf16_bytes(tensor: &Tensor) -> Vec<u8> {
    if let TensorData::Bf16(values) = &tensor.data {
        return bytemuck::cast_slice(values.reinterpret_cast()).to_vec();
    }
    let mut row = vec![0.0; tensor.cols];
    let mut bytes = Vec::with_capacity(tensor.rows * tensor.cols * 2);
    for index in 0..tensor.rows {
        tensor.decode_row(index, &mut row);
        bytes.extend(row.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()));
    }
    bytes
}
