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
// pairs of the maximum and sum that the values are relative to. All strips have the same pairs.
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
    // All lanes must have read the value that one lane of four overwrites.
    __syncwarp();
    if (has && dim < A.v_dim) {
      place[0] = make_float4(v[0], v[1], v[2], v[3]);
      place[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
    if (has && lane % 4 == 0) *relative = sums.softmax[row];
  }
}

// The final scale of a head's values, as operands of the output projection. The sink has a share of
// the weights.
template <int KIND>
__device__ __forceinline__ float softmax_scale(const Softmax& softmax, float sink) {
  constexpr float SCALE = operand_scale(ATTENTIONS[KIND].output_format);
  if (!ATTENTIONS[KIND].sinks) return ptx::divide(1.0f, softmax.sum) * SCALE;
  const float exponent = sink * ptx::LOG2_E, largest = fmaxf(softmax.largest, exponent);
  const float factor = ptx::exp2(softmax.largest - largest);
  return ptx::divide(factor, factor * softmax.sum + ptx::exp2(exponent - largest)) * SCALE;
}

// Adds a partial result to the sum of those before it. The sum is relative to the largest score so
// far, so that parts can be added one by one, in order: the wide pass adds each part as soon as it
// has computed it, and stores none.
__device__ __forceinline__ void add_part(float& total, float keep, float weight, float part) {
  total = fmaf(weight, part, keep * total);
}

// How 32 partial results of a head are added, one a lane: the sum of those before is multiplied by
// `keep`, the part by `weight`.
struct PartWeights {
  Softmax own;
  float keep, weight;

  // `largest` is the maximum of all parts before `first`, and afterwards also of these parts.
  __device__ __forceinline__ PartWeights(const Softmax* parts, int count, int first, int lane,
                                         float& largest) {
    own = parts[min(first + lane, count - 1)];
    if (first + lane >= count) own = {LOWEST, 0};
    float most = own.largest;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float other = __shfl_up_sync(~0u, most, distance);
      if (lane >= distance) most = fmaxf(most, other);
    }
    most = fmaxf(most, largest);
    const float earlier = __shfl_up_sync(~0u, most, 1);
    const float before = lane == 0 ? largest : earlier;
    keep = ptx::exp2(before - most);
    weight = ptx::exp2(own.largest - most);
    largest = __shfl_sync(~0u, most, 31);
  }
};

// Warps that share a head. With one tile there are few heads, and warps would be idle.
template <bool ONE_TILE>
constexpr int COMBINE_WARPS = ONE_TILE ? CONSUMER_WARPS : 1;
// Dimensions that are added at a time: by four warps one a lane, or by one warp four a lane.
constexpr int COMBINE_DIMS = 128;
// Parts whose values the consumers copy into shared memory at a time.
constexpr int PARTS_AT_ONCE = 64;

// The consumers' scratch memory while they combine.
struct CombineScratch {
  float values[PARTS_AT_ONCE][COMBINE_DIMS];
  // For each part `keep`, `weight` and the sum of its own weights.
  float4 weights[align_up(ATTENTION_PARTS_MAX, 32)];
  // The maximum of all parts.
  float largest;
};
static_assert(sizeof(CombineScratch) <= SCRATCH_BYTES, "there is room");

template <int KIND>
__device__ __forceinline__ void store_combined(const Memory& memory, int row, int column,
                                               float low, float high) {
  char* to = at<char>(memory.attended) + Attended<KIND>::row(row) + operand_offset(column);
  ptx::store_l2(reinterpret_cast<uint32_t*>(to), ptx::pack_bf16(low, high));
}

// Resets the values of one token that are polled for. Called between two grid barriers.
template <int KIND>
__device__ __forceinline__ void reset_attended(const Cta& cta) {
  constexpr int COLUMNS = ATTENTIONS[KIND].q_heads * ATTENTIONS[KIND].v_dim;
  char* row = at<char>(cta.memory.attended) + Attended<KIND>::row(POLLED_ROW);
#pragma unroll 1
  for (int i = cta.index() + GRID * cta.thread(); i < COLUMNS; i += GRID * CONSUMERS)
    *reinterpret_cast<uint16_t*>(row + operand_offset(i)) = EMPTY_HALF;
}

