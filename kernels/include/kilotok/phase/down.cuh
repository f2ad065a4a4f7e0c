// Down of experts over one tile of tokens: an owner multiplies its rows of every chosen expert with
// the inner operand (phase/inner.cuh), and its epilogue adds the products to `stream.part`.
#pragma once

#include "kilotok/phase/experts.cuh"

namespace kilotok {

// The experts of `down` are assigned to the warps of a row tile in turn, each with all its columns.
// An expert's product is summed over its columns in order, and the epilogue adds the products in
// ascending order of experts. The wide pass has the same order.
template <int KIND>
struct DownTurns {
  using N = Moe<KIND>;
  using M = typename N::Down;
  static constexpr int TURNS = M::COLUMN_WARPS;
  // A warp's experts in a page, where pages hold whole experts for all warps.
  static constexpr int OWN = N::HAS_ALL_ROWS ? M::PAGE_STEPS / TURNS : 1;
  // TOGETHER products are passed to the epilogue together, in PLACES buffers, and it reads AT_ONCE
  // of them at once. The scratch memory holds the inner operand, so the buffers, `[warps][lanes]`
  // each, are in the stream's memory.
  static constexpr int TOGETHER = TURNS * OWN, PLACES = 2;
  static constexpr int AT_ONCE = TOGETHER % 4 == 0 && TURNS > 4 ? 4 : TOGETHER;
  static_assert(OWN <= PLACES, "they have room");

