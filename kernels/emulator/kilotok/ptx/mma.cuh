// Tensor cores, and single instructions around them.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

inline float from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// Lanes show registers a0 to a3, b0, b1; afterwards each finds its four products in the same place.
inline void multiply_shown(emulator::Shown* shown) {
  float a[16][16];
  alignas(emulator::Eight) float b[16][8], c[16][8];
  for (int lane = 0; lane < 32; lane++)
    for (int half = 0; half < 2; half++) {
      const int row = lane / 4, k = lane % 4 * 2 + half;
      const auto value = [&](int word) {
        return from_bf16(static_cast<uint16_t>(shown[lane][word] >> 16 * half));
      };
      a[row][k] = value(0);
      a[row + 8][k] = value(1);
      a[row][k + 8] = value(2);
      a[row + 8][k + 8] = value(3);
      b[k][row] = value(4);
      b[k + 8][row] = value(5);
    }
  for (int row = 0; row < 16; row++) {
    emulator::Eight sums = {};
#pragma GCC unroll 16
    for (int k = 0; k < 16; k++)
      sums += a[row][k] * *reinterpret_cast<const emulator::Eight*>(b[k]);
    *reinterpret_cast<emulator::Eight*>(c[row]) = sums;
  }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++)
      shown[lane][i] = __float_as_uint(c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
}

inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[] = {a[0], a[1], a[2], a[3], b0, b1};
  const emulator::Shown& products = emulator::show(words, 6, multiply_shown)[emulator::lane()];
  for (int i = 0; i < 4; i++) c[i] += __uint_as_float(products[i]);
}

// The same for six F32 words of a lane, without their lower 13 bits.
inline void multiply_shown_tf32(emulator::Shown* shown) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; lane++)
    for (int word = 0; word < 6; word++) {
      const float value = __uint_as_float(shown[lane][word] & 0xffffe000);
      if (word < 4)
        a[lane / 4 + word % 2 * 8][lane % 4 + word / 2 * 4] = value;
      else
        b[lane % 4 + (word - 4) * 4][lane / 4] = value;
    }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      float sum = 0;
      for (int k = 0; k < 8; k++) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
      shown[lane][i] = __float_as_uint(sum);
    }
}

inline void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1) {
  uint32_t words[6];
  for (int i = 0; i < 4; i++) words[i] = __float_as_uint(a[i]);
  words[4] = __float_as_uint(b0);
  words[5] = __float_as_uint(b1);
  const emulator::Shown& products =
      emulator::show(words, 6, multiply_shown_tf32)[emulator::lane()];
  for (int i = 0; i < 4; i++) c[i] += __uint_as_float(products[i]);
}

struct Tf32Pair {
  float high, low;
};
inline Tf32Pair split_tf32(float value) {
  const float times = value * 8193.0f, high = times - (times - value);
  return {high, value - high};
}

inline uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  return (a & mask) | (b & ~mask);
}

inline uint16_t to_bf16(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint32_t pack_bf16(float low, float high) {
  return static_cast<uint32_t>(to_bf16(high)) << 16 | to_bf16(low);
}

inline float exp2(float x) { return ::exp2f(x); }
constexpr float LOG2_E = 1.4426950408889634f;
inline float inverse_sqrt(float x) { return 1.0f / ::sqrtf(x); }
inline float divide(float a, float b) { return a / b; }

}  // namespace kilotok::ptx
