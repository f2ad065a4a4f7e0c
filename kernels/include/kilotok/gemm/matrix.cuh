// GEMM of a weight matrix and a batch of tokens, split-K over the warps of a CTA. The matrix is
// divided into *units* of 16 * ROW_TILES rows and all columns. The consumer warps share the chunks
// of a unit: warp w = row tile * COLUMN_WARPS + part of the columns, and in step s it multiplies
// chunk s * COLUMN_WARPS + part. So a unit is `[steps][warps][chunk]`, one contiguous run of pages,
// and a warp always has the same columns. With one tile of tokens a warp keeps its columns of the
// operand in registers for the whole matrix; with several tiles it reads them from L2 again for
// every unit, or for every two.
//
// The sum over columns has one order, whatever the number of tokens: steps, then warps.
#pragma once

#include "kilotok/comm/publish.cuh"
#include "kilotok/layout/chunk.cuh"
#include "kilotok/gemm/ring.cuh"
#include "kilotok/gemm/split_k.cuh"

namespace kilotok {

template <Format F, int ROWS_, int COLUMNS_, int ROW_TILES_>
struct Matrix {
  static constexpr Format FORMAT = F;
  static constexpr int ROWS = ROWS_;
  static constexpr int COLUMNS = COLUMNS_;
  static constexpr int ROW_TILES = ROW_TILES_;
  static constexpr int COLUMN_WARPS = CONSUMER_WARPS / ROW_TILES;
  static constexpr int CHUNK_BYTES = chunk_bytes(F);
  static constexpr int STEP_BYTES = CONSUMER_WARPS * CHUNK_BYTES;
  static constexpr int COLUMN_CHUNKS = ceil_div(COLUMNS, CHUNK_COLUMNS);
  static constexpr int STEPS = ceil_div(COLUMN_CHUNKS, COLUMN_WARPS);
  static constexpr int UNITS = ceil_div(ROWS, 16 * ROW_TILES);
  static constexpr int UNIT_BYTES = STEPS * STEP_BYTES;
  // CTAs that share the units: the fewest that need no more rounds than all CTAs. The CTAs without
  // units prefetch the keys of sliding windows meanwhile and compute their attention.
  static constexpr int CTAS = ceil_div(UNITS, ceil_div(UNITS, GRID));
  static constexpr int PAGE_STEPS = PAGE_BYTES / STEP_BYTES;
  // Columns including the zeros that operands need after the last.
  static constexpr int COLUMNS_PADDED = STEPS * COLUMN_WARPS * CHUNK_COLUMNS;
  static constexpr size_t BYTES = static_cast<size_t>(UNITS) * UNIT_BYTES;
  // Chunks of the last step that have no columns, and are zeros. With one tile of tokens they are
  // not multiplied, and those at the end of a unit are not copied.
  static constexpr int PADDING_CHUNKS = STEPS * COLUMN_WARPS - COLUMN_CHUNKS;

