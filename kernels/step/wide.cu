// The kernels of the wide pass, one for each phase: GRID CTAs, each alone on its multiprocessor
// because it asks for so much shared memory. Kinds of layers are told apart on the device.
#define KILOTOK_CTA_PER_SM
#include "step/wide.cuh"

namespace kilotok {

// The host knows which attention the wide pass has, and up to how many tokens `wide_qkv_few` takes.
template <int KIND = 0>
constexpr bool wide_attentions_agree() {
  if constexpr (KIND < DRAFT_ATTENTION) {
    static_assert((planned::WIDE_ATTENTION[KIND] != 0) == wide::HAS_ATTENTION<KIND>, "attention");
    static_assert((planned::DECODE[KIND] != 0) == HAS_DECODE<KIND>, "of users");
    static_assert(planned::WIDE_FEW_QKV[KIND] == wide::FewWork<QkvMatrix<KIND>>::TOKENS_MAX,
                  "q, k, v");
    return wide_attentions_agree<KIND + 1>();
  }
  return true;
}
static_assert(wide_attentions_agree());

// The largest of a size over the target's kinds of attention, and over its networks of experts.
template <int KIND>
constexpr size_t kind_shared_bytes() {
  if constexpr (!wide::HAS_ATTENTION<KIND>)
    return 0;
  else if constexpr (ATTENTIONS[KIND].window > 0)
    return larger(sizeof(wide::AttnShared<KIND>), sizeof(wide::RowsShared<KIND>));
  else if constexpr (HAS_DECODE<KIND>)
    return larger(sizeof(wide::AttnShared<KIND>), sizeof(wide::DecodeShared<KIND>));
  else
    return sizeof(wide::AttnShared<KIND>);
}
template <int KIND = 0>
constexpr size_t attn_shared_bytes() {
  if constexpr (KIND >= DRAFT_ATTENTION)
    return 0;
  else
    return larger(kind_shared_bytes<KIND>(), attn_shared_bytes<KIND + 1>());
}
template <int KIND = 0>
constexpr size_t experts_shared_bytes() {
  if constexpr (KIND >= DRAFT_FEED_FORWARD)
    return 0;
  else if constexpr (IS_DENSE<KIND>)
    return experts_shared_bytes<KIND + 1>();
  else
    return larger(
        larger(sizeof(wide::RunsShared<KIND, wide::FEW_ROWS>), sizeof(wide::ExpertsShared<KIND>)),
        larger(sizeof(wide::RouterShared<KIND>), experts_shared_bytes<KIND + 1>()));
}
constexpr size_t WIDE_SHARED_MAX = larger(
    larger(sizeof(wide::GemmShared), sizeof(wide::NormShared)),
    larger(attn_shared_bytes(), experts_shared_bytes()));
static_assert(WIDE_SHARED_MAX <= SHARED_MAX, "a CTA's memory suffices");

// Calls `f` with the layer's kind of experts; a dense network has none.
template <class F>
__device__ __forceinline__ void with_experts(const WideMemory& wide, F f) {
  with_kind<0, DRAFT_FEED_FORWARD>(wide_layer<false>(wide).feed_forward, [&](auto kind) {
    if constexpr (!IS_DENSE<decltype(kind)::value>) f(kind);
  });
}

// Records the time of the drafter's context; later launches overwrite it.
__device__ __forceinline__ void note_wide_drafted(const WideMemory& wide) {
  if (threadIdx.x == 0 && ptx::cta_index() == 0)
    at<Timestamps>(wide.memory.timestamps)->drafted = ptx::nanoseconds();
}

}  // namespace kilotok

using namespace kilotok;

// What the host needs to launch the kernels below: shared memory, and threads of a CTA.
extern "C" __device__ const unsigned WIDE_SHARED_BYTES = WIDE_SHARED_MAX;
extern "C" __device__ const unsigned WIDE_GEMM_THREADS = wide::GEMM_THREADS;
extern "C" __device__ const unsigned WIDE_ATTENTION_THREADS = wide::THREADS;
extern "C" __device__ const unsigned WIDE_MOVE_THREADS = wide::SORTERS;
extern "C" __device__ const unsigned WIDE_NORM_THREADS = wide::NORM_THREADS;
extern "C" __device__ const unsigned WIDE_ROUTER_THREADS = wide::ROUTER_THREADS;
extern "C" __device__ const unsigned WIDE_EXPERTS_THREADS = wide::ExpertsCta::THREADS;
extern "C" __device__ const unsigned WIDE_CHOICE_THREADS = wide::CHOOSING_THREADS;

// Only stamps the end of the last launch of a sequence.
extern "C" __global__ void __launch_bounds__(wide::SORTERS, 1)
    wide_end(const __grid_constant__ WideMemory memory) {
  begin_wide(memory);
}

extern "C" __global__ void __launch_bounds__(wide::SORTERS, 1)
    wide_embed(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  wide::embed(embed_memory(memory));
  wide::rope_angles(attn_in_memory<false>(memory), 0, ATTENTION_KINDS, wide::SORTERS);
}

