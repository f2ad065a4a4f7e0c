// Attention over a short window in a step with many rows, as decoding users have it, with the bits
// of wide/attn_window.cuh. The tiles of all rows are counted first (`TileTable`). The heads of a
// token are computed by all warps together: a warp takes half a piece of the keys, then some
// dimensions of the values.
#pragma once

#include "kilotok/wide/attn.cuh"

namespace kilotok::wide {

template <int KIND>
struct RowsShared {
  using S = WindowSizes<KIND>;
  static constexpr int HALVES = 2 * WINDOW_PIECES<KIND>;
  static constexpr int STAGES = smaller(2, ROWS_STAGES_BYTES / S::STAGE_BYTES);
  alignas(128) char keys[STAGES][S::KEYS * S::KEY_BYTES];
  alignas(128) char values[STAGES][S::KEYS * S::VALUE_BYTES];
  alignas(8) uint64_t full[STAGES], empty[STAGES];
  // For each head the largest score of every half of a piece.
  float largest[TILE_HEADS][HALVES];
  // Operand A of the product with the values.
  uint2 weights[HALVES / 2][32][2];
  TileTable<KIND, WINDOW_POSITIONS> table;
};

// The consumers of a CTA, at a token and head tile of one of its tiles.
template <int KIND>
struct WindowTogether {
  using S = WindowSizes<KIND>;
  using T = HeadTiles<KIND>;
  using Shared = RowsShared<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int PIECES = WINDOW_PIECES<KIND>, HALVES = Shared::HALVES;
  static constexpr int SHARE = ceil_div(PIECES, Warps<KIND>::SHARES);
  static constexpr int WARPS = CONSUMERS / 32, HALVES_EACH = ceil_div(HALVES, WARPS);
  // Runs of eight dimensions of values that a warp computes at a time.
  static constexpr int RUNS = 2;
  static_assert(A.v_dim / 8 % RUNS == 0, "they are whole");

  const AttnMemory& memory;
  Shared& shared;
  int warp, lane;
  // The token's first piece: addresses of its keys and values, and its position.
  uint32_t keys = 0, values = 0, base = 0;
  Range range = {};
  // The token's queries as operand A, the halves of all steps.
  uint4 queries[T::STEPS * 2];
  Softmax softmax[2];

  // Memory beyond the last dimension is uninitialised.
  __device__ __forceinline__ void load_queries(int token, int head_tile) {
    const uint16_t* from = at<const uint16_t>(memory.queries) +
                           static_cast<size_t>(token) * QUERY_VALUES + head_tile * T::QUERY_VALUES;
#pragma unroll
    for (int half = 0; half < T::STEPS * 2; half++) {
      const uint4 v = ptx::load_cached(from + (half * 32 + lane) * 8);
      const bool low = half * 16 < A.qk_dim, high = half * 16 + 8 < A.qk_dim;
      queries[half] = make_uint4(low ? v.x : 0, low ? v.y : 0, high ? v.z : 0, high ? v.w : 0);
    }
  }

  // Begins a token at a position. The ring's stage has keys from `tile_base` on.
  __device__ __forceinline__ void begin(uint32_t position, int stage, uint32_t tile_base) {
    const uint32_t first = window_first<KIND>(position);
    base = first / PIECE_KEYS * PIECE_KEYS;
    range = {first, position + 1};
    keys = ptx::shared_address(shared.keys[stage]) + (base - tile_base) * S::KEY_BYTES;
    values = ptx::shared_address(shared.values[stage]) + (base - tile_base) * S::VALUE_BYTES;
  }

  // Leaves the weights of all keys in shared memory.
  __device__ __forceinline__ void weigh() {
    float scores[HALVES_EACH][4];
#pragma unroll
    for (int i = 0; i < HALVES_EACH; i++)
      if (warp + i * WARPS < HALVES) score(warp + i * WARPS, scores[i]);
    ptx::sync_threads<CONSUMERS>();
#pragma unroll
    for (int row = 0; row < 2; row++) {
      float largest = LOWEST;
#pragma unroll
      for (int half = 0; half < HALVES; half++)
        largest = fmaxf(largest, shared.largest[row * 8 + lane / 4][half]);
      softmax[row] = {largest * score_scale<KIND>(), 0};
    }
#pragma unroll
    for (int i = 0; i < HALVES_EACH; i++) {
      const int half = warp + i * WARPS;
      if (half >= HALVES) break;
      const auto weight = [&](int j) {
        return ptx::exp2(fmaf(scores[i][j], score_scale<KIND>(), -softmax[j / 2].largest));
      };
      shared.weights[half / 2][lane][half % 2] = make_uint2(
          ptx::pack_bf16(weight(0), weight(1)), ptx::pack_bf16(weight(2), weight(3)));
    }
    ptx::sync_threads<CONSUMERS>();
  }

  // Calls `use(first run, sums)` for the warp's runs of dimensions, with sums as `mma` has them.
  // Pieces are added in shares, whose sums are added in order.
  template <class Use>
  __device__ __forceinline__ void add_values(Use use) {
#pragma unroll 1
    for (int run = warp * RUNS; run < A.v_dim / 8; run += WARPS * RUNS) {
      float total[RUNS + 1][4] = {};
#pragma unroll
      for (int first = 0; first < PIECES; first += SHARE) {
        float part[RUNS + 1][4] = {};
#pragma unroll
        for (int piece = first; piece < smaller(first + SHARE, PIECES); piece++)
          if (sees(piece)) add_piece(run, piece, part);
#pragma unroll
        for (int i = 0; i <= RUNS; i++)
#pragma unroll
          for (int j = 0; j < 4; j++)
            total[i][j] = first == 0 ? part[i][j] : total[i][j] + part[i][j];
      }
      softmax[0].sum = total[RUNS][0];
      softmax[1].sum = total[RUNS][2];
      use(run, total);
    }
  }

