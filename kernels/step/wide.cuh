// The phases of the wide pass: a step of more tokens than the narrow pass takes is a chain of
// launches, one for each phase of each layer. The arguments of a phase come from the memory of the
// launch and of the layer.
#pragma once

#include "kilotok/wide/attn_rows.cuh"
#include "kilotok/wide/experts.cuh"
#include "kilotok/wide/project.cuh"
#include "kilotok/wide/ranks.cuh"
#include "kilotok/wide/router.cuh"
#include "kilotok/wide/stream.cuh"
#include "step/logits.cuh"
#include "step/verify.cuh"

namespace kilotok {

// Dynamic shared memory of a launch.
template <class T>
__device__ __forceinline__ T& launch_shared() {
  extern __shared__ __align__(128) char shared_bytes[];
  return *reinterpret_cast<T*>(shared_bytes);
}

// In kernels that are compiled for it, records the clock at the beginning of a launch, which is the
// end of the one before. First CTAs are all on the same SM, so they read the same clock.
__device__ __forceinline__ void stamp_launch(const WideMemory& wide) {
#ifdef KILOTOK_STAMPS
  if (threadIdx.x != 0 || ptx::cta_index() != 0 || wide.token_count == 0) return;
  const Stamp what = static_cast<Stamp>(wide.stamp);
  const bool by_the_clock = what == Stamp::Begun || what == Stamp::Ended;
  at<Stamped>(wide.memory.trace)[wide.stamp_place] = {
      wide.stamp, by_the_clock ? ptx::nanoseconds() : 0, static_cast<uint64_t>(clock64())};
#endif
}

// All threads of a CTA, first of all: waits for the end of the launch before, during which this one
// may begin. Returns false if the step has no tokens; then its launches do nothing.
__device__ __forceinline__ bool begin_wide(const WideMemory& wide) {
  ptx::allow_next_launch();
  // The layer's addresses come back to L2, out of which the weights of experts have pushed them.
  if (threadIdx.x == 0 && wide.layer < LAYERS)
    ptx::prefetch_l2(at<const LayerMemory>(wide.memory.layers) + wide.layer);
  ptx::wait_for_last_launch();
  stamp_launch(wide);
  if (threadIdx.x == 0) {
    wait_context = WaitContext::begin(wide.memory.fault, wide.memory.wait_max_ms, wide.memory.rank,
                                      Launch::Wide);
    wait_context.phase = wide.layer;
  }
  __syncthreads();
  return wide.token_count > 0;
}

// The layer of a launch.
template <bool DRAFT>
__device__ __forceinline__ uint64_t wide_layer_address(const WideMemory& wide) {
  return (DRAFT ? wide.memory.draft_layers : wide.memory.layers) +
         wide.layer * sizeof(LayerMemory);
}
template <bool DRAFT>
__device__ __forceinline__ const LayerMemory& wide_layer(const WideMemory& wide) {
  return *at<const LayerMemory>(wide_layer_address<DRAFT>(wide));
}

__device__ __forceinline__ wide::StepTokens step_tokens(const WideMemory& wide) {
  const Memory& memory = wide.memory;
  return {memory.tokens, memory.rows, memory.pages, static_cast<int>(wide.token_count),
          static_cast<int>(wide.row_count)};
}

__device__ __forceinline__ wide::RanksMemory ranks_memory(const WideMemory& wide) {
  const Memory& memory = wide.memory;
  const int count = wide.token_count;
  if constexpr (RANKS == 1) return {0, 0, 0, 0, count};
  const uint32_t before = at<const Batch>(memory.batch)->collectives;
  return {memory.peers, wide.flags, memory.rank, before + wide.collective, count};
}

__device__ __forceinline__ wide::PartsMemory parts_memory(const WideMemory& wide) {
  return {wide.received, ranks_memory(wide)};
}

__device__ __forceinline__ wide::EmbedMemory embed_memory(const WideMemory& wide) {
  const Memory& memory = wide.memory;
  return {memory.tokens, memory.embedding,
          wide.part,     memory.rank,
          static_cast<int>(wide.token_count), parts_memory(wide)};
}

// The norm before a layer's projections, or before the head where there is no such layer. It also
// writes the tap of the layer before. The first norm adds the embeddings.
__device__ __forceinline__ wide::AddNormMemory input_norm_memory(const WideMemory& wide) {
  const Memory& memory = wide.memory;
  const bool last = wide.layer == LAYERS;
  const LayerMemory* layer = at<const LayerMemory>(memory.layers) + wide.layer;
  wide::AddNormMemory own = {};
  own.stream = wide.stream;
  own.part = wide.part;
  own.weights = last ? memory.final_norm : layer->input_norm;
  own.operand = last ? 0 : wide.normed;
  own.inverse_rms = wide.inverse_rms;
  own.taps = wide.taps;
  own.tap = wide.layer > 0 ? layer[-1].tap : wide::NO_TAP;
  own.begins = wide.layer == 0;
  own.scale = last ? 1.0f : projection_scale(layer->attention);
  own.eps = NORM_EPS;
  own.capacity = wide.capacity;
  own.received = wide.received;
  own.ranks = ranks_memory(wide);
  return own;
}

// The products that the norm after a layer of experts adds.
template <int KIND>
__device__ __forceinline__ wide::AddedProducts added_products(const WideMemory& wide) {
  return {wide.rows, wide.products, wide::panel_stride<KIND>(wide.token_count)};
}

// The norm before a layer's network. A single rank has no part of the output projection, and keeps
// sums of squares in its place, or in that of the operand that a network of experts does not have:
// CTAs of the router may share the scores of a token in `part`.
__device__ __forceinline__ wide::AddNormMemory post_norm_memory(const WideMemory& wide) {
  const LayerMemory& layer = wide_layer<false>(wide);
  wide::AddNormMemory own = input_norm_memory(wide);
  bool dense = false;
  with_kind<0, DRAFT_FEED_FORWARD>(layer.feed_forward,
                                   [&](auto kind) { dense = IS_DENSE<decltype(kind)::value>; });
  own.weights = layer.post_norm;
  own.operand = dense ? wide.normed : 0;
  own.rows = dense ? 0 : wide.normed_rows;
  own.squares = dense ? wide.part : wide.normed;
  own.tap = wide::NO_TAP;
  own.begins = false;
  own.scale = feed_forward_scale(layer.feed_forward);
  return own;
}

// The norm of the drafter's context, that is, of the fused taps.
__device__ __forceinline__ wide::AddNormMemory context_norm_memory(const WideMemory& wide) {
  wide::AddNormMemory own = {};
  own.stream = wide.stream;
  own.part = wide.part;
  own.weights = wide.memory.draft_context_norm;
  own.operand = wide.normed;
  own.inverse_rms = wide.inverse_rms;
  own.tap = wide::NO_TAP;
  own.begins = true;
  own.scale = 1.0f;
  own.eps = DRAFT_NORM_EPS;
  own.capacity = wide.capacity;
  own.received = wide.received;
  own.rank_columns = FuseMatrix::ROWS;
  own.ranks = ranks_memory(wide);
  return own;
}

template <bool DRAFT>
__device__ __forceinline__ wide::AttnInMemory attn_in_memory(const WideMemory& wide) {
  return {step_tokens(wide), wide_layer_address<DRAFT>(wide), wide.normed,    wide.inverse_rms,
          wide.memory.frequencies, wide.angles,               wide.queries,   wide.projected,
          static_cast<int>(wide.capacity), wide.spans};
}

__device__ __forceinline__ wide::AttnMemory attn_memory(const WideMemory& wide) {
  return {step_tokens(wide), wide_layer_address<false>(wide), wide.queries, wide.attended,
          static_cast<int>(wide.capacity)};
}

__device__ __forceinline__ wide::GemmMemory gemm_memory(const WideMemory& wide, uint64_t weights,
                                                        uint64_t operand) {
  return {weights,          operand,
          wide.part,        wide.inverse_rms,
          wide.dense_inner, static_cast<int>(wide.token_count),
          static_cast<int>(wide.capacity), parts_memory(wide),
          wide.spans};
}

__device__ __forceinline__ wide::RouterMemory router_memory(const WideMemory& wide) {
  const LayerMemory& layer = wide_layer<false>(wide);
  wide::RouterMemory own = {};
  own.ranks = ranks_memory(wide);
  const wide::Ranks ranks(own.ranks);
  const uint64_t first = ranks.first_token(ranks.rank);
  own.stream = wide.stream + first * HIDDEN * sizeof(float);
  own.norm = layer.post_norm;
  own.router = layer.router;
  own.bias = layer.router_bias;
  own.inverse_rms = wide.inverse_rms + first * sizeof(float);
  own.scores = wide.scores;
  own.squares = RANKS == 1 ? wide.normed : 0;
  own.eps = NORM_EPS;
  own.parts = wide.part;
  own.experts = wide.experts;
  own.weights = wide.weights;
  own.tokens = ranks.token_count(ranks.rank);
  return own;
}

// The experts of all tokens.
template <int KIND>
__device__ __forceinline__ wide::ExpertsMemory experts_memory(const WideMemory& wide) {
  const LayerMemory& layer = wide_layer<false>(wide);
  wide::ExpertsMemory own = {};
  own.routes = {wide.experts, wide.weights, wide.inverse_rms, wide.first_rows, wide.counts,
                wide.rows,    wide.choices, wide.factors,     static_cast<int>(wide.token_count)};
  own.normed = wide.normed_rows;
  own.gate_up = layer.gate_up;
  own.down = layer.down;
  own.gate_up_bias = layer.gate_up_bias;
  own.down_bias = layer.down_bias;
  own.inner = wide.expert_inner;
  own.products = wide.products;
  own.sums = wide.part;
  own.capacity = wide.expert_capacity;
  own.parts = parts_memory(wide);
  return own;
}

// Before a launch's wanted tokens are gathered: writes the batch for the head and for sampling, and
// sets the counters of these two launches to zero. They use a step's first two sets of counters.
__device__ __forceinline__ void begin_head(const WideMemory& wide) {
  if (ptx::cta_index() != 0) return;
  const Batch& step = *at<const Batch>(wide.memory.batch);
  if (threadIdx.x == 0)
    *at<Batch>(wide.head_batch) = {wide.slice_count, 0, wide.slice_count,
                                   step.collectives + wide.slice_first / TOKENS_MAX};
  if (threadIdx.x < 2 * COUNTERS)
    *at<uint32_t>(wide.memory.barrier + threadIdx.x * COUNTER_BYTES) = 0;
}

// The head over the wanted tokens, whose last norm was gathered for it: a narrow pass that has no
// layers.
template <int TILES>
struct HeadPass {
  static constexpr Launch LAUNCH = Launch::Target;
  static __device__ __forceinline__ void begin(Warp&) {}
  static __device__ __forceinline__ void consume(Warp& w) {
    w.cta.arrive_grid();
    consume_logits<false, TILES>(w);
  }
  static __device__ __forceinline__ void produce(Warp& w) { produce_logits<TILES>(w); }
  static __device__ __forceinline__ void epilogue(Warp& w) { epilogue_logits(w); }
};

}  // namespace kilotok
