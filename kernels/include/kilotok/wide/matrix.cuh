// GEMM of a weight matrix and many tokens by warpgroups. The weights are those of the narrow pass,
// byte for byte (see gemm/matrix.cuh and layout/chunk.cuh). A warp multiplies a row tile, and adds
// in the order of the narrow pass: the groups of a chunk, the chunks of a part of the columns, and
// then the parts. So a token's products have the same bits in both passes.
#pragma once

#include "kilotok/gemm/matrix.cuh"
#include "kilotok/wide/token_ring.cuh"

namespace kilotok::wide {

// The order in which chunks are added: by parts of the columns, each with a sum of its own
// (split-K), or all in one chain in the order of columns, for an expert's `down`.
enum class Order { Parts, Chain };

// The chunks of a matrix in that order. The last chunk of a part may be one of zeros, as in the
// narrow pass: then columns of the operand are repeated.
template <class M, Order ORDER>
struct ChunkWalk {
  static constexpr int CHUNKS = ceil_div(M::COLUMNS, CHUNK_COLUMNS);
  static constexpr int PARTS = smaller(M::COLUMN_WARPS, CHUNKS);
  static constexpr bool BY_PART = ORDER == Order::Parts;
  static constexpr int OUTER = BY_PART ? PARTS : M::STEPS, INNER = BY_PART ? M::STEPS : PARTS;
  int outer = 0, inner = 0;

  __device__ __forceinline__ bool has() const { return outer < OUTER; }
  // Advances by `count` chunks, a divisor of INNER.
  __device__ __forceinline__ void next(int count = 1) {
    inner += count;
    const bool ends = inner == INNER;
    outer += ends;
    inner = ends ? 0 : inner;
  }
  // The i-th chunk from here.
  __device__ __forceinline__ ChunkWalk at(int i) const { return {outer, inner + i}; }
  __device__ __forceinline__ int part() const { return BY_PART ? outer : inner; }
  __device__ __forceinline__ int step() const { return BY_PART ? inner : outer; }
  // The chunk of the operand.
  __device__ __forceinline__ int chunk() const {
    const int chunk = step() * M::COLUMN_WARPS + part();
    return CHUNKS % M::COLUMN_WARPS == 0 ? chunk : smaller(chunk, CHUNKS - 1);
  }
  // Byte offset in a row tile.
  __device__ __forceinline__ int offset() const {
    return step() * M::STEP_BYTES + part() * M::CHUNK_BYTES;
  }
};

// Address of the first chunk of a row tile.
template <class M>
__device__ __forceinline__ const char* row_tile(const char* weights, int tile) {
  return weights + static_cast<size_t>(tile / M::ROW_TILES) * M::UNIT_BYTES +
         tile % M::ROW_TILES * (M::COLUMN_WARPS * M::CHUNK_BYTES);
}
template <class M>
constexpr int MATRIX_TILES = M::UNITS * M::ROW_TILES;

// Adds CHUNKS chunks to a warp's sums, four for every eight tokens as in `mma`. Each is multiplied
// in pieces: while the tensor cores compute one, the sums of the one before are scaled and added.
// `done(chunk)` is called when all products of a chunk are complete. No branch may lie in between:
// the compiler would wait for all products first. With one slot for the sums of a piece, other
// warpgroups keep the tensor cores busy.
template <Format F, int COLUMNS, int SLOTS>
struct Products;

// The descriptor of the tokens from `column` on.
__device__ __forceinline__ uint64_t tokens_at(uint64_t tokens, int column) {
  return ptx::wgmma_operand_at(tokens, column / TILE_TOKENS * TILE_BYTES);
}

// The initial value of a thread's sums of piece `i`: a zero that the compiler does not recognise,
// and computed differently for each piece. Otherwise ptxas (13.0 and 13.5) mistakes the first
// products of a piece for those of another that had the same registers. `small` is less than 2^24.
__device__ __forceinline__ float hidden_zero(uint32_t small, int i) {
  return __uint_as_float(small >> (31 - i));
}

// Begins PIECES pieces of each of CHUNKS chunks, at most SLOTS of which are in flight, one or two,
// and completes each of them by `settle(chunk, piece, slot, pending)`, where `pending` is the
// number of pieces still in flight.
template <int CHUNKS, int PIECES, int SLOTS, class Begin, class Settle, class Done>
__device__ __forceinline__ void in_pieces(Begin begin, Settle settle, Done done) {
  static_assert(SLOTS == 1 || SLOTS == 2, "pieces take turns");
  constexpr int COUNT = CHUNKS * PIECES;
#pragma unroll
  for (int i = 0; i < COUNT + SLOTS - 1; i++) {
    const int before = i - SLOTS + 1;
    if (i < COUNT) begin(i / PIECES, i % PIECES, i % SLOTS);
    if (before < 0) continue;
    if (i < COUNT)
      settle(before / PIECES, before % PIECES, before % SLOTS, Constant<SLOTS - 1>{});
    else
      settle(before / PIECES, before % PIECES, before % SLOTS, Constant<0>{});
    if (before % PIECES == PIECES - 1) done(before / PIECES);
  }
}

template <int COLUMNS, int SLOTS>
struct Products<Format::Bf16, COLUMNS, SLOTS> {
  static constexpr int WIDTH = COLUMNS;

