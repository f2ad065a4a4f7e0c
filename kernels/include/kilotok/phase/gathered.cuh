// A feed-forward network of experts over several tiles of tokens (a grouped GEMM): every expert's
// tokens are gathered, so that its weights are read once for every eight of them, whichever tiles
// they are in.
//
//   top_k_experts   each CTA chooses for other tokens, and writes its choices beside the scores; a
//                   grid barrier follows
//   gather_routes   every CTA sorts all choices by expert for itself
//   gate_up         multiplies an expert with the operands of its own tokens. The results are the
//                   *rows* of the inner operand, in ascending order of experts, then tokens
//   down            multiplies an expert with its rows, which come with its weights; the epilogue
//                   adds each product to its token's sum
//
// A token's experts are added in the same order as with one tile, so its bits are the same.
#pragma once

#include "kilotok/phase/down.cuh"

namespace kilotok {

static_assert(TOKENS_MAX <= 64, "two words name any tokens of a batch");

// An entry is an expert and up to eight of its tokens. An expert with more tokens has several
// entries.
constexpr int ENTRIES_MAX =
    smaller(GATHERED_ROWS, EXPERTS_MAX + GATHERED_ROWS / TILE_TOKENS);

struct GatheredRoutes {
  int count;
  uint16_t experts[ENTRIES_MAX];
  // An entry's first row; its rows end where the next entry's begin.
  uint16_t first_rows[ENTRIES_MAX + 1];
  uint8_t tokens[GATHERED_ROWS];
  float weights[GATHERED_ROWS];
};

// The number of tokens in a set that come before `token`.
__device__ __forceinline__ int count_before(const uint2& set, int token) {
  const uint32_t below = (1u << token % 32) - 1;
  return token < 32 ? __popc(set.x & below) : __popc(set.x) + __popc(set.y & below);
}

// Address of the part of a row of the inner operand that belongs to a step of `down`.
__device__ __forceinline__ char* gathered_row(const Memory& memory, int step, int row) {
  return at<char>(memory.expert_inner) + TILE_INNER_BYTES +
         static_cast<size_t>(step * GATHERED_ROWS + row) * GATHERED_ROW_BYTES;
}

// Each warp chooses for other tokens; tokens are spread over CTAs first. Called between two grid
// barriers.
template <int KIND>
__device__ __forceinline__ void top_k_experts(const Cta& cta, SumMemory& scratch,
                                               const float* bias, int token_count) {
  constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
  const int lane = cta.lane();
  float* weights = reinterpret_cast<float*>(scratch.scratch) + cta.warp() * TOP_K;
  uint16_t* experts = reinterpret_cast<uint16_t*>(reinterpret_cast<float*>(scratch.scratch) +
                                                  CONSUMER_WARPS * TOP_K) +
                      cta.warp() * TOP_K;
#pragma unroll 1
  for (int token = cta.index() + cta.warp() * GRID; token < token_count;
       token += CONSUMER_WARPS * GRID) {
    const Scores<KIND, false> scores(scores_of(cta.memory, token), bias, lane);
    top_k_of_token<KIND, false>(scores, experts, weights, lane, [](const auto&) {});
    if (lane < TOP_K) {
      uint32_t* to =
          reinterpret_cast<uint32_t*>(scores_of(cta.memory, token) + CHOSEN) + lane;
      ptx::store_l2(to, experts[lane]);
      ptx::store_l2(to + TOP_K_MAX, __float_as_uint(weights[lane]));
    }
    __syncwarp();
  }
}

// Scratch memory for sorting the choices by expert.
struct GatherScratch {
  uint2 sets[larger(EXPERTS_MAX, 1)];
  uint16_t first_rows[larger(EXPERTS_MAX, 1)];
  // For the experts of each warp: the number of rows plus ENTRY times the number of entries.
  uint32_t counts[CONSUMER_WARPS];
};
static_assert(sizeof(GatherScratch) <= SCRATCH_BYTES, "it fits the sums' place");
constexpr uint32_t ENTRY = 1 << 16;

// The choices that a thread sorts.
template <int KIND>
struct Choices {
  static constexpr int TOP_K = FEED_FORWARDS[KIND].top_k;
  static constexpr int EACH = ceil_div(TOKENS_MAX * TOP_K, CONSUMERS);
  int count, thread;
  uint32_t experts[EACH];
  float weights[EACH];

