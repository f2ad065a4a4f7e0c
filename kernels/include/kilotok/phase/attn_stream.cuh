// Full attention: a chunk of keys and values comes once, through the ring, for all tiles that are
// multiplied with it in a CTA. Each tile has a warp of its own, which holds its queries and sums in
// registers and processes PIECES_AT_ONCE pieces at a time. So warps wait for pages and never for
// each other.
//
// The producer copies the keys and values from before the step. Those of the step's own tokens are
// not written before the grid barrier, and the consumers copy them into the page themselves.
//
// This is online softmax: weights are relative to the largest score so far, and where that grows
// the sums are rescaled. It depends on the positions of a tile's own chunk alone.
#pragma once

#include "kilotok/phase/attn_schedule.cuh"

namespace kilotok {

// Pieces of which a warp computes all scores before it multiplies values.
constexpr int PIECES_AT_ONCE = 2;
constexpr int KEYS_AT_ONCE = PIECES_AT_ONCE * PIECE_KEYS;
static_assert(PAGE_KEYS % KEYS_AT_ONCE == 0 && CHUNK_KEYS % PAGE_KEYS == 0, "pages are whole");

// The addresses of a layer's keys, values and sinks.
struct KvCache {
  const char* keys;
  const char* values;
  const float* sinks;

  __device__ __forceinline__ explicit KvCache(const LayerMemory& layer)
      : keys(at<const char>(layer.keys)),
        values(at<const char>(layer.values)),
        sinks(at<const float>(layer.sinks)) {}

