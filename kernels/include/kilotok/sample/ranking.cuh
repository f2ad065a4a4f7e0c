// Top-k and top-p: keeps the first tokens of a row's ranking, either a number of them or as many as
// have a given share of the probability. The reference is `filter` and `Ranking` in
// crates/sampling.
//
// Usually few are kept. At least n tokens, and not many more, lie at or above the n-th highest of
// the threads' highest logits: these are listed and sorted as the head of the ranking. Where the
// head is too short (a large top-k, a flat distribution, thousands of equal logits), tokens are
// counted or weighed in bins by their distance from the highest. The ranking is cut in the bin of
// the last kept token, after more passes by digits of the rank key (radix select) if the bin has
// too many tokens to list.
#pragma once

#include "kilotok/sample/scan.cuh"

namespace kilotok {

constexpr int THREAD_BINS = 4;
constexpr int BINS = CONSUMERS * THREAD_BINS;
// Bins per unit of logit. The bins cover 32 units; below e^-28 a token has no mass.
constexpr float BIN_SCALE = BINS / 32.0f;
constexpr int DIGIT_BITS = 10;
constexpr uint64_t DIGIT = (1ull << DIGIT_BITS) - 1;
// The most tokens that are listed and sorted, in 16 KB of shared memory. More are weighed in bins
// first, which takes further passes over the row.
constexpr int LIST_MAX = 2048;
// The least number of tokens of a head: more than the top-k of most requests, and fewer than
// threads, whose highest logits determine where it ends.
constexpr int HEAD = 256;
static_assert(HEAD <= CONSUMERS && CONSUMERS <= LIST_MAX, "threads' highest logits are listed");
constexpr int THREAD_LISTED = ceil_div(LIST_MAX, CONSUMERS);
constexpr int MASS_BITS = 14;
static_assert(VOCAB <= 1 << (32 - MASS_BITS), "parts of masses do not overflow");
static_assert(BINS >= 1 << DIGIT_BITS, "a digit has its bins");

struct RankScratch {
  uint64_t list[LIST_MAX];
  // Masses in three parts: the sum of 14 bits of up to 2^18 tokens fits 32 bits.
  uint32_t masses[3][BINS];
  uint32_t counts[BINS];
  uint64_t sums[CONSUMER_WARPS];
  uint64_t warps[CONSUMER_WARPS];
  uint64_t before;
  int found;
  uint32_t listed;
};

// A row before temperature, and which of its tokens are kept.
struct Kept {
  const float* row;
  int vocab;
  float temperature;
  // These and all below are final logits, after temperature.
  float max;
  float floor;
  // The rank key of the last token.
  uint64_t last;
  // The number of kept tokens if all of them are sorted in the list, otherwise -1.
  int listed;

  __device__ __forceinline__ Kept(const float* row, int vocab, float temperature, float highest)
      : row(row),
        vocab(vocab),
        temperature(temperature),
        max(value(highest)),
        floor(-exact::INFINITE),
        last(exact::rank_key(-exact::INFINITE, 0) - 1),
        listed(-1) {}

  __device__ __forceinline__ float value(float x) const {
    return temperature == 1.0f ? x : exact::quotient(x, temperature);
  }

  // Slightly below `x`: so close that few logits lie between, and so far that those below it have
  // lower values than `x` after the division, whatever its rounding.
  __device__ __forceinline__ float below(float x) const {
    return temperature == 1.0f ? x : x - fabsf(x) * 1e-6f - 1e-30f;
  }

  __device__ __forceinline__ bool has(float value, uint64_t key) const {
    return (value >= floor) & (key <= last);
  }

  // Whether all allowed tokens are kept.
  __device__ __forceinline__ bool all() const {
    return floor == -exact::INFINITE && last == exact::rank_key(-exact::INFINITE, 0) - 1;
  }

  __device__ __forceinline__ bool operator()(float x, uint32_t token) const {
    const float final = value(x);
    return has(final, exact::rank_key(final, token));
  }

  __device__ __forceinline__ int bin(float value) const {
    const float distance = (max - value) * BIN_SCALE;
    return distance < BINS - 1 ? __float2int_rz(distance) : BINS - 1;
  }

  // Calls `each(value, key)` with the final logit and the rank key of every token that is kept
  // and whose logit is at least `least`.
  template <int AHEAD, class Each>
  __device__ __forceinline__ void over(float least, Each each) const {
    for_each_quad<AHEAD>(row, 0, vocab, [&](int token, float(&x)[QUAD], int count) {
      if (fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])) < least) return;
#pragma unroll
      for (int j = 0; j < QUAD; j++) {
        if (j >= count || x[j] < least) continue;
        const float final = value(x[j]);
        const uint64_t key = exact::rank_key(final, token + j);
        if (has(final, key)) each(final, key);
      }
    });
  }
};

