// A feed-forward network of experts over one tile of tokens: gate and up, their activation, a grid
// barrier or a wait for these values, down. For more tokens see phase/gathered.cuh.
//
// Reads `normed`, 1 / rms and the routes; `gate_up` writes the inner operand, `down` writes
// `stream.part` of the owned rows. The experts of a token are added in ascending order, so the
// result does not depend on other tokens of the batch.
#pragma once

#include "kilotok/phase/dense.cuh"
#include "kilotok/phase/router.cuh"

namespace kilotok {

template <int KIND>
struct Moe {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr int TOP_K = F.top_k;
  using GateUp = GateUpMatrix<KIND>;
  using Down = DownMatrix<KIND>;
  // Whether the producer copies the operand of gate and up into the ring while the experts are
  // chosen.
  static constexpr bool OPERAND_IN_PAGES = IS_HELD<GateUp>;
  // A page of `down` has so many steps of so many experts: whole ones if it holds one for every
  // warp of a row tile. Otherwise it has a few steps of experts that warps take at the same time.
  static constexpr int WHOLE_ENTRIES = Down::PAGE_STEPS / Down::STEPS;
  static constexpr bool ARE_WHOLE = WHOLE_ENTRIES >= Down::COLUMN_WARPS;
  static constexpr int PAGE_ENTRIES =
      ARE_WHOLE ? WHOLE_ENTRIES
                : smaller(smaller(Down::COLUMN_WARPS, larger(TOP_K, 1)), Down::PAGE_STEPS);
  static constexpr int ENTRY_STEPS = smaller(Down::PAGE_STEPS / PAGE_ENTRIES, Down::STEPS);

  // Address of a row of the inner operand.
  static __device__ __forceinline__ char* inner_row(const Memory& memory, int row) {
    return at<char>(memory.expert_inner) + operand_row(row, EXPERT_INNER_BYTES);
  }
};

// Producer: waits until all CTAs have written the operand, which is the launch's `count`th.
__device__ __forceinline__ void wait_operand(const Cta& cta, uint32_t count) {
  cta.wait_count(Waits::Operand, Counter::Operands, count * GRID);
  ptx::other_proxy_fence();
}

// Producer: copies the operand of gate and up.
template <int KIND>
__device__ __forceinline__ void produce_operand(const Cta& cta, Ring& ring) {
  OperandPages<GateUpMatrix<KIND>>::produce(ring, at<const char>(cta.memory.normed));
}

// Units of gate and up that are assigned to each CTA beforehand, as many as the ring has pages.
// CTAs take the rest from a shared counter. The CTA that computes a unit does not affect its bits.
constexpr int OWN_UNITS = PAGE_COUNT;

// Producer: copies a unit of an entry's gate and up.
template <int KIND>
__device__ __forceinline__ void produce_unit(Ring& ring, uint64_t address, int expert, int unit) {
  using M = GateUpMatrix<KIND>;
  const char* from = at<const char>(address) + expert * M::BYTES +
                     static_cast<size_t>(unit % M::UNITS) * M::UNIT_BYTES;
#pragma unroll 1
  for (int step = 0; step < M::STEPS; step += M::PAGE_STEPS) {
    const int bytes = M::bytes_of(step, smaller(M::PAGE_STEPS, M::STEPS - step));
    ring.acquire(bytes, unit);
    ring.fetch(from + step * M::STEP_BYTES, 0, bytes);
    ring.next();
  }
}

// Producer: copies units of gate and up until none is left. `taken` is the number of requests by
// all CTAs before this network. A unit is requested before the one ahead of it is copied, because
// the answer takes as long as a copy.
template <int KIND>
__device__ __forceinline__ void produce_gate_up(const Cta& cta, Ring& ring, const Routes& routes,
                                                uint64_t address, uint32_t& taken) {
  using M = GateUpMatrix<KIND>;
  const int count = routes.count * M::UNITS;
  int unit = NO_UNIT;
#pragma unroll 1
  for (int next = 0;; next++) {
    const int own = cta.index() + next * GRID;
    const bool requests = next >= OWN_UNITS || own >= count;
    uint32_t answer = 0;
    if (requests) answer = ptx::add_relaxed(cta.counter(Counter::UnitsTaken), 1);
    if (next > 0) produce_unit<KIND>(ring, address, routes.experts[unit / M::UNITS], unit);
    unit = requests ? OWN_UNITS * GRID + static_cast<int>(answer - taken) : own;
    if (unit >= count) break;
  }
  ring.acquire(0, NO_UNIT);
  ring.next();
  // Each CTA makes one request that gets no unit.
  taken += larger(count - OWN_UNITS * GRID, 0) + GRID;
}

template <int KIND>
__device__ __forceinline__ void produce_down(Ring& ring, const Routes& routes,
                                             uint64_t address) {
  using N = Moe<KIND>;
  using M = typename N::Down;
  const int unit = ptx::cta_index();
  const int count = routes.count;
#pragma unroll 1
  for (int first = 0; first < count; first += N::PAGE_ENTRIES) {
    const int entries = smaller(N::PAGE_ENTRIES, count - first);
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step += N::ENTRY_STEPS) {
      const int bytes = M::bytes_of(step, smaller(N::ENTRY_STEPS, M::STEPS - step));
      ring.acquire(entries * bytes);
#pragma unroll 1
      for (int i = 0; i < entries; i++)
        ring.fetch(at<const char>(address) + routes.experts[first + i] * M::BYTES +
                       static_cast<size_t>(unit) * M::UNIT_BYTES + step * M::STEP_BYTES,
                   i * N::ENTRY_STEPS * M::STEP_BYTES, bytes);
      ring.next();
    }
  }
}

