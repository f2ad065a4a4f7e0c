// A pass over the layers: what the consumers compute and, in the same order, what the producer
// copies and the epilogue reduces. Phases are separated by grid barriers, or by polling for single
// values (comm/publish.cuh). The ring runs ahead across them, up to the experts, which are known
// only after the router.
#pragma once

#include "kilotok/phase/attn.cuh"
#include "kilotok/phase/attn_in.cuh"
#include "kilotok/phase/dense.cuh"
#include "kilotok/phase/embed.cuh"
#include "kilotok/phase/gathered.cuh"
#include "kilotok/phase/project.cuh"
#include "step/logits.cuh"

namespace kilotok {

// Begins the RMSNorm before a layer, or before the head when there is no such layer.
template <bool DRAFT>
__device__ __forceinline__ void begin_rms_norm_before(const Cta& cta, Shared& shared, int index,
                                                  uint32_t tap) {
  const auto norm = Part<DRAFT>::norm_before(cta.memory, shared.layers[index % 2], index);
  begin_rms_norm(cta, shared.stream, Reader::Projection, norm.weights, norm.scale, tap);
}

// The epilogue of the projections of a layer of this kind. `held` is read when there are products.
template <int KIND>
__device__ __forceinline__ auto store_projections(Warp& w, const LayerMemory& layer,
                                                  const LayerMemory& held, bool own) {
  const float* biases = at<const float>(layer.qkv_bias);
  if constexpr (ATTENTIONS[KIND].paired)
    return StoreHeads<KIND>{w.cta.memory, held, w.batch(), w.stream(), biases,
                            ProjectionUse(layer.attention), own};
  else
    return StoreProjected<KIND>{w.cta.memory, w.stream(), biases, w.token_count()};
}

// The epilogue of its output projection.
template <int KIND>
__device__ __forceinline__ auto store_output(Warp& w, const LayerMemory& layer) {
  if constexpr (ATTENTIONS[KIND].bias)
    return StoreOutput<KIND>{w.stream(), at<const float>(layer.output_bias)};
  else
    return StorePart{w.stream()};
}

// The largest hidden size with polls for operands of the projections. The code for it makes passes
// of larger models slower, which have longer phases.
constexpr int POLLED_HIDDEN_MAX = 4096;

// Whether one token's operands of the projections are polled for, instead of grid barriers: from
// the second layer on, as a layer resets what the next one polls.
template <bool DRAFT, int TILES>
__device__ __forceinline__ bool polls_projections(Warp& w, int index) {
  constexpr bool HAS_ROW = TILES == 1 && !DRAFT && TOKENS_MAX > POLLED_ROW &&
                           HIDDEN <= POLLED_HIDDEN_MAX && IS_HELD<QkvMatrix<0>>;
  return HAS_ROW && w.token_count() == 1 && index > 0 && index < Part<DRAFT>::LAYER_COUNT;
}

// The same for the results of attention that is split into chunks.
template <int KIND, bool DRAFT, int TILES>
__device__ __forceinline__ bool polls_attended(Warp& w) {
  constexpr bool CAN = IN_CHUNKS<KIND, DRAFT> && IS_HELD<OutputMatrix<KIND>>;
  return CAN && polls_projections<DRAFT, TILES>(w, w.layer_index());
}

template <int KIND, bool DRAFT, int TILES>
__device__ __forceinline__ void project(Warp& w) {
  const LayerMemory& layer = w.layer();
  const bool polled = polls_projections<DRAFT, TILES>(w, w.layer_index());
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm<QkvMatrix<KIND>, TILES>(
        w.cta, ring, sums, w.cta.memory.normed, NORMED_BYTES, first_unit<QkvMatrix<KIND>>(w.cta),
        tokens_of<TILES>(w.token_count(), polled),
        [&] {
          if (!polled) w.cta.wait_grid();
        },
        ReadInverseRms<TILES>{w.stream(), Reader::Projection, w.token_count(), Part<DRAFT>::EPS,
                              polled},
        store_projections<KIND>(w, layer, layer, DRAFT));
  });
}

