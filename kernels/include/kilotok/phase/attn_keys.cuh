// Keys and values of a K/V head in registers, as operands of the tensor cores: up to PIECES * 16
// positions, which are multiplied with the queries of any number of tokens.
//
// Warp w holds the keys of piece w; the last warps hold the values (`Warps`). A piece begins at a
// multiple of 16, so that a position is always summed with the same neighbours.
#pragma once

#include "kilotok/phase/attn_in.cuh"

namespace kilotok {

constexpr int PIECE_KEYS = 16;

// How the warps share a tile. A warp that holds values has a strip of 32 dimensions, and a share of
// the pieces.
template <int KIND>
struct Warps {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int VALUE_DIMS = 32;
  static constexpr int STRIPS = ceil_div(A.v_dim, VALUE_DIMS);
  static_assert(A.qk_dim % 8 == 0 && A.v_dim % 8 == 0, "loads take whole runs");
  static constexpr int SHARES = smaller(CONSUMER_WARPS / STRIPS, 3);
  static_assert(SHARES > 0, "a warp keeps 32 dimensions of the values");

  // The first warps hold keys, the last ones values.
  int strip, share;
  __device__ __forceinline__ explicit Warps(const Cta& cta)
      : strip((CONSUMER_WARPS - 1 - cta.warp()) % STRIPS),
        share((CONSUMER_WARPS - 1 - cta.warp()) / STRIPS) {}
  __device__ __forceinline__ bool has_values() const {
    return SHARES * STRIPS == CONSUMER_WARPS || share < SHARES;
  }
  // Whether the warp's share of PIECES pieces includes this one. Only the last share is shorter;
  // without this knowledge the compiler would keep sums in local memory.
  template <int PIECES>
  __device__ __forceinline__ bool has_piece(int in_share) const {
    constexpr int SHARE = ceil_div(PIECES, SHARES), SHORTEST = PIECES - SHARE * (SHARES - 1);
    return in_share < SHORTEST || share * SHARE + in_share < PIECES;
  }
};

// Positions from `first` to `end` - 1.
struct Range {
  uint32_t first, end;
  __device__ __forceinline__ bool has(uint32_t position) const {
    return position - first < end - first;
  }
  __device__ __forceinline__ bool empty() const { return first >= end; }
  // The nearest position in a range that is not empty.
  __device__ __forceinline__ uint32_t nearest(uint32_t position) const {
    return min(max(position, first), end - 1);
  }
};

__device__ __forceinline__ Range intersect(const Range& a, const Range& b) {
  const uint32_t first = max(a.first, b.first);
  return {first, max(first, min(a.end, b.end))};
}

// The source of the keys of a K/V head: a sequence's pages, or the rows of its draft.
template <int KIND>
struct KeySource {
  static constexpr int KV_HEADS = ATTENTIONS[KIND].kv_heads;
  // A piece lies in one page.
  static constexpr bool WHOLE_PIECES = PAGE_TOKENS % PIECE_KEYS == 0;
  const uint32_t* pages;
  const char* keys;
  const char* values;
  // Index in the page table, or of the draft's first row.
  uint32_t first;
  int kv_head;
  bool own_rows;

  __device__ __forceinline__ uint32_t place(uint32_t position) const {
    if (own_rows) return (first + position) * KV_HEADS + kv_head;
    return cache_index<KIND>(pages, first, position, kv_head);
  }
  // The distance between the places of two neighbouring positions.
  __device__ __forceinline__ int stride() const { return own_rows ? KV_HEADS : 1; }
};

template <int KIND, int PIECES>
struct HeldKeys {
  using T = HeadTiles<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  // The number of pieces whose values a warp holds.
  static constexpr int SHARE = ceil_div(PIECES, Warps<KIND>::SHARES);
  static_assert(PIECES <= CONSUMER_WARPS, "a warp keeps the keys of one piece");

