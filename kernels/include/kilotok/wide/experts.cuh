// A feed-forward network of experts over many tokens. All CTAs share one list of work, the largest
// first: an expert's rows (wide/routes.cuh), 128 at a time and then those that remain, with every
// row group of its matrix.
//
//   gate_up   the rows of the inner operand: silu(gate) * up * weight, as the narrow pass has them
//   down      an expert's product for each row, F32 `[rows][HIDDEN]`, in one chain over its columns
//   combine   the products of a token's choices, in ascending order of its experts
#pragma once

#include "kilotok/wide/matrix.cuh"
#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

struct ExpertsMemory {
  Routes routes;
  // Weights of all experts.
  uint64_t gate_up, down;
  // Operands by row, of HIDDEN columns and of a network's width.
  uint64_t gathered, inner;
  // F32 `[rows][HIDDEN]`, `[tokens][HIDDEN]`.
  uint64_t products, sums;
  // Rows that there is room for.
  int capacity;
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
  __device__ __forceinline__ void make(const Routes& routes) {
    for (int i = threadIdx.x; i < EXPERTS; i += THREADS) {
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

  __device__ __forceinline__ int count() const {
    return before[0][EXPERTS] + before[1][EXPERTS] + before[2][EXPERTS];
  }

  __device__ __forceinline__ RowRun run(int index) const {
    int size = 0;
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

// All threads of all CTAs: a matrix of every expert times its rows, which `operand` has. `use(row,
// row tile, rows there, lane, values)`: the row is the first of eight.
template <class M, Order ORDER, int EXPERTS, class Use>
__device__ __forceinline__ void multiply_experts(ExpertsShared<EXPERTS>& shared,
                                                 const Routes& routes, uint64_t weights,
                                                 const Operand& operand, Use use) {
  if (threadIdx.x == 0) TokenRing(shared.ring).init();
  shared.list.make(routes);
  const RunList<EXPERTS>& list = shared.list;
  constexpr int ROW_GROUPS = MatrixWork<M>::ROW_GROUPS;
  const int count = list.count() * ROW_GROUPS;
  with_roles(
      [&] {
        TokenRing ring(shared.ring);
#pragma unroll 1
        for (int item = ptx::cta_index(); item < count; item += GRID) {
          const RowRun run = list.run(item / ROW_GROUPS);
          const char* matrix = at<const char>(weights) + run.expert * M::BYTES;
          const int row = list.first_rows[run.expert] + run.first;
          with_columns(run.count, [&](auto columns) {
            multiply_rows<M, decltype(columns)::value, ORDER>(
                ring, shared.totals, matrix, item % ROW_GROUPS,
                [&](int row_tile, int tile, int lane, const float4& values) {
                  const int in_run = tile * TILE_TOKENS;
                  if (in_run < run.count)
                    use(row + in_run, row_tile, run.count - in_run, lane, values);
                });
          });
        }
      },
      [&] {
        TokenRing ring(shared.ring);
#pragma unroll 1
        for (int item = ptx::cta_index(); item < count; item += GRID) {
          const RowRun run = list.run(item / ROW_GROUPS);
          produce_tokens<M, ORDER>(ring, operand, list.first_rows[run.expert] + run.first,
                                   run.count);
        }
      });
}

template <int KIND, int EXPERTS>
__device__ __forceinline__ void gate_up(ExpertsShared<EXPERTS>& shared,
                                        const ExpertsMemory& memory) {
  using M = GateUpMatrix<KIND>;
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  const float2* factors = at<const float2>(memory.routes.factors);
  multiply_experts<M, Order::Parts>(
      shared, memory.routes, memory.gate_up, {at<const char>(memory.gathered), memory.capacity},
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

template <int KIND, int EXPERTS>
__device__ __forceinline__ void down(ExpertsShared<EXPERTS>& shared,
                                     const ExpertsMemory& memory) {
  using M = DownMatrix<KIND>;
  multiply_experts<M, Order::Chain>(
      shared, memory.routes, memory.down, {at<const char>(memory.inner), memory.capacity},
      [&](int first, int row_tile, int rows, int lane, const float4& v) {
        const int column = row_tile * 16 + lane / 4, i = lane % 4 * 2;
        float* to = at<float>(memory.products) + static_cast<size_t>(first + i) * HIDDEN + column;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          if (column + half * 8 >= HIDDEN) continue;
          if (i < rows) to[half * 8] = half == 0 ? v.x : v.z;
          if (i + 1 < rows) to[HIDDEN + half * 8] = half == 0 ? v.y : v.w;
        }
      });
}

// All threads of all CTAs, SORTERS each.
template <int KIND>
__device__ __forceinline__ void combine(const ExpertsMemory& memory) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
  for (int token = ptx::cta_index(); token < memory.routes.tokens; token += GRID) {
    const uint32_t* rows = at<const uint32_t>(memory.routes.rows) + token * TOP_K;
    for (int column = threadIdx.x; column < HIDDEN; column += SORTERS) {
      float sum = 0;
#pragma unroll
      for (int place = 0; place < TOP_K; place++)
        sum += at<const float>(memory.products)[static_cast<size_t>(rows[place]) * HIDDEN + column];
      at<float>(memory.sums)[static_cast<size_t>(token) * HIDDEN + column] = sum;
    }
  }
}

}  // namespace kilotok::wide
