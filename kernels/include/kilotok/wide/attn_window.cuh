// Attention over a short window. A CTA loads the keys of a tile of 16 positions and of the windows
// before them into shared memory. A warp computes one token and head tile at a time.
//
// The order of sums is that of phase/attn_tile.cuh: weights are relative to the largest score of
// all pieces, and pieces are added in shares, whose sums are added in order.
#pragma once

#include "kilotok/wide/attn_full.cuh"

namespace kilotok::wide {

constexpr int WINDOW_POSITIONS = PIECE_KEYS;
// Shared memory for the stages of the rings: a CTA's, without what `WindowShared` and `RowsShared`
// have beside them.
constexpr int WINDOW_STAGES_BYTES = 224 << 10, ROWS_STAGES_BYTES = 216 << 10;

template <int KIND>
struct WindowSizes {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int KEY_BYTES = A.qk_dim * 2, VALUE_BYTES = A.v_dim * 2;
  // Keys that a tile's tokens see, rounded to whole pieces.
  static constexpr int KEYS = align_up(A.window - 1, PIECE_KEYS) + WINDOW_POSITIONS;
  static constexpr int STAGE_BYTES = KEYS * (KEY_BYTES + VALUE_BYTES);
  // Stages of the ring.
  static constexpr int STAGES = smaller(3, WINDOW_STAGES_BYTES / STAGE_BYTES);
  // Dimensions of values that a warp computes at a time.
  static constexpr int STRIP = smaller(A.v_dim, 64);
  // Keys of one bulk copy: they lie together in a page.
  static constexpr int COPY = PAGE_TOKENS % PIECE_KEYS == 0 ? PIECE_KEYS : GROUP_KEYS;
  // Whether the kernels have this window: the narrow pass does not split it into chunks, strips are
  // whole, and a tile's keys fit shared memory.
  static constexpr bool FIT = A.window > 0 && WINDOW_PIECES<KIND> <= CONSUMER_WARPS &&
                              A.v_dim % STRIP == 0 && STRIP % 16 == 0 &&
                              STAGE_BYTES <= ROWS_STAGES_BYTES;
};

template <int KIND>
struct WindowShared {
  using S = WindowSizes<KIND>;
  alignas(128) char keys[S::STAGES][S::KEYS * S::KEY_BYTES];
  alignas(128) char values[S::STAGES][S::KEYS * S::VALUE_BYTES];
  alignas(8) uint64_t full[S::STAGES], empty[S::STAGES];
};

// The positions of the keys that a tile's tokens see, and that of their first piece.
template <int KIND>
struct WindowRange {
  uint32_t base, first, end;
  __device__ __forceinline__ explicit WindowRange(const QueryTile& tile)
      : first(window_first<KIND>(tile.first)), end(tile.end) {
    base = first / PIECE_KEYS * PIECE_KEYS;
  }
};

// Adds the products of 32 dimensions of the queries with eight keys, which begin at `from`, to the
// sums of even and of odd steps.
template <int KIND>
__device__ __forceinline__ void add_scores(float (&even)[4], float (&odd)[4],
                                           const uint4 (&queries)[HeadTiles<KIND>::STEPS * 2],
                                           int step, uint32_t from, int lane) {
  const uint4 &low = queries[step * 2], &high = queries[step * 2 + 1];
  const uint32_t a[4] = {low.x, low.y, low.z, low.w};
  const uint32_t b[4] = {high.x, high.y, high.z, high.w};
  // The last step may have fewer dimensions.
  const int run = smaller(step * 4 + lane / 8, ATTENTIONS[KIND].qk_dim / 8 - 1);
  const uint4 k = ptx::load_matrices(from + run * PIECE_BYTES);
  ptx::mma(even, a, k.x, k.y);
  ptx::mma(odd, b, k.z, k.w);
}

// A warp's token and head tile.
template <int KIND>
struct WindowHeads {
  using S = WindowSizes<KIND>;
  using T = HeadTiles<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int PIECES = WINDOW_PIECES<KIND>;
  static constexpr int SHARE = ceil_div(PIECES, Warps<KIND>::SHARES);
  static constexpr int STRIP = S::STRIP, RUNS = STRIP / 8;

  int lane;
  // The token's first piece: addresses of its keys and values, and its position.
  uint32_t keys, values;
  uint32_t base;
  Range range;

  Softmax softmax[2];
  uint32_t weights[PIECES][4];

