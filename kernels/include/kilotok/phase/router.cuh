// Which experts each token goes to, in three steps with a grid barrier after each of the first two.
//
//   router_parts  an owner multiplies its 48 columns of the stream with the router's: in F32, from
//                 shared memory, before anybody else has the new stream
//   router_scores the parts are added, in an order that is the same for every output
//   choose_routes every CTA chooses for itself, tile by tile of tokens
#pragma once

#include "kilotok/phase/stream.cuh"

namespace kilotok {

template <int KIND>
struct Router {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr int EXPERTS = F.experts;
  // A row of the matrix in memory: one column of the stream, all experts.
  static constexpr int ROW_BYTES = align_up(EXPERTS, 4) * 4;
  static constexpr int PAGE_ROWS = smaller(PAGE_BYTES / ROW_BYTES, OWNER_ROWS);
  static constexpr int PAGES = ceil_div(OWNER_ROWS, PAGE_ROWS);
  static constexpr int UNIT_BYTES = OWNER_ROWS * ROW_BYTES;
  static_assert(PAGES <= PAGE_COUNT, "an owner's part of the router lies in the ring as a whole");
};

// Producer of an owner: its columns of the router.
template <int KIND>
__device__ __forceinline__ void produce_router(Ring& ring, uint64_t address) {
  using R = Router<KIND>;
  const char* from = at<const char>(address) + static_cast<size_t>(blockIdx.x) * R::UNIT_BYTES;
  for (int row = 0; row < OWNER_ROWS; row += R::PAGE_ROWS) {
    const int bytes = smaller(R::PAGE_ROWS, OWNER_ROWS - row) * R::ROW_BYTES;
    ring.open(bytes);
    ring.bring(from + row * R::ROW_BYTES, 0, bytes);
    ring.next();
  }
}

// Owners: multiply their scaled part of the stream with their columns of the router.
template <int KIND>
__device__ __forceinline__ void router_parts(const Cta& cta, Ring& ring, SumMemory& scratch,
                                             int token_count) {
  const ScaledTile* tiles = scaled_stream(scratch);
  using R = Router<KIND>;
  const int unit = cta.index();
  Ring ahead = ring;
#pragma unroll 1
  for (int page = 0; page < R::PAGES; page++) {
    ahead.take();
    ahead.next();
  }
  float* parts = at<float>(cta.memory.router_parts);
  for (int expert = cta.thread(); expert < R::EXPERTS; expert += CONSUMERS) {
    for (int first = 0; first < token_count; first += TILE_TOKENS) {
      float sums[TILE_TOKENS] = {};
      Ring taken = ring;
#pragma unroll 1
      for (int page = 0; page < R::PAGES; page++, taken.next()) {
        const uint32_t weights = taken.page() + expert * 4;
#pragma unroll 4
        for (int i = 0; i < smaller(R::PAGE_ROWS, OWNER_ROWS - page * R::PAGE_ROWS); i++) {
          const int row = page * R::PAGE_ROWS + i;
          const float weight =
              __uint_as_float(ptx::load_shared_word(weights + i * R::ROW_BYTES));
          const float4* x = reinterpret_cast<const float4*>(tiles[first / TILE_TOKENS][row]);
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const float4 v = x[half];
            sums[half * 4] += v.x * weight;
            sums[half * 4 + 1] += v.y * weight;
            sums[half * 4 + 2] += v.z * weight;
            sums[half * 4 + 3] += v.w * weight;
          }
        }
      }
#pragma unroll
      for (int token = 0; token < TILE_TOKENS; token++)
        if (first + token < token_count)
          parts[(static_cast<size_t>(unit) * TOKENS_MAX + first + token) * R::EXPERTS + expert] =
              sums[token];
    }
  }
#pragma unroll 1
  for (int page = 0; page < R::PAGES; page++) ring.release(cta.lane());
}

// Sums of 32 outputs on their way from the warps that have each added some owners' parts.
struct ScoreMemory {
  float sums[CONSUMER_WARPS][32];
  float inverse_rms;
};

