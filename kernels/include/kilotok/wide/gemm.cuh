// GEMM of one weight matrix and all tokens of a step. A CTA multiplies rows with up to 128 tokens
// at a time. Warpgroups take turns at the tensor cores: one multiplies while others decode weights
// and add sums. Weights are prefetched into shared memory, as tokens are, because every fence of
// `wgmma` would wait for loads into registers. The order of sums is that of wide/matrix.cuh.
#pragma once

#include "kilotok/wide/matrix.cuh"

namespace kilotok::wide {

// Up to three warpgroups of consumers, 64 rows each, and one with the producer. With MXFP4 and FP8
// the sums take so many registers that the third is idle.
constexpr int GEMM_GROUPS_MAX = 3, GEMM_THREADS = (GEMM_GROUPS_MAX + 1) * WARPGROUP;
constexpr int GEMM_PRODUCER_REGISTERS = 24;

template <class M>
struct GemmShape {
  static constexpr int GROUPS = M::FORMAT == Format::Bf16 ? 3 : 2;
  static constexpr int CONSUMERS = GROUPS * WARPGROUP, WARPS = CONSUMERS / 32;
  static constexpr int ROW_TILES = WARPS;
  static constexpr int REGISTERS = GROUPS == 3 ? 160 : 232;
  static_assert(CONSUMERS * REGISTERS +
                    (GEMM_THREADS - CONSUMERS) * GEMM_PRODUCER_REGISTERS <= 65536, "they suffice");
};

// Shared memory of a CTA: stages of tokens, then stages of weights, then the warps' sums over
// earlier parts of the columns.
constexpr int GEMM_STAGES_MAX = 8, GEMM_BYTES = 226 << 10;
constexpr int GEMM_STAGE_BYTES = TOKENS / TILE_TOKENS * TILE_BYTES;
struct GemmShared {
  alignas(128) char bytes[GEMM_BYTES];
  alignas(8) uint64_t full[GEMM_STAGES_MAX], empty[GEMM_STAGES_MAX];
};

// How a format divides that memory. A stage of weights has a chunk for each warp. Chunks of
// quantised weights are multiplied several at a time, so that the addresses of their stages are
// constants.
template <class M>
struct GemmStages {
  static constexpr int AT_ONCE = M::FORMAT == Format::Bf16 ? 1 : divisor(M::STEPS, 4);
  static constexpr int WEIGHTS = M::FORMAT == Format::Bf16 ? 3 : AT_ONCE == 1 ? 4 : AT_ONCE;
  static constexpr int WEIGHT_BYTES = GemmShape<M>::WARPS * M::CHUNK_BYTES;
  static constexpr int TOTAL_BYTES = wide::TOKENS / TILE_TOKENS * GemmShape<M>::CONSUMERS * 16;
  static constexpr int TOKENS =
      smaller(GEMM_STAGES_MAX, (GEMM_BYTES - TILE_BYTES - TOTAL_BYTES - WEIGHTS * WEIGHT_BYTES) /
                                   GEMM_STAGE_BYTES) / AT_ONCE * AT_ONCE;
  static_assert(TOKENS > 1, "tokens come while others are multiplied");

  // Stages begin at a multiple of a tile's bytes, which the swizzle counts from.
  static __device__ __forceinline__ uint32_t tokens(GemmShared& shared) {
    return (ptx::shared_address(shared.bytes) + TILE_BYTES - 1) & ~(TILE_BYTES - 1u);
  }
  static __device__ __forceinline__ uint32_t weights(GemmShared& shared) {
    return tokens(shared) + TOKENS * GEMM_STAGE_BYTES;
  }
  // Four values for every eight tokens and thread.
  static __device__ __forceinline__ float4* totals(GemmShared& shared) {
    return reinterpret_cast<float4*>(shared.bytes + GEMM_BYTES - TOTAL_BYTES);
  }
};

// The work items of a GEMM: each group of rows times each `width` tokens. Items of the same tokens
// are consecutive. All CTAs share the items.
template <class M>
struct GemmWork {
  static constexpr int ROW_GROUPS = ceil_div(MATRIX_TILES<M>, GemmShape<M>::ROW_TILES);
  // The `width` tokens that come first are those with number `rotation`.
  int token_count, width = TOKENS, rotation;

