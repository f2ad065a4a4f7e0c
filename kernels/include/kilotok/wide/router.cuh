// Which experts each of many tokens goes to, with the bits of phase/router.cuh: parts of an owner's
// 48 columns, parts of every twelfth owner, and then these sums.
//
//   router_scores   a CTA takes 128 experts of 64 tokens at a time
//   top_k_experts   behind it: a warp chooses for a token
#pragma once

#include "kilotok/phase/router.cuh"
#include "kilotok/ptx/wgmma.cuh"
#include "kilotok/wide/cta.cuh"

namespace kilotok::wide {

// Two warpgroups, each with 64 experts of 64 tokens at a time.
constexpr int ROUTER_WARPS = 8, ROUTER_THREADS = ROUTER_WARPS * 32;
constexpr int ROUTER_TOKENS = 64;

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

// The tokens' columns of an owner, as operand B of products, and the products of a step of 16
// columns. B lies in planes of `[tokens]` of 16 bytes.
template <bool BF16>
struct RouterOperand;

// The three pieces of BF16, smallest last; a plane has eight columns.
template <>
struct RouterOperand<true> {
  using Step = RouterStep<true>;
  static constexpr int PLANE_BYTES = ROUTER_TOKENS * 16, STEP_PLANES = Step::PIECES * 2;

  // Stores four columns of a token: a quarter of a step.
  static __device__ __forceinline__ void store(char* step, int token, int quarter,
                                               const float (&x)[4]) {
    const Step::Half halves[2] = {{x[0], x[1]}, {x[2], x[3]}};
#pragma unroll
    for (int i = 0; i < Step::PIECES; i++)
      *reinterpret_cast<uint2*>(step + (i * 2 + quarter / 2) * PLANE_BYTES + token * 16 +
                                quarter % 2 * 8) =
          make_uint2(halves[0].words[i], halves[1].words[i]);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[ROUTER_TOKENS / 2],
                                                  const Step::Weights& weights, uint32_t step) {
    const uint4& w = weights.words;
    const uint32_t a[4] = {w.x, w.y, w.z, w.w};
    ptx::wgmma_fence();
#pragma unroll
    for (int i = Step::PIECES - 1; i >= 0; i--)
      ptx::wgmma<ROUTER_TOKENS>(
          sums, a, ptx::wgmma_operand(step + i * 2 * PLANE_BYTES, PLANE_BYTES, TILE_TOKENS * 16),
          i < Step::PIECES - 1);
    ptx::wgmma_commit();
  }
};

// The two pieces of TF32. A plane has four of eight columns, the even or the odd ones, as
// `mma_tf32` multiplies them.
template <>
struct RouterOperand<false> {
  using Step = RouterStep<false>;
  static constexpr int PLANE_BYTES = ROUTER_TOKENS * 16, HALF_PLANES = 4;
  static constexpr int STEP_PLANES = HALF_PLANES * 2;

  static __device__ __forceinline__ void store(char* step, int token, int quarter,
                                               const float (&x)[4]) {
    ptx::Tf32Pair pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = ptx::split_tf32(x[i]);
    char* to = step + quarter / 2 * HALF_PLANES * PLANE_BYTES + token * 16 + quarter % 2 * 8;
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
      const ptx::Tf32Pair &first = pairs[odd], &second = pairs[2 + odd];
      *reinterpret_cast<float2*>(to + odd * PLANE_BYTES) = make_float2(first.high, second.high);
      *reinterpret_cast<float2*>(to + (2 + odd) * PLANE_BYTES) =
          make_float2(first.low, second.low);
    }
  }

