// A pass of one token over the layers of the target. Its bits are those of step/step.cuh, but what
// depends on the number of tokens is known at compile time, and all CTAs poll for what others
// write: a layer has one grid barrier, behind the q, k and v projections. Code that runs once a
// layer and exchanges between CTAs take most of the time, so both are few.
#pragma once

#include "kilotok/one/combine.cuh"
#include "kilotok/one/experts.cuh"
#include "step/step.cuh"

namespace kilotok {

// Whether a kind of attention, or of feed-forward network, has code for one token.
template <int KIND>
constexpr bool can_attend_one() {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr bool HEADS = A.paired || (A.qk_dim == A.v_dim && A.qk_dim % 32 == 0 &&
                                      A.rope_pairs % 32 == 0 && A.qk_norm &&
                                      HeadTiles<KIND>::GROUP + 2 <= CONSUMER_WARPS);
  constexpr bool STREAMS = STREAMED<KIND> && HEADS && HeadTiles<KIND>::COUNT == 1 &&
                           A.v_dim % (8 * ONE_RUNS<KIND>) == 0;
  constexpr bool WINDOW = A.paired && A.window > 0 && !IN_CHUNKS<KIND, false>;
  return (STREAMS || WINDOW) && SharedRow<QkvMatrix<KIND>>::FITS &&
         SharedRow<OutputMatrix<KIND>>::FITS &&
         A.paired == ATTENTIONS[0].paired;
}
template <int KIND>
constexpr bool can_feed_one() {
  if constexpr (IS_DENSE<KIND>)
    return false;
  else
    return POLLS<KIND, 1> && !Moe<KIND>::HAS_ALL_ROWS && SortedRows<KIND>::HAS_TOKEN &&
           Router<KIND>::PAGES == 1 && FEED_FORWARDS[KIND].experts < RESETTERS &&
           ceil_div(FEED_FORWARDS[KIND].experts, 32) <= GRID &&
           TURNS * FEED_FORWARDS[KIND].top_k <= TILE_TOKENS * TOP_K_MAX;
}
template <int KIND = 0>
constexpr bool can_attend_all() {
  if constexpr (KIND < DRAFT_ATTENTION)
    return can_attend_one<KIND>() && can_attend_all<KIND + 1>();
  else
    return true;
}
// Whether the model has a kernel for one token.
constexpr bool HAS_ONE = RANKS == 1 && OWNER_ROWS <= 32 && HIDDEN <= POLLED_HIDDEN_MAX &&
                         SharedRow<HeadMatrix>::FITS && TOKENS_MAX >= ONE_TOKEN_ROWS &&
                         DRAFT_FEED_FORWARD == 1 && can_feed_one<0>() && can_attend_all();

// Whether the barrier of a layer is only waited for behind attention, which polls. Where the
// epilogue of the projections stores heads, attention waits for it.
constexpr bool BARRIER_IS_LATE = !ATTENTIONS[0].paired;

using Target = Part<false>;

// All threads of a CTA, once a launch, before a __syncthreads.
template <class W>
__device__ __forceinline__ void begin_one(W& w) {
  with_each_kind<0, Target::ATTENTION_END>([&](auto kind) {
    constexpr int A = decltype(kind)::value;
    if constexpr (STREAMED<A>)
      if (threadIdx.x == 32 * A)
        set_up_chunks<A>(w.cta, w.batch(), chunks_of_one<A>(w.shared.pairs));
  });
  set_up_routes<0>(w.shared.routes);
}

// The row of the operand of a layer's projections, or of the head.
__device__ __forceinline__ const char* normed_of(const Memory& memory, Reader reader, int turn) {
  return at<const char>(memory.normed) + operand_row(normed_row(reader, turn), NORMED_BYTES);
}

template <class W>
__device__ __forceinline__ PolledRms polled_rms(W& w, int turn) {
  return {w.cta, w.stream(), Reader::Projection, turn, Target::EPS};
}

// Attention from the norm's operand to the part that is added to the stream.
template <int KIND>
__device__ __forceinline__ void attend_one(Warp& w, const LayerMemory& layer, uint32_t places,
                                           int turn) {
  Cta& cta = w.cta;
  if constexpr (STREAMED<KIND>)
    w.with_pipeline([&](Ring& ring, Sums& sums) {
      attend_chunks_of_one<KIND>(cta, ring, layer, w.batch(), chunks_of_one<KIND>(w.shared.pairs),
                                 places, sums.memory, turn);
    });
  else
    attend_window<KIND>(cta, layer, w.batch(), w.shared.sums, 1,
                        [&](int) { return attended_row(turn); });
  cta.stamp(Stamp::Attention);
}

// The threads that reset, behind a layer's barrier: what the layer before passed on.
template <class W>
__device__ __forceinline__ void reset_turn(W& w, int turn) {
  const Cta& cta = w.cta;
  if (is_owner(cta)) reset_normed(cta, Reader::Projection, turn);
  with_each_matrix<ProjectionOf, 0, Target::ATTENTION_END>(
      [&](auto kind) { reset_projected<decltype(kind)::value>(cta, turn); });
  with_each_matrix<OutputMatrix, 0, Target::ATTENTION_END>(
      [&](auto kind) { reset_attended_row<decltype(kind)::value>(cta, turn); });
  with_each_kind<0, Target::FEED_FORWARD_END>(
      [&](auto kind) { reset_network<decltype(kind)::value>(cta, turn); });
}

// The same while the first warp waits for the router. The layers' barriers come after one that the
// launch begins with.
template <class W>
__device__ __forceinline__ void reset_layer(W& w, int index) {
  const Cta& cta = w.cta;
  if constexpr (BARRIER_IS_LATE) {
    if (resetter(cta) == 0) cta.wait_count(Waits::Grid, Counter::Grid, (index + 2) * GRID);
    ptx::sync_threads<RESETTERS>(0);
  }
  reset_turn(w, (index + TURNS - 1) % TURNS);
}

template <class W>
__device__ __forceinline__ void attention_one(W& w, const LayerMemory& layer, int turn) {
  Cta& cta = w.cta;
  uint32_t places = 0;
  with_kind<0, Target::ATTENTION_END>(layer.attention, [&](auto kind) {
    constexpr int A = decltype(kind)::value;
    if constexpr (STREAMED<A>)
      places = first_places<A>(cta, layer, w.batch(), chunks_of_one<A>(w.shared.pairs));
  });
  with_matrix<ProjectionOf, 0, Target::ATTENTION_END>(layer.attention, [&](auto kind) {
    using M = QkvMatrix<decltype(kind)::value>;
    w.with_pipeline([&](Ring& ring, Sums& sums) {
      gemm_row<M>(cta, ring, sums, normed_of(cta.memory, Reader::Projection, turn),
                  first_unit<M>(cta), polled_rms(w, turn));
    });
  });
  cta.stamp(Stamp::Project);
  cta.arrive_grid();
  with_kind<0, Target::ATTENTION_END>(layer.attention, [&](auto kind) {
    attend_one<decltype(kind)::value>(w, layer, places, turn);
  });
  if (is_owner(cta))
    begin_rms_norm(cta, w.stream(), Reader::FeedForward, layer.post_norm,
                   feed_forward_scale(layer.feed_forward), ~0u);
  with_kind<0, Target::ATTENTION_END>(layer.attention, [&](auto kind) {
    constexpr int A = decltype(kind)::value;
    if constexpr (STREAMED<A>)
      combine_of_one<A>(cta, w.shared.sums, at<const float>(layer.sinks),
                        chunks_of_one<A>(w.shared.pairs).chunks, turn);
  });
  cta.stamp(Stamp::Attention);
  with_matrix<OutputOf, 0, Target::ATTENTION_END>(layer.attention, [&](auto kind) {
    constexpr int A = decltype(kind)::value;
    // The scratch memory, which will hold the row, is no longer read.
    cta.sync();
    w.with_pipeline([&](Ring& ring, Sums& sums) {
      gemm_row<OutputMatrix<A>>(
          cta, ring, sums,
          at<const char>(cta.memory.attended) + Attended<A>::row(attended_row(turn)), cta.index(),
          NothingElse{});
    });
  });
  cta.stamp(Stamp::Output);
}

template <int KIND>
__device__ __forceinline__ void experts_of_one(Warp& w, const LayerMemory& layer, int index) {
  Cta& cta = w.cta;
  const int turn = index % TURNS;
  Routes& routes = w.shared.routes;
  if (is_owner(cta)) {
    cta.sync();
    w.with_pipeline([&](Ring& ring, Sums&) {
      router_parts_of_one<KIND>(cta, ring, scaled_row(w.stream()), turn);
    });
    cta.stamp(Stamp::RouterParts);
  }
  router_scores_of_one<KIND>(cta, w.shared.sums, turn, Target::EPS);
  cta.stamp(Stamp::RouterSums);
  NothingElse nothing;
  const PolledOperand<GateUpMatrix<KIND>> operand(
      cta, normed_of(cta.memory, Reader::FeedForward, turn), nothing);
  if (cta.warp() == 0) {
    w.wait_routes_free();
    choose_of_one<KIND>(cta, routes, w.stream(), at<const float>(layer.router_bias), turn);
    __syncwarp();
  } else {
    reset_layer(w, index);
  }
  // The first thread is one that chose. Other consumers need not wait.
  w.publish_routes();
  cta.stamp(Stamp::Routes, routes.count);
  w.with_pipeline(
      [&](Ring& ring, Sums& sums) { gate_up_of_one<KIND>(cta, ring, sums, operand); });
  cta.stamp(Stamp::GateUp);
  if (is_owner(cta))
    w.with_pipeline([&](Ring& ring, Sums& sums) {
      down_of_one<KIND>(cta, ring, sums, w.stream(), routes, turn);
    });
  cta.stamp(Stamp::Down);
}

// Consumers: resets everything that is polled for.
template <class W>
__device__ __forceinline__ void reset_all(W& w) {
  const Cta& cta = w.cta;
#pragma unroll 1
  for (int turn = 0; turn < TURNS; turn++) {
    if (cta.warp() > 0) reset_turn(w, turn);
    with_each_kind<0, Target::ATTENTION_END>([&](auto kind) {
      constexpr int A = decltype(kind)::value;
      if constexpr (STREAMED<A>)
        reset_parts<A>(cta, chunks_of_one<A>(w.shared.pairs).chunks, turn);
    });
  }
}

template <class W>
__device__ __forceinline__ void consume_one(W& w) {
  Cta& cta = w.cta;
  StreamMemory& stream = w.stream();
  Target::fetch_layer(cta, w.shared.layers, 0);
  reset_all(w);
  rope_angles(cta, w.batch(), 0, Target::ATTENTION_END);
  cta.sync();
  if (is_owner(cta)) embed(cta, stream, w.batch());
  cta.stamp(Stamp::Embed);
  begin_rms_norm_before<false>(cta, w.shared, 0, ~0u);
  cta.sync_grid();
#pragma unroll 1
  for (int index = 0;; index++) {
    cta.reload_thread();
    const int turn = index % TURNS;
    if (is_owner(cta)) add_rms_norm_row(cta, stream, turn);
    cta.stamp(Stamp::AddRmsNorm);
    if (index == LAYERS) break;
    Target::fetch_layer(cta, w.shared.layers, index + 1);
    const LayerMemory& layer = w.shared.layers[index % 2];
    attention_one(w, layer, turn);
    if (is_owner(cta)) add_rms_norm_row(cta, stream, turn);
    cta.stamp(Stamp::AddRmsNorm);
    begin_rms_norm_before<false>(cta, w.shared, index + 1, layer.tap);
    with_kind<0, Target::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      experts_of_one<decltype(kind)::value>(w, layer, index);
    });
  }
  if (w.batch().counts.wanted_count == 0) return;
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm_row<HeadMatrix>(cta, ring, sums, normed_of(cta.memory, Reader::Projection, LAYERS % TURNS),
                         first_unit<HeadMatrix>(cta), polled_rms(w, LAYERS % TURNS));
  });
  cta.stamp(Stamp::Head);
}

