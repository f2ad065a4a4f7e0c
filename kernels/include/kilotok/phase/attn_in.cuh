// From projections to queries, keys and values: biases, RMSNorm by head, RoPE, the values' scale.
//
// Writes `queries`, and keys and values into the pages of the KV cache, or into `own_keys` and
// `own_values` where a draft's rows must not enter the cache. Where rows lie in pairs, the epilogue
// of the GEMM does this; otherwise a warp takes a head of a token from `projected`, between two
// grid barriers.
#pragma once

#include "kilotok/layout/batch.cuh"
#include "kilotok/phase/project.cuh"

namespace kilotok {

// Index of a position of a K/V head in a sequence's pages, `[pages, PAGE_TOKENS]`.
template <int KIND>
__device__ __forceinline__ uint32_t cache_index(const uint32_t* pages, uint32_t pages_at,
                                                   uint32_t position, int kv_head) {
  constexpr Attention A = ATTENTIONS[KIND];
  const uint32_t page = pages[pages_at + position / PAGE_TOKENS];
  return (page * A.kv_heads + kv_head) * PAGE_TOKENS + position % PAGE_TOKENS;
}

// Index of a token's key and value of a K/V head.
template <int KIND>
__device__ __forceinline__ uint32_t token_cache_index(const Memory& memory, const HeldBatch& batch,
                                                   int page_group, int token, int kv_head,
                                                   bool own) {
  if (own) return token * ATTENTIONS[KIND].kv_heads + kv_head;
  const BatchToken& t = batch.tokens[token];
  return cache_index<KIND>(at<const uint32_t>(memory.pages),
                              batch.rows[t.row].pages_at[page_group], t.position, kv_head);
}

// The constants that may differ between kinds with the same projection.
struct ProjectionUse {
  int kind, page_group;
  float value_scale;

  __device__ __forceinline__ explicit ProjectionUse(uint32_t wanted) {
    with_kind<0, ATTENTION_KINDS>(wanted, [&](auto k) {
      constexpr Attention A = ATTENTIONS[decltype(k)::value];
      *this = ProjectionUse(decltype(k)::value, A.page_group, A.value_scale);
    });
  }

 private:
  __device__ __forceinline__ ProjectionUse(int k, int group, float scale)
      : kind(k), page_group(group), value_scale(scale) {}
};

// For a projection whose rows lie in pairs: the head of a tile of 16 rows, and the lane's two
// dimensions of it.
template <int KIND>
struct HeadPair {
  static constexpr Attention A = ATTENTIONS[KIND];
  using Rows = QkvRows<KIND>;
  bool is_query, is_value, rotated;
  int head, first, second;

  __device__ __forceinline__ HeadPair(int row_tile, int lane)
      : is_query(row_tile * 16 < Rows::KEY), is_value(row_tile * 16 >= Rows::VALUE) {
    const int row = row_tile * 16 - (is_query ? 0 : is_value ? Rows::VALUE : Rows::KEY);
    const int dims = is_value ? A.v_dim : A.qk_dim, in_head = row % dims;
    head = row / dims;
    rotated = !is_value && in_head < 2 * A.rope_pairs;
    first = (rotated ? in_head / 2 : in_head) + lane / 4;
    second = first + (rotated ? A.rope_pairs : 8);
  }

  // Scales and rotates a token's two products, after their biases are added.
  __device__ __forceinline__ void finish(float& a, float& b, float inverse_rms, float value_scale,
                                         const float2& bias, const float2& turn) const {
    const float own_scale = is_value ? value_scale : 1.0f;
    if constexpr (A.bias) {
      a = scale_product<true>(a, inverse_rms, bias.x) * own_scale;
      b = scale_product<true>(b, inverse_rms, bias.y) * own_scale;
    } else {
      const float scale = inverse_rms * own_scale;
      a *= scale;
      b *= scale;
    }
    if (!rotated) return;
    const float turned = a * turn.x - b * turn.y;
    b = b * turn.x + a * turn.y;
    a = turned;
  }