  // Bytes of `count` steps to copy, from `step` on.
  static __host__ __device__ constexpr int bytes_of(int step, int count) {
    return count * STEP_BYTES - (step + count == STEPS ? PADDING_CHUNKS * CHUNK_BYTES : 0);
  }
  static __host__ __device__ constexpr bool has_columns(int step, int part) {
    return PADDING_CHUNKS == 0 || step < STEPS - 1 || part < COLUMN_WARPS - PADDING_CHUNKS;
  }
};

// The first unit of a CTA; its others follow at intervals of CTAS.
template <class M>
__device__ __forceinline__ int first_unit(const Cta& cta) {
  return cta.index() < M::CTAS ? cta.index() : M::UNITS;
}

// Units that a CTA multiplies at the same time. With several tiles of tokens these are a unit and
// the CTA's next one, which share the loads of the operand: it is larger than the weights.
template <class M, int TILES>
constexpr int UNITS_TOGETHER = TILES > 1 && M::UNITS > M::CTAS ? 2 : 1;

// The matrices whose product is added to the residual stream: a CTA computes some rows alone, over
// all columns, and owns that part of the stream. Its rows are the fewest whole tiles with which
// every row has an owner: 48 rows of 6144 on 132 SMs, 16 of 2048. Some CTAs own none.
constexpr int OWNER_TILES = ceil_div(ceil_div(HIDDEN, 16), GRID);
constexpr int OWNER_ROWS = OWNER_TILES * 16;
constexpr int OWNER_UNITS = ceil_div(HIDDEN, OWNER_ROWS);
static_assert(OWNER_TILES <= EPILOGUE_WARPS, "the hidden size is too large for this GPU");

// Producer: copies this CTA's units, from `first` on, for up to TILES tiles of tokens. Pages of
// units that are multiplied together alternate.
template <class M, int TILES>
__device__ __forceinline__ void produce(Ring& ring, uint64_t address, int first) {
  constexpr int TOGETHER = UNITS_TOGETHER<M, TILES>;
#pragma unroll 1
  for (int unit = first; unit < M::UNITS; unit += TOGETHER * M::CTAS) {
    const char* from = at<const char>(address) + static_cast<size_t>(unit) * M::UNIT_BYTES;
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step += M::PAGE_STEPS) {
      const int steps = smaller(M::PAGE_STEPS, M::STEPS - step);
#pragma unroll
      for (int i = 0; i < TOGETHER; i++) {
        if (i > 0 && unit + i * M::CTAS >= M::UNITS) break;
        const int bytes = TILES == 1 ? M::bytes_of(step, steps) : steps * M::STEP_BYTES;
        ring.acquire(bytes);
        ring.fetch(from + static_cast<size_t>(i) * M::CTAS * M::UNIT_BYTES + step * M::STEP_BYTES,
                   0, bytes);
        ring.next();
      }
    }
  }
}

// The most steps with which a warp's columns of the operand stay in registers.
constexpr int HELD_STEPS_MAX = 11;
template <class M>
constexpr bool IS_HELD = M::STEPS <= HELD_STEPS_MAX;

// One tile's operand in pages of the ring, on its way to the registers that hold it.
template <class M>
struct OperandPages {
  static constexpr int STEP_BYTES = M::COLUMN_WARPS * CHUNK_OPERAND_BYTES;
  static constexpr int PAGE_STEPS = smaller(PAGE_BYTES / STEP_BYTES, M::STEPS);

  // Producer: every CTA begins at a different step, because all CTAs read the same operand.
  static __device__ __forceinline__ void produce(Ring& ring, const char* from) {
#pragma unroll 1
    for (int first = 0; first < M::STEPS; first += PAGE_STEPS) {
      const int steps = smaller(PAGE_STEPS, M::STEPS - first);
      ring.acquire(steps * STEP_BYTES);
#pragma unroll 1
      for (int i = 0; i < steps; i++) {
        const int step = (i + ptx::cta_index()) % steps;
        ring.fetch_operand(from + (first + step) * STEP_BYTES, step * STEP_BYTES, STEP_BYTES);
      }
      ring.next();
    }
  }
};

// Whether the values of an operand's rows are polled for. Otherwise a barrier came before.
template <class RowOf>
__device__ __forceinline__ bool is_polled(const RowOf& row_of) {
  if constexpr (requires { row_of.polled; })
    return row_of.polled;
  else
    return false;
}

// Multiplies one unit with one tile of tokens. `row_of(column)` is the row of the operand that
// belongs to a column of the batch.
template <class M, bool HELD>
struct Multiplier {
  const char* row;
  OperandChunk held[HELD ? M::STEPS : 1][1];

  template <class RowOf>
  __device__ __forceinline__ Multiplier(const Cta& cta, uint64_t operand, int row_bytes,
                                        RowOf row_of) {
    row = at<const char>(operand) + operand_row(row_of(cta.lane() / 4), row_bytes);
    if constexpr (HELD) {
      if (is_polled(row_of)) {
        poll_for(cta);
        return;
      }
#pragma unroll
      for (int step = 0; step < M::STEPS; step++) load(cta, step, held[step]);
    }
  }

