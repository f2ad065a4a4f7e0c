// A pass of one token: what its kernel polls for, and where. Every value of a layer that one CTA
// passes to others is polled for (comm/publish.cuh), apart from heads that the epilogue of the
// projections stores. The values lie in three rows, which layers use in turn. In every layer there
// is one grid barrier, at which a CTA arrives when it has multiplied the projections. Behind it
// every CTA has read what the layer before passed on, and that row is reset. It is used again two
// layers later, behind the next layer's barrier, so that no CTA sees an old value or resets a new
// one.
#pragma once

#include "kilotok/phase/attn.cuh"
#include "kilotok/phase/down.cuh"
#include "kilotok/phase/project.cuh"

namespace kilotok {

constexpr int TURNS = 3;

// The row of a norm's operand, after those that kernels for one tile of tokens use.
__device__ __forceinline__ int normed_row(Reader reader, int turn) {
  return TILE_TOKENS + static_cast<int>(reader) * TURNS + turn;
}
// That of the output projection's operand.
__device__ __forceinline__ int attended_row(int turn) { return TILE_TOKENS + turn; }
constexpr int ONE_TOKEN_ROWS = TILE_TOKENS + READERS * TURNS;

// The threads that reset: all consumers but the first warp, which chooses experts meanwhile.
constexpr int RESETTERS = CONSUMERS - 32;
__device__ __forceinline__ int resetter(const Cta& cta) { return cta.thread() - 32; }

// Resets a run of `count` values of 16 bits that all CTAs share; `place(i)` is the address of one.
template <class Place>
__device__ __forceinline__ void reset_halves(const Cta& cta, int count, Place place) {
#pragma unroll 1
  for (int i = cta.index() + GRID * resetter(cta); i < count; i += GRID * RESETTERS)
    ptx::store_l2(reinterpret_cast<uint16_t*>(place(i)), EMPTY_HALF);
}

// Owners: reset their part of a norm.
__device__ __forceinline__ void reset_normed(const Cta& cta, Reader reader, int turn) {
  const int row = resetter(cta), column = cta.index() * OWNER_ROWS + row;
  if (row >= OWNER_ROWS || column >= HIDDEN) return;
  char* operand = at<char>(cta.memory.normed) + operand_row(normed_row(reader, turn), NORMED_BYTES);
  ptx::store_l2(reinterpret_cast<uint16_t*>(operand + operand_offset(column)), EMPTY_HALF);
  if (row == 0)
    ptx::store_l2(reinterpret_cast<uint32_t*>(squares_of(cta.memory, reader, turn)) + cta.index(),
                  EMPTY);
}

// Resets what a layer's attention passes to the output projection.
template <int KIND>
__device__ __forceinline__ void reset_attended_row(const Cta& cta, int turn) {
  char* row = at<char>(cta.memory.attended) + Attended<KIND>::row(attended_row(turn));
  reset_halves(cta, ATTENTIONS[KIND].q_heads * ATTENTIONS[KIND].v_dim,
               [&](int i) { return row + operand_offset(i); });
}

// Resets the products of the projections, where those who attend poll for them.
template <int KIND>
__device__ __forceinline__ void reset_projected(const Cta& cta, int turn) {
  if constexpr (!ATTENTIONS[KIND].paired) {
    uint32_t* projected = at<uint32_t>(cta.memory.projected) + turn * PROJECTED_ROWS;
#pragma unroll 1
    for (int i = cta.index() + GRID * resetter(cta); i < QkvMatrix<KIND>::ROWS;
         i += GRID * RESETTERS)
      ptx::store_l2(projected + i, EMPTY);
  }
}

// The first row of the inner operand of experts.
template <int KIND>
__device__ __forceinline__ int inner_row(int turn) {
  return turn * FEED_FORWARDS[KIND].top_k;
}

// Resets what a network of experts passes on.
template <int KIND>
__device__ __forceinline__ void reset_network(const Cta& cta, int turn) {
  constexpr FeedForward F = FEED_FORWARDS[KIND];
  static_assert(F.experts < RESETTERS && F.experts < SCORES_EACH, "a thread for each value");
  if (is_owner(cta)) {
    reset_normed(cta, Reader::FeedForward, turn);
    uint32_t* parts = at<uint32_t>(cta.memory.router_parts) +
                      (static_cast<size_t>(cta.index()) * TOKENS_MAX + turn) * F.experts;
    if (resetter(cta) < F.experts) ptx::store_l2(parts + resetter(cta), EMPTY);
  }
  if (cta.index() == GRID - 1 && resetter(cta) <= F.experts)
    ptx::store_l2(at<uint32_t>(cta.memory.router_scores) + turn * SCORES_EACH + resetter(cta),
                  EMPTY);
  reset_halves(cta, F.top_k * F.width, [&](int i) {
    return SortedRows<KIND>::value(cta.memory, inner_row<KIND>(turn) + i / F.width, i % F.width);
  });
}

// A warp's columns of an operand that is polled for. `also` has other values that the same loop
// polls for: `load()` begins to load them, `are_published()` says whether all are there.
template <class M>
struct PolledOperand {
  OperandChunk held[M::STEPS][1];

