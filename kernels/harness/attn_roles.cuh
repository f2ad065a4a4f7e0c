// The narrow pass's attention alone, with the phase that makes its queries, keys and values from
// `projected`.
#pragma once

#include "roles.cuh"

namespace bench {

// The phases that a launch runs in each repeat.
constexpr int ATTN_IN = 1, ATTN = 2;

template <int KIND>
struct AttentionRoles {
  static constexpr bool OWN = KIND >= DRAFT_ATTENTION;
  struct Work {
    int phases, repeats;
  };

  static __device__ __forceinline__ const LayerMemory& layer(const Warp& w) {
    return *at<const LayerMemory>(w.cta.memory.layers);
  }

  static __device__ __forceinline__ void begin(Warp& w) {
    count_pairs<KIND, KIND + 1, OWN>(w.cta, w.shared.pairs, w.batch());
  }

  static __device__ __forceinline__ void attend(Warp& w) {
    if constexpr (STREAMED<KIND>)
      w.with_pipeline([&](Ring& ring, Sums&) {
        attend_streamed<KIND>(w.cta, ring, layer(w), w.batch(), w.shared.pairs[KIND],
                              w.shared.sums);
      });
    else
      attn<KIND, OWN>(w.cta, layer(w), w.batch(), w.shared.pairs, w.shared.sums);
  }

  template <int WARPS>
  static __device__ __forceinline__ void add_all(Warp& w) {
    combine_chunks<KIND, OWN, WARPS>(w.cta, layer(w), w.batch(), w.shared.sums, false,
                                     [] {});
  }

  static __device__ __forceinline__ void consume(Warp& w, const Work& work) {
    Cta& cta = w.cta;
#pragma unroll 1
    for (int i = 0; i < work.repeats; i++) {
      if (work.phases & ATTN_IN) attn_in<KIND>(cta, layer(w), w.batch(), OWN);
      // Attention begins between the halves of a grid barrier, and so does the combination of its
      // chunks.
      cta.arrive_grid();
      if (work.phases & ATTN)
        attend(w);
      else
        cta.wait_grid();
      cta.arrive_grid();
      if (work.phases & ATTN) {
        if (w.token_count() <= TILE_TOKENS)
          add_all<COMBINE_WARPS<true>>(w);
        else
          add_all<COMBINE_WARPS<false>>(w);
      }
      cta.wait_grid();
    }
  }

  static __device__ __forceinline__ void produce(Warp& w, const Work& work) {
    if constexpr (STREAMED<KIND>)
#pragma unroll 1
      for (int i = 0; i < work.repeats && work.phases & ATTN; i++)
        produce_keys<KIND>(w.cta, w.ring, layer(w), w.batch(), w.shared.pairs[KIND]);
  }

  static __device__ __forceinline__ void epilogue(Warp&, const Work&) {}
};

}  // namespace bench
