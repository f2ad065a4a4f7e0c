// The runs of an expert's rows that are multiplied together, and how consumers and producers of a
// CTA go through them.
#pragma once

#include "kilotok/wide/matrix.cuh"
#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

// A CTA multiplies row tiles of four warpgroups with up to 64 rows of an expert at a time. With two
// warpgroups and 128 rows weights are decoded half as often, but every token is copied twice as
// often, and too few warps hide latencies.
using ExpertsCta = CtaShape<MANY_CONSUMER_GROUPS>;
constexpr int RUN_ROWS = 64;
// Runs take so many columns of B, by size.
constexpr int RUN_SIZES = 3;
__host__ __device__ constexpr int run_width(int size) {
  return size == 0 ? RUN_ROWS : size == 1 ? 48 : size == 2 ? 32 : 0;
}
using RunTotals = Totals<RUN_ROWS / TILE_TOKENS * ExpertsCta::CONSUMERS>;

// As many stages as fit shared memory beside sums and the list of runs; of tokens alone, or with
// weights of a format.
constexpr int RING_BYTES = 153 << 10;
template <int WEIGHT_BYTES>
using RunRing =
    OperandRing<RUN_ROWS,
                RING_BYTES / OperandRingMemory<RUN_ROWS, 1, WEIGHT_BYTES>::STAGE_BYTES, true,
                WEIGHT_BYTES>;
template <Format F>
using WeightsRing = RunRing<ExpertsCta::ROW_TILES * chunk_bytes(F)>;

// Calls `f` with the constant of the columns that so many rows take.
template <int SIZE = RUN_SIZES - 1, class F>
__device__ __forceinline__ void with_run_columns(int rows, F f) {
  if constexpr (SIZE == 0)
    f(Constant<run_width(SIZE)>{});
  else if (rows <= run_width(SIZE))
    f(Constant<run_width(SIZE)>{});
  else
    with_run_columns<SIZE - 1>(rows, f);
}

struct RowRun {
  int expert, first, count;
};

// The runs by size: as many rows of an expert as they may have, and then what remains. What comes
// before each expert's, and in the end how many there are.
template <int EXPERTS>
struct RunList {
  uint32_t before[RUN_SIZES][EXPERTS + 1];
  uint32_t counts[EXPERTS], first_rows[EXPERTS];

  __device__ __forceinline__ uint32_t runs(int size, int expert) const {
    const int count = counts[expert], rest = count % RUN_ROWS;
    return (size == 0 ? count / RUN_ROWS : 0) +
           (rest > run_width(size + 1) && rest <= run_width(size));
  }

  // All threads of a CTA.
  __device__ __forceinline__ void make(const Routes& routes) {
    for (int i = threadIdx.x; i < EXPERTS; i += ExpertsCta::THREADS) {
      counts[i] = at<const uint32_t>(routes.counts)[i];
      first_rows[i] = at<const uint32_t>(routes.first_rows)[i];
    }
    __syncthreads();
    const int size = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t sum = 0;
    for (int first = 0; size < RUN_SIZES && first <= EXPERTS; first += 32) {
      const int expert = first + lane;
      uint32_t all;
      const uint32_t earlier =
          sum_before(expert < EXPERTS ? runs(size, expert) : 0, lane, all);
      if (expert <= EXPERTS) before[size][expert] = sum + earlier;
      sum += all;
    }
    __syncthreads();
  }

  __device__ __forceinline__ int count() const {
    int sum = 0;
#pragma unroll
    for (int size = 0; size < RUN_SIZES; size++) sum += before[size][EXPERTS];
    return sum;
  }

  __device__ __forceinline__ RowRun run(int index) const {
    uint32_t i = index;
    int size = 0;
    while (i >= before[size][EXPERTS]) i -= before[size++][EXPERTS];
    // The last expert that has no more than `i` runs before it.
    int low = 0, high = EXPERTS;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (before[size][middle] <= i ? low : high) = middle;
    }
    const int count = counts[low];
    const int first =
        size == 0 ? static_cast<int>(i - before[0][low]) * RUN_ROWS : count / RUN_ROWS * RUN_ROWS;
    return {low, first, smaller(count - first, RUN_ROWS)};
  }
};

// The work of a matrix of every expert: its runs, each with AT_ONCE row groups at a time.
template <class M, int AT_ONCE, int EXPERTS>
struct ExpertsWork {
  static constexpr int ROW_TILES = ExpertsCta::ROW_TILES;
  static constexpr int ROW_GROUPS = ceil_div(MATRIX_TILES<M>, ROW_TILES);
  const RunList<EXPERTS>& list;
  // The row groups that are multiplied.
  RowGroups groups_of_all;
  int each;

  __device__ __forceinline__ ExpertsWork(const RunList<EXPERTS>& runs, int first_tile,
                                         int end_tile)
      : list(runs),
        groups_of_all{first_tile / ROW_TILES,
                      smaller(ceil_div(end_tile, ROW_TILES), ROW_GROUPS)},
        each(ceil_div(groups_of_all.end - groups_of_all.first, AT_ONCE)) {}

