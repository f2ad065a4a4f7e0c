// Threads: where they are, how they meet, how they end, and what keeps values where they are
// wanted.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

// Whether CTAs are numbered as their multiprocessors are: where a launch has one on each, which
// comes to which differs with what ran before, and who sits beside whom matters (benches/results).
#ifdef KILOTOK_CTA_PER_SM
constexpr bool CTA_PER_SM = true;
#else
constexpr bool CTA_PER_SM = false;
#endif

// Which CTA this is. Asked for anew each time: a register for it would be spilled, and then be
// further away. Of this text `kernels/split` changes the multiprocessor's register.
__device__ __forceinline__ int cta_index() {
  int index;
  if constexpr (CTA_PER_SM)
    asm volatile("mov.u32 %0, %%smid;" : "=r"(index));
  else
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

// COUNT threads of a CTA meet, and no others of it.
template <int COUNT>
__device__ __forceinline__ void sync_threads() {
  asm volatile("bar.sync 1, %0;" ::"n"(COUNT) : "memory");
}

// A value of which the compiler no longer knows what it was made of.
__device__ __forceinline__ int opaque(int value) {
  int same;
  asm volatile("mov.u32 %0, %1;" : "=r"(same) : "r"(value));
  return same;
}

// The same in place, without an instruction.
__device__ __forceinline__ void make_opaque(int& value) { asm volatile("" : "+r"(value)); }

// Ends this thread.
__device__ __forceinline__ void exit() { asm volatile("exit;"); }

}  // namespace kilotok::ptx
