// A feed-forward network of experts over many tokens, as grouped GEMMs. All CTAs share a list of
// work items, the largest first. An item is a run of up to 96 of an expert's rows (wide/routes.cuh)
// times some row groups of its matrix.
//
//   gate_up       the rows of the inner operand: activated, times the expert's weight
//   down          an expert's product for each row, in one chain over its columns, as BF16
//   combine       the products of a token's choices, in ascending order of its experts, where the
//                 next norm (wide/stream.cuh) does not add them itself
#pragma once

#include "kilotok/wide/products.cuh"
#include "kilotok/wide/runs.cuh"
#include "kilotok/wide/stream.cuh"

namespace kilotok::wide {

struct ExpertsMemory {
  Routes routes;
  // BF16 `[tokens][HIDDEN]`: what the network reads.
  uint64_t normed;
  // Weights of all experts.
  uint64_t gate_up, down;
  // Their biases, as in phase/activation.cuh and phase/down.cuh.
  uint64_t gate_up_bias, down_bias;
  // Operand of `down`, by row; its columns are the network's width.
  uint64_t inner;
  // Products as in wide/products.cuh, and a single rank's sums of them, F32 `[tokens][HIDDEN]`.
  uint64_t products, sums;
  // Rows that `inner` has room for.
  int capacity;
  // Where several ranks send their sums.
  PartsMemory parts;
};

// All threads of all CTAs, SORTERS each. Clears the columns of the inner operand after the last,
// which `down` multiplies with zeros: they must not be NaN.
template <int KIND>
__device__ __forceinline__ void clear_inner_end(const ExpertsMemory& memory) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  constexpr int FIRST = align_up(F.width, PIECE_COLUMNS), END = align_up(F.width, CHUNK_COLUMNS);
  constexpr int PIECES = (END - FIRST) / PIECE_COLUMNS;
  if constexpr (PIECES > 0) {
    const int rows = rows_max(memory.routes.tokens, F.experts, F.top_k);
    for (int i = ptx::cta_index() * SORTERS + threadIdx.x; i < rows * PIECES; i += GRID * SORTERS)
      *reinterpret_cast<uint4*>(
          at<char>(memory.inner) +
          operand_place(i / PIECES, FIRST + i % PIECES * PIECE_COLUMNS, memory.capacity)) =
          make_uint4(0, 0, 0, 0);
  }
}

// Row tiles of down in a work item. Each has few columns; the weights of the next are loaded while
// one ends.
constexpr int DOWN_TILES = 64;

// Shared memory of a CTA for runs of up to ROWS rows.
template <int KIND, int ROWS>
struct RunsShared {
  union {
    typename GateUpRing<GateUpMatrix<KIND>, ROWS>::Memory gate_up;
    typename DownRing<DownMatrix<KIND>, ROWS>::Memory down;
  };
  typename Runs<ROWS>::Totals totals;
  RunList<FEED_FORWARDS[KIND].experts, ROWS> list;
};
template <int KIND>
union ExpertsShared {
  RunsShared<KIND, SOME_ROWS> some;
  RunsShared<KIND, MANY_ROWS> many;
};

// Calls `f` with the shared memory of shorter or longer runs, whichever suits the rows that an
// expert has on average.
template <int KIND, class F>
__device__ __forceinline__ void with_runs(ExpertsShared<KIND>& shared, const Routes& routes, F f) {
  constexpr FeedForward NETWORK = FEED_FORWARDS[KIND];
  constexpr int LEAST = 48;
  if (routes.tokens * NETWORK.top_k > LEAST * NETWORK.experts)
    f(shared.many);
  else
    f(shared.some);
}

