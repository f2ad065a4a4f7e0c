// Log-probabilities of the model's own distribution, before processing. The reference is `logprobs`
// in crates/sampling.
#pragma once

#include "kilotok/sample/ranking.cuh"

namespace kilotok {

// A token's logit, and how many tokens have a higher one (its rank).
struct Measure {
  float logit;
  uint32_t above = 0;

  __device__ __forceinline__ Measure(const float* row, uint32_t token)
      : logit(token == NO_TOKEN ? exact::INFINITE : row[token]) {}
};

__device__ __forceinline__ float logprob(float logit, float max, float ln_total) {
  return exact::sub(exact::sub(exact::add(logit, 0.0f), max), ln_total);
}

// Lists the first `count` tokens of the row, sorted; returns how many there are.
__device__ __forceinline__ int list_first(RankScratch& s, const float (&bests)[CONSUMERS],
                                          Kept& kept, int count) {
  const int head = list_head(s, bests, kept, count);
  if (head > 0) return head < count ? head : count;
  cut_row<false>(s, kept, Number{static_cast<uint32_t>(count)});
  return kept.listed >= 0 ? kept.listed : list(s, kept, Run{}, -exact::INFINITE);
}

// Reports each candidate of a draft that is judged: `verify` chooses one of them, or `chosen`.
__device__ __forceinline__ void report_candidates(RankScratch& s, const Kept& kept,
                                                  const Position& at, Judged* judged, float max,
                                                  float ln_total) {
  constexpr int AT_ONCE = 8;
  for (int first = 0; first < at.candidate_count; first += AT_ONCE) {
    float logit[AT_ONCE];
    uint32_t above[AT_ONCE] = {};
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      logit[i] = first + i < at.candidate_count ? kept.row[at.candidates->tokens[first + i]]
                                                : exact::INFINITE;
    for_each_quad<2>(kept.row, 0, kept.vocab, [&](int, float(&x)[QUAD], int count) {
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
        for (int j = 0; j < QUAD; j++) above[i] += j < count && x[j] > logit[i];
    });
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const uint64_t rank = total_of(s.sums, above[i]);
      if (Consumers::thread() != 0 || first + i >= at.candidate_count) continue;
      judged[first + i].logprob = logprob(logit[i], max, ln_total);
      judged[first + i].rank = static_cast<uint32_t>(rank);
    }
  }
}

// Writes the report of a wanted token with finite logits, given the highest logit `max` and each
// thread's highest in `bests`. `chosen` or `scored` is NO_TOKEN where there is none.
__device__ __noinline__ void report(const SampleMemory& memory, RankScratch& s,
                                    const float (&bests)[CONSUMERS], const Position& at, int wanted,
                                    float max, uint32_t chosen, uint32_t scored,
                                    uint32_t top_count) {
  Kept kept(at.logits, static_cast<int>(memory.vocab), 1.0f, max);
  Measure of_chosen(at.logits, chosen), of_scored(at.logits, scored);
  const uint64_t total =
      total_mass(s, kept, [&](int, const float(&x)[QUAD], int count) {
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
          of_chosen.above += j < count && x[j] > of_chosen.logit;
          of_scored.above += j < count && x[j] > of_scored.logit;
        }
      });
  const uint64_t above_chosen = total_of(s.sums, of_chosen.above);
  const uint64_t above_scored = total_of(s.sums, of_scored.above);
  const float ln_total = exact::ln(exact::of_mass(total));
  if (Consumers::thread() == 0)
    kilotok::at<Report>(memory.reports)[wanted] = {
        logprob(of_chosen.logit, max, ln_total), static_cast<uint32_t>(above_chosen),
        logprob(of_scored.logit, max, ln_total), static_cast<uint32_t>(above_scored)};
  if (at.judged())
    report_candidates(s, kept, at, kilotok::at<Judged>(memory.judged) + wanted * CANDIDATES_MAX,
                      max, ln_total);
  if (top_count == 0) return;
  const int count = list_first(s, bests, kept, static_cast<int>(top_count));
  Top* tops = kilotok::at<Top>(memory.tops) + static_cast<size_t>(wanted) * TOPS_MAX;
  for (int i = Consumers::thread(); i < count; i += CONSUMERS)
    tops[i] = {static_cast<uint32_t>(s.list[i]),
               logprob(exact::logit_of(s.list[i]), max, ln_total)};
}

}  // namespace kilotok
