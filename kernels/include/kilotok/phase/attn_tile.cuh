// One tile of queries, up to 16 heads of one token, meets the keys that the CTA holds: scores by
// the warps that hold keys, then weighted values by those that hold values.
//
// Queries, keys, weights and values are BF16, all sums F32. Each piece of 16 keys has its own
// largest score, and pieces are added in order of their positions; a piece of which a token sees
// nothing does not exist for it. So it does not matter what else is held.
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

template <int KIND, int PIECES>
struct TileMemory {
  // `[steps][rows g, rows 8 + g][lanes]`
  uint4 queries[HeadTiles<KIND>::STEPS * 2 * 32];
  // `[pieces][lanes]`, operand A of the values' multiplication.
  uint4 weights[PIECES * 32];
  Weighed weighed[PIECES][TILE_HEADS];
};

// Which tile, and the keys that it sees.
struct Tile {
  int token, first_head;
  Range range;
};

// What a lane has of a tile's result: of heads g and 8 + g dimensions 16 warp + 4q to + 3.
struct TileSums {
  Weighed weighed[2];
  float values[2][4];
};

// A lane's part of a tile's queries, on its way to shared memory.
template <int KIND>
struct QueryLoad {
  using T = HeadTiles<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int RUNS = T::STEPS * 4;
  static constexpr int COUNT = ceil_div(TILE_HEADS * RUNS, CONSUMERS);
  uint4 words[COUNT];

  static __device__ __forceinline__ bool has(const Tile& tile, int head, int run) {
    return T::has(tile.first_head, head) && run < A.qk_dim / 8;
  }

  __device__ __forceinline__ void load(const Cta& cta, const Tile& tile) {
    const uint16_t* from = at<const uint16_t>(cta.memory.queries) + tile.token * QUERY_VALUES +
                           tile.first_head * A.qk_dim;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int k = cta.thread() + i * CONSUMERS, head = k / RUNS, run = k % RUNS;
      words[i] = ptx::load_l2(from + (has(tile, head, run) ? head * A.qk_dim + run * 8 : 0));
    }
  }

  __device__ __forceinline__ void store(const Cta& cta, const Tile& tile, uint4* to) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int k = cta.thread() + i * CONSUMERS, head = k / RUNS, run = k % RUNS;
      if (head < TILE_HEADS)
        to[(run / 4 * 2 + head / 8) * 32 + head % 8 * 4 + run % 4] =
            has(tile, head, run) ? words[i] : make_uint4(0, 0, 0, 0);
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
    const uint32_t a[4] = {low.x, high.x, low.y, high.y};
    const uint32_t b[4] = {low.z, high.z, low.w, high.w};
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

// Weights of this warp's piece, each relative to the largest of its head.
template <int KIND, int PIECES>
__device__ __forceinline__ void weigh(const Cta& cta, const HeldKeys<KIND, PIECES>& held,
                                      TileMemory<KIND, PIECES>& memory, const Range& range) {
  const int lane = cta.lane(), piece = cta.warp();
  const float scale = LOG2_E / sqrtf(static_cast<float>(ATTENTIONS[KIND].qk_dim));
  float scores[2][4] = {};
  multiply_keys<KIND, PIECES>(held, memory.queries, lane, scores);
  Weighed rows[2] = {{LOWEST, 0}, {LOWEST, 0}};
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float& score = scores[half][i];
      const uint32_t position = held.base + piece * PIECE_KEYS + half * 8 + lane % 4 * 2 + i % 2;
      // What overflowed, also downwards, becomes a NaN: it must not weigh nothing.
      score = range.has(position) ? fmaf(score * scale, 0.0f, score * scale) : LOWEST;
      rows[i / 2].largest = fmaxf(rows[i / 2].largest, score);
    }
#pragma unroll
  for (int row = 0; row < 2; row++)
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      rows[row].largest =
          fmaxf(rows[row].largest, __shfl_xor_sync(~0u, rows[row].largest, distance));
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      scores[half][i] = exp2_of(scores[half][i] - rows[i / 2].largest);
      rows[i / 2].sum += scores[half][i];
    }
