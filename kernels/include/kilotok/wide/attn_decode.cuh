// Full attention in a step of decoding users, rows of one token each. Every warp attends whole K/V
// heads of rows, as phase/attn_decode.cuh does chunks. The tiles of wide/attn_full.cuh would have
// one token each, and a CTA one tile at a time.
//
// The order of sums is the same: an online softmax over each chunk, and then the chunks one by one
// (`add_part`).
#pragma once

#include "kilotok/phase/attn_decode.cuh"
#include "kilotok/wide/attn_tiles.cuh"

namespace kilotok::wide {

// Shared memory for the slots of all warps. What is left of a CTA's 227 KB is for queries.
constexpr int ALL_SLOTS_BYTES = 191 << 10;

template <int KIND>
struct DecodeShared {
  static constexpr int WARPS = CONSUMERS / 32;
  static constexpr int SLOTS = DECODE_SLOTS<KIND, ALL_SLOTS_BYTES / WARPS>;
  alignas(128) char slots[WARPS][SLOTS * SLOT_BYTES<KIND>];
  alignas(16) char queries[WARPS][larger(SHARED_QUERY_BYTES<KIND>, 16)];
  alignas(8) uint64_t arrived[WARPS][SLOTS];
};

// The queries of a K/V head, which `query_offset` stores as operand A of warpgroups.
template <int KIND>
__device__ __forceinline__ void load_queries(StreamedTile<KIND>& tile, const AttnMemory& memory,
                                             int token, int kv_head, int lane) {
  using T = HeadTiles<KIND>;
  const char* from = at<const char>(memory.queries) +
                     (static_cast<size_t>(token) * QUERY_VALUES +
                      query_offset<KIND>(kv_head * T::GROUP, 0)) * 2 + lane * 4;
  constexpr int RUN_BYTES = TILE_HEADS / 2 * 16, HALF_BYTES = T::A.qk_dim / 8 * RUN_BYTES;
  const auto word = [&](int run, int half) {
    // Heads that the tile does not have are padding.
    const bool has = run * 8 < T::A.qk_dim && (half == 0 || T::GROUP > TILE_HEADS / 2);
    return has ? ptx::load_l2_word(from + half * HALF_BYTES + run * RUN_BYTES) : 0u;
  };
#pragma unroll
  for (int i = 0; i < T::STEPS * 2; i++)
    tile.hold_query(i / 2, i % 2,
                    make_uint4(word(i * 2, 0), word(i * 2, 1), word(i * 2 + 1, 0),
                               word(i * 2 + 1, 1)));
}

// The sums of a warp's tile over all chunks so far, as `StreamedTile` has those of one.
template <int KIND>
struct DecodeSums {
  static constexpr Attention A = ATTENTIONS[KIND];
  // Eight heads at a time; the others of a tile may not exist.
  static constexpr int HALVES = HeadTiles<KIND>::GROUP > TILE_HEADS / 2 ? 2 : 1;
  Softmax softmax[HALVES];
  float total[HALVES][A.v_dim / 4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
      softmax[half] = {LOWEST, 0};
#pragma unroll
      for (int i = 0; i < A.v_dim / 4; i++) total[half][i] = 0;
    }
  }

  __device__ __forceinline__ void add(const StreamedTile<KIND>& tile) {
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
      const float most = fmaxf(tile.largest[half], softmax[half].largest);
      const float keep = ptx::exp2(softmax[half].largest - most);
      const float weight = ptx::exp2(tile.largest[half] - most);
      softmax[half].largest = most;
      add_part(softmax[half].sum, keep, weight, tile.sum[half * 2]);
#pragma unroll
      for (int i = 0; i < A.v_dim / 4; i++)
        add_part(total[half][i], keep, weight, tile.values[i / 2][half * 2 + i % 2]);
    }
  }

  __device__ __forceinline__ void store(const AttnMemory& memory, int token, int kv_head,
                                        int lane) const {
    const int first_head = kv_head * HeadTiles<KIND>::GROUP;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
      const int in_tile = half * 8 + lane / 4, head = first_head + in_tile;
      if (!HeadTiles<KIND>::has(first_head, in_tile)) continue;
      const float factor = softmax_scale<KIND>(softmax[half], sink_of<KIND>(memory, head));
#pragma unroll
      for (int i = 0; i < A.v_dim / 4; i += 2)
        store_attended<KIND>(memory, token, head, i * 4 + lane % 4 * 2, total[half][i] * factor,
                             total[half][i + 1] * factor);
    }
  }
};

// As `BatchDecodeRows`.
struct StepDecodeRows {
  const AttnMemory& memory;

  __device__ __forceinline__ const BatchRow& row(int index) const {
    return memory.step.row(index);
  }
  __device__ __forceinline__ const LayerMemory& of_layer() const {
    return *at<const LayerMemory>(memory.layer);
  }
  __device__ __forceinline__ const uint32_t* pages() const {
    return at<const uint32_t>(memory.step.pages);
  }
};

// All consumers of all CTAs.
template <int KIND>
__device__ __forceinline__ void attend_users(DecodeShared<KIND>& shared, const AttnMemory& memory) {
  using S = DecodeShared<KIND>;
  constexpr uint32_t KV_HEADS = ATTENTIONS[KIND].kv_heads, ALL = S::WARPS * GRID;
  const int warp = threadIdx.x / 32, lane = ptx::opaque(threadIdx.x % 32);
  const uint32_t heads = memory.step.row_count * KV_HEADS;
  const uint32_t share = warp * GRID + ptx::cta_index();
  const uint32_t begin = heads * share / ALL, count = heads * (share + 1) / ALL - begin;
  if (count == 0) return;
  const StepDecodeRows of = {memory};
  DecodeCursor<KIND, StepDecodeRows> at = {count, static_cast<int>(begin / KV_HEADS),
                                           static_cast<int>(begin % KV_HEADS), 0, 0};
  DecodeCopies<KIND, StepDecodeRows, S::SLOTS, true> copies(
      of, ptx::shared_address(shared.slots[warp]), ptx::shared_address(shared.arrived[warp]), at,
      at.places(of, lane), lane);
  copies.fill(lane);
  StreamedTile<KIND> tile = {};
  tile.shared_queries = ptx::shared_address(shared.queries[warp]) + lane * 16;
  DecodeSums<KIND> sums;
#pragma unroll 1
  for (; at.left > 0; at.template next<true>(of)) {
    const BatchRow& row = of.row(at.row);
    if (at.first == 0) {
      load_queries<KIND>(tile, memory, row.first, at.kv_head, lane);
      sums.clear();
    }
    if (at.first == at.chunk * at.chunk_keys(of)) tile.clear();
    const uint32_t end = at.end(of);
    attend_run<KIND>(tile, copies, lane, at.first, end);
    if (end == at.chunk_end(of)) sums.add(tile);
    if (end > row.start) sums.store(memory, row.first, at.kv_head, lane);
  }
}

// All threads of all CTAs, THREADS each.
template <int KIND>
__device__ __forceinline__ void decode_rows(DecodeShared<KIND>& shared, const AttnMemory& memory) {
  with_roles([&] { attend_users<KIND>(shared, memory); }, [] {});
}

}  // namespace kilotok::wide
