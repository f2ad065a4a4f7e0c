// Copies of sixteen bytes into shared memory that a thread begins and does not wait for at once:
// for rows that do not lie one after the other, which bulk copies would take one by one.
#pragma once

#include "kilotok/ptx/async.cuh"

namespace kilotok::ptx {

__device__ __forceinline__ void cp_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// What this thread began since its last commit is a group.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace kilotok::ptx
