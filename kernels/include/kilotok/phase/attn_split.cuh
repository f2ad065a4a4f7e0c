// Full attention of few tiles: four warps share a tile. Each computes the scores of a quarter of a
// page's keys, and sums a quarter of the values' dimensions, or sixteen of them, or none. Every sum
// has the order of phase/attn_stream.cuh, where a warp has a whole tile.
#pragma once

#include "kilotok/phase/attn_stream.cuh"

namespace kilotok {

constexpr int SPLIT_WARPS = PAGE_KEYS / PIECE_KEYS;

// Runs of eight dimensions of the values that a warp sums: an even number.
template <int KIND>
constexpr int SPLIT_RUNS = larger(ATTENTIONS[KIND].v_dim / 8 / SPLIT_WARPS, 2);

// Whether warps share a kind's tiles if there are few. Larger models run steps of more tokens,
// which have more tiles, and their passes would only have more code.
constexpr int SPLIT_HIDDEN_MAX = 4095;
template <int KIND>
constexpr bool SPLITS = STREAMED<KIND> && HIDDEN <= SPLIT_HIDDEN_MAX &&
                        SPLIT_RUNS<KIND> % 2 == 0 &&
                        ATTENTIONS[KIND].v_dim / 8 % SPLIT_RUNS<KIND> == 0 &&
                        ATTENTIONS[KIND].v_dim / 8 <= SPLIT_WARPS * SPLIT_RUNS<KIND>;
// Tiles for which there are warps.
constexpr int SPLIT_TILES = CONSUMER_WARPS / SPLIT_WARPS;

// Groups of keys of a piece.
constexpr int PIECE_GROUPS = PIECE_KEYS / GROUP_KEYS;

// Multiplies a tile's queries with a piece of keys.
template <int KIND>
__device__ __forceinline__ void multiply_piece(
    int lane, uint32_t keys, const uint4 (&queries)[HeadTiles<KIND>::STEPS][2],
    float (&scores)[PIECE_GROUPS][4]) {
  constexpr int STEPS = HeadTiles<KIND>::STEPS;
  uint4 loaded[STEPS][PIECE_GROUPS];
#pragma unroll
  for (int step = 0; step < STEPS; step++) load_keys<KIND>(lane, keys, step, loaded[step]);
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    const uint4 &low = queries[step][0], &high = queries[step][1];
    const uint32_t a[4] = {low.x, low.y, low.z, low.w};
    const uint32_t b[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int group = 0; group < PIECE_GROUPS; group++)
      ptx::mma(scores[group], a, loaded[step][group].x, loaded[step][group].y);
#pragma unroll
    for (int group = 0; group < PIECE_GROUPS; group++)
      ptx::mma(scores[group], b, loaded[step][group].z, loaded[step][group].w);
  }
}

// Masks a lane's scores of a piece, the first of which is of the key at `first`: keys from `end` on
// are not visible. Stores the largest score of each head.
__device__ __forceinline__ void mask_piece(int lane, float (&scores)[PIECE_GROUPS][4],
                                           uint32_t first, uint32_t end,
                                           float (&largest)[TILE_HEADS]) {
#pragma unroll
  for (int row = 0; row < 2; row++) {
    float most = LOWEST;
#pragma unroll
    for (int group = 0; group < PIECE_GROUPS; group++)
#pragma unroll
      for (int i = row * 2; i < row * 2 + 2; i++) {
        float& s = scores[group][i];
        // As in StreamedTile.
        s = fmaf(s, 0.0f, s);
        if (first + group * GROUP_KEYS + i % 2 >= end) s = LOWEST;
        most = fmaxf(most, s);
      }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
    if (lane % 4 == 0) largest[row * 8 + lane / 4] = most;
  }
}

// What the warps of a tile exchange: the largest score of each piece of a page, by head, and the
// weights of the pieces, as operand A.
struct SplitExchange {
  float largest[SPLIT_WARPS][TILE_HEADS];
  uint4 weights[SPLIT_WARPS][32];
};

// The consumers' scratch memory.
template <int KIND>
struct SplitScratch {
  SplitExchange tiles[SPLIT_TILES];
  uint32_t places[NewKeys<KIND>::GROUPS];
};

// A warp's part of a tile, and the tile's running sums.
template <int KIND>
struct SplitTile {
  using T = HeadTiles<KIND>;
  using P = KeyPage<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int RUNS = SPLIT_RUNS<KIND>;
  static constexpr int GROUPS = PIECE_GROUPS;

