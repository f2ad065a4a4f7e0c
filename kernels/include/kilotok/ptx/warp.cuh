// Exchanges within a warp that have an instruction of their own.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

// The smallest of all lanes.
__device__ __forceinline__ uint32_t warp_min(uint32_t value) {
  uint32_t least;
  asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(least) : "r"(value));
  return least;
}

}  // namespace kilotok::ptx
