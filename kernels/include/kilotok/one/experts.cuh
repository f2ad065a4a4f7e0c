// A network of experts for one token: the router's parts and scores, the choice, gate and up, and
// down. Bits are those of phase/router.cuh, phase/experts.cuh and phase/down.cuh.
#pragma once

#include "kilotok/one/rows.cuh"

namespace kilotok {

// Owners: multiply their scaled part of the stream with their columns of the router.
template <int KIND>
__device__ __forceinline__ void router_parts_of_one(const Cta& cta, Ring& ring,
                                                    const float* scaled, int turn) {
  using R = Router<KIND>;
  using Step = RouterStep<R::F.router_bf16>;
  static_assert(R::PAGES == 1, "an owner's part of the router is one page");
  const int lane = cta.lane();
  float* parts = at<float>(cta.memory.router_parts) +
                 (static_cast<size_t>(cta.index()) * TOKENS_MAX + turn) * R::EXPERTS;
  typename Step::Half x[OWNER_STEPS][2];
#pragma unroll
  for (int i = 0; i < OWNER_STEPS * 2; i++)
    x[i / 2][i % 2] = {scaled[i * 8 + lane % 4 * 2], scaled[i * 8 + lane % 4 * 2 + 1]};
  const uint32_t page = ring.wait();
#pragma unroll 1
  for (int tile = cta.warp(); tile < R::TILES; tile += CONSUMER_WARPS) {
    float sums[OWNER_STEPS][4] = {};
#pragma unroll
    for (int step = 0; step < OWNER_STEPS; step++) {
      typename Step::Weights weights;
      weights.load(page + tile * R::TILE_BYTES + step * R::STEP_BYTES, lane);
      Step::multiply(sums[step], weights, x[step]);
    }
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < OWNER_STEPS * 4; i++) sum[i % 4] += sums[i / 4][i % 4];
    const int expert = tile * TILE_EXPERTS + lane / 4;
    if (lane % 4 != 0) continue;
    if (expert < R::EXPERTS) publish(parts + expert, sum[0]);
    if (expert + 8 < R::EXPERTS) publish(parts + expert + 8, sum[2]);
  }
  ring.release(lane);
}

// A few CTAs: the scores of 32 experts.
template <int KIND>
__device__ __forceinline__ void router_scores_of_one(const Cta& cta, SumMemory& scratch, int turn,
                                                     float eps) {
  constexpr int EXPERTS = Router<KIND>::EXPERTS, GROUPS = ceil_div(EXPERTS, 32);
  constexpr int LOADS = ceil_div(OWNER_UNITS, CONSUMER_WARPS);
  const int group = cta.index(), lane = cta.lane(), warp = cta.warp();
  if (group >= GROUPS) return;
  ScoreMemory& memory = *reinterpret_cast<ScoreMemory*>(scratch.scratch);
  float* scores = scores_of(cta.memory, turn);
  const int expert = group * 32 + lane;
  const float* from = at<const float>(cta.memory.router_parts) +
                      static_cast<size_t>(turn) * EXPERTS + smaller(expert, EXPERTS - 1);
  float values[LOADS];
  SumOfSquares squares = {};
  poll<true>([&] {
    bool there = true;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int unit = i * CONSUMER_WARPS + warp;
      values[i] = unit < OWNER_UNITS
                      ? ptx::load_l2(from + static_cast<size_t>(unit) * TOKENS_MAX * EXPERTS)
                      : 0;
    }
    if (warp == 0) squares = SumOfSquares(cta, Reader::FeedForward, turn);
#pragma unroll
    for (int i = 0; i < LOADS; i++) there = there && is_published(values[i]);
    return there && (warp != 0 || squares.are_published());
  });
  float sum = 0;
#pragma unroll
  for (int i = 0; i < LOADS; i++) sum += values[i];
  memory.sums[warp][lane] = sum;
  const float inverse_rms = warp == 0 ? squares.inverse_rms(eps) : 0;
  if (warp == 0 && lane == 0 && group == 0) publish(scores + EXPERTS, inverse_rms);
  cta.sync();
  if (warp != 0) return;
  sum = 0;
#pragma unroll
  for (int i = 0; i < CONSUMER_WARPS; i++) sum += memory.sums[i][lane];
  if (expert < EXPERTS) publish(scores + expert, score_of<KIND>(sum, inverse_rms));
}

// The first warp chooses the token's experts, in ascending order. An expert's entry is also the
// index of its weight.
template <int KIND>
__device__ __forceinline__ void choose_of_one(const Cta& cta, Routes& routes, StreamMemory& stream,
                                              const float* bias, int turn) {
  const int lane = cta.lane();
  const Scores<KIND, true> scores(scores_of(cta.memory, turn), bias, lane);
  top_k_of_token<KIND, true>(scores, routes.experts, routes.weights[0], lane, [](const auto&) {});
  if (lane == 0) stream.inverse_rms[0] = scores.inverse_rms;
}