  template <int CHUNKS, class Chunks, class Done>
  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2], Chunks chunks,
                                             const uint64_t (&tokens)[CHUNKS], Done done) {
    const auto begin = [&](int chunk, int, int) {
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; step++) {
        const uint4& w = chunks(chunk).words[step];
        const uint32_t a[4] = {w.x, w.y, w.z, w.w};
        ptx::wgmma<COLUMNS>(acc, a, ptx::wgmma_operand_at(tokens[chunk], step * STEP_OFFSET),
                            true);
      }
      ptx::wgmma_commit();
    };
    const auto settle = [&](int, int, int, auto) { ptx::wgmma_wait<0>(acc); };
    in_pieces<CHUNKS, 1, 1>(begin, settle, done);
  }
};

// A chunk of FP8 as operand A, and its products with columns of B.
template <int WIDTH>
struct Fp8Operand {
  using Sums = float[WIDTH / 2];

  static __device__ __forceinline__ void decode(const Chunk<Format::Fp8>& chunk,
                                                uint32_t (&a)[4][4]) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const uint4& w = chunk.pairs[step / 2];
      const uint32_t low = step % 2 == 0 ? w.x : w.z, high = step % 2 == 0 ? w.y : w.w;
      a[step][0] = Chunk<Format::Fp8>::first(low);
      a[step][1] = Chunk<Format::Fp8>::second(low);
      a[step][2] = Chunk<Format::Fp8>::first(high);
      a[step][3] = Chunk<Format::Fp8>::second(high);
      ptx::wgmma_ready(a[step]);
    }
  }

  static __device__ __forceinline__ void multiply(Sums& sums, const uint32_t (&a)[4][4],
                                                  uint64_t tokens) {
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++)
      ptx::wgmma<WIDTH>(sums, a[step], ptx::wgmma_operand_at(tokens, step * STEP_OFFSET),
                        step > 0);
    ptx::wgmma_commit();
  }
};

// A piece is a chunk times up to 40 columns of B.
template <int COLUMNS, int SLOTS>
struct Products<Format::Fp8, COLUMNS, SLOTS> {
  static constexpr int WIDTH = COLUMNS % 32 == 0   ? 32
                               : COLUMNS % 40 == 0 ? 40
                                                   : smaller(COLUMNS, 24);
  static constexpr int PIECES = COLUMNS / WIDTH;
  static_assert(PIECES * WIDTH == COLUMNS, "every column is in a piece");
  using Operand = Fp8Operand<WIDTH>;

  template <int CHUNKS, class Chunks, class Done>
  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2], Chunks chunks,
                                             const uint64_t (&tokens)[CHUNKS], Done done) {
    // The operands of two chunks, in turn.
    uint32_t a[2][4][4];
    typename Operand::Sums sums[SLOTS];
    const auto begin = [&](int chunk, int piece, int slot) {
      if (piece == 0) Operand::decode(chunks(chunk), a[chunk % 2]);
      Operand::multiply(sums[slot], a[chunk % 2], tokens_at(tokens[chunk], piece * WIDTH));
    };
    const auto settle = [&](int chunk, int piece, int slot, auto pending) {
      ptx::wgmma_wait<decltype(pending)::value>(sums[slot]);
#pragma unroll
      for (int i = 0; i < WIDTH / 2; i++)
        acc[piece * (WIDTH / 2) + i] += sums[slot][i] * chunks(chunk).scales[i % 4 / 2];
    };
    in_pieces<CHUNKS, PIECES, SLOTS>(begin, settle, done);
  }
};

