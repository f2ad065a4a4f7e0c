// The router of the narrow pass, with all roles as in a step: from the stream to the routes.
#pragma once

#include "roles.cuh"

namespace bench {

struct RouterWork {
  // F32 `[tokens][HIDDEN]`: the stream, and what is added to it.
  uint64_t residual, part;
  uint64_t norm, router, bias;
  // Copies of the router, which repeats use in turn.
  int copies, repeats;
  // The routes of each CTA, if they are kept: Routes, or GatheredRoutes for several tiles.
  uint64_t routes;
};

template <int KIND>
struct RouterRoles {
  using Work = RouterWork;
  using R = Router<KIND>;
  static constexpr float EPS = KIND < DRAFT_FEED_FORWARD ? NORM_EPS : DRAFT_NORM_EPS;

  static __device__ __forceinline__ void bring_stream(Warp& w, const Work& work) {
    for (int k = w.cta.thread(); k < w.token_count() * OWNER_ROWS; k += CONSUMERS) {
      const int token = k / OWNER_ROWS, row = k % OWNER_ROWS;
      const int column = w.cta.index() * OWNER_ROWS + row;
      const bool there = column < HIDDEN;
      const size_t place = static_cast<size_t>(token) * HIDDEN + column;
      w.stream().residual[token][row] = there ? at<const float>(work.residual)[place] : 0;
      w.stream().part[token][row] = there ? at<const float>(work.part)[place] : 0;
    }
  }

  static __device__ __forceinline__ void consume(Warp& w, const Work& work) {
    Cta& cta = w.cta;
    for (int i = 0; i < work.repeats; i++) {
      // As a step does in the layer's attention.
      cta.sync_grid();
      reset_scores<KIND>(cta, w.token_count());
      cta.sync_grid();
      if (is_owner(cta)) {
        bring_stream(w, work);
        begin_rms_norm(cta, w.stream(), Reader::FeedForward, work.norm, operand_scale(R::F.format),
                       ~0u);
        add_rms_norm(cta, w.stream(), w.shared.sums, w.token_count());
        w.with_pipeline([&](Ring& ring, Sums&) {
          router_parts<KIND>(cta, ring, w.shared.sums, w.token_count());
        });
      }
      if (w.tiles() == 1)
        choose_for_tile(w, work);
      else
        choose_for_all(w, work);
    }
  }

  // For one tile of tokens, where values are polled; for several tiles, with barriers.
  static __device__ __forceinline__ void choose_for_tile(Warp& w, const Work& work) {
    Cta& cta = w.cta;
    Routes& routes = w.shared.routes;
    router_scores<KIND, true>(cta, w.shared.sums, w.token_count(), EPS);
    choose_routes<KIND, true>(cta, routes, w.stream(), at<const float>(work.bias),
                              w.token_count(), [] {});
    complete_routes<KIND>(cta, routes, w.token_count());
    if (work.routes != 0 && cta.thread() == 0) at<Routes>(work.routes)[cta.index()] = routes;
    cta.sync();
  }

  static __device__ __forceinline__ void choose_for_all(Warp& w, const Work& work) {
    Cta& cta = w.cta;
    GatheredRoutes& routes = w.shared.gathered;
    cta.sync_grid();
    router_scores<KIND, false>(cta, w.shared.sums, w.token_count(), EPS);
    cta.sync_grid();
    top_k_experts<KIND>(cta, w.shared.sums, at<const float>(work.bias), w.token_count());
    cta.sync_grid();
    gather_routes<KIND>(cta, routes, w.shared.sums, w.stream(), w.token_count());
    if (work.routes != 0 && cta.thread() == 0)
      at<GatheredRoutes>(work.routes)[cta.index()] = routes;
    cta.sync();
  }

  static __device__ __forceinline__ void produce(Warp& w, const Work& work) {
    if (!is_owner(w.cta)) return;
    for (int i = 0; i < work.repeats; i++)
      produce_router<KIND>(w.ring, work.router + i % work.copies * R::BYTES);
  }

  static __device__ __forceinline__ void epilogue(Warp&, const Work&) {}
};

// Values of a column of the router; those after its experts are zeros.
template <int KIND>
constexpr int ROUTER_ROW = Router<KIND>::TILES * TILE_EXPERTS;

// The bytes of a router, from `[columns][ROUTER_ROW]` with the owners' padded columns.
template <int KIND>
std::vector<char> packed_router(const std::vector<float>& values) {
  using R = Router<KIND>;
  constexpr int ROW = ROUTER_ROW<KIND>;
  std::vector<char> bytes(R::BYTES);
  for (size_t i = 0; i < values.size(); i++) {
    char* to = &bytes[R::place(static_cast<int>(i % ROW), static_cast<int>(i / ROW))];
    const uint16_t rounded = bench::bf16_bits(values[i]);
    std::memcpy(to, R::F.router_bf16 ? static_cast<const void*>(&rounded) : &values[i],
                R::WEIGHT_BYTES);
  }
  return bytes;
}

inline Memory memory_of_router(Buffers& buffers, int token_count) {
  Memory m = memory_of_batch(buffers, token_count);
  m.normed = buffers.take(size_t{TOKENS_MAX} * NORMED_BYTES);
  m.squares = buffers.take(size_t{READERS} * TOKENS_MAX * SQUARES_EACH * 4);
  m.router_parts = buffers.take(size_t{OWNER_UNITS} * TOKENS_MAX * EXPERTS_MAX * 4);
  m.router_scores = buffers.take(size_t{TOKENS_MAX} * SCORES_EACH * 4);
  return m;
}

}  // namespace bench
