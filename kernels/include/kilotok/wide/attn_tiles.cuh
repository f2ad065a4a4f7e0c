// Shared by the wide pass's kinds of attention: the division of tokens among CTAs, the addresses of
// keys, and the stores of results.
#pragma once

#include "kilotok/phase/attn_stream.cuh"
#include "kilotok/wide/attn_in.cuh"

namespace kilotok::wide {

struct AttnMemory {
  StepTokens step;
  // LayerMemory of this layer: its pages and sinks.
  uint64_t layer;
  // As `attn_in` left them.
  uint64_t queries;
  // Operands of the output projections, of `capacity` tokens, see `kind_operand`.
  uint64_t attended;
  int capacity;
};

// The queries of a K/V head in one tile of positions: tokens of one row.
struct QueryTile {
  int row, kv_head;
  // The tile's first position, the position of its first token, and the one after its last.
  uint32_t begin, first, end;
};

// A CTA's share of the query tiles of a step, POSITIONS each. The last positions come first, since
// they see most keys. CTAs take turns, in alternating order, so that each gets about as many keys.
template <int KIND, int POSITIONS>
struct TileWalk {
  static constexpr int KV_HEADS = ATTENTIONS[KIND].kv_heads;
  const StepTokens& step;
  int turn = 0;
  // The row of the next tile, and the number of tiles of the rows after it.
  int row, before = 0;

  __device__ __forceinline__ explicit TileWalk(const StepTokens& tokens)
      : step(tokens), row(tokens.row_count - 1) {}

  // Finds the next tile; false if there is none.
  __device__ __forceinline__ bool next(QueryTile& tile) {
    const int cta = ptx::cta_index();
    const int item = turn * GRID + (turn % 2 == 0 ? cta : GRID - 1 - cta);
    turn++;
    const int index = item / KV_HEADS;
    while (row >= 0) {
      const BatchRow& r = step.row(row);
      const uint32_t end = r.start + r.count, first_tile = r.start / POSITIONS;
      const int count = static_cast<int>((end + POSITIONS - 1) / POSITIONS - first_tile);
      if (index < before + count) {
        const uint32_t begin = (first_tile + count - 1 - (index - before)) * POSITIONS;
        tile = {row, item % KV_HEADS, begin, max(begin, r.start), min(begin + POSITIONS, end)};
        return true;
      }
      before += count;
      row--;
    }
    return false;
  }
};

// The most rows of a step, as in crates/cuda/src/wide.rs.
constexpr int ROWS_MAX = 256;
static_assert(ROWS_MAX <= THREADS, "each row has its thread");

// Divides the tiles among CTAs as `TileWalk` does, for steps with many rows. All threads count the
// tiles of all rows first, in shared memory, because visiting the rows one by one, as `TileWalk`
// does, would take longer than their attention.
template <int KIND, int POSITIONS>
struct TileTable {
  static constexpr int KV_HEADS = ATTENTIONS[KIND].kv_heads;
  // `before[i]` is the number of tiles of the last `i` rows.
  int before[ROWS_MAX + 1];
  uint32_t of_warp[ROWS_MAX / 32];

  // All threads of a CTA, before they look for tiles.
  __device__ __forceinline__ void fill(const StepTokens& step) {
    const int thread = threadIdx.x, lane = thread % 32;
    uint32_t sum = 0, all;
    if (thread < ROWS_MAX) {
      const int row = step.row_count - 1 - thread;
      const uint32_t own = row >= 0 ? tile_count(step.row(row)) : 0;
      sum = own + sum_before(own, lane, all);
      if (lane == 0) of_warp[thread / 32] = all;
    }
    if (thread == 0) before[0] = 0;
    __syncthreads();
    if (thread < ROWS_MAX) {
      for (int i = 0; i < thread / 32; i++) sum += of_warp[i];
      before[thread + 1] = static_cast<int>(sum);
    }
    __syncthreads();
  }

  // Finds the tile of a turn; false if there is none.
  __device__ __forceinline__ bool find(const StepTokens& step, int turn, QueryTile& tile) const {
    const int index = item(turn) / KV_HEADS;
    if (index >= before[ROWS_MAX]) return false;
    // The last place with `before[place] <= index`.
    int place = 0;
#pragma unroll
    for (int half = ROWS_MAX / 2; half > 0; half /= 2)
      if (before[place + half] <= index) place += half;
    tile = of_place(step, place, turn);
    return true;
  }
  // The same for a warp, for kernels with `wgmma`. The compiler sees that all lanes find the same
  // tile; otherwise it would wait for each product.
  __device__ __forceinline__ bool find_together(const StepTokens& step, int turn,
                                                QueryTile& tile) const {
    constexpr int EACH = ROWS_MAX / 32;
    const int index = item(turn) / KV_HEADS, lane = threadIdx.x % 32;
    int place = __popc(__ballot_sync(~0u, before[(lane + 1) * EACH] <= index)) * EACH;
    if (place == ROWS_MAX) return false;
    place += __popc(__ballot_sync(~0u, lane < EACH && before[place + lane % EACH + 1] <= index));
    tile = of_place(step, place, turn);
    return true;
  }

 private:
  static __device__ __forceinline__ int item(int turn) {
    const int cta = ptx::cta_index();
    return turn * GRID + (turn % 2 == 0 ? cta : GRID - 1 - cta);
  }
  static __device__ __forceinline__ uint32_t tile_count(const BatchRow& row) {
    return (row.start + row.count + POSITIONS - 1) / POSITIONS - row.start / POSITIONS;
  }
  // The turn's tile, which is one of the row that has `place` rows after it.
  __device__ __forceinline__ QueryTile of_place(const StepTokens& step, int place,
                                                int turn) const {
    const int row = step.row_count - 1 - place;
    const BatchRow& r = step.row(row);
    const int after = before[place + 1] - 1 - item(turn) / KV_HEADS;
    const uint32_t begin = (r.start / POSITIONS + after) * POSITIONS;
    return {row, item(turn) % KV_HEADS, begin, max(begin, r.start),
            min(begin + POSITIONS, r.start + r.count)};
  }
};

// The token of a step that a row has at a position.
__device__ __forceinline__ int token_at(const BatchRow& row, uint32_t position) {
  return static_cast<int>(row.first + (position - row.start));
}

// The keys and values of a K/V head of a row.
template <int KIND>
__device__ __forceinline__ KeySource<KIND> key_source(const AttnMemory& memory,
                                                      const BatchRow& row, int kv_head) {
  const LayerMemory& layer = *at<const LayerMemory>(memory.layer);
  return {at<const uint32_t>(memory.step.pages), at<const char>(layer.keys),
          at<const char>(layer.values), row.pages_at[ATTENTIONS[KIND].page_group], kv_head, false};
}

// The sink of a head, if the kind has sinks.
template <int KIND>
__device__ __forceinline__ float sink_of(const AttnMemory& memory, int head) {
  if constexpr (!ATTENTIONS[KIND].sinks) return 0;
  return at<const float>(at<const LayerMemory>(memory.layer)->sinks)[head];
}

// Stores two neighbouring dimensions of a token's head.
template <int KIND>
__device__ __forceinline__ void store_attended(const AttnMemory& memory, int token, int head,
                                               int dim, float low, float high) {
  const int column = head * ATTENTIONS[KIND].v_dim + dim;
  *reinterpret_cast<uint32_t*>(at<char>(memory.attended) +
                               kind_operand<OutputMatrix, KIND>(memory.capacity) +
                               operand_place(token, column, memory.capacity)) =
      ptx::pack_bf16(low, high);
}

}  // namespace kilotok::wide
