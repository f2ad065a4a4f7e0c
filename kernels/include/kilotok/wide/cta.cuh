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
constexpr int CONSUMERS = CONSUMER_GROUPS * WARPGROUP;
// The producer is the first of a warpgroup, since that is how registers change hands: each
// has 168 at first.
constexpr int THREADS = CONSUMERS + WARPGROUP;
constexpr int CONSUMER_REGISTERS = 232;
constexpr int PRODUCER_REGISTERS = 40;
static_assert(CONSUMER_GROUPS * CONSUMER_REGISTERS + PRODUCER_REGISTERS <= 65536 / WARPGROUP,
              "a multiprocessor has so many");

// Rows of weights that a CTA multiplies at a time, and their tiles of 16.
constexpr int ROWS = CONSUMER_GROUPS * WARPGROUP_ROWS;
constexpr int ROW_TILES = ROWS / 16;
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

// Consumers, and the producer, do their work.
template <class Consume, class Produce>
__device__ __forceinline__ void with_roles(Consume consume, Produce produce) {
  if (threadIdx.x < CONSUMERS) {
    ptx::more_registers<CONSUMER_REGISTERS>();
    consume();
  } else {
    ptx::fewer_registers<PRODUCER_REGISTERS>();
    if (threadIdx.x == CONSUMERS) produce();
  }
}

}  // namespace kilotok::wide
