// Integers: the smallest of a warp, and products of 64 bits, each one instruction.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

// The smallest of all lanes.
__device__ __forceinline__ uint32_t warp_min(uint32_t value) {
  uint32_t least;
  asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(least) : "r"(value));
  return least;
}

// The two halves of a product.
__device__ __forceinline__ void multiply(uint32_t a, uint32_t b, uint32_t& low, uint32_t& high) {
  asm("{\n.reg .b64 p;\nmul.wide.u32 p, %2, %3;\nmov.b64 {%0, %1}, p;\n}"
      : "=r"(low), "=r"(high)
      : "r"(a), "r"(b));
}

}  // namespace kilotok::ptx
