// The GEMMs of the wide pass with a short epilogue: those whose products are added to the stream, a
// dense network's, and the fusion of the drafter's taps.
#pragma once

#include "kilotok/phase/activation.cuh"
#include "kilotok/phase/dense.cuh"
#include "kilotok/wide/gemm.cuh"

namespace kilotok::wide {

struct GemmMemory {
  // The weights, and the operand, with room for `capacity` tokens.
  uint64_t weights, operand;
  // F32 `[capacity][HIDDEN]`: products that are added to the stream.
  uint64_t part;
  // For gate and up: 1 / rms, F32 `[capacity]`, and the inner operand.
  uint64_t inverse_rms, inner;
  int count, capacity;
};

// Called by all threads of all CTAs, GEMM_THREADS each: multiplies a matrix with all tokens.
template <class M, class Use>
__device__ __forceinline__ void multiply_all(GemmShared& shared, const GemmMemory& memory,
                                             Use use) {
  gemm<M>(shared, at<const char>(memory.weights),
          {at<const char>(memory.operand), memory.capacity}, memory.count,
          [&](int row_tile, int token, int, const float4& values) {
            use(row_tile, token, static_cast<int>(threadIdx.x) % 32, values);
          },
          [](const GemmWork<M>&, int) {});
}

// Stores the products as columns of `part`, from `column` on.
template <class M>
__device__ __forceinline__ void multiply_to_part(GemmShared& shared, const GemmMemory& memory,
                                                 int column = 0) {
  multiply_all<M>(shared, memory, [&](int row_tile, int first, int lane, const float4& v) {
    const int row = row_tile * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int token = first + lane % 4 * 2 + j;
      if (token >= memory.count) continue;
      float* to = at<float>(memory.part) + static_cast<size_t>(token) * HIDDEN + column + row;
      if (row < M::ROWS && column + row < HIDDEN) to[0] = j == 0 ? v.x : v.y;
      if (row + 8 < M::ROWS && column + row + 8 < HIDDEN) to[8] = j == 0 ? v.z : v.w;
    }
  });
}

// Gate and up of a dense network. Its epilogue is that of `StoreInner` in phase/dense.cuh.
template <int KIND>
__device__ __forceinline__ void dense_gate_up(GemmShared& shared, const GemmMemory& memory) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  multiply_all<GateUpMatrix<KIND>>(
      shared, memory, [&](int row_tile, int first, int lane, const float4& v) {
        const int value = row_tile * 8 + lane / 4;
        if (value >= F.width) return;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int token = first + lane % 4 * 2 + j;
          if (token >= memory.count) continue;
          const float scale = at<const float>(memory.inverse_rms)[token];
          const float gate = j == 0 ? v.x : v.y, up = j == 0 ? v.z : v.w;
          *reinterpret_cast<uint16_t*>(at<char>(memory.inner) +
                                       operand_place(token, value, memory.capacity)) =
              ptx::to_bf16(inner_value<KIND>(gate, up, scale, {}) * operand_scale(F.format));
        }
      });
}

}  // namespace kilotok::wide
