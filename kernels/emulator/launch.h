// What the emulated driver tells a CTA of a kernel.
#pragma once

#include <time.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace emulator {

// For one thread of a CTA; not a power of two, or all would want the same lines of the cache.
constexpr size_t STACK_BYTES = (64 << 10) + 576;
constexpr int THREADS_MAX = 1024;
// Shared memory that one CTA can have.
constexpr size_t SHARED_MAX = 227 << 10;

struct Launch {
  int cta, grid, threads;
  const void* argument;
  // Room for the stacks of all threads.
  char* stacks;
  uint64_t seed;
  // Whether a CTA of the launch gave up, so that all do.
  std::atomic<bool>* broken;
};

// By how much the GPU's clock goes slower than the system's, EMULATED_SLOWNESS. What takes a GPU
// microseconds takes milliseconds here; waits that are to end must not end for that.
constexpr uint64_t SLOWNESS = 50;

inline uint64_t slowness() {
  const char* text = std::getenv("EMULATED_SLOWNESS");
  return text ? std::strtoull(text, nullptr, 10) : SLOWNESS;
}

// The GPU's clock.
inline uint64_t nanoseconds() {
  static const uint64_t slow = slowness();
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec)) /
         slow;
}

}  // namespace emulator
