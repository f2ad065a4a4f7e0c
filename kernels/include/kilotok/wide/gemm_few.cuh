// GEMM of one weight matrix and few tokens: so few that each work item, 64 rows times a share of
// the tokens, has a CTA of its own. With the items of wide/gemm.cuh a CTA would go through all
// columns one chunk after the other, with a warpgroup for each 64 rows, and most of the time would
// be latency. Here the warpgroups of a CTA have the same rows, and take the parts of the columns in
// turn: each multiplies its part, and adds it to the sum of the parts before. That is the order of
// wide/matrix.cuh.
#pragma once

#include "kilotok/wide/gemm.cuh"

namespace kilotok::wide {

// Three warpgroups of consumers and one of producers, which are as many threads as `gemm` has.
constexpr int FEW_GROUPS = 3, FEW_CONSUMERS = FEW_GROUPS * WARPGROUP;
constexpr int FEW_REGISTERS = 160;
static_assert(FEW_CONSUMERS + WARPGROUP == GEMM_THREADS, "a warpgroup is left for producers");
static_assert(FEW_CONSUMERS * FEW_REGISTERS + WARPGROUP * GEMM_PRODUCER_REGISTERS <= 65536,
              "registers suffice");
constexpr int FEW_ROW_TILES = WARPGROUP_ROWS / 16;

constexpr int FEW_TOTALS = TOKENS / TILE_TOKENS;
constexpr int FEW_BYTES = GEMM_BYTES - FEW_TOTALS * WARPGROUP * 16 - 1024;
struct FewShared {
  // The sums of the parts so far: four values for every eight tokens and thread of a warpgroup.
  alignas(128) float4 totals[FEW_TOTALS][WARPGROUP];
  // The stages of tokens of each warpgroup, then those of weights.
  alignas(128) char bytes[FEW_BYTES];
  alignas(8) uint64_t full[FEW_GROUPS][GEMM_STAGES_MAX], empty[FEW_GROUPS][GEMM_STAGES_MAX];
  // Mbarriers: a part has been added to the totals of a row tile.
  uint64_t added[CONSUMER_WARPS][FEW_ROW_TILES];
};
static_assert(sizeof(FewShared) <= sizeof(GemmShared), "no launch needs more memory for it");

// The work items: each 64 rows times each share of the tokens.
template <class M>
struct FewWork {
  static constexpr int ROW_GROUPS = ceil_div(MATRIX_TILES<M>, FEW_ROW_TILES);
  // Sums of MXFP4 take too many registers. No model has such projections.
  static constexpr int SHARES_MAX = M::FORMAT == Format::Mxfp4 ? 0 : GRID / ROW_GROUPS;
  // The most tokens that it takes.
  static constexpr int TOKENS_MAX = SHARES_MAX * wide::TOKENS;
  // A CTA with fewer tokens would take as long.
  static constexpr int NARROWEST = 32;
  int token_count, width;

  __device__ __forceinline__ explicit FewWork(int tokens) : token_count(tokens) {
    const int shares = smaller(SHARES_MAX, ceil_div(tokens, NARROWEST));
    width = align_up(ceil_div(tokens, shares), TILE_TOKENS);
  }
  __device__ __forceinline__ int count() const {
    return ceil_div(token_count, width) * ROW_GROUPS;
  }
  __device__ __forceinline__ int first_tile(int item) const {
    return item % ROW_GROUPS * FEW_ROW_TILES;
  }
  __device__ __forceinline__ int first_token(int item) const { return item / ROW_GROUPS * width; }
  __device__ __forceinline__ int tokens(int item) const {
    return smaller(token_count - first_token(item), width);
  }
};

// How a CTA's memory is divided for COLUMNS columns of B. Where several chunks are multiplied at a
// time, the stages of their tokens are constants (KNOWN).
template <class M, int COLUMNS>
struct FewStages {
  static constexpr int AT_ONCE = GemmStages<M>::AT_ONCE, WEIGHTS = GemmStages<M>::WEIGHTS;
  static constexpr int WEIGHT_BYTES = FEW_CONSUMERS / 32 * M::CHUNK_BYTES;
  static constexpr int STAGE_BYTES = COLUMNS / TILE_TOKENS * TILE_BYTES;
  static constexpr int ROOM = smaller(
      GEMM_STAGES_MAX,
      (FEW_BYTES - TILE_BYTES - WEIGHTS * WEIGHT_BYTES) / (FEW_GROUPS * STAGE_BYTES));
  static_assert(ROOM > 1, "tokens come while others are multiplied");
  static constexpr int TOKENS =
      ROOM < AT_ONCE ? divisor(AT_ONCE, ROOM) : ROOM / AT_ONCE * AT_ONCE;
  static constexpr bool KNOWN = AT_ONCE % TOKENS == 0;

