// Networks whose activations and routers differ in everything that kernels distinguish.
#pragma once

#include "kilotok/shape.cuh"

namespace kilotok {

constexpr int GRID = 132;
constexpr int TOKENS_MAX = 64;
// Nothing is multiplied; headers name the rest.
constexpr int RANKS = 1, PAGE_TOKENS = 16, HIDDEN = 64, VOCAB = 128, TAPS = 0;
constexpr int LAYERS = 1, DRAFT_LAYERS = 0, DRAFT_ROWS = 0;
constexpr int ATTENTION_KINDS = 1, DRAFT_ATTENTION = 1;
constexpr int FEED_FORWARD_KINDS = 3, DRAFT_FEED_FORWARD = 3;
constexpr Attention ATTENTIONS[] = {{.q_heads = 8, .kv_heads = 1, .qk_dim = 64, .v_dim = 64}};

constexpr FeedForward FEED_FORWARDS[] = {
    {.experts = 384, .top_k = 8, .width = 128, .activation = Activation::SiluMul,
     .scores = RouterScores::CorrectedSigmoid, .router_bias = true, .normalise = true,
     .scale = 2.5f},
    {.experts = 40, .top_k = 4, .width = 128, .activation = Activation::ClampedSwiglu,
     .alpha = 1.702f, .limit = 7.0f, .scores = RouterScores::Softmax, .router_bias = true,
     .normalise = true, .scale = 1.0f},
    {.experts = 72, .top_k = 8, .width = 128, .scores = RouterScores::Softmax, .normalise = false,
     .scale = 1.0f},
};

}  // namespace kilotok
