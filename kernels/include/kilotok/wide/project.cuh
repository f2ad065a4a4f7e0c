// The GEMMs of the wide pass with a short epilogue: those whose products are added to the stream, a
// dense network's, and the fusion of the drafter's taps.
#pragma once

#include "kilotok/phase/activation.cuh"
#include "kilotok/phase/dense.cuh"
#include "kilotok/phase/project.cuh"
#include "kilotok/wide/gemm.cuh"
#include "kilotok/wide/stream.cuh"

namespace kilotok::wide {

struct GemmMemory {
  // The weights, and the operand, with room for `capacity` tokens.
  uint64_t weights, operand;
  // F32 `[capacity][HIDDEN]`: a single rank's products that are added to the stream.
  uint64_t part;
  // For gate and up: 1 / rms, F32 `[capacity]`, and the inner operand.
  uint64_t inverse_rms, inner;
  int count, capacity;
  // Where several ranks send such products.
  PartsMemory parts;
  // For the fusion of taps: the spans of its tokens.
  uint64_t spans;
};

// The operand: of all tokens, or of those of spans (SpansOperand).
template <class From>
__device__ __forceinline__ From operand_of(const GemmMemory& memory) {
  const Operand all = {at<const char>(memory.operand), memory.capacity};
  if constexpr (IS_SAME<From, SpansOperand>)
    return {all, memory.spans};
  else
    return all;
}

// Called by all threads of all CTAs, GEMM_THREADS each: multiplies a matrix with all tokens.
template <class M, class From = Operand, class Use>
__device__ __forceinline__ void multiply_all(GemmShared& shared, const GemmMemory& memory,
                                             Use use) {
  gemm<M>(shared, at<const char>(memory.weights), operand_of<From>(memory), memory.count,
          [&](int row_tile, int token, int, const float4& values) {
            use(row_tile, token, static_cast<int>(threadIdx.x) % 32, values);
          },
          [](const GemmWork<M>&, int) {});
}

// Stores a lane's products of a row tile as columns of `part`, from `column` on.
template <class M>
__device__ __forceinline__ void store_part(const GemmMemory& memory, int row_tile, int first,
                                           int lane, const float4& v, int column) {
  const int row = row_tile * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int token = first + lane % 4 * 2 + j;
    if (token >= memory.count) continue;
    float* to = at<float>(memory.part) + static_cast<size_t>(token) * HIDDEN + column + row;
    if (row < M::ROWS && column + row < HIDDEN) to[0] = j == 0 ? v.x : v.y;
    if (row + 8 < M::ROWS && column + row + 8 < HIDDEN) to[8] = j == 0 ? v.z : v.w;
  }
}

// Rows 4 * `four` to 4 * `four` + 3 of a row tile, for one of eight tokens. `sums` are the sums of
// a warp's lanes in shared memory, in the layout of `mma`.
__device__ __forceinline__ float4 four_rows(const float4* sums, int token, int four) {
  const int odd = four % 2;
  const float* own = reinterpret_cast<const float*>(sums + odd * 16 + token / 2) +
                     four / 2 * 2 + token % 2;
  float v[LANE_COLUMNS];
  // Odd fours are read in another order, because rows 0 and 4 are in the same bank.
#pragma unroll
  for (int i = 0; i < LANE_COLUMNS; i++) v[i] = own[(i ^ odd) * 16];
  return odd == 0 ? make_float4(v[0], v[1], v[2], v[3]) : make_float4(v[1], v[0], v[3], v[2]);
}

// A warpgroup: sends an item's products, which are in shared memory, to the owners of its tokens.
// They are columns of the part from `column` on. A lane sends eight columns of a token, so a warp
// sends lines of 128 bytes.
template <class M>
__device__ __forceinline__ void send_products(GemmShared& shared, const PartsSender& sender,
                                              const GemmWork<M>& work, int item, int column) {
  static_assert(HIDDEN % PACKET_VALUES == 0 && M::ROWS % PACKET_VALUES == 0, "packets are full");
  constexpr int PACKETS = WARPGROUP_ROWS / PACKET_VALUES, AT_ONCE = 32 / PACKETS;
  const int thread = ptx::opaque(threadIdx.x), warp = thread % WARPGROUP / 32, lane = thread % 32;
  const int row_warp = thread / WARPGROUP * (WARPGROUP / 32) + lane % PACKETS / 2;
  const int row = (work.first_tile(item) + row_warp) * 16 + lane % 2 * PACKET_VALUES;
  if (row >= M::ROWS || column + row >= HIDDEN) return;
  const float4* sums = GemmStages<M>::totals(shared) + row_warp * 32;
  const int first = work.first_token(item), tokens = work.tokens(item);
#pragma unroll 1
  for (int tile = warp; tile * TILE_TOKENS < tokens; tile += WARPGROUP / 32)
#pragma unroll
    for (int in_tile = lane / PACKETS; in_tile < TILE_TOKENS; in_tile += AT_ONCE) {
      const int token = tile * TILE_TOKENS + in_tile;
      if (token >= tokens) continue;
      const float4* of_tile = sums + tile * GemmShape<M>::CONSUMERS;
      const uint2 low = pack_four(four_rows(of_tile, in_tile, lane % 2 * 2));
      const uint2 high = pack_four(four_rows(of_tile, in_tile, lane % 2 * 2 + 1));
      ptx::store_system(sender.place(first + token, column + row),
                        make_uint4(low.x, low.y, high.x, high.y));
    }
}

