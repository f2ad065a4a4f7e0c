// Every wait has an end: one that runs out leaves a `Fault` in the host's memory that says who
// waited for what, and stops the kernel.
#pragma once

#include "kilotok/ptx/async.cuh"
#include "kilotok/ptx/memory.cuh"

namespace kilotok {

// What a wait was for; `Fault.code`. The host's text for each is in crates/cuda.
enum class Waits : uint32_t {
  Grid = 1,
  Page = 2,
  FreePage = 3,
  Peer = 4,
  Routes = 5,
  Host = 6,
  Sums = 7,
};

// Where a thread is, for the record.
struct Place {
  Fault* fault;
  uint64_t wait_max_ns;
  uint32_t rank;
  // Counts phases of the step.
  uint32_t phase;
};

// Whether somebody writes the record. The host's memory may know no atomics, so that is settled
// here; a kernel that gave up is its module's last.
static __device__ uint32_t record_begun = 0;

// By value and out of line: a wait must not cost registers where it does not run out.
[[noreturn]] __device__ __noinline__ void give_up(Fault* to, uint32_t rank, uint32_t phase,
                                                  Waits waits, uint32_t wanted, uint32_t seen) {
  volatile Fault* fault = to;
  if (atomicExch(&record_begun, 1u) == 0u) {
    fault->rank = rank;
    fault->phase = phase;
    fault->cta = blockIdx.x;
    fault->wanted = wanted;
    fault->seen = seen;
    __threadfence_system();
    // Comes last, and says that all is there.
    fault->code = static_cast<uint32_t>(waits);
    __threadfence_system();
  } else {
    // Its trap would stop the one that writes. No loop: ptxas then finds no registers for callers.
    __nanosleep(1000000);
    __nanosleep(1000000);
  }
  __trap();
}

// Calls `ready(seen)` until it is true. `NAP_NS` > 0 leaves the scheduler to others meanwhile.
template <int NAP_NS, class Ready>
__device__ __forceinline__ void wait_for(const Place& place, Waits waits, uint32_t wanted,
                                         Ready ready) {
  uint32_t seen = 0;
  if (ready(seen)) return;
  const uint64_t start = ptx::nanoseconds();
#pragma unroll 1
  while (!ready(seen)) {
    if (NAP_NS > 0) __nanosleep(NAP_NS);
    if (ptx::nanoseconds() - start > place.wait_max_ns)
      give_up(place.fault, place.rank, place.phase, waits, wanted, seen);
  }
}

template <int NAP_NS>
__device__ __forceinline__ void wait_mbarrier(const Place& place, Waits waits, uint32_t barrier,
                                              uint32_t parity) {
  wait_for<NAP_NS>(place, waits, parity,
                   [&](uint32_t&) { return ptx::mbarrier_try(barrier, parity); });
}

}  // namespace kilotok
