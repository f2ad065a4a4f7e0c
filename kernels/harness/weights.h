// Random matrices in the kernels' layout and their values, and operands to multiply them with.
#pragma once

#include <random>
#include <vector>

#include "bench.h"
#include "kilotok/gemm/matrix.cuh"

namespace bench {

using kilotok::Format;

inline float e4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 128 ? -value : value;
}

inline float e2m1(int code) {
  const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return code & 8 ? -values[code & 7] : values[code & 7];
}

// Writes codes and scales into a chunk.
struct Packer {
  Format format;
  char* chunk;

  void put_word(int at, uint32_t bits) const {
    uint32_t word;
    std::memcpy(&word, chunk + at, 4);
    word |= bits;
    std::memcpy(chunk + at, &word, 4);
  }

  // Puts the bits of an E2M1 code into the words of two steps, see layout/chunk.cuh.
  void put_e2m1(int at, int step, int reg, int half, uint32_t code) const {
    const uint32_t sign = code >> 3, magnitude = code & 7, first = 16 * half;
    if (reg < 3) {
      const int signs[3] = {15, 11, 21}, magnitudes[3] = {6, 2, 12};
      put_word(at + step * 4, sign << (first + signs[reg]) % 32);
      put_word(at + step * 4, magnitude << (first + magnitudes[reg]));
    } else if (step == 0) {
      put_word(at, sign << (first + 9) | (magnitude & 3) << first);
      put_word(at + 4, magnitude >> 2 << first);
    } else {
      put_word(at + 4, sign << (first + 17) % 32 | magnitude >> 1 << (first + 9));
      put_word(at, (magnitude & 1) << (first + 10));
    }
  }

  // Row and column within the chunk.
  void put(int row, int column, uint32_t code) const {
    const int step = column / 16, in_step = column % 16;
    const int lane = row % 8 * 4 + in_step % 8 / 2, half = column % 2;
    const int reg = row / 8 + in_step / 8 * 2;
    if (format == Format::Bf16) {
      put_word(step * 512 + lane * 16 + reg * 4, code << (16 * half));
    } else if (format == Format::Fp8) {
      const uint32_t sign = code >> 7, rest = code & 127;
      const uint32_t bits = reg % 2 == 0 ? sign << 15 | rest << 4
                                         : sign << 11 | rest >> 4 << 12 | (rest & 15);
      put_word(step / 2 * 512 + lane * 16 + step % 2 * 8 + reg / 2 * 4, bits << (16 * half));
    } else {
      put_e2m1(lane * 16 + step / 2 * 8, step % 2, reg, half, code);
    }
  }

  // Scales include the factor that compensates for moving the codes' bits.
  void put_scale(int row, int group, uint32_t bits) const {
    if (format == Format::Fp8)
      put_word(1024 + row * 4, bits);
    else
      put_word(512 + row % 8 * 4, bits << (row / 8 * 16 + group * 8));
  }
};

// A random matrix: packed, and the values of some rows. A value is a code times its scale, which is
// exact in F32.
template <class M>
struct Weights {
  static constexpr int ENDS = 16;
  std::vector<char> packed;
  std::vector<int> rows;
  std::vector<float> values;

  // Keeps the values of all rows, or of up to `rows_kept`: the first, the last and some others.
  explicit Weights(std::mt19937& random, int rows_kept = M::ROWS) : packed(M::BYTES) {
    std::vector<int> kept(M::ROWS, -1);
    for (int i = 0; i < rows_kept; i++) {
      const bool first = rows_kept >= M::ROWS || i < ENDS, last = i < 2 * ENDS;
      const int row = first  ? i
                      : last ? M::ROWS - 1 - (i - ENDS)
                             : static_cast<int>(random() % M::ROWS);
      if (row < 0 || row >= M::ROWS || kept[row] >= 0) continue;
      kept[row] = static_cast<int>(rows.size());
      rows.push_back(row);
    }
    values.resize(rows.size() * M::COLUMNS);
    for (int row = 0; row < M::ROWS; row++)
      for (int column = 0; column < M::COLUMNS; column += 32) fill(random, row, column, kept[row]);
  }