  KeySource<KIND> source;
  int lane;
  // The position of the first piece, and the range of positions that is needed.
  uint32_t base;
  Range range;
  // Lane i has the place of the first key of piece i.
  uint32_t places;
  // With g = lane / 4 and q = lane % 4: dimensions 2q and 2q + 1 of the four runs of each step, of
  // keys g and 8 + g. Zeros at first: otherwise a register that some warps never set would be live
  // through the whole pass.
  uint4 keys[2][T::STEPS] = {};
  // Four dimensions of keys 2q, 2q + 1, 2q + 8 and 2q + 9 of each piece of the warp's share.
  uint2 values[SHARE][4] = {};

  // A position outside the range is replaced by the nearest one inside: its weight is zero, and
  // uninitialised memory could be NaN.
  __device__ __forceinline__ HeldKeys(const Cta& cta, const KeySource<KIND>& from,
                                      uint32_t first_position, const Range& wanted)
      : source(from), base(first_position), range(wanted), places(0) {
    // In a register, because reading the thread's number again at each use would wait for all loads
    // in flight.
    lane = ptx::opaque(cta.lane());
    if (KeySource<KIND>::WHOLE_PIECES && lane < PIECES)
      places = source.place(range.nearest(base + lane * PIECE_KEYS));
  }

  // Whether all needed positions of a piece lie before a position.
  __device__ __forceinline__ bool is_before(int piece, uint32_t position) const {
    return min(base + (piece + 1) * PIECE_KEYS, range.end) <= position;
  }

  // Loads the pieces that lie before a position, or all others.
  __device__ __forceinline__ void load(const Cta& cta, uint32_t position, bool before) {
    if (cta.warp() < PIECES && is_before(cta.warp(), position) == before)
      load_keys(lane, cta.warp());
    const Warps<KIND> warps(cta);
    if (warps.has_values()) load_values(lane, warps, position, before);
  }

  // The place of a key of a piece, given the place of the piece's first key.
  __device__ __forceinline__ uint32_t place(uint32_t piece_place, int piece, int key) const {
    const uint32_t first = base + piece * PIECE_KEYS, nearest = range.nearest(first + key);
    if constexpr (KeySource<KIND>::WHOLE_PIECES)
      return piece_place + (nearest - range.nearest(first)) * source.stride();
    else
      return source.place(nearest);
  }

  __device__ __forceinline__ void load_keys(int lane, int piece) {
    const uint32_t piece_place = __shfl_sync(~0u, places, piece);
    const auto* from = reinterpret_cast<const uint16_t*>(source.keys);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t at = place(piece_place, piece, half * GROUP_KEYS + lane / 4);
      const uint16_t* row = from + cache_offset<A.qk_dim>(at, lane % 4 * 2);
#pragma unroll
      for (int step = 0; step < T::STEPS; step++) {
        // The last step may have fewer dimensions.
        const auto run = [&](int i) {
          const int index = smaller(step * 4 + i, A.qk_dim / 8 - 1);
          return ptx::load_l2_word(row + index * (GROUP_KEYS * 8));
        };
        keys[half][step] = make_uint4(run(0), run(1), run(2), run(3));
      }
    }
  }

  __device__ __forceinline__ void load_values(int lane, const Warps<KIND>& warps,
                                              uint32_t position, bool before) {
    const int dim = smaller(warps.strip * Warps<KIND>::VALUE_DIMS + lane / 4 * 4, A.v_dim - 4);
    const auto* from = reinterpret_cast<const uint16_t*>(source.values);
    // All shuffles come before the first load: after it they would wait for it.
    uint32_t piece_places[SHARE];
#pragma unroll
    for (int i = 0; i < SHARE; i++)
      piece_places[i] = __shfl_sync(~0u, places, warps.share * SHARE + i);
#pragma unroll
    for (int i = 0; i < SHARE; i++) {
      const int piece = warps.share * SHARE + i;
      if (!warps.template has_piece<PIECES>(i) || is_before(piece, position) != before) continue;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int key = lane % 4 * 2 + j % 2 + j / 2 * 8;
        values[i][j] = ptx::load_l2_pair(
            from + cache_offset<A.v_dim>(place(piece_places[i], piece, key), dim));
      }
    }
  }
};

}  // namespace kilotok