  static __device__ __forceinline__ void multiply(float (&sums)[ROUTER_TOKENS / 2],
                                                  const Step::Weights& weights, uint32_t step) {
    float high[2][4], low[2][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint4& w = weights.words[i / 4];
      const uint32_t words[4] = {w.x, w.z, w.y, w.w};
      const ptx::Tf32Pair pair = ptx::split_tf32(__uint_as_float(words[i % 4]));
      high[i / 4][i % 4] = pair.high;
      low[i / 4][i % 4] = pair.low;
    }
    ptx::wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const auto planes = [&](int plane) {
        return ptx::wgmma_operand(step + (half * HALF_PLANES + plane) * PLANE_BYTES, PLANE_BYTES,
                                  TILE_TOKENS * 16);
      };
      ptx::wgmma_tf32(sums, low[half], planes(0), half > 0);
      ptx::wgmma_tf32(sums, high[half], planes(2), true);
      ptx::wgmma_tf32(sums, high[half], planes(0), true);
    }
    ptx::wgmma_commit();
  }
};

// Columns come owner by owner. Weights are copied three owners ahead; the stream's columns are
// loaded two ahead, and become an operand one ahead.
constexpr int ROUTER_STAGES = 4;

template <int KIND>
struct RouterShared {
  using R = Router<KIND>;
  using Operand = RouterOperand<R::F.router_bf16>;
  static constexpr int STEP_BYTES = Operand::STEP_PLANES * Operand::PLANE_BYTES;
  using Tokens = char[OWNER_STEPS * STEP_BYTES];
  using Weights = char[ROUTER_WARPS * R::TILE_BYTES];
  alignas(128) Weights weights[ROUTER_STAGES];
  // Of this owner and the next.
  alignas(128) Tokens tokens[2];
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

// 128 experts of 64 tokens.
template <int KIND>
struct RouterItem {
  using R = Router<KIND>;
  using Shared = RouterShared<KIND>;
  using Operand = typename Shared::Operand;
  static constexpr int GROUPS = ceil_div(R::TILES, ROUTER_WARPS);
  // A warp prepares the columns of a step of a tile of tokens at a time, four for each lane.
  static constexpr int EACH = ROUTER_TOKENS / TILE_TOKENS * OWNER_STEPS / ROUTER_WARPS;
  static_assert(HIDDEN % 4 == 0, "columns come four at a time");

  const RouterMemory& memory;
  int first_token, first_tile, warp, lane;

  __device__ __forceinline__ RouterItem(const RouterMemory& m, int item)
      : memory(m),
        first_token(item / GROUPS * ROUTER_TOKENS),
        first_tile(item % GROUPS * ROUTER_WARPS),
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
    const int bytes = smaller(R::TILES - first_tile, ROUTER_WARPS) * R::TILE_BYTES;
    ptx::mbarrier_expect(full, bytes);
    ptx::bulk_copy(ptx::shared_address(shared.weights[stage]),
                   at<const char>(memory.router) + size_t{1} * owner.unit * R::UNIT_BYTES +
                       first_tile * R::TILE_BYTES,
                   bytes, full);
  }

  // Of what a lane prepares: the token of the item, the step, and its quarter of it.
  struct Place {
    int token, step, quarter;
  };
  __device__ __forceinline__ Place place(int i) const {
    const int unit = warp * EACH + i;
    return {unit / OWNER_STEPS * TILE_TOKENS + lane % TILE_TOKENS, unit % OWNER_STEPS,
            lane / TILE_TOKENS};
  }