  // For an operand that comes through the ring.
  __device__ __forceinline__ Multiplier(const Cta& cta, Ring& ring) : row() {
    using Pages = OperandPages<M>;
    static_assert(HELD, "pages are given back at once");
    const int part = cta.warp() % M::COLUMN_WARPS;
#pragma unroll
    for (int first = 0; first < M::STEPS; first += Pages::PAGE_STEPS) {
      const uint32_t page = ring.wait();
#pragma unroll
      for (int i = 0; i < smaller(Pages::PAGE_STEPS, M::STEPS - first); i++)
        held[first + i][0].load_shared(page + cta.lane() / 4 * 64, i * M::COLUMN_WARPS + part,
                                       cta.lane());
      ring.release(cta.lane());
    }
  }

  __device__ __forceinline__ void load(const Cta& cta, int step, OperandChunk (&x)[1]) const {
    x[0].load(row, step * M::COLUMN_WARPS + cta.warp() % M::COLUMN_WARPS, cta.lane());
  }

  // Loads the whole operand again until no value is missing.
  __device__ __forceinline__ void poll_for(const Cta& cta) {
    poll<true>([&] {
      bool missing = false;
#pragma unroll
      for (int step = 0; step < M::STEPS; step++)
        held[step][0].load_l2(row, step * M::COLUMN_WARPS + cta.warp() % M::COLUMN_WARPS,
                              cta.lane());
#pragma unroll
      for (int step = 0; step < M::STEPS; step++) missing |= is_missing(held[step][0]);
      return !missing;
    });
  }

  // Steps must be fetched in order; `ahead` is at the page of the previous one.
  static __device__ __forceinline__ void fetch(const Cta& cta, Ring& ahead, int step,
                                               Chunk<M::FORMAT>& chunk) {
    const int in_page = step % M::PAGE_STEPS;
    if (in_page == 0) {
      if (step > 0) ahead.next();
      ahead.wait();
    }
    chunk.load(ahead.page() + in_page * M::STEP_BYTES + cta.warp() * M::CHUNK_BYTES, cta.lane());
  }

  // The operand in registers, by step.
  __device__ __forceinline__ auto held_operand() const {
    return [this](int step, OperandChunk (&x)[1]) { x[0] = held[step][0]; };
  }

  __device__ __forceinline__ void unit(const Cta& cta, Ring& ring, float (&acc)[1][4]) const {
    if constexpr (HELD)
      multiply(cta, ring, acc, held_operand());
    else
      multiply(cta, ring, acc, [&](int step, OperandChunk (&x)[1]) { load(cta, step, x); });
  }

  // Multiplies one unit; `operand(step, x)` gets a step's part of the operand.
  template <class Operand>
  static __device__ __forceinline__ void multiply(const Cta& cta, Ring& ring, float (&acc)[1][4],
                                                  Operand operand) {
    // A chunk is loaded while the previous one is multiplied.
    Ring ahead = ring;
    Chunk<M::FORMAT> chunk;
    fetch(cta, ahead, 0, chunk);
#pragma unroll(HELD ? M::STEPS : 1)
    for (int step = 0; step < M::STEPS; step++) {
      OperandChunk x[1];
      operand(step, x);
      Chunk<M::FORMAT> next = chunk;
      if (step + 1 < M::STEPS) fetch(cta, ahead, step + 1, next);
      if (M::has_columns(step, cta.warp() % M::COLUMN_WARPS)) chunk.multiply(acc, x);
      chunk = next;
      if (step % M::PAGE_STEPS == M::PAGE_STEPS - 1 || step == M::STEPS - 1)
        ring.release(cta.lane());
    }
  }
};

// Steps of a page of the ring, and of the weights that a warp holds ahead by default: a page, if
// then a step's weights are always in the same registers.
template <class M>
constexpr int STEPS_OF_PAGE = smaller(M::PAGE_STEPS, M::STEPS);
template <class M>
constexpr int DEFAULT_AHEAD = M::STEPS % STEPS_OF_PAGE<M> == 0 ? STEPS_OF_PAGE<M> : 1;

// The weights of the COUNT steps that a warp multiplies next, in registers, which serve as another
// page of the ring: they are free while the operand is waited for.
template <class M, int COUNT = DEFAULT_AHEAD<M>>
struct WeightsAhead {
  static constexpr int PAGE_STEPS = STEPS_OF_PAGE<M>;
  Chunk<M::FORMAT> chunks[COUNT];

