// Rejection sampling with block verification: `Proposal::judge` of crates/sampling by
// `Rule::Joint`, bit for bit. `sample` has stored the logits of each draft's candidates, the sum of
// the target's probabilities, and the winner of the race among all other tokens. So judging takes
// no pass over a row.
#pragma once

#include "kilotok/sample/ranking.cuh"

namespace kilotok {

// The data of a draft that is judged, in shared memory; they do not depend on the drafts before it.
// A warp calls each function together. Loops are not unrolled: this code runs once a step, and
// reading it from memory takes longer than running it.
struct JudgedDraft {
  static_assert(CANDIDATES_MAX % 32 == 0, "lanes have as many each");
  // The candidates with their draft probabilities, and the target's logits and probabilities.
  // Missing candidates have no token and no probability.
  Candidate drawn[CANDIDATES_MAX];
  float logits[CANDIDATES_MAX], probabilities[CANDIDATES_MAX];
  // The draft's probability in the target's distribution, and the one with which it was drawn.
  float target, proposed;
  // The uniform number that decides.
  float uniform;
  // The winner of the race among all tokens that are no candidates.
  uint64_t others;

  __device__ __forceinline__ void load(uint32_t draft, const Candidate* law, const Judged* judged,
                                       const ChoicePart& part, const exact::Draws& draws) {
    const float max = exact::logit_of(part.best), total = exact::of_mass(part.mass);
    const int lane = Consumers::lane();
    if (lane == 0) {
      // The ratio of a token that could not be drawn is 0.
      target = 0.0f;
      proposed = 1.0f;
      uniform = exact::unit(draws.bits(0));
      others = part.winner;
    }
    __syncwarp();
#pragma unroll 1
    for (int place = lane; place < CANDIDATES_MAX; place += 32) {
      const Candidate own = law[place];
      const float logit = own.token == NO_TOKEN ? -exact::INFINITE : judged[place].logit;
      const float probability = exact::div(exact::exp(exact::sub(logit, max)), total);
      drawn[place] = own;
      logits[place] = logit;
      probabilities[place] = probability;
      if (own.token != draft) continue;
      target = probability;
      proposed = own.probability;
    }
  }

  // `mass * p / q` of the draft, at most 1.
  __device__ __forceinline__ float ratio(float mass) const {
    return fminf(exact::div(exact::mul(mass, target), proposed), 1.0f);
  }

  // The sum of max(mass * p - q, 0) over all tokens: what p and q do not share.
  __device__ __forceinline__ float residual_mass(float mass) const {
    uint64_t shared = 0;
#pragma unroll 1
    for (int place = Consumers::lane(); place < CANDIDATES_MAX; place += 32) {
      const float p = exact::mul(mass, probabilities[place]);
      shared +=
          __float2ull_rz(exact::mul(fminf(p, drawn[place].probability), exact::MASS_ONE));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      shared += __shfl_xor_sync(~0u, shared, distance);
    return fmaxf(exact::sub(mass, exact::of_mass(shared)), 0.0f);
  }

  // The winner of the race by the residual, or by the target's own distribution.
  __device__ __forceinline__ uint64_t race(const exact::Draws& draws, float mass,
                                           bool residual) const {
    uint64_t winner = others;
#pragma unroll 1
    for (int place = Consumers::lane(); place < CANDIDATES_MAX; place += 32) {
      float logit = logits[place];
      if (residual) {
        const float p = exact::mul(mass, probabilities[place]);
        const float left = exact::sub(p, drawn[place].probability);
        logit = left > 0.0f ? exact::add(logit, exact::ln(exact::div(left, p)))
                            : -exact::INFINITE;
      }
      if (logit == -exact::INFINITE) continue;
      const uint32_t token = drawn[place].token;
      winner = Min{}(winner, exact::finish_time(draws.bits(token), logit, 1.0f, token));
    }
    return warp_min_key(winner);
  }
};

}  // namespace kilotok
