// GEMM of a weight matrix and many tokens by warpgroups. The weights are those of the narrow pass,
// byte for byte (see gemm/matrix.cuh and layout/chunk.cuh). A warp multiplies a row tile, and takes
// the chunks in the order in which the narrow pass adds them: for each part of the columns its
// chunks, of each chunk its groups, and then the parts. So a token's products have the same bits in
// both passes.
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
  __device__ __forceinline__ void next() {
    const bool ends = ++inner == INNER;
    outer += ends;
    inner = ends ? 0 : inner;
  }
  __device__ __forceinline__ int part() const { return BY_PART ? outer : inner; }
  __device__ __forceinline__ int step() const { return BY_PART ? inner : outer; }
  // The chunk of the operand.
  __device__ __forceinline__ int chunk() const {
    return smaller(step() * M::COLUMN_WARPS + part(), CHUNKS - 1);
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
// `done(chunk)` is called when all products of a chunk are there. Nothing may branch meanwhile: the
// compiler would wait for all products first. With one slot for the sums of a piece, other
// warpgroups keep the tensor cores busy.
template <Format F, int COLUMNS, int SLOTS>
struct Products;

// The descriptor of the tokens from `column` on.
__device__ __forceinline__ uint64_t tokens_at(uint64_t tokens, int column) {
  return ptx::wgmma_operand_at(tokens, column / TILE_TOKENS * TILE_BYTES);
}

// Columns of a piece: as many as there are, or a part of them.
__host__ __device__ constexpr int piece_width(int columns, int most) {
  return columns <= most ? columns : columns % most == 0 ? most : columns / 2;
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
  template <int CHUNKS, class Done>
  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2],
                                             const Chunk<Format::Bf16>* chunks,
                                             const uint64_t (&tokens)[CHUNKS], Done done) {
    const auto begin = [&](int chunk, int, int) {
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; step++) {
        const uint4& w = chunks[chunk].words[step];
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

// A piece is a chunk times up to 32 columns of B.
template <int COLUMNS, int SLOTS>
struct Products<Format::Fp8, COLUMNS, SLOTS> {
  using C = Chunk<Format::Fp8>;
  static constexpr int WIDTH = piece_width(COLUMNS, 32), PIECES = COLUMNS / WIDTH;

  template <int CHUNKS, class Done>
  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2], const C* chunks,
                                             const uint64_t (&tokens)[CHUNKS], Done done) {
    // Those of two chunks in turn.
    uint32_t a[2][4][4];
    // Indexed by slot and pair of steps.
    float sums[SLOTS][2][WIDTH / 2];
    const auto begin = [&](int chunk, int piece, int slot) {
      if (piece == 0) decode(chunks[chunk], a[chunk % 2]);
      multiply(sums[slot], a[chunk % 2], tokens_at(tokens[chunk], piece * WIDTH));
    };
    const auto settle = [&](int chunk, int piece, int slot, auto pending) {
      ptx::wgmma_wait<decltype(pending)::value>(sums[slot][0]);
      ptx::wgmma_wait<decltype(pending)::value>(sums[slot][1]);
#pragma unroll
      for (int i = 0; i < WIDTH / 2; i++)
        acc[piece * (WIDTH / 2) + i] +=
            (sums[slot][0][i] + sums[slot][1][i]) * chunks[chunk].scales[i % 4 / 2];
    };
    in_pieces<CHUNKS, PIECES, SLOTS>(begin, settle, done);
  }

 private:
  static __device__ __forceinline__ void decode(const C& chunk, uint32_t (&a)[4][4]) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const uint4& w = chunk.pairs[step / 2];
      const uint32_t low = step % 2 == 0 ? w.x : w.z, high = step % 2 == 0 ? w.y : w.w;
      a[step][0] = C::first(low);
      a[step][1] = C::second(low);
      a[step][2] = C::first(high);
      a[step][3] = C::second(high);
    }
  }

  static __device__ __forceinline__ void multiply(float (&sums)[2][WIDTH / 2],
                                                  const uint32_t (&a)[4][4], uint64_t tokens) {
    ptx::wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const int step = pair * 2 + half;
        ptx::wgmma<WIDTH>(sums[pair], a[step],
                          ptx::wgmma_operand_at(tokens, step * STEP_OFFSET), half > 0);
      }
    ptx::wgmma_commit();
  }
};

