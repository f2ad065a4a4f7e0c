// The sum over ranks of what is to be added to the stream.
#pragma once

#include "kilotok/phase/stream.cuh"

namespace kilotok {

// Replaces `stream.part`, this CTA's part `unit`, by the sum of all ranks' parts in rank order:
// every rank gets the same bits. Called by all consumers of the CTA, by the same CTA of all ranks.
__device__ __forceinline__ void exchange(Cta& cta, StreamMemory& stream, int unit,
                                         int token_count) {
  static_assert(RANKS == 1, "ranks exchange nothing yet");
}

}  // namespace kilotok