// Consumers: multiply gate and up of all experts.
template <int KIND>
__device__ __forceinline__ void gate_up(const Cta& cta, Ring& ring, Sums& sums) {
  using N = Moe<KIND>;
  using M = typename N::GateUp;
  const auto each_unit = [&](const auto& multiplier) {
#pragma unroll 1
    for (int unit = ring.wait_unit(); unit != NO_UNIT; unit = ring.wait_unit()) {
      float acc[1][4] = {};
      multiplier.unit(cta, ring, acc);
      sums.push(cta, acc[0], unit);
    }
    ring.release(cta.lane());
    const float nothing[4] = {};
    sums.push(cta, nothing, NO_UNIT);
  };
  using Multiply = Multiplier<M, IS_HELD<M>>;
  if constexpr (N::OPERAND_IN_PAGES)
    each_unit(Multiply(cta, ring));
  else
    each_unit(Multiply(cta, cta.memory.normed, NORMED_BYTES, [](int column) { return column; }));
  sums.drain(cta);
}

// Epilogue: writes the activated values times the expert's weight.
template <int KIND>
__device__ __forceinline__ void epilogue_gate_up(const Cta& cta, Sums& sums,
                                                 const StreamMemory& stream, const Routes& routes,
                                                 uint64_t biases, int token_count) {
  using N = Moe<KIND>;
  using M = typename N::GateUp;
#pragma unroll 1
  for (int unit = sums.wait(); unit != NO_UNIT; unit = sums.wait())
    sums.reduce<M>(cta, [&](int, int, int lane, const float4& v) {
      const int entry = unit / M::UNITS, row = unit % M::UNITS * 8 + lane / 4;
      if (row >= N::F.width) return;
      const float2 bias = gate_up_bias<KIND>(biases, routes.experts[entry], row);
#pragma unroll 1
      for (int j = 0; j < 2; j++) {
        const int token = lane % 4 * 2 + j;
        const int choice = token < token_count ? routes.choices[entry][token] : -1;
        if (choice < 0) continue;
        const float gate = j == 0 ? v.x : v.y, up = j == 0 ? v.z : v.w;
        publish_operand(N::inner_row(cta.memory, token * N::TOP_K + choice), row,
                        inner_value<KIND>(gate, up, stream.inverse_rms[token], bias) *
                            routes.weights[token][choice] * operand_scale(N::F.format));
      }
    });
  sums.release(cta);
}

