// One CTA of the wide pass: many tokens, multiplied by warpgroups. Warpgroups of *consumers*
// compute: two for attention, four for experts. One more warpgroup has the *producers*, which copy
// operands into a ring in shared memory. GEMMs and the router have shapes of their own
// (wide/gemm.cuh, wide/router.cuh).
#pragma once

#include "kilotok/cta.cuh"

namespace kilotok::wide {

constexpr int WARPGROUP = 128;
constexpr int WARPGROUP_ROWS = 64;
constexpr int CONSUMER_GROUPS = 2;
// With few rows for each expert it takes more warps to keep enough loads of weights in flight.
constexpr int MANY_CONSUMER_GROUPS = 4;

// A CTA with GROUPS warpgroups of consumers.
template <int GROUPS>
struct CtaShape {
  static constexpr int CONSUMERS = GROUPS * WARPGROUP;
  // Producers have a whole warpgroup, the unit in which registers are reassigned.
  static constexpr int THREADS = CONSUMERS + WARPGROUP;
  // Every thread begins with this many registers; consumers take what producers give back.
  static constexpr int REGISTERS = 65536 / THREADS / 8 * 8;
  static constexpr int PRODUCER_REGISTERS = GROUPS > 2 ? 32 : 40;
  static constexpr int CONSUMER_REGISTERS =
      (REGISTERS * (GROUPS + 1) - PRODUCER_REGISTERS) / GROUPS / 8 * 8;
  // Rows of weights that a CTA multiplies at a time, and their tiles of 16.
  static constexpr int ROWS = GROUPS * WARPGROUP_ROWS, ROW_TILES = ROWS / 16;
};
constexpr int CONSUMERS = CtaShape<CONSUMER_GROUPS>::CONSUMERS;
constexpr int THREADS = CtaShape<CONSUMER_GROUPS>::THREADS;

// The most tokens that are multiplied at a time.
constexpr int TOKENS = 128;

// Calls `f` with the number of columns of B that 1 to TOKENS tokens take, as a constant. Fewer
// columns are faster where the bytes of the weights set the time.
template <class F>
__device__ __forceinline__ void with_columns(int tokens, F f) {
  if (tokens > 64)
    f(Constant<128>{});
  else if (tokens > 32)
    f(Constant<64>{});
  else
    f(Constant<32>{});
}

// Dispatches consumers and PRODUCERS threads of the producers' warpgroup to their roles.
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
