// From the normed stream to rotated queries, keys and values, of many tokens.
//
//   rope_angles   once a step: cosines and sines of all positions
//   attn_in       the GEMM of q, k and v, or of k and v alone. If rows lie in pairs, its epilogue
//                 applies RoPE and stores queries, keys and values; otherwise it stores `projected`
//   split_heads   QK norm, RoPE and stores for those other kinds
//
// Keys and values go to their pages as the narrow pass writes them (phase/attn_in.cuh).
#pragma once

#include "kilotok/phase/attn_in.cuh"
#include "kilotok/phase/embed.cuh"
#include "kilotok/wide/gemm_few.cuh"

namespace kilotok::wide {

// The tokens of a step: BatchToken `[count]`, BatchRow `[row_count]`, and the page table, of which
// rows have parts. Rows cover all tokens, in order.
struct StepTokens {
  uint64_t tokens, rows, pages;
  int count, row_count;

  __device__ __forceinline__ const BatchToken& token(int index) const {
    return at<const BatchToken>(tokens)[index];
  }
  __device__ __forceinline__ const BatchRow& row(int index) const {
    return at<const BatchRow>(rows)[index];
  }
};

struct AttnInMemory {
  StepTokens step;
  // LayerMemory of this layer.
  uint64_t layer;
  // Operand of the GEMM, of `capacity` tokens; F32 `[capacity]`.
  uint64_t normed, inverse_rms;
  // F32 `[ATTENTION_KINDS][ROPE_PAIRS_MAX]`; float2 `[ATTENTION_KINDS][capacity][ROPE_PAIRS_MAX]`.
  uint64_t frequencies, angles;
  // BF16 `[capacity][QUERY_VALUES]`, a token's in the order of `query_offset`.
  uint64_t queries;
  // F32 `[capacity][PROJECTED_ROWS]`, only for kinds whose rows do not lie in pairs.
  uint64_t projected;
  int capacity;
  // Of the drafter's kinds: the spans of the tokens.
  uint64_t spans;
};

// A token's number in the step.
template <int KIND>
__device__ __forceinline__ int token_in_step(const AttnInMemory& memory, int index) {
  if constexpr (KIND >= DRAFT_ATTENTION)
    return token_of_spans(memory.spans, index);
  else
    return index;
}

// Offset of a head's dimension among a token's queries. For full attention they are stored as
// operand A of warpgroups, `[head tiles][halves][dimensions / 8][8 heads]` of 16 bytes; for windows
// as in the narrow pass.
template <int KIND>
__device__ __forceinline__ int query_offset(int head, int dim) {
  using T = HeadTiles<KIND>;
  if constexpr (!STREAMED<KIND>) return T::query_offset(head, dim);
  constexpr int HALF = TILE_HEADS / 2 * T::A.qk_dim;
  const int tile = head / T::GROUP * T::COUNT + head % T::GROUP / TILE_HEADS;
  const int row = head % T::GROUP % TILE_HEADS;
  return (tile * 2 + row / 8) * HALF + dim / 8 * 64 + row % 8 * 8 + dim % 8;
}

// All threads of all CTAs, `threads` each: the angles of kinds `first` to `end` - 1.
__device__ __forceinline__ void rope_angles(const AttnInMemory& memory, int first, int end,
                                            int threads) {
  const int each = memory.step.count * ROPE_PAIRS_MAX;
  for (int i = ptx::cta_index() * threads + threadIdx.x; i < (end - first) * each;
       i += GRID * threads) {
    const int kind = first + i / each, token = i % each / ROPE_PAIRS_MAX;
    const int pair = i % ROPE_PAIRS_MAX;
    const float frequency = at<const float>(memory.frequencies)[kind * ROPE_PAIRS_MAX + pair];
    at<float2>(memory.angles)[(kind * memory.capacity + token) * ROPE_PAIRS_MAX + pair] =
        rope_angle(memory.step.token(token).position, frequency, rope_magnitude(kind));
  }
}

// The place of a token's key and value of a K/V head.
template <int KIND>
__device__ __forceinline__ uint32_t token_place(const StepTokens& step, int index, int kv_head) {
  const BatchToken& token = step.token(index);
  return cache_index<KIND>(at<const uint32_t>(step.pages),
                           step.row(token.row).pages_at[ATTENTIONS[KIND].page_group],
                           token.position, kv_head);
}

// A lane's products of a row tile with eight tokens: two neighbouring rows of token lane / 4, and
// the two rows eight further on.
struct TileProducts {
  float low[2], high[2];

