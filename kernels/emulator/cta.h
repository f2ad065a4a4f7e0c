// A CTA on the CPU. Included before everything else, it turns the kernels' CUDA into C++. A CTA is
// a thread of the operating system, and its threads are coroutines on it, each with a stack of its
// own. One runs until it reaches a barrier or waits, then another one, drawn at random, so that an
// order that the kernels do not enforce does not hold. Bulk copies arrive only when no thread can
// continue without them.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "launch.h"
#include "wgmma.h"

#define __device__
#define __host__
#define __global__
#define __shared__ thread_local
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
// The C library's functions are not inlined, and their code is slow after wide vector instructions.
#define fmaxf emulator::larger
#define fminf emulator::smaller

struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

namespace emulator {

// NaN only if both are NaN.
inline float larger(float a, float b) { return a > b || b != b ? a : b; }
inline float smaller(float a, float b) { return a < b || b != b ? a : b; }

constexpr int WARP = 32;
constexpr int WARPGROUP = 4 * WARP;
constexpr int BARRIERS = 16;
// Registers that a lane can exchange with the others at a time.
constexpr int SHOWN = 8;

// Shared memory is tracked in pieces, one bit each.
constexpr size_t PIECE_BYTES = 128;
constexpr size_t PIECES = 2048;
static_assert(PIECES * PIECE_BYTES >= SHARED_MAX, "no two have the same bit");
using Pieces = uint64_t[PIECES / 64];

// A copy of sixteen bytes that a thread has begun and not waited for.
struct LaterCopy {
  void* to;
  const void* from;
};

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
  struct Barrier* barrier;
};

struct Thread {
  // The first members are those that every switch between threads touches, on one cache line.
  alignas(64) void* stack;
  // Neighbours in the ring of runnable threads.
  Thread *next, *previous;
  int index;
  // Pieces from which loads may still be in flight, and pieces that were written without a fence
  // for the tensor cores.
  Pieces read, written;
  AsyncWork work;
  // Its copies into and out of shared memory that it has not waited for.
  std::vector<LaterCopy> later;
  std::vector<Copy> stores;
};

// A thread that waits for an mbarrier.
struct Sleeper {
  Thread* thread;
  const struct Barrier* barrier;
};

struct CtaBarrier {
  int arrived;
  Thread* waiting[THREADS_MAX];
};

struct Warp {
  int lanes, arrived;
  uint32_t round;
  Thread* waiting[WARP];
  // Words of this round and the previous one: no lane is further behind.
  uint32_t shown[2][WARP][SHOWN];
};

// The eight bytes of an mbarrier.
struct Barrier {
  uint16_t arrivals, missing;
  int32_t bytes : 31;
  uint32_t phase : 1;
};
static_assert(sizeof(Barrier) == 8, "the kernels keep eight bytes for it");

struct Cta {
  const Launch* launch;
  void (*kernel)(const void*);
  void* system_stack;
  // The running thread, and the thread at the current place of the ring.
  Thread *current, *turn;
  // Threads that have not ended; runnable threads; how many of these polled without success since
  // the last event; how often all of them did.
  int live, able, asked, idle;
  uint64_t dice;
  Thread threads[THREADS_MAX];
  Warp warps[THREADS_MAX / WARP];
  Warpgroup warpgroups[THREADS_MAX / WARPGROUP];
  CtaBarrier cta_barriers[BARRIERS];
  std::vector<Copy> copies;
  std::vector<Sleeper> sleepers;
  // Pieces that were copied without a fence for the tensor cores since.
  Pieces copied;
};

// The CTA of this thread of the operating system. Addresses in shared memory are relative to it,
// and multiples of 1024 among them are so in the process too.
alignas(1024) static constinit thread_local Cta* here = nullptr;

inline uint32_t draw() {
  here->dice = here->dice * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(here->dice >> 33);
}