  // Stages begin at a multiple of a tile's bytes, which the swizzle counts from.
  static __device__ __forceinline__ uint32_t tokens(FewShared& shared) {
    return (ptx::shared_address(shared.bytes) + TILE_BYTES - 1) & ~(TILE_BYTES - 1u);
  }
  static __device__ __forceinline__ uint32_t weights(FewShared& shared) {
    return tokens(shared) + FEW_GROUPS * TOKENS * STAGE_BYTES;
  }
};

// A position in a warpgroup's ring of tokens; each consumer warp and the producer have their own.
template <class M, int COLUMNS>
struct FewRing {
  using S = FewStages<M, COLUMNS>;
  uint32_t stages, full, empty;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ FewRing(FewShared& shared, int group)
      : stages(S::tokens(shared) + group * S::TOKENS * S::STAGE_BYTES),
        full(ptx::shared_address(shared.full[group])),
        empty(ptx::shared_address(shared.empty[group])) {}

  // Consumers: wait for the i-th of the next AT_ONCE stages, and return its operand.
  __device__ __forceinline__ uint64_t wait(int i) const {
    wait_mbarrier(Waits::Page, full + 8 * place(i), S::KNOWN ? parity ^ i / S::TOKENS % 2 : parity);
    return ptx::wgmma_swizzled(stages + place(i) * S::STAGE_BYTES, TILE_BYTES);
  }
  // Consumers: release it, when the warp's products with it are complete.
  __device__ __forceinline__ void release(int i, int lane) const {
    ptx::mbarrier_arrive_warp(empty + 8 * place(i), lane);
  }
  __device__ __forceinline__ void next_stages() {
    if constexpr (S::KNOWN) {
      parity ^= S::AT_ONCE / S::TOKENS % 2;
    } else {
      stage += S::AT_ONCE;
      wrap();
    }
  }
  // The producer: copies the next stage, a chunk of columns of `tiles` tiles of tokens.
  __device__ __forceinline__ void fetch(const char* from, int tiles) {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity ^ 1);
    ptx::mbarrier_expect(full + 8 * stage, tiles * TILE_BYTES);
    ptx::bulk_copy(stages + stage * S::STAGE_BYTES, from, tiles * TILE_BYTES, full + 8 * stage);
    stage++;
    wrap();
  }

 private:
  __device__ __forceinline__ int place(int i) const { return S::KNOWN ? i % S::TOKENS : stage + i; }
  __device__ __forceinline__ void wrap() {
    if (stage == S::TOKENS) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Visits a warpgroup's parts of the columns of a row tile.
template <class M>
struct FewWalk {
  static constexpr int PARTS = ChunkWalk<M, Order::Parts>::PARTS;
  static constexpr int AT_ONCE = GemmStages<M>::AT_ONCE;
  const char* from;
  int part, step = 0;

  __device__ __forceinline__ FewWalk(const char* matrix, int tile, int group)
      : from(row_tile_within<M>(matrix, tile) + group * M::CHUNK_BYTES + threadIdx.x % 32 * 16),
        part(group) {}
  __device__ __forceinline__ bool has() const { return part < PARTS; }
  __device__ __forceinline__ const char* chunk(int i) const { return from + i * M::STEP_BYTES; }
  __device__ __forceinline__ void next() {
    step += AT_ONCE;
    from += AT_ONCE * M::STEP_BYTES;
    if (step == M::STEPS) {
      step = 0;
      part += FEW_GROUPS;
      from += FEW_GROUPS * M::CHUNK_BYTES - M::UNIT_BYTES;
    }
  }
};

// A warp: adds a part of its row tile to the sum of those before it, once that is complete.
template <int COLUMNS>
__device__ __forceinline__ void add_few_part(FewShared& shared, const float (&acc)[COLUMNS / 2],
                                             int part) {
  const int thread = threadIdx.x % WARPGROUP, tile_warp = thread / 32;
  if (part > 0)
    wait_mbarrier(Waits::Sums, ptx::shared_address(&shared.added[part - 1][tile_warp]), 0);
#pragma unroll
  for (int tile = 0; tile < COLUMNS / TILE_TOKENS; tile++) {
    float4& total = shared.totals[tile][thread];
    float4 own = make_float4(acc[tile * 4], acc[tile * 4 + 1], acc[tile * 4 + 2],
                             acc[tile * 4 + 3]);
    if (part > 0) {
      const float4 before = total;
      own = make_float4(before.x + own.x, before.y + own.y, before.z + own.z, before.w + own.w);
    }
    total = own;
  }
  ptx::mbarrier_arrive_warp(ptx::shared_address(&shared.added[part][tile_warp]), thread % 32);
}

// A consumer warp: multiplies its parts of an item.
template <class M, int COLUMNS>
__device__ __forceinline__ void multiply_few(FewShared& shared, const char* matrix,
                                             int first_tile) {
  using S = FewStages<M, COLUMNS>;
  const int group = threadIdx.x / WARPGROUP, warp = threadIdx.x / 32 % FEW_ROW_TILES;
  FewRing<M, COLUMNS> ring(shared, group);
  StagedWeights<M, S::WEIGHT_BYTES, FewWalk<M>> weights(
      S::weights(shared), FewWalk<M>(matrix, first_tile + warp, group));
#pragma unroll 1
  for (int part = group; part < FewWalk<M>::PARTS; part += FEW_GROUPS) {
    float acc[COLUMNS / 2];
#pragma unroll
    for (float& value : acc) value = 0;
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step += S::AT_ONCE) {
#pragma unroll
      for (int i = 0; i < S::AT_ONCE; i++) {
        Chunk<M::FORMAT> chunk;
        weights.load(chunk, i);
        GemmProducts<M::FORMAT, COLUMNS, 1>::add(acc, chunk, ring.wait(i));
        ring.release(i, threadIdx.x % 32);
      }
      ring.next_stages();
    }
    add_few_part<COLUMNS>(shared, acc, part);
  }
}

// The producer of a warpgroup: copies the tokens of its parts.
template <class M, int COLUMNS>
__device__ __forceinline__ void produce_few(FewShared& shared, const Operand& operand,
                                            int first_token, int tokens, int group) {
  using Walk = ChunkWalk<M, Order::Parts>;
  FewRing<M, COLUMNS> ring(shared, group);
  const char* from = operand.bytes + first_token / TILE_TOKENS * TILE_BYTES;
#pragma unroll 1
  for (int part = group; part < Walk::PARTS; part += FEW_GROUPS)
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step++)
      ring.fetch(from + Walk{part, step}.chunk() * column_bytes(operand.capacity),
                 ceil_div(tokens, TILE_TOKENS));
}

