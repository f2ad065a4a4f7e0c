// What a model's constants are. Their values come with the model, in a generated `model.h`:
// RANKS, GRID, TOKENS_MAX, PAGE_TOKENS, HIDDEN, VOCAB, LAYERS, DRAFT_LAYERS, DRAFT_ROWS, TAPS,
// NORM_EPS, DRAFT_NORM_EPS, ATTENTIONS, FEED_FORWARDS and how many of each, and which kinds the
// drafter's are. Sizes are a rank's own share, but for VOCAB and HIDDEN.
#pragma once

#include "kilotok/abi.h"

namespace kilotok {

enum class Format { Bf16, Fp8, Mxfp4 };

struct Attention {
  int q_heads;
  int kv_heads;
  int qk_dim;
  int v_dim;
  // Dimensions i and i + rope_pairs are rotated together.
  int rope_pairs;
  // Keys that a position sees, itself included; 0 for all.
  int window;
  int page_group;
  bool sinks;
  bool qk_norm;
  // Whether rows of q and k that are rotated together lie 8 rows apart in one tile of 16, so that
  // products become queries, keys and values where they are added up.
  bool paired;
  float value_scale;
  Format format;
};

struct FeedForward {
  // 0 for a dense network.
  int experts;
  int top_k;
  int width;
  Format format;
  // Of the router: whether its weights are BF16 instead of F32.
  bool router_bf16;
  // Divide the chosen scores by their sum, then multiply.
  bool normalise;
  float scale;
};

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int align_up(int a, int b) { return ceil_div(a, b) * b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

}  // namespace kilotok