// Saves the callee-saved registers and continues on another stack.
extern "C" __attribute__((visibility("hidden"))) void kilotok_switch(void** from, void* to);
asm(R"(
.text
.hidden kilotok_switch
.globl kilotok_switch
.type kilotok_switch, @function
kilotok_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

inline void go_on(Thread* thread) {
  Thread* from = here->current;
  if (thread == from) return;
  here->current = here->turn = thread;
  kilotok_switch(&from->stack, thread->stack);
}

// Leaves the CTA, whether it is complete or has failed.
[[noreturn]] inline void leave_cta() {
  void* nobody;
  kilotok_switch(&nobody, here->system_stack);
  __builtin_unreachable();
}

[[noreturn]] inline void trap() {
  here->launch->broken->store(true);
  leave_cta();
}

inline void able_again(Thread* thread) {
  if (here->able++ == 0) {
    here->turn = thread->next = thread->previous = thread;
  } else {
    // It runs next, or last.
    Thread* after = draw() & 1 ? here->turn : here->turn->previous;
    thread->previous = after;
    thread->next = after->next;
    after->next->previous = thread;
    after->next = thread;
  }
  here->asked = here->idle = 0;
}

bool deliver();

// After this many rounds without progress the CTA sleeps, each time longer, because other CTAs may
// have much to do.
constexpr int IDLE_MAX = 2;
constexpr long REST_NS = 20000;
constexpr int RESTS_MAX = 50;
// After this many, threads that wait for an mbarrier wake and may check their deadline.
constexpr int ALARM = 256;

// Called when no thread can make progress.
inline void rest() {
  if (here->launch->broken->load(std::memory_order_relaxed)) leave_cta();
  if (deliver()) return;
  here->idle++;
  if (here->idle % ALARM == 0) {
    const int idle = here->idle;
    for (const Sleeper& sleeper : here->sleepers) able_again(sleeper.thread);
    here->sleepers.clear();
    here->idle = idle;
  } else if (here->idle > IDLE_MAX) {
    const timespec rest = {0, REST_NS * std::min(here->idle, RESTS_MAX)};
    nanosleep(&rest, nullptr);
  } else {
    sched_yield();
  }
}

// Removes the current thread from the ring of runnable threads until another one wakes it.
inline void wait() {
  Thread* thread = here->current;
  thread->previous->next = thread->next;
  thread->next->previous = thread->previous;
  here->turn = thread->next;
  here->able--;
  while (here->able == 0) {
    // A deadlock: all threads wait for each other, or for threads that have ended.
    if (here->copies.empty() && here->sleepers.empty()) trap();
    rest();
  }
  go_on(here->turn);
}

// The current thread polled without success.
inline void asked_in_vain() {
  if (++here->asked > here->able) {
    here->asked = 0;
    rest();
  }
  go_on(here->current->next);
}

inline void wake(Thread** waiting, int count) {
  for (int i = 0; i < count; i++) able_again(waiting[i]);
}

// All lanes of a warp have arrived.
inline void end_round(Warp& warp) {
  wake(warp.waiting, warp.arrived);
  warp.arrived = 0;
  warp.round++;
}

inline void end_thread() {
  Warp& warp = here->warps[here->current->index / WARP];
  if (--warp.lanes > 0 && warp.arrived == warp.lanes) end_round(warp);
  if (--here->live == 0) leave_cta();
  wait();
}

using Shown = uint32_t[SHOWN];

// A warp-wide exchange: each lane shows words, and gets those of all lanes after the last lane has
// called `join` on them.
template <class Join>
const Shown* show(const uint32_t* words, int count, Join join) {
  const int index = here->current->index;
  Warp& warp = here->warps[index / WARP];
  Shown* shown = warp.shown[warp.round % 2];
  for (int i = 0; i < count; i++) shown[index % WARP][i] = words[i];
  if (warp.arrived + 1 == warp.lanes) {
    join(shown);
    end_round(warp);
  } else {
    warp.waiting[warp.arrived++] = here->current;
    wait();
  }
  return shown;
}

inline const Shown* show(const uint32_t* words, int count) {
  return show(words, count, [](Shown*) {});
}

inline void sync(int barrier, int count) {
  CtaBarrier& barrier_at = here->cta_barriers[barrier];
  if (barrier_at.arrived + 1 == count) {
    wake(barrier_at.waiting, barrier_at.arrived);
    barrier_at.arrived = 0;
  } else {
    barrier_at.waiting[barrier_at.arrived++] = here->current;
    wait();
  }
}

inline void settle(Barrier& barrier) {
  if (barrier.missing != 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  barrier.phase ^= 1;
  std::vector<Sleeper>& sleepers = here->sleepers;
  for (size_t i = 0; i < sleepers.size();) {
    if (sleepers[i].barrier != &barrier) {
      i++;
      continue;
    }
    able_again(sleepers[i].thread);
    sleepers[i] = sleepers.back();
    sleepers.pop_back();
  }
}

// Whether a phase is complete; may wait for it.
inline bool is_over(const Barrier& barrier, uint32_t parity) {
  if (barrier.phase == parity) {
    here->sleepers.push_back({here->current, &barrier});
    wait();
  }
  return barrier.phase != parity;
}

inline void arrive(Barrier& barrier, int bytes) {
  // More arrivals than expected.
  if (barrier.missing == 0) trap();
  barrier.bytes = barrier.bytes + bytes;
  barrier.missing--;
  settle(barrier);
}

// Marks the piece that contains an address.
inline void note(Pieces& pieces, uintptr_t address) {
  const size_t piece = address / PIECE_BYTES % PIECES;
  pieces[piece / 64] |= uint64_t{1} << piece % 64;
}

// Marks a read of shared memory by the current thread; its fence completes them.
inline void note_read(const void* from) {
  note(here->current->read, reinterpret_cast<uintptr_t>(from));
}
inline void note_write(const void* to) {
  note(here->current->written, reinterpret_cast<uintptr_t>(to));
}
inline void clear_reads() { std::memset(here->current->read, 0, sizeof(Pieces)); }

// The pieces of a run of bytes.
inline void note_run(Pieces& pieces, const void* from, uint32_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(from), end = first + bytes;
  for (uintptr_t at = first / PIECE_BYTES * PIECE_BYTES; at < end; at += PIECE_BYTES)
    note(pieces, at);
}
inline bool meet(const Pieces& one, const Pieces& other) {
  uint64_t both = 0;
  for (size_t k = 0; k < PIECES / 64; k++) both |= one[k] & other[k];
  return both != 0;
}

// A thread that has marked one of these pieces, or -1. Pieces are few, so most of their words are
// empty and need no comparison.
inline int marked_by(const Pieces& pieces, Pieces Thread::*marks) {
  for (size_t k = 0; k < PIECES / 64; k++) {
    if (pieces[k] == 0) continue;
    for (int i = 0; i < here->launch->threads; i++)
      if (pieces[k] & (here->threads[i].*marks)[k]) return i;
  }
  return -1;
}

// Bulk copies overtake loads, so no thread may have loads in flight from their destination.
inline void check_reads(const void* to, uint32_t bytes) {
  Pieces written = {};
  note_run(written, to, bytes);
  const int thread = marked_by(written, &Thread::read);
  if (thread < 0) return;
  std::fprintf(stderr, "thread %d read what a copy overwrites, and had no fence since\n", thread);
  trap();
}

// They overtake stores too, so no thread may have stores in flight to their source.
inline void check_written(const void* from, uint32_t bytes) {
  Pieces read = {};
  note_run(read, from, bytes);
  const int thread = marked_by(read, &Thread::written);
  if (thread < 0) return;
  std::fprintf(stderr, "thread %d wrote what a copy reads, and had no fence since\n", thread);
  trap();
}

// Completes some of the bulk copies in flight. Returns whether there were any.
inline bool deliver() {
  std::vector<Copy>& copies = here->copies;
  if (copies.empty()) return false;
  for (uint32_t some = 1 + draw() % copies.size(); some > 0; some--) {
    std::swap(copies[draw() % copies.size()], copies.back());
    const Copy copy = copies.back();
    copies.pop_back();
    std::memcpy(copy.to, copy.from, copy.bytes);
    copy.barrier->bytes = copy.barrier->bytes - static_cast<int>(copy.bytes);
    settle(*copy.barrier);
  }
  return true;
}

inline void begin_thread() {
  here->kernel(here->launch->argument);
  end_thread();
}

inline void run(const Launch& launch, void (*kernel)(const void*)) {
  static thread_local const auto whole = std::make_unique<Cta>();
  here = whole.get();
  here->launch = &launch;
  here->kernel = kernel;
  here->live = here->able = launch.threads;
  here->asked = here->idle = 0;
  here->dice = launch.seed;
  here->copies.clear();
  here->sleepers.clear();
  std::memset(here->copied, 0, sizeof(Pieces));
  for (CtaBarrier& barrier_at : here->cta_barriers) barrier_at.arrived = 0;
  std::memset(here->warpgroups, 0, sizeof(here->warpgroups));
  for (int i = 0; i < launch.threads; i += WARP) {
    Warp& warp = here->warps[i / WARP];
    warp.lanes = std::min(WARP, launch.threads - i);
    warp.arrived = 0;
  }
  for (int i = 0; i < launch.threads; i++) {
    Thread& thread = here->threads[i];
    thread.index = i;
    std::memset(thread.read, 0, sizeof(Pieces));
    std::memset(thread.written, 0, sizeof(Pieces));
    thread.work.clear();
    thread.later.clear();
    thread.stores.clear();
    thread.next = &here->threads[(i + 1) % launch.threads];
    thread.previous = &here->threads[(i + launch.threads - 1) % launch.threads];
    void** top = reinterpret_cast<void**>(launch.stacks + (i + 1) * STACK_BYTES);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&begin_thread);
    thread.stack = top - 6;
  }
  here->current = here->turn = &here->threads[draw() % launch.threads];
  kilotok_switch(&here->system_stack, here->current->stack);
}

template <class Argument>
constexpr size_t argument_bytes(void (*)(Argument)) {
  return sizeof(Argument);
}

template <class Argument>
void call(void (*kernel)(Argument), const void* argument) {
  kernel(*static_cast<const std::remove_const_t<Argument>*>(argument));
}

struct ThreadIndex {
  operator int() const { return here->current->index; }
};
struct CtaIndex {
  operator int() const { return here->launch->cta; }
};
struct ThreadCount {
  operator int() const { return here->launch->threads; }
};
struct CtaCount {
  operator int() const { return here->launch->grid; }
};

template <class T>
T of_lane(T value, int lane) {
  uint32_t words[SHOWN] = {};
  static_assert(sizeof(T) <= sizeof(words), "it fits what lanes show");
  std::memcpy(words, &value, sizeof(T));
  const auto shown = show(words, (sizeof(T) + 3) / 4);
  std::memcpy(&value, shown[lane], sizeof(T));
  return value;
}

template <class Join>
uint32_t of_warp(uint32_t value, Join join) {
  const int lanes = here->warps[here->current->index / WARP].lanes;
  // The last lane joins the values for all.
  return show(&value, 1, [&](Shown* shown) {
    for (int lane = 1; lane < lanes; lane++) shown[0][0] = join(shown[0][0], shown[lane][0]);
  })[0][0];
}

inline int lane() { return here->current->index % WARP; }

}  // namespace emulator

