// Full attention by products of warpgroups. A CTA keeps the queries of a tile in shared memory,
// eight tokens times up to 16 heads, four tokens for each of two warpgroups, and goes through the
// keys 64 at a time. Sums stay in registers, so no partial results are stored.
//
// The order of sums is that of phase/attn_stream.cuh: an online softmax over each chunk, 32 keys at
// a time, and then the chunks one by one (`add_part`).
#pragma once

#include "kilotok/wide/attn_tiles.cuh"

namespace kilotok::wide {

constexpr int FULL_POSITIONS = 8, FULL_STAGES = 3, STAGE_KEYS = 64;
static_assert(CHUNK_KEYS % STAGE_KEYS == 0 && STAGE_KEYS % KEYS_AT_ONCE == 0, "stages are whole");
static_assert(CHUNK_KEYS * CHUNKS_MAX % FULL_POSITIONS == 0, "a tile's chunks have one length");

template <int KIND>
struct FullSizes {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int KEY_BYTES = A.qk_dim * 2, VALUE_BYTES = A.v_dim * 2;
  // The queries of a token, and of eight of its heads.
  static constexpr int QUERY_BYTES = TILE_HEADS * KEY_BYTES, HALF_BYTES = QUERY_BYTES / 2;
};

template <int KIND>
struct FullShared {
  using S = FullSizes<KIND>;
  alignas(128) char keys[FULL_STAGES][STAGE_KEYS * S::KEY_BYTES];
  alignas(128) char values[FULL_STAGES][STAGE_KEYS * S::VALUE_BYTES];
  // Of two tiles, so that the next tile's queries are loaded while one is computed.
  alignas(128) char queries[2][FULL_POSITIONS * S::QUERY_BYTES];
  alignas(8) uint64_t full[FULL_STAGES], empty[FULL_STAGES];
  alignas(8) uint64_t queries_full[2], queries_empty[2];
};

// The barriers of a ring of COUNT stages; producer and consumers each have their own copy.
template <int COUNT>
struct StageRing {
  uint32_t full, empty;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ StageRing(uint64_t* full_barriers, uint64_t* empty_barriers)
      : full(ptx::shared_address(full_barriers)), empty(ptx::shared_address(empty_barriers)) {}
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < COUNT; i++) {
      ptx::mbarrier_init(full + 8 * i, 1);
      ptx::mbarrier_init(empty + 8 * i, CONSUMERS / 32 * ptx::WARP_ARRIVALS);
    }
    ptx::mbarrier_init_fence();
  }
  __device__ __forceinline__ void next() {
    if (++stage == COUNT) {
      stage = 0;
      parity ^= 1;
    }
  }
  __device__ __forceinline__ uint32_t barrier() const { return full + 8 * stage; }
  __device__ __forceinline__ void wait() const {
    wait_mbarrier(Waits::Page, barrier(), parity);
  }
  __device__ __forceinline__ void release(int lane) const {
    ptx::mbarrier_arrive_warp(empty + 8 * stage, lane);
  }
  __device__ __forceinline__ void acquire(uint32_t bytes) const {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity ^ 1);
    ptx::mbarrier_expect(barrier(), bytes);
  }
};

// The sums of a warp's token. With g = lane / 4 and q = lane % 4 a lane has dimensions 8 i + 2 q
// and 8 i + 2 q + 1 of heads g and 8 + g.
template <int KIND>
struct FullSums {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int COUNT = A.v_dim / 2;
  using Scores = float[STAGE_KEYS / 2];
  using Weights = uint32_t[PIECES_AT_ONCE][4];

  // Of the chunk, as in `StreamedTile`.
  float largest[2], sum[4], values[COUNT];
  // Of all chunks before it.
  Softmax softmax[2];
  float total[COUNT];

  __device__ __forceinline__ void begin() {
    softmax[0] = softmax[1] = {LOWEST, 0};
#pragma unroll
    for (int i = 0; i < COUNT; i++) total[i] = 0;
    begin_chunk();
  }

  __device__ __forceinline__ void begin_chunk() {
    largest[0] = largest[1] = LOWEST;
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = 0;
  }

