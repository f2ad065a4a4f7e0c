// Verification of drafts by sample and match: a row's drafts are accepted up to the first one that
// differs from the target's choice, which replaces it. The reference is `Sampler::verify` in
// crates/sampling and of `Samplers::verify` in crates/batch.
//
// Reads the parts of choices and the batch; writes the rows' choices, the chosen tokens (which may
// be in the host's memory) and the slots. The caller's barrier comes between `sample` and this.
// Rows are assigned to CTAs in turn; a row takes about a microsecond.
#pragma once

#include "kilotok/phase/sample.cuh"
#include "kilotok/phase/slots.cuh"

namespace kilotok {

static_assert(TOKENS_MAX <= RECENT_MAX, "all tokens that a row adds are recent");

struct VerifyScratch {
  Resolved choices[WANTED_MAX];
  // Whether the model's logits were finite.
  uint32_t finite[WANTED_MAX];
  RowChoice row;
};

// Reduces the parts of a wanted token; the result is the same in all lanes.
__device__ __forceinline__ ChoicePart all_parts(const Cta& cta, const SampleMemory& memory,
                                                int wanted, int part_count) {
  static_assert(PARTS_MAX <= 32, "a lane for each part");
  const ChoicePart* parts = at<const ChoicePart>(memory.choice_parts) + wanted * PARTS_MAX;
  ChoicePart all = empty_part();
  if (cta.lane() < part_count) all = parts[cta.lane()];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    all.best = Min{}(all.best, __shfl_xor_sync(~0u, all.best, distance));
    all.winner = Min{}(all.winner, __shfl_xor_sync(~0u, all.winner, distance));
  }
  all.finite = __all_sync(~0u, all.finite);
  return all;
}

// Goes through the row's wanted tokens in order: first those whose next token is scored, then those
// after which a token was chosen. The last known token may be both.
__device__ __forceinline__ RowChoice accept_drafts(const Cta& cta, const SampleMemory& memory,
                                          const VerifyScratch& scratch, const SampleRow& row,
                                          const BatchRow& batch) {
  const Wanted* wanted = at<const Wanted>(memory.wanted) + row.wanted_first;
  const BatchToken* tokens = at<const BatchToken>(cta.memory.tokens) + batch.first;
  const auto at_fault = [&](RowChoice result, ChoiceFault fault, uint32_t token) {
    result.fault = static_cast<uint32_t>(fault);
    result.fault_position = batch.start + token + 1;
    return result;
  };
  RowChoice result = {0, 0, static_cast<uint32_t>(ChoiceFault::None), 0};
  for (uint32_t i = 0; i < row.wanted_count && wanted[i].scored != NO_TOKEN; i++) {
    if (!scratch.finite[i]) return at_fault(result, ChoiceFault::NotFinite, wanted[i].token);
    result.scored_count++;
  }
  if (!row.sample) return result;
  for (uint32_t i = 0; i < row.wanted_count; i++) {
    const uint32_t token = wanted[i].token;
    if (token + 1 < row.known_count) continue;
    const Resolved choice = scratch.choices[i];
    if (choice.fault != ChoiceFault::None) return at_fault(result, choice.fault, token);
    at<uint32_t>(memory.chosen)[row.wanted_first + i] = choice.token;
    result.token_count++;
    if (token + 1 >= batch.count || tokens[token + 1].token != choice.token) break;
  }
  return result;
}

// Calls `then` with the row, the number of chosen tokens, and the chosen tokens.
template <class Then>
__device__ __forceinline__ void verify_row(const Cta& cta, const SampleMemory& memory,
                                           VerifyScratch& scratch, int index, int parts,
                                           Then then) {
  const SampleRow& row = at<const SampleRow>(memory.rows)[index];
  const BatchRow& batch = at<const BatchRow>(cta.memory.rows)[index];
  Slot& slot = at<Slot>(memory.slots)[row.slot];
  const bool greedy = is_greedy(slot.sampling);
  for (uint32_t i = cta.warp(); i < row.wanted_count; i += CONSUMER_WARPS) {
    const ChoicePart part = all_parts(cta, memory, row.wanted_first + i, parts);
    if (cta.lane() != 0) continue;
    scratch.choices[i] = resolve(part, greedy);
    scratch.finite[i] = part.finite;
  }
  cta.sync();
  if (cta.thread() == 0) {
    scratch.row = accept_drafts(cta, memory, scratch, row, batch);
    at<RowChoice>(memory.row_choices)[index] = scratch.row;
  }
  cta.sync();
  const uint32_t count = scratch.row.token_count, first = batch.start + row.known_count;
  const int sampled = row.wanted_count - (batch.count - row.known_count + 1);
  for (uint32_t i = cta.thread(); i < count; i += CONSUMERS) {
    const uint32_t token = scratch.choices[sampled + i].token;
    record_token(memory, row.slot, first + i, token, true);
    if (i + 1 == count) {
      slot.anchor = token;
      slot.held = 1;
      slot.known = first + count;
    }
  }
  then(index, count, count > 0 ? scratch.choices + sampled : nullptr);
  cta.sync();
}

template <class Then>
__device__ __forceinline__ void verify_rows(const Cta& cta, const SampleMemory& memory,
                                            VerifyScratch& scratch, int row_count, int parts,
                                            Then then) {
  for (int row = cta.index(); row < row_count; row += GRID)
    verify_row(cta, memory, scratch, row, parts, then);
}

}  // namespace kilotok