struct { emulator::ThreadIndex x; } static const threadIdx;
struct { emulator::CtaIndex x; } static const blockIdx;
struct { emulator::ThreadCount x; } static const blockDim;
struct { emulator::CtaCount x; } static const gridDim;

inline void __syncthreads() { emulator::sync(0, emulator::here->live); }
inline void __syncwarp() { emulator::show(nullptr, 0); }
template <class T>
T __shfl_sync(uint32_t, T value, int lane) {
  return emulator::of_lane(value, lane % emulator::WARP);
}
template <class T>
T __shfl_xor_sync(uint32_t, T value, int distance) {
  return emulator::of_lane(value, emulator::lane() ^ distance);
}
template <class T>
T __shfl_up_sync(uint32_t, T value, int distance) {
  const int lane = emulator::lane();
  return emulator::of_lane(value, lane < distance ? lane : lane - distance);
}
inline bool __all_sync(uint32_t, bool value) {
  return emulator::of_warp(value, [](uint32_t a, uint32_t b) { return a & b; }) != 0;
}
inline uint32_t __ballot_sync(uint32_t, bool value) {
  const uint32_t bit = uint32_t{value} << emulator::lane();
  return emulator::of_warp(bit, [](uint32_t a, uint32_t b) { return a | b; });
}
inline bool __any_sync(uint32_t, bool value) {
  return emulator::of_warp(value, [](uint32_t a, uint32_t b) { return a | b; }) != 0;
}
inline uint32_t __reduce_min_sync(uint32_t, uint32_t value) {
  return emulator::of_warp(value, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
}
inline uint32_t __reduce_max_sync(uint32_t, uint32_t value) {
  return emulator::of_warp(value, [](uint32_t a, uint32_t b) { return a < b ? b : a; });
}

template <class T>
T atomicAdd(T* to, T value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
template <class T>
T atomicAnd(T* to, T value) { return __atomic_fetch_and(to, value, __ATOMIC_RELAXED); }
template <class T>
T atomicOr(T* to, T value) { return __atomic_fetch_or(to, value, __ATOMIC_RELAXED); }
template <class T>
T atomicExch(T* to, T value) { return __atomic_exchange_n(to, value, __ATOMIC_RELAXED); }
template <class T>
T atomicCAS(T* to, T expected, T value) {
  __atomic_compare_exchange_n(to, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(uint32_t nanoseconds) {
  const uint64_t end = emulator::nanoseconds() + nanoseconds;
  while (emulator::nanoseconds() < end) emulator::asked_in_vain();
}
inline void __trap() { emulator::trap(); }
inline int64_t clock64() { return static_cast<int64_t>(emulator::nanoseconds() * 2); }

inline uint32_t __float_as_uint(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float __uint_as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __uint2float_rn(uint32_t value) { return static_cast<float>(value); }
inline float __ull2float_rn(uint64_t value) { return static_cast<float>(value); }
inline double __ull2double_rn(uint64_t value) { return static_cast<double>(value); }
inline uint64_t __float2ull_rz(float value) { return static_cast<uint64_t>(value); }
inline int __float2int_rz(float value) { return static_cast<int>(value); }
inline float __logf(float value) { return logf(value); }
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31));
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t order) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t chosen = 0;
  for (int i = 0; i < 4; i++)
    chosen |= static_cast<uint32_t>(bytes >> (order >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return chosen;
}
