// Full attention by products of warpgroups. A CTA keeps the queries of a tile in shared memory and
// goes through the keys 64 at a time. A warp has 16 rows: up to 16 heads of a token, or up to eight
// heads of two tokens. Sums stay in registers, so no partial results are stored.
//
// The warpgroups take turns with the tensor cores: one multiplies while the other computes weights.
// In its turn a warpgroup multiplies the weights with the values of this stage and the queries with
// the keys of the next one, each in two groups, so that sums are rescaled while scores are under
// way. The first stage of a tile follows the last one of the tile before without a gap.
//
// The order of sums is that of phase/attn_stream.cuh: an online softmax over each chunk, 32 keys at
// a time, and then the chunks one by one (`add_part`).
#pragma once

#include "kilotok/wide/attn_tiles.cuh"

namespace kilotok::wide {

constexpr int FULL_STAGES = 3, STAGE_KEYS = 64;
static_assert(CHUNK_KEYS % STAGE_KEYS == 0 && STAGE_KEYS % KEYS_AT_ONCE == 0, "stages are whole");
// A stage is two halves of keys whose scores are weighed at once.
constexpr int HALF_SCORES = KEYS_AT_ONCE / 2;
static_assert(STAGE_KEYS == 2 * KEYS_AT_ONCE, "two halves");

template <int KIND>
struct FullSizes {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int KEY_BYTES = A.qk_dim * 2, VALUE_BYTES = A.v_dim * 2;
  // The values of eight keys, then eight columns of ones, whose products are the sums of weights.
  static constexpr int VALUE_GROUP = GROUP_KEYS * VALUE_BYTES + PIECE_BYTES;
  // Tokens of a warp, and positions of a tile. All of them are in one half of a stage.
  static constexpr int WARP_TOKENS = HeadTiles<KIND>::GROUP <= TILE_HEADS / 2 ? 2 : 1;
  static constexpr int POSITIONS = CONSUMERS / 32 * WARP_TOKENS;
  static_assert(KEYS_AT_ONCE % POSITIONS == 0, "a half has whole tiles");
  static_assert(CHUNK_KEYS * CHUNKS_MAX % POSITIONS == 0, "a tile's chunks have one length");
  // Bytes of eight heads of a token's queries, of all that it has in memory, and of those that are
  // copied. With two tokens a warp, the second eight are padding.
  static constexpr int HALF_BYTES = TILE_HEADS / 2 * KEY_BYTES, QUERY_BYTES = 2 * HALF_BYTES;
  static constexpr int COPY_BYTES = QUERY_BYTES / WARP_TOKENS;
};

template <int KIND>
struct FullShared {
  using S = FullSizes<KIND>;
  alignas(128) char keys[FULL_STAGES][STAGE_KEYS * S::KEY_BYTES];
  alignas(128) char values[FULL_STAGES][STAGE_KEYS / GROUP_KEYS * S::VALUE_GROUP];
  // Two tiles' queries: those of the next tile are loaded while one is computed.
  alignas(128) char queries[2][S::POSITIONS * S::COPY_BYTES];
  alignas(8) uint64_t keys_full[FULL_STAGES], keys_empty[FULL_STAGES];
  alignas(8) uint64_t values_full[FULL_STAGES], values_empty[FULL_STAGES];
  alignas(8) uint64_t queries_full[2], queries_empty[2];
  // Each warpgroup waits at its own mbarrier for its turn with the tensor cores. The warpgroup
  // before it arrives there at the end of its turn.
  alignas(8) uint64_t turns[CONSUMER_GROUPS];
  TileTable<KIND, S::POSITIONS> table;
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
  // Gives the stage back and goes to the next.
  __device__ __forceinline__ void release(int lane) {
    ptx::mbarrier_arrive_warp(empty + 8 * stage, lane);
    next();
  }
  __device__ __forceinline__ void acquire(uint32_t bytes) const {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity ^ 1);
    ptx::mbarrier_expect(barrier(), bytes);
  }
};