// Scores of all tokens' experts, without the bias. A CTA takes 32 experts of a token at a time: a
// warp adds the parts of every twelfth owner, then one adds the warps' sums.
template <int KIND>
__device__ __forceinline__ void router_scores(const Cta& cta, SumMemory& scratch, int token_count,
                                              float eps) {
  constexpr int EXPERTS = Router<KIND>::EXPERTS, GROUPS = ceil_div(EXPERTS, 32);
  constexpr int LOADS = ceil_div(OWNER_UNITS, CONSUMER_WARPS);
  ScoreMemory& memory = *reinterpret_cast<ScoreMemory*>(scratch.scratch);
  const float* parts = at<const float>(cta.memory.router_parts);
  const int lane = cta.lane();
#pragma unroll 1
  for (int group = cta.index(); group < token_count * GROUPS; group += GRID) {
    const int token = group / GROUPS, expert = group % GROUPS * 32 + lane;
    const float* from = parts + static_cast<size_t>(token) * EXPERTS + smaller(expert, EXPERTS - 1);
    float values[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int unit = i * CONSUMER_WARPS + cta.warp();
      values[i] = unit < OWNER_UNITS
                      ? ptx::load_l2(from + static_cast<size_t>(unit) * TOKENS_MAX * EXPERTS)
                      : 0;
    }
    if (cta.warp() == CONSUMER_WARPS - 1) {
      const float inverse_rms = Squares(cta, token).inverse_rms(eps);
      if (lane == 0) memory.inverse_rms = inverse_rms;
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++) sum += values[i];
    memory.sums[cta.warp()][lane] = sum;
    cta.sync();
    if (cta.warp() == 0) {
      sum = 0;
#pragma unroll
      for (int warp = 0; warp < CONSUMER_WARPS; warp++) sum += memory.sums[warp][lane];
      const float score = 1.0f / (1.0f + expf(-sum * memory.inverse_rms));
      if (expert < EXPERTS) at<float>(cta.memory.router_scores)[token * EXPERTS + expert] = score;
    }
    cta.sync();
  }
}

constexpr int ROUTES_MAX = TILE_TOKENS * TOP_K_MAX;

// The experts of one tile of tokens, in ascending order, and which of a token's choices each is.
struct Routes {
  int count;
  uint16_t experts[ROUTES_MAX];
  // Place among the token's choices, or -1.
  int8_t choices[ROUTES_MAX][TILE_TOKENS];
  float weights[TILE_TOKENS][TOP_K_MAX];
  uint16_t chosen[TILE_TOKENS][TOP_K_MAX];
  uint32_t bits[ceil_div(larger(EXPERTS_MAX, 1), 32)];
  int below[ceil_div(larger(EXPERTS_MAX, 1), 32)];
};

// Larger scores have larger keys, in the order of IEEE 754's totalOrder.
__device__ __forceinline__ uint32_t order_key(float score) {
  const uint32_t bits = __float_as_uint(score);
  const uint32_t key = bits ^ (bits >> 31 ? ~0u : 0x80000000u);
  return key > 0 ? key : 1;  // 0 is no score
}

// One warp chooses for one token: the best scores with the bias, of equals the lower expert; the
// weights come from the scores without it. Also finds 1 / rms of the token.
template <int KIND>
__device__ __forceinline__ void choose_for_token(const Cta& cta, Routes& routes,
                                                 StreamMemory& stream, float eps,
                                                 const float* bias, int token, int column) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  constexpr int EACH = ceil_div(F.experts, 32);
  static_assert(F.top_k <= 32, "a lane for each choice");
  const float* found = at<const float>(cta.memory.router_scores) + token * F.experts;
  const int lane = cta.lane();
  const Squares squares(cta, token);
  float scores[EACH];
  uint32_t keys[EACH];
  bool number = true;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int expert = i * 32 + lane;
    scores[i] = expert < F.experts ? ptx::load_l2(found + expert) : 0;
    keys[i] = __float_as_uint(expert < F.experts ? bias[expert] : 0);
  }
  const float inverse_rms = squares.inverse_rms(eps);
  if (lane == 0) stream.inverse_rms[token] = inverse_rms;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    number = number && scores[i] == scores[i];
    const bool real = i * 32 + lane < F.experts;
    keys[i] = real ? order_key(scores[i] + __uint_as_float(keys[i])) : 0;
  }
  number = __all_sync(~0u, number);
  // Lane c keeps choice c.
  uint32_t mine = ~0u;
  float score = 0;
