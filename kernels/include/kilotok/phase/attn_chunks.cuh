// Attention over many keys: they are cut into chunks, and a CTA takes a run of (chunk, tile) pairs.
// Its first warps keep a chunk's keys in registers, 128 at a time, while the tiles of its row pass by,
// so that keys are read once; its last warps keep the values, and follow one tile behind. Each chunk
// leaves a part of a token's result; the parts meet after a grid barrier.
#pragma once

#include "kilotok/phase/attn_parts.cuh"

namespace kilotok {

constexpr int CHUNK_PIECES = CHUNK_KEYS / PIECE_KEYS;
constexpr int KEY_THREADS = CHUNK_PIECES * 32;

// Chunks that any token of a row may see, a draft's own rows being one more, and the tiles of one
// K/V head that meet each of them.
template <int KIND>
struct RowWork {
  uint32_t first_chunk, chunks, tiles;

  __device__ __forceinline__ RowWork(const BatchRow& row, bool own) {
    if (row.count == 0) {
      first_chunk = chunks = tiles = 0;
      return;
    }
    const Sight first = sight<KIND>(row, row.start, own);
    const Sight last = sight<KIND>(row, row.start + row.count - 1, own);
    first_chunk = first.first_chunk();
    // Where chunks grow within the row, the shorter ones are the most there can be.
    const uint32_t end = first.chunk_keys == last.chunk_keys ? last.end_chunk() : CHUNKS_MAX;
    chunks = max(end, first.end_chunk()) - first_chunk + own;
    tiles = row.count * HeadTiles<KIND>::COUNT;
  }

  __device__ __forceinline__ uint32_t pairs() const {
    return ATTENTIONS[KIND].kv_heads * chunks * tiles;
  }
};

// Tiles first to end of a row that meet the same chunk of a K/V head.
struct Span {
  int row, kv_head;
  // Counted from the row's first; the last one of a draft is its own rows.
  uint32_t chunk;
  int first, end;
};

template <int KIND>
struct ChunkMemory {
  // In turn: values meet the weights of one tile while keys meet the queries of the next.
  QueryMemory<KIND> queries[2];
  Weights<CHUNK_PIECES> weights[2];
  BatchRow rows[TOKENS_MAX];
  // Running sums of the rows' pairs.
  uint32_t before[TOKENS_MAX + 1];
};

template <int KIND>
__device__ __forceinline__ void count_pairs(const Cta& cta, ChunkMemory<KIND>& shared,
                                            int row_count, bool own) {
  const BatchRow* rows = at<const BatchRow>(cta.memory.rows);
  if (cta.warp() == 0) {
    uint32_t before = 0;
    for (int first = 0; first < row_count; first += 32) {
      const int row = first + cta.lane();
      uint32_t pairs = 0;
      if (row < row_count) {
        shared.rows[row] = rows[row];
        pairs = RowWork<KIND>(shared.rows[row], own).pairs();
      }
      uint32_t sum = pairs;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, sum, distance);
        if (cta.lane() >= distance) sum += other;
      }
      if (row < row_count) shared.before[row] = before + sum - pairs;
      before += __shfl_sync(~0u, sum, 31);
    }
    if (cta.lane() == 0) shared.before[row_count] = before;
  }
  cta.sync();
}

// The span that begins with a pair. Pairs lie `[rows][K/V heads][chunks][tiles]`.
template <int KIND>
__device__ __forceinline__ Span find_span(const ChunkMemory<KIND>& shared, uint32_t pair,
                                          uint32_t end, bool own) {
  int row = 0;
  while (shared.before[row + 1] <= pair) row++;
  const RowWork<KIND> work(shared.rows[row], own);
  const uint32_t rest = pair - shared.before[row], tile = rest % work.tiles;
  const uint32_t count = min(work.tiles - tile, end - pair);
  return {row, static_cast<int>(rest / work.tiles / work.chunks), rest / work.tiles % work.chunks,
          static_cast<int>(tile), static_cast<int>(tile + count)};
}

