// The runs of an expert's rows that are multiplied together, and how consumers and producers of a
// CTA go through them.
#pragma once

#include "kilotok/wide/matrix.cuh"
#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

// A CTA multiplies the row tiles of four warpgroups with a run of an expert's rows at a time. With
// two warpgroups and runs of 128 rows weights would be decoded half as often, but every token would
// be copied twice as often, and there would be too few warps to hide latencies.
using ExpertsCta = CtaShape<MANY_CONSUMER_GROUPS>;

// Runs of up to ROWS rows: 32 where experts have few, so that the ring has room for more weights;
// 96 where they have many, so that weights are decoded less often; otherwise 64.
constexpr int FEW_ROWS = 32, SOME_ROWS = 64, MANY_ROWS = 96;
template <int ROWS>
struct Runs {
  // The columns of B that a run takes, by size class, the widest first.
  static constexpr int SIZES = ROWS == MANY_ROWS ? 5 : 4;
  static __host__ __device__ constexpr int width(int size) {
    constexpr int WIDTHS[] = {96, 80, 64, 48, 32, 24, 16, 8};
    constexpr int FIRST = ROWS == MANY_ROWS ? 0 : ROWS == SOME_ROWS ? 2 : 4;
    return size >= SIZES ? 0 : WIDTHS[FIRST + size];
  }
  using Totals = wide::Totals<ROWS / TILE_TOKENS * ExpertsCta::CONSUMERS>;
  // Shared memory for the ring, beside totals and the list of runs.
  static constexpr int RING_BYTES =
      (ROWS == MANY_ROWS ? 120 : ROWS == SOME_ROWS ? 153 : 185) << 10;
  // The most chunks of a stage of `down`. With four, a row group of 256 columns is one stage, which
  // has fewer waits, but two stages must fit.
  static constexpr int DOWN_CHUNKS = ROWS == FEW_ROWS ? 4 : 2;
};

// The ring of tokens and weights for an expert's matrix. The chunks of a stage are multiplied
// without a branch in between; their number divides INNER.
template <int ROWS, int INNER, int WEIGHT_BYTES>
struct RunRingShape {
  static constexpr int CHUNK_BYTES =
      align_up(ROWS / TILE_TOKENS * TILE_BYTES + WEIGHT_BYTES, TILE_BYTES);
  static constexpr int stages(int chunks) {
    return Runs<ROWS>::RING_BYTES / (chunks * CHUNK_BYTES);
  }
  // The most chunks that leave room for two stages: one is copied while the other is multiplied.
  static constexpr int chunks(int most) {
    const int count = divisor(INNER, most);
    return count == 1 || stages(count) > 1 ? count : chunks(count - 1);
  }
};
template <int ROWS, int INNER, int WEIGHT_BYTES, int MOST,
          class Shape = RunRingShape<ROWS, INNER, WEIGHT_BYTES>>
using RunRing =
    OperandRing<ROWS, Shape::chunks(MOST), Shape::stages(Shape::chunks(MOST)), WEIGHT_BYTES>;
template <class M>
constexpr int STAGE_WEIGHTS = ExpertsCta::ROW_TILES * M::CHUNK_BYTES;
// Beside many rows there is no room for weights, which are loaded straight into registers.
template <class M, int ROWS>
using GateUpRing = RunRing<ROWS, ChunkWalk<M, Order::Parts>::INNER,
                           ROWS == MANY_ROWS ? 0 : STAGE_WEIGHTS<M>, 4>;
template <class M, int ROWS>
using DownRing = RunRing<ROWS, ChunkWalk<M, Order::Chain>::INNER, STAGE_WEIGHTS<M>,
                         Runs<ROWS>::DOWN_CHUNKS>;

// Calls `f` with the number of columns of B that `rows` rows take, as a constant.
template <int ROWS, int SIZE = Runs<ROWS>::SIZES - 1, class F>
__device__ __forceinline__ void with_run_columns(int rows, F f) {
  constexpr int WIDTH = Runs<ROWS>::width(SIZE);
  if constexpr (SIZE == 0)
    f(Constant<WIDTH>{});
  else if (rows <= WIDTH)
    f(Constant<WIDTH>{});
  else
    with_run_columns<ROWS, SIZE - 1>(rows, f);
}

