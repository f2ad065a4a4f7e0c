// The types of a model's constants. Their values are in a `model.h` that is generated for each
// model: RANKS, GRID, TOKENS_MAX, PAGE_TOKENS, HIDDEN, VOCAB, LAYERS, DRAFT_LAYERS, DRAFT_ROWS,
// TAPS, NORM_EPS, DRAFT_NORM_EPS, ATTENTIONS, FEED_FORWARDS and how many of each, and which kinds
// are the drafter's. Sizes are a rank's own share, except VOCAB and HIDDEN.
#pragma once

#include "kilotok/abi.h"

namespace kilotok {

enum class Format { Bf16, Fp8, Mxfp4 };

struct Attention {
  int q_heads;
  int kv_heads;
  int qk_dim;
  int v_dim;
  // Dimensions i and i + rope_pairs are rotated together, by cosines and sines times the magnitude
  // (YaRN; otherwise 1).
  int rope_pairs;
  float rope_magnitude;
  // Keys that a position attends to, itself included; 0 for all.
  int window;
  int page_group;
  bool sinks;
  // Whether q, k, v and the output have biases.
  bool bias;
  // RMSNorm of each query and key head before rotation, and its epsilon.
  bool qk_norm;
  float qk_norm_eps;
  // Whether rows of q and k that are rotated together lie 8 rows apart in one tile of 16. Then the
  // epilogue of the QKV GEMM can apply RoPE.
  bool paired;
  float value_scale;
  // Of the q, k and v projections, and of the output projection.
  Format format;
  Format output_format;
};

// How gate and up are combined, value by value (phase/activation.cuh).
enum class Activation { SiluMul, ClampedSwiglu };

// How a router's products become scores (phase/router.cuh).
enum class RouterScores { CorrectedSigmoid, Softmax };

struct FeedForward {
  // 0 for a dense network.
  int experts;
  int top_k;
  int width;
  Format format;
  Activation activation;
  // Constants of ClampedSwiglu.
  float alpha, limit;
  // Whether gate, up and down of experts have biases.
  bool bias;
  RouterScores scores;
  // Whether there is an F32 for each expert that is added to choose: the correction of a sigmoid,
  // or the bias of the router's matrix.
  bool router_bias;
  // Whether the router's weights are BF16 instead of F32.
  bool router_bf16;
  // Whether the chosen scores are divided by their sum before they are multiplied by `scale`.
  bool normalise;
  float scale;
};

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int align_up(int a, int b) { return ceil_div(a, b) * b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
// The largest divisor of a number that is at most another.
__host__ __device__ constexpr int divisor(int number, int most) {
  while (number % most != 0) most--;
  return most;
}

}  // namespace kilotok
