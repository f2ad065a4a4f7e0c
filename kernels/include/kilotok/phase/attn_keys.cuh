// Keys and values of a K/V head as the tensor cores want them, in registers: up to PIECES * 16
// positions, which then meet the queries of as many tokens as there are.
//
// Warp w holds the keys of piece w, and of the values of all pieces dimensions 16w to 16w + 15. A
// piece begins at a multiple of 16, so that a position always meets the same neighbours.
#pragma once

#include "kilotok/phase/attn_in.cuh"

namespace kilotok {

constexpr int PIECE_KEYS = 16;
// Query heads, all of one K/V head, that one multiplication of the tensor cores takes.
constexpr int TILE_HEADS = 16;

// How query heads fall into tiles.
template <int KIND>
struct HeadTiles {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int GROUP = A.q_heads / A.kv_heads;
  static constexpr int COUNT = ceil_div(GROUP, TILE_HEADS);
  // Steps of 32 dimensions; two of the tensor cores' each.
  static constexpr int STEPS = ceil_div(A.qk_dim, 32);
  static constexpr int VALUE_WARPS = ceil_div(A.v_dim, 16);
  static_assert(A.qk_dim % 8 == 0 && A.v_dim % 8 == 0, "loads take whole runs of 16 bytes");
  static_assert(VALUE_WARPS <= CONSUMER_WARPS, "a warp keeps 16 dimensions of the values");
};

// Positions from `first` up to `end`.
struct Range {
  uint32_t first, end;
  __device__ __forceinline__ bool has(uint32_t position) const {
    return position >= first && position < end;
  }
  __device__ __forceinline__ bool empty() const { return first >= end; }
};

__device__ __forceinline__ Range both(const Range& a, const Range& b) {
  return {max(a.first, b.first), min(a.end, b.end)};
}

// Where keys come from: a sequence's pages, or the rows of its draft.
template <int KIND>
struct PageKeys {
  static constexpr bool WHOLE_PIECES = PAGE_TOKENS % PIECE_KEYS == 0;
  const Memory& memory;
  const LayerMemory& layer;
  const BatchRow& row;
  int kv_head;

  __device__ __forceinline__ uint32_t place(uint32_t position) const {
    return place_in_pages<KIND>(memory, row, position, kv_head);
  }
  static constexpr int STRIDE = 1;
  __device__ __forceinline__ const char* keys() const { return at<const char>(layer.keys); }
  __device__ __forceinline__ const char* values() const { return at<const char>(layer.values); }
};

template <int KIND>
struct OwnKeys {
  static constexpr bool WHOLE_PIECES = true;
  static constexpr int STRIDE = ATTENTIONS[KIND].kv_heads;
  const Memory& memory;
  uint32_t first;
  int kv_head;

  __device__ __forceinline__ uint32_t place(uint32_t position) const {
    return (first + position) * STRIDE + kv_head;
  }
  __device__ __forceinline__ const char* keys() const { return at<const char>(memory.own_keys); }
  __device__ __forceinline__ const char* values() const {
    return at<const char>(memory.own_values);
  }
};

template <int KIND, int PIECES>
struct HeldKeys {
  using T = HeadTiles<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  static_assert(PIECES <= CONSUMER_WARPS, "a warp keeps the keys of one piece");

  // Position of the first piece.
  uint32_t base;
  // With g = lane / 4 and q = lane % 4: of keys g and 8 + g, dimensions 32 step + 8q and on.
  uint4 keys[2][T::STEPS];
  // Of keys 2q, 2q + 1, 2q + 8 and 2q + 9 of each piece, dimensions 16 warp + 2g and the next.
  uint32_t values[PIECES][4];

  // Brings what lies in `range`, zeros for the rest: weights of nothing must not meet what never
  // was a number.
  template <class Source>
  __device__ __forceinline__ void load(const Cta& cta, const Source& source, uint32_t from,
                                       const Range& range) {
    base = from;
    const int lane = cta.lane();
    uint32_t own_place = 0;
    if (Source::WHOLE_PIECES && lane < PIECES) {
      const uint32_t first = base + lane * PIECE_KEYS;
      const Range piece = both(range, {first, first + PIECE_KEYS});
      if (!piece.empty()) own_place = source.place(piece.first) - (piece.first - first) *
                                                                      Source::STRIDE;
    }
    auto place = [&](int piece, int key) {
      if constexpr (Source::WHOLE_PIECES)
        return __shfl_sync(~0u, own_place, piece) + key * Source::STRIDE;
      const uint32_t position = base + piece * PIECE_KEYS + key;
      return range.has(position) ? source.place(position) : 0u;
    };
    load_keys(cta, source.keys(), range, place);
    load_values(cta, source.values(), range, place);
  }

  template <class Place>
  __device__ __forceinline__ void load_keys(const Cta& cta, const char* from, const Range& range,
                                            Place place) {
    const int g = cta.lane() / 4, q = cta.lane() % 4;
    if (cta.warp() >= PIECES) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int key = half * 8 + g;
      const bool has = range.has(base + cta.warp() * PIECE_KEYS + key);
      const char* row = from + static_cast<size_t>(place(cta.warp(), key)) * (A.qk_dim * 2);
#pragma unroll
      for (int step = 0; step < T::STEPS; step++) {
        const int run = step * 4 + q;
        keys[half][step] = has && run < A.qk_dim / 8
                               ? *reinterpret_cast<const uint4*>(row + run * 16)
                               : make_uint4(0, 0, 0, 0);
      }
    }
  }

  template <class Place>
  __device__ __forceinline__ void load_values(const Cta& cta, const char* from, const Range& range,
                                              Place place) {
    const int g = cta.lane() / 4, q = cta.lane() % 4, dim = cta.warp() * 16 + g * 2;
    if (cta.warp() >= T::VALUE_WARPS) return;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int key = q * 2 + i % 2 + i / 2 * 8;
        const uint32_t from_place = place(piece, key);
        const bool has = range.has(base + piece * PIECE_KEYS + key) && dim < A.v_dim;
        values[piece][i] = has ? *reinterpret_cast<const uint32_t*>(
                                     from + static_cast<size_t>(from_place) * (A.v_dim * 2) +
                                     dim * 2)
                               : 0;
      }
  }
};

}  // namespace kilotok
