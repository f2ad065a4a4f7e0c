// Attention of one token over keys that are split into chunks. A CTA has one chunk of a K/V head
// after another. Bits are those of phase/attn_stream.cuh, but all pieces of CHUNK_KEYS keys are
// multiplied at the same time, each by its own warp. Where heads have an RMSNorm of their own, each
// CTA makes those that it attends; where they do not and a CTA has many chunks, every warp attends
// chunks of its own.
#pragma once

#include "kilotok/one/rows.cuh"

namespace kilotok {

// The chunks of a CTA, the same in all layers of a kind: `count` of them, from one of a K/V head
// on. They follow one another, by K/V head and then chunk.
struct OneTokenChunks {
  uint32_t position, chunk_keys, chunks;
  int kv_head;
  uint32_t chunk, count;
};
static_assert(sizeof(OneTokenChunks) <= sizeof(PairCounts), "it takes their place");

template <int KIND>
__device__ __forceinline__ OneTokenChunks& chunks_of_one(PairsByKind& pairs) {
  return reinterpret_cast<OneTokenChunks&>(pairs[KIND]);
}

// One thread: once a launch.
template <int KIND>
__device__ __forceinline__ void set_up_chunks(const Cta& cta, const HeldBatch& batch,
                                              OneTokenChunks& to) {
  const uint32_t position = batch.tokens[0].position;
  const VisibleKeys seen = visible_keys<KIND>(batch.rows[0], position, false);
  to.position = position;
  to.chunk_keys = seen.chunk_keys;
  to.chunks = seen.parts();
  const uint32_t units = ATTENTIONS[KIND].kv_heads * to.chunks;
  const uint32_t first = units * cta.index() / GRID;
  to.count = units * (cta.index() + 1) / GRID - first;
  to.kv_head = first / to.chunks;
  to.chunk = first % to.chunks;
}

// Whether warps can attend chunks of their own, as in phase/attn_decode.cuh, and whether they do. A
// warp needs longer for a chunk than the CTA for a few.
template <int KIND>
constexpr bool HAS_WARP_CHUNKS = HAS_DECODE<KIND> && ATTENTIONS[KIND].paired;
template <int KIND>
__device__ __forceinline__ bool has_warp_chunks(const OneTokenChunks& chunks) {
  return HAS_WARP_CHUNKS<KIND> &&
         ATTENTIONS[KIND].kv_heads * chunks.chunks > DECODE_FEWEST * GRID;
}

// A chunk of a K/V head: keys `first` to `end` - 1.
struct OneTokenRange {
  int kv_head;
  uint32_t chunk, first, end;
  // Whether the token's own key is the last one.
  bool has_new;
};

// Consumers and producer: calls `visit(range)` for each of a CTA's chunks.
template <class Visit>
__device__ __forceinline__ void for_each_chunk(const OneTokenChunks& chunks, Visit visit) {
  uint32_t chunk = chunks.chunk;
  int kv_head = chunks.kv_head;
#pragma unroll 1
  for (uint32_t i = 0; i < chunks.count; i++) {
    const bool last = chunk + 1 == chunks.chunks;
    const uint32_t first = chunk * chunks.chunk_keys;
    visit(OneTokenRange{kv_head, chunk, first,
                        last ? chunks.position + 1 : first + chunks.chunk_keys, last});
    chunk = last ? 0 : chunk + 1;
    kv_head += last;
  }
}

// Producer: copies the keys and values from before the token. As `produce_keys`, whose copy of a
// page as a function of its own would cost `target` 500 instructions of addresses.
template <int KIND>
__device__ __forceinline__ void produce_keys_of_one(const Cta& cta, Ring& ring,
                                                    const LayerMemory& layer,
                                                    const BatchRow& row,
                                                    const OneTokenChunks& chunks) {
  using P = KeyPage<KIND>;
  constexpr int COPIES = PAGE_KEYS / COPY_KEYS;
  if (has_warp_chunks<KIND>(chunks)) return release_pages(ring);
  for_each_chunk(chunks, [&](const OneTokenRange& s) {
    const KeySource<KIND> source =
        KvCache(layer).template pages<KIND>(cta.memory, row, s.kv_head);
    const uint32_t old_end = s.has_new ? s.end - 1 : s.end;
#pragma unroll 1
    for (uint32_t first = s.first; first < s.end; first += PAGE_KEYS) {
      const int keys = old_end <= first ? 0 : min(old_end - first, uint32_t{PAGE_KEYS});
      const int count = ceil_div(keys, COPY_KEYS);
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
}

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

// Warps that multiply CHUNK_KEYS keys, a piece each, and runs of eight dimensions of the values
// that each of them sums: an even number.
constexpr int ONE_WARPS = CHUNK_KEYS / PIECE_KEYS;
template <int KIND>
constexpr int ONE_RUNS = larger(ATTENTIONS[KIND].v_dim / 8 / ONE_WARPS, 2);
static_assert(ONE_WARPS <= CONSUMER_WARPS && CHUNK_KEYS == 2 * PAGE_KEYS, "two pages at a time");

// The consumers' scratch memory.
template <int KIND>
struct OneScratch {
  static constexpr Attention A = ATTENTIONS[KIND];
  // Operand A, where heads are made here.
  uint4 queries[HeadTiles<KIND>::STEPS * 2 * 32];
  // The token's own key and value.
  alignas(16) uint16_t key[A.qk_dim];
  alignas(16) uint16_t value[A.v_dim];
  // What the warps exchange: the largest score of each piece, by head, and the weights of the
  // pieces, as operand A.
  float largest[ONE_WARPS][TILE_HEADS];
  uint4 weights[ONE_WARPS][32];
};

// The RMSNorm's weights and the angles of a warp's head, loaded ahead of its products: dimensions
// lane, lane + 32 and so on.
template <int KIND>
struct OneHead {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int EACH = A.qk_dim / 32, ROTATED = A.rope_pairs / 32;
  float weights[EACH];
  float2 turns[larger(ROTATED, 1)];

  __device__ __forceinline__ OneHead(const Memory& memory, const float* norm, int lane) {
#pragma unroll
    for (int i = 0; i < EACH; i++) weights[i] = norm[lane + 32 * i];
#pragma unroll
    for (int i = 0; i < ROTATED; i++)
      turns[i] = at<const float2>(
          memory.angles)[KIND * TOKENS_MAX * ROPE_PAIRS_MAX + lane + 32 * i];
  }

  // As `Head::rms_norm` and `Head::apply_rope`; the dimension that one is rotated with is in the
  // same lane.
  __device__ __forceinline__ void finish(float (&values)[EACH]) const {
    float square = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) square += values[i] * values[i];
    square = add_lanes(square);
    const float scale = ptx::inverse_sqrt(square / A.qk_dim + A.qk_norm_eps) + 0.0f * square;
#pragma unroll
    for (int i = 0; i < EACH; i++) values[i] *= scale * weights[i];
#pragma unroll
    for (int i = 0; i < ROTATED; i++) {
      const float first = values[i], second = values[i + ROTATED];
      values[i] = rotate(first, -second, turns[i]);
      values[i + ROTATED] = rotate(second, first, turns[i]);
    }
  }
};

// Consumers: the heads of a chunk, from `projected`: queries, and the token's own key and value if
// the chunk has them, which also go to the KV cache. They are in shared memory after a barrier.
template <int KIND>
__device__ __forceinline__ void make_heads(const Cta& cta, const LayerMemory& layer,
                                           const HeldBatch& batch, const OneTokenRange& s,
                                           const OneHead<KIND>& head, int which, int turn,
                                           OneScratch<KIND>& scratch) {
  using T = HeadTiles<KIND>;
  using Rows = QkvRows<KIND>;
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int EACH = OneHead<KIND>::EACH;
  static_assert(A.qk_dim == A.v_dim && A.qk_dim % 32 == 0, "whole lanes");
  const int lane = cta.lane();
  const bool is_query = which < T::GROUP, is_value = which == T::GROUP + 1;
  const int row = is_query ? (s.kv_head * T::GROUP + which) * A.qk_dim
                           : (is_value ? Rows::VALUE : Rows::KEY) + s.kv_head * A.qk_dim;
  const float* from =
      at<const float>(cta.memory.projected) + turn * PROJECTED_ROWS + row + lane;
  float values[EACH];
  poll<true>([&] {
    bool there = true;
#pragma unroll
    for (int i = 0; i < EACH; i++) values[i] = ptx::load_l2(from + 32 * i);
#pragma unroll
    for (int i = 0; i < EACH; i++) there = there && is_published(values[i]);
    return there;
  });
  if (!is_value) head.finish(values);
  if (is_query) {
    uint16_t* to = reinterpret_cast<uint16_t*>(scratch.queries);
#pragma unroll
    for (int i = 0; i < EACH; i++)
      to[T::query_offset(which, lane + 32 * i)] = ptx::to_bf16(values[i]);
    return;
  }
  uint16_t* own = is_value ? scratch.value : scratch.key;
  const uint32_t place =
      token_cache_index<KIND>(cta.memory, batch, A.page_group, 0, s.kv_head, false);
  uint16_t* cached = at<uint16_t>(is_value ? layer.values : layer.keys);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const uint16_t bits = ptx::to_bf16(values[i] * (is_value ? A.value_scale : 1.0f));
    own[lane + 32 * i] = bits;
    cached[cache_offset<A.qk_dim>(place, lane + 32 * i)] = bits;
  }
}

// Passes two values of a partial result on.
__device__ __forceinline__ void publish_pair(float* to, float first, float second) {
  ptx::store_l2_pair(to, make_uint2(published_word(first), published_word(second)));
}

// A tile of the token's heads, and a warp's part of its running sums.
template <int KIND>
struct OneTile {
  using T = HeadTiles<KIND>;
  using P = KeyPage<KIND>;
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int RUNS = ONE_RUNS<KIND>, GROUPS = PIECE_GROUPS;
  static constexpr int VALUE_WARPS = A.v_dim / 8 / RUNS;
  static_assert(VALUE_WARPS <= ONE_WARPS && VALUE_WARPS * RUNS * 8 == A.v_dim, "whole runs");

  OneScratch<KIND>& scratch;
  int warp, lane;
  // The K/V head whose queries these are.
  int kv_head = -1;
  uint4 queries[T::STEPS][2] = {};
  float largest[2], sum[4], values[RUNS][4];

  __device__ __forceinline__ OneTile(const Cta& cta, OneScratch<KIND>& shared)
      : scratch(shared), warp(cta.warp()), lane(ptx::opaque(cta.lane())) {
    clear();
  }

  // Begins a chunk.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      largest[i / 2] = LOWEST;
      sum[i] = 0;
#pragma unroll
      for (int run = 0; run < RUNS; run++) values[run][i] = 0;
    }
  }