// Producer: the weights of all layers, in the consumers' order.
template <class W>
__device__ __forceinline__ void produce_one(W& w) {
  const Cta& cta = w.cta;
  uint32_t taken = 0;
  FirstWeights next(Target::layer(cta.memory, 0));
#pragma unroll 1
  for (int index = 0; index < LAYERS; index++) {
    const LayerMemory& memory = Target::layer(cta.memory, index);
    const FirstWeights first = next;
    const LayerWeights layer(memory);
    next = FirstWeights(Target::layer(cta.memory, smaller(index + 1, LAYERS - 1)));
    with_matrix<QkvMatrix, 0, Target::ATTENTION_END>(first.attention, [&](auto kind) {
      using M = QkvMatrix<decltype(kind)::value>;
      produce<M, 1>(w.ring, first.qkv, first_unit<M>(cta));
    });
    with_kind<0, Target::ATTENTION_END>(first.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      if constexpr (STREAMED<A>)
        produce_keys_of_one<A>(cta, w.ring, memory, w.batch().rows[0],
                               chunks_of_one<A>(w.shared.pairs));
    });
    with_matrix<OutputMatrix, 0, Target::ATTENTION_END>(first.attention, [&](auto kind) {
      produce<OutputMatrix<decltype(kind)::value>, 1>(w.ring, layer.output, cta.index());
    });
    with_kind<0, Target::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      if (is_owner(cta)) produce_router<F>(w.ring, layer.router);
      w.wait_routes();
      produce_gate_up<F>(cta, w.ring, w.shared.routes, layer.gate_up, taken);
      if (is_owner(cta))
        produce_down_of_one<F>(cta, w.ring, w.shared.sums, w.shared.routes, layer.down);
      w.producer_releases_routes();
    });
  }
  if (w.batch().counts.wanted_count > 0)
    produce<HeadMatrix, 1>(w.ring, cta.memory.head, first_unit<HeadMatrix>(cta));
}