  template <int KIND>
  __device__ __forceinline__ KeySource<KIND> pages(const Memory& memory, const BatchRow& row,
                                                   int kv_head) const {
    return {at<const uint32_t>(memory.pages), keys, values,
            row.pages_at[ATTENTIONS[KIND].page_group], kv_head, false};
  }
};

// Keys `first` to `end` - 1 of a chunk of a row, and the tiles that are multiplied with them, one a
// warp.
struct KeyRange {
  int row, kv_head;
  uint32_t chunk, first, end;
  int first_tile, tiles;
};

// Called by consumers and producer alike: calls `visit(range)` for all of this CTA's work. Tiles of
// a unit that differ in chunk length are visited one after the other.
template <int KIND, class Visit>
__device__ __forceinline__ void for_each_key_range(const Cta& cta, const HeldBatch& batch,
                                             const PairCounts& sums, Visit visit) {
  const uint32_t units = sums.before[batch.counts.row_count];
  const uint32_t end = units * (cta.index() + 1) / GRID;
  int index = 0;
#pragma unroll 1
  for (uint32_t unit = units * cta.index() / GRID; unit < end; unit++) {
    while (sums.before[index + 1] <= unit) index++;
    const BatchRow& row = batch.rows[index];
    const RowWork<KIND> work(row, false);
    const uint32_t unit_tiles = work.unit_tiles(sums.shares);
    const uint32_t chunk_units = ceil_div(work.tiles, unit_tiles);
    const uint32_t place = unit - sums.before[index], chunk = place / chunk_units % work.chunks;
    int tile = place % chunk_units * unit_tiles;
    const int tile_end = min(tile + unit_tiles, work.tiles);
    const auto seen = [&](int i) {
      return visible_keys<KIND>(row, row.start + i / HeadTiles<KIND>::COUNT, false);
    };
#pragma unroll 1
    while (tile < tile_end) {
      const uint32_t keys = seen(tile).chunk_keys;
      int next = tile + 1;
      while (next < tile_end && seen(next).chunk_keys == keys) next++;
      const Range range = intersect({chunk * keys, (chunk + 1) * keys}, seen(next - 1).range);
      visit(KeyRange{index, static_cast<int>(place / chunk_units / work.chunks), chunk, range.first,
                    range.end, tile, next - tile});
      tile = next;
    }
  }
}

// Where keys and values lie in a page of the ring.
template <int KIND>
struct KeyPage {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int KEY_BYTES = A.qk_dim * 2, VALUE_BYTES = A.v_dim * 2;
  static constexpr int VALUES = PAGE_KEYS * KEY_BYTES;
};

// Operand B of a step of dimensions, for GROUPS groups of keys from `page` on.
template <int KIND, int GROUPS>
__device__ __forceinline__ void load_keys(int lane, uint32_t page, int step,
                                          uint4 (&keys)[GROUPS]) {
  // The last step may have fewer dimensions.
  const int run = smaller(step * 4 + lane / 8, ATTENTIONS[KIND].qk_dim / 8 - 1);
#pragma unroll
  for (int group = 0; group < GROUPS; group++)
    keys[group] = ptx::load_matrices(page + group * (GROUP_KEYS * KeyPage<KIND>::KEY_BYTES) +
                                     run * (GROUP_KEYS * 16) + lane % 8 * 16);
}

// Positions that are contiguous both in pages of the KV cache and in the ring.
constexpr int COPY_KEYS = PAGE_TOKENS % PAGE_KEYS == 0 ? PAGE_KEYS
                          : PAGE_TOKENS % PIECE_KEYS == 0 ? PIECE_KEYS
                                                          : GROUP_KEYS;

// Producer: releases all pages, empty, to the consumers of phase/attn_decode.cuh.
__device__ __forceinline__ void release_pages(Ring& ring) {
#pragma unroll 1
  for (int i = 0; i < PAGE_COUNT; i++) {
    ring.acquire(0);
    ring.next();
  }
}

// Producer: copies the keys from before the step that this CTA's tiles are multiplied with.
template <int KIND>
__device__ __forceinline__ void produce_keys(const Cta& cta, Ring& ring, const LayerMemory& layer,
                                             const HeldBatch& batch, const PairCounts& sums) {
  using P = KeyPage<KIND>;
  constexpr int COPIES = PAGE_KEYS / COPY_KEYS;
  for_each_key_range<KIND>(cta, batch, sums, [&](const KeyRange& s) {
    const BatchRow& row = batch.rows[s.row];
    const KeySource<KIND> source =
        KvCache(layer).template pages<KIND>(cta.memory, row, s.kv_head);
#pragma unroll 1
    for (uint32_t first = s.first; first < s.end; first += PAGE_KEYS) {
      const int keys = row.start <= first ? 0 : min(row.start - first, uint32_t{PAGE_KEYS});
      const int count = ceil_div(keys, COPY_KEYS);
      // Looked up before the wait for a free page.
      uint32_t places[COPIES];
#pragma unroll
      for (int i = 0; i < COPIES; i++)
        places[i] = i < count ? source.place(first + i * COPY_KEYS) : 0;
      ring.acquire(count * COPY_KEYS * (P::KEY_BYTES + P::VALUE_BYTES));
#pragma unroll
      for (int i = 0; i < COPIES; i++) {
        if (i >= count) break;
        ring.fetch(source.keys + size_t{places[i]} * P::KEY_BYTES, i * COPY_KEYS * P::KEY_BYTES,
                   COPY_KEYS * P::KEY_BYTES);
        ring.fetch(source.values + size_t{places[i]} * P::VALUE_BYTES,
                   P::VALUES + i * COPY_KEYS * P::VALUE_BYTES, COPY_KEYS * P::VALUE_BYTES);
      }
      ring.next();
    }
  });
  if (has_decode_rows<KIND>(sums)) release_pages(ring);
}

// Copies the keys and values of the step's own tokens into the ring's pages. All consumers do this
// together, for as many pages at a time as the ring has.
template <int KIND>
struct NewKeys {
  using P = KeyPage<KIND>;
  static constexpr int QK = P::A.qk_dim, V = P::A.v_dim, RUNS = (QK + V) / 8;
  static constexpr int GROUPS = PAGE_COUNT * PAGE_KEYS / GROUP_KEYS;
  static_assert(GROUPS <= CONSUMERS, "a thread looks up a group");

  const LayerMemory& layer;
  const BatchRow& row;
  uint32_t* places;
  int kv_head;

  // Made at each use, because it takes many registers.
  __device__ __forceinline__ KeySource<KIND> source(const Cta& cta) const {
    return KvCache(layer).template pages<KIND>(cta.memory, row, kv_head);
  }

  // Whether any of the PAGE_COUNT pages from position `first` on, up to `end`, has new keys.
  __device__ __forceinline__ bool any(uint32_t first, uint32_t end) const {
    return min(first + PAGE_COUNT * PAGE_KEYS, end) > row.start;
  }

  // Looks up their places. The result is visible after a barrier of the CTA.
  __device__ __forceinline__ void look_up(const Cta& cta, uint32_t first) const {
    const uint32_t position = first + threadIdx.x * GROUP_KEYS, end = row.start + row.count;
    if (threadIdx.x < GROUPS && position < end)
      places[threadIdx.x] = source(cta).place(position);
  }