extern "C" __global__ void __launch_bounds__(wide::NORM_THREADS, 1)
    wide_input_norm(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const wide::AddNormMemory norm = input_norm_memory(memory);
  auto& shared = launch_shared<wide::NormShared>();
  if (RANKS > 1 || memory.slice_count == 0) return wide::add_rms_norm(shared, norm);
  // The layer before, whose products are added.
  const LayerMemory& layer = at<const LayerMemory>(memory.memory.layers)[memory.layer - 1];
  with_kind<0, DRAFT_FEED_FORWARD>(layer.feed_forward, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    if constexpr (RANKS == 1 && !IS_DENSE<KIND> && !FEED_FORWARDS[KIND].bias)
      wide::add_rms_norm<FEED_FORWARDS[KIND].top_k>(shared, norm, added_products<KIND>(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    wide_qkv(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const int kind = wide_layer<false>(memory).attention;
  with_matrix<QkvMatrix, 0, DRAFT_ATTENTION>(kind, [&](auto first) {
    wide::attn_in<QkvMatrix, QkvMatrix<decltype(first)::value>, 0, DRAFT_ATTENTION>(
        launch_shared<wide::GemmShared>(), attn_in_memory<false>(memory), kind);
  });
}

// The same for few tokens, up to `planned::WIDE_FEW_QKV` of the layer's kind.
extern "C" __global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    wide_qkv_few(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const int kind = wide_layer<false>(memory).attention;
  with_matrix<QkvMatrix, 0, DRAFT_ATTENTION>(kind, [&](auto first) {
    using M = QkvMatrix<decltype(first)::value>;
    if constexpr (wide::FewWork<M>::TOKENS_MAX > 0)
      wide::attn_in<QkvMatrix, M, 0, DRAFT_ATTENTION>(launch_shared<wide::FewShared>(),
                                                      attn_in_memory<false>(memory), kind);
  });
}

// For kinds whose `wide_qkv` stores projections instead of queries, keys and values.
extern "C" __global__ void __launch_bounds__(wide::SORTERS, 1)
    wide_heads(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_kind<0, DRAFT_ATTENTION>(wide_layer<false>(memory).attention, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    if constexpr (!ATTENTIONS[KIND].paired) wide::split_heads<KIND>(attn_in_memory<false>(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::THREADS, 1)
    wide_attention(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_kind<0, DRAFT_ATTENTION>(wide_layer<false>(memory).attention, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    if constexpr (wide::HAS_ATTENTION<KIND>)
      wide::attn<KIND>(launch_shared<wide::AttnShared<KIND>>(), attn_memory(memory));
  });
}

// The same in a step with many rows: short ones in layers with a window, of one token in others.
extern "C" __global__ void __launch_bounds__(wide::THREADS, 1)
    wide_attention_rows(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_kind<0, DRAFT_ATTENTION>(wide_layer<false>(memory).attention, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    if constexpr (HAS_DECODE<KIND>)
      wide::decode_rows<KIND>(launch_shared<wide::DecodeShared<KIND>>(), attn_memory(memory));
    else if constexpr (wide::HAS_ATTENTION<KIND> && ATTENTIONS[KIND].window > 0)
      wide::window_rows<KIND>(launch_shared<wide::RowsShared<KIND>>(), attn_memory(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    wide_output(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const LayerMemory& layer = wide_layer<false>(memory);
  with_matrix<OutputOf, 0, DRAFT_ATTENTION>(layer.attention, [&](auto kind) {
    wide::output<decltype(kind)::value>(launch_shared<wide::GemmShared>(),
                                        gemm_memory(memory, layer.output, memory.attended),
                                        [&] { return post_norm_memory(memory); },
                                        at<const float>(layer.output_bias));
  });
}

extern "C" __global__ void __launch_bounds__(wide::NORM_THREADS, 1)
    wide_post_norm(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const wide::AddNormMemory norm = post_norm_memory(memory);
  if constexpr (RANKS > 1)
    wide::add_rms_norm(launch_shared<wide::NormShared>(), norm);
  else
    wide::finish_norm(norm);
}

extern "C" __global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    wide_dense_gate_up(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const LayerMemory& layer = wide_layer<false>(memory);
  with_kind<0, DRAFT_FEED_FORWARD>(layer.feed_forward, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    if constexpr (IS_DENSE<KIND>)
      wide::dense_gate_up<KIND>(launch_shared<wide::GemmShared>(),
                                gemm_memory(memory, layer.gate_up, memory.normed));
  });
}

extern "C" __global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    wide_dense_down(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const LayerMemory& layer = wide_layer<false>(memory);
  with_kind<0, DRAFT_FEED_FORWARD>(layer.feed_forward, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    if constexpr (IS_DENSE<KIND>)
      wide::dense_down<KIND>(launch_shared<wide::GemmShared>(),
                             gemm_memory(memory, layer.down, memory.dense_inner));
  });
}

extern "C" __global__ void __launch_bounds__(wide::ROUTER_THREADS, 1)
    wide_router_scores(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    wide::router_scores<KIND>(launch_shared<wide::RouterShared<KIND>>(), router_memory(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::CHOOSING_THREADS, 1)
    wide_top_k_experts(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    wide::top_k_experts<decltype(kind)::value>(launch_shared<wide::ChosenExperts>(),
                                               router_memory(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::SORTERS, 1)
    wide_sort_choices(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    wide::sort_choices<KIND>(launch_shared<wide::SortMemory<FEED_FORWARDS[KIND].experts>>(),
                             experts_memory<KIND>(memory).routes);
    wide::clear_inner_end<KIND>(experts_memory<KIND>(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::ExpertsCta::THREADS, 1)
    wide_gate_up(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    const wide::ExpertsMemory own = experts_memory<KIND>(memory);
    wide::with_runs<KIND>(launch_shared<wide::ExpertsShared<KIND>>(), own.routes,
                          [&](auto& runs) { wide::gate_up(runs, own); });
  });
}

// The same where experts have few rows, for steps of up to `planned::WIDE_FEW_ROWS` tokens. In one
// kernel with the others the compiler would not inline all of it.
extern "C" __global__ void __launch_bounds__(wide::ExpertsCta::THREADS, 1)
    wide_gate_up_few(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    wide::gate_up(launch_shared<wide::RunsShared<KIND, wide::FEW_ROWS>>(),
                  experts_memory<KIND>(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::ExpertsCta::THREADS, 1)
    wide_down(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    const wide::ExpertsMemory own = experts_memory<KIND>(memory);
    wide::with_runs<KIND>(launch_shared<wide::ExpertsShared<KIND>>(), own.routes,
                          [&](auto& runs) { wide::down(runs, own); });
  });
}

extern "C" __global__ void __launch_bounds__(wide::ExpertsCta::THREADS, 1)
    wide_down_few(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    wide::down(launch_shared<wide::RunsShared<KIND, wide::FEW_ROWS>>(),
               experts_memory<KIND>(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::SORTERS, 1)
    wide_combine(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_experts(memory, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    wide::combine<KIND>(experts_memory<KIND>(memory));
  });
}

extern "C" __global__ void __launch_bounds__(wide::SORTERS, 1)
    wide_gather_wanted(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  begin_head(memory);
  const Memory& narrow = memory.memory;
  wide::gather_wanted(launch_shared<wide::WantedShared>(),
                      {narrow.wanted + memory.slice_first * sizeof(uint32_t), memory.stream,
                       narrow.final_norm, narrow.normed, narrow.squares,
                       static_cast<int>(memory.slice_count), ranks_memory(memory)});
}

// The narrow pass's head, over a batch of up to TOKENS_MAX wanted tokens.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wide_head(const __grid_constant__ Memory memory) {
  run<HeadPass<TILES_MAX>>(memory);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wide_slots(const __grid_constant__ VerifyMemory arguments) {
  if (threadIdx.x < CONSUMERS) update_wide_slots(arguments);
}

// Samples the wanted tokens whose logits the head has computed.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wide_sample(const __grid_constant__ VerifyMemory arguments) {
  if (threadIdx.x < CONSUMERS) sample_wide(arguments, launch_shared<VerifyShared>());
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wide_verify(const __grid_constant__ VerifyMemory arguments) {
  if (threadIdx.x < CONSUMERS) verify_wide(arguments, launch_shared<VerifyShared>());
}

// The drafter's context, from the taps: see step/context.cuh. The tokens of its launches are those
// of the spans.
extern "C" __global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    wide_fuse(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  wide::multiply_to_part<FuseMatrix, wide::SpansOperand>(
      launch_shared<wide::GemmShared>(),
      gemm_memory(memory, memory.memory.draft_fc, memory.taps),
      memory.memory.rank * FuseMatrix::ROWS);
}

extern "C" __global__ void __launch_bounds__(wide::NORM_THREADS, 1)
    wide_context_norm(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  wide::add_rms_norm(launch_shared<wide::NormShared>(), context_norm_memory(memory));
}

// Keys and values of a layer of the drafter.
extern "C" __global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    wide_context_keys(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  const int kind = wide_layer<true>(memory).attention;
  with_matrix<KvMatrix, DRAFT_ATTENTION, ATTENTION_KINDS>(kind, [&](auto first) {
    wide::attn_in<KvMatrix, KvMatrix<decltype(first)::value>, DRAFT_ATTENTION, ATTENTION_KINDS>(
        launch_shared<wide::GemmShared>(), attn_in_memory<true>(memory), kind);
  });
  note_wide_drafted(memory);
}

extern "C" __global__ void __launch_bounds__(wide::SORTERS, 1)
    wide_context_heads(const __grid_constant__ WideMemory memory) {
  if (!begin_wide(memory)) return;
  with_kind<DRAFT_ATTENTION, ATTENTION_KINDS>(wide_layer<true>(memory).attention, [&](auto kind) {
    constexpr int KIND = decltype(kind)::value;
    if constexpr (!ATTENTIONS[KIND].paired)
      wide::split_heads<KIND, ATTENTIONS[KIND].q_heads>(attn_in_memory<true>(memory));
  });
  note_wide_drafted(memory);
}
