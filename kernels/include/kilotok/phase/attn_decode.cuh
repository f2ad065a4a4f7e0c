// Full attention of rows of one token, as decoding users have: every warp attends chunks of its
// own, and copies their keys and values itself. So all warps have keys in flight, and none waits
// for another. In a longer row several warps share a chunk, each with a tile of its own
// (phase/attn_stream.cuh). Sums have the same order in both.
//
// The ring's pages hold the keys. The producer releases all of them to the consumers, which share
// them out among the warps. A warp's share is a ring of slots, each for the keys or the values of
// KEYS_AT_ONCE positions.
#pragma once

#include "kilotok/phase/attn_stream.cuh"

namespace kilotok {

// Keys that are looked up at a time. Longer chunks are attended in several runs.
constexpr int RUN_KEYS = 32 * GROUP_KEYS;
static_assert(CHUNK_KEYS <= RUN_KEYS && RUN_KEYS % KEYS_AT_ONCE == 0, "runs are whole");

// The rows of a batch, and the keys and values that they attend in a layer. Addresses are read
// where they are used: they would occupy registers.
struct BatchDecodeRows {
  const Memory& memory;
  const LayerMemory& layer;
  const HeldBatch& batch;

  __device__ __forceinline__ const BatchRow& row(int index) const { return batch.rows[index]; }
  __device__ __forceinline__ const LayerMemory& of_layer() const { return layer; }
  __device__ __forceinline__ const uint32_t* pages() const {
    return at<const uint32_t>(memory.pages);
  }
};

// Where a warp is in its share of all chunks, which lie `[rows][K/V heads][chunks]`.
template <int KIND, class Rows>
struct DecodeCursor {
  // The chunks that are left, this one included; or the K/V heads of rows, if the share is counted
  // in heads.
  uint32_t left;
  int row, kv_head;
  // The number of the chunk, and the first key of the run.
  uint32_t chunk, first;

  __device__ __forceinline__ uint32_t chunk_keys(const Rows& of) const {
    return visible_keys<KIND>(of.row(row), of.row(row).start, false).chunk_keys;
  }
  // The ends of the chunk and of the run.
  __device__ __forceinline__ uint32_t chunk_end(const Rows& of) const {
    return min((chunk + 1) * chunk_keys(of), of.row(row).start + 1);
  }
  __device__ __forceinline__ uint32_t end(const Rows& of) const {
    return min(first + RUN_KEYS, chunk_end(of));
  }

  // Lane i gets the place of the run's i-th group of keys.
  __device__ __forceinline__ uint32_t places(const Rows& of, int lane) const {
    if (left == 0) return 0;
    const uint32_t last_group = (end(of) - 1) / GROUP_KEYS * GROUP_KEYS;
    return cache_index<KIND>(of.pages(), of.row(row).pages_at[ATTENTIONS[KIND].page_group],
                             min(first + lane * GROUP_KEYS, last_group), kv_head);
  }

