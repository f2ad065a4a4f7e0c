// Chooses the experts of many tokens, with the bits of phase/router.cuh. A score is summed in its
// order: over an owner's columns, over every twelfth owner (STRIDE), and then these sums.
//
//   router_scores   a CTA takes up to 192 experts of 64 tokens at a time, and all of their sums or,
//                   where few tokens would leave CTAs idle, some of them
//   top_k_experts   in the next launch a warp adds the sums of a token, and chooses
//
// A rank does so for the tokens that it owns, and tells the others what it chose (wide/ranks.cuh).
#pragma once

#include "kilotok/phase/router.cuh"
#include "kilotok/ptx/wgmma.cuh"
#include "kilotok/wide/cta.cuh"
#include "kilotok/wide/stream.cuh"

namespace kilotok::wide {

constexpr int ROUTER_TOKENS = 64;
// Warpgroups of consumers, with 64 experts each, and one of producers: a warp copies an owner's
// columns, and a warp for each step of these, three at most, makes operand B of them.
constexpr int ROUTER_GROUPS_MAX = 3, ROUTER_CONSUMERS = ROUTER_GROUPS_MAX * WARPGROUP;
constexpr int ROUTER_THREADS = ROUTER_CONSUMERS + WARPGROUP;
constexpr int ROUTER_SPLITTERS = OWNER_STEPS;
static_assert(1 + ROUTER_SPLITTERS <= WARPGROUP / 32, "each step has its warp");
constexpr int ROUTER_CONSUMER_REGISTERS = 144, ROUTER_PRODUCER_REGISTERS = 80;
static_assert(ROUTER_CONSUMERS * ROUTER_CONSUMER_REGISTERS +
                  WARPGROUP * ROUTER_PRODUCER_REGISTERS <= 65536, "registers suffice");

// `tokens` are those that this rank owns.
struct RouterMemory {
  // F32 `[tokens][HIDDEN]`, the residual stream, and `[HIDDEN]`, the weights of its RMSNorm.
  uint64_t stream, norm;
  // The router's weights, as in phase/router.cuh, and the biases that are added for the choice, F32
  // `[experts]`.
  uint64_t router, bias;
  // F32 `[tokens]`: 1 / rms. If the output projection has left `squares`, F32 `[tokens][SQUARES]`,
  // it follows from them, and `top_k_experts` stores it.
  uint64_t inverse_rms, squares;
  // F32 `[tokens][SCORES_EACH]`: the sums over all columns, which become scores. F32
  // `[tokens][HIDDEN]`, if CTAs share the sums: each token's separate sums, `[STRIDE][experts]`.
  uint64_t scores, parts;
  // U32 and F32 `[tokens of the step][TOP_K]`: the chosen experts in ascending order, and their
  // weights.
  uint64_t experts, weights;
  int tokens;
  float eps;
  RanksMemory ranks;
};

// An owner's columns of the tokens as operand B, and the products of a step of 16 columns. B is
// stored in planes, each `[tokens]` of 16 bytes.
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

  // Operand A of a step.
  struct Prepared {
    uint32_t a[4];
    __device__ __forceinline__ void load(uint32_t step, int lane) {
      Step::Weights weights;
      weights.load(step, lane);
      const uint4& w = weights.words;
      a[0] = w.x, a[1] = w.y, a[2] = w.z, a[3] = w.w;
    }
  };