// Multiplies all tokens, beginning with `first_token`. A lane's products go through `adjust(row
// tile, products)` and are stored in shared memory. When all products of an item are there, its
// warpgroup calls `finish(work, item)`.
template <class M, class From = Operand, class Adjust, class Finish>
__device__ __forceinline__ void multiply_items(GemmShared& shared, const GemmMemory& memory,
                                               Adjust adjust, Finish finish, int first_token = 0) {
  gemm<M>(
      shared, at<const char>(memory.weights), operand_of<From>(memory), memory.count,
      [&](int row_tile, int, int tile, const float4& v) {
        GemmStages<M>::totals(shared)[tile * GemmShape<M>::CONSUMERS + threadIdx.x] =
            adjust(row_tile, v);
      },
      [&](const GemmWork<M>& work, int item) {
        ptx::sync_warpgroup(threadIdx.x / WARPGROUP);
        finish(work, item);
        ptx::sync_warpgroup(threadIdx.x / WARPGROUP);
      },
      first_token);
}

// Multiplies, and stores the products as columns of a part, from `column` on. A single rank stores
// them itself, and several ranks send them. `adjust` is as above.
template <class M, class From = Operand, class Adjust>
__device__ __forceinline__ void multiply_to_part(GemmShared& shared, const GemmMemory& memory,
                                                 int column, Adjust adjust) {
  if constexpr (RANKS == 1) {
    multiply_all<M, From>(shared, memory, [&](int row_tile, int first, int lane, const float4& v) {
      store_part<M>(memory, row_tile, first, lane, adjust(row_tile, v), column);
    });
  } else {
    multiply_items<M, From>(
        shared, memory, adjust,
        [&](const GemmWork<M>& work, int item) {
          send_products<M>(shared, PartsSender(memory.parts), work, item, column);
        },
        PartsSender(memory.parts).first_token());
    PartsSender(memory.parts).end();
  }
}
template <class M, class From = Operand>
__device__ __forceinline__ void multiply_to_part(GemmShared& shared, const GemmMemory& memory,
                                                 int column = 0) {
  multiply_to_part<M, From>(shared, memory, column, [](int, const float4& v) { return v; });
}

// Two row tiles make up a cache line of 128 bytes: their warps share the tokens, because memory
// takes much longer to read and write halves of lines.
constexpr int PAIR = 2, PAIR_LANES = PAIR * SQUARE_LANES, PAIR_TOKENS = 32 / PAIR_LANES;
static_assert(PAIR * SQUARE_ROWS * 4 == 128 && PAIR * PAIR_TOKENS == TILE_TOKENS, "a line");
// Tiles of eight tokens whose stream is loaded at a time.
constexpr int STREAM_TILES = 4;
static_assert(32 % (STREAM_TILES * TILE_TOKENS) == 0, "no tile of a GEMM's width is left over");