// The output projection, whose products owners add to the stream. `wait_input` waits for
// attention's results.
template <int KIND, int TILES, class WaitInput>
__device__ __forceinline__ void output(Warp& w, bool polled, WaitInput wait_input) {
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm<OutputMatrix<KIND>, TILES>(w.cta, ring, sums,
                                    w.cta.memory.attended + Attended<KIND>::PLACE,
                                    Attended<KIND>::ROW_BYTES, w.cta.index(),
                                    tokens_of<TILES>(w.token_count(), polled), wait_input,
                                    Nothing{}, store_output<KIND>(w, w.layer()));
  });
}

// Begins between the halves of a grid barrier. `reset_polled` must be called before the next one;
// if attention is split into chunks, `combine_chunks` calls it, where there is time for it.
template <int KIND, bool DRAFT, int TILES, class ResetPolled>
__device__ __forceinline__ void attend(Warp& w, ResetPolled reset_polled) {
  const LayerMemory& layer = w.layer();
  if constexpr (!ATTENTIONS[KIND].paired) {
    w.cta.wait_grid();
    attn_in<KIND>(w.cta, layer, w.batch(), DRAFT);
    w.cta.stamp(Stamp::AttentionIn);
    w.cta.arrive_grid();
  }
  if constexpr (!IN_CHUNKS<KIND, DRAFT>) reset_polled();
  if constexpr (STREAMED<KIND>)
    w.with_pipeline([&](Ring& ring, Sums&) {
      attend_streamed<KIND>(w.cta, ring, layer, w.batch(), w.shared.pairs[KIND],
                            w.shared.sums);
    });
  else
    attn<KIND, DRAFT>(w.cta, layer, w.batch(), w.shared.pairs, w.shared.sums);
}

// Whether a network of experts polls for single values instead of grid barriers, from the stream to
// gate and up, and to `down` unless its rows come through the ring. With several tiles of tokens it
// needs barriers: the experts of a CTA's tokens are chosen by other CTAs.
template <int KIND, int TILES>
constexpr bool POLLS = TILES == 1 && !IS_DENSE<KIND> && Moe<KIND>::OPERAND_IN_PAGES;

// A layer's network, whose result is added to the stream: a dense one here, one of experts below.
// Both begin between the halves of a grid barrier, or after none where values are polled.
template <int KIND, bool DRAFT, int TILES>
__device__ __forceinline__ void dense(Warp& w) {
  Cta& cta = w.cta;
  const Memory& memory = cta.memory;
  const auto wait_input = [&] { cta.wait_grid(); };
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm<GateUpMatrix<KIND>, TILES>(
        cta, ring, sums, memory.normed, NORMED_BYTES, first_unit<GateUpMatrix<KIND>>(cta),
        EveryToken<TILES>{w.token_count()}, wait_input,
        ReadInverseRms<TILES>{w.stream(), Reader::FeedForward, w.token_count(), Part<DRAFT>::EPS},
        StoreInner<KIND>{memory, w.stream(), w.token_count()});
  });
  cta.stamp(Stamp::GateUp);
  cta.arrive_grid();
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm<DownMatrix<KIND>, TILES>(cta, ring, sums, memory.dense_inner + DenseInner<KIND>::PLACE,
                                      DenseInner<KIND>::ROW_BYTES,
                                      cta.index(), EveryToken<TILES>{w.token_count()}, wait_input,
                                      Nothing{}, StorePart{w.stream()});
  });
  cta.stamp(Stamp::Down);
}