  // Where the group of a key's or value's place begins.
  __device__ __forceinline__ uint16_t* begin(uint64_t keys, uint64_t values,
                                             uint32_t place) const {
    return at<uint16_t>(is_value ? values : keys) +
           (is_value ? group_offset<A.v_dim>(place) : group_offset<A.qk_dim>(place));
  }
};

// Epilogue and consumers: stores the products of a projection whose rows lie in pairs. ONE: of one
// token.
template <int KIND, bool ONE = false>
struct StoreHeads {
  using Pair = HeadPair<KIND>;
  using T = HeadTiles<KIND>;
  const Memory& memory;
  const LayerMemory& layer;
  const HeldBatch& batch;
  const StreamMemory& stream;
  // F32, as the rows of the matrix, if the kind has biases.
  const float* biases;
  ProjectionUse use;
  bool own;

  // Values for the lane's two tokens that are loaded from the GPU's memory ahead of the products.
  struct Ahead {
    float2 bias;
    float2 turns[2];
    uint32_t places[2];
  };

  __device__ __forceinline__ int token(int tile, int lane, int j) const {
    return tile * TILE_TOKENS + lane % 4 * 2 + j;
  }
  __device__ __forceinline__ int token_count() const { return ONE ? 1 : batch.token_count(); }

  __device__ __forceinline__ Ahead ahead(int unit, int, int tile, int lane) const {
    const Pair pair(unit, lane);
    Ahead a = {};
    a.bias = load_biases<KIND>(biases, unit, lane / 4);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int t = smaller(token(tile, lane, j), token_count() - 1);
      const float2* turns = at<const float2>(memory.angles) +
                            (use.kind * TOKENS_MAX + t) * ROPE_PAIRS_MAX + pair.first;
      if (pair.rotated) a.turns[j] = *turns;
      if (!pair.is_query)
        a.places[j] = token_cache_index<KIND>(memory, batch, use.page_group, t, pair.head, own);
    }
    return a;
  }

  __device__ __forceinline__ void store(int unit, int, int tile, int lane, const float4& v,
                                        const Ahead& ahead) const {
    const Pair pair(unit, lane);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int t = token(tile, lane, j);
      if (t >= token_count()) continue;
      float a = j == 0 ? v.x : v.y, b = j == 0 ? v.z : v.w;
      pair.finish(a, b, stream.inverse_rms[t], use.value_scale, ahead.bias, ahead.turns[j]);
      if (pair.is_query) {
        uint16_t* to = at<uint16_t>(memory.queries) + t * QUERY_VALUES;
        to[T::query_offset(pair.head, pair.first)] = ptx::to_bf16(a);
        to[T::query_offset(pair.head, pair.second)] = ptx::to_bf16(b);
      } else {
        const uint32_t place = ahead.places[j], in_group = place % GROUP_KEYS;
        uint16_t* to = pair.begin(own ? memory.own_keys : layer.keys,
                                  own ? memory.own_values : layer.values, place);
        to[in_group_offset(in_group, pair.first)] = ptx::to_bf16(a);
        to[in_group_offset(in_group, pair.second)] = ptx::to_bf16(b);
      }
    }
  }

  __device__ __forceinline__ void operator()(int unit, int row_tile, int tile, int lane,
                                             const float4& v) const {
    store(unit, row_tile, tile, lane, v, ahead(unit, row_tile, tile, lane));
  }
};

// A dimension after its rotation; `other` is the one that it is rotated with, negative for the
// first of the two. All passes round the two products in this order.
__device__ __forceinline__ float rotate(float own, float other, const float2& turn) {
  return __fmaf_rn(own, turn.x, __fmul_rn(other, turn.y));
}

