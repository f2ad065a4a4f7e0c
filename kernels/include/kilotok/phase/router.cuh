// The router: chooses each token's experts, in three steps. After each of the first two there is a
// grid barrier, or values are POLLED one by one (comm/publish.cuh).
//
//   router_parts   an owner multiplies its columns of the stream with the router's: F32, from
//                  shared memory, before any other CTA has the new stream
//   router_scores  the owners' parts are added, in one order for every output (split-K)
//   top_k_routes   every CTA chooses for itself, for one tile of tokens; for more tiles see
//                  phase/gathered.cuh
#pragma once

#include "kilotok/phase/activation.cuh"
#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

// An owner multiplies tiles of 16 experts and 8 tokens on the tensor cores.
constexpr int TILE_EXPERTS = 16;
constexpr int STEP_COLUMNS = 16;
constexpr int OWNER_STEPS = OWNER_ROWS / STEP_COLUMNS;
static_assert(OWNER_ROWS % STEP_COLUMNS == 0, "an owner has whole steps");

template <int KIND>
struct Router {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr int EXPERTS = F.experts;
  static constexpr bool SOFTMAX = F.scores == RouterScores::Softmax;
  // The layout in memory is `[owner units][tiles of experts][steps]`. A step of BF16 is 16 bytes a
  // lane, a0 to a3 of operand A. A step of F32 has the values of a0 and a1 of all lanes, then those
  // of a2 and a3.
  static constexpr int WEIGHT_BYTES = F.router_bf16 ? 2 : 4;
  static constexpr int STEP_BYTES = TILE_EXPERTS * STEP_COLUMNS * WEIGHT_BYTES;
  static constexpr int TILE_BYTES = OWNER_STEPS * STEP_BYTES;
  static constexpr int TILES = ceil_div(EXPERTS, TILE_EXPERTS);
  static constexpr int PAGES = ceil_div(TILES, PAGE_BYTES / TILE_BYTES);
  static constexpr int PAGE_TILES = ceil_div(TILES, larger(PAGES, 1));
  static constexpr int UNIT_BYTES = TILES * TILE_BYTES;
  static constexpr size_t BYTES = size_t{OWNER_UNITS} * UNIT_BYTES;
  static_assert(PAGES <= PAGE_COUNT, "an owner's part of the router lies in the ring as a whole");

  // Byte offset of a weight.
  static __host__ __device__ constexpr size_t place(int expert, int column) {
    const int tile = column / OWNER_ROWS * TILES + expert / TILE_EXPERTS;
    const int step = column % OWNER_ROWS / STEP_COLUMNS, half = column % STEP_COLUMNS / 8;
    const int lane = expert % 8 * 4 + column % 8 / 2;
    const int in_half = expert % TILE_EXPERTS / 8 * 2 + column % 2;
    const int value = F.router_bf16 ? lane * 8 + half * 4 : half * 128 + lane * 4;
    return size_t{1} * tile * TILE_BYTES + step * STEP_BYTES + (value + in_half) * WEIGHT_BYTES;
  }
};

// Producer of an owner: copies its columns of the router.
template <int KIND>
__device__ __forceinline__ void produce_router(Ring& ring, uint64_t address) {
  using R = Router<KIND>;
  const size_t cta = ptx::cta_index();
  const char* from = at<const char>(address) + cta * R::UNIT_BYTES;
#pragma unroll 1
  for (int tile = 0; tile < R::TILES; tile += R::PAGE_TILES) {
    const int bytes = smaller(R::PAGE_TILES, R::TILES - tile) * R::TILE_BYTES;
    ring.acquire(bytes);
    ring.fetch(from + tile * R::TILE_BYTES, 0, bytes);
    ring.next();
  }
}

// The products of a step: weights of 16 experts, and a lane's two columns of a token in each half
// of the step, as operand B.
template <bool BF16>
struct RouterStep;

// An F32 of the stream is split into three BF16, each of which rounds the remainder of those before
// it. So products with BF16 weights are exact.
template <>
struct RouterStep<true> {
  static constexpr int PIECES = 3;
  struct alignas(16) Half {
    uint32_t words[PIECES];

    Half() = default;
    __device__ __forceinline__ Half(float first, float second) {
#pragma unroll
      for (int i = 0; i < PIECES; i++) {
        words[i] = ptx::pack_bf16(first, second);
        first -= __uint_as_float(words[i] << 16);
        second -= __uint_as_float(words[i] & 0xffff0000);
      }
    }
  };
  struct Weights {
    uint4 words;

