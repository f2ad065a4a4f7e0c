// Chooses the drafts. The draft at a wanted token is the argmax over all ranks' logits, the first
// token of equals: the reference is `likeliest` in crates/batch. For rejection sampling a draft is
// drawn from a distribution over its CANDIDATES_MAX likeliest tokens, and this distribution (its
// *law*) is kept for verification: the reference is `Sampler::propose` in crates/sampling.
//
// Reads this rank's logits `[wanted, VOCAB_ROWS]`; writes `drafted`, and in `DraftMemory` the laws
// and what each CTA found in its part. The caller's grid barrier comes before, and one of its own
// in between. CTAs share a wanted token as in `sample`. A rank sends the others 16 bytes for a
// draft, or 1 KB for one that is drawn.
#pragma once

#include "kilotok/comm/all_gather.cuh"
#include "kilotok/layout/batch.cuh"
#include "kilotok/phase/sample.cuh"
#include "kilotok/sample/draw.cuh"

namespace kilotok {

struct DraftScratch {
  uint64_t keys[CONSUMER_WARPS];
  DrawScratch drawn;
};

// The part of this rank's row that a CTA reads.
__device__ __forceinline__ RowPart part_of(const Cta& cta, int wanted, int part, int parts) {
  constexpr int PART_TOKENS = 128;
  const float* row = at<const float>(cta.memory.logits) + static_cast<size_t>(wanted) * VOCAB_ROWS;
  const int each = ceil_div(RANK_LOGITS, parts * PART_TOKENS) * PART_TOKENS;
  const int begin = min(part * each, RANK_LOGITS), end = min(begin + each, RANK_LOGITS);
  return {row, begin, end, static_cast<int>(cta.memory.rank) * RANK_LOGITS};
}

// The most likely token of a part of this rank's row.
__device__ __forceinline__ uint64_t argmax(DraftScratch& scratch, const RowPart& part) {
  Scan scan = part.scan();
  if (scan.token != NO_TOKEN) scan.token += part.first_token;
  return cta_reduce(scratch.keys, scan.key(), Min{});
}

// Consumers. `number` is that of a collective which no other wait of this kind has used.
__device__ __noinline__ void choose_drafts(Cta cta, DraftScratch& scratch, const HeldBatch& batch,
                                           uint32_t number) {
  const DraftMemory& memory = *at<const DraftMemory>(cta.memory.drafting);
  uint64_t* found = at<uint64_t>(memory.parts);
  uint64_t* candidates = at<uint64_t>(memory.candidates);
  uint32_t* drafted = at<uint32_t>(cta.memory.drafted);
  const auto drawn = [&](int wanted) -> DrawnDraft {
    const uint32_t token = at<const uint32_t>(cta.memory.wanted)[wanted];
    const BatchRow& row = batch.rows[batch.tokens[token].row];
    return {row.slot, static_cast<int>(token - row.first) - 1, row.start + 1};
  };
  const int wanted_count = batch.counts.wanted_count, parts = parts_of(wanted_count);
  for (int unit = cta.index(); unit < wanted_count * parts; unit += GRID) {
    const int wanted = unit / parts, part = unit % parts, place = wanted * PARTS_MAX + part;
    const RowPart own = part_of(cta, wanted, part, parts);
    if (drawn(wanted).slot == NO_TOKEN) {
      const uint64_t key = argmax(scratch, own);
      if (cta.thread() == 0) found[place] = key;
    } else {
      const int number_of_part = static_cast<int>(cta.memory.rank) * PARTS_MAX + part;
      list_candidates(scratch.drawn, own, number_of_part, candidates + place * CANDIDATES_MAX);
    }
    cta.sync();
  }
  cta.stamp(Stamp::ArgmaxDrafts);
  cta.sync_grid();
  for (int wanted = cta.index(); wanted < wanted_count; wanted += GRID) {
    const DrawnDraft draft = drawn(wanted);
    if (draft.slot != NO_TOKEN) {
      uint64_t* list = scratch.drawn.list;
      merge_candidates(scratch.drawn, candidates + wanted * PARTS_MAX * CANDIDATES_MAX, parts);
      all_gather_candidates(cta, wanted, list, number);
      if (RANKS > 1) sort(list, RANKS * CANDIDATES_MAX);
      if (cta.warp() == 0) {
        const uint32_t token = draw(memory, list, draft);
        if (cta.lane() == 0) drafted[wanted] = token;
      }
      cta.sync();
      continue;
    }
    if (cta.warp() != 0) continue;
    uint64_t key = exact::rank_key(-exact::INFINITE, NO_TOKEN);
    if (cta.lane() < parts) key = ptx::load_l2(found + wanted * PARTS_MAX + cta.lane());
    key = warp_min_key(key);
    key = warp_min_key(all_reduce_min(cta, wanted, key, number));
    const uint32_t token = static_cast<uint32_t>(key);
    // If all logits are NaN, any token.
    if (cta.lane() == 0) drafted[wanted] = token == NO_TOKEN ? 0 : token;
  }
  cta.stamp(Stamp::ArgmaxDrafts);
}

}  // namespace kilotok