  // Chooses the width with which all CTAs are done first. Besides its products, a chunk takes as
  // much time as OVERHEAD tokens.
  __device__ __forceinline__ explicit GemmWork(int tokens, int first_token = 0)
      : token_count(tokens) {
    constexpr int NARROWEST = 32, OVERHEAD = 64;
    const auto time = [&](int columns) {
      return ceil_div(ceil_div(token_count, columns) * ROW_GROUPS, GRID) * (columns + OVERHEAD);
    };
    for (int columns = TOKENS / 2; columns >= NARROWEST; columns /= 2)
      if (time(columns) < time(width)) width = columns;
    rotation = first_token < token_count ? first_token / width : 0;
  }
  __device__ __forceinline__ int count() const {
    return ceil_div(token_count, width) * ROW_GROUPS;
  }
  __device__ __forceinline__ int first_tile(int item) const {
    return item % ROW_GROUPS * GemmShape<M>::ROW_TILES;
  }
  __device__ __forceinline__ int first_token(int item) const {
    int number = item / ROW_GROUPS;
    if constexpr (RANKS > 1) {
      const int end = ceil_div(token_count, width);
      number += number + rotation < end ? rotation : rotation - end;
    }
    return number * width;
  }
  __device__ __forceinline__ int tokens(int item) const {
    return smaller(token_count - first_token(item), width);
  }
};

// A position in the ring of tokens; each consumer warp and the producer have their own.
template <class M>
struct GemmRing {
  uint32_t stages, full, empty;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ explicit GemmRing(GemmShared& shared)
      : stages(GemmStages<M>::tokens(shared)),
        full(ptx::shared_address(shared.full)),
        empty(ptx::shared_address(shared.empty)) {}

  // One thread, before any other uses the ring.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < GemmStages<M>::TOKENS; i++) {
      ptx::mbarrier_init(full + 8 * i, 1);
      ptx::mbarrier_init(empty + 8 * i, GemmShape<M>::WARPS * ptx::WARP_ARRIVALS);
    }
    ptx::mbarrier_init_fence();
  }
  __device__ __forceinline__ void next() {
    if (++stage == GemmStages<M>::TOKENS) {
      stage = 0;
      parity ^= 1;
    }
  }
  // Consumers: wait for the i-th of the next AT_ONCE stages, and return its operand.
  __device__ __forceinline__ uint64_t wait(int i) const {
    wait_mbarrier(Waits::Page, full + 8 * (stage + i), parity);
    return ptx::wgmma_swizzled(stages + (stage + i) * GEMM_STAGE_BYTES, TILE_BYTES);
  }
  // Consumers: release it, when the warp's products with it are complete.
  __device__ __forceinline__ void release(int i, int lane) const {
    ptx::mbarrier_arrive_warp(empty + 8 * (stage + i), lane);
  }
  __device__ __forceinline__ void next_stages() {
    stage += GemmStages<M>::AT_ONCE;
    if (stage == GemmStages<M>::TOKENS) {
      stage = 0;
      parity ^= 1;
    }
  }
  // The producer: copies the next stage, a chunk of columns of `tiles` tiles of tokens.
  __device__ __forceinline__ void fetch(const char* from, int tiles) {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity ^ 1);
    ptx::mbarrier_expect(full + 8 * stage, tiles * TILE_BYTES);
    ptx::bulk_copy(stages + stage * GEMM_STAGE_BYTES, from, tiles * TILE_BYTES, full + 8 * stage);
    next();
  }
};

// The weights of a consumer warp. The warp copies them to shared memory itself, in the order in
// which it multiplies them, AT_ONCE chunks at a time. A `Walk` finds them: `has` tells whether any
// are left, `chunk(i)` is the lane's address in the i-th of the next AT_ONCE chunks, and `next`
// advances by AT_ONCE chunks.
template <class M, int WEIGHT_BYTES, class Walk>
struct StagedWeights {
  static constexpr int STAGES = GemmStages<M>::WEIGHTS, AT_ONCE = GemmStages<M>::AT_ONCE;
  static_assert(AT_ONCE == 1 || AT_ONCE == STAGES, "stages are known");
  Walk walk;
  int stage = 0;
  // The warp's chunk of the first stage.
  uint32_t chunks;

