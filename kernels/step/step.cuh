// A pass over the layers: what consumers compute and, in the same order, what the producer brings
// and the adders add. Grid barriers separate the phases; the ring runs ahead across them, up to the
// experts, whose list is known only when the router has spoken.
#pragma once

#include "kilotok/phase/attn.cuh"
#include "kilotok/phase/attn_in.cuh"
#include "kilotok/phase/embed.cuh"
#include "kilotok/phase/experts.cuh"
#include "kilotok/phase/head.cuh"
#include "kilotok/phase/project.cuh"

namespace kilotok {

struct Shared {
  RingMemory ring;
  SumMemory sums;
  StreamMemory stream;
  Routes routes;
  // Of this layer and the next, whichever part they are of.
  LayerMemory layers[2];
  // Completed when the routes of a tile are in `routes`, and when producer and adders need them no
  // more: a warp that is late must not miss one.
  alignas(8) uint64_t routed;
  alignas(8) uint64_t heard;
};

// The layers of the target, or of the drafter.
template <bool DRAFT>
struct Part {
  static constexpr int LAYER_COUNT = DRAFT ? DRAFT_LAYERS : LAYERS;
  static constexpr int ATTENTION = DRAFT ? DRAFT_ATTENTION : 0;
  static constexpr int ATTENTION_END = DRAFT ? ATTENTION_KINDS : DRAFT_ATTENTION;
  static constexpr int FEED_FORWARD = DRAFT ? DRAFT_FEED_FORWARD : 0;
  static constexpr int FEED_FORWARD_END = DRAFT ? FEED_FORWARD_KINDS : DRAFT_FEED_FORWARD;
  static constexpr float EPS = DRAFT ? DRAFT_NORM_EPS : NORM_EPS;

  // Consumers: brings a layer's addresses into shared memory, where no barrier makes them late.
  static __device__ __forceinline__ void bring_layer(const Cta& cta, LayerMemory* layers,
                                                     int index) {
    constexpr int WORDS = sizeof(LayerMemory) / 4;
    if (index >= LAYER_COUNT || cta.thread() >= WORDS) return;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(&layer(cta.memory, index));
    reinterpret_cast<uint32_t*>(&layers[index % 2])[cta.thread()] = from[cta.thread()];
  }
  static __device__ __forceinline__ const LayerMemory& layer(const Memory& memory, int index) {
    return at<const LayerMemory>(DRAFT ? memory.draft_layers : memory.layers)[index];
  }};

// What the feed-forward network of a kind, and the projection of a kind, want as operands.
__device__ __forceinline__ float feed_forward_scale(uint32_t kind) {
  float scale = 1.0f;
  with_kind<0, FEED_FORWARD_KINDS>(
      kind, [&](auto k) { scale = operand_scale(FEED_FORWARDS[decltype(k)::value].format); });
  return scale;
}

__device__ __forceinline__ float projection_scale(uint32_t kind) {
  float scale = 1.0f;
  with_kind<0, ATTENTION_KINDS>(
      kind, [&](auto k) { scale = operand_scale(ATTENTIONS[decltype(k)::value].format); });
  return scale;
}

// The norm before a layer, or before the head when there is no such layer.
template <bool DRAFT>
__device__ __forceinline__ NextNorm norm_before(const Cta& cta, const LayerMemory* layers,
                                                int index, uint32_t tap) {
  const Memory& memory = cta.memory;
  if (index == Part<DRAFT>::LAYER_COUNT)
    return NextNorm(cta, DRAFT ? memory.draft_norm : memory.final_norm, 1.0f, tap);
  const LayerMemory& layer = layers[index % 2];
  return NextNorm(cta, layer.input_norm, projection_scale(layer.attention), tap);
}

// A warp's state on its way through a pass.
struct Walker {
  Cta& cta;
  Ring& ring;
  Sums& sums;
  Shared& shared;
  const Batch& batch;
  // How often routes were chosen, or heard of.
  uint32_t routed_count;

  __device__ __forceinline__ int token_count() const { return batch.token_count; }
  __device__ __forceinline__ int tiles() const { return ceil_div(batch.token_count, TILE_TOKENS); }
  __device__ __forceinline__ StreamMemory& stream() const { return shared.stream; }

  // Producer and adders: wait until the routes of the next tile are there; say when they may go.
  __device__ __forceinline__ void wait_routes() {
    wait_mbarrier<64>(cta.place, Waits::Routes, ptx::shared_address(&shared.routed),
                      routed_count++ & 1);
  }
  __device__ __forceinline__ void leave_routes() {
    ptx::mbarrier_arrive(ptx::shared_address(&shared.heard));
  }

  // Consumers: wait until the last routes may go.
  __device__ __forceinline__ void wait_heard() {
    if (routed_count++ == 0) return;
    wait_mbarrier<0>(cta.place, Waits::Routes, ptx::shared_address(&shared.heard),
                     routed_count & 1);
  }

