// Mbarriers, and bulk copies (TMA) into shared memory. An mbarrier is named by its shared-memory
// address: computing that from a variable each time costs an instruction and its latency.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Ends an mbarrier's use: its memory may hold something else.
__device__ __forceinline__ void mbarrier_invalidate(uint32_t barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Makes initialised mbarriers visible to the copy engine.
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

// How many threads of a synchronised group arrive at an mbarrier: one. The racecheck of
// compute-sanitizer does not see that the other threads' accesses come before that arrival, so in
// kernels that are compiled for it all of them arrive.
__host__ __device__ constexpr int arrivals(int threads) {
#ifdef KILOTOK_RACECHECK
  return threads;
#else
  return 1;
#endif
}
constexpr int WARP_ARRIVALS = arrivals(32);

// Arrival of THREADS threads that have just synchronised: the first of them arrives on behalf of
// all.
template <int THREADS>
__device__ __forceinline__ void mbarrier_arrive_met(uint32_t barrier, int index) {
  if (arrivals(THREADS) == THREADS || index == 0) mbarrier_arrive(barrier);
}

// Arrival of a warp, after the accesses of all its lanes.
__device__ __forceinline__ void mbarrier_arrive_warp(uint32_t barrier, int lane) {
  __syncwarp();
  mbarrier_arrive_met<32>(barrier, lane);
}

// Whether the phase with this parity is complete. The hardware may suspend the thread for a while
// before it answers no.
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

// Begins a copy of sixteen bytes into shared memory. It is complete after `wait_for_copies` of the
// same thread.
__device__ __forceinline__ void copy_later(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// The copies since the last commit become a group. `wait_for_groups` waits until at most PENDING of
// this thread's groups are in flight.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Arrives at an mbarrier once all copies are complete that this thread has begun; it counts as one
// of the arrivals that the mbarrier was initialised with. Before products read the copied bytes, a
// thread that has waited for the mbarrier must execute a `wgmma_writes_fence`. In this thread the
// fence would wait for all copies.
__device__ __forceinline__ void mbarrier_arrive_copied(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Completes this thread's loads from shared memory before it arrives at an mbarrier. Without it
// they may still be in flight, and bulk copies that are begun after the mbarrier overtake them.
__device__ __forceinline__ void reads_before_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders ordinary writes that this thread has observed before the bulk copies that it begins.
__device__ __forceinline__ void other_proxy_fence() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// Bulk copy of `bytes`, a multiple of 16 between addresses that are multiples of 16, which
// completes that many bytes of the mbarrier's transaction count. `bulk_copy_once` is for data that
// is read once, and marks it to be evicted from L2 first; `bulk_copy` is for data that several CTAs
// read.
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

// Bulk copy out of shared memory. The threads that wrote there must have executed
// `reads_before_copies`, then a barrier.
__device__ __forceinline__ void bulk_store(void* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until this thread's bulk copies have read shared memory, or are complete.
__device__ __forceinline__ void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

}  // namespace kilotok::ptx