// All threads of all CTAs.
template <int KIND, int ROWS>
__device__ __forceinline__ void gate_up(RunsShared<KIND, ROWS>& shared,
                                        const ExpertsMemory& memory) {
  using M = GateUpMatrix<KIND>;
  using Stages = GateUpRing<M, ROWS>;
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  if (threadIdx.x == 0) Stages(shared.gate_up).init(MANY_CONSUMER_GROUPS, 1, GATHERERS);
  shared.list.make(memory.routes);
  const ExpertsWork<M, 1, decltype(shared.list)> work(shared.list);
  const auto use = [&](int expert, int row_tile, int first, int rows, int lane, const float4& v) {
    const int value = row_tile * 8 + lane / 4;
    const float2 bias = gate_up_bias<KIND>(memory.gate_up_bias, expert, value);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int row = first + lane % 4 * 2 + j;
      if (lane % 4 * 2 + j >= rows) continue;
      const float2 factor = at<const float2>(memory.routes.factors)[row];
      const float gate = j == 0 ? v.x : v.y, up = j == 0 ? v.z : v.w;
      *reinterpret_cast<uint16_t*>(at<char>(memory.inner) +
                                   operand_place(row, value, memory.capacity)) =
          ptx::to_bf16(inner_value<KIND>(gate, up, factor.x, bias) * factor.y *
                       operand_scale(F.format));
    }
  };
  const auto consume = [&] {
    Stages ring(shared.gate_up);
    const char* const matrices = at<const char>(memory.gate_up);
    WarpWeights<M, Stages, decltype(work)> copied(ring, work, matrices);
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      with_run_columns<ROWS>(run.count, [&](auto columns) {
        constexpr int COLUMNS = decltype(columns)::value;
        // A thread has registers for one piece of 48 columns or more, or two smaller ones.
        constexpr int SLOTS = COLUMNS > 32 || M::FORMAT == Format::Fp8 ? 1 : 2;
        float sums[COLUMNS / 2];
        const auto multiply_all = [&](auto with_weights) {
          multiply_stages<M, COLUMNS, Order::Parts, SLOTS>(ring, shared.totals, sums,
                                                           memory.routes.tokens, with_weights);
        };
        if constexpr (!Stages::HAS_WEIGHTS) {
          constexpr int CHUNKS = Stages::CHUNKS, AHEAD = COLUMNS > 64 ? divisor(CHUNKS, 2) : CHUNKS;
          WeightsAhead<M, CHUNKS, AHEAD> ahead(matrices + run.expert * M::BYTES, groups.first);
          multiply_all([&](auto multiply) {
            ahead.begin();
            ring.wait();
            multiply(ahead);
          });
        } else {
          multiply_all([&](auto multiply) {
            copied.wait(ring);
            ring.wait();
            multiply(StageWeights<M, Stages>(ring));
          });
        }
        const int tile =
            groups.first * ExpertsCta::ROW_TILES + static_cast<int>(threadIdx.x) / 32;
        if (tile >= MATRIX_TILES<M>) return;
#pragma unroll
        for (int in_run = 0; in_run < COLUMNS; in_run += TILE_TOKENS) {
          const float* v = sums + in_run / 2;
          if (in_run < run.count)
            use(run.expert, tile, row + in_run, run.count - in_run, threadIdx.x % 32,
                make_float4(v[0], v[1], v[2], v[3]));
        }
      });
    });
  };
  const auto gather = [&] {
    Stages ring(shared.gate_up);
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      const RowGather<ROWS> rows(at<const char>(memory.normed),
                           at<const uint32_t>(memory.routes.choices) + row, F.top_k, run.count);
#pragma unroll 1
      for (ChunkWalk<M, Order::Parts> walk; walk.has(); walk.next(Stages::CHUNKS)) {
        ring.wait_free();
        rows.copy(ring, walk);
        ring.bring_tokens();
      }
    });
  };
  const auto pass_on = [&] {
    Stages ring(shared.gate_up);
    work.for_each_item([&](int) {
#pragma unroll 1
      for (ChunkWalk<M, Order::Parts> walk; walk.has(); walk.next(Stages::CHUNKS)) ring.pass_on();
    });
  };
  with_roles<MANY_CONSUMER_GROUPS, GATHERERS + 1>(consume, [&] {
    if (threadIdx.x % WARPGROUP < GATHERERS)
      gather();
    else
      pass_on();
  });
}

