// The residual stream. CTA c owns rows 48c to 48c + 47 of it (and every GRID-th part on), in shared
// memory, F32, for all tokens; every rank holds all of it. Whatever adds to the stream ends here.
//
// The next norm is not applied but prepared: x times the norm's weights goes out as an operand, the
// sum of squares beside it, and who multiplies scales its products by 1 / rms, which is the same.
#pragma once

#include "kilotok/layout/places.cuh"

namespace kilotok {

struct StreamMemory {
  // `[owned][tokens][rows]`
  float residual[OWNED_MAX][TOKENS_MAX][OWNER_ROWS];
  // What is to be added; then x times the norm's weights, for the router.
  float part[TOKENS_MAX][OWNER_ROWS];
  float inverse_rms[TOKENS_MAX];
};

// Which norm comes next, and in which form its reader wants the operand.
struct NextNorm {
  const float* weights;
  float scale;
  // Which tap follows, or !0.
  uint32_t tap;
};

__device__ __forceinline__ float add_lanes(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// Adds `part` to the owned part `i` of the stream, and prepares the next norm.
__device__ __forceinline__ void add_to_stream(const Cta& cta, StreamMemory& stream, int i,
                                              int token_count, const NextNorm& next) {
  const Memory& memory = cta.memory;
  const int unit = cta.index() + i * GRID;
  cta.sync();
  for (int token = cta.warp(); token < token_count; token += CONSUMER_WARPS) {
    float square = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = cta.lane() + half * 32, column = unit * OWNER_ROWS + row;
      if (row >= OWNER_ROWS || column >= HIDDEN) continue;
      const float x = stream.residual[i][token][row] + stream.part[token][row];
      const float scaled = x * next.weights[column];
      stream.residual[i][token][row] = x;
      stream.part[token][row] = scaled;
      square += x * x;
      store_operand(at<char>(memory.normed) + token * NORMED_BYTES, column, scaled * next.scale);
      if (next.tap != ~0u)
        store_operand(at<char>(memory.taps) + token * TAPS_BYTES, next.tap * HIDDEN + column, x);
    }
    square = add_lanes(square);
    if (cta.lane() == 0) at<float>(memory.squares)[unit * TOKENS_MAX + token] = square;
  }
  cta.sync();
}

// 1 / rms of every token, from the owners' sums of squares. Synchronised by the caller's next sync.
__device__ __forceinline__ void read_norm(const Cta& cta, StreamMemory& stream, int token_count,
                                          float eps) {
  const float* squares = at<const float>(cta.memory.squares);
  for (int token = cta.warp(); token < token_count; token += CONSUMER_WARPS) {
    float sum = 0;
    for (int unit = cta.lane(); unit < OWNER_UNITS; unit += 32)
      sum += ptx::load_l2(squares + unit * TOKENS_MAX + token);
    sum = add_lanes(sum);
    if (cta.lane() == 0) stream.inverse_rms[token] = 1.0f / sqrtf(sum / HIDDEN + eps);
  }
}

}  // namespace kilotok