 private:
  // Whether the token sees any key of a piece. Later pieces may not be in shared memory.
  __device__ __forceinline__ bool sees(int piece) const {
    return base + piece * PIECE_KEYS < range.end;
  }

  // The scores of half a piece, and the largest of each head. The halves of the steps have separate
  // sums, as in the narrow pass.
  __device__ __forceinline__ void score(int half, float (&scores)[4]) {
    float others[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) scores[i] = 0;
    const uint32_t from = keys + half * (GROUP_KEYS * S::KEY_BYTES) + lane % 8 * 16;
#pragma unroll
    for (int step = 0; step < T::STEPS && sees(half / 2); step++)
      add_scores<KIND>(scores, others, queries, step, from, lane);
    float largest[2] = {LOWEST, LOWEST};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      // A score that overflowed, also to -infinity, becomes NaN: its weight must not be zero.
      const float s = scores[i] + others[i], checked = fmaf(s, 0.0f, s);
      scores[i] = range.has(base + half * 8 + lane % 4 * 2 + i % 2) ? checked : LOWEST;
      largest[i / 2] = fmaxf(largest[i / 2], scores[i]);
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2)
        largest[row] = fmaxf(largest[row], __shfl_xor_sync(~0u, largest[row], distance));
      if (lane % 4 == 0) shared.largest[row * 8 + lane / 4][half] = largest[row];
    }
  }

  // The last sums are those of the weights.
  __device__ __forceinline__ void add_piece(int first_run, int piece,
                                            float (&part)[RUNS + 1][4]) const {
    constexpr uint32_t ONES = 0x3f803f80;
    constexpr int GROUP_BYTES = GROUP_KEYS * S::VALUE_BYTES;
    const uint2 low = shared.weights[piece][lane][0], high = shared.weights[piece][lane][1];
    const uint32_t weights[4] = {low.x, low.y, high.x, high.y};
    const uint4 v = ptx::load_turned(values + (piece * 2 + lane / 8 % 2) * GROUP_BYTES +
                                     (first_run + lane / 16) * PIECE_BYTES + lane % 8 * 16);
    ptx::mma(part[RUNS], weights, ONES, ONES);
    ptx::mma(part[0], weights, v.x, v.y);
    ptx::mma(part[1], weights, v.z, v.w);
  }
};

// All consumers: a tile.
template <int KIND, class Ring>
__device__ __forceinline__ void attend_together(WindowTogether<KIND>& window, Ring& ring,
                                             const QueryTile& tile) {
  using W = WindowTogether<KIND>;
  using T = HeadTiles<KIND>;
  const AttnMemory& memory = window.memory;
  const BatchRow& row = memory.step.row(tile.row);
  const WindowRange<KIND> range(tile);
  const int count = static_cast<int>(tile.end - tile.first) * T::COUNT;
  const auto position = [&](int unit) { return tile.first + unit / T::COUNT; };
  const auto load = [&](int unit) {
    window.load_queries(token_at(row, position(unit)), tile.kv_head * T::COUNT + unit % T::COUNT);
  };
  load(0);
  ring.wait();
  if (tile.end < range.base + WindowSizes<KIND>::KEYS)
    clear_values<KIND>(window.shared.values[ring.stage], tile.end - range.base);
#pragma unroll 1
  for (int unit = 0; unit < count; unit++) {
    window.begin(position(unit), ring.stage, range.base);
    window.weigh();
    if (unit + 1 < count) load(unit + 1);
    const int first_head = tile.kv_head * T::GROUP + unit % T::COUNT * TILE_HEADS;
    window.add_values([&](int run, const float(&sums)[W::RUNS + 1][4]) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int in_tile = half * 8 + window.lane / 4, head = first_head + in_tile;
        if (!T::has(first_head, in_tile)) continue;
        const float factor = softmax_scale<KIND>(window.softmax[half], sink_of<KIND>(memory, head));
#pragma unroll
        for (int i = 0; i < W::RUNS; i++)
          store_attended<KIND>(memory, token_at(row, position(unit)), head,
                               (run + i) * 8 + window.lane % 4 * 2, sums[i][half * 2] * factor,
                               sums[i][half * 2 + 1] * factor);
      }
    });
  }
  ptx::reads_before_copies();
  ring.release(window.lane);
}

// All threads of all CTAs, THREADS each. `shared` is unused before.
template <int KIND>
__device__ __forceinline__ void window_rows(RowsShared<KIND>& shared, const AttnMemory& memory) {
  using Ring = StageRing<RowsShared<KIND>::STAGES>;
  if (threadIdx.x == 0) Ring(shared.full, shared.empty).init();
  shared.table.fill(memory.step);
  const auto for_each = [&](auto use) {
    QueryTile tile;
    for (int turn = 0; shared.table.find(memory.step, turn, tile); turn++) use(tile);
  };
  with_roles(
      [&] {
        Ring ring(shared.full, shared.empty);
        WindowTogether<KIND> window = {memory, shared, static_cast<int>(threadIdx.x) / 32,
                                       static_cast<int>(threadIdx.x) % 32};
        for_each([&](const QueryTile& tile) { attend_together<KIND>(window, ring, tile); });
      },
      [&] {
        Ring ring(shared.full, shared.empty);
        for_each([&](const QueryTile& tile) {
          produce_window<KIND>(memory, shared, ring, tile);
        });
      });
}

}  // namespace kilotok::wide
