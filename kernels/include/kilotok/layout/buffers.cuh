// The layout of a step's buffers, and of keys and values in a page of the KV cache
// (in_group_offset). Sizes follow from the model's constants; the host plans the
// memory with the same formulas (crates/cuda/src/buffers.rs).
#pragma once

#include "kilotok/gemm/matrix.cuh"

namespace kilotok {

// The q, k and v projections as one matrix: q rows, zeros up to a multiple of 16 so that the k and
// v rows can be multiplied alone, k rows, v rows.
template <int KIND>
struct QkvRows {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int KEY = align_up(A.q_heads * A.qk_dim, 16);
  static constexpr int VALUE = KEY + A.kv_heads * A.qk_dim;
  static constexpr int COUNT = VALUE + A.kv_heads * A.v_dim;
};

template <int KIND>
using QkvMatrix = Matrix<ATTENTIONS[KIND].format, QkvRows<KIND>::COUNT, HIDDEN, 1>;
// Its rows of keys and values, from row `QkvRows::KEY` on.
template <int KIND>
using KvMatrix =
    Matrix<ATTENTIONS[KIND].format, QkvRows<KIND>::COUNT - QkvRows<KIND>::KEY, HIDDEN, 1>;

// A type with every constant that the code of a projection depends on. Kinds of attention with
// equal constants have the same type, and so share the code.
template <Format F, int Q_HEADS, int KV_HEADS, int QK_DIM, int V_DIM, int ROPE_PAIRS, bool PAIRED,
          bool BIAS>
struct Projection {};
template <int KIND>
using ProjectionOf =
    Projection<ATTENTIONS[KIND].format, ATTENTIONS[KIND].q_heads, ATTENTIONS[KIND].kv_heads,
               ATTENTIONS[KIND].qk_dim, ATTENTIONS[KIND].v_dim, ATTENTIONS[KIND].rope_pairs,
               ATTENTIONS[KIND].paired, ATTENTIONS[KIND].bias>;

template <int KIND>
using OutputMatrix = Matrix<ATTENTIONS[KIND].output_format, HIDDEN,
                            ATTENTIONS[KIND].q_heads * ATTENTIONS[KIND].v_dim, OWNER_TILES>;
// The same for the code of an output projection.
template <class M, bool BIAS>
struct Output {};
template <int KIND>
using OutputOf = Output<OutputMatrix<KIND>, ATTENTIONS[KIND].bias>;
// Gate and up of one expert, or of the dense network: a unit is 8 rows of gate above the same 8
// rows of up.
template <int KIND>
using GateUpMatrix =
    Matrix<FEED_FORWARDS[KIND].format, align_up(FEED_FORWARDS[KIND].width, 8) * 2, HIDDEN, 1>;
template <int KIND>
using DownMatrix =
    Matrix<FEED_FORWARDS[KIND].format, HIDDEN, FEED_FORWARDS[KIND].width, OWNER_TILES>;
using HeadMatrix = Matrix<Format::Bf16, VOCAB / RANKS, HIDDEN, 1>;
// A rank's share of the rows that fuse the taps.
using FuseMatrix = Matrix<Format::Bf16, ceil_div(HIDDEN, RANKS), larger(TAPS, 1) * HIDDEN, 1>;

// The largest value over the model's kinds.
template <int KIND, int END, class Of>
constexpr int over_kinds(Of of) {
  if constexpr (KIND < END)
    return larger(of(Constant<KIND>{}), over_kinds<KIND + 1, END>(of));
  else
    return 0;
}

// Rows of keys and values. The drafter's context computes those of all its layers at once.
constexpr int KEY_VALUE_ROWS = over_kinds<0, ATTENTION_KINDS>([](auto kind) {
  using Rows = QkvRows<decltype(kind)::value>;
  return Rows::COUNT - Rows::KEY;
});
constexpr int PROJECTED_ROWS =
    larger(over_kinds<0, ATTENTION_KINDS>(
               [](auto kind) { return QkvRows<decltype(kind)::value>::COUNT; }),
           DRAFT_LAYERS * KEY_VALUE_ROWS);

// How query heads are divided into tiles: up to 16 heads that read the same K/V head. A tile's
// queries, BF16, are stored as operand A of the tensor cores, `[steps of 32
// dimensions][halves][lanes]` of 16 bytes.
constexpr int TILE_HEADS = 16;
template <int KIND>
struct HeadTiles {
  static constexpr Attention A = ATTENTIONS[KIND];
  // Query heads that share a K/V head, and their tiles.
  static constexpr int GROUP = A.q_heads / A.kv_heads;
  static constexpr int COUNT = ceil_div(GROUP, TILE_HEADS);
  static constexpr int STEPS = ceil_div(A.qk_dim, 32);
  // The distance between a dimension and the one 32 further.
  static constexpr int STEP_VALUES = 2 * 32 * 8;
  static constexpr int QUERY_VALUES = STEPS * STEP_VALUES;