// The inner operand as `down` reads it: in shared memory if it fits.
template <int KIND>
struct Inner {
  using N = Moe<KIND>;
  static constexpr int ROWS = TILE_TOKENS * N::TOP_K;
  static constexpr int ROW_BYTES = N::Down::COLUMNS_PADDED * 2;
  static constexpr int TILE_PIECES = TILE_TOKENS * ROW_BYTES / 16;
  // With one more tile of rows, for a row of zeros.
  static constexpr bool IN_SHARED = (N::TOP_K + 1) * TILE_PIECES * 16 <= SCRATCH_BYTES;

  const char* rows;
  uint32_t shared;

  // The place of a row: its byte offset in shared memory, otherwise its number. Row ROWS is zeros.
  static __host__ __device__ __forceinline__ uint16_t place(int row) {
    return IN_SHARED ? operand_row(row, ROW_BYTES) : row;
  }

  // Loads all rows; values are POLLED, or a barrier came before.
  template <bool POLLED>
  static __device__ __forceinline__ Inner fetch(const Cta& cta, SumMemory& scratch) {
    const Inner inner = {N::inner_row(cta.memory, 0), ptx::shared_address(scratch.scratch)};
    if constexpr (IN_SHARED) {
      constexpr int PIECES = N::TOP_K * TILE_PIECES, LOADS = ceil_div(PIECES, CONSUMERS);
      // Only a thread's last piece may lie beyond the end.
      const int last = smaller(cta.thread(), PIECES - 1 - (LOADS - 1) * CONSUMERS);
      const auto own = [&](int i) { return i < LOADS - 1 ? cta.thread() : last; };
      // Where rows are equally wide in memory, one address serves all of a thread's pieces.
      const auto place = [&](int i) {
        const char* rows = inner.rows;
        if constexpr (EXPERT_INNER_BYTES == ROW_BYTES)
          return rows + own(i) * 16 + i * (CONSUMERS * 16);
        const int piece = own(i) + i * CONSUMERS;
        return rows + piece / TILE_PIECES * (TILE_TOKENS * EXPERT_INNER_BYTES) +
               piece % TILE_PIECES * 16;
      };
      uint4* to = reinterpret_cast<uint4*>(scratch.scratch);
      uint4 v[LOADS];
      // Rows of tokens that the batch does not have are never EMPTY: they hold zeros at first, then
      // values of a larger batch, which wrote all that it had reset.
      poll<POLLED>([&] {
        uint32_t missing = 0;
#pragma unroll
        for (int i = 0; i < LOADS; i++) v[i] = ptx::load_l2(place(i));
#pragma unroll
        for (int i = 0; i < LOADS; i++) missing |= missing_halves(v[i]);
        return missing == 0;
      });
#pragma unroll
      for (int i = 0; i < LOADS; i++) (to + own(i))[i * CONSUMERS] = v[i];
#pragma unroll
      for (int i = 0; i < ceil_div(TILE_PIECES, CONSUMERS); i++)
        if (cta.thread() < TILE_PIECES - i * CONSUMERS)
          to[PIECES + i * CONSUMERS + cta.thread()] = make_uint4(0, 0, 0, 0);
      cta.sync();
    }
    return inner;
  }

  // A lane's part of the operand of a column whose row has this place.
  __device__ __forceinline__ OperandChunk load(int place, int chunk, int lane) const {
    OperandChunk x;
    if constexpr (IN_SHARED) {
      x.load_shared(shared + place, chunk, lane);
    } else {
      const bool none = place == ROWS;
      x.load(rows + operand_row(none ? 0 : place, EXPERT_INNER_BYTES), chunk, lane);
      if (none) x.clear();
    }
    return x;
  }
};

// Resets the values that `down` polls. Called between two grid barriers.
template <int KIND>
__device__ __forceinline__ void reset_inner(const Cta& cta, int token_count) {
  using N = Moe<KIND>;
  const int first = cta.thread() + cta.index() * CONSUMERS;
#pragma unroll 1
  for (int i = first; i < token_count * N::TOP_K * N::F.width; i += GRID * CONSUMERS) {
    char* row = N::inner_row(cta.memory, i / N::F.width);
    *reinterpret_cast<uint16_t*>(row + operand_offset(i % N::F.width)) = EMPTY_HALF;
  }
}

