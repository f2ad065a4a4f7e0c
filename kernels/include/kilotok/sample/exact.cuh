// The arithmetic of crates/sampling, bit for bit: single IEEE operations in its order, which the
// compiler may not fuse, and integers.
#pragma once

#include "kilotok/ptx/warp.cuh"

namespace kilotok::exact {

constexpr float INFINITE = __builtin_bit_cast(float, 0x7f800000);
constexpr float MASS_ONE = 1099511627776.0f;  // 2^40

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float div(float a, float b) { return __fdiv_rn(a, b); }

// A division for rare use, out of line because it takes many instructions.
__device__ __noinline__ float quotient(float a, float b) { return __fdiv_rn(a, b); }

// x = 2^n (1 + f).
__device__ __forceinline__ void split(float x, float& n, float& f) {
  constexpr uint32_t base = 0x3f3504f3;  // of the root of one half
  const uint32_t bits = __float_as_uint(x) + (0x3f800000 - base);
  n = sub(__int2float_rn(static_cast<int>(bits >> 23)), 127.0f);
  f = sub(__uint_as_float((bits & 0x007fffff) + base), 1.0f);
}

__device__ __forceinline__ float ln_of_split(float n, float f) {
  const float s = div(f, add(2.0f, f));
  const float z = mul(s, s);
  const float w = mul(z, z);
  const float even = mul(w, add(0.40000972f, mul(w, 0.24279079f)));
  const float odd = mul(z, add(0.6666666f, mul(w, 0.28498787f)));
  const float r = add(even, odd);
  const float half = mul(mul(0.5f, f), f);
  const float low = add(mul(s, add(half, r)), mul(n, -2.1219444e-4f));
  return add(add(sub(low, half), f), mul(n, 0.6933594f));
}

// ln of a positive normal number.
__device__ __forceinline__ float ln(float x) {
  float n, f;
  split(x, n, f);
  return ln_of_split(n, f);
}

// ln(1 - v) for v in (0, 1).
__device__ __forceinline__ float ln_1m(float v) {
  float n, f;
  split(sub(1.0f, v), n, f);
  return ln_of_split(n, n == 0.0f ? -v : f);
}

// e^x for x <= 0.
__device__ __forceinline__ float exp(float x) {
  constexpr float round = 12582912.0f;
  constexpr float coefficients[] = {1.3982e-3f, 8.333452e-3f, 4.1665796e-2f, 1.6666666e-1f, 0.5f};
  const float bounded = fmaxf(x, -87.0f);
  // Has n in the low bits of its fraction.
  const float rounded = add(mul(bounded, 1.44269504f), round);
  const float n = sub(rounded, round);
  const float r = sub(sub(bounded, mul(n, 0.6933594f)), mul(n, -2.1219444e-4f));
  float series = 1.9875691e-4f;
#pragma unroll
  for (int i = 0; i < 5; i++) series = add(mul(series, r), coefficients[i]);
  const float value = add(add(mul(series, mul(r, r)), r), 1.0f);
  // Selecting the zero here needs no branch around the computation.
  const uint32_t scale = x < -87.0f ? 0 : (__float_as_uint(rounded) + 127) << 23;
  return mul(value, __uint_as_float(scale));
}

// e^(logit - max) in units of 2^-40, rounded down.
__device__ __forceinline__ uint64_t mass(float logit, float max) {
  return __float2ull_rz(mul(exp(sub(logit, max)), MASS_ONE));
}

// A token whose logit is this far below the highest has a mass of 0.
constexpr float MASSLESS = 28.0f;

// The same for rare use, out of line.
__device__ __noinline__ uint64_t mass_of_one(float logit, float max) { return mass(logit, max); }

__device__ __forceinline__ float of_mass(uint64_t total) {
  return div(__ull2float_rn(total), MASS_ONE);
}

// A uniform number in (0, 1).
__device__ __forceinline__ float unit(uint32_t bits) {
  const float v = mul(add(__uint2float_rn(bits), 0.5f), 2.3283064365386963e-10f);
  return fminf(v, 0.99999994f);
}

// Maps floats to unsigned integers of the same order; both zeros are equal.
__device__ __forceinline__ uint32_t ascending(float x) {
  const uint32_t bits = __float_as_uint(add(x, 0.0f));
  return bits ^ (bits >> 31 ? ~0u : 0x80000000u);
}

__device__ __forceinline__ float from_ascending(uint32_t order) {
  return __uint_as_float(order ^ (order >> 31 ? 0x80000000u : ~0u));
}

// A key by which the ranking ascends: higher logits first, of equal ones the lower id.
__device__ __forceinline__ uint64_t rank_key(float logit, uint32_t token) {
  return static_cast<uint64_t>(~ascending(logit)) << 32 | token;
}

__device__ __forceinline__ float logit_of(uint64_t rank_key) {
  return from_ascending(~static_cast<uint32_t>(rank_key >> 32));
}

// Philox4x32-10 for the token at a position, or for the draft `offset` of those from a position on.
struct Draws {
  uint32_t key[2];
  uint32_t position;
  Purpose purpose;
  uint32_t offset;

  __device__ __forceinline__ Draws(const Sampling& sampling, uint32_t position, Purpose purpose,
                                   uint32_t offset = 0)
      : key{static_cast<uint32_t>(sampling.seed), static_cast<uint32_t>(sampling.seed >> 32)},
        position(position),
        purpose(purpose),
        offset(offset) {}

  // The bits of tokens 4 * quad to 4 * quad + 3.
  __device__ __forceinline__ uint4 quad(uint32_t quad) const {
    uint32_t c0 = quad, c1 = position, c2 = static_cast<uint32_t>(purpose), c3 = offset;
    uint32_t k0 = key[0], k1 = key[1];
#pragma unroll
    for (int round = 0; round < 10; round++) {
      uint32_t even_low, even_high, odd_low, odd_high;
      ptx::multiply(c0, 0xd2511f53u, even_low, even_high);
      ptx::multiply(c2, 0xcd9e8d57u, odd_low, odd_high);
      c0 = odd_high ^ c1 ^ k0;
      c1 = odd_low;
      c2 = even_high ^ c3 ^ k1;
      c3 = even_low;
      k0 += 0x9e3779b9u;
      k1 += 0xbb67ae85u;
    }
    return make_uint4(c0, c1, c2, c3);
  }

  __device__ __forceinline__ uint32_t bits(uint32_t token) const {
    const uint4 four = quad(token / 4);
    const uint32_t i = token % 4;
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
  }
};

// When a token finishes the race, above its id. A forbidden token never does.
__device__ __noinline__ uint64_t finish_time(uint32_t bits, float logit, float temperature,
                                        uint32_t token) {
  const float time = sub(ln(-ln_1m(unit(bits))), div(logit, temperature));
  return static_cast<uint64_t>(ascending(time)) << 32 | token;
}

// No token has finished: the time is infinite.
constexpr uint64_t NO_WINNER = 0xff800000ffffffffull;

}  // namespace kilotok::exact
