// One CTA of the persistent kernel: its warp roles, and the grid barrier.
//
// CTAs are warp-specialised. Twelve consumer warps compute. One producer warp runs ahead of them
// and copies weights into the ring buffer. Three epilogue warps follow, reduce the consumers'
// split-K partial sums of one unit, and store the result. A function of a phase is called by every
// consumer thread and by no other thread, unless its comment says otherwise.
#pragma once

#include "kilotok/comm/wait.cuh"
#include "kilotok/model.h"
#include "kilotok/shape.cuh"

namespace kilotok {

constexpr int CONSUMER_WARPS = 12;
constexpr int CONSUMERS = CONSUMER_WARPS * 32;
constexpr int THREADS = CONSUMERS + 128;
// Registers a thread. The 128 threads of the producer's and the epilogue's warpgroup need fewer
// than an even share, and the consumers get the rest (`setmaxnreg`).
constexpr int CONSUMER_REGISTERS = 152;
constexpr int HELPER_REGISTERS = 56;

// The sum of a value over the lanes before this one, and over all lanes.
__device__ __forceinline__ uint32_t sum_before(uint32_t value, int lane, uint32_t& all) {
  uint32_t sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_sync(~0u, sum, larger(lane - distance, 0));
    if (lane >= distance) sum += other;
  }
  all = __shfl_sync(~0u, sum, 31);
  return sum - value;
}

#ifdef KILOTOK_STAMPS
// Stamps that the first CTA has written in this launch.
static __shared__ int stamp_count;
#endif

// The counters in `Memory.barrier`. Each lies in a cache line of its own.
enum class Counter {
  // Arrivals of CTAs at grid barriers.
  Grid,
  // Units of work that CTAs have taken from the shared queue.
  UnitsTaken,
  // CTAs that have written their part of an operand.
  Operands,
  // Epilogue warps of CTAs that have written their part of the first rows for down
  // (phase/down.cuh).
  FirstRows,
};
static_assert(static_cast<int>(Counter::FirstRows) + 1 == COUNTERS, "each has its line");

struct Cta {
  const Memory& memory;
  // Collectives between ranks that have begun.
  uint32_t collectives;
  int thread_index;

  __device__ __forceinline__ Cta(const Memory& memory_of_rank,
                                 uint32_t collectives_before)
      : memory(memory_of_rank),
        collectives(collectives_before),
        thread_index(threadIdx.x) {}

  __device__ __forceinline__ int index() const { return ptx::cta_index(); }
  __device__ __forceinline__ int thread() const { return thread_index; }
  // Divisions of unsigned numbers by powers of two take one instruction, of others up to five.
  __device__ __forceinline__ int warp() const { return static_cast<uint32_t>(thread_index) / 32; }
  __device__ __forceinline__ int lane() const { return static_cast<uint32_t>(thread_index) % 32; }

  __device__ __forceinline__ uint32_t* counter(Counter which) const {
    return reinterpret_cast<uint32_t*>(memory.barrier + static_cast<int>(which) * COUNTER_BYTES);
  }

  // A release increment by one thread.
  __device__ __forceinline__ void count(Counter which) const {
    ptx::add_release(counter(which), 1);
  }

  // All consumers: signals that this CTA has written its part of the next operand.
  __device__ __forceinline__ void count_operand() {
    sync();
    if (thread() == 0) count(Counter::Operands);
    make_opaque();
  }

  // One thread: an acquire wait until the counter has reached `wanted`.
  __device__ __forceinline__ void wait_count(Waits waits, Counter which, uint32_t wanted) const {
    const uint32_t* counts = counter(which);
    wait_for(waits, wanted, [&](uint32_t& seen) {
      seen = ptx::load_acquire(counts);
      return static_cast<int32_t>(seen - wanted) >= 0;
    });
  }

  // Keeps the compiler from computing values of later phases from the thread's number in advance:
  // they would occupy registers that other code needs.
  __device__ __forceinline__ void make_opaque() { ptx::make_opaque(thread_index); }

  // Reads the thread's number again, so that it need not be kept in a register.
  __device__ __forceinline__ void reload_thread() {
    thread_index = threadIdx.x;
    make_opaque();
  }

  // Barrier of all consumers of this CTA.
  __device__ __forceinline__ void sync() const { ptx::sync_threads<CONSUMERS>(); }

  // The grid barrier: all consumers of all CTAs of this rank. Writes from before it are visible to
  // all of them after it.
  __device__ __forceinline__ void sync_grid() {
    arrive_grid();
    wait_grid();
  }

  // The first half of the grid barrier: releases this CTA's writes. Work between the two halves is
  // free as long as other CTAs are late.
  __device__ __forceinline__ void arrive_grid() {
    sync();
    if (thread() == 0) {
      count(Counter::Grid);
      wait_context.phase++;
    }
  }

