// The residual stream of many tokens, F32 `[capacity][HIDDEN]` in the GPU's memory, and the RMSNorm
// after each addition to it. With several ranks, each has the stream of its own tokens only
// (wide/ranks.cuh). To get the bits of the narrow pass (phase/add_rms_norm.cuh), squares are summed
// in its order: over 16 columns; over an owner's sums of these, up to three; then over the owners,
// by a warp's lanes. Kernels in step/wide.cu: wide_embed, wide_input_norm, wide_post_norm,
// wide_context_norm, wide_gather_wanted.
//
//   embed          the tokens' embeddings, as the first part that is added
//   add_rms_norm   adds the ranks' parts, or one rank's products of experts; writes the next GEMM's
//                  operand and 1 / rms
//   finish_norm    1 / rms alone, where the GEMM before has added and written (wide/project.cuh)
//   gather_wanted  the last norm of the tokens that need logits, for the narrow head
#pragma once

#include "kilotok/phase/embed.cuh"
#include "kilotok/wide/products.cuh"
#include "kilotok/wide/ranks.cuh"

namespace kilotok::wide {

struct EmbedMemory {
  // BatchToken `[count]`.
  uint64_t tokens;
  // BF16 `[VOCAB / RANKS][HIDDEN]`.
  uint64_t embedding;
  // F32 `[capacity][HIDDEN]`: the embeddings of a single rank.
  uint64_t part;
  uint32_t rank;
  int count;
  PartsMemory parts;
};

__device__ __forceinline__ float4 unpack_four(const uint2& words) {
  return make_float4(ptx::from_bf16(static_cast<uint16_t>(words.x)),
                     ptx::from_bf16(static_cast<uint16_t>(words.x >> 16)),
                     ptx::from_bf16(static_cast<uint16_t>(words.y)),
                     ptx::from_bf16(static_cast<uint16_t>(words.y >> 16)));
}

// Called by all threads of all CTAs, any number of them; a thread copies four columns. Tokens of
// other ranks yield zeros.
__device__ __forceinline__ void embed(const EmbedMemory& memory) {
  constexpr int FOURS = HIDDEN / 4, RANK_ROWS = VOCAB / RANKS;
  static_assert(HIDDEN % 4 == 0, "columns come four at a time");
  const int threads = blockDim.x;
  for (int i = ptx::cta_index() * threads + threadIdx.x; i < memory.count * FOURS;
       i += GRID * threads) {
    const uint32_t id = at<const BatchToken>(memory.tokens)[i / FOURS].token;
    const int row = static_cast<int>(id) - static_cast<int>(memory.rank) * RANK_ROWS;
    uint2 words = make_uint2(0, 0);
    if (row >= 0 && row < RANK_ROWS)
      words = at<const uint2>(memory.embedding)[static_cast<size_t>(row) * FOURS + i % FOURS];
    if constexpr (RANKS > 1)
      ptx::store_system_pair(PartsSender(memory.parts).place(i / FOURS, i % FOURS * 4), words);
    else
      at<float4>(memory.part)[i] = unpack_four(words);
  }
  if constexpr (RANKS > 1) PartsSender(memory.parts).end();
}

struct AddNormMemory {
  // F32 `[capacity][HIDDEN]`: the stream, to which a single rank's `part` or the parts that were
  // `received` are added. If it `begins`, it counts as zeros.
  uint64_t stream, part;
  // F32 `[HIDDEN]`.
  uint64_t weights;
  // Receives x * weights * scale as BF16: an operand of HIDDEN columns, or `[capacity][HIDDEN]`. 0
  // if it is not needed.
  uint64_t operand, rows;
  // F32 `[capacity]`.
  uint64_t inverse_rms;
  // F32 `[capacity][SQUARES]`: sums of sixteen squares, where a GEMM has added to the stream.
  uint64_t squares;
  // An operand of TAPS * HIDDEN columns, and the tap of it that receives x; NO_TAP for none.
  uint64_t taps;
  uint32_t tap;
  bool begins;
  float scale, eps;
  int capacity;
  // BF16 `[ranks][tokens of a share][HIDDEN]`: the ranks' parts of this rank's tokens. If a rank
  // has only some columns, `rank_columns` is their number, otherwise 0.
  uint64_t received;
  int rank_columns;
  RanksMemory ranks;
};

// Where a norm adds the products of a token's choices instead of a part.
struct AddedProducts {
  // U32 `[tokens][TOP_K]`: the rows of choices; their products.
  uint64_t rows, products;
  size_t panel_stride;
};

constexpr uint32_t NO_TAP = ~0u;
// The first sums of squares are over sixteen columns: the columns of a lane, the lanes of a sum,
// and the number of sums.
constexpr int LANE_COLUMNS = 4, SQUARE_LANES = SQUARE_ROWS / LANE_COLUMNS;
constexpr int SQUARES = OWNER_UNITS * (OWNER_ROWS / SQUARE_ROWS);
// Threads of a CTA that adds and normalises.
constexpr int NORM_THREADS = 512, NORM_WARPS = NORM_THREADS / 32;

// Warps that share a token, a power of two: one, or more where tokens are too few for all warps.
__device__ __forceinline__ int warps_each(int tokens) {
  int warps = 1;
  while (warps < NORM_WARPS && tokens * warps * 2 <= GRID * NORM_WARPS) warps *= 2;
  return warps;
}

struct NormShared {
  float squares[NORM_WARPS][SQUARES];
};

__device__ __forceinline__ uint2 pack_four(const float4& v) {
  return make_uint2(ptx::pack_bf16(v.x, v.y), ptx::pack_bf16(v.z, v.w));
}

__device__ __forceinline__ void store_four(uint64_t operand, int token, int column, int capacity,
                                           const float4& v) {
  *reinterpret_cast<uint2*>(at<char>(operand) + operand_place(token, column, capacity)) =
      pack_four(v);
}

// The sum of the squares of sixteen columns, four in each of their lanes, in the order in which
// sixteen lanes with one column each add theirs. Products and additions are not fused.
__device__ __forceinline__ float add_squares(const float4& x) {
  float s[LANE_COLUMNS] = {__fmul_rn(x.x, x.x), __fmul_rn(x.y, x.y), __fmul_rn(x.z, x.z),
                           __fmul_rn(x.w, x.w)};
#pragma unroll
  for (int distance = SQUARE_LANES / 2; distance > 0; distance /= 2)
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; i++) s[i] += __shfl_xor_sync(~0u, s[i], distance);
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// An owner's sum of squares.
__device__ __forceinline__ float owner_square(const float* squares, int unit) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < OWNER_ROWS / SQUARE_ROWS; i++)
    sum += squares[unit * (OWNER_ROWS / SQUARE_ROWS) + i];
  return sum;
}