// A piece is a group of 32 columns of the matrix, times the columns of B or half of many.
template <int COLUMNS, int SLOTS>
struct Products<Format::Mxfp4, COLUMNS, SLOTS> {
  using C = Chunk<Format::Mxfp4>;
  static constexpr int WIDTH = COLUMNS > 64 ? COLUMNS / 2 : COLUMNS, PARTS = COLUMNS / WIDTH;

  template <int CHUNKS, class Chunks, class Done>
  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2], Chunks chunks,
                                             const uint64_t (&tokens)[CHUNKS], Done done) {
    // Indexed by group and step.
    uint32_t a[2][2][4];
    float sums[SLOTS][WIDTH / 2];
    const auto begin = [&](int chunk, int piece, int slot) {
      const int group = piece / PARTS, part = piece % PARTS;
      const uint4& words = chunks(chunk).words;
      if (part == 0) {
        C::decode(group == 0 ? words.x : words.z, group == 0 ? words.y : words.w, a[group][0],
                  a[group][1]);
        ptx::wgmma_ready(a[group][0]);
        ptx::wgmma_ready(a[group][1]);
      }
      multiply(sums[slot], a[group],
               ptx::wgmma_operand_at(tokens_at(tokens[chunk], part * WIDTH),
                                     group * 2 * STEP_OFFSET));
    };
    const auto settle = [&](int chunk, int piece, int slot, auto pending) {
      ptx::wgmma_wait<decltype(pending)::value>(sums[slot]);
      const int group = piece / PARTS, part = piece % PARTS;
      const float scales[2] = {chunks(chunk).scale(group), chunks(chunk).scale(2 + group)};
#pragma unroll
      for (int i = 0; i < WIDTH / 2; i++)
        acc[part * (WIDTH / 2) + i] += sums[slot][i] * scales[i % 4 / 2];
    };
    in_pieces<CHUNKS, 2 * PARTS, SLOTS>(begin, settle, done);
  }

 private:
  static __device__ __forceinline__ void multiply(float (&sums)[WIDTH / 2],
                                                  const uint32_t (&a)[2][4], uint64_t tokens) {
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 2; step++)
      ptx::wgmma<WIDTH>(sums, a[step], ptx::wgmma_operand_at(tokens, step * STEP_OFFSET),
                        step > 0);
    ptx::wgmma_commit();
  }
};

// The consumers' sums over earlier parts of the columns: four values for every eight tokens and
// thread.
template <int COUNT>
struct alignas(128) Totals {
  float4 totals[COUNT];
};

// Adds one of PARTS parts of the columns to those before it. After the last part the total stays in
// registers.
template <int PARTS, int CONSUMERS, int COUNT, int VALUES>
__device__ __forceinline__ void end_part(Totals<COUNT>& memory, int part, float (&acc)[VALUES]) {
  static_assert(VALUES / 4 * CONSUMERS <= COUNT, "they have room");
#pragma unroll
  for (int tile = 0; tile < VALUES / 4; tile++) {
    float4& total = memory.totals[tile * CONSUMERS + threadIdx.x];
    if (part > 0) {
      const float4 before = total;
      acc[tile * 4] = before.x + acc[tile * 4];
      acc[tile * 4 + 1] = before.y + acc[tile * 4 + 1];
      acc[tile * 4 + 2] = before.z + acc[tile * 4 + 2];
      acc[tile * 4 + 3] = before.w + acc[tile * 4 + 3];
    }
    if (part + 1 < PARTS)
      total = make_float4(acc[tile * 4], acc[tile * 4 + 1], acc[tile * 4 + 2], acc[tile * 4 + 3]);
  }
}

// The tokens that a matrix is multiplied with: an operand with room for `capacity` tokens.
struct Operand {
  const char* bytes;
  int capacity;

  // The token of the operand that comes as number `index`.
  __device__ __forceinline__ int token(int index) const { return index; }
};

// The drafter's context is computed of some spans of the step's tokens. Its launches number these
// tokens without gaps: returns a token's number in the step, where `spans` are U32 `[spans]`.
__device__ __forceinline__ int token_of_spans(uint64_t spans, int index) {
  return static_cast<int>(at<const uint32_t>(spans)[index / SPAN_TOKENS]) * SPAN_TOKENS +
         index % SPAN_TOKENS;
}

// The tokens of spans, of an operand that has all tokens of the step.
struct SpansOperand : Operand {
  uint64_t spans;

  __device__ __forceinline__ int token(int index) const { return token_of_spans(spans, index); }
};

}  // namespace kilotok::wide
