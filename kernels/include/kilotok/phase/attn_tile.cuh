// One tile of queries, up to 16 heads of one token, meets the keys that the CTA holds: scores by
// the warps that hold keys, weighted values by those that hold values, and their sum.
//
// Queries, keys, weights and values are BF16, all sums F32. Each piece of 16 keys has its own
// largest score, and pieces are added in order of their positions; one of which a token sees
// nothing adds zeros. So it does not matter what else is held.
#pragma once

#include "kilotok/phase/attn_keys.cuh"

namespace kilotok {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LOWEST = -__builtin_huge_valf();

__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The largest of some scores, as a power of two's exponent, and the sum of all weights below it.
struct Weighed {
  float largest, sum;
};

// What the pieces' weights are relative to, and their sums, by head.
template <int PIECES>
struct PieceSums {
  static constexpr int STRIDE = align_up(PIECES, 4);
  float4 largest[TILE_HEADS][STRIDE / 4];
  float4 sum[TILE_HEADS][STRIDE / 4];
};

template <int KIND, int PIECES>
struct TileMemory {
  // `[steps][halves][lanes]`
  uint4 queries[HeadTiles<KIND>::STEPS * 2 * 32];
  // `[pieces][lanes]`, operand A of the values' multiplication.
  uint4 weights[PIECES * 32];
  PieceSums<PIECES> pieces;
  // What the second of a pair of warps hands to the first, `[pairs][runs of 4][lanes]`.
  float4 values[Warps<KIND>::PAIRS * 4 * 32];
  float2 sums[Warps<KIND>::PAIRS * 32];
};

// Which tile, and the keys that it sees.
struct Tile {
  int token, first_head;
  Range range;
};

// What a lane has of a tile's result: of heads g and 8 + g dimensions 8q to 8q + 7 of its pair's.
struct TileSums {
  Weighed weighed[2];
  float values[2][8];
};

// A lane's part of a tile's queries, on its way to shared memory.
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
      // Nobody wrote what lies beyond the last dimension.
      const bool has = k / 64 * 32 + k % 4 * 8 < T::A.qk_dim;
      if (k < RUNS) to[k] = has ? words[i] : make_uint4(0, 0, 0, 0);
    }
  }
};

// Scores of this warp's piece, `[keys g.., keys 8 + g..]`. Two sums each, so that the tensor cores
// need not wait for one another.
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

// The largest of four lanes, or their sum.
template <bool SUM>
__device__ __forceinline__ float of_four(float value) {
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const float other = __shfl_xor_sync(~0u, value, distance);
    value = SUM ? value + other : fmaxf(value, other);
  }
  return value;
}

// Weights of this warp's piece, of which the tile sees `range`, each relative to the largest of its
// head.
template <int KIND, int PIECES>
__device__ __forceinline__ void weigh(const Cta& cta, const HeldKeys<KIND, PIECES>& held,
                                      TileMemory<KIND, PIECES>& memory, const Range& range) {
  const int lane = cta.lane(), piece = cta.warp();
  const float scale = LOG2_E / sqrtf(static_cast<float>(ATTENTIONS[KIND].qk_dim));
  const uint32_t first = held.base + piece * PIECE_KEYS;
  float scores[2][4] = {};
  Weighed rows[2] = {{LOWEST, 0}, {LOWEST, 0}};
  if (!both(range, {first, first + PIECE_KEYS}).empty()) {
    multiply_keys<KIND, PIECES>(held, memory.queries, lane, scores);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& score = scores[half][i];
        // What overflowed, also downwards, becomes a NaN: it must not weigh nothing.
        score = fmaf(score * scale, 0.0f, score * scale);
        if (!range.has(first + half * 8 + lane % 4 * 2 + i % 2)) score = LOWEST;
        rows[i / 2].largest = fmaxf(rows[i / 2].largest, score);
      }
#pragma unroll
    for (int row = 0; row < 2; row++) rows[row].largest = of_four<false>(rows[row].largest);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scores[half][i] = exp2_of(scores[half][i] - rows[i / 2].largest);
        rows[i / 2].sum += scores[half][i];
      }
#pragma unroll
    for (int row = 0; row < 2; row++) rows[row].sum = of_four<true>(rows[row].sum);
  }
  memory.weights[piece * 32 + lane] = make_uint4(
      ptx::pack_bf16(scores[0][0], scores[0][1]), ptx::pack_bf16(scores[0][2], scores[0][3]),
      ptx::pack_bf16(scores[1][0], scores[1][1]), ptx::pack_bf16(scores[1][2], scores[1][3]));
#pragma unroll
  for (int row = 0; row < 2; row++) {
    if (lane % 4 != 0) continue;
    reinterpret_cast<float*>(memory.pieces.largest[row * 8 + lane / 4])[piece] = rows[row].largest;
    reinterpret_cast<float*>(memory.pieces.sum[row * 8 + lane / 4])[piece] = rows[row].sum;
  }
}

// Of one head numbers of all pieces.
template <int PIECES>
struct ByPiece {
  float4 fours[PieceSums<PIECES>::STRIDE / 4];