  // A thread's columns of the stream.
  struct Loaded {
    float4 x[EACH];
    int unit;
  };
  __device__ __forceinline__ Loaded load(const OwnerWalk& owner) const {
    Loaded loaded;
    loaded.unit = owner.unit;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const Place own = place(i);
      const int token = first_token + own.token;
      const int column = owner.unit * OWNER_ROWS + own.step * STEP_COLUMNS + own.quarter * 4;
      loaded.x[i] = owner.has() && token < memory.tokens && column < HIDDEN
                        ? *reinterpret_cast<const float4*>(at<const float>(memory.stream) +
                                                           size_t{1} * token * HIDDEN + column)
                        : make_float4(0, 0, 0, 0);
    }
    return loaded;
  }

  // The product with the norm's weight is rounded, as the narrow pass stores it: it may not be
  // fused with what follows. Beyond the last column both are zeros.
  __device__ __forceinline__ void store(Shared& shared, typename Shared::Tokens& tokens,
                                        const Loaded& loaded) const {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const Place own = place(i);
      const int column = loaded.unit * OWNER_ROWS + own.step * STEP_COLUMNS + own.quarter * 4;
      const float4 norm =
          *reinterpret_cast<const float4*>(&shared.norm[smaller(column, HIDDEN - 4)]);
      const float x[4] = {
          __fmul_rn(loaded.x[i].x, norm.x), __fmul_rn(loaded.x[i].y, norm.y),
          __fmul_rn(loaded.x[i].z, norm.z), __fmul_rn(loaded.x[i].w, norm.w)};
      Operand::store(tokens + own.step * Shared::STEP_BYTES, own.token, own.quarter, x);
    }
    ptx::wgmma_writes_fence();
  }

  // For every eight tokens four, as `mma` has them.
  using Sums = float[ROUTER_TOKENS / 2];

  // Begins an owner's products, a sum for each step.
  __device__ __forceinline__ void multiply(const typename Shared::Weights& weights,
                                           const typename Shared::Tokens& tokens,
                                           Sums (&products)[OWNER_STEPS]) const {
    const uint32_t from = ptx::shared_address(weights) + warp * R::TILE_BYTES;
#pragma unroll
    for (int step = 0; step < OWNER_STEPS; step++) {
      typename Operand::Step::Weights w;
      w.load(from + step * R::STEP_BYTES, lane);
      Operand::multiply(products[step], w, ptx::shared_address(tokens) + step * Shared::STEP_BYTES);
    }
  }

  // Waits for them, and adds the owner's part.
  static __device__ __forceinline__ void add_part(Sums (&products)[OWNER_STEPS], Sums& sums) {
#pragma unroll
    for (int step = 0; step < OWNER_STEPS; step++) ptx::wgmma_wait<0>(products[step]);
#pragma unroll
    for (int i = 0; i < ROUTER_TOKENS / 2; i++) {
      float part = products[0][i];
#pragma unroll
      for (int step = 1; step < OWNER_STEPS; step++) part += products[step][i];
      sums[i] += part;
    }
  }

  __device__ __forceinline__ void store_scores(const Sums& totals) const {
    const int expert = (first_tile + warp) * TILE_EXPERTS + lane / 4;
#pragma unroll
    for (int i = 0; i < ROUTER_TOKENS / 2; i++) {
      const int token = first_token + i / 4 * TILE_TOKENS + lane % 4 * 2 + i % 2;
      const int own = expert + i % 4 / 2 * 8;
      if (token >= memory.tokens || own >= R::EXPERTS) continue;
      at<float>(memory.scores)[size_t{1} * token * SCORES_EACH + own] =
          sigmoid(totals[i] * at<const float>(memory.inverse_rms)[token]);
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
    if (threadIdx.x == 0) item.copy_weights(shared, weights, number + ROUTER_STAGES - 1);
    weights.next();
    const uint32_t stage = number % ROUTER_STAGES;
    wait_mbarrier(Waits::Page, ptx::shared_address(&shared.full[stage]),
                  number / ROUTER_STAGES & 1);
    typename Item::Sums products[OWNER_STEPS];
    item.multiply(shared.weights[stage], shared.tokens[current], products);
    item.store(shared, shared.tokens[current ^ 1], loaded);
    // Fences come before the next loads, as they wait for all that are under way.
    ptx::reads_before_copies();
    loads.next();
    loaded = item.load(loads);
    Item::add_part(products, sums);
    if (owner.ends())
#pragma unroll
      for (int i = 0; i < ROUTER_TOKENS / 2; i++) {
        totals[i] += sums[i];
        sums[i] = 0;
      }
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
