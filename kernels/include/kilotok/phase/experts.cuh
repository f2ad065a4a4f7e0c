// A feed-forward network of experts over one tile of tokens: gate and up, their activation, a wait
// for these values, down (phase/down.cuh). For more tokens see phase/gathered.cuh.
//
// Reads `normed`, 1 / rms and the routes; `gate_up` writes the inner operand, `down` writes
// `stream.part` of the owned rows. The experts of a token are added in ascending order, so the
// result does not depend on other tokens of the batch.
#pragma once

#include "kilotok/phase/inner.cuh"

namespace kilotok {

// The first entries, whose rows are counted apart if rows come through the ring: about half. They
// are complete before the last units of gate and up are, so down begins while other CTAs still
// multiply those.
__device__ __forceinline__ int first_entries(int count) { return count / 2; }

// Whether rows for down may come to the scratch memory while gate and up are multiplied. The sums
// of their units then lie in the two places of down's products. Where the epilogue loads biases, it
// takes longer for a unit and needs more places. Where down has more than two steps it
// is slower (benches/journal/pass.md).
template <int KIND>
constexpr bool SUMS_APART = !Moe<KIND>::HAS_ALL_ROWS && !FEED_FORWARDS[KIND].bias &&
                            DownMatrix<KIND>::STEPS <= 2;

// One of two places for products, `[warps][lanes]` each: those of down, and the sums of a unit of
// gate and up.
template <class Stream>
__device__ __forceinline__ float4* product_place(Stream& stream, int which) {
  if constexpr (PRODUCTS_APART)
    return stream.products[which];
  else
    return reinterpret_cast<float4*>(which == 0 ? stream.part[TILE_TOKENS]
                                                : stream.residual[TILE_TOKENS]);
}

// An epilogue warp: signals that it has written its part of the first entries' rows.
__device__ __forceinline__ void count_first_rows(const Cta& cta) {
  __syncwarp();
  if (cta.lane() == 0) cta.count(Counter::FirstRows);
}

// Producer: waits until all CTAs have written the rows of the first entries of the launch's
// `count`th network.
__device__ __forceinline__ void wait_first_rows(const Cta& cta, uint32_t count) {
  cta.wait_count(Waits::Operand, Counter::FirstRows, count * (GRID * EPILOGUE_WARPS));
  ptx::other_proxy_fence();
}

// Producer: whether they have.
__device__ __forceinline__ bool are_first_rows_there(const Cta& cta, uint32_t count) {
  const uint32_t seen = ptx::load_acquire(cta.counter(Counter::FirstRows));
  if (static_cast<int32_t>(seen - count * (GRID * EPILOGUE_WARPS)) < 0) return false;
  ptx::other_proxy_fence();
  return true;
}

// Epilogue: signals that this CTA has written all its rows.
__device__ __forceinline__ void count_rows_written(const Cta& cta) {
  ptx::sync_threads<EPILOGUE_WARPS * 32>(EPILOGUE_BARRIER);
  if (cta.warp() == CONSUMER_WARPS + 1 && cta.lane() == 0) cta.count(Counter::Operands);
}

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

// Whether the producer copies a CTA's first unit as soon as the experts are chosen, while their
// routes are still made: the CTA always has one.
template <int KIND>
constexpr bool FIRST_UNIT_IS_EARLY = FEED_FORWARDS[KIND].top_k * GateUpMatrix<KIND>::UNITS >= GRID;

// Producer: copies the first unit. The entry that it belongs to is an index among the bits of the
// chosen experts.
template <int KIND>
__device__ __forceinline__ void produce_first_unit(const Cta& cta, Ring& ring,
                                                   const Routes& routes, uint64_t address) {
  int word = 0, entry = cta.index() / GateUpMatrix<KIND>::UNITS;
  uint32_t bits = routes.bits[0];
#pragma unroll 1
  for (; entry >= __popc(bits); bits = routes.bits[++word]) entry -= __popc(bits);
#pragma unroll 1
  for (; entry > 0; entry--) bits &= bits - 1;
  produce_unit<KIND>(ring, address, word * 32 + __popc(~bits & (bits - 1)), cta.index());
}

// Producer: copies units of gate and up until none is left. `taken` is the number of requests by
// all CTAs before this network. Each unit is requested before the previous one is copied, because
// the answer takes as long as a copy. If the first unit is EARLY, it has been copied.
template <int KIND, bool EARLY = false>
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
    if (next > (EARLY ? 1 : 0))
      produce_unit<KIND>(ring, address, routes.experts[unit / M::UNITS], unit);
    unit = requests ? OWN_UNITS * GRID + static_cast<int>(answer - taken) : own;
    if (unit >= count) break;
  }
  ring.acquire(0, NO_UNIT);
  ring.next();
  // Each CTA makes one request that gets no unit.
  taken += larger(count - OWN_UNITS * GRID, 0) + GRID;
}

