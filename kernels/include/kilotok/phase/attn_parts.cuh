// Parts of attention: a token's keys are cut into chunks, each CTA that sums over one leaves a part,
// and after a grid barrier the parts of a head are added.
//
// A chunk begins at a multiple of its length, which follows from the token's own position (or the
// window) alone, and grows with it so that there are never more than CHUNKS_MAX.
#pragma once

#include "kilotok/phase/attn_tile.cuh"

namespace kilotok {

// A token's keys by position, apart from a draft's own rows, and how they are cut.
struct Sight {
  Range range;
  uint32_t chunk_keys;
  // Whether the draft's rows are a last part.
  bool own;

  __device__ __forceinline__ uint32_t first_chunk() const { return range.first / chunk_keys; }
  __device__ __forceinline__ uint32_t end_chunk() const {
    return range.empty() ? first_chunk() : (range.end - 1) / chunk_keys + 1;
  }
  __device__ __forceinline__ int parts() const { return end_chunk() - first_chunk() + own; }
};

template <int KIND>
__device__ __forceinline__ uint32_t window_first(uint32_t position) {
  constexpr uint32_t WINDOW = ATTENTIONS[KIND].window;
  return WINDOW == 0 || position < WINDOW ? 0 : position - WINDOW + 1;
}

// What a row's token at a position sees.
template <int KIND>
__device__ __forceinline__ Sight sight(const BatchRow& row, uint32_t position, bool own) {
  constexpr int WINDOW = ATTENTIONS[KIND].window;
  // A window that begins within a chunk touches one more.
  constexpr int WINDOW_CHUNKS = ceil_div(WINDOW, CHUNK_KEYS * (CHUNKS_MAX - 1));
  const uint32_t end = own ? row.start : position + 1;
  const uint32_t chunks = WINDOW > 0 ? WINDOW_CHUNKS
                                     : 1 + (own ? end : position) / (CHUNK_KEYS * CHUNKS_MAX);
  return {{window_first<KIND>(position), end}, chunks * CHUNK_KEYS, own};
}

// Where the parts of a head of a token lie: values `[parts, v_dim]`, and of each pair of warps
// `[parts]` of what they are relative to, the same for all.
template <int KIND>
struct Parts {
  static constexpr Attention A = ATTENTIONS[KIND];
  float* values;
  Weighed* weighed;

