// The residual stream and its RMSNorm. Every owner (gemm/matrix.cuh) has its rows of the stream in
// shared memory, F32, for all tokens; each rank has the whole stream. All additions to the stream
// happen here.
//
// The addition is fused with the next RMSNorm, whose scale is deferred: x times the norm's weights
// is written as an operand with its sum of squares beside it, and the GEMM that reads it scales its
// products by 1 / rms, which is mathematically the same.
#pragma once

#include "kilotok/comm/publish.cuh"
#include "kilotok/layout/buffers.cuh"

namespace kilotok {

// Which GEMM of a layer reads a norm.
enum class Reader { Projection, FeedForward };
constexpr int READERS = 2;

// See `begin_rms_norm`.
struct NextRmsNorm {
  alignas(16) float weights[OWNER_ROWS];
  float scale;
  uint32_t tap;
  Reader reader;
};

// Rows whose squares are added by shuffles within a warp.
constexpr int SQUARE_ROWS = 16;

// Products of experts, and sums of their units (phase/experts.cuh), lie in rows of the stream that
// one tile of tokens does not use, or after it where an owner has too few rows.
constexpr bool PRODUCTS_APART = (TOKENS_MAX - TILE_TOKENS) * OWNER_ROWS * 4 < CONSUMERS * 16;
template <bool APART>
struct ProductMemory {};
template <>
struct ProductMemory<true> {
  float4 products[2][CONSUMERS];
};

struct StreamMemory : ProductMemory<PRODUCTS_APART> {
  float residual[TOKENS_MAX][OWNER_ROWS];
  // The part that will be added to the stream.
  float part[TOKENS_MAX][OWNER_ROWS];
  float squares[TOKENS_MAX][OWNER_ROWS / SQUARE_ROWS];
  float inverse_rms[TOKENS_MAX];
  NextRmsNorm norm;
  // The receive buffers' addresses: a copy, because each load of the original takes a round trip to
  // L2.
  Peers peers;