// Finds the first of the items, THREAD_ITEMS a thread, at which `before` plus the prefix sum of
// weights is `enough`. Stores its index in `found` and the sum of those before it in `before`.
template <int THREAD_ITEMS, class Weight, class Enough>
__device__ __forceinline__ void find(RankScratch& s, uint64_t before, Weight weight,
                                     Enough enough) {
  uint64_t own[THREAD_ITEMS], sum = 0;
#pragma unroll
  for (int i = 0; i < THREAD_ITEMS; i++) {
    own[i] = weight(Consumers::thread() * THREAD_ITEMS + i);
    sum += own[i];
  }
  uint64_t end = sum;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t lower = __shfl_up_sync(~0u, end, distance);
    if (Consumers::lane() >= distance) end += lower;
  }
  if (Consumers::lane() == 31) s.warps[Consumers::warp()] = end;
  Consumers::sync();
  for (int warp = 0; warp < Consumers::warp(); warp++) before += s.warps[warp];
  uint64_t at = before + end - sum;
  if (!enough(at) && enough(at + sum)) {
    int i = 0;
#pragma unroll
    for (int k = 0; k < THREAD_ITEMS - 1; k++)
      if (i == k && !enough(at + own[k])) {
        at += own[k];
        i++;
      }
    s.found = Consumers::thread() * THREAD_ITEMS + i;
    s.before = at;
  }
  Consumers::sync();
}

// Sorts a list of LIST_MAX places in ascending order; no two keys are equal.
__device__ __noinline__ void sort(uint64_t* list, int count) {
  if (count <= CONSUMERS) {
    // Rank sort: a key's index is the number of smaller keys.
    constexpr int AT_ONCE = 4;
    const uint64_t own = Consumers::thread() < count ? list[Consumers::thread()] : ~0ull;
    if (Consumers::thread() < AT_ONCE) list[count + Consumers::thread()] = ~0ull;
    Consumers::sync();
    int place[AT_ONCE] = {};
    for (int i = 0; i < count; i += AT_ONCE)
#pragma unroll
      for (int k = 0; k < AT_ONCE; k++) place[k] += list[i + k] < own ? 1 : 0;
    Consumers::sync();
    if (Consumers::thread() < count) list[place[0] + place[1] + place[2] + place[3]] = own;
    Consumers::sync();
    return;
  }
  int size = 2;
  while (size < count) size *= 2;
#pragma unroll 1
  for (int i = count + Consumers::thread(); i < size; i += CONSUMERS) list[i] = ~0ull;
  Consumers::sync();
  for (int run = 2; run <= size; run *= 2)
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = Consumers::thread(); pair < size / 2; pair += CONSUMERS) {
        const int low = 2 * pair - (pair & (distance - 1));
        const uint64_t a = list[low], b = list[low + distance];
        if ((a > b) == ((low & run) == 0)) {
          list[low] = b;
          list[low + distance] = a;
        }
      }
      Consumers::sync();
    }
}

// A run of the ranking within the kept tokens: bins `first` to `end` - 1, and digits of the rank
// key.
struct Run {
  int first = 0, end = BINS;
  uint64_t digits = 0, prefix = 0;

  __device__ __forceinline__ bool has(int bin, uint64_t key) const {
    return bin >= first && bin < end && (key & digits) == prefix;
  }
};

// Lists and sorts the kept tokens of a run with a logit of at least `least`. Returns their number,
// or -1 if there are more than LIST_MAX.
__device__ __noinline__ int list(RankScratch& s, const Kept& kept, const Run& run, float least) {
  Consumers::sync();
  if (Consumers::thread() == 0) s.listed = 0;
  Consumers::sync();
  kept.over<6>(least, [&](float value, uint64_t key) {
    if (!run.has(kept.bin(value), key)) return;
    const uint32_t place = atomicAdd(&s.listed, 1u);
    if (place < LIST_MAX) s.list[place] = key;
  });
  Consumers::sync();
  const int count = static_cast<int>(s.listed);
  if (count > LIST_MAX) return -1;
  sort(s.list, count);
  return count;
}

// The n-th highest of the threads' highest logits.
__device__ __forceinline__ float nth_best(RankScratch& s, const float (&bests)[CONSUMERS], int n) {
  Consumers::sync();
  s.list[Consumers::thread()] = exact::rank_key(bests[Consumers::thread()], Consumers::thread());
  Consumers::sync();
  sort(s.list, CONSUMERS);
  return exact::logit_of(s.list[n - 1]);
}