  // For a CTA that has units.
  __device__ __forceinline__ void begin(const Cta& cta, Ring& ring) {
#pragma unroll
    for (int step = 0; step < COUNT; step++) fetch(cta, ring, step);
  }

  // Loads the weights of a unit's step. After the last step of a page the page is released.
  __device__ __forceinline__ void fetch(const Cta& cta, Ring& ring, int step) {
    const int in_page = step % PAGE_STEPS;
    if (in_page == 0) ring.wait();
    chunks[step % COUNT].load(
        ring.page() + in_page * M::STEP_BYTES + cta.warp() * M::CHUNK_BYTES, cta.lane());
    if (in_page == PAGE_STEPS - 1 || step == M::STEPS - 1) ring.release(cta.lane());
  }

  // Multiplies a unit; `operand(step, x)` gets a step's part of the operand. If there is `more`,
  // the first weights of the next unit are loaded.
  template <class Operand>
  __device__ __forceinline__ void unit(const Cta& cta, Ring& ring, Operand operand, bool more,
                                       float (&acc)[1][4]) {
#pragma unroll
    for (int step = 0; step < M::STEPS; step++) {
      OperandChunk x[1];
      operand(step, x);
      if (M::has_columns(step, cta.warp() % M::COLUMN_WARPS))
        chunks[step % COUNT].multiply(acc, x);
      if (step + COUNT < M::STEPS || more) fetch(cta, ring, (step + COUNT) % M::STEPS);
    }
  }
};

// The batch's own order of tokens, as operand rows of its columns. In kernels for one tile, columns
// after the last token read the first one's row again, so that one token reads an eighth of a
// tile's bytes. Kernels for more tiles have no registers for that.
template <int TILES>
struct EveryToken {
  int count;

  __device__ __forceinline__ int tiles() const { return ceil_div(count, TILE_TOKENS); }
  __device__ __forceinline__ int operator()(int column) const {
    return TILES > 1 || column < count ? column : 0;
  }
};

// In kernels for one tile: the same, or one token whose values are polled for, in a row of its own
// after the tile's.
constexpr int POLLED_ROW = TILE_TOKENS;
struct TokensOrPolled : EveryToken<1> {
  bool polled;

  __device__ __forceinline__ TokensOrPolled(int token_count, bool is_polled)
      : EveryToken<1>{token_count}, polled(is_polled) {}
  __device__ __forceinline__ int operator()(int column) const {
    return polled ? POLLED_ROW : EveryToken<1>::operator()(column);
  }
};
template <int TILES>
__device__ __forceinline__ auto tokens_of(int count, bool polled) {
  if constexpr (TILES == 1)
    return TokensOrPolled(count, polled);
  else
    return EveryToken<TILES>{count};
}

// Multiplies units together with several tiles of tokens. Pieces of the operand, two tiles of a
// step, are prefetched from L2: when one has been multiplied, the next is loaded.
template <class M, int TILES>
struct TilesMultiplier {
  static constexpr int TOGETHER = UNITS_TOGETHER<M, TILES>;
  static constexpr int PIECE_TILES = 2;
  static constexpr int STEP_PIECES = TILES / PIECE_TILES;
  // Pieces in flight, of one step or of several: as many as registers hold.
  static constexpr int AHEAD = smaller(TOGETHER == 1 ? 4 : 2, M::PAGE_STEPS * STEP_PIECES);
  static constexpr int STEPS_AHEAD = larger(AHEAD / STEP_PIECES, 1);
  static_assert(TILES % PIECE_TILES == 0 && (STEP_PIECES == 1 || STEP_PIECES % AHEAD == 0),
                "pieces are whole, and one is always in the same registers");
  static_assert(M::PAGE_STEPS % STEPS_AHEAD == 0, "pages begin with what is unrolled");

  // The warp's first columns of the operand; the byte offset of the warp's weights in a step.
  const char* operand;
  int weights;
  int lane, tiles;
  int rows[TILES];
  OperandChunk pieces[AHEAD][PIECE_TILES];

  // Indexed by unit and piece of a step, then by tile of the piece.
  using Acc = float[TOGETHER * STEP_PIECES][PIECE_TILES][4];

