// Integers: the minimum over a warp, and products of 64 bits.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

inline uint32_t warp_min(uint32_t value) { return __reduce_min_sync(~0u, value); }

inline void multiply(uint32_t a, uint32_t b, uint32_t& low, uint32_t& high) {
  const uint64_t product = static_cast<uint64_t>(a) * b;
  low = static_cast<uint32_t>(product);
  high = static_cast<uint32_t>(product >> 32);
}

}  // namespace kilotok::ptx
