// Threads: where they are, how they meet, how they end.
#pragma once

#include "kilotok/abi.h"

namespace kilotok::ptx {

inline int cta_index() { return blockIdx.x; }
template <int COUNT>
void sync_threads() {
  emulator::meet(1, COUNT);
}
inline int opaque(int value) { return value; }
inline void forget(int&) {}
inline void exit() { emulator::end_thread(); }

}  // namespace kilotok::ptx