  // `first_stage`: where the stages of all warps' weights begin.
  __device__ __forceinline__ StagedWeights(uint32_t first_stage, const Walk& from)
      : walk(from), chunks(first_stage + threadIdx.x / 32 * M::CHUNK_BYTES) {
#pragma unroll
    for (int i = 0; i + 1 < STAGES; i++) {
      copy(i, i % AT_ONCE);
      if (AT_ONCE == 1) walk.next();
    }
  }

  // Waits for the i-th of AT_ONCE chunks, loads it, and copies the one STAGES - 1 further on.
  __device__ __forceinline__ void load(Chunk<M::FORMAT>& chunk, int i) {
    ptx::wait_for_groups<STAGES - 2>();
    __syncwarp();
    const int own = AT_ONCE == 1 ? stage : i;
    chunk.load(chunks + own * WEIGHT_BYTES, threadIdx.x % 32);
    copy(own == 0 ? STAGES - 1 : own - 1, (i + AT_ONCE - 1) % AT_ONCE);
    if (i == 0) walk.next();
    if (AT_ONCE == 1) stage = stage + 1 == STAGES ? 0 : stage + 1;
  }

 private:
  __device__ __forceinline__ void copy(int to, int i) const {
    if (walk.has()) {
      const uint32_t chunk = chunks + to * WEIGHT_BYTES + threadIdx.x % 32 * 16;
#pragma unroll
      for (int first = 0; first < M::CHUNK_BYTES; first += 32 * 16)
        if (first + static_cast<int>(threadIdx.x) % 32 * 16 < M::CHUNK_BYTES)
          ptx::copy_later(chunk + first, walk.chunk(i) + first);
    }
    ptx::commit_copies();
  }
};

// The address of a row tile. Beyond the last one it is the last one again, because all warps of a
// warpgroup must multiply.
template <class M>
__device__ __forceinline__ const char* row_tile_within(const char* matrix, int tile) {
  return row_tile<M>(matrix, smaller(tile, MATRIX_TILES<M> - 1));
}

// Visits all columns of the warp's row tile, item after item.
template <class M>
struct GemmWalk {
  using Columns = ChunkWalk<M, Order::Parts>;
  const GemmWork<M>& work;
  const char *matrix, *from;
  int item;
  Columns columns;

  __device__ __forceinline__ GemmWalk(const GemmWork<M>& w, const char* weights, int first)
      : work(w), matrix(weights + threadIdx.x % 32 * 16), item(first) {
    begin_item();
  }
  __device__ __forceinline__ bool has() const { return item < work.count(); }
  __device__ __forceinline__ const char* chunk(int i) const {
    return from + columns.offset() + i * M::STEP_BYTES;
  }
  __device__ __forceinline__ void next() {
    columns.inner += GemmStages<M>::AT_ONCE;
    if (columns.inner == Columns::INNER) {
      columns.inner = 0;
      columns.outer++;
    }
    if (!columns.has() && has()) {
      item += GRID;
      begin_item();
    }
  }

 private:
  __device__ __forceinline__ void begin_item() {
    columns = {};
    from = row_tile_within<M>(matrix, work.first_tile(item) + static_cast<int>(threadIdx.x) / 32);
  }
};

template <class M>
using GemmWeights = StagedWeights<M, GemmStages<M>::WEIGHT_BYTES, GemmWalk<M>>;

// Adds a chunk's products to a warp's sums, four for every eight tokens as in `mma`. With quantised
// weights two groups of products are in flight: while one is computed, the sums of the other are
// added. With one SLOT there is one group, and other warpgroups keep the tensor cores busy.
template <Format F, int COLUMNS, int SLOTS = 2>
struct GemmProducts;

template <int COLUMNS, int SLOTS>
struct GemmProducts<Format::Bf16, COLUMNS, SLOTS> {
  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2],
                                             const Chunk<Format::Bf16>& chunk, uint64_t tokens) {
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const uint4& w = chunk.words[step];
      const uint32_t a[4] = {w.x, w.y, w.z, w.w};
      ptx::wgmma<COLUMNS>(acc, a, ptx::wgmma_operand_at(tokens, step * STEP_OFFSET), true);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(acc);
  }
};