  static __device__ __forceinline__ void multiply(float (&sums)[ROUTER_TOKENS / 2],
                                                  const Prepared& weights, uint32_t step) {
    ptx::wgmma_fence();
#pragma unroll
    for (int i = Step::PIECES - 1; i >= 0; i--)
      ptx::wgmma<ROUTER_TOKENS>(
          sums, weights.a,
          ptx::wgmma_operand(step + i * 2 * PLANE_BYTES, PLANE_BYTES, TILE_TOKENS * 16),
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

  // Operand A of a step: both pieces of the weights.
  struct Prepared {
    float high[2][4], low[2][4];
    __device__ __forceinline__ void load(uint32_t step, int lane) {
      Step::Weights weights;
      weights.load(step, lane);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const uint4& w = weights.words[i / 4];
        const uint32_t words[4] = {w.x, w.z, w.y, w.w};
        const ptx::Tf32Pair pair = ptx::split_tf32(__uint_as_float(words[i % 4]));
        high[i / 4][i % 4] = pair.high;
        low[i / 4][i % 4] = pair.low;
      }
    }
  };

  static __device__ __forceinline__ void multiply(float (&sums)[ROUTER_TOKENS / 2],
                                                  const Prepared& weights, uint32_t step) {
    ptx::wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const auto planes = [&](int plane) {
        return ptx::wgmma_operand(step + (half * HALF_PLANES + plane) * PLANE_BYTES, PLANE_BYTES,
                                  TILE_TOKENS * 16);
      };
      ptx::wgmma_tf32(sums, weights.low[half], planes(0), half > 0);
      ptx::wgmma_tf32(sums, weights.high[half], planes(2), true);
      ptx::wgmma_tf32(sums, weights.high[half], planes(0), true);
    }
    ptx::wgmma_commit();
  }
};

// The sums of a score, each over every STRIDE-th owner.
constexpr int STRIDE = smaller(CONSUMER_WARPS, OWNER_UNITS);
// Stages of the two rings: an owner's columns as operands, and as they are copied.
constexpr int ROUTER_STAGES = 2, RAW_STAGES = 4;
// Bytes of a token's columns; rows are so far apart that eight of them lie in different banks.
constexpr int RAW_BYTES = OWNER_ROWS * 4, RAW_STRIDE = RAW_BYTES + 16;

template <int KIND>
struct RouterShared {
  using R = Router<KIND>;
  using Operand = RouterOperand<R::F.router_bf16>;
  static constexpr int STEP_BYTES = Operand::STEP_PLANES * Operand::PLANE_BYTES;
  // Tiles of 16 experts that a CTA takes at a time.
  static constexpr int GROUPS = divisor(ceil_div(R::TILES, 4), ROUTER_GROUPS_MAX);
  static constexpr int TILES = GROUPS * 4;
  alignas(128) char weights[ROUTER_STAGES][TILES * R::TILE_BYTES];
  alignas(128) char tokens[ROUTER_STAGES][OWNER_STEPS * STEP_BYTES];
  // The stream's columns of each token, then the norm's weights.
  alignas(16) char raw[RAW_STAGES][(ROUTER_TOKENS + 1) * RAW_STRIDE];
  // Each consumer's total of the sums so far.
  float4 totals[ROUTER_TOKENS / TILE_TOKENS][ROUTER_CONSUMERS];
  alignas(8) uint64_t full[ROUTER_STAGES], empty[ROUTER_STAGES];
  alignas(8) uint64_t raw_full[RAW_STAGES], raw_empty[RAW_STAGES];

  // All threads of a CTA.
  __device__ __forceinline__ void begin() {
    const auto init = [](uint64_t& barrier, int arrivals) {
      ptx::mbarrier_init(ptx::shared_address(&barrier), arrivals);
    };
    if (threadIdx.x == 0) {
      for (int i = 0; i < ROUTER_STAGES; i++) {
        init(full[i], 1 + ROUTER_SPLITTERS * ptx::WARP_ARRIVALS);
        init(empty[i], TILES * ptx::WARP_ARRIVALS);
      }
      for (int i = 0; i < RAW_STAGES; i++) {
        init(raw_full[i], 32);
        init(raw_empty[i], ROUTER_SPLITTERS * ptx::WARP_ARRIVALS);
      }
      ptx::mbarrier_init_fence();
    }
    __syncthreads();
  }
};