  // Whether a tile has this head: the heads of the last tile may be fewer than 16.
  static __device__ __forceinline__ bool has(int first_head, int in_tile) {
    return in_tile < GROUP - first_head % GROUP;
  }
  // Offset of a head's dimension among a token's queries.
  static __device__ __forceinline__ int query_offset(int head, uint32_t dim) {
    const int tile = head / GROUP * COUNT + head % GROUP / TILE_HEADS;
    const uint32_t row = head % GROUP % TILE_HEADS, half = tile * STEPS * 2 + dim / 16;
    const uint32_t lane = row % 8 * 4 + dim % 8 / 2;
    return (half * 32 + lane) * 8 + dim % 16 / 8 * 4 + row / 8 * 2 + dim % 2;
  }
};
// The distance between the queries of two tokens.
constexpr int QUERY_VALUES = over_kinds<0, ATTENTION_KINDS>([](auto kind) {
  using T = HeadTiles<decltype(kind)::value>;
  return T::A.kv_heads * T::COUNT * T::QUERY_VALUES;
});
constexpr int ROPE_PAIRS_MAX = over_kinds<0, ATTENTION_KINDS>(
    [](auto kind) { return larger(ATTENTIONS[decltype(kind)::value].rope_pairs, 1); });

// Keys and values are stored in runs of 8 dimensions, 16 bytes, by groups of 8 positions,
// `[dimensions / 8][8 positions]`: the core matrices of `wgmma`. A warp that reads a group as
// operands of the tensor cores reads whole cache lines, and no bank of shared memory twice.
constexpr int GROUP_KEYS = 8;
static_assert(PAGE_TOKENS % GROUP_KEYS == 0, "a group lies in one page");

// Offset of a position's dimension in its group.
__host__ __device__ constexpr int in_group_offset(uint32_t position, uint32_t dim) {
  return dim / 8 * (GROUP_KEYS * 8) + position * 8 + dim % 8;
}

// `place` counts positions of a K/V head, page after page. The functions return the offset of its
// group, and that of one of its dimensions.
template <int DIMS>
__host__ __device__ constexpr size_t group_offset(uint32_t place) {
  return size_t{place / GROUP_KEYS} * (GROUP_KEYS * DIMS);
}
template <int DIMS>
__host__ __device__ constexpr size_t cache_offset(uint32_t place, int dim) {
  return group_offset<DIMS>(place) + in_group_offset(place % GROUP_KEYS, dim);
}

// Attention is split over chunks of keys at fixed positions, each of which yields a partial result.
// phase/attn_combine.cuh chooses chunks so that there are never more than CHUNKS_MAX.
constexpr int CHUNK_KEYS = 128;
constexpr int CHUNKS_MAX = 128;

// Keys that one page of the ring holds, with their values.
constexpr int PAGE_KEYS = 64;
// Whether keys come through the ring, each page for as many tiles as there are warps: for the
// target's kinds with full attention, where a warp has registers for the sums of a tile.
template <int KIND>
constexpr bool STREAMED =
    KIND < DRAFT_ATTENTION && ATTENTIONS[KIND].window == 0 && ATTENTIONS[KIND].v_dim % 16 == 0 &&
    ATTENTIONS[KIND].v_dim <= 128 && ATTENTIONS[KIND].qk_dim % 16 == 0 &&
    ATTENTIONS[KIND].qk_dim <= 192 &&
    PAGE_KEYS * (ATTENTIONS[KIND].qk_dim + ATTENTIONS[KIND].v_dim) * 2 <= PAGE_BYTES;

// One more for the draft's own rows.
constexpr int ATTENTION_PARTS_MAX = CHUNKS_MAX + 1;
// Partial results of attention: for each token, query head and chunk the weighted sum of values.
// Behind all sums there are, for every 32 dimensions of each, the maximum of the scores and the sum
// of their exponentials, by which partial results are combined.
template <int KIND>
constexpr int ATTENTION_PARTS = TOKENS_MAX * ATTENTIONS[KIND].q_heads * ATTENTION_PARTS_MAX;
constexpr size_t ATTENTION_PARTS_BYTES =
    4 * static_cast<size_t>(over_kinds<0, ATTENTION_KINDS>([](auto kind) {
      constexpr int K = decltype(kind)::value;
      return ATTENTION_PARTS<K> * (ATTENTIONS[K].v_dim + 2 * ceil_div(ATTENTIONS[K].v_dim, 32));
    }));

// Bytes of a row of each operand.
constexpr int NORMED_BYTES = align_up(HIDDEN, CHUNK_COLUMNS * CONSUMER_WARPS) * 2;
// Operands that kinds of layers share: attention's for the output projection, and a dense network's
// for down. A product reads columns after the last, whose weights are zero. These columns must stay
// zeros, because zero times NaN is NaN; so kinds whose matrices differ have operands of their own,
// one after the other. The bytes of a token's row in the operands of the kinds before END:
template <template <int> class M, int END>
constexpr int operand_bytes_before() {
  if constexpr (END == 0)
    return 0;
  else if constexpr (first_like<M, 0, END - 1>() < END - 1)
    return operand_bytes_before<M, END - 1>();
  else
    return operand_bytes_before<M, END - 1>() + M<END - 1>::COLUMNS_PADDED * 2;
}
// Where the operand of a kind begins, and its rows.
template <template <int> class M, int KIND>
struct KindOperand {
  static constexpr size_t PLACE =
      size_t{TOKENS_MAX} * operand_bytes_before<M, first_like<M, 0, KIND>()>();
  static constexpr int ROW_BYTES = M<KIND>::COLUMNS_PADDED * 2;

