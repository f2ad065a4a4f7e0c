// A feed-forward network of experts over many tokens. All CTAs share a list of work, the largest
// first: an expert's rows (wide/routes.cuh), 128 at a time and then those that remain, with every
// row group of its matrix.
//
//   gather_rows   the operand of gate and up, by row
//   gate_up       the rows of the inner operand: silu(gate) * up * weight
//   down          an expert's product for each row, F32 `[rows][HIDDEN]`, in one chain over its
//                 columns
//   combine       the products of a token's choices, in ascending order of its experts
#pragma once

#include "kilotok/wide/matrix.cuh"
#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

struct ExpertsMemory {
  Routes routes;
  // BF16 `[tokens][HIDDEN]`: what the network reads.
  uint64_t normed;
  // Weights of all experts.
  uint64_t gate_up, down;
  // Operands by row, of HIDDEN columns and of a network's width.
  uint64_t gathered, inner;
  // F32 `[rows][columns]`, and `[tokens][HIDDEN]`.
  uint64_t products, sums;
  // The columns of the stream that `down` and `combine` make at a time: all, or less memory for
  // products and as many launches more. They begin at a multiple of DOWN_COLUMNS.
  int first_column, columns;
  // Rows that there is room for.
  int capacity;
};

// All threads of all CTAs, SORTERS each: tokens by row as an operand. A warp copies of eight rows a
// run of columns, of each row four pieces of 16 bytes at a time. All rows of a run of columns come
// before the next: of so many columns L2 holds all tokens.
template <int KIND>
__device__ __forceinline__ void gather_rows(const ExpertsMemory& memory) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  constexpr int WARPS = SORTERS / 32, AT_ONCE = 32 / TILE_TOKENS * PIECE_COLUMNS;
  constexpr int COLUMNS = align_up(HIDDEN, CHUNK_COLUMNS);
  constexpr int LOADS = divisor(COLUMNS / AT_ONCE, 8), RUNS = COLUMNS / AT_ONCE / LOADS;
  const int lane = threadIdx.x % 32, warp = ptx::cta_index() * WARPS + threadIdx.x / 32;
  const int tiles =
      static_cast<int>(at<const uint32_t>(memory.routes.first_rows)[F.experts]) / TILE_TOKENS;
  for (int i = warp; i < tiles * RUNS; i += GRID * WARPS) {
    const int row = i % tiles * TILE_TOKENS + lane % TILE_TOKENS;
    const int column = i / tiles * (LOADS * AT_ONCE) + lane / TILE_TOKENS * PIECE_COLUMNS;
    const uint32_t choice = at<const uint32_t>(memory.routes.choices)[row];
    if (choice == NO_CHOICE) continue;
    const uint16_t* from = at<const uint16_t>(memory.normed) +
                           static_cast<size_t>(choice / F.top_k) * HIDDEN + column;
    uint4 pieces[LOADS];
#pragma unroll
    for (int j = 0; j < LOADS; j++)
      pieces[j] = column + j * AT_ONCE < HIDDEN ? ptx::load_weights(from + j * AT_ONCE)
                                                : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < LOADS; j++)
      *reinterpret_cast<uint4*>(at<char>(memory.gathered) +
                                operand_place(row, column + j * AT_ONCE, memory.capacity)) =
          pieces[j];
  }
  // Columns behind the last that `down` multiplies with zeros have to be numbers.
  constexpr int FIRST = align_up(F.width, PIECE_COLUMNS), END = align_up(F.width, CHUNK_COLUMNS);
  constexpr int PIECES = (END - FIRST) / PIECE_COLUMNS;
  for (int i = ptx::cta_index() * SORTERS + threadIdx.x; i < tiles * TILE_TOKENS * PIECES;
       i += GRID * SORTERS)
    *reinterpret_cast<uint4*>(
        at<char>(memory.inner) +
        operand_place(i / larger(PIECES, 1), FIRST + i % larger(PIECES, 1) * PIECE_COLUMNS,
                      memory.capacity)) = make_uint4(0, 0, 0, 0);
}

// Runs of rows by length: each has a kernel of its own for gate and up and for down, in any order.
// Short ones have up to 32 rows, and more warps, which keep the memory of the weights busy.
enum class Runs { Long, Short };

template <Runs RUNS>
struct RunShape : CtaShape<RUNS == Runs::Long ? CONSUMER_GROUPS : MANY_CONSUMER_GROUPS> {
  static constexpr int GROUPS = RUNS == Runs::Long ? CONSUMER_GROUPS : MANY_CONSUMER_GROUPS;
  // Of the list's sizes.
  static constexpr int FIRST_SIZE = RUNS == Runs::Long ? 0 : 2;
  static constexpr int END_SIZE = RUNS == Runs::Long ? 2 : 3;

  // Calls `f` with the constant of the columns that so many rows take.
  template <class F>
  static __device__ __forceinline__ void with_columns(int rows, F f) {
    if constexpr (RUNS == Runs::Short)
      f(Constant<32>{});
    else if (rows > 64)
      f(Constant<128>{});
    else
      f(Constant<64>{});
  }
};