  __device__ __forceinline__ void end_chunk() {
    float keep[2], weight[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const float most = fmaxf(largest[row], softmax[row].largest);
      keep[row] = ptx::exp2(softmax[row].largest - most);
      weight[row] = ptx::exp2(largest[row] - most);
      softmax[row].largest = most;
      add_part(softmax[row].sum, keep[row], weight[row], sum[row * 2]);
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      add_part(total[i], keep[i % 4 / 2], weight[i % 4 / 2], values[i]);
    begin_chunk();
  }

  // Weights of 32 keys whose scores begin at `first`, and the factors by which earlier sums are to
  // be rescaled. Returns whether the lane's maximum rose.
  __device__ __forceinline__ bool weigh(const Scores& scores, int first, Weights& weights,
                                        float (&factors)[2]) {
    bool rises = false;
#pragma unroll
    for (int row = 0; row < 2; row++) {
      float most = LOWEST;
#pragma unroll
      for (int i = 0; i < KEYS_AT_ONCE / 2; i += 4)
        most = fmaxf(most, fmaxf(scores[first + i + row * 2], scores[first + i + row * 2 + 1]));
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
      most = fmaxf(largest[row], most * score_scale<KIND>());
      factors[row] = ptx::exp2(largest[row] - most);
      rises = rises || most > largest[row];
      largest[row] = most;
    }
    const auto weight = [&](int i) {
      return ptx::exp2(fmaf(scores[first + i], score_scale<KIND>(), -largest[i % 4 / 2]));
    };
#pragma unroll
    for (int piece = 0; piece < PIECES_AT_ONCE; piece++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        weights[piece][i] =
            ptx::pack_bf16(weight(piece * 8 + i * 2), weight(piece * 8 + i * 2 + 1));
    return rises;
  }

  __device__ __forceinline__ void rescale(bool rises, const float (&factors)[2]) {
    if (!__any_sync(~0u, rises)) return;
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] *= factors[i / 2];
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] *= factors[i % 4 / 2];
  }

  __device__ __forceinline__ void add_weights(const Weights& weights) {
    constexpr uint32_t ONES = 0x3f803f80;
#pragma unroll
    for (int piece = 0; piece < PIECES_AT_ONCE; piece++) ptx::mma(sum, weights[piece], ONES, ONES);
  }
};

// The largest N of `wgmma_turned` that is at most so many columns.
__host__ __device__ constexpr int product_columns(int most) {
  return most >= 128 ? 128 : most >= 64 ? 64 : most >= 32 ? 32 : 16;
}

// values += weights of 16 keys times their values, from dimension FIRST on.
template <int FIRST, int DIMS>
__device__ __forceinline__ void multiply_values(float (&values)[DIMS / 2],
                                                const uint32_t (&weights)[4], uint64_t operand) {
  if constexpr (FIRST < DIMS) {
    constexpr int N = product_columns(DIMS - FIRST);
    ptx::wgmma_turned<N>(*reinterpret_cast<float(*)[N / 2]>(values + FIRST / 2), weights,
                         ptx::wgmma_operand_at(operand, FIRST / 8 * PIECE_BYTES), true);
    multiply_values<FIRST + N, DIMS>(values, weights, operand);
  }
}

template <int KIND>
struct FullConsumer {
  using S = FullSizes<KIND>;
  using Sums = FullSums<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  const AttnMemory& memory;
  FullShared<KIND>& shared;
  StageRing<FULL_STAGES> ring;
  StageRing<2> query_ring;
  uint64_t queries = 0;

  __device__ __forceinline__ FullConsumer(const AttnMemory& m, FullShared<KIND>& s)
      : memory(m),
        shared(s),
        ring(s.full, s.empty),
        query_ring(s.queries_full, s.queries_empty) {}