// Computes the scores of all experts for all tokens.
template <int KIND, bool DRAFT, bool POLLED>
__device__ __forceinline__ void score_experts(Warp& w) {
  Cta& cta = w.cta;
  if constexpr (!POLLED) cta.wait_grid();
  const float* bias = at<const float>(w.layer().router_bias);
  const int line = cta.thread() * 32;
  if (FEED_FORWARDS[KIND].router_bias && cta.index() == 0 && line < FEED_FORWARDS[KIND].experts)
    ptx::prefetch_l2(bias + line);
  router_scores<KIND, POLLED>(cta, w.shared.sums, w.token_count(), Part<DRAFT>::EPS);
  cta.stamp(Stamp::RouterSums);
  if constexpr (!POLLED) cta.sync_grid();
}

// A network of experts over one tile of tokens.
template <int KIND, bool DRAFT>
__device__ __forceinline__ void experts(Warp& w) {
  constexpr bool POLLED = POLLS<KIND, 1>;
  Cta& cta = w.cta;
  Routes& routes = w.shared.routes;
  score_experts<KIND, DRAFT, POLLED>(w);
  w.wait_routes_free();
  choose_routes<KIND, POLLED>(cta, routes, w.stream(), at<const float>(w.layer().router_bias),
                              w.token_count(), [&] { w.publish_experts(); });
  cta.stamp(Stamp::Routes, routes.count);
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gate_up<KIND>(cta, ring, sums, w.stream(), [&] {
      complete_routes<KIND>(cta, routes, w.token_count());
      w.publish_routes();
    });
  });
  cta.stamp(Stamp::GateUp);
  const bool in_ring = rows_in_ring<KIND>(w.token_count());
  if (in_ring && !SUMS_APART<KIND>)
    cta.count_operand();
  else if (!in_ring && !POLLED)
    cta.sync_grid();
  if (is_owner(cta))
    w.with_pipeline([&](Ring& ring, Sums& sums) {
      down<KIND, POLLED>(cta, ring, sums, w.stream(), routes, w.token_count());
    });
  cta.sync();
  cta.stamp(Stamp::Down);
}

// The same over several tiles, from scores that are visible to all CTAs. Only the producers wait
// until all of gate and up is written.
template <int KIND>
__device__ __forceinline__ void gathered_experts(Warp& w, const float* bias) {
  Cta& cta = w.cta;
  GatheredRoutes& routes = w.shared.gathered;
  top_k_experts<KIND>(cta, w.shared.sums, bias, w.token_count());
  cta.sync_grid();
  w.wait_routes_free();
  gather_routes<KIND>(cta, routes, w.shared.sums, w.stream(), w.token_count());
  cta.stamp(Stamp::Routes, routes.count);
  w.publish_routes();
  w.with_pipeline([&](Ring& ring, Sums& sums) { gate_up<KIND>(cta, ring, sums, routes); });
  cta.stamp(Stamp::GateUp);
  cta.count_operand();
  if (is_owner(cta))
    w.with_pipeline([&](Ring& ring, Sums& sums) {
      down<KIND>(cta, ring, sums, w.stream(), routes);
    });
  cta.sync();
  cta.stamp(Stamp::Down);
}