// A warp: the head tiles of the query tiles that a CTA attends to, one after the other. The next
// one is looked up beforehand, since that takes a round trip to L2.
template <int KIND>
struct FullWalk {
  const StepTokens& step;
  const TileTable<KIND, FullSizes<KIND>::POSITIONS>& table;
  QueryTile tile, next_tile;
  int head_tile = 0, next_head_tile = 0, turn = 0;
  // Whether there is a next one.
  bool more;

  __device__ __forceinline__ FullWalk(const StepTokens& tokens,
                                      const TileTable<KIND, FullSizes<KIND>::POSITIONS>& tiles)
      : step(tokens), table(tiles) {
    more = table.find_together(step, turn++, next_tile);
  }
  __device__ __forceinline__ void next() {
    tile = next_tile;
    head_tile = next_head_tile++;
    if (next_head_tile < HeadTiles<KIND>::COUNT) return;
    next_head_tile = 0;
    more = table.find_together(step, turn++, next_tile);
  }
};

// The weights of a stage's keys. Before a half of them is added, the sums are multiplied with its
// factors. These are all 1 in a warp unless the maximum `rises` in one of its lanes.
struct KeyWeights {
  uint32_t pieces[2][PIECES_AT_ONCE][4];
  float factors[2][2];
  bool rises[2];
};

// The sums of a warp. With g = lane / 4 and q = lane % 4 a lane has dimensions 8 i + 2 q and
// 8 i + 2 q + 1 of rows g and 8 + g.
template <int KIND>
struct FullSums {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int COUNT = A.v_dim / 2;
  using Scores = float[STAGE_KEYS / 2];

  // The chunk's, as in `StreamedTile`: the largest score, and the weighted values, followed by the
  // sums of weights.
  float largest[2], values[COUNT + 4] = {};
  // Those of all chunks before it.
  Softmax softmax[2];
  float total[COUNT];

  __device__ __forceinline__ void begin() {
    softmax[0] = softmax[1] = {LOWEST, 0};
    largest[0] = largest[1] = LOWEST;
#pragma unroll
    for (int i = 0; i < COUNT; i++) total[i] = 0;
  }

  // Adds the chunk to those before it. It does not reset `values`: the next products replace them.
  __device__ __forceinline__ void end_chunk() {
    float keep[2], weight[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const float most = fmaxf(largest[row], softmax[row].largest);
      keep[row] = ptx::exp2(softmax[row].largest - most);
      weight[row] = ptx::exp2(largest[row] - most);
      softmax[row].largest = most;
      largest[row] = LOWEST;
      add_part(softmax[row].sum, keep[row], weight[row], values[COUNT + row * 2]);
    }
    // The same as `add_part`, but without multiplying by 1.
    if (__any_sync(~0u, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) total[i] *= keep[i % 4 / 2];
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) total[i] = fmaf(weight[i % 4 / 2], values[i], total[i]);
  }

  // The lane's largest score of a row in a half.
  static __device__ __forceinline__ float largest_of(const Scores& scores, int half, int row) {
    const float* first = scores + half * HALF_SCORES + row * 2;
    float most = fmaxf(first[0], first[1]);
#pragma unroll
    for (int i = 4; i < HALF_SCORES; i += 4) most = fmaxf(most, fmaxf(first[i], first[i + 1]));
    return most;
  }

  // Finds the running maximum after each half, and the factors that follow from it, and updates
  // `largest`.
  __device__ __forceinline__ void find_largest(const Scores& scores, KeyWeights& to,
                                               float (&most)[2][2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) most[i / 2][i % 2] = largest_of(scores, i / 2, i % 2);
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
#pragma unroll
      for (int i = 0; i < 4; i++)
        most[i / 2][i % 2] =
            fmaxf(most[i / 2][i % 2], __shfl_xor_sync(~0u, most[i / 2][i % 2], distance));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      bool rises = false;
#pragma unroll
      for (int row = 0; row < 2; row++) {
        float& m = most[half][row];
        m = fmaxf(largest[row], m * score_scale<KIND>());
        to.factors[half][row] = ptx::exp2(largest[row] - m);
        ptx::make_opaque(to.factors[half][row]);
        rises = rises || m > largest[row];
        largest[row] = m;
      }
      to.rises[half] = __any_sync(~0u, rises);
    }
  }

  // The weights of a half.
  static __device__ __forceinline__ void weigh(const Scores& scores, const float (&most)[2],
                                               uint32_t (&pieces)[PIECES_AT_ONCE][4], int half) {
    const auto weight = [&](int i) {
      return ptx::exp2(
          fmaf(scores[half * HALF_SCORES + i], score_scale<KIND>(), -most[i % 4 / 2]));
    };
#pragma unroll
    for (int piece = 0; piece < PIECES_AT_ONCE; piece++) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        pieces[piece][i] =
            ptx::pack_bf16(weight(piece * 8 + i * 2), weight(piece * 8 + i * 2 + 1));
      ptx::wgmma_ready(pieces[piece]);
    }
  }

  __device__ __forceinline__ void rescale(const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < COUNT + 4; i++) values[i] *= factors[i % 4 / 2];
  }
};

