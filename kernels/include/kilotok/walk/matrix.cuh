// A matrix times the tokens of a batch. The matrix lies in *units*: 16 * ROW_TILES rows of all
// columns, the chunks of which the consumer warps share, warp w = row tile * COLUMN_WARPS + part of
// the columns. In step s a warp multiplies chunk s * COLUMN_WARPS + part, so a unit is
// `[steps][warps][chunk]`, one contiguous run of pages, and a warp always meets the same columns:
// with one tile of tokens their operands stay in registers for the whole matrix.
//
// The sum over columns has one order, whatever the number of tokens: steps, then warps.
#pragma once

#include "kilotok/layout/chunk.cuh"
#include "kilotok/walk/ring.cuh"

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
  static constexpr int STEPS = ceil_div(ceil_div(COLUMNS, CHUNK_COLUMNS), COLUMN_WARPS);
  static constexpr int UNITS = ceil_div(ROWS, 16 * ROW_TILES);
  static constexpr int UNIT_BYTES = STEPS * STEP_BYTES;
  // CTAs that share the units: no more than have to, so that the last ones may go free. They attend
  // the windows, and bring their keys meanwhile.
  static constexpr int CTAS = ceil_div(UNITS, ceil_div(UNITS, GRID));
  static constexpr int PAGE_STEPS = PAGE_BYTES / STEP_BYTES;
  // Columns with the zeros that operands need behind the last.
  static constexpr int COLUMNS_PADDED = STEPS * COLUMN_WARPS * CHUNK_COLUMNS;
  static constexpr size_t BYTES = static_cast<size_t>(UNITS) * UNIT_BYTES;
};

// The first unit of a CTA; the others come after it at intervals of CTAS.
template <class M>
__device__ __forceinline__ int first_unit(const Cta& cta) {
  return cta.index() < M::CTAS ? cta.index() : M::UNITS;
}

// The matrices that turn heads or experts back into the residual stream: a CTA computes 48 rows
// alone, from all columns, and owns that part of the stream. Some CTAs own none.
constexpr int OWNER_ROWS = 48;
constexpr int OWNER_TILES = OWNER_ROWS / 16;
constexpr int OWNER_UNITS = ceil_div(HIDDEN, OWNER_ROWS);
static_assert(OWNER_UNITS <= GRID, "the hidden size is too large for this GPU");

// Tiles of tokens that consumers add at a time, and units of one tile that wait for the adders.
constexpr int SUM_PLACES = 4;
constexpr int ADDER_WARPS = 3;

// Memory for whatever a phase needs while it runs.
constexpr int SCRATCH_BYTES = 36864;

// Where the warps' sums meet, `[places][warps][lanes]`, or `[warps][tiles][lanes]`. The parts are
// at the beginning of the scratch memory.
struct SumMemory {
  union {
    float4 parts[SUM_PLACES * CONSUMER_WARPS * 32];
    alignas(16) char scratch[SCRATCH_BYTES];
  };
  alignas(8) uint64_t full[SUM_PLACES];
  alignas(8) uint64_t empty[SUM_PLACES];
  // Whose sums they are, where that is not known beforehand.
  int units[SUM_PLACES];
};

// In place of a unit, that there are no more.
constexpr int NO_UNIT = -1;

// Sums of single tiles on their way from the consumers to the adder warps, which add them and put
// them to use while the consumers are at the next unit. Each side has its own.
struct Sums {
  SumMemory& memory;
  uint32_t full, empty;
  int stage;
  uint32_t parity;

  __device__ __forceinline__ explicit Sums(SumMemory& m)
      : memory(m),
        full(ptx::shared_address(m.full)),
        empty(ptx::shared_address(m.empty)),
        stage(0),
        parity(0) {}