  // `sums` are the sums of the warp's lanes in shared memory, in the layout of `mma`.
  __device__ __forceinline__ void load(const float4* sums, int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float* v = reinterpret_cast<const float*>(sums + (lane % 4 * 2 + i) * 4 + lane / 8);
      low[i] = v[lane / 4 % 2];
      high[i] = v[2 + lane / 4 % 2];
    }
  }
};

__device__ __forceinline__ void store_two(uint16_t* to, float low, float high) {
  *reinterpret_cast<uint32_t*>(to) = ptx::pack_bf16(low, high);
}

// Tiles of eight tokens whose products are stored at a time: their factors are loaded together.
constexpr int TILES_AT_ONCE = 4;
static_assert(32 % (TILES_AT_ONCE * TILE_TOKENS) == 0, "no tile of a GEMM's width is left over");
using TilesProducts = TileProducts[TILES_AT_ONCE];

// The biases of a lane's products, if the kind has any.
template <int KIND>
struct RowBiases {
  float2 rows[2];

  __device__ __forceinline__ RowBiases(const LayerMemory& layer, int row_tile, int lane) {
#pragma unroll
    for (int j = 0; j < 2; j++)
      rows[j] = load_biases<KIND>(at<const float>(layer.qkv_bias), row_tile, lane % 4 * 2 + j);
  }
};

// Stores a lane's products of a projection whose rows lie in pairs, of `token` and every eighth one
// after it before `end`.
template <int KIND>
__device__ __forceinline__ void store_pairs(const AttnInMemory& memory, int row_tile, int token,
                                            int end, int lane, TilesProducts& products) {
  const HeadPair<KIND> pair(row_tile, 0);
  const LayerMemory& layer = *at<const LayerMemory>(memory.layer);
  const int first = pair.first + lane % 4 * 2, second = pair.second + lane % 4 * 2;
  const RowBiases<KIND> biases(layer, row_tile, lane);
  float scales[TILES_AT_ONCE];
  float2 turns[TILES_AT_ONCE][2] = {};
  uint32_t places[TILES_AT_ONCE] = {};
#pragma unroll
  for (int i = 0; i < TILES_AT_ONCE; i++) {
    const int t = min(token + i * TILE_TOKENS, end - 1), in_step = token_in_step<KIND>(memory, t);
    scales[i] = at<const float>(memory.inverse_rms)[t];
#pragma unroll
    for (int j = 0; j < 2 && pair.rotated; j++)
      turns[i][j] = at<const float2>(
          memory.angles)[(KIND * memory.capacity + in_step) * ROPE_PAIRS_MAX + first + j];
    if (!pair.is_query) places[i] = token_place<KIND>(memory.step, in_step, pair.head);
  }
#pragma unroll
  for (int i = 0; i < TILES_AT_ONCE; i++) {
    const int t = token + i * TILE_TOKENS;
    if (t >= end) break;
    TileProducts& v = products[i];
#pragma unroll
    for (int j = 0; j < 2; j++)
      pair.finish(v.low[j], v.high[j], scales[i], ATTENTIONS[KIND].value_scale, biases.rows[j],
                  turns[i][j]);
    uint16_t* to = at<uint16_t>(memory.queries) + static_cast<size_t>(t) * QUERY_VALUES;
    int low = query_offset<KIND>(pair.head, first), high = query_offset<KIND>(pair.head, second);
    if (!pair.is_query) {
      to = pair.begin(layer.keys, layer.values, places[i]);
      low = in_group_offset(places[i] % GROUP_KEYS, first);
      high = in_group_offset(places[i] % GROUP_KEYS, second);
    }
    store_two(to + low, v.low[0], v.low[1]);
    store_two(to + high, v.high[0], v.high[1]);
  }
}

