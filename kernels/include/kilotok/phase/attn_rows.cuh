// What attention must know of layers and rows before it reads the first key.
#pragma once

#include "kilotok/phase/attn_keys.cuh"

namespace kilotok {

// Where a layer's keys, values and sinks are.
struct LayerPlaces {
  const char* keys;
  const char* values;
  const float* sinks;

  __device__ __forceinline__ explicit LayerPlaces(const LayerMemory& layer)
      : keys(at<const char>(layer.keys)),
        values(at<const char>(layer.values)),
        sinks(at<const float>(layer.sinks)) {}

  template <int KIND>
  __device__ __forceinline__ KeySource<KIND> pages(const Memory& memory, const BatchRow& row,
                                                   int kv_head) const {
    return {at<const uint32_t>(memory.pages), keys, values,
            row.pages_at[ATTENTIONS[KIND].page_group], kv_head, false};
  }
};

// The rest of a grid barrier, once: keys that were there before the step need not wait for it.
struct Meeting {
  bool over;
  __device__ __forceinline__ void wait(Cta& cta) {
    if (!over) cta.wait_grid();
    over = true;
  }
};

// A token's row and position, found with one trip to memory; called by whole warps.
struct RowOf {
  BatchRow row;
  uint32_t position;

  __device__ __forceinline__ RowOf(const Cta& cta, const Batch& batch, uint32_t token) {
    const BatchRow* rows = at<const BatchRow>(cta.memory.rows);
    constexpr int COUNT = ceil_div(TOKENS_MAX, 32);
    // Two runs of 16 bytes: start, first, count; pages by group.
    uint4 runs[COUNT][2];
#pragma unroll
    for (int i = 0; i < COUNT; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        runs[i][half] = ptx::load_l2(reinterpret_cast<const uint4*>(
                                         &rows[min(cta.lane() + i * 32, TOKENS_MAX - 1)]) + half);
    uint4 found[2] = {};
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const bool has = cta.lane() + i * 32 < batch.row_count && token - runs[i][0].y < runs[i][0].z;
      const uint32_t lanes = __ballot_sync(~0u, has);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 other = from_lane(runs[i][half], __ffs(lanes) - 1);
        if (lanes != 0) found[half] = other;
      }
    }
    row = {found[0].x, found[0].y, found[0].z, 0, {found[1].x, found[1].y, found[1].z, found[1].w}};
    position = row.start + token - row.first;
  }

  static __device__ __forceinline__ uint4 from_lane(const uint4& run, int lane) {
    return make_uint4(__shfl_sync(~0u, run.x, lane), __shfl_sync(~0u, run.y, lane),
                      __shfl_sync(~0u, run.z, lane), __shfl_sync(~0u, run.w, lane));
  }
  static_assert(GROUPS_MAX == 4 && sizeof(BatchRow) == 32, "a row is two runs");
};

}  // namespace kilotok