  // Goes to the next run. HEADS: whether `left` counts heads.
  template <bool HEADS>
  __device__ __forceinline__ void next(const Rows& of) {
    first += RUN_KEYS;
    if (first < chunk_end(of)) return;
    chunk++;
    const bool last = chunk * chunk_keys(of) > of.row(row).start;
    if ((last || !HEADS) && --left == 0) return;
    if (last) {
      chunk = 0;
      kv_head++;
    }
    if (kv_head == ATTENTIONS[KIND].kv_heads) {
      kv_head = 0;
      do row++;
      while (!is_decode(of.row(row)));
    }
    first = chunk * chunk_keys(of);
  }
};

// All lanes of a warp: the `count` chunks from number `begin` on.
template <int KIND, class Rows>
__device__ __forceinline__ DecodeCursor<KIND, Rows> find_chunks(const Rows& of, int row_count,
                                                                int lane, uint32_t begin,
                                                                uint32_t count) {
  DecodeCursor<KIND, Rows> found = {count, 0, 0, 0, 0};
  uint32_t before = 0;
#pragma unroll 1
  for (int base = 0; count > 0 && base < row_count; base += 32) {
    const int own = base + lane;
    uint32_t chunks = 0, all;
    if (own < row_count && is_decode(of.row(own)))
      chunks = RowWork<KIND>(of.row(own), false).chunks;
    const uint32_t units = chunks * ATTENTIONS[KIND].kv_heads;
    const uint32_t in_row = begin - before - sum_before(units, lane, all);
    const uint32_t lanes = __ballot_sync(~0u, in_row < units);
    if (lanes != 0) {
      const int from = __popc(lanes - 1);
      found.row = base + from;
      found.kv_head = __shfl_sync(~0u, in_row / max(chunks, 1u), from);
      found.chunk = __shfl_sync(~0u, in_row % max(chunks, 1u), from);
      found.first = found.chunk * found.chunk_keys(of);
      break;
    }
    before += all;
  }
  return found;
}

// A slot has the keys or the values of KEYS_AT_ONCE positions.
template <int KIND>
constexpr int SLOT_BYTES =
    KEYS_AT_ONCE * larger(KeyPage<KIND>::KEY_BYTES, KeyPage<KIND>::VALUE_BYTES);
// The slots that fit so many bytes. A warp's first copies are of one chunk, which has at least as
// many keys if it is not a row's last one.
template <int KIND, int BYTES>
constexpr int DECODE_SLOTS = smaller(BYTES / SLOT_BYTES<KIND>, DECODE_SLOTS_MAX);
static_assert(ceil_div(DECODE_SLOTS_MAX, 2) * KEYS_AT_ONCE <= CHUNK_KEYS, "as above");
// Warps that share a page of the ring: each has a place for queries in shared memory, two copies in
// flight and one that it reads.
template <int KIND>
constexpr int DECODE_WARPS =
    smaller(STREAM_WARPS<KIND> / PAGE_COUNT, PAGE_BYTES / SLOT_BYTES<KIND> / 3);

// What a copy is of.
enum class Copied { Keys, Values };

// A warp's copies of its chunks into SLOTS slots, in the order in which it reads them: of every
// KEYS_AT_ONCE positions the keys, then the values.
template <int KIND, class Rows, int SLOTS, bool HEADS>
struct DecodeCopies {
  using P = KeyPage<KIND>;
  static constexpr int BYTES = SLOT_BYTES<KIND>;
  // Keys that are contiguous, and copies for a slot.
  static constexpr int KEYS = smaller(COPY_KEYS, KEYS_AT_ONCE), COPIES = KEYS_AT_ONCE / KEYS;

  const Rows& of;
  // The addresses of the slots and of their mbarriers.
  uint32_t slots, arrived;
  // The slot of the oldest copy, and the parity of its mbarrier's phase: 0 when `fill` has passed
  // all slots.
  int oldest = 0;
  uint32_t parity = 1;
  // The run that comes after the one that is copied, and its places: looked up early, since pages
  // are found through a table in memory.
  DecodeCursor<KIND, Rows> ahead;
  uint32_t ahead_places;
  // What is left of the run that is copied, the places of its groups, and the next group.
  uint32_t first = 0, end = 0, places = 0;
  int group = 0;
  // Keys before this position were there before the step.
  uint32_t old_end = 0;

  // `first_places` are those of the first run.
  __device__ __forceinline__ DecodeCopies(const Rows& rows, uint32_t to, uint32_t barriers,
                                          const DecodeCursor<KIND, Rows>& begin,
                                          uint32_t first_places, int lane)
      : of(rows), slots(to), arrived(barriers), ahead(begin), ahead_places(first_places) {
    if (lane < SLOTS) ptx::mbarrier_init(arrived + 8 * lane, 1);
    ptx::mbarrier_init_fence();
    next_run(lane);
    __syncwarp();
  }

  // Whether the first copies are of keys from before the step.
  __device__ __forceinline__ bool is_early() const { return end > 0 && end <= old_end; }

  // Begins the copies for which there are slots.
  __device__ __forceinline__ void fill(int lane) {
#pragma unroll
    for (int i = 0; i < SLOTS; i++) copy(i % 2 == 0 ? Copied::Keys : Copied::Values, lane);
  }

  // Waits for the oldest copy, and returns its address.
  __device__ __forceinline__ uint32_t wait() const {
    wait_mbarrier(Waits::Page, arrived + 8 * oldest, parity);
    return slots + oldest * BYTES;
  }

  // The warp has read the oldest copy: begins another in its place.
  __device__ __forceinline__ void release(Copied what, int lane) {
    ptx::reads_before_copies();
    __syncwarp();
    const bool same = SLOTS % 2 == 0;
    copy((what == Copied::Keys) == same ? Copied::Keys : Copied::Values, lane);
  }

  // Ends the use of the mbarriers.
  __device__ __forceinline__ void close(int lane) const {
    __syncwarp();
    if (lane < SLOTS) ptx::mbarrier_invalidate(arrived + 8 * lane);
  }