// One warp adds the `count` parts of a head. With a count of 0 it has no head.
template <int KIND>
__device__ __forceinline__ void combine_alone(const Cta& cta, const float* sinks, int token,
                                              int head, int count) {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int LOADS = 8;
  const int lane = cta.lane();
  const Parts<KIND> parts(cta.memory, token, head);
#pragma unroll 1
  for (int dim = lane * 4; count > 0 && dim < align_up(A.v_dim, COMBINE_DIMS);
       dim += COMBINE_DIMS) {
    const float* from = parts.values + min(dim, A.v_dim - 4);
    float total[4] = {}, sum = 0, largest = LOWEST;
#pragma unroll 1
    for (int first = 0; first < count; first += 32) {
      const PartWeights weights(parts.softmax, count, first, lane, largest);
#pragma unroll 1
      for (int run = 0; run < 32 && first + run < count; run += LOADS) {
        uint4 loaded[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++)
          loaded[i] = ptx::load_l2(
              static_cast<const void*>(from + min(first + run + i, count - 1) * A.v_dim));
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
          if (first + run + i >= count) break;
          const float keep = __shfl_sync(~0u, weights.keep, run + i);
          const float weight = __shfl_sync(~0u, weights.weight, run + i);
          add_part(sum, keep, weight, __shfl_sync(~0u, weights.own.sum, run + i));
          const uint4& v = loaded[i];
          const uint32_t part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int j = 0; j < 4; j++)
            add_part(total[j], keep, weight, __uint_as_float(part[j]));
        }
      }
    }
    const float sink = A.sinks ? ptx::load_l2(sinks + head) : 0;
    const float factor = softmax_scale<KIND>({largest, sum}, sink);
    if (dim >= A.v_dim) continue;
    for (int i = 0; i < 4; i += 2)
      store_combined<KIND>(cta.memory, token, head * A.v_dim + dim + i, total[i] * factor,
                           total[i + 1] * factor);
  }
}

// Consumers: the weights of all parts of a head, each run of 32 by a warp.
__device__ __forceinline__ void weigh_parts(const Cta& cta, CombineScratch& scratch,
                                            const Softmax* parts, int count) {
  const int first = cta.warp() * 32, lane = cta.lane();
  if (first >= count) return;
  float largest = LOWEST;
#pragma unroll 1
  for (int i = lane; i < first; i += 32) largest = fmaxf(largest, parts[i].largest);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
  const PartWeights weights(parts, count, first, lane, largest);
  scratch.weights[first + lane] = make_float4(weights.keep, weights.weight, weights.own.sum, 0);
  if (first + 32 >= count && lane == 0) scratch.largest = largest;
}

// All consumers add the parts of one head, if `count` is not 0, and store them in `row` of the
// operand. They copy parts into shared memory, where four warps add them, a dimension a lane.
template <int KIND>
__device__ __forceinline__ void combine_together(const Cta& cta, CombineScratch& scratch,
                                                 const float* sinks, int token, int row,
                                                 int head, int count) {
  constexpr Attention A = ATTENTIONS[KIND];
  if (count == 0) return;
  const Parts<KIND> parts(cta.memory, token, head);
  const float sink = A.sinks ? ptx::load_l2(sinks + head) : 0;
#pragma unroll 1
  for (int first_dim = 0; first_dim < A.v_dim; first_dim += COMBINE_DIMS) {
    const int dims = smaller(COMBINE_DIMS, A.v_dim - first_dim), fours = dims / 4;
    const int dim = cta.thread();
    float total = 0, sum = 0;
#pragma unroll 1
    for (int first = 0; first < count; first += PARTS_AT_ONCE) {
      const int here = smaller(count - first, PARTS_AT_ONCE);
      for (int i = cta.thread(); i < here * fours; i += CONSUMERS)
        ptx::copy_later(ptx::shared_address(&scratch.values[i / fours][i % fours * 4]),
                        parts.values + (first + i / fours) * A.v_dim + first_dim + i % fours * 4);
      if (first + first_dim == 0) weigh_parts(cta, scratch, parts.softmax, count);
      ptx::wait_for_copies();
      cta.sync();
      if (dim < dims)
#pragma unroll 8
        for (int i = 0; i < here; i++) {
          const float4 w = scratch.weights[first + i];
          add_part(total, w.x, w.y, scratch.values[i][dim]);
          add_part(sum, w.x, w.y, w.z);
        }
      if (first + here >= count && cta.warp() < ceil_div(dims, 32)) {
        const float value = total * softmax_scale<KIND>({scratch.largest, sum}, sink);
        const float next = __shfl_xor_sync(~0u, value, 1);
        if (dim < dims && dim % 2 == 0)
          store_combined<KIND>(cta.memory, row, head * A.v_dim + first_dim + dim, value, next);
      }
      // After this the scratch memory may be overwritten.
      cta.sync();
    }
  }
}

// All consumers: WARPS of them add the `count` parts of a head. With a count of 0 they have no
// head.
template <int KIND, int WARPS>
__device__ __forceinline__ void combine_parts(const Cta& cta, SumMemory& scratch,
                                              const float* sinks, int token, int row, int head,
                                              int count) {
  if constexpr (WARPS > 1)
    combine_together<KIND>(cta, reinterpret_cast<CombineScratch&>(scratch.scratch), sinks, token,
                           row, head, count);
  else
    combine_alone<KIND>(cta, sinks, token, head, count);
}

}  // namespace kilotok
