// Rejection sampling with block verification: `Proposal::judge` of crates/sampling by
// `Rule::Joint`, bit for bit. `sample` has stored the logits of each draft's candidates, what the
// target's probabilities add up to, and which of all other tokens wins the race. So what is left
// takes no pass over a row.
#pragma once

#include "kilotok/sample/ranking.cuh"

namespace kilotok {

// The target's law of a token: the highest logit, and the sum of e^(logit - highest).
struct TargetLaw {
  float max, total;
};

// A warp's candidates of one draft, those of this lane: what they were drawn with, and the target's
// logits and probabilities. Missing ones have no token and no probability.
struct Candidates {
  static constexpr int EACH = CANDIDATES_MAX / 32;
  static_assert(EACH * 32 == CANDIDATES_MAX, "lanes have as many each");
  Candidate drawn[EACH];
  float logits[EACH], probabilities[EACH];

  __device__ __forceinline__ Candidates(const Candidate* law, const Judged* judged,
                                        const TargetLaw& target) {
    const int lane = Consumers::lane();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      drawn[i] = law[lane * EACH + i];
      logits[i] = drawn[i].token == NO_TOKEN ? -exact::INFINITE : judged[lane * EACH + i].logit;
      probabilities[i] =
          exact::div(exact::exp(exact::sub(logits[i], target.max)), target.total);
    }
  }

  // `mass * p / q` of a draft, at most 1; 0 of a token that could not be drawn.
  __device__ __forceinline__ float ratio(uint32_t draft, float mass) const {
    float found = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (drawn[i].token == draft)
        found = exact::div(exact::mul(mass, probabilities[i]), drawn[i].probability);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      found = fmaxf(found, __shfl_xor_sync(~0u, found, distance));
    return fminf(found, 1.0f);
  }

  // The sum of max(mass * p - q, 0) over all tokens: what p and q do not share.
  __device__ __forceinline__ float residual_mass(float mass) const {
    uint64_t shared = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const float p = exact::mul(mass, probabilities[i]);
      shared += __float2ull_rz(exact::mul(fminf(p, drawn[i].probability), exact::MASS_ONE));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      shared += __shfl_xor_sync(~0u, shared, distance);
    return fmaxf(exact::sub(mass, exact::of_mass(shared)), 0.0f);
  }

  // The winner of the race by the residual, or by the target's own law, given that of all tokens
  // which are no candidates.
  __device__ __forceinline__ uint64_t race(const exact::Draws& draws, float mass, bool residual,
                                           uint64_t winner) const {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      float logit = logits[i];
      if (residual) {
        const float p = exact::mul(mass, probabilities[i]);
        const float left = exact::sub(p, drawn[i].probability);
        logit = left > 0.0f ? exact::add(logit, exact::ln(exact::div(left, p)))
                            : -exact::INFINITE;
      }
      if (logit == -exact::INFINITE) continue;
      const uint32_t token = drawn[i].token;
      winner = Min{}(winner, exact::finish_time(draws.bits(token), logit, 1.0f, token));
    }
    return warp_min_key(winner);
  }
};

}  // namespace kilotok