  // The same where the epilogue arrives.
  __device__ __forceinline__ void pass_arrival() {
    if (thread() == 0) wait_context.phase++;
    make_opaque();
  }

  __device__ __forceinline__ void wait_grid() {
    if (thread() == 0) wait_count(Waits::Grid, Counter::Grid, wait_context.phase * GRID);
    sync();
    make_opaque();
    stamp(Stamp::Barrier);
  }

  // In kernels that are compiled for it, records the clock and a number at this point of the first
  // CTA.
  __device__ __forceinline__ void stamp(Stamp what, uint32_t number = 0) const {
#ifdef KILOTOK_STAMPS
    if (thread() != 0 || index() != 0) return;
    const int place = what == Stamp::Begun ? 0 : stamp_count;
    stamp_count = place + 1;
    if (place >= STAMPS_MAX) return;
    const bool by_the_clock = what == Stamp::Begun || what == Stamp::Ended;
    Stamped& stamped = reinterpret_cast<Stamped*>(memory.trace)[place];
    stamped.what = static_cast<uint32_t>(what);
    stamped.number = by_the_clock ? ptx::nanoseconds() : number;
    stamped.cycles = clock64();
#endif
  }
};

template <class T>
__host__ __device__ __forceinline__ T* at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// BYTES bytes on their way from the GPU's memory to shared memory, held in registers by at least
// the first CONSUMERS threads of a CTA. What `store` writes is visible after a __syncthreads.
template <int BYTES>
struct Words {
  static_assert(BYTES % 4 == 0, "whole words");
  static constexpr int COUNT = BYTES / 4, EACH = ceil_div(COUNT, CONSUMERS);
  uint32_t words[EACH];

  static __device__ __forceinline__ bool has(int i) {
    return threadIdx.x < CONSUMERS && threadIdx.x + i * CONSUMERS < COUNT;
  }
  __device__ __forceinline__ explicit Words(uint64_t from) {
#pragma unroll
    for (int i = 0; i < EACH; i++)
      words[i] = has(i) ? at<const uint32_t>(from)[threadIdx.x + i * CONSUMERS] : 0;
  }
  __device__ __forceinline__ void store(void* to) const {
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (has(i)) static_cast<uint32_t*>(to)[threadIdx.x + i * CONSUMERS] = words[i];
  }
};

template <int VALUE>
struct Constant {
  static constexpr int value = VALUE;
};

// Calls `f` with the constant that equals `kind`, which is one of FIRST to END - 1.
template <int FIRST, int END, class F>
__device__ __forceinline__ void with_kind(int kind, F f) {
  if constexpr (FIRST < END) {
    if (kind == FIRST)
      f(Constant<FIRST>{});
    else
      with_kind<FIRST + 1, END>(kind, f);
  }
}

// Calls `f` with each of the constants FIRST to END - 1.
template <int FIRST, int END, class F>
__device__ __forceinline__ void with_each_kind(F f) {
  if constexpr (FIRST < END) {
    f(Constant<FIRST>{});
    with_each_kind<FIRST + 1, END>(f);
  }
}

template <class A, class B>
constexpr bool IS_SAME = false;
template <class A>
constexpr bool IS_SAME<A, A> = true;

// The first of the kinds FIRST to KIND whose matrix `M` is the same as that of KIND.
template <template <int> class M, int FIRST, int KIND>
__host__ __device__ constexpr int first_like() {
  if constexpr (IS_SAME<M<FIRST>, M<KIND>>)
    return FIRST;
  else
    return first_like<M, FIRST + 1, KIND>();
}

// Calls `f` with one kind of FIRST to END - 1 for each matrix.
template <template <int> class M, int FIRST, int END, class F>
__device__ __forceinline__ void with_each_matrix(F f) {
  with_each_kind<FIRST, END>([&](auto k) {
    constexpr int KIND = decltype(k)::value;
    if constexpr (first_like<M, FIRST, KIND>() == KIND) f(k);
  });
}

// Calls `f` with the first of the kinds FIRST to END - 1 that has the same matrix as `kind`. So
// code is generated once for each matrix, not once for each kind.
template <template <int> class M, int FIRST, int END, class F>
__device__ __forceinline__ void with_matrix(int kind, F f) {
  int first = kind;
  with_kind<FIRST, END>(kind, [&](auto k) { first = first_like<M, FIRST, decltype(k)::value>(); });
  with_kind<FIRST, END>(first, [&](auto k) {
    constexpr int KIND = decltype(k)::value;
    if constexpr (first_like<M, FIRST, KIND>() == KIND) f(k);
  });
}

}  // namespace kilotok
