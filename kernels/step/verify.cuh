// Between the target's pass and the drafts: the logits are all-gathered, tokens are sampled and
// verified, and each draft gets its first token and position.
#pragma once

#include "kilotok/comm/all_gather.cuh"
#include "kilotok/phase/verify.cuh"

namespace kilotok {

union VerifyShared {
  SampleScratch sample;
  VerifyScratch verify;
};

// A batch of drafts: a header, then arrays for the longest batch. The host has written everything
// except what is known only after verification.
struct DraftBatch {
  static constexpr int DRAFTS = DRAFT_ROWS > 0 ? TOKENS_MAX / DRAFT_ROWS : 1;
  Batch header;
  BatchToken tokens[TOKENS_MAX];
  BatchRow rows[TOKENS_MAX];
  uint32_t wanted[TOKENS_MAX];
};
// The host's layout (`Arrays` in crates/cuda/src/batch.rs), and the number of drafts of a batch.
static_assert(planned::BATCH_TOKENS == offsetof(DraftBatch, tokens), "tokens");
static_assert(planned::BATCH_ROWS == offsetof(DraftBatch, rows), "rows");
static_assert(planned::BATCH_WANTED == offsetof(DraftBatch, wanted), "wanted");
static_assert(planned::BATCH == sizeof(DraftBatch), "a batch");
static_assert(planned::BATCH_DRAFTS == DraftBatch::DRAFTS, "drafts of a batch");

// Begins a row's draft with its newest token: the last one chosen, or, where none could be chosen,
// the last known one, whose drafts are not used.
__device__ __forceinline__ void begin_draft(const Cta& cta, const SampleMemory& memory, int index,
                                            uint32_t chosen_count, const Resolved* chosen) {
  const SampleRow& row = at<const SampleRow>(memory.rows)[index];
  if (row.draft == NO_TOKEN || cta.thread() >= DRAFT_ROWS) return;
  const BatchRow& batch = at<const BatchRow>(cta.memory.rows)[index];
  const uint32_t start = batch.start + row.known_count + chosen_count - 1;
  DraftBatch& draft = at<DraftBatch>(memory.drafts)[row.draft / DraftBatch::DRAFTS];
  BatchRow& own = draft.rows[row.draft % DraftBatch::DRAFTS];
  BatchToken& token = draft.tokens[own.first + cta.thread()];
  token.position = start + cta.thread();
  if (cta.thread() != 0) return;
  own.start = start;
  if (chosen_count == 0) {
    const BatchToken* tokens = at<const BatchToken>(cta.memory.tokens) + batch.first;
    token.token = tokens[row.known_count - 1].token;
  } else {
    token.token = chosen[chosen_count - 1].token;
  }
}

__device__ __forceinline__ void choose_tokens(const VerifyMemory& arguments,
                                              VerifyShared& shared) {
  const Memory& memory = arguments.memory;
  const SampleMemory& sampling = arguments.sampling;
  const Batch& batch = *at<const Batch>(memory.batch);
  const int row_count = batch.row_count, wanted_count = batch.wanted_count;
  const int parts = parts_of(wanted_count);
  if (batch.token_count == 0) return;
  Cta cta(memory, 0);
  if (cta.thread() == 0)
    wait_context =
        WaitContext::begin(memory.fault, memory.wait_max_ms, memory.rank, Launch::Verify);
  cta.sync();
  cta.stamp(Stamp::Begun);
  start_all_gather(cta, wanted_count);
  update_slots(cta, sampling, row_count);
  cta.stamp(Stamp::AllGather);
  cta.sync_grid();
  finish_all_gather(cta, batch.collectives + 1);
  cta.stamp(Stamp::AllGather);
  sample(cta, sampling, shared.sample, wanted_count, parts);
  cta.stamp(Stamp::Sample);
  cta.sync_grid();
  verify_rows(cta, sampling, shared.verify, row_count, parts,
              [&](int row, uint32_t chosen_count, const Resolved* chosen) {
                if constexpr (DRAFT_ROWS > 0)
                  begin_draft(cta, sampling, row, chosen_count, chosen);
              });
  if (cta.index() == 0 && cta.thread() == 0)
    at<Timestamps>(memory.timestamps)->verified = ptx::nanoseconds();
  // As in the passes: if a CTA was moved to another SM, the rows of its first number were not
  // computed.
  if (cta.index() != wait_context.cta) __trap();
  cta.stamp(Stamp::Accept);
  cta.stamp(Stamp::Ended);
}

}  // namespace kilotok