// A warp: 1 / rms of a token.
__device__ __forceinline__ float inverse_rms(const float* squares, float eps) {
  const int lane = threadIdx.x % 32;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < SumOfSquares::EACH; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int unit = i * 128 + lane * 4 + j;
      if (unit < OWNER_UNITS) sum += owner_square(squares, unit);
    }
  return inverse_rms_of(add_lanes(sum), eps);
}

// A lane's four columns of a token: stores the new stream in all forms, which all ranks get.
__device__ __forceinline__ void store_forms(const AddNormMemory& memory, const Ranks& ranks,
                                            int token, int column, const float4& x,
                                            const float4& w) {
  const size_t place = static_cast<size_t>(token) * HIDDEN + column;
  *reinterpret_cast<float4*>(at<float>(memory.stream) + place) = x;
  const float4 scaled = make_float4(x.x * w.x * memory.scale, x.y * w.y * memory.scale,
                                    x.z * w.z * memory.scale, x.w * w.w * memory.scale);
  if (memory.operand != 0)
    ranks.on_all(memory.operand, [&](uint64_t operand) {
      store_four(operand, token, column, memory.capacity, scaled);
    });
  if (memory.rows != 0)
    ranks.on_all(memory.rows, [&](uint64_t rows) {
      *reinterpret_cast<uint2*>(at<uint16_t>(rows) + place) = pack_four(scaled);
    });
  if (memory.tap != NO_TAP)
    ranks.on_all(memory.taps, [&](uint64_t taps) {
      store_four(taps, token, memory.tap * HIDDEN + column, memory.capacity, x);
    });
}

// Columns that a warp adds at a time.
constexpr int NORM_COLUMNS = 32 * LANE_COLUMNS;

// What is added to a token's stream: a part of each rank, or a sum of products. `load` begins to
// load a lane's four columns of `run`, which has NORM_COLUMNS columns, and `sum` uses them later.
struct PartAdded {
  // Runs of columns whose loads a lane has in flight.
  static constexpr int RUNS = 6;
  using Loaded = float4;
  const float* part;

  __device__ __forceinline__ PartAdded(const AddNormMemory& memory, int token)
      : part(at<const float>(memory.part) + static_cast<size_t>(token) * HIDDEN) {}
  __device__ __forceinline__ void load(Loaded& to, int run) const {
    to = *reinterpret_cast<const float4*>(part + run * NORM_COLUMNS +
                                          threadIdx.x % 32 * LANE_COLUMNS);
  }
  __device__ __forceinline__ float4 sum(const Loaded& loaded) const { return loaded; }
};