  template <class Also>
  __device__ __forceinline__ PolledOperand(const Cta& cta, const char* row, Also& also) {
    const int part = cta.warp() % M::COLUMN_WARPS;
    poll<true>([&] {
      bool missing = false;
#pragma unroll
      for (int step = 0; step < M::STEPS; step++)
        held[step][0].load_l2(row, step * M::COLUMN_WARPS + part, cta.lane());
      also.load();
#pragma unroll
      for (int step = 0; step < M::STEPS; step++) missing |= is_missing(held[step][0]);
      return !missing && also.are_published();
    });
  }
};

struct NothingElse {
  __device__ __forceinline__ void load() {}
  __device__ __forceinline__ bool are_published() const { return true; }
  __device__ __forceinline__ void finish() {}
};

// 1 / rms of a norm, which the first warp computes. It is visible to the epilogue with the warp's
// first sums.
struct PolledRms {
  const Cta& cta;
  StreamMemory& stream;
  Reader reader;
  int turn;
  float eps;
  SumOfSquares squares = {};

  __device__ __forceinline__ void load() {
    if (cta.warp() == 0) squares = SumOfSquares(cta, reader, turn);
  }
  __device__ __forceinline__ bool are_published() const {
    return cta.warp() != 0 || squares.are_published();
  }
  __device__ __forceinline__ void finish() {
    if (cta.warp() != 0) return;
    const float inverse_rms = squares.inverse_rms(eps);
    if (cta.lane() == 0) stream.inverse_rms[0] = inverse_rms;
  }
};

// The columns of a warp in a row that is polled for, in shared memory behind the partial sums:
// `[parts][steps]`, a chunk's columns each. Warps with the same part write the same bytes. `also`
// is as in `PolledOperand`.
template <class M>
struct SharedRow {
  static constexpr int CHUNK_BYTES = CHUNK_COLUMNS * 2, PART_BYTES = M::STEPS * CHUNK_BYTES;
  static constexpr int PIECES = CHUNK_BYTES / 16, COUNT = M::STEPS * PIECES;
  static constexpr int LOADS = ceil_div(COUNT, 32);
  static constexpr bool FITS =
      sizeof(SumMemory::parts) + M::COLUMN_WARPS * PART_BYTES <= SCRATCH_BYTES;
  uint32_t own;

  template <class Also>
  __device__ __forceinline__ SharedRow(const Cta& cta, SumMemory& scratch, const char* row,
                                       Also& also) {
    const int part = cta.warp() % M::COLUMN_WARPS;
    char* to = scratch.scratch + sizeof(SumMemory::parts) + part * PART_BYTES;
    own = ptx::shared_address(to);
    // Beyond the last piece, the last again.
    const auto piece = [&](int i) { return smaller(cta.lane() + i * 32, COUNT - 1); };
    uint4 v[LOADS];
    poll<true>([&] {
      uint32_t missing = 0;
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        const uint32_t step = piece(i) / PIECES, in = piece(i) % PIECES;
        v[i] = ptx::load_l2(
            static_cast<const void*>(row + (step * M::COLUMN_WARPS + part) * CHUNK_OPERAND_BYTES +
                                     in / 4 * 512 + in % 4 * 16));
      }
      also.load();
#pragma unroll
      for (int i = 0; i < LOADS; i++) missing |= missing_halves(v[i]);
      return missing == 0 && also.are_published();
    });
#pragma unroll
    for (int i = 0; i < LOADS; i++) *reinterpret_cast<uint4*>(to + piece(i) * 16) = v[i];
    __syncwarp();
  }
};

