// Log-probabilities of the model's own distribution, before anything is processed. Twin of
// `logprobs` in crates/sampling.
#pragma once

#include "kilotok/sample/ranking.cuh"

namespace kilotok {

// How many tokens have a higher logit than a token, and the log-probability's way to it.
struct Measure {
  float logit;
  uint64_t above = 0;

  __device__ __forceinline__ Measure(const float* row, uint32_t token)
      : logit(token == NO_TOKEN ? exact::INFINITE : row[token]) {}
};

__device__ __forceinline__ float logprob(float logit, float max, float ln_total) {
  return exact::sub(exact::sub(exact::add(logit, 0.0f), max), ln_total);
}

// Lists the first `count` tokens of the row, sorted; returns how many there are.
__device__ __forceinline__ int list_first(RankScratch& s, Kept& kept,
                                          uint32_t count) {
  cut_row<false>(s, kept, Number{count});
  if (kept.listed >= 0) return kept.listed;
  return list(s, kept, Run{});
}

// Writes the report of a wanted token with finite logits, whose highest is `max`. NO_TOKEN for
// `chosen` or `scored` where there is none.
__device__ __noinline__ void report(const SampleMemory& memory, RankScratch& s,
                                       const Position& at, int wanted, float max, uint32_t chosen,
                                       uint32_t scored, uint32_t top_count) {
  const int vocab = static_cast<int>(memory.vocab);
  Measure of_chosen(at.logits, chosen), of_scored(at.logits, scored);
  uint64_t total = 0;
  over_quads<4, 1>(at.logits, 0, vocab, [&](int, float(&x)[QUAD], int count) {
#pragma unroll
    for (int j = 0; j < QUAD; j++) {
      if (j >= count) continue;
      total += exact::mass(x[j], max);
      of_chosen.above += x[j] > of_chosen.logit;
      of_scored.above += x[j] > of_scored.logit;
    }
  });
  total = total_of(s.sums, total);
  const uint64_t above_chosen = total_of(s.sums, of_chosen.above);
  const uint64_t above_scored = total_of(s.sums, of_scored.above);
  const float ln_total = exact::ln(exact::of_mass(total));
  if (Crew::thread() == 0)
    kilotok::at<Report>(memory.reports)[wanted] = {
        logprob(of_chosen.logit, max, ln_total), static_cast<uint32_t>(above_chosen),
        logprob(of_scored.logit, max, ln_total), static_cast<uint32_t>(above_scored)};
  if (top_count == 0) return;
  Kept kept(at.logits, vocab, max);
  const int count = list_first(s, kept, top_count);
  Top* tops = kilotok::at<Top>(memory.tops) + static_cast<size_t>(wanted) * TOPS_MAX;
  for (int i = Crew::thread(); i < count; i += CONSUMERS)
    tops[i] = {static_cast<uint32_t>(s.list[i]),
               logprob(exact::logit_of(s.list[i]), max, ln_total)};
}

}  // namespace kilotok