  template <class RowOf>
  __device__ __forceinline__ TilesMultiplier(const Cta& cta, uint64_t from, int row_bytes,
                                             RowOf row_of)
      : tiles(row_of.tiles()) {
    // With an unsigned number the compiler keeps fewer values in registers.
    const uint32_t thread = cta.thread();
    const int warp = thread / 32;
    lane = thread % 32;
    operand = at<const char>(from) + warp % M::COLUMN_WARPS * CHUNK_OPERAND_BYTES;
    weights = warp * M::CHUNK_BYTES;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
      rows[tile] = operand_row(row_of(tile * TILE_TOKENS + lane / 4), row_bytes);
  }

  // Begins to load the first pieces of a unit.
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      load(i, i / STEP_PIECES, [&](int j) { return rows[i % STEP_PIECES * PIECE_TILES + j]; });
  }

  // Multiplies the next `count` units.
  __device__ __forceinline__ void units(Ring& ring, int count, Acc& acc) {
    uint32_t pages[TOGETHER] = {};
#pragma unroll 1
    for (int first = 0; first < M::STEPS; first += STEPS_AHEAD) {
      const int in_page = first % M::PAGE_STEPS;
      if (in_page == 0) wait_pages(ring, count, pages);
#pragma unroll
      for (int i = 0; i < STEPS_AHEAD * STEP_PIECES; i++) {
        if (first + i / STEP_PIECES >= M::STEPS || !has(i % STEP_PIECES)) break;
        multiply(pages, in_page + i / STEP_PIECES, i, acc);
        load_after(first, i);
      }
      if (in_page + STEPS_AHEAD == M::PAGE_STEPS || first + STEPS_AHEAD >= M::STEPS)
#pragma unroll
        for (int unit = 0; unit < TOGETHER; unit++)
          if (unit < count) ring.release(lane);
    }
  }

 private:
  // Whether the batch has such a piece of a step. The first two are assumed to exist.
  __device__ __forceinline__ bool has(int piece) const {
    return piece < 2 || piece * PIECE_TILES < tiles;
  }

  // `row(j)` is the byte offset of the lane's row in tile j of the piece.
  template <class Row>
  __device__ __forceinline__ void load(int place, int step, Row row) {
    if (step >= M::STEPS) return;
    constexpr int STEP_BYTES = M::COLUMN_WARPS * CHUNK_OPERAND_BYTES;
#pragma unroll
    for (int j = 0; j < PIECE_TILES; j++)
      pieces[place][j].load(operand + static_cast<uint32_t>(row(j) + step * STEP_BYTES), 0, lane);
  }

  // Replaces piece `i`, counted from step `first`: by a later one of the same step if there is one,
  // otherwise by one of a later step.
  __device__ __forceinline__ void load_after(int first, int i) {
    const int piece = i % STEP_PIECES, later = piece + AHEAD;
    const bool same_step = later < STEP_PIECES && has(later);
    const int step = first + i / STEP_PIECES + (same_step ? 0 : STEPS_AHEAD);
    load(i % AHEAD, step, [&](int j) {
      const int further = rows[piece % AHEAD * PIECE_TILES + j];
      return same_step ? rows[later % STEP_PIECES * PIECE_TILES + j] : further;
    });
  }

  // A unit that does not exist gets the pages of the one before it; its result is not used.
  static __device__ __forceinline__ void wait_pages(const Ring& ring, int count,
                                              uint32_t (&pages)[TOGETHER]) {
    Ring ahead = ring;
#pragma unroll
    for (int unit = 0; unit < TOGETHER; unit++) {
      if (unit > 0 && unit < count) ahead.next();
      pages[unit] = ahead.wait();
    }
  }

  __device__ __forceinline__ void multiply(const uint32_t (&pages)[TOGETHER], int in_page, int i,
                                           Acc& acc) {
    // Makes the compiler read and decode the weights again for each piece: it would otherwise keep
    // them, and there are no registers for that.
    __syncwarp();
#pragma unroll
    for (int unit = 0; unit < TOGETHER; unit++) {
      Chunk<M::FORMAT> chunk;
      chunk.load(pages[unit] + in_page * M::STEP_BYTES + weights, lane);
      chunk.multiply(acc[unit * STEP_PIECES + i % STEP_PIECES], pieces[i % AHEAD]);
    }
  }
};

