// From the normed stream to rotated queries, keys and values, of many tokens.
//
//   rope_angles   once a step: cosines and sines of all positions
//   attn_in       the GEMM of q, k and v. Where rows lie in pairs its epilogue makes queries, keys
//                 and values; else it leaves `projected`
//   split_heads   of those other kinds: norm by head, rotation and the values' scale
//
// Keys and values go to their pages as the narrow pass writes them (phase/attn_in.cuh).
#pragma once

#include "kilotok/phase/attn_in.cuh"
#include "kilotok/wide/matrix.cuh"

namespace kilotok::wide {

// The tokens of a step: BatchToken `[count]`, BatchRow `[row_count]`, and the table of pages that
// rows have their places in. Rows cover all tokens, in order.
struct StepTokens {
  uint64_t tokens, rows, pages;
  int count, row_count;
};

struct AttnInMemory {
  StepTokens step;
  // LayerMemory of this layer.
  uint64_t layer;
  // Operand of the GEMM, of `capacity` tokens; F32 `[capacity]`.
  uint64_t normed, inverse_rms;
  // F32 `[ATTENTION_KINDS][ROPE_PAIRS_MAX]`; float2 `[ATTENTION_KINDS][capacity][ROPE_PAIRS_MAX]`.
  uint64_t frequencies, angles;
  // BF16 `[capacity][QUERY_VALUES]`, a token's queries as `query_place` has them.
  uint64_t queries;
  // F32 `[capacity][PROJECTED_ROWS]`, only where a kind's rows do not lie in pairs.
  uint64_t projected;
  int capacity;
};

struct AttnInShared {
  TokenRingMemory ring;
  TotalMemory totals;
};

// All threads of all CTAs, any number of them: angles of kinds FIRST to END.
__device__ __forceinline__ void rope_angles(const AttnInMemory& memory, int first, int end);

// All threads of all CTAs, THREADS each. `shared` is what no one has used yet.
template <int KIND>
__device__ __forceinline__ void attn_in(AttnInShared& shared, const AttnInMemory& memory);

// All threads of all CTAs, THREADS each, if the kind's rows do not lie in pairs.
template <int KIND>
__device__ __forceinline__ void split_heads(const AttnInMemory& memory);

}  // namespace kilotok::wide
