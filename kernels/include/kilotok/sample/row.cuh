// The logit processors: what a request changes in one row of logits before a token is chosen (bias,
// penalties, bad words, end tokens, mask). The reference is `process` in crates/sampling.
//
// Drafts before the position are part of its history but not of the slot's counts. Their tokens are
// patched: left out of the pass over the row and processed one by one.
#pragma once

#include "kilotok/cta.cuh"
#include "kilotok/sample/exact.cuh"

namespace kilotok {

// The consumers of this CTA. Functions that are not inlined use this, so that the `Cta` can stay in
// registers.
struct Consumers {
  static __device__ __forceinline__ int thread() { return threadIdx.x; }
  static __device__ __forceinline__ int warp() { return threadIdx.x / 32; }
  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ void sync() { ptx::sync_threads<CONSUMERS>(); }
};

constexpr int QUAD = 4;
constexpr int VOCAB_WORDS = ceil_div(VOCAB, 32);

// `Setup::TEMPERATURE_MIN`.
constexpr float TEMPERATURE_MIN = 1e-5f;

__device__ __forceinline__ bool is_greedy(const Sampling& s) {
  return s.temperature < TEMPERATURE_MIN;
}

// By min-p, top-k or top-p.
__device__ __forceinline__ bool is_filtered(const Sampling& s) {
  return !is_greedy(s) && (s.top_k > 0 || s.top_p < 1.0f || s.min_p > 0.0f);
}

__device__ __forceinline__ bool has_penalty(const Sampling& s) {
  return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f ||
         s.frequency_penalty != 0.0f;
}

// The candidates of a draft, in shared memory.
struct CandidateSet {
  // A bit for the tokens that are equal modulo 32 * WORDS: few tokens are compared with the list.
  static constexpr int WORDS = 1024;
  uint32_t tokens[CANDIDATES_MAX];
  uint32_t bits[WORDS];

  __device__ __forceinline__ bool has(uint32_t token, int count) const {
    if ((bits[token / 32 % WORDS] >> token % 32 & 1) == 0) return false;
    for (int i = 0; i < count; i++)
      if (tokens[i] == token) return true;
    return false;
  }
};

// A position for which a token is chosen, and the logits to choose by.
struct Position {
  const Slot* slot;
  uint32_t slot_index;
  // The position of the token to choose, and that of the row's first draft.
  uint32_t position, first;
  const BatchToken* drafts;
  // Drafts before the position.
  int draft_count;
  // Allowed tokens, or null.
  const uint32_t* mask;
  const float* logits;
  // The part of the row to read; both are multiples of 128, or the row's end.
  int begin, end;
  // Where a draft is judged: the tokens that it could have been. `verify` lets them race, when it
  // knows the factor of the target's distribution; here all other tokens race.
  const CandidateSet* candidates;
  int candidate_count;

  __device__ __forceinline__ bool judged() const { return candidates != nullptr; }

  // The purpose of the race's random numbers.
  __device__ __forceinline__ Purpose purpose() const {
    return judged() ? Purpose::Residual : Purpose::Target;
  }

  __device__ __forceinline__ bool is_candidate(uint32_t token) const {
    return judged() && candidates->has(token, candidate_count);
  }

  __device__ __forceinline__ bool greedy() const { return is_greedy(slot->sampling); }
  __device__ __forceinline__ bool penalised() const { return has_penalty(slot->sampling); }

  __device__ __forceinline__ bool filtered() const { return is_filtered(slot->sampling); }

  __device__ __forceinline__ bool forbids_end() const {
    const uint32_t prompt = slot->prompt_count;
    const uint32_t generated = position > prompt ? position - prompt : 0;
    return generated < slot->sampling.min_tokens && slot->end_token_count > 0;
  }

  // Whether a pass needs the bits of allowed tokens.
  __device__ __forceinline__ bool forbids() const {
    return mask != nullptr || slot->bad_word_count > 0 || forbids_end() || patch_count() > 0;
  }