struct RowRun {
  int expert, first, count;
};

// Row groups of a matrix that a CTA multiplies one after the other with the same tokens.
struct RowGroups {
  int first, end;
};

// The runs by size class. An expert has runs of ROWS rows, and one run of the remaining rows.
// `before` counts the runs of lower experts in each size class; its last entry counts all of them.
template <int EXPERTS, int ROWS>
struct RunList {
  static constexpr int SIZES = Runs<ROWS>::SIZES;
  uint32_t before[SIZES][EXPERTS + 1];
  uint32_t counts[EXPERTS], first_rows[EXPERTS];

  __device__ __forceinline__ uint32_t runs(int size, int expert) const {
    const int count = counts[expert], rest = count % ROWS;
    return (size == 0 ? count / ROWS : 0) +
           (rest > Runs<ROWS>::width(size + 1) && rest <= Runs<ROWS>::width(size));
  }

  // All threads of a CTA.
  __device__ __forceinline__ void make(const Routes& routes) {
    for (int i = threadIdx.x; i < EXPERTS; i += ExpertsCta::THREADS) {
      counts[i] = at<const uint32_t>(routes.counts)[i];
      first_rows[i] = at<const uint32_t>(routes.first_rows)[i];
    }
    __syncthreads();
    const int size = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t sum = 0;
    for (int first = 0; size < SIZES && first <= EXPERTS; first += 32) {
      const int expert = first + lane;
      uint32_t all;
      const uint32_t earlier =
          sum_before(expert < EXPERTS ? runs(size, expert) : 0, lane, all);
      if (expert <= EXPERTS) before[size][expert] = sum + earlier;
      sum += all;
    }
    __syncthreads();
  }

  __device__ __forceinline__ int count() const {
    int sum = 0;
#pragma unroll
    for (int size = 0; size < SIZES; size++) sum += before[size][EXPERTS];
    return sum;
  }

  // All lanes of a warp.
  __device__ __forceinline__ RowRun run(int index) const {
    uint32_t i = index;
    int size = 0;
    while (i >= before[size][EXPERTS]) i -= before[size++][EXPERTS];
    // The last expert that has no more than `i` runs before it.
    constexpr int STEP = ceil_div(EXPERTS, 32);
    static_assert(STEP <= 32, "two ballots find an expert");
    const int lane = threadIdx.x % 32;
    const auto last = [&](bool in_range, int expert) {
      const bool is = in_range && expert < EXPERTS && before[size][smaller(expert, EXPERTS)] <= i;
      return __popc(__ballot_sync(~0u, is)) - 1;
    };
    const int first_expert = last(true, lane * STEP) * STEP;
    const int expert = first_expert + last(lane < STEP, first_expert + lane);
    const int count = counts[expert];
    const int first =
        size == 0 ? static_cast<int>(i - before[0][expert]) * ROWS : count / ROWS * ROWS;
    return {expert, first, smaller(count - first, ROWS)};
  }
};

// The work items of one matrix of all experts: each run times each AT_ONCE row groups.
template <class M, int AT_ONCE, class List>
struct ExpertsWork {
  static constexpr int ROW_TILES = ExpertsCta::ROW_TILES;
  static constexpr int ROW_GROUPS = ceil_div(MATRIX_TILES<M>, ROW_TILES);
  static constexpr int EACH = ceil_div(ROW_GROUPS, AT_ONCE);
  const List& list;

  __device__ __forceinline__ explicit ExpertsWork(const List& runs) : list(runs) {}

  __device__ __forceinline__ int count() const { return list.count() * EACH; }
  __device__ __forceinline__ RowRun run(int item) const { return list.run(item / EACH); }
  __device__ __forceinline__ RowGroups groups(int item) const {
    const int first = item % EACH * AT_ONCE;
    return {first, smaller(first + AT_ONCE, ROW_GROUPS)};
  }

  // Calls `f(item)` for each item of a CTA.
  template <class F>
  __device__ __forceinline__ void for_each_item(F f) const {
    const int end = count();
#pragma unroll 1
    for (int item = ptx::cta_index(); item < end; item += GRID) f(item);
  }
  // All lanes of a warp: calls `f(run, its first row, row groups)` for each item of a CTA.
  template <class F>
  __device__ __forceinline__ void for_each(F f) const {
    for_each_item([&](int item) {
      const RowRun own = run(item);
      f(own, static_cast<int>(list.first_rows[own.expert]) + own.first, groups(item));
    });
  }
};

