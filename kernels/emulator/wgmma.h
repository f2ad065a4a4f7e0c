// Asynchronous tensor cores. A product takes effect only when the thread waits for it, so that a
// kernel that does not wait computes wrong values: sums in flight are NaN, and B is read either at
// once or at the end.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace emulator {

// Sums of one lane for eight columns: two rows times two columns.
constexpr int TILE_SUMS = 4;
// The most elements along k of one product: 16 of BF16.
constexpr int K_MAX = 16;

// One lane's part of a product in flight.
struct Wgmma {
  float* sums;
  int columns, k, number;
  // Whether it adds to earlier sums, and whether B lies row by row; the earlier sums.
  bool add, turned;
  std::vector<float> before;
  // The lane's two rows of A.
  float a[2][K_MAX];
  uint64_t b;
  // The products, if B was read at once.
  std::vector<float> products;
};

// A thread's products in flight: uncommitted ones, then committed groups. `fenced` is whether it
// had a fence since its last wait, `count` the number of products it has begun.
struct AsyncWork {
  bool fenced = false;
  int count = 0;
  std::vector<Wgmma> begun;
  std::vector<std::vector<Wgmma>> groups;
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

// A lane's products, summed along k from zero in the order of this emulator's `mma`. Addresses are
// relative to `shared`.
inline std::vector<float> multiply_rows(const Wgmma& product, const char* shared, int lane) {
  const Operand b = Operand::of(product.b);
  const bool bf16 = product.k == K_MAX;
  const int piece = product.k / 2;
  std::vector<float> sums(product.columns / 2);
  for (int tile = 0; tile < product.columns / 8; tile++)
    for (int j = 0; j < 2; j++) {
      float column[K_MAX];
      for (int k = 0; k < product.k; k++) {
        const int row = product.turned ? k % piece : lane % 4 * 2 + j;
        const int in_row = product.turned ? lane % 4 * 2 + j : k % piece;
        const char* in_piece =
            shared + static_cast<int32_t>(b.piece(tile * 8 + row, k / piece));
        column[k] = bf16 ? bf16_at(in_piece + in_row * 2) : tf32_at(in_piece + in_row * 4);
      }
      float low = 0, high = 0;
      for (int k = 0; k < product.k; k++) {
        low += product.a[0][k] * column[k];
        high += product.a[1][k] * column[k];
      }
      sums[tile * TILE_SUMS + j] = low;
      sums[tile * TILE_SUMS + 2 + j] = high;
    }
  return sums;
}

}  // namespace emulator