  __device__ __forceinline__ int patch_count() const { return penalised() ? draft_count : 0; }
};

// The token of a draft before the position, with its final logit before temperature.
struct Patch {
  uint32_t token;
  float logit;
};

constexpr uint32_t NO_TOKEN = ~0u;

// The distribution from which a slot's draft was drawn: CANDIDATES_MAX entries, the last ones
// without a token.
__device__ __forceinline__ Candidate* law_of(uint64_t proposals, uint32_t slot, int draft) {
  return at<Candidate>(proposals) +
         (static_cast<size_t>(slot) * DRAFT_ROWS + draft) * CANDIDATES_MAX;
}

struct RowScratch {
  // A bit for each token: whether a pass over the row may choose it.
  uint32_t allowed[VOCAB_WORDS];
  Patch patches[TOKENS_MAX];
};

__device__ __noinline__ float penalise(float x, uint32_t counted, const Sampling& s) {
  if (counted == 0) return x;
  x = x > 0.0f ? exact::quotient(x, s.repetition_penalty) : exact::mul(x, s.repetition_penalty);
  const uint32_t output = counted & OUTPUT_COUNT_MAX;
  if (output == 0) return x;
  x = exact::sub(x, exact::mul(s.frequency_penalty, __uint2float_rn(output)));
  return exact::sub(x, s.presence_penalty);
}

// A slot's 16 bits for a token, after one more occurrence.
__device__ __forceinline__ uint32_t counted_again(uint32_t counted, bool output) {
  const uint32_t count = counted & OUTPUT_COUNT_MAX;
  return SEEN | (output && count < OUTPUT_COUNT_MAX ? count + 1 : count);
}

// The changes that a pass over the row applies; null where there are none.
struct Changes {
  const float* biases;
  const uint16_t* counts;
  const uint32_t* allowed;
  Sampling sampling;

  __device__ __forceinline__ Changes(const SampleMemory& memory, const Position& at,
                                     const RowScratch& scratch)
      : sampling(at.slot->sampling) {
    const size_t row = static_cast<size_t>(at.slot_index) * memory.stride;
    biases = at.slot->biased ? kilotok::at<const float>(memory.biases) + row : nullptr;
    counts = at.penalised() ? kilotok::at<const uint16_t>(memory.counts) + row : nullptr;
    allowed = at.forbids() ? scratch.allowed : nullptr;
  }

  __device__ __forceinline__ bool any() const { return biases || counts || allowed; }