  // One thread, before any other uses them.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < SUM_PLACES; i++) {
      ptx::mbarrier_init(full + 8 * i, CONSUMER_WARPS * ptx::WARP_ARRIVALS);
      ptx::mbarrier_init(empty + 8 * i, ADDER_WARPS * ptx::WARP_ARRIVALS);
    }
  }

  __device__ __forceinline__ void next() {
    if (++stage == SUM_PLACES) {
      stage = 0;
      parity ^= 1;
    }
  }

  // Consumers: hand over a warp's sums.
  __device__ __forceinline__ void put(const Cta& cta, const float (&v)[4], int unit = 0) {
    wait_mbarrier(Waits::Sums, empty + 8 * stage, parity ^ 1);
    if (cta.thread() == 0) memory.units[stage] = unit;
    memory.parts[(stage * CONSUMER_WARPS + cta.warp()) * 32 + cta.lane()] =
        make_float4(v[0], v[1], v[2], v[3]);
    ptx::mbarrier_arrive_warp(full + 8 * stage, cta.lane());
    next();
  }

  // Consumers: wait until all that was put has been put to use.
  __device__ __forceinline__ void drain(const Cta& cta) const {
    Sums ahead = *this;
#pragma unroll 1
    for (int i = 0; i < SUM_PLACES; i++) {
      wait_mbarrier(Waits::Sums, empty + 8 * ahead.stage, ahead.parity ^ 1);
      ahead.next();
    }
  }

  // Adders: wait for the sums of the next unit; which it is.
  __device__ __forceinline__ int wait() const {
    wait_mbarrier(Waits::Sums, full + 8 * stage, parity);
    return memory.units[stage];
  }

  // Adders: have what they waited for put aside.
  __device__ __forceinline__ void leave(const Cta& cta) {
    ptx::mbarrier_arrive_warp(empty + 8 * stage, cta.lane());
    next();
  }

  // Adders: take the sums of the next unit, `use(row tile, 0, lane, values)` as in `add_warps`.
  template <class M, class Use>
  __device__ __forceinline__ void take(const Cta& cta, Use use) {
    wait();
    const int adder = cta.warp() - CONSUMER_WARPS - 1;
    // One adder does a unit of one row tile; the units take turns.
    const bool mine = M::ROW_TILES == 1 ? stage % ADDER_WARPS == adder : adder < M::ROW_TILES;
    if (mine) {
      const int row_tile = M::ROW_TILES == 1 ? 0 : adder;
      const float4* parts =
          memory.parts + (stage * CONSUMER_WARPS + row_tile * M::COLUMN_WARPS) * 32 + cta.lane();
      use(row_tile, 0, cta.lane(), add_parts<M::COLUMN_WARPS>(parts, 32));
    }
    leave(cta);
  }

  template <int COUNT>
  static __device__ __forceinline__ float4 add_parts(const float4* parts, int stride) {
    float4 sum = parts[0];
#pragma unroll
    for (int part = 1; part < COUNT; part++) {
      const float4 v = parts[part * stride];
      sum.x += v.x;
      sum.y += v.y;
      sum.z += v.z;
      sum.w += v.w;
    }
    return sum;
  }
};

// Producer: brings this CTA's units, from `first` on.
template <class M>
__device__ __forceinline__ void produce(Ring& ring, uint64_t address, int first) {
#pragma unroll 1
  for (int unit = first; unit < M::UNITS; unit += M::CTAS) {
    const char* from = at<const char>(address) + static_cast<size_t>(unit) * M::UNIT_BYTES;
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step += M::PAGE_STEPS) {
      const int steps = smaller(M::PAGE_STEPS, M::STEPS - step);
      ring.open(steps * M::STEP_BYTES);
      ring.bring(from + step * M::STEP_BYTES, 0, steps * M::STEP_BYTES);
      ring.next();
    }
  }
}

// Adds the warps' sums of several tiles, in order of their columns, and hands each lane's four
// values to `use(row tile, tile, lane, values)`: rows g and g + 8 of tokens 2q and 2q + 1.
template <class M, int TILES, class Use>
__device__ __forceinline__ void add_warps(const Cta& cta, SumMemory& sums,
                                          const float (&acc)[TILES][4], Use use) {
  constexpr int AT_ONCE = smaller(TILES, SUM_PLACES);
#pragma unroll
  for (int first = 0; first < TILES; first += AT_ONCE) {
    cta.sync();
#pragma unroll
    for (int tile = 0; tile < AT_ONCE; tile++) {
      const float(&v)[4] = acc[first + tile];
      sums.parts[(cta.warp() * AT_ONCE + tile) * 32 + cta.lane()] =
          make_float4(v[0], v[1], v[2], v[3]);
    }
    cta.sync();
    for (int i = cta.thread(); i < M::ROW_TILES * AT_ONCE * 32; i += CONSUMERS) {
      const int row_tile = i / (AT_ONCE * 32), rest = i % (AT_ONCE * 32);
      const float4* parts = sums.parts + row_tile * M::COLUMN_WARPS * AT_ONCE * 32 + rest;
      use(row_tile, first + rest / 32, rest % 32,
          Sums::add_parts<M::COLUMN_WARPS>(parts, AT_ONCE * 32));
    }
  }
}