// Stores a lane's products by token, scaled by 1 / rms and with their biases.
template <int KIND>
__device__ __forceinline__ void store_projected(const AttnInMemory& memory, int row_tile, int token,
                                                int end, int lane, const TilesProducts& products) {
  constexpr bool BIAS = ATTENTIONS[KIND].bias;
  const RowBiases<KIND> biases(*at<const LayerMemory>(memory.layer), row_tile, lane);
  const int row = row_tile * 16 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < TILES_AT_ONCE; i++) {
    const int t = token + i * TILE_TOKENS;
    if (t >= end) break;
    float* to = at<float>(memory.projected) + static_cast<size_t>(t) * PROJECTED_ROWS + row;
    const float scale = at<const float>(memory.inverse_rms)[t];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float2& bias = biases.rows[j];
      if (row + j < QkvRows<KIND>::COUNT)
        to[j] = scale_product<BIAS>(products[i].low[j], scale, bias.x);
      if (row + 8 + j < QkvRows<KIND>::COUNT)
        to[8 + j] = scale_product<BIAS>(products[i].high[j], scale, bias.y);
    }
  }
}

// A consumer warp, which has a row tile of an item: calls `use(row tile, token, end, lane,
// products)` for TILES_AT_ONCE tiles of tokens at a time. Of these groups of tiles it takes every
// GROUPS-th, from number `group` on. A lane's first token may be `end` or more. `sums` are the sums
// of the warp's lanes for the first tile; those for the next tile lie THREADS further on.
template <int THREADS, int GROUPS, class M, class Work, class Use>
__device__ __forceinline__ void use_products(const float4* sums, const Work& work, int item,
                                             int row_tile, int group, int lane, Use use) {
  if (row_tile >= MATRIX_TILES<M>) return;
  const int first = work.first_token(item), tokens = work.tokens(item);
#pragma unroll 1
  for (int tile = group * TILES_AT_ONCE; tile * TILE_TOKENS < tokens;
       tile += GROUPS * TILES_AT_ONCE) {
    TilesProducts products;
#pragma unroll
    for (int i = 0; i < TILES_AT_ONCE; i++) products[i].load(sums + (tile + i) * THREADS, lane);
    use(row_tile, first + tile * TILE_TOKENS + lane / 4, first + tokens, lane, products);
  }
}

// All threads of all CTAs, GEMM_THREADS each: multiplies a matrix that begins at `weights`, and
// calls `use`, as above, for all products. They are passed through shared memory, so that the
// epilogue is compiled once, and its registers do not make the compiler wait between products.
template <class M, class Use>
__device__ __forceinline__ void multiply_projections(GemmShared& shared, const AttnInMemory& memory,
                                                     const char* weights, Use use) {
  constexpr int CONSUMERS = GemmShape<M>::CONSUMERS;
  const auto finish = [&](const GemmWork<M>& work, int item) {
    const int thread = ptx::opaque(threadIdx.x), lane = thread % 32;
    __syncwarp();
    use_products<CONSUMERS, 1, M>(GemmStages<M>::totals(shared) + (thread - lane), work, item,
                                  work.first_tile(item) + thread / 32, 0, lane, use);
    __syncwarp();
  };
  const Operand operand = {at<const char>(memory.normed), memory.capacity};
  gemm<M>(shared, weights, operand, memory.step.count,
          [&](int, int, int tile, const float4& v) {
            GemmStages<M>::totals(shared)[tile * CONSUMERS + threadIdx.x] = v;
          },
          finish);
}
// The same for few tokens.
template <class M, class Use>
__device__ __forceinline__ void multiply_projections(FewShared& shared, const AttnInMemory& memory,
                                                     const char* weights, Use use) {
  gemm_few<M>(shared, weights, {at<const char>(memory.normed), memory.capacity},
              memory.step.count,
              [&](const FewWork<M>& work, int item) {
                const int thread = ptx::opaque(threadIdx.x), lane = thread % 32;
                const int warp = thread / 32 % FEW_ROW_TILES;
                use_products<WARPGROUP, FEW_GROUPS, M>(
                    shared.totals[0] + warp * 32, work, item, work.first_tile(item) + warp,
                    thread / WARPGROUP, lane, use);
              });
}

// The row tile of `QkvMatrix` with which a kind's matrix begins.
template <template <int> class MatrixOf, int KIND>
constexpr int FIRST_TILE =
    IS_SAME<MatrixOf<KIND>, QkvMatrix<KIND>> ? 0 : QkvRows<KIND>::KEY / 16;