  __device__ __forceinline__ Choices(const Cta& cta, int token_count)
      : count(token_count * TOP_K), thread(cta.thread()) {
    const float* scores = at<const float>(cta.memory.router_scores);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      // Beyond the last choice, the last one again.
      const int choice = smaller(thread + i * CONSUMERS, count - 1);
      const float* chosen = scores + choice / TOP_K * SCORES_EACH + CHOSEN + choice % TOP_K;
      experts[i] = __float_as_uint(ptx::load_l2(chosen));
      weights[i] = ptx::load_l2(chosen + TOP_K_MAX);
    }
  }

  __device__ __forceinline__ bool has(int i) const { return thread + i * CONSUMERS < count; }
  __device__ __forceinline__ int token(int i) const { return (thread + i * CONSUMERS) / TOP_K; }
};

// Writes the entries of one expert. `before` counts the rows and entries of lower experts.
template <int KIND>
__device__ __forceinline__ void write_entries(GatheredRoutes& routes, GatherScratch& scratch,
                                              int expert, uint32_t before, int row_count) {
  const int row = before % ENTRY;
  int entry = before / ENTRY;
  scratch.first_rows[expert] = row;
  for (int i = 0; i < row_count; i += TILE_TOKENS, entry++) {
    routes.experts[entry] = expert;
    routes.first_rows[entry] = row + i;
  }
  if (expert != FEED_FORWARDS[KIND].experts - 1) return;
  routes.count = entry;
  routes.first_rows[entry] = row + row_count;
}

// Sorts all choices by expert, then token (the permutation of the gathered GEMM). Every CTA
// computes the same.
template <int KIND>
__device__ __forceinline__ void gather_routes(const Cta& cta, GatheredRoutes& routes,
                                              SumMemory& memory, StreamMemory& stream,
                                              int token_count) {
  constexpr int EXPERTS = FEED_FORWARDS[KIND].experts;
  // Neighbouring experts that one thread counts.
  constexpr int EACH = ceil_div(EXPERTS, CONSUMERS);
  GatherScratch& scratch = *reinterpret_cast<GatherScratch*>(memory.scratch);
  const Choices<KIND> choices(cta, token_count);
  for (int i = cta.thread(); i < EXPERTS; i += CONSUMERS) scratch.sets[i] = make_uint2(0, 0);
  for (int i = cta.thread(); i < token_count; i += CONSUMERS)
    stream.inverse_rms[i] = ptx::load_l2(at<const float>(cta.memory.router_scores) +
                                         i * SCORES_EACH + EXPERTS);
  cta.sync();
#pragma unroll
  for (int i = 0; i < Choices<KIND>::EACH; i++) {
    if (!choices.has(i)) continue;
    uint2& set = scratch.sets[choices.experts[i]];
    const int token = choices.token(i);
    atomicOr(token < 32 ? &set.x : &set.y, 1u << token % 32);
  }
  cta.sync();
  const int first = cta.thread() * EACH;
  uint32_t counts[EACH], own = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const uint2 set = first + i < EXPERTS ? scratch.sets[first + i] : make_uint2(0, 0);
    const int rows = __popc(set.x) + __popc(set.y);
    counts[i] = rows + ceil_div(rows, TILE_TOKENS) * ENTRY;
    own += counts[i];
  }
  uint32_t of_warp, before = sum_before(own, cta.lane(), of_warp);
  if (cta.lane() == 0) scratch.counts[cta.warp()] = of_warp;
  cta.sync();
  for (int warp = 0; warp < cta.warp(); warp++) before += scratch.counts[warp];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    if (first + i < EXPERTS)
      write_entries<KIND>(routes, scratch, first + i, before, counts[i] % ENTRY);
    before += counts[i];
  }
  cta.sync();
#pragma unroll
  for (int i = 0; i < Choices<KIND>::EACH; i++) {
    if (!choices.has(i)) continue;
    const uint32_t expert = choices.experts[i];
    const int token = choices.token(i);
    const int row = scratch.first_rows[expert] + count_before(scratch.sets[expert], token);
    routes.tokens[row] = token;
    routes.weights[row] = choices.weights[i];
  }
  cta.sync();
}

// Units of an entry that a CTA takes at a time, because each entry has another operand.
constexpr int ENTRY_UNITS = 2;