  // From shared memory, or from where the epilogue of the projections stored them.
  __device__ __forceinline__ void load_queries(const Memory& memory, int of_head) {
    kv_head = of_head;
    if (warp >= ONE_WARPS) return;
    const uint16_t* from =
        at<const uint16_t>(memory.queries) + kv_head * T::QUERY_VALUES + lane * 8;
#pragma unroll
    for (int i = 0; i < T::STEPS * 2; i++)
      if (i * 16 < A.qk_dim) {
        if constexpr (A.paired)
          queries[i / 2][i % 2] = ptx::load_l2(static_cast<const void*>(from + i * 32 * 8));
        else
          queries[i / 2][i % 2] = scratch.queries[i * 32 + lane];
      }
  }

  // Multiplies the tile with the CHUNK_KEYS keys from `first` on, in two pages. Keys before `end`
  // are visible, one at least.
  __device__ __forceinline__ void attend(const Cta& cta, const uint32_t (&pages)[2],
                                         uint32_t first, uint32_t end) {
    float scores[GROUPS][4] = {};
    const uint32_t begin = first + warp * PIECE_KEYS;
    if (warp < ONE_WARPS) {
      if (begin < end)
        multiply_piece<KIND>(lane,
                             pages[warp / (ONE_WARPS / 2)] +
                                 warp % (ONE_WARPS / 2) * (PIECE_KEYS * P::KEY_BYTES),
                             queries, scores);
      mask_piece(lane, scores, begin + lane % 4 * 2, end, scratch.largest[warp]);
    }
    cta.sync();
    if (warp < ONE_WARPS) weigh(scores);
    cta.sync();
    if (warp >= VALUE_WARPS) return;
#pragma unroll 1
    for (int turn = 0; turn < CHUNK_KEYS / KEYS_AT_ONCE; turn++) {
      if (first + turn * KEYS_AT_ONCE >= end) break;
      rescale(turn);
      add_values(pages[turn / 2] + P::VALUES, turn);
    }
  }

