// Attention over a short window: one CTA sums over all that a tile sees. The first warps hold keys;
// the last ones hold values, in pairs with the same dimensions, each of one half of the pieces.
#pragma once

#include "kilotok/phase/attn_parts.cuh"

namespace kilotok {

// Pieces that a window touches.
template <int KIND>
constexpr int WINDOW_PIECES = ceil_div(ATTENTIONS[KIND].window + PIECE_KEYS - 1, PIECE_KEYS);

template <int KIND>
constexpr bool IS_SHORT = ATTENTIONS[KIND].window > 0 && WINDOW_PIECES<KIND> <= CONSUMER_WARPS;

template <int KIND>
struct WindowMemory {
  QueryMemory<KIND> queries;
  Weights<WINDOW_PIECES<KIND>> weights;
  // What the second of a pair of warps hands to the first, `[pairs][runs of 4][lanes]`.
  float4 values[VALUE_WARPS<KIND> * 4 * 32];
  float2 sums[VALUE_WARPS<KIND> * 32];
};

// The second of a pair of warps leaves its sums.
template <int KIND>
__device__ __forceinline__ void hand_over(WindowMemory<KIND>& memory, int pair, int lane,
                                          const TileSums& sums) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float* v = &sums.values[i / 2][i % 2 * 4];
    memory.values[(pair * 4 + i) * 32 + lane] = make_float4(v[0], v[1], v[2], v[3]);
  }
  memory.sums[pair * 32 + lane] = make_float2(sums.weighed[0].sum, sums.weighed[1].sum);
}

// The first of the pair takes them.
template <int KIND>
__device__ __forceinline__ void take_over(const WindowMemory<KIND>& memory, int pair, int lane,
                                          TileSums& sums) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float* v = &sums.values[i / 2][i % 2 * 4];
    const float4 other = memory.values[(pair * 4 + i) * 32 + lane];
    v[0] += other.x;
    v[1] += other.y;
    v[2] += other.z;
    v[3] += other.w;
  }
  const float2 other = memory.sums[pair * 32 + lane];
  sums.weighed[0].sum += other.x;
  sums.weighed[1].sum += other.y;
}

template <int KIND>
__device__ __forceinline__ void store_attended(const Cta& cta, const Tile& tile, int pair,
                                               const TileSums& sums, const float (&sinks)[2]) {
  constexpr Attention A = ATTENTIONS[KIND];
  const int lane = cta.lane(), dim = pair * VALUE_DIMS + lane % 4 * 8;
  char* to = at<char>(cta.memory.attended) + tile.token * ATTENDED_BYTES;
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const int in_tile = row * 8 + lane / 4, column = (tile.first_head + in_tile) * A.v_dim + dim;
    if (!HeadTiles<KIND>::has(tile.first_head, in_tile) || dim >= A.v_dim) continue;
    const float factor = finish<KIND>(sums.weighed[row], sinks[row]);
#pragma unroll
    for (int i = 0; i < 8; i += 2)
      *reinterpret_cast<uint32_t*>(to + operand_offset(column + i)) =
          ptx::pack_bf16(sums.values[row][i] * factor, sums.values[row][i + 1] * factor);
  }
}

// One tile, whose row's pages are `source`. Keys older than `start` do not wait for the meeting.
template <int KIND>
__device__ __forceinline__ void attend_window(Cta& cta, Meeting& meeting,
                                              WindowMemory<KIND>& memory, const Tile& tile,
                                              const KeySource<KIND>& source, uint32_t start,
                                              const float* all_sinks) {
  constexpr Attention A = ATTENTIONS[KIND];
  constexpr int PIECES = WINDOW_PIECES<KIND>, HALF = ceil_div(PIECES, 2);
  static_assert(2 * VALUE_WARPS<KIND> <= CONSUMER_WARPS, "pairs of warps hold the values");
  const int from_last = CONSUMER_WARPS - 1 - cta.warp();
  const int pair = from_last % VALUE_WARPS<KIND>, half = from_last / VALUE_WARPS<KIND>;
  const bool has_keys = cta.warp() < PIECES, has_values = half < 2;
  float sinks[2] = {};
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (A.sinks)
      sinks[i] = ptx::load_l2(all_sinks +
                              min(tile.first_head + i * 8 + cta.lane() / 4, A.q_heads - 1));
  const Pieces<KIND> pieces(cta, source, tile.range.first / PIECE_KEYS * PIECE_KEYS, tile.range);
  HeldKeys<KIND> keys;
  HeldValues<KIND, HALF, PIECES> values;
  if (has_keys) keys.load(pieces, cta.warp(), start, true);
  if (has_values) values.load(pieces, pair, half * HALF, start, true);
  meeting.wait(cta);
  QueryLoad<KIND, CONSUMERS> queries;
  queries.load(cta, tile);
  if (has_keys) keys.load(pieces, cta.warp(), start, false);
  if (has_values) values.load(pieces, pair, half * HALF, start, false);
  queries.store(cta, memory.queries);
  cta.sync();
  float scores[2][4];
  if (has_keys)
    score<KIND, PIECES>(pieces, cta.warp(), keys, memory.queries, tile.range, memory.weights,
                        scores);
  cta.sync();
  if (has_keys) weigh<KIND, PIECES>(memory.weights, pieces.lane, cta.warp(), scores);
  cta.sync();
  TileSums sums;
  if (has_values)
    add_values<KIND, PIECES, HALF>(values, half * HALF, pieces.lane, memory.weights, sums);
  if (half == 1) hand_over<KIND>(memory, pair, pieces.lane, sums);
  cta.sync();
  if (half == 0) {
    take_over<KIND>(memory, pair, pieces.lane, sums);
    store_attended<KIND>(cta, tile, pair, sums, sinks);
  }
}

template <int KIND>
__device__ __forceinline__ void attend_windows(Cta& cta, const LayerPlaces& places,
                                               const Batch& batch, WindowMemory<KIND>& memory) {
  using T = HeadTiles<KIND>;
  constexpr int TILES = ATTENTIONS[KIND].kv_heads * T::COUNT;
  Meeting meeting = {false};
#pragma unroll 1
  for (int unit = cta.index(); unit < batch.token_count * TILES; unit += GRID) {
    const int token = unit / TILES, kv_head = unit % TILES / T::COUNT;
    const RowOf of(cta, batch, token);
    const Tile tile = {token, kv_head * T::GROUP + unit % T::COUNT * TILE_HEADS,
                       {window_first<KIND>(of.position), of.position + 1}};
    attend_window<KIND>(cta, meeting, memory, tile,
                        places.pages<KIND>(cta.memory, of.row, kv_head), of.row.start,
                        places.sinks);
  }
  meeting.wait(cta);
}

}  // namespace kilotok