// The experts of `down` are assigned to the warps of a row tile in turn, each with all its columns.
// An expert's product is summed over its columns in order, and the epilogue adds the products in
// ascending order of experts. The wide pass has the same order.
template <int KIND>
struct DownTurns {
  using N = Moe<KIND>;
  using M = typename N::Down;
  static constexpr int TURNS = M::COLUMN_WARPS;
  // Whether a warp loads weights ahead, and of how many experts: its own of a page that holds whole
  // experts.
  static constexpr bool AHEAD = M::STEPS == 1 && N::PAGE_ENTRIES % TURNS == 0;
  static constexpr int OWN = AHEAD ? N::PAGE_ENTRIES / TURNS : 1;
  // Products that are passed to the epilogue together, of those the ones that it reads at once, and
  // the number of buffers for them. The scratch memory holds the inner operand, so the buffers,
  // `[warps][lanes]` each, are in the stream's memory.
  static constexpr int TOGETHER = TURNS * OWN, PLACES = 2;
  static constexpr int AT_ONCE = TOGETHER % 4 == 0 && TURNS > 4 ? 4 : TOGETHER;
  static_assert(OWN <= PLACES, "they have room");

  template <class Stream>
  static __device__ __forceinline__ float4* place(Stream& stream, const Sums& sums, int i) {
    const int which = OWN == 1 ? sums.stage % 2 : i;
    if constexpr (PRODUCTS_APART)
      return stream.products[which];
    else
      return reinterpret_cast<float4*>(which == 0 ? stream.part[TILE_TOKENS]
                                                  : stream.residual[TILE_TOKENS]);
  }

  // Consumers: writes a warp's products to the next free buffer, rounded.
  static __device__ __forceinline__ void push(const Cta& cta, Sums& sums, StreamMemory& stream,
                                              const float (&products)[OWN][1][4]) {
    sums.wait_released<PLACES / OWN - 1>();
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      float v[4];
      round_product(products[i][0], v);
      place(stream, sums, i)[cta.warp() * 32 + cta.lane()] = make_float4(v[0], v[1], v[2], v[3]);
    }
    sums.written(cta);
  }
};

// Byte offset of a row tile's first chunk in a step of `down`.
template <class M>
__device__ __forceinline__ int row_tile_offset(const Cta& cta) {
  return cta.warp() / M::COLUMN_WARPS * (M::COLUMN_WARPS * M::CHUNK_BYTES);
}

// The weights of the experts of a page that a warp multiplies next, in registers. That frees the
// page in the ring, so that more weights arrive while the operand is loaded.
template <int KIND>
struct ExpertsAhead {
  using D = DownTurns<KIND>;
  using M = typename D::M;
  Chunk<M::FORMAT> chunks[D::OWN][D::TURNS];

  // Loads the weights of the next page. Those of experts that the page does not have are arbitrary.
  __device__ __forceinline__ void fetch(const Cta& cta, Ring& ring) {
    const uint32_t page =
        ring.wait() + cta.warp() % D::TURNS * M::STEP_BYTES + row_tile_offset<M>(cta);
#pragma unroll
    for (int i = 0; i < D::OWN; i++)
#pragma unroll
      for (int part = 0; part < D::TURNS; part++)
        chunks[i][part].load(page + i * D::TURNS * M::STEP_BYTES + part * M::CHUNK_BYTES,
                             cta.lane());
    ring.release(cta.lane());
  }
};

