// Rejection sampling with block verification: `Proposal::judge` of crates/sampling by
// `Rule::Joint`, bit for bit. `sample` has stored what the target makes of each draft's candidates,
// and which of all other tokens wins the race at each draft. So what is left takes no pass over a
// row.
#pragma once

#include "kilotok/sample/ranking.cuh"

namespace kilotok {

// A warp's candidates of one draft, those of this lane: what they were drawn with, and what the
// target makes of them. Missing ones have no token and no probability.
struct Candidates {
  static constexpr int EACH = CANDIDATES_MAX / 32;
  static_assert(EACH * 32 == CANDIDATES_MAX, "lanes have as many each");
  Candidate drawn[EACH];
  Judged judged[EACH];

  __device__ __forceinline__ Candidates(const Candidate* law, const Judged* of_target) {
    const int lane = Consumers::lane();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      drawn[i] = law[lane * EACH + i];
      judged[i] = {0.0f, -exact::INFINITE, 0.0f, 0};
      if (drawn[i].token != NO_TOKEN) judged[i] = of_target[lane * EACH + i];
    }
  }

  // `mass * p / q` of a draft, at most 1; 0 of a token that could not be drawn.
  __device__ __forceinline__ float ratio(uint32_t draft, float mass) const {
    float found = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (drawn[i].token == draft)
        found = exact::div(exact::mul(mass, judged[i].probability), drawn[i].probability);
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
      const float p = exact::mul(mass, judged[i].probability);
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
      float logit = judged[i].logit;
      if (residual) {
        const float p = exact::mul(mass, judged[i].probability);
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
