// The operand of the wide pass, and the ring of stages in shared memory through which the experts'
// tokens come.
//
// The operand of the wide pass lies in tiles of 8 tokens x 64 columns, 1 KB each, in the 128-byte
// swizzle of `wgmma`: a token has 128 bytes, and its piece p of 8 columns lies in place p ^ token %
// 8. So tokens that lie in rows can be copied into tiles without bank conflicts, too. Tiles of the
// same columns lie together, `[tiles of columns][tiles of tokens]`, so that a stage is one bulk
// copy: copies of 128 bytes bring a quarter as much in the same time, and those of 1 KB two thirds
// (benches/journal/wide.md). Columns beyond the last are not NaN, and their weights are zeros.
#pragma once

#include "kilotok/layout/buffers.cuh"
#include "kilotok/ptx/wgmma.cuh"
#include "kilotok/wide/cta.cuh"

namespace kilotok::wide {

constexpr int PIECE_COLUMNS = 8, PIECE_BYTES = TILE_TOKENS * PIECE_COLUMNS * 2;
constexpr int TILE_BYTES = CHUNK_OPERAND_BYTES, TOKEN_BYTES = CHUNK_COLUMNS * 2;
// Bytes from a step of 16 columns to the next.
constexpr int STEP_OFFSET = 16 * 2;
// Bytes of 64 columns of an operand with room for `tokens` tokens, a multiple of eight.
__host__ __device__ constexpr size_t column_bytes(int tokens) {
  return static_cast<size_t>(tokens) * (CHUNK_COLUMNS * 2);
}
__host__ __device__ constexpr size_t operand_bytes(int columns, int tokens) {
  return ceil_div(columns, CHUNK_COLUMNS) * column_bytes(tokens);
}

// Kinds whose matrices differ do not share an operand, as in the narrow pass (`KindOperand` in
// layout/buffers.cuh): the columns of the operands of kinds before END, and the column at which
// that of a kind begins.
template <template <int> class M, int END>
constexpr int operand_columns_before() {
  if constexpr (END == 0)
    return 0;
  else if constexpr (first_like<M, 0, END - 1>() < END - 1)
    return operand_columns_before<M, END - 1>();
  else
    return operand_columns_before<M, END - 1>() + align_up(M<END - 1>::COLUMNS, CHUNK_COLUMNS);
}
template <template <int> class M, int KIND>
constexpr int KIND_COLUMN = operand_columns_before<M, first_like<M, 0, KIND>()>();
template <template <int> class M, int KIND>
__host__ __device__ __forceinline__ size_t kind_operand(int tokens) {
  return operand_bytes(KIND_COLUMN<M, KIND>, tokens);
}

// Byte offset of a token's column in its tile, and in an operand with room for `tokens` tokens.
__host__ __device__ __forceinline__ int tile_place(int token, int column) {
  const int piece = column % CHUNK_COLUMNS / PIECE_COLUMNS;
  return token % TILE_TOKENS * TOKEN_BYTES + (piece ^ token % TILE_TOKENS) * 16 +
         column % PIECE_COLUMNS * 2;
}
__host__ __device__ __forceinline__ size_t operand_place(int token, int column, int tokens) {
  return column / CHUNK_COLUMNS * column_bytes(tokens) + token / TILE_TOKENS * TILE_BYTES +
         tile_place(token, column);
}

// A ring of COUNT stages. A stage is CHUNKS chunks of 64 columns. A chunk is the operand of up to
// WIDTH tokens and WEIGHT_BYTES of weights. Each consumer warp and each producer has its own
// position in the ring.
template <int WIDTH, int CHUNKS_EACH, int COUNT, int WEIGHT_BYTES>
struct OperandRing {
  static constexpr bool HAS_WEIGHTS = WEIGHT_BYTES > 0;
  static constexpr int CHUNKS = CHUNKS_EACH, STAGES = COUNT;
  static constexpr int WEIGHTS_AT = WIDTH / TILE_TOKENS * TILE_BYTES;
  static constexpr int CHUNK_BYTES = align_up(WEIGHTS_AT + WEIGHT_BYTES, TILE_BYTES);
  static constexpr int STAGE_BYTES = CHUNKS * CHUNK_BYTES;
  static_assert(COUNT > 1, "stages come while others are multiplied");