  // All threads of a CTA, before a __syncthreads.
  __device__ __forceinline__ void fetch_peers(const Memory& memory) {
    if constexpr (RANKS > 1) Words<sizeof(peers)>(memory.peers).store(&peers);
  }
};

// x times the norm's weights, for the router, by tile of tokens: `[tiles][rows][tokens]`, after the
// sums in the scratch memory.
using ScaledTile = float[OWNER_ROWS][TILE_TOKENS];
__device__ __forceinline__ ScaledTile* scaled_stream(SumMemory& sums) {
  constexpr int PARTS_BYTES = sizeof(SumMemory::parts);
  static_assert(PARTS_BYTES + sizeof(ScaledTile) * TILES_MAX <= SCRATCH_BYTES, "it fits behind");
  return reinterpret_cast<ScaledTile*>(sums.scratch + PARTS_BYTES);
}

// Owners: sets which norm comes next, which GEMM reads it with which operand scale, and which tap
// is written, or ~0. Begins an asynchronous copy of its weights.
__device__ __forceinline__ void begin_rms_norm(const Cta& cta, StreamMemory& stream, Reader reader,
                                           uint64_t weights, float operand_scale, uint32_t tap) {
  static_assert(HIDDEN % 4 == 0 && OWNER_ROWS % 4 == 0, "weights come by fours");
  NextRmsNorm& norm = stream.norm;
  const int row = cta.thread() * 4, column = cta.index() * OWNER_ROWS + row;
  if (row < OWNER_ROWS && column < HIDDEN)
    ptx::copy_later(ptx::shared_address(&norm.weights[row]), at<const float>(weights) + column);
  if (cta.thread() != 0) return;
  norm.scale = operand_scale;
  norm.tap = tap;
  norm.reader = reader;
}

// The operand scales of a kind of feed-forward network, and of a kind of projection.
__device__ __forceinline__ float feed_forward_scale(uint32_t kind) {
  float scale = 1.0f;
  with_kind<0, FEED_FORWARD_KINDS>(
      kind, [&](auto k) { scale = operand_scale(FEED_FORWARDS[decltype(k)::value].format); });
  return scale;
}

__device__ __forceinline__ float projection_scale(uint32_t kind) {
  float scale = 1.0f;
  with_kind<0, ATTENTION_KINDS>(
      kind, [&](auto k) { scale = operand_scale(ATTENTIONS[decltype(k)::value].format); });
  return scale;
}

__device__ __forceinline__ float add_lanes(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

__device__ __forceinline__ bool is_owner(const Cta& cta) { return cta.index() < OWNER_UNITS; }

// A token's sums of squares, by owner. Each reader has its own.
__device__ __forceinline__ float* squares_of(const Memory& memory, Reader reader, int token) {
  return at<float>(memory.squares) +
         (static_cast<int>(reader) * TOKENS_MAX + token) * SQUARES_EACH;
}

// Tokens that the consumers process at a time, with a thread for each row.
constexpr int TOKENS_TOGETHER = CONSUMERS / OWNER_ROWS;

// Owners: adds `part` to the stream and computes the norm that was begun, whose operand has its
// tokens from row `first_row` on. A thread has one row of a token. Squares are added within each
// sixteen rows, then these sums.
__device__ __forceinline__ void add_rms_norm(const Cta& cta, StreamMemory& stream, SumMemory& sums,
                                              int token_count, int first_row = 0) {
  static_assert(CONSUMERS % OWNER_ROWS == 0, "a thread for each row of some tokens");
  constexpr bool IS_TILE = TOKENS_TOGETHER == TILE_TOKENS;
  const NextRmsNorm& next = stream.norm;
  ScaledTile* tiles = scaled_stream(sums);
  const Memory& memory = cta.memory;
  const uint32_t thread = cta.thread();
  const uint32_t row = thread % OWNER_ROWS, own = thread / OWNER_ROWS;
  const uint32_t column = cta.index() * OWNER_ROWS + row;
  ptx::wait_for_copies();
  cta.sync();
#pragma unroll 1
  for (int first = 0; first < token_count; first += TOKENS_TOGETHER) {
    const uint32_t token = first + own;
    const bool has_token = token < static_cast<uint32_t>(token_count);
    float square = 0;
    if (has_token) {
      float& tiled = IS_TILE ? tiles[first / TILE_TOKENS][row][own]
                             : tiles[token / TILE_TOKENS][row][token % TILE_TOKENS];
      if (HIDDEN % OWNER_ROWS != 0 && column >= HIDDEN) {
        // The router needs zeros beyond the last column.
        tiled = 0;
      } else {
        const float x = stream.residual[token][row] + stream.part[token][row];
        const float scaled = x * next.weights[row];
        stream.residual[token][row] = x;
        tiled = scaled;
        square = __fmul_rn(x, x);
        publish_half(at<char>(memory.normed) + operand_row(first_row + token, NORMED_BYTES) +
                         operand_offset(column),
                     scaled * next.scale);
        if (next.tap != ~0u)
          store_operand(at<char>(memory.taps) + operand_row(token, TAPS_BYTES),
                        next.tap * HIDDEN + column, x);
      }
    }
#pragma unroll
    for (int distance = SQUARE_ROWS / 2; distance > 0; distance /= 2)
      square += __shfl_xor_sync(~0u, square, distance);
    if (row % SQUARE_ROWS == 0 && has_token)
      stream.squares[token][row / SQUARE_ROWS] = square;
  }
  cta.sync();
  if (cta.thread() >= token_count) return;
  float square = 0;
#pragma unroll
  for (int i = 0; i < OWNER_ROWS / SQUARE_ROWS; i++) square += stream.squares[cta.thread()][i];
  publish(squares_of(memory, next.reader, first_row + cta.thread()) + cta.index(), square);
}

// Owners: resets the values of one token that are polled for. Called between two grid barriers.
__device__ __forceinline__ void reset_norm(const Cta& cta) {
  const int row = cta.thread(), column = cta.index() * OWNER_ROWS + row;
  if (row >= OWNER_ROWS || column >= HIDDEN) return;
  char* operand = at<char>(cta.memory.normed) + operand_row(POLLED_ROW, NORMED_BYTES);
  *reinterpret_cast<uint16_t*>(operand + operand_offset(column)) = EMPTY_HALF;
  if (row == 0)
    reinterpret_cast<uint32_t*>(
        squares_of(cta.memory, Reader::Projection, POLLED_ROW))[cta.index()] = EMPTY;
}

// Epilogue and consumers: stores a lane's sums of an owner's rows in `stream.part`.
struct StorePart {
  StreamMemory& stream;

  __device__ __forceinline__ void operator()(int, int row_tile, int tile, int lane,
                                             const float4& v) const {
    const int row = row_tile * 16 + lane / 4, token = tile * TILE_TOKENS + lane % 4 * 2;
    stream.part[token][row] = v.x;
    stream.part[token + 1][row] = v.y;
    stream.part[token][row + 8] = v.z;
    stream.part[token + 1][row + 8] = v.w;
  }
};

// Epilogue of an owner on one rank, with one tile of tokens: adds a lane's products to the stream
// and computes the norm that follows, as `add_rms_norm` does and with its bits, so that consumers
// need not meet before and after it.
struct EpilogueNorm {
  // Of rows g and g + 8 of the warp's row tile.
  float weights[2];
  float scale;
  uint32_t tap;
  Reader reader;
  // The operand's row of the first token.
  int first_row;
  // The row tile that the warp has added, or -1.
  int row_tile = -1;

  __device__ __forceinline__ EpilogueNorm(const Cta& cta, Reader which, uint64_t norm,
                                          float operand_scale, uint32_t tap_index, int row)
      : scale(operand_scale), tap(tap_index), reader(which), first_row(row) {
    // Warps that take turns all have the first row tile.
    const int tile = cta.warp() - CONSUMER_WARPS - 1;
    const int column = cta.index() * OWNER_ROWS + (tile < OWNER_TILES ? tile * 16 : 0);
#pragma unroll
    for (int i = 0; i < 2; i++)
      weights[i] = at<const float>(norm)[smaller(column + cta.lane() / 4 + i * 8, HIDDEN - 1)];
  }

  // `v` has rows g and g + 8 of tokens 2q and 2q + 1.
  __device__ __forceinline__ void add(const Cta& cta, StreamMemory& stream, SumMemory& sums,
                                      int tile, const float4& v, int token_count) {
    row_tile = tile;
    const uint32_t lane = cta.lane(), row = tile * 16 + lane / 4, first = lane % 4 * 2;
    const uint32_t column = cta.index() * OWNER_ROWS + row;
    ScaledTile& tiled = *scaled_stream(sums);
    char* to = at<char>(cta.memory.normed) + operand_row(first_row + first, NORMED_BYTES) +
               operand_offset(column);
    const float products[2][2] = {{v.x, v.z}, {v.y, v.w}};
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const uint32_t token = first + j;
      const bool has_token = token < static_cast<uint32_t>(token_count);
      float square = 0;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (!has_token) continue;
        float& residual = stream.residual[token][row + i * 8];
        float& scaled = tiled[row + i * 8][token];
        if (HIDDEN % OWNER_ROWS != 0 && column + i * 8 >= HIDDEN) {
          // The router needs zeros beyond the last column.
          scaled = 0;
          continue;
        }
        const float x = residual + products[j][i], product = x * weights[i];
        residual = x;
        scaled = product;
        square += __fmul_rn(x, x);
        // Eight columns further are four bytes, the next token 64.
        publish_half(to + j * 64 + i * 4, product * scale);
      }
      // In the order of `add_rms_norm`: rows that are eight apart first.
#pragma unroll
      for (int distance = 16; distance >= 4; distance /= 2)
        square += __shfl_xor_sync(~0u, square, distance);
      if (lane < 4 && has_token) stream.squares[token][tile] = square;
    }
    if (tap != ~0u) store_taps(cta, stream, row, column, first, token_count);
  }