 private:
  __device__ __forceinline__ void next_run(int lane) {
    group = 0;
    places = ahead_places;
    first = ahead.left == 0 ? 0 : ahead.first;
    end = ahead.left == 0 ? 0 : ahead.end(of);
    if (ahead.left == 0) return;
    old_end = of.row(ahead.row).start;
    ahead.template next<HEADS>(of);
    ahead_places = ahead.places(of, lane);
  }

  __device__ __forceinline__ void copy(Copied what, int lane) {
    const bool values = what == Copied::Values;
    const int key_bytes = values ? P::VALUE_BYTES : P::KEY_BYTES;
    if (first < end) {
      const int count = min(ceil_div(static_cast<int>(end - first), KEYS), COPIES);
      size_t from[COPIES];
#pragma unroll
      for (int i = 0; i < COPIES; i++)
        from[i] = __shfl_sync(~0u, places, group + i * (KEYS / GROUP_KEYS));
      if (lane == 0) {
        const uint32_t barrier = arrived + 8 * oldest;
        ptx::mbarrier_expect(barrier, count * KEYS * key_bytes);
        if (first + KEYS_AT_ONCE > old_end) ptx::other_proxy_fence();
#pragma unroll
        for (int i = 0; i < COPIES; i++)
          if (i < count)
            ptx::bulk_copy_once(slots + oldest * BYTES + i * KEYS * key_bytes,
                                at<const char>(values ? of.of_layer().values : of.of_layer().keys) +
                                    from[i] * key_bytes,
                                KEYS * key_bytes, barrier);
      }
    }
    if (++oldest == SLOTS) {
      oldest = 0;
      parity ^= 1;
    }
    if (!values) return;
    first += KEYS_AT_ONCE;
    group += KEYS_AT_ONCE / GROUP_KEYS;
    if (first >= end) next_run(lane);
  }
};

// Zeros in the place of values from key `count` of KEYS_AT_ONCE on: their weights are zero, and
// memory that is not initialised could be NaN.
template <int KIND>
__device__ __forceinline__ void clear_values(int lane, uint32_t values, int count) {
  constexpr int RUNS = GROUP_KEYS * ATTENTIONS[KIND].v_dim / 8;
#pragma unroll 1
  for (int i = count / GROUP_KEYS * RUNS + lane; i < KEYS_AT_ONCE / GROUP_KEYS * RUNS; i += 32)
    if (i / RUNS * GROUP_KEYS + i % GROUP_KEYS >= count)
      ptx::store_shared(values + i * 16, make_uint4(0, 0, 0, 0));
  __syncwarp();
}

// A warp: multiplies a tile with the keys of a run, `first` to `end` - 1.
template <int KIND, class Copies>
__device__ __forceinline__ void attend_run(StreamedTile<KIND>& tile, Copies& copies, int lane,
                                           uint32_t first, uint32_t end) {
#pragma unroll 1
  for (; first < end; first += KEYS_AT_ONCE) {
    typename StreamedTile<KIND>::Scores scores = {};
    tile.multiply_keys(lane, copies.wait(), scores);
    copies.release(Copied::Keys, lane);
    tile.weigh(lane, first, end, scores);
    const uint32_t values = copies.wait();
    if (end - first < KEYS_AT_ONCE) clear_values<KIND>(lane, values, end - first);
    tile.add_values(lane, values, scores);
    copies.release(Copied::Values, lane);
  }
}

// The warps of a CTA that attend chunks of their own.
template <int KIND>
constexpr uint32_t DECODERS = DECODE_WARPS<KIND> * PAGE_COUNT;

// Consumers: each of the first DECODERS warps attends its chunks, from `at` on; others have none.
// `places` are those of the first run. `ready()` returns when the keys, the values and the queries
// of the step are there. Warps then call `load(tile, at)` at each K/V head and `keep(tile, at)` at
// the end of each chunk.
template <int KIND, class Ready, class Load, class Keep>
__device__ __forceinline__ void attend_own_chunks(Cta& cta, Ring& ring, const BatchDecodeRows& of,
                                                  DecodeCursor<KIND, BatchDecodeRows> at,
                                                  uint32_t places, StreamScratch<KIND>& shared,
                                                  Ready ready, Load load, Keep keep) {
  constexpr uint32_t IN_PAGE = DECODE_WARPS<KIND>;
  constexpr int SLOTS = DECODE_SLOTS<KIND, PAGE_BYTES / IN_PAGE>;
  const uint32_t warp = min(static_cast<uint32_t>(cta.warp()), DECODERS<KIND> - 1);
  const int lane = ptx::opaque(cta.lane());
  // The pages, one of which is this warp's.
  Ring pages = ring;
  uint32_t slots = 0;
#pragma unroll 1
  for (uint32_t page = 0; page < PAGE_COUNT; page++, pages.next()) {
    pages.wait();
    if (page == warp / IN_PAGE) slots = pages.page();
  }
  slots += warp % IN_PAGE * SLOTS * SLOT_BYTES<KIND>;
  DecodeCopies<KIND, BatchDecodeRows, SLOTS, false> copies(
      of, slots, ptx::shared_address(shared.arrived[cta.warp()]), at, places, lane);
  const bool early = copies.is_early();
  if (early) copies.fill(lane);
  ready();
  if (!early) copies.fill(lane);
  StreamedTile<KIND> tile = {};
  tile.shared_queries = ptx::shared_address(shared.queries[warp]) + lane * 16;
  int of_row = -1, of_head = -1;
#pragma unroll 1
  for (; at.left > 0; at.template next<false>(of)) {
    if (at.row != of_row || at.kv_head != of_head) load(tile, at);
    of_row = at.row;
    of_head = at.kv_head;
    if (at.first == at.chunk * at.chunk_keys(of)) tile.clear();
    attend_run<KIND>(tile, copies, lane, at.first, at.end(of));
    if (at.end(of) == at.chunk_end(of)) keep(tile, at);
  }
  copies.close(lane);
#pragma unroll 1
  for (int i = 0; i < PAGE_COUNT; i++) ring.release(lane);
  cta.reload_thread();
}

// Consumers: this CTA's chunks of all rows of one token. Begins between the halves of a grid
// barrier.
template <int KIND>
__device__ __forceinline__ void attend_decode(Cta& cta, Ring& ring, const LayerMemory& layer,
                                              const HeldBatch& batch, uint32_t chunks,
                                              StreamScratch<KIND>& shared,
                                              PendingBarrier& barrier) {
  using T = HeadTiles<KIND>;
  constexpr uint32_t WARPS = DECODERS<KIND>;
  const uint32_t warp = min(static_cast<uint32_t>(cta.warp()), WARPS - 1);
  const uint32_t share = warp * GRID + cta.index();
  const uint32_t begin = chunks * share / (WARPS * GRID);
  const uint32_t end = chunks * (share + 1) / (WARPS * GRID);
  const BatchDecodeRows of = {cta.memory, layer, batch};
  const auto at = find_chunks<KIND>(of, batch.counts.row_count, ptx::opaque(cta.lane()), begin,
                                    cta.warp() == warp ? end - begin : 0);
  attend_own_chunks<KIND>(
      cta, ring, of, at, at.places(of, ptx::opaque(cta.lane())), shared,
      [&] { barrier.wait(cta); },
      [&](auto& tile, const auto& from) {
        tile.template load_queries<false>(cta, of.row(from.row).first, from.kv_head);
      },
      [&](const auto& tile, const auto& from) {
        tile.keep(cta, of.row(from.row).first, from.kv_head * T::GROUP, from.chunk);
      });
}

// Consumers: this CTA's share of a streamed kind. Begins between the halves of a grid barrier. Each
// tile leaves a partial result for each chunk that is visible to it.
template <int KIND>
__device__ __forceinline__ void attend_streamed(Cta& cta, Ring& ring, const LayerMemory& layer,
                                                const HeldBatch& batch, const PairCounts& sums,
                                                SumMemory& scratch) {
  static_assert(sizeof(StreamScratch<KIND>) <= SCRATCH_BYTES, "there is room");
  auto& shared = reinterpret_cast<StreamScratch<KIND>&>(scratch.scratch);
  PendingBarrier barrier = {false};
  for_each_key_range<KIND>(cta, batch, sums, [&](const KeyRange& s) {
    const BatchRow& row = batch.rows[s.row];
    const NewKeys<KIND> new_keys = {layer, row, shared.places, s.kv_head};
    if (new_keys.any(s.first, s.end)) new_keys.look_up(cta, s.first);
    barrier.wait(cta);
    // Frees the register of the thread's number for the loop.
    cta.reload_thread();
    attend_range<KIND>(cta, ring, row, s, new_keys, shared);
  });
  if constexpr (HAS_DECODE<KIND>)
    if (has_decode_rows<KIND>(sums))
      attend_decode<KIND>(cta, ring, layer, batch, sums.decode_chunks, shared, barrier);
  barrier.wait(cta);
  cta.reload_thread();
}

}  // namespace kilotok