  template <class M, class RowOf, class Prepare, class Use>
  __device__ __forceinline__ void multiply_by(uint64_t operand, int row_bytes, int first, int tiles,
                                              RowOf row_of, Prepare prepare, Use use) {
    multiply<M>(cta, ring, sums, operand, row_bytes, first, tiles, row_of, prepare, use);
  }
};

// The batch's own order of tokens.
struct EveryToken {
  __device__ __forceinline__ int operator()(int column) const { return column; }
};

// Projection back to the stream, the router's part of it, and the next norm.
template <int KIND>
__device__ __forceinline__ void attention_out(Walker& w, const LayerMemory& layer) {
  Cta& cta = w.cta;
  if (!is_owner(cta)) return;
  const NextNorm next(cta, layer.post_norm, feed_forward_scale(layer.feed_forward), ~0u);
  w.multiply_by<OutputMatrix<KIND>>(cta.memory.attended, ATTENDED_BYTES, cta.index(), w.tiles(),
                                    EveryToken{}, Nothing{}, StorePart{w.stream()});
  cta.stamp(Stamp::Output);
  exchange(cta, w.stream(), w.token_count());
  add_to_stream(cta, w.stream(), w.shared.sums, w.token_count(), next);
  cta.stamp(Stamp::AddToStream);
  with_kind<0, FEED_FORWARD_KINDS>(layer.feed_forward, [&](auto kind) {
    constexpr int F = decltype(kind)::value;
    if constexpr (FEED_FORWARDS[F].experts > 0) {
      router_parts<F>(cta, w.ring, w.shared.sums, w.token_count());
      cta.stamp(Stamp::RouterParts);
    }
  });
}

template <int KIND, bool DRAFT>
__device__ __forceinline__ void feed_forward(Walker& w, const LayerMemory& layer,
                                             const NextNorm& next) {
  constexpr bool DENSE = Network<KIND>::DENSE;
  Cta& cta = w.cta;
  Routes& routes = w.shared.routes;
  if constexpr (DENSE) {
    read_norm(cta, w.stream(), w.token_count(), Part<DRAFT>::EPS);
  } else {
    const int line = cta.thread() * 32;
    if (cta.index() == 0 && line < FEED_FORWARDS[KIND].experts)
      ptx::prefetch_l2(at<const float>(layer.router_bias) + line);
    router_sums<KIND>(cta, w.token_count());
    cta.stamp(Stamp::RouterSums);
    cta.sync_grid();
  }
  for (int tile = 0; tile < w.tiles(); tile++) {
    if constexpr (!DENSE) {
      w.wait_heard();
      choose_routes<KIND>(cta, routes, w.stream(), Part<DRAFT>::EPS,
                          at<const float>(layer.router_bias), tile, w.token_count());
      cta.stamp(Stamp::Routes);
    }
    cta.sync();
    if (!DENSE && cta.thread() == 0)
      ptx::mbarrier_arrive(ptx::shared_address(&w.shared.routed));
    gate_up<KIND>(cta, w.ring, w.sums, routes, tile);
    cta.stamp(Stamp::GateUp);
    cta.sync_grid();
    if (is_owner(cta)) down<KIND>(cta, w.ring, w.sums, routes, tile);
    cta.sync();
    cta.stamp(Stamp::Down);
  }
  if (!is_owner(cta)) return;
  exchange(cta, w.stream(), w.token_count());
  add_to_stream(cta, w.stream(), w.shared.sums, w.token_count(), next);
  cta.stamp(Stamp::AddToStream);
}

// All of attention, out of line: it wants its own registers. Whatever is passed lies in memory, so
// a copy is passed.
template <int KIND>
__device__ __noinline__ void attend_all(Cta& passed, const LayerMemory& layer, const Batch& batch,
                                        SumMemory& sums, bool own) {
  Cta cta = passed;
  cta.forget();
  attn_in<KIND>(cta, layer, batch.token_count, own);
  cta.stamp(Stamp::AttentionIn);
  attn<KIND>(cta, layer, batch, sums, own);
  passed.follow(cta);
}

// Consumers: all layers, from the prepared first norm to the prepared last one.
template <bool DRAFT>
__device__ __forceinline__ void consume_layers(Walker& w) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
  const Memory& memory = cta.memory;
  LayerMemory* layers = w.shared.layers;
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = layers[index % 2];
    cta.sync_grid();
    P::bring_layer(cta, layers, index + 1);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      w.multiply_by<QkvMatrix<A>>(memory.normed, NORMED_BYTES, cta.index(), w.tiles(),
                                  EveryToken{},
                                  ReadNorm{w.stream(), w.token_count(), P::EPS},
                                  StoreProjected<A>{memory, w.stream(), w.token_count()});
      cta.stamp(Stamp::Project);
      cta.sync_grid();
      Cta passed = cta;
      attend_all<A>(passed, layer, w.batch, w.shared.sums, DRAFT);
      cta.follow(passed);
      cta.stamp(Stamp::Attention);
      cta.sync_grid();
      attention_out<A>(w, layer);
    });
    cta.sync_grid();
    const NextNorm next = norm_before<DRAFT>(cta, layers, index + 1, layer.tap);
    with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      feed_forward<decltype(kind)::value, DRAFT>(w, layer, next);
    });
  }
  cta.sync_grid();
}

