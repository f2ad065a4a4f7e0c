// The products of the q, k and v projections, `[tokens, PROJECTED_ROWS]`, scaled by 1 / rms.
#pragma once

#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

// Stores a lane's four values as rows of `projected` that begin at `place`, for tokens below
// `token_count`.
__device__ __forceinline__ void store_projected(const Memory& memory, const float* inverse_rms,
                                                int unit, int tile, int lane, int row_count,
                                                int token_count, int place, const float4& v) {
  float* projected = at<float>(memory.projected);
  const int row = unit * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int token = tile * TILE_TOKENS + lane % 4 * 2 + j;
    if (token >= token_count) continue;
    float* to = projected + static_cast<size_t>(token) * PROJECTED_ROWS + place + row;
    const float scale = inverse_rms[token];
    if (row < row_count) to[0] = (j == 0 ? v.x : v.y) * scale;
    if (row + 8 < row_count) to[8] = (j == 0 ? v.z : v.w) * scale;
  }
}

// Consumers and epilogue: store the products.
template <int KIND>
struct StoreProjected {
  const Memory& memory;
  const StreamMemory& stream;
  int token_count;
  // Index of the first row in `projected`.
  int place = 0;

  __device__ __forceinline__ void operator()(int unit, int, int tile, int lane,
                                             const float4& v) const {
    store_projected(memory, stream.inverse_rms, unit, tile, lane, QkvMatrix<KIND>::ROWS,
                    token_count, place, v);
  }
};

}  // namespace kilotok
