// Multiplies one tile of queries, up to 16 heads of one token, with the keys that the CTA holds:
// scores by the warps that hold keys, weighted values by those that hold values, then the sum of
// the latter.
//
// Queries, keys, weights and values are BF16, all sums F32. Weights are relative to the largest
// score of all pieces. Pieces are added in order of their positions, and a piece that is not
// visible to the token adds zeros. So the result does not depend on what else is held.
#pragma once

#include "kilotok/phase/attn_keys.cuh"

namespace kilotok {

constexpr float LOWEST = -__builtin_huge_valf();

// Turns a score into an exponent of 2.
template <int KIND>
__device__ __forceinline__ float score_scale() {
  return ptx::LOG2_E / sqrtf(static_cast<float>(ATTENTIONS[KIND].qk_dim));
}

// The largest score, as an exponent of 2, and the sum of all weights relative to it.
struct Softmax {
  float largest, sum;
};

template <int KIND, int PIECES>
struct TileMemory {
  // `[steps][halves][lanes]`
  uint4 queries[HeadTiles<KIND>::STEPS * 2 * 32];
  // `[pieces][lanes]`, operand A of the product with the values.
  uint4 weights[PIECES * 32];
  // For each head the largest score of every piece.
  float4 largest[TILE_HEADS][ceil_div(PIECES, 4)];
  // Partial sums of a strip's other warps for the first one, `[others][strips][runs of 4][lanes]`.
  static constexpr int OTHERS = Warps<KIND>::SHARES - 1;
  float4 values[larger(OTHERS, 1) * Warps<KIND>::STRIPS * 4 * 32];
  float2 sums[larger(OTHERS, 1) * Warps<KIND>::STRIPS * 32];
};

// A tile, and the keys that are visible to it.
struct Tile {
  int token, first_head;
  Range range;
};

// A lane's part of a tile's result: dimensions 8q to 8q + 7 of its strip, of heads g and 8 + g.
struct TileSums {
  Softmax softmax[2];
  float values[2][8];
};

// A lane's part of a tile's queries, in registers between the GPU's memory and shared memory.
template <int KIND>
struct QueryLoad {
  using T = HeadTiles<KIND>;
  static constexpr int RUNS = T::STEPS * 2 * 32;
  static constexpr int COUNT = ceil_div(RUNS, CONSUMERS);
  uint4 words[COUNT];

  __device__ __forceinline__ void load(const Cta& cta, const Tile& tile) {
    const uint16_t* from =
        at<const uint16_t>(cta.memory.queries) + tile.token * QUERY_VALUES +
        (tile.first_head / T::GROUP * T::COUNT + tile.first_head % T::GROUP / TILE_HEADS) *
            T::QUERY_VALUES;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      words[i] = ptx::load_l2(from + smaller(cta.thread() + i * CONSUMERS, RUNS - 1) * 8);
  }

  __device__ __forceinline__ void store(const Cta& cta, uint4* to) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int k = cta.thread() + i * CONSUMERS;
      // Memory beyond the last dimension is uninitialised.
      const bool low = k / 32 * 16 < T::A.qk_dim, high = k / 32 * 16 + 8 < T::A.qk_dim;
      const uint4& w = words[i];
      if (k < RUNS)
        to[k] = make_uint4(low ? w.x : 0, low ? w.y : 0, high ? w.z : 0, high ? w.w : 0);
    }
  }
};