// Operands of which a warp's own columns stay in registers.
constexpr int HELD_STEPS_MAX = 8;
template <class M>
constexpr bool IS_HELD = M::STEPS <= HELD_STEPS_MAX;

// Such an operand of one tile of tokens as pages of the ring.
template <class M>
struct OperandPages {
  static constexpr int STEP_BYTES = M::COLUMN_WARPS * CHUNK_OPERAND_BYTES;
  static constexpr int PAGE_STEPS = smaller(PAGE_BYTES / STEP_BYTES, M::STEPS);

  // Producer: every CTA begins elsewhere, as all want the same.
  static __device__ __forceinline__ void produce(Ring& ring, const char* from) {
#pragma unroll 1
    for (int first = 0; first < M::STEPS; first += PAGE_STEPS) {
      const int steps = smaller(PAGE_STEPS, M::STEPS - first);
      ring.open(steps * STEP_BYTES);
#pragma unroll 1
      for (int i = 0; i < steps; i++) {
        const int step = (i + blockIdx.x) % steps;
        ring.bring_operand(from + (first + step) * STEP_BYTES, step * STEP_BYTES, STEP_BYTES);
      }
      ring.next();
    }
  }
};

// Multiplies one unit. `row_of(column)` is the operand row of a column of the batch.
template <class M, int TILES, bool HELD>
struct Multiplier {
  const char* rows[TILES];
  OperandChunk held[HELD ? M::STEPS : 1][TILES];

  template <class RowOf>
  __device__ __forceinline__ Multiplier(const Cta& cta, uint64_t operand, int row_bytes,
                                        RowOf row_of) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
      rows[tile] = at<const char>(operand) +
                   operand_row(row_of(tile * TILE_TOKENS + cta.lane() / 4), row_bytes);
    if constexpr (HELD) {
#pragma unroll
      for (int step = 0; step < M::STEPS; step++) load(cta, step, held[step]);
    }
  }

  // Of an operand that the producer brings.
  __device__ __forceinline__ Multiplier(const Cta& cta, Ring& ring) : rows() {
    using Pages = OperandPages<M>;
    static_assert(HELD && TILES == 1, "pages are given back at once");
    const int part = cta.warp() % M::COLUMN_WARPS;
#pragma unroll
    for (int first = 0; first < M::STEPS; first += Pages::PAGE_STEPS) {
      const uint32_t page = ring.take();
#pragma unroll
      for (int i = 0; i < smaller(Pages::PAGE_STEPS, M::STEPS - first); i++)
        held[first + i][0].load_shared(page + cta.lane() / 4 * 64, i * M::COLUMN_WARPS + part,
                                       cta.lane());
      ring.release(cta.lane());
    }
  }

  __device__ __forceinline__ void load(const Cta& cta, int step, OperandChunk (&x)[TILES]) const {
    const int chunk = step * M::COLUMN_WARPS + cta.warp() % M::COLUMN_WARPS;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) x[tile].load(rows[tile], chunk, cta.lane());
  }

  // Steps come one after the other; `ahead` is at the page of the last one.
  static __device__ __forceinline__ void bring(const Cta& cta, Ring& ahead, int step,
                                               Chunk<M::FORMAT>& chunk) {
    const int in_page = step % M::PAGE_STEPS;
    if (in_page == 0) {
      if (step > 0) ahead.next();
      ahead.take();
    }
    chunk.load(ahead.page() + in_page * M::STEP_BYTES + cta.warp() * M::CHUNK_BYTES, cta.lane());
  }

  __device__ __forceinline__ void unit(const Cta& cta, Ring& ring, float (&acc)[TILES][4]) const {
    // A chunk is brought while the one before is multiplied.
    Ring ahead = ring;
    Chunk<M::FORMAT> chunk;
    bring(cta, ahead, 0, chunk);
#pragma unroll(HELD ? M::STEPS : 1)
    for (int step = 0; step < M::STEPS; step++) {
      OperandChunk x[TILES];
      if constexpr (!HELD) load(cta, step, x);
      Chunk<M::FORMAT> next = chunk;
      if (step + 1 < M::STEPS) bring(cta, ahead, step + 1, next);
      if constexpr (HELD)
        chunk.multiply(acc, held[step]);
      else
        chunk.multiply(acc, x);
      chunk = next;
      if (step % M::PAGE_STEPS == M::PAGE_STEPS - 1 || step == M::STEPS - 1)
        ring.release(cta.lane());
    }
  }
};