  // Passes the warp's dimensions of the partial results on.
  __device__ __forceinline__ void keep(const Memory& memory, int turn, int first_head,
                                       int chunk) const {
    if (warp >= VALUE_WARPS) return;
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const int in_tile = row * 8 + lane / 4;
      if (!T::has(first_head, in_tile)) continue;
      const Parts<KIND> parts(memory, turn, first_head + in_tile);
      float* to = parts.values + chunk * A.v_dim + warp * RUNS * 8 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < RUNS; i++)
        publish_pair(to + i * 8, values[i][row * 2], values[i][row * 2 + 1]);
      if (warp == 0 && lane % 4 == 0)
        publish_pair(&parts.softmax[chunk].largest, largest[row], sum[row * 2]);
    }
  }

 private:
  // The largest score of a row's head so far, given that before these KEYS_AT_ONCE.
  __device__ __forceinline__ float most_after(float before, int turn, int row) const {
    const int head = row * 8 + lane / 4;
    return fmaxf(before, fmaxf(scratch.largest[turn * 2][head],
                               scratch.largest[turn * 2 + 1][head]) * score_scale<KIND>());
  }

  // The weights of the warp's piece.
  __device__ __forceinline__ void weigh(float (&scores)[GROUPS][4]) const {
    static_assert(PIECES_AT_ONCE == 2, "pairs of pieces");
    float most[2] = {largest[0], largest[1]};
#pragma unroll 1
    for (int turn = 0; turn <= warp / 2; turn++)
#pragma unroll
      for (int row = 0; row < 2; row++) most[row] = most_after(most[row], turn, row);
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        scores[group][i] =
            ptx::exp2(fmaf(scores[group][i], score_scale<KIND>(), -most[i / 2]));
    scratch.weights[warp][lane] = make_uint4(
        ptx::pack_bf16(scores[0][0], scores[0][1]), ptx::pack_bf16(scores[0][2], scores[0][3]),
        ptx::pack_bf16(scores[1][0], scores[1][1]), ptx::pack_bf16(scores[1][2], scores[1][3]));
  }

  __device__ __forceinline__ void rescale(int turn) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const float most = most_after(largest[row], turn, row);
      const float factor = ptx::exp2(largest[row] - most);
      largest[row] = most;
