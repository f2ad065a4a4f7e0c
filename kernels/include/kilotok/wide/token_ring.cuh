// The ring of stages in shared memory through which tokens come. A stage is 64 columns of the
// operand of up to 128 tokens.
//
// The operand of the wide pass lies in tiles of 8 tokens x 64 columns, 1 KB each, in which values
// lie as warpgroups read them, `[pieces of 8 columns][tokens]` of 16 bytes. Tiles of the same
// columns lie together, `[tiles of columns][tiles of tokens]`, so that a stage is one bulk copy:
// copies of 128 bytes bring a quarter as much in the same time, and those of 1 KB two thirds
// (benches/journal/wide.md). Columns beyond the last are numbers; weights are zeros there.
#pragma once

#include "kilotok/layout/operand.cuh"
#include "kilotok/ptx/wgmma.cuh"
#include "kilotok/wide/cta.cuh"

namespace kilotok::wide {

constexpr int PIECE_COLUMNS = 8, PIECE_BYTES = TILE_TOKENS * PIECE_COLUMNS * 2;
constexpr int TILE_BYTES = CHUNK_OPERAND_BYTES;
constexpr int STAGE_BYTES = TOKENS / TILE_TOKENS * TILE_BYTES;
// As many as shared memory has room for, beside sums and lists of work.
constexpr int STAGES = 9;

// Bytes of 64 columns of an operand that has room for so many tokens, a multiple of eight.
__host__ __device__ constexpr size_t column_bytes(int tokens) {
  return static_cast<size_t>(tokens) * (CHUNK_COLUMNS * 2);
}
__host__ __device__ constexpr size_t operand_bytes(int columns, int tokens) {
  return ceil_div(columns, CHUNK_COLUMNS) * column_bytes(tokens);
}

// The byte of a token's column in such an operand.
__host__ __device__ __forceinline__ size_t operand_place(int token, int column, int tokens) {
  return column / CHUNK_COLUMNS * column_bytes(tokens) + token / TILE_TOKENS * TILE_BYTES +
         column % CHUNK_COLUMNS / PIECE_COLUMNS * PIECE_BYTES + token % TILE_TOKENS * 16 +
         column % PIECE_COLUMNS * 2;
}

struct TokenRingMemory {
  alignas(128) char stages[STAGES][STAGE_BYTES];
  alignas(8) uint64_t full[STAGES];
  alignas(8) uint64_t empty[STAGES];
};

// One end of the ring; each consumer warp and the producer have their own.
struct TokenRing {
  uint32_t stages, full, empty;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ explicit TokenRing(TokenRingMemory& memory)
      : stages(ptx::shared_address(memory.stages)),
        full(ptx::shared_address(memory.full)),
        empty(ptx::shared_address(memory.empty)) {}

  // One thread, before any other uses the ring; so many warpgroups will release its stages.
  __device__ __forceinline__ void init(int groups = CONSUMER_GROUPS) const {
    for (int i = 0; i < STAGES; i++) {
      ptx::mbarrier_init(full + 8 * i, 1);
      ptx::mbarrier_init(empty + 8 * i, groups * WARPGROUP / 32 * ptx::WARP_ARRIVALS);
    }
    ptx::mbarrier_init_fence();
  }

  __device__ __forceinline__ void next() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }

  // Consumers: wait for the next stage; its operand.
  __device__ __forceinline__ uint64_t wait() const {
    wait_mbarrier(Waits::Page, full + 8 * stage, parity);
    return ptx::wgmma_operand(stages + stage * STAGE_BYTES, PIECE_BYTES, TILE_BYTES);
  }

  // Consumers: the warp's products with the stage are there.
  __device__ __forceinline__ void release(int lane) {
    ptx::mbarrier_arrive_warp(empty + 8 * stage, lane);
    next();
  }

  // The producer: brings a stage, a chunk of columns of so many tiles of tokens.
  __device__ __forceinline__ void fetch(const char* from, int tiles) {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity ^ 1);
    ptx::mbarrier_expect(full + 8 * stage, tiles * TILE_BYTES);
    ptx::bulk_copy(stages + stage * STAGE_BYTES, from, tiles * TILE_BYTES, full + 8 * stage);
    next();
  }
};

}  // namespace kilotok::wide
