// A feed-forward network of experts over many tokens. All CTAs share a list of work, the largest
// first: an expert's rows (wide/routes.cuh), up to 64 at a time, with every row group of its
// matrix.
//
//   gate_up       the rows of the inner operand: activated, times the expert's weight
//   down          an expert's product for each row, F32, in one chain over its columns
//   combine       the products of a token's choices, in ascending order of its experts
#pragma once

#include "kilotok/wide/runs.cuh"

namespace kilotok::wide {

struct ExpertsMemory {
  Routes routes;
  // BF16 `[tokens][HIDDEN]`: what the network reads.
  uint64_t normed;
  // Weights of all experts.
  uint64_t gate_up, down;
  // Their biases, as in phase/activation.cuh and phase/experts.cuh.
  uint64_t gate_up_bias, down_bias;
  // Operand by row, of a network's width.
  uint64_t inner;
  // F32 `[panels of columns][rows of the tokens][PANEL_COLUMNS]` (see `product_place`), and
  // `[tokens][HIDDEN]`.
  uint64_t products, sums;
  // The columns of the stream that `down` and `combine` make at a time: all, or less memory for
  // products and as many launches more. They begin at a multiple of DOWN_COLUMNS.
  int first_column, columns;
  // Rows that there is room for.
  int capacity;
};

// Products of as many columns lie together as a warpgroup has, so that those of a run are one bulk
// copy.
constexpr int PANEL_COLUMNS = WARPGROUP_ROWS, PANEL_BYTES = PANEL_COLUMNS * 4;
// Eight columns each are exchanged, so that a warp stores its products without bank conflicts.
__host__ __device__ __forceinline__ int product_place(int row, int column) {
  return column ^ row / 2 % 4 * 8;
}
// The bytes between panels.
template <int KIND>
__device__ __forceinline__ size_t panel_stride(const Routes& routes) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  return size_t{1} * rows_max(routes.tokens, F.experts, F.top_k) * PANEL_BYTES;
}
__host__ __device__ constexpr size_t product_bytes(int columns, int rows) {
  return size_t{1} * ceil_div(columns, PANEL_COLUMNS) * rows * PANEL_BYTES;
}

// All threads of all CTAs, SORTERS each. Columns of the inner operand behind the last that `down`
// multiplies with zeros have to be numbers.
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

// Row tiles of down that a CTA multiplies one after the other: each has few columns, and weights of
// the next come while one ends.
constexpr int DOWN_TILES = 64, DOWN_COLUMNS = DOWN_TILES * 16;

// What a CTA has in shared memory.
template <int KIND>
struct ExpertsShared {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  // Gate and up load weights straight into registers; those of down come through the ring.
  union {
    RunRing<0>::Memory tokens;
    typename WeightsRing<F.format>::Memory ring;
  };
  RunTotals totals;
  RunList<F.experts> list;
};

// All threads of all CTAs.
template <int KIND>
__device__ __forceinline__ void gate_up(ExpertsShared<KIND>& shared,
                                        const ExpertsMemory& memory) {
  using M = GateUpMatrix<KIND>;
  using Stages = RunRing<0>;
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  if (threadIdx.x == 0) Stages(shared.tokens).init(MANY_CONSUMER_GROUPS, WARPGROUP);
  shared.list.make(memory.routes);
  const ExpertsWork<M, 1, F.experts> work(shared.list, 0, MATRIX_TILES<M>);
  const auto weights = [&](const RowRun& run) {
    return at<const char>(memory.gate_up) + run.expert * M::BYTES;
  };
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
    Stages ring(shared.tokens);
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      with_run_columns(run.count, [&](auto columns) {
        multiply_rows<M, decltype(columns)::value, Order::Parts, false, MANY_CONSUMER_GROUPS>(
            ring, shared.totals, weights(run), groups,
            [&](int row_tile, int tile, int lane, const float4& values) {
              const int in_run = tile * TILE_TOKENS;
              if (in_run < run.count)
                use(run.expert, row_tile, row + in_run, run.count - in_run, lane, values);
            });
      });
    });
  };
  const auto produce = [&] {
    Stages ring(shared.tokens);
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      const RowGather rows(at<const char>(memory.normed),
                           at<const uint32_t>(memory.routes.choices) + row, F.top_k, run.count);
#pragma unroll 1
      for (ChunkWalk<M, Order::Parts> walk; walk.has(); walk.next()) {
        ring.wait_free();
        rows.copy(ring.address(), walk.chunk());
        ring.bring();
      }
    });
  };
  with_roles<MANY_CONSUMER_GROUPS, WARPGROUP>(consume, produce);
}

// A warpgroup's products of a run in shared memory, `[rows][PANEL_COLUMNS]`, from where a bulk copy
// takes them.
struct ProductStage {
  uint32_t stage;
  int group;

  __device__ __forceinline__ explicit ProductStage(RunTotals& memory)
      : group(threadIdx.x / WARPGROUP) {
    static_assert(MANY_CONSUMER_GROUPS * RUN_ROWS * PANEL_BYTES <= sizeof(RunTotals), "room");
    stage = ptx::shared_address(&memory) + group * RUN_ROWS * PANEL_BYTES;
  }

  __device__ __forceinline__ bool copies() const { return threadIdx.x % WARPGROUP == 0; }