  // The warps that have called `add`: publish the tokens' sums of squares, then signal that the
  // operand is written, and arrive at the grid barrier.
  __device__ __forceinline__ void finish(const Cta& cta, StreamMemory& stream, int token_count,
                                         bool counts, bool arrives) const {
    if (row_tile < 0) return;
    if constexpr (OWNER_TILES > 1)
      ptx::sync_threads<OWNER_TILES * 32>(ROW_TILES_BARRIER);
    else
      __syncwarp();
    if (row_tile > 0) return;
    const int token = cta.lane();
    if (token < token_count) {
      float square = 0;
#pragma unroll
      for (int i = 0; i < OWNER_TILES; i++) square += stream.squares[token][i];
      publish(squares_of(cta.memory, reader, first_row + token) + cta.index(), square);
    }
    __syncwarp();
    if (cta.lane() != 0) return;
    if (counts) cta.count(Counter::Operands);
    if (arrives) cta.count(Counter::Grid);
  }

 private:
  __device__ __forceinline__ void store_taps(const Cta& cta, const StreamMemory& stream,
                                             uint32_t row, uint32_t column, int first,
                                             int token_count) const {
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
      const int token = first + i % 2, further = i / 2 * 8;
      if (token < token_count && column + further < HIDDEN)
        store_operand(at<char>(cta.memory.taps) + operand_row(token, TAPS_BYTES),
                      tap * HIDDEN + column + further, stream.residual[token][row + further]);
    }
  }
};

