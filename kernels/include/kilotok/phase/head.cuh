// The head: logits of the wanted tokens for this rank's share of the vocabulary, `[wanted,
// VOCAB_ROWS]`.
#pragma once

#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

// The wanted tokens of the batch, as columns of the head's product.
struct WantedTokens {
  const uint32_t* tokens;
  int count;

  __device__ __forceinline__ WantedTokens(const Memory& memory, const Batch& batch)
      : tokens(at<const uint32_t>(memory.wanted)), count(batch.wanted_count) {}

  __device__ __forceinline__ int tiles() const { return ceil_div(count, TILE_TOKENS); }
  __device__ __forceinline__ int operator()(int column) const {
    return column < count ? static_cast<int>(tokens[column]) : 0;
  }
};

// Consumers and epilogue: store the products, scaled by 1 / rms.
struct StoreLogits {
  float* logits;
  const StreamMemory& stream;
  WantedTokens wanted;

  __device__ __forceinline__ void operator()(int unit, int, int tile, int lane,
                                             const float4& v) const {
    const int row = unit * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int column = tile * TILE_TOKENS + lane % 4 * 2 + j;
      if (column >= wanted.count) continue;
      const float scale = stream.inverse_rms[wanted(column)];
      float* to = logits + static_cast<size_t>(column) * VOCAB_ROWS + row;
      to[0] = (j == 0 ? v.x : v.y) * scale;
      to[8] = (j == 0 ? v.z : v.w) * scale;
    }
  }
};

}  // namespace kilotok