  // All threads of the warpgroup: `to` is where the run's first row of their columns lies.
  template <int COUNT>
  __device__ __forceinline__ void store(const float (&sums)[COUNT], char* to, int rows) const {
    if (copies()) ptx::wait_for_store_reads();
    ptx::sync_warpgroup(group);
    const int lane = threadIdx.x % 32, column = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4;
    const int row = lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t place =
          stage + row * PANEL_BYTES + product_place(row, column + half * 8) * 4;
#pragma unroll
      for (int i = 0; i < COUNT / 4; i++)
#pragma unroll
        for (int j = 0; j < 2; j++)
          ptx::store_shared_word(place + (i * TILE_TOKENS + j) * PANEL_BYTES,
                                 __float_as_uint(sums[i * 4 + half * 2 + j]));
    }
    ptx::reads_before_copies();
    ptx::sync_warpgroup(group);
    if (copies()) ptx::bulk_store(to, stage, rows * PANEL_BYTES);
  }

  __device__ __forceinline__ void end() const {
    if (copies()) ptx::wait_for_stores();
  }
};

// All threads of all CTAs.
template <int KIND>
__device__ __forceinline__ void down(ExpertsShared<KIND>& shared,
                                     const ExpertsMemory& memory) {
  using M = DownMatrix<KIND>;
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  using Stages = WeightsRing<F.format>;
  constexpr int AT_ONCE = DOWN_TILES / ExpertsCta::ROW_TILES;
  const int end = memory.first_column + memory.columns;
  if (threadIdx.x == 0) Stages(shared.ring).init(MANY_CONSUMER_GROUPS, WARPGROUP + 1);
  shared.list.make(memory.routes);
  const ExpertsWork<M, AT_ONCE, F.experts> work(
      shared.list, memory.first_column / 16, ceil_div(end, 16));
  const auto consume = [&] {
    Stages ring(shared.ring);
    const ProductStage stage(shared.totals);
    const size_t stride = panel_stride<KIND>(memory.routes);
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      with_run_columns(run.count, [&](auto columns) {
        constexpr int COLUMNS = decltype(columns)::value;
#pragma unroll 1
        for (int group = groups.first; group < groups.end; group++) {
          float sums[COLUMNS / 2];
          multiply_stages<M, COLUMNS, Order::Chain>(ring, shared.totals, sums);
          const int panel = group * MANY_CONSUMER_GROUPS + stage.group;
          if (panel * PANEL_COLUMNS >= end) continue;
          stage.store(sums,
                      at<char>(memory.products) +
                          (panel - memory.first_column / PANEL_COLUMNS) * stride +
                          size_t{1} * row * PANEL_BYTES,
                      run.count);
        }
      });
    });
    stage.end();
  };
  const auto produce = [&] {
    Stages ring(shared.ring);
    const bool first = threadIdx.x % WARPGROUP == 0;
    work.for_each([&](const RowRun& run, int row, const RowGroups& groups) {
      const char* weights = at<const char>(memory.down) + run.expert * M::BYTES;
      const char* tokens = at<const char>(memory.inner) + row / TILE_TOKENS * TILE_BYTES;
#pragma unroll 1
      for (int group = groups.first; group < groups.end; group++) {
        const WeightsCopy<M> matrix(weights, group);
#pragma unroll 1
        for (ChunkWalk<M, Order::Chain> walk; walk.has(); walk.next()) {
          ring.wait_free();
          if (first)
            ring.copy_tokens(tokens + walk.chunk() * column_bytes(memory.capacity),
                             ceil_div(run.count, TILE_TOKENS));
          matrix.copy(ring.weights(), walk.offset());
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

// All threads of all CTAs, SORTERS each. Four columns at a time, of all tokens before the next
// panel.
template <int KIND>
__device__ __forceinline__ void combine(const ExpertsMemory& memory) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k, FOURS = PANEL_COLUMNS / 4;
  static_assert(HIDDEN % 4 == 0, "columns come four at a time");
  const int each = memory.routes.tokens * FOURS;
  const int count = ceil_div(memory.columns, PANEL_COLUMNS) * each;
  const size_t stride = panel_stride<KIND>(memory.routes);
  for (int i = ptx::cta_index() * SORTERS + threadIdx.x; i < count; i += GRID * SORTERS) {
    const int panel = i / each, token = i % each / FOURS, in_panel = i % FOURS * 4;
    const int column = panel * PANEL_COLUMNS + in_panel;
    if (column >= memory.columns) continue;
    const uint32_t* rows = at<const uint32_t>(memory.routes.rows) + token * TOP_K;
    const char* products = at<const char>(memory.products) + panel * stride;
    float4 own[TOP_K];
#pragma unroll
    for (int place = 0; place < TOP_K; place++) {
      const int row = rows[place];
      own[place] = *reinterpret_cast<const float4*>(
          products + size_t{1} * row * PANEL_BYTES + product_place(row, in_panel) * 4);
    }
    // As the narrow pass has it, from zero on: a product may be -0.
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int place = 0; place < TOP_K; place++) {
      if constexpr (FEED_FORWARDS[KIND].bias)
        add_down_bias<KIND>(memory, token * TOP_K + place, memory.first_column + column,
                            own[place]);
      sum.x += own[place].x;
      sum.y += own[place].y;
      sum.z += own[place].z;
      sum.w += own[place].w;
    }
    *reinterpret_cast<float4*>(at<float>(memory.sums) + size_t{1} * token * HIDDEN +
                               memory.first_column + column) = sum;
  }
}

}  // namespace kilotok::wide