// Attention, whose result is added to the stream. Begins between the halves of a grid barrier.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void attention(Warp& w) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
  // One token, for which more is polled and more is reset.
  const bool one = polls_projections<DRAFT, TILES>(w, 1);
  bool polled = false;
  if (one)
    with_kind<P::ATTENTION, P::ATTENTION_END>(w.layer().attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      polled = polls_attended<A, DRAFT, TILES>(w);
      if (polled) reset_attended<A>(cta);
    });
  with_matrix<ProjectionOf, P::ATTENTION, P::ATTENTION_END>(w.layer().attention, [&](auto kind) {
    project<decltype(kind)::value, DRAFT, TILES>(w);
  });
  cta.stamp(Stamp::Project);
  // Before the polled values are reset: the arrival would wait for those stores, which need not
  // complete before the next barrier.
  cta.arrive_grid();
  const auto reset_polled = [&] {
    with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(w.layer().feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      if constexpr (POLLS<F, TILES>) {
        reset_scores<F>(cta, w.token_count());
        reset_inner<F>(cta, w.token_count());
      }
    });
  };
  with_kind<P::ATTENTION, P::ATTENTION_END>(w.layer().attention, [&](auto kind) {
    attend<decltype(kind)::value, DRAFT, TILES>(w, [&] {
      if (!one) reset_polled();
    });
  });
  // CTAs that had no barrier before the projection may have read these values until the last one.
  if (one) {
    reset_norm(cta);
    reset_polled();
  }
  cta.stamp(Stamp::Attention);
  cta.arrive_grid();
  const LayerMemory& layer = w.layer();
  if (!EPILOGUE_ADDS<DRAFT, TILES> && is_owner(cta))
    begin_rms_norm(cta, w.stream(), Reader::FeedForward, layer.post_norm,
               feed_forward_scale(layer.feed_forward), ~0u);
  // With one tile the output projection's first weights are loaded before this.
  const auto wait_input = [&] {
    with_kind<P::ATTENTION, P::ATTENTION_END>(w.layer().attention, [&](auto kind) {
      combine_chunks<decltype(kind)::value, DRAFT, COMBINE_WARPS<TILES == 1>>(
          cta, w.layer(), w.batch(), w.shared.sums, polled, [&] {
            if (!one) reset_polled();
          });
    });
    if (!polled) cta.wait_grid();
  };
  with_matrix<OutputOf, P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
    output<decltype(kind)::value, TILES>(w, polled, wait_input);
  });
  cta.stamp(Stamp::Output);
}

// Consumers: all layers, in two turns each, and a turn for the last norm. When a turn begins,
// `stream.part` holds what the embedding, attention or a network adds, and the norm that follows
// has been begun. Ends between the halves of a grid barrier.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void consume_layers(Warp& w) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
#pragma unroll 1
  while (true) {
    cta.reload_thread();
    const int turn = w.next_turn(), index = turn / 2;
    const bool network = turn % 2 == 1;
    const bool polled = !network && polls_projections<DRAFT, TILES>(w, index);
    // The epilogue has added everything but the embedding.
    const bool added = EPILOGUE_ADDS<DRAFT, TILES> && turn > 0 && is_owner(cta);
    if (!added && is_owner(cta)) {
      all_reduce(cta, w.stream(), w.token_count());
      add_rms_norm(cta, w.stream(), w.shared.sums, w.token_count(), polled ? POLLED_ROW : 0);
    }
    cta.stamp(Stamp::AddRmsNorm);
    bool barrier = !polled, chooses = false;
    if (network)
      with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(w.layer().feed_forward, [&](auto kind) {
        constexpr int F = decltype(kind)::value;
        barrier = !POLLS<F, TILES>;
        chooses = TILES == 1 && !IS_DENSE<F>;
        if constexpr (!IS_DENSE<F>) {
          if (!is_owner(cta)) return;
          w.with_pipeline([&](Ring& ring, Sums&) {
            router_parts<F>(cta, ring, w.shared.sums, w.token_count());
            cta.stamp(Stamp::RouterParts);
          });
        }
      });
    // The producer waits for this counter only, whether or not there is a grid barrier.
    if (chooses && !added) cta.count_operand();
    // Parts of the router are written by consumers.
    if (barrier) added && !chooses ? cta.pass_arrival() : cta.arrive_grid();
    if (index == P::LAYER_COUNT) return;
    if (!network) {
      P::fetch_layer(cta, w.shared.layers, index + 1);
      attention<DRAFT, TILES>(w);
      continue;
    }
    if constexpr (!EPILOGUE_ADDS<DRAFT, TILES>)
      begin_rms_norm_before<DRAFT>(cta, w.shared, index + 1, w.layer().tap);
    with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(w.layer().feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      if constexpr (IS_DENSE<F>)
        dense<F, DRAFT, TILES>(w);
      else if constexpr (TILES == 1)
        experts<F, DRAFT>(w);
      else {
        score_experts<F, DRAFT, false>(w);
        gathered_experts<F>(w, at<const float>(w.layer().router_bias));
      }
    });
  }
}