  __device__ __forceinline__ explicit ByPiece(const float4 (&from)[PieceSums<PIECES>::STRIDE / 4]) {
#pragma unroll
    for (int i = 0; i < PieceSums<PIECES>::STRIDE / 4; i++) fours[i] = from[i];
  }
  __device__ __forceinline__ float of(int piece) const {
    const float4& four = fours[piece / 4];
    return piece % 4 == 0 ? four.x : piece % 4 == 1 ? four.y : piece % 4 == 2 ? four.z : four.w;
  }
};

// Factors of a half's pieces, and what they are relative to; the sum is of the half alone.
template <int PIECES>
__device__ __forceinline__ Weighed weigh_pieces(const PieceSums<PIECES>& pieces, int head,
                                                int half,
                                                float (&factors)[ceil_div(PIECES, 2)]) {
  constexpr int HALF = ceil_div(PIECES, 2);
  const ByPiece<PIECES> largest(pieces.largest[head]), sums(pieces.sum[head]);
  Weighed all = {LOWEST, 0};
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) all.largest = fmaxf(all.largest, largest.of(piece));
#pragma unroll
  for (int i = 0; i < HALF; i++) {
    const int second = smaller(HALF + i, PIECES - 1);
    factors[i] = exp2_of((half == 0 ? largest.of(i) : largest.of(second)) - all.largest);
    if (half == 0 || HALF + i < PIECES)
      all.sum += factors[i] * (half == 0 ? sums.of(i) : sums.of(second));
  }
  return all;
}

// This warp's dimensions of the values, weighted and added over its half of the pieces.
template <int KIND, int PIECES>
__device__ __forceinline__ TileSums add_values(const Cta& cta, const Warps<KIND>& warps,
                                               const HeldKeys<KIND, PIECES>& held,
                                               const TileMemory<KIND, PIECES>& memory) {
  constexpr int HALF = ceil_div(PIECES, 2);
  const int lane = cta.lane();
  TileSums sums = {};
  float factors[2][HALF];
#pragma unroll
  for (int row = 0; row < 2; row++)
    sums.weighed[row] =
        weigh_pieces<PIECES>(memory.pieces, row * 8 + lane / 4, warps.half, factors[row]);
#pragma unroll
  for (int i = 0; i < HALF; i++) {
    if (warps.half * HALF + i >= PIECES) break;
    const uint4 w = memory.weights[(warps.half * HALF + i) * 32 + lane];
    const uint32_t a[4] = {w.x, w.y, w.z, w.w};
    const uint2(&v)[4] = held.values[i];
#pragma unroll
    for (int dim = 0; dim < 4; dim++) {
      const uint32_t order = dim % 2 == 0 ? 0x5410 : 0x7632;
      auto two = [&](int key) {
        return dim < 2 ? __byte_perm(v[key].x, v[key + 1].x, order)
                       : __byte_perm(v[key].y, v[key + 1].y, order);
      };
      float products[4] = {};
      ptx::mma(products, a, two(0), two(2));
#pragma unroll
      for (int j = 0; j < 4; j++)
        sums.values[j / 2][dim + j % 2 * 4] += factors[j / 2][i] * products[j];
    }
  }
  return sums;
}

// The second of a pair of warps leaves its sums.
template <int KIND, int PIECES>
__device__ __forceinline__ void hand_over(TileMemory<KIND, PIECES>& memory, int pair, int lane,
                                          const TileSums& sums) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float* v = &sums.values[i / 2][i % 2 * 4];
    memory.values[(pair * 4 + i) * 32 + lane] = make_float4(v[0], v[1], v[2], v[3]);
  }
  memory.sums[pair * 32 + lane] = make_float2(sums.weighed[0].sum, sums.weighed[1].sum);
}

// The first of the pair takes them.
template <int KIND, int PIECES>
__device__ __forceinline__ void take_over(const TileMemory<KIND, PIECES>& memory, int pair,
                                          int lane, TileSums& sums) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float* v = &sums.values[i / 2][i % 2 * 4];
    const float4 other = memory.values[(pair * 4 + i) * 32 + lane];
    v[0] += other.x;
    v[1] += other.y;
    v[2] += other.z;
    v[3] += other.w;
  }
  const float2 other = memory.sums[pair * 32 + lane];
  sums.weighed[0].sum += other.x;
  sums.weighed[1].sum += other.y;
}

// `tile_of(i)` for `i` from 0 to `count` meet the held keys: `use(i, tile, pair, sums)` by the first
// warp of each pair, for tiles which see any of them. The first tile's queries are given.
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
    if (i + 1 < count) queries.load(cta, tile_of(i + 1));
    if (cta.warp() < PIECES) weigh<KIND, PIECES>(cta, held, memory, tile.range);
    cta.sync();
    if (i + 1 < count) queries.store(cta, memory.queries);
    TileSums sums;
    if (warps.has_values()) {
      sums = add_values<KIND, PIECES>(cta, warps, held, memory);
      if (warps.half == 1) hand_over<KIND, PIECES>(memory, warps.pair, cta.lane(), sums);
    }
    cta.sync();
    if (warps.half == 0) {
      take_over<KIND, PIECES>(memory, warps.pair, cta.lane(), sums);
      const uint32_t end = held.base + PIECES * PIECE_KEYS;
      if (!both(tile.range, {held.base, end}).empty()) use(i, tile, warps.pair, sums);
    }
  }
}

}  // namespace kilotok