// A position in a ring of COUNT stages; each thread has its own.
template <int COUNT>
struct RouterRing {
  uint64_t *full_barriers, *empty_barriers;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ uint32_t full() const {
    return ptx::shared_address(full_barriers + stage);
  }
  __device__ __forceinline__ uint32_t empty() const {
    return ptx::shared_address(empty_barriers + stage);
  }
  __device__ __forceinline__ void wait() const { wait_mbarrier(Waits::Page, full(), parity); }
  __device__ __forceinline__ void wait_empty() const {
    wait_mbarrier(Waits::FreePage, empty(), parity ^ 1);
  }
  __device__ __forceinline__ void next() {
    if (++stage == COUNT) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Both rings.
template <int KIND>
struct RouterRings {
  RouterShared<KIND>& shared;
  RouterRing<ROUTER_STAGES> operands;
  RouterRing<RAW_STAGES> raw;

  __device__ __forceinline__ explicit RouterRings(RouterShared<KIND>& s)
      : shared(s), operands{s.full, s.empty}, raw{s.raw_full, s.raw_empty} {}
};

// How the work is shared among CTAs: by experts and tokens, and also by sums if the CTAs are then
// done earlier.
template <int KIND>
struct ScoreWork {
  static constexpr int EXPERTS = Router<KIND>::EXPERTS;
  static constexpr int TILE_GROUPS = ceil_div(Router<KIND>::TILES, RouterShared<KIND>::TILES);
  int whole, shares = 1;

  __device__ __forceinline__ explicit ScoreWork(int tokens)
      : whole(ceil_div(tokens, ROUTER_TOKENS) * TILE_GROUPS) {
    if (STRIDE * EXPERTS > HIDDEN || whole >= GRID) return;
    const auto rounds = [&](int number) { return ceil_div(whole * number, GRID); };
    for (int number = 2; number <= STRIDE; number++)
      if (STRIDE % number == 0 && rounds(number) * shares < rounds(shares) * number)
        shares = number;
  }
  __device__ __forceinline__ int count() const { return whole * shares; }
};

// A work item: sums `first` to `end` - 1 of up to 192 experts and 64 tokens.
template <int KIND>
struct RouterItem {
  using R = Router<KIND>;
  using Shared = RouterShared<KIND>;
  using Operand = typename Shared::Operand;
  using Prepared = typename Operand::Prepared;
  static_assert(HIDDEN % 4 == 0, "columns come four at a time");
  // Four for every eight tokens, in the layout of `mma`.
  using Sums = float[ROUTER_TOKENS / 2];

  const RouterMemory& memory;
  int first_token, first_tile, first, end, warp, lane;

  __device__ __forceinline__ RouterItem(const RouterMemory& m, const ScoreWork<KIND>& work,
                                        int item)
      : memory(m), warp(threadIdx.x / 32), lane(threadIdx.x % 32) {
    const int group = item / work.shares, each = STRIDE / work.shares;
    first_token = group / ScoreWork<KIND>::TILE_GROUPS * ROUTER_TOKENS;
    first_tile = group % ScoreWork<KIND>::TILE_GROUPS * Shared::TILES;
    first = item % work.shares * each;
    end = first + each;
  }

  // The warp that copies: begins to copy an owner's columns of the stream and of the router's
  // weights. The copies complete the mbarriers themselves. Tokens beyond the last are not copied.
  __device__ __forceinline__ void copy(RouterRings<KIND>& rings, int unit) const {
    constexpr int PIECES = RAW_BYTES / 16, LANES = 4;
    static_assert(PIECES % LANES == 0, "lanes have whole pieces");
    RouterRing<RAW_STAGES>& ring = rings.raw;
    ring.wait_empty();
    char* raw = rings.shared.raw[ring.stage];
    const int first_column = unit * OWNER_ROWS;
    const auto copy_piece = [&](const float* from, int row, int piece) {
      const int column = smaller(first_column + piece * 4, HIDDEN - 4);
      ptx::copy_later(ptx::shared_address(raw) + row * RAW_STRIDE + piece * 16, from + column);
    };
#pragma unroll
    for (int tile = 0; tile < ROUTER_TOKENS / TILE_TOKENS; tile++) {
      const int row = tile * TILE_TOKENS + lane / LANES;
      if (first_token + row >= memory.tokens) continue;
      const float* from =
          at<const float>(memory.stream) + size_t{1} * (first_token + row) * HIDDEN;
#pragma unroll
      for (int i = 0; i < PIECES / LANES; i++) copy_piece(from, row, i * LANES + lane % LANES);
    }
    if (lane < PIECES) copy_piece(at<const float>(memory.norm), ROUTER_TOKENS, lane);
    ptx::mbarrier_arrive_copied(ring.full());
    ring.next();
    RouterRing<ROUTER_STAGES>& operands = rings.operands;
    operands.wait_empty();
    if (lane == 0) {
      const int bytes = smaller(R::TILES - first_tile, Shared::TILES) * R::TILE_BYTES;
      ptx::mbarrier_expect(operands.full(), bytes);
      ptx::bulk_copy(ptx::shared_address(rings.shared.weights[operands.stage]),
                     at<const char>(memory.router) + size_t{1} * unit * R::UNIT_BYTES +
                         first_tile * R::TILE_BYTES,
                     bytes, operands.full());
    }
    operands.next();
  }

  // A warp that splits: makes operand B of a step's columns, four a lane. The product with the
  // norm's weight is rounded, as in the narrow pass, which stores it; it may not be fused with the
  // next operation. Columns beyond the last become zeros, as their weights are.
  __device__ __forceinline__ void split(RouterRings<KIND>& rings, int unit) const {
    const int step = warp % (WARPGROUP / 32) - 1, quarter = lane / TILE_TOKENS;
    const int column = step * STEP_COLUMNS + quarter * 4;
    const bool has = HIDDEN % OWNER_ROWS == 0 || unit * OWNER_ROWS + column < HIDDEN;
    rings.raw.wait();
    rings.operands.wait_empty();
    const char* raw = rings.shared.raw[rings.raw.stage] + column * 4;
    char* to = rings.shared.tokens[rings.operands.stage] + step * Shared::STEP_BYTES;
    const float4 norm = *reinterpret_cast<const float4*>(raw + ROUTER_TOKENS * RAW_STRIDE);
    // All loads come first: the compiler would not move them ahead of stores.
    constexpr int LOADS = 4;
#pragma unroll
    for (int first_row = 0; first_row < ROUTER_TOKENS; first_row += LOADS * TILE_TOKENS) {
      float4 x[LOADS];
#pragma unroll
      for (int i = 0; i < LOADS; i++)
        x[i] = *reinterpret_cast<const float4*>(
            raw + (first_row + i * TILE_TOKENS + lane % TILE_TOKENS) * RAW_STRIDE);
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        const float scaled[4] = {
            has ? __fmul_rn(x[i].x, norm.x) : 0, has ? __fmul_rn(x[i].y, norm.y) : 0,
            has ? __fmul_rn(x[i].z, norm.z) : 0, has ? __fmul_rn(x[i].w, norm.w) : 0};
        Operand::store(to, first_row + i * TILE_TOKENS + lane % TILE_TOKENS, quarter, scaled);
      }
    }
    ptx::wgmma_writes_fence();
    ptx::mbarrier_arrive_warp(rings.operands.full(), lane);
    ptx::mbarrier_arrive_warp(rings.raw.empty(), lane);
    rings.operands.next();
    rings.raw.next();
  }

  // Consumers: add an owner's part, which is the sum of its steps' products.
  __device__ __forceinline__ void multiply(RouterRings<KIND>& rings, Sums& sums) const {
    RouterRing<ROUTER_STAGES>& ring = rings.operands;
    ring.wait();
    const uint32_t weights =
        ptx::shared_address(rings.shared.weights[ring.stage]) + warp * R::TILE_BYTES;
    const uint32_t tokens = ptx::shared_address(rings.shared.tokens[ring.stage]);
    Sums part, product;
    Prepared prepared[2];
    prepared[0].load(weights, lane);
#pragma unroll
    for (int step = 0; step < OWNER_STEPS; step++) {
      Operand::multiply(product, prepared[step % 2], tokens + step * Shared::STEP_BYTES);
      if (step + 1 < OWNER_STEPS)
        prepared[(step + 1) % 2].load(weights + (step + 1) * R::STEP_BYTES, lane);
      else
        ptx::reads_before_copies();
      ptx::wgmma_wait<0>(product);
      if (step + 1 == OWNER_STEPS) {
        ptx::mbarrier_arrive_warp(ring.empty(), lane);
        ring.next();
      }
#pragma unroll
      for (int i = 0; i < ROUTER_TOKENS / 2; i++)
        part[i] = step == 0 ? product[i] : part[i] + product[i];
    }
#pragma unroll
    for (int i = 0; i < ROUTER_TOKENS / 2; i++) sums[i] += part[i];
  }

  // Consumers: add the totals to the sums, and store them again.
  __device__ __forceinline__ void add_total(Shared& shared, Sums& sums, bool begins) const {
#pragma unroll
    for (int i = 0; i < ROUTER_TOKENS / TILE_TOKENS; i++) {
      float4& total = shared.totals[i][threadIdx.x];
      const float4 before = begins ? make_float4(0, 0, 0, 0) : total;
      float* own = sums + i * 4;
      own[0] = before.x + own[0];
      own[1] = before.y + own[1];
      own[2] = before.z + own[2];
      own[3] = before.w + own[3];
      total = make_float4(own[0], own[1], own[2], own[3]);
    }
  }

  // Stores sums at `to`; from one token to the next there are `stride` values.
  __device__ __forceinline__ void store_sums(const Sums& sums, float* to, int stride) const {
    const int expert = (first_tile + warp) * TILE_EXPERTS + lane / 4;
#pragma unroll
    for (int i = 0; i < ROUTER_TOKENS / 2; i++) {
      const int token = first_token + i / 4 * TILE_TOKENS + lane % 4 * 2 + i % 2;
      const int own = expert + i % 4 / 2 * 8;
      if (token < memory.tokens && own < R::EXPERTS) to[size_t{1} * token * stride + own] = sums[i];
    }
  }

  // Calls `use(unit)` for the owners of one of the sums, in order.
  template <class Use>
  static __device__ __forceinline__ void for_each_owner(int sum, Use use) {
#pragma unroll 1
    for (int unit = sum; unit < OWNER_UNITS; unit += STRIDE) use(unit);
  }

  // All producers.
  __device__ __forceinline__ void produce(RouterRings<KIND>& rings) const {
#pragma unroll 1
    for (int sum = first; sum < end; sum++)
      for_each_owner(sum, [&](int unit) {
        if (warp == ROUTER_CONSUMERS / 32)
          copy(rings, unit);
        else if (ROUTER_SPLITTERS == WARPGROUP / 32 - 1 ||
                 warp <= ROUTER_CONSUMERS / 32 + ROUTER_SPLITTERS)
          split(rings, unit);
      });
  }

  // Consumers.
  __device__ __forceinline__ void consume(RouterRings<KIND>& rings, bool shared) const {
    Sums sums;
#pragma unroll 1
    for (int sum = first; sum < end; sum++) {
#pragma unroll
      for (float& value : sums) value = 0;
      for_each_owner(sum, [&](int) { multiply(rings, sums); });
      if (shared)
        store_sums(sums, at<float>(memory.parts) + sum * R::EXPERTS, HIDDEN);
      else
        add_total(rings.shared, sums, sum == 0);
    }
    if (!shared) store_sums(sums, at<float>(memory.scores), SCORES_EACH);
  }
};

// All threads of all CTAs, ROUTER_THREADS each.
template <int KIND>
__device__ __forceinline__ void router_scores(RouterShared<KIND>& shared,
                                              const RouterMemory& memory) {
  shared.begin();
  const ScoreWork<KIND> work(memory.tokens);
  RouterRings<KIND> rings(shared);
  if (threadIdx.x >= ROUTER_CONSUMERS) {
    ptx::fewer_registers<ROUTER_PRODUCER_REGISTERS>();
#pragma unroll 1
    for (int index = ptx::cta_index(); index < work.count(); index += GRID)
      RouterItem<KIND>(memory, work, index).produce(rings);
  } else {
    ptx::more_registers<ROUTER_CONSUMER_REGISTERS>();
    if (threadIdx.x >= RouterShared<KIND>::GROUPS * WARPGROUP) return;
#pragma unroll 1
    for (int index = ptx::cta_index(); index < work.count(); index += GRID)
      RouterItem<KIND>(memory, work, index).consume(rings, work.shares > 1);
  }
}

// Warps of a CTA that choose experts.
constexpr int CHOOSING_WARPS = 8, CHOOSING_THREADS = CHOOSING_WARPS * 32;

// The experts of the token that each of them chooses for, and their weights.
struct ChosenExperts {
  float weights[CHOOSING_WARPS][TOP_K_MAX];
  uint16_t experts[CHOOSING_WARPS][TOP_K_MAX];
};

// A warp: a token's scores from their sums.
template <int KIND>
__device__ __forceinline__ Scores<KIND, false> finish_scores(const RouterMemory& memory, int token,
                                                             bool shared, int lane) {
  constexpr int EXPERTS = Router<KIND>::EXPERTS;
  float* found = at<float>(memory.scores) + size_t{1} * token * SCORES_EACH;
  const float* parts = at<const float>(memory.parts) + size_t{1} * token * HIDDEN;
  Scores<KIND, false> scores;
  if (memory.squares == 0) {
    scores.inverse_rms = at<const float>(memory.inverse_rms)[token];
  } else {
    scores.inverse_rms =
        inverse_rms(at<const float>(memory.squares) + token * SQUARES, memory.eps);
    if (lane == 0) at<float>(memory.inverse_rms)[token] = scores.inverse_rms;
  }
  const auto expert = [&](int i) { return smaller(i * 32 + lane, EXPERTS - 1); };
#pragma unroll
  for (int i = 0; i < scores.EACH; i++)
    scores.biases[i] = scores.BIASED ? at<const float>(memory.bias)[expert(i)] : 0;
  if (shared) {
    // A lane has the loads of this many experts in flight.
    constexpr int AT_ONCE = 6;
#pragma unroll
    for (int first = 0; first < scores.EACH; first += AT_ONCE) {
      float sums[AT_ONCE][STRIDE];
#pragma unroll
      for (int i = first; i < smaller(first + AT_ONCE, scores.EACH); i++)
#pragma unroll
        for (int j = 0; j < STRIDE; j++)
          sums[i - first][j] = ptx::load_l2(parts + j * EXPERTS + expert(i));
#pragma unroll
      for (int i = first; i < smaller(first + AT_ONCE, scores.EACH); i++) {
        scores.scores[i] = 0;
#pragma unroll
        for (int j = 0; j < STRIDE; j++) scores.scores[i] += sums[i - first][j];
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < scores.EACH; i++) scores.scores[i] = found[expert(i)];
  }
#pragma unroll
  for (int i = 0; i < scores.EACH; i++) {
    scores.scores[i] = score_of<KIND>(scores.scores[i], scores.inverse_rms);
    if (i * 32 + lane < EXPERTS) found[i * 32 + lane] = scores.scores[i];
  }
  return scores;
}

// All threads of all CTAs, CHOOSING_THREADS each.
template <int KIND>
__device__ __forceinline__ void top_k_experts(ChosenExperts& shared, const RouterMemory& memory) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* weights = shared.weights[warp];
  const bool are_shared = ScoreWork<KIND>(memory.tokens).shares > 1;
  const Ranks ranks(memory.ranks);
#pragma unroll 1
  for (int token = warp * GRID + ptx::cta_index(); token < memory.tokens;
       token += GRID * CHOOSING_WARPS) {
    const auto scores = finish_scores<KIND>(memory, token, are_shared, lane);
    top_k_of_token<KIND, false>(scores, shared.experts[warp], weights, lane, [](const auto&) {});
    const int first = (ranks.first_token(ranks.rank) + token) * TOP_K;
    if (lane < TOP_K) {
      ranks.on_all(memory.experts, [&](uint64_t experts) {
        at<uint32_t>(experts)[first + lane] = shared.experts[warp][lane];
      });
      ranks.on_all(memory.weights,
                   [&](uint64_t to) { at<float>(to)[first + lane] = weights[lane]; });
    }
    __syncwarp();
  }
  ranks.finish(WideCollective::Choices);
}

}  // namespace kilotok::wide