// With several ranks: the parts that this rank has received, its own among them.
struct PartsAdded {
  static constexpr int RUNS = 2;
  struct Loaded {
    uint2 parts[RANKS];
  };
  const uint16_t* received;
  size_t stride;
  int rank_columns;

  __device__ __forceinline__ PartsAdded(const AddNormMemory& memory, const Ranks& ranks, int token)
      : received(at<const uint16_t>(memory.received) +
                 static_cast<size_t>(token - ranks.first_token(ranks.rank)) * HIDDEN),
        stride(static_cast<size_t>(ranks.share) * HIDDEN),
        rank_columns(memory.rank_columns) {}
  __device__ __forceinline__ void load(Loaded& to, int run) const {
    const int column = run * NORM_COLUMNS + static_cast<int>(threadIdx.x) % 32 * LANE_COLUMNS;
    const int only = rank_columns == 0 ? -1 : column / rank_columns;
#pragma unroll
    for (int from = 0; from < RANKS; from++)
      to.parts[from] = only < 0 || only == from
                           ? ptx::load_l2_pair(received + from * stride + column)
                           : make_uint2(0, 0);
  }
  // In rank order, from zero.
  __device__ __forceinline__ float4 sum(const Loaded& loaded) const {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int from = 0; from < RANKS; from++) {
      const float4 part = unpack_four(loaded.parts[from]);
      sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    }
    return sum;
  }
};

template <int TOP_K>
struct ProductsAdded {
  static constexpr int RUNS = 1;
  using Loaded = ChoiceProducts<TOP_K>;
  const AddedProducts& memory;
  // Where the lane's columns lie in a panel.
  typename Loaded::Places places;

  __device__ __forceinline__ ProductsAdded(const AddedProducts& added, int token)
      : memory(added),
        places(at<const uint32_t>(added.rows) + token * TOP_K,
               threadIdx.x % 32 * LANE_COLUMNS % PANEL_COLUMNS) {}
  __device__ __forceinline__ void load(Loaded& to, int run) const {
    const int column = run * NORM_COLUMNS + static_cast<int>(threadIdx.x) % 32 * LANE_COLUMNS;
    to.load(at<const char>(memory.products) + column / PANEL_COLUMNS * memory.panel_stride,
            places);
  }
  __device__ __forceinline__ float4 sum(const Loaded& loaded) const {
    return loaded.sum(places.half, [](int, float4&) {});
  }
};

// A warp: adds `added` to some of a token's columns, stores the stream in all forms, and leaves
// sums of sixteen squares in `squares`.
template <class Added>
__device__ __forceinline__ void add_columns(const AddNormMemory& memory, const Ranks& ranks,
                                            const Added& added, int token, float* squares,
                                            int first_run, int end_run) {
  constexpr int LOADS = Added::RUNS;
  const int lane = threadIdx.x % 32;
  const float* stream = at<const float>(memory.stream) + static_cast<size_t>(token) * HIDDEN;
  const auto load = [](const float* from) { return *reinterpret_cast<const float4*>(from); };
#pragma unroll 1
  for (int first = first_run; first < end_run; first += LOADS) {
    const float4 zeros = make_float4(0, 0, 0, 0);
    typename Added::Loaded parts[LOADS];
    float4 before[LOADS], weights[LOADS];
    const auto column = [&](int i) { return (first + i) * NORM_COLUMNS + lane * LANE_COLUMNS; };
    const auto has = [&](int i) { return first + i < end_run && column(i) < HIDDEN; };
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      if (has(i)) added.load(parts[i], first + i);
      before[i] = has(i) && !memory.begins ? load(stream + column(i)) : zeros;
      weights[i] = has(i) ? load(at<const float>(memory.weights) + column(i)) : zeros;
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const float4 part = has(i) ? added.sum(parts[i]) : zeros;
      const float4 x = make_float4(before[i].x + part.x, before[i].y + part.y,
                                   before[i].z + part.z, before[i].w + part.w);
      if (has(i)) store_forms(memory, ranks, token, column(i), x, weights[i]);
      const float square = add_squares(x);
      const int sixteen = column(i) / SQUARE_ROWS;
      if (lane % SQUARE_LANES == 0 && first + i < end_run && sixteen < SQUARES)
        squares[sixteen] = square;
    }
  }
}