  SplitExchange& exchange;
  // The number of the barrier of the tile's warps, and this warp's number among them.
  int barrier, part;
  uint4 queries[T::STEPS][2] = {};
  // As in StreamedTile, for RUNS runs of dimensions.
  float largest[2] = {LOWEST, LOWEST};
  float sum[4] = {};
  float values[RUNS][4] = {};

  __device__ __forceinline__ SplitTile(SplitExchange& of_tile, int tile, int warp)
      : exchange(of_tile), barrier(tile), part(warp) {}

  __device__ __forceinline__ void load_queries(const Cta& cta, int token, int head_tile) {
    const uint16_t* from = at<const uint16_t>(cta.memory.queries) + token * QUERY_VALUES +
                           head_tile * T::QUERY_VALUES + cta.lane() * 8;
#pragma unroll
    for (int step = 0; step < T::STEPS; step++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        // Memory beyond the last dimension is uninitialised.
        if ((step * 2 + half) * 16 < A.qk_dim)
          queries[step][half] =
              ptx::load_l2(static_cast<const void*>(from + (step * 2 + half) * 32 * 8));
  }

  // Multiplies the tile with the page of keys from `position` on. Keys before `end` are visible,
  // one at least.
  __device__ __forceinline__ void attend(int lane, uint32_t page, uint32_t position,
                                         uint32_t end) {
    float scores[GROUPS][4] = {};
    multiply_piece<KIND>(lane, page + part * (PIECE_KEYS * P::KEY_BYTES), queries, scores);
    const uint32_t first = position + part * PIECE_KEYS + lane % 4 * 2;
    auto& pieces = exchange.largest;
    mask_piece(lane, scores, first, end, pieces[part]);
    ptx::sync_threads<SPLIT_WARPS * 32>(barrier);
    // The largest score so far, up to each KEYS_AT_ONCE of the page.
    constexpr int TURNS = PAGE_KEYS / KEYS_AT_ONCE;
    float so_far[TURNS][2];
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
      for (int row = 0; row < 2; row++) {
        float most = LOWEST;
#pragma unroll
        for (int i = 0; i < PIECES_AT_ONCE; i++)
          most = fmaxf(most, pieces[turn * PIECES_AT_ONCE + i][row * 8 + lane / 4]);
        so_far[turn][row] = fmaxf(turn == 0 ? largest[row] : so_far[turn - 1][row],
                                  most * score_scale<KIND>());
      }
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float most = part < PIECES_AT_ONCE ? so_far[0][i / 2] : so_far[TURNS - 1][i / 2];
        scores[group][i] = ptx::exp2(fmaf(scores[group][i], score_scale<KIND>(), -most));
      }
    exchange.weights[part][lane] = make_uint4(
        ptx::pack_bf16(scores[0][0], scores[0][1]), ptx::pack_bf16(scores[0][2], scores[0][3]),
        ptx::pack_bf16(scores[1][0], scores[1][1]), ptx::pack_bf16(scores[1][2], scores[1][3]));
    ptx::sync_threads<SPLIT_WARPS * 32>(barrier);
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      if (position + turn * KEYS_AT_ONCE >= end) break;
      rescale(so_far[turn]);
      if (has_values()) add_values(lane, page + P::VALUES, turn);
    }
  }

  // Stores the warp's dimensions of the partial results of the tile's heads.
  __device__ __forceinline__ void keep(const Memory& memory, int lane, int token, int first_head,
                                       int chunk) const {
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const int in_tile = row * 8 + lane / 4;
      if (!T::has(first_head, in_tile)) continue;
      const Parts<KIND> parts(memory, token, first_head + in_tile);
      float* to = parts.values + chunk * A.v_dim + part * RUNS * 8 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < RUNS && has_values(); i++)
        *reinterpret_cast<float2*>(to + i * 8) =
            make_float2(values[i][row * 2], values[i][row * 2 + 1]);
      if (part == 0 && lane % 4 == 0) parts.softmax[chunk] = {largest[row], sum[row * 2]};
    }
  }

 private:
  __device__ __forceinline__ bool has_values() const {
    return SPLIT_WARPS * RUNS == A.v_dim / 8 || part * RUNS < A.v_dim / 8;
  }

  __device__ __forceinline__ void rescale(const float (&most)[2]) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const float factor = ptx::exp2(largest[row] - most[row]);
      largest[row] = most[row];
