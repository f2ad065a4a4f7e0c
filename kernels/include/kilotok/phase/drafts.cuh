// Chooses the drafts: the argmax over all ranks' logits at every wanted token, of equal ones the
// first. The reference is `argmax` in crates/batch.
//
// Reads this rank's logits `[wanted, VOCAB_ROWS]`; writes `draft_parts` and `drafted`. The caller's
// grid barrier comes before, one of its own in between. CTAs share a wanted token as in `sample`.
#pragma once

#include "kilotok/comm/all_gather.cuh"
#include "kilotok/phase/sample.cuh"

namespace kilotok {

struct DraftScratch {
  uint64_t keys[CONSUMER_WARPS];
};

// The most likely token of a part of this rank's row.
__device__ __forceinline__ uint64_t argmax(const Cta& cta, DraftScratch& scratch, int wanted,
                                              int part, int parts) {
  constexpr int PART_TOKENS = 128;
  const float* row = at<const float>(cta.memory.logits) + static_cast<size_t>(wanted) * VOCAB_ROWS;
  const int each = ceil_div(RANK_LOGITS, parts * PART_TOKENS) * PART_TOKENS;
  const int begin = min(part * each, RANK_LOGITS), end = min(begin + each, RANK_LOGITS);
  Scan scan;
  for_each_quad<4>(row, begin, end, [&](int token, float(&x)[QUAD], int count) {
    pad(x, count);
    if (count > 0) scan.look(token, x);
  });
  if (scan.token != NO_TOKEN) scan.token += cta.memory.rank * RANK_LOGITS;
  return cta_reduce(scratch.keys, scan.key(), Min{});
}

__device__ __forceinline__ uint64_t warp_min_key(uint64_t key) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    key = Min{}(key, __shfl_xor_sync(~0u, key, distance));
  return key;
}

// Consumers. `number` is that of a collective which no other wait of this kind has used.
__device__ __noinline__ void argmax_drafts(Cta cta, DraftScratch& scratch, int wanted_count,
                                           uint32_t number) {
  uint64_t* found = at<uint64_t>(cta.memory.draft_parts);
  const int parts = parts_of(wanted_count);
  for (int unit = cta.index(); unit < wanted_count * parts; unit += GRID) {
    const int wanted = unit / parts, part = unit % parts;
    const uint64_t key = argmax(cta, scratch, wanted, part, parts);
    if (cta.thread() == 0) found[wanted * PARTS_MAX + part] = key;
    cta.sync();
  }
  cta.stamp(Stamp::ArgmaxDrafts);
  cta.sync_grid();
  for (int wanted = cta.index(); wanted < wanted_count; wanted += GRID) {
    if (cta.warp() != 0) continue;
    uint64_t key = exact::rank_key(-exact::INFINITE, NO_TOKEN);
    if (cta.lane() < parts) key = ptx::load_l2(found + wanted * PARTS_MAX + cta.lane());
    key = warp_min_key(key);
    key = warp_min_key(all_reduce_min(cta, wanted, key, number));
    const uint32_t token = static_cast<uint32_t>(key);
    // If all logits are NaN, any token.
    if (cta.lane() == 0) at<uint32_t>(cta.memory.drafted)[wanted] = token == NO_TOKEN ? 0 : token;
  }
  cta.stamp(Stamp::ArgmaxDrafts);
}

}  // namespace kilotok