// Rows of an expert that are multiplied together.
struct RowRun {
  int expert, first, count;
};

// The runs of rows by size: those of more than 64, of more than 32, and the others. What comes
// before each expert's, and in the end how many there are.
template <int EXPERTS>
struct RunList {
  static constexpr int SIZES = 3;
  uint32_t before[SIZES][EXPERTS + 1];
  uint32_t counts[EXPERTS], first_rows[EXPERTS];

  static __device__ __forceinline__ int size_of(int tokens) {
    return tokens > 64 ? 0 : tokens > 32 ? 1 : 2;
  }
  __device__ __forceinline__ uint32_t runs(int size, int expert) const {
    const int count = counts[expert], rest = count % TOKENS;
    return (size == 0 ? count / TOKENS : 0) + (rest > 0 && size_of(rest) == size);
  }

  // All threads of a CTA.
  __device__ __forceinline__ void make(const Routes& routes, int threads) {
    for (int i = threadIdx.x; i < EXPERTS; i += threads) {
      counts[i] = at<const uint32_t>(routes.counts)[i];
      first_rows[i] = at<const uint32_t>(routes.first_rows)[i];
    }
    __syncthreads();
    const int size = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t sum = 0;
    for (int first = 0; size < SIZES && first <= EXPERTS; first += 32) {
      const int expert = first + lane;
      uint32_t all;
      const uint32_t earlier =
          sum_before(expert < EXPERTS ? runs(size, expert) : 0, lane, all);
      if (expert <= EXPERTS) before[size][expert] = sum + earlier;
      sum += all;
    }
    __syncthreads();
  }

  // Runs of some sizes.
  __device__ __forceinline__ int count(int first_size, int end_size) const {
    int sum = 0;
    for (int size = first_size; size < end_size; size++) sum += before[size][EXPERTS];
    return sum;
  }

  // A run of this size or a later one.
  __device__ __forceinline__ RowRun run(int size, int index) const {
    uint32_t i = index;
    while (i >= before[size][EXPERTS]) i -= before[size++][EXPERTS];
    // The last expert that has no more than `i` runs before it.
    int low = 0, high = EXPERTS;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (before[size][middle] <= i ? low : high) = middle;
    }
    const int first = size == 0 ? (i - before[0][low]) * TOKENS
                                : static_cast<int>(counts[low]) / TOKENS * TOKENS;
    return {low, first, smaller(static_cast<int>(counts[low]) - first, TOKENS)};
  }
};

// What a CTA has in shared memory.
template <int EXPERTS>
struct ExpertsShared {
  TokenRingMemory ring;
  TotalMemory totals;
  RunList<EXPERTS> list;
};

// The work of a matrix of every expert: its runs, each with so many row groups at a time.
template <class M, Runs RUNS, int AT_ONCE, int EXPERTS>
struct ExpertsWork {
  using Shape = RunShape<RUNS>;
  static constexpr int ROW_GROUPS = ceil_div(MATRIX_TILES<M>, Shape::ROW_TILES);
  const RunList<EXPERTS>& list;
  // The row groups that are multiplied.
  RowGroups groups_of_all;
  int each;

  __device__ __forceinline__ ExpertsWork(const RunList<EXPERTS>& runs, int first_tile,
                                         int end_tile)
      : list(runs),
        groups_of_all{first_tile / Shape::ROW_TILES,
                      smaller(ceil_div(end_tile, Shape::ROW_TILES), ROW_GROUPS)},
        each(ceil_div(groups_of_all.end - groups_of_all.first, AT_ONCE)) {}

  __device__ __forceinline__ int count() const {
    return list.count(Shape::FIRST_SIZE, Shape::END_SIZE) * each;
  }
  __device__ __forceinline__ RowRun run(int item) const {
    return list.run(Shape::FIRST_SIZE, item / each);
  }
  __device__ __forceinline__ int first_row(const RowRun& run) const {
    return static_cast<int>(list.first_rows[run.expert]) + run.first;
  }
  __device__ __forceinline__ RowGroups groups(int item) const {
    const int first = groups_of_all.first + item % each * AT_ONCE;
    return {first, smaller(first + AT_ONCE, groups_of_all.end)};
  }
};