template <int COLUMNS, int SLOTS>
struct GemmProducts<Format::Fp8, COLUMNS, SLOTS> {
  using C = Chunk<Format::Fp8>;
  static constexpr int PIECES = ceil_div(COLUMNS, 64), WIDTH = COLUMNS / PIECES;
  static_assert(PIECES * WIDTH == COLUMNS && PIECES <= 2, "pieces are alike");
  static constexpr bool BOTH = SLOTS == 2 && PIECES == 2;
  using Operand = Fp8Operand<WIDTH>;
  using Sums = typename Operand::Sums;

  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2], const C& chunk,
                                             uint64_t tokens) {
    uint32_t a[4][4];
    Operand::decode(chunk, a);
    Sums sums[BOTH ? 2 : 1];
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
      Operand::multiply(sums[BOTH ? piece : 0], a, tokens_at(tokens, piece * WIDTH));
      if (!BOTH) settle<0>(acc, piece, sums[0], chunk.scales);
    }
    if constexpr (BOTH) {
      settle<1>(acc, 0, sums[0], chunk.scales);
      settle<0>(acc, 1, sums[1], chunk.scales);
    }
  }

 private:
  template <int PENDING>
  static __device__ __forceinline__ void settle(float (&acc)[COLUMNS / 2], int piece, Sums& sums,
                                                const float (&scales)[2]) {
    ptx::wgmma_wait<PENDING>(sums);
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++)
      acc[piece * (WIDTH / 2) + i] += sums[i] * scales[i % 4 / 2];
  }
};

template <int COLUMNS>
struct GemmProducts<Format::Mxfp4, COLUMNS, 2> {
  using C = Chunk<Format::Mxfp4>;

  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2], const C& chunk,
                                             uint64_t tokens) {
    // One for each group of 32 columns of the matrix.
    float sums[2][COLUMNS / 2];
    multiply(sums[0], chunk.words.x, chunk.words.y, tokens);
    multiply(sums[1], chunk.words.z, chunk.words.w,
             ptx::wgmma_operand_at(tokens, 2 * STEP_OFFSET));
    ptx::wgmma_wait<1>(sums[0]);
    settle(acc, sums[0], chunk.scale(0), chunk.scale(2));
    ptx::wgmma_wait<0>(sums[1]);
    settle(acc, sums[1], chunk.scale(1), chunk.scale(3));
  }

 private:
  static __device__ __forceinline__ void multiply(float (&sums)[COLUMNS / 2], uint32_t first,
                                                  uint32_t second, uint64_t tokens) {
    uint32_t a[2][4];
    C::decode(first, second, a[0], a[1]);
    ptx::wgmma_ready(a[0]);
    ptx::wgmma_ready(a[1]);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 2; step++)
      ptx::wgmma<COLUMNS>(sums, a[step], ptx::wgmma_operand_at(tokens, step * STEP_OFFSET),
                          step > 0);
    ptx::wgmma_commit();
  }
  static __device__ __forceinline__ void settle(float (&acc)[COLUMNS / 2],
                                                const float (&sums)[COLUMNS / 2], float low,
                                                float high) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++) acc[i] += sums[i] * (i % 4 / 2 == 0 ? low : high);
  }
};

// Adds a part of the columns to those before it. After the last part the total stays in registers.
template <class M, int COLUMNS>
__device__ __forceinline__ void end_gemm_part(GemmShared& shared, float (&acc)[COLUMNS / 2],
                                              bool begins, bool ends) {
#pragma unroll
  for (int tile = 0; tile < COLUMNS / TILE_TOKENS; tile++) {
    float4& total =
        GemmStages<M>::totals(shared)[tile * GemmShape<M>::CONSUMERS + threadIdx.x];
    float* own = acc + tile * 4;
    if (!begins) {
      const float4 before = total;
      own[0] = before.x + own[0];
      own[1] = before.y + own[1];
      own[2] = before.z + own[2];
      own[3] = before.w + own[3];
    }
    if (!ends) total = make_float4(own[0], own[1], own[2], own[3]);
  }
}

// Multiplies a warp's row tile with the tokens of the ring's next stages, COLUMNS columns of B.
template <class M, int COLUMNS>
__device__ __forceinline__ void multiply_item(GemmShared& shared, GemmRing<M>& ring,
                                              GemmWeights<M>& weights, float (&acc)[COLUMNS / 2]) {
  using Walk = ChunkWalk<M, Order::Parts>;
#pragma unroll 1
  for (int part = 0; part < Walk::PARTS; part++) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++) acc[i] = 0;
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step += GemmStages<M>::AT_ONCE) {
#pragma unroll
      for (int i = 0; i < GemmStages<M>::AT_ONCE; i++) {
        Chunk<M::FORMAT> chunk;
        weights.load(chunk, i);
        GemmProducts<M::FORMAT, COLUMNS>::add(acc, chunk, ring.wait(i));
        ring.release(i, threadIdx.x % 32);
      }
      ring.next_stages();
    }
    end_gemm_part<M, COLUMNS>(shared, acc, part == 0, part + 1 == Walk::PARTS);
  }
}

