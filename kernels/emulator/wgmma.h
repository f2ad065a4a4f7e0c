// Asynchronous tensor cores. A product takes effect only when the thread waits for it, so that a
// kernel that does not wait computes wrong values: sums in flight are NaN, and B is read either at
// once or at the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

namespace emulator {

// Numbers that the CPU adds or multiplies at once.
using Eight = float __attribute__((vector_size(32), aligned(4)));

// Sums of one lane for eight columns: two rows times two columns.
constexpr int TILE_SUMS = 4;
// The most elements along k of one product: 16 of BF16.
constexpr int K_MAX = 16;
// The most sums of a lane: of 256 columns.
constexpr int SUMS_MAX = 128;

// One lane's part of a product in flight.
struct Wgmma {
  float* sums;
  // `group` is that of its commit.
  int columns, k, group;
  // Whether it adds to earlier sums, and whether B lies row by row; the earlier sums.
  bool add, turned;
  float before[SUMS_MAX];
  // The lane's two rows of A.
  float a[2][K_MAX];
  uint64_t b;
  // The products, and whether B was read at once.
  bool early;
  float products[SUMS_MAX];
};

// A thread's products in flight, in order. `fenced` is whether it had a fence since its last wait,
// `count` the number of products it has begun, `committed` that of its groups.
struct AsyncWork {
  bool fenced = false;
  int count = 0, committed = 0;
  // Products in flight, the first of `products`. The memory of the others is kept for later ones.
  size_t under_way = 0;
  std::vector<std::unique_ptr<Wgmma>> products;

  void clear() {
    fenced = false;
    count = committed = 0;
    under_way = 0;
  }
  Wgmma& begin() {
    if (under_way == products.size()) products.push_back(std::make_unique<Wgmma>());
    return *products[under_way++];
  }
};

// The products that a warpgroup has begun, for comparison between its warps.
constexpr int NOTED = 64;
struct Warpgroup {
  uint64_t operands[NOTED];
  int numbers[NOTED];
};

// Marks a sum in flight: a NaN that no arithmetic yields.
constexpr uint32_t UNDER_WAY = 0x7fc0badd;

inline bool is_under_way(float value) {
  return __builtin_bit_cast(uint32_t, value) == UNDER_WAY;
}

inline float tf32_at(const char* at) {
  return __builtin_bit_cast(float, *reinterpret_cast<const uint32_t*>(at) & 0xffffe000);
}
inline float bf16_at(const char* at) {
  return __builtin_bit_cast(float, uint32_t{*reinterpret_cast<const uint16_t*>(at)} << 16);
}

// The emulator's form of a descriptor: the address, and both strides in units of sixteen bytes;
// none along k in the 128-byte swizzle.
struct Operand {
  uint32_t address, k_bytes, column_bytes;
  static Operand of(uint64_t packed) {
    return {static_cast<uint32_t>(packed), static_cast<uint32_t>(packed >> 32 & 0xffff) * 16,
            static_cast<uint32_t>(packed >> 48) * 16};
  }
  bool is_swizzled() const { return k_bytes == 0; }
  // The address of sixteen bytes of a column: piece `k` along k.
  uint32_t piece(int column, int k) const {
    const uint32_t tile = address + column / 8 * column_bytes;
    if (!is_swizzled()) return tile + k * k_bytes + column % 8 * 16;
    const uint32_t at = tile + column % 8 * 128 + k * 16;
    return at ^ (at >> 3 & 0x70);
  }
};

// The columns of B that a lane has of four tiles, which the CPU multiplies at once.
constexpr int TILES = 4;
using Columns = float[K_MAX][TILES * 2];

// Two adjacent numbers in BF16.
inline void read_bf16(const char* from, float& first, float& second) {
  const uint32_t both = *reinterpret_cast<const uint32_t*>(from);
  first = __builtin_bit_cast(float, both << 16);
  second = __builtin_bit_cast(float, both & 0xffff0000);
}

// Reads a lane's columns of up to four tiles of B. Addresses are relative to `shared`.
inline void read_columns(const Wgmma& product, const char* shared, int lane, int tile, int tiles,
                         Columns& columns) {
  const Operand b = Operand::of(product.b);
  const auto piece = [&](int column, int k) {
    return shared + static_cast<int32_t>(b.piece(column, k));
  };
  for (int i = 0; i < tiles; i++) {
    const int column = (tile + i) * 8, own = lane % 4 * 2;
    if (product.turned) {
      for (int k = 0; k < K_MAX; k++)
        read_bf16(piece(column + k % 8, k / 8) + own * 2, columns[k][i * 2],
                  columns[k][i * 2 + 1]);
      continue;
    }
    for (int j = 0; j < 2; j++)
      for (int half = 0; half < 2; half++) {
        const char* from = piece(column + own + j, half);
        auto* to = columns + half * product.k / 2;
        if (product.k == K_MAX)
          for (int k = 0; k < 8; k += 2)
            read_bf16(from + k * 2, to[k][i * 2 + j], to[k + 1][i * 2 + j]);
        else
          for (int k = 0; k < 4; k++) to[k][i * 2 + j] = tf32_at(from + k * 4);
      }
  }
}

// A lane's products, summed along k from zero in the order of this emulator's `mma`.
inline void multiply_rows(Wgmma& product, const char* shared, int lane) {
  Columns columns = {};
  for (int tile = 0; tile < product.columns / 8; tile += TILES) {
    const int tiles = std::min(TILES, product.columns / 8 - tile);
    read_columns(product, shared, lane, tile, tiles, columns);
    Eight low = {}, high = {};
    for (int k = 0; k < product.k; k++) {
      const Eight column = *reinterpret_cast<const Eight*>(columns[k]);
      low += product.a[0][k] * column;
      high += product.a[1][k] * column;
    }
    float* sums = product.products + tile * TILE_SUMS;
    for (int i = 0; i < tiles * 2; i++) {
      sums[i / 2 * TILE_SUMS + i % 2] = low[i];
      sums[i / 2 * TILE_SUMS + 2 + i % 2] = high[i];
    }
  }
}

}  // namespace emulator
