// Attention of many tokens, with the bits of the narrow pass.
#pragma once

#include "kilotok/wide/attn_decode.cuh"
#include "kilotok/wide/attn_full.cuh"
#include "kilotok/wide/attn_window.cuh"

namespace kilotok::wide {

// Whether the wide pass supports a kind of attention: full attention that the narrow pass streams,
// and short windows. The published target models have no others.
template <int KIND>
constexpr bool HAS_ATTENTION = STREAMED<KIND> || WindowSizes<KIND>::FIT;

template <int KIND, bool FULL>
struct AttnSharedOf {
  using Type = FullShared<KIND>;
};
template <int KIND>
struct AttnSharedOf<KIND, false> {
  using Type = WindowShared<KIND>;
};
// Shared memory of a CTA.
template <int KIND>
using AttnShared = typename AttnSharedOf<KIND, STREAMED<KIND>>::Type;

// All threads of all CTAs, THREADS each. `shared` is unused before.
template <int KIND>
__device__ __forceinline__ void attn(AttnShared<KIND>& shared, const AttnMemory& memory) {
  static_assert(HAS_ATTENTION<KIND>, "only the narrow pass supports it");
  if constexpr (STREAMED<KIND>)
    attn_full<KIND>(shared, memory);
  else
    attn_window<KIND>(shared, memory);
}

}  // namespace kilotok::wide
