// The experts' tokens: the choices of many tokens, sorted by expert (the permutation of the grouped
// GEMM). Each expert has *rows*, which begin at a multiple of eight and ascend by token. Experts
// read and write by row. Every CTA counts all choices, and finds the rows of its share of the
// experts.
#pragma once

#include "kilotok/phase/gathered.cuh"
#include "kilotok/wide/token_ring.cuh"

namespace kilotok::wide {

// Threads of a CTA of the kernels that sort, gather and sum: enough to keep the memory busy.
constexpr int SORTERS = 1024;
// Stands for the choice of a row that only completes a tile.
constexpr uint32_t NO_CHOICE = ~0u;

// The most rows that the choices of this many tokens can take.
__host__ __device__ constexpr int rows_max(int tokens, int experts, int top_k) {
  return align_up(tokens * top_k, TILE_TOKENS) + smaller(experts, tokens * top_k) * TILE_TOKENS;
}

// A choice is token * TOP_K + index; a token's choices are in ascending order of experts.
struct Routes {
  // U32 and F32 `[tokens][TOP_K]`, F32 `[tokens]`: what the router chose.
  uint64_t experts, weights, inverse_rms;
  // U32: the first row of each expert and the end of the last one's, and its number of tokens.
  uint64_t first_rows, counts;
  // U32: the row of each choice, the choice of each row. Then 1 / rms and weight of each row.
  uint64_t rows, choices, factors;
  int tokens;
};

template <int EXPERTS>
struct SortMemory {
  uint32_t counts[EXPERTS], first_rows[EXPERTS + 1];
  uint32_t before[SORTERS / 32];
};

// The first warp: finds the first row of each expert. Experts have whole tiles of rows.
template <int EXPERTS>
__device__ __forceinline__ void find_first_rows(SortMemory<EXPERTS>& memory) {
  const int lane = threadIdx.x;
  uint32_t begin = 0;
  for (int first = 0; first < EXPERTS; first += 32) {
    const int expert = first + lane;
    uint32_t all;
    const uint32_t own = expert < EXPERTS ? align_up(memory.counts[expert], TILE_TOKENS) : 0;
    const uint32_t before = sum_before(own, lane, all);
    if (expert < EXPERTS) memory.first_rows[expert] = begin + before;
    begin += all;
  }
  if (lane == 0) memory.first_rows[EXPERTS] = begin;
}

// Loads of choices that a thread has in flight.
constexpr int SORT_LOADS = 8;

// The experts of SORT_LOADS choices of a thread, STRIDE apart, up to `end`.
template <int STRIDE>
struct ChosenExperts {
  uint32_t experts[SORT_LOADS];

  __device__ __forceinline__ ChosenExperts(const Routes& routes, int first, int end) {
#pragma unroll
    for (int i = 0; i < SORT_LOADS; i++)
      experts[i] =
          first + i * STRIDE < end ? at<const uint32_t>(routes.experts)[first + i * STRIDE] : ~0u;
  }
};

// All warps, each for its share of the choices: calls `use(choice, matches before it)` for each
// choice of an expert, and returns their number.
template <class Use>
__device__ __forceinline__ uint32_t for_matches(const Routes& routes, int choice_count,
                                                uint32_t expert, Use use) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int share = align_up(ceil_div(choice_count, SORTERS / 32), 32);
  const int end = smaller((warp + 1) * share, choice_count);
  uint32_t matches = 0;
  for (int first = warp * share; first < end; first += 32 * SORT_LOADS) {
    const ChosenExperts<32> chosen(routes, first + lane, end);
#pragma unroll
    for (int i = 0; i < SORT_LOADS; i++) {
      const bool is = chosen.experts[i] == expert;
      const uint32_t found = __ballot_sync(~0u, is);
      if (is) use(first + i * 32 + lane, matches + __popc(found & ((1u << lane) - 1)));
      matches += __popc(found);
    }
  }
  return matches;
}

// All threads: assign the rows of one expert.
template <int TOP_K, int EXPERTS>
__device__ __forceinline__ void place_rows(const Routes& routes, SortMemory<EXPERTS>& memory,
                                           int expert) {
  const int warp = threadIdx.x / 32, count = routes.tokens * TOP_K;
  const uint32_t own = for_matches(routes, count, expert, [](int, uint32_t) {});
  __syncthreads();
  memory.before[warp] = own;
  __syncthreads();
  uint32_t row = memory.first_rows[expert];
  for (int i = 0; i < warp; i++) row += memory.before[i];
  for_matches(routes, count, expert, [&](int choice, uint32_t before) {
    const uint32_t own_row = row + before;
    at<uint32_t>(routes.rows)[choice] = own_row;
    at<uint32_t>(routes.choices)[own_row] = choice;
    at<float2>(routes.factors)[own_row] =
        make_float2(at<const float>(routes.inverse_rms)[choice / TOP_K],
                    at<const float>(routes.weights)[choice]);
  });
  const uint32_t last = memory.first_rows[expert] + memory.counts[expert] + threadIdx.x;
  if (last < memory.first_rows[expert + 1]) at<uint32_t>(routes.choices)[last] = NO_CHOICE;
}

// Called by all threads of all CTAs, SORTERS each.
template <int KIND>
__device__ __forceinline__ void sort_choices(SortMemory<FEED_FORWARDS[KIND].experts>& memory,
                                             const Routes& routes) {
  constexpr int EXPERTS = FEED_FORWARDS[KIND].experts, TOP_K = FEED_FORWARDS[KIND].top_k;
  const int thread = threadIdx.x;
  for (int i = thread; i < EXPERTS; i += SORTERS) memory.counts[i] = 0;
  __syncthreads();
  for (int i = thread; i < routes.tokens * TOP_K; i += SORTERS * SORT_LOADS) {
    const ChosenExperts<SORTERS> chosen(routes, i, routes.tokens * TOP_K);
#pragma unroll
    for (int j = 0; j < SORT_LOADS; j++)
      if (chosen.experts[j] != ~0u) atomicAdd(&memory.counts[chosen.experts[j]], 1u);
  }
  __syncthreads();
  if (thread < 32) find_first_rows(memory);
  __syncthreads();
  if (ptx::cta_index() == 0) {
    for (int i = thread; i < EXPERTS; i += SORTERS) {
      at<uint32_t>(routes.counts)[i] = memory.counts[i];
      at<uint32_t>(routes.first_rows)[i] = memory.first_rows[i];
    }
    if (thread == 0) at<uint32_t>(routes.first_rows)[EXPERTS] = memory.first_rows[EXPERTS];
  }
  for (int expert = ptx::cta_index(); expert < EXPERTS; expert += GRID)
    place_rows<TOP_K>(routes, memory, expert);
}

}  // namespace kilotok::wide