  static __host__ __device__ __forceinline__ size_t row(int token) {
    return PLACE + operand_row(token, ROW_BYTES);
  }
};
template <int KIND>
using Attended = KindOperand<OutputMatrix, KIND>;
constexpr int ATTENDED_BYTES = operand_bytes_before<OutputMatrix, ATTENTION_KINDS>();

// Stands for `down` of kinds that are not dense.
struct NoMatrix {
  static constexpr int COLUMNS = 0, COLUMNS_PADDED = 0;
};
template <int KIND, bool DENSE>
struct DenseDownOf {
  using Type = DownMatrix<KIND>;
};
template <int KIND>
struct DenseDownOf<KIND, false> {
  using Type = NoMatrix;
};
template <int KIND>
using DenseDown = typename DenseDownOf<KIND, FEED_FORWARDS[KIND].experts == 0>::Type;
template <int KIND>
using DenseInner = KindOperand<DenseDown, KIND>;
constexpr int DENSE_INNER_BYTES = operand_bytes_before<DenseDown, FEED_FORWARD_KINDS>();

constexpr int TAPS_BYTES = FuseMatrix::COLUMNS_PADDED * 2;
constexpr int EXPERT_INNER_BYTES = over_kinds<0, FEED_FORWARD_KINDS>([](auto kind) {
  constexpr int K = decltype(kind)::value;
  return FEED_FORWARDS[K].experts > 0 ? DownMatrix<K>::COLUMNS_PADDED * 2 : 0;
});
constexpr int EXPERTS_MAX = over_kinds<0, FEED_FORWARD_KINDS>(
    [](auto kind) { return FEED_FORWARDS[decltype(kind)::value].experts; });
constexpr int TOP_K_MAX = over_kinds<0, FEED_FORWARD_KINDS>(
    [](auto kind) { return larger(FEED_FORWARDS[decltype(kind)::value].top_k, 1); });
constexpr int VOCAB_ROWS = HeadMatrix::UNITS * 16;

// The inner operand of experts whose tokens are gathered (phase/gathered.cuh) follows that of one
// tile: `[steps of down][rows]`, with contiguous rows. 64 bytes of padding put the rows that lanes
// read together into different banks of shared memory.
constexpr int GATHERED_ROWS = TOKENS_MAX * TOP_K_MAX;
constexpr int GATHERED_STEP_BYTES = CONSUMER_WARPS / OWNER_TILES * CHUNK_COLUMNS * 2;
constexpr int GATHERED_ROW_BYTES = GATHERED_STEP_BYTES + 64;
constexpr int TILE_INNER_BYTES = TILE_TOKENS * TOP_K_MAX * EXPERT_INNER_BYTES;
constexpr int GATHERED_INNER_BYTES =
    EXPERT_INNER_BYTES / GATHERED_STEP_BYTES * GATHERED_ROWS * GATHERED_ROW_BYTES;

// Values from one token to the next: the owners' sums of squares; and the experts' scores, 1 / rms,
// the chosen experts and their weights. All CTAs read the scores at the same time, so they are
// aligned to cache lines: otherwise every load would touch two.
constexpr int SQUARES_EACH = align_up(OWNER_UNITS, 4);
constexpr int CHOSEN = EXPERTS_MAX + 1;
constexpr int LINE_VALUES = 128 / sizeof(float);
constexpr int SCORES_EACH = align_up(CHOSEN + 2 * TOP_K_MAX, LINE_VALUES);

}  // namespace kilotok