// Top-k: a number of tokens.
struct Number {
  uint32_t count;

  __device__ __forceinline__ bool operator()(uint64_t sum) const { return sum >= count; }
};

// Top-p: a share of the mass of all tokens, once that is known.
struct Share {
  float share;
  double least;

  __device__ __forceinline__ bool operator()(uint64_t sum) const {
    return __ull2double_rn(sum) >= least;
  }
  __device__ __forceinline__ void of(uint64_t total) {
    least = __dmul_rn(share, __ull2double_rn(total));
  }
};

// Tokens in bins before `end`.
__device__ __forceinline__ int count_before(RankScratch& s, int end) {
  uint64_t count = 0;
  for (int bin = Consumers::thread(); bin < end; bin += CONSUMERS) count += s.counts[bin];
  return static_cast<int>(total_of(s.sums, count));
}

// Drops tokens of a sorted list after the first at which the sum of weights, from `before` on, is
// `enough`.
template <bool MASS, class Enough>
__device__ __forceinline__ void cut_list(RankScratch& s, Kept& kept, int count,
                                         uint64_t before, Enough enough) {
  const auto weight = [&](int i) -> uint64_t {
    if (i >= count) return 0;
    return MASS ? exact::mass_of_one(exact::logit_of(s.list[i]), kept.max) : 1;
  };
  find<THREAD_LISTED>(s, before, weight, enough);
  kept.last = s.list[s.found];
}

// Adds up the tokens of a run by bin, or by the digit of the rank key at `shift` if that is below
// 64.
template <bool MASS>
__device__ __forceinline__ void weigh(RankScratch& s, const Kept& kept, const Run& run, int shift) {
  Consumers::sync();
  for (int bin = Consumers::thread(); bin < BINS; bin += CONSUMERS) {
    s.counts[bin] = 0;
    if (MASS) s.masses[0][bin] = s.masses[1][bin] = s.masses[2][bin] = 0;
  }
  Consumers::sync();
  kept.over<2>(-exact::INFINITE, [&](float x, uint64_t key) {
    int bin = kept.bin(x);
    if (!run.has(bin, key)) return;
    if (shift < 64) bin = static_cast<int>(key >> shift & DIGIT);
    atomicAdd(&s.counts[bin], 1u);
    if (!MASS) return;
    const uint64_t mass = exact::mass_of_one(x, kept.max);
#pragma unroll
    for (int part = 0; part < 3; part++)
      if (mass >> part * MASS_BITS != 0)
        atomicAdd(&s.masses[part][bin],
                  static_cast<uint32_t>(mass >> part * MASS_BITS) & ((1u << MASS_BITS) - 1));
  });
  Consumers::sync();
}

// Drops all kept tokens after the first at which the sum is `enough`: an exact cut of the ranking.
template <bool MASS, class Enough>
__device__ __noinline__ void cut_row(RankScratch& s, Kept& kept, Enough enough) {
  const auto weight = [&](int bin) -> uint64_t {
    if (!MASS) return s.counts[bin];
    const uint64_t high = s.masses[2][bin], middle = s.masses[1][bin];
    return (high << 2 * MASS_BITS) + (middle << MASS_BITS) + s.masses[0][bin];
  };
  Run run;
  weigh<MASS>(s, kept, run, 64);
  uint64_t total = 0;
  for (int bin = Consumers::thread(); bin < BINS; bin += CONSUMERS) total += weight(bin);
  total = total_of(s.sums, total);
  if constexpr (MASS)
    enough.of(total);
  else if (total <= enough.count)
    return;
  find<THREAD_BINS>(s, 0, weight, enough);
  run.end = s.found + 1;
  uint64_t before = s.before;
  int members = static_cast<int>(s.counts[s.found]);
  const bool whole = count_before(s, s.found) + members <= LIST_MAX;
  if (whole)
    before = 0;
  else
    run.first = run.end - 1;
#pragma unroll 1
  for (int shift = 64 - DIGIT_BITS; !whole && members > LIST_MAX; shift -= DIGIT_BITS) {
    weigh<MASS>(s, kept, run, shift);
    find<THREAD_BINS>(s, before, weight, enough);
    before = s.before;
    members = static_cast<int>(s.counts[s.found]);
    run.digits |= DIGIT << shift;
    run.prefix |= static_cast<uint64_t>(s.found) << shift;
  }
  cut_list<MASS>(s, kept, list(s, kept, run, -exact::INFINITE), before, enough);
  if (whole) kept.listed = s.found + 1;
}

