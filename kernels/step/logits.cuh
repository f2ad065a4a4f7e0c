// The end of a pass: the head, from the last norm to the logits of the wanted tokens.
#pragma once

#include "kilotok/phase/head.cuh"
#include "step/warp.cuh"

namespace kilotok {

// The head. Begins between the halves of a grid barrier.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void logits(Warp& w) {
  const Memory& memory = w.cta.memory;
  const WantedTokens wanted(memory, w.batch().counts);
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm<HeadMatrix, TILES>(
        w.cta, ring, sums, memory.normed, NORMED_BYTES, first_unit<HeadMatrix>(w.cta), wanted,
        [&] { w.cta.wait_grid(); },
        ReadInverseRms<TILES>{w.stream(), Reader::Projection, w.token_count(), Part<DRAFT>::EPS},
        StoreLogits{at<float>(memory.logits), w.stream(), wanted});
  });
}

// Consumers: the logits of the wanted tokens. Begins between the halves of a grid barrier.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void consume_logits(Warp& w) {
  const int wanted_count = w.batch().counts.wanted_count;
  if (wanted_count == 0) return;
  if (TILES > 1 && wanted_count > TILE_TOKENS)
    logits<DRAFT, TILES>(w);
  else
    logits<DRAFT, 1>(w);
  w.cta.stamp(Stamp::Head);
}

template <int TILES>
__device__ __forceinline__ void produce_logits(Warp& w) {
  const int wanted_count = w.batch().counts.wanted_count;
  if (wanted_count == 0) return;
  if (TILES > 1 && wanted_count > TILE_TOKENS)
    produce<HeadMatrix, TILES>(w.ring, w.cta.memory.head, first_unit<HeadMatrix>(w.cta));
  else
    produce<HeadMatrix, 1>(w.ring, w.cta.memory.head, first_unit<HeadMatrix>(w.cta));
}

__device__ __forceinline__ void epilogue_logits(Warp& w) {
  if (w.batch().counts.wanted_count == 0) return;
  const WantedTokens wanted(w.cta.memory, w.batch().counts);
  epilogue<HeadMatrix>(w.cta, w.sums, first_unit<HeadMatrix>(w.cta), wanted.tiles(),
                       StoreLogits{at<float>(w.cta.memory.logits), w.stream(), wanted});
}

}  // namespace kilotok
