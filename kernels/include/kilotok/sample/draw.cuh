// Draws a draft for rejection sampling from a distribution over its CANDIDATES_MAX likeliest
// tokens, which is kept for verification (the draft's *law*). The reference is `Sampler::propose`
// in crates/sampling, bit for bit. A draft may be drawn from any distribution, as long as it is
// judged by the same one; this one is small enough to keep in the slot and to exchange between
// ranks.
#pragma once

#include "kilotok/sample/ranking.cuh"

namespace kilotok {

struct DrawScratch {
  // Candidates, and their number, which may be more than the list has room for.
  uint64_t list[LIST_MAX];
  int listed;
  int finite[CONSUMER_WARPS];
};
static_assert(PARTS_MAX * CANDIDATES_MAX <= LIST_MAX, "candidates of all parts are listed");
static_assert(PARTS_MAX <= 32, "a lane for each part");
static_assert(RANKS_MAX * CANDIDATES_MAX <= LIST_MAX, "candidates of all ranks are listed");
static_assert(CANDIDATES_MAX <= CONSUMERS, "threads' best tokens show where candidates end");

// Says that logits are not finite: comes before all other keys.
constexpr uint64_t NOT_FINITE = 0;
// The first of the keys that stand for missing tokens: they come after all others, and no two are
// the same.
constexpr uint64_t NO_CANDIDATE = 0xff80000000000000ull;

// The part of a row of logits that a CTA reads, and the token that the row begins with.
struct RowPart {
  const float* row;
  int begin, end;
  int first_token;

  // The most likely token of this thread, as an index into the row.
  __device__ __forceinline__ Scan scan() const {
    Scan scan;
    for_each_quad<4>(row, begin, end, [&](int token, float(&x)[QUAD], int count) {
      pad(x, count);
      if (count > 0) scan.look(token, x);
    });
    return scan;
  }
};

// Lists the tokens of a part whose keys are at most `limit`, as many as there is room for, and
// sorts them. Returns whether all logits are finite.
__device__ __forceinline__ bool list_part(DrawScratch& s, const RowPart& part, uint64_t limit) {
  Consumers::sync();
  if (Consumers::thread() == 0) s.listed = 0;
  Consumers::sync();
  const float least = exact::logit_of(limit);
  float nothing = 0.0f;
  for_each_quad<4>(part.row, part.begin, part.end, [&](int token, float(&x)[QUAD], int count) {
#pragma unroll
    for (int j = 0; j < QUAD; j++) {
      if (j >= count) continue;
      nothing = __fmaf_rn(x[j], 0.0f, nothing);
      if (!(x[j] >= least)) continue;
      const uint64_t key = exact::rank_key(x[j], token + j);
      if (key > limit) continue;
      const int place = atomicAdd(&s.listed, 1);
      if (place < LIST_MAX) s.list[place] = key;
    }
  });
  const int finite = __all_sync(~0u, nothing == 0.0f) ? 1 : 0;
  const bool all = cta_reduce(s.finite, finite, [](int a, int b) { return a & b; }) != 0;
  sort(s.list, min(s.listed, LIST_MAX));
  return all;
}

// Writes the CANDIDATES_MAX likeliest tokens of a part, sorted; no two parts have the same number.
// The limit is the CANDIDATES_MAX-th of the threads' best keys, so at least CANDIDATES_MAX tokens
// are within it. If these are too many to list, the listed ones yield a tighter limit.
__device__ __forceinline__ void list_candidates(DrawScratch& s, const RowPart& part, int number,
                                                uint64_t* to) {
  const Scan scan = part.scan();
  const int thread = Consumers::thread();
  Consumers::sync();
  s.list[thread] = scan.token == NO_TOKEN ? NO_CANDIDATE + thread : scan.key();
  Consumers::sync();
  sort(s.list, CONSUMERS);
  bool finite;
  do {
    finite = list_part(s, part, s.list[CANDIDATES_MAX - 1]);
  } while (s.listed > LIST_MAX);
  if (thread >= CANDIDATES_MAX) return;
  uint64_t key = NO_CANDIDATE + number * CANDIDATES_MAX + thread;
  if (thread < s.listed) key = s.list[thread] + part.first_token;
  if (!finite && thread == 0) key = NOT_FINITE;
  to[thread] = key;
}

// Merges sorted lists of CANDIDATES_MAX keys each: lists their first CANDIDATES_MAX keys, and some
// after these, sorted. The lists are in global memory, where other CTAs have written them.
__device__ __forceinline__ void merge_candidates(DrawScratch& s, const uint64_t* lists,
                                                 int list_count) {
  // The keys up to `last` of all lists are together at least CANDIDATES_MAX.
  const int last = ceil_div(CANDIDATES_MAX, list_count) - 1, lane = Consumers::lane();
  uint64_t limit = 0;
  if (lane < list_count) limit = ptx::load_l2(lists + lane * CANDIDATES_MAX + last);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, limit, distance);
    limit = other > limit ? other : limit;
  }
  if (Consumers::thread() == 0) s.listed = 0;
  Consumers::sync();
  for (int i = Consumers::thread(); i < list_count * CANDIDATES_MAX; i += CONSUMERS) {
    const uint64_t key = ptx::load_l2(lists + i);
    if (key <= limit) s.list[atomicAdd(&s.listed, 1)] = key;
  }
  Consumers::sync();
  sort(s.list, s.listed);
}