// A piece is a group of 32 columns of the matrix, times up to 64 columns of B.
template <int COLUMNS, int SLOTS>
struct Products<Format::Mxfp4, COLUMNS, SLOTS> {
  using C = Chunk<Format::Mxfp4>;
  static constexpr int WIDTH = piece_width(COLUMNS, 64), PARTS = COLUMNS / WIDTH;

  template <int CHUNKS, class Done>
  static __device__ __forceinline__ void add(float (&acc)[COLUMNS / 2], const C* chunks,
                                             const uint64_t (&tokens)[CHUNKS], Done done) {
    // Indexed by group and step.
    uint32_t a[2][2][4];
    float sums[SLOTS][WIDTH / 2];
    const auto begin = [&](int chunk, int piece, int slot) {
      const int group = piece / PARTS;
      const uint4& words = chunks[chunk].words;
      if (piece % PARTS == 0)
        C::decode(group == 0 ? words.x : words.z, group == 0 ? words.y : words.w, a[group][0],
                  a[group][1]);
      multiply(sums[slot], a[group],
               ptx::wgmma_operand_at(tokens_at(tokens[chunk], piece % PARTS * WIDTH),
                                     group * 2 * STEP_OFFSET));
    };
    const auto settle = [&](int chunk, int piece, int slot, auto pending) {
      ptx::wgmma_wait<decltype(pending)::value>(sums[slot]);
      const int group = piece / PARTS;
      const float scales[2] = {chunks[chunk].scale(group), chunks[chunk].scale(2 + group)};
#pragma unroll
      for (int i = 0; i < WIDTH / 2; i++)
        acc[piece % PARTS * (WIDTH / 2) + i] += sums[slot][i] * scales[i % 4 / 2];
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

// What the consumers' warps have added up of earlier parts of the columns: four values for every
// eight tokens and thread.
template <int COUNT>
struct alignas(128) Totals {
  float4 totals[COUNT];
};
using TotalMemory = Totals<TOKENS / TILE_TOKENS * CONSUMERS>;

// Adds a part of the columns to those before it, of PARTS. Of the last one all that there is stays
// in registers.
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

// Row groups of a matrix that a CTA multiplies one after the other with the same tokens.
struct RowGroups {
  int first, end;
};

// The weights of a warp in the order in which it multiplies them, AHEAD chunks at a time, of one
// row group or of MANY.
template <class M, Order ORDER, bool MANY, int GROUPS, int AHEAD>
struct WeightsWalk {
  using Walk = ChunkWalk<M, ORDER>;
  static constexpr int STRIDE = Walk::BY_PART ? M::STEP_BYTES : M::CHUNK_BYTES;
  static_assert(Walk::INNER % AHEAD == 0, "they lie at one distance");
  const char *matrix, *tile, *from;
  int group, end;
  bool there = true;
  Walk walk;

  __device__ __forceinline__ WeightsWalk(const char* weights, const RowGroups& groups)
      : matrix(weights), group(groups.first), end(groups.end) {
    begin_group();
    from = tile + walk.offset();
  }
  // Goes on to the next chunks, if there are any.
  __device__ __forceinline__ void next() {
    walk.inner += AHEAD;
    if (walk.inner == Walk::INNER) {
      walk.inner = 0;
      walk.outer++;
    }
    if (!walk.has()) {
      there = MANY && ++group < end;
      walk = {};
      if (there) begin_group();
    }
    from = tile + walk.offset();
  }
  // Loads one of the chunks.
  __device__ __forceinline__ void load(Chunk<M::FORMAT>& chunk, int i) const {
    if (there) chunk.load(from + i * STRIDE, threadIdx.x % 32);
  }

 private:
  // Beyond the last row tile it is that one again: all warps of a warpgroup multiply.
  __device__ __forceinline__ void begin_group() {
    const int own = group * CtaShape<GROUPS>::ROW_TILES + static_cast<int>(threadIdx.x) / 32;
    tile = row_tile<M>(matrix, smaller(own, MATRIX_TILES<M> - 1));
  }
};

// A warp's row tiles times the tokens of the ring's next stages, of so many columns.
template <class M, int COLUMNS, Order ORDER, bool MANY, int GROUPS>
struct Multiplier {
  using Walk = ChunkWalk<M, ORDER>;
  using C = Chunk<M::FORMAT>;
  static constexpr int CONSUMERS = CtaShape<GROUPS>::CONSUMERS;
  // With more warpgroups a thread has fewer registers.
  static constexpr int SLOTS = GROUPS > CONSUMER_GROUPS && COLUMNS > 32 ? 1 : 2;
  // Chunks of weights on their way: where there are few tokens they go by fast.
  static constexpr bool FEW_AHEAD =
      M::FORMAT == Format::Bf16 || COLUMNS > 64 || GROUPS > CONSUMER_GROUPS;
  static constexpr int AHEAD = divisor(Walk::INNER, FEW_AHEAD ? 4 : 8);
  // Those that are multiplied without a branch in between.
  static constexpr int AT_ONCE = divisor(AHEAD, 4);

  C ahead[AHEAD];
  WeightsWalk<M, ORDER, MANY, GROUPS, AHEAD> weights;

  __device__ __forceinline__ Multiplier(const char* matrix, const RowGroups& groups)
      : weights(matrix, groups) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) weights.load(ahead[i], i);
  }

  // Multiplies the next row tile.
  template <class Stages, int COUNT>
  __device__ __forceinline__ void multiply(Stages& ring, Totals<COUNT>& memory,
                                           float (&acc)[COLUMNS / 2]) {
#pragma unroll 1
    for (int outer = 0; outer < Walk::OUTER; outer++) {
      if (outer == 0 || Walk::BY_PART)
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; i++) acc[i] = 0;
#pragma unroll 1
      for (int inner = 0; inner < Walk::INNER; inner += AHEAD) {
        weights.next();
#pragma unroll
        for (int first = 0; first < AHEAD; first += AT_ONCE) {
          uint64_t tokens[AT_ONCE];
          Stages coming = ring;
#pragma unroll
          for (int i = 0; i < AT_ONCE; i++) {
            tokens[i] = coming.wait();
            coming.next();
          }
          Stages::fence();
          Products<M::FORMAT, COLUMNS, SLOTS>::add(acc, ahead + first, tokens, [&](int i) {
            ring.release(threadIdx.x % 32);
            weights.load(ahead[first + i], first + i);
          });
        }
      }
      if constexpr (Walk::BY_PART) end_part<Walk::PARTS, CONSUMERS>(memory, outer, acc);
    }
  }
};

