// Sampling by an exponential race, which is equivalent to Gumbel-max (`Draws::race_logits` in
// crates/sampling): with E_t drawn from the exponential distribution, token t finishes at ln E_t -
// logit / temperature, and the first one wins.
//
// Few tokens can win, so times are computed in three steps. First a cheap lower bound: E > v, where
// v is the uniform number, and log2(v) is at least v's bits read as an integer. Then the time by
// the fast functions of the hardware, which lowers the limit for the whole warp. The exact time is
// computed for the rest, mostly one or two tokens in a warp. The first two have errors smaller than
// SLACK.
#pragma once

#include "kilotok/sample/row.cuh"

namespace kilotok {

struct Race {
  exact::Draws draws;
  float temperature;
  float inverse;
  // A token that finishes later than this cannot win.
  float limit;
  // The winner among the tokens of this thread.
  uint64_t winner;

  __device__ __forceinline__ Race(const Position& at, float temperature)
      : draws(at.slot->sampling, at.position, at.purpose()),
        temperature(temperature),
        inverse(1.0f / temperature),
        limit(exact::INFINITE),
        winner(exact::NO_WINNER) {}

  __device__ __forceinline__ void enter(uint32_t token, float logit) {
    const uint64_t time = exact::finish_time(draws.bits(token), logit, temperature, token);
    winner = Min{}(winner, time);
  }

  static __device__ __forceinline__ float later(float time) {
    constexpr float SLACK = 2e-3f, RELATIVE = 4e-6f;
    return time + SLACK + fabsf(time) * RELATIVE;
  }

  // A logit divided by the temperature, approximately.
  __device__ __forceinline__ float scaled(float logit) const {
    return fmaxf(logit * inverse, -3e38f);
  }

  // A lower bound of ln E. 127 + 32 are the exponent biases of F32 and of 2^-32.
  static __device__ __forceinline__ float ln_bound(uint32_t bits) {
    constexpr float LN_2 = 0.69314718f, FRACTION = 1.0f / 32768.0f;  // 23 bits of it, less 8
    const uint32_t log2 = __float_as_uint(__uint2float_rn(bits)) >> 8;
    // An integer below 2^23 becomes F32 as the fraction of 2^23.
    const float number = __uint_as_float(log2 | 0x4b000000u) - 8388608.0f;
    return fmaf(number, LN_2 * FRACTION, -159.0f * LN_2);
  }

  static __device__ __forceinline__ float fast_ln_e(uint32_t bits) {
    const float v = exact::unit(bits);
    const float e = v < 0.01f ? fmaf(0.5f * v, v, v) : -__logf(1.0f - v);
    return __logf(e);
  }

  // Enters four tokens, of which the first `count` exist and those take part for which
  // `keeps(logit, token)` is true. All lanes of a warp call together.
  template <class Keeps>
  __device__ __forceinline__ void enter_quad(int token, const float (&x)[QUAD], int count,
                                             Keeps keeps) {
    constexpr float LEAST = -22.875f;  // below ln of the smallest E, 2^-33
    const float highest = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    const bool possible = (count > 0) & (highest > -exact::INFINITE);
    if (!__any_sync(~0u, possible & (LEAST - scaled(highest) <= limit))) return;
    const uint4 four = draws.quad(static_cast<uint32_t>(token) / QUAD);
    const uint32_t bits[QUAD] = {four.x, four.y, four.z, four.w};
    bool able[QUAD];
#pragma unroll
    for (int j = 0; j < QUAD; j++)
      able[j] = (j < count) & (x[j] > -exact::INFINITE) &
                (ln_bound(bits[j]) - scaled(x[j]) <= limit);
    if (!__any_sync(~0u, able[0] | able[1] | able[2] | able[3])) return;
    float time[QUAD];
    float earliest = exact::INFINITE;
#pragma unroll
    for (int j = 0; j < QUAD; j++) {
      time[j] = exact::INFINITE;
      if (able[j] && keeps(x[j], token + j)) time[j] = fast_ln_e(bits[j]) - scaled(x[j]);
      earliest = fminf(earliest, time[j]);
    }
    const uint32_t first = ptx::warp_min(exact::ascending(earliest));
    limit = fminf(limit, later(exact::from_ascending(first)));
#pragma unroll
    for (int j = 0; j < QUAD; j++)
      if (time[j] <= limit && time[j] < exact::INFINITE)
        winner = Min{}(winner, exact::finish_time(bits[j], x[j], temperature, token + j));
  }
};

}  // namespace kilotok
