//! What a CTA has in shared memory, where its size depends on the model. The generated header has
//! these numbers, and the kernels do not compile if theirs differ.

use kilotok_abi::{Batch, BatchRow, BatchToken, LayerMemory, Memory, Peers};

use crate::buffers::{CONSUMER_WARPS, F32, TILE_TOKENS};
use crate::constants::{Attention, Constants};
use crate::wide_attention;

/// Shared memory of a CTA, as in `step/warp.cuh`.
const SHARED_MAX: usize = 227 * 1024 - 256;
/// Scratch memory of a phase, as in `gemm/split_k.cuh`.
const SCRATCH_BYTES: usize = 36_864;
/// Pages of the ring, see `gemm/ring.cuh`.
pub(crate) const PAGE_BYTES: usize = 52_224;
const PAGES: usize = 3;
/// Stages of partial sums, see `gemm/split_k.cuh`.
const SUM_STAGES: usize = 4;
/// Rows of an owner whose squares have one sum.
const SQUARE_ROWS: usize = 16;
/// Warps' progress, see `PipelineState`.
const PIPELINE_BYTES: usize = 32;
const MBARRIER: usize = 8;
const INT: usize = 4;
const SHORT: usize = 2;
/// Bytes of four registers of a lane, which are stored together.
const FOUR: usize = 16;
const LANES: usize = 32;
/// Keys of a piece and of a chunk, and dimensions of a strip of values.
pub(crate) const PIECE_KEYS: usize = 16;
const CHUNK_KEYS: usize = 128;
const STRIP_DIMS: usize = 32;
const TILE_HEADS: usize = 16;

/// The size of a C++ struct, field by field.
#[derive(Clone, Copy, Debug)]
struct Struct {
    bytes: usize,
    alignment: usize,
}

impl Struct {
    const EMPTY: Self = Self { bytes: 0, alignment: 1 };

    fn field(self, bytes: usize, alignment: usize) -> Self {
        let place = self.bytes.next_multiple_of(alignment);
        Self { bytes: place + bytes, alignment: self.alignment.max(alignment) }
    }

    fn nested(self, other: Self) -> Self {
        self.field(other.size(), other.alignment)
    }

    fn union(self, other: Self) -> Self {
        let bytes = self.bytes.max(other.bytes);
        Self { bytes, alignment: self.alignment.max(other.alignment) }
    }

    fn size(self) -> usize {
        self.bytes.next_multiple_of(self.alignment)
    }
}

impl Constants {
    /// Bytes of `Shared` in `step/warp.cuh`.
    pub(crate) fn shared_bytes(&self) -> usize {
        let tokens = self.launch.tokens_max;
        let ring = Struct::EMPTY
            .field(PAGES * PAGE_BYTES, 128)
            .field(2 * PAGES * MBARRIER, MBARRIER)
            .field(PAGES * INT, INT);
        let sums = Struct::EMPTY
            .field(SCRATCH_BYTES, FOUR)
            .field(2 * SUM_STAGES * MBARRIER, MBARRIER)
            .field(SUM_STAGES * INT, INT);
        let rows = self.owner_rows();
        let norm = Struct::EMPTY.field(rows * F32, FOUR).field(3 * INT, INT);
        let consumers = CONSUMER_WARPS * LANES;
        let apart = (tokens - TILE_TOKENS) * rows * F32 < consumers * FOUR;
        let stream = Struct::EMPTY
            .field(if apart { 2 * consumers * FOUR } else { 0 }, FOUR)
            .field(tokens * (2 * rows + rows / SQUARE_ROWS + 1) * F32, F32)
            .nested(norm)
            .field(size_of::<Peers>(), align_of::<Peers>());
        let batch = size_of::<Batch>() + tokens * (size_of::<BatchToken>() + size_of::<BatchRow>());
        let pairs = self.attentions.len() * (tokens + 3) * INT;
        Struct::EMPTY
            .field(size_of::<Memory>(), align_of::<Memory>())
            .nested(ring)
            .nested(sums)
            .nested(stream)
            .nested(self.routes())
            .field(batch, align_of::<BatchRow>())
            .field(2 * size_of::<LayerMemory>(), align_of::<LayerMemory>())
            .field(pairs, INT)
            .field(3 * MBARRIER, MBARRIER)
            .field(CONSUMER_WARPS * PIPELINE_BYTES, 16)
            .size()
    }

