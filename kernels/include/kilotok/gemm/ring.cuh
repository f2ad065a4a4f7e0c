// The ring buffer of pages in shared memory through which all weights come. Each page has two
// mbarriers, `full` and `empty`. The producer fills pages in the order in which the consumers will
// read them, as far ahead as the ring is long, across phases and grid barriers.
#pragma once

#include "kilotok/cta.cuh"

namespace kilotok {

// Larger pages mean fewer instructions for each byte, and three of these keep the memory busy
// (benches/journal/pass.md). 96 chunks of MXFP4, 48 of FP8 or 24 of BF16 fit one.
constexpr int PAGE_BYTES = 52224;
constexpr int PAGE_COUNT = 3;

struct RingMemory {
  alignas(128) char pages[PAGE_COUNT][PAGE_BYTES];
  alignas(8) uint64_t full[PAGE_COUNT];
  alignas(8) uint64_t empty[PAGE_COUNT];
  // The unit that begins in each page, where that is decided at run time.
  int units[PAGE_COUNT];
};

// The producer's or a consumer warp's position in the ring.
struct Ring {
  uint32_t pages, full, empty, units;
  int stage;
  uint32_t parity;

  __device__ __forceinline__ explicit Ring(RingMemory& memory)
      : pages(ptx::shared_address(memory.pages)),
        full(ptx::shared_address(memory.full)),
        empty(ptx::shared_address(memory.empty)),
        units(ptx::shared_address(memory.units)),
        stage(0),
        parity(0) {}

  // One thread, before any other thread uses the ring.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < PAGE_COUNT; i++) {
      ptx::mbarrier_init(full + 8 * i, 1);
      ptx::mbarrier_init(empty + 8 * i, CONSUMER_WARPS * ptx::WARP_ARRIVALS);
    }
    ptx::mbarrier_init_fence();
  }

  __device__ __forceinline__ void next() {
    if (++stage == PAGE_COUNT) {
      stage = 0;
      parity ^= 1;
    }
  }

  // Producer: the position of the page before.
  __device__ __forceinline__ Ring previous() const {
    Ring before = *this;
    before.stage = stage == 0 ? PAGE_COUNT - 1 : stage - 1;
    before.parity = stage == 0 ? parity ^ 1 : parity;
    return before;
  }
  // Producer: waits until the consumers have released this page.
  __device__ __forceinline__ void wait_released() const {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity);
  }

  // Producer: waits until the next page is free, and announces that it will receive `bytes` bytes
  // of `unit`.
  __device__ __forceinline__ void acquire(uint32_t bytes, int unit = 0) const {
    wait_mbarrier(Waits::FreePage, empty + 8 * stage, parity ^ 1);
    ptx::store_shared_word(units + 4 * stage, unit);
    ptx::mbarrier_expect(full + 8 * stage, bytes);
  }

  // Producer: begins a bulk copy into a part of the acquired page: of weights, which one CTA reads,
  // or of an operand, which all CTAs read.
  __device__ __forceinline__ void fetch(const void* from, uint32_t offset, uint32_t bytes) const {
    ptx::bulk_copy_once(page() + offset, from, bytes, full + 8 * stage);
  }
  __device__ __forceinline__ void fetch_operand(const void* from, uint32_t offset,
                                                uint32_t bytes) const {
    fetch_to(page() + offset, from, bytes);
  }
  // The same to another place in shared memory, which belongs to the page.
  __device__ __forceinline__ void fetch_to(uint32_t to, const void* from, uint32_t bytes) const {
    ptx::bulk_copy(to, from, bytes, full + 8 * stage);
  }

  __device__ __forceinline__ uint32_t page() const { return pages + stage * PAGE_BYTES; }

  // Consumers: waits until the next page is full, and returns its address.
  __device__ __forceinline__ uint32_t wait() const {
    wait_mbarrier(Waits::Page, full + 8 * stage, parity);
    return page();
  }

  // Consumers: waits until the next page is full, and returns its unit.
  __device__ __forceinline__ int wait_unit() const {
    wait();
    return ptx::load_shared_word(units + 4 * stage);
  }

  // Consumers: the warp has read the page and advances to the next one.
  __device__ __forceinline__ void release(int lane) {
    ptx::reads_before_copies();
    ptx::mbarrier_arrive_warp(empty + 8 * stage, lane);
    next();
  }
};

}  // namespace kilotok
