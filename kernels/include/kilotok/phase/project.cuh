// The products of the q, k and v projections, `[tokens, PROJECTED_ROWS]`, scaled by 1 / rms, with
// their biases; and those of the output projection, which are added to the stream.
#pragma once

#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

// A product of the q, k and v projections, of an operand that was not scaled by 1 / rms yet. One
// rounding, so that all passes have the same bits.
template <bool BIAS>
__device__ __forceinline__ float scale_product(float product, float inverse_rms, float bias) {
  if constexpr (BIAS) return fmaf(product, inverse_rms, bias);
  return product * inverse_rms;
}

// The biases of rows g and g + 8 of a row tile, if the kind has any.
template <int KIND>
__device__ __forceinline__ float2 load_biases(const float* biases, int row_tile, int g) {
  if constexpr (!ATTENTIONS[KIND].bias) return {};
  const float* own = biases + row_tile * 16 + g;
  return make_float2(own[0], own[8]);
}

// Stores a lane's four values as rows of `projected` that begin at `place`, for tokens below
// `token_count`.
template <int KIND>
__device__ __forceinline__ void store_projected(const Memory& memory, const float* inverse_rms,
                                                const float* biases, int unit, int tile, int lane,
                                                int token_count, int place, const float4& v) {
  constexpr int ROW_COUNT = QkvMatrix<KIND>::ROWS;
  constexpr bool BIAS = ATTENTIONS[KIND].bias;
  const float2 bias = load_biases<KIND>(biases, unit, lane / 4);
  float* projected = at<float>(memory.projected);
  const int row = unit * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int token = tile * TILE_TOKENS + lane % 4 * 2 + j;
    if (token >= token_count) continue;
    float* to = projected + static_cast<size_t>(token) * PROJECTED_ROWS + place + row;
    const float scale = inverse_rms[token];
    if (row < ROW_COUNT) to[0] = scale_product<BIAS>(j == 0 ? v.x : v.y, scale, bias.x);
    if (row + 8 < ROW_COUNT) to[8] = scale_product<BIAS>(j == 0 ? v.z : v.w, scale, bias.y);
  }
}

// Consumers and epilogue: store the products.
template <int KIND>
struct StoreProjected {
  const Memory& memory;
  const StreamMemory& stream;
  // F32, as the rows of the matrix, if the kind has biases.
  const float* biases;
  int token_count;
  // Index of the first row in `projected`.
  int place = 0;

  __device__ __forceinline__ void operator()(int unit, int, int tile, int lane,
                                             const float4& v) const {
    store_projected<KIND>(memory, stream.inverse_rms, biases, unit, tile, lane, token_count, place,
                          v);
  }
};

// Epilogue: publishes the products of one token in a row of `projected`.
template <int KIND>
struct PublishProjected {
  const Memory& memory;
  const StreamMemory& stream;
  const float* biases;
  int projected_row;

  __device__ __forceinline__ void operator()(int unit, int, int, int lane, const float4& v) const {
    constexpr int ROW_COUNT = QkvMatrix<KIND>::ROWS;
    constexpr bool BIAS = ATTENTIONS[KIND].bias;
    if (lane % 4 != 0) return;
    const float2 bias = load_biases<KIND>(biases, unit, lane / 4);
    const int row = unit * 16 + lane / 4;
    float* to = at<float>(memory.projected) + projected_row * PROJECTED_ROWS + row;
    const float scale = stream.inverse_rms[0];
    if (row < ROW_COUNT) publish(to, scale_product<BIAS>(v.x, scale, bias.x));
    if (row + 8 < ROW_COUNT) publish(to + 8, scale_product<BIAS>(v.z, scale, bias.y));
  }
};

// Whether the epilogue adds products to the stream, in the target's layers. Otherwise consumers do,
// after an all-reduce or where several tiles of tokens leave the epilogue nothing to do.
template <bool DRAFT, int TILES>
constexpr bool EPILOGUE_ADDS = RANKS == 1 && TILES == 1 && !DRAFT;

// Epilogue of an owner: adds products of the output projection to the stream.
template <int KIND>
struct AddOutput {
  const Cta& cta;
  StreamMemory& stream;
  SumMemory& sums;
  EpilogueNorm& norm;
  const float* biases;
  int token_count;

  __device__ __forceinline__ float2 ahead(int unit, int row_tile, int, int lane) const {
    return load_biases<KIND>(biases, unit * OWNER_TILES + smaller(row_tile, OWNER_TILES - 1),
                             lane / 4);
  }
  __device__ __forceinline__ void store(int, int row_tile, int, int, const float4& v,
                                        const float2& bias) const {
    if constexpr (ATTENTIONS[KIND].bias)
      norm.add(cta, stream, sums, row_tile,
               make_float4(v.x + bias.x, v.y + bias.x, v.z + bias.y, v.w + bias.y), token_count);
    else
      norm.add(cta, stream, sums, row_tile, v, token_count);
  }
};

// Epilogue of an owner: adds a dense network's products to the stream.
struct AddPart {
  const Cta& cta;
  StreamMemory& stream;
  SumMemory& sums;
  EpilogueNorm& norm;
  int token_count;

  __device__ __forceinline__ void operator()(int, int row_tile, int, int, const float4& v) const {
    norm.add(cta, stream, sums, row_tile, v, token_count);
  }
};

// Consumers and epilogue: store an owner's products of the output projection and its biases, which
// are zeros on all ranks but the first.
template <int KIND>
struct StoreOutput {
  StreamMemory& stream;
  // Of the whole stream.
  const float* biases;

  // Loaded ahead of the products.
  __device__ __forceinline__ float2 ahead(int unit, int row_tile, int, int lane) const {
    return load_biases<KIND>(biases, unit * OWNER_TILES + row_tile, lane / 4);
  }

  __device__ __forceinline__ void store(int unit, int row_tile, int tile, int lane,
                                        const float4& v, const float2& bias) const {
    StorePart{stream}(unit, row_tile, tile, lane,
                      make_float4(v.x + bias.x, v.y + bias.x, v.z + bias.y, v.w + bias.y));
  }

  __device__ __forceinline__ void operator()(int unit, int row_tile, int tile, int lane,
                                             const float4& v) const {
    store(unit, row_tile, tile, lane, v, ahead(unit, row_tile, tile, lane));
  }
};

}  // namespace kilotok
