// Sampling: chooses a token at every wanted position, bit for bit as `Sampler::choose` of
// crates/sampling does. A position assumes that the drafts before it are accepted; `verify` finds
// how many are.
//
// Reads the wanted tokens' logits `[wanted, stride]`, the batch, the slots' tables. Writes the
// parts of choices, reports and tops. The caller's barriers: logits and `update_slots` before, one
// between this and `verify`. A unit is a part of the row of a wanted token; units are assigned to
// CTAs in turn. A position whose request filters or reports needs the whole row, more than once:
// the CTA of its first part computes it alone. Where a draft is judged, one more pass adds up the
// target's probabilities, after the highest logit is known. Where the row is in parts, a barrier
// comes before that pass.
//
// A pass reads 4 bytes a token of the vocabulary, from L2. For 152,576 tokens on an H100 (at
// 5c02fd0, benches/results/kernels.md) a greedy choice takes one CTA 10 us and 16 CTAs 2 us, a draw
// 39 us and 7 us; top-k or min-p takes 30 us in two passes, top-p 80 us in three, or 430 us if more
// than two thousand tokens are left; reports take 40 us to 60 us more. `verify` and two barriers
// take 6 us.
#pragma once

#include "kilotok/sample/report.cuh"

namespace kilotok {

struct SampleScratch {
  union {
    // For the first pass over a row.
    RowScratch row;
    // For the passes after it.
    RankScratch rank;
  };
  ScanScratch scan;
  // The candidates of a draft that is judged.
  CandidateSet candidates;
};

struct Resolved {
  uint32_t token;
  ChoiceFault fault;
};

// The choice that follows from a position's reduced parts.
__device__ __forceinline__ Resolved resolve(const ChoicePart& part, bool greedy) {
  const float max = exact::logit_of(part.best);
  if (!part.finite || max == exact::INFINITE) return {NO_TOKEN, ChoiceFault::NotFinite};
  if (max == -exact::INFINITE) return {NO_TOKEN, ChoiceFault::NothingAllowed};
  return {static_cast<uint32_t>(greedy ? part.best : part.winner), ChoiceFault::None};
}

// The result of a part without tokens.
__device__ __forceinline__ ChoicePart empty_part() {
  return {exact::rank_key(-exact::INFINITE, NO_TOKEN), exact::NO_WINNER, 0, 1, 0};
}

// A warp reduces the parts of a wanted token; the result is the same in all lanes.
__device__ __forceinline__ ChoicePart all_parts(const SampleMemory& memory, int wanted,
                                                int part_count) {
  static_assert(PARTS_MAX <= 32, "a lane for each part");
  const ChoicePart* parts = at<const ChoicePart>(memory.choice_parts) + wanted * PARTS_MAX;
  ChoicePart all = empty_part();
  if (Consumers::lane() < part_count) all = parts[Consumers::lane()];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    all.best = Min{}(all.best, __shfl_xor_sync(~0u, all.best, distance));
    all.winner = Min{}(all.winner, __shfl_xor_sync(~0u, all.winner, distance));
    all.mass += __shfl_xor_sync(~0u, all.mass, distance);
  }
  all.finite = __all_sync(~0u, all.finite);
  return all;
}

// The position after a wanted token.
__device__ __forceinline__ Position position_of(const Cta& cta, const SampleMemory& memory,
                                                int index) {
  const Wanted& wanted = at<const Wanted>(memory.wanted)[index];
  const SampleRow& row = at<const SampleRow>(memory.rows)[wanted.row];
  const BatchRow& batch = at<const BatchRow>(cta.memory.rows)[wanted.row];
  const uint32_t last_known = row.known_count - 1;
  Position found;
  found.slot = at<const Slot>(memory.slots) + row.slot;
  found.slot_index = row.slot;
  found.position = batch.start + wanted.token + 1;
  found.first = batch.start + row.known_count;
  found.drafts = at<const BatchToken>(cta.memory.tokens) + batch.first + row.known_count;
  found.draft_count = static_cast<int>(wanted.token) - static_cast<int>(last_known);
  found.mask = nullptr;
  if (row.mask_first != NO_TOKEN && found.draft_count >= 0)
    found.mask = at<const uint32_t>(memory.masks) +
                 static_cast<size_t>(row.mask_first + found.draft_count) * memory.mask_words;
  found.logits = at<const float>(memory.logits) + static_cast<size_t>(index) * memory.stride;
  found.begin = 0;
  found.end = static_cast<int>(memory.vocab);
  found.candidates = nullptr;
  found.candidate_count = 0;
  return found;
}