// The addresses that the producer needs first in a layer. It loads them during the layer before.
struct FirstWeights {
  uint32_t attention;
  uint64_t qkv;

  __device__ __forceinline__ explicit FirstWeights(const LayerMemory& layer)
      : attention(layer.attention), qkv(layer.qkv) {}
};

// The addresses that it needs later in the layer. It loads them at its beginning, before any wait:
// a load takes 1 to 2 us, during which no weights could be requested later on.
struct LayerWeights {
  uint32_t feed_forward;
  uint64_t output, router, gate_up, down;

  LayerWeights() = default;
  __device__ __forceinline__ explicit LayerWeights(const LayerMemory& layer)
      : feed_forward(layer.feed_forward),
        output(layer.output),
        router(layer.router),
        gate_up(layer.gate_up),
        down(layer.down) {}
};

// Producer: the experts of a network. `counts` are the operands before it in the launch, `taken` is
// the number of requests for units.
template <int KIND, int TILES>
__device__ __forceinline__ void produce_experts(Warp& w, const LayerWeights& layer,
                                                RowCounts& counts, uint32_t& taken) {
  const Cta& cta = w.cta;
  counts.operand++;
  if constexpr (TILES == 1 && Moe<KIND>::OPERAND_IN_PAGES) {
    wait_operand(cta, counts.operand);
    produce_operand<KIND>(cta, w.ring);
  }
  constexpr bool EARLY = TILES == 1 && FIRST_UNIT_IS_EARLY<KIND>;
  if constexpr (EARLY) {
    w.wait_experts();
    produce_first_unit<KIND>(cta, w.ring, w.shared.routes, layer.gate_up);
  }
  w.wait_routes();
  if constexpr (TILES == 1) {
    produce_gate_up<KIND, EARLY>(cta, w.ring, w.shared.routes, layer.gate_up, taken);
    if (rows_in_ring<KIND>(w.token_count())) {
      counts.operand++;
      counts.first++;
    }
    if (is_owner(cta))
      produce_down<KIND>(cta, w.ring, w.shared.sums, w.shared.routes, layer.down, w.token_count(),
                         counts);
  } else {
    produce_gate_up<KIND>(cta, w.ring, w.shared.gathered, layer.gate_up, taken);
    if (is_owner(cta))
      produce_down<KIND>(cta, w.ring, w.shared.sums, w.shared.gathered, layer.down, counts.operand);
  }
  w.producer_releases_routes();
}

// Producer: the weights of all layers, in the consumers' order.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void produce_layers(Warp& w) {
  using P = Part<DRAFT>;
  uint32_t taken = 0;
  RowCounts counts = {};
  FirstWeights next(P::layer(w.cta.memory, 0));
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& memory = P::layer(w.cta.memory, index);
    const FirstWeights first = next;
    const LayerWeights layer(memory);
    next = FirstWeights(P::layer(w.cta.memory, smaller(index + 1, P::LAYER_COUNT - 1)));
    with_matrix<QkvMatrix, P::ATTENTION, P::ATTENTION_END>(first.attention, [&](auto kind) {
      using M = QkvMatrix<decltype(kind)::value>;
      produce<M, TILES>(w.ring, first.qkv, first_unit<M>(w.cta));
    });
    with_kind<P::ATTENTION, P::ATTENTION_END>(first.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      if constexpr (STREAMED<A>)
        produce_keys<A>(w.cta, w.ring, memory, w.batch(), w.shared.pairs[A]);
    });
    with_matrix<OutputMatrix, P::ATTENTION, P::ATTENTION_END>(first.attention, [&](auto kind) {
      produce<OutputMatrix<decltype(kind)::value>, TILES>(w.ring, layer.output, w.cta.index());
    });
    with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      if constexpr (IS_DENSE<F>) {
        produce<GateUpMatrix<F>, TILES>(w.ring, layer.gate_up, first_unit<GateUpMatrix<F>>(w.cta));
        produce<DownMatrix<F>, TILES>(w.ring, layer.down, w.cta.index());
      } else {
        if (is_owner(w.cta)) produce_router<F>(w.ring, layer.router);
        produce_experts<F, TILES>(w, layer, counts, taken);
      }
    });
  }
}