// What the routes of one token always are; called once a launch.
template <int KIND>
__device__ __forceinline__ void set_up_routes(Routes& routes) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
  for (int i = threadIdx.x; i < TOP_K * TILE_TOKENS; i += THREADS)
    routes.choices[i / TILE_TOKENS][i % TILE_TOKENS] = i % TILE_TOKENS == 0 ? i / TILE_TOKENS : -1;
  if (threadIdx.x == 0) routes.count = TOP_K;
}

// Consumers: multiply gate and up of all experts with an operand in registers.
template <int KIND>
__device__ __forceinline__ void gate_up_of_one(
    const Cta& cta, Ring& ring, Sums& sums,
    const PolledOperand<GateUpMatrix<KIND>>& operand) {
  using M = GateUpMatrix<KIND>;
#pragma unroll 1
  for (int unit = ring.wait_unit(); unit != NO_UNIT; unit = ring.wait_unit()) {
    float acc[1][4] = {};
    Multiplier<M, true>::multiply(
        cta, ring, acc, [&](int step, OperandChunk (&x)[1]) { x[0] = operand.held[step][0]; });
    sums.push(cta, acc[0], unit);
  }
  ring.release(cta.lane());
  const float nothing[4] = {};
  sums.push(cta, nothing, NO_UNIT);
  sums.drain(cta);
}

// Epilogue: writes the activated values times the expert's weight.
template <int KIND>
__device__ __forceinline__ void epilogue_gate_up_of_one(const Cta& cta, Sums& sums,
                                                        const StreamMemory& stream,
                                                        const Routes& routes, uint64_t biases,
                                                        int turn) {
  using N = Moe<KIND>;
  using M = typename N::GateUp;
#pragma unroll 1
  for (int unit = sums.wait(); unit != NO_UNIT; unit = sums.wait())
    sums.reduce<M>(cta, [&](int, int, int lane, const float4& v) {
      const int entry = unit / M::UNITS, row = unit % M::UNITS * 8 + lane / 4;
      if (row >= N::F.width || lane % 4 != 0) return;
      const float2 bias = gate_up_bias<KIND>(biases, routes.experts[entry], row);
      publish_half(SortedRows<KIND>::value(cta.memory, inner_row<KIND>(turn) + entry, row),
                   inner_value<KIND>(v.x, v.z, stream.inverse_rms[0], bias) *
                       routes.weights[0][entry] * operand_scale(N::F.format));
    });
  sums.release(cta);
}

// The rows of one token, of which each expert has one.
template <int KIND>
struct TokenRows : TileRows<KIND> {
  struct Routes {
    static constexpr int count = FEED_FORWARDS[KIND].top_k;
    const uint16_t (&experts)[ROUTES_MAX];
  };
  static __device__ __forceinline__ constexpr bool in_ring(int) { return false; }
  static __device__ __forceinline__ int first_row(const Routes&, int entry) { return entry; }
};

// Owners: multiply the experts.
template <int KIND>
__device__ __forceinline__ void down_of_one(const Cta& cta, Ring& ring, Sums& sums,
                                            StreamMemory& stream, const Routes& routes, int turn) {
  using R = SortedRows<KIND>;
  using Rows = TokenRows<KIND>;
  static_assert(R::HAS_TOKEN, "shared memory has room for the rows");
  const uint32_t scratch = ptx::shared_address(sums.memory.scratch);
  down_sorted<Rows>(
      cta, ring, scratch, typename Rows::Routes{routes.experts}, 1,
      [](int entry, int) { return entry; },
      [&](int entry) {
        R::template fetch<true>(cta, sums.memory, entry, inner_row<KIND>(turn));
        return scratch + entry * (R::ROW_PIECES * 16);
      },
      [&](int, const float(&product)[1][4]) {
        float products[1][1][4];
#pragma unroll
        for (int k = 0; k < 4; k++) products[0][0][k] = product[0][k];
        DownTurns<KIND>::push(cta, sums, stream, products);
      });
  sums.drain(cta);
}

// Producer of an owner: copies their weights.
template <int KIND>
__device__ __forceinline__ void produce_down_of_one(const Cta& cta, Ring& ring, SumMemory& scratch,
                                                    const Routes& routes, uint64_t address) {
  using Rows = TokenRows<KIND>;
  produce_sorted<Rows>(cta, ring, scratch, typename Rows::Routes{routes.experts}, address, 1, {});
}

}  // namespace kilotok