#pragma unroll
      for (int i = row * 2; i < row * 2 + 2; i++) {
        sum[i] *= factor;
#pragma unroll
        for (int run = 0; run < RUNS; run++) values[run][i] *= factor;
      }
    }
  }

  __device__ __forceinline__ void add_values(uint32_t page_values, int turn) {
    constexpr uint32_t ONES = 0x3f803f80;
    constexpr int GROUP_BYTES = GROUP_KEYS * P::VALUE_BYTES, RUN_BYTES = GROUP_KEYS * 16;
    const uint32_t from = page_values + turn % 2 * (4 * GROUP_BYTES) + warp * (RUNS * RUN_BYTES) +
                          lane / 8 % 2 * GROUP_BYTES + lane / 16 * RUN_BYTES + lane % 8 * 16;
#pragma unroll
    for (int piece = 0; piece < PIECES_AT_ONCE; piece++) {
      const uint4 w = scratch.weights[turn * PIECES_AT_ONCE + piece][lane];
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

// Consumers: put the token's own key and value into the page of the ring that ends with them, and
// zeros behind the value: weights there are zeros, and uninitialised memory could be NaN.
template <int KIND>
__device__ __forceinline__ void put_own(const Cta& cta, const LayerMemory& layer,
                                        const HeldBatch& batch, const OneScratch<KIND>& scratch,
                                        int kv_head, uint32_t page, uint32_t in_page) {
  using P = KeyPage<KIND>;
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int KEY_RUNS = A.qk_dim / 8, VALUE_RUNS = A.v_dim / 8;
  const int end = KEY_RUNS + (KEYS_AT_ONCE - in_page % KEYS_AT_ONCE) * VALUE_RUNS;
  uint32_t place = 0;
  if constexpr (A.paired)
    if (cta.thread() < KEY_RUNS + VALUE_RUNS)
      place = token_cache_index<KIND>(cta.memory, batch, A.page_group, 0, kv_head, false);
#pragma unroll 1
  for (int i = cta.thread(); i < end; i += CONSUMERS) {
    const bool is_key = i < KEY_RUNS;
    const int run = is_key ? i : (i - KEY_RUNS) % VALUE_RUNS;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (i < KEY_RUNS + VALUE_RUNS) {
      if constexpr (A.paired) {
        const uint16_t* from = is_key ? at<const uint16_t>(layer.keys) +
                                            cache_offset<A.qk_dim>(place, run * 8)
                                      : at<const uint16_t>(layer.values) +
                                            cache_offset<A.v_dim>(place, run * 8);
        words = ptx::load_l2(static_cast<const void*>(from));
      } else
        words = *reinterpret_cast<const uint4*>((is_key ? scratch.key : scratch.value) + run * 8);
    }
    const int key = in_page + (is_key ? 0 : (i - KEY_RUNS) / VALUE_RUNS);
    const size_t to = is_key ? cache_offset<A.qk_dim>(key, run * 8) * 2
                             : P::VALUES + cache_offset<A.v_dim>(key, run * 8) * 2;
    ptx::store_shared(page + static_cast<uint32_t>(to), words);
  }
}

// Consumers: a chunk of a K/V head.
template <int KIND>
__device__ __forceinline__ void attend_chunk(Cta& cta, Ring& ring, const LayerMemory& layer,
                                             const HeldBatch& batch, const OneTokenRange& s,
                                             OneTile<KIND>& tile, int turn) {
  using T = HeadTiles<KIND>;
  tile.clear();
#pragma unroll 1
  for (uint32_t first = s.first; first < s.end; first += CHUNK_KEYS) {
    uint32_t pages[2];
    pages[0] = ring.wait();
    pages[1] = pages[0];
    const bool both = first + PAGE_KEYS < s.end;
    if (both) {
      Ring ahead = ring;
      ahead.next();
      pages[1] = ahead.wait();
    }
    const bool puts = s.has_new && s.end <= first + CHUNK_KEYS;
    // Heads in shared memory are complete, and the scores before these have been read.
    cta.sync();
    if (puts)
      put_own<KIND>(cta, layer, batch, tile.scratch, s.kv_head, pages[1],
                    (s.end - 1) % PAGE_KEYS);
    if (tile.kv_head != s.kv_head) tile.load_queries(cta.memory, s.kv_head);
    if (puts) cta.sync();
    tile.attend(cta, pages, first, s.end);
    ring.release(cta.lane());
    if (both) ring.release(cta.lane());
  }
  tile.keep(cta.memory, turn, s.kv_head * T::GROUP, s.chunk);
}

// The chunks of a warp, if warps attend chunks of their own.
template <int KIND>
__device__ __forceinline__ DecodeCursor<KIND, BatchDecodeRows> warp_chunks(
    const Cta& cta, const OneTokenChunks& chunks) {
  constexpr uint32_t WARPS = DECODERS<KIND>;
  const uint32_t warp = min(static_cast<uint32_t>(cta.warp()), WARPS - 1);
  const uint32_t begin = chunks.count * warp / WARPS, end = chunks.count * (warp + 1) / WARPS;
  const uint32_t unit = chunks.kv_head * chunks.chunks + chunks.chunk + begin;
  const uint32_t chunk = unit % chunks.chunks;
  return {cta.warp() == warp ? end - begin : 0, 0, static_cast<int>(unit / chunks.chunks), chunk,
          chunk * chunks.chunk_keys};
}

// Consumers: where the first keys of a warp's chunks are, in each lane those of a group. They are
// looked up before the projections, which hide the latency.
template <int KIND>
__device__ __forceinline__ uint32_t first_places(const Cta& cta, const LayerMemory& layer,
                                                 const HeldBatch& batch,
                                                 const OneTokenChunks& chunks) {
  if constexpr (HAS_WARP_CHUNKS<KIND>)
    if (has_warp_chunks<KIND>(chunks))
      return warp_chunks<KIND>(cta, chunks).places({cta.memory, layer, batch}, cta.lane());
  return 0;
}

// Consumers: this CTA's chunks, which its warps share. Begins between the halves of a grid barrier.
template <int KIND>
__device__ __forceinline__ void attend_warp_chunks(Cta& cta, Ring& ring, const LayerMemory& layer,
                                                   const HeldBatch& batch,
                                                   const OneTokenChunks& chunks,
                                                   uint32_t places, SumMemory& sums, int turn) {
  using T = HeadTiles<KIND>;
  PendingBarrier barrier = {false};
  attend_own_chunks<KIND>(
      cta, ring, {cta.memory, layer, batch}, warp_chunks<KIND>(cta, chunks), places,
      reinterpret_cast<StreamScratch<KIND>&>(sums.scratch), [&] { barrier.wait(cta); },
      [&](auto& tile, const auto& from) {
        tile.template load_queries<false>(cta, 0, from.kv_head);
      },
      [&](const auto& tile, const auto& from) {
        tile.keep(cta, turn, from.kv_head * T::GROUP, from.chunk, publish_pair);
      });
}

// Consumers: this CTA's chunks. Begins between the halves of a grid barrier. If heads are made
// here, products are polled for instead, and the barrier is waited for later (`reset_layer`).
template <int KIND>
__device__ __forceinline__ void attend_chunks_of_one(Cta& cta, Ring& ring,
                                                     const LayerMemory& layer,
                                                     const HeldBatch& batch,
                                                     const OneTokenChunks& chunks,
                                                     uint32_t places, SumMemory& sums, int turn) {
  using T = HeadTiles<KIND>;
  constexpr Attention A = ATTENTIONS[KIND];
  static_assert(sizeof(OneScratch<KIND>) <= SCRATCH_BYTES, "there is room");
  static_assert(T::COUNT == 1, "a K/V head has one tile");
  if constexpr (HAS_WARP_CHUNKS<KIND>)
    if (has_warp_chunks<KIND>(chunks))
      return attend_warp_chunks<KIND>(cta, ring, layer, batch, chunks, places, sums, turn);
  auto& scratch = reinterpret_cast<OneScratch<KIND>&>(sums.scratch);
  OneTile<KIND> tile(cta, scratch);
  if constexpr (A.paired) {
    PendingBarrier barrier = {false};
    for_each_chunk(chunks, [&](const OneTokenRange& s) {
      barrier.wait(cta);
      attend_chunk<KIND>(cta, ring, layer, batch, s, tile, turn);
    });
    barrier.wait(cta);
  } else {
    static_assert(T::GROUP + 2 <= CONSUMER_WARPS, "a warp for each head");
    if (chunks.count == 0) return;
    const int which = cta.warp();
    const OneHead<KIND> head(
        cta.memory, at<const float>(which < T::GROUP ? layer.q_norm : layer.k_norm), cta.lane());
    for_each_chunk(chunks, [&](const OneTokenRange& s) {
      const bool is_query = which < T::GROUP, is_own = !is_query && which < T::GROUP + 2;
      if ((is_query && tile.kv_head != s.kv_head) || (is_own && s.has_new))
        make_heads<KIND>(cta, layer, batch, s, head, which, turn, scratch);
      attend_chunk<KIND>(cta, ring, layer, batch, s, tile, turn);
    });
  }
}

}  // namespace kilotok