// Producer: the same, in the same order.
template <bool DRAFT>
__device__ __forceinline__ void produce_layers(Walker& w) {
  using P = Part<DRAFT>;
  const Place& place = w.cta.place;
  const bool owner = is_owner(w.cta);
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(w.cta.memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      produce<QkvMatrix<A>>(place, w.ring, layer.qkv, w.cta.index());
      produce<OutputMatrix<A>>(place, w.ring, layer.output, w.cta.index());
    });
    with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      if constexpr (!Network<F>::DENSE) {
        if (owner) produce_router<F>(place, w.ring, layer.router);
      }
      for (int tile = 0; tile < w.tiles(); tile++) {
        if constexpr (!Network<F>::DENSE) w.wait_routes();
        produce_gate_up<F>(place, w.ring, w.shared.routes, layer.gate_up);
        if (owner) produce_down<F>(place, w.ring, w.shared.routes, layer.down);
        if constexpr (!Network<F>::DENSE) w.leave_routes();
      }
    });
  }
}

// Adders: the same, behind the consumers.
template <bool DRAFT>
__device__ __forceinline__ void add_layers(Walker& w) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
  const bool owner = is_owner(cta);
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(cta.memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      add<QkvMatrix<A>>(cta, w.sums, cta.index(), w.tiles(),
                        StoreProjected<A>{cta.memory, w.stream(), w.token_count()});
      add<OutputMatrix<A>>(cta, w.sums, cta.index(), w.tiles(), StorePart{w.stream()});
    });
    with_kind<P::FEED_FORWARD, P::FEED_FORWARD_END>(layer.feed_forward, [&](auto kind) {
      constexpr int F = decltype(kind)::value;
      for (int tile = 0; tile < w.tiles(); tile++) {
        if constexpr (!Network<F>::DENSE) w.wait_routes();
        add_gate_up<F>(cta, w.sums, w.stream(), w.shared.routes, tile, w.token_count());
        if constexpr (!Network<F>::DENSE) {
          __syncwarp();
          if (cta.lane() == 0) w.leave_routes();
        }
        if (!owner) continue;
        w.sums.template take<DownMatrix<F>>(
            cta, [&](int row_tile, int, int lane, const float4& v) {
              StorePart{w.stream()}(0, row_tile, tile, lane, v);
            });
      }
    });
  }
}

// A pass: the batch's tokens through the layers to the logits of the wanted ones.
template <bool DRAFT>
__device__ __forceinline__ void consume_pass(Walker& w) {
  using P = Part<DRAFT>;
  Cta& cta = w.cta;
  P::bring_layer(cta, w.shared.layers, 0);
  rotations(cta, w.token_count(), P::ATTENTION, P::ATTENTION_END);
  cta.sync();
  embed(cta, w.stream(), w.shared.sums, w.token_count(),
        norm_before<DRAFT>(cta, w.shared.layers, 0, ~0u));
  cta.stamp(Stamp::Embed);
  consume_layers<DRAFT>(w);
  if (w.batch.wanted_count == 0) return;
  const WantedTokens wanted(cta.memory, w.batch);
  w.multiply_by<HeadMatrix>(cta.memory.normed, NORMED_BYTES, cta.index(), wanted.tiles(), wanted,
                            ReadNorm{w.stream(), w.token_count(), P::EPS},
                            StoreLogits{at<float>(cta.memory.logits), w.stream(), wanted});
  cta.stamp(Stamp::Head);
}

template <bool DRAFT>
__device__ __forceinline__ void produce_pass(Walker& w) {
  produce_layers<DRAFT>(w);
  if (w.batch.wanted_count > 0)
    produce<HeadMatrix>(w.cta.place, w.ring, w.cta.memory.head, w.cta.index());
}

template <bool DRAFT>
__device__ __forceinline__ void add_pass(Walker& w) {
  add_layers<DRAFT>(w);
  if (w.batch.wanted_count == 0) return;
  const WantedTokens wanted(w.cta.memory, w.batch);
  add<HeadMatrix>(w.cta, w.sums, w.cta.index(), wanted.tiles(),
                  StoreLogits{at<float>(w.cta.memory.logits), w.stream(), wanted});
}

}  // namespace kilotok