// Loads the candidates of the draft that is judged at a position.
__device__ __noinline__ void load_candidates(const SampleMemory& memory, SampleScratch& scratch,
                                                Position& at) {
  static_assert(CANDIDATES_MAX <= CONSUMERS, "a thread loads one");
  CandidateSet& set = scratch.candidates;
  for (int word = Consumers::thread(); word < CandidateSet::WORDS; word += CONSUMERS)
    set.bits[word] = 0;
  Consumers::sync();
  const Candidate* law = law_of(memory.proposals, at.slot_index, at.draft_count);
  if (Consumers::thread() < CANDIDATES_MAX) {
    const uint32_t token = law[Consumers::thread()].token;
    set.tokens[Consumers::thread()] = token;
    if (token != NO_TOKEN)
      atomicOr(&set.bits[token / 32 % CandidateSet::WORDS], 1u << token % 32);
  }
  Consumers::sync();
  at.candidates = &set;
  at.candidate_count = 0;
  for (int first = 0; first < CANDIDATES_MAX; first += 32) {
    const bool present = set.tokens[first + Consumers::lane()] != NO_TOKEN;
    at.candidate_count += __popc(__ballot_sync(~0u, present));
  }
}

// The processed logits of a wanted token.
__device__ __forceinline__ float* processed_row(const SampleMemory& memory, int index) {
  return at<float>(memory.processed) + static_cast<size_t>(index) * memory.stride;
}

// Stores the processed logit of each candidate in the position's part, given which tokens are kept.
__device__ __forceinline__ void note_candidates(const SampleMemory& memory, const Position& at,
                                                const Kept& kept, int wanted) {
  if (Consumers::thread() >= CANDIDATES_MAX) return;
  const Candidate* law = law_of(memory.proposals, at.slot_index, at.draft_count);
  const uint32_t token = law[Consumers::thread()].token;
  if (token < static_cast<uint32_t>(at.begin) || token >= static_cast<uint32_t>(at.end)) return;
  float logit = kept.value(kept.row[token]);
  if (!kept.has(logit, exact::rank_key(logit, token))) logit = -exact::INFINITE;
  Judged* judged = kilotok::at<Judged>(memory.judged) + wanted * CANDIDATES_MAX;
  judged[Consumers::thread()].logit = logit;
}

// Chooses where more than one pass over the row is needed.
__device__ __forceinline__ ChoicePart choose_in_passes(const SampleMemory& memory,
                                                       SampleScratch& scratch, const Position& at,
                                                       int wanted) {
  const float* row = at.logits;
  forbid(memory, at, scratch.row);
  const Changes changes(memory, at, scratch.row);
  ChoicePart part;
  if (changes.any()) {
    float* out = processed_row(memory, wanted);
    part = write_changed(at, changes, scratch.row, scratch.scan, out);
    row = out;
  } else {
    part = scan_row(row, at.end, scratch.scan);
  }
  if (at.greedy()) return part;
  const Sampling& sampling = at.slot->sampling;
  Kept kept(row, at.end, sampling.temperature, exact::logit_of(part.best));
  part.best = exact::rank_key(kept.max, static_cast<uint32_t>(part.best));
  if (resolve(part, false).fault != ChoiceFault::None) return part;
  // All threads have finished the first pass, so its scratch memory is free.
  if (at.filtered()) filter(scratch.rank, scratch.scan.bests, sampling, kept);
  if (at.judged()) {
    note_candidates(memory, at, kept, wanted);
    part.mass = mass_of(scratch.rank, kept);
  }
  const uint64_t winner = race(scratch.rank, at, kept);
  part.winner = cta_reduce(scratch.scan.keys[1], winner, Min{});
  Consumers::sync();
  return part;
}