// Producer: copies units of gate and up until none is left. The first ones of each CTA are assigned
// beforehand, the rest is taken from a shared counter. `taken` is the number of requests by all
// CTAs before this network.
template <int KIND>
__device__ __forceinline__ void produce_gate_up(const Cta& cta, Ring& ring,
                                                const GatheredRoutes& routes, uint64_t address,
                                                uint32_t& taken) {
  using M = GateUpMatrix<KIND>;
  constexpr int EACH = ceil_div(M::UNITS, ENTRY_UNITS);
  const int count = routes.count * EACH;
#pragma unroll 1
  for (int work = cta.index(); work < count;) {
    const int entry = work / EACH, first = work % EACH * ENTRY_UNITS;
#pragma unroll 1
    for (int unit = first; unit < smaller(first + ENTRY_UNITS, M::UNITS); unit++)
      produce_unit<KIND>(ring, address, routes.experts[entry], entry * M::UNITS + unit);
    work = GRID + static_cast<int>(ptx::add_relaxed(cta.counter(Counter::UnitsTaken), 1) - taken);
  }
  ring.acquire(0, NO_UNIT);
  ring.next();
  // The units requested from the counter, and one request without a unit for each CTA that began
  // with one.
  taken += count;
}

// Consumers: multiply gate and up of all experts.
template <int KIND>
__device__ __forceinline__ void gate_up(const Cta& cta, Ring& ring, Sums& sums,
                                        const GatheredRoutes& routes) {
  using M = GateUpMatrix<KIND>;
  int unit = ring.wait_unit();
#pragma unroll 1
  while (unit != NO_UNIT) {
    const int entry = unit / M::UNITS, first = routes.first_rows[entry];
    const int last = routes.first_rows[entry + 1] - 1;
    // Products of columns without a token are not used.
    const Multiplier<M, IS_HELD<M>> multiplier(
        cta, cta.memory.normed, NORMED_BYTES,
        [&](int column) { return routes.tokens[smaller(first + column, last)]; });
#pragma unroll 1
    do {
      float acc[1][4] = {};
      multiplier.unit(cta, ring, acc);
      sums.push(cta, acc[0], unit);
      unit = ring.wait_unit();
    } while (unit != NO_UNIT && unit / M::UNITS == entry);
  }
  ring.release(cta.lane());
  const float nothing[4] = {};
  sums.push(cta, nothing, NO_UNIT);
  sums.drain(cta);
}

// Epilogue: writes the activated values times the expert's weight.
template <int KIND>
__device__ __forceinline__ void epilogue_gate_up(const Cta& cta, Sums& sums,
                                                 const StreamMemory& stream,
                                                 const GatheredRoutes& routes, uint64_t biases) {
  using M = GateUpMatrix<KIND>;
  constexpr FeedForward F = FEED_FORWARDS[KIND];
#pragma unroll 1
  for (int unit = sums.wait(); unit != NO_UNIT; unit = sums.wait())
    sums.reduce<M>(cta, [&](int, int, int lane, const float4& v) {
      const int entry = unit / M::UNITS, value = unit % M::UNITS * 8 + lane / 4;
      if (value >= F.width) return;
      const float2 bias = gate_up_bias<KIND>(biases, routes.experts[entry], value);
      constexpr int STEP = GATHERED_STEP_BYTES / 2;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int row = routes.first_rows[entry] + lane % 4 * 2 + j;
        if (row >= routes.first_rows[entry + 1]) continue;
        const float scale = stream.inverse_rms[routes.tokens[row]];
        const float gate = j == 0 ? v.x : v.y, up = j == 0 ? v.z : v.w;
        char* to = gathered_row(cta.memory, value / STEP, row) + value % STEP / 32 * 64;
        *reinterpret_cast<uint16_t*>(to + half_offset(value)) = ptx::to_bf16(
            inner_value<KIND>(gate, up, scale, bias) * routes.weights[row] *
            operand_scale(F.format));
      }
    });
  sums.release(cta);
}

// Rows that are sorted for several tiles of tokens: they follow the weights in a page.
template <int KIND>
struct GatheredRows {
  using M = DownMatrix<KIND>;
  using Routes = GatheredRoutes;
  static constexpr bool IN_PAGE = true;
  static constexpr int ROW_BYTES = GATHERED_ROW_BYTES;
  // Steps of an entry in a page with all their rows: more would leave room for few entries.
  static constexpr int EACH_BYTES = M::STEP_BYTES + TILE_TOKENS * ROW_BYTES;
  static constexpr int STEPS = M::STEPS == 2 && 2 * EACH_BYTES <= PAGE_BYTES ? 2 : 1;
  static_assert(EACH_BYTES <= PAGE_BYTES, "an entry fits");

