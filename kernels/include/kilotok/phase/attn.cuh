// Attention of every token over the keys that are visible to it.
//
// Reads `queries`, the pages of keys and values, a draft's own rows; writes `attended`. There are
// three ways. Keys of full attention come through the ring (`attn_stream`), split into chunks in
// the style of flash-decoding. A short window is computed by one CTA for each tile. Longer windows
// and drafts' rows are also split into chunks: a CTA takes a run of (chunk, tile) pairs and keeps a
// chunk's keys in registers while it multiplies them with the tiles of its row. Where there are
// chunks, `combine_chunks` combines the partial results after a grid barrier. The
// caller has arrived at a grid barrier but not waited for it: `attn` loads keys of earlier steps
// first and then waits, since keys of this step are visible only after the barrier. The caller
// synchronises after `attn`.
//
// A token's bits depend on its position and the visible keys alone, not on other tokens of its row
// nor on the CTA that computes it. There is one exception: a value that is not finite reaches
// earlier tokens of its row, because it is multiplied by their weight of zero.
#pragma once

#include "kilotok/phase/attn_decode.cuh"

namespace kilotok {

template <int KIND>
__device__ __forceinline__ void store_attended(const Cta& cta, const Tile& tile, int row_of_tile,
                                               int strip, const TileSums& sums,
                                               const float (&sinks)[2]) {
  constexpr Attention A = ATTENTIONS[KIND];
  static_assert(A.v_dim % 8 == 0, "pairs of eight dimensions lie 16 bytes apart");
  const int lane = cta.lane(), dim = strip * Warps<KIND>::VALUE_DIMS + lane % 4 * 8;
  char* to = at<char>(cta.memory.attended) + Attended<KIND>::row(row_of_tile);
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const int in_tile = row * 8 + lane / 4;
    char* pairs = to + operand_offset((tile.first_head + in_tile) * A.v_dim + dim);
    if (!HeadTiles<KIND>::has(tile.first_head, in_tile) || dim >= A.v_dim) continue;
    const float factor = softmax_scale<KIND>(sums.softmax[row], sinks[row]);
#pragma unroll
    for (int i = 0; i < 8; i += 2)
      ptx::store_l2(reinterpret_cast<uint32_t*>(pairs + i * 8),
                    ptx::pack_bf16(sums.values[row][i] * factor, sums.values[row][i + 1] * factor));
  }
}

// Loads the keys before a position, waits until the other CTAs have written theirs, and loads those
// and the queries of a tile. The loop keeps one copy of the code that loads keys.
template <int KIND, int PIECES>
__device__ __forceinline__ void load_around(Cta& cta, PendingBarrier& barrier,
                                            HeldKeys<KIND, PIECES>& held,
                                            QueryLoad<KIND>& queries, const Tile& tile,
                                            uint32_t position) {
#pragma unroll 1
  for (int turn = 0; turn < 2; turn++) {
    if (turn == 1) barrier.wait(cta);
    held.load(cta, position, turn == 0);
  }
  // After the loop: values loaded within it would go through local memory, and the loop would wait
  // for them.
  queries.load(cta, tile);
}