// Owners: the products of experts of which a page holds several for every warp.
template <int KIND>
__device__ __forceinline__ void down_ahead(const Cta& cta, Ring& ring, Sums& sums,
                                           StreamMemory& stream, const Routes& routes,
                                           const Inner<KIND>& inner, ExpertsAhead<KIND>& ahead) {
  using D = DownTurns<KIND>;
  const int count = routes.count, turn = cta.warp() % D::TURNS;
#pragma unroll 1
  for (int first = 0; first < count; first += D::TOGETHER) {
    float products[D::OWN][1][4] = {};
    int places[D::OWN];
#pragma unroll
    for (int i = 0; i < D::OWN; i++)
      places[i] = routes.places[cta.lane() / 4][first + i * D::TURNS + turn];
#pragma unroll
    for (int part = 0; part < D::M::COLUMN_CHUNKS; part++)
#pragma unroll
      for (int i = 0; i < D::OWN; i++) {
        const OperandChunk x[1] = {inner.load(places[i], part, cta.lane())};
        ahead.chunks[i][part].multiply(products[i], x);
      }
    D::push(cta, sums, stream, products);
    if (first + D::TOGETHER < count) ahead.fetch(cta, ring);
  }
}

// The operand of a warp's expert in registers, AHEAD chunks of it: they may come from L2.
template <int KIND>
struct OperandAhead {
  using M = DownMatrix<KIND>;
  // Whether all lanes have the row of the first token.
  static constexpr bool ONE_TOKEN = false;
  static constexpr int AHEAD = M::COLUMN_WARPS % 4 == 0 ? 4 : M::COLUMN_WARPS;
  const Inner<KIND>& inner;
  OperandChunk chunks[AHEAD][1] = {};

  __device__ __forceinline__ void begin(int place, int lane) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) chunks[i][0] = inner.load(place, i, lane);
  }

  // Multiplies a step of the expert's weights.
  __device__ __forceinline__ void multiply(float (&product)[1][4], uint32_t weights, int place,
                                           int step, int lane) {
#pragma unroll
    for (int part = 0; part < M::COLUMN_WARPS; part++) {
      if (!M::has_columns(step, part)) break;
      Chunk<M::FORMAT> chunk;
      chunk.load(weights + part * M::CHUNK_BYTES, lane);
      chunk.multiply(product, chunks[part % AHEAD]);
      // Beyond the last, the last again.
      const int later = smaller(step * M::COLUMN_WARPS + part + AHEAD, M::COLUMN_CHUNKS - 1);
      chunks[part % AHEAD][0] = inner.load(place, later, lane);
    }
  }
};

// The same where there is one token, whose inner operand is not in shared memory: all of a row is
// loaded at once, spread over the lanes of the warp. All columns are multiplied with it, but only
// the first is used.
template <int KIND, bool POLLED>
struct SpreadRow {
  using M = DownMatrix<KIND>;
  static constexpr bool ONE_TOKEN = true;
  // Four lanes hold a chunk. A set of chunks has some parts of all steps.
  static constexpr int STEPS = M::STEPS <= 2 ? M::STEPS : M::STEPS <= 4 ? 4 : 8;
  static constexpr int PARTS = smaller(32 / 4 / STEPS, M::COLUMN_WARPS);
  static constexpr int SETS = ceil_div(M::COLUMN_WARPS, PARTS);
  // Whether registers suffice for a row.
  static constexpr bool FITS = M::STEPS <= STEPS && SETS <= 6;
  const Inner<KIND>& inner;
  OperandChunk sets[SETS] = {};

  __device__ __forceinline__ void begin(int place, int lane) {
    const char* row = inner.rows + operand_row(place, EXPERT_INNER_BYTES);
    const int group = lane / 4, step = group / PARTS;
    poll<POLLED>([&] {
      bool missing = false;
#pragma unroll
      for (int set = 0; set < SETS; set++) {
        const int part = smaller(set * PARTS + group % PARTS, M::COLUMN_WARPS - 1);
        // Lanes without a chunk load the last one.
        const int chunk = smaller(step * M::COLUMN_WARPS + part, M::COLUMN_CHUNKS - 1);
        sets[set].load_l2(row, chunk, lane);
      }
#pragma unroll
      for (int set = 0; set < SETS; set++) missing |= is_missing(sets[set]);
      return !missing;
    });
  }

