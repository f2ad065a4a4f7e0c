// The products of the experts' rows, F32 `[panels of columns][rows of the tokens][PANEL_COLUMNS]`,
// and their sum for a token.
#pragma once

#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

// Products of as many columns lie together as a warpgroup has, so that those of a run are one bulk
// copy.
constexpr int PANEL_COLUMNS = WARPGROUP_ROWS, PANEL_BYTES = PANEL_COLUMNS * 4;
// Eight columns each are exchanged, so that a warp stores its products without bank conflicts.
__host__ __device__ __forceinline__ int product_place(int row, int column) {
  return column ^ row / 2 % 4 * 8;
}
// The bytes between panels.
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
  // Where they lie in a panel, from the choices' rows.
  struct Places {
    uint32_t places[TOP_K];

    __device__ __forceinline__ Places(const uint32_t* rows, int in_panel) {
#pragma unroll
      for (int i = 0; i < TOP_K; i++)
        places[i] = rows[i] * PANEL_BYTES + product_place(rows[i], in_panel) * 4;
    }
  };
  float4 products[TOP_K];

  __device__ __forceinline__ void load(const char* panel, const Places& places) {
#pragma unroll
    for (int i = 0; i < TOP_K; i++)
      products[i] = *reinterpret_cast<const float4*>(panel + places.places[i]);
  }
  // As the narrow pass adds them, from zero on: a product may be -0.
  __device__ __forceinline__ float4 sum() const {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < TOP_K; i++) {
      sum.x += products[i].x;
      sum.y += products[i].y;
      sum.z += products[i].z;
      sum.w += products[i].w;
    }
    return sum;
  }
};

}  // namespace kilotok::wide
