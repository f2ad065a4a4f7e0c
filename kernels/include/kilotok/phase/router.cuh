// Which experts each token goes to, in three steps. After each of the first two there is a grid
// barrier, or values are AWAITED one by one (comm/await.cuh).
//
//   router_parts  an owner multiplies its 48 columns of the stream with the router's: in F32, from
//                 shared memory, before anybody else has the new stream
//   router_scores the parts are added, in an order that is the same for every output
//   choose_routes every CTA chooses for itself, of one tile of tokens; for more phase/gathered.cuh
#pragma once

#include "kilotok/phase/activation.cuh"
#include "kilotok/phase/stream.cuh"

namespace kilotok {

// How an owner's products are shared out: a warp takes 32 experts, a lane four of them in every
// fourth row of the matrix. What bounds this is 128 bytes a cycle from shared memory, so no lane
// asks for a token's value for the sake of one expert.
constexpr int LANE_EXPERTS = 4;
constexpr int LANE_ROWS = 4;
using RouterSums = float[TILE_TOKENS][LANE_EXPERTS];

template <int KIND>
struct Router {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr int EXPERTS = F.experts;
  // A row of the matrix in memory: all experts' words, each one F32 weight or the BF16 weights of
  // two neighbouring columns of the stream, the first in the lower half.
  static constexpr int ROW_COLUMNS = F.router_bf16 ? 2 : 1;
  static constexpr int ROWS = OWNER_ROWS / ROW_COLUMNS;
  static constexpr int ROW_BYTES = align_up(EXPERTS, LANE_EXPERTS) * 4;
  // Whole runs of the rows that lanes share.
  static constexpr int PAGE_ROWS = smaller(PAGE_BYTES / ROW_BYTES / LANE_ROWS * LANE_ROWS, ROWS);
  static constexpr int PAGES = ceil_div(ROWS, PAGE_ROWS);
  static constexpr int UNIT_BYTES = ROWS * ROW_BYTES;
  static_assert(PAGES <= PAGE_COUNT, "an owner's part of the router lies in the ring as a whole");
};

// Producer of an owner: its columns of the router.
template <int KIND>
__device__ __forceinline__ void produce_router(Ring& ring, uint64_t address) {
  using R = Router<KIND>;
  const size_t cta = ptx::cta_index();
  const char* from = at<const char>(address) + cta * R::UNIT_BYTES;
#pragma unroll 1
  for (int row = 0; row < R::ROWS; row += R::PAGE_ROWS) {
    const int bytes = smaller(R::PAGE_ROWS, R::ROWS - row) * R::ROW_BYTES;
    ring.open(bytes);
    ring.bring(from + row * R::ROW_BYTES, 0, bytes);
    ring.next();
  }
}

// A weight of a word, of its only column or of the first or second.
template <int ROW_COLUMNS>
__device__ __forceinline__ float router_weight(uint32_t word, int column) {
  if constexpr (ROW_COLUMNS == 1) return __uint_as_float(word);
  return __uint_as_float(column == 0 ? word << 16 : word & 0xffff0000);
}

// A lane's products of one column of a row: four experts of each token.
template <int ROW_COLUMNS>
__device__ __forceinline__ void multiply_column(RouterSums& sums, const uint4& weights, int column,
                                                const float (&x)[TILE_TOKENS]) {
  const float4 halves[2] = {reinterpret_cast<const float4*>(x)[0],
                            reinterpret_cast<const float4*>(x)[1]};
  const uint32_t words[LANE_EXPERTS] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
  for (int i = 0; i < LANE_EXPERTS; i++) {
    const float weight = router_weight<ROW_COLUMNS>(words[i], column);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sums[half * 4][i] += halves[half].x * weight;
      sums[half * 4 + 1][i] += halves[half].y * weight;
      sums[half * 4 + 2][i] += halves[half].z * weight;
      sums[half * 4 + 3][i] += halves[half].w * weight;
    }
  }
}

// Adds what the lanes of other rows have, halving the tokens that each keeps: the first
// `TILE_TOKENS / LANE_ROWS` of `sums` are then of tokens from the returned one on.
__device__ __forceinline__ int add_rows(RouterSums& sums, int lane) {
  int first = 0;
#pragma unroll
  for (int halving = 1; 1 << halving <= LANE_ROWS; halving++) {
    const int kept = TILE_TOKENS >> halving, distance = 32 >> halving;
    const bool upper = lane & distance;
#pragma unroll
    for (int token = 0; token < kept; token++)
#pragma unroll
      for (int i = 0; i < LANE_EXPERTS; i++) {
        const float low = sums[token][i], high = sums[token + kept][i];
        const float other = __shfl_xor_sync(~0u, upper ? low : high, distance);
        sums[token][i] = (upper ? high : low) + other;
      }
    if (upper) first += kept;
  }
  return first;
}