    template <class Bytes>
    __device__ __forceinline__ void load(Bytes step, int lane) {
      words = load_sixteen(step + lane * 16);
    }
  };

  static __device__ __forceinline__ void multiply(float (&sums)[4], const Weights& weights,
                                                  const Half (&x)[2]) {
    const uint4& w = weights.words;
    const uint32_t a[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = PIECES - 1; i >= 0; i--) ptx::mma(sums, a, x[0].words[i], x[1].words[i]);
  }
};

// Both factors are split into two TF32, which leaves a remainder of less than 2^-23. Products have
// a relative error of at most 2^-21, of either sign.
template <>
struct RouterStep<false> {
  static constexpr int HALF_BYTES = 32 * 16;
  struct alignas(16) Half {
    ptx::Tf32Pair pairs[2];

    Half() = default;
    __device__ __forceinline__ Half(float first, float second)
        : pairs{ptx::split_tf32(first), ptx::split_tf32(second)} {}
  };
  struct Weights {
    uint4 words[2];

    template <class Bytes>
    __device__ __forceinline__ void load(Bytes step, int lane) {
#pragma unroll
      for (int half = 0; half < 2; half++)
        words[half] = load_sixteen(step + half * HALF_BYTES + lane * 16);
    }
  };

  static __device__ __forceinline__ void multiply(float (&sums)[4], const Weights& weights,
                                                  const Half (&x)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4& w = weights.words[half];
      const uint32_t words[4] = {w.x, w.z, w.y, w.w};
      float high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const ptx::Tf32Pair pair = ptx::split_tf32(__uint_as_float(words[i]));
        high[i] = pair.high;
        low[i] = pair.low;
      }
      const ptx::Tf32Pair(&b)[2] = x[half].pairs;
      ptx::mma_tf32(sums, low, b[0].high, b[1].high);
      ptx::mma_tf32(sums, high, b[0].low, b[1].low);
      ptx::mma_tf32(sums, high, b[0].high, b[1].high);
    }
  }
};

// Owners: multiply their scaled part of the stream with their columns of the router.
template <int KIND>
__device__ __forceinline__ void router_parts(const Cta& cta, Ring& ring, SumMemory& scratch,
                                             int token_count) {
  using R = Router<KIND>;
  using Step = RouterStep<R::F.router_bf16>;
  const ScaledTile* scaled = scaled_stream(scratch);
  const int lane = cta.lane();
  float* parts = at<float>(cta.memory.router_parts) +
                 static_cast<size_t>(cta.index()) * TOKENS_MAX * R::EXPERTS;
#pragma unroll 1
  for (int first = 0; first < token_count; first += TILE_TOKENS) {
    // In operand B a lane has one token and pairs of columns, in products a pair of tokens.
    typename Step::Half x[OWNER_STEPS][2];
    const float(*columns)[TILE_TOKENS] = scaled[first / TILE_TOKENS] + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < OWNER_STEPS * 2; i++)
      x[i / 2][i % 2] = {columns[i * 8][lane / 4], columns[i * 8 + 1][lane / 4]};
    const int token = first + lane % 4 * 2;
    Ring taken = ring;
#pragma unroll 1
    for (int begin = 0; begin < R::TILES; begin += R::PAGE_TILES, taken.next()) {
      const uint32_t page = taken.wait();
      const int end = smaller(begin + R::PAGE_TILES, R::TILES);
#pragma unroll 1
      for (int tile = begin + cta.warp(); tile < end; tile += CONSUMER_WARPS) {
        // A sum for each step, so that consecutive products do not depend on one another.
        float sums[OWNER_STEPS][4] = {};
#pragma unroll
        for (int step = 0; step < OWNER_STEPS; step++) {
          typename Step::Weights weights;
          weights.load(page + (tile - begin) * R::TILE_BYTES + step * R::STEP_BYTES, lane);
          Step::multiply(sums[step], weights, x[step]);
        }
        float sum[4] = {};
#pragma unroll
        for (int i = 0; i < OWNER_STEPS * 4; i++) sum[i % 4] += sums[i / 4][i % 4];
        const int expert = tile * TILE_EXPERTS + lane / 4;
        float* to = parts + static_cast<size_t>(token) * R::EXPERTS + expert;
        const auto store = [&](int row, float of_first, float of_second) {
          if (expert + row >= R::EXPERTS) return;
          if (token < token_count) publish(to + row, of_first);
          if (token + 1 < token_count) publish(to + R::EXPERTS + row, of_second);
        };
        store(0, sum[0], sum[1]);
        store(8, sum[2], sum[3]);
      }
    }
  }
