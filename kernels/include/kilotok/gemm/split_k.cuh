// Split-K partial sums: each consumer warp sums one unit over its own columns, and the epilogue
// warps reduce them.
#pragma once

#include "kilotok/cta.cuh"

namespace kilotok {

// Stages of the buffer of partial sums, each for one unit and one tile of tokens: one for each
// epilogue warp, and one that the consumers fill meanwhile.
constexpr int SUM_STAGES = 4;
// Together with the producer warp they are a warpgroup, which is the unit in which registers are
// reassigned; and an owner's unit has up to three row tiles, one for each.
constexpr int EPILOGUE_WARPS = 3;
// The numbers of two barriers: of the epilogue's warps, and of those that have a row tile of an
// owner.
constexpr int EPILOGUE_BARRIER = 12, ROW_TILES_BARRIER = 13;

// Scratch memory of the phase that runs. The router needs the most: 24 KB of sums, and after them
// 48 rows of the stream of 64 tokens (phase/add_rms_norm.cuh).
constexpr int SCRATCH_BYTES = 36864;

// The warps' partial sums, `[stages][warps][lanes]` or `[warps][places][lanes]`; those of a head's
// chunks of keys are `[heads][runs][lanes]`. They lie at the beginning of the scratch memory.
struct SumMemory {
  union {
    float4 parts[SUM_STAGES * CONSUMER_WARPS * 32];
    alignas(16) char scratch[SCRATCH_BYTES];
  };
  alignas(8) uint64_t full[SUM_STAGES];
  alignas(8) uint64_t empty[SUM_STAGES];
  // The unit of each stage, where that is decided at run time.
  int units[SUM_STAGES];
};

// Stands for a unit where there are no more.
constexpr int NO_UNIT = -1;

// The position of a consumer or epilogue warp in the stages of partial sums. The epilogue reduces
// and stores one unit while the consumers multiply the next.
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

  // One thread, before any other thread uses them.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < SUM_STAGES; i++) {
      ptx::mbarrier_init(full + 8 * i, CONSUMER_WARPS * ptx::WARP_ARRIVALS);
      ptx::mbarrier_init(empty + 8 * i, EPILOGUE_WARPS * ptx::WARP_ARRIVALS);
    }
  }

  __device__ __forceinline__ void next() {
    if (++stage == SUM_STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }

  // Consumers: writes a warp's partial sums to the next free stage.
  __device__ __forceinline__ void push(const Cta& cta, const float (&v)[4], int unit = 0) {
    wait_mbarrier(Waits::Sums, empty + 8 * stage, parity ^ 1);
    if (cta.thread() == 0) memory.units[stage] = unit;
    memory.parts[(stage * CONSUMER_WARPS + cta.warp()) * 32 + cta.lane()] =
        make_float4(v[0], v[1], v[2], v[3]);
    ptx::mbarrier_arrive_warp(full + 8 * stage, cta.lane());
    next();
  }

  // Consumers: waits until the epilogue has released all stages but the last RECENT ones. Then a
  // warp writes its sums, not to `memory` but where the phase has room, and calls `written`.
  template <int RECENT>
  __device__ __forceinline__ void wait_released() const {
    const bool wrapped = stage < RECENT + 1;
    const int before = wrapped ? stage + SUM_STAGES - (RECENT + 1) : stage - (RECENT + 1);
    wait_mbarrier(Waits::Sums, empty + 8 * before, wrapped ? parity ^ 1 : parity);
  }
  __device__ __forceinline__ void written(const Cta& cta) {
    ptx::mbarrier_arrive_warp(full + 8 * stage, cta.lane());
    next();
  }

  // Consumers: waits until the epilogue has released all stages.
  __device__ __forceinline__ void drain(const Cta& cta) const {
    Sums ahead = *this;
#pragma unroll 1
    for (int i = 0; i < SUM_STAGES; i++) {
      wait_mbarrier(Waits::Sums, empty + 8 * ahead.stage, ahead.parity ^ 1);
      ahead.next();
    }
  }

  // Epilogue: waits for the sums of the next unit, and returns its number.
  __device__ __forceinline__ int wait() const {
    wait_mbarrier(Waits::Sums, full + 8 * stage, parity);
    return memory.units[stage];
  }

  // Epilogue: releases the stage that it waited for.
  __device__ __forceinline__ void release(const Cta& cta) {
    ptx::mbarrier_arrive_warp(empty + 8 * stage, cta.lane());
    next();
  }

  // Epilogue: which part of a unit a warp reduces: a row tile of several, or one of the SHARES of a
  // single row tile. If that is not shared, warps take units in turn.
  template <class M, int SHARES>
  static __device__ __forceinline__ int part(const Cta& cta) {
    return M::ROW_TILES == 1 && SHARES == 1 ? 0 : cta.warp() - CONSUMER_WARPS - 1;
  }

  // Epilogue: reduces the sums of the next unit and calls `use(part, 0, lane, values)`, with rows g
  // and g + 8 of tokens 2q and 2q + 1.
  template <class M, int SHARES = 1, class Use>
  __device__ __forceinline__ void reduce(const Cta& cta, Use use) {
    static_assert(SHARES == 1 || (M::ROW_TILES == 1 && SHARES <= EPILOGUE_WARPS),
                  "a warp for each share");
    wait();
    reduce_from<M, SHARES>(cta, memory.parts + stage * CONSUMER_WARPS * 32, use);
  }
  // The same for sums that it has waited for, `[warps][lanes]`.
  template <class M, int SHARES = 1, class Use>
  __device__ __forceinline__ void reduce_from(const Cta& cta, const float4* from, Use use) {
    const int own = part<M, SHARES>(cta);
    const bool mine = M::ROW_TILES == 1 && SHARES == 1
                          ? stage % EPILOGUE_WARPS == cta.warp() - CONSUMER_WARPS - 1
                          : own < M::ROW_TILES * SHARES;
    if (mine) {
      const int row_tile = SHARES == 1 ? own : 0;
      const float4* parts = from + row_tile * M::COLUMN_WARPS * 32 + cta.lane();
      use(own, 0, cta.lane(), sum_parts<M::COLUMN_WARPS>(parts, 32));
    }
    release(cta);
  }

  template <int COUNT>
  static __device__ __forceinline__ float4 sum_parts(const float4* parts, int stride) {
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

}  // namespace kilotok