// Owners: multiply their scaled part of the stream with their columns of the router.
template <int KIND>
__device__ __forceinline__ void router_parts(const Cta& cta, Ring& ring, SumMemory& scratch,
                                             int token_count) {
  using R = Router<KIND>;
  constexpr int WARP_EXPERTS = 32 / LANE_ROWS * LANE_EXPERTS;
  constexpr int TOKENS = TILE_TOKENS / LANE_ROWS;
  static_assert(R::ROWS % LANE_ROWS == 0, "lanes have as many rows");
  const ScaledTile* tiles = scaled_stream(scratch);
  const int row = cta.lane() / (32 / LANE_ROWS);
  float* parts = at<float>(cta.memory.router_parts) +
                 static_cast<size_t>(cta.index()) * TOKENS_MAX * R::EXPERTS;
#pragma unroll 1
  for (int of_warp = cta.warp() * WARP_EXPERTS; of_warp < R::EXPERTS;
       of_warp += CONSUMER_WARPS * WARP_EXPERTS) {
    const int expert = of_warp + cta.lane() % (32 / LANE_ROWS) * LANE_EXPERTS;
    // Lanes beyond the last expert compute it again.
    const int there = smaller(expert, R::ROW_BYTES / 4 - LANE_EXPERTS);
#pragma unroll 1
    for (int first = 0; first < token_count; first += TILE_TOKENS) {
      RouterSums sums = {};
      Ring taken = ring;
#pragma unroll 1
      for (int page = 0; page < R::PAGES; page++, taken.next()) {
        const uint32_t weights = taken.take() + row * R::ROW_BYTES + there * 4;
        const ScaledTile& x = tiles[first / TILE_TOKENS];
        // Eight columns of the stream at a time: four or twelve take longer (benches/results).
#pragma unroll(8 / R::ROW_COLUMNS)
        for (int i = 0; i < smaller(R::PAGE_ROWS, R::ROWS - page * R::PAGE_ROWS); i += LANE_ROWS) {
          const uint4 words = ptx::load_shared(weights + i * R::ROW_BYTES);
          const int first_column = (page * R::PAGE_ROWS + i + row) * R::ROW_COLUMNS;
#pragma unroll
          for (int column = 0; column < R::ROW_COLUMNS; column++)
            multiply_column<R::ROW_COLUMNS>(sums, words, column, x[first_column + column]);
        }
      }
      const int token = first + add_rows(sums, cta.lane());
#pragma unroll
      for (int t = 0; t < TOKENS; t++)
        if (expert < R::EXPERTS && token + t < token_count)
          hand_over_four<R::EXPERTS % LANE_EXPERTS == 0>(
              parts + static_cast<size_t>(token + t) * R::EXPERTS + expert, sums[t],
              R::EXPERTS - expert);
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
template <int KIND, bool AWAITED>
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
    look_for<AWAITED>([&] {
      bool there = true;
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        const int unit = i * CONSUMER_WARPS + cta.warp();
        values[i] = unit < OWNER_UNITS
                        ? ptx::load_l2(from + static_cast<size_t>(unit) * TOKENS_MAX * EXPERTS)
                        : 0;
      }
#pragma unroll
      for (int i = 0; i < LOADS; i++) there = there && is_there(values[i]);
      return there;
    });
    if (cta.warp() == CONSUMER_WARPS - 1) {
      float inverse_rms;
      look_for<AWAITED>([&] {
        const Squares squares(cta, Reader::Network, token);
        inverse_rms = squares.inverse_rms(eps);
        return squares.are_there();
      });
      if (lane == 0) memory.inverse_rms = inverse_rms;
      if (lane == 0 && group % GROUPS == 0)
        hand_over(scores + token * SCORES_EACH + EXPERTS, inverse_rms);
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
      const float score = sigmoid(sum * memory.inverse_rms);
      if (expert < EXPERTS) hand_over(scores + token * SCORES_EACH + expert, score);
    }
    cta.sync();
  }
}

