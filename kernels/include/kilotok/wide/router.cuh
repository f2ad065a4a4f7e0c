// Which experts each of many tokens goes to, with the bits of phase/router.cuh: parts of an owner's
// 48 columns, parts of every twelfth owner, and then these sums.
//
//   router_scores   a CTA takes 64 experts of 64 tokens at a time
//   top_k_experts   behind it: a warp chooses for a token
#pragma once

#include "kilotok/phase/router.cuh"
#include "kilotok/wide/cta.cuh"

namespace kilotok::wide {

constexpr int ROUTER_WARPS = 16, ROUTER_THREADS = ROUTER_WARPS * 32;
// Tiles of 16 experts and of 8 tokens that a CTA multiplies at a time. A warp has one of experts
// and some of tokens.
constexpr int EXPERT_TILES = 4, TOKEN_TILES = 8;
constexpr int ROUTER_TOKENS = TOKEN_TILES * TILE_TOKENS;
constexpr int WARP_TOKEN_TILES = TOKEN_TILES / (ROUTER_WARPS / EXPERT_TILES);

struct RouterMemory {
  // F32 `[tokens][HIDDEN]`, the residual stream, and `[HIDDEN]`, the weights of its RMSNorm.
  uint64_t stream, norm;
  // The router's weights, as in phase/router.cuh, and F32 `[experts]` that are added to choose.
  uint64_t router, bias;
  // F32 `[tokens]`.
  uint64_t inverse_rms;
  // F32 `[tokens][SCORES_EACH]`: what the first kernel leaves for the second.
  uint64_t scores;
  // U32 and F32 `[tokens][TOP_K]`: the chosen experts in ascending order, and their weights.
  uint64_t experts, weights;
  int tokens;
};

// One owner's columns: of the tokens by tile, half of a step and lane, and of the experts.
template <int KIND>
struct RouterStage {
  static constexpr int HALVES = OWNER_STEPS * 2;
  using R = Router<KIND>;
  typename RouterStep<R::F.router_bf16>::Half tokens[TOKEN_TILES][HALVES][32];
  alignas(16) char weights[EXPERT_TILES * R::TILE_BYTES];
};

template <int KIND>
struct RouterShared {
  RouterStage<KIND> stages[2];
};

// The owners in the order in which their parts are added: every twelfth, then the next ones.
struct OwnerWalk {
  static constexpr int STRIDE = smaller(CONSUMER_WARPS, OWNER_UNITS);
  int first = 0, unit = 0;

  __device__ __forceinline__ bool has() const { return first < STRIDE; }
  // Whether a sum ends with this one.
  __device__ __forceinline__ bool ends() const { return unit + STRIDE >= OWNER_UNITS; }
  __device__ __forceinline__ void next() {
    if (ends()) first++;
    unit = unit + STRIDE >= OWNER_UNITS ? first : unit + STRIDE;
  }
};

// 64 experts of 64 tokens.
template <int KIND>
struct RouterItem {
  using R = Router<KIND>;
  using Stage = RouterStage<KIND>;
  using Half = typename RouterStep<R::F.router_bf16>::Half;
  static constexpr int GROUPS = ceil_div(R::TILES, EXPERT_TILES);
  // Halves of steps of a tile of tokens that a warp prepares.
  static constexpr int EACH = TOKEN_TILES * Stage::HALVES / ROUTER_WARPS;
  static_assert(TOKEN_TILES * Stage::HALVES % ROUTER_WARPS == 0, "warps prepare as many");

  const RouterMemory& memory;
  int first_token, first_tile, tile_count, warp, lane;
  float2 stream[EACH], norm[EACH];

  __device__ __forceinline__ RouterItem(const RouterMemory& m, int item)
      : memory(m),
        first_token(item / GROUPS * ROUTER_TOKENS),
        first_tile(item % GROUPS * EXPERT_TILES),
        tile_count(smaller(R::TILES - first_tile, EXPERT_TILES)),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32) {}

  static __device__ __forceinline__ int count(int tokens) {
    return ceil_div(tokens, ROUTER_TOKENS) * GROUPS;
  }