#pragma unroll 1
  for (int choice = 0; choice < F.top_k; choice++) {
    uint32_t best = 0, expert = ~0u;
    float best_score = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (keys[i] > best) {
        best = keys[i];
        expert = i * 32 + lane;
        best_score = scores[i];
      }
    const uint32_t highest = __reduce_max_sync(~0u, best);
    expert = __reduce_min_sync(~0u, best == highest ? expert : ~0u);
    best_score = __shfl_sync(~0u, best_score, expert % 32);
    if (lane == choice) {
      mine = expert;
      score = best_score;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (expert == static_cast<uint32_t>(i * 32 + lane)) keys[i] = 0;
  }
  // In ascending order of experts, as the sum of the weights wants them.
  int place = 0;
#pragma unroll
  for (int choice = 0; choice < F.top_k; choice++) place += __shfl_sync(~0u, mine, choice) < mine;
  if (lane < F.top_k) {
    routes.chosen[column][place] = mine;
    routes.weights[column][place] = score;
    atomicOr(&routes.bits[mine / 32], 1u << mine % 32);
  }
  __syncwarp();
  float total = 0;
#pragma unroll
  for (int choice = 0; choice < F.top_k; choice++) total += routes.weights[column][choice];
  const float divisor = !number ? __uint_as_float(0x7fc00000u)
                                : F.normalise ? total + 1e-20f : 1.0f;
  __syncwarp();
  if (lane < F.top_k) routes.weights[column][place] = score / divisor * F.scale;
}

// The routes of tile `tile`, in every CTA the same.
template <int KIND>
__device__ __forceinline__ void choose_routes(const Cta& cta, Routes& routes, StreamMemory& stream,
                                              float eps, const float* bias, int tile,
                                              int token_count) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  constexpr int WORDS = ceil_div(F.experts, 32);
  for (int i = cta.thread(); i < WORDS; i += CONSUMERS) routes.bits[i] = 0;
  for (int i = cta.thread(); i < ROUTES_MAX * TILE_TOKENS; i += CONSUMERS)
    routes.choices[i / TILE_TOKENS][i % TILE_TOKENS] = -1;
  cta.sync();
  const int column = cta.warp(), token = tile * TILE_TOKENS + column;
  const bool chooses = column < TILE_TOKENS && token < token_count;
  if (chooses) choose_for_token<KIND>(cta, routes, stream, eps, bias, token, column);
  cta.sync();
  // How many chosen experts are below those of each word.
  if (cta.warp() == 0) {
    int sum = 0;
#pragma unroll
    for (int first = 0; first < WORDS; first += 32) {
      const int word = first + cta.lane(), own = word < WORDS ? __popc(routes.bits[word]) : 0;
      int up_to = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(~0u, up_to, distance);
        if (cta.lane() >= distance) up_to += other;
      }
      if (word < WORDS) routes.below[word] = sum + up_to - own;
      sum += __shfl_sync(~0u, up_to, 31);
    }
    if (cta.lane() == 0) routes.count = sum;
  }
  cta.sync();
  if (chooses && cta.lane() < F.top_k) {
    const int expert = routes.chosen[column][cta.lane()], word = expert / 32;
    const int entry = routes.below[word] + __popc(routes.bits[word] & ((1u << expert % 32) - 1));
    routes.experts[entry] = expert;
    routes.choices[entry][column] = cta.lane();
  }
  cta.sync();
}

}  // namespace kilotok