#pragma unroll 1
  for (int page = 0; page < R::PAGES; page++) ring.release(lane);
}

// The score of a router's product: a sigmoid, or itself where a softmax follows. The product is
// rounded, so that both passes have the same.
template <int KIND>
__device__ __forceinline__ float score_of(float sum, float inverse_rms) {
  if constexpr (Router<KIND>::SOFTMAX)
    return __fmul_rn(sum, inverse_rms);
  else
    return sigmoid(sum * inverse_rms);
}

// Partial sums of 32 outputs. Each warp adds the parts of some owners.
struct ScoreMemory {
  float sums[CONSUMER_WARPS][32];
  float inverse_rms;
};

// Scores of all tokens' experts, without the bias. A CTA computes 32 experts of a token at a time:
// each warp adds the parts of every twelfth owner, then one warp adds the warps' sums.
template <int KIND, bool POLLED>
__device__ __forceinline__ void router_scores(const Cta& cta, SumMemory& scratch, int token_count,
                                              float eps) {
  constexpr int EXPERTS = Router<KIND>::EXPERTS, GROUPS = ceil_div(EXPERTS, 32);
  constexpr int LOADS = ceil_div(OWNER_UNITS, CONSUMER_WARPS);
  ScoreMemory& memory = *reinterpret_cast<ScoreMemory*>(scratch.scratch);
  const float* parts = at<const float>(cta.memory.router_parts);
  float* scores = at<float>(cta.memory.router_scores);
  const int lane = cta.lane();
#pragma unroll 1
  for (int group = cta.index(); group < token_count * GROUPS; group += GRID) {
    const int token = group / GROUPS, expert = group % GROUPS * 32 + lane;
    const float* from = parts + static_cast<size_t>(token) * EXPERTS + smaller(expert, EXPERTS - 1);
    float values[LOADS];
    poll<POLLED>([&] {
      bool there = true;
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        const int unit = i * CONSUMER_WARPS + cta.warp();
        values[i] = unit < OWNER_UNITS
                        ? ptx::load_l2(from + static_cast<size_t>(unit) * TOKENS_MAX * EXPERTS)
                        : 0;
      }
#pragma unroll
      for (int i = 0; i < LOADS; i++) there = there && is_published(values[i]);
      return there;
    });
    if (cta.warp() == CONSUMER_WARPS - 1) {
      float inverse_rms;
      poll<POLLED>([&] {
        const SumOfSquares squares(cta, Reader::FeedForward, token);
        inverse_rms = squares.inverse_rms(eps);
        return squares.are_published();
      });
      if (lane == 0) memory.inverse_rms = inverse_rms;
      if (lane == 0 && group % GROUPS == 0)
        publish(scores + token * SCORES_EACH + EXPERTS, inverse_rms);
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
      const float score = score_of<KIND>(sum, memory.inverse_rms);
      if (expert < EXPERTS) publish(scores + token * SCORES_EACH + expert, score);
    }
    cta.sync();
  }
}

// Resets the polled values of the router. Called between two grid barriers, when no CTA polls them.
template <int KIND>
__device__ __forceinline__ void reset_scores(const Cta& cta, int token_count) {
  constexpr int EXPERTS = Router<KIND>::EXPERTS;
  const int first = cta.thread();
  uint32_t* scores = at<uint32_t>(cta.memory.router_scores);
#pragma unroll 1
  for (int i = first + cta.index() * CONSUMERS; i < token_count * SCORES_EACH;
       i += GRID * CONSUMERS)
    scores[i] = EMPTY;
  const int unit = cta.index();
  if (unit >= OWNER_UNITS) return;
  // Up to three more belong to a token that the batch does not have.
  static_assert(TOKENS_MAX % 4 == 0, "whole runs of four");
  uint4* parts = at<uint4>(cta.memory.router_parts) +
                 static_cast<size_t>(unit) * (TOKENS_MAX / 4) * EXPERTS;
#pragma unroll 1
  for (int i = first; i < ceil_div(token_count * EXPERTS, 4); i += CONSUMERS)
    parts[i] = make_uint4(EMPTY, EMPTY, EMPTY, EMPTY);
  if (first < token_count)
    reinterpret_cast<uint32_t*>(squares_of(cta.memory, Reader::FeedForward, first))[unit] = EMPTY;
}

