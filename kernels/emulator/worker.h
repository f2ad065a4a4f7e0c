// Threads of the operating system that run streams and CTAs.
#pragma once

#include <sys/mman.h>

#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "launch.h"

namespace emulator {

// A thread with a queue of work.
class Worker {
 public:
  ~Worker() {
    then([this] { ended_ = true; });
    thread_.join();
  }

  void then(std::function<void()> work) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(work));
    }
    changed_.notify_all();
  }

  bool idle() {
    std::lock_guard lock(mutex_);
    return queue_.empty();
  }

  void finish() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty(); });
  }

 private:
  void run() {
    while (!ended_) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !queue_.empty(); });
      const auto& work = queue_.front();
      lock.unlock();
      work();
      lock.lock();
      queue_.pop_front();
      lock.unlock();
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool ended_ = false;
  std::thread thread_{[this] { run(); }};
};

// A thread that runs CTAs one after another, with memory for the stacks of a CTA's threads.
struct CtaThread {
  char* stacks;
  Worker worker;

  CtaThread() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* room =
        mmap(nullptr, STACK_BYTES * THREADS_MAX, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (room == MAP_FAILED) std::abort();
    stacks = static_cast<char*>(room);
  }
  ~CtaThread() { munmap(stacks, STACK_BYTES * THREADS_MAX); }
};

}  // namespace emulator