    /// The experts of a step's tokens, for one tile of them or for more: `Routes` in
    /// `phase/router.cuh`, or `GatheredRoutes` in `phase/gathered.cuh`.
    fn routes(&self) -> Struct {
        let kinds = self.feed_forwards.iter();
        let experts = kinds.clone().map(|kind| kind.experts).max().unwrap_or(0);
        let top_k = kinds.map(|kind| kind.top_k.max(1)).max().unwrap_or(1);
        let (routes, rows) = (TILE_TOKENS * top_k, self.launch.tokens_max * top_k);
        let one_tile = Struct::EMPTY
            .field(INT, INT)
            .field(routes * SHORT, SHORT)
            .field(routes * TILE_TOKENS, 16)
            .field(TILE_TOKENS * routes * SHORT, 16)
            .field(TILE_TOKENS * top_k * F32, F32)
            .field(experts.max(1).div_ceil(32) * INT, INT);
        let entries = rows.min(experts + rows / TILE_TOKENS);
        let many = Struct::EMPTY
            .field(INT, INT)
            .field((2 * entries + 1) * SHORT, SHORT)
            .field(rows, 1)
            .field(rows * F32, F32);
        one_tile.union(many)
    }

    /// Bytes of `TileMemory` in `phase/attn_tile.cuh`; 0 for a kind whose keys come through the
    /// ring.
    pub(crate) fn tile_bytes(&self, index: usize) -> usize {
        let Attention { qk_dim, v_dim, window, .. } = self.attentions[index];
        let drafts = index >= self.draft_attention;
        if !drafts && window.is_none() && wide_attention::has_attention(None, qk_dim, v_dim) {
            return 0;
        }
        let of_window = window.map(|keys| (keys + PIECE_KEYS - 1).div_ceil(PIECE_KEYS));
        let short = of_window.filter(|pieces| !drafts && *pieces <= CONSUMER_WARPS);
        let pieces = short.unwrap_or(CHUNK_KEYS / PIECE_KEYS);
        let strips = v_dim.div_ceil(STRIP_DIMS);
        let others = ((CONSUMER_WARPS / strips).min(3) - 1).max(1);
        let queries = qk_dim.div_ceil(STRIP_DIMS) * 2 * LANES * FOUR;
        let weights = pieces * LANES * FOUR;
        let largest = TILE_HEADS * pieces.div_ceil(4) * FOUR;
        queries + weights + largest + others * strips * LANES * (4 * FOUR + 2 * F32)
    }

    /// What does not fit.
    pub(crate) fn shared_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, kind) in self.attentions.iter().enumerate() {
            let bytes = self.tile_bytes(index);
            if bytes > SCRATCH_BYTES {
                let Attention { qk_dim, v_dim, .. } = kind;
                problems.push(format!(
                    "attention with key heads of {qk_dim} and value heads of {v_dim} takes {bytes} \
                     bytes of shared memory, at most {SCRATCH_BYTES}"
                ));
            }
        }
        let bytes = self.shared_bytes();
        if bytes > SHARED_MAX {
            let kinds = self.feed_forwards.iter();
            let experts = kinds.clone().map(|kind| kind.experts).max().unwrap_or(0);
            let top_k = kinds.map(|kind| kind.top_k).max().unwrap_or(0);
            problems.push(format!(
                "{experts} experts, {top_k} of a token, and {} kinds of attention take {bytes} \
                 bytes of shared memory, at most {SHARED_MAX}",
                self.attentions.len()
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use kilotok_model::FeedForwardSpec;
    use kilotok_testkit::Toy;

    use super::*;
    use crate::constants::Launch;

    /// Few CTAs, each of which owns many rows.
    const LAUNCH: Launch = Launch { ranks: 1, grid: 3, tokens_max: 64, page_tokens: 8 };

    #[test]
    fn what_shared_memory_does_not_hold_is_refused_in_numbers() {
        let mut spec = Toy::pro_fp4().spec();
        for layer in &mut spec.layers {
            (layer.attention.qk_dim, layer.attention.v_dim) = (448, 128);
        }
        let said = Constants::new(&spec, LAUNCH).unwrap_err().to_string();
        assert!(said.contains("key heads of 448 and value heads of 128 takes 37376"), "{said}");
        let mut spec = Toy::pro_fp4().spec();
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            layer.attention.value_scale = index as f32;
            if let FeedForwardSpec::Experts(experts) = &mut layer.feed_forward {
                (experts.count, experts.top_k) = (816, 16);
            }
        }
        let said = Constants::new(&spec, LAUNCH).unwrap_err().to_string();
        assert!(said.contains("816 experts, 16 of a token, and 5 kinds of attention"), "{said}");
    }
}