  // Calls `f(run, its first row, row groups)` for each item of a CTA.
  template <class F>
  __device__ __forceinline__ void for_each(F f) const {
    const int count = list.count() * each;
#pragma unroll 1
    for (int item = ptx::cta_index(); item < count; item += GRID) {
      const RowRun run = list.run(item / each);
      const int first = groups_of_all.first + item % each * AT_ONCE;
      f(run, static_cast<int>(list.first_rows[run.expert]) + run.first,
        RowGroups{first, smaller(first + AT_ONCE, groups_of_all.end)});
    }
  }
};

// Producers: copy the weights of a row group, ROW_TILES chunks a stage.
template <class M>
struct WeightsCopy {
  static constexpr int ROW_TILES = ExpertsCta::ROW_TILES;
  static constexpr int PIECES = M::CHUNK_BYTES / 16, ALL = ROW_TILES * PIECES;
  static constexpr int ROUNDS = ceil_div(ALL, WARPGROUP);
  const char* matrix;
  uint32_t from[ROUNDS];

  // Beyond the last row tile it is that one again: all warps of a warpgroup multiply.
  __device__ __forceinline__ WeightsCopy(const char* weights, int group) : matrix(weights) {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int piece = i * WARPGROUP + threadIdx.x % WARPGROUP;
      const int tile = smaller(group * ROW_TILES + piece / PIECES, MATRIX_TILES<M> - 1);
      from[i] = static_cast<uint32_t>(row_tile<M>(weights, tile) - weights) + piece % PIECES * 16;
    }
  }
  // The chunks at `offset` in each row tile.
  __device__ __forceinline__ void copy(uint32_t to, int offset) const {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int piece = i * WARPGROUP + threadIdx.x % WARPGROUP;
      if ((i + 1) * WARPGROUP <= ALL || piece < ALL)
        ptx::copy_later(to + piece * 16, matrix + (from[i] + offset));
    }
  }
};

// Producers: copy the tokens of rows, wherever they lie. Eight lanes copy the 64 columns of a row.
struct RowGather {
  static constexpr int LANES = CHUNK_COLUMNS / PIECE_COLUMNS, AT_ONCE = WARPGROUP / LANES;
  static constexpr int ROUNDS = RUN_ROWS / AT_ONCE;
  const char* tokens;
  int count;
  uint32_t from[ROUNDS];

  static __device__ __forceinline__ int own() { return threadIdx.x % WARPGROUP / LANES; }
  static __device__ __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % LANES * PIECE_COLUMNS;
  }

  // Of the tokens `normed`, BF16 `[tokens][HIDDEN]`, those of some rows.
  __device__ __forceinline__ RowGather(const char* normed, const uint32_t* choices, int top_k,
                                       int rows)
      : tokens(normed), count(rows) {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int row = own() + i * AT_ONCE;
      from[i] = row < count ? (choices[row] / top_k * HIDDEN + column()) * 2 : 0;
    }
  }
  __device__ __forceinline__ void copy(uint32_t stage, int chunk) const {
    const uint32_t to =
        stage + tile_place(own(), column()) + own() / TILE_TOKENS * TILE_BYTES;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      if (own() + i * AT_ONCE >= count) break;
      const uint32_t place = to + i * (AT_ONCE * TOKEN_BYTES);
      if (HIDDEN % CHUNK_COLUMNS == 0 || chunk * CHUNK_COLUMNS + column() < HIDDEN)
        ptx::copy_later(place, tokens + (from[i] + chunk * (CHUNK_COLUMNS * 2)));
      else
        ptx::store_shared(place, make_uint4(0, 0, 0, 0));
    }
  }
};

// Consumers: a warp's row tile times the tokens of the ring's next stages, of so many columns.
template <class M, int COLUMNS, Order ORDER, class Stages>
__device__ __forceinline__ void multiply_stages(Stages& ring, RunTotals& memory,
                                                float (&acc)[COLUMNS / 2]) {
  using Walk = ChunkWalk<M, ORDER>;
  // A thread has registers for one piece of 64 columns, or for two smaller ones.
  constexpr int SLOTS = COLUMNS > 48 ? 1 : 2;
  // Chunks that are multiplied without a branch in between.
  constexpr int AT_ONCE = divisor(Walk::INNER, Stages::STAGES < 7 ? 2 : 4);
  static_assert(AT_ONCE < Stages::STAGES, "more are on their way");
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int outer = 0; outer < Walk::OUTER; outer++) {
    if (outer == 0 || Walk::BY_PART)
#pragma unroll
      for (int i = 0; i < COLUMNS / 2; i++) acc[i] = 0;
#pragma unroll 1
    for (int inner = 0; inner < Walk::INNER; inner += AT_ONCE) {
      uint64_t tokens[AT_ONCE];
      Chunk<M::FORMAT> chunks[AT_ONCE];
      Stages coming = ring;
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++) {
        tokens[i] = coming.wait();
        chunks[i].load(coming.weights() + threadIdx.x / 32 * M::CHUNK_BYTES, lane);
        coming.next();
      }
      Stages::fence();
      Products<M::FORMAT, COLUMNS, SLOTS>::add(acc, chunks, tokens,
                                               [&](int) { ring.release(lane); });
    }
    if constexpr (Walk::BY_PART) end_part<Walk::PARTS, ExpertsCta::CONSUMERS>(memory, outer, acc);
  }
}

}  // namespace kilotok::wide
