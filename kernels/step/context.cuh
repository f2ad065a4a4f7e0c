// The drafter's context: fc * taps of committed tokens, normed, then each layer's keys and values
// of it, written to the pages. The layers' own input norms are not applied.
//
// Reads `taps` at the rows that the batch's tokens name; a barrier after the fusion, one after the
// norm, two a layer.
#pragma once

#include "step/step.cuh"

namespace kilotok {

// The projection's units that hold no query rows; drafters' kinds begin at DRAFT_ATTENTION.
template <int KIND>
constexpr int KEY_UNIT = QkvRows<KIND>::KEY / 16;

// The rows of `taps` that the batch's tokens name.
struct TapRows {
  const BatchToken* tokens;
  int count;

  __device__ __forceinline__ int operator()(int column) const {
    return column < count ? static_cast<int>(tokens[column].tap) : 0;
  }
};

// Consumers and adders alike: this rank's rows of the fused context.
struct StoreFused {
  float* fused;
  int token_count;

  __device__ __forceinline__ void operator()(int unit, int, int tile, int lane,
                                             const float4& v) const {
    const int row = unit * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int token = tile * TILE_TOKENS + lane % 4 * 2 + j;
      if (token >= token_count) continue;
      float* to = fused + token * FuseMatrix::ROWS + row;
      if (row < FuseMatrix::ROWS) to[0] = j == 0 ? v.x : v.y;
      if (row + 8 < FuseMatrix::ROWS) to[8] = j == 0 ? v.z : v.w;
    }
  }
};

// Owners: the fused context becomes the stream, and its norm is prepared.
__device__ __forceinline__ void norm_context(Walker& w) {
  Cta& cta = w.cta;
  if (!is_owner(cta)) return;
  const Memory& memory = cta.memory;
  StreamMemory& stream = w.stream();
  const float* fused = at<const float>(memory.fused);
  for (int k = cta.thread(); k < w.token_count() * OWNER_ROWS; k += CONSUMERS) {
    const int token = k / OWNER_ROWS, row = k % OWNER_ROWS;
    const int column = cta.index() * OWNER_ROWS + row;
    const int place = column - static_cast<int>(memory.rank) * FuseMatrix::ROWS;
    const bool own = column < HIDDEN && place >= 0 && place < FuseMatrix::ROWS;
    stream.residual[token][row] = 0;
    stream.part[token][row] = own ? ptx::load_l2(fused + token * FuseMatrix::ROWS + place) : 0;
  }
  begin_norm(cta, stream, Reader::Projection, memory.draft_context_norm, 1.0f, ~0u);
  exchange(cta, stream, w.token_count());
  add_to_stream(cta, stream, w.shared.sums, w.token_count());
}

template <int TILES>
__device__ __forceinline__ void fuse(Walker& w) {
  const Memory& memory = w.cta.memory;
  w.walk([&](Ring& ring, Sums& sums) {
    multiply<FuseMatrix, TILES>(w.cta, ring, sums, memory.taps, TAPS_BYTES,
                                first_unit<FuseMatrix>(w.cta),
                                TapRows{w.batch().tokens, w.token_count()}, [] {}, Nothing{},
                                StoreFused{at<float>(memory.fused), w.token_count()});
  });
}

template <int KIND, int TILES>
__device__ __forceinline__ void project_context(Walker& w, const LayerMemory& layer) {
  const Memory& memory = w.cta.memory;
  w.walk([&](Ring& ring, Sums& sums) {
    multiply<QkvMatrix<KIND>, TILES>(w.cta, ring, sums, memory.normed, NORMED_BYTES,
                                     KEY_UNIT<KIND> + first_unit<QkvMatrix<KIND>>(w.cta),
                                     EveryToken{}, [] {}, Nothing{},
                                     store_projections<KIND>(w, layer.attention, layer, false));
  });
}

template <int TILES>
__device__ __forceinline__ void consume_context(Walker& w) {
  using P = Part<true>;
  Cta& cta = w.cta;
  const Memory& memory = cta.memory;
  rotations(cta, w.batch(), P::ATTENTION, P::ATTENTION_END);
  fuse<TILES>(w);
  cta.stamp(Stamp::Fuse);
  cta.sync_grid();
  norm_context(w);
  cta.stamp(Stamp::ContextNorm);
  cta.sync_grid();
  read_norm(cta, w.stream(), Reader::Projection, w.token_count(), P::EPS);
  cta.sync();
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      static_assert(ATTENTIONS[A].format == Format::Bf16, "the context is an operand for BF16");
      project_context<A, TILES>(w, layer);
      cta.stamp(Stamp::ContextKeys);
      if constexpr (ATTENTIONS[A].paired) return;
      cta.sync_grid();
      attn_context<A>(cta, layer, w.batch());
      cta.stamp(Stamp::ContextKeys);
      cta.sync_grid();
    });
  }
}

__device__ __forceinline__ void produce_context(Walker& w) {
  using P = Part<true>;
  produce<FuseMatrix>(w.ring, w.cta.memory.draft_fc, first_unit<FuseMatrix>(w.cta));
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(w.cta.memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      produce<QkvMatrix<A>>(w.ring, layer.qkv, KEY_UNIT<A> + first_unit<QkvMatrix<A>>(w.cta));
    });
  }
}

__device__ __forceinline__ void add_context(Walker& w) {
  using P = Part<true>;
  Cta& cta = w.cta;
  add<FuseMatrix>(cta, w.sums, first_unit<FuseMatrix>(cta), w.tiles(),
                  StoreFused{at<float>(cta.memory.fused), w.token_count()});
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(cta.memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      add<QkvMatrix<A>>(cta, w.sums, KEY_UNIT<A> + first_unit<QkvMatrix<A>>(cta), w.tiles(),
                        store_projections<A>(w, layer.attention, layer, false), index > 0);
    });
  }
}

}  // namespace kilotok
