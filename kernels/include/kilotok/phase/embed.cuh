// The embedding, which begins the residual stream, and the RoPE angles of the batch's positions.
//
// Reads the batch, the embedding and the frequencies; writes the owned part of the stream, as the
// first part that will be added, and `angles`. It needs no barrier before; the caller's next one
// makes the results visible.
#pragma once

#include "kilotok/comm/all_reduce.cuh"
#include "kilotok/layout/batch.cuh"
#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

// A token of the batch without a row in the embedding: the drafter's mask.
constexpr uint32_t MASK_TOKEN = ~0u;

// The factor of a kind's cosines and sines (YaRN), and whether any kind has one.
constexpr bool HAS_MAGNITUDES = over_kinds<0, ATTENTION_KINDS>([](auto kind) {
  return ATTENTIONS[decltype(kind)::value].rope_magnitude == 1.0f ? 0 : 1;
}) > 0;
__device__ __forceinline__ float rope_magnitude(int kind) {
  float magnitude = 1.0f;
  if constexpr (HAS_MAGNITUDES)
    with_kind<0, ATTENTION_KINDS>(
        kind, [&](auto k) { magnitude = ATTENTIONS[decltype(k)::value].rope_magnitude; });
  return magnitude;
}

// Cosine and sine of a position's angle, exact functions in double precision. Angles are F32
// products, as in training.
__device__ __forceinline__ float2 rope_angle(uint32_t position, float frequency, float magnitude) {
  double sine, cosine;
  sincos(static_cast<double>(static_cast<float>(position) * frequency), &sine, &cosine);
  return make_float2(static_cast<float>(cosine) * magnitude, static_cast<float>(sine) * magnitude);
}

// Cosines and sines of kinds `first` to `end` - 1, divided among all CTAs. CTAs are counted from
// the last one, because the last ones may own nothing of the stream, and each angle takes
// microseconds.
__device__ __forceinline__ void rope_angles(const Cta& cta, const HeldBatch& batch, int first,
                                          int end) {
  const Memory& memory = cta.memory;
  const int each = batch.token_count() * ROPE_PAIRS_MAX;
  for (int i = (GRID - 1 - cta.index()) * CONSUMERS + cta.thread(); i < (end - first) * each;
       i += GRID * CONSUMERS) {
    const int kind = first + i / each, token = i % each / ROPE_PAIRS_MAX;
    const int pair = i % ROPE_PAIRS_MAX;
    const float frequency = at<const float>(memory.frequencies)[kind * ROPE_PAIRS_MAX + pair];
    at<float2>(memory.angles)[(kind * TOKENS_MAX + token) * ROPE_PAIRS_MAX + pair] =
        rope_angle(batch.tokens[token].position, frequency, rope_magnitude(kind));
  }
}

// Owners: set the stream to zero, and `part`, which is added to it next, to the tokens' embeddings.
__device__ __forceinline__ void embed(const Cta& cta, StreamMemory& stream,
                                      const HeldBatch& batch) {
  const Memory& memory = cta.memory;
  constexpr int RANK_ROWS = VOCAB / RANKS;
  for (int k = cta.thread(); k < batch.token_count() * OWNER_ROWS; k += CONSUMERS) {
    const int token = k / OWNER_ROWS, row = k % OWNER_ROWS;
    const int column = cta.index() * OWNER_ROWS + row;
    const uint32_t id = batch.tokens[token].token;
    const int place = static_cast<int>(id) - static_cast<int>(memory.rank) * RANK_ROWS;
    float value = 0;
    if (column < HIDDEN) {
      if (id == MASK_TOKEN)
        value = memory.rank == 0 ? at<const float>(memory.draft_mask)[column] : 0;
      else if (place >= 0 && place < RANK_ROWS)
        value = ptx::from_bf16(
            at<const uint16_t>(memory.embedding)[static_cast<size_t>(place) * HIDDEN + column]);
    }
    stream.residual[token][row] = 0;
    stream.part[token][row] = value;
  }
}

}  // namespace kilotok
