// The experts' tokens: the choices of many tokens, sorted by expert (the permutation of the grouped
// GEMM). Each expert has *rows*, which begin at a multiple of eight and ascend by token. Experts
// read and write by row. Every CTA counts all choices, and finds the rows of its share of the
// experts, all of which it looks for at once.
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

// Loads of choices that a thread has in flight.
constexpr int SORT_LOADS = 8, SORT_WARPS = SORTERS / 32;

template <int EXPERTS>
struct SortMemory {
  // The experts whose rows a CTA finds: one of every GRID.
  static constexpr int EACH = ceil_div(EXPERTS, GRID);
  uint32_t counts[EXPERTS];
  // The first row of each of these experts, and how many of its choices each warp has.
  uint32_t first_rows[EACH], of_warp[EACH][SORT_WARPS];
};

// A warp's share of the choices. Up to 32 * SORT_LOADS of them, a *group*, are in registers.
struct WarpChoices {
  const Routes& routes;
  int first, end, lane = threadIdx.x % 32;
  uint32_t experts[SORT_LOADS];

  __device__ __forceinline__ WarpChoices(const Routes& from, int choice_count) : routes(from) {
    const int share = align_up(ceil_div(choice_count, SORT_WARPS), 32);
    first = static_cast<int>(threadIdx.x) / 32 * share;
    end = smaller(first + share, choice_count);
    load(first);
  }

  // Whether any lane has an i-th choice of a group.
  __device__ __forceinline__ bool has(int group, int i) const { return group + i * 32 < end; }

  // Calls `use(first choice of a group)` for each group, whose choices are in registers.
  template <class Use>
  __device__ __forceinline__ void for_groups(Use use) {
    const bool one = end - first <= 32 * SORT_LOADS;
#pragma unroll 1
    for (int group = first; group < end; group += 32 * SORT_LOADS) {
      if (!one) load(group);
      use(group);
    }
  }

 private:
  __device__ __forceinline__ void load(int group) {
#pragma unroll
    for (int i = 0; i < SORT_LOADS; i++) {
      const int choice = group + i * 32 + lane;
      experts[i] = choice < end ? at<const uint32_t>(routes.experts)[choice] : ~0u;
    }
  }
};

// A warp: the first row of an expert. Experts have whole tiles of rows.
template <int EXPERTS>
__device__ __forceinline__ uint32_t first_row_of(const SortMemory<EXPERTS>& memory, int expert) {
  uint32_t sum = 0, all;
  for (int i = threadIdx.x % 32; i < expert; i += 32)
    sum += align_up(memory.counts[i], TILE_TOKENS);
  sum_before(sum, threadIdx.x % 32, all);
  return all;
}

// All threads: count the choices of each expert, and those of the CTA's experts by warp.
template <int EXPERTS>
__device__ __forceinline__ void count_choices(SortMemory<EXPERTS>& memory, WarpChoices& choices) {
  using Sort = SortMemory<EXPERTS>;
  const int warp = threadIdx.x / 32;
  for (int i = threadIdx.x; i < EXPERTS; i += SORTERS) memory.counts[i] = 0;
  for (int i = threadIdx.x; i < Sort::EACH * SORT_WARPS; i += SORTERS)
    memory.of_warp[i / SORT_WARPS][i % SORT_WARPS] = 0;
  __syncthreads();
  choices.for_groups([&](int group) {
#pragma unroll
    for (int i = 0; i < SORT_LOADS; i++) {
      if (!choices.has(group, i)) break;
      if (choices.experts[i] != ~0u) atomicAdd(&memory.counts[choices.experts[i]], 1u);
    }
#pragma unroll 1
    for (int own = 0; own < Sort::EACH; own++) {
      const uint32_t expert = own * GRID + ptx::cta_index();
      uint32_t count = 0;
#pragma unroll
      for (int i = 0; i < SORT_LOADS; i++) {
        if (!choices.has(group, i)) break;
        count += __popc(__ballot_sync(~0u, choices.experts[i] == expert));
      }
      if (choices.lane == 0) memory.of_warp[own][warp] += count;
    }
  });
  __syncthreads();
}

// The first warps, one for each of the CTA's experts: find its first row, and the row with which
// each warp begins.
template <int EXPERTS>
__device__ __forceinline__ void find_first_rows(const Routes& routes, SortMemory<EXPERTS>& memory) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int own = threadIdx.x / 32; own < SortMemory<EXPERTS>::EACH; own += SORT_WARPS) {
    const int expert = own * GRID + ptx::cta_index();
    if (expert >= EXPERTS) break;
    const uint32_t row = first_row_of(memory, expert), count = memory.counts[expert];
    uint32_t all;
    const uint32_t before = sum_before(memory.of_warp[own][lane], lane, all);
    memory.of_warp[own][lane] = row + before;
    const uint32_t end = align_up(row + count, TILE_TOKENS), last = row + count + lane;
    if (last < end) at<uint32_t>(routes.choices)[last] = NO_CHOICE;
    if (lane > 0) continue;
    at<uint32_t>(routes.counts)[expert] = count;
    at<uint32_t>(routes.first_rows)[expert] = row;
    if (expert == EXPERTS - 1) at<uint32_t>(routes.first_rows)[EXPERTS] = end;
  }
  __syncthreads();
}

// A warp: assigns the rows of one of the CTA's experts to the choices of a group. Returns the row
// after them.
template <int TOP_K>
__device__ __forceinline__ uint32_t place_rows(const Routes& routes, const WarpChoices& choices,
                                               int group, uint32_t expert, uint32_t row) {
#pragma unroll
  for (int i = 0; i < SORT_LOADS; i++) {
    if (!choices.has(group, i)) break;
    const bool is = choices.experts[i] == expert;
    const uint32_t found = __ballot_sync(~0u, is);
    if (is) {
      const int choice = group + i * 32 + choices.lane;
      const uint32_t own = row + __popc(found & ((1u << choices.lane) - 1));
      at<uint32_t>(routes.rows)[choice] = own;
      at<uint32_t>(routes.choices)[own] = choice;
      at<float2>(routes.factors)[own] =
          make_float2(at<const float>(routes.inverse_rms)[choice / TOP_K],
                      at<const float>(routes.weights)[choice]);
    }
    row += __popc(found);
  }
  return row;
}

// Called by all threads of all CTAs, SORTERS each.
template <int KIND>
__device__ __forceinline__ void sort_choices(SortMemory<FEED_FORWARDS[KIND].experts>& memory,
                                             const Routes& routes) {
  constexpr int EXPERTS = FEED_FORWARDS[KIND].experts, TOP_K = FEED_FORWARDS[KIND].top_k;
  const int warp = threadIdx.x / 32;
  WarpChoices choices(routes, routes.tokens * TOP_K);
  count_choices(memory, choices);
  find_first_rows(routes, memory);
  choices.for_groups([&](int group) {
#pragma unroll 1
    for (int own = 0; own < SortMemory<EXPERTS>::EACH; own++) {
      const int expert = own * GRID + ptx::cta_index();
      const uint32_t row = memory.of_warp[own][warp];
      const uint32_t end = place_rows<TOP_K>(routes, choices, group, expert, row);
      __syncwarp();
      if (choices.lane == 0) memory.of_warp[own][warp] = end;
      __syncwarp();
    }
  });
}

}  // namespace kilotok::wide