  // Zeros follow the last key: their weights are zero, and uninitialised memory could be NaN.
  __device__ __forceinline__ void put(Ring ahead, uint32_t first, uint32_t end) const {
#pragma unroll 1
    for (int i = 0; i < PAGE_COUNT && first + i * PAGE_KEYS < end; i++, ahead.next()) {
      if (first + (i + 1) * PAGE_KEYS <= row.start) continue;
      put_page(ahead.wait(), first + i * PAGE_KEYS, places + i * (PAGE_KEYS / GROUP_KEYS));
    }
  }

 private:
  __device__ __forceinline__ void put_page(uint32_t page, uint32_t first,
                                           const uint32_t* page_places) const {
    const KvCache from(layer);
    const uint32_t start = max(row.start, first) - first;
#pragma unroll 1
    for (uint32_t i = start * RUNS + threadIdx.x; i < PAGE_KEYS * RUNS; i += CONSUMERS) {
      const uint32_t key = i / RUNS;
      const int dim = i % RUNS * 8;
      const bool is_value = dim >= QK;
      uint4 run = make_uint4(0, 0, 0, 0);
      if (first + key < row.start + row.count) {
        const uint32_t place = page_places[key / GROUP_KEYS] + key % GROUP_KEYS;
        run = ptx::load_l2(is_value ? from.values + cache_offset<V>(place, dim - QK) * 2
                                    : from.keys + cache_offset<QK>(place, dim) * 2);
      }
      const size_t to = is_value ? P::VALUES + cache_offset<V>(key, dim - QK) * 2
                                 : cache_offset<QK>(key, dim) * 2;
      ptx::store_shared(page + static_cast<uint32_t>(to), run);
    }
  }
};

// A tile and the running sums of its warp.
template <int KIND>
struct StreamedTile {
  using T = HeadTiles<KIND>;
  using P = KeyPage<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int GROUPS = KEYS_AT_ONCE / GROUP_KEYS;
  using Scores = float[GROUPS][4];
  // Steps of 32 dimensions whose queries are in registers, and those whose queries are in shared
  // memory.
  static constexpr int HELD = QUERY_STEPS<KIND>, SHARED = T::STEPS - HELD;

  // Operand A of each step's halves, with zeros after the last dimension.
  uint4 queries[HELD][2];
  uint32_t shared_queries;
  // For heads g and 8 + g: the largest exponent and, relative to it, the sum of weights and the
  // weighted values, dimensions 8 i + 2 q and the next.
  float largest[2] = {LOWEST, LOWEST};
  float sum[4] = {};
  float values[A.v_dim / 8][4] = {};

