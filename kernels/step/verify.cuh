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

// Accepts drafts, and begins the next ones.
__device__ __forceinline__ void accept(const Cta& cta, const SampleMemory& sampling,
                                       VerifyScratch& scratch, int row_count, int parts) {
  verify_rows(cta, sampling, scratch, row_count, parts,
              [&](int row, uint32_t chosen_count, const Resolved* chosen) {
                if constexpr (DRAFT_ROWS > 0)
                  begin_draft(cta, sampling, row, chosen_count, chosen);
              });
  if (cta.index() == 0 && cta.thread() == 0)
    at<Timestamps>(cta.memory.timestamps)->verified = ptx::nanoseconds();
}

// The consumers of a launch do their work on a batch that is not empty.
template <class Work>
__device__ __forceinline__ void with_batch(const Memory& memory, Work work) {
  const Batch& batch = *at<const Batch>(memory.batch);
  if (batch.token_count == 0) return;
  Cta cta(memory, 0);
  if (cta.thread() == 0)
    wait_context =
        WaitContext::begin(memory.fault, memory.wait_max_ms, memory.rank, Launch::Verify);
  cta.sync();
  cta.stamp(Stamp::Begun);
  work(cta, batch);
  // As in the passes: if a CTA was moved to another SM, the rows of its first number were not
  // computed.
  if (cta.index() != wait_context.cta) __trap();
  cta.stamp(Stamp::Ended);
}

__device__ __forceinline__ void choose_tokens(const VerifyMemory& arguments,
                                              VerifyShared& shared) {
  const SampleMemory& sampling = arguments.sampling;
  with_batch(arguments.memory, [&](Cta& cta, const Batch& batch) {
    const int row_count = batch.row_count, wanted_count = batch.wanted_count;
    const int parts = parts_of(wanted_count);
    start_all_gather(cta, wanted_count);
    update_slots(cta, sampling, row_count);
    cta.stamp(Stamp::AllGather);
    cta.sync_grid();
    finish_all_gather(cta, batch.collectives + 1);
    cta.stamp(Stamp::AllGather);
    sample(cta, sampling, shared.sample, wanted_count, parts);
    cta.stamp(Stamp::Sample);
    cta.sync_grid();
    accept(cta, sampling, shared.verify, row_count, parts);
    cta.stamp(Stamp::Accept);
  });
}

// After the wide pass the same work is a chain of launches, because the head computes the logits of
// TOKENS_MAX wanted tokens at a time: slots, then sampling after each head, then verification. The
// same number of CTAs share a token in all of them, even where fewer tokens are left.
__device__ __forceinline__ int wide_parts() { return parts_of(TOKENS_MAX); }

__device__ __forceinline__ void update_wide_slots(const VerifyMemory& arguments) {
  with_batch(arguments.memory, [&](Cta& cta, const Batch& batch) {
    update_slots(cta, arguments.sampling, batch.row_count);
    cta.stamp(Stamp::AllGather);
  });
}

__device__ __forceinline__ void sample_wide(const VerifyMemory& arguments, VerifyShared& shared) {
  with_batch(arguments.memory, [&](Cta& cta, const Batch& batch) {
    if constexpr (RANKS > 1) {
      const uint32_t number = batch.collectives + 1;
      await_ranks(cta, number);
      start_all_gather(cta, batch.wanted_count);
      cta.sync_grid();
      finish_all_gather(cta, number);
      cta.stamp(Stamp::AllGather);
    }
    sample(cta, arguments.sampling, shared.sample, batch.wanted_count, wide_parts());
    cta.stamp(Stamp::Sample);
  });
}

__device__ __forceinline__ void verify_wide(const VerifyMemory& arguments, VerifyShared& shared) {
  with_batch(arguments.memory, [&](Cta& cta, const Batch& batch) {
    accept(cta, arguments.sampling, shared.verify, batch.row_count, wide_parts());
    cta.stamp(Stamp::Accept);
  });
}

}  // namespace kilotok
