// `mma` of the tensor cores, and single instructions around it. 16 rows of weights are operand A,
// eight tokens operand B.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

// c += a b: BF16 products, F32 sums. With g = lane / 4 and q = lane % 4 a lane holds of a (g,
// 2q..), (g + 8, 2q..), (g, 2q + 8..), (g + 8, 2q + 8..), pairs along k; of b (2q.., g) and (2q +
// 8.., g); of c (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1).
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for TF32, which is F32 without its lower 13 bits. A lane holds of a (g, q), (g + 8, q),
// (g, q + 4), (g + 8, q + 4); of b (q, g) and (q + 4, g).
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], float b0, float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// `high` is the value rounded to TF32, `low` the remainder: 12 bits, of which TF32 keeps 11.
struct Tf32Pair {
  float high, low;
};
__device__ __forceinline__ Tf32Pair split_tf32(float value) {
  // Veltkamp's splitting: times 2^13 + 1, without fused operations.
  float times, above, high;
  asm("mul.rn.f32 %0, %1, 0f46000400;" : "=f"(times) : "f"(value));
  asm("sub.rn.f32 %0, %1, %2;" : "=f"(above) : "f"(times), "f"(value));
  asm("sub.rn.f32 %0, %1, %2;" : "=f"(high) : "f"(times), "f"(above));
  return {high, value - high};
}

// Bits of `a` where the mask has ones, of `b` elsewhere, in one instruction.
__device__ __forceinline__ uint32_t select_bits(uint32_t mask, uint32_t a, uint32_t b) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xE2;" : "=r"(bits) : "r"(a), "r"(mask), "r"(b));
  return bits;
}

// Two values rounded to the nearest BF16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ uint16_t to_bf16(float value) {
  return static_cast<uint16_t>(pack_bf16(value, 0.0f));
}

__device__ __forceinline__ float from_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// exp(x) = exp2(x LOG2_E).
constexpr float LOG2_E = 1.4426950408889634f;

// 2^x, 1 / sqrt(x) and a / b with a relative error of about 2^-22. A division by more than 2^126
// yields zero.
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float inverse_sqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float divide(float a, float b) {
  float y;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

}  // namespace kilotok::ptx