  // The values of a kept row.
  const float* row(int kept) const {
    return values.data() + static_cast<size_t>(kept) * M::COLUMNS;
  }

 private:
  // 32 columns of a row, which share their scale.
  void fill(std::mt19937& random, int row, int column, int kept) {
    const int unit = row / (16 * M::ROW_TILES), row_tile = row / 16 % M::ROW_TILES;
    const int chunk = column / 64, warp = row_tile * M::COLUMN_WARPS + chunk % M::COLUMN_WARPS;
    const size_t step = static_cast<size_t>(unit) * M::STEPS + chunk / M::COLUMN_WARPS;
    char* to = packed.data() + step * M::STEP_BYTES + warp * M::CHUNK_BYTES;
    const Packer packer = {M::FORMAT, to};
    float scale = 1;
    if (M::FORMAT == Format::Mxfp4) {
      const uint32_t code = 118 + random() % 4;
      scale = std::ldexp(1.0f, static_cast<int>(code) - 127);
      packer.put_scale(row % 16, column % 64 / 32, code + 26);
    } else if (M::FORMAT == Format::Fp8) {
      scale = (1 + row * 37 % 64 / 64.0f) * (1 + column / 64 % 8) / 4096;
      const float stored = scale * 1048576;
      uint32_t bits;
      std::memcpy(&bits, &stored, 4);
      if (column % 64 == 0) packer.put_scale(row % 16, 0, bits);
    }
    for (int i = 0; i < 32 && column + i < M::COLUMNS; i++) {
      uint32_t code = random();
      float value;
      if (M::FORMAT == Format::Bf16) {
        code = bf16_bits((static_cast<int>(code & 0xffff) - 32768) / 1048576.0f);
        value = bf16_value(static_cast<uint16_t>(code));
      } else if (M::FORMAT == Format::Fp8) {
        code &= 255;
        if ((code & 127) == 127) code--;
        value = e4m3(static_cast<int>(code));
      } else {
        code &= 15;
        value = e2m1(static_cast<int>(code));
      }
      packer.put(row % 16, column % 64 + i, code);
      if (kept >= 0)
        values[static_cast<size_t>(kept) * M::COLUMNS + column + i] = value * scale;
    }
  }
};

// Random BF16 values of `rows` rows, and the same as an operand with `row_bytes` a row.
struct Activations {
  std::vector<uint16_t> operand;
  std::vector<float> values;
  int columns;

  Activations(std::mt19937& random, int rows, int column_count, int row_bytes, float scale)
      : operand(static_cast<size_t>(rows) * row_bytes / 2),
        values(static_cast<size_t>(rows) * column_count),
        columns(column_count) {
    std::normal_distribution<float> normal;
    for (int row = 0; row < rows; row++)
      for (int column = 0; column < columns; column++) {
        const float value = bf16_value(bf16_bits(normal(random)));
        const size_t byte =
            kilotok::operand_row(row, row_bytes) + kilotok::operand_offset(column);
        operand[byte / 2] = bf16_bits(value * scale);
        values[static_cast<size_t>(row) * columns + column] = value;
      }
  }

  const float* row(int index) const {
    return values.data() + static_cast<size_t>(index) * columns;
  }
};

// A value of an operand that the GPU wrote, with `row_bytes` a row.
inline float operand_value(const std::vector<uint16_t>& operand, int row, int row_bytes,
                           int column) {
  return bf16_value(operand[(kilotok::operand_row(row, row_bytes) +
                             kilotok::operand_offset(column)) / 2]);
}

// The relative error of F32 sums on the tensor cores, where each sum of 16 is truncated rather than
// rounded: a few units in the 23rd place of the sum of magnitudes.
constexpr double TOLERANCE = 1.0 / (1 << 21);

struct Product {
  double sum = 0, magnitude = 0;

  template <class X>
  void add(const float* weights, const X& x, int count) {
    for (int i = 0; i < count; i++) {
      const double product = static_cast<double>(weights[i]) * x[i];
      sum += product;
      magnitude += std::fabs(product);
    }
  }
};

}  // namespace bench
