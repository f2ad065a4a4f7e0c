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
  // Whether a tile has such a head: its last may be none, or of the next K/V head.
  static __device__ __forceinline__ bool has(int first_head, int in_tile) {
    return in_tile < GROUP - first_head % GROUP;
  }
  static_assert(A.qk_dim % 8 == 0 && A.v_dim % 8 == 0, "loads take whole runs of 16 bytes");
  static_assert(VALUE_WARPS <= CONSUMER_WARPS, "a warp keeps 16 dimensions of the values");
};

// Positions from `first` up to `end`.
struct Range {
  uint32_t first, end;
  __device__ __forceinline__ bool has(uint32_t position) const {
    return position - first < end - first;
  }
  __device__ __forceinline__ bool empty() const { return first >= end; }
  // The position in it that is nearest, if there is any.
  __device__ __forceinline__ uint32_t nearest(uint32_t position) const {
    return min(max(position, first), end - 1);
  }
};

__device__ __forceinline__ Range both(const Range& a, const Range& b) {
  const uint32_t first = max(a.first, b.first);
  return {first, max(first, min(a.end, b.end))};
}

// Where the keys of a K/V head come from: a sequence's pages, or the rows of its draft.
template <int KIND>
struct KeySource {
  static constexpr int KV_HEADS = ATTENTIONS[KIND].kv_heads;
  // A piece lies in one page.
  static constexpr bool WHOLE_PIECES = PAGE_TOKENS % PIECE_KEYS == 0;
  const uint32_t* pages;
  const char* keys;
  const char* values;
  // Place in the table of pages, or of the draft's first row.
  uint32_t first;
  int kv_head;
  bool own_rows;

  __device__ __forceinline__ uint32_t place(uint32_t position) const {
    if (own_rows) return (first + position) * KV_HEADS + kv_head;
    return place_in_pages<KIND>(pages, first, position, kv_head);
  }
  // From one position's place to the next one's.
  __device__ __forceinline__ int stride() const { return own_rows ? KV_HEADS : 1; }
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

  // Brings what lies in `range`. In place of the rest comes the nearest that does: its weights are
  // zeros, which must not meet what never was a number.
  __device__ __forceinline__ void load(const Cta& cta, const KeySource<KIND>& source,
                                       uint32_t from, const Range& range) {
    base = from;
    uint32_t places = 0;
    if (KeySource<KIND>::WHOLE_PIECES && cta.lane() < PIECES)
      places = source.place(range.nearest(base + cta.lane() * PIECE_KEYS));
    if (cta.warp() < PIECES) load_keys(cta, source, range, places);
    if (cta.warp() < T::VALUE_WARPS) load_values(cta, source, range, places);
  }

  // The place of a key of a piece, whose own first place is given.
  __device__ __forceinline__ size_t place(const KeySource<KIND>& source, const Range& range,
                                          uint32_t piece_place, int piece, int key) const {
    const uint32_t first = base + piece * PIECE_KEYS, nearest = range.nearest(first + key);
    if constexpr (KeySource<KIND>::WHOLE_PIECES)
      return piece_place + (nearest - range.nearest(first)) * source.stride();
    else
      return source.place(nearest);
  }

  __device__ __forceinline__ void load_keys(const Cta& cta, const KeySource<KIND>& source,
                                            const Range& range, uint32_t places) {
    const int g = cta.lane() / 4, q = cta.lane() % 4, piece = cta.warp();
    const uint32_t piece_place = __shfl_sync(~0u, places, piece);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const char* row =
          source.keys + place(source, range, piece_place, piece, half * 8 + g) * (A.qk_dim * 2);
#pragma unroll
      for (int step = 0; step < T::STEPS; step++)
        keys[half][step] = ptx::load_l2(row + smaller(step * 4 + q, A.qk_dim / 8 - 1) * 16);
    }
  }

  __device__ __forceinline__ void load_values(const Cta& cta, const KeySource<KIND>& source,
                                              const Range& range, uint32_t places) {
    const int g = cta.lane() / 4, q = cta.lane() % 4;
    const char* column = source.values + smaller(cta.warp() * 16 + g * 2, A.v_dim - 2) * 2;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
      const uint32_t piece_place = __shfl_sync(~0u, places, piece);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const size_t row = place(source, range, piece_place, piece, q * 2 + i % 2 + i / 2 * 8);
        values[piece][i] =
            ptx::load_l2(reinterpret_cast<const uint32_t*>(column + row * (A.v_dim * 2)));
      }
    }
  }
};

}  // namespace kilotok
