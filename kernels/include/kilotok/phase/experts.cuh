// A feed-forward network of experts over one tile of tokens: gate and up, silu(gate) * up, a grid
// barrier or a wait for these values, down. For more tokens see phase/gathered.cuh.
//
// Reads `normed`, 1 / rms and the routes; `gate_up` writes the inner operand, `down` adds to
// `stream.part` of the owned rows. The experts of a token are added in ascending order, so the
// other tokens of the batch do not show.
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
  // Experts whose whole part for an owner fits one page together.
  static constexpr int PAGE_ENTRIES = larger(Down::PAGE_STEPS / Down::STEPS, 1);

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
    const int bytes = smaller(M::PAGE_STEPS, M::STEPS - step) * M::STEP_BYTES;
    ring.acquire(bytes, unit);
    ring.fetch(from + step * M::STEP_BYTES, 0, bytes);
    ring.next();
  }
}

// Producer: copies units of gate and up until none is left. `taken` is the number of requests by
// all CTAs before this network.
template <int KIND>
__device__ __forceinline__ void produce_gate_up(const Cta& cta, Ring& ring, const Routes& routes,
                                                uint64_t address, uint32_t& taken) {
  using M = GateUpMatrix<KIND>;
  const int count = routes.count * M::UNITS;
  int own = 0;
  while (true) {
    int unit = cta.index() + own++ * GRID;
    if (own > OWN_UNITS || unit >= count)
      unit = OWN_UNITS * GRID +
             static_cast<int>(ptx::add_relaxed(cta.counter(Counter::UnitsTaken), 1) - taken);
    if (unit >= count) break;
    produce_unit<KIND>(ring, address, routes.experts[unit / M::UNITS], unit);
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
    for (int step = 0; step < M::STEPS; step += M::PAGE_STEPS) {
      const int bytes = smaller(M::PAGE_STEPS, M::STEPS - step) * M::STEP_BYTES;
      ring.acquire(entries * bytes);
#pragma unroll 1
      for (int i = 0; i < entries; i++)
        ring.fetch(at<const char>(address) + routes.experts[first + i] * M::BYTES +
                       static_cast<size_t>(unit) * M::UNIT_BYTES + step * M::STEP_BYTES,
                   i * bytes, bytes);
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

// Epilogue: writes silu(gate) * up * weight.
template <int KIND>
__device__ __forceinline__ void epilogue_gate_up(const Cta& cta, Sums& sums,
                                                 const StreamMemory& stream, const Routes& routes,
                                                 int token_count) {
  using N = Moe<KIND>;
  using M = typename N::GateUp;
#pragma unroll 1
  for (int unit = sums.wait(); unit != NO_UNIT; unit = sums.wait())
    sums.reduce<M>(cta, [&](int, int, int lane, const float4& v) {
      const int entry = unit / M::UNITS, row = unit % M::UNITS * 8 + lane / 4;
      if (row >= N::F.width) return;
#pragma unroll 1
      for (int j = 0; j < 2; j++) {
        const int token = lane % 4 * 2 + j;
        const int choice = token < token_count ? routes.choices[entry][token] : -1;
        if (choice < 0) continue;
        const float scale = stream.inverse_rms[token];
        const float gate = (j == 0 ? v.x : v.y) * scale, up = (j == 0 ? v.z : v.w) * scale;
        publish_operand(
            N::inner_row(cta.memory, token * N::TOP_K + choice), row,
            silu(gate) * up * routes.weights[token][choice] * operand_scale(N::F.format));
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

// Places of a column's rows for the entries of a whole page, from `first` on.
template <int KIND>
struct Places {
  using N = Moe<KIND>;
  static constexpr int COUNT = N::PAGE_ENTRIES;
  static constexpr bool VECTOR = COUNT == 8;
  uint4 words;
  int others[VECTOR ? 1 : COUNT];

  __device__ __forceinline__ Places(const Routes& routes, int first, int column) {
    if constexpr (VECTOR) {
      words = *reinterpret_cast<const uint4*>(&routes.places[column][first]);
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; i++) others[i] = routes.places[column][first + i];
    }
  }

  __device__ __forceinline__ int operator[](int i) const {
    if constexpr (!VECTOR) return others[i];
    const uint32_t word = i < 2 ? words.x : i < 4 ? words.y : i < 6 ? words.z : words.w;
    return i % 2 == 0 ? word & 0xffff : word >> 16;
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

// The weights of a page of experts that a warp multiplies next, in registers. That frees the page
// in the ring, so that more weights arrive while the operand is loaded.
template <int KIND>
struct ExpertsAhead {
  using N = Moe<KIND>;
  using M = typename N::Down;
  Chunk<M::FORMAT> chunks[N::PAGE_ENTRIES];

  // Of the next page, which goes back if it is a `whole` one. In any case, so that registers hold
  // something: what might come from the layer before would be kept.
  __device__ __forceinline__ void fetch(const Cta& cta, Ring& ring, bool whole) {
    const uint32_t page = ring.wait() + cta.warp() * M::CHUNK_BYTES;
#pragma unroll
    for (int i = 0; i < N::PAGE_ENTRIES; i++)
      chunks[i].load(page + i * M::STEP_BYTES, cta.lane());
    if (whole) ring.release(cta.lane());
  }
};

// Owners: sum the experts; the epilogue put the sums into `stream.part`.
template <int KIND, bool POLLED>
__device__ __forceinline__ void down(const Cta& cta, Ring& ring, Sums& sums,
                                     const Routes& routes) {
  using N = Moe<KIND>;
  using M = typename N::Down;
  constexpr int PAGE_STEPS = smaller(M::PAGE_STEPS, M::STEPS), ENTRIES = N::PAGE_ENTRIES;
  constexpr bool AHEAD = M::STEPS == 1 && ENTRIES > 1;
  const int count = routes.count, part = cta.warp() % M::COLUMN_WARPS;
  const int column = cta.lane() / 4;
  ExpertsAhead<KIND> ahead;
  if constexpr (AHEAD) ahead.fetch(cta, ring, ENTRIES <= count);
  const Inner<KIND> inner = Inner<KIND>::template fetch<POLLED>(cta, sums.memory);
  float total[1][4] = {};
  const auto operand = [&](int place, int step) {
    return inner.load(place, step * M::COLUMN_WARPS + part, cta.lane());
  };
  // The steps of a page of one entry, whose row of the operand has this place.
  const auto multiply = [&](uint32_t weights, int place, int step) {
#pragma unroll
    for (int j = 0; j < PAGE_STEPS; j++) {
      if (M::STEPS % PAGE_STEPS != 0 && step + j >= M::STEPS) break;
      OperandChunk x[1] = {operand(place, step + j)};
      Chunk<M::FORMAT> chunk;
      chunk.load(weights + j * M::STEP_BYTES + cta.warp() * M::CHUNK_BYTES, cta.lane());
      chunk.multiply(total, x);
    }
  };
  constexpr int ENTRY_BYTES = PAGE_STEPS * M::STEP_BYTES;
  int first = 0;
#pragma unroll 1
  for (; first + ENTRIES <= count; first += ENTRIES) {
    const Places<KIND> places(routes, first, column);
    if constexpr (AHEAD) {
#pragma unroll
      for (int i = 0; i < ENTRIES; i++) {
        const OperandChunk x[1] = {operand(places[i], 0)};
        ahead.chunks[i].multiply(total, x);
      }
      if (first + ENTRIES < count) ahead.fetch(cta, ring, first + 2 * ENTRIES <= count);
    } else {
#pragma unroll 1
      for (int step = 0; step < M::STEPS; step += PAGE_STEPS) {
        const uint32_t page = ring.wait();
#pragma unroll
        for (int i = 0; i < ENTRIES; i++) multiply(page + i * ENTRY_BYTES, places[i], step);
        ring.release(cta.lane());
      }
    }
  }
  if (ENTRIES > 1 && first < count) {
    uint32_t page = ring.wait();
#pragma unroll 1
    for (; first < count; first++, page += ENTRY_BYTES)
      multiply(page, routes.places[column][first], 0);
    ring.release(cta.lane());
  }
  cta.sync();
  sums.push(cta, total[0]);
  sums.drain(cta);
}

}  // namespace kilotok
