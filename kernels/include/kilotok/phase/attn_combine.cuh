// Partial results of attention: a token's keys are split into chunks, each CTA that computes one
// leaves a partial result relative to the chunk's own maximum, and after a grid barrier they are
// rescaled and added (flash-decoding).
//
// A chunk begins at a multiple of its length. The length depends on the token's own position (or
// the window) alone, and grows with it so that there are never more than CHUNKS_MAX chunks.
#pragma once

#include "kilotok/phase/attn_tile.cuh"

namespace kilotok {

// The positions that are visible to a token, apart from a draft's own rows, and how they are split
// into chunks.
struct VisibleKeys {
  Range range;
  uint32_t chunk_keys;
  // Whether the draft's own rows are a last chunk.
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

// The keys that are visible to a row's token at a position.
template <int KIND>
__device__ __forceinline__ VisibleKeys visible_keys(const BatchRow& row, uint32_t position,
                                                    bool own) {
  constexpr int WINDOW = ATTENTIONS[KIND].window;
  // A window that begins within a chunk overlaps one more.
  constexpr int WINDOW_CHUNKS = ceil_div(WINDOW, CHUNK_KEYS * (CHUNKS_MAX - 1));
  const uint32_t end = own ? row.start : position + 1;
  const uint32_t chunks = WINDOW > 0 ? WINDOW_CHUNKS
                                     : 1 + (own ? end : position) / (CHUNK_KEYS * CHUNKS_MAX);
  return {{window_first<KIND>(position), end}, chunks * CHUNK_KEYS, own};
}

// The partial results of a head of a token: values `[parts, v_dim]`, and for each strip `[parts]`
// of the maximum and sum they are relative to, which are the same for all strips.
template <int KIND>
struct Parts {
  static constexpr Attention A = ATTENTIONS[KIND];
  float* values;
  Softmax* softmax;