constexpr int ROUTES_MAX = TILE_TOKENS * TOP_K_MAX;

// The chosen experts of one tile of tokens in ascending order, and which of each token's choices an
// expert is.
struct Routes {
  int count;
  uint16_t experts[ROUTES_MAX];
  // Index among the token's choices, or -1.
  alignas(16) int8_t choices[ROUTES_MAX][TILE_TOKENS];
  // Where `down` finds rows of the inner operand (phase/inner.cuh).
  union {
    // All rows: the place of a token's row.
    alignas(16) uint16_t places[TILE_TOKENS][ROUTES_MAX];
    // Sorted rows: an entry's tokens, a bit each, and its first row.
    struct {
      uint32_t tokens[ROUTES_MAX];
      uint16_t first_rows[ROUTES_MAX + 1];
    } sorted;
  };
  float weights[TILE_TOKENS][TOP_K_MAX];
  uint32_t bits[ceil_div(larger(EXPERTS_MAX, 1), 32)];
};

// Larger scores have larger keys, in the order of IEEE 754's totalOrder.
__device__ __forceinline__ uint32_t order_key(float score) {
  const uint32_t bits = __float_as_uint(score);
  const uint32_t key = bits ^ (bits >> 31 ? ~0u : 0x80000000u);
  return key > 0 ? key : 1;  // 0 is no score
}

// A token's scores.
__device__ __forceinline__ float* scores_of(const Memory& memory, int token) {
  return at<float>(memory.router_scores) + token * SCORES_EACH;
}

// The scores from which a warp chooses one token's experts.
template <int KIND, bool POLLED>
struct Scores {
  static constexpr int EXPERTS = FEED_FORWARDS[KIND].experts;
  static constexpr bool BIASED = FEED_FORWARDS[KIND].router_bias, SOFTMAX = Router<KIND>::SOFTMAX;
  static constexpr int EACH = ceil_div(EXPERTS, 32);
  // For experts lane, lane + 32 and so on.
  float scores[EACH], biases[EACH];
  float inverse_rms;

  Scores() = default;
  // `found` are a token's scores, followed by its 1 / rms.
  __device__ __forceinline__ Scores(const float* found, const float* bias, int lane) {
    // Only a lane's last expert may not exist; the others share one base address.
    const auto place = [&](const float* first, int i) {
      if ((i + 1) * 32 <= EXPERTS) return first + lane + i * 32;
      return first + smaller(i * 32 + lane, EXPERTS - 1);
    };
#pragma unroll
    for (int i = 0; i < EACH; i++) biases[i] = BIASED ? *place(bias, i) : 0;
    poll<POLLED>([&] {
      inverse_rms = ptx::load_l2(found + EXPERTS);
#pragma unroll
      for (int i = 0; i < EACH; i++) scores[i] = ptx::load_l2(place(found, i));
      bool there = is_published(inverse_rms);
#pragma unroll
      for (int i = 0; i < EACH; i++) there = there && is_published(scores[i]);
      return there;
    });
  }

  // The value by which experts are chosen.
  __device__ __forceinline__ float merit(int i) const {
    return BIASED ? scores[i] + biases[i] : scores[i];
  }
  // The value from which their weights are computed: a sigmoid without the router's bias.
  __device__ __forceinline__ float weighing(int i) const { return SOFTMAX ? merit(i) : scores[i]; }

