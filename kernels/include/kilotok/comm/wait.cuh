// Every wait has a time limit. A wait that reaches it leaves a `Fault` in the host's memory, which
// says which CTA waited for what, and stops the kernel.
#pragma once

#include "kilotok/ptx/async.cuh"
#include "kilotok/ptx/memory.cuh"
#include "kilotok/ptx/thread.cuh"

namespace kilotok {

// Units of 1024 cycles in a millisecond at the fastest clock. At a slower clock, waits last longer.
constexpr uint32_t KILOCYCLES_PER_MS = 1954;

// What a CTA is doing, for the fault record.
struct WaitContext {
  Fault* fault;
  // When every wait of the kernel ends. One deadline for all waits costs less code than one for
  // each.
  uint32_t deadline;
  uint32_t rank;
  Launch launch;
  // Grid barriers at which this CTA has arrived.
  uint32_t phase;
  int cta;

  static __device__ __forceinline__ WaitContext begin(uint64_t fault, uint32_t wait_max_ms,
                                                uint32_t rank, Launch launch = Launch::Other) {
    return {reinterpret_cast<Fault*>(fault), ptx::kilocycles() + wait_max_ms * KILOCYCLES_PER_MS,
            rank, launch, 0, ptx::cta_index()};
  }
};

// In shared memory, because only a wait that times out reads it. A kernel sets it before its first
// wait.
static __shared__ WaitContext wait_context;

// Whether a thread has claimed the fault record. The host's memory may not support atomics, so the
// flag is in the GPU's. It is never reset: a module is not used again after a timeout.
static __device__ uint32_t fault_claimed = 0;

// By how much a wait goes on after the deadline. A wait for CTAs or threads that may themselves be
// waiting gets more, so that the wait nearest to the cause times out first and writes the record.
__device__ constexpr int grace_ms(Waits waits) {
  switch (waits) {
    case Waits::Peer: return 0;
    // Waits for CTAs, which may be waiting for peers.
    case Waits::Grid: return 5;
    // Waits for CTAs, which may be at a grid barrier: producers run ahead of it.
    case Waits::Operand: return 10;
    // Waits for the producer, which may be waiting for operands.
    case Waits::Page: return 15;
    // Waits for CTAs, which may be waiting for pages.
    case Waits::Value: return 20;
    default: return 25;
  }
}
__device__ constexpr int grace(Waits waits) { return grace_ms(waits) * KILOCYCLES_PER_MS; }

// How long a thread that does not write the record waits for the one that does: a write to the host
// and its fence take microseconds. One sleep lasts a millisecond at most.
constexpr int RECORD_MS = 2;
constexpr unsigned SLEEP_MAX_NS = 1000000;

// Out of line, because a wait must cost neither registers nor code while it does not time out.
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
    // The code is written last: the host takes it as the sign that the record is complete.
    fault->code = static_cast<uint32_t>(waits);
    __threadfence_system();
  } else {
    // A trap here would stop the thread that writes the record.
    for (int i = 0; i < RECORD_MS; i++) __nanosleep(SLEEP_MAX_NS);
  }
  __trap();
}

// Does not return. The `exit` shows that to ptxas: otherwise every wait would keep its live values
// out of the registers that the called function uses.
__device__ __forceinline__ void give_up(Waits waits, uint32_t wanted, uint32_t seen) {
  record_fault(waits, wanted, seen);
  ptx::exit();
}

#ifdef KILOTOK_RACECHECK
// Under racecheck every poll takes long, and threads that poll without a pause delay those that
// they wait for.
constexpr uint32_t PAUSE_NS = 10000;
#endif

// Polls `ready(seen)` until it is true or the wait times out. `wanted` and the last `seen` go into
// the fault record.
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