// Reduces the warps' partial sums of several tiles, in order of their columns, and passes each
// lane's four values to `use(unit, row tile, tile, lane, values)`: rows g and g + 8 of tokens 2q
// and 2q + 1. `unit` is an index among the units that were multiplied together.
template <class M, int TILES, class Use>
__device__ __forceinline__ void reduce_warps(const Cta& cta, SumMemory& sums,
                                          const typename TilesMultiplier<M, TILES>::Acc& acc,
                                          int tiles, Use use) {
  constexpr int PLACES = TILES * UNITS_TOGETHER<M, TILES>;
  constexpr int AT_ONCE = smaller(PLACES, SUM_STAGES), ROUNDS = PLACES / AT_ONCE;
  // Different threads reduce each round, and all of them call `use` at the end, so that their loads
  // overlap.
  constexpr int REDUCERS = M::ROW_TILES * AT_ONCE * 32, TURNS = CONSUMERS / REDUCERS;
  const int turn = cta.thread() / REDUCERS, row_tile = cta.thread() % REDUCERS / (AT_ONCE * 32);
  const int rest = cta.thread() % (AT_ONCE * 32);
  float4 added[ceil_div(ROUNDS, TURNS)] = {};
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    if (round * AT_ONCE % TILES >= tiles) continue;
    cta.sync();
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int place = round * AT_ONCE + i;
      const float(&v)[4] = acc[place / 2][place % 2];
      sums.parts[(cta.warp() * AT_ONCE + i) * 32 + cta.lane()] =
          make_float4(v[0], v[1], v[2], v[3]);
    }
    cta.sync();
    if (turn == round % TURNS)
      added[round / TURNS] = Sums::sum_parts<M::COLUMN_WARPS>(
          sums.parts + row_tile * M::COLUMN_WARPS * AT_ONCE * 32 + rest, AT_ONCE * 32);
  }
#pragma unroll
  for (int i = 0; i < ceil_div(ROUNDS, TURNS); i++) {
    const int round = i * TURNS + turn, place = round * AT_ONCE + rest / 32;
    if (turn < TURNS && round < ROUNDS && place % TILES < tiles)
      use(place / TILES, row_tile, place % TILES, rest % 32, added[i]);
  }
}

// Multiplies this CTA's units with up to TILES tiles.
template <class M, int TILES, class RowOf, class Prepare, class Use>
__device__ __forceinline__ void gemm_tiles(const Cta& cta, Ring& ring, SumMemory& sums,
                                               uint64_t operand, int row_bytes, int first,
                                               RowOf row_of, Prepare prepare, Use use) {
  using Multiply = TilesMultiplier<M, TILES>;
  Multiply multiplier(cta, operand, row_bytes, row_of);
  multiplier.begin();
  prepare(cta);
  cta.sync();
  constexpr int STRIDE = UNITS_TOGETHER<M, TILES> * M::CTAS;
#pragma unroll 1
  for (int unit = first; unit < M::UNITS; unit += STRIDE) {
    const int count = ceil_div(smaller(M::UNITS - unit, STRIDE), M::CTAS);
    typename Multiply::Acc acc = {};
    multiplier.units(ring, count, acc);
    if (unit + STRIDE < M::UNITS) multiplier.begin();
    reduce_warps<M, TILES>(cta, sums, acc, row_of.tiles(),
                        [&](int which, int row_tile, int tile, int lane, const float4& values) {
                          if (which < count)
                            use(unit + which * M::CTAS, row_tile, tile, lane, values);
                        });
  }
}