  __device__ __forceinline__ Parts(const Memory& memory, int token, int head)
      : values(at<float>(memory.attention_parts)),
        softmax(reinterpret_cast<Softmax*>(values + size_t{ATTENTION_PARTS<KIND>} * A.v_dim)) {
    const size_t first = (static_cast<size_t>(token) * A.q_heads + head) * ATTENTION_PARTS_MAX;
    values += first * A.v_dim;
    softmax += first * Warps<KIND>::STRIPS;
  }
};

// Combines sums with those that a partial result already holds.
__device__ __forceinline__ void merge_softmax(const Softmax before, const float4* place,
                                           Softmax& softmax, float (&v)[8]) {
  const float4 low = place[0], high = place[1];
  const float largest = fmaxf(before.largest, softmax.largest);
  const float a = ptx::exp2(before.largest - largest), b = ptx::exp2(softmax.largest - largest);
  softmax = {largest, a * before.sum + b * softmax.sum};
  const float other[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = a * other[i] + b * v[i];
}

// Stores a strip of a tile's partial result, combined with what is already stored unless `is_new`.
template <int KIND>
__device__ __forceinline__ void store_part(const Cta& cta, const Tile& tile, int part, bool is_new,
                                          int strip, TileSums& sums) {
  constexpr Attention A = ATTENTIONS[KIND];
  const int lane = cta.lane(), dim = strip * Warps<KIND>::VALUE_DIMS + lane % 4 * 8;
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const int in_tile = row * 8 + lane / 4;
    const bool has = HeadTiles<KIND>::has(tile.first_head, in_tile);
    const Parts<KIND> parts(cta.memory, tile.token, tile.first_head + in_tile);
    float4* place = reinterpret_cast<float4*>(parts.values + part * A.v_dim + dim);
    Softmax* relative = parts.softmax + strip * ATTENTION_PARTS_MAX + part;
    float(&v)[8] = sums.values[row];
    if (!is_new && has && dim < A.v_dim) merge_softmax(*relative, place, sums.softmax[row], v);
    // All lanes have read the value that one of four overwrites.
    __syncwarp();
    if (has && dim < A.v_dim) {
      place[0] = make_float4(v[0], v[1], v[2], v[3]);
      place[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
    if (has && lane % 4 == 0) *relative = sums.softmax[row];
  }
}

// The final scale of a head's values. The sink has a share of the weights.
template <int KIND>
__device__ __forceinline__ float softmax_scale(const Softmax& softmax, float sink) {
  if (!ATTENTIONS[KIND].sinks) return ptx::divide(1.0f, softmax.sum);
  const float exponent = sink * ptx::LOG2_E, largest = fmaxf(softmax.largest, exponent);
  const float factor = ptx::exp2(softmax.largest - largest);
  return ptx::divide(factor, factor * softmax.sum + ptx::exp2(exponent - largest));
}

// The maximum and sum over all partial results of a head. A lane has the weight of part `lane`,
// counted from the multiple of 32 below `first`.
struct PartWeights {
  static constexpr int COUNT = ceil_div(ATTENTION_PARTS_MAX, 32);
  float weight;
  Softmax total;

  __device__ __forceinline__ PartWeights(const Softmax* parts, int count, int first, int lane) {
    Softmax own[COUNT];
    // A lane without a part loads the last one, and gives it no weight.
#pragma unroll
    for (int i = 0; i < COUNT; i++) own[i] = parts[min(lane + 32 * i, count - 1)];
    total = {LOWEST, 0};
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (lane + 32 * i >= count) own[i] = {LOWEST, 0};
      total.largest = fmaxf(total.largest, own[i].largest);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      total.largest = fmaxf(total.largest, __shfl_xor_sync(~0u, total.largest, distance));
    weight = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const float each = ptx::exp2(own[i].largest - total.largest);
      total.sum += each * own[i].sum;
      if (first / 32 == i) weight = each;
    }
    total.sum = add_lanes(total.sum);
  }
};

// A head's partial results are added in runs of this length, and then the runs in their order,
// whichever warps add them.
constexpr int RUN_PARTS = 8;
constexpr int RUNS_MAX = ceil_div(ATTENTION_PARTS_MAX, RUN_PARTS);
// Warps that share a head's runs. With one tile there are few heads, and warps would be idle.
template <bool ONE_TILE>
constexpr int COMBINE_WARPS = ONE_TILE ? CONSUMER_WARPS : 1;
static_assert(CONSUMER_WARPS % COMBINE_WARPS<true> == 0, "no warp is left over");

// All consumers: WARPS warps combine the `count` partial results of a head; `count` may be 0. A
// lane has 4 of each 128 dimensions.
template <int KIND, int WARPS>
__device__ __forceinline__ void combine_parts(const Cta& cta, SumMemory& scratch,
                                              const float* sinks, int token, int head, int count) {
  constexpr Attention A = ATTENTIONS[KIND];
  // Runs that a warp loads at a time. With one tile its registers also hold the first page of the
  // output projection.
  constexpr int RUNS = WARPS > 1 ? 1 : 2;
  static_assert(32 % (RUNS * RUN_PARTS) == 0, "their weights are with the lanes of one register");
  const int lane = cta.lane(), first_run = cta.warp() % WARPS;
  const Parts<KIND> parts(cta.memory, token, head);
  float4* sums = scratch.parts + cta.warp() / WARPS * RUNS_MAX * 32 + lane;
  static_assert(WARPS == 1 || sizeof(scratch.parts) / sizeof(float4) >=
                                  32 * RUNS_MAX * (CONSUMER_WARPS / WARPS),
                "there is room for all runs");
#pragma unroll 1
  for (int dim = lane * 4; dim < align_up(A.v_dim, 128); dim += 128) {
    const float* from = parts.values + min(dim, A.v_dim - 4);
    float4 total = {};
    const auto add = [&](const float4& sum) {
      total.x += sum.x;
      total.y += sum.y;
      total.z += sum.z;
      total.w += sum.w;
    };
    float factor = 0;
#pragma unroll 1
    for (int run = first_run; run * RUN_PARTS < count; run += WARPS * RUNS) {
      const int first = run * RUN_PARTS;
      // In flight while the weights are computed.
      uint4 loaded[RUNS * RUN_PARTS];
#pragma unroll
      for (int i = 0; i < RUNS * RUN_PARTS; i++)
        loaded[i] = ptx::load_l2(
            static_cast<const void*>(from + min(first + i, count - 1) * A.v_dim));
      const float sink = A.sinks ? ptx::load_l2(sinks + head) : 0;
      const PartWeights weights(parts.softmax, count, first, lane);
      factor = softmax_scale<KIND>(weights.total, sink);
#pragma unroll
      for (int j = 0; j < RUNS; j++) {
        float4 sum = {};
#pragma unroll
        for (int i = 0; i < RUN_PARTS; i++) {
          // Beyond the last part the weight is 0.
          const float weight = __shfl_sync(~0u, weights.weight, (first + j * RUN_PARTS + i) % 32);
          const uint4& v = loaded[j * RUN_PARTS + i];
          sum.x += weight * __uint_as_float(v.x);
          sum.y += weight * __uint_as_float(v.y);
          sum.z += weight * __uint_as_float(v.z);
          sum.w += weight * __uint_as_float(v.w);
        }
        if constexpr (WARPS > 1)
          sums[run * 32] = sum;
        else
          add(sum);
      }
    }
    if constexpr (WARPS > 1) {
      cta.sync();
      if (first_run == 0)
#pragma unroll 1
        for (int run = 0; run * RUN_PARTS < count; run++) add(sums[run * 32]);
      cta.sync();
    }
    if (first_run > 0 || count == 0 || dim >= A.v_dim) continue;
    char* to = at<char>(cta.memory.attended) + operand_row(token, ATTENDED_BYTES);
    const auto store = [&](int i, float low, float high) {
      *reinterpret_cast<uint32_t*>(to + operand_offset(head * A.v_dim + dim + i)) =
          ptx::pack_bf16(low * factor, high * factor);
    };
    store(0, total.x, total.y);
    store(2, total.z, total.w);
  }
}

}  // namespace kilotok