// Tiles of a span, as many as agree in the length of chunks, on their way past 128 keys.
template <int KIND>
struct Visit {
  using T = HeadTiles<KIND>;
  const BatchRow& row;
  Span span;
  bool own, own_rows;
  // Counted from the sequence's first.
  uint32_t chunk;
  // Positions of the chunk; of a draft, its own rows.
  Range whole;
  int count;
  uint32_t base;

  __device__ __forceinline__ Visit(const BatchRow& its_row, const Span& its_span, bool is_own)
      : row(its_row), span(its_span), own(is_own), own_rows(false), count(1) {
    const RowWork<KIND> work(row, own);
    own_rows = own && span.chunk + 1 == work.chunks;
    chunk = work.first_chunk + span.chunk;
    const uint32_t keys = seen(0).chunk_keys;
    whole = own_rows ? Range{0, row.count} : Range{chunk * keys, (chunk + 1) * keys};
    while (span.first + count < span.end && seen(count).chunk_keys == keys) count++;
    base = whole.first;
  }

  __device__ __forceinline__ Sight seen(int i) const {
    return sight<KIND>(row, row.start + (span.first + i) / T::COUNT, own);
  }
  // Of the chunk, what any tile sees.
  __device__ __forceinline__ Range any() const {
    return own_rows ? whole : both(whole, {seen(0).range.first, seen(count - 1).range.end});
  }
  __device__ __forceinline__ Range here() const { return {base, base + CHUNK_KEYS}; }
  // Whether some of these keys are only written in this step.
  __device__ __forceinline__ bool is_new() const {
    return own_rows || both(any(), here()).end > row.start;
  }

  __device__ __forceinline__ Tile tile(int i) const {
    const int place = span.first + i;
    Range range = seen(i).range;
    if (own_rows) range = {max(range.first, row.start) - row.start, row.count};
    return {static_cast<int>(row.first) + place / T::COUNT,
            span.kv_head * T::GROUP + place % T::COUNT * TILE_HEADS, both(range, whole)};
  }
  __device__ __forceinline__ int part(int i) const {
    const Sight s = seen(i);
    return own_rows ? s.parts() - 1 : chunk - s.first_chunk();
  }
};

// Calls `use(visit, pieces)` for all that this CTA's share of pairs visits.
template <int KIND, class Use>
__device__ __forceinline__ void visit_chunks(const Cta& cta, const LayerPlaces& places,
                                             const ChunkMemory<KIND>& shared, int row_count,
                                             bool own, Use use) {
  const Memory& memory = cta.memory;
  const uint64_t pairs = shared.before[row_count];
  const uint32_t end = pairs * (cta.index() + 1) / GRID;
#pragma unroll 1
  for (uint32_t pair = pairs * cta.index() / GRID; pair < end;) {
    const Span span = find_span<KIND>(shared, pair, end, own);
    Visit<KIND> visit(shared.rows[span.row], span, own);
    KeySource<KIND> source = places.pages<KIND>(memory, visit.row, span.kv_head);
    if (visit.own_rows)
      source = {nullptr, at<const char>(memory.own_keys), at<const char>(memory.own_values),
                visit.row.first, span.kv_head, true};
    const Range any = visit.any();
#pragma unroll 1
    for (; visit.base < any.end; visit.base += CHUNK_KEYS) {
      const Range here = both(any, visit.here());
      if (!here.empty()) use(visit, Pieces<KIND>(cta, source, visit.base, here));
    }
    pair += visit.count;
  }
}

__device__ __forceinline__ void sync_keys() {
  asm volatile("bar.sync 2, %0;" ::"n"(KEY_THREADS) : "memory");
}