// `row_of(token)` is the row of the output projection's operand.
template <int KIND, class RowOf>
__device__ __forceinline__ void attend_window(Cta& cta, const LayerMemory& layer,
                                              const HeldBatch& batch, SumMemory& sums,
                                              int token_count, RowOf row_of) {
  using T = HeadTiles<KIND>;
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int TILES = A.kv_heads * T::COUNT;
  using Shared = TileMemory<KIND, WINDOW_PIECES<KIND>>;
  static_assert(sizeof(Shared) <= SCRATCH_BYTES, "a tile needs memory");
  const Memory& memory = cta.memory;
  const KvCache places(layer);
  PendingBarrier barrier = {false};
  // Counted from the last CTA: the last ones have no projections, or fewer (`Matrix::CTAS`).
#pragma unroll 1
  for (int unit = GRID - 1 - cta.index(); unit < token_count * TILES; unit += GRID) {
    const int token = unit / TILES, kv_head = unit % TILES / T::COUNT;
    const uint32_t position = batch.tokens[token].position;
    const BatchRow& row = batch.rows[batch.tokens[token].row];
    const Tile tile = {token, kv_head * T::GROUP + unit % T::COUNT * TILE_HEADS,
                       {window_first<KIND>(position), position + 1}};
    float sinks[2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (A.sinks)
        sinks[i] = ptx::load_l2(places.sinks +
                                min(tile.first_head + i * 8 + cta.lane() / 4, A.q_heads - 1));
    HeldKeys<KIND, WINDOW_PIECES<KIND>> held(cta, places.pages<KIND>(memory, row, kv_head),
                                             tile.range.first / PIECE_KEYS * PIECE_KEYS,
                                             tile.range);
    QueryLoad<KIND> queries;
    load_around<KIND>(cta, barrier, held, queries, tile, row.start);
    attend<KIND>(cta, reinterpret_cast<Shared&>(sums.scratch), held, queries, 1,
                 [&](int) { return tile; },
                 [&](int, const Tile&, int strip, const TileSums& result) {
                   store_attended<KIND>(cta, tile, row_of(tile.token), strip, result, sinks);
                 });
  }
  barrier.wait(cta);
}

// Tiles `first` to `end` - 1 of a row, which are multiplied with the same chunk of a K/V head.
struct Span {
  int row, kv_head;
  // Counted from the row's first chunk. The last one of a draft is its own rows.
  uint32_t chunk;
  int first, end;
};

// The span that begins with a pair. Pairs are ordered `[rows][K/V heads][chunks][tiles]`.
template <int KIND>
__device__ __forceinline__ Span find_span(const PairCounts& sums, const HeldBatch& batch,
                                          uint32_t pair, uint32_t end, bool own) {
  int row = 0;
  while (sums.before[row + 1] <= pair) row++;
  const RowWork<KIND> work(batch.rows[row], own);
  const uint32_t rest = pair - sums.before[row], tile = rest % work.tiles;
  const uint32_t count = min(work.tiles - tile, end - pair);
  return {row, static_cast<int>(rest / work.tiles / work.chunks), rest / work.tiles % work.chunks,
          static_cast<int>(tile), static_cast<int>(tile + count)};
}

// Multiplies one chunk of a row's keys, or its draft's own rows, with the first tiles of `span`,
// those that have the same chunk length. Returns their number.
template <int KIND>
__device__ __forceinline__ int attend_span(Cta& cta, PendingBarrier& barrier,
                                           TileMemory<KIND, CHUNK_PIECES>& memory,
                                           const Span& span, const BatchRow& row,
                                           const KeySource<KIND>& source, bool own) {
  using T = HeadTiles<KIND>;
  const bool own_rows = source.own_rows;
  auto seen = [&](int i) {
    return visible_keys<KIND>(row, row.start + (span.first + i) / T::COUNT, own);
  };
  const VisibleKeys first = seen(0);
  const uint32_t chunk = RowWork<KIND>(row, own).first_chunk + span.chunk;
  const Range whole = own_rows ? Range{0, row.count}
                               : Range{chunk * first.chunk_keys, (chunk + 1) * first.chunk_keys};
  int count = 1;
  while (span.first + count < span.end && seen(count).chunk_keys == first.chunk_keys) count++;
  auto tile_of = [&](int i) {
    const int tile = span.first + i;
    Range range = seen(i).range;
    if (own_rows) range = {max(range.first, row.start) - row.start, row.count};
    return Tile{static_cast<int>(row.first) + tile / T::COUNT,
                span.kv_head * T::GROUP + tile % T::COUNT * TILE_HEADS, intersect(range, whole)};
  };
  const Range any =
      own_rows ? whole : intersect(whole, {first.range.first, seen(count - 1).range.end});
  for (uint32_t base = whole.first; base < any.end; base += CHUNK_KEYS) {
    const Range here = intersect(any, {base, base + CHUNK_KEYS});
    if (here.empty()) continue;
    HeldKeys<KIND, CHUNK_PIECES> held(cta, source, base, here);
    const uint32_t old_end = own_rows ? 0 : row.start;
    QueryLoad<KIND> queries;
    load_around<KIND>(cta, barrier, held, queries, tile_of(0), old_end);
    attend<KIND>(cta, memory, held, queries, count, tile_of,
                 [&](int i, const Tile& tile, int strip, TileSums& sums) {
                   const VisibleKeys s = seen(i);
                   const int part = own_rows ? s.parts() - 1 : chunk - s.first_chunk();
                   store_part<KIND>(cta, tile, part, tile.range.first >= base, strip, sums);
                 });
  }
  return count;
}

// This CTA's share of all pairs. Each pair yields a partial result.
template <int KIND>
__device__ __forceinline__ void attend_chunks(Cta& cta, const KvCache& places,
                                              const HeldBatch& batch, const PairCounts& sums,
                                              TileMemory<KIND, CHUNK_PIECES>& shared, bool own) {
  const Memory& memory = cta.memory;
  const uint64_t pairs = sums.before[batch.counts.row_count];
  const uint32_t end = pairs * (cta.index() + 1) / GRID;
  PendingBarrier barrier = {false};
  for (uint32_t pair = pairs * cta.index() / GRID; pair < end;) {
    const Span span = find_span<KIND>(sums, batch, pair, end, own);
    const BatchRow& row = batch.rows[span.row];
    KeySource<KIND> source = places.pages<KIND>(memory, row, span.kv_head);
    if (own && span.chunk + 1 == RowWork<KIND>(row, own).chunks)
      source = {nullptr, at<const char>(memory.own_keys), at<const char>(memory.own_values),
                row.first, span.kv_head, true};
    pair += attend_span<KIND>(cta, barrier, shared, span, row, source, own);
  }
  barrier.wait(cta);
}

// Combines the partial results that `attn` left, if there are any. Each head is combined by one
// warp, or by a few. Begins after the CTA has arrived at a grid barrier, and waits for it. Ends
// after the arrival at the next one, unless the results, of one token, are `polled` for.
// `meanwhile` is called before the wait.
template <int KIND, bool OWN, int WARPS, class Meanwhile>
__device__ __forceinline__ void combine_chunks(Cta& cta, const LayerMemory& layer,
                                           const HeldBatch& batch, SumMemory& scratch,
                                           bool polled, Meanwhile meanwhile) {
  if constexpr (IN_CHUNKS<KIND, OWN>) {
    constexpr int HEADS = ATTENTIONS[KIND].q_heads, AT_ONCE = CONSUMER_WARPS / WARPS;
    const KvCache places(layer);
    const int end = batch.token_count() * HEADS;
    meanwhile();
    cta.wait_grid();
    // Heads are assigned to CTAs first, then to warps, so that few heads are spread over all CTAs.
#pragma unroll 1
    for (int first = cta.index(); first < end; first += GRID * AT_ONCE) {
      const int unit = first + cta.warp() / WARPS * GRID;
      int count = 0;
      if (unit < end) {
        const BatchToken& token = batch.tokens[unit / HEADS];
        count = visible_keys<KIND>(batch.rows[token.row], token.position, OWN).parts();
      }
      const int token = unit / HEADS, row = polled ? POLLED_ROW : token;
      combine_parts<KIND, WARPS>(cta, scratch, places.sinks, token, row, unit % HEADS, count);
    }
    cta.stamp(Stamp::Attention);
    if (!polled) cta.arrive_grid();
  }
}

template <int KIND, bool OWN>
__device__ __forceinline__ void attn(Cta& cta, const LayerMemory& layer, const HeldBatch& batch,
                                     const PairsByKind& pairs, SumMemory& sums) {
  static_assert(DRAFT_ROWS <= CHUNK_KEYS, "a draft's rows are one part");
  static_assert(!STREAMED<KIND>, "`attend_streamed` does it");
  if constexpr (IN_CHUNKS<KIND, OWN>) {
    using Shared = TileMemory<KIND, CHUNK_PIECES>;
    static_assert(sizeof(Shared) <= SCRATCH_BYTES, "a tile needs memory");
    attend_chunks<KIND>(cta, KvCache(layer), batch, pairs[KIND],
                        reinterpret_cast<Shared&>(sums.scratch), OWN);
  } else {
    attend_window<KIND>(cta, layer, batch, sums, batch.token_count(),
                        [](int token) { return token; });
  }
}

}  // namespace kilotok
