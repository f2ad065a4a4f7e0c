// From projections to queries, keys and values: norm by head, rotation, the values' scale.
//
// Reads `projected` and `angles`; writes `queries`, and keys and values into the pages, or into
// `own_keys` and `own_values` when a draft's rows are not to leave any. A warp takes a head of a
// token. The caller's barriers come before and after.
#pragma once

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

// One head of a token on its way: a lane's values are dimensions lane, lane + 32 and so on, each
// with the one that it is rotated with.
template <int KIND, int DIMS>
struct Head {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int COUNT = ceil_div(DIMS, 32);
  float values[COUNT];
  float partners[COUNT];

  static __device__ __forceinline__ int partner(int dim) {
    return dim < A.rope_pairs ? dim + A.rope_pairs
                              : dim < 2 * A.rope_pairs ? dim - A.rope_pairs : dim;
  }

  __device__ __forceinline__ void load(const float* from, int lane) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int dim = lane + 32 * i;
      values[i] = dim < DIMS ? from[dim] : 0;
      partners[i] = dim < DIMS ? from[partner(dim)] : 0;
    }
  }

  __device__ __forceinline__ void norm(const float* weights, int lane) {
    float square = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) square += values[i] * values[i];
    square = add_lanes(square);
    // Squares that overflow would make a head of zeros, which looks sound.
    const float scale = 1.0f / sqrtf(square / DIMS + DRAFT_NORM_EPS) + 0.0f * square;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int dim = lane + 32 * i;
      if (dim >= DIMS) continue;
      values[i] *= scale * weights[dim];
      partners[i] *= scale * weights[partner(dim)];
    }
  }

  __device__ __forceinline__ void rotate(const float2* angles, int lane) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int dim = lane + 32 * i;
      if (dim >= 2 * A.rope_pairs) continue;
      const bool first = dim < A.rope_pairs;
      const float2 turn = angles[first ? dim : dim - A.rope_pairs];
      values[i] = values[i] * turn.x + (first ? -partners[i] : partners[i]) * turn.y;
    }
  }

  // `place_of` a dimension is where it goes.
  template <class PlaceOf>
  __device__ __forceinline__ void store(uint16_t* to, float scale, int lane,
                                        PlaceOf place_of) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (lane + 32 * i < DIMS) to[place_of(lane + 32 * i)] = ptx::to_bf16(values[i] * scale);
  }
};

template <int KIND>
__device__ __forceinline__ void store_query(const Cta& cta, const LayerMemory& layer, int token,
                                            int head) {
  constexpr Attention A = ATTENTIONS[KIND];
  const Memory& memory = cta.memory;
  Head<KIND, A.qk_dim> h;
  h.load(at<const float>(memory.projected) + token * PROJECTED_ROWS + head * A.qk_dim, cta.lane());
  if constexpr (A.qk_norm) h.norm(at<const float>(layer.q_norm), cta.lane());
  h.rotate(at<const float2>(memory.angles) + (KIND * TOKENS_MAX + token) * ROPE_PAIRS_MAX,
           cta.lane());
  h.store(at<uint16_t>(memory.queries) + token * QUERY_VALUES, 1.0f, cta.lane(),
          [&](int dim) { return HeadTiles<KIND>::query_place(head, dim); });
}

// The key, or else the value, of a K/V head.
template <int KIND, bool IS_KEY>
__device__ __forceinline__ void store_key_or_value(const Cta& cta, const LayerMemory& layer,
                                                   int token, int head, bool own) {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int DIMS = IS_KEY ? A.qk_dim : A.v_dim;
  constexpr int FIRST = IS_KEY ? QkvRows<KIND>::KEY : QkvRows<KIND>::VALUE;
  const Memory& memory = cta.memory;
  Head<KIND, DIMS> h;
  h.load(at<const float>(memory.projected) + token * PROJECTED_ROWS + FIRST + head * DIMS,
         cta.lane());
  uint32_t place = token * A.kv_heads + head;
  if (!own) {
    const BatchToken& t = at<const BatchToken>(memory.tokens)[token];
    const BatchRow& row = at<const BatchRow>(memory.rows)[t.row];
    place = place_in_pages<KIND>(at<const uint32_t>(memory.pages), row.pages_at[A.page_group],
                                 t.position, head);
  }
  uint64_t to = IS_KEY ? own ? memory.own_keys : layer.keys
                       : own ? memory.own_values : layer.values;
  if constexpr (IS_KEY) {
    if constexpr (A.qk_norm) h.norm(at<const float>(layer.k_norm), cta.lane());
    h.rotate(at<const float2>(memory.angles) + (KIND * TOKENS_MAX + token) * ROPE_PAIRS_MAX,
             cta.lane());
  }
  h.store(at<uint16_t>(to) + static_cast<size_t>(place) * DIMS, IS_KEY ? 1.0f : A.value_scale,
          cta.lane(), [](int dim) { return dim; });
}

// Heads from `first` on of all tokens: query heads, then keys, then values.
template <int KIND>
__device__ __forceinline__ void attn_in_heads(const Cta& cta, const LayerMemory& layer,
                                              int token_count, int first, bool own) {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int HEADS = A.q_heads + 2 * A.kv_heads;
  const int each = HEADS - first;
  for (int i = cta.index() + GRID * cta.warp(); i < token_count * each;
       i += GRID * CONSUMER_WARPS) {
    const int token = i / each, head = first + i % each;
    if (head < A.q_heads)
      store_query<KIND>(cta, layer, token, head);
    else if (head < A.q_heads + A.kv_heads)
      store_key_or_value<KIND, true>(cta, layer, token, head - A.q_heads, own);
    else
      store_key_or_value<KIND, false>(cta, layer, token, head - A.q_heads - A.kv_heads, own);
  }
}

template <int KIND>
__device__ __forceinline__ void attn_in(Cta& cta, const LayerMemory& layer, int token_count,
                                        bool own) {
  attn_in_heads<KIND>(cta, layer, token_count, 0, own);
}

// The same without queries: committed tokens become a drafter's context.
template <int KIND>
__device__ __forceinline__ void attn_context(Cta& cta, const LayerMemory& layer, int token_count) {
  attn_in_heads<KIND>(cta, layer, token_count, ATTENTIONS[KIND].q_heads, false);
}

}  // namespace kilotok
