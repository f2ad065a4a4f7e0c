// The inner operand of experts over one tile of tokens: gate and up write it, down reads it. There
// are two layouts. Where down multiplies whole experts ahead, it has all rows in shared memory, by
// token and choice. Otherwise rows are sorted by expert, then token, so that those of neighbouring
// experts come with a page of their weights.
#pragma once

#include "kilotok/phase/dense.cuh"
#include "kilotok/phase/router.cuh"

namespace kilotok {

template <int KIND>
struct Moe {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr int TOP_K = F.top_k;
  using GateUp = GateUpMatrix<KIND>;
  using Down = DownMatrix<KIND>;
  // Whether the producer copies the operand of gate and up into the ring while the experts are
  // chosen.
  static constexpr bool OPERAND_IN_PAGES = IS_HELD<GateUp>;
  // Bytes of all rows, and of one more tile for a row of zeros.
  static constexpr int ALL_ROWS_BYTES = (TOP_K + 1) * TILE_TOKENS * Down::COLUMNS_PADDED * 2;
  // Whether a page of down has whole experts for every warp of a row tile, and shared memory room
  // for all rows.
  static constexpr bool HAS_ALL_ROWS = Down::STEPS == 1 &&
                                       Down::PAGE_STEPS % Down::COLUMN_WARPS == 0 &&
                                       ALL_ROWS_BYTES <= SCRATCH_BYTES;
};

// All rows in shared memory.
template <int KIND>
struct AllRows {
  using N = Moe<KIND>;
  static constexpr int ROWS = TILE_TOKENS * N::TOP_K;
  static constexpr int ROW_BYTES = N::Down::COLUMNS_PADDED * 2;
  static constexpr int TILE_PIECES = TILE_TOKENS * ROW_BYTES / 16;

  uint32_t shared;

  // The byte offset of a row. Row ROWS is zeros.
  static __host__ __device__ constexpr int place(int row) {
    return row / TILE_TOKENS * TILE_TOKENS * ROW_BYTES + row % TILE_TOKENS * 64;
  }

  // Address of a value in the GPU's memory.
  static __device__ __forceinline__ char* value(const Memory& memory, int row, int column) {
    return at<char>(memory.expert_inner) + operand_row(row, EXPERT_INNER_BYTES) +
           operand_offset(column);
  }

  // Loads all rows; values are POLLED, or a barrier came before.
  template <bool POLLED>
  static __device__ __forceinline__ AllRows fetch(const Cta& cta, SumMemory& scratch) {
    constexpr int PIECES = N::TOP_K * TILE_PIECES, LOADS = ceil_div(PIECES, CONSUMERS);
    const char* rows = at<const char>(cta.memory.expert_inner);
    // Only a thread's last piece may lie beyond the end.
    const int last = smaller(cta.thread(), PIECES - 1 - (LOADS - 1) * CONSUMERS);
    const auto own = [&](int i) { return i < LOADS - 1 ? cta.thread() : last; };
    // Where rows are equally wide in memory, one address serves all of a thread's pieces.
    const auto place = [&](int i) {
      if constexpr (EXPERT_INNER_BYTES == ROW_BYTES)
        return rows + own(i) * 16 + i * (CONSUMERS * 16);
      const int piece = own(i) + i * CONSUMERS;
      return rows + piece / TILE_PIECES * (TILE_TOKENS * EXPERT_INNER_BYTES) +
             piece % TILE_PIECES * 16;
    };
    uint4* to = reinterpret_cast<uint4*>(scratch.scratch);
    uint4 v[LOADS];
    // Rows of tokens that the batch does not have are never EMPTY: they hold zeros at first, then
    // values of a larger batch, which wrote all that it had reset.
    poll<POLLED>([&] {
      uint32_t missing = 0;
#pragma unroll
      for (int i = 0; i < LOADS; i++) v[i] = ptx::load_l2(place(i));
#pragma unroll
      for (int i = 0; i < LOADS; i++) missing |= missing_halves(v[i]);
      return missing == 0;
    });
#pragma unroll
    for (int i = 0; i < LOADS; i++) (to + own(i))[i * CONSUMERS] = v[i];
#pragma unroll
    for (int i = 0; i < ceil_div(TILE_PIECES, CONSUMERS); i++)
      if (cta.thread() < TILE_PIECES - i * CONSUMERS)
        to[PIECES + i * CONSUMERS + cta.thread()] = make_uint4(0, 0, 0, 0);
    cta.sync();
    return {ptx::shared_address(scratch.scratch)};
  }

  // A lane's part of the operand of a column whose row has this place.
  __device__ __forceinline__ OperandChunk load(int place, int chunk, int lane) const {
    OperandChunk x;
    x.load_shared(shared + place, chunk, lane);
    return x;
  }
};

// Rows sorted by expert, then token: `[steps of down][rows]`, a step of a row in one run. All kinds
// of a model have the same places, so that columns after a row's last one stay zeros.
template <int KIND>
struct SortedRows {
  using N = Moe<KIND>;
  using M = typename N::Down;
  static constexpr int STEP_COLUMNS = M::COLUMN_WARPS * CHUNK_COLUMNS;
  // Bytes of a row in a step, and of a step in the GPU's memory.
  static constexpr int RUN_BYTES = STEP_COLUMNS * 2;
  static constexpr int STEP_BYTES = TILE_TOKENS * TOP_K_MAX * RUN_BYTES;
  static_assert(M::STEPS * STEP_BYTES <= TILE_INNER_BYTES, "they have room");
  // With one token, shared memory may have room for all rows. Then the warps of an expert load its
  // row at once, each a part of it, if registers suffice.
  static constexpr int RUN_PIECES = RUN_BYTES / 16, ROW_PIECES = M::STEPS * RUN_PIECES;
  static constexpr int LOADS = ceil_div(ROW_PIECES, M::ROW_TILES * 32), LOADS_MAX = 6;
  static constexpr bool HAS_TOKEN =
      LOADS <= LOADS_MAX && N::TOP_K * ROW_PIECES * 16 <= SCRATCH_BYTES;