// All threads of all CTAs, GEMM_THREADS each. `kind` is one of FIRST to END - 1 whose matrix is M;
// MatrixOf is QkvMatrix, or KvMatrix if no queries are needed. The GEMM is compiled once for all of
// them, because in a divergent branch the compiler would wait for each product. `Shared` belongs to
// `gemm` or, for few tokens, to `gemm_few`.
template <template <int> class MatrixOf, class M, int FIRST, int END, class Shared>
__device__ __forceinline__ void attn_in(Shared& shared, const AttnInMemory& memory, int kind) {
  const char* weights = at<const char>(at<const LayerMemory>(memory.layer)->qkv);
  with_kind<FIRST, END>(kind, [&](auto of) {
    constexpr int KIND = decltype(of)::value;
    weights += size_t{FIRST_TILE<MatrixOf, KIND>} * QkvMatrix<KIND>::UNIT_BYTES;
  });
  multiply_projections<M>(
      shared, memory, weights,
      [&](int in_matrix, int token, int end, int lane, TilesProducts& products) {
        with_kind<FIRST, END>(kind, [&](auto of) {
          constexpr int KIND = decltype(of)::value;
          const int row_tile = FIRST_TILE<MatrixOf, KIND> + in_matrix;
          if constexpr (!IS_SAME<MatrixOf<KIND>, M>)
            return;
          else if constexpr (ATTENTIONS[KIND].paired)
            store_pairs<KIND>(memory, row_tile, token, end, lane, products);
          else
            store_projected<KIND>(memory, row_tile, token, end, lane, products);
        });
      });
}

// One warp: a head of a token, query heads first, then keys, then values.
template <int KIND>
__device__ __forceinline__ void split_head(const AttnInMemory& memory, int token, int head,
                                           int lane) {
  constexpr Attention A = ATTENTIONS[KIND];
  const LayerMemory& layer = *at<const LayerMemory>(memory.layer);
  const bool is_query = head < A.q_heads, is_value = head >= A.q_heads + A.kv_heads;
  const int kv_head = (head - A.q_heads) % A.kv_heads, dims = is_value ? A.v_dim : A.qk_dim;
  const int first_row = is_value ? QkvRows<KIND>::VALUE : QkvRows<KIND>::KEY;
  const int row = is_query ? head * A.qk_dim : first_row + kv_head * dims;
  const int in_step = token_in_step<KIND>(memory, token);
  Head<KIND> h;
  h.load(at<const float>(memory.projected) + static_cast<size_t>(token) * PROJECTED_ROWS + row,
         dims, lane);
  if (!is_value) {
    if constexpr (A.qk_norm)
      h.rms_norm(at<const float>(is_query ? layer.q_norm : layer.k_norm), lane);
    h.apply_rope(at<const float2>(memory.angles) +
                     (KIND * memory.capacity + in_step) * ROPE_PAIRS_MAX,
                 lane);
  }
  const uint32_t place = is_query ? 0 : token_place<KIND>(memory.step, in_step, kv_head);
  const auto place_of = [&](int dim) {
    if (is_query)
      return at<uint16_t>(memory.queries) + static_cast<size_t>(token) * QUERY_VALUES +
             query_offset<KIND>(head, dim);
    return is_value ? at<uint16_t>(layer.values) + cache_offset<A.v_dim>(place, dim)
                    : at<uint16_t>(layer.keys) + cache_offset<A.qk_dim>(place, dim);
  };
  h.store(place_of, is_value ? A.value_scale : 1.0f, lane);
}

// All threads of all CTAs, any number of them, after `attn_in` of a kind whose rows do not lie in
// pairs: all heads from FIRST on.
template <int KIND, int FIRST = 0>
__device__ __forceinline__ void split_heads(const AttnInMemory& memory) {
  constexpr int HEADS = ATTENTIONS[KIND].q_heads + 2 * ATTENTIONS[KIND].kv_heads - FIRST;
  const int warps = blockDim.x / 32, count = memory.step.count * HEADS;
#pragma unroll 1
  for (int i = ptx::cta_index() * warps + threadIdx.x / 32; i < count; i += GRID * warps)
    split_head<KIND>(memory, i / HEADS, FIRST + i % HEADS, threadIdx.x % 32);
}

}  // namespace kilotok::wide
