// The drafter's context: fc * taps of the batch's tokens, normed, then each layer's keys and
// values, written to the pages. The layers' own input norms are not applied. Rejected drafts are
// among the tokens; a later step overwrites their keys and values before anything reads them.
//
// Reads `taps` at the rows that the batch's tokens name. There is a grid barrier after the fusion,
// one after the norm, and one after the projections of all layers if their epilogue does not make
// keys and values of them (`paired`).
#pragma once

#include "step/step.cuh"

namespace kilotok {

// The first unit of a CTA among those of a layer's projection that hold no query rows. The first
// one belongs to another CTA in each layer, because a layer has fewer of them than there are CTAs.
template <int KIND>
__device__ __forceinline__ int first_key_unit(const Cta& cta, int layer) {
  using M = QkvMatrix<KIND>;
  constexpr int FIRST = QkvRows<KIND>::KEY / 16;
  if (cta.index() >= M::CTAS) return M::UNITS;
  return FIRST + (cta.index() + M::CTAS - layer * (M::UNITS - FIRST) % M::CTAS) % M::CTAS;
}

// The epilogue of a layer's projections of keys and values.
template <int KIND>
__device__ __forceinline__ auto store_context(Warp& w, const LayerMemory& layer, int index) {
  if constexpr (ATTENTIONS[KIND].paired)
    return store_projections<KIND>(w, layer, layer, false);
  else
    return StoreProjected<KIND>{w.cta.memory, w.stream(), at<const float>(layer.qkv_bias),
                                w.token_count(), context_row<KIND>(index)};
}

// The rows of `taps` that the batch's tokens name.
struct TapRows {
  const BatchToken* tokens;
  int count;

  __device__ __forceinline__ int tiles() const { return ceil_div(count, TILE_TOKENS); }
  __device__ __forceinline__ int operator()(int column) const {
    return column < count ? static_cast<int>(tokens[column].tap) : 0;
  }
};

// Consumers and epilogue: stores this rank's rows of the fused context.
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

// Owners: the fused context becomes the residual stream, and its RMSNorm is computed.
__device__ __forceinline__ void rms_norm_context(Warp& w) {
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
  begin_rms_norm(cta, stream, Reader::Projection, memory.draft_context_norm, 1.0f, ~0u);
  all_reduce(cta, stream, w.token_count());
  add_rms_norm(cta, stream, w.shared.sums, w.token_count());
}

template <int TILES>
__device__ __forceinline__ void fuse(Warp& w) {
  const Memory& memory = w.cta.memory;
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm<FuseMatrix, TILES>(w.cta, ring, sums, memory.taps, TAPS_BYTES,
                                first_unit<FuseMatrix>(w.cta),
                                TapRows{w.batch().tokens, w.token_count()}, [] {}, Nothing{},
                                StoreFused{at<float>(memory.fused), w.token_count()});
  });
}

template <int KIND, int TILES>
__device__ __forceinline__ void project_context(Warp& w, const LayerMemory& layer, int index) {
  static_assert(ATTENTIONS[KIND].format == Format::Bf16, "the context is an operand for BF16");
  w.with_pipeline([&](Ring& ring, Sums& sums) {
    gemm<QkvMatrix<KIND>, TILES>(w.cta, ring, sums, w.cta.memory.normed, NORMED_BYTES,
                                     first_key_unit<KIND>(w.cta, index),
                                     EveryToken<TILES>{w.token_count()},
                                     [] {}, Nothing{}, store_context<KIND>(w, layer, index));
  });
}

template <int TILES>
__device__ __forceinline__ void consume_context(Warp& w) {
  using P = Part<true>;
  Cta& cta = w.cta;
  const Memory& memory = cta.memory;
  rope_angles(cta, w.batch(), P::ATTENTION, P::ATTENTION_END);
  fuse<TILES>(w);
  cta.stamp(Stamp::Fuse);
  cta.sync_grid();
  rms_norm_context(w);
  cta.stamp(Stamp::ContextNorm);
  cta.sync_grid();
  read_inverse_rms<TILES>(cta, w.stream(), Reader::Projection, w.token_count(), P::EPS);
  cta.sync();
  bool paired = true;
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      paired = paired && ATTENTIONS[A].paired;
      project_context<A, TILES>(w, layer, index);
    });
  }
  cta.stamp(Stamp::ContextKeys);
  if (paired) return;
  cta.sync_grid();
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      if constexpr (!ATTENTIONS[A].paired) attn_context<A>(cta, layer, index, w.batch());
    });
  }
  cta.stamp(Stamp::ContextKeys);
}

template <int TILES>
__device__ __forceinline__ void produce_context(Warp& w) {
  using P = Part<true>;
  produce<FuseMatrix, TILES>(w.ring, w.cta.memory.draft_fc, first_unit<FuseMatrix>(w.cta));
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(w.cta.memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      produce<QkvMatrix<A>, TILES>(w.ring, layer.qkv, first_key_unit<A>(w.cta, index));
    });
  }
}

__device__ __forceinline__ void epilogue_context(Warp& w) {
  using P = Part<true>;
  Cta& cta = w.cta;
  epilogue<FuseMatrix>(cta, w.sums, first_unit<FuseMatrix>(cta), w.tiles(),
                  StoreFused{at<float>(cta.memory.fused), w.token_count()});
#pragma unroll 1
  for (int index = 0; index < P::LAYER_COUNT; index++) {
    const LayerMemory& layer = P::layer(cta.memory, index);
    with_kind<P::ATTENTION, P::ATTENTION_END>(layer.attention, [&](auto kind) {
      constexpr int A = decltype(kind)::value;
      // Not early: the angles are written before the grid barrier that precedes the sums.
      epilogue<QkvMatrix<A>>(cta, w.sums, first_key_unit<A>(cta, index), w.tiles(),
                        store_context<A>(w, layer, index), false);
    });
  }
}

}  // namespace kilotok
