// What networks put between their matrices. To some 2^-21 of it: what comes of it is rounded to
// BF16, or decides between experts whose sums differ by more.
#pragma once

#include "kilotok/ptx/mma.cuh"

namespace kilotok {

__device__ __forceinline__ float sigmoid(float x) {
  return ptx::divide(1.0f, 1.0f + ptx::exp2(x * -ptx::LOG2_E));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

}  // namespace kilotok