// Stores a warp's products of a run of few rows, a sector of 32 bytes for each row and 16 columns:
// the bulk copy below would take a fence and a barrier. `to` is the address of the run's first row
// in its warpgroup's panel.
constexpr int FEW_COLUMNS = 16;
template <int COUNT>
__device__ __forceinline__ void store_few(const float (&sums)[COUNT], char* to, int rows) {
  const int lane = threadIdx.x % 32, column = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4;
  const int row = lane % 4 * 2;
  char* own = to + row * PANEL_BYTES + product_place(row, column);
#pragma unroll
  for (int i = 0; i < COUNT / 4; i++)
#pragma unroll
    for (int j = 0; j < 2; j++)
      if (i * TILE_TOKENS + row + j < rows)
        *reinterpret_cast<uint32_t*>(own + (i * TILE_TOKENS + j) * PANEL_BYTES) =
            ptx::pack_bf16(sums[i * 4 + j], sums[i * 4 + 2 + j]);
}

// A warpgroup's products of a run in shared memory, `[rows][PANEL_COLUMNS]`, from where a bulk copy
// takes them. They alternate between two places of BYTES, so that they do not wait for the copy
// before them.
template <int BYTES>
struct ProductStage {
  uint32_t stage, turn = 0;
  int group;

  template <class Memory>
  __device__ __forceinline__ explicit ProductStage(Memory& memory)
      // The shuffle shows the compiler that a warp has one value: descriptors stay in uniform
      // registers.
      : group(__shfl_sync(~0u, threadIdx.x / WARPGROUP, 0)) {
    static_assert(sizeof(memory) >= 2 * BYTES * MANY_CONSUMER_GROUPS, "it has room for each");
    stage = ptx::shared_address(&memory) + group * 2 * BYTES;
  }

  __device__ __forceinline__ bool copies() const { return threadIdx.x % WARPGROUP == 0; }

  // All threads of the warpgroup: `to` is the address of the run's first row in their panel.
  template <int COUNT>
  __device__ __forceinline__ void store(const float (&sums)[COUNT], char* to, int rows) {
    static_assert(COUNT * 2 * PANEL_BYTES <= BYTES, "a place has room for them");
    const int lane = threadIdx.x % 32, column = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4;
    const int row = lane % 4 * 2;
    const uint32_t place = stage + turn;
    turn = BYTES - turn;
    const uint32_t own = place + row * PANEL_BYTES + product_place(row, column);
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
        ptx::store_shared_word(own + (i * TILE_TOKENS + j) * PANEL_BYTES,
                               ptx::pack_bf16(sums[i * 4 + j], sums[i * 4 + 2 + j]));
    ptx::reads_before_copies();
    // The next store uses the place of the copy before, which must have been read.
    if (copies()) ptx::wait_for_store_reads();
    ptx::sync_warpgroup(group);
    if (copies()) ptx::bulk_store(to, place, rows * PANEL_BYTES);
  }

  __device__ __forceinline__ void end() const {
    if (copies()) ptx::wait_for_stores();
  }
};

