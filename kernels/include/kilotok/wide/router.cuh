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

// Columns come owner by owner. Weights are copied three owners ahead; the stream's columns are
// loaded two ahead, and become an operand one ahead.
constexpr int ROUTER_STAGES = 4;

template <int KIND>
struct RouterShared {
  using R = Router<KIND>;
  using Half = typename RouterStep<R::F.router_bf16>::Half;
  // Halves of an owner's steps.
  static constexpr int HALVES = OWNER_STEPS * 2;
  using Tokens = Half[TOKEN_TILES][HALVES][32];
  using Weights = char[EXPERT_TILES * R::TILE_BYTES];
  alignas(128) Weights weights[ROUTER_STAGES];
  // Of this owner and the next: what each lane has of operand B.
  Tokens tokens[2];
  alignas(16) float norm[HIDDEN];
  alignas(8) uint64_t full[ROUTER_STAGES];

  // All threads of a CTA.
  __device__ __forceinline__ void begin(const RouterMemory& memory) {
    if (threadIdx.x == 0) {
      for (uint64_t& barrier : full) ptx::mbarrier_init(ptx::shared_address(&barrier), 1);
      ptx::mbarrier_init_fence();
    }
    for (int i = threadIdx.x; i < HIDDEN; i += ROUTER_THREADS)
      norm[i] = at<const float>(memory.norm)[i];
    __syncthreads();
  }
};

// The owners in the order in which their parts are added: every twelfth, then the next ones.
struct OwnerWalk {
  static constexpr int STRIDE = smaller(CONSUMER_WARPS, OWNER_UNITS);
  int first = 0, unit = 0;

  __device__ __forceinline__ bool has() const { return first < STRIDE; }
  // Whether a sum ends with this one.
  __device__ __forceinline__ bool ends() const { return unit + STRIDE >= OWNER_UNITS; }
  __device__ __forceinline__ void next() {
    const bool last = ends();
    first += last;
    unit = last ? first : unit + STRIDE;
  }
};

// 64 experts of 64 tokens.
template <int KIND>
struct RouterItem {
  using R = Router<KIND>;
  using Shared = RouterShared<KIND>;
  using Half = typename Shared::Half;
  static constexpr int GROUPS = ceil_div(R::TILES, EXPERT_TILES), HALVES = Shared::HALVES;
  // Halves of steps of a tile of tokens that a warp prepares.
  static constexpr int EACH = TOKEN_TILES * HALVES / ROUTER_WARPS;
  static_assert(TOKEN_TILES * HALVES % ROUTER_WARPS == 0, "warps prepare as many");

  const RouterMemory& memory;
  int first_token, first_tile, warp, lane;