// Consumers: row groups times COLUMNS columns, MANY or one. `use(row tile, tile, lane, values)`
// gets what the narrow pass's `use` gets: rows g and g + 8 of tokens 2q and 2q + 1.
template <class M, int COLUMNS, Order ORDER, bool MANY, int GROUPS = CONSUMER_GROUPS, class Stages,
          int COUNT, class Use>
__device__ __forceinline__ void multiply_rows(Stages& ring, Totals<COUNT>& memory,
                                              const char* weights, const RowGroups& groups,
                                              Use use) {
  Multiplier<M, COLUMNS, ORDER, MANY, GROUPS> multiplier(weights, groups);
  int group = groups.first;
#pragma unroll 1
  do {
    float sums[COLUMNS / 2];
    multiplier.multiply(ring, memory, sums);
    const int tile = group * CtaShape<GROUPS>::ROW_TILES + static_cast<int>(threadIdx.x) / 32;
    if (tile >= MATRIX_TILES<M>) continue;
#pragma unroll
    for (int i = 0; i < COLUMNS / TILE_TOKENS; i++)
      use(tile, i, static_cast<int>(threadIdx.x) % 32,
          make_float4(sums[i * 4], sums[i * 4 + 1], sums[i * 4 + 2], sums[i * 4 + 3]));
  } while (MANY && ++group < groups.end);
}

// The tokens that a matrix is multiplied with: an operand that has room for so many.
struct Operand {
  const char* bytes;
  int capacity;
};

// The producer: brings the chunks of tokens from `first` on, a multiple of eight, in the order in
// which a row group takes them.
template <class M, Order ORDER = Order::Parts, class Stages>
__device__ __forceinline__ void produce_tokens(Stages& ring, const Operand& operand, int first,
                                               int count) {
  const char* from = operand.bytes + first / TILE_TOKENS * TILE_BYTES;
#pragma unroll 1
  for (ChunkWalk<M, ORDER> walk; walk.has(); walk.next())
    ring.fetch(from + walk.chunk() * column_bytes(operand.capacity),
               ceil_div(count, TILE_TOKENS));
}

}  // namespace kilotok::wide
