// Verification of drafts. By sample and match, a row's drafts are accepted up to the first one that
// differs from the target's choice, which replaces it. By rejection sampling, drafts that were
// drawn are judged by comparing their distribution with the target's (sample/judge.cuh). The
// references are `Sampler::verify` and `Sampler::judge` in crates/sampling, and `Samplers::verify`
// in crates/batch.
//
// Reads the parts of choices and the batch; writes the rows' choices, the chosen tokens (which may
// be in the host's memory) and the slots. The caller's barrier comes between `sample` and this.
// Rows are assigned to CTAs in turn; a row takes about a microsecond.
#pragma once

#include "kilotok/phase/sample.cuh"
#include "kilotok/phase/slots.cuh"
#include "kilotok/sample/judge.cuh"

namespace kilotok {

static_assert(TOKENS_MAX <= RECENT_MAX, "all tokens that a row adds are recent");

struct VerifyScratch {
  Resolved choices[WANTED_MAX];
  // Whether the model's logits were finite.
  uint32_t finite[WANTED_MAX];
  // The drafts of a row, if they are judged.
  JudgedDraft drafts[DRAFT_ROWS > 0 ? DRAFT_ROWS : 1];
  RowChoice row;
};

// The result with a fault at the position after a token of the row.
__device__ __forceinline__ RowChoice at_fault(RowChoice result, const BatchRow& batch,
                                              ChoiceFault fault, uint32_t token) {
  result.fault = static_cast<uint32_t>(fault);
  result.fault_position = batch.start + token + 1;
  return result;
}

// A race without a winner chooses no token either.
__device__ __forceinline__ ChoiceFault fault_of(uint32_t token, ChoiceFault fault) {
  return fault == ChoiceFault::None && token == NO_TOKEN ? ChoiceFault::NothingAllowed : fault;
}

// The row's result before any token is chosen: how many successors are scored.
__device__ __forceinline__ RowChoice count_scored(const SampleMemory& memory,
                                                  const VerifyScratch& scratch,
                                                  const SampleRow& row, const BatchRow& batch) {
  const Wanted* wanted = at<const Wanted>(memory.wanted) + row.wanted_first;
  RowChoice result = {0, 0, static_cast<uint32_t>(ChoiceFault::None), 0};
#pragma unroll 1
  for (uint32_t i = 0; i < row.wanted_count && wanted[i].scored != NO_TOKEN; i++) {
    if (!scratch.finite[i])
      return at_fault(result, batch, ChoiceFault::NotFinite, wanted[i].token);
    result.scored_count++;
  }
  return result;
}

// By sample and match: goes through the row's wanted tokens after which a token was chosen, in
// order. Where the plan fixes how many drafts are accepted, those drafts replace the choices.
__device__ __forceinline__ RowChoice match_drafts(const Cta& cta, const SampleMemory& memory,
                                                  VerifyScratch& scratch,
                                                  const SampleRow& row, const BatchRow& batch) {
  const Wanted* wanted = at<const Wanted>(memory.wanted) + row.wanted_first;
  const BatchToken* tokens = at<const BatchToken>(cta.memory.tokens) + batch.first;
  RowChoice result = count_scored(memory, scratch, row, batch);
  if (result.fault != static_cast<uint32_t>(ChoiceFault::None)) return result;
  for (uint32_t i = 0; i < row.wanted_count && result.token_count < row.choice_count; i++) {
    const uint32_t token = wanted[i].token;
    if (token + 1 < row.known_count) continue;
    const bool last = token + 1 >= batch.count;
    const uint32_t draft = token + 1 - row.known_count;
    const uint32_t drafted = last ? NO_TOKEN : tokens[token + 1].token;
    if (row.verified < BY_MATCH && draft < row.verified && !last)
      scratch.choices[i] = {drafted, ChoiceFault::None};
    const Resolved choice = scratch.choices[i];
    const ChoiceFault fault = fault_of(choice.token, choice.fault);
    if (fault != ChoiceFault::None) return at_fault(result, batch, fault, token);
    at<uint32_t>(memory.chosen)[row.wanted_first + i] = choice.token;
    result.token_count++;
    if (last || (row.verified < BY_MATCH ? draft >= row.verified : drafted != choice.token)) break;
  }
  return result;
}

// By rejection sampling: accepts drafts, and chooses the token after them. `choices` begins with
// the choice after the last known token; its tokens are replaced.
struct Judgement {
  const Cta& cta;
  const SampleMemory& memory;
  const SampleRow& row;
  const BatchRow& batch;
  Resolved* choices;
  JudgedDraft* drafts;
  // For the first choice: the number of the row's wanted tokens before it, the index of its wanted
  // token, and the position of the token to choose.
  uint32_t before, wanted, first;
  int draft_count;

  __device__ __forceinline__ Judgement(const Cta& cta, const SampleMemory& memory,
                                       VerifyScratch& scratch, const SampleRow& row,
                                       const BatchRow& batch)
      : cta(cta), memory(memory), row(row), batch(batch), drafts(scratch.drafts) {
    draft_count = static_cast<int>(batch.count - row.known_count);
    before = row.wanted_count - draft_count - 1;
    choices = scratch.choices + before;
    wanted = row.wanted_first + before;
    first = batch.start + row.known_count;
  }