// Called by all threads of all CTAs, NORM_THREADS each: the norm of this rank's tokens. If TOP_K is
// not 0, the products of a token's TOP_K choices are added, from `added`.
template <int TOP_K = 0>
__device__ __forceinline__ void add_rms_norm(NormShared& shared, const AddNormMemory& memory,
                                             const AddedProducts& added = {}) {
  constexpr int RUNS = ceil_div(SQUARES * SQUARE_ROWS, NORM_COLUMNS);
  const Ranks ranks(memory.ranks);
  const int count = ranks.token_count(ranks.rank), first_token = ranks.first_token(ranks.rank);
  const int warps = warps_each(count), warp = threadIdx.x / 32, share = warp % warps;
  const int first_run = RUNS * share / warps, end_run = RUNS * (share + 1) / warps;
  const int step = GRID * (NORM_WARPS / warps);
  float* squares = shared.squares[warp / warps];
  const auto sync = [&] {
    if (warps > 1)
      __syncthreads();
    else
      __syncwarp();
  };
  static_assert(RANKS == 1 || TOP_K == 0, "several ranks send sums of products");
  if constexpr (RANKS > 1) ranks.wait_for_parts();
#pragma unroll 1
  for (int first = 0; first < count; first += step) {
    const int index = first + warp / warps * GRID + ptx::cta_index(), token = first_token + index;
    if (index < count) {
      const auto add = [&](const auto& what) {
        add_columns(memory, ranks, what, token, squares, first_run, end_run);
      };
      if constexpr (TOP_K > 0)
        add(ProductsAdded<TOP_K>(added, token));
      else if constexpr (RANKS > 1)
        add(PartsAdded(memory, ranks, token));
      else
        add(PartAdded(memory, token));
    }
    sync();
    if (share == 0 && index < count) {
      const float found = inverse_rms(squares, memory.eps);
      if (threadIdx.x % 32 == 0)
        ranks.on_all(memory.inverse_rms, [&](uint64_t to) { at<float>(to)[token] = found; });
    }
    sync();
  }
  ranks.finish(WideCollective::Norms);
}

// The same after a GEMM that has added its products to the stream: a warp finishes a token at a
// time.
__device__ __forceinline__ void finish_norm(const AddNormMemory& memory) {
  const int first = static_cast<int>(threadIdx.x) / 32 * GRID + ptx::cta_index();
#pragma unroll 1
  for (int token = first; token < memory.ranks.count; token += NORM_WARPS * GRID) {
    const float found = inverse_rms(at<const float>(memory.squares) + token * SQUARES, memory.eps);
    if (threadIdx.x % 32 == 0) at<float>(memory.inverse_rms)[token] = found;
  }
}

struct WantedMemory {
  // U32: indices of the wanted tokens in the step.
  uint64_t wanted;
  // F32 `[capacity][HIDDEN]`, `[HIDDEN]`.
  uint64_t stream, weights;
  // The narrow pass's operand and sums of squares.
  uint64_t normed, squares;
  int count;
  RanksMemory ranks;
};

struct WantedShared {
  float squares[SQUARES];
};

// Called by all threads of all CTAs, SORTERS each: a CTA takes one wanted token at a time, of those
// that this rank owns.
__device__ __forceinline__ void gather_wanted(WantedShared& shared, const WantedMemory& memory) {
  const int lane = threadIdx.x % SQUARE_ROWS;
  const Ranks ranks(memory.ranks);
  for (int wanted = ptx::cta_index(); wanted < memory.count; wanted += GRID) {
    const int token = static_cast<int>(at<const uint32_t>(memory.wanted)[wanted]);
    if (RANKS > 1 && !ranks.owns(token)) continue;
    const float* stream =
        at<const float>(memory.stream) + static_cast<size_t>(token) * HIDDEN;
    // All threads of a warp take part in the sum.
    for (int first = threadIdx.x / 32 * 32; first < SQUARES * SQUARE_ROWS; first += SORTERS) {
      const int column = first + static_cast<int>(threadIdx.x) % 32;
      const float x = column < HIDDEN ? stream[column] : 0;
      if (column < HIDDEN)
        ranks.on_all(memory.normed, [&](uint64_t normed) {
          store_operand(at<char>(normed) + operand_row(wanted, NORMED_BYTES), column,
                        x * at<const float>(memory.weights)[column]);
        });
      float square = __fmul_rn(x, x);
#pragma unroll
      for (int distance = SQUARE_ROWS / 2; distance > 0; distance /= 2)
        square += __shfl_xor_sync(~0u, square, distance);
      if (lane == 0 && column / SQUARE_ROWS < SQUARES)
        shared.squares[column / SQUARE_ROWS] = square;
    }
    __syncthreads();
    const int row = (static_cast<int>(Reader::Projection) * TOKENS_MAX + wanted) * SQUARES_EACH;
    for (int unit = threadIdx.x; unit < OWNER_UNITS; unit += SORTERS)
      ranks.on_all(memory.squares, [&](uint64_t squares) {
        publish(at<float>(squares) + row + unit, owner_square(shared.squares, unit));
      });
    __syncthreads();
  }
  ranks.finish(WideCollective::Wanted);
}

}  // namespace kilotok::wide