  // Address of a step's row.
  static __device__ __forceinline__ char* run(const Memory& memory, int step, int row) {
    return at<char>(memory.expert_inner) + step * STEP_BYTES + row * RUN_BYTES;
  }
  static __device__ __forceinline__ char* value(const Memory& memory, int row, int column) {
    return run(memory, column / STEP_COLUMNS, row) + column % STEP_COLUMNS / 32 * 64 +
           half_offset(column);
  }

  // The warps that multiply an expert with one token: copy its row, counted from row `begin` on,
  // into shared memory. Values are POLLED, or a barrier came before.
  template <bool POLLED>
  static __device__ __forceinline__ void fetch(const Cta& cta, SumMemory& scratch, int row,
                                               int begin = 0) {
    const int first = cta.warp() / M::COLUMN_WARPS * 32 + cta.lane();
    // Beyond the last piece, the last again.
    const auto own = [&](int i) { return smaller(first + i * M::ROW_TILES * 32, ROW_PIECES - 1); };
    uint4 v[LOADS];
    poll<POLLED>([&] {
      uint32_t missing = 0;
#pragma unroll
      for (int i = 0; i < LOADS; i++)
        v[i] = ptx::load_l2(static_cast<const void*>(
            run(cta.memory, own(i) / RUN_PIECES, begin + row) + own(i) % RUN_PIECES * 16));
#pragma unroll
      for (int i = 0; i < LOADS; i++) missing |= missing_halves(v[i]);
      return missing == 0;
    });
    uint4* to = reinterpret_cast<uint4*>(scratch.scratch) + row * ROW_PIECES;
#pragma unroll
    for (int i = 0; i < LOADS; i++) to[own(i)] = v[i];
    if constexpr (M::ROW_TILES == 1)
      __syncwarp();
    else
      ptx::sync_threads<M::ROW_TILES * 32>(cta.warp() % M::COLUMN_WARPS);
  }
};

// Whether rows come through the ring, and the producer waits until all CTAs have written theirs.
// Otherwise the consumers load them, and may poll.
template <int KIND>
__device__ __forceinline__ bool rows_in_ring(int token_count) {
  if constexpr (Moe<KIND>::HAS_ALL_ROWS)
    return false;
  else
    return token_count > 1 || !SortedRows<KIND>::HAS_TOKEN;
}

// Rows of one tile of tokens, sorted by expert. Those that come through the ring are copied to the
// scratch memory, a third of which belongs to each page.
template <int KIND>
struct TileRows {
  using R = SortedRows<KIND>;
  using M = typename R::M;
  using Routes = kilotok::Routes;
  static constexpr bool IN_PAGE = false;
  static constexpr int ROW_BYTES = R::RUN_BYTES, BYTES = SCRATCH_BYTES / PAGE_COUNT;
  static_assert(TILE_TOKENS * ROW_BYTES <= BYTES && BYTES % 16 == 0, "any expert's have room");
  // Steps for which the rows of an expert have room, even if all tokens have chosen it.
  static constexpr int STEPS = BYTES / (TILE_TOKENS * ROW_BYTES);

  static __device__ __forceinline__ bool in_ring(int token_count) {
    return rows_in_ring<KIND>(token_count);
  }
  static __device__ __forceinline__ const char* run(const Memory& memory, int step, int row) {
    return R::run(memory, step, row);
  }
  static __device__ __forceinline__ int first_row(const Routes& routes, int entry) {
    return routes.sorted.first_rows[entry];
  }
};

// The routes of one tile of tokens, with the places of their rows. The experts and their number are
// visible to all consumers; `complete_routes` follows.
template <int KIND, bool POLLED, class Note>
__device__ __forceinline__ void choose_routes(const Cta& cta, Routes& routes, StreamMemory& stream,
                                              const float* bias, int token_count, Note note) {
  top_k_routes<KIND, POLLED, !Moe<KIND>::HAS_ALL_ROWS>(
      cta, routes, stream, bias, token_count, [](int row) { return AllRows<KIND>::place(row); },
      note);
}

// The first warp: counts sorted rows, which only `down` and the epilogue of gate and up need.
template <int KIND>
__device__ __forceinline__ void complete_routes(const Cta& cta, Routes& routes, int token_count) {
  if (Moe<KIND>::HAS_ALL_ROWS || token_count == 1 || cta.warp() != 0) return;
  count_rows(routes, cta.lane());
  __syncwarp();
}

// Resets the values that `down` polls. Called between two grid barriers.
template <int KIND>
__device__ __forceinline__ void reset_inner(const Cta& cta, int token_count) {
  using N = Moe<KIND>;
  if (rows_in_ring<KIND>(token_count)) return;
  const int first = cta.thread() + cta.index() * CONSUMERS;
#pragma unroll 1
  for (int i = first; i < token_count * N::TOP_K * N::F.width; i += GRID * CONSUMERS) {
    const int row = i / N::F.width, column = i % N::F.width;
    char* value;
    if constexpr (N::HAS_ALL_ROWS)
      value = AllRows<KIND>::value(cta.memory, row, column);
    else
      value = SortedRows<KIND>::value(cta.memory, row, column);
    *reinterpret_cast<uint16_t*>(value) = EMPTY_HALF;
  }
}

}  // namespace kilotok