// All threads of all CTAs.
template <int KIND, int ROWS>
__device__ __forceinline__ void down(RunsShared<KIND, ROWS>& shared,
                                     const ExpertsMemory& memory) {
  using M = DownMatrix<KIND>;
  using Stages = DownRing<M, ROWS>;
  constexpr int AT_ONCE = DOWN_TILES / ExpertsCta::ROW_TILES;
  if (threadIdx.x == 0) Stages(shared.down).init(MANY_CONSUMER_GROUPS, WARPGROUP + 1);
  shared.list.make(memory.routes);
  const ExpertsWork<M, AT_ONCE, decltype(shared.list)> work(shared.list);
  const auto consume = [&] {
    Stages ring(shared.down);
    ProductStage<ROWS * PANEL_BYTES> stage(shared.totals);
    const size_t stride = panel_stride<KIND>(memory.routes.tokens);
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      with_run_columns<ROWS>(run.count, [&](auto columns) {
        constexpr int COLUMNS = decltype(columns)::value;
        constexpr int SLOTS = COLUMNS > 48 || M::FORMAT == Format::Fp8 ? 1 : 2;
#pragma unroll 1
        for (int group = groups.first; group < groups.end; group++) {
          float sums[COLUMNS / 2];
          multiply_stages<M, COLUMNS, Order::Chain, SLOTS>(
              ring, shared.totals, sums, memory.routes.tokens, [&](auto multiply) {
                ring.wait();
                multiply(StageWeights<M, Stages>(ring));
              });
          const int panel = group * MANY_CONSUMER_GROUPS + stage.group;
          if (panel * PANEL_COLUMNS < HIDDEN) {
            char* to = at<char>(memory.products) + panel * stride + size_t{1} * row * PANEL_BYTES;
            if constexpr (COLUMNS <= FEW_COLUMNS)
              store_few(sums, to, run.count);
            else
              stage.store(sums, to, run.count);
          }
        }
      });
    });
    stage.end();
  };
  const auto produce = [&] {
    Stages ring(shared.down);
    const bool first = threadIdx.x % WARPGROUP == 0;
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      const char* weights = at<const char>(memory.down) + run.expert * M::BYTES;
      const char* tokens = at<const char>(memory.inner) + row / TILE_TOKENS * TILE_BYTES;
#pragma unroll 1
      for (int group = groups.first; group < groups.end; group++) {
        const WeightsCopy<M> matrix(weights, group);
#pragma unroll 1
        for (ChunkWalk<M, Order::Chain> walk; walk.has(); walk.next(Stages::CHUNKS)) {
          ring.wait_free();
          if (first)
            ring.copy_tokens(ceil_div(run.count, TILE_TOKENS), [&](int i) {
              return tokens + walk.at(i).chunk() * column_bytes(memory.capacity);
            });
#pragma unroll
          for (int i = 0; i < Stages::CHUNKS; i++)
            matrix.copy(ring.weights(i), walk.at(i).offset());
          ring.bring();
        }
      }
    });
  };
  with_roles<MANY_CONSUMER_GROUPS, WARPGROUP>(consume, produce);
}

// Adds the bias of a choice's expert to four columns of its product.
template <int KIND>
__device__ __forceinline__ void add_down_bias(const ExpertsMemory& memory, int choice, int column,
                                              float4& product) {
  const uint32_t expert = at<const uint32_t>(memory.routes.experts)[choice];
  const float weight = at<const float>(memory.routes.weights)[choice];
  const float4 bias = *reinterpret_cast<const float4*>(
      at<const float>(memory.down_bias) + size_t{1} * expert * HIDDEN + column);
  product.x = DownBias<KIND>::biased(product.x, weight, bias.x);
  product.y = DownBias<KIND>::biased(product.y, weight, bias.y);
  product.z = DownBias<KIND>::biased(product.z, weight, bias.z);
  product.w = DownBias<KIND>::biased(product.w, weight, bias.w);
}

// All threads of all CTAs, SORTERS each. A thread takes four columns of a token at a time; one
// panel of all tokens follows the other.
template <int KIND>
__device__ __forceinline__ void combine(const ExpertsMemory& memory) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k, FOURS = PANEL_COLUMNS / 4;
  static_assert(HIDDEN % 4 == 0, "columns come four at a time");
  const int each = memory.routes.tokens * FOURS;
  const int count = ceil_div(HIDDEN, PANEL_COLUMNS) * each;
  const size_t stride = panel_stride<KIND>(memory.routes.tokens);
  for (int i = ptx::cta_index() * SORTERS + threadIdx.x; i < count; i += GRID * SORTERS) {
    const int panel = i / each, token = i % each / FOURS, in_panel = i % FOURS * 4;
    const int column = panel * PANEL_COLUMNS + in_panel;
    if (column >= HIDDEN) continue;
    ChoiceProducts<TOP_K> own;
    const typename ChoiceProducts<TOP_K>::Places places(
        at<const uint32_t>(memory.routes.rows) + token * TOP_K, in_panel);
    own.load(at<const char>(memory.products) + panel * stride, places);
    const auto add_bias = [&](int choice, float4& product) {
      if constexpr (FEED_FORWARDS[KIND].bias)
        add_down_bias<KIND>(memory, token * TOP_K + choice, column, product);
    };
    const float4 sum = own.sum(places.half, add_bias);
    if constexpr (RANKS > 1)
      ptx::store_system_pair(PartsSender(memory.parts).place(token, column), pack_four(sum));
    else
      *reinterpret_cast<float4*>(at<float>(memory.sums) + size_t{1} * token * HIDDEN + column) =
          sum;
  }
  if constexpr (RANKS > 1) PartsSender(memory.parts).end();
}

}  // namespace kilotok::wide
