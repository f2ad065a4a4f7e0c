// Threads: their index, barriers, exit, and how to keep the compiler from holding values in
// registers.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

// Whether a CTA's number is that of its SM. In a launch with one CTA on each SM the assignment of
// `blockIdx` to SMs varies with what ran before, and which CTAs share a GPC matters for speed
// (benches/journal).
#ifdef KILOTOK_CTA_PER_SM
constexpr bool CTA_PER_SM = true;
#else
constexpr bool CTA_PER_SM = false;
#endif

// The CTA's number. It is read again each time: a register for it would be spilled to local memory,
// which is slower. `kernels/split` replaces the SM's register in this assembly text.
__device__ __forceinline__ int cta_index() {
  int index;
  if constexpr (CTA_PER_SM)
    asm volatile("mov.u32 %0, %%smid;" : "=r"(index));
  else
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}

// A barrier of COUNT threads of the CTA.
template <int COUNT>
__device__ __forceinline__ void sync_threads() {
  asm volatile("bar.sync 1, %0;" ::"n"(COUNT) : "memory");
}

// A barrier of COUNT threads, the same for each number below 14.
template <int COUNT>
__device__ __forceinline__ void sync_threads(int number) {
  asm volatile("bar.sync %0, %1;" ::"r"(number + 2), "n"(COUNT) : "memory");
}

// A barrier of a warpgroup's 128 threads; no two warpgroups have the same number.
__device__ __forceinline__ void sync_warpgroup(int number) {
  asm volatile("bar.sync %0, 128;" ::"r"(number + 2) : "memory");
}

// Returns the value, but hides its origin from the compiler.
__device__ __forceinline__ int opaque(int value) {
  int same;
  asm volatile("mov.u32 %0, %1;" : "=r"(same) : "r"(value));
  return same;
}

// Hides the value's origin in place, without an instruction.
__device__ __forceinline__ void make_opaque(int& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ void make_opaque(float& value) { asm volatile("" : "+f"(value)); }

// Programmatic dependent launch: CTAs of the next launch may begin where CTAs of this one have
// ended.
__device__ __forceinline__ void allow_next_launch() {
  asm volatile("griddepcontrol.launch_dependents;");
}
// Waits until the launch before has ended and its stores are visible, since this one may have begun
// early.
__device__ __forceinline__ void wait_for_last_launch() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Ends this thread.
__device__ __forceinline__ void exit() { asm volatile("exit;"); }

}  // namespace kilotok::ptx
