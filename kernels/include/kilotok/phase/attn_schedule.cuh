// How attention is divided among CTAs: the kinds whose keys are split into chunks, and which CTA
// computes which chunks.
#pragma once

#include "kilotok/phase/attn_combine.cuh"
#include "kilotok/gemm/ring.cuh"

namespace kilotok {

// Pieces that a window overlaps, and those of a chunk.
template <int KIND>
constexpr int WINDOW_PIECES = ceil_div(ATTENTIONS[KIND].window + PIECE_KEYS - 1, PIECE_KEYS);
constexpr int CHUNK_PIECES = CHUNK_KEYS / PIECE_KEYS;

// Whether keys are split into chunks. If not, one CTA sums over all keys of one of the target's
// tokens. OWN: for the rows of drafts, which attend to each other.
template <int KIND, bool OWN>
constexpr bool IN_CHUNKS =
    OWN || ATTENTIONS[KIND].window == 0 || WINDOW_PIECES<KIND> > CONSUMER_WARPS;

// Steps of 32 dimensions of which a warp keeps a streamed tile's queries in registers; the others
// are in shared memory. With fewer steps more registers are left for keys in flight.
template <int KIND>
constexpr int QUERY_STEPS = smaller(HeadTiles<KIND>::STEPS, 2);
template <int KIND>
constexpr int SHARED_QUERY_BYTES = (HeadTiles<KIND>::STEPS - QUERY_STEPS<KIND>) * 2 * 512;
// Tiles that are multiplied with a chunk at the same time, each by its own warp: as many as the
// scratch memory has room for, with their queries and 1 KB beside them.
template <int KIND>
constexpr int STREAM_WARPS = smaller(
    CONSUMER_WARPS, (SCRATCH_BYTES - 1024) / larger(SHARED_QUERY_BYTES<KIND>, 1));

// Whether rows of one token can be attended as phase/attn_decode.cuh does. In larger models it
// gains nothing, and their passes would have more code.
constexpr int DECODE_HIDDEN_MAX = 4095;
template <int KIND>
constexpr bool HAS_DECODE =
    STREAMED<KIND> && HeadTiles<KIND>::COUNT == 1 && HIDDEN <= DECODE_HIDDEN_MAX;
// If there are at most this many chunks for each CTA, all its warps together multiply them in less
// time than a warp alone takes for one.
constexpr uint32_t DECODE_FEWEST = 2;
// The most copies that a warp has in flight.
constexpr int DECODE_SLOTS_MAX = 8;
__device__ __forceinline__ bool is_decode(const BatchRow& row) { return row.count == 1; }

// The chunks that are visible to any token of a row (a draft's own rows are one more) and the tiles
// of one K/V head that are multiplied with each of them.
template <int KIND>
struct RowWork {
  uint32_t first_chunk, chunks, tiles;

  __device__ __forceinline__ RowWork(const BatchRow& row, bool own) {
    if (row.count == 0) {
      first_chunk = chunks = tiles = 0;
      return;
    }
    const VisibleKeys first = visible_keys<KIND>(row, row.start, own);
    const VisibleKeys last = visible_keys<KIND>(row, row.start + row.count - 1, own);
    first_chunk = first.first_chunk();
    // Where the chunk length grows within the row, the shorter chunks reach the limit.
    const uint32_t end = first.chunk_keys == last.chunk_keys ? last.end_chunk() : CHUNKS_MAX;
    chunks = max(end, first.end_chunk()) - first_chunk + own;
    tiles = row.count * HeadTiles<KIND>::COUNT;
  }

  __device__ __forceinline__ uint32_t all_chunks() const {
    return ATTENTIONS[KIND].kv_heads * chunks;
  }
  __device__ __forceinline__ uint32_t pairs() const { return all_chunks() * tiles; }

  // Where keys are streamed, the tiles of a chunk in one CTA are a unit. A chunk is divided into as
  // many units as there are CTAs for it, but into no fewer than the warps of a CTA require.
  __device__ __forceinline__ uint32_t unit_tiles(uint32_t shares) const {
    const uint32_t fewest = ceil_div(tiles, STREAM_WARPS<KIND>);
    return ceil_div(tiles, max(min(shares, tiles), fewest));
  }
  __device__ __forceinline__ uint32_t units(uint32_t shares) const {
    return tiles == 0 ? 0 : all_chunks() * ceil_div(tiles, unit_tiles(shares));
  }
};

// Prefix sums over the rows of a kind's (chunk, tile) pairs, or of its units where keys are
// streamed. They depend on the batch alone.
struct PairCounts {
  uint32_t before[TOKENS_MAX + 1];
  // CTAs that are available for each chunk.
  uint32_t shares;
  // Chunks of all rows of one token if phase/attn_decode.cuh attends them: they have no pairs.
  uint32_t decode_chunks;
};
using PairsByKind = PairCounts[ATTENTION_KINDS];

template <int KIND>
__device__ __forceinline__ bool has_decode_rows(const PairCounts& sums) {
  return HAS_DECODE<KIND> && sums.decode_chunks > 0;
}

// A warp: the sum over all lanes.
__device__ __forceinline__ uint32_t count_lanes(uint32_t count) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    count += __shfl_xor_sync(~0u, count, distance);
  return count;
}

// Called once a launch, before a barrier of the CTA. One warp counts each kind.
template <int FIRST, int END, bool OWN>
__device__ __forceinline__ void count_pairs(const Cta& cta, PairsByKind& by_kind,
                                            const HeldBatch& batch) {
  if constexpr (FIRST < END) {
    if (IN_CHUNKS<FIRST, OWN> && cta.warp() == FIRST % CONSUMER_WARPS) {
      PairCounts& sums = by_kind[FIRST];
      const int row_count = batch.counts.row_count;
      uint32_t before = 0, chunks = 0, decode_chunks = 0;
      for (int row = cta.lane(); STREAMED<FIRST> && row < row_count; row += 32) {
        const uint32_t of_row = RowWork<FIRST>(batch.rows[row], OWN).all_chunks();
        (HAS_DECODE<FIRST> && is_decode(batch.rows[row]) ? decode_chunks : chunks) += of_row;
      }
      chunks = count_lanes(chunks);
      if constexpr (HAS_DECODE<FIRST>) {
        decode_chunks = count_lanes(decode_chunks);
        if (decode_chunks <= DECODE_FEWEST * GRID) {
          chunks += decode_chunks;
          decode_chunks = 0;
        }
      }
      const uint32_t shares = max(GRID / max(chunks, 1u), 1u);
#pragma unroll 1
      for (int first = 0; first < row_count; first += 32) {
        const int row = first + cta.lane();
        uint32_t pairs = 0;
        if (row < row_count && !(decode_chunks > 0 && is_decode(batch.rows[row]))) {
          const RowWork<FIRST> work(batch.rows[row], OWN);
          pairs = STREAMED<FIRST> ? work.units(shares) : work.pairs();
        }
        uint32_t sum = pairs;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const uint32_t other = __shfl_up_sync(~0u, sum, distance);
          if (cta.lane() >= distance) sum += other;
        }
        if (row < row_count) sums.before[row] = before + sum - pairs;
        before += __shfl_sync(~0u, sum, 31);
      }
      if (cta.lane() == 0) {
        sums.before[row_count] = before;
        sums.shares = shares;
        sums.decode_chunks = decode_chunks;
      }
    }
    count_pairs<FIRST + 1, END, OWN>(cta, by_kind, batch);
  }
}

}  // namespace kilotok
