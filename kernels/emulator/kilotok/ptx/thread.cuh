// Threads: their index, barriers, exit.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

#ifdef KILOTOK_CTA_PER_SM
constexpr bool CTA_PER_SM = true;
#else
constexpr bool CTA_PER_SM = false;
#endif

// An SM's number differs from the CTA's number in the launch.
inline int cta_index() {
  const int index = blockIdx.x;
  return CTA_PER_SM ? gridDim.x - 1 - index : index;
}
template <int COUNT>
void sync_threads() {
  emulator::sync(1, COUNT);
}
template <int COUNT>
void sync_threads(int number) {
  emulator::sync(number + 2, COUNT);
}
inline void sync_warpgroup(int number) { emulator::sync(number + 2, emulator::WARPGROUP); }
inline int opaque(int value) { return value; }
inline void make_opaque(int&) {}
inline void make_opaque(float&) {}
// A launch begins when the one before has ended.
inline void allow_next_launch() {}
inline void wait_for_last_launch() {}
inline void exit() { emulator::end_thread(); }

}  // namespace kilotok::ptx