  struct Memory {
    // Stages begin at a multiple of a tile's bytes, which the swizzle counts from.
    alignas(128) char bytes[COUNT * STAGE_BYTES + TILE_BYTES];
    alignas(8) uint64_t full[COUNT];
    alignas(8) uint64_t empty[COUNT];
    alignas(8) uint64_t copied[COUNT];
  };
  uint32_t stages, full, empty, copied;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ explicit OperandRing(Memory& memory)
      : stages((ptx::shared_address(memory.bytes) + TILE_BYTES - 1) & ~(TILE_BYTES - 1u)),
        full(ptx::shared_address(memory.full)),
        empty(ptx::shared_address(memory.empty)),
        copied(ptx::shared_address(memory.copied)) {}

  // One thread, before any other uses the ring. `groups` warpgroups release each stage, `arrivals`
  // arrivals make it full, and `copiers` threads copy tokens that are passed on.
  __device__ __forceinline__ void init(int groups, int arrivals, int copiers = 1) const {
    for (int i = 0; i < COUNT; i++) {
      ptx::mbarrier_init(full + 8 * i, arrivals);
      ptx::mbarrier_init(copied + 8 * i, copiers);
      ptx::mbarrier_init(empty + 8 * i, groups * WARPGROUP / 32 * ptx::WARP_ARRIVALS);
    }
    ptx::mbarrier_init_fence();
  }

  __device__ __forceinline__ void next() {
    if (++stage == COUNT) {
      stage = 0;
      parity ^= 1;
    }
  }
  // Addresses of the tokens and the weights of the stage's i-th chunk.
  __device__ __forceinline__ uint32_t tokens(int i) const {
    return stages + stage * STAGE_BYTES + i * CHUNK_BYTES;
  }
  __device__ __forceinline__ uint32_t weights(int i) const { return tokens(i) + WEIGHTS_AT; }
  // The same for the weights of any stage.
  __device__ __forceinline__ uint32_t weights_of(int of_stage, int i) const {
    return stages + of_stage * STAGE_BYTES + i * CHUNK_BYTES + WEIGHTS_AT;
  }
  __device__ __forceinline__ uint64_t operand(int i) const {
    return ptx::wgmma_swizzled(tokens(i), TILE_BYTES);
  }

  // Consumers: wait for the next stage.
  __device__ __forceinline__ void wait() const {
    wait_mbarrier(Waits::Page, full + 8 * stage, parity);
  }
  // Consumers: release the stage, when the warp's products with it are complete.
  __device__ __forceinline__ void release() {
    ptx::mbarrier_arrive_warp(empty + 8 * stage, threadIdx.x % 32);
    next();
  }

  // Producers: wait until the next stage is free.
  __device__ __forceinline__ void wait_free() const {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity ^ 1);
  }
  // Producers: mark the thread's part of the stage as full, once its copies are complete.
  __device__ __forceinline__ void bring() {
    ptx::mbarrier_arrive_copied(full + 8 * stage);
    next();
  }
  // The same for tokens that need a fence before `wgmma` reads them. The fence waits for all copies
  // of its thread, so another thread, which copies nothing, executes it in `pass_on`.
  __device__ __forceinline__ void bring_tokens() {
    ptx::mbarrier_arrive_copied(copied + 8 * stage);
    next();
  }
  __device__ __forceinline__ void pass_on() {
    wait_mbarrier(Waits::Page, copied + 8 * stage, parity);
    ptx::wgmma_writes_fence();
    ptx::mbarrier_arrive(full + 8 * stage);
    next();
  }
  // One producer: begins to copy `tiles` tiles of tokens of each chunk, from `from(chunk)`.
  template <class From>
  __device__ __forceinline__ void copy_tokens(int tiles, From from) const {
    ptx::mbarrier_expect(full + 8 * stage, CHUNKS * tiles * TILE_BYTES);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
      ptx::bulk_copy(tokens(i), from(i), tiles * TILE_BYTES, full + 8 * stage);
  }
};

}  // namespace kilotok::wide
