//! Chunks of 16 rows x 64 columns, bit for bit as `kernels/include/kilotok/layout/chunk.cuh` reads
//! them. Lane 4g + q of a warp holds rows g and g + 8; of each step of 16 columns it holds columns
//! 2q and 2q + 1, then 2q + 8 and 2q + 9: registers a0 (row g), a1 (row g + 8), a2 and a3.

use half::bf16;
use kilotok_model::{FP8_TILE, MXFP4_GROUP};
use kilotok_weights::{Tensor, TensorData};

use crate::buffers::{CHUNK_COLUMNS, CHUNK_ROWS};

const LANES: usize = 32;
/// Rows g and g + 8 are held by the same lanes.
const HALF_ROWS: usize = CHUNK_ROWS / 2;
/// Columns of a step, and how far apart a lane's pairs of them are.
pub(super) const STEP_COLUMNS: usize = 16;
const PAIR_DISTANCE: usize = 8;
pub(super) const STEP_VALUES: usize = CHUNK_ROWS * STEP_COLUMNS;
const GROUPS: usize = CHUNK_COLUMNS / MXFP4_GROUP;
/// Codes become BF16 numbers by moving their bits, which makes them smaller than the values that
/// they stand for. Activations and scales compensate for this. The part of scales is 2^20 for FP8,
/// and for MXFP4 26 in the exponent, see `chunk.cuh`.
const TILE_FACTOR: f32 = 1_048_576.0;
const GROUP_EXPONENT: u8 = 26;
/// Larger scales would be infinite in F32.
pub(super) const TILE_SCALE_MAX: f32 = f32::MAX / TILE_FACTOR;
pub(super) const GROUP_SCALE_MAX: u8 = 254 - GROUP_EXPONENT;

/// A chunk under construction: rows are set in the checkpoint's order, then written in the
/// kernels'.
pub(super) trait Chunk {
    /// A chunk of zeros.
    fn new() -> Self;

    /// Sets row `place` from a tensor's row, from a column on, with at most as many columns as
    /// there are; false if the tensor has another format.
    fn set(&mut self, place: usize, tensor: &Tensor, row: usize, column: usize) -> bool;

    /// Writes to `out`, which has a chunk's size.
    fn write(&self, out: &mut [u8]);
}

/// The index of a value among 16 rows and one step of columns of a router, see `Router` in
/// `phase/router.cuh`: BF16 lane by lane, registers a0 to a3; F32 a0 and a1 of all lanes, two
/// values each, then a2 and a3.
pub(super) fn router_place(row: usize, column: usize, bf16: bool) -> usize {
    let (lane, half) = (row % HALF_ROWS * 4 + column % PAIR_DISTANCE / 2, column / PAIR_DISTANCE);
    let in_half = row / HALF_ROWS * 2 + column % 2;
    if bf16 { lane * 8 + half * 4 + in_half } else { half * LANES * 4 + lane * 4 + in_half }
}

/// The part of a row that a chunk holds.
fn part(tensor: &Tensor, row: usize, column: usize) -> std::ops::Range<usize> {
    let end = tensor.cols.min(column + CHUNK_COLUMNS);
    row * tensor.cols + column.min(end)..row * tensor.cols + end
}

pub(super) struct FloatChunk {
    values: [[u16; CHUNK_COLUMNS]; CHUNK_ROWS],
}

impl Chunk for FloatChunk {
    fn new() -> Self {
        Self { values: [[0; CHUNK_COLUMNS]; CHUNK_ROWS] }
    }

    fn set(&mut self, place: usize, tensor: &Tensor, row: usize, column: usize) -> bool {
        let part = part(tensor, row, column);
        let values = &mut self.values[place];
        values[part.len()..].fill(0);
        match &tensor.data {
            TensorData::Bf16(stored) => {
                for (value, stored) in values.iter_mut().zip(&stored[part]) {
                    *value = stored.to_bits();
                }
            }
            TensorData::F32(stored) => {
                for (value, stored) in values.iter_mut().zip(&stored[part]) {
                    *value = bf16::from_f32(*stored).to_bits();
                }
            }
            TensorData::Fp8 { .. } | TensorData::Mxfp4 { .. } => return false,
        }
        true
    }

    fn write(&self, out: &mut [u8]) {
        for (step, out) in out.chunks_exact_mut(LANES * 16).enumerate() {
            for (lane, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let (g, column) = (lane / 4, step * STEP_COLUMNS + lane % 4 * 2);
                for (register, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let row = &self.values[g + register % 2 * HALF_ROWS];
                    let at = column + register / 2 * PAIR_DISTANCE;
                    let [low, high] = [row[at].to_le_bytes(), row[at + 1].to_le_bytes()];
                    *out = [low[0], low[1], high[0], high[1]];
                }
            }
        }
    }
}

pub(super) struct Fp8Chunk {
    codes: [[u8; CHUNK_COLUMNS]; CHUNK_ROWS],
    scales: [f32; CHUNK_ROWS],
}

impl Chunk for Fp8Chunk {
    fn new() -> Self {
        Self { codes: [[0; CHUNK_COLUMNS]; CHUNK_ROWS], scales: [0.0; CHUNK_ROWS] }
    }

    fn set(&mut self, place: usize, tensor: &Tensor, row: usize, column: usize) -> bool {
        let TensorData::Fp8 { codes, scales, first_col } = &tensor.data else { return false };
        let part = part(tensor, row, column);
        let own = &mut self.codes[place];
        own[part.len()..].fill(0);
        own[..part.len()].copy_from_slice(&codes[part.clone()]);
        let tiles = scales.len() / tensor.rows;
        let tile = (first_col + column) / FP8_TILE - first_col / FP8_TILE;
        self.scales[place] =
            if part.is_empty() { 0.0 } else { scales[row * tiles + tile] * TILE_FACTOR };
        true
    }