// All threads of all CTAs: row tiles of every expert's matrix times its runs of rows, which
// `operand` has. `use(row, row tile, rows there, lane, values)`: the row is the first of eight.
template <class M, Order ORDER, Runs RUNS, int AT_ONCE, int EXPERTS, class Use>
__device__ __forceinline__ void multiply_experts(ExpertsShared<EXPERTS>& shared,
                                                 const Routes& routes, uint64_t weights,
                                                 int first_tile, int end_tile,
                                                 const Operand& operand, Use use) {
  using Shape = RunShape<RUNS>;
  if (threadIdx.x == 0) TokenRing(shared.ring).init(Shape::GROUPS);
  shared.list.make(routes, Shape::THREADS);
  const ExpertsWork<M, RUNS, AT_ONCE, EXPERTS> work(shared.list, first_tile, end_tile);
  const int count = work.count();
  const auto consume = [&] {
    TokenRing ring(shared.ring);
#pragma unroll 1
    for (int item = ptx::cta_index(); item < count; item += GRID) {
      const RowRun run = work.run(item);
      const int row = work.first_row(run);
      const char* matrix = at<const char>(weights) + run.expert * M::BYTES;
      Shape::with_columns(run.count, [&](auto columns) {
        multiply_rows<M, decltype(columns)::value, ORDER, (AT_ONCE > 1), Shape::GROUPS>(
            ring, shared.totals, matrix, work.groups(item),
            [&](int row_tile, int tile, int lane, const float4& values) {
              const int in_run = tile * TILE_TOKENS;
              if (in_run < run.count)
                use(row + in_run, row_tile, run.count - in_run, lane, values);
            });
      });
    }
  };
  const auto produce = [&] {
    TokenRing ring(shared.ring);
#pragma unroll 1
    for (int item = ptx::cta_index(); item < count; item += GRID) {
      const RowRun run = work.run(item);
      const RowGroups groups = work.groups(item);
      for (int group = groups.first; group < groups.end; group++)
        produce_tokens<M, ORDER>(ring, operand, work.first_row(run), run.count);
    }
  };
  with_roles<Shape::GROUPS>(consume, produce);
}

// Row tiles of down that a CTA multiplies one after the other: each has few columns, and weights of
// the next come while one ends.
constexpr int DOWN_TILES = 64, DOWN_COLUMNS = DOWN_TILES * 16;

template <int KIND, Runs RUNS, int EXPERTS>
__device__ __forceinline__ void gate_up(ExpertsShared<EXPERTS>& shared,
                                        const ExpertsMemory& memory) {
  using M = GateUpMatrix<KIND>;
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  const float2* factors = at<const float2>(memory.routes.factors);
  multiply_experts<M, Order::Parts, RUNS, 1>(
      shared, memory.routes, memory.gate_up, 0, MATRIX_TILES<M>,
      {at<const char>(memory.gathered), memory.capacity},
      [&](int first, int row_tile, int rows, int lane, const float4& v) {
        const int value = row_tile * 8 + lane / 4;
        if (value >= F.width) return;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int i = lane % 4 * 2 + j;
          if (i >= rows) continue;
          const float2 factor = factors[first + i];
          const float gate = (j == 0 ? v.x : v.y) * factor.x;
          const float up = (j == 0 ? v.z : v.w) * factor.x;
          *reinterpret_cast<uint16_t*>(at<char>(memory.inner) +
                                       operand_place(first + i, value, memory.capacity)) =
              ptx::to_bf16(silu(gate) * up * factor.y * operand_scale(F.format));
        }
      });
}

template <int KIND, Runs RUNS, int EXPERTS>
__device__ __forceinline__ void down(ExpertsShared<EXPERTS>& shared,
                                     const ExpertsMemory& memory) {
  using M = DownMatrix<KIND>;
  constexpr int AT_ONCE = DOWN_TILES / RunShape<RUNS>::ROW_TILES;
  const int columns = memory.columns, end = memory.first_column + columns;
  multiply_experts<M, Order::Chain, RUNS, AT_ONCE>(
      shared, memory.routes, memory.down, memory.first_column / 16, ceil_div(end, 16),
      {at<const char>(memory.inner), memory.capacity},
      [&](int first, int row_tile, int rows, int lane, const float4& v) {
        const int column = row_tile * 16 + lane / 4, i = lane % 4 * 2;
        float* to = at<float>(memory.products) + static_cast<size_t>(first + i) * columns +
                    (column - memory.first_column);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          if (column + half * 8 >= end) continue;
          if (i < rows) to[half * 8] = half == 0 ? v.x : v.z;
          if (i + 1 < rows) to[columns + half * 8] = half == 0 ? v.y : v.w;
        }
      });
}

// All threads of all CTAs, SORTERS each. Four columns at a time.
template <int KIND>
__device__ __forceinline__ void combine(const ExpertsMemory& memory) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
  static_assert(HIDDEN % 4 == 0, "columns come four at a time");
  const int fours = memory.columns / 4, count = memory.routes.tokens * fours;
  for (int i = ptx::cta_index() * SORTERS + threadIdx.x; i < count; i += GRID * SORTERS) {
    const int token = i / fours;
    const uint32_t* rows = at<const uint32_t>(memory.routes.rows) + token * TOP_K;
    float4 products[TOP_K];
#pragma unroll
    for (int place = 0; place < TOP_K; place++)
      products[place] = at<const float4>(
          memory.products)[static_cast<size_t>(rows[place]) * fours + i % fours];
    // As the narrow pass has it, from zero on: a product may be -0.
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int place = 0; place < TOP_K; place++) {
      sum.x += products[place].x;
      sum.y += products[place].y;
      sum.z += products[place].z;
      sum.w += products[place].w;
    }
    at<float4>(memory.sums)[static_cast<size_t>(token) * (HIDDEN / 4) + memory.first_column / 4 +
                            i % fours] = sum;
  }
}

}  // namespace kilotok::wide
