// The token history of a slot's request: how often each token occurred, for penalties, and the
// newest tokens, for bad words.
//
// `update_slots` comes first in a step. It fills the tables of requests that enter a slot, and
// counts the tokens that the host sent. Reads the batch and the rows' lists, writes the slots'
// tables. The caller's barrier comes between this and `sample`. Rows are assigned to CTAs in turn.
// A fresh slot with penalties costs 2 bytes a token of the vocabulary, one with biases 4.
#pragma once

#include "kilotok/sample/row.cuh"

namespace kilotok {

// Adds the token at a position to the slot's history. Several threads may add at the same time. The
// last RECENT_MAX positions are `recent`.
__device__ __forceinline__ void record_token(const SampleMemory& memory, uint32_t slot_index,
                                     uint32_t position, uint32_t token, bool recent) {
  const Slot& slot = at<const Slot>(memory.slots)[slot_index];
  if (recent && slot.bad_word_count > 0)
    at<uint32_t>(memory.recent)[slot_index * RECENT_MAX + position % RECENT_MAX] = token;
  if (!has_penalty(slot.sampling)) return;
  uint16_t* place =
      at<uint16_t>(memory.counts) + static_cast<size_t>(slot_index) * memory.stride + token;
  unsigned short seen = *place, before;
  do {
    before = seen;
    const uint32_t after = counted_again(before, position >= slot.prompt_count);
    seen = atomicCAS(place, before, static_cast<unsigned short>(after));
  } while (seen != before);
}

__device__ __forceinline__ void clear(const Cta& cta, char* table, size_t bytes) {
  for (size_t i = cta.thread() * sizeof(uint4); i < bytes; i += CONSUMERS * sizeof(uint4))
    *reinterpret_cast<uint4*>(table + i) = make_uint4(0, 0, 0, 0);
}

// Fills the tables of a fresh slot from the row's lists.
__device__ __forceinline__ void fill_slot(const Cta& cta, const SampleMemory& memory,
                                          const SampleRow& row) {
  const Slot& slot = at<const Slot>(memory.slots)[row.slot];
  const size_t first = static_cast<size_t>(row.slot) * memory.stride;
  if (has_penalty(slot.sampling))
    clear(cta, at<char>(memory.counts) + first * sizeof(uint16_t),
          memory.stride * sizeof(uint16_t));
  if (slot.biased)
    clear(cta, at<char>(memory.biases) + first * sizeof(float), memory.stride * sizeof(float));
  cta.sync();
  for (uint32_t i = cta.thread(); slot.biased && i < row.bias_count; i += CONSUMERS) {
    const Bias bias = at<const Bias>(row.biases)[i];
    at<float>(memory.biases)[first + bias.token] = bias.bias;
  }
  for (uint32_t i = cta.thread(); i < row.history_count; i += CONSUMERS)
    record_token(memory, row.slot, i, at<const uint32_t>(row.history)[i],
         i + RECENT_MAX >= row.history_count);
  cta.sync();
}

// Adds one row's request and known tokens to its slot.
__device__ __forceinline__ void update_row(const Cta& cta, const SampleMemory& memory, int index) {
  const SampleRow& row = at<const SampleRow>(memory.rows)[index];
  const BatchRow& batch = at<const BatchRow>(cta.memory.rows)[index];
  Slot& slot = at<Slot>(memory.slots)[row.slot];
  const BatchToken* tokens = at<const BatchToken>(cta.memory.tokens) + batch.first;
  if (row.fresh) fill_slot(cta, memory, row);
  const uint32_t known = row.fresh ? row.history_count : slot.known;
  for (uint32_t i = cta.thread(); i < row.known_count; i += CONSUMERS)
    if (batch.start + i >= known)
      record_token(memory, row.slot, batch.start + i, tokens[i].token,
                   i + RECENT_MAX >= row.known_count);
  cta.sync();
  if (cta.thread() != 0) return;
  const uint32_t end = batch.start + row.known_count;
  slot.known = known > end ? known : end;
  slot.held = 0;
}

__device__ __forceinline__ void update_slots(const Cta& cta, const SampleMemory& memory,
                                             int row_count) {
  for (int row = cta.index(); row < row_count; row += GRID) update_row(cta, memory, row);
}

}  // namespace kilotok
