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

// What has become of the record: nobody writes it, somebody does, it is written. The host's memory
// may know no atomics, so who writes is settled here; a kernel that gave up is its module's last.
enum class Record : uint32_t { Free, Begun, Written };
static __device__ uint32_t record_state = static_cast<uint32_t>(Record::Free);

// The first to give up writes, by plain stores; `code` comes last and says that all is there.
__device__ __forceinline__ void write_record(volatile Fault* fault, uint32_t rank, uint32_t phase,
                                             Waits waits, uint32_t wanted, uint32_t seen) {
  fault->rank = rank;
  fault->cta = blockIdx.x;
  fault->phase = phase;
  fault->wanted = wanted;
  fault->seen = seen;
  __threadfence_system();
  fault->code = static_cast<uint32_t>(waits);
  __threadfence_system();
  atomicExch(&record_state, static_cast<uint32_t>(Record::Written));
}

// Naps of a thread that came later: its trap would stop the one that writes.
constexpr int RECORD_NAPS = 1000;
constexpr int RECORD_NAP_NS = 1000;

// By value and out of line: a wait must not cost registers where it does not run out.
[[noreturn]] __device__ __noinline__ void give_up(Fault* fault, uint32_t rank, uint32_t phase,
                                                  Waits waits, uint32_t wanted, uint32_t seen) {
  constexpr uint32_t FREE = static_cast<uint32_t>(Record::Free);
  if (atomicCAS(&record_state, FREE, static_cast<uint32_t>(Record::Begun)) == FREE)
    write_record(fault, rank, phase, waits, wanted, seen);
  for (int nap = 0; nap < RECORD_NAPS; nap++) {
    if (atomicAdd(&record_state, 0) == static_cast<uint32_t>(Record::Written)) break;
    __nanosleep(RECORD_NAP_NS);
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