// One head of a token: a lane has dimensions lane, lane + 32 and so on, and for the first of them
// also the dimension that it is rotated with.
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

  __device__ __forceinline__ void rms_norm(const float* weights, int lane) {
    float square = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) square += values[i] * values[i];
    square = add_lanes(square);
    // A sum of squares that overflows would yield a head of zeros, which looks valid; this makes it
    // NaN.
    const float scale = ptx::inverse_sqrt(square / dims + A.qk_norm_eps) + 0.0f * square;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int dim = lane + 32 * i;
      if (dim >= dims) continue;
      values[i] *= scale * weights[dim];
      if (i < ROTATED) partners[i] *= scale * weights[partner(dim)];
    }
  }

  __device__ __forceinline__ void apply_rope(const float2* angles, int lane) {
#pragma unroll
    for (int i = 0; i < ROTATED; i++) {
      const int dim = lane + 32 * i;
      if (dim >= 2 * A.rope_pairs) continue;
      const bool first = dim < A.rope_pairs;
      const float2 turn = angles[first ? dim : dim - A.rope_pairs];
      values[i] = rotate(values[i], first ? -partners[i] : partners[i], turn);
    }
  }

  // `place(dim)` is the address of a dimension.
  template <class Place>
  __device__ __forceinline__ void store(Place place, float scale, int lane) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (lane + 32 * i < dims) *place(lane + 32 * i) = ptx::to_bf16(values[i] * scale);
  }
};

// Stores a head of a token: query heads, then keys, then values, with one copy of the code for all
// three. The layer's rows of `projected` begin at `place`.
template <int KIND>
__device__ __forceinline__ void store_head(const Cta& cta, const LayerMemory& layer,
                                           const HeldBatch& batch, int token, int head, int place,
                                           bool own) {
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
  h.load(at<const float>(memory.projected) + token * PROJECTED_ROWS + place + row, dims, lane);
  uint16_t* to = at<uint16_t>(memory.queries) + token * QUERY_VALUES;
  uint32_t stored = 0;
  if (!is_query) {
    stored = token_cache_index<KIND>(memory, batch, A.page_group, token, kv_head, own);
    const uint64_t keys = own ? memory.own_keys : layer.keys;
    const uint64_t values = own ? memory.own_values : layer.values;
    to = at<uint16_t>(is_value ? values : keys);
  }
  if (!is_value) {
    if constexpr (A.qk_norm)
      h.rms_norm(at<const float>(is_query ? layer.q_norm : layer.k_norm), lane);
    h.apply_rope(at<const float2>(memory.angles) + (KIND * TOKENS_MAX + token) * ROPE_PAIRS_MAX,
                 lane);
  }
  const auto place_of = [&](int dim) {
    return to + (is_query   ? T::query_offset(head, dim)
                 : is_value ? cache_offset<A.v_dim>(stored, dim)
                            : cache_offset<A.qk_dim>(stored, dim));
  };
  h.store(place_of, is_value ? A.value_scale : 1.0f, lane);
}

template <int KIND>
__device__ __forceinline__ void attn_in(const Cta& cta, const LayerMemory& layer,
                                        const HeldBatch& batch, bool own) {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int HEADS = A.q_heads + 2 * A.kv_heads;
  const int count = batch.token_count() * HEADS;
#pragma unroll 1
  for (int i = cta.index() + GRID * cta.warp(); i < count; i += GRID * CONSUMER_WARPS)
    store_head<KIND>(cta, layer, batch, i / HEADS, i % HEADS, 0, own);
}

// Where the rows of a layer of the drafter's context begin in `projected`; it has no query rows.
template <int KIND>
__device__ __forceinline__ int context_row(int layer) {
  return layer * KEY_VALUE_ROWS - QkvRows<KIND>::KEY;
}

// The same without queries: the keys and values of the batch's tokens in a layer of the drafter.
// Each layer begins with another CTA, so that layers do not wait for each other.
template <int KIND>
__device__ __forceinline__ void attn_context(const Cta& cta, const LayerMemory& layer, int index,
                                             const HeldBatch& batch) {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int HEADS = 2 * A.kv_heads;
  const int count = batch.token_count() * HEADS, turn = cta.index() + GRID - index * count % GRID;
#pragma unroll 1
  for (int i = turn % GRID + GRID * cta.warp(); i < count; i += GRID * CONSUMER_WARPS)
    store_head<KIND>(cta, layer, batch, i / HEADS, A.q_heads + i % HEADS,
                     context_row<KIND>(index), false);
}

}  // namespace kilotok
