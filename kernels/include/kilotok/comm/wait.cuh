// Every wait has an end: one that runs out leaves a `Fault` in the host's memory that says who
// waited for what, and stops the kernel.
#pragma once

#include "kilotok/ptx/async.cuh"
#include "kilotok/ptx/memory.cuh"
#include "kilotok/ptx/thread.cuh"

namespace kilotok {

// What a wait was for; `Fault.code`. The host's text for each is in crates/cuda.
enum class Waits : uint32_t {
  Grid = 1,
  Page = 2,
  FreePage = 3,
  Peer = 4,
  Routes = 5,
  Sums = 6,
  Operand = 7,
  Value = 8,
};

// Which launch of a step a kernel is; `Fault.launch`. A harness's is none of them.
enum class Launch : uint32_t {
  Other = 0,
  Target = 1,
  Verify = 2,
  DraftContext = 3,
  DraftRows = 4,
};

// 1024 cycles each, in a millisecond where clocks are fastest; where they are slower, waits last
// longer.
constexpr uint32_t KILOCYCLES_PER_MS = 1954;

// Where a CTA is, for the record.
struct WaitContext {
  Fault* fault;
  // When every wait of the kernel ends: one moment for all costs less code than one for each.
  uint32_t deadline;
  uint32_t rank;
  Launch launch;
  // Counts grid barriers.
  uint32_t phase;
  int cta;

  static __device__ __forceinline__ WaitContext begin(uint64_t fault, uint32_t wait_max_ms,
                                                uint32_t rank, Launch launch = Launch::Other) {
    return {reinterpret_cast<Fault*>(fault), ptx::kilocycles() + wait_max_ms * KILOCYCLES_PER_MS,
            rank, launch, 0, ptx::cta_index()};
  }
};

// In shared memory, since only who gives up reads it. A kernel sets it before its first wait.
static __shared__ WaitContext wait_context;

// Whether somebody writes the record. The host's memory may know no atomics, so that is settled
// here; a kernel that gave up is its module's last.
static __device__ uint32_t fault_claimed = 0;

// By how much a wait goes on after the deadline: those for somebody who waits too let others give
// up first, who are nearer to the cause, and may look at the clock late.
__device__ constexpr int grace_ms(Waits waits) {
  switch (waits) {
    case Waits::Peer: return 0;
    // For CTAs, some of which wait for peers.
    case Waits::Grid: return 5;
    // For CTAs, some of which are at a barrier: producers run ahead of it.
    case Waits::Operand: return 10;
    // For the producer, who waits for operands.
    case Waits::Page: return 15;
    // For CTAs, some of which wait for pages.
    case Waits::Value: return 20;
    default: return 25;
  }
}
__device__ constexpr int grace(Waits waits) { return grace_ms(waits) * KILOCYCLES_PER_MS; }

// How long who does not write the record lets the other write: a write to the host and its fence
// take microseconds. A sleep is a millisecond at most.
constexpr int RECORD_MS = 2;
constexpr unsigned SLEEP_MAX_NS = 1000000;

// Out of line: a wait must cost neither registers nor code where it does not run out.
__device__ __noinline__ void record_fault(Waits waits, uint32_t wanted, uint32_t seen) {
  volatile Fault* fault = wait_context.fault;
  if (atomicExch(&fault_claimed, 1u) == 0u) {
    fault->rank = wait_context.rank;
    fault->cta = wait_context.cta;
    fault->launch = static_cast<uint32_t>(wait_context.launch);
    fault->phase = wait_context.phase;
    fault->wanted = wanted;
    fault->seen = seen;
    __threadfence_system();
    // Comes last, and says that all is there.
    fault->code = static_cast<uint32_t>(waits);
    __threadfence_system();
  } else {
    // Its trap would stop the one that writes.
    for (int i = 0; i < RECORD_MS; i++) __nanosleep(SLEEP_MAX_NS);
  }
  __trap();
}

// Does not come back, and says so where the compiler of machine code sees it: otherwise every wait
// would keep what is live out of the registers of that function.
__device__ __forceinline__ void give_up(Waits waits, uint32_t wanted, uint32_t seen) {
  record_fault(waits, wanted, seen);
  ptx::exit();
}

#ifdef KILOTOK_RACECHECK
// Racecheck takes its time over every look: threads that look all the time keep those that they
// wait for from coming on.
constexpr uint32_t PAUSE_NS = 10000;
#endif

// Calls `ready(seen)` until it is true.
template <class Ready>
__device__ __forceinline__ void wait_for(Waits waits, uint32_t wanted, Ready ready) {
  uint32_t seen = 0;
#pragma unroll 1
  while (!ready(seen)) {
    if (static_cast<int32_t>(ptx::kilocycles() - wait_context.deadline) > grace(waits))
      give_up(waits, wanted, seen);
#ifdef KILOTOK_RACECHECK
    __nanosleep(PAUSE_NS);
#endif
  }
}

__device__ __forceinline__ void wait_mbarrier(Waits waits, uint32_t barrier, uint32_t parity) {
  wait_for(waits, parity, [&](uint32_t&) { return ptx::mbarrier_try(barrier, parity); });
}

}  // namespace kilotok
