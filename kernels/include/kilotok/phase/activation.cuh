// Activation functions with a relative error of 2^-21, and of 2^-19 where a sigmoid is close to
// zero. That suffices: the result is rounded to BF16, or compared with other sums in F32.
#pragma once

#include "kilotok/ptx/mma.cuh"

namespace kilotok {

__device__ __forceinline__ float sigmoid(float x) {
  return ptx::divide(1.0f, 1.0f + ptx::exp2(x * -ptx::LOG2_E));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

}  // namespace kilotok
