// The GEMMs of the wide pass with a short epilogue: those whose products are added to the stream, a
// dense network's, and the fusion of the drafter's taps.
#pragma once

#include "kilotok/phase/activation.cuh"
#include "kilotok/phase/dense.cuh"
#include "kilotok/phase/project.cuh"
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

// Stores a lane's products of a row tile as columns of `part`, from `column` on.
template <class M>
__device__ __forceinline__ void store_part(const GemmMemory& memory, int row_tile, int first,
                                           int lane, const float4& v, int column) {
  const int row = row_tile * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int token = first + lane % 4 * 2 + j;
    if (token >= memory.count) continue;
    float* to = at<float>(memory.part) + static_cast<size_t>(token) * HIDDEN + column + row;
    if (row < M::ROWS && column + row < HIDDEN) to[0] = j == 0 ? v.x : v.y;
    if (row + 8 < M::ROWS && column + row + 8 < HIDDEN) to[8] = j == 0 ? v.z : v.w;
  }
}

// Stores the products as columns of `part`, from `column` on.
template <class M>
__device__ __forceinline__ void multiply_to_part(GemmShared& shared, const GemmMemory& memory,
                                                 int column = 0) {
  multiply_all<M>(shared, memory, [&](int row_tile, int first, int lane, const float4& v) {
    store_part<M>(memory, row_tile, first, lane, v, column);
  });
}

// The output projection of what attention left in `operand`. Its biases are zeros on all ranks but
// the first.
template <int KIND>
__device__ __forceinline__ void output(GemmShared& shared, GemmMemory memory,
                                       const float* biases) {
  using M = OutputMatrix<KIND>;
  memory.operand += kind_operand<OutputMatrix, KIND>(memory.capacity);
  multiply_all<M>(shared, memory, [&](int row_tile, int first, int lane, const float4& v) {
    const float2 bias = load_biases<KIND>(biases, row_tile, lane / 4);
    if constexpr (ATTENTIONS[KIND].bias)
      store_part<M>(memory, row_tile, first, lane,
                    make_float4(v.x + bias.x, v.y + bias.x, v.z + bias.y, v.w + bias.y), 0);
    else
      store_part<M>(memory, row_tile, first, lane, v, 0);
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
                                       kind_operand<DenseDown, KIND>(memory.capacity) +
                                       operand_place(token, value, memory.capacity)) =
              ptx::to_bf16(inner_value<KIND>(gate, up, scale, {}) * operand_scale(F.format));
        }
      });
}

// Down of a dense network, of what gate and up left in `operand`.
template <int KIND>
__device__ __forceinline__ void dense_down(GemmShared& shared, GemmMemory memory) {
  memory.operand += kind_operand<DenseDown, KIND>(memory.capacity);
  multiply_to_part<DownMatrix<KIND>>(shared, memory);
}

}  // namespace kilotok::wide