  // Starts the products of queries and the keys of the ring's stage.
  __device__ __forceinline__ void begin_scores(typename Sums::Scores& scores) const {
    const uint64_t keys = ptx::wgmma_operand(ptx::shared_address(shared.keys[ring.stage]),
                                             PIECE_BYTES, GROUP_KEYS * S::KEY_BYTES);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < A.qk_dim / 16; k++)
      ptx::wgmma_shared(scores, ptx::wgmma_operand_at(queries, k * 2 * PIECE_BYTES),
                        ptx::wgmma_operand_at(keys, k * 2 * PIECE_BYTES), k > 0);
    ptx::wgmma_commit();
  }

  // Starts the products of the weights and values of 32 keys of a stage.
  __device__ __forceinline__ void begin_values(Sums& sums, const typename Sums::Weights& weights,
                                               int stage, int half) const {
    const uint32_t from = ptx::shared_address(shared.values[stage]) +
                          half * KEYS_AT_ONCE * S::VALUE_BYTES;
    const uint64_t values =
        ptx::wgmma_operand(from, GROUP_KEYS * S::VALUE_BYTES, PIECE_BYTES);
    ptx::wgmma_fence();
#pragma unroll
    for (int piece = 0; piece < PIECES_AT_ONCE; piece++)
      multiply_values<0, A.v_dim>(
          sums.values, weights[piece],
          ptx::wgmma_operand_at(values, piece * PIECE_KEYS * S::VALUE_BYTES));
    ptx::wgmma_commit();
  }

  // A score that overflowed, also to -infinity, becomes NaN: its weight must not be zero.
  static __device__ __forceinline__ void check(typename Sums::Scores& scores) {
#pragma unroll
    for (int i = 0; i < STAGE_KEYS / 2; i++) scores[i] = fmaf(scores[i], 0.0f, scores[i]);
  }

  // Attends to 32 keys, and waits for the products.
  __device__ __forceinline__ void attend(Sums& sums, const typename Sums::Scores& scores,
                                         int half) const {
    typename Sums::Weights weights;
    float factors[2];
    sums.rescale(sums.weigh(scores, half * (KEYS_AT_ONCE / 2), weights, factors), factors);
    sums.add_weights(weights);
    begin_values(sums, weights, ring.stage, half);
    ptx::wgmma_wait<0>(sums.values);
  }

  // Attends to a stage that all tokens see, and starts the scores of the next one, which are in
  // flight afterwards.
  __device__ __forceinline__ void attend_stage(Sums& sums, typename Sums::Scores& scores,
                                               int lane) {
    typename Sums::Weights first, second;
    float factors[2];
    ptx::wgmma_wait<0>(scores);
    check(scores);
    sums.rescale(sums.weigh(scores, 0, first, factors), factors);
    sums.add_weights(first);
    const int stage = ring.stage;
    begin_values(sums, first, stage, 0);
    const bool rises = sums.weigh(scores, KEYS_AT_ONCE / 2, second, factors);
    ptx::wgmma_wait<0>(sums.values);
    StageRing<FULL_STAGES> ahead = ring;
    ahead.next();
    ahead.wait();
    sums.rescale(rises, factors);
    sums.add_weights(second);
    begin_values(sums, second, stage, 1);
    StageRing<FULL_STAGES> here = ring;
    ring = ahead;
    begin_scores(scores);
    ptx::wgmma_wait<1>(sums.values);
    here.release(lane);
  }

  // The last stage, with the tile's own positions. A token does not see the keys behind its own.
  // Values behind the row's last are zeros, because uninitialised memory could be NaN.
  __device__ __forceinline__ void attend_last(Sums& sums, typename Sums::Scores& scores, int lane,
                                              uint32_t first, uint32_t position,
                                              uint32_t tile_end, uint32_t row_end) {
    ptx::wgmma_wait<0>(scores);
    check(scores);
#pragma unroll
    for (int i = 0; i < STAGE_KEYS / 2; i++)
      if (first + i / 4 * GROUP_KEYS + lane % 4 * 2 + i % 2 > position) scores[i] = LOWEST;
    if (row_end < first + STAGE_KEYS) clear_values(row_end - first);
    attend(sums, scores, 0);
    if (tile_end > first + KEYS_AT_ONCE) attend(sums, scores, 1);
    sums.end_chunk();
    ptx::reads_before_copies();
    ring.release(lane);
    ring.next();
  }

  // All consumers: clears the values of the stage from a key on.
  __device__ __forceinline__ void clear_values(uint32_t from) const {
    constexpr int RUNS = A.v_dim / 8;
    const uint32_t to = ptx::shared_address(shared.values[ring.stage]);
    for (uint32_t i = from * RUNS + threadIdx.x; i < STAGE_KEYS * RUNS; i += CONSUMERS)
      ptx::store_shared(
          to + static_cast<uint32_t>(cache_offset<A.v_dim>(i / RUNS, i % RUNS * 8)) * 2,
          make_uint4(0, 0, 0, 0));
    ptx::wgmma_writes_fence();
    ptx::sync_threads<CONSUMERS>();
  }

  // Attends to a head tile of a query tile.
  __device__ __forceinline__ void attend_tile(const QueryTile& tile, int head_tile) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const BatchRow& row = memory.step.row(tile.row);
    const uint32_t position = tile.begin + warp;
    const uint32_t chunk_keys = visible_keys<KIND>(row, tile.begin, false).chunk_keys;
    query_ring.wait();
    queries = ptx::wgmma_operand(
        ptx::shared_address(shared.queries[query_ring.stage]) +
            warp / 4 * (4 * S::QUERY_BYTES),
        PIECE_BYTES, S::HALF_BYTES);
    Sums sums;
    sums.begin();
    typename Sums::Scores scores;
    ring.wait();
    begin_scores(scores);
    uint32_t first = 0, chunk_end = chunk_keys;
#pragma unroll 1
    for (; first + STAGE_KEYS < tile.end; first += STAGE_KEYS) {
      if (first == chunk_end) {
        sums.end_chunk();
        chunk_end += chunk_keys;
      }
      attend_stage(sums, scores, lane);
    }
    if (first == chunk_end) sums.end_chunk();
    attend_last(sums, scores, lane, first, position, tile.end, row.start + row.count);
    query_ring.release(lane);
    query_ring.next();
    if (position >= tile.first && position < tile.end)
      store(sums, token_at(row, position), tile.kv_head * HeadTiles<KIND>::GROUP +
                                               head_tile * TILE_HEADS, lane);
  }

  __device__ __forceinline__ void store(const Sums& sums, int token, int first_head,
                                        int lane) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int in_tile = half * 8 + lane / 4;
      if (!HeadTiles<KIND>::has(first_head, in_tile)) continue;
      const int head = first_head + in_tile;
      const float factor = softmax_scale<KIND>(sums.softmax[half], sink_of<KIND>(memory, head));