// 1 / rms, from the sum of a token's squares. An overflowing sum must not yield a token of zeros,
// which would look valid.
__device__ __forceinline__ float inverse_rms_of(float sum, float eps) {
  return ptx::inverse_sqrt(sum * (1.0f / HIDDEN) + eps) + 0.0f * sum;
}

// 1 / rms of a token, from the owners' sums of squares, loaded and reduced by a whole warp.
struct SumOfSquares {
  static constexpr int EACH = ceil_div(OWNER_UNITS, 128);
  // Of units 4 lane to 4 lane + 3, then of those 128 further.
  uint4 parts[EACH];
  int lane;

  SumOfSquares() = default;
  __device__ __forceinline__ SumOfSquares(const Cta& cta, Reader reader, int token)
      : lane(cta.lane()) {
    const float* squares = squares_of(cta.memory, reader, token);
#pragma unroll
    for (int i = 0; i < EACH; i++)
      parts[i] = ptx::load_l2(static_cast<const void*>(squares + first_unit(i)));
  }

  // The unit of the first of a lane's parts. Lanes without parts load the last ones.
  __device__ __forceinline__ int first_unit(int i) const {
    return smaller(i * 128 + lane * 4, SQUARES_EACH - 4);
  }

  // Whether all of the lane's parts are published.
  __device__ __forceinline__ bool are_published() const {
    bool there = true;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const uint32_t words[4] = {parts[i].x, parts[i].y, parts[i].z, parts[i].w};
#pragma unroll
      for (int j = 0; j < 4; j++)
        there = there && (first_unit(i) + j >= OWNER_UNITS || is_published(words[j]));
    }
    return there;
  }

  __device__ __forceinline__ float inverse_rms(float eps) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const uint32_t words[4] = {parts[i].x, parts[i].y, parts[i].z, parts[i].w};
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (i * 128 + lane * 4 + j < OWNER_UNITS) sum += __uint_as_float(words[j]);
    }
    return inverse_rms_of(add_lanes(sum), eps);
  }
};

// 1 / rms of every token. A warp loads the sums of up to TILES tiles at once. The result is visible
// after the caller's next sync.
template <int TILES>
__device__ __forceinline__ void read_inverse_rms(const Cta& cta, StreamMemory& stream,
                                                 Reader reader, int token_count, float eps) {
  constexpr int EACH = ceil_div(TILES * TILE_TOKENS, CONSUMER_WARPS);
#pragma unroll 1
  for (int first = cta.warp(); first < token_count; first += EACH * CONSUMER_WARPS) {
    // Beyond the last token, the last token again.
    const auto token = [&](int i) {
      return i == 0 ? first : smaller(first + i * CONSUMER_WARPS, token_count - 1);
    };
    SumOfSquares squares[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) squares[i] = SumOfSquares(cta, reader, token(i));
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const float inverse_rms = squares[i].inverse_rms(eps);
      if (cta.lane() == 0 && first + i * CONSUMER_WARPS < token_count)
        stream.inverse_rms[token(i)] = inverse_rms;
    }
  }
}

// The same for one token whose values are polled for.
__device__ __forceinline__ void poll_inverse_rms(const Cta& cta, StreamMemory& stream,
                                                 Reader reader, float eps) {
  if (cta.warp() > 0) return;
  SumOfSquares squares;
  poll<true>([&] {
    squares = SumOfSquares(cta, reader, POLLED_ROW);
    return squares.are_published();
  });
  const float inverse_rms = squares.inverse_rms(eps);
  if (cta.lane() == 0) stream.inverse_rms[0] = inverse_rms;
}

// Passed to `gemm` as `prepare`, which runs while operands are loaded.
template <int TILES>
struct ReadInverseRms {
  StreamMemory& stream;
  Reader reader;
  int token_count;
  float eps;
  // Whether there is one token, whose values are polled for.
  bool polled = false;

  __device__ __forceinline__ void operator()(const Cta& cta) const {
    if (TILES == 1 && polled)
      poll_inverse_rms(cta, stream, reader, eps);
    else
      read_inverse_rms<TILES>(cta, stream, reader, token_count, eps);
  }
};

struct Nothing {
  __device__ __forceinline__ void operator()(const Cta&) const {}
};

}  // namespace kilotok