  __device__ __forceinline__ Parts(const Memory& memory, int token, int head)
      : values(at<float>(memory.attention_parts)),
        weighed(reinterpret_cast<Weighed*>(values + size_t{ATTENTION_PARTS<KIND>} * A.v_dim)) {
    const size_t first = (static_cast<size_t>(token) * A.q_heads + head) * ATTENTION_PARTS_MAX;
    values += first * A.v_dim;
    weighed += first * Warps<KIND>::PAIRS;
  }
};

// Adds what a part already holds of a head.
__device__ __forceinline__ void add_before(const Weighed before, const float4* place,
                                           Weighed& weighed, float (&v)[8]) {
  const float4 low = place[0], high = place[1];
  const float largest = fmaxf(before.largest, weighed.largest);
  const float a = exp2_of(before.largest - largest), b = exp2_of(weighed.largest - largest);
  weighed = {largest, a * before.sum + b * weighed.sum};
  const float other[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = a * other[i] + b * v[i];
}

// Keeps what a pair of warps has of a tile's result, added to what the part already holds if it is
// not new.
template <int KIND>
__device__ __forceinline__ void keep_part(const Cta& cta, const Tile& tile, int part, bool is_new,
                                          int pair, TileSums& sums) {
  constexpr Attention A = ATTENTIONS[KIND];
  const int lane = cta.lane(), dim = pair * Warps<KIND>::VALUE_DIMS + lane % 4 * 8;
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const int in_tile = row * 8 + lane / 4;
    const bool has = HeadTiles<KIND>::has(tile.first_head, in_tile);
    const Parts<KIND> parts(cta.memory, tile.token, tile.first_head + in_tile);
    float4* place = reinterpret_cast<float4*>(parts.values + part * A.v_dim + dim);
    Weighed* relative = parts.weighed + pair * ATTENTION_PARTS_MAX + part;
    float(&v)[8] = sums.values[row];
    if (!is_new && has && dim < A.v_dim) add_before(*relative, place, sums.weighed[row], v);
    // All lanes have read what one of four writes.
    __syncwarp();
    if (has && dim < A.v_dim) {
      place[0] = make_float4(v[0], v[1], v[2], v[3]);
      place[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
    if (has && lane % 4 == 0) *relative = sums.weighed[row];
  }
}

// What the values of a head are multiplied by in the end; its sink has a share of the weights.
template <int KIND>
__device__ __forceinline__ float finish(const Weighed& weighed, float sink) {
  if (!ATTENTIONS[KIND].sinks) return 1.0f / weighed.sum;
  const float exponent = sink * LOG2_E, largest = fmaxf(weighed.largest, exponent);
  const float factor = exp2_of(weighed.largest - largest);
  return factor / (factor * weighed.sum + exp2_of(exponent - largest));
}

// Memory in which a head's parts are added.
template <int KIND>
struct AddMemory {
  float values[CONSUMER_WARPS][align_up(ATTENTIONS[KIND].v_dim, 4)];
};

// A head's parts on their way: of what they are relative to a lane has lane, lane + 32 and so on, of
// the values a warp has those of parts w, w + 12 and so on, a lane 4 dimensions of each 128.
template <int KIND>
struct LoadedParts {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr int WEIGHTS = ceil_div(ATTENTION_PARTS_MAX, 32);
  static constexpr int COUNT = ceil_div(ATTENTION_PARTS_MAX, CONSUMER_WARPS);
  static constexpr int RUNS = ceil_div(A.v_dim, 128);
  Weighed weighed[WEIGHTS];
  uint4 values[COUNT][RUNS];
  // Sums of all parts, once weights are known, which take the places of the largest scores.
  Weighed total;

  // Whatever is not there is another part that is, with no weight.
  __device__ __forceinline__ LoadedParts(const Cta& cta, int token, int head, int count) {
    const Parts<KIND> parts(cta.memory, token, head);
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++)
      weighed[i] = parts.weighed[min(cta.lane() + 32 * i, count - 1)];
#pragma unroll
    for (int i = 0; i < COUNT; i++)
#pragma unroll
      for (int run = 0; run < RUNS; run++) {
        const int part = min(cta.warp() + i * CONSUMER_WARPS, count - 1);
        const int dim = min(cta.lane() * 4 + run * 128, A.v_dim - 4);
        values[i][run] = ptx::load_l2(static_cast<const void*>(parts.values + part * A.v_dim + dim));
      }
    weigh(cta.lane(), count);
  }

  __device__ __forceinline__ void weigh(int lane, int count) {
    total = {LOWEST, 0};
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) {
      if (lane + 32 * i >= count) weighed[i] = {LOWEST, 0};
      total.largest = fmaxf(total.largest, weighed[i].largest);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      total.largest = fmaxf(total.largest, __shfl_xor_sync(~0u, total.largest, distance));
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) {
      weighed[i].largest = exp2_of(weighed[i].largest - total.largest);
      total.sum += weighed[i].largest * weighed[i].sum;
    }
    total.sum = add_lanes(total.sum);
  }

  __device__ __forceinline__ float weight(int part) const {
    float weight = 0;
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) {
      const float other = __shfl_sync(~0u, weighed[i].largest, part % 32);
      if (part / 32 == i) weight = other;
    }
    return weight;
  }

  // This warp's parts, weighted and added.
  __device__ __forceinline__ void add(const Cta& cta, int count, float (&sums)[RUNS][4]) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int part = cta.warp() + i * CONSUMER_WARPS;
      if (part >= count) break;
      const float w = weight(part);
#pragma unroll
      for (int run = 0; run < RUNS; run++) {
        const uint4& v = values[i][run];
        sums[run][0] += w * __uint_as_float(v.x);
        sums[run][1] += w * __uint_as_float(v.y);
        sums[run][2] += w * __uint_as_float(v.z);
        sums[run][3] += w * __uint_as_float(v.w);
      }
    }
  }
};

// Adds the parts of one head: each warp its own, then those of all warps.
template <int KIND>
__device__ __forceinline__ void add_parts(const Cta& cta, const float* sinks,
                                          AddMemory<KIND>& added, int token, int head,
                                          int count) {
  constexpr Attention A = ATTENTIONS[KIND];
  using Loaded = LoadedParts<KIND>;
  const float sink = A.sinks ? ptx::load_l2(sinks + head) : 0;
  const Loaded loaded(cta, token, head, count);
  float sums[Loaded::RUNS][4] = {};
  loaded.add(cta, count, sums);
#pragma unroll
  for (int run = 0; run < Loaded::RUNS; run++) {
    const int dim = cta.lane() * 4 + run * 128;
    const float(&v)[4] = sums[run];
    if (dim < A.v_dim)
      *reinterpret_cast<float4*>(&added.values[cta.warp()][dim]) =
          make_float4(v[0], v[1], v[2], v[3]);
  }
  const float factor = finish<KIND>(loaded.total, sink);
  cta.sync();
  for (int dim = cta.thread(); dim < A.v_dim; dim += CONSUMERS) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < CONSUMER_WARPS; warp++) sum += added.values[warp][dim];
    store_operand(at<char>(cta.memory.attended) + token * ATTENDED_BYTES, head * A.v_dim + dim,
                  sum * factor);
  }
}

}  // namespace kilotok