  // Begins another chunk.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      largest[i / 2] = LOWEST;
      sum[i] = 0;
#pragma unroll
      for (int run = 0; run < A.v_dim / 8; run++) values[run][i] = 0;
    }
  }

  // Keeps operand A of a half of a step, in registers or in the lane's place in shared memory.
  __device__ __forceinline__ void hold_query(int step, int half, const uint4& words) {
    if (step < HELD)
      queries[smaller(step, HELD - 1)][half] = words;
    else
      ptx::store_shared(shared_queries + ((step - HELD) * 2 + half) * 512, words);
  }

  // LATER: the queries in shared memory are complete after `ptx::wait_for_copies`.
  template <bool LATER = true>
  __device__ __forceinline__ void load_queries(const Cta& cta, int token, int head_tile) {
    const uint16_t* from = at<const uint16_t>(cta.memory.queries) + token * QUERY_VALUES +
                           head_tile * T::QUERY_VALUES + cta.lane() * 8;
#pragma unroll
    for (int step = 0; step < T::STEPS; step++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        // Memory beyond the last dimension is uninitialised.
        const bool has = (step * 2 + half) * 16 < A.qk_dim;
        const void* run = from + (step * 2 + half) * 32 * 8;
        if (LATER && has && step >= HELD)
          ptx::copy_later(shared_queries + ((step - HELD) * 2 + half) * 512, run);
        else
          hold_query(step, half, has ? ptx::load_l2(run) : make_uint4(0, 0, 0, 0));
      }
  }

  // Multiplies the tile with KEYS_AT_ONCE keys of a page, at the given addresses, from `position`
  // on. Keys before `end` are visible.
  __device__ __forceinline__ void attend(int lane, uint32_t key_page, uint32_t value_page,
                                       uint32_t position, uint32_t end) {
    Scores scores = {};
    multiply_keys(lane, key_page, scores);
    weigh(lane, position, end, scores);
    add_values(lane, value_page, scores);
  }

  __device__ __forceinline__ void multiply_keys(int lane, uint32_t page, Scores& scores) const {
    uint4 next[GROUPS];
    load_keys<KIND>(lane, page, 0, next);
#pragma unroll
    for (int step = 0; step < T::STEPS; step++) {
      uint4 keys[GROUPS];
#pragma unroll
      for (int group = 0; group < GROUPS; group++) keys[group] = next[group];
      const uint4 low = query(step, 0), high = query(step, 1);
      if (step + 1 < T::STEPS) load_keys<KIND>(lane, page, step + 1, next);
      // The compiler does not move the loads past this, so a step's keys are in flight while the
      // previous ones are multiplied.
      __syncwarp();
      const uint32_t a[4] = {low.x, low.y, low.z, low.w};
      const uint32_t b[4] = {high.x, high.y, high.z, high.w};
      // Consecutive products go to different sums, because a product waits for the previous one in
      // the same sum.
#pragma unroll
      for (int group = 0; group < GROUPS; group++)
        ptx::mma(scores[group], a, keys[group].x, keys[group].y);
#pragma unroll
      for (int group = 0; group < GROUPS; group++)
        ptx::mma(scores[group], b, keys[group].z, keys[group].w);
    }
  }

  // Turns the scores of the keys from `position` on into weights, relative to the largest score so
  // far.
  __device__ __forceinline__ void weigh(int lane, uint32_t position, uint32_t end,
                                        Scores& scores) {
    const int in_group = lane % 4 * 2;
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& s = scores[group][i];
        // An infinite score, also a negative one, becomes NaN: it must not get a weight of zero.
        s = fmaf(s, 0.0f, s);
        if (position + group * GROUP_KEYS + in_group + i % 2 >= end) s = LOWEST;
      }
    rescale(scores);
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        scores[group][i] =
            ptx::exp2(fmaf(scores[group][i], score_scale<KIND>(), -largest[i / 2]));
  }

  // Adds the weighted values. The sum of weights is the weighted sum of ones.
  __device__ __forceinline__ void add_values(int lane, uint32_t page, const Scores& weights) {
    constexpr uint32_t ONES = 0x3f803f80;
    constexpr int GROUP_BYTES = GROUP_KEYS * P::VALUE_BYTES, RUN_BYTES = GROUP_KEYS * 16;
    const uint32_t from = page + lane / 8 % 2 * GROUP_BYTES + lane / 16 * RUN_BYTES + lane % 8 * 16;
#pragma unroll
    for (int piece = 0; piece < PIECES_AT_ONCE; piece++) {
      const float(&low)[4] = weights[piece * 2], (&high)[4] = weights[piece * 2 + 1];
      const uint32_t a[4] = {ptx::pack_bf16(low[0], low[1]), ptx::pack_bf16(low[2], low[3]),
                             ptx::pack_bf16(high[0], high[1]), ptx::pack_bf16(high[2], high[3])};
      ptx::mma(sum, a, ONES, ONES);
#pragma unroll
      for (int run = 0; run < A.v_dim / 8; run += 2) {
        const uint4 v = ptx::load_turned(from + piece * 2 * GROUP_BYTES + run * RUN_BYTES);
        ptx::mma(values[run], a, v.x, v.y);
        ptx::mma(values[run + 1], a, v.z, v.w);
      }
    }
  }

  // Stores the partial results of its heads. `store(to, first, second)` stores two values.
  template <class Store>
  __device__ __forceinline__ void keep(const Cta& cta, int token, int first_head, int part,
                                       Store store) const {
    const int lane = cta.lane();
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const int in_tile = row * 8 + lane / 4;
      if (!T::has(first_head, in_tile)) continue;
      const Parts<KIND> parts(cta.memory, token, first_head + in_tile);
      float* to = parts.values + part * A.v_dim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < A.v_dim / 8; i++)
        store(to + i * 8, values[i][row * 2], values[i][row * 2 + 1]);
      if (lane % 4 == 0) store(&parts.softmax[part].largest, largest[row], sum[row * 2]);
    }
  }
  __device__ __forceinline__ void keep(const Cta& cta, int token, int first_head, int part) const {
    keep(cta, token, first_head, part, [](float* to, float first, float second) {
      *reinterpret_cast<float2*>(to) = make_float2(first, second);
    });
  }

 private:
  __device__ __forceinline__ uint4 query(int step, int half) const {
    return step < HELD ? queries[smaller(step, HELD - 1)][half]
                       : ptx::load_shared(shared_queries + ((step - HELD) * 2 + half) * 512);
  }

  // Updates the running maximum and rescales the sums.
  __device__ __forceinline__ void rescale(const Scores& scores) {
    float factors[2];
    bool rises = false;
#pragma unroll
    for (int row = 0; row < 2; row++) {
      float most = LOWEST;
#pragma unroll
      for (int group = 0; group < GROUPS; group++)
        most = fmaxf(most, fmaxf(scores[group][row * 2], scores[group][row * 2 + 1]));
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
      most = fmaxf(largest[row], most * score_scale<KIND>());
      factors[row] = ptx::exp2(largest[row] - most);
      rises = rises || most > largest[row];
      largest[row] = most;
    }
    // If it does not grow, all factors are 1.
    if (!__any_sync(~0u, rises)) return;
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] *= factors[i / 2];
#pragma unroll
    for (int run = 0; run < A.v_dim / 8; run++)
