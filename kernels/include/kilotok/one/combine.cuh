// The partial results of one token's heads, which `attend_chunks_of_one` passes on, are added by
// one CTA for each head, as in phase/attn_combine.cuh. It polls for them and resets them at once.
#pragma once

#include "kilotok/one/attn.cuh"

namespace kilotok {

// The consumers' scratch memory.
struct OneCombineScratch : CombineScratch {
  Softmax softmax[ATTENTION_PARTS_MAX];
};
static_assert(sizeof(OneCombineScratch) <= SCRATCH_BYTES, "there is room");

// Consumers: copy what parts are relative to into shared memory, and reset it.
__device__ __forceinline__ void poll_softmax(const Cta& cta, Softmax* from, Softmax* to,
                                             int count) {
  static_assert(ATTENTION_PARTS_MAX <= CONSUMERS, "a thread for each part");
  if (cta.warp() * 32 >= count) return;
  // Lanes without a part have the last one.
  const int own = smaller(cta.thread(), count - 1);
  uint2 words;
  poll<true>([&] {
    words = ptx::load_l2_pair(from + own);
    return is_published(words.x) && is_published(words.y);
  });
  to[own] = {__uint_as_float(words.x), __uint_as_float(words.y)};
  ptx::store_l2_pair(from + own, make_uint2(EMPTY, EMPTY));
}

// Consumers: a head. As `combine_together`.
template <int KIND>
__device__ __forceinline__ void combine_head(const Cta& cta, OneCombineScratch& scratch,
                                             const float* sinks, int head, int count, int turn) {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int FOURS = A.v_dim / 4;
  static_assert(A.v_dim <= COMBINE_DIMS, "a thread for each dimension");
  const Parts<KIND> parts(cta.memory, turn, head);
  const float sink = A.sinks ? ptx::load_l2(sinks + head) : 0;
  const int dim = cta.thread();
  float total = 0, sum = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += PARTS_AT_ONCE) {
    const int here = smaller(count - first, PARTS_AT_ONCE);
#pragma unroll 1
    for (int i = cta.thread(); i < align_up(here * FOURS, 32); i += CONSUMERS) {
      // Lanes beyond the last value have the last one.
      const int own = smaller(i, here * FOURS - 1);
      float* from = parts.values + (first + own / FOURS) * A.v_dim + own % FOURS * 4;
      uint4 v;
      poll<true>([&] {
        v = ptx::load_l2(static_cast<const void*>(from));
        return is_published(v.x) && is_published(v.y) && is_published(v.z) && is_published(v.w);
      });
      *reinterpret_cast<uint4*>(&scratch.values[own / FOURS][own % FOURS * 4]) = v;
      ptx::store_l2(static_cast<void*>(from), make_uint4(EMPTY, EMPTY, EMPTY, EMPTY));
    }
    if (first == 0) {
      poll_softmax(cta, parts.softmax, scratch.softmax, count);
      cta.sync();
      weigh_parts(cta, scratch, scratch.softmax, count);
    }
    cta.sync();
    if (dim < A.v_dim)
#pragma unroll 8
      for (int i = 0; i < here; i++) {
        const float4 w = scratch.weights[first + i];
        add_part(total, w.x, w.y, scratch.values[i][dim]);
        add_part(sum, w.x, w.y, w.z);
      }
    if (first + here < count) cta.sync();
  }
  if (cta.warp() < ceil_div(A.v_dim, 32)) {
    const float value = total * softmax_scale<KIND>({scratch.largest, sum}, sink);
    const float next = __shfl_xor_sync(~0u, value, 1);
    if (dim < A.v_dim && dim % 2 == 0)
      store_combined<KIND>(cta.memory, attended_row(turn), head * A.v_dim + dim, value, next);
  }
  // After this the scratch memory may be overwritten.
  cta.sync();
}

// Consumers: this CTA's heads.
template <int KIND>
__device__ __forceinline__ void combine_of_one(const Cta& cta, SumMemory& sums,
                                               const float* sinks, uint32_t chunks, int turn) {
  if (cta.index() >= ATTENTIONS[KIND].q_heads) return;
  // The last scores in the scratch memory have been read.
  cta.sync();
#pragma unroll 1
  for (int head = cta.index(); head < ATTENTIONS[KIND].q_heads; head += GRID)
    combine_head<KIND>(cta, reinterpret_cast<OneCombineScratch&>(sums.scratch), sinks, head,
                       chunks, turn);
}

// Resets the partial results of this CTA's heads, once a launch.
template <int KIND>
__device__ __forceinline__ void reset_parts(const Cta& cta, uint32_t chunks, int turn) {
  constexpr Attention A = ATTENTIONS[KIND];
  const uint4 empty = make_uint4(EMPTY, EMPTY, EMPTY, EMPTY);
#pragma unroll 1
  for (int head = cta.index(); head < A.q_heads; head += GRID) {
    const Parts<KIND> parts(cta.memory, turn, head);
#pragma unroll 1
    for (uint32_t i = cta.thread(); i < chunks * A.v_dim / 4; i += CONSUMERS)
      ptx::store_l2(static_cast<void*>(parts.values + i * 4), empty);
    if (cta.thread() < chunks)
      ptx::store_l2_pair(parts.softmax + cta.thread(), make_uint2(EMPTY, EMPTY));
  }
}

}  // namespace kilotok