  // Computes the weights of all pieces.
  __device__ __forceinline__ void weigh(const uint16_t* queries) {
    float scores[PIECES][2][4];
    multiply_keys(queries, scores);
    float largest[2] = {LOWEST, LOWEST};
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
      for (int i = 0; i < 8; i++) {
        float& s = scores[piece][i / 4][i % 4];
        // A score that overflowed, also to -infinity, becomes NaN: its weight must not be zero.
        s = fmaf(s, 0.0f, s);
        if (!range.has(base + piece * PIECE_KEYS + i / 4 * 8 + lane % 4 * 2 + i % 2)) s = LOWEST;
        largest[i % 4 / 2] = fmaxf(largest[i % 4 / 2], s);
      }
#pragma unroll
    for (int row = 0; row < 2; row++) {
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2)
        largest[row] = fmaxf(largest[row], __shfl_xor_sync(~0u, largest[row], distance));
      softmax[row] = {largest[row] * score_scale<KIND>(), 0};
    }
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const auto weight = [&](int j) {
          return ptx::exp2(fmaf(scores[piece][i / 2][i % 2 * 2 + j], score_scale<KIND>(),
                                -softmax[i % 2].largest));
        };
        weights[piece][i] = ptx::pack_bf16(weight(0), weight(1));
      }
  }

  // Calls `use(strip, values)` with the sums of each strip, as `mma` has them.
  template <class Use>
  __device__ __forceinline__ void add_values(Use use) {
#pragma unroll 1
    for (int strip = 0; strip < A.v_dim / STRIP; strip++) {
      float total[RUNS][4] = {}, sum[4] = {};
#pragma unroll
      for (int first = 0; first < PIECES; first += SHARE) {
        float part[RUNS][4] = {}, part_sum[4] = {};
#pragma unroll
        for (int piece = first; piece < smaller(first + SHARE, PIECES); piece++)
          if (sees(piece)) add_piece(strip, piece, part, part_sum);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = first == 0 ? part_sum[i] : sum[i] + part_sum[i];
#pragma unroll
        for (int run = 0; run < RUNS; run++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            total[run][i] = first == 0 ? part[run][i] : total[run][i] + part[run][i];
      }
      softmax[0].sum = sum[0];
      softmax[1].sum = sum[2];
      use(strip, total);
    }
  }

 private:
  // Whether the token sees any key of a piece. Later pieces may not be in shared memory.
  __device__ __forceinline__ bool sees(int piece) const {
    return base + piece * PIECE_KEYS < range.end;
  }

  // The halves of the steps have separate sums, as in the narrow pass.
  __device__ __forceinline__ void multiply_keys(const uint16_t* queries,
                                                float (&scores)[PIECES][2][4]) const {
    uint4 held[T::STEPS * 2];
#pragma unroll
    for (int half = 0; half < T::STEPS * 2; half++) held[half] = query(queries, half);
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float(&sums)[4] = scores[piece][half];
        float others[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] = 0;
        if (!sees(piece)) continue;
        const uint32_t from =
            keys + (piece * 2 + half) * (GROUP_KEYS * S::KEY_BYTES) + lane % 8 * 16;
#pragma unroll
        for (int step = 0; step < T::STEPS; step++)
          add_scores<KIND>(sums, others, held, step, from, lane);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i] += others[i];
      }
  }

  // Memory beyond the last dimension is uninitialised.
  __device__ __forceinline__ uint4 query(const uint16_t* queries, int half) const {
    const uint4 v = ptx::load_cached(queries + (half * 32 + lane) * 8);
    const bool low = half * 16 < A.qk_dim, high = half * 16 + 8 < A.qk_dim;
    return make_uint4(low ? v.x : 0, low ? v.y : 0, high ? v.z : 0, high ? v.w : 0);
  }

  __device__ __forceinline__ void add_piece(int strip, int piece, float (&part)[RUNS][4],
                                            float (&part_sum)[4]) const {
    constexpr uint32_t ONES = 0x3f803f80;
    constexpr int GROUP_BYTES = GROUP_KEYS * S::VALUE_BYTES;
    const uint32_t from = values + (piece * 2 + lane / 8 % 2) * GROUP_BYTES +
                          (strip * RUNS + lane / 16) * PIECE_BYTES + lane % 8 * 16;
    ptx::mma(part_sum, weights[piece], ONES, ONES);
#pragma unroll
    for (int run = 0; run < RUNS; run += 2) {
      const uint4 v = ptx::load_turned(from + run * PIECE_BYTES);
      ptx::mma(part[run], weights[piece], v.x, v.y);
      ptx::mma(part[run + 1], weights[piece], v.z, v.w);
    }
  }
};

// All consumers: clears a stage's values from a key on, because uninitialised memory could be NaN.
template <int KIND>
__device__ __forceinline__ void clear_values(char* stage, uint32_t from) {
  constexpr int DIMS = ATTENTIONS[KIND].v_dim, RUNS = DIMS / 8;
  const uint32_t to = ptx::shared_address(stage);
  for (uint32_t i = from * RUNS + threadIdx.x; i < WindowSizes<KIND>::KEYS * RUNS; i += CONSUMERS)
    ptx::store_shared(
        to + static_cast<uint32_t>(cache_offset<DIMS>(i / RUNS, i % RUNS * 8)) * 2,
        make_uint4(0, 0, 0, 0));
  ptx::sync_threads<CONSUMERS>();
}

template <int KIND>
struct WindowConsumer {
  using S = WindowSizes<KIND>;
  using T = HeadTiles<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  const AttnMemory& memory;
  WindowShared<KIND>& shared;
  StageRing<S::STAGES> ring;

