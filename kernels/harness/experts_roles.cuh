// Consecutive networks of the narrow pass, with all warp roles as in a step.
#pragma once

#include "roles.cuh"

namespace bench {

struct ExpertsWork {
  uint64_t gate_up, down, bias;
  // The number of consecutive networks. Each has its own table of scores; dense ones share the
  // squares.
  int repeats;
  // F32 `[repeats][TOKENS_MAX][HIDDEN]` if the sums are kept; then also the operand that is written
  // first, as in a step.
  uint64_t sums, operand;
};

constexpr size_t SCORES_BYTES = size_t{TOKENS_MAX} * SCORES_EACH * 4;

template <int KIND>
struct ExpertsRoles {
  using Work = ExpertsWork;
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr bool DRAFT = KIND >= DRAFT_FEED_FORWARD;

  static __device__ __forceinline__ void keep(Warp& w, const Work& work, int repeat) {
    if (work.sums == 0 || !is_owner(w.cta)) return;
    for (int k = w.cta.thread(); k < w.token_count() * OWNER_ROWS; k += CONSUMERS) {
      const int token = k / OWNER_ROWS, row = k % OWNER_ROWS;
      const int column = w.cta.index() * OWNER_ROWS + row;
      if (column < HIDDEN)
        at<float>(work.sums)[(static_cast<size_t>(repeat) * TOKENS_MAX + token) * HIDDEN +
                             column] = w.stream().part[token][row];
    }
  }

  static __device__ __forceinline__ void write_operand(Cta& cta, const Work& work) {
    const int words = TOKENS_MAX * NORMED_BYTES / 4, first = cta.index() * CONSUMERS;
    for (int i = first + cta.thread(); i < words; i += GRID * CONSUMERS)
      at<uint32_t>(cta.memory.normed)[i] = at<const uint32_t>(work.operand)[i];
    cta.sync_grid();
  }

  // This and `consume_experts` leave their sums in the stream's `part`.
  template <int TILES>
  static __device__ __forceinline__ void consume_dense(Warp& w) {
    w.cta.arrive_grid();
    dense<KIND, DRAFT, TILES>(w);
    w.cta.sync();
  }

  // Experts over one tile of tokens.
  static __device__ __forceinline__ void consume_experts(Warp& w, const Work& work) {
    Cta& cta = w.cta;
    Routes& routes = w.shared.routes;
    cta.count_operand();
    w.wait_routes_free();
    choose_routes<KIND, false>(cta, routes, w.stream(), at<const float>(work.bias),
                               w.token_count(), [&] { w.publish_experts(); });
    w.with_pipeline([&](Ring& ring, Sums& sums) {
      gate_up<KIND>(cta, ring, sums, w.stream(), [&] {
        complete_routes<KIND>(cta, routes, w.token_count());
        w.publish_routes();
      });
    });
    if (!rows_in_ring<KIND>(w.token_count()))
      cta.sync_grid();
    else if (!SUMS_APART<KIND>)
      cta.count_operand();
    if (is_owner(cta))
      w.with_pipeline([&](Ring& ring, Sums& sums) {
        down<KIND, false>(cta, ring, sums, w.stream(), routes, w.token_count());
      });
    cta.sync();
  }

  static __device__ __forceinline__ void consume(Warp& w, const Work& work) {
    for (int i = 0; i < work.repeats; i++) {
      if (work.sums != 0) write_operand(w.cta, work);
      const bool one = w.tiles() == 1;
      if constexpr (IS_DENSE<KIND>)
        one ? consume_dense<1>(w) : consume_dense<TILES_MAX>(w);
      else if (one)
        consume_experts(w, work);
      else
        gathered_experts<KIND>(w, at<const float>(work.bias));
      keep(w, work, i);
      if (w.cta.thread() == 0) w.shared.memory.router_scores += SCORES_BYTES;
      w.cta.sync_grid();
    }
  }

  template <int TILES>
  static __device__ __forceinline__ void produce_dense(Warp& w, const Work& work) {
    using GateUp = GateUpMatrix<KIND>;
    kilotok::produce<GateUp, TILES>(w.ring, work.gate_up, first_unit<GateUp>(w.cta));
    kilotok::produce<DownMatrix<KIND>, TILES>(w.ring, work.down, w.cta.index());
  }

  static __device__ __forceinline__ void produce(Warp& w, const Work& work) {
    uint32_t taken = 0;
    RowCounts counts = {};
    LayerWeights layer = {};
    layer.gate_up = work.gate_up;
    layer.down = work.down;
    for (int i = 0; i < work.repeats; i++) {
      if constexpr (IS_DENSE<KIND>) {
        if (w.tiles() == 1)
          produce_dense<1>(w, work);
        else
          produce_dense<TILES_MAX>(w, work);
      } else {
        if (w.tiles() == 1)
          produce_experts<KIND, 1>(w, layer, counts, taken);
        else
          produce_experts<KIND, TILES_MAX>(w, layer, counts, taken);
      }
    }
  }

  static __device__ __forceinline__ void epilogue(Warp& w, const Work& work) {
    static_assert(!F.bias, "there are no biases to add");
    Cta& cta = w.cta;
    const LayerMemory layer = {};
    for (int i = 0; i < work.repeats; i++) {
      if constexpr (IS_DENSE<KIND>) {
        const StoreInner<KIND> store = {cta.memory, w.stream(), w.token_count()};
        kilotok::epilogue<GateUpMatrix<KIND>>(cta, w.sums, first_unit<GateUpMatrix<KIND>>(cta),
                                         w.tiles(), store);
        kilotok::epilogue<DownMatrix<KIND>>(cta, w.sums, cta.index(), w.tiles(),
                                            StorePart{w.stream()});
      } else {
        if (w.tiles() == 1)
          epilogue_experts<KIND, 1>(w, layer);
        else
          epilogue_experts<KIND, TILES_MAX>(w, layer);
      }
    }
  }
};

}  // namespace bench
