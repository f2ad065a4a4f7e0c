// Activations in the order in which the tensor cores read them. An operand is BF16 `[rows,
// columns]` in tiles of 8 rows x 64 columns, `[tiles of rows][tiles of columns]`. A tile is
// `[halves][lanes]` of 16 bytes: what a lane needs for two steps of 16 columns. So a warp that
// reads neighbouring rows reads whole cache lines, and each once. Columns beyond the last are
// zeros (`KindOperand` in layout/buffers.cuh), and so are the weights of these columns.
#pragma once

#include "kilotok/model.h"
#include "kilotok/ptx/memory.cuh"
#include "kilotok/ptx/mma.cuh"

namespace kilotok {

// Tokens of one `mma`.
constexpr int TILE_TOKENS = 8;
constexpr int TILES_MAX = TOKENS_MAX / TILE_TOKENS;
static_assert(TOKENS_MAX % TILE_TOKENS == 0, "tokens come in whole tiles");

constexpr int CHUNK_COLUMNS = 64;
constexpr int CHUNK_OPERAND_BYTES = TILE_TOKENS * CHUNK_COLUMNS * 2;

// Codes of quantised weights become BF16 numbers by moving bits, which makes them very small. Their
// activations are multiplied by this factor to compensate. 2^100 leaves room for activations up to
// 2^27.
constexpr float QUANTISED_SCALE = 1.2676506e30f;

// Byte offset of a row. A row has `row_bytes`, which are not contiguous. Here and below, numbers
// are unsigned for divisions by powers of two.
__host__ __device__ __forceinline__ size_t operand_row(uint32_t row, int row_bytes) {
  return static_cast<size_t>(row / TILE_TOKENS) * TILE_TOKENS * row_bytes + row % TILE_TOKENS * 64;
}

// Byte offset of a column among 32 columns that begin at a multiple of 32.
__host__ __device__ __forceinline__ int half_offset(uint32_t column) {
  const uint32_t in_step = column % 16;
  return in_step % 8 / 2 * 16 + column % 32 / 16 * 8 + in_step / 8 * 4 + in_step % 2 * 2;
}

// Byte offset of a column from the beginning of its row.
__host__ __device__ __forceinline__ int operand_offset(uint32_t column) {
  return column / CHUNK_COLUMNS * CHUNK_OPERAND_BYTES + column % CHUNK_COLUMNS / 32 * 512 +
         half_offset(column);
}

// A lane's part of 64 columns of one token: two registers of operand B for each step of 16 columns.
struct OperandChunk {
  uint4 words[2];

  // From an operand that other CTAs wrote before a grid barrier.
  __device__ __forceinline__ void load(const char* row, int chunk, int lane) {
    const char* from = row + chunk * CHUNK_OPERAND_BYTES + lane % 4 * 16;
    words[0] = ptx::load_cached(from);
    words[1] = ptx::load_cached(from + 512);
  }

  // The same around L1, because it is polled for.
  __device__ __forceinline__ void load_l2(const char* row, int chunk, int lane) {
    const char* from = row + chunk * CHUNK_OPERAND_BYTES + lane % 4 * 16;
    words[0] = ptx::load_l2(static_cast<const void*>(from));
    words[1] = ptx::load_l2(static_cast<const void*>(from + 512));
  }

  __device__ __forceinline__ void load_shared(uint32_t row, int chunk, int lane) {
    const uint32_t from = row + chunk * CHUNK_OPERAND_BYTES + lane % 4 * 16;
    words[0] = ptx::load_shared(from);
    words[1] = ptx::load_shared(from + 512);
  }

  // From a row in shared memory whose bytes are contiguous.
  __device__ __forceinline__ void load_run(uint32_t row, int chunk, int lane) {
    const uint32_t from = row + chunk * CHUNK_COLUMNS * 2 + lane % 4 * 16;
    words[0] = ptx::load_shared(from);
    words[1] = ptx::load_shared(from + 64);
  }

  // All lanes: from a tile in shared memory in the 128-byte swizzle (wide/token_ring.cuh).
  __device__ __forceinline__ void load_swizzled(uint32_t tile, int lane) {
    const int row = lane % 8, piece = lane / 8;
#pragma unroll
    for (int half = 0; half < 2; half++)
      words[half] = ptx::load_matrices(tile + row * 128 + ((half * 4 + piece) ^ row) * 16);
  }

  __device__ __forceinline__ void clear() {
    words[0] = words[1] = make_uint4(0, 0, 0, 0);
  }

  __device__ __forceinline__ uint32_t word(int step, int half) const {
    const uint4& four = words[step / 2];
    return step % 2 == 0 ? (half == 0 ? four.x : four.y) : (half == 0 ? four.z : four.w);
  }
};

// Writes one value; `row` is the address of its row.
__device__ __forceinline__ void store_operand(char* row, int column, float value) {
  *reinterpret_cast<uint16_t*>(row + operand_offset(column)) = ptx::to_bf16(value);
}

}  // namespace kilotok