// Producers: copy the weights of a row group, ROW_TILES chunks a stage.
template <class M>
struct WeightsCopy {
  static constexpr int ROW_TILES = ExpertsCta::ROW_TILES;
  static constexpr int PIECES = M::CHUNK_BYTES / 16, ALL = ROW_TILES * PIECES;
  static constexpr int ROUNDS = ceil_div(ALL, WARPGROUP);
  const char* matrix;
  uint32_t from[ROUNDS];

  // Beyond the last row tile it is the last one again: all warps of a warpgroup must multiply.
  __device__ __forceinline__ WeightsCopy(const char* weights, int group) : matrix(weights) {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int piece = i * WARPGROUP + threadIdx.x % WARPGROUP;
      const int tile = smaller(group * ROW_TILES + piece / PIECES, MATRIX_TILES<M> - 1);
      from[i] = static_cast<uint32_t>(row_tile<M>(weights, tile) - weights) + piece % PIECES * 16;
    }
  }
  // The chunks at `offset` in each row tile.
  __device__ __forceinline__ void copy(uint32_t to, int offset) const {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int piece = i * WARPGROUP + threadIdx.x % WARPGROUP;
      if ((i + 1) * WARPGROUP <= ALL || piece < ALL)
        ptx::copy_later(to + piece * 16, matrix + (from[i] + offset));
    }
  }
};

// Producers: the first GATHERERS threads gather the tokens of a run's rows, and the next thread
// passes them on (`OperandRing::pass_on`). Eight lanes copy the 64 columns of a row.
constexpr int GATHERERS = WARPGROUP / 2;
template <int RUN_ROWS>
struct RowGather {
  static constexpr int LANES = CHUNK_COLUMNS / PIECE_COLUMNS, AT_ONCE = GATHERERS / LANES;
  static constexpr int ROUNDS = RUN_ROWS / AT_ONCE;
  static_assert(AT_ONCE % TILE_TOKENS == 0, "all rows of a thread have one swizzle");
  const char* tokens;
  int count;
  uint32_t from[ROUNDS];

  static __device__ __forceinline__ int own() { return threadIdx.x % WARPGROUP / LANES; }
  static __device__ __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) % LANES * PIECE_COLUMNS;
  }

  // `normed` are all tokens, BF16 `[tokens][HIDDEN]`, and `choices` those of the run's rows.
  __device__ __forceinline__ RowGather(const char* normed, const uint32_t* choices, int top_k,
                                       int rows)
      : tokens(normed), count(rows) {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int row = own() + i * AT_ONCE;
      from[i] = row < count ? (choices[row] / top_k * HIDDEN + column()) * 2 : 0;
    }
  }
  // Copies the chunks from `walk` on into the ring's stage.
  template <class Stages, class Walk>
  __device__ __forceinline__ void copy(const Stages& ring, const Walk& walk) const {
    const uint32_t own_place = tile_place(own(), column()) + own() / TILE_TOKENS * TILE_BYTES;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      if (own() + i * AT_ONCE >= count) break;
      const char* row = tokens + from[i];
#pragma unroll
      for (int j = 0; j < Stages::CHUNKS; j++) {
        const int chunk = walk.at(j).chunk();
        const uint32_t place = ring.tokens(j) + own_place + i * (AT_ONCE * TOKEN_BYTES);
        if (HIDDEN % CHUNK_COLUMNS == 0 || chunk * CHUNK_COLUMNS + column() < HIDDEN)
          ptx::copy_later(place, row + chunk * (CHUNK_COLUMNS * 2));
        else
          ptx::store_shared(place, make_uint4(0, 0, 0, 0));
      }
    }
  }
};

// Consumers: the weights of a warp's row tile, COUNT chunks of which are in registers or in flight.
// They are multiplied AT_ONCE at a time.
template <class M, int AT_ONCE, int COUNT>
struct WeightsAhead {
  using Walk = ChunkWalk<M, Order::Parts>;
  static_assert(AT_ONCE % COUNT == 0, "a chunk's registers are known");
  Chunk<M::FORMAT> chunks[COUNT];
  // The chunks that are multiplied, and those after them.
  const char *from, *next;
  Walk walk;