// Between two grid barriers, when nobody looks for what the router's steps hand on: none is there.
template <int KIND>
__device__ __forceinline__ void forget_scores(const Cta& cta, int token_count) {
  constexpr int EXPERTS = Router<KIND>::EXPERTS;
  const int first = cta.thread();
  uint32_t* scores = at<uint32_t>(cta.memory.router_scores);
#pragma unroll 1
  for (int i = first + cta.index() * CONSUMERS; i < token_count * SCORES_EACH;
       i += GRID * CONSUMERS)
    scores[i] = NOT_YET;
  const int unit = cta.index();
  if (unit >= OWNER_UNITS) return;
  // Up to three more are of a token that the batch lacks.
  static_assert(TOKENS_MAX % 4 == 0, "whole runs of four");
  uint4* parts = at<uint4>(cta.memory.router_parts) +
                 static_cast<size_t>(unit) * (TOKENS_MAX / 4) * EXPERTS;
#pragma unroll 1
  for (int i = first; i < ceil_div(token_count * EXPERTS, 4); i += CONSUMERS)
    parts[i] = make_uint4(NOT_YET, NOT_YET, NOT_YET, NOT_YET);
  if (first < token_count)
    reinterpret_cast<uint32_t*>(squares_of(cta.memory, Reader::Network, first))[unit] = NOT_YET;
}

constexpr int ROUTES_MAX = TILE_TOKENS * TOP_K_MAX;

// The experts of one tile of tokens, in ascending order, and which of a token's choices each is.
struct Routes {
  int count;
  uint16_t experts[ROUTES_MAX];
  // Place among the token's choices, or -1.
  alignas(16) int8_t choices[ROUTES_MAX][TILE_TOKENS];
  // Where `down` finds the token's row of the inner operand.
  alignas(16) uint16_t places[TILE_TOKENS][ROUTES_MAX];
  float weights[TILE_TOKENS][TOP_K_MAX];
  uint32_t bits[ceil_div(larger(EXPERTS_MAX, 1), 32)];
};

// Larger scores have larger keys, in the order of IEEE 754's totalOrder.
__device__ __forceinline__ uint32_t order_key(float score) {
  const uint32_t bits = __float_as_uint(score);
  const uint32_t key = bits ^ (bits >> 31 ? ~0u : 0x80000000u);
  return key > 0 ? key : 1;  // 0 is no score
}

// What a warp needs to choose for one token.
template <int KIND, bool AWAITED>
struct Scores {
  static constexpr int EXPERTS = FEED_FORWARDS[KIND].experts;
  static constexpr int EACH = ceil_div(EXPERTS, 32);
  // Of experts lane, lane + 32 and so on.
  float scores[EACH], biases[EACH];
  float inverse_rms;

  __device__ __forceinline__ Scores(const Cta& cta, const float* bias, int token) {
    const float* found = at<const float>(cta.memory.router_scores) + token * SCORES_EACH;
    // Only a lane's last may lie beyond all: one address does for the others.
    const auto place = [&](const float* first, int i) {
      if ((i + 1) * 32 <= EXPERTS) return first + cta.lane() + i * 32;
      return first + smaller(i * 32 + cta.lane(), EXPERTS - 1);
    };
#pragma unroll
    for (int i = 0; i < EACH; i++) biases[i] = *place(bias, i);
    look_for<AWAITED>([&] {
      inverse_rms = ptx::load_l2(found + EXPERTS);
#pragma unroll
      for (int i = 0; i < EACH; i++) scores[i] = ptx::load_l2(place(found, i));
      bool there = is_there(inverse_rms);
#pragma unroll
      for (int i = 0; i < EACH; i++) there = there && is_there(scores[i]);
      return there;
    });
  }

  // Whether no score is a NaN.
  __device__ __forceinline__ bool are_numbers() const {
    bool number = true;
#pragma unroll
    for (int i = 0; i < EACH; i++) number = number && scores[i] == scores[i];
    return __all_sync(~0u, number);
  }