  // Asks for an owner's columns: the weights come by themselves.
  __device__ __forceinline__ void fetch(Stage& stage, int unit) {
    const char* from = at<const char>(memory.router) + size_t{1} * unit * R::UNIT_BYTES +
                       first_tile * R::TILE_BYTES;
    for (int i = threadIdx.x * 16; i < tile_count * R::TILE_BYTES; i += ROUTER_THREADS * 16)
      ptx::copy_later(ptx::shared_address(stage.weights) + i, from + i);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int place = warp * EACH + i;
      const int token = first_token + place / Stage::HALVES * TILE_TOKENS + lane / 4;
      const int column = unit * OWNER_ROWS + place % Stage::HALVES * 8 + lane % 4 * 2;
      const bool there = token < memory.tokens && column < HIDDEN;
      stream[i] = norm[i] = make_float2(0, 0);
      if (!there) continue;
      stream[i] = *reinterpret_cast<const float2*>(at<const float>(memory.stream) +
                                                   size_t{1} * token * HIDDEN + column);
      norm[i] = *reinterpret_cast<const float2*>(at<const float>(memory.norm) + column);
    }
  }

  // Has what was asked for in shared memory, as soon as all threads meet. The product is rounded,
  // as the stream's owner stores it: nothing may be fused.
  __device__ __forceinline__ void store(Stage& stage) const {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int place = warp * EACH + i;
      stage.tokens[place / Stage::HALVES][place % Stage::HALVES][lane] =
          Half(__fmul_rn(stream[i].x, norm[i].x), __fmul_rn(stream[i].y, norm[i].y));
    }
    ptx::wait_for_copies();
  }

  using Sums = float[WARP_TOKEN_TILES][4];

  // Adds an owner's part.
  __device__ __forceinline__ void add_part(const Stage& stage, Sums& sums) const {
    using Step = RouterStep<R::F.router_bf16>;
    const uint32_t weights_at =
        ptx::shared_address(stage.weights) + warp % EXPERT_TILES * R::TILE_BYTES;
    const int first = warp / EXPERT_TILES * WARP_TOKEN_TILES;
    Sums part = {};
#pragma unroll
    for (int step = 0; step < OWNER_STEPS; step++) {
      typename Step::Weights weights;
      weights.load(weights_at + step * R::STEP_BYTES, lane);
#pragma unroll
      for (int tile = 0; tile < WARP_TOKEN_TILES; tile++) {
        const Half x[2] = {stage.tokens[first + tile][step * 2][lane],
                           stage.tokens[first + tile][step * 2 + 1][lane]};
        float products[4] = {};
        Step::multiply(products, weights, x);
#pragma unroll
        for (int i = 0; i < 4; i++) part[tile][i] += products[i];
      }
    }
#pragma unroll
    for (int i = 0; i < WARP_TOKEN_TILES * 4; i++) sums[i / 4][i % 4] += part[i / 4][i % 4];
  }

  __device__ __forceinline__ void store_scores(const Sums& totals) const {
    const int expert = (first_tile + warp % EXPERT_TILES) * TILE_EXPERTS + lane / 4;
    const int first = first_token + warp / EXPERT_TILES * WARP_TOKEN_TILES * TILE_TOKENS;
#pragma unroll
    for (int i = 0; i < WARP_TOKEN_TILES * 4; i++) {
      const int token = first + i / 4 * TILE_TOKENS + lane % 4 * 2 + i % 2;
      const int own = expert + i % 4 / 2 * 8;
      if (token >= memory.tokens || own >= R::EXPERTS) continue;
      at<float>(memory.scores)[size_t{1} * token * SCORES_EACH + own] =
          sigmoid(totals[i / 4][i % 4] * at<const float>(memory.inverse_rms)[token]);
    }
  }
};

// All threads of all CTAs, ROUTER_THREADS each.
template <int KIND>
__device__ __forceinline__ void router_scores(RouterShared<KIND>& shared,
                                              const RouterMemory& memory) {
  using Item = RouterItem<KIND>;
#pragma unroll 1
  for (int index = ptx::cta_index(); index < Item::count(memory.tokens); index += GRID) {
    Item item(memory, index);
    typename Item::Sums sums = {}, totals = {};
    int stage = 0;
    item.fetch(shared.stages[0], 0);
    item.store(shared.stages[0]);
    __syncthreads();
#pragma unroll 1
    for (OwnerWalk walk; walk.has(); stage ^= 1) {
      const bool ends = walk.ends();
      walk.next();
      if (walk.has()) item.fetch(shared.stages[stage ^ 1], walk.unit);
      item.add_part(shared.stages[stage], sums);
      if (ends)
#pragma unroll
        for (int i = 0; i < WARP_TOKEN_TILES * 4; i++) {
          totals[i / 4][i % 4] += sums[i / 4][i % 4];
          sums[i / 4][i % 4] = 0;
        }
      if (walk.has()) item.store(shared.stages[stage ^ 1]);
      __syncthreads();
    }
    item.store_scores(totals);
  }
}

// Warps of a CTA that choose experts.
constexpr int CHOOSING_WARPS = 8, CHOOSING_THREADS = CHOOSING_WARPS * 32;

// The weights of the token that each of them chooses for.
struct ChosenWeights {
  float weights[CHOOSING_WARPS][TOP_K_MAX];
};

// All threads of all CTAs, CHOOSING_THREADS each.
template <int KIND>
__device__ __forceinline__ void top_k_experts(ChosenWeights& shared, const RouterMemory& memory) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* weights = shared.weights[warp];
#pragma unroll 1
  for (int token = ptx::cta_index() * CHOOSING_WARPS + warp; token < memory.tokens;
       token += GRID * CHOOSING_WARPS) {
    const Scores<KIND, false> scores(
        at<const float>(memory.scores) + size_t{1} * token * SCORES_EACH,
        at<const float>(memory.bias), lane);
    const uint32_t chosen = top_k_of_token<KIND, false>(scores, weights, lane, [](uint32_t) {});
    __syncwarp();
    const int place = token * TOP_K + lane;
    if (lane < TOP_K) {
      at<uint32_t>(memory.experts)[token * TOP_K + (chosen & 255)] = chosen >> 8;
      at<float>(memory.weights)[place] = weights[lane];
    }
    __syncwarp();
  }
}

}  // namespace kilotok::wide