  static __device__ __forceinline__ bool in_ring(int) { return true; }
  static __device__ __forceinline__ const char* run(const Memory& memory, int step, int row) {
    return gathered_row(memory, step, row);
  }
  static __device__ __forceinline__ int first_row(const Routes& routes, int entry) {
    return routes.first_rows[entry];
  }
};

// The pages of down where an entry has one step, and few warps share the columns: registers hold a
// whole entry's weights. A page has the weights of as many entries as fit with all their rows,
// followed by these rows.
template <int KIND>
struct WholePages {
  using M = DownMatrix<KIND>;
  static constexpr bool ARE_USED = M::STEPS == 1 && M::COLUMN_WARPS <= 4;
  static constexpr int ENTRIES = PAGE_BYTES / (M::STEP_BYTES + TILE_TOKENS * GATHERED_ROW_BYTES);
  static constexpr int ROWS_AT = ENTRIES * M::STEP_BYTES;
  static_assert(ENTRIES > 0, "an entry fits a page");
  const GatheredRoutes& routes;

  __device__ __forceinline__ int count() const { return ceil_div(routes.count, ENTRIES); }
  __device__ __forceinline__ int entries_of(int page) const {
    return smaller(routes.count - page * ENTRIES, ENTRIES);
  }
  // Entries beyond the last one have no rows.
  __device__ __forceinline__ int entry(int page, int place) const {
    return smaller(page * ENTRIES + place, routes.count);
  }
  __device__ __forceinline__ int first_row(int page, int place) const {
    return routes.first_rows[entry(page, place)];
  }
};

// Producer of an owner: copies a page's weights. All addresses are loaded first, so that their
// latencies overlap.
template <int KIND>
__device__ __forceinline__ void open_down(const Cta& cta, const Ring& ring,
                                          const WholePages<KIND>& pages, uint64_t address,
                                          int page) {
  using P = WholePages<KIND>;
  using M = typename P::M;
  const int entries = pages.entries_of(page);
  const char* from[P::ENTRIES];
#pragma unroll
  for (int place = 0; place < P::ENTRIES; place++)
    from[place] = at<const char>(address) +
                  pages.routes.experts[smaller(pages.entry(page, place), ENTRIES_MAX - 1)] *
                      M::BYTES +
                  static_cast<size_t>(cta.index()) * M::UNIT_BYTES;
  const int rows = pages.first_row(page, P::ENTRIES) - pages.first_row(page, 0);
  ring.acquire(entries * M::STEP_BYTES + rows * GATHERED_ROW_BYTES);
#pragma unroll
  for (int place = 0; place < P::ENTRIES; place++)
    if (place < entries) ring.fetch(from[place], place * M::STEP_BYTES, M::STEP_BYTES);
}

// Copies the rows after them.
template <int KIND>
__device__ __forceinline__ void fetch_rows(const Cta& cta, const Ring& ring,
                                           const WholePages<KIND>& pages, int page) {
  using P = WholePages<KIND>;
  const int first = pages.first_row(page, 0), end = pages.first_row(page, P::ENTRIES);
  ring.fetch_operand(gathered_row(cta.memory, 0, first), P::ROWS_AT,
                     (end - first) * GATHERED_ROW_BYTES);
}

// Producer of an owner: the weights of the first pages are copied while gate and up still compute
// the rows, which are the launch's `count`th operand as `wait_operand` counts.
template <int KIND>
__device__ __forceinline__ void produce_down(const Cta& cta, Ring& ring, SumMemory& scratch,
                                             const GatheredRoutes& routes, uint64_t address,
                                             uint32_t count) {
  if constexpr (!WholePages<KIND>::ARE_USED) {
    produce_sorted<GatheredRows<KIND>>(cta, ring, scratch, routes, address, TOKENS_MAX, {count, 0});
    return;
  }
  const WholePages<KIND> pages = {routes};
  const int opened = smaller(PAGE_COUNT, pages.count());
  Ring ahead = ring;
#pragma unroll 1
  for (int page = 0; page < opened; page++, ahead.next())
    open_down<KIND>(cta, ahead, pages, address, page);
  wait_operand(cta, count);
#pragma unroll 1
  for (int page = 0; page < pages.count(); page++, ring.next()) {
    if (page >= opened) open_down<KIND>(cta, ring, pages, address, page);
    fetch_rows<KIND>(cta, ring, pages, page);
  }
}