// Consumers: multiply a CTA's items, from `first` on. `use(row tile, token, tile, values)` gets, as
// in the narrow pass, rows g and g + 8 of tokens 2q and 2q + 1 of a tile of eight tokens. `token`
// is the first of the eight, some of which may be beyond the last, and `tile` is the tile's index
// in the item. `finish(work, item)` is called after each item.
template <class M, class Use, class Finish>
__device__ __forceinline__ void consume_gemm(GemmShared& shared, GemmRing<M>& ring,
                                             const char* matrix, const GemmWork<M>& work, int first,
                                             Use use, Finish finish) {
  GemmWeights<M> weights(GemmStages<M>::weights(shared), GemmWalk<M>(work, matrix, first));
#pragma unroll 1
  for (int item = first; item < work.count(); item += GRID) {
    const auto multiply = [&](auto columns) {
      constexpr int COLUMNS = decltype(columns)::value;
      float sums[COLUMNS / 2];
      multiply_item<M, COLUMNS>(shared, ring, weights, sums);
      const int row_tile = work.first_tile(item) + static_cast<int>(threadIdx.x) / 32;
      if (row_tile >= MATRIX_TILES<M>) return;
#pragma unroll
      for (int i = 0; i < COLUMNS / TILE_TOKENS; i++)
        use(row_tile, work.first_token(item) + i * TILE_TOKENS, i,
            make_float4(sums[i * 4], sums[i * 4 + 1], sums[i * 4 + 2], sums[i * 4 + 3]));
    };
    const int tokens = work.tokens(item);
    with_columns(tokens, multiply);
    finish(work, item);
  }
}

// The producer: copies the tokens of a CTA's items.
template <class M, class From>
__device__ __forceinline__ void produce_gemm(GemmRing<M>& ring, const From& operand,
                                             const GemmWork<M>& work, int first) {
  static_assert(SPAN_TOKENS % TOKENS == 0, "an item's tokens lie together");
#pragma unroll 1
  for (int item = first; item < work.count(); item += GRID) {
    const int token = operand.token(work.first_token(item));
    const char* from = operand.bytes + token / TILE_TOKENS * TILE_BYTES;
    const int tiles = ceil_div(work.tokens(item), TILE_TOKENS);
#pragma unroll 1
    for (ChunkWalk<M, Order::Parts> walk; walk.has(); walk.next())
      ring.fetch(from + walk.chunk() * column_bytes(operand.capacity), tiles);
  }
}

// Dispatches consumers and the producer to their roles.
template <class M, class Consume, class Produce>
__device__ __forceinline__ void with_gemm_roles(Consume consume, Produce produce) {
  using Shape = GemmShape<M>;
  if (threadIdx.x < Shape::CONSUMERS) {
    ptx::more_registers<Shape::REGISTERS>();
    consume();
  } else {
    ptx::fewer_registers<GEMM_PRODUCER_REGISTERS>();
    if (threadIdx.x == Shape::CONSUMERS) produce();
  }
}

// All threads of all CTAs, GEMM_THREADS each: a matrix times all tokens, `first_token` before
// others. `shared` is unused before.
template <class M, class From, class Use, class Finish>
__device__ __forceinline__ void gemm(GemmShared& shared, const char* matrix, const From& operand,
                                     int tokens, Use use, Finish finish, int first_token = 0) {
  if (threadIdx.x == 0) GemmRing<M>(shared).init();
  __syncthreads();
  const GemmWork<M> work(tokens, first_token);
  const int first = ptx::cta_index();
  with_gemm_roles<M>(
      [&] {
        GemmRing<M> ring(shared);
        consume_gemm<M>(shared, ring, matrix, work, first, use, finish);
      },
      [&] {
        GemmRing<M> ring(shared);
        produce_gemm<M>(ring, operand, work, first);
      });
}

}  // namespace kilotok::wide
