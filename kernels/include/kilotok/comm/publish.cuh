// Publish and poll: values that one CTA passes to others without a barrier. An unwritten location
// holds the sentinel EMPTY, and readers poll it until it does not. That takes half as long as a
// grid barrier and a load behind it, which are four round trips to L2.
//
// Between its readers and its next writer a place becomes EMPTY again, with a grid barrier before
// and one behind.
#pragma once

#include "kilotok/cta.cuh"
#include "kilotok/layout/operand.cuh"

namespace kilotok {

// Of four bytes, and of two: NaNs that no arithmetic yields.
constexpr uint32_t EMPTY = ~0u;
constexpr uint16_t EMPTY_HALF = 0xffff;
constexpr uint32_t SOME_NAN = 0x7fffffff;

__device__ __forceinline__ bool is_published(uint32_t word) { return word != EMPTY; }
__device__ __forceinline__ bool is_published(float value) {
  return is_published(__float_as_uint(value));
}

// Not zero if a half of some words is zero: taking one away leaves it a sign where there was none.
__device__ __forceinline__ uint32_t zero_halves(const uint4& words) {
  const auto zeros = [](uint32_t word) { return (word - 0x00010001u) & ~word; };
  return (zeros(words.x) | zeros(words.y) | zeros(words.z) | zeros(words.w)) & 0x80008000u;
}

// Not zero if a half of some words is not there.
__device__ __forceinline__ uint32_t missing_halves(const uint4& words) {
  return zero_halves(make_uint4(~words.x, ~words.y, ~words.z, ~words.w));
}

// What is written for a value.
__device__ __forceinline__ uint32_t published_word(float value) {
  const uint32_t bits = __float_as_uint(value);
  return is_published(bits) ? bits : SOME_NAN;
}

__device__ __forceinline__ void publish(float* to, float value) {
  ptx::store_l2(reinterpret_cast<uint32_t*>(to), published_word(value));
}

// A value of an operand: BF16 has one NaN of arithmetic, which is not EMPTY_HALF.
__device__ __forceinline__ void publish_operand(char* row, int column, float value) {
  ptx::store_l2(reinterpret_cast<uint16_t*>(row + operand_offset(column)), ptx::to_bf16(value));
}

// A warp: calls `look`, which says whether a lane has all that it wants, until all lanes have; or
// once, if values are not POLLED because a barrier came before.
template <bool POLLED, class Look>
__device__ __forceinline__ void poll(Look look) {
  if constexpr (POLLED)
    wait_for(Waits::Value, 0, [&](uint32_t&) { return __all_sync(~0u, look()); });
  else
    look();
}

}  // namespace kilotok
