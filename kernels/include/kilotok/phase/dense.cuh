// A dense feed-forward network: gate and up, their activation, a grid barrier, down. Its matrices
// are multiplied as projections are (gemm/matrix.cuh); this is the epilogue of gate and up.
#pragma once

#include "kilotok/phase/activation.cuh"
#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

template <int KIND>
constexpr bool IS_DENSE = FEED_FORWARDS[KIND].experts == 0;
// Whether none of these kinds is dense.
template <int KIND, int END>
constexpr bool ALL_ROUTED = !IS_DENSE<KIND> && ALL_ROUTED<KIND + 1, END>;
template <int END>
constexpr bool ALL_ROUTED<END, END> = true;

// Consumers and epilogue: store the inner operand.
template <int KIND>
struct StoreInner {
  const Memory& memory;
  const StreamMemory& stream;
  int token_count;

  __device__ __forceinline__ void operator()(int unit, int, int tile, int lane,
                                             const float4& v) const {
    constexpr FeedForward F = FEED_FORWARDS[KIND];
    const int row = unit * 8 + lane / 4;
    if (row >= F.width) return;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int token = tile * TILE_TOKENS + lane % 4 * 2 + j;
      if (token >= token_count) continue;
      const float gate = j == 0 ? v.x : v.y, up = j == 0 ? v.z : v.w;
      store_operand(at<char>(memory.dense_inner) + DenseInner<KIND>::row(token), row,
                    inner_value<KIND>(gate, up, stream.inverse_rms[token], {}) *
                        operand_scale(F.format));
    }
  }
};

}  // namespace kilotok
