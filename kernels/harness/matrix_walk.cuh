// The GEMM of the narrow pass with up to TOKENS_MAX tokens, as a kernel of its own.
#pragma once

#include "kilotok/phase/add_rms_norm.cuh"
#include "weights.h"

namespace bench {

using namespace kilotok;

// The work of one launch: multiplies copies of a matrix, one after the other.
struct Work {
  uint64_t weights, operand, barrier, products, fault;
  uint32_t wait_max_ms;
  int copies, tiles;
};

struct SharedMemory {
  RingMemory ring;
  SumMemory sums;
};

enum class Kind { Multiply, ReadOnly };

// Stores the products as `[tokens][rows]`.
template <class M>
struct Store {
  static constexpr int STRIDE = M::UNITS * 16 * M::ROW_TILES;
  float* products;

  __device__ __forceinline__ void operator()(int unit, int row_tile, int tile, int lane,
                                             const float4& values) const {
    const int row = (unit * M::ROW_TILES + row_tile) * 16 + lane / 4;
    float* to = products + (tile * TILE_TOKENS + lane % 4 * 2) * STRIDE + row;
    to[0] = values.x;
    to[STRIDE] = values.y;
    to[8] = values.z;
    to[STRIDE + 8] = values.w;
  }
};

// Takes every page without reading it: the speed of the ring alone.
template <class M>
__device__ __forceinline__ void read_pages(const Cta& cta, Ring& ring, int first) {
  for (int unit = first; unit < M::UNITS; unit += M::CTAS)
    for (int step = 0; step < M::STEPS; step += M::PAGE_STEPS) {
      ring.wait();
      ring.release(cta.lane());
    }
}

template <class M, Kind KIND>
__global__ void __launch_bounds__(THREADS, 1) walk(const Memory memory, const Work work) {
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(asked_memory());
  Cta cta(memory, 0);
  Ring ring(shared.ring);
  Sums sums(shared.sums);
  if (threadIdx.x == 0) {
    wait_context = WaitContext::begin(work.fault, work.wait_max_ms, 0);
    ring.init();
    sums.init();
  }
  __syncthreads();
  const Store<M> store = {at<float>(work.products)};
  // Each copy begins with another CTA, so that all CTAs get the same number of units.
  const auto first = [&](int copy) { return (cta.index() + copy * (M::UNITS % GRID)) % GRID; };
  if (threadIdx.x < CONSUMERS) {
    ptx::more_registers<CONSUMER_REGISTERS>();
    for (int copy = 0; copy < work.copies; copy++) {
      if constexpr (KIND == Kind::ReadOnly) {
        read_pages<M>(cta, ring, first(copy));
      } else {
        // As after a grid barrier, no part of the operand is in L1.
        if (cta.thread() == 0) ptx::load_acquire(at<const uint32_t>(work.barrier));
        cta.sync();
        const EveryToken<TILES_MAX> every = {work.tiles * TILE_TOKENS};
        if (work.tiles <= 1)
          gemm<M, 1>(cta, ring, sums, work.operand, M::COLUMNS_PADDED * 2, first(copy), every,
                         [] {}, Nothing{}, store);
        else
          gemm<M, TILES_MAX>(cta, ring, sums, work.operand, M::COLUMNS_PADDED * 2, first(copy),
                                 every, [] {}, Nothing{}, store);
      }
    }
    return;
  }
  ptx::fewer_registers<HELPER_REGISTERS>();
  if (threadIdx.x >= CONSUMERS + 32) {
    for (int copy = 0; KIND == Kind::Multiply && copy < work.copies; copy++)
      epilogue<M>(cta, sums, first(copy), work.tiles, store);
  } else if (threadIdx.x == CONSUMERS) {
    for (int copy = 0; copy < work.copies; copy++)
      if (work.tiles <= 1)
        produce<M, 1>(ring, work.weights + copy * M::BYTES, first(copy));
      else
        produce<M, TILES_MAX>(ring, work.weights + copy * M::BYTES, first(copy));
  }
}

constexpr int RUNS = 5;

template <class M, Kind KIND>
float best_ms(const Work& work, int runs) {
  Memory memory = {};
  void* arguments[] = {&memory, const_cast<Work*>(&work)};
  float best = INFINITY;
  for (int run = 0; run < runs; run++)
    best = std::min(best, launch_ms(walk<M, KIND>, dim3(GRID), THREADS, sizeof(SharedMemory),
                                    arguments));
  return best;
}

template <class Kernel>
void describe(const char* name, Kernel* kernel) {
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, kernel));
  printf("%s: %d registers, %zu bytes of spills\n", name, attributes.numRegs,
         attributes.localSizeBytes);
}

}  // namespace bench
