// The batch in shared memory, copied once a launch, so that no phase waits for it.
#pragma once

#include "kilotok/cta.cuh"

namespace kilotok {

struct HeldBatch {
  Batch counts;
  BatchToken tokens[TOKENS_MAX];
  BatchRow rows[TOKENS_MAX];

  // All threads of a CTA, before a __syncthreads.
  __device__ __forceinline__ void fetch(const Memory& memory) {
    // All loads come before the first store, which would wait for them and delay the others.
    const Words<sizeof(counts)> of_counts(memory.batch);
    const Words<sizeof(tokens)> of_tokens(memory.tokens);
    const Words<sizeof(rows)> of_rows(memory.rows);
    of_counts.store(&counts);
    of_tokens.store(tokens);
    of_rows.store(rows);
  }

  __device__ __forceinline__ int token_count() const { return counts.token_count; }
};

}  // namespace kilotok