// Scores of this warp's piece, `[keys g.., keys 8 + g..]`. Each is the sum of two, so that
// consecutive products do not depend on one another.
template <int KIND, int PIECES>
__device__ __forceinline__ void multiply_keys(const HeldKeys<KIND, PIECES>& held,
                                              const uint4* queries, int lane,
                                              float (&scores)[2][4]) {
  float others[2][4] = {};
#pragma unroll
  for (int step = 0; step < HeadTiles<KIND>::STEPS; step++) {
    const uint4 low = queries[step * 64 + lane], high = queries[step * 64 + 32 + lane];
    const uint32_t a[4] = {low.x, low.y, low.z, low.w};
    const uint32_t b[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4& key = held.keys[half][step];
      ptx::mma(scores[half], a, key.x, key.y);
      ptx::mma(others[half], b, key.z, key.w);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 4; i++) scores[half][i] += others[half][i];
}

// This warp's scores of its piece, masked by `range`, and the largest of each head.
template <int KIND, int PIECES>
__device__ __forceinline__ void score(const HeldKeys<KIND, PIECES>& held, int piece,
                                      TileMemory<KIND, PIECES>& memory, const Range& range,
                                      float (&scores)[2][4]) {
  const int lane = held.lane;
  const uint32_t first = held.base + piece * PIECE_KEYS;
  float largest[2] = {LOWEST, LOWEST};
  const bool sees = !intersect(range, {first, first + PIECE_KEYS}).empty();
  if (sees) multiply_keys<KIND, PIECES>(held, memory.queries, lane, scores);
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float& s = scores[half][i];
      // An infinite score, also a negative one, becomes NaN: it must not get a weight of zero.
      s = fmaf(s, 0.0f, s);
      if (!range.has(first + half * 8 + lane % 4 * 2 + i % 2)) s = LOWEST;
      largest[i / 2] = fmaxf(largest[i / 2], s);
    }
#pragma unroll
  for (int row = 0; row < 2; row++) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      largest[row] = fmaxf(largest[row], __shfl_xor_sync(~0u, largest[row], distance));
    if (lane % 4 == 0)
      reinterpret_cast<float*>(memory.largest[row * 8 + lane / 4])[piece] = largest[row];
  }
}

// The largest score of a head over all pieces.
template <int KIND, int PIECES>
__device__ __forceinline__ float largest_of(const TileMemory<KIND, PIECES>& memory, int head) {
  float largest = LOWEST;
#pragma unroll
  for (int i = 0; i < ceil_div(PIECES, 4); i++) {
    const float4 four = memory.largest[head][i];
    largest = fmaxf(largest, four.x);
    if (i * 4 + 1 < PIECES) largest = fmaxf(largest, four.y);
    if (i * 4 + 2 < PIECES) largest = fmaxf(largest, four.z);
    if (i * 4 + 3 < PIECES) largest = fmaxf(largest, four.w);
  }
  return largest * score_scale<KIND>();
}

// Writes the weights of this warp's piece.
template <int KIND, int PIECES>
__device__ __forceinline__ void weigh(TileMemory<KIND, PIECES>& memory, int lane, int piece,
                                      float (&scores)[2][4]) {
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const float largest = largest_of<KIND, PIECES>(memory, row * 8 + lane / 4);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = row * 2; i < row * 2 + 2; i++)
        scores[half][i] = ptx::exp2(fmaf(scores[half][i], score_scale<KIND>(), -largest));
  }
  memory.weights[piece * 32 + lane] = make_uint4(
      ptx::pack_bf16(scores[0][0], scores[0][1]), ptx::pack_bf16(scores[0][2], scores[0][3]),
      ptx::pack_bf16(scores[1][0], scores[1][1]), ptx::pack_bf16(scores[1][2], scores[1][3]));
}

// The weighted sum of this warp's dimensions of the values over its share of the pieces. The sum of
// weights is the weighted sum of ones.
template <int KIND, int PIECES>
__device__ __forceinline__ void add_values(const Warps<KIND>& warps,
                                           const HeldKeys<KIND, PIECES>& held,
                                           const TileMemory<KIND, PIECES>& memory,
                                           TileSums& result) {
  constexpr int SHARE = HeldKeys<KIND, PIECES>::SHARE;
  constexpr uint32_t ONES = 0x3f803f80;
  float sums[5][4] = {};
#pragma unroll
  for (int i = 0; i < SHARE; i++) {
    if (!warps.template has_piece<PIECES>(i)) break;
    const uint4 w = memory.weights[(warps.share * SHARE + i) * 32 + held.lane];
    const uint32_t a[4] = {w.x, w.y, w.z, w.w};
    const uint2(&v)[4] = held.values[i];
#pragma unroll
    for (int dim = 0; dim < 4; dim++) {
      const uint32_t order = dim % 2 == 0 ? 0x5410 : 0x7632;
      auto two = [&](int key) {
        return dim < 2 ? __byte_perm(v[key].x, v[key + 1].x, order)
                       : __byte_perm(v[key].y, v[key + 1].y, order);
      };
      ptx::mma(sums[dim], a, two(0), two(2));
    }
    ptx::mma(sums[4], a, ONES, ONES);
  }
#pragma unroll
  for (int row = 0; row < 2; row++) {
    result.softmax[row].sum = sums[4][row * 2];
#pragma unroll
    for (int dim = 0; dim < 4; dim++)
#pragma unroll
      for (int j = 0; j < 2; j++) result.values[row][dim + j * 4] = sums[dim][row * 2 + j];
  }
}

