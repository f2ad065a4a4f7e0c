// Passes over a row that find the most likely token, whether all logits are finite, and, where no
// filter needs the whole row first, the winner of the race.
#pragma once

#include "kilotok/sample/race.cuh"

namespace kilotok {

struct Scan {
  // Becomes NaN when a logit is not finite.
  float nothing = 0.0f;
  float best = -exact::INFINITE;
  uint32_t token = NO_TOKEN;

  __device__ __forceinline__ void check(const float (&x)[QUAD]) {
#pragma unroll
    for (int j = 0; j < QUAD; j++) nothing = __fmaf_rn(x[j], 0.0f, nothing);
  }

  __device__ __forceinline__ void look(int first, const float (&x)[QUAD]) {
    if (fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])) <= best) return;
#pragma unroll
    for (int j = 0; j < QUAD; j++)
      if (x[j] > best) {
        best = x[j];
        token = first + j;
      }
  }

  __device__ __forceinline__ uint64_t key() const { return exact::rank_key(best, token); }
};

// Replaces logits that do not exist by the first of the four: a second one of the same value is
// never the best.
__device__ __forceinline__ void pad(float (&x)[QUAD], int count) {
  if (count >= QUAD) return;
#pragma unroll
  for (int j = 1; j < QUAD; j++)
    if (j >= count) x[j] = x[0];
}

struct ScanScratch {
  // The highest logit of each thread.
  float bests[CONSUMERS];
  uint64_t keys[2][CONSUMER_WARPS];
  int finite[CONSUMER_WARPS];
};

// Reduces the scans of all threads of the CTA.
__device__ __noinline__ ChoicePart reduce_scan(ScanScratch& scratch, const Scan& scan,
                                             uint64_t winner) {
  ChoicePart part;
  scratch.bests[Consumers::thread()] = scan.best;
  part.best = cta_reduce(scratch.keys[0], scan.key(), Min{});
  part.winner = cta_reduce(scratch.keys[1], winner, Min{});
  const bool finite = scan.nothing == 0.0f;
  part.finite = cta_reduce(scratch.finite, __all_sync(~0u, finite) ? 1 : 0,
                         [](int a, int b) { return a & b; });
  part.mass = part.reserved = 0;
  return part;
}

// Chooses in one pass over the part, without filters. Where a draft is judged, processed logits are
// written to `out`.
template <bool SAMPLED, bool CHANGED>
__device__ __noinline__ ChoicePart choose_part(const Position& at,
                                                  const Changes& changes, const RowScratch& row,
                                                  ScanScratch& scratch, float* out) {
  const float temperature = SAMPLED ? at.slot->sampling.temperature : 1.0f;
  const bool written = SAMPLED && CHANGED && at.judged();
  Scan scan;
  Race race(at, temperature);
  for_each_quad<SAMPLED ? 2 : CHANGED ? 4 : 6>(at.logits, at.begin, at.end,
                              [&](int token, float(&x)[QUAD], int count) {
                                pad(x, count);
                                scan.check(x);
                                if (CHANGED && count > 0) {
                                  changes.apply(token, x);
                                  pad(x, count);
                                  if (written) store_quad(out + token, x);
                                }
                                if (count > 0) scan.look(token, x);
                                if (SAMPLED)
                                  race.enter_quad(token, x, count, [&](float, uint32_t one) {
                                    return !at.is_candidate(one);
                                  });
                              });
  if (written) Consumers::sync();
  const int patch_count = CHANGED ? at.patch_count() : 0;
  for (int d = Consumers::thread(); d < patch_count; d += CONSUMERS) {
    const Patch patch = row.patches[d];
    if (patch.token == NO_TOKEN) continue;
    if (written) out[patch.token] = patch.logit;
    if (exact::rank_key(patch.logit, patch.token) < scan.key()) {
      scan.best = patch.logit;
      scan.token = patch.token;
    }
    if (SAMPLED && !at.is_candidate(patch.token)) race.enter(patch.token, patch.logit);
  }
  if (SAMPLED) scan.best = exact::div(scan.best, temperature);
  return reduce_scan(scratch, scan, race.winner);
}

// One pass that writes the processed logits to `out`, and finds the same as `choose_part`, except
// for a winner.
__device__ __noinline__ ChoicePart write_changed(const Position& at, const Changes& changes,
                                                 const RowScratch& row, ScanScratch& scratch,
                                                 float* out) {
  Scan scan;
  for_each_quad<4>(at.logits, at.begin, at.end, [&](int token, float(&x)[QUAD], int count) {
    pad(x, count);
    scan.check(x);
    if (count <= 0) return;
    changes.apply(token, x);
    pad(x, count);
    scan.look(token, x);
    store_quad(out + token, x);
  });
  Consumers::sync();
  for (int d = Consumers::thread(); d < at.patch_count(); d += CONSUMERS) {
    const Patch patch = row.patches[d];
    if (patch.token == NO_TOKEN) continue;
    out[patch.token] = patch.logit;
    if (exact::rank_key(patch.logit, patch.token) < scan.key()) {
      scan.best = patch.logit;
      scan.token = patch.token;
    }
  }
  return reduce_scan(scratch, scan, exact::NO_WINNER);
}

// The same for a row without changes, which is not written.
__device__ __noinline__ ChoicePart scan_row(const float* row, int vocab,
                                                ScanScratch& scratch) {
  Scan scan;
  for_each_quad<6>(row, 0, vocab, [&](int token, float(&x)[QUAD], int count) {
    pad(x, count);
    scan.check(x);
    if (count > 0) scan.look(token, x);
  });
  return reduce_scan(scratch, scan, exact::NO_WINNER);
}

}  // namespace kilotok