// Calls `f` with the number of columns of B that an item's tokens take, as a constant.
template <class M, class F>
__device__ __forceinline__ void with_few_columns(int width, F f) {
  if (width <= 40)
    f(Constant<40>{});
  else if (width <= 64)
    f(Constant<64>{});
  else if (M::FORMAT == Format::Fp8 && width <= 96)
    f(Constant<M::FORMAT == Format::Fp8 ? 96 : 128>{});
  else
    f(Constant<128>{});
}

// One thread, before any other uses it.
__device__ __forceinline__ void begin_few(FewShared& shared) {
  for (int group = 0; group < FEW_GROUPS; group++)
    for (int i = 0; i < GEMM_STAGES_MAX; i++) {
      ptx::mbarrier_init(ptx::shared_address(&shared.full[group][i]), 1);
      ptx::mbarrier_init(ptx::shared_address(&shared.empty[group][i]),
                         WARPGROUP / 32 * ptx::WARP_ARRIVALS);
    }
  for (auto& part : shared.added)
    for (uint64_t& tile : part)
      ptx::mbarrier_init(ptx::shared_address(&tile), ptx::WARP_ARRIVALS);
  ptx::mbarrier_init_fence();
}

// All threads of all CTAs, GEMM_THREADS each: a matrix times up to TOKENS_MAX tokens. Then each
// consumer warp calls `finish(work, item)`, once the totals of row tile `warp % FEW_ROW_TILES` are
// complete. `shared` is unused before.
template <class M, class Finish>
__device__ __forceinline__ void gemm_few(FewShared& shared, const char* matrix,
                                         const Operand& operand, int tokens, Finish finish) {
  if (threadIdx.x == 0) begin_few(shared);
  __syncthreads();
  const FewWork<M> work(tokens);
  const int item = ptx::cta_index(), warp = threadIdx.x / 32;
  if (item >= work.count()) return;
  if (threadIdx.x < FEW_CONSUMERS) {
    ptx::more_registers<FEW_REGISTERS>();
    with_few_columns<M>(work.width, [&](auto columns) {
      multiply_few<M, decltype(columns)::value>(shared, matrix, work.first_tile(item));
    });
    constexpr int LAST = ChunkWalk<M, Order::Parts>::PARTS - 1;
    wait_mbarrier(Waits::Sums, ptx::shared_address(&shared.added[LAST][warp % FEW_ROW_TILES]), 0);
    finish(work, item);
  } else {
    ptx::fewer_registers<GEMM_PRODUCER_REGISTERS>();
    const int group = warp - FEW_CONSUMERS / 32;
    if (threadIdx.x % 32 != 0 || group >= FEW_GROUPS) return;
    with_few_columns<M>(work.width, [&](auto columns) {
      produce_few<M, decltype(columns)::value>(shared, operand, work.first_token(item),
                                               work.tokens(item), group);
    });
  }
}

}  // namespace kilotok::wide
