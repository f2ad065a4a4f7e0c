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

// A dimension after its rotation; `other` is the one that it is rotated with, negative for the
// first of the two. All passes round the two products in this order.
__device__ __forceinline__ float rotate(float own, float other, const float2& turn) {
  return __fmaf_rn(own, turn.x, __fmul_rn(other, turn.y));
}

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
    // Divisions by constants take a few instructions each, one by either of them dozens.
    head = is_value ? row / A.v_dim : row / A.qk_dim;
    const int in_head = row - head * (is_value ? A.v_dim : A.qk_dim);
    rotated = !is_value && in_head < 2 * A.rope_pairs;
    first = (rotated ? in_head / 2 : in_head) + lane / 4;
    second = first + (rotated ? A.rope_pairs : 8);
  }

  __device__ __forceinline__ float own_scale(float value_scale) const {
    return is_value ? value_scale : 1.0f;
  }

  // Scales and rotates a token's two products, after their biases are added.
  __device__ __forceinline__ void finish(float& a, float& b, float inverse_rms, float value_scale,
                                         const float2& bias, const float2& turn) const {
    finish_pair(a, b, inverse_rms, own_scale(value_scale), bias, turn, rotated);
  }
  static __device__ __forceinline__ void finish_pair(float& a, float& b, float inverse_rms,
                                                     float own_scale, const float2& bias,
                                                     const float2& turn, bool rotated) {
    if constexpr (A.bias) {
      a = scale_product<true>(a, inverse_rms, bias.x) * own_scale;
      b = scale_product<true>(b, inverse_rms, bias.y) * own_scale;
    } else {
      const float scale = inverse_rms * own_scale;
      a *= scale;
      b *= scale;
    }
    if (!rotated) return;
    const float turned = rotate(a, -b, turn);
    b = rotate(b, a, turn);
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
  // Epilogue warps that share a unit: each has one of a lane's two tokens, because all CTAs wait
  // for the last unit to be stored.
  static constexpr int SHARES = ONE ? 1 : 2;
  const Memory& memory;
  const LayerMemory& layer;
  const HeldBatch& batch;
  const StreamMemory& stream;
  // F32, as the rows of the matrix, if the kind has biases.
  const float* biases;
  ProjectionUse use;
  bool own;

  // Values of a lane's token from the GPU's memory.
  struct Loaded {
    float2 turn;
    uint32_t place;
  };
  // Where a pair's first value is stored, and the second one, counted from there.
  struct Place {
    uint16_t* to;
    int second;
  };
  // What is known of a lane's token ahead of the products.
  struct Ahead {
    float2 bias, turn;
    float own_scale;
    bool rotated;
    Place place;
  };

  __device__ __forceinline__ int token(int tile, int lane, int share) const {
    return tile * TILE_TOKENS + lane % 4 * 2 + share;
  }
  __device__ __forceinline__ int token_count() const { return ONE ? 1 : batch.token_count(); }

  __device__ __forceinline__ Loaded load(const Pair& pair, int t) const {
    Loaded l = {};
    if (pair.rotated)
      l.turn = at<const float2>(memory.angles)[(use.kind * TOKENS_MAX + t) * ROPE_PAIRS_MAX +
                                               pair.first];
    if (!pair.is_query)
      l.place = token_cache_index<KIND>(memory, batch, use.page_group, t, pair.head, own);
    return l;
  }
  // `place` is that of a key or value.
  __device__ __forceinline__ Place place_of(const Pair& pair, int t, uint32_t place) const {
    if (pair.is_query) {
      const int first = T::query_offset(pair.head, pair.first);
      return {at<uint16_t>(memory.queries) + t * QUERY_VALUES + first,
              T::query_offset(pair.head, pair.second) - first};
    }
    const int first = in_group_offset(place % GROUP_KEYS, pair.first);
    return {pair.begin(own ? memory.own_keys : layer.keys, own ? memory.own_values : layer.values,
                       place) +
                first,
            in_group_offset(place % GROUP_KEYS, pair.second) - first};
  }

  __device__ __forceinline__ Ahead ahead(int unit, int share, int tile, int lane) const {
    const Pair pair(unit, lane);
    const int t = smaller(token(tile, lane, share), token_count() - 1);
    const Loaded l = load(pair, t);
    return {load_biases<KIND>(biases, unit, lane / 4), l.turn, pair.own_scale(use.value_scale),
            pair.rotated, place_of(pair, t, l.place)};
  }

  __device__ __forceinline__ void store(int, int share, int tile, int lane, const float4& v,
                                        const Ahead& ahead) const {
    const int t = token(tile, lane, share);
    if (t >= token_count()) return;
    float a = share == 0 ? v.x : v.y, b = share == 0 ? v.z : v.w;
    Pair::finish_pair(a, b, stream.inverse_rms[t], ahead.own_scale, ahead.bias, ahead.turn,
                      ahead.rotated);
    ahead.place.to[0] = ptx::to_bf16(a);
    ahead.place.to[ahead.place.second] = ptx::to_bf16(b);
  }

  // Consumers, with several tiles: stores both tokens of a lane.
  __device__ __forceinline__ void operator()(int unit, int, int tile, int lane,
                                             const float4& v) const {
    const Pair pair(unit, lane);
    const float2 bias = load_biases<KIND>(biases, unit, lane / 4);
    const int last = token_count() - 1;
    const Loaded both[2] = {load(pair, smaller(token(tile, lane, 0), last)),
                            load(pair, smaller(token(tile, lane, 1), last))};
#pragma unroll
    for (int share = 0; share < 2; share++) {
      const int t = token(tile, lane, share);
      if (t > last) continue;
      const Ahead ahead = {bias, both[share].turn, pair.own_scale(use.value_scale), pair.rotated,
                           place_of(pair, t, both[share].place)};
      store(unit, share, tile, lane, v, ahead);
    }
  }
};

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