  // Whether no score is NaN and, where a softmax reads them, none is infinite.
  __device__ __forceinline__ bool are_numbers() const {
    bool number = true;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const float score = SOFTMAX ? 0.0f * weighing(i) : scores[i];
      number = number && score == score;
    }
    return __all_sync(~0u, number);
  }

  // The sum of a softmax over all experts, relative to the largest score.
  __device__ __forceinline__ float sum_of_exponentials(float largest, int lane) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (i * 32 + lane < EXPERTS) sum += ptx::exp2((weighing(i) - largest) * ptx::LOG2_E);
    return add_lanes(sum);
  }

  // The top-k experts by `merit`, a bit each; of equals the lower comes first. All lanes get the
  // same.
  __device__ __forceinline__ void top_k(int lane, uint32_t (&chosen)[EACH]) const {
    constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
    uint32_t keys[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++)
      keys[i] = i * 32 + lane < EXPERTS ? order_key(merit(i)) : 0;
    const auto largest_of = [&](uint32_t (&best)[EACH]) {
#pragma unroll
      for (int distance = 1; distance < EACH; distance *= 2)
#pragma unroll
        for (int i = 0; i + distance < EACH; i += 2 * distance)
          best[i] = max(best[i], best[i + distance]);
      return __reduce_max_sync(~0u, best[0]);
    };
    const auto largest = [&] {
      uint32_t best[EACH];
#pragma unroll
      for (int i = 0; i < EACH; i++) best[i] = keys[i];
      return largest_of(best);
    };
    // If no scores are equal, the k-th largest key separates the experts.
    uint32_t least = largest();
#pragma unroll 1
    for (int choice = 1; choice < TOP_K; choice++) {
      uint32_t best[EACH];
#pragma unroll
      for (int i = 0; i < EACH; i++) best[i] = keys[i] < least ? keys[i] : 0;
      least = largest_of(best);
    }
    int count = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      chosen[i] = __ballot_sync(~0u, keys[i] >= least);
      count += __popc(chosen[i]);
    }
    if (count == TOP_K) return;
    // Otherwise they are chosen one by one.
    uint32_t picked = 0;
#pragma unroll 1
    for (int choice = 0; choice < TOP_K; choice++) {
      const uint32_t highest = largest();
      uint32_t own = ~0u;
#pragma unroll
      for (int i = EACH - 1; i >= 0; i--) own = keys[i] == highest ? i * 32 + lane : own;
      const uint32_t expert = __reduce_min_sync(~0u, own);
#pragma unroll
      for (int i = 0; i < EACH; i++)
        if (expert == static_cast<uint32_t>(i * 32 + lane)) {
          keys[i] = 0;
          picked |= 1u << i;
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) chosen[i] = __ballot_sync(~0u, picked >> i & 1);
  }
};

// One warp chooses one token's experts, and leaves them in `experts` in ascending order, with their
// weights in `weights`. `note(chosen)` is called as soon as they are known, with a bit for each.
template <int KIND, bool POLLED, class Note>
__device__ __forceinline__ void top_k_of_token(const Scores<KIND, POLLED>& scores,
                                               uint16_t* experts, float* weights, int lane,
                                               Note note) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  constexpr bool SOFTMAX = Router<KIND>::SOFTMAX;
  constexpr int EACH = Scores<KIND, POLLED>::EACH;
  static_assert(F.top_k < 32, "a lane for each choice, and one that counts");
  uint32_t chosen[EACH];
  scores.top_k(lane, chosen);
  note(chosen);
  const bool numbers = scores.are_numbers();
  int before = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int place = before + __popc(chosen[i] & ((1u << lane) - 1));
    if (chosen[i] >> lane & 1) {
      experts[place] = i * 32 + lane;
      weights[place] = scores.weighing(i);
    }
    before += __popc(chosen[i]);
  }
  __syncwarp();
  float all = 1.0f, largest = 0;
  if constexpr (SOFTMAX) {
    largest = weights[0];
#pragma unroll
    for (int choice = 1; choice < F.top_k; choice++) largest = fmaxf(largest, weights[choice]);
    if constexpr (!F.normalise) all = scores.sum_of_exponentials(largest, lane);
  }
  const auto raw = [&](int choice) {
    const float score = weights[choice];
    return SOFTMAX ? ptx::exp2((score - largest) * ptx::LOG2_E) : score;
  };
  // The weights are summed in ascending order of experts.
  float total = 0;
#pragma unroll
  for (int choice = 0; choice < F.top_k; choice++) total += raw(choice);
  const float own = raw(smaller(lane, F.top_k - 1));
  const float divisor = !numbers ? __uint_as_float(0x7fc00000u)
                                 : F.normalise ? total + 1e-20f : all;
  __syncwarp();
  if (lane < F.top_k) weights[lane] = ptx::divide(own, divisor) * F.scale;
}