  // Beyond the last row tile it is the last one again: all warps of a warpgroup must multiply.
  __device__ __forceinline__ WeightsAhead(const char* matrix, int group)
      : next(row_tile<M>(matrix, smaller(group * ExpertsCta::ROW_TILES +
                                             static_cast<int>(threadIdx.x) / 32,
                                         MATRIX_TILES<M> - 1))) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) load(i, next + i * M::STEP_BYTES);
  }
  // Goes on to the next chunks.
  __device__ __forceinline__ void begin() {
    from = next;
    walk.next(AT_ONCE);
    next += walk.inner == 0 ? M::CHUNK_BYTES - (Walk::INNER - AT_ONCE) * M::STEP_BYTES
                            : AT_ONCE * M::STEP_BYTES;
  }
  __device__ __forceinline__ const Chunk<M::FORMAT>& chunk(int i) const {
    return chunks[i % COUNT];
  }
  // Called after the i-th chunk's products: loads the chunk COUNT further on, if there is one.
  __device__ __forceinline__ void reload(int i) {
    if (i + COUNT < AT_ONCE)
      load(i, from + (i + COUNT) * M::STEP_BYTES);
    else if (walk.has())
      load(i, next + (i + COUNT - AT_ONCE) * M::STEP_BYTES);
  }

 private:
  __device__ __forceinline__ void load(int i, const char* chunk) {
    chunks[i % COUNT].load(chunk, threadIdx.x % 32);
  }
};

// Consumers: the weights of a warp's row tiles, one for each item. The warp copies them itself into
// the ring's stages, as soon as these are free. Loads into registers could not begin so early,
// because fences of `wgmma` wait for all of them.
template <class M, class Stages, class Work>
struct WarpWeights {
  using Walk = ChunkWalk<M, Order::Parts>;
  static constexpr int AHEAD = Stages::STAGES - 1;
  const Work& work;
  // Where the lane copies from: in the weights of all experts, and in the next row tile.
  const char *matrix, *from;
  int item = ptx::cta_index();
  Walk walk;

  __device__ __forceinline__ WarpWeights(const Stages& ring, const Work& all, const char* weights)
      : work(all), matrix(weights + threadIdx.x % 32 * 16) {
    if constexpr (Stages::HAS_WEIGHTS) {
      begin_item();
#pragma unroll
      for (int stage = 0; stage < AHEAD; stage++) copy(ring, stage);
    }
  }
  // Waits for the weights of the ring's next stage, and begins to copy those AHEAD stages further
  // on.
  __device__ __forceinline__ void wait(const Stages& ring) {
    copy(ring, ring.stage == 0 ? Stages::STAGES - 1 : ring.stage - 1);
    ptx::wait_for_groups<AHEAD>();
    __syncwarp();
  }

 private:
  // Beyond the last row tile it is the last one again: all warps of a warpgroup must multiply.
  __device__ __forceinline__ void begin_item() {
    if (item >= work.count()) return;
    const int tile = work.groups(item).first * ExpertsCta::ROW_TILES +
                     static_cast<int>(threadIdx.x) / 32;
    from = row_tile<M>(matrix + work.run(item).expert * M::BYTES,
                       smaller(tile, MATRIX_TILES<M> - 1));
    walk = {};
  }
  __device__ __forceinline__ void copy(const Stages& ring, int stage) {
    if (item < work.count()) {
      const char* const chunks = from + walk.offset();
#pragma unroll
      for (int i = 0; i < Stages::CHUNKS; i++) {
        const uint32_t to = ring.weights_of(stage, i) + threadIdx.x / 32 * M::CHUNK_BYTES +
                            threadIdx.x % 32 * 16;
#pragma unroll
        for (int first = 0; first < M::CHUNK_BYTES; first += 32 * 16)
          if (first + static_cast<int>(threadIdx.x) % 32 * 16 < M::CHUNK_BYTES)
            ptx::copy_later(to + first, chunks + (i * M::STEP_BYTES + first));
      }
      walk.next(Stages::CHUNKS);
      if (!walk.has()) {
        item += GRID;
        begin_item();
      }
    }
    ptx::commit_copies();
  }
};

