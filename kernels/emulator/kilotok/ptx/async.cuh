// Mbarriers and bulk copies into shared memory, by means of cta.h.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

// Shared memory is thread-local memory here, and its parts lie within 2^32 bytes.
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) -
                               reinterpret_cast<const char*>(&emulator::here));
}
template <class T>
T* shared(uint32_t address) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(&emulator::here) +
                              static_cast<int32_t>(address));
}
inline emulator::Barrier& barrier_at(uint32_t address) {
  return *shared<emulator::Barrier>(address);
}

inline void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  const uint16_t count = static_cast<uint16_t>(arrivals);
  barrier_at(barrier) = {count, count, 0, 0};
}
inline void mbarrier_invalidate(uint32_t) {}
inline void mbarrier_init_fence() {}
inline void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  emulator::arrive(barrier_at(barrier), static_cast<int>(bytes));
}
inline void mbarrier_arrive(uint32_t barrier) { emulator::arrive(barrier_at(barrier), 0); }

constexpr int arrivals(int) { return 1; }
constexpr int WARP_ARRIVALS = arrivals(32);
template <int THREADS>
inline void mbarrier_arrive_met(uint32_t barrier, int index) {
  if (index == 0) mbarrier_arrive(barrier);
}
inline void mbarrier_arrive_warp(uint32_t barrier, int lane) {
  __syncwarp();
  mbarrier_arrive_met<32>(barrier, lane);
}

inline bool mbarrier_try(uint32_t barrier, uint32_t parity) {
  return emulator::is_over(barrier_at(barrier), parity);
}

inline void copy_later(uint32_t to, const void* from) {
  emulator::here->current->later.push_back({shared<char>(to), from});
}
// Copies of sixteen bytes take effect when their thread waits for them, or arrives.
inline void wait_for_copies() {
  for (const emulator::LaterCopy& copy : emulator::here->current->later) {
    std::memcpy(copy.to, copy.from, 16);
    emulator::note(emulator::here->copied, reinterpret_cast<uintptr_t>(copy.to));
  }
  emulator::here->current->later.clear();
}
inline void mbarrier_arrive_copied(uint32_t barrier) {
  wait_for_copies();
  mbarrier_arrive(barrier);
}
inline void reads_before_copies() {
  emulator::clear_reads();
  std::memset(emulator::here->current->written, 0, sizeof(emulator::Pieces));
}
inline void commit_copies() {}
template <int PENDING>
void wait_for_groups() {
  wait_for_copies();
}
inline void other_proxy_fence() {}

inline void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  // The copy engine rejects these.
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) emulator::trap();
  emulator::check_reads(shared<char>(to), bytes);
  emulator::here->copies.push_back({shared<char>(to), from, bytes, &barrier_at(barrier)});
}
inline void bulk_copy_once(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  bulk_copy(to, from, bytes, barrier);
}

// It reads when its thread waits, as late as it may.
inline void bulk_store(void* to, uint32_t from, uint32_t bytes) {
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0) emulator::trap();
  emulator::check_written(shared<char>(from), bytes);
  emulator::here->current->stores.push_back({to, shared<char>(from), bytes, nullptr});
}
inline void wait_for_store_reads() {
  for (const emulator::Copy& copy : emulator::here->current->stores)
    std::memcpy(copy.to, copy.from, copy.bytes);
  emulator::here->current->stores.clear();
}
inline void wait_for_stores() { wait_for_store_reads(); }

}  // namespace kilotok::ptx