// Epilogue of an owner: the norm after a layer's network.
template <bool DRAFT, int TILES>
__device__ __forceinline__ EpilogueNorm norm_after_network(Warp& w, const LayerMemory& layer,
                                                           int index) {
  using P = Part<DRAFT>;
  const Memory& memory = w.cta.memory;
  const LayerMemory& next = P::layer(memory, index + 1 == P::LAYER_COUNT ? index : index + 1);
  const auto norm = P::norm_before(memory, next, index + 1);
  const bool polled = polls_projections<DRAFT, TILES>(w, index + 1);
  return EpilogueNorm(w.cta, Reader::Projection, norm.weights, norm.scale, layer.tap,
                      polled ? POLLED_ROW : 0);
}

// Epilogue: a network of experts. With one tile of tokens, that of an owner calls
// `epilogue_of_down()`.
template <int KIND, int TILES, class Down>
__device__ __forceinline__ void epilogue_experts(Warp& w, const LayerMemory& layer,
                                                 Down epilogue_of_down) {
  Cta& cta = w.cta;
  w.wait_routes();
  cta.make_opaque();
  if constexpr (TILES == 1) {
    epilogue_gate_up<KIND>(cta, w.sums, w.stream(), w.shared.routes, layer.gate_up_bias,
                           w.token_count());
    if (is_owner(cta)) epilogue_of_down();
  } else {
    epilogue_gate_up<KIND>(cta, w.sums, w.stream(), w.shared.gathered, layer.gate_up_bias);
    if (is_owner(cta))
      epilogue_down<KIND>(cta, w.sums, w.stream(), w.shared.gathered, layer.down_bias);
  }
  w.epilogue_releases_routes();
}
// The same, which leaves the products of down in `stream.part`.
template <int KIND, int TILES>
__device__ __forceinline__ void epilogue_experts(Warp& w, const LayerMemory& layer) {
  epilogue_experts<KIND, TILES>(w, layer, [&] {
    epilogue_down<KIND>(w.cta, w.sums, w.stream(), w.shared.routes, layer.down_bias);
  });
}

// Epilogue: the output projection, whose products it adds to the stream.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void epilogue_adds_output(Warp& w, const LayerMemory& layer) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
  if (!is_owner(cta)) return;
  EpilogueNorm norm(cta, Reader::FeedForward, layer.post_norm,
                    feed_forward_scale(layer.feed_forward), ~0u, 0);
  with_matrix<OutputOf, P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
    constexpr int A = decltype(kind)::value;
    cta.make_opaque();
    epilogue<OutputMatrix<A>>(cta, w.sums, cta.index(), 1,
                              AddOutput<A>{cta, w.stream(), w.shared.sums, norm,
                                           at<const float>(layer.output_bias), w.token_count()});
  });
  bool chooses = false;
  with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(
      layer.feed_forward, [&](auto kind) { chooses = !IS_DENSE<decltype(kind)::value>; });
  norm.finish(cta, w.stream(), w.token_count(), chooses, !chooses);
}

// Epilogue: a layer's network, whose products it adds to the stream.
template <int KIND, bool DRAFT, int TILES>
__device__ __forceinline__ void epilogue_adds_network(Warp& w, const LayerMemory& layer,
                                                      int index) {
  Cta& cta = w.cta;
  const bool arrives = !polls_projections<DRAFT, TILES>(w, index + 1);
  if constexpr (IS_DENSE<KIND>) {
    if (!is_owner(cta)) return;
    EpilogueNorm norm = norm_after_network<DRAFT, TILES>(w, layer, index);
    epilogue<DownMatrix<KIND>>(cta, w.sums, cta.index(), 1,
                               AddPart{cta, w.stream(), w.shared.sums, norm, w.token_count()});
    norm.finish(cta, w.stream(), w.token_count(), false, arrives);
  } else {
    epilogue_experts<KIND, TILES>(w, layer, [&] {
      EpilogueNorm norm = norm_after_network<DRAFT, TILES>(w, layer, index);
      epilogue_down<KIND>(cta, w.sums, w.stream(), w.shared.routes, layer.down_bias,
                          [&](int row_tile, const float4& total) {
                            norm.add(cta, w.stream(), w.shared.sums, row_tile, total,
                                     w.token_count());
                          });
      norm.finish(cta, w.stream(), w.token_count(), false, arrives);
    });
  }
}