  // Multiplies a step of the expert's weights.
  __device__ __forceinline__ void multiply(float (&product)[1][4], uint32_t weights, int,
                                           int step, int lane) const {
#pragma unroll
    for (int part = 0; part < M::COLUMN_WARPS; part++) {
      if (!M::has_columns(step, part)) break;
      Chunk<M::FORMAT> chunk;
      chunk.load(weights + part * M::CHUNK_BYTES, lane);
      const int from = (step * PARTS + part % PARTS) * 4 + lane % 4;
      const OperandChunk x[1] = {sets[part / PARTS].of_lane(from)};
      chunk.multiply(product, x);
    }
  }
};

template <int KIND>
constexpr bool HAS_SPREAD_ROW =
    !Inner<KIND>::IN_SHARED && !DownTurns<KIND>::AHEAD && SpreadRow<KIND, true>::FITS;

// Whether values of the inner operand are polled for: if shared memory holds it, or registers that
// of one token.
template <int KIND>
__device__ __forceinline__ bool polls_inner(int token_count) {
  return Inner<KIND>::IN_SHARED || (HAS_SPREAD_ROW<KIND> && token_count == 1);
}

// Owners: the products of experts where a page holds a few, or a few steps of each.
template <int KIND, class Operand>
__device__ __forceinline__ void down_by_page(const Cta& cta, Ring& ring, Sums& sums,
                                             StreamMemory& stream, const Routes& routes,
                                             const Inner<KIND>& inner) {
  using D = DownTurns<KIND>;
  using M = typename D::M;
  constexpr int STEPS = D::N::ENTRY_STEPS, ENTRIES = D::N::PAGE_ENTRIES;
  const int count = routes.count, turn = cta.warp() % D::TURNS, lane = cta.lane();
  float product[1][1][4] = {};
  Operand operand = {inner};
#pragma unroll 1
  for (int first = 0; first < count; first += ENTRIES)
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step += STEPS) {
      const uint32_t page = ring.wait() + row_tile_offset<M>(cta);
#pragma unroll 1
      for (int i = (turn + D::TURNS - first % D::TURNS) % D::TURNS;
           i < ENTRIES && first + i < count; i += D::TURNS) {
        const int place = routes.places[Operand::ONE_TOKEN ? 0 : lane / 4][first + i];
        if (step == 0) operand.begin(place, lane);
#pragma unroll 1
        for (int j = 0; j < STEPS && step + j < M::STEPS; j++)
          operand.multiply(product[0], page + (i * STEPS + j) * M::STEP_BYTES, place, step + j,
                           lane);
        if (step + STEPS < M::STEPS) continue;
        D::push(cta, sums, stream, product);
#pragma unroll
        for (int k = 0; k < 4; k++) product[0][0][k] = 0;
      }
      ring.release(cta.lane());
    }
  // Warps without an expert in the last round.
  if (count % D::TURNS != 0 && turn >= count % D::TURNS) D::push(cta, sums, stream, product);
}

// Owners: the products of the experts, which the epilogue sums into `stream.part`.
template <int KIND, bool POLLED>
__device__ __forceinline__ void down(const Cta& cta, Ring& ring, Sums& sums, StreamMemory& stream,
                                     const Routes& routes, int token_count) {
  if constexpr (DownTurns<KIND>::AHEAD) {
    ExpertsAhead<KIND> ahead;
    ahead.fetch(cta, ring);
    const Inner<KIND> inner = Inner<KIND>::template fetch<POLLED>(cta, sums.memory);
    down_ahead<KIND>(cta, ring, sums, stream, routes, inner, ahead);
  } else {
    const Inner<KIND> inner = Inner<KIND>::template fetch<POLLED>(cta, sums.memory);
    if constexpr (HAS_SPREAD_ROW<KIND>)
      if (token_count == 1) {
        down_by_page<KIND, SpreadRow<KIND, POLLED>>(cta, ring, sums, stream, routes, inner);
        sums.drain(cta);
        return;
      }
    down_by_page<KIND, OperandAhead<KIND>>(cta, ring, sums, stream, routes, inner);
  }
  sums.drain(cta);
}

