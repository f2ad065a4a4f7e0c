// What networks put between their matrices, to 2^-21 of it, and 2^-19 where a sigmoid is next to
// nothing. That suffices: it is rounded to BF16, or its order is that of sums in F32.
#pragma once

#include "kilotok/ptx/mma.cuh"

namespace kilotok {

__device__ __forceinline__ float sigmoid(float x) {
  return ptx::divide(1.0f, 1.0f + ptx::exp2(x * -ptx::LOG2_E));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

}  // namespace kilotok