#pragma unroll
  for (int row = 0; row < 2; row++) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      rows[row].sum += __shfl_xor_sync(~0u, rows[row].sum, distance);
    if (lane % 4 == 0) memory.weighed[piece][row * 8 + lane / 4] = rows[row];
  }
  memory.weights[piece * 32 + lane] = make_uint4(
      ptx::pack_bf16(scores[0][0], scores[0][1]), ptx::pack_bf16(scores[0][2], scores[0][3]),
      ptx::pack_bf16(scores[1][0], scores[1][1]), ptx::pack_bf16(scores[1][2], scores[1][3]));
}

// This warp's dimensions of the values, weighted and added over pieces `first` to `end`.
template <int KIND, int PIECES>
__device__ __forceinline__ TileSums add_values(const Cta& cta, const HeldKeys<KIND, PIECES>& held,
                                               const TileMemory<KIND, PIECES>& memory, int first,
                                               int end) {
  const int lane = cta.lane();
  TileSums sums = {{{LOWEST, 0}, {LOWEST, 0}}, {}};
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
    for (int row = 0; row < 2; row++)
      if (piece >= first && piece < end)
        sums.weighed[row].largest = fmaxf(sums.weighed[row].largest,
                                          memory.weighed[piece][row * 8 + lane / 4].largest);
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) {
    if (piece < first || piece >= end) continue;
    const uint4 w = memory.weights[piece * 32 + lane];
    const uint32_t a[4] = {w.x, w.y, w.z, w.w};
    const uint32_t(&v)[4] = held.values[piece];
    float even[4] = {}, odd[4] = {};
    ptx::mma(even, a, __byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410));
    ptx::mma(odd, a, __byte_perm(v[0], v[1], 0x7632), __byte_perm(v[2], v[3], 0x7632));
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const Weighed& weighed = memory.weighed[piece][row * 8 + lane / 4];
      const float factor = exp2_of(weighed.largest - sums.weighed[row].largest);
      sums.weighed[row].sum += factor * weighed.sum;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        sums.values[row][i * 2] += factor * even[row * 2 + i];
        sums.values[row][i * 2 + 1] += factor * odd[row * 2 + i];
      }
    }
  }
  return sums;
}

// Two memories in turn, so that a tile costs one barrier of the CTA.
template <int KIND, int PIECES>
struct TileWalk {
  TileMemory<KIND, PIECES>* memories;
  int turn;

  // `tile_of(i)` for `i` from 0 to `count` meet the held keys: `use(i, tile, sums)` by those warps
  // that hold values, for tiles which see any of them.
  template <class TileOf, class Use>
  __device__ __forceinline__ void run(const Cta& cta, const HeldKeys<KIND, PIECES>& held,
                                      QueryLoad<KIND>& queries, int count, TileOf tile_of,
                                      Use use) {
    queries.store(cta, tile_of(0), memories[turn].queries);
    cta.sync();
#pragma unroll 1
    for (int i = 0; i < count; i++) {
      TileMemory<KIND, PIECES>& memory = memories[turn];
      turn ^= 1;
      const Tile tile = tile_of(i);
      const Range seen =
          both(tile.range, {held.base, held.base + static_cast<uint32_t>(PIECES) * PIECE_KEYS});
      const int first = static_cast<int>(seen.first - held.base) / PIECE_KEYS;
      const int end = seen.empty() ? first : ceil_div(seen.end - held.base, PIECE_KEYS);
      if (i + 1 < count) queries.load(cta, tile_of(i + 1));
      if (cta.warp() >= first && cta.warp() < end)
        weigh<KIND, PIECES>(cta, held, memory, tile.range);
      if (i + 1 < count) queries.store(cta, tile_of(i + 1), memories[turn].queries);
      cta.sync();
      if (first < end && cta.warp() < HeadTiles<KIND>::VALUE_WARPS)
        use(i, tile, add_values<KIND, PIECES>(cta, held, memory, first, end));
    }
  }
};

}  // namespace kilotok
