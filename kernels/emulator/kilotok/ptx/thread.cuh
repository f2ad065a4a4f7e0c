// Threads: where they are, how they meet, how they end.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

// Where a multiprocessor's number counts, another one than the launch's.
inline int cta_index() {
#ifdef KILOTOK_CTA_PER_SM
  return gridDim.x - 1 - blockIdx.x;
#else
  return blockIdx.x;
#endif
}
template <int COUNT>
void sync_threads() {
  emulator::meet(1, COUNT);
}
inline int opaque(int value) { return value; }
inline void forget(int&) {}
inline void exit() { emulator::end_thread(); }

}  // namespace kilotok::ptx
