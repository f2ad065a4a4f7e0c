// Checks at compile time that the host planned the memory with the sizes that the kernels use.
// Included by the files in step/.
#pragma once

#include "kilotok/comm/all_gather.cuh"
#include "kilotok/layout/buffers.cuh"
#include "kilotok/phase/attn_schedule.cuh"
#include "kilotok/phase/router.cuh"

namespace kilotok {

constexpr size_t per_token(size_t bytes) { return TOKENS_MAX * bytes; }

static_assert(planned::HEAD == HeadMatrix::BYTES, "head");
static_assert(planned::FUSE == FuseMatrix::BYTES, "draft_fc");
static_assert(planned::ANGLES == per_token(ATTENTION_KINDS * ROPE_PAIRS_MAX * sizeof(float2)),
              "angles");
static_assert(planned::NORMED == per_token(NORMED_BYTES), "normed");
static_assert(planned::SQUARES == per_token(READERS * SQUARES_EACH * sizeof(float)), "squares");
static_assert(planned::PROJECTED == per_token(PROJECTED_ROWS * sizeof(float)), "projected");
static_assert(planned::QUERIES == per_token(QUERY_VALUES * sizeof(uint16_t)), "queries");
static_assert(planned::ATTENTION_PARTS == ATTENTION_PARTS_BYTES, "attention_parts");
static_assert(planned::ATTENDED == per_token(ATTENDED_BYTES), "attended");
static_assert(planned::ROUTER_PARTS == per_token(OWNER_UNITS * EXPERTS_MAX * sizeof(float)),
              "router_parts");
static_assert(planned::ROUTER_SCORES == per_token(SCORES_EACH * sizeof(float)), "router_scores");
static_assert(planned::DENSE_INNER == per_token(DENSE_INNER_BYTES), "dense_inner");
static_assert(planned::EXPERT_INNER == TILE_INNER_BYTES + GATHERED_INNER_BYTES, "expert_inner");
static_assert(planned::TAPS == per_token(TAPS_BYTES), "taps");
static_assert(planned::FUSED == per_token(FuseMatrix::ROWS * sizeof(float)), "fused");
// Keys and values of the draft's own rows, `[tokens][K/V heads]`.
constexpr int OWN_KEY_VALUES = over_kinds<0, ATTENTION_KINDS>([](auto kind) {
  constexpr Attention A = ATTENTIONS[decltype(kind)::value];
  return A.kv_heads * A.qk_dim;
});
constexpr int OWN_VALUE_VALUES = over_kinds<0, ATTENTION_KINDS>([](auto kind) {
  constexpr Attention A = ATTENTIONS[decltype(kind)::value];
  return A.kv_heads * A.v_dim;
});
static_assert(planned::OWN_KEYS == per_token(OWN_KEY_VALUES * sizeof(uint16_t)), "own_keys");
static_assert(planned::OWN_VALUES == per_token(OWN_VALUE_VALUES * sizeof(uint16_t)), "own_values");
static_assert(planned::LOGITS == per_token(VOCAB_ROWS * sizeof(float)), "logits");
static_assert(planned::LOGITS_STRIDE == LOGITS_STRIDE, "from a token's logits to the next one's");
static_assert(RANKS == 1 || planned::LOGITS_OFFSET == LOGITS_OFFSET, "logits of all ranks");
static_assert(planned::DRAFT_PARTS == per_token(PARTS_MAX * sizeof(uint64_t)), "draft_parts");
static_assert(planned::DRAFT_CANDIDATES ==
                  per_token(PARTS_MAX * CANDIDATES_MAX * sizeof(uint64_t)),
              "candidates of drafts");
static_assert(planned::LAWS == DRAFT_ROWS * CANDIDATES_MAX * sizeof(Candidate), "laws of a slot");
static_assert(planned::RECEIVER == RECEIVER_BYTES, "receiver");

template <int KIND>
constexpr bool attentions_agree() {
  if constexpr (KIND < ATTENTION_KINDS) {
    static_assert(planned::QKV[KIND] == QkvMatrix<KIND>::BYTES, "qkv");
    static_assert(planned::OUTPUT[KIND] == OutputMatrix<KIND>::BYTES, "output");
    constexpr Attention A = ATTENTIONS[KIND];
    constexpr bool CHUNKS = IN_CHUNKS<KIND, (KIND >= DRAFT_ATTENTION)>;
    constexpr size_t TILE = sizeof(TileMemory<KIND, CHUNKS ? CHUNK_PIECES : WINDOW_PIECES<KIND>>);
    static_assert(planned::TILE[KIND] == (STREAMED<KIND> ? 0 : TILE), "a tile of attention");
    constexpr size_t PAGE_ROWS = A.kv_heads * PAGE_TOKENS;
    static_assert(planned::KEY_PAGE[KIND] == PAGE_ROWS * A.qk_dim * sizeof(uint16_t), "keys");
    static_assert(planned::VALUE_PAGE[KIND] == PAGE_ROWS * A.v_dim * sizeof(uint16_t), "values");
    return attentions_agree<KIND + 1>();
  }
  return true;
}
static_assert(attentions_agree<0>());

template <int KIND>
constexpr bool feed_forwards_agree() {
  if constexpr (KIND < FEED_FORWARD_KINDS) {
    static_assert(planned::ROUTER[KIND] == Router<KIND>::BYTES, "router");
    static_assert(planned::GATE_UP[KIND] == GateUpMatrix<KIND>::BYTES, "gate_up");
    static_assert(planned::DOWN[KIND] == DownMatrix<KIND>::BYTES, "down");
    return feed_forwards_agree<KIND + 1>();
  }
  return true;
}
static_assert(feed_forwards_agree<0>());

}  // namespace kilotok