// The epilogue of the projections.
template <int KIND>
__device__ __forceinline__ auto store_projections_of_one(Warp& w, const LayerMemory& layer,
                                                         const LayerMemory& held, int turn) {
  const float* biases = at<float>(layer.qkv_bias);
  if constexpr (ATTENTIONS[KIND].paired)
    return StoreHeads<KIND, true>{w.cta.memory, held, w.batch(), w.stream(), biases,
                               ProjectionUse(layer.attention), false};
  else
    return PublishProjected<KIND>{w.cta.memory, w.stream(), biases, turn};
}

struct StoreLogitsOfOne {
  float* logits;
  const StreamMemory& stream;

  __device__ __forceinline__ void operator()(int unit, int, int, int lane, const float4& v) const {
    if (lane % 4 != 0) return;
    float* to = logits + unit * 16 + lane / 4;
    to[0] = v.x * stream.inverse_rms[0];
    to[8] = v.z * stream.inverse_rms[0];
  }
};

// Epilogue: all layers, in the consumers' order.
template <class W>
__device__ __forceinline__ void epilogue_one(W& w) {
  Cta& cta = w.cta;
#pragma unroll 1
  for (int index = 0; index < LAYERS; index++) {
    const LayerMemory& layer = Target::layer(cta.memory, index);
    with_matrix<ProjectionOf, 0, Target::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      cta.make_opaque();
      // Early as in `epilogue_layers`: all layers have routes (`can_feed_one`).
      epilogue<QkvMatrix<A>>(cta, w.sums, first_unit<QkvMatrix<A>>(cta), 1,
                             store_projections_of_one<A>(w, layer, w.shared.layers[index % 2],
                                                         index % TURNS),
                             index > 0);
    });
    with_matrix<OutputOf, 0, Target::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      cta.make_opaque();
      epilogue<OutputMatrix<A>>(cta, w.sums, cta.index(), 1, store_output<A>(w, layer));
    });
    with_kind<0, Target::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      w.wait_routes();
      cta.make_opaque();
      epilogue_gate_up_of_one<F>(cta, w.sums, w.stream(), w.shared.routes, layer.gate_up_bias,
                                 index % TURNS);
      if (is_owner(cta))
        epilogue_down<F>(cta, w.sums, w.stream(), w.shared.routes, layer.down_bias);
      w.epilogue_releases_routes();
    });
  }
  if (w.batch().counts.wanted_count == 0) return;
  epilogue<HeadMatrix>(cta, w.sums, first_unit<HeadMatrix>(cta), 1,
                       StoreLogitsOfOne{at<float>(cta.memory.logits), w.stream()});
}

}  // namespace kilotok