// The work at a wanted token.
struct Work {
  bool chooses, judges;
  // Whether one CTA reads the whole row.
  bool whole;
  uint32_t top_count;
  // The draft that replaces the choice, where the plan fixes how many drafts are accepted
  // (phase/verify.cuh), or NO_TOKEN.
  uint32_t assumed;

  __device__ __forceinline__ Work(const Cta& cta, const SampleMemory& memory, int index) {
    const Wanted& wanted = at<const Wanted>(memory.wanted)[index];
    const SampleRow& row = at<const SampleRow>(memory.rows)[wanted.row];
    const BatchRow& batch = at<const BatchRow>(cta.memory.rows)[wanted.row];
    const uint32_t draft = wanted.token + 1 - row.known_count;
    chooses = wanted.token + 1 >= row.known_count && draft < row.choice_count;
    // At a row's last token there is no draft.
    const bool drafted = chooses && wanted.token + 1 < batch.count;
    judges = row.verified == BY_REJECTION && drafted;
    assumed = NO_TOKEN;
    if (drafted && row.verified < BY_MATCH && draft < row.verified)
      assumed =
          at<const BatchToken>(cta.memory.tokens)[batch.first + wanted.token + 1].token;
    top_count = row.top_count;
    const bool reports = wanted.scored != NO_TOKEN || top_count != NO_TOKEN;
    whole = !chooses || reports || is_filtered(at<const Slot>(memory.slots)[row.slot].sampling);
  }
};

// Samples a wanted token from its whole row, by one CTA.
__device__ __forceinline__ ChoicePart sample_whole(const Cta& cta, const SampleMemory& memory,
                                                   SampleScratch& scratch, const Position& at,
                                                   int index, const Work& work) {
  const uint32_t top_count = work.top_count;
  const uint32_t scored = kilotok::at<const Wanted>(memory.wanted)[index].scored;
  ChoicePart part = empty_part();
  uint32_t chosen = NO_TOKEN;
  if (work.chooses) {
    part = choose_in_passes(memory, scratch, at, index);
    chosen = work.assumed != NO_TOKEN ? work.assumed : resolve(part, at.greedy()).token;
  }
  if (top_count == NO_TOKEN) chosen = NO_TOKEN;
  const bool reported = chosen != NO_TOKEN || scored != NO_TOKEN ||
                        (at.judged() && top_count != NO_TOKEN);
  if (!part.finite || !reported) return part;
  const ChoicePart raw = scan_row(at.logits, at.end, scratch.scan);
  part.finite = raw.finite;
  if (!raw.finite) return part;
  cta.sync();
  report(memory, scratch.rank, scratch.scan.bests, at, index, exact::logit_of(raw.best), chosen,
         scored, top_count == NO_TOKEN ? 0 : top_count);
  return part;
}

// Samples one part of a row, for a position that needs one pass only.
__device__ __forceinline__ ChoicePart sample_part(const SampleMemory& memory,
                                                  SampleScratch& scratch, const Position& at,
                                                  int index) {
  if (at.begin >= at.end) return empty_part();
  forbid(memory, at, scratch.row);
  const Changes changes(memory, at, scratch.row);
  float* out = processed_row(memory, index);
  if (at.greedy())
    return changes.any() ? choose_part<false, true>(at, changes, scratch.row, scratch.scan, out)
                         : choose_part<false, false>(at, changes, scratch.row, scratch.scan, out);
  return changes.any() ? choose_part<true, true>(at, changes, scratch.row, scratch.scan, out)
                       : choose_part<true, false>(at, changes, scratch.row, scratch.scan, out);
}