// The largest N of `wgmma_turned` that is at most `most`.
__host__ __device__ constexpr int product_columns(int most) {
  return most >= 128 ? 128 : most >= 64 ? 64 : most >= 32 ? 32 : 16;
}

// values (+)= weights of 16 keys times their values, from dimension FIRST on, and times the columns
// of ones.
template <int FIRST, int DIMS>
__device__ __forceinline__ void multiply_values(float (&values)[DIMS / 2 + 4],
                                                const uint32_t (&weights)[4], uint64_t operand,
                                                bool add) {
  if constexpr (FIRST < DIMS) {
    constexpr int DIMS_HERE = product_columns(DIMS - FIRST);
    constexpr int N = FIRST + DIMS_HERE == DIMS ? DIMS_HERE + 8 : DIMS_HERE;
    ptx::wgmma_turned<N>(*reinterpret_cast<float(*)[N / 2]>(values + FIRST / 2), weights,
                         ptx::wgmma_operand_at(operand, FIRST / 8 * PIECE_BYTES), add);
    multiply_values<FIRST + DIMS_HERE, DIMS>(values, weights, operand, add);
  }
}

template <int KIND>
struct FullConsumer {
  using S = FullSizes<KIND>;
  using Sums = FullSums<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  // Steps of 16 dimensions of the scores, and how many of them are multiplied after the first
  // half's values: enough to rescale the sums meanwhile.
  static constexpr int STEPS = A.qk_dim / 16, FIRST_STEPS = STEPS * 2 / 3;
  const AttnMemory& memory;
  FullShared<KIND>& shared;
  StageRing<FULL_STAGES> key_ring, value_ring;
  StageRing<2> query_ring;
  FullWalk<KIND> walk;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The shuffle shows the compiler that all lanes have the same value.
  int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / WARPGROUP, 0);
  uint32_t turn_parity = 0;
  // The tile's queries, the position after its row's last, and the length of its chunks.
  uint64_t queries = 0;
  uint32_t row_end, chunk_keys;

  __device__ __forceinline__ FullConsumer(const AttnMemory& m, FullShared<KIND>& s)
      : memory(m),
        shared(s),
        key_ring(s.keys_full, s.keys_empty),
        value_ring(s.values_full, s.values_empty),
        query_ring(s.queries_full, s.queries_empty),
        walk(m.step, s.table) {}

  __device__ __forceinline__ void next_tile() {
    walk.next();
    const BatchRow& row = memory.step.row(walk.tile.row);
    row_end = row.start + row.count;
    chunk_keys = visible_keys<KIND>(row, walk.tile.begin, false).chunk_keys;
  }

  __device__ __forceinline__ void take_queries() {
    query_ring.wait();
    queries = ptx::wgmma_operand(ptx::shared_address(shared.queries[query_ring.stage]) +
                                     group * (S::POSITIONS / CONSUMER_GROUPS * S::COPY_BYTES),
                                 PIECE_BYTES, S::HALF_BYTES);
  }

  // The first warpgroup has the first turn.
  __device__ __forceinline__ void take_turn() {
    wait_mbarrier(Waits::Page, ptx::shared_address(&shared.turns[group]),
                  turn_parity ^ (group == 0 ? 1 : 0));
    turn_parity ^= 1;
  }
  __device__ __forceinline__ void give_turn() const {
    ptx::mbarrier_arrive_warp(
        ptx::shared_address(&shared.turns[(group + 1) % CONSUMER_GROUPS]), lane);
  }

  // Starts the products of queries and the keys of the ring's stage, in steps FIRST to END - 1.
  template <int FIRST, int END>
  __device__ __forceinline__ void begin_scores(typename Sums::Scores& scores) const {
    const uint64_t keys = ptx::wgmma_operand(ptx::shared_address(shared.keys[key_ring.stage]),
                                             PIECE_BYTES, GROUP_KEYS * S::KEY_BYTES);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = FIRST; k < END; k++)
      ptx::wgmma_shared(scores, ptx::wgmma_operand_at(queries, k * 2 * PIECE_BYTES),
                        ptx::wgmma_operand_at(keys, k * 2 * PIECE_BYTES), k > 0);
    ptx::wgmma_commit();
  }

  // Starts the products of the weights of 32 keys and the values of a half of the ring's stage.
  // Without `add` they replace the sums.
  __device__ __forceinline__ void begin_values(Sums& sums,
                                               const uint32_t (&pieces)[PIECES_AT_ONCE][4],
                                               int half, bool add) const {
    const uint32_t from = ptx::shared_address(shared.values[value_ring.stage]) +
                          half * KEYS_AT_ONCE / GROUP_KEYS * S::VALUE_GROUP;
    const uint64_t values = ptx::wgmma_operand(from, S::VALUE_GROUP, PIECE_BYTES);
    ptx::wgmma_fence();
#pragma unroll
    for (int piece = 0; piece < PIECES_AT_ONCE; piece++)
      multiply_values<0, A.v_dim>(
          sums.values, pieces[piece],
          ptx::wgmma_operand_at(values, piece * PIECE_KEYS / GROUP_KEYS * S::VALUE_GROUP),
          piece > 0 || add);
    ptx::wgmma_commit();
  }

  // Attends to the stage whose scores are in flight, and starts the scores of the next one. `add`:
  // the chunk has earlier stages. `more`: there is a next stage; if not, its scores are of no use.
  // `second_half`: a token of the tile sees keys of it.
  __device__ __forceinline__ void attend_stage(Sums& sums, typename Sums::Scores& scores, bool add,
                                               bool more, bool second_half) {
    KeyWeights weights;
    float most[2][2];
    sums.find_largest(scores, weights, most);
    value_ring.wait();
    // All waits come before the products: among them, they would make the compiler serialise the
    // products.
    if (more) key_ring.wait();
    sums.weigh(scores, most[0], weights.pieces[0], 0);
    // Even if no maximum has risen: this takes no time beside the exponentials.
    sums.rescale(weights.factors[0]);
    sums.weigh(scores, most[1], weights.pieces[1], 1);
    take_turn();
    begin_values(sums, weights.pieces[0], 0, add);
    begin_scores<0, FIRST_STEPS>(scores);
    ptx::wgmma_wait<1>(sums.values);
    if (weights.rises[1]) sums.rescale(weights.factors[1]);
    // Where no token sees the second half, its weights are zero, but its values are arbitrary.
    // Those of the first half are multiplied instead.
    begin_values(sums, weights.pieces[1], second_half ? 1 : 0, true);
    begin_scores<FIRST_STEPS, STEPS>(scores);
    give_turn();
    ptx::wgmma_wait<1>(sums.values);
  }

  // A score that overflowed, also to -infinity, becomes NaN: its weight must not be zero.
  static __device__ __forceinline__ void check(typename Sums::Scores& scores) {
#pragma unroll
    for (int i = 0; i < STAGE_KEYS / 2; i++) scores[i] = fmaf(scores[i], 0.0f, scores[i]);
  }

  // The position of a lane's row g or, with `half`, 8 + g.
  __device__ __forceinline__ uint32_t position(int half) const {
    return walk.tile.begin + warp * S::WARP_TOKENS + (S::WARP_TOKENS == 2 ? half : 0);
  }

  // For a tile's last stage, which has the tile's own positions: hides the keys after a token's own
  // (causal mask). Values after the row's last become zeros, because uninitialised memory could be
  // NaN.
  __device__ __forceinline__ void hide(typename Sums::Scores& scores, uint32_t first) const {
#pragma unroll
    for (int i = 0; i < STAGE_KEYS / 2; i++)
      if (first + i / 4 * GROUP_KEYS + lane % 4 * 2 + i % 2 > position(i % 4 / 2))
        scores[i] = LOWEST;
    value_ring.wait();
    if (row_end < first + STAGE_KEYS) clear_values(row_end - first);
  }

  // All consumers: clears the values of the stage from a key on.
  __device__ __forceinline__ void clear_values(uint32_t from) const {
    constexpr int RUNS = A.v_dim / 8;
    const uint32_t to = ptx::shared_address(shared.values[value_ring.stage]);
    for (uint32_t i = from * RUNS + threadIdx.x; i < STAGE_KEYS * RUNS; i += CONSUMERS) {
      const uint32_t key = i / RUNS;
      ptx::store_shared(to + key / GROUP_KEYS * S::VALUE_GROUP + i % RUNS * PIECE_BYTES +
                            key % GROUP_KEYS * 16,
                        make_uint4(0, 0, 0, 0));
    }
    ptx::wgmma_writes_fence();
    ptx::sync_threads<CONSUMERS>();
  }

  __device__ __forceinline__ void run() {
    if (!walk.more) return;
    next_tile();
    Sums sums;
    sums.begin();
    take_queries();
    key_ring.wait();
    typename Sums::Scores scores;
    begin_scores<0, STEPS>(scores);
    uint32_t first = 0, chunk_end = chunk_keys;
    bool add = false;
#pragma unroll 1
    while (true) {
      const bool last = first + STAGE_KEYS >= walk.tile.end, more = !last || walk.more;
      const bool ends = last || first + STAGE_KEYS == chunk_end;
      ptx::wgmma_wait<0>(scores);
      key_ring.release(lane);
      check(scores);
      if (last) {
        hide(scores, first);
        query_ring.release(lane);
        if (more) take_queries();
      }
      attend_stage(sums, scores, add, more,
                   !last || walk.tile.end > first + KEYS_AT_ONCE);
      if (last) ptx::reads_before_copies();
      value_ring.release(lane);
      if (ends) sums.end_chunk();
      add = !ends;
      first += STAGE_KEYS;
      if (!last) {
        if (ends) chunk_end += chunk_keys;
        continue;
      }
      store(sums);
      if (!more) break;
      next_tile();
      sums.begin();
      first = 0;
      chunk_end = chunk_keys;
    }
    ptx::wgmma_wait<0>(scores);
  }

  __device__ __forceinline__ void store(const Sums& sums) const {
    const QueryTile& tile = walk.tile;
    const int first_head = tile.kv_head * HeadTiles<KIND>::GROUP + walk.head_tile * TILE_HEADS;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (position(half) < tile.first || position(half) >= tile.end) continue;
      const int token = token_at(memory.step.row(tile.row), position(half));
      const int in_tile = (S::WARP_TOKENS == 2 ? 0 : half * 8) + lane / 4;
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

// The producer: queries, keys and values of tiles.
template <int KIND>
struct FullProducer {
  using S = FullSizes<KIND>;
  static constexpr int COPIES = STAGE_KEYS / COPY_KEYS, COPY_GROUPS = COPY_KEYS / GROUP_KEYS;
  static constexpr int GROUP_BYTES = GROUP_KEYS * S::VALUE_BYTES;
  const AttnMemory& memory;
  FullShared<KIND>& shared;
  StageRing<FULL_STAGES> key_ring, value_ring;
  StageRing<2> query_ring;

  __device__ __forceinline__ FullProducer(const AttnMemory& m, FullShared<KIND>& s)
      : memory(m),
        shared(s),
        key_ring(s.keys_full, s.keys_empty),
        value_ring(s.values_full, s.values_empty),
        query_ring(s.queries_full, s.queries_empty) {}

  __device__ __forceinline__ void copy_queries(const QueryTile& tile, int head_tile,
                                               const BatchRow& row) {
    query_ring.acquire((tile.end - tile.first) * S::COPY_BYTES);
    for (uint32_t p = tile.first; p < tile.end; p++)
      ptx::bulk_copy(ptx::shared_address(shared.queries[query_ring.stage]) +
                         (p - tile.begin) * S::COPY_BYTES,
                     at<const uint16_t>(memory.queries) +
                         static_cast<size_t>(token_at(row, p)) * QUERY_VALUES +
                         (tile.kv_head * HeadTiles<KIND>::COUNT + head_tile) *
                             (S::QUERY_BYTES / 2),
                     S::COPY_BYTES, query_ring.barrier());
    query_ring.next();
  }

  // Copies a stage that lies at these places.
  __device__ __forceinline__ void copy_stage(const KeySource<KIND>& source,
                                             const uint32_t (&places)[COPIES]) {
    key_ring.acquire(STAGE_KEYS * S::KEY_BYTES);
#pragma unroll
    for (int i = 0; i < COPIES; i++)
      ptx::bulk_copy(
          ptx::shared_address(shared.keys[key_ring.stage]) + i * COPY_KEYS * S::KEY_BYTES,
          source.keys + size_t{places[i]} * S::KEY_BYTES, COPY_KEYS * S::KEY_BYTES,
          key_ring.barrier());
    key_ring.next();
    value_ring.acquire(STAGE_KEYS * S::VALUE_BYTES);
#pragma unroll
    for (int i = 0; i < COPIES * COPY_GROUPS; i++)
      ptx::bulk_copy(
          ptx::shared_address(shared.values[value_ring.stage]) + i * S::VALUE_GROUP,
          source.values + size_t{places[i / COPY_GROUPS]} * S::VALUE_BYTES +
              i % COPY_GROUPS * GROUP_BYTES,
          GROUP_BYTES, value_ring.barrier());
    value_ring.next();
  }

  __device__ __forceinline__ void copy_tile(const QueryTile& tile, int head_tile) {
    const BatchRow row = memory.step.row(tile.row);
    const KeySource<KIND> source = key_source<KIND>(memory, row, tile.kv_head);
    copy_queries(tile, head_tile, row);
    // Copies after the row's last key are replaced by the last one.
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
      copy_stage(source, places);
    }
  }
};

