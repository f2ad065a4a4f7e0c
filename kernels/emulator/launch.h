// What the emulated driver passes to a CTA of a kernel.
#pragma once

#include <time.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace emulator {

// The stack of one thread of a CTA. Not a power of two, or the stacks of all threads would compete
// for the same cache lines.
constexpr size_t STACK_BYTES = (64 << 10) + 576;
constexpr int THREADS_MAX = 1024;
// The most shared memory of a CTA.
constexpr size_t SHARED_MAX = 227 << 10;

struct Launch {
  int cta, grid, threads;
  const void* argument;
  // Memory for the stacks of all threads.
  char* stacks;
  uint64_t seed;
  // Set when a CTA of the launch has failed, so that all stop.
  std::atomic<bool>* broken;
};

// The factor by which the GPU's clock is slower than the system's, EMULATED_SLOWNESS. What takes a
// GPU microseconds takes milliseconds here, and must not run into the kernels' timeouts.
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
