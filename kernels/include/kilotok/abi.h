// Structs and constants that host and GPU share.
// Generated from crates/abi by `cargo xtask abi`; do not edit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kilotok {

enum class Purpose : uint32_t {
  Target = 0,
  Draft = 1,
  Accept = 2,
  Residual = 3,
  Weight = 4,
};

struct alignas(8) Sampling {
  uint64_t seed;
  float temperature;
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  uint32_t top_k;
  uint32_t min_tokens;
};
static_assert(sizeof(Sampling) == 40, "size of Sampling");
static_assert(offsetof(Sampling, seed) == 0, "Sampling.seed");
static_assert(offsetof(Sampling, temperature) == 8, "Sampling.temperature");
static_assert(offsetof(Sampling, top_p) == 12, "Sampling.top_p");
static_assert(offsetof(Sampling, min_p) == 16, "Sampling.min_p");
static_assert(offsetof(Sampling, repetition_penalty) == 20, "Sampling.repetition_penalty");
static_assert(offsetof(Sampling, presence_penalty) == 24, "Sampling.presence_penalty");
static_assert(offsetof(Sampling, frequency_penalty) == 28, "Sampling.frequency_penalty");
static_assert(offsetof(Sampling, top_k) == 32, "Sampling.top_k");
static_assert(offsetof(Sampling, min_tokens) == 36, "Sampling.min_tokens");

}  // namespace kilotok