// All threads: initialises the barriers, and writes the columns of ones.
template <int KIND>
__device__ __forceinline__ void prepare(FullShared<KIND>& shared) {
  using S = FullSizes<KIND>;
  if (threadIdx.x == 0) {
    StageRing<FULL_STAGES>(shared.keys_full, shared.keys_empty).init();
    StageRing<FULL_STAGES>(shared.values_full, shared.values_empty).init();
    StageRing<2>(shared.queries_full, shared.queries_empty).init();
    for (uint64_t& turn : shared.turns)
      ptx::mbarrier_init(ptx::shared_address(&turn), WARPGROUP / 32 * ptx::WARP_ARRIVALS);
    ptx::mbarrier_init_fence();
  }
  constexpr uint32_t ONES = 0x3f803f80;
  for (int i = threadIdx.x; i < FULL_STAGES * STAGE_KEYS; i += THREADS)
    ptx::store_shared(ptx::shared_address(shared.values) +
                          (i / GROUP_KEYS + 1) * S::VALUE_GROUP - PIECE_BYTES +
                          i % GROUP_KEYS * 16,
                      make_uint4(ONES, ONES, ONES, ONES));
  ptx::wgmma_writes_fence();
  __syncthreads();
}

// All threads of all CTAs, THREADS each.
template <int KIND>
__device__ __forceinline__ void attn_full(FullShared<KIND>& shared, const AttnMemory& memory) {
  prepare<KIND>(shared);
  shared.table.fill(memory.step);
  with_roles(
      [&] {
        FullConsumer<KIND> consumer(memory, shared);
        consumer.run();
      },
      [&] {
        FullProducer<KIND> producer(memory, shared);
        QueryTile tile;
        for (int turn = 0; shared.table.find(memory.step, turn, tile); turn++)
#pragma unroll 1
          for (int head_tile = 0; head_tile < HeadTiles<KIND>::COUNT; head_tile++)
            producer.copy_tile(tile, head_tile);
      });
}

}  // namespace kilotok::wide
