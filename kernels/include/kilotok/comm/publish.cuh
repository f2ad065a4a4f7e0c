// Publish and poll: values that one CTA passes to others without a barrier. An unwritten location
// holds the sentinel EMPTY, and readers poll it until it does not. That takes half as long as a
// grid barrier and a load after it, which are four round trips to L2.
//
// A location is reused in this order: last read, grid barrier, reset to EMPTY, grid barrier, next
// write.
#pragma once

#include "kilotok/cta.cuh"
#include "kilotok/layout/operand.cuh"

namespace kilotok {

// The sentinel of four bytes and that of two: NaNs that no arithmetic yields.
constexpr uint32_t EMPTY = ~0u;
constexpr uint16_t EMPTY_HALF = 0xffff;
constexpr uint32_t SOME_NAN = 0x7fffffff;

__device__ __forceinline__ bool is_published(uint32_t word) { return word != EMPTY; }
__device__ __forceinline__ bool is_published(float value) {
  return is_published(__float_as_uint(value));
}

// Not zero if any 16-bit half of the words is zero: subtracting one from a zero half sets its sign
// bit, which was clear.
__device__ __forceinline__ uint32_t zero_halves(const uint4& words) {
  const auto zeros = [](uint32_t word) { return (word - 0x00010001u) & ~word; };
  return (zeros(words.x) | zeros(words.y) | zeros(words.z) | zeros(words.w)) & 0x80008000u;
}

// Not zero if any 16-bit half of the words is EMPTY_HALF.
__device__ __forceinline__ uint32_t missing_halves(const uint4& words) {
  return zero_halves(make_uint4(~words.x, ~words.y, ~words.z, ~words.w));
}

__device__ __forceinline__ bool is_missing(const OperandChunk& x) {
  return (missing_halves(x.words[0]) | missing_halves(x.words[1])) != 0;
}

// The word that is written for a value: a NaN that equals the sentinel becomes another NaN.
__device__ __forceinline__ uint32_t published_word(float value) {
  const uint32_t bits = __float_as_uint(value);
  return is_published(bits) ? bits : SOME_NAN;
}

__device__ __forceinline__ void publish(float* to, float value) {
  ptx::store_l2(reinterpret_cast<uint32_t*>(to), published_word(value));
}

// Publishes one value of an operand. Arithmetic yields only one NaN in BF16, and it is not
// EMPTY_HALF.
__device__ __forceinline__ void publish_half(char* to, float value) {
  ptx::store_l2(reinterpret_cast<uint16_t*>(to), ptx::to_bf16(value));
}

// A warp: calls `look`, which returns whether the lane has all values it needs, until it is true
// for all lanes. If values are not POLLED, because a barrier came before, it is called once.
template <bool POLLED, class Look>
__device__ __forceinline__ void poll(Look look) {
  if constexpr (POLLED)
    wait_for(Waits::Value, 0, [&](uint32_t&) { return __all_sync(~0u, look()); });
  else
    look();
}

}  // namespace kilotok
