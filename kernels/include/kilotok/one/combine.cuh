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

// Parts that are combined at a time, and the loads of values that a thread polls together: one
// round trip to L2 for 96 parts of 64 dimensions.
template <int KIND>
constexpr int ONE_PARTS = PARTS_AT_ONCE * COMBINE_DIMS / ATTENTIONS[KIND].v_dim;
constexpr int PART_LOADS = 4;

// Consumers: copy the values of parts `first` to `first + here - 1` of a head into shared memory,
// and of all `count` parts what they are relative to. Both are polled for and reset.
template <int KIND>
__device__ __forceinline__ void poll_parts(const Cta& cta, const Parts<KIND>& parts, int first,
                                           int here, int count, OneCombineScratch& scratch) {
  static_assert(ATTENTION_PARTS_MAX <= CONSUMERS, "a thread for each part");
  constexpr int FOURS = ATTENTIONS[KIND].v_dim / 4;
  const int all = here * FOURS;
  uint4* from = reinterpret_cast<uint4*>(parts.values) + first * FOURS;
  uint4* to = reinterpret_cast<uint4*>(scratch.values);
  Softmax* relative = parts.softmax + cta.thread();
  const bool has_part = first == 0 && cta.thread() < count;
  uint2 words = {};
#pragma unroll 1
  for (int i = cta.thread(); i < align_up(all, 32); i += PART_LOADS * CONSUMERS) {
    uint4 v[PART_LOADS] = {};
    poll<true>([&] {
      bool there = true;
#pragma unroll
      for (int k = 0; k < PART_LOADS; k++)
        if (i + k * CONSUMERS < all)
          v[k] = ptx::load_l2(static_cast<const void*>(from + i + k * CONSUMERS));
      if (has_part) words = ptx::load_l2_pair(relative);
#pragma unroll
      for (int k = 0; k < PART_LOADS; k++)
        there = there && is_published(v[k].x) && is_published(v[k].y) && is_published(v[k].z) &&
                is_published(v[k].w);
      return there && is_published(words.x) && is_published(words.y);
    });
#pragma unroll
    for (int k = 0; k < PART_LOADS; k++) {
      if (i + k * CONSUMERS >= all) break;
      to[i + k * CONSUMERS] = v[k];
      ptx::store_l2(static_cast<void*>(from + i + k * CONSUMERS),
                    make_uint4(EMPTY, EMPTY, EMPTY, EMPTY));
    }
  }
  if (!has_part) return;
  scratch.softmax[cta.thread()] = {__uint_as_float(words.x), __uint_as_float(words.y)};
  ptx::store_l2_pair(relative, make_uint2(EMPTY, EMPTY));
}

// Consumers: a head. As `combine_together`.
template <int KIND>
__device__ __forceinline__ void combine_head(const Cta& cta, OneCombineScratch& scratch,
                                             const float* sinks, int head, int count, int turn) {
  constexpr Attention A = ATTENTIONS[KIND];
  static_assert(A.v_dim <= COMBINE_DIMS, "a thread for each dimension");
  const Parts<KIND> parts(cta.memory, turn, head);
  const float sink = A.sinks ? ptx::load_l2(sinks + head) : 0;
  const int dim = cta.thread();
  float total = 0, sum = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += ONE_PARTS<KIND>) {
    const int here = smaller(count - first, ONE_PARTS<KIND>);
    poll_parts<KIND>(cta, parts, first, here, count, scratch);
    cta.sync();
    if (first == 0) {
      weigh_parts(cta, scratch, scratch.softmax, count);
      cta.sync();
    }
    const float* values = scratch.values[0];
    if (dim < A.v_dim)
#pragma unroll 8
      for (int i = 0; i < here; i++) {
        const float4 w = scratch.weights[first + i];
        add_part(total, w.x, w.y, values[i * A.v_dim + dim]);
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