// The mass of all kept tokens. `each(token, x, count)` is called for every four tokens of the row.
template <class Each>
__device__ __forceinline__ uint64_t total_mass(RankScratch& s, const Kept& kept, Each each) {
  uint64_t total = 0;
  const bool all = kept.all();
  for_each_quad<1>(kept.row, 0, kept.vocab, [&](int token, float(&x)[QUAD], int count) {
    each(token, x, count);
    if (kept.temperature != 1.0f)
      for (float& one : x) one = exact::div(one, kept.temperature);
    if (kept.max - fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])) > exact::MASSLESS) return;
    if (!all) {
#pragma unroll
      for (int j = 0; j < QUAD; j++)
        x[j] = kept.has(x[j], exact::rank_key(x[j], token + j)) ? x[j] : -exact::INFINITE;
    }
#pragma unroll
    for (int j = 0; j < QUAD; j++)
      total += exact::mass(j < count ? x[j] : -exact::INFINITE, kept.max);
  });
  return total_of(s.sums, total);
}

// The mass of the first `count` tokens of the list, relative to the maximum.
__device__ __forceinline__ uint64_t listed_mass(RankScratch& s, const Kept& kept, int count) {
  uint64_t total = 0;
  for (int i = Consumers::thread(); i < count; i += CONSUMERS)
    total += exact::mass_of_one(exact::logit_of(s.list[i]), kept.max);
  return total_of(s.sums, total);
}

// The mass of all kept tokens, whichever way they are kept.
__device__ __noinline__ uint64_t mass_of(RankScratch& s, const Kept& kept) {
  if (kept.listed >= 0) return listed_mass(s, kept, kept.listed);
  return total_mass(s, kept, [](int, const float(&)[QUAD], int) {});
}

// Lists the head of the ranking: at least `count` tokens, or all that are kept. Returns their
// number, or 0 if they are too many. If the head is all that is kept, `kept.listed` is set too.
__device__ __forceinline__ int list_head(RankScratch& s, const float (&bests)[CONSUMERS],
                                         Kept& kept, int count) {
  const float least = kept.below(nth_best(s, bests, count));
  const int listed = list(s, kept, Run{}, least);
  if (listed >= 0 && (listed < count || kept.value(least) < kept.floor)) kept.listed = listed;
  return listed < 0 ? 0 : listed;
}

// Min-p, top-k and top-p, given the highest logit of every thread.
__device__ __noinline__ void filter(RankScratch& s, const float (&bests)[CONSUMERS],
                                    const Sampling& sampling, Kept& kept) {
  const uint32_t top_k = sampling.top_k;
  if (sampling.min_p > 0.0f)
    kept.floor = exact::add(kept.max,
                            exact::ln(fmaxf(sampling.min_p, __uint_as_float(0x00800000))));
  if (top_k > HEAD) cut_row<false>(s, kept, Number{top_k});
  int head = 0;
  if (kept.listed < 0) head = list_head(s, bests, kept, top_k > 0 && top_k < HEAD ? top_k : HEAD);
  if (top_k > 0 && top_k <= HEAD) {
    if (head == 0) {
      cut_row<false>(s, kept, Number{top_k});
    } else if (head >= static_cast<int>(top_k)) {
      kept.last = s.list[top_k - 1];
      kept.listed = top_k;
    }
  }
  if (sampling.top_p >= 1.0f) return;
  Share share{sampling.top_p, 0.0};
  if (kept.listed >= 0) {
    head = kept.listed;
    share.of(listed_mass(s, kept, head));
  } else {
    share.of(total_mass(s, kept, [](int, const float(&)[QUAD], int) {}));
    if (head == 0 || !share(listed_mass(s, kept, head))) {
      cut_row<true>(s, kept, share);
      return;
    }
  }
  cut_list<true>(s, kept, head, 0, share);
  kept.listed = s.found + 1;
}

// The winner of the race among this thread's kept tokens that are no candidates of a draft.
__device__ __noinline__ uint64_t race(const RankScratch& s, const Position& at,
                                         const Kept& kept) {
  if (kept.listed >= 0) {
    Race race(at, 1.0f);
    for (int i = Consumers::thread(); i < kept.listed; i += CONSUMERS) {
      const uint32_t token = static_cast<uint32_t>(s.list[i]);
      if (!at.is_candidate(token)) race.enter(token, exact::logit_of(s.list[i]));
    }
    return race.winner;
  }
  Race race(at, kept.temperature);
  for_each_quad<3>(kept.row, 0, kept.vocab, [&](int token, float(&x)[QUAD], int count) {
    race.enter_quad(token, x, count, [&](float logit, uint32_t token) {
      return kept(logit, token) && !at.is_candidate(token);
    });
  });
  return race.winner;
}

}  // namespace kilotok
