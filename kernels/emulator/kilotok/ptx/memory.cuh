// Loads and stores with an explicit scope. The CPU's caches are coherent, so only the order
// matters.
#pragma once

#include <emmintrin.h>

#include "kilotok/ptx/async.cuh"

namespace kilotok::ptx {

inline uint32_t load_acquire(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void add_release(uint32_t* p, uint32_t value) {
  __atomic_fetch_add(p, value, __ATOMIC_RELEASE);
}
inline uint32_t add_relaxed(uint32_t* p, uint32_t value) {
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
inline uint32_t load_acquire_system(const uint32_t* p) { return load_acquire(p); }
inline void store_release_system(uint32_t* p, uint32_t value) {
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

// One atomic access.
inline uint4 load_l2(const void* p) {
  uint4 v;
  _mm_store_si128(reinterpret_cast<__m128i*>(&v),
                  _mm_load_si128(static_cast<const __m128i*>(p)));
  return v;
}
inline uint4 load_cached(const void* p) { return load_l2(p); }
inline float load_l2(const float* p) { return *static_cast<const volatile float*>(p); }
inline uint32_t load_l2_word(const void* p) { return *static_cast<const volatile uint32_t*>(p); }
inline uint2 load_l2_pair(const void* p) { return *static_cast<const uint2*>(p); }
inline uint64_t load_l2(const uint64_t* p) { return *static_cast<const volatile uint64_t*>(p); }
inline void store_l2(uint32_t* p, uint32_t v) { *static_cast<volatile uint32_t*>(p) = v; }
inline void store_l2(uint16_t* p, uint16_t v) { *static_cast<volatile uint16_t*>(p) = v; }
inline void store_l2_pair(void* p, const uint2& v) {
  *static_cast<volatile uint64_t*>(p) = v.x | static_cast<uint64_t>(v.y) << 32;
}
inline void store_system(void* p, const uint4& v) {
  _mm_store_si128(static_cast<__m128i*>(p),
                  _mm_load_si128(reinterpret_cast<const __m128i*>(&v)));
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
inline void store_system_pair(void* p, const uint2& v) {
  *static_cast<uint2*>(p) = v;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
inline void store_l2(void* p, const uint4& v) { store_system(p, v); }
inline uint4 load_system(const void* p) {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  return load_l2(p);
}
inline uint4 load_weights(const void* p) { return load_l2(p); }
inline uint32_t load_weights_word(const void* p) { return *static_cast<const uint32_t*>(p); }
inline void prefetch_l2(const void*) {}

inline uint4 load_shared(uint32_t address) {
  const void* from = shared<const void>(address);
  emulator::note_read(from);
  return load_l2(from);
}
inline uint32_t load_shared_word(uint32_t address) {
  const uint32_t* from = shared<const uint32_t>(address);
  emulator::note_read(from);
  return *from;
}
inline void store_shared_word(uint32_t address, uint32_t value) {
  uint32_t* to = shared<uint32_t>(address);
  emulator::note_write(to);
  *to = value;
}

inline void store_shared(uint32_t address, const uint4& v) {
  uint4* to = shared<uint4>(address);
  emulator::note_write(to);
  *to = v;
}
inline uint4 load_matrices(uint32_t address) {
  emulator::note_read(shared<const void>(address));
  const emulator::Shown* shown = emulator::show(&address, 1);
  const int lane = emulator::lane();
  uint32_t words[4];
  for (int matrix = 0; matrix < 4; matrix++)
    words[matrix] = shared<const uint32_t>(shown[matrix * 8 + lane / 4][0])[lane % 4];
  return {words[0], words[1], words[2], words[3]};
}
inline uint4 load_turned(uint32_t address) {
  emulator::note_read(shared<const void>(address));
  const emulator::Shown* shown = emulator::show(&address, 1);
  const int lane = emulator::lane();
  uint32_t words[4];
  for (int matrix = 0; matrix < 4; matrix++) {
    const auto value = [&](int row) {
      return uint32_t{shared<const uint16_t>(shown[matrix * 8 + row][0])[lane / 4]};
    };
    words[matrix] = value(lane % 4 * 2) | value(lane % 4 * 2 + 1) << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

template <int COUNT>
void more_registers() {}
template <int COUNT>
void fewer_registers() {}

// Polls read the clock, so this counts as a poll without success.
inline uint32_t kilocycles() {
  emulator::asked_in_vain();
  return static_cast<uint32_t>(emulator::nanoseconds() * 2 >> 10);
}
inline uint32_t nanoseconds() { return static_cast<uint32_t>(emulator::nanoseconds()); }

}  // namespace kilotok::ptx