// A warp's entry of a page of whole entries. In each page a warp has one at most.
template <int KIND>
struct OwnEntry {
  using P = WholePages<KIND>;
  using D = DownTurns<KIND>;
  using M = typename P::M;
  bool there;
  // Its index in the page, and its first row among the page's rows.
  int place, row;
  Chunk<M::FORMAT> chunks[D::TURNS];
  OperandChunk x[D::TURNS][1];

  __device__ __forceinline__ OwnEntry(const Cta& cta, const P& pages, int page) {
    static_assert(P::ENTRIES <= D::TURNS, "no more are its turn");
    const int turn = cta.warp() % D::TURNS;
    place = (turn + D::TURNS - page * P::ENTRIES % D::TURNS) % D::TURNS;
    there = place < pages.entries_of(page);
    place = smaller(place, P::ENTRIES - 1);
    row = pages.first_row(page, place) - pages.first_row(page, 0);
  }

  // Rows that an entry does not have are arbitrary bytes; their products are not used.
  __device__ __forceinline__ void load(const Cta& cta, uint32_t page) {
    const int lane = cta.lane();
#pragma unroll
    for (int part = 0; part < D::TURNS; part++) {
      chunks[part].load(page + place * M::STEP_BYTES + row_tile_offset<M>(cta) +
                            part * M::CHUNK_BYTES, lane);
      x[part][0].load_run(page + P::ROWS_AT + (row + lane / 4) * GATHERED_ROW_BYTES, part, lane);
    }
  }
};

// Owners: multiply entries with one step.
template <int KIND>
__device__ __forceinline__ void down_whole(const Cta& cta, Ring& ring, Sums& sums,
                                           const WholePages<KIND>& pages) {
  using D = DownTurns<KIND>;
  const int page_count = pages.count();
#pragma unroll 1
  for (int page = 0; page < page_count; page++) {
    OwnEntry<KIND> entry(cta, pages, page);
    entry.load(cta, ring.wait());
    ring.release(cta.lane());
    if (!entry.there) continue;
    float product[1][4] = {};
#pragma unroll
    for (int part = 0; part < D::TURNS; part++)
      entry.chunks[part].multiply(product, entry.x[part]);
    float rounded[4];
    round_product(product[0], rounded);
    sums.push(cta, rounded);
  }
  // Warps without an entry in the last round pass zeros.
  const int rest = pages.routes.count % D::TURNS;
  const float nothing[4] = {};
  if (rest != 0 && cta.warp() % D::TURNS >= rest) sums.push(cta, nothing);
}

// Owners: multiply the entries, which are assigned to the warps of a row tile in turn as in
// phase/down.cuh. The epilogue adds them to `stream.part`, which begins as zeros.
template <int KIND>
__device__ __forceinline__ void down(const Cta& cta, Ring& ring, Sums& sums, StreamMemory& stream,
                                     const GatheredRoutes& routes) {
  for (int i = cta.thread(); i < TOKENS_MAX * OWNER_ROWS; i += CONSUMERS)
    reinterpret_cast<float*>(stream.part)[i] = 0;
  if constexpr (WholePages<KIND>::ARE_USED)
    down_whole<KIND>(cta, ring, sums, {routes});
  else
    down_sorted<GatheredRows<KIND>>(
        cta, ring, 0, routes, TOKENS_MAX,
        // Products of columns without a row are not used.
        [&](int entry, int column) {
          return smaller(routes.first_rows[entry] + column, routes.first_rows[entry + 1] - 1);
        },
        [](int) { return 0; },
        [&](int, const float(&product)[1][4]) {
          float rounded[4];
          round_product(product[0], rounded);
          sums.push(cta, rounded);
        });
  const float nothing[4] = {};
  // The epilogue releases this stage when everything is added.
  sums.push(cta, nothing);
  sums.drain(cta);
}

