// Barriers in shared memory and bulk copies into it. A barrier is named by its shared-memory
// address: taking that from a variable each time costs an instruction and its latency.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// How many arrive for threads that have met. The racecheck of compute-sanitizer does not know that
// what the others did before comes before one thread's arrival; made for it, kernels have all of
// them arrive.
__host__ __device__ constexpr int arrivals(int threads) {
#ifdef KILOTOK_RACECHECK
  return threads;
#else
  return 1;
#endif
}
constexpr int WARP_ARRIVALS = arrivals(32);

// Of so many threads that have met: the first arrives, with all that they did.
template <int THREADS>
__device__ __forceinline__ void mbarrier_arrive_met(uint32_t barrier, int index) {
  if (arrivals(THREADS) == THREADS || index == 0) mbarrier_arrive(barrier);
}

// The warp arrives, with all that its lanes did.
__device__ __forceinline__ void mbarrier_arrive_warp(uint32_t barrier, int lane) {
  __syncwarp();
  mbarrier_arrive_met<32>(barrier, lane);
}

// Whether the phase of this parity is over. Sleeps a little in hardware before it says no.
__device__ __forceinline__ bool mbarrier_try(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Copies sixteen bytes into shared memory, some time before `wait_for_copies` of the same thread.
__device__ __forceinline__ void copy_later(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Has this thread's loads of shared memory done before it arrives at a barrier. Otherwise they may
// still be under way then, and bulk copies that are begun behind the barrier overtake them.
__device__ __forceinline__ void reads_before_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// What this thread has seen of ordinary writes, its bulk copies see too.
__device__ __forceinline__ void other_proxy_fence() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// Copies bytes, a multiple of 16 between addresses that are, and arrives with their number. What
// others want too stays in L2; what is read once leaves it first.
__device__ __forceinline__ void bulk_copy_once(uint32_t to, const void* from, uint32_t bytes,
                                               uint32_t barrier) {
  uint64_t once;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(once)
      : "memory");
}

__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

}  // namespace kilotok::ptx
