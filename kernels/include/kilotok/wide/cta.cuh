// One CTA of the wide pass: many tokens, multiplied by warpgroups. Two warpgroups of *consumers*
// multiply 64 rows of weights each with up to 128 tokens; a *producer* brings the tokens' operand
// into a ring of shared memory. Weights go straight into the registers of the warp that
// multiplies them, from the bytes that the narrow pass reads.
#pragma once

#include "kilotok/cta.cuh"

namespace kilotok::wide {

constexpr int WARPGROUP = 128;
constexpr int WARPGROUP_ROWS = 64;
constexpr int CONSUMER_GROUPS = 2;
// Where an expert has few rows, more warps keep enough weights on their way.
constexpr int MANY_CONSUMER_GROUPS = 4;

// A CTA with so many warpgroups of consumers.
template <int GROUPS>
struct CtaShape {
  static constexpr int CONSUMERS = GROUPS * WARPGROUP;
  // The producer is the first of a warpgroup, since that is how registers are reassigned.
  static constexpr int THREADS = CONSUMERS + WARPGROUP;
  // Each thread has as many registers at first; consumers take what producers give back.
  static constexpr int REGISTERS = 65536 / THREADS / 8 * 8;
  static constexpr int PRODUCER_REGISTERS = GROUPS > 2 ? 32 : 40;
  static constexpr int CONSUMER_REGISTERS =
      (REGISTERS * (GROUPS + 1) - PRODUCER_REGISTERS) / GROUPS / 8 * 8;
  // Rows of weights that a CTA multiplies at a time, and their tiles of 16.
  static constexpr int ROWS = GROUPS * WARPGROUP_ROWS, ROW_TILES = ROWS / 16;
};
constexpr int CONSUMERS = CtaShape<CONSUMER_GROUPS>::CONSUMERS;
constexpr int THREADS = CtaShape<CONSUMER_GROUPS>::THREADS;

// The most tokens that it multiplies them with.
constexpr int TOKENS = 128;

// The largest divisor of a number that is at most another.
__host__ __device__ constexpr int divisor(int number, int most) {
  while (number % most != 0) most--;
  return most;
}

// Calls `f` with the constant of the columns that so many tokens take, of 1 to TOKENS: fewer
// columns are faster, where the weights' bytes count.
template <class F>
__device__ __forceinline__ void with_columns(int tokens, F f) {
  if (tokens > 64)
    f(Constant<128>{});
  else if (tokens > 32)
    f(Constant<64>{});
  else
    f(Constant<32>{});
}

// Consumers, and the producer or PRODUCERS of its warpgroup, do their work.
template <int GROUPS = CONSUMER_GROUPS, int PRODUCERS = 1, class Consume, class Produce>
__device__ __forceinline__ void with_roles(Consume consume, Produce produce) {
  using Shape = CtaShape<GROUPS>;
  if (threadIdx.x < Shape::CONSUMERS) {
    ptx::more_registers<Shape::CONSUMER_REGISTERS>();
    consume();
  } else {
    ptx::fewer_registers<Shape::PRODUCER_REGISTERS>();
    if (threadIdx.x < Shape::CONSUMERS + PRODUCERS) produce();
  }
}

}  // namespace kilotok::wide