// Where a lane of the epilogue adds the products of TURNS entries: for each entry the shared-memory
// addresses in `stream.part` of its two rows. Rows that an entry does not have are added to unused
// memory after the products.
template <int TURNS>
struct OwnPlaces {
  uint32_t places[TURNS][2];

  __device__ __forceinline__ OwnPlaces(const SumMemory& memory, const StreamMemory& stream,
                                       const GatheredRoutes& routes, int first, int row, int lane) {
    constexpr int UNUSED_BYTES = 48, PARTS_BYTES = sizeof(SumMemory::parts);
    static_assert(PARTS_BYTES + OWNER_ROWS * 4 * UNUSED_BYTES <= SCRATCH_BYTES, "there is room");
    const uint32_t unused = ptx::shared_address(memory.scratch) + PARTS_BYTES +
                            (row / 16 * 32 + lane) * UNUSED_BYTES;
    const uint32_t parts = ptx::shared_address(stream.part) + row * 4;
#pragma unroll
    for (int i = 0; i < TURNS * 2; i++) {
      const int entry = smaller(first + i / 2, routes.count - 1);
      const int own = routes.first_rows[entry] + lane % 4 * 2 + i % 2;
      const bool there = first + i / 2 < routes.count && own < routes.first_rows[entry + 1];
      const int token = routes.tokens[smaller(own, GATHERED_ROWS - 1)];
      places[i / 2][i % 2] = there ? parts + token * (OWNER_ROWS * 4) : unused;
    }
  }
};

// Epilogue of an owner: adds each entry's products to the sums of its tokens. The tokens of one
// entry are distinct; the next entry may have the same ones in other lanes.
template <int KIND>
__device__ __forceinline__ void epilogue_down(const Cta& cta, Sums& sums, StreamMemory& stream,
                                              const GatheredRoutes& routes, uint64_t biases) {
  using Bias = DownBias<KIND>;
  constexpr int TURNS = DownTurns<KIND>::TURNS, AT_ONCE = TURNS % 4 == 0 ? 4 : TURNS;
  const int row_tile = cta.warp() - CONSUMER_WARPS - 1, lane = cta.lane();
#pragma unroll 1
  for (int first = 0; first < routes.count; first += AT_ONCE) {
    // The index in the stage.
    const int begin = TURNS == AT_ONCE ? 0 : first % TURNS;
    const bool ends = TURNS == AT_ONCE || begin + AT_ONCE == TURNS ||
                      first + AT_ONCE >= routes.count;
    if (!has_row_tile(row_tile)) {
      if (begin == 0) sums.wait();
      if (ends) sums.release(cta);
      continue;
    }
    const OwnPlaces<AT_ONCE> own(sums.memory, stream, routes, first, row_tile * 16 + lane / 4,
                                 lane);
    Bias own_biases[AT_ONCE];
    if constexpr (Bias::BIASED)
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++)
        own_biases[i] = Bias(biases, routes.experts[smaller(first + i, routes.count - 1)],
                             cta.index() * OWNER_ROWS + row_tile * 16 + lane / 4);
    if (begin == 0) sums.wait();
    float4 products[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      products[i] = sums.memory.parts[(sums.stage * CONSUMER_WARPS + row_tile * TURNS + begin + i) *
                                          32 + lane];
    if (ends) sums.release(cta);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      // Rows g and g + 8 of both tokens: all are loaded before one is stored.
      float4& v = products[i];
      if constexpr (Bias::BIASED) {
        // Weights of rows that the entry does not have are not used.
        const int row = routes.first_rows[smaller(first + i, routes.count - 1)] + lane % 4 * 2;
        own_biases[i].add(v, {routes.weights[smaller(row, GATHERED_ROWS - 1)],
                              routes.weights[smaller(row + 1, GATHERED_ROWS - 1)]});
      }
      const float added[4] = {v.x, v.z, v.y, v.w};
      float parts[4];
#pragma unroll
      for (int j = 0; j < 4; j++)
        parts[j] = __uint_as_float(ptx::load_shared_word(own.places[i][j / 2] + j % 2 * 32));
#pragma unroll
      for (int j = 0; j < 4; j++)
        ptx::store_shared_word(own.places[i][j / 2] + j % 2 * 32,
                               __float_as_uint(parts[j] + added[j]));
      __syncwarp();
    }
  }
  // The consumers read the sums after the release of one more stage.
  sums.wait();
  sums.release(cta);
}

}  // namespace kilotok
