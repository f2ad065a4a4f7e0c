// Attention of many tokens over the keys that they see, with the bits of the narrow pass.
#pragma once

#include "kilotok/wide/attn_full.cuh"
#include "kilotok/wide/attn_window.cuh"

namespace kilotok::wide {

// Whether the wide pass has a kind of attention. Those that the narrow pass cuts into chunks of keys
// that stay in registers it has not: long windows, and heads too wide to be streamed.
template <int KIND>
constexpr bool HAS_ATTENTION =
    STREAMED<KIND> || (ATTENTIONS[KIND].window > 0 && WINDOW_PIECES<KIND> <= CONSUMER_WARPS);

template <int KIND, bool FULL>
struct AttnSharedOf {
  using Type = FullShared<KIND>;
};
template <int KIND>
struct AttnSharedOf<KIND, false> {
  using Type = WindowShared<KIND>;
};
// What a CTA has in shared memory.
template <int KIND>
using AttnShared = typename AttnSharedOf<KIND, STREAMED<KIND>>::Type;

// All threads of all CTAs, THREADS each. `shared` is what no one has used yet.
template <int KIND>
__device__ __forceinline__ void attn(AttnShared<KIND>& shared, const AttnMemory& memory) {
  static_assert(HAS_ATTENTION<KIND>, "the narrow pass does it");
  if constexpr (STREAMED<KIND>)
    attn_full<KIND>(shared, memory);
  else
    attn_window<KIND>(shared, memory);
}

}  // namespace kilotok::wide