  __device__ __forceinline__ void apply(int token, float (&x)[QUAD]) const {
    if (biases) {
      const float4 bias = *reinterpret_cast<const float4*>(biases + token);
      x[0] = exact::add(x[0], bias.x);
      x[1] = exact::add(x[1], bias.y);
      x[2] = exact::add(x[2], bias.z);
      x[3] = exact::add(x[3], bias.w);
    }
    if (counts) {
      const uint2 two = *reinterpret_cast<const uint2*>(counts + token);
      if ((two.x | two.y) != 0) {
        x[0] = penalise(x[0], two.x & 0xffff, sampling);
        x[1] = penalise(x[1], two.x >> 16, sampling);
        x[2] = penalise(x[2], two.y & 0xffff, sampling);
        x[3] = penalise(x[3], two.y >> 16, sampling);
      }
    }
    if (allowed) {
      const uint32_t bits = allowed[token / 32] >> token % 32;
#pragma unroll
      for (int j = 0; j < QUAD; j++)
        if ((bits >> j & 1) == 0) x[j] = -exact::INFINITE;
    }
  }
};

// The token at an earlier position.
__device__ __forceinline__ uint32_t token_before(const SampleMemory& memory, const Position& at,
                                                 uint32_t position) {
  if (position >= at.first) return at.drafts[position - at.first].token;
  const uint32_t* recent = kilotok::at<const uint32_t>(memory.recent);
  return recent[at.slot_index * RECENT_MAX + position % RECENT_MAX];
}

// The token that would complete a bad word, if the history ends with the word's other tokens.
__device__ __forceinline__ uint32_t completes(const SampleMemory& memory, const Position& at,
                                              int word) {
  const uint32_t* ends = kilotok::at<const uint32_t>(memory.bad_ends) +
                         static_cast<size_t>(at.slot_index) * BAD_WORDS_MAX;
  const uint32_t* tokens = kilotok::at<const uint32_t>(memory.bad_tokens) +
                           static_cast<size_t>(at.slot_index) * BAD_TOKENS_MAX;
  const uint32_t last = ends[word] - 1;
  const uint32_t others = last - (word > 0 ? ends[word - 1] : 0);
  if (others > at.position) return NO_TOKEN;
  for (uint32_t back = 1; back <= others; back++)
    if (token_before(memory, at, at.position - back) != tokens[last - back]) return NO_TOKEN;
  return tokens[last];
}

// The logit of draft `d`'s token with all changes of the request, or NO_TOKEN if an earlier draft
// has the same token.
__device__ __forceinline__ Patch patch(const SampleMemory& memory, const Position& at,
                                       const RowScratch& scratch, int d) {
  const uint32_t token = at.drafts[d].token;
  const size_t place = static_cast<size_t>(at.slot_index) * memory.stride + token;
  if (token < at.begin || token >= at.end) return {NO_TOKEN, 0.0f};
  uint32_t counted = kilotok::at<const uint16_t>(memory.counts)[place];
  for (int other = 0; other < at.draft_count; other++) {
    if (at.drafts[other].token != token) continue;
    if (other < d) return {NO_TOKEN, 0.0f};
    counted = counted_again(counted, at.first + other >= at.slot->prompt_count);
  }
  float x = at.logits[token];
  if (at.slot->biased) x = exact::add(x, kilotok::at<const float>(memory.biases)[place]);
  x = penalise(x, counted, at.slot->sampling);
  const bool allowed = scratch.allowed[token / 32] >> token % 32 & 1;
  return {token, allowed ? x : -exact::INFINITE};
}

// Fills the bits of the position's part and the patches, if a pass needs them.
__device__ __noinline__ void forbid(const SampleMemory& memory,
                                       const Position& at, RowScratch& scratch) {
  if (!at.forbids()) return;
  const int first = at.begin / 32, end = (at.end + 31) / 32;
  const auto clear = [&](uint32_t token) {
    const int word = static_cast<int>(token / 32);
    if (word >= first && word < end) atomicAnd(&scratch.allowed[word], ~(1u << token % 32));
  };
  for (int word = first + Consumers::thread(); word < end; word += CONSUMERS)
    scratch.allowed[word] = at.mask ? at.mask[word] : ~0u;
  Consumers::sync();
  for (int word = Consumers::thread(); word < at.slot->bad_word_count; word += CONSUMERS)
    clear(completes(memory, at, word));
  const int end_count = at.forbids_end() ? at.slot->end_token_count : 0;
  const uint32_t* end_tokens = kilotok::at<const uint32_t>(memory.end_tokens) +
                               static_cast<size_t>(at.slot_index) * END_TOKENS_MAX;
  for (int i = Consumers::thread(); i < end_count; i += CONSUMERS) clear(end_tokens[i]);
  Consumers::sync();
  if (at.patch_count() == 0) return;
  for (int d = Consumers::thread(); d < at.patch_count(); d += CONSUMERS)
    scratch.patches[d] = patch(memory, at, scratch, d);
  Consumers::sync();
  for (int d = Consumers::thread(); d < at.patch_count(); d += CONSUMERS)
    if (scratch.patches[d].token != NO_TOKEN) clear(scratch.patches[d].token);
  Consumers::sync();
}

// Calls `each(token, x, count)` for every four tokens of a part, of which the first `count` exist.
// All lanes of a warp call together. AHEAD loads are in flight at a time, and there are as many
// copies of `each`, because a register cannot be moved before its load is complete. A thread's
// tokens ascend, and are the same in every pass over the part.
template <int AHEAD, class Each>
__device__ __forceinline__ void for_each_quad(const float* row, int begin, int end, Each each) {
  constexpr int STRIDE = CONSUMERS * QUAD;
  float4 ahead[AHEAD];
  const auto load = [&](int token) {
    return token < end ? *reinterpret_cast<const float4*>(row + token) : make_float4(0, 0, 0, 0);
  };
  int token = begin + Consumers::thread() * QUAD;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) ahead[i] = load(token + i * STRIDE);
#pragma unroll AHEAD
  for (int base = begin; base < end; base += STRIDE) {
    float x[QUAD] = {ahead[0].x, ahead[0].y, ahead[0].z, ahead[0].w};
#pragma unroll
    for (int i = 1; i < AHEAD; i++) ahead[i - 1] = ahead[i];
    ahead[AHEAD - 1] = load(token + AHEAD * STRIDE);
    each(token, x, end - token);
    token += STRIDE;
  }
}

__device__ __forceinline__ void store_quad(float* to, const float (&x)[QUAD]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}

// Reduces a value over all consumers of the CTA by `op`. `room` may be reused after the caller's
// next sync.
template <class T, class Op>
__device__ __forceinline__ T cta_reduce(T (&room)[CONSUMER_WARPS], T value, Op op) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value = op(value, __shfl_xor_sync(~0u, value, distance));
  Consumers::sync();
  if (Consumers::lane() == 0) room[Consumers::warp()] = value;
  Consumers::sync();
  value = room[0];
#pragma unroll
  for (int warp = 1; warp < CONSUMER_WARPS; warp++) value = op(value, room[warp]);
  return value;
}

struct Min {
  __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const {
    return a < b ? a : b;
  }
};

// The smallest key of a warp, in all lanes.
__device__ __forceinline__ uint64_t warp_min_key(uint64_t key) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    key = Min{}(key, __shfl_xor_sync(~0u, key, distance));
  return key;
}

// The sum over all consumers of the CTA.
__device__ __noinline__ uint64_t total_of(uint64_t (&room)[CONSUMER_WARPS], uint64_t value) {
  return cta_reduce(room, value, [](uint64_t a, uint64_t b) { return a + b; });
}

}  // namespace kilotok