// Multiplies this CTA's units with one tile.
template <class M, class RowOf, class WaitInput, class Prepare>
__device__ __forceinline__ void gemm_tile(const Cta& cta, Ring& ring, Sums& sums,
                                              uint64_t operand, int row_bytes, int first,
                                              RowOf row_of, WaitInput wait_input, Prepare prepare) {
  // `product(unit, acc)` multiplies one unit.
  const auto each_unit = [&](auto product) {
    prepare(cta);
    // The epilogue sees what `prepare` left when it has the sums of all warps. The sums' memory is
    // free since the barrier before the operand, if there was one.
    if (is_polled(row_of)) cta.sync();
#pragma unroll 1
    for (int unit = first; unit < M::UNITS; unit += M::CTAS) {
      float acc[1][4] = {};
      product(unit, acc);
      sums.push(cta, acc[0]);
    }
    sums.drain(cta);
  };
  const bool has_units = first < M::UNITS;
  if constexpr (IS_HELD<M>) {
    WeightsAhead<M> ahead = {};
    if (has_units) ahead.begin(cta, ring);
    wait_input();
    if (!has_units) return;
    const Multiplier<M, true> multiplier(cta, operand, row_bytes, row_of);
    each_unit([&](int unit, float(&acc)[1][4]) {
      ahead.unit(cta, ring, multiplier.held_operand(), unit + M::CTAS < M::UNITS, acc);
    });
  } else {
    wait_input();
    if (!has_units) return;
    const Multiplier<M, false> multiplier(cta, operand, row_bytes, row_of);
    each_unit([&](int, float(&acc)[1][4]) { multiplier.unit(cta, ring, acc); });
  }
}

// Multiplies this CTA's units, from `first` on. With one tile the epilogue warps use the sums (they
// call `epilogue`), with several the consumers do: `use(unit, row tile, tile, lane, values)`.
// `wait_input` waits until the operand is written; every CTA calls it, also one without units, and
// it may use the sums' memory. `prepare` is called by all consumers while the operand is loaded;
// what it leaves in shared memory is visible to `use`. `row_of(column)` is the operand row of a
// column of the batch, which has `row_of.tiles()` tiles.
template <class M, int TILES, class RowOf, class WaitInput, class Prepare, class Use>
__device__ __forceinline__ void gemm(const Cta& cta, Ring& ring, Sums& sums, uint64_t operand,
                                     int row_bytes, int first, RowOf row_of, WaitInput wait_input,
                                     Prepare prepare, Use use) {
  if constexpr (TILES == 1) {
    gemm_tile<M>(cta, ring, sums, operand, row_bytes, first, row_of, wait_input, prepare);
  } else {
    wait_input();
    if (first >= M::UNITS) return;
    if (row_of.tiles() == 2)
      gemm_tiles<M, 2>(cta, ring, sums.memory, operand, row_bytes, first, row_of, prepare, use);
    else
      gemm_tiles<M, TILES>(cta, ring, sums.memory, operand, row_bytes, first, row_of, prepare,
                               use);
  }
}

// How many epilogue warps share a unit of one row tile.
template <class Use>
__host__ __device__ constexpr int shares_of() {
  if constexpr (requires { Use::SHARES; })
    return Use::SHARES;
  else
    return 1;
}

// Epilogue: the other half of `gemm`. `early` says whether `use.ahead`, which loads what `use`
// needs from the GPU's memory, may run before the sums arrive. It may not where only their arrival
// shows that other CTAs have written those values. It is called one unit ahead, because these loads
// take longer than a unit while weights stream.
template <class M, class Use>
__device__ __forceinline__ void epilogue(const Cta& cta, Sums& sums, int first, int tiles, Use use,
                                    bool early = true) {
  if (tiles > 1 || first >= M::UNITS) return;
  if constexpr (requires { use.ahead(first, 0, 0, 0); }) {
    constexpr int SHARES = shares_of<Use>();
    const int own = Sums::part<M, SHARES>(cta);
    if (!early) sums.wait();
    auto ahead = use.ahead(first, own, 0, cta.lane());
#pragma unroll 1
    for (int unit = first; unit < M::UNITS; unit += M::CTAS) {
      auto later = ahead;
      if (unit + M::CTAS < M::UNITS)
        later = use.ahead(unit + M::CTAS, own, 0, cta.lane());
      sums.reduce<M, SHARES>(cta, [&](int part, int tile, int lane, const float4& values) {
        use.store(unit, part, tile, lane, values, ahead);
      });
      ahead = later;
    }
  } else {
#pragma unroll 1
    for (int unit = first; unit < M::UNITS; unit += M::CTAS)
      sums.reduce<M>(cta, [&](int row_tile, int tile, int lane, const float4& values) {
        use(unit, row_tile, tile, lane, values);
      });
  }
}

}  // namespace kilotok
