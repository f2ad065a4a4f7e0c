// Activation functions, with a relative error of 2^-21, and of 2^-19 where a sigmoid is close to
// zero. That suffices: the result is rounded to BF16, or compared with other sums in F32.
#pragma once

#include "kilotok/cta.cuh"
#include "kilotok/model.h"
#include "kilotok/ptx/mma.cuh"

namespace kilotok {

__device__ __forceinline__ float sigmoid(float x) {
  return ptx::divide(1.0f, 1.0f + ptx::exp2(x * -ptx::LOG2_E));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// Combines a network's gate and up. `alpha` and `limit` are those of a clamped activation.
__device__ __forceinline__ float activate(Activation activation, float alpha, float limit,
                                          float gate, float up) {
  if (activation == Activation::SiluMul) return silu(gate) * up;
  // Unlike `fminf`, comparisons keep NaN.
  const float g = gate > limit ? limit : gate;
  const float u = up > limit ? limit : up < -limit ? -limit : up;
  return g * sigmoid(alpha * g) * (u + 1.0f);
}

template <int KIND>
__device__ __forceinline__ float activate(float gate, float up) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  return activate(F.activation, F.alpha, F.limit, gate, up);
}

// The biases of gate and up for a value of an expert, from F32 pairs `[experts][width]`.
template <int KIND>
__device__ __forceinline__ float2 gate_up_bias(uint64_t address, int expert, int value) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  if constexpr (!F.bias) return make_float2(0, 0);
  return at<const float2>(address)[size_t{1} * expert * F.width + value];
}

// A value of the inner operand, from the products of gate and up.
template <int KIND>
__device__ __forceinline__ float inner_value(float gate, float up, float inverse_rms,
                                             const float2& bias) {
  if constexpr (FEED_FORWARDS[KIND].bias)
    return activate<KIND>(__fmaf_rn(gate, inverse_rms, bias.x), __fmaf_rn(up, inverse_rms, bias.y));
  else
    return activate<KIND>(gate * inverse_rms, up * inverse_rms);
}

// An expert's product is rounded to BF16 before all are added: the wide pass, which writes them to
// the GPU's memory, is bound by their bytes.
__device__ __forceinline__ void round_product(const float (&product)[4], float (&rounded)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t pair = ptx::pack_bf16(product[i], product[i + 1]);
    rounded[i] = __uint_as_float(pair << 16);
    rounded[i + 1] = __uint_as_float(pair & 0xffff0000u);
  }
}

}  // namespace kilotok