  template <class Stream>
  static __device__ __forceinline__ float4* place(Stream& stream, const Sums& sums, int i) {
    return product_place(stream, OWN == 1 ? sums.stage % 2 : i);
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

// A warp's weights of the next page's experts, in registers. That frees the page in the ring, so
// that more weights arrive while the operand is loaded.
template <int KIND>
struct ExpertsAhead {
  using D = DownTurns<KIND>;
  using M = typename D::M;
  Chunk<M::FORMAT> chunks[D::OWN][D::TURNS];

  // Loads the weights of the next page. Weights of experts that the page does not have are
  // arbitrary.
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

// Owners: multiply experts of which a page holds whole ones for every warp.
template <int KIND>
__device__ __forceinline__ void down_ahead(const Cta& cta, Ring& ring, Sums& sums,
                                           StreamMemory& stream, const Routes& routes,
                                           const AllRows<KIND>& inner, ExpertsAhead<KIND>& ahead) {
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

// The pages of down where rows are sorted: a few steps of several experts, which the warps of a row
// tile multiply at the same time. ROWS says where the rows of these experts are. Chunks without
// columns that lie between those of two row tiles are left out if they are many: that takes another
// copy for each expert, and the producer needs 0.1 us to begin a copy.
template <class ROWS>
struct DownPages {
  using M = typename ROWS::M;
  using Routes = typename ROWS::Routes;
  static constexpr int ENTRIES = smaller(M::COLUMN_WARPS, M::PAGE_STEPS);
  static constexpr bool IS_COMPACT = 4 * M::PADDING_CHUNKS > M::COLUMN_CHUNKS;
  static constexpr int LEFT_OUT = IS_COMPACT ? M::PADDING_CHUNKS : 0;
  static constexpr int LEFT_OUT_BYTES = LEFT_OUT * M::CHUNK_BYTES;
  static constexpr int ENTRY_BYTES = M::UNIT_BYTES - M::ROW_TILES * LEFT_OUT_BYTES;

  const Routes& routes;
  bool rows_in_ring;
  // The most experts of a page, and steps of each.
  int entries, steps;

  __device__ __forceinline__ DownPages(const Routes& given, int token_count)
      : routes(given), rows_in_ring(ROWS::in_ring(token_count)) {
    constexpr int TOP_K = ROUTES_MAX / TILE_TOKENS;
    entries = rows_in_ring ? ENTRIES : smaller(ENTRIES, TOP_K);
    const int most = rows_in_ring ? smaller(ROWS::STEPS, M::STEPS) : M::STEPS;
    const bool whole = most == M::STEPS && entries * ENTRY_BYTES <= PAGE_BYTES;
    steps = whole ? M::STEPS : smaller(larger(M::PAGE_STEPS / entries, 1), most);
  }

  __device__ __forceinline__ int first_row(int entry) const {
    return ROWS::first_row(routes, entry);
  }
  // The end of the entries that share pages with `first`.
  __device__ __forceinline__ int end(int first) const {
    const int most = smaller(entries, routes.count - first), row = first_row(first);
    int end = first + 1;
#pragma unroll
    for (int i = 2; i <= ENTRIES; i++) {
      const int rows = first_row(smaller(first + i, routes.count)) - row;
      end += i <= most && (!rows_in_ring || has_room(i, rows));
    }
    return end;
  }
  __device__ __forceinline__ int row_count(int first, int end) const {
    return first_row(end) - first_row(first);
  }
  __device__ __forceinline__ int steps_from(int step) const {
    return smaller(steps, M::STEPS - step);
  }
  // Chunks with columns of a row tile in a step, and chunks from one row tile to the next.
  static __device__ __forceinline__ int columns_of(int step) {
    return M::COLUMN_WARPS - (step == M::STEPS - 1 ? M::PADDING_CHUNKS : 0);
  }
  static __device__ __forceinline__ int tile_chunks(int step) {
    return M::COLUMN_WARPS - (step == M::STEPS - 1 ? LEFT_OUT : 0);
  }
  // From one entry to the next in a page.
  __device__ __forceinline__ int entry_bytes(int step) const {
    const int count = steps_from(step);
    const bool last = step + count == M::STEPS;
    return count * M::STEP_BYTES - (last ? M::ROW_TILES * LEFT_OUT_BYTES : 0);
  }

 private:
  __device__ __forceinline__ bool has_room(int count, int rows) const {
    const int bytes = rows * steps * ROWS::ROW_BYTES;
    if constexpr (ROWS::IN_PAGE)
      return count * entry_bytes(0) + bytes <= PAGE_BYTES;
    else
      return bytes <= ROWS::BYTES;
  }
};

// Producer of an owner: a page's weights, and its rows.
template <class ROWS>
struct DownProducer {
  using P = DownPages<ROWS>;
  using M = typename P::M;
  const Memory& memory;
  const P& pages;
  const char* weights;
  uint32_t scratch;
  int first = 0, end, step = 0;

  __device__ __forceinline__ DownProducer(const Memory& memory_of_rank, const P& all,
                                          uint64_t address, uint32_t rows)
      : memory(memory_of_rank),
        pages(all),
        weights(at<const char>(address) + static_cast<size_t>(ptx::cta_index()) * M::UNIT_BYTES),
        scratch(rows),
        end(all.end(0)) {}

  __device__ __forceinline__ bool has_page() const { return first < pages.routes.count; }
  __device__ __forceinline__ void next() {
    step += pages.steps;
    if (step < M::STEPS) return;
    step = 0;
    first = end;
    if (has_page()) end = pages.end(first);
  }

  // All addresses are loaded first, so that their latencies overlap.
  __device__ __forceinline__ void fetch_weights(const Ring& ring) const {
    const int steps = pages.steps_from(step), stride = pages.entry_bytes(step);
    const int bytes = P::IS_COMPACT ? stride : M::bytes_of(step, steps), count = end - first;
    const int rows = pages.rows_in_ring ? pages.row_count(first, end) : 0;
    const char* from[P::ENTRIES];
#pragma unroll
    for (int i = 0; i < P::ENTRIES; i++)
      from[i] = weights + pages.routes.experts[smaller(first + i, end - 1)] * M::BYTES +
                step * M::STEP_BYTES;
    ring.acquire(count * bytes + rows * steps * ROWS::ROW_BYTES);
#pragma unroll
    for (int i = 0; i < P::ENTRIES; i++) {
      if (i >= count) break;
      if constexpr (P::IS_COMPACT)
        fetch_compact(ring, from[i], i * stride, steps);
      else
        ring.fetch(from[i], i * stride, bytes);
    }
  }

  __device__ __forceinline__ void fetch_rows(const Ring& ring) const {
    const int bytes = pages.row_count(first, end) * ROWS::ROW_BYTES;
    uint32_t to = ROWS::IN_PAGE ? ring.page() + (end - first) * pages.entry_bytes(step)
                                : scratch + ring.stage * (SCRATCH_BYTES / PAGE_COUNT);
#pragma unroll 1
    for (int i = 0; i < pages.steps_from(step); i++, to += bytes)
      ring.fetch_to(to, ROWS::run(memory, step + i, pages.first_row(first)), bytes);
  }

 private:
  // Row tiles of the last step are copied one by one, because chunks without columns lie between.
  __device__ __forceinline__ void fetch_compact(const Ring& ring, const char* from, int to,
                                              int steps) const {
    constexpr int TILE_BYTES = M::COLUMN_WARPS * M::CHUNK_BYTES;
    const bool splits = step + steps == M::STEPS;
    const int behind = splits ? (M::ROW_TILES - 1) * TILE_BYTES + P::LEFT_OUT_BYTES : 0;
    const int bytes = steps * M::STEP_BYTES - behind;
    ring.fetch(from, to, bytes);
    if (!splits) return;
#pragma unroll
    for (int tile = 1; tile < M::ROW_TILES; tile++)
      ring.fetch(from + bytes + P::LEFT_OUT_BYTES + (tile - 1) * TILE_BYTES,
                 to + bytes + (tile - 1) * (TILE_BYTES - P::LEFT_OUT_BYTES),
                 TILE_BYTES - P::LEFT_OUT_BYTES);
  }
};

// The numbers that select the counters of rows that come through the ring. All rows are the
// launch's `operand`th counted operand. If `first` is not 0, the rows of the first entries are also
// counted apart, for the `first`th time in this launch.
struct RowCounts {
  uint32_t operand, first;
};

// Producer of an owner: copies all weights, and the rows if they come through the ring. In that
// case the weights of the first pages are copied while gate and up still compute the rows.
template <class ROWS>
__device__ __forceinline__ void produce_sorted(const Cta& cta, Ring& ring, SumMemory& scratch,
                                               const typename ROWS::Routes& routes,
                                               uint64_t address, int token_count,
                                               const RowCounts& counts) {
  const DownPages<ROWS> pages(routes, token_count);
  DownProducer<ROWS> page(cta.memory, pages, address, ptx::shared_address(scratch.scratch));
  int opened = 0;
  // The end of the entries whose rows are there.
  int there = 0;
  if (pages.rows_in_ring) {
    const Ring last = ring.previous();
    DownProducer<ROWS> early = page;
    Ring ahead = ring;
#pragma unroll 1
    for (; opened < PAGE_COUNT && early.has_page(); opened++, early.next(), ahead.next())
      early.fetch_weights(ahead);
    if (counts.first > 0) {
      there = first_entries(routes.count);
      wait_first_rows(cta, counts.first);
      // The rows' place is free when the consumers have released the page that ended gate and up.
      last.wait_released();
    }
  }
#pragma unroll 1
  for (; page.has_page(); page.next(), ring.next(), opened--) {
    if (opened <= 0) page.fetch_weights(ring);
    if (!pages.rows_in_ring) continue;
    if (page.end > there) {
      wait_operand(cta, counts.operand);
      there = routes.count;
    }
    page.fetch_rows(ring);
  }
}

// The same for one tile of tokens, where the scratch memory is free while gate and up are
// multiplied: rows are copied as soon as they are there, those of the first pages before this CTA
// has multiplied its last units.
template <class ROWS>
__device__ __forceinline__ void produce_early_rows(const Cta& cta, Ring& ring, SumMemory& scratch,
                                                   const typename ROWS::Routes& routes,
                                                   uint64_t address, int token_count,
                                                   const RowCounts& counts) {
  const DownPages<ROWS> pages(routes, token_count);
  DownProducer<ROWS> page(cta.memory, pages, address, ptx::shared_address(scratch.scratch));
  if (!pages.rows_in_ring) {
#pragma unroll 1
    for (; page.has_page(); page.next(), ring.next()) page.fetch_weights(ring);
    return;
  }
  const int first = first_entries(routes.count);
  // Pages that have their weights and not yet their rows, and the end of the entries whose rows are
  // there.
  int opened = 0, there = 0;
  DownProducer<ROWS> next = page;
  Ring ahead = ring;
#pragma unroll 1
  while (page.has_page()) {
    // Weights of all pages are requested before rows of the first are waited for.
    const bool opens = opened == 0 || (page.first == 0 && opened < PAGE_COUNT);
    if (opened > 0 && page.end <= there) {
      page.fetch_rows(ring);
      page.next();
      ring.next();
      opened--;
    } else if (opens && next.has_page()) {
      next.fetch_weights(ahead);
      next.next();
      ahead.next();
      opened++;
      if (there == 0 && are_first_rows_there(cta, counts.first)) there = first;
    } else if (there == 0 && page.end <= first) {
      wait_first_rows(cta, counts.first);
      there = first;
    } else {
      wait_operand(cta, counts.operand);
      there = routes.count;
    }
  }
}

// Producer of an owner: copies the weights of all experts, and the rows as `produce_sorted` does.
template <int KIND>
__device__ __forceinline__ void produce_down(const Cta& cta, Ring& ring, SumMemory& scratch,
                                             const Routes& routes, uint64_t address,
                                             int token_count, const RowCounts& counts) {
  using M = DownMatrix<KIND>;
  if constexpr (Moe<KIND>::HAS_ALL_ROWS) {
    const char* weights =
        at<const char>(address) + static_cast<size_t>(cta.index()) * M::UNIT_BYTES;
#pragma unroll 1
    for (int first = 0; first < routes.count; first += M::PAGE_STEPS) {
      const int entries = smaller(M::PAGE_STEPS, routes.count - first);
      constexpr int BYTES = M::bytes_of(0, 1);
      ring.acquire(entries * BYTES);
#pragma unroll 1
      for (int i = 0; i < entries; i++)
        ring.fetch(weights + routes.experts[first + i] * M::BYTES, i * M::STEP_BYTES, BYTES);
      ring.next();
    }
  } else {
    using Rows = TileRows<KIND>;
    if constexpr (SUMS_APART<KIND>)
      produce_early_rows<Rows>(cta, ring, scratch, routes, address, token_count, counts);
    else
      produce_sorted<Rows>(cta, ring, scratch, routes, address, token_count, counts);
  }
}

// Multiplies `count` chunks of a step of a warp's expert. Several are loaded before the first
// product, and no branch lies between their products: products after the last column are dropped.
template <class M>
__device__ __forceinline__ void multiply_step(float (&product)[1][4], uint32_t weights,
                                              uint32_t row, int count, int lane) {
  constexpr int TOGETHER = M::COLUMN_WARPS % 3 == 0 ? 3 : 2;
  static_assert(M::COLUMN_WARPS % TOGETHER == 0, "whole runs");
#pragma unroll 1
  for (int first = 0; first < count; first += TOGETHER) {
    Chunk<M::FORMAT> chunks[TOGETHER];
    OperandChunk x[TOGETHER][1];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      chunks[i].load(weights + (first + i) * M::CHUNK_BYTES, lane);
      x[i][0].load_run(row, first + i, lane);
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const float before[4] = {product[0][0], product[0][1], product[0][2], product[0][3]};
      chunks[i].multiply(product, x[i]);
      if (i == 0 || M::PADDING_CHUNKS % TOGETHER == 0) continue;
#pragma unroll
      for (int k = 0; k < 4; k++)
        product[0][k] = first + i < count ? product[0][k] : before[k];
    }
  }
}

// Owners: multiply experts whose rows are sorted. `row_of(entry, column)` is the row that a column
// is multiplied with. `fetch(entry)` brings the row of a warp's entry to the scratch memory if rows
// do not come through the ring, and returns its address. `push(entry, product)` passes a product to
// the epilogue; for entry -1, which stands for none, it is zeros.
template <class ROWS, class RowOf, class Fetch, class Push>
__device__ __forceinline__ void down_sorted(const Cta& cta, Ring& ring, uint32_t scratch,
                                            const typename ROWS::Routes& routes, int token_count,
                                            RowOf row_of, Fetch fetch, Push push) {
  using M = typename ROWS::M;
  constexpr int TURNS = M::COLUMN_WARPS;
  const DownPages<ROWS> pages(routes, token_count);
  const int turn = cta.warp() % TURNS, row_tile = cta.warp() / TURNS, lane = cta.lane();
  float product[1][4] = {};
#pragma unroll 1
  for (int first = 0; first < routes.count;) {
    const int end = pages.end(first);
    const int own = first + (turn + TURNS - first % TURNS) % TURNS;
    const bool has = own < end;
    int bytes = 0, own_row = 0;
    if (pages.rows_in_ring) {
      bytes = pages.row_count(first, end) * ROWS::ROW_BYTES;
      own_row = (row_of(has ? own : first, lane / 4) - pages.first_row(first)) * ROWS::ROW_BYTES;
    } else if (has) {
      own_row = fetch(own);
      bytes = ROWS::ROW_BYTES;
    }
#pragma unroll 1
    for (int step = 0; step < M::STEPS; step += pages.steps) {
      const uint32_t page = ring.wait();
      const int entry_bytes = pages.entry_bytes(step);
      uint32_t rows = step * ROWS::ROW_BYTES;
      if (pages.rows_in_ring)
        rows = ROWS::IN_PAGE ? page + (end - first) * entry_bytes
                             : scratch + ring.stage * (SCRATCH_BYTES / PAGE_COUNT);
#pragma unroll 1
      for (int i = 0; has && i < pages.steps_from(step); i++) {
        const int count = pages.columns_of(step + i);
        multiply_step<M>(product,
                         page + (own - first) * entry_bytes + i * M::STEP_BYTES +
                             row_tile * pages.tile_chunks(step + i) * M::CHUNK_BYTES,
                         rows + own_row + i * bytes, count, lane);
      }
      ring.release(lane);
    }
    if (has) {
      push(own, product);
#pragma unroll
      for (int k = 0; k < 4; k++) product[0][k] = 0;
    }
    first = end;
  }
  // Warps without an expert in the last round pass zeros.
  const int rest = routes.count % TURNS;
  if (rest != 0 && turn >= rest) push(-1, product);
}

// Owners: multiply the experts. The epilogue sums the products into `stream.part`.
template <int KIND, bool POLLED>
__device__ __forceinline__ void down(const Cta& cta, Ring& ring, Sums& sums, StreamMemory& stream,
                                     const Routes& routes, int token_count) {
  if constexpr (Moe<KIND>::HAS_ALL_ROWS) {
    ExpertsAhead<KIND> ahead;
    ahead.fetch(cta, ring);
    const AllRows<KIND> inner = AllRows<KIND>::template fetch<POLLED>(cta, sums.memory);
    down_ahead<KIND>(cta, ring, sums, stream, routes, inner, ahead);
  } else {
    using R = SortedRows<KIND>;
    const uint32_t scratch = ptx::shared_address(sums.memory.scratch);
    down_sorted<TileRows<KIND>>(
        cta, ring, scratch, routes, token_count,
        [&](int entry, int column) { return sorted_row(routes, entry, column); },
        [&](int entry) {
          if constexpr (R::HAS_TOKEN) R::template fetch<POLLED>(cta, sums.memory, entry);
          return scratch + entry * (R::ROW_PIECES * 16);
        },
        [&](int entry, const float(&product)[1][4]) {
          // Columns of tokens that have not chosen the expert were multiplied with another token's
          // row.
          const uint32_t tokens =
              entry < 0 ? 0 : routes.sorted.tokens[entry] >> cta.lane() % 4 * 2;
          float products[1][1][4];
#pragma unroll
          for (int k = 0; k < 4; k++) products[0][0][k] = tokens >> k % 2 & 1 ? product[0][k] : 0;
          DownTurns<KIND>::push(cta, sums, stream, products);
        });
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

// Epilogue of an owner: adds the products of the experts, and passes the sums of a lane's rows to
// `use(row_tile, sums)`.
template <int KIND, class Use>
__device__ __forceinline__ void epilogue_down(const Cta& cta, Sums& sums, StreamMemory& stream,
                                              const Routes& routes, uint64_t biases, Use use) {
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
    if (first + D::TOGETHER >= count) use(row_tile, total);
    sums.release(cta);
  }
}

// The same, which leaves them in `stream.part`.
template <int KIND>
__device__ __forceinline__ void epilogue_down(const Cta& cta, Sums& sums, StreamMemory& stream,
                                              const Routes& routes, uint64_t biases) {
  epilogue_down<KIND>(cta, sums, stream, routes, biases, [&](int row_tile, const float4& total) {
    StorePart{stream}(0, row_tile, 0, cta.lane(), total);
  });
}

}  // namespace kilotok
