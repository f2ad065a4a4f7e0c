// Split-K partial sums: each consumer warp sums one unit over its own columns; epilogue warps
// reduce.
#pragma once

#include "kilotok/cta.cuh"

namespace kilotok {

// Sums of single tiles of tokens that consumers add at a time, or that await the epilogue: one for
// each epilogue warp, and one that the consumers fill meanwhile.
constexpr int SUM_STAGES = 4;
// With the producer they are four warps, which is how registers change hands; and an owner's unit
// has three row tiles, one for each.
constexpr int EPILOGUE_WARPS = 3;

// Memory for whatever a phase needs while it runs. The most is what the router takes: 24 KB of
// sums, and behind them 48 rows of the stream of 64 tokens (phase/add_rms_norm.cuh).
constexpr int SCRATCH_BYTES = 36864;

// Where the warps' sums meet, `[places][warps][lanes]`, or `[warps][places][lanes]`; those of a
// head's parts as `[heads][runs][lanes]`. They are at the beginning of the scratch memory.
struct SumMemory {
  union {
    float4 parts[SUM_STAGES * CONSUMER_WARPS * 32];
    alignas(16) char scratch[SCRATCH_BYTES];
  };
  alignas(8) uint64_t full[SUM_STAGES];
  alignas(8) uint64_t empty[SUM_STAGES];
  // Whose sums they are, where that is not known beforehand.
  int units[SUM_STAGES];
};

// In place of a unit, that there are no more.
constexpr int NO_UNIT = -1;

// Sums of single tiles on their way from the consumers to the epilogue warps, which add and put
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

  // Consumers: hand over a warp's sums.
  __device__ __forceinline__ void push(const Cta& cta, const float (&v)[4], int unit = 0) {
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
    for (int i = 0; i < SUM_STAGES; i++) {
      wait_mbarrier(Waits::Sums, empty + 8 * ahead.stage, ahead.parity ^ 1);
      ahead.next();
    }
  }

  // Epilogue: wait for the sums of the next unit; which it is.
  __device__ __forceinline__ int wait() const {
    wait_mbarrier(Waits::Sums, full + 8 * stage, parity);
    return memory.units[stage];
  }

  // Epilogue: have what they waited for put aside.
  __device__ __forceinline__ void release(const Cta& cta) {
    ptx::mbarrier_arrive_warp(empty + 8 * stage, cta.lane());
    next();
  }

  // Epilogue: take the sums of the next unit, `use(row tile, 0, lane, values)`: rows g and g + 8 of
  // tokens 2q and 2q + 1.
  template <class M, class Use>
  __device__ __forceinline__ void reduce(const Cta& cta, Use use) {
    wait();
    const int epilogue_warp = cta.warp() - CONSUMER_WARPS - 1;
    // One epilogue warp does a unit of one row tile; the units take turns.
    const bool mine =
        M::ROW_TILES == 1 ? stage % EPILOGUE_WARPS == epilogue_warp : epilogue_warp < M::ROW_TILES;
    if (mine) {
      const int row_tile = M::ROW_TILES == 1 ? 0 : epilogue_warp;
      const float4* parts =
          memory.parts + (stage * CONSUMER_WARPS + row_tile * M::COLUMN_WARPS) * 32 + cta.lane();
      use(row_tile, 0, cta.lane(), sum_parts<M::COLUMN_WARPS>(parts, 32));
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