#pragma unroll
      for (int i = row * 2; i < row * 2 + 2; i++) {
        sum[i] *= factor;
#pragma unroll
        for (int run = 0; run < RUNS; run++) values[run][i] *= factor;
      }
    }
  }

  __device__ __forceinline__ void add_values(int lane, uint32_t page_values, int turn) {
    constexpr uint32_t ONES = 0x3f803f80;
    constexpr int GROUP_BYTES = GROUP_KEYS * P::VALUE_BYTES, RUN_BYTES = GROUP_KEYS * 16;
    const uint32_t from = page_values + part * (RUNS * RUN_BYTES) + lane / 8 % 2 * GROUP_BYTES +
                          lane / 16 * RUN_BYTES + lane % 8 * 16;
#pragma unroll
    for (int i = 0; i < PIECES_AT_ONCE; i++) {
      const int piece = turn * PIECES_AT_ONCE + i;
      const uint4 w = exchange.weights[piece][lane];
      const uint32_t a[4] = {w.x, w.y, w.z, w.w};
      ptx::mma(sum, a, ONES, ONES);
#pragma unroll
      for (int run = 0; run < RUNS; run += 2) {
        const uint4 v = ptx::load_turned(from + piece * 2 * GROUP_BYTES + run * RUN_BYTES);
        ptx::mma(values[run], a, v.x, v.y);
        ptx::mma(values[run + 1], a, v.z, v.w);
      }
    }
  }
};

// Consumers: attend to a range of keys with few tiles.
template <int KIND>
__device__ __forceinline__ void attend_split(Cta& cta, Ring& ring, const BatchRow& row,
                                             const KeyRange& s, const NewKeys<KIND>& new_keys,
                                             SplitScratch<KIND>& shared) {
  using T = HeadTiles<KIND>;
  const int own = cta.warp() / SPLIT_WARPS, tile = s.first_tile + own, lane = cta.lane();
  const int token = row.first + tile / T::COUNT;
  const uint32_t end = row.start + tile / T::COUNT + 1;
  const bool sees = own < s.tiles && s.first < end;
  SplitTile<KIND> held(shared.tiles[own], own, cta.warp() % SPLIT_WARPS);
  if (sees) held.load_queries(cta, token, s.kv_head * T::COUNT + tile % T::COUNT);
#pragma unroll 1
  for (uint32_t first = s.first; first < s.end; first += PAGE_KEYS) {
    if ((first - s.first) % (PAGE_COUNT * PAGE_KEYS) == 0 && new_keys.any(first, s.end)) {
      if (first > s.first) new_keys.look_up(cta, first);
      cta.sync();
      new_keys.put(ring, first, s.end);
      cta.sync();
    }
    const uint32_t page = ring.wait();
    if (sees && first < end) held.attend(lane, page, first, end);
    ring.release(lane);
  }
  if (sees)
    held.keep(cta.memory, lane, token,
              s.kv_head * T::GROUP + tile % T::COUNT * TILE_HEADS, s.chunk);
}

// Consumers: this CTA's share of a streamed kind. Begins between the halves of a grid barrier. Each
// tile leaves a partial result for each chunk that is visible to it. ONE_TILE: in a kernel for one
// tile of tokens, where warps may share the tiles of attention.
template <int KIND, bool ONE_TILE>
__device__ __forceinline__ void attend_streamed(Cta& cta, Ring& ring, const LayerMemory& layer,
                                                const HeldBatch& batch, const PairCounts& sums,
                                                SumMemory& scratch) {
  constexpr bool CAN_SPLIT = SPLITS<KIND> && ONE_TILE;
  static_assert(sizeof(StreamScratch<KIND>) <= SCRATCH_BYTES, "there is room");
  static_assert(!CAN_SPLIT || sizeof(SplitScratch<KIND>) <= SCRATCH_BYTES, "the same");
  auto& shared = reinterpret_cast<StreamScratch<KIND>&>(scratch.scratch);
  auto& split = reinterpret_cast<SplitScratch<KIND>&>(scratch.scratch);
  PendingBarrier barrier = {false};
  for_each_key_range<KIND>(cta, batch, sums, [&](const KeyRange& s) {
    const BatchRow& row = batch.rows[s.row];
    const bool few = CAN_SPLIT && s.tiles <= SPLIT_TILES;
    const NewKeys<KIND> new_keys = {layer, row, few ? split.places : shared.places, s.kv_head};
    if (new_keys.any(s.first, s.end)) new_keys.look_up(cta, s.first);
    barrier.wait(cta);
    // Frees the register of the thread's number for the loop.
    cta.reload_thread();
    if constexpr (CAN_SPLIT)
      if (few) {
        attend_split<KIND>(cta, ring, row, s, new_keys, split);
        return;
      }
    attend_range<KIND>(cta, ring, row, s, new_keys, shared);
  });
  barrier.wait(cta);
  cta.reload_thread();
}

}  // namespace kilotok