// Epilogue: all layers, in the consumers' order.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void epilogue_layers(Warp& w) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
  // Whether the routes of the layer before were waited for: then this CTA's consumers have fetched
  // this layer, and the angles are there. Behind a dense network only this layer's sums show it, as
  // the CTA may have had no unit of that layer. Without dense networks the index says as much.
  bool routed = false;
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(cta.memory, index);
    with_matrix<ProjectionOf, P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      const LayerMemory& held = w.shared.layers[index % 2];
      cta.make_opaque();
      epilogue<QkvMatrix<A>>(cta, w.sums, first_unit<QkvMatrix<A>>(cta), w.tiles(),
                        store_projections<A>(w, layer, held, DRAFT),
                        ALL_ROUTED<P::FEED_FORWARD, P::FEED_FORWARD_END> ? index > 0 : routed);
    });
    if constexpr (EPILOGUE_ADDS<DRAFT, TILES>)
      epilogue_adds_output<DRAFT, TILES>(w, layer);
    else
      with_matrix<OutputOf, P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
        constexpr int A = decltype(kind)::value;
        cta.make_opaque();
        epilogue<OutputMatrix<A>>(cta, w.sums, cta.index(), w.tiles(), store_output<A>(w, layer));
      });
    with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      routed = !IS_DENSE<F>;
      if constexpr (IS_DENSE<F>) {
        cta.make_opaque();
        epilogue<GateUpMatrix<F>>(cta, w.sums, first_unit<GateUpMatrix<F>>(cta), w.tiles(),
                             StoreInner<F>{cta.memory, w.stream(), w.token_count()});
        cta.make_opaque();
        if constexpr (EPILOGUE_ADDS<DRAFT, TILES>)
          epilogue_adds_network<F, DRAFT, TILES>(w, layer, index);
        else
          epilogue<DownMatrix<F>>(cta, w.sums, cta.index(), w.tiles(), StorePart{w.stream()});
      } else if constexpr (EPILOGUE_ADDS<DRAFT, TILES>) {
        epilogue_adds_network<F, DRAFT, TILES>(w, layer, index);
      } else {
        epilogue_experts<F, TILES>(w, layer);
      }
    });
  }
}

// A pass: the batch's tokens through all layers, and the logits of the wanted ones.
template <bool DRAFT, int TILES>
__device__ __forceinline__ void consume_pass(Warp& w) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
  P::fetch_layer(cta, w.shared.layers, 0);
  rope_angles(cta, w.batch(), P::ATTENTION, P::ATTENTION_END);
  cta.sync();
  if (is_owner(cta)) embed(cta, w.stream(), w.batch());
  cta.stamp(Stamp::Embed);
  begin_rms_norm_before<DRAFT>(cta, w.shared, 0, ~0u);
  consume_layers<DRAFT, TILES>(w);
  consume_logits<DRAFT, TILES>(w);
}

template <bool DRAFT, int TILES>
__device__ __forceinline__ void produce_pass(Warp& w) {
  produce_layers<DRAFT, TILES>(w);
  produce_logits<TILES>(w);
}

template <bool DRAFT, int TILES>
__device__ __forceinline__ void epilogue_pass(Warp& w) {
  epilogue_layers<DRAFT, TILES>(w);
  epilogue_logits(w);
}

}  // namespace kilotok