  __device__ __forceinline__ uint32_t draft(int i) const {
    return at<const BatchToken>(cta.memory.tokens)[batch.first + row.known_count + i].token;
  }
  __device__ __forceinline__ Judged* judged(int i) const {
    return at<Judged>(memory.judged) + static_cast<size_t>(wanted + i) * CANDIDATES_MAX;
  }
  __device__ __forceinline__ const Candidate* law(int i) const {
    return law_of(memory.proposals, row.slot, i);
  }
  __device__ __forceinline__ const Sampling& sampling() const {
    return at<const Slot>(memory.slots)[row.slot].sampling;
  }

  // A warp: loads the draft after one of the row's wanted tokens, given its reduced parts.
  __device__ __forceinline__ void load(uint32_t wanted_token, const ChoicePart& part) const {
    const int i = static_cast<int>(wanted_token - before);
    if (i < 0 || i >= draft_count) return;
    drafts[i].load(draft(i), law(i), judged(i), part,
                   {sampling(), first, Purpose::Accept, static_cast<uint32_t>(i)});
  }

  // The number of positions before the first one at which no token can be chosen.
  __device__ __forceinline__ int possible_count() const {
    int count = 0;
#pragma unroll 1
    while (count < static_cast<int>(row.choice_count) &&
           choices[count].fault == ChoiceFault::None)
      count++;
    return count;
  }

  // How many of the first drafts are kept; `kept_mass` is the factor of the target's distribution
  // after them.
  __device__ __forceinline__ int keep(int judged_count, float& kept_mass) const {
    int kept = 0;
    float mass = kept_mass = 1.0f;
#pragma unroll 1
    for (int i = 0; i < judged_count; i++) {
      mass = drafts[i].ratio(mass);
      const int after = i + 1;
      float kept_below = mass;
      if (after < judged_count) {
        const float residual = drafts[after].residual_mass(mass);
        kept_below = exact::div(residual, exact::add(residual, exact::sub(1.0f, mass)));
      }
      if (drafts[i].uniform <= kept_below) {
        kept = after;
        kept_mass = mass;
      }
    }
    return kept;
  }

  // The token after `kept` drafts, in place of the next draft.
  __device__ __forceinline__ uint32_t draw_residual(int kept, float mass) const {
    const exact::Draws draws(sampling(), first + kept, Purpose::Residual);
    const JudgedDraft& own = drafts[kept];
    uint64_t winner = exact::NO_WINNER;
    // Rounding can leave no residual; then the target's distribution replaces it.
#pragma unroll 1
    for (bool residual : {true, false})
      if (winner == exact::NO_WINNER) winner = own.race(draws, mass, residual);
    return static_cast<uint32_t>(winner);
  }

  // Chooses a token at a position where a draft was judged. If it is one of the candidates, the
  // candidate's report becomes the position's.
  __device__ __forceinline__ void take(int i, uint32_t token) const {
    if (cta.lane() == 0) choices[i].token = token;
    if (row.top_count == NO_TOKEN) return;
#pragma unroll 1
    for (int k = cta.lane(); k < CANDIDATES_MAX; k += 32) {
      if (law(i)[k].token != token) continue;
      Report& report = at<Report>(memory.reports)[wanted + i];
      report.chosen = judged(i)[k].logprob;
      report.chosen_rank = judged(i)[k].rank;
    }
  }

  // A warp: verifies the row.
  __device__ __forceinline__ RowChoice run(RowChoice result) const {
    const int possible = possible_count();
    float mass;
    const int kept = keep(min(draft_count, possible), mass);
#pragma unroll 1
    for (int i = 0; i < kept; i++) take(i, draft(i));
    result.token_count = kept;
    if (kept < static_cast<int>(row.choice_count)) {
      uint32_t token = choices[kept].token;
      if (kept < possible && kept < draft_count) {
        token = draw_residual(kept, mass);
        take(kept, token);
      }
      const ChoiceFault fault = fault_of(token, choices[kept].fault);
      if (fault != ChoiceFault::None)
        result = at_fault(result, batch, fault, row.known_count - 1 + kept);
      else
        result.token_count++;
    }
    __syncwarp();
#pragma unroll 1
    for (uint32_t i = cta.lane(); i < result.token_count; i += 32)
      at<uint32_t>(memory.chosen)[wanted + i] = choices[i].token;
    return result;
  }
};

__device__ __noinline__ RowChoice judge_drafts(const Cta& cta, const SampleMemory& memory,
                                               VerifyScratch& scratch, const SampleRow& row,
                                               const BatchRow& batch) {
  const RowChoice scored = count_scored(memory, scratch, row, batch);
  if (scored.fault != static_cast<uint32_t>(ChoiceFault::None)) return scored;
  return Judgement(cta, memory, scratch, row, batch).run(scored);
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
    const ChoicePart part = all_parts(memory, row.wanted_first + i, parts);
    if (row.verified == BY_REJECTION)
      Judgement(cta, memory, scratch, row, batch).load(i, part);
    if (cta.lane() != 0) continue;
    scratch.choices[i] = resolve(part, greedy);
    scratch.finite[i] = part.finite;
  }
  cta.sync();
  if (cta.warp() == 0) {
    RowChoice choice;
    if (row.verified == BY_REJECTION)
      choice = judge_drafts(cta, memory, scratch, row, batch);
    else if (cta.lane() == 0)
      choice = match_drafts(cta, memory, scratch, row, batch);
    if (cta.lane() == 0) {
      scratch.row = choice;
      at<RowChoice>(memory.row_choices)[index] = choice;
    }
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