// A warp: adds an item's products, which are in shared memory, to the stream, and stores it in all
// forms, as `add_columns` does.
template <class M>
__device__ __forceinline__ void add_to_stream(GemmShared& shared, const AddNormMemory& norm,
                                              const GemmWork<M>& work, int item) {
  static_assert(MATRIX_TILES<M> == SQUARES, "a row tile's squares are one sum");
  static_assert(GemmShape<M>::ROW_TILES % PAIR == 0, "warps are in pairs");
  const int thread = ptx::opaque(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int tile_in_pair = lane % PAIR_LANES / SQUARE_LANES, four = lane % SQUARE_LANES;
  const int row_warp = warp / PAIR * PAIR + tile_in_pair;
  const int row_tile = work.first_tile(item) + row_warp;
  const int column = row_tile * SQUARE_ROWS + four * LANE_COLUMNS;
  const int in_tile = warp % PAIR * PAIR_TOKENS + lane / PAIR_LANES;
  const float4* sums = GemmStages<M>::totals(shared) + row_warp * 32;
  const int first = work.first_token(item) + in_tile, tokens = work.tokens(item);
  const int end = work.first_token(item) + tokens;
  const float4 zeros = make_float4(0, 0, 0, 0);
  const auto load = [](uint64_t from, size_t place) {
    return *reinterpret_cast<const float4*>(at<const float>(from) + place);
  };
  const float4 weights = column < HIDDEN ? load(norm.weights, column) : zeros;
  const Ranks ranks(norm.ranks);
#pragma unroll 1
  for (int tile = 0; tile * TILE_TOKENS < tokens; tile += STREAM_TILES) {
    const auto token = [&](int i) { return first + (tile + i) * TILE_TOKENS; };
    const auto has = [&](int i) { return token(i) < end && column < HIDDEN; };
    float4 before[STREAM_TILES];
#pragma unroll
    for (int i = 0; i < STREAM_TILES; i++)
      before[i] = has(i) ? load(norm.stream, size_t{1} * token(i) * HIDDEN + column) : zeros;
#pragma unroll
    for (int i = 0; i < STREAM_TILES; i++) {
      const float4 part = four_rows(sums + (tile + i) * GemmShape<M>::CONSUMERS, in_tile, four);
      float4 x = zeros;
      if (has(i)) {
        x = make_float4(before[i].x + part.x, before[i].y + part.y, before[i].z + part.z,
                        before[i].w + part.w);
        store_forms(norm, ranks, token(i), column, x, weights);
      }
      const float square = add_squares(x);
      if (four == 0 && token(i) < end && row_tile < SQUARES)
        at<float>(norm.squares)[token(i) * SQUARES + row_tile] = square;
    }
  }
}

// The output projection of attention's results, which are in `operand`. Its biases are zeros on all
// ranks but the first. A single rank adds the products to the stream; with several ranks they are a
// part. `norm()` returns the norm that follows, so that it is not kept in registers meanwhile.
template <int KIND, class Norm>
__device__ __forceinline__ void output(GemmShared& shared, GemmMemory memory, Norm norm,
                                       const float* biases) {
  using M = OutputMatrix<KIND>;
  memory.operand += kind_operand<OutputMatrix, KIND>(memory.capacity);
  const auto add_bias = [&](int row_tile, const float4& v) {
    if constexpr (!ATTENTIONS[KIND].bias) return v;
    const float2 bias = load_biases<KIND>(biases, row_tile, threadIdx.x % 32 / 4);
    return make_float4(v.x + bias.x, v.y + bias.x, v.z + bias.y, v.w + bias.y);
  };
  if constexpr (RANKS > 1)
    multiply_to_part<M>(shared, memory, 0, add_bias);
  else
    multiply_items<M>(shared, memory, add_bias, [&](const GemmWork<M>& work, int item) {
      add_to_stream<M>(shared, norm(), work, item);
    });
}

// Gate and up of a dense network. Its epilogue is that of `StoreInner` in phase/dense.cuh.
template <int KIND>
__device__ __forceinline__ void dense_gate_up(GemmShared& shared, const GemmMemory& memory) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  multiply_all<GateUpMatrix<KIND>>(
      shared, memory, [&](int row_tile, int first, int lane, const float4& v) {
        const int value = row_tile * 8 + lane / 4;
        if (value >= F.width) return;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int token = first + lane % 4 * 2 + j;
          if (token >= memory.count) continue;
          const float scale = at<const float>(memory.inverse_rms)[token];
          const float gate = j == 0 ? v.x : v.y, up = j == 0 ? v.z : v.w;
          *reinterpret_cast<uint16_t*>(at<char>(memory.inner) +
                                       kind_operand<DenseDown, KIND>(memory.capacity) +
                                       operand_place(token, value, memory.capacity)) =
              ptx::to_bf16(inner_value<KIND>(gate, up, scale, {}) * operand_scale(F.format));
        }
      });
}

// Down of a dense network, from the inner operand in `operand`.
template <int KIND>
__device__ __forceinline__ void dense_down(GemmShared& shared, GemmMemory memory) {
  memory.operand += kind_operand<DenseDown, KIND>(memory.capacity);
  multiply_to_part<DownMatrix<KIND>>(shared, memory);
}

}  // namespace kilotok::wide