// The weights that a warp multiplies next, a page of them: registers are the ring's fourth page,
// and while an operand is waited for they are free.
template <class M>
struct WeightsAhead {
  // A step's weights always have the same registers.
  static constexpr int PAGE_STEPS = smaller(M::PAGE_STEPS, M::STEPS);
  static constexpr int COUNT = M::STEPS % PAGE_STEPS == 0 ? PAGE_STEPS : 1;
  Chunk<M::FORMAT> chunks[COUNT];

  __device__ __forceinline__ WeightsAhead(const Cta& cta, Ring& ring) {
#pragma unroll
    for (int step = 0; step < COUNT; step++) bring(cta, ring, step);
  }

  // Those of a unit's step. Behind a page's last one it goes back.
  __device__ __forceinline__ void bring(const Cta& cta, Ring& ring, int step) {
    const int in_page = step % PAGE_STEPS;
    if (in_page == 0) ring.take();
    chunks[step % COUNT].load(
        ring.page() + in_page * M::STEP_BYTES + cta.warp() * M::CHUNK_BYTES, cta.lane());
    if (in_page == PAGE_STEPS - 1 || step == M::STEPS - 1) ring.release(cta.lane());
  }

  // Multiplies a unit with its operand. The first weights of another one are brought, if there are
  // `more`.
  template <class Held>
  __device__ __forceinline__ void unit(const Cta& cta, Ring& ring, const Held& held, bool more,
                                       float (&acc)[1][4]) {
#pragma unroll
    for (int step = 0; step < M::STEPS; step++) {
      chunks[step % COUNT].multiply(acc, held[step]);
      if (step + COUNT < M::STEPS || more) bring(cta, ring, (step + COUNT) % M::STEPS);
    }
  }
};

// Multiplies this CTA's units, from `first` on. With one tile the adders put the sums to use (they
// call `add`), with more the consumers do: `use(unit, row tile, tile, lane, values)`. `meet` waits
// until the operand is written. `prepare` is called by all consumers while it is on its way; what
// it leaves in shared memory, `use` sees.
template <class M, int TILES, class RowOf, class Meet, class Prepare, class Use>
__device__ __forceinline__ void multiply(const Cta& cta, Ring& ring, Sums& sums, uint64_t operand,
                                         int row_bytes, int first, RowOf row_of, Meet meet,
                                         Prepare prepare, Use use) {
  if (first >= M::UNITS) return meet();
  // `product(unit, acc)` multiplies one unit.
  const auto walk = [&](auto product) {
    prepare(cta);
    cta.sync();
#pragma unroll 1
    for (int unit = first; unit < M::UNITS; unit += M::CTAS) {
      float acc[TILES][4] = {};
      product(unit, acc);
      if constexpr (TILES == 1)
        sums.put(cta, acc[0]);
      else
        add_warps<M>(cta, sums.memory, acc,
                     [&](int row_tile, int tile, int lane, const float4& values) {
                       use(unit, row_tile, tile, lane, values);
                     });
    }
    if constexpr (TILES == 1) sums.drain(cta);
  };
  if constexpr (TILES == 1 && IS_HELD<M>) {
    WeightsAhead<M> ahead(cta, ring);
    meet();
    const Multiplier<M, 1, true> multiplier(cta, operand, row_bytes, row_of);
    walk([&](int unit, float(&acc)[1][4]) {
      ahead.unit(cta, ring, multiplier.held, unit + M::CTAS < M::UNITS, acc);
    });
  } else {
    meet();
    const Multiplier<M, TILES, false> multiplier(cta, operand, row_bytes, row_of);
    walk([&](int, float(&acc)[TILES][4]) { multiplier.unit(cta, ring, acc); });
  }
}

// Adders: the other half of `multiply`. What `use` needs from afar it asks for before the sums are
// there, unless only they tell that others have written it: `early` says so.
template <class M, class Use>
__device__ __forceinline__ void add(const Cta& cta, Sums& sums, int first, int tiles, Use use,
                                    bool early = true) {
  if (tiles > 1) return;
#pragma unroll 1
  for (int unit = first; unit < M::UNITS; unit += M::CTAS) {
    if constexpr (requires { use.ahead(unit, 0, 0); }) {
      if (!early) sums.wait();
      const auto ahead = use.ahead(unit, 0, cta.lane());
      sums.take<M>(cta, [&](int, int tile, int lane, const float4& values) {
        use.store(unit, tile, lane, values, ahead);
      });
    } else {
      sums.take<M>(cta, [&](int row_tile, int tile, int lane, const float4& values) {
        use(unit, row_tile, tile, lane, values);
      });
    }
  }
}

}  // namespace kilotok
