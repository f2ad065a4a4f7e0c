// The race by which a token is drawn, see `Draws::race_logits` in crates/sampling: token t finishes
// at ln E_t - logit / temperature, the first wins.
//
// Few tokens can win, so a bound is tried first that costs a tenth of the time itself: as
// E > v, the uniform number, and log2(v) is no less than v's bits read as an integer, the bound is
// never later than the token. It may be 1e-3 too early, for its own rounding.
#pragma once

#include "kilotok/ptx/warp.cuh"
#include "kilotok/sample/row.cuh"

namespace kilotok {

struct Everyone {
  __device__ __forceinline__ bool operator()(float, uint32_t) const { return true; }
};

struct Race {
  exact::Draws draws;
  float temperature;
  float inverse;
  // No token that finishes later than this can win.
  float limit;
  // Of the tokens this thread has seen.
  uint64_t winner;

  __device__ __forceinline__ Race(const Position& at, float temperature)
      : draws{{static_cast<uint32_t>(at.slot->sampling.seed),
               static_cast<uint32_t>(at.slot->sampling.seed >> 32)},
              at.position},
        temperature(temperature),
        inverse(1.0f / temperature),
        limit(exact::INFINITE),
        winner(exact::NOBODY) {}

  __device__ __forceinline__ void enter(uint32_t token, float logit) {
    const uint64_t time = exact::finish(draws.bits(token), logit, temperature, token);
    winner = Smaller{}(winner, time);
  }

  // Whether a token with this lower bound of ln E may still win.
  __device__ __forceinline__ bool may_win(float ln_e, float logit) const {
    const float y = fmaxf(logit * inverse, -3e38f);
    return ln_e - fmaf(fabsf(y), 1e-6f, y) <= limit;
  }

  static __device__ __forceinline__ float ln_bound(uint32_t bits) {
    constexpr float ln_2 = 0.69314718f;
    const int log2 = __float_as_int(__uint2float_rn(bits));
    return fmaf(__int2float_rn(log2), ln_2 / 8388608.0f, -159.0f * ln_2);
  }

  // Four tokens, of which the first `count` exist and those take part that `keeps(logit, token)`
  // says. All lanes of a warp call together.
  template <class Keeps>
  __device__ __forceinline__ void enter_quad(int token, const float (&x)[QUAD], int count,
                                             Keeps keeps) {
    constexpr float least = -22.875f;  // below ln of the smallest E, 2^-33
    const float highest = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    if (!__any_sync(~0u, count > 0 && may_win(least, highest))) return;
    const uint4 four = draws.quad(static_cast<uint32_t>(token) / QUAD);
    const uint32_t bits[QUAD] = {four.x, four.y, four.z, four.w};
    bool able[QUAD];
    bool any = false;
#pragma unroll
    for (int j = 0; j < QUAD; j++) {
      able[j] = j < count && may_win(ln_bound(bits[j]), x[j]);
      any |= able[j];
    }
    if (!__any_sync(~0u, any)) return;
#pragma unroll
    for (int j = 0; j < QUAD; j++)
      if (able[j] && keeps(x[j], token + j))
        winner = Smaller{}(winner, exact::finish(bits[j], x[j], temperature, token + j));
    const uint32_t earliest = ptx::warp_min(static_cast<uint32_t>(winner >> 32));
    const float time = exact::from_ascending(earliest);
    limit = time + 1e-3f + fabsf(time) * 1e-6f;
  }
};

}  // namespace kilotok
