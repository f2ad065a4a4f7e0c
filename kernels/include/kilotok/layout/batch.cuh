// The batch in shared memory: brought once a launch, so that no phase waits for it.
#pragma once

#include "kilotok/cta.cuh"

namespace kilotok {

struct HeldBatch {
  Batch counts;
  BatchToken tokens[TOKENS_MAX];
  BatchRow rows[TOKENS_MAX];

  // All threads of a CTA, before a __syncthreads.
  __device__ __forceinline__ void bring(const Memory& memory) {
    bring_words(&counts, memory.batch, sizeof(counts));
    bring_words(tokens, memory.tokens, sizeof(tokens));
    bring_words(rows, memory.rows, sizeof(rows));
  }

  __device__ __forceinline__ int token_count() const { return counts.token_count; }
};

}  // namespace kilotok