  // The best experts by score and bias, of equals the lower: lane c has choice c, and its score.
  __device__ __forceinline__ void best(int lane, uint32_t& mine, float& score) const {
    uint32_t keys[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++)
      keys[i] = i * 32 + lane < EXPERTS ? order_key(scores[i] + biases[i]) : 0;
    mine = ~0u;
#pragma unroll 1
    for (int choice = 0; choice < FEED_FORWARDS[KIND].top_k; choice++) {
      uint32_t best[EACH];
      int which[EACH];
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        best[i] = keys[i];
        which[i] = i;
      }
#pragma unroll
      for (int distance = 1; distance < EACH; distance *= 2)
#pragma unroll
        for (int i = 0; i + distance < EACH; i += 2 * distance)
          if (best[i + distance] > best[i]) {
            best[i] = best[i + distance];
            which[i] = which[i + distance];
          }
      const uint32_t highest = __reduce_max_sync(~0u, best[0]);
      const uint32_t own = best[0] == highest ? which[0] * 32 + lane : ~0u;
      const uint32_t expert = __reduce_min_sync(~0u, own);
      if (lane == choice) mine = expert;
#pragma unroll
      for (int i = 0; i < EACH; i++)
        if (expert == static_cast<uint32_t>(i * 32 + lane)) keys[i] = 0;
    }
    score = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const float other = __shfl_sync(~0u, scores[i], mine % 32);
      if (mine / 32 == i) score = other;
    }
  }
};

// One warp chooses for one token; the weights come from the scores without the bias. Lane c learns
// the expert of choice c, times 256, and its place among the token's experts, which is also that of
// its weight. `note(expert)` is called for each of them.
template <int KIND, bool AWAITED, class Note>
__device__ __forceinline__ uint32_t choose_for_token(const Scores<KIND, AWAITED>& scores,
                                                     float* weights, int lane, Note note) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  static_assert(F.top_k < 32, "a lane for each choice, and one that counts");
  const bool numbers = scores.are_numbers();
  uint32_t mine;
  float score;
  scores.best(lane, mine, score);
  // In ascending order of experts, as the sum of the weights wants them.
  int place = 0;
#pragma unroll
  for (int choice = 0; choice < F.top_k; choice++) place += __shfl_sync(~0u, mine, choice) < mine;
  if (lane < F.top_k) {
    weights[place] = score;
    note(mine);
  }
  __syncwarp();
  float total = 0;
#pragma unroll
  for (int choice = 0; choice < F.top_k; choice++) total += weights[choice];
  const float divisor = !numbers ? __uint_as_float(0x7fc00000u)
                                 : F.normalise ? total + 1e-20f : 1.0f;
  __syncwarp();
  if (lane < F.top_k) weights[place] = ptx::divide(score, divisor) * F.scale;
  return mine << 8 | place;
}

// The routes of one tile of tokens, in every CTA the same. `place_of(row)` is where `down` finds a
// row of the inner operand; the row behind the last is one of zeros.
template <int KIND, bool AWAITED, class PlaceOf>
__device__ __forceinline__ void choose_routes(const Cta& cta, Routes& routes, StreamMemory& stream,
                                              const float* bias, int token_count,
                                              PlaceOf place_of) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  constexpr int WORDS = ceil_div(F.experts, 32), ROWS = TILE_TOKENS * F.top_k;
  const int token = cta.warp(), lane = cta.lane();
  const bool chooses = token < token_count;
  for (int i = cta.thread(); i < WORDS; i += CONSUMERS) routes.bits[i] = 0;
#pragma unroll 1
  for (int i = cta.thread(); i < ROUTES_MAX * TILE_TOKENS / 4; i += CONSUMERS)
    reinterpret_cast<uint32_t*>(routes.choices)[i] = ~0u;
#pragma unroll 1
  for (int i = cta.thread(); i < ROUTES_MAX * TILE_TOKENS / 2; i += CONSUMERS)
    reinterpret_cast<uint32_t*>(routes.places)[i] = place_of(ROWS) * 0x10001u;
  cta.sync();
  uint32_t chosen = 0;
  if (chooses) {
    const Scores<KIND, AWAITED> scores(cta, bias, token);
    chosen = choose_for_token<KIND, AWAITED>(
        scores, routes.weights[token], lane,
        [&](uint32_t expert) { atomicOr(&routes.bits[expert / 32], 1u << expert % 32); });
    if (lane == 0) stream.inverse_rms[token] = scores.inverse_rms;
  }
  cta.sync();
  // The place of an expert in the list is how many chosen ones are below it.
  if (chooses && lane <= F.top_k) {
    const int expert = lane < F.top_k ? chosen >> 8 : F.experts, choice = chosen & 255;
    int entry = 0;
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
      const int below = larger(smaller(expert - word * 32, 32), 0);
      entry += __popc(routes.bits[word] & static_cast<uint32_t>((1ull << below) - 1));
    }
    if (lane < F.top_k) {
      routes.experts[entry] = expert;
      routes.choices[entry][token] = choice;
      routes.places[token][entry] = place_of(token * F.top_k + choice);
    } else {
      routes.count = entry;
    }
  }
  cta.sync();
}

}  // namespace kilotok