// The row of a token's value for an entry, where rows are sorted by expert. For a token that has
// not chosen it, the entry's first row.
__device__ __forceinline__ int sorted_row(const Routes& routes, int entry, int token) {
  const uint32_t tokens = routes.sorted.tokens[entry], before = tokens & ((1u << token) - 1);
  return routes.sorted.first_rows[entry] + (tokens >> token & 1 ? __popc(before) : 0);
}

// One warp: counts the rows before each entry.
__device__ __forceinline__ void count_rows(Routes& routes, int lane) {
  constexpr int EACH = ceil_div(ROUTES_MAX, 32);
  int counts[EACH], before = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int entry = lane * EACH + i;
    counts[i] = entry < ROUTES_MAX ? __popc(routes.sorted.tokens[entry]) : 0;
    before += counts[i];
  }
  const int own = before;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(~0u, before, distance);
    if (lane >= distance) before += other;
  }
  before -= own;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int entry = lane * EACH + i;
    if (entry <= ROUTES_MAX) routes.sorted.first_rows[entry] = before;
    before += counts[i];
  }
  if (lane == 31) routes.sorted.first_rows[ROUTES_MAX] = before;
}

// The routes of one tile of tokens, the same in every CTA; where rows are SORTED, `complete_routes`
// follows. `place_of(row)` is where `down` finds a row of the inner operand, if they are not; the
// row after the last one holds zeros. Each warp that may choose calls `note()` when its token's
// experts are in `routes.bits`.
template <int KIND, bool POLLED, bool SORTED, class PlaceOf, class Note>
__device__ __forceinline__ void top_k_routes(const Cta& cta, Routes& routes, StreamMemory& stream,
                                              const float* bias, int token_count,
                                              PlaceOf place_of, Note note) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  constexpr int WORDS = ceil_div(F.experts, 32), ROWS = TILE_TOKENS * F.top_k;
  const int token = cta.warp(), lane = cta.lane();
  const bool chooses = token < token_count;
  for (int i = cta.thread(); i < WORDS; i += CONSUMERS) routes.bits[i] = 0;
#pragma unroll 1
  for (int i = cta.thread(); i < ROUTES_MAX * TILE_TOKENS / 4; i += CONSUMERS)
    reinterpret_cast<uint32_t*>(routes.choices)[i] = ~0u;
#pragma unroll 1
  for (int i = cta.thread(); i < (SORTED ? ROUTES_MAX : ROUTES_MAX * TILE_TOKENS / 2);
       i += CONSUMERS)
    reinterpret_cast<uint32_t*>(routes.places)[i] = SORTED ? 0 : place_of(ROWS) * 0x10001u;
  cta.sync();
  int expert = F.experts;
  if (chooses) {
    const Scores<KIND, POLLED> scores(scores_of(cta.memory, token), bias, lane);
    // The list of experts is written after the next sync, so a token's may lie there.
    uint16_t* experts = routes.experts + token * F.top_k;
    const auto note_bits = [&](const uint32_t(&chosen)[WORDS]) {
      int own = 0;
#pragma unroll
      for (int i = 0; i < WORDS; i++) {
        // Otherwise the compiler keeps them in local memory, to load one by its index.
        int word = chosen[i];
        ptx::make_opaque(word);
        own = lane == i ? word : own;
      }
      if (lane < WORDS) atomicOr(&routes.bits[lane], static_cast<uint32_t>(own));
      note();
    };
    top_k_of_token<KIND, POLLED>(scores, experts, routes.weights[token], lane, note_bits);
    if (lane == 0) stream.inverse_rms[token] = scores.inverse_rms;
    if (lane < F.top_k) expert = experts[lane];
  } else if (token < TILE_TOKENS) {
    note();
  }
  cta.sync();
  // The index of an expert in the list is the number of chosen experts below it.
  if (chooses && lane <= F.top_k) {
    int entry = 0;
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
      const int below = larger(smaller(expert - word * 32, 32), 0);
      entry += __popc(routes.bits[word] & static_cast<uint32_t>((1ull << below) - 1));
    }
    if (lane < F.top_k) {
      routes.experts[entry] = expert;
      routes.choices[entry][token] = lane;
      if constexpr (SORTED)
        atomicOr(&routes.sorted.tokens[entry], 1u << token);
      else
        routes.places[token][entry] = place_of(token * F.top_k + lane);
    } else {
      routes.count = entry;
    }
    if (SORTED && token_count == 1) routes.sorted.first_rows[entry] = entry;
  }
  cta.sync();
}

}  // namespace kilotok