// Steps whose weights a warp holds in registers while it polls for the row: as many as these
// registers have room for. If a CTA may have several units, a step's weights must always be in the
// same registers.
constexpr int WEIGHT_REGISTERS = 64;
template <class M>
constexpr int STEPS_HELD = [] {
  constexpr int MOST = WEIGHT_REGISTERS * 4 / sizeof(Chunk<M::FORMAT>);
  return M::UNITS <= M::CTAS ? smaller(M::STEPS, MOST) : divisor(M::STEPS, MOST);
}();

// Multiplies this CTA's units, from `first` on, with a row that is polled for.
template <class M, class Also>
__device__ __forceinline__ void gemm_row(const Cta& cta, Ring& ring, Sums& sums, const char* row,
                                         int first, Also also) {
  static_assert(SharedRow<M>::FITS, "the row has room");
  if (first >= M::UNITS) return;
  WeightsAhead<M, STEPS_HELD<M>> ahead = {};
  ahead.begin(cta, ring);
  const SharedRow<M> operand(cta, sums.memory, row, also);
  also.finish();
#pragma unroll 1
  for (int unit = first; unit < M::UNITS; unit += M::CTAS) {
    float acc[1][4] = {};
    ahead.unit(
        cta, ring,
        [&](int step, OperandChunk (&x)[1]) { x[0].load_run(operand.own, step, cta.lane()); },
        unit + M::CTAS < M::UNITS, acc);
    sums.push(cta, acc[0]);
  }
  sums.drain(cta);
}

// The owner's part of the stream times the norm's weights, for the router: a row of the stream that
// one token does not use.
__device__ __forceinline__ float* scaled_row(StreamMemory& stream) { return stream.residual[1]; }

// Owners: the first warp adds `part` to the stream, and passes on the norm that was begun. As in
// `add_rms_norm`, but a lane has a row, of which an owner has up to 32.
__device__ __forceinline__ void add_rms_norm_row(const Cta& cta, StreamMemory& stream, int turn) {
  if (cta.warp() != 0) return;
  const NextRmsNorm& next = stream.norm;
  const Memory& memory = cta.memory;
  const int row = cta.lane(), column = cta.index() * OWNER_ROWS + row;
  ptx::wait_for_copies();
  __syncwarp();
  float square = 0;
  if (row < OWNER_ROWS) {
    float scaled = 0;
    if (HIDDEN % OWNER_ROWS == 0 || column < HIDDEN) {
      const float x = stream.residual[0][row] + stream.part[0][row];
      scaled = x * next.weights[row];
      stream.residual[0][row] = x;
      square = __fmul_rn(x, x);
      publish_half(at<char>(memory.normed) +
                       operand_row(normed_row(next.reader, turn), NORMED_BYTES) +
                       operand_offset(column),
                   scaled * next.scale);
      if (next.tap != ~0u)
        store_operand(at<char>(memory.taps) + operand_row(0, TAPS_BYTES),
                      next.tap * HIDDEN + column, x);
    }
    scaled_row(stream)[row] = scaled;
  }
#pragma unroll
  for (int distance = SQUARE_ROWS / 2; distance > 0; distance /= 2)
    square += __shfl_xor_sync(~0u, square, distance);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < OWNER_ROWS / SQUARE_ROWS; i++)
    sum += __shfl_sync(~0u, square, i * SQUARE_ROWS);
  if (row == 0) publish(squares_of(memory, next.reader, turn) + cta.index(), sum);
}

}  // namespace kilotok