#pragma unroll
      for (int i = 0; i < 4; i++) values[run][i] *= factors[i / 2];
  }
};

// The second half of a grid barrier, called once: work on keys from before the step need not wait
// for it.
struct PendingBarrier {
  bool over;
  __device__ __forceinline__ void wait(Cta& cta) {
    if (!over) {
      cta.stamp(Stamp::Attention);
      cta.wait_grid();
    }
    over = true;
  }
};

// The consumers' scratch memory.
template <int KIND>
struct StreamScratch {
  char queries[STREAM_WARPS<KIND>][larger(SHARED_QUERY_BYTES<KIND>, 16)];
  uint32_t places[NewKeys<KIND>::GROUPS];
  // Of phase/attn_decode.cuh: for each warp the mbarriers of its copies.
  alignas(8) uint64_t arrived[CONSUMER_WARPS][DECODE_SLOTS_MAX];
};

// Consumers: attend to a range of keys; each tile has a warp.
template <int KIND>
__device__ __forceinline__ void attend_range(Cta& cta, Ring& ring, const BatchRow& row,
                                             const KeyRange& s, const NewKeys<KIND>& new_keys,
                                             StreamScratch<KIND>& shared) {
  using T = HeadTiles<KIND>;
  using P = KeyPage<KIND>;
  const int tile = s.first_tile + cta.warp(), token = row.first + tile / T::COUNT;
  const uint32_t end = row.start + tile / T::COUNT + 1;
  const bool sees = cta.warp() < s.tiles && s.first < end;
  const uint32_t seen_end = sees ? end : 0;
  StreamedTile<KIND> held = {};
  held.shared_queries = ptx::shared_address(shared.queries[cta.warp()]) + cta.lane() * 16;
  if (sees) held.load_queries(cta, token, s.kv_head * T::COUNT + tile % T::COUNT);
  const int lane = ptx::opaque(cta.lane());
#pragma unroll 1
  for (uint32_t first = s.first; first < s.end; first += PAGE_KEYS) {
    if ((first - s.first) % (PAGE_COUNT * PAGE_KEYS) == 0) {
      if (new_keys.any(first, s.end)) {
        if (first > s.first) new_keys.look_up(cta, first);
        cta.sync();
        new_keys.put(ring, first, s.end);
        cta.sync();
      }
      ptx::wait_for_copies();
    }
    const uint32_t page = ring.wait();
#pragma unroll 1
    for (int key = 0; key < PAGE_KEYS && first + key < seen_end; key += KEYS_AT_ONCE)
      held.attend(lane, page + key * P::KEY_BYTES, page + P::VALUES + key * P::VALUE_BYTES,
                  first + key, end);
    ring.release(lane);
  }
  cta.reload_thread();
  if (sees)
    held.keep(cta, token, s.kv_head * T::GROUP + tile % T::COUNT * TILE_HEADS, s.chunk);
}

}  // namespace kilotok