// Consumers: multiply gate and up of all experts. `prepare()` is called when the operand is held.
template <int KIND, class Prepare>
__device__ __forceinline__ void gate_up(const Cta& cta, Ring& ring, Sums& sums,
                                        StreamMemory& stream, Prepare prepare) {
  using N = Moe<KIND>;
  using M = typename N::GateUp;
  const auto push = [&](const float(&v)[4], int unit) {
    if constexpr (SUMS_APART<KIND>) {
      sums.wait_released<1>();
      if (cta.thread() == 0) sums.memory.units[sums.stage] = unit;
      if (unit != NO_UNIT)
        product_place(stream, sums.stage % 2)[cta.warp() * 32 + cta.lane()] =
            make_float4(v[0], v[1], v[2], v[3]);
      sums.written(cta);
    } else {
      sums.push(cta, v, unit);
    }
  };
  const auto each_unit = [&](const auto& multiplier) {
    prepare();
#pragma unroll 1
    for (int unit = ring.wait_unit(); unit != NO_UNIT; unit = ring.wait_unit()) {
      float acc[1][4] = {};
      multiplier.unit(cta, ring, acc);
      push(acc[0], unit);
    }
    if constexpr (N::HAS_ALL_ROWS || SUMS_APART<KIND>) ring.release(cta.lane());
    const float nothing[4] = {};
    push(nothing, NO_UNIT);
  };
  using Multiply = Multiplier<M, IS_HELD<M>>;
  if constexpr (N::OPERAND_IN_PAGES)
    each_unit(Multiply(cta, ring));
  else
    each_unit(Multiply(cta, cta.memory.normed, NORMED_BYTES, [](int column) { return column; }));
  if constexpr (SUMS_APART<KIND>) return;
  sums.drain(cta);
  // After this the producer may copy rows to where the sums were.
  if constexpr (!N::HAS_ALL_ROWS) ring.release(cta.lane());
}

// Epilogue: writes the activated values times the expert's weight.
template <int KIND>
__device__ __forceinline__ void epilogue_gate_up(const Cta& cta, Sums& sums,
                                                 StreamMemory& stream, const Routes& routes,
                                                 uint64_t biases, int token_count) {
  using N = Moe<KIND>;
  using M = typename N::GateUp;
  const int first_units = first_entries(routes.count) * M::UNITS;
  bool counts = rows_in_ring<KIND>(token_count);
#pragma unroll 1
  for (int unit = sums.wait();; unit = sums.wait()) {
    // A CTA's units ascend.
    if (counts && (unit >= first_units || unit == NO_UNIT)) {
      count_first_rows(cta);
      counts = false;
    }
    if (unit == NO_UNIT) break;
    const auto reduce = [&](auto use) {
      if constexpr (SUMS_APART<KIND>)
        sums.reduce_from<M>(cta, product_place(stream, sums.stage % 2), use);
      else
        sums.reduce<M>(cta, use);
    };
    reduce([&](int, int, int lane, const float4& v) {
      const uint32_t number = unit;
      const int entry = number / M::UNITS, row = number % M::UNITS * 8 + lane / 4;
      if (row >= N::F.width) return;
      const float2 bias = gate_up_bias<KIND>(biases, routes.experts[entry], row);
#pragma unroll 1
      for (int j = 0; j < 2; j++) {
        const int token = lane % 4 * 2 + j;
        const int choice = token < token_count ? routes.choices[entry][token] : -1;
        if (choice < 0) continue;
        const float gate = j == 0 ? v.x : v.y, up = j == 0 ? v.z : v.w;
        char* to;
        if constexpr (N::HAS_ALL_ROWS)
          to = AllRows<KIND>::value(cta.memory, token * N::TOP_K + choice, row);
        else
          to = SortedRows<KIND>::value(cta.memory, sorted_row(routes, entry, token), row);
        publish_half(to, inner_value<KIND>(gate, up, stream.inverse_rms[token], bias) *
                             routes.weights[token][choice] * operand_scale(N::F.format));
      }
    });
  }
  // The producer may copy rows to where the sums were.
  if constexpr (!N::HAS_ALL_ROWS && !SUMS_APART<KIND>) ptx::reads_before_copies();
  sums.release(cta);
  if (SUMS_APART<KIND> && rows_in_ring<KIND>(token_count)) count_rows_written(cta);
}

}  // namespace kilotok
