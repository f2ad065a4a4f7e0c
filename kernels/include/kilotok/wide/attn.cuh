// Attention of many tokens over the keys that they see, with the bits of the narrow pass.
#pragma once

#include "kilotok/wide/attn_in.cuh"

namespace kilotok::wide {

struct AttnMemory {
  StepTokens step;
  // LayerMemory of this layer: its pages and sinks.
  uint64_t layer;
  // As `attn_in` left them.
  uint64_t queries;
  // Operand of the output projection, of `capacity` tokens.
  uint64_t attended;
  int capacity;
};

// What a CTA has in shared memory.
template <int KIND>
struct AttnShared {
  char bytes[16];
};

// All threads of all CTAs, THREADS each.
template <int KIND>
__device__ __forceinline__ void attn(AttnShared<KIND>& shared, const AttnMemory& memory);

}  // namespace kilotok::wide
