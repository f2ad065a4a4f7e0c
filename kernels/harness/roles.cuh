// A phase alone, with all its warp roles: a kernel sets up a CTA as the step's kernels do, and
// dispatches each warp to its role.
#pragma once

#include "bench.h"
#include "step/step.cuh"

namespace bench {

using namespace kilotok;

template <class Roles>
__global__ void __launch_bounds__(THREADS, 1)
    roles(const __grid_constant__ Memory memory,
          const __grid_constant__ typename Roles::Work work) {
  set_up(memory);
  Warp warp;
  if constexpr (requires { Roles::begin(warp); }) {
    Roles::begin(warp);
    __syncthreads();
  }
  if (threadIdx.x < CONSUMERS) {
    ptx::more_registers<CONSUMER_REGISTERS>();
    Roles::consume(warp, work);
  } else {
    ptx::fewer_registers<HELPER_REGISTERS>();
    if (threadIdx.x >= CONSUMERS + 32)
      Roles::epilogue(warp, work);
    else if (threadIdx.x == CONSUMERS)
      Roles::produce(warp, work);
  }
}

// What every phase needs: a batch of `token_count` tokens, counters, and a fault record.
inline Memory memory_of_batch(Buffers& buffers, int token_count) {
  Memory memory = {};
  memory.batch = buffers.put(
      std::vector<Batch>{{static_cast<uint32_t>(token_count), 1, 0, 0}});
  memory.tokens = buffers.put(std::vector<BatchToken>(TOKENS_MAX));
  memory.rows = buffers.put(std::vector<BatchRow>(TOKENS_MAX));
  memory.barrier = buffers.take(COUNTERS * COUNTER_BYTES);
  memory.fault = fault_address();
  memory.wait_max_ms = wait_max_ms();
  return memory;
}

template <class Roles>
float roles_ms(const Memory& memory, const typename Roles::Work& work) {
  CHECK(cudaMemset(at<void>(memory.barrier), 0, COUNTERS * COUNTER_BYTES));
  void* arguments[] = {const_cast<Memory*>(&memory),
                       const_cast<typename Roles::Work*>(&work)};
  return launch_ms(roles<Roles>, dim3(GRID), THREADS, sizeof(Shared), arguments);
}

// Bytes of all copies of a matrix, more than the caches hold, so that each repeat reads from
// memory.
constexpr size_t BEYOND_CACHES = size_t{1} << 28;

}  // namespace bench