// Consumers: the weights of a stage, which are loaded into registers AHEAD chunks before their
// products.
template <class M, class Stages>
struct StageWeights {
  static constexpr int AHEAD = smaller(Stages::CHUNKS, 2);
  uint32_t first;
  Chunk<M::FORMAT> chunks[AHEAD];

  __device__ __forceinline__ explicit StageWeights(const Stages& ring)
      : first(ring.weights(0) + threadIdx.x / 32 * M::CHUNK_BYTES) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load(i);
  }
  __device__ __forceinline__ const Chunk<M::FORMAT>& chunk(int i) const {
    return chunks[i % AHEAD];
  }
  // Called after the i-th chunk's products.
  __device__ __forceinline__ void reload(int i) {
    if (i + AHEAD < Stages::CHUNKS) load(i + AHEAD);
  }

 private:
  __device__ __forceinline__ void load(int i) {
    chunks[i % AHEAD].load(first + i * Stages::CHUNK_BYTES, threadIdx.x % 32);
  }
};

// Adds a stage to the sums of eight tokens by `mma`, which is faster than `wgmma` for so few.
template <class Stages, class Weights>
__device__ __forceinline__ void multiply_tile(const Stages& ring, float (&acc)[4],
                                              Weights& weights) {
  float sums[1][4] = {{acc[0], acc[1], acc[2], acc[3]}};
#pragma unroll
  for (int i = 0; i < Stages::CHUNKS; i++) {
    OperandChunk tokens[1];
    tokens[0].load_swizzled(ring.tokens(i), threadIdx.x % 32);
    weights.chunk(i).multiply(sums, tokens);
    weights.reload(i);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) acc[i] = sums[0][i];
}

// Consumers: multiply a warp's row tile with the tokens of the ring's next stages, COLUMNS columns
// of B. `with_weights(multiply)` waits for a stage and calls `multiply(weights)`:
// `weights.chunk(i)` is its i-th chunk, and `weights.reload(i)` is called after its products.
// `small` is for `hidden_zero`.
template <class M, int COLUMNS, Order ORDER, int SLOTS, class Stages, class Totals,
          class WithWeights>
__device__ __forceinline__ void multiply_stages(Stages& ring, Totals& totals,
                                                float (&acc)[COLUMNS / 2], uint32_t small,
                                                WithWeights with_weights) {
  using Walk = ChunkWalk<M, ORDER>;
  using Multiply = Products<M::FORMAT, COLUMNS, SLOTS>;
  // Not where tokens are bulk copies: each thread would need a fence before it releases them, which
  // waits for its loads.
  constexpr bool WITH_MMA = COLUMNS == TILE_TOKENS && Walk::BY_PART;
  // A chain is one loop: with a second one around it the compiler spills sums.
  constexpr int OUTER = Walk::BY_PART ? Walk::OUTER : 1;
  constexpr int INNER = Walk::OUTER * Walk::INNER / OUTER;
  // Without a loop the compiler would know that the sums begin with zero.
  constexpr bool HIDDEN_ZERO = COLUMNS > Multiply::WIDTH && INNER == Stages::CHUNKS;
  const auto multiply = [&](auto&& weights) {
    if constexpr (WITH_MMA) {
      multiply_tile(ring, acc, weights);
    } else {
      uint64_t tokens[Stages::CHUNKS];
#pragma unroll
      for (int i = 0; i < Stages::CHUNKS; i++) tokens[i] = ring.operand(i);
      Multiply::add(
          acc, [&](int i) -> const auto& { return weights.chunk(i); }, tokens,
          [&](int i) { weights.reload(i); });
    }
    ring.release();
  };
#pragma unroll 1
  for (int outer = 0; outer < OUTER; outer++) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++)
      acc[i] = HIDDEN_ZERO ? hidden_zero(small, i / (Multiply::WIDTH / 2)) : 0;
#pragma unroll 1
    for (int inner = 0; inner < INNER; inner += Stages::CHUNKS) with_weights(multiply);
    if constexpr (Walk::BY_PART) end_part<Walk::PARTS, ExpertsCta::CONSUMERS>(totals, outer, acc);
  }
}

}  // namespace kilotok::wide