// Restricts a position to one of its parts.
__device__ __forceinline__ void take_part(Position& at, int part, int parts) {
  // A part begins at a word of the mask, and at a cache line.
  constexpr int PART_TOKENS = 128;
  const int vocab = at.end;
  const int each = (vocab + parts * PART_TOKENS - 1) / (parts * PART_TOKENS) * PART_TOKENS;
  at.begin = min(part * each, vocab);
  at.end = min(at.begin + each, vocab);
}

// Samples one unit: part `part` of `parts` of wanted token `index`.
__device__ __forceinline__ void sample_unit(const Cta& cta, const SampleMemory& memory,
                                            SampleScratch& scratch, int index, int part,
                                            int parts) {
  const Work work(cta, memory, index);
  ChoicePart found = empty_part();
  if (!work.whole || part == 0) {
    Position position = position_of(cta, memory, index);
    if (work.judges) load_candidates(memory, scratch, position);
    if (work.whole) {
      found = sample_whole(cta, memory, scratch, position, index, work);
    } else {
      take_part(position, part, parts);
      found = sample_part(memory, scratch, position, index);
    }
  }
  cta.sync();
  if (cta.thread() == 0)
    at<ChoicePart>(memory.choice_parts)[index * PARTS_MAX + part] = found;
}

// Adds up the probabilities of a unit's part, where a draft is judged and the row is in parts.
__device__ __forceinline__ void weigh_unit(const Cta& cta, const SampleMemory& memory,
                                           SampleScratch& scratch, int index, int part,
                                           int parts) {
  const Work work(cta, memory, index);
  if (!work.judges || work.whole) return;
  Position position = position_of(cta, memory, index);
  const bool changed = Changes(memory, position, scratch.row).any();
  const float* row = changed ? processed_row(memory, index) : position.logits;
  const ChoicePart all = all_parts(memory, index, parts);
  Kept kept(row, position.end, position.slot->sampling.temperature, 0.0f);
  kept.max = exact::logit_of(all.best);
  take_part(position, part, parts);
  note_candidates(memory, position, kept, index);
  kept.row += position.begin;
  kept.vocab = position.end - position.begin;
  const uint64_t mass = mass_of(scratch.rank, kept);
  if (cta.thread() == 0)
    at<ChoicePart>(memory.choice_parts)[index * PARTS_MAX + part].mass = mass;
  cta.sync();
}

// How many CTAs share a position, so that as many as possible have work. The result does not depend
// on it.
__device__ __forceinline__ int parts_of(int wanted_count) {
  return max(1, min(PARTS_MAX, GRID / max(1, wanted_count)));
}

// Whether `weigh_unit` has work at any wanted token; every warp finds the same.
__device__ __forceinline__ bool any_weighed(const Cta& cta, const SampleMemory& memory,
                                            int wanted_count) {
  bool found = false;
  for (int index = cta.lane(); index < wanted_count; index += 32) {
    const Work work(cta, memory, index);
    found |= work.judges && !work.whole;
  }
  return __any_sync(~0u, found);
}

// `verify` must be called with the same `parts`.
__device__ __forceinline__ void sample(Cta& cta, const SampleMemory& memory,
                                       SampleScratch& scratch, int wanted_count, int parts) {
  const int units = wanted_count * parts;
  for (int unit = cta.index(); unit < units; unit += GRID)
    sample_unit(cta, memory, scratch, unit / parts, unit % parts, parts);
  if (!any_weighed(cta, memory, wanted_count)) return;
  cta.sync_grid();
  for (int unit = cta.index(); unit < units; unit += GRID)
    weigh_unit(cta, memory, scratch, unit / parts, unit % parts, parts);
}

}  // namespace kilotok