#pragma unroll
      for (int i = 0; i < A.v_dim / 8; i++)
        store_attended<KIND>(memory, token, head, i * 8 + lane % 4 * 2,
                             sums.total[i * 4 + half * 2] * factor,
                             sums.total[i * 4 + half * 2 + 1] * factor);
    }
  }
};

// The producer: queries, keys and values of a tile.
template <int KIND>
__device__ __forceinline__ void produce_tile(const AttnMemory& memory, FullShared<KIND>& shared,
                                              StageRing<FULL_STAGES>& ring,
                                              StageRing<2>& query_ring, const QueryTile& tile,
                                              int head_tile) {
  using S = FullSizes<KIND>;
  constexpr int COPIES = STAGE_KEYS / COPY_KEYS;
  const BatchRow row = memory.step.row(tile.row);
  const KeySource<KIND> source = key_source<KIND>(memory, row, tile.kv_head);
  query_ring.acquire((tile.end - tile.first) * S::QUERY_BYTES);
  for (uint32_t p = tile.first; p < tile.end; p++)
    ptx::bulk_copy(ptx::shared_address(shared.queries[query_ring.stage]) +
                       (p - tile.begin) * S::QUERY_BYTES,
                   at<const uint16_t>(memory.queries) +
                       static_cast<size_t>(token_at(row, p)) * QUERY_VALUES +
                       (tile.kv_head * HeadTiles<KIND>::COUNT + head_tile) * (S::QUERY_BYTES / 2),
                   S::QUERY_BYTES, query_ring.barrier());
  query_ring.next();
  // Copies behind the row's last key are replaced by the last one.
  const uint32_t last = (row.start + row.count - 1) / COPY_KEYS * COPY_KEYS;
  const auto look_up = [&](uint32_t first, uint32_t (&places)[COPIES]) {
#pragma unroll
    for (int i = 0; i < COPIES; i++) places[i] = source.place(min(first + i * COPY_KEYS, last));
  };
  uint32_t next[COPIES];
  look_up(0, next);
#pragma unroll 1
  for (uint32_t first = 0; first < tile.end; first += STAGE_KEYS) {
    uint32_t places[COPIES];
#pragma unroll
    for (int i = 0; i < COPIES; i++) places[i] = next[i];
    look_up(first + STAGE_KEYS, next);
    ring.acquire(STAGE_KEYS * (S::KEY_BYTES + S::VALUE_BYTES));
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
      ptx::bulk_copy(ptx::shared_address(shared.keys[ring.stage]) + i * COPY_KEYS * S::KEY_BYTES,
                     source.keys + size_t{places[i]} * S::KEY_BYTES, COPY_KEYS * S::KEY_BYTES,
                     ring.barrier());
      ptx::bulk_copy(
          ptx::shared_address(shared.values[ring.stage]) + i * COPY_KEYS * S::VALUE_BYTES,
          source.values + size_t{places[i]} * S::VALUE_BYTES, COPY_KEYS * S::VALUE_BYTES,
          ring.barrier());
    }
    ring.next();
  }
}

// All threads of all CTAs, THREADS each.
template <int KIND>
__device__ __forceinline__ void attn_full(FullShared<KIND>& shared, const AttnMemory& memory) {
  constexpr int TILES = HeadTiles<KIND>::COUNT;
  if (threadIdx.x == 0) {
    StageRing<FULL_STAGES>(shared.full, shared.empty).init();
    StageRing<2>(shared.queries_full, shared.queries_empty).init();
  }
  __syncthreads();
  const auto for_each = [&](auto use) {
    TileWalk<KIND, FULL_POSITIONS> walk(memory.step);
    QueryTile tile;
    while (walk.next(tile))
#pragma unroll 1
      for (int head_tile = 0; head_tile < TILES; head_tile++) use(tile, head_tile);
  };
  with_roles(
      [&] {
        FullConsumer<KIND> consumer(memory, shared);
        for_each([&](const QueryTile& tile, int head_tile) {
          consumer.attend_tile(tile, head_tile);
        });
      },
      [&] {
        StageRing<FULL_STAGES> ring(shared.full, shared.empty);
        StageRing<2> query_ring(shared.queries_full, shared.queries_empty);
        for_each([&](const QueryTile& tile, int head_tile) {
          produce_tile<KIND>(memory, shared, ring, query_ring, tile, head_tile);
        });
      });
}

}  // namespace kilotok::wide