// The warps that hold keys: scores and weights of one tile after the other.
template <int KIND>
__device__ __forceinline__ void weigh_chunks(Cta& cta, Meeting& meeting, const LayerPlaces& places,
                                             ChunkMemory<KIND>& shared, int row_count, bool own) {
  int turn = 0;
  visit_chunks<KIND>(cta, places, shared, row_count, own, [&](const Visit<KIND>& visit,
                                                              const Pieces<KIND>& pieces) {
    HeldKeys<KIND> keys;
    if (visit.is_new()) meeting.wait(cta);
    keys.load(pieces, cta.warp(), ~0u, true);
    meeting.wait(cta);
    QueryLoad<KIND, KEY_THREADS> queries;
    queries.load(cta, visit.tile(0));
    queries.store(cta, shared.queries[turn]);
    sync_keys();
#pragma unroll 1
    for (int i = 0; i < visit.count; i++) {
      Weights<CHUNK_PIECES>& weights = shared.weights[turn];
      if (i + 1 < visit.count) queries.load(cta, visit.tile(i + 1));
      float scores[2][4];
      score<KIND, CHUNK_PIECES>(pieces, cta.warp(), keys, shared.queries[turn],
                                visit.tile(i).range, weights, scores);
      turn ^= 1;
      if (i + 1 < visit.count) queries.store(cta, shared.queries[turn]);
      sync_keys();
      weigh<KIND, CHUNK_PIECES>(weights, pieces.lane, cta.warp(), scores);
      cta.sync();
    }
  });
}

// The warps that hold values, if it is not too many that there are: they keep the parts.
template <int KIND>
__device__ __forceinline__ void keep_chunks(Cta& cta, Meeting& meeting, const LayerPlaces& places,
                                            ChunkMemory<KIND>& shared, int row_count, bool own) {
  static_assert(CHUNK_PIECES + VALUE_WARPS<KIND> <= CONSUMER_WARPS, "a warp has 32 dimensions");
  const int slice = cta.warp() - CHUNK_PIECES;
  const bool has = slice < VALUE_WARPS<KIND>;
  int turn = 0;
  visit_chunks<KIND>(cta, places, shared, row_count, own, [&](const Visit<KIND>& visit,
                                                              const Pieces<KIND>& pieces) {
    HeldValues<KIND, CHUNK_PIECES, CHUNK_PIECES> values;
    if (visit.is_new()) meeting.wait(cta);
    if (has) values.load(pieces, slice, 0, ~0u, true);
    meeting.wait(cta);
#pragma unroll 1
    for (int i = 0; i < visit.count; i++) {
      const Tile tile = visit.tile(i);
      const bool sees = has && !both(tile.range, visit.here()).empty();
      KeptPart<KIND> part(cta, tile, sees ? visit.part(i) : 0, slice);
      const bool is_new = tile.range.first >= visit.base;
      if (sees && !is_new) part.load();
      cta.sync();
      if (sees) {
        TileSums sums;
        add_values<KIND, CHUNK_PIECES, CHUNK_PIECES>(values, 0, pieces.lane, shared.weights[turn],
                                                     sums);
        if (!is_new) part.add_to(sums);
        part.keep(sums);
      }
      turn ^= 1;
    }
  });
}

// This CTA's share of all pairs, each of which leaves a part.
template <int KIND>
__device__ __forceinline__ void attend_chunks(Cta& cta, const LayerPlaces& places, int row_count,
                                              ChunkMemory<KIND>& shared, bool own) {
  count_pairs<KIND>(cta, shared, row_count, own);
  Meeting meeting = {false};
  if (cta.warp() < CHUNK_PIECES)
    weigh_chunks<KIND>(cta, meeting, places, shared, row_count, own);
  else
    keep_chunks<KIND>(cta, meeting, places, shared, row_count, own);
  meeting.wait(cta);
}

// Meets the other CTAs, then adds the parts of all heads, each the work of a CTA.
template <int KIND>
__device__ __forceinline__ void add_chunks(Cta& cta, const LayerPlaces& places, const Batch& batch,
                                           AddMemory<KIND>& added, bool own) {
  constexpr int HEADS = ATTENTIONS[KIND].q_heads;
  auto parts_of = [&](int unit) {
    if (unit >= batch.token_count * HEADS) return 0;
    const RowOf of(cta, batch, unit / HEADS);
    return sight<KIND>(of.row, of.position, own).parts();
  };
  cta.arrive_grid();
  int count = parts_of(cta.index());
  cta.wait_grid();
  for (int unit = cta.index(); unit < batch.token_count * HEADS; unit += GRID) {
    add_parts<KIND>(cta, places.sinks, added, unit / HEADS, unit % HEADS, count);
    count = parts_of(unit + GRID);
    cta.sync();
  }
}

}  // namespace kilotok