  __device__ __forceinline__ void attend_tile(const QueryTile& tile) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const BatchRow& row = memory.step.row(tile.row);
    const WindowRange<KIND> range(tile);
    ring.wait();
    // Clears the values after the tile's last token.
    if (tile.end < range.base + S::KEYS)
      clear_values<KIND>(shared.values[ring.stage], tile.end - range.base);
    const int count = static_cast<int>(tile.end - tile.first) * T::COUNT;
#pragma unroll 1
    for (int unit = warp; unit < count; unit += CONSUMERS / 32)
      attend_token(tile, row, range.base, tile.first + unit / T::COUNT, unit % T::COUNT, lane);
    ptx::reads_before_copies();
    ring.release(lane);
  }

  __device__ __forceinline__ void attend_token(const QueryTile& tile, const BatchRow& row,
                                              uint32_t tile_base, uint32_t position, int head_tile,
                                              int lane) const {
    const int token = token_at(row, position);
    const uint32_t first = window_first<KIND>(position), base = first / PIECE_KEYS * PIECE_KEYS;
    WindowHeads<KIND> held;
    held.lane = lane;
    held.base = base;
    held.range = {first, position + 1};
    held.keys = ptx::shared_address(shared.keys[ring.stage]) + (base - tile_base) * S::KEY_BYTES;
    held.values =
        ptx::shared_address(shared.values[ring.stage]) + (base - tile_base) * S::VALUE_BYTES;
    held.weigh(at<const uint16_t>(memory.queries) + static_cast<size_t>(token) * QUERY_VALUES +
               (tile.kv_head * T::COUNT + head_tile) * T::QUERY_VALUES);
    const int first_head = tile.kv_head * T::GROUP + head_tile * TILE_HEADS;
    held.add_values([&](int strip, const float(&values)[WindowHeads<KIND>::RUNS][4]) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int in_tile = half * 8 + lane / 4, head = first_head + in_tile;
        if (!T::has(first_head, in_tile)) continue;
        const float factor = softmax_scale<KIND>(held.softmax[half], sink_of<KIND>(memory, head));
#pragma unroll
        for (int run = 0; run < WindowHeads<KIND>::RUNS; run++)
          store_attended<KIND>(memory, token, head,
                               strip * WindowHeads<KIND>::STRIP + run * 8 + lane % 4 * 2,
                               values[run][half * 2] * factor, values[run][half * 2 + 1] * factor);
      }
    });
  }
};

// The producer: keys and values of a tile. A copy of keys that no token sees is replaced by the
// nearest one with visible keys, because pages before a window may not exist.
template <int KIND, class Shared, class Ring>
__device__ __forceinline__ void produce_window(const AttnMemory& memory, Shared& shared, Ring& ring,
                                               const QueryTile& tile) {
  using S = WindowSizes<KIND>;
  constexpr int COPIES = S::KEYS / S::COPY;
  const BatchRow row = memory.step.row(tile.row);
  const KeySource<KIND> source = key_source<KIND>(memory, row, tile.kv_head);
  const WindowRange<KIND> range(tile);
  uint32_t places[COPIES];
#pragma unroll
  for (int i = 0; i < COPIES; i++)
    places[i] = source.place(max(min(range.base + i * S::COPY, (range.end - 1) / S::COPY * S::COPY),
                                 range.first / S::COPY * S::COPY));
  ring.acquire(S::STAGE_BYTES);
#pragma unroll
  for (int i = 0; i < COPIES; i++) {
    ptx::bulk_copy(ptx::shared_address(shared.keys[ring.stage]) + i * S::COPY * S::KEY_BYTES,
                   source.keys + size_t{places[i]} * S::KEY_BYTES, S::COPY * S::KEY_BYTES,
                   ring.barrier());
    ptx::bulk_copy(ptx::shared_address(shared.values[ring.stage]) + i * S::COPY * S::VALUE_BYTES,
                   source.values + size_t{places[i]} * S::VALUE_BYTES, S::COPY * S::VALUE_BYTES,
                   ring.barrier());
  }
  ring.next();
}

// All threads of all CTAs, THREADS each.
template <int KIND>
__device__ __forceinline__ void attn_window(WindowShared<KIND>& shared, const AttnMemory& memory) {
  using Ring = StageRing<WindowSizes<KIND>::STAGES>;
  if (threadIdx.x == 0) Ring(shared.full, shared.empty).init();
  __syncthreads();
  const auto for_each = [&](auto use) {
    TileWalk<KIND, WINDOW_POSITIONS> walk(memory.step);
    QueryTile tile;
    while (walk.next(tile)) use(tile);
  };
  with_roles(
      [&] {
        WindowConsumer<KIND> consumer = {memory, shared, Ring(shared.full, shared.empty)};
        for_each([&](const QueryTile& tile) { consumer.attend_tile(tile); });
      },
      [&] {
        Ring ring(shared.full, shared.empty);
        for_each([&](const QueryTile& tile) {
          produce_window<KIND>(memory, shared, ring, tile);
        });
      });
}

}  // namespace kilotok::wide
