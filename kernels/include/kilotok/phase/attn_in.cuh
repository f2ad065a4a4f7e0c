// From projections to queries, keys and values: norm by head, rotation, the values' scale.
//
// Reads `projected` and `angles`; writes `queries`, and keys and values into the pages, or into
// `own_keys` and `own_values` when a draft's rows are not to leave any. A warp takes a head of a
// token. The caller's barriers come before and after.
#pragma once

#include "kilotok/layout/batch.cuh"
#include "kilotok/phase/stream.cuh"

namespace kilotok {

// Place of a position in a sequence's pages, `[pages, PAGE_TOKENS]`, of a K/V head.
template <int KIND>
__device__ __forceinline__ uint32_t place_in_pages(const uint32_t* pages, uint32_t pages_at,
                                                   uint32_t position, int kv_head) {
  constexpr Attention A = ATTENTIONS[KIND];
  const uint32_t page = pages[pages_at + position / PAGE_TOKENS];
  return (page * A.kv_heads + kv_head) * PAGE_TOKENS + position % PAGE_TOKENS;
}

// One head of a token on its way: a lane's values are dimensions lane, lane + 32 and so on, the
// first of them each with the one that it is rotated with.
template <int KIND>
struct Head {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int COUNT = ceil_div(larger(A.qk_dim, A.v_dim), 32);
  static constexpr int ROTATED = ceil_div(2 * A.rope_pairs, 32);
  int dims;
  float values[COUNT];
  float partners[larger(ROTATED, 1)];

  static __device__ __forceinline__ int partner(int dim) {
    return dim < A.rope_pairs ? dim + A.rope_pairs
                              : dim < 2 * A.rope_pairs ? dim - A.rope_pairs : dim;
  }

  __device__ __forceinline__ void load(const float* from, int dim_count, int lane) {
    dims = dim_count;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int dim = lane + 32 * i;
      values[i] = dim < dims ? ptx::load_l2(from + dim) : 0;
      if (i < ROTATED) partners[i] = dim < dims ? ptx::load_l2(from + partner(dim)) : 0;
    }
  }

  __device__ __forceinline__ void norm(const float* weights, int lane) {
    float square = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) square += values[i] * values[i];
    square = add_lanes(square);
    // Squares that overflow would make a head of zeros, which looks sound.
    const float scale = 1.0f / sqrtf(square / dims + DRAFT_NORM_EPS) + 0.0f * square;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int dim = lane + 32 * i;
      if (dim >= dims) continue;
      values[i] *= scale * weights[dim];
      if (i < ROTATED) partners[i] *= scale * weights[partner(dim)];
    }
  }

  __device__ __forceinline__ void rotate(const float2* angles, int lane) {
#pragma unroll
    for (int i = 0; i < ROTATED; i++) {
      const int dim = lane + 32 * i;
      if (dim >= 2 * A.rope_pairs) continue;
      const bool first = dim < A.rope_pairs;
      const float2 turn = angles[first ? dim : dim - A.rope_pairs];
      values[i] = values[i] * turn.x + (first ? -partners[i] : partners[i]) * turn.y;
    }
  }

  // The lane's first dimension goes to `to`, each other one `stride` values further.
  __device__ __forceinline__ void store(uint16_t* to, int stride, float scale, int lane) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (lane + 32 * i < dims) to[i * stride] = ptx::to_bf16(values[i] * scale);
  }
};

// A head of a token: query heads, then keys, then values. One code for all three.
template <int KIND>
__device__ __forceinline__ void store_head(const Cta& cta, const LayerMemory& layer,
                                           const HeldBatch& batch, int token, int head, bool own) {
  constexpr Attention A = ATTENTIONS[KIND];
  using T = HeadTiles<KIND>;
  const Memory& memory = cta.memory;
  const int lane = cta.lane();
  const bool is_query = head < A.q_heads, is_value = head >= A.q_heads + A.kv_heads;
  const int kv_head = (head - A.q_heads) % A.kv_heads;
  const int dims = is_value ? A.v_dim : A.qk_dim;
  const int first_row = is_value ? QkvRows<KIND>::VALUE : QkvRows<KIND>::KEY;
  const int row = is_query ? head * A.qk_dim : first_row + kv_head * dims;
  Head<KIND> h;
  h.load(at<const float>(memory.projected) + token * PROJECTED_ROWS + row, dims, lane);
  uint16_t* to;
  if (is_query) {
    to = at<uint16_t>(memory.queries) + token * QUERY_VALUES + T::query_place(head, lane);
  } else {
    uint32_t place = token * A.kv_heads + kv_head;
    if (!own) {
      const BatchToken& t = batch.tokens[token];
      place = place_in_pages<KIND>(at<const uint32_t>(memory.pages),
                                   batch.rows[t.row].pages_at[A.page_group], t.position, kv_head);
    }
    const uint64_t keys = own ? memory.own_keys : layer.keys;
    const uint64_t values = own ? memory.own_values : layer.values;
    to = at<uint16_t>(is_value ? values : keys) + static_cast<size_t>(place) * dims + lane;
  }
  if (!is_value) {
    if constexpr (A.qk_norm)
      h.norm(at<const float>(is_query ? layer.q_norm : layer.k_norm), lane);
    h.rotate(at<const float2>(memory.angles) + (KIND * TOKENS_MAX + token) * ROPE_PAIRS_MAX, lane);
  }
  h.store(to, is_query ? T::STEP_VALUES : 32, is_value ? A.value_scale : 1.0f, lane);
}

// Heads from `first` on of all tokens.
template <int KIND>
__device__ __forceinline__ void attn_in_heads(const Cta& cta, const LayerMemory& layer,
                                              const HeldBatch& batch, int first, bool own) {
  constexpr Attention A = ATTENTIONS[KIND];
  const int each = A.q_heads + 2 * A.kv_heads - first, count = batch.token_count() * each;
#pragma unroll 1
  for (int i = cta.index() + GRID * cta.warp(); i < count; i += GRID * CONSUMER_WARPS)
    store_head<KIND>(cta, layer, batch, i / each, first + i % each, own);
}

template <int KIND>
__device__ __forceinline__ void attn_in(const Cta& cta, const LayerMemory& layer,
                                        const HeldBatch& batch, bool own) {
  attn_in_heads<KIND>(cta, layer, batch, 0, own);
}

// The same without queries: committed tokens become a drafter's context.
template <int KIND>
__device__ __forceinline__ void attn_context(const Cta& cta, const LayerMemory& layer,
                                             const HeldBatch& batch) {
  attn_in_heads<KIND>(cta, layer, batch, ATTENTIONS[KIND].q_heads, false);
}

}  // namespace kilotok