// The biases of down for an expert's rows g and g + 8, of F32 `[experts][HIDDEN]`. An expert's
// product already has the token's weight.
template <int KIND>
struct DownBias {
  static constexpr bool BIASED = FEED_FORWARDS[KIND].bias;
  float rows[2];

  DownBias() = default;
  __device__ __forceinline__ DownBias(uint64_t address, int expert, int column) {
    if constexpr (BIASED) {
      const float* from = at<const float>(address) + size_t{1} * expert * HIDDEN;
      rows[0] = from[smaller(column, HIDDEN - 1)];
      rows[1] = from[smaller(column + 8, HIDDEN - 1)];
    }
  }

  // Both passes add a bias to a product like this.
  static __device__ __forceinline__ float biased(float product, float weight, float bias) {
    return BIASED ? __fmaf_rn(weight, bias, product) : product;
  }
  // Products of two tokens, one after the other in each row.
  __device__ __forceinline__ void add(float4& products, const float (&weights)[2]) const {
    products.x = biased(products.x, weights[0], rows[0]);
    products.y = biased(products.y, weights[1], rows[0]);
    products.z = biased(products.z, weights[0], rows[1]);
    products.w = biased(products.w, weights[1], rows[1]);
  }
};

// The weight of an entry for a token; 0 if the token has not chosen it.
__device__ __forceinline__ float weight_of(const Routes& routes, int entry, int token) {
  const int choice = routes.choices[entry][token];
  return choice < 0 ? 0 : routes.weights[token][choice];
}

// Whether an epilogue warp has a row tile of an owner.
__device__ __forceinline__ bool has_row_tile(int epilogue_warp) {
  return OWNER_TILES == EPILOGUE_WARPS || epilogue_warp < OWNER_TILES;
}

// Epilogue of an owner: adds the products of the experts.
template <int KIND>
__device__ __forceinline__ void epilogue_down(const Cta& cta, Sums& sums, StreamMemory& stream,
                                              const Routes& routes, uint64_t biases) {
  using D = DownTurns<KIND>;
  using Bias = DownBias<KIND>;
  const int row_tile = cta.warp() - CONSUMER_WARPS - 1, count = routes.count;
  const int column = cta.index() * OWNER_ROWS + row_tile * 16 + cta.lane() / 4;
  float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 1
  for (int first = 0; first < count; first += D::TOGETHER) {
    if (!has_row_tile(row_tile)) {
      sums.wait();
      sums.release(cta);
      continue;
    }
#pragma unroll
    for (int begin = 0; begin < D::TOGETHER; begin += D::AT_ONCE) {
      const int entry = first + begin;
      // Loaded while the products are waited for.
      Bias own[D::AT_ONCE];
      if constexpr (Bias::BIASED)
#pragma unroll
        for (int i = 0; i < D::AT_ONCE; i++)
          own[i] = Bias(biases, routes.experts[smaller(entry + i, count - 1)], column);
      if (begin == 0) sums.wait();
      float4 products[D::AT_ONCE];
#pragma unroll
      for (int i = 0; i < D::AT_ONCE; i++) {
        const int warp = row_tile * D::TURNS + (begin + i) % D::TURNS;
        products[i] = D::place(stream, sums, (begin + i) / D::TURNS)[warp * 32 + cta.lane()];
      }
#pragma unroll
      for (int i = 0; i < D::AT_ONCE; i++) {
        if (entry + i >= count) break;
        if constexpr (Bias::BIASED) {
          const int token = cta.lane() % 4 * 2;
          own[i].add(products[i], {weight_of(routes, entry + i, token),
                                   weight_of(routes, entry + i, token + 1)});
        }
        total.x += products[i].x;
        total.y += products[i].y;
        total.z += products[i].z;
        total.w += products[i].w;
      }
    }
    if (first + D::TOGETHER >= count) StorePart{stream}(0, row_tile, 0, cta.lane(), total);
    sums.release(cta);
  }
}

}  // namespace kilotok