// A strip's other warps write their partial sums.
template <int KIND, int PIECES>
__device__ __forceinline__ void publish(TileMemory<KIND, PIECES>& memory,
                                          const Warps<KIND>& warps, int lane,
                                          const TileSums& sums) {
  const int place = (warps.share - 1) * Warps<KIND>::STRIPS + warps.strip;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float* v = &sums.values[i / 2][i % 2 * 4];
    memory.values[(place * 4 + i) * 32 + lane] = make_float4(v[0], v[1], v[2], v[3]);
  }
  memory.sums[place * 32 + lane] = make_float2(sums.softmax[0].sum, sums.softmax[1].sum);
}

// The first warp of the strip adds them, in order.
template <int KIND, int PIECES>
__device__ __forceinline__ void add_partials(const TileMemory<KIND, PIECES>& memory, int strip,
                                          int lane, TileSums& sums) {
#pragma unroll
  for (int other = 0; other < TileMemory<KIND, PIECES>::OTHERS; other++) {
    const int place = other * Warps<KIND>::STRIPS + strip;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float* v = &sums.values[i / 2][i % 2 * 4];
      const float4 values = memory.values[(place * 4 + i) * 32 + lane];
      v[0] += values.x;
      v[1] += values.y;
      v[2] += values.z;
      v[3] += values.w;
    }
    const float2 weights = memory.sums[place * 32 + lane];
    sums.softmax[0].sum += weights.x;
    sums.softmax[1].sum += weights.y;
  }
}

// Multiplies `tile_of(i)`, for `i` from 0 to `count` - 1, with the held keys. The first warp of
// each strip calls `use(i, tile, strip, sums)` for tiles to which any of the keys is visible. The
// first tile's queries are given.
template <int KIND, int PIECES, class TileOf, class Use>
__device__ __forceinline__ void attend(const Cta& cta, TileMemory<KIND, PIECES>& memory,
                                       const HeldKeys<KIND, PIECES>& held,
                                       QueryLoad<KIND>& queries, int count, TileOf tile_of,
                                       Use use) {
  const Warps<KIND> warps(cta);
  queries.store(cta, memory.queries);
  cta.sync();
#pragma unroll 1
  for (int i = 0; i < count; i++) {
    const Tile tile = tile_of(i);
    const uint32_t end = held.base + PIECES * PIECE_KEYS;
    const bool sees = !intersect(tile.range, {held.base, end}).empty();
    if (i + 1 < count) queries.load(cta, tile_of(i + 1));
    float scores[2][4] = {};
    if (cta.warp() < PIECES)
      score<KIND, PIECES>(held, cta.warp(), memory, tile.range, scores);
    cta.sync();
    if (i + 1 < count) queries.store(cta, memory.queries);
    if (cta.warp() < PIECES) weigh<KIND, PIECES>(memory, held.lane, cta.warp(), scores);
    TileSums sums;
#pragma unroll
    for (int row = 0; row < 2; row++)
      sums.softmax[row].largest = largest_of<KIND, PIECES>(memory, row * 8 + held.lane / 4);
    cta.sync();
    if (warps.has_values()) {
      add_values<KIND, PIECES>(warps, held, memory, sums);
      if (warps.share > 0) publish<KIND, PIECES>(memory, warps, held.lane, sums);
    }
    cta.sync();
    if (warps.share == 0) {
      add_partials<KIND, PIECES>(memory, warps.strip, held.lane, sums);
      if (sees) use(i, tile, warps.strip, sums);
    }
  }
}

}  // namespace kilotok
