// Copies of sixteen bytes into shared memory, which come when the thread waits for them.
#pragma once

#include "kilotok/ptx/async.cuh"

namespace kilotok::ptx {

inline void cp_async(uint32_t to, const void* from) {
  char* at = shared<char>(to);
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulator::trap();
  emulator::here->current->work.copies.push_back({at, from});
}

inline void cp_async_commit() {
  emulator::AsyncWork& work = emulator::here->current->work;
  work.copy_groups.push_back(std::move(work.copies));
  work.copies.clear();
}

template <int PENDING>
void cp_async_wait() {
  emulator::Thread& thread = *emulator::here->current;
  auto& groups = thread.work.copy_groups;
  while (groups.size() > PENDING) {
    for (const emulator::Copy16& copy : groups.front()) {
      std::memcpy(copy.to, copy.from, 16);
      emulator::note(thread.written, reinterpret_cast<uintptr_t>(copy.to));
    }
    groups.erase(groups.begin());
  }
}

}  // namespace kilotok::ptx