  __device__ __forceinline__ RouterItem(const RouterMemory& m, int item)
      : memory(m),
        first_token(item / GROUPS * ROUTER_TOKENS),
        first_tile(item % GROUPS * EXPERT_TILES),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32) {}

  static __device__ __forceinline__ int count(int tokens) {
    return ceil_div(tokens, ROUTER_TOKENS) * GROUPS;
  }

  // One thread: begins to copy an owner's weights into the stage of such a number.
  __device__ __forceinline__ void copy_weights(Shared& shared, const OwnerWalk& owner,
                                               uint32_t number) const {
    if (!owner.has()) return;
    const uint32_t stage = number % ROUTER_STAGES;
    const uint32_t full = ptx::shared_address(&shared.full[stage]);
    const int bytes = smaller(R::TILES - first_tile, EXPERT_TILES) * R::TILE_BYTES;
    ptx::mbarrier_expect(full, bytes);
    ptx::bulk_copy(ptx::shared_address(shared.weights[stage]),
                   at<const char>(memory.router) + size_t{1} * owner.unit * R::UNIT_BYTES +
                       first_tile * R::TILE_BYTES,
                   bytes, full);
  }

  // A thread's columns of the stream.
  struct Loaded {
    float2 x[EACH];
    int columns[EACH];
  };
  __device__ __forceinline__ Loaded load(const OwnerWalk& owner) const {
    Loaded loaded;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int place = warp * EACH + i;
      const int token = first_token + place / HALVES * TILE_TOKENS + lane / 4;
      const int column = owner.unit * OWNER_ROWS + place % HALVES * 8 + lane % 4 * 2;
      const bool there = owner.has() && token < memory.tokens && column < HIDDEN;
      loaded.columns[i] = there ? column : 0;
      loaded.x[i] = there ? *reinterpret_cast<const float2*>(at<const float>(memory.stream) +
                                                             size_t{1} * token * HIDDEN + column)
                          : make_float2(0, 0);
    }
    return loaded;
  }

  // The product with the norm's weight is rounded, as the narrow pass stores it: it may not be
  // fused with what follows.
  __device__ __forceinline__ void store(Shared& shared, typename Shared::Tokens& tokens,
                                        const Loaded& loaded) const {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int place = warp * EACH + i;
      const float2 norm = *reinterpret_cast<const float2*>(&shared.norm[loaded.columns[i]]);
      tokens[place / HALVES][place % HALVES][lane] =
          Half(__fmul_rn(loaded.x[i].x, norm.x), __fmul_rn(loaded.x[i].y, norm.y));
    }
  }

  using Sums = float[WARP_TOKEN_TILES][4];

  // Adds an owner's part.
  __device__ __forceinline__ void add_part(const typename Shared::Weights& owner_weights,
                                           const typename Shared::Tokens& tokens,
                                           Sums& sums) const {
    using Step = RouterStep<R::F.router_bf16>;
    const uint32_t weights_at =
        ptx::shared_address(owner_weights) + warp % EXPERT_TILES * R::TILE_BYTES;
    const int first = warp / EXPERT_TILES * WARP_TOKEN_TILES;
    Sums part = {};
#pragma unroll
    for (int step = 0; step < OWNER_STEPS; step++) {
      typename Step::Weights weights;
      weights.load(weights_at + step * R::STEP_BYTES, lane);
#pragma unroll
      for (int tile = 0; tile < WARP_TOKEN_TILES; tile++) {
        const Half x[2] = {tokens[first + tile][step * 2][lane],
                           tokens[first + tile][step * 2 + 1][lane]};
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

// All threads of a CTA: the scores of an item. `number` counts the owners whose weights were used.
template <int KIND>
__device__ __forceinline__ void score_item(RouterShared<KIND>& shared,
                                           const RouterItem<KIND>& item, uint32_t& number) {
  using Item = RouterItem<KIND>;
  typename Item::Sums sums = {}, totals = {};
  OwnerWalk weights, loads;
  for (int i = 0; i < ROUTER_STAGES - 1; i++, weights.next())
    if (threadIdx.x == 0) item.copy_weights(shared, weights, number + i);
  item.store(shared, shared.tokens[0], item.load(loads));
  loads.next();
  typename Item::Loaded loaded = item.load(loads);
  __syncthreads();
  int current = 0;
#pragma unroll 1
  for (OwnerWalk owner; owner.has(); owner.next(), number++, current ^= 1) {
    loads.next();
    const typename Item::Loaded after = item.load(loads);
    if (threadIdx.x == 0) item.copy_weights(shared, weights, number + ROUTER_STAGES - 1);
    weights.next();
    const uint32_t stage = number % ROUTER_STAGES;
    wait_mbarrier(Waits::Page, ptx::shared_address(&shared.full[stage]),
                  number / ROUTER_STAGES & 1);
    item.add_part(shared.weights[stage], shared.tokens[current], sums);
    if (owner.ends())
#pragma unroll
      for (int i = 0; i < WARP_TOKEN_TILES * 4; i++) {
        totals[i / 4][i % 4] += sums[i / 4][i % 4];
        sums[i / 4][i % 4] = 0;
      }
    item.store(shared, shared.tokens[current ^ 1], loaded);
    loaded = after;
    ptx::reads_before_copies();
    __syncthreads();
  }
  item.store_scores(totals);
}

// All threads of all CTAs, ROUTER_THREADS each.
template <int KIND>
__device__ __forceinline__ void router_scores(RouterShared<KIND>& shared,
                                              const RouterMemory& memory) {
  using Item = RouterItem<KIND>;
  shared.begin(memory);
  uint32_t number = 0;
#pragma unroll 1
  for (int index = ptx::cta_index(); index < Item::count(memory.tokens); index += GRID)
    score_item<KIND>(shared, Item(memory, index), number);
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