// A draft that is drawn.
struct DrawnDraft {
  uint32_t slot;
  // The draft's index among the row's drafts, and the position of the first of them.
  int index;
  uint32_t first;
};

// A warp: draws a draft among the first CANDIDATES_MAX keys of a sorted list, and stores its law.
// Returns the token, or NO_TOKEN if a logit is not finite. min-p, top-k and top-p each keep some
// number of the first candidates.
struct Draw {
  static constexpr int EACH = CANDIDATES_MAX / 32;
  uint64_t keys[EACH];
  float values[EACH];
  uint64_t masses[EACH];
  float max;
  int count;

  __device__ __forceinline__ static int index(int i) { return Consumers::lane() * EACH + i; }

  // The number of candidates for which `is` is true, which must be the first ones.
  template <class Is>
  __device__ __forceinline__ static int count_first(Is is) {
    int count = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) count += __popc(__ballot_sync(~0u, is(i)));
    return count;
  }

  __device__ __forceinline__ Draw(const uint64_t* list, float temperature) {
    const bool greedy = temperature < TEMPERATURE_MIN;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      keys[i] = list[index(i)];
      values[i] = greedy ? 0.0f : exact::quotient(exact::logit_of(keys[i]), temperature);
    }
    max = __shfl_sync(~0u, values[0], 0);
    count = greedy ? 1 : count_first([&](int i) { return keys[i] < NO_CANDIDATE; });
  }

  // Returns the sum of the masses of the first `count` candidates; `sums` are the prefix sums.
  __device__ __forceinline__ uint64_t add_masses(uint64_t (&sums)[EACH]) {
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      masses[i] = index(i) < count ? exact::mass_of_one(values[i], max) : 0;
      sum += masses[i];
      sums[i] = sum;
    }
    uint64_t end = sum;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint64_t lower = __shfl_up_sync(~0u, end, distance);
      if (Consumers::lane() >= distance) end += lower;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) sums[i] += end - sum;
    return __shfl_sync(~0u, end, 31);
  }

  __device__ __forceinline__ void filter(const Sampling& sampling) {
    if (sampling.min_p > 0.0f) {
      const float least = fmaxf(sampling.min_p, __uint_as_float(0x00800000));
      const float floor = exact::add(max, exact::ln(least));
      count = min(count, count_first([&](int i) { return values[i] >= floor; }));
    }
    if (sampling.top_k > 0) count = min(static_cast<uint32_t>(count), sampling.top_k);
    if (sampling.top_p >= 1.0f) return;
    uint64_t sums[EACH];
    const double total = __ull2double_rn(add_masses(sums));
    const double enough = __dmul_rn(sampling.top_p, total);
    count = 1 + count_first([&](int i) {
              return index(i) + 1 < count && __ull2double_rn(sums[i]) < enough;
            });
  }

  __device__ __forceinline__ uint32_t race(const exact::Draws& draws) const {
    uint64_t winner = exact::NO_WINNER;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      if (index(i) >= count || values[i] == -exact::INFINITE) continue;
      const uint32_t token = static_cast<uint32_t>(keys[i]);
      winner = Min{}(winner, exact::finish_time(draws.bits(token), values[i], 1.0f, token));
    }
    return static_cast<uint32_t>(warp_min_key(winner));
  }

  __device__ __forceinline__ void store(Candidate* law) {
    uint64_t sums[EACH];
    const float total = exact::of_mass(add_masses(sums));
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const float weight = exact::exp(exact::sub(values[i], max));
      law[index(i)] = {NO_TOKEN, 0.0f};
      if (index(i) < count)
        law[index(i)] = {static_cast<uint32_t>(keys[i]), exact::div(weight, total)};
    }
  }
};

__device__ __forceinline__ uint32_t draw(const DraftMemory& memory, const uint64_t* list,
                                         const DrawnDraft& draft) {
  const Slot& slot = at<const Slot>(memory.slots)[draft.slot];
  Draw draw(list, exact::mul(slot.sampling.temperature, slot.draft_temperature));
  if (list[0] == NOT_FINITE || fabsf(draw.max) == exact::INFINITE) return NO_TOKEN;
  draw.filter(slot.sampling);
  draw.store(law_of(memory.proposals, draft.slot, draft.index));
  const uint32_t offset = draft.index;
  return draw.race({slot.sampling, draft.first, Purpose::Draft, offset});
}

}  // namespace kilotok