    fn write(&self, out: &mut [u8]) {
        let (codes, scales) = out.split_at_mut(CHUNK_ROWS * CHUNK_COLUMNS);
        for (pair, out) in codes.chunks_exact_mut(LANES * 16).enumerate() {
            for (lane, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let (g, column) = (lane / 4, pair * 2 * STEP_COLUMNS + lane % 4 * 2);
                let (low, high) = (&self.codes[g], &self.codes[g + HALF_ROWS]);
                // A word is two registers of a step: a0 and a1, or a2 and a3.
                for (word, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let at = column + word * PAIR_DISTANCE;
                    let halves = [fp8_half(low[at], high[at]), fp8_half(low[at + 1], high[at + 1])];
                    *out = (u32::from(halves[1]) << 16 | u32::from(halves[0])).to_le_bytes();
                }
            }
        }
        for (out, scale) in scales.as_chunks_mut::<4>().0.iter_mut().zip(&self.scales) {
            *out = scale.to_le_bytes();
        }
    }
}

/// Half a word of two registers' codes. A mask decodes the first, two shifts the other.
fn fp8_half(first: u8, second: u8) -> u16 {
    let (first, second) = (u16::from(first), u16::from(second));
    let own = (first & 0x80) << 8 | (first & 0x7f) << 4;
    own | (second & 0x80) << 4 | (second & 0x70) << 8 | (second & 0x0f)
}

pub(super) struct Mxfp4Chunk {
    /// Two codes a byte, the even column low.
    codes: [[u8; CHUNK_COLUMNS / 2]; CHUNK_ROWS],
    scales: [[u8; GROUPS]; CHUNK_ROWS],
}

impl Chunk for Mxfp4Chunk {
    fn new() -> Self {
        Self { codes: [[0; CHUNK_COLUMNS / 2]; CHUNK_ROWS], scales: [[0; GROUPS]; CHUNK_ROWS] }
    }

    fn set(&mut self, place: usize, tensor: &Tensor, row: usize, column: usize) -> bool {
        let TensorData::Mxfp4 { codes, scales } = &tensor.data else { return false };
        let part = part(tensor, row, column);
        let (own_codes, own_scales) = (&mut self.codes[place], &mut self.scales[place]);
        let codes = &codes[part.start / 2..part.end / 2];
        own_codes[codes.len()..].fill(0);
        own_codes[..codes.len()].copy_from_slice(codes);
        let scales = &scales[part.start / MXFP4_GROUP..part.end / MXFP4_GROUP];
        own_scales[scales.len()..].fill(0);
        for (own, scale) in own_scales.iter_mut().zip(scales) {
            *own = scale + GROUP_EXPONENT;
        }
        true
    }

    fn write(&self, out: &mut [u8]) {
        let (codes, scales) = out.split_at_mut(CHUNK_ROWS * CHUNK_COLUMNS / 2);
        for (lane, out) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (g, q) = (lane / 4, lane % 4);
            let (low, high) = (&self.codes[g], &self.codes[g + HALF_ROWS]);
            for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let mut words = 0;
                for (step, places) in PLACES.iter().enumerate() {
                    let at = (group * 2 + step) * STEP_COLUMNS / 2 + q;
                    let next = at + PAIR_DISTANCE / 2;
                    for (places, code) in
                        places.iter().zip([low[at], high[at], low[next], high[next]])
                    {
                        words |= places[usize::from(code)];
                    }
                }
                *out = words.to_le_bytes();
            }
        }
        for (g, out) in scales.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let [low, high] = [self.scales[g], self.scales[g + HALF_ROWS]];
            *out = [low[0], low[1], high[0], high[1]];
        }
    }
}

/// The bits of the two codes of a byte in the words of two steps, the first word in the low half,
/// by step and register.
static PLACES: [[[u64; 256]; 4]; 2] = places();

const fn places() -> [[[u64; 256]; 4]; 2] {
    let mut places = [[[0; 256]; 4]; 2];
    let mut at = 0;
    while at < 2 * 4 * 256 {
        let (step, register, byte) = (at / 1024, at / 256 % 4, at % 256);
        places[step][register][byte] =
            place(step, register, 0, byte as u64 % 16) | place(step, register, 1, byte as u64 / 16);
        at += 1;
    }
    places
}

/// The bits of a code in the words of its two steps. The codes of three registers are at positions
/// of a word from which one shift decodes sign and magnitude; the remaining bits of both words hold
/// the fourth codes. `half` is which of two neighbouring columns it is.
const fn place(step: usize, register: usize, half: u32, code: u64) -> u64 {
    let (sign, magnitude) = (code >> 3, code & 7);
    let first = 16 * half;
    match (step, register) {
        (0, 3) => sign << (first + 9) | (magnitude & 3) << first | (magnitude >> 2) << (32 + first),
        (_, 3) => {
            sign << (32 + (first + 17) % 32)
                | (magnitude & 1) << (first + 10)
                | (magnitude >> 1) << (32 + first + 9)
        }
        _ => {
            let (sign_at, magnitude_at) = ([15, 11, 21][register], [6, 2, 12][register]);
            let word = 32 * step as u32;
            sign << (word + (first + sign_at) % 32) | magnitude << (word + first + magnitude_at)
        }
    }
}
