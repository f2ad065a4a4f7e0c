// The products of the experts' rows, BF16
// `[panels of columns][rows of the tokens][PANEL_COLUMNS]`, and their sum for a token.
#pragma once

#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

// A panel has as many columns as a warpgroup computes, so that the warpgroup stores its products of
// a run by one bulk copy.
constexpr int PANEL_COLUMNS = WARPGROUP_ROWS, PANEL_BYTES = PANEL_COLUMNS * 2;
// Byte offset of the word with a row's columns c and c + 8, whose products one lane has; c % 16 is
// less than 8. Groups of eight words change places from row to row, so that a warp stores without
// bank conflicts.
__host__ __device__ __forceinline__ int product_place(int row, int column) {
  return (column / 16 * 8 + column % 8 ^ row / 2 % 4 * 8) * 4;
}
// Bytes from one panel to the next.
template <int KIND>
__device__ __forceinline__ size_t panel_stride(int tokens) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  return size_t{1} * rows_max(tokens, F.experts, F.top_k) * PANEL_BYTES;
}
__host__ __device__ constexpr size_t product_bytes(int columns, int rows) {
  return size_t{1} * ceil_div(columns, PANEL_COLUMNS) * rows * PANEL_BYTES;
}

// Four columns of the products of a token's choices.
template <int TOP_K>
struct ChoiceProducts {
  // Their byte offsets in a panel, given the choices' rows.
  struct Places {
    uint32_t places[TOP_K];
    // The selector of `__byte_perm` that makes one half of a word the upper half of an F32 number.
    uint32_t half;

    __device__ __forceinline__ Places(const uint32_t* rows, int in_panel)
        : half(in_panel % 16 < 8 ? 0x1044 : 0x3244) {
#pragma unroll
      for (int i = 0; i < TOP_K; i++)
        places[i] = rows[i] * PANEL_BYTES + product_place(rows[i], in_panel);
    }
  };
  uint4 words[TOP_K];

  __device__ __forceinline__ void load(const char* panel, const Places& places) {
#pragma unroll
    for (int i = 0; i < TOP_K; i++)
      words[i] = *reinterpret_cast<const uint4*>(panel + places.places[i]);
  }
  // Adds them as the narrow pass does, beginning with zero, because a product may be -0. Before
  // each addition it calls `adjust(i, product)`.
  template <class Adjust>
  __device__ __forceinline__ float4 sum(uint32_t half, Adjust adjust) const {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < TOP_K; i++) {
      const auto value = [&](uint32_t word) {
        return __uint_as_float(__byte_perm(word, 0, half));
      };
      const uint4& w = words[i];
      float4 product = make_float4(value(w.x), value(w.y), value(w.z), value(w.w));
      adjust(i, product);
      sum.x += product.x;
      sum.y += product.y;
      sum.z += product.z;
      sum.w += product.w;
    }
    return sum;
  }
};

}  // namespace kilotok::wide
