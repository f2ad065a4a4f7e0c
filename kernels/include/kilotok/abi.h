// Structs and constants that host and GPU share.
// Generated from crates/abi by `cargo xtask abi`; do not edit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kilotok {

constexpr int GROUPS_MAX = 4;

constexpr int RANKS_MAX = 8;

enum class Purpose : uint32_t {
  Target = 0,
  Draft = 1,
  Accept = 2,
  Residual = 3,
  Weight = 4,
};

struct alignas(8) Sampling {
  uint64_t seed;
  float temperature;
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  uint32_t top_k;
  uint32_t min_tokens;
};
static_assert(sizeof(Sampling) == 40, "size of Sampling");
static_assert(offsetof(Sampling, seed) == 0, "Sampling.seed");
static_assert(offsetof(Sampling, temperature) == 8, "Sampling.temperature");
static_assert(offsetof(Sampling, top_p) == 12, "Sampling.top_p");
static_assert(offsetof(Sampling, min_p) == 16, "Sampling.min_p");
static_assert(offsetof(Sampling, repetition_penalty) == 20, "Sampling.repetition_penalty");
static_assert(offsetof(Sampling, presence_penalty) == 24, "Sampling.presence_penalty");
static_assert(offsetof(Sampling, frequency_penalty) == 28, "Sampling.frequency_penalty");
static_assert(offsetof(Sampling, top_k) == 32, "Sampling.top_k");
static_assert(offsetof(Sampling, min_tokens) == 36, "Sampling.min_tokens");

struct alignas(4) BatchToken {
  uint32_t token;
  uint32_t position;
  uint32_t row;
  uint32_t tap;
};
static_assert(sizeof(BatchToken) == 16, "size of BatchToken");
static_assert(offsetof(BatchToken, token) == 0, "BatchToken.token");
static_assert(offsetof(BatchToken, position) == 4, "BatchToken.position");
static_assert(offsetof(BatchToken, row) == 8, "BatchToken.row");
static_assert(offsetof(BatchToken, tap) == 12, "BatchToken.tap");

struct alignas(4) BatchRow {
  uint32_t start;
  uint32_t first;
  uint32_t count;
  uint32_t reserved;
  uint32_t pages_at[4];
};
static_assert(sizeof(BatchRow) == 32, "size of BatchRow");
static_assert(offsetof(BatchRow, start) == 0, "BatchRow.start");
static_assert(offsetof(BatchRow, first) == 4, "BatchRow.first");
static_assert(offsetof(BatchRow, count) == 8, "BatchRow.count");
static_assert(offsetof(BatchRow, reserved) == 12, "BatchRow.reserved");
static_assert(offsetof(BatchRow, pages_at) == 16, "BatchRow.pages_at");

struct alignas(4) Batch {
  uint32_t token_count;
  uint32_t row_count;
  uint32_t wanted_count;
  uint32_t exchanges;
};
static_assert(sizeof(Batch) == 16, "size of Batch");
static_assert(offsetof(Batch, token_count) == 0, "Batch.token_count");
static_assert(offsetof(Batch, row_count) == 4, "Batch.row_count");
static_assert(offsetof(Batch, wanted_count) == 8, "Batch.wanted_count");
static_assert(offsetof(Batch, exchanges) == 12, "Batch.exchanges");

struct alignas(8) Exchange {
  uint64_t receivers[8];
};
static_assert(sizeof(Exchange) == 64, "size of Exchange");
static_assert(offsetof(Exchange, receivers) == 0, "Exchange.receivers");

struct alignas(8) LayerMemory {
  uint32_t attention;
  uint32_t feed_forward;
  uint32_t tap;
  uint32_t reserved;
  uint64_t input_norm;
  uint64_t qkv;
  uint64_t q_norm;
  uint64_t k_norm;
  uint64_t sinks;
  uint64_t output;
  uint64_t post_norm;
  uint64_t router;
  uint64_t router_bias;
  uint64_t gate_up;
  uint64_t down;
  uint64_t keys;
  uint64_t values;
  uint64_t reserved_address;
};
static_assert(sizeof(LayerMemory) == 128, "size of LayerMemory");
static_assert(offsetof(LayerMemory, attention) == 0, "LayerMemory.attention");
static_assert(offsetof(LayerMemory, feed_forward) == 4, "LayerMemory.feed_forward");
static_assert(offsetof(LayerMemory, tap) == 8, "LayerMemory.tap");
static_assert(offsetof(LayerMemory, reserved) == 12, "LayerMemory.reserved");
static_assert(offsetof(LayerMemory, input_norm) == 16, "LayerMemory.input_norm");
static_assert(offsetof(LayerMemory, qkv) == 24, "LayerMemory.qkv");
static_assert(offsetof(LayerMemory, q_norm) == 32, "LayerMemory.q_norm");
static_assert(offsetof(LayerMemory, k_norm) == 40, "LayerMemory.k_norm");
static_assert(offsetof(LayerMemory, sinks) == 48, "LayerMemory.sinks");
static_assert(offsetof(LayerMemory, output) == 56, "LayerMemory.output");
static_assert(offsetof(LayerMemory, post_norm) == 64, "LayerMemory.post_norm");
static_assert(offsetof(LayerMemory, router) == 72, "LayerMemory.router");
static_assert(offsetof(LayerMemory, router_bias) == 80, "LayerMemory.router_bias");
static_assert(offsetof(LayerMemory, gate_up) == 88, "LayerMemory.gate_up");
static_assert(offsetof(LayerMemory, down) == 96, "LayerMemory.down");
static_assert(offsetof(LayerMemory, keys) == 104, "LayerMemory.keys");
static_assert(offsetof(LayerMemory, values) == 112, "LayerMemory.values");
static_assert(offsetof(LayerMemory, reserved_address) == 120, "LayerMemory.reserved_address");

struct alignas(8) Memory {
  uint64_t batch;
  uint64_t tokens;
  uint64_t rows;
  uint64_t wanted;
  uint64_t pages;
  uint64_t layers;
  uint64_t draft_layers;
  uint64_t embedding;
  uint64_t final_norm;
  uint64_t head;
  uint64_t draft_fc;
  uint64_t draft_context_norm;
  uint64_t draft_norm;
  uint64_t draft_mask;
  uint64_t frequencies;
  uint64_t angles;
  uint64_t normed;
  uint64_t squares;
  uint64_t projected;
  uint64_t queries;
  uint64_t own_keys;
  uint64_t own_values;
  uint64_t attention_parts;
  uint64_t attended;
  uint64_t router_parts;
  uint64_t router_logits;
  uint64_t dense_inner;
  uint64_t expert_inner;
  uint64_t taps;
  uint64_t fused;
  uint64_t logits;
  uint64_t barrier;
  uint64_t fault;
  uint32_t rank;
  uint32_t wait_max_ms;
  uint64_t exchange;
  uint64_t trace;
};
static_assert(sizeof(Memory) == 288, "size of Memory");
static_assert(offsetof(Memory, batch) == 0, "Memory.batch");
static_assert(offsetof(Memory, tokens) == 8, "Memory.tokens");
static_assert(offsetof(Memory, rows) == 16, "Memory.rows");
static_assert(offsetof(Memory, wanted) == 24, "Memory.wanted");
static_assert(offsetof(Memory, pages) == 32, "Memory.pages");
static_assert(offsetof(Memory, layers) == 40, "Memory.layers");
static_assert(offsetof(Memory, draft_layers) == 48, "Memory.draft_layers");
static_assert(offsetof(Memory, embedding) == 56, "Memory.embedding");
static_assert(offsetof(Memory, final_norm) == 64, "Memory.final_norm");
static_assert(offsetof(Memory, head) == 72, "Memory.head");
static_assert(offsetof(Memory, draft_fc) == 80, "Memory.draft_fc");
static_assert(offsetof(Memory, draft_context_norm) == 88, "Memory.draft_context_norm");
static_assert(offsetof(Memory, draft_norm) == 96, "Memory.draft_norm");
static_assert(offsetof(Memory, draft_mask) == 104, "Memory.draft_mask");
static_assert(offsetof(Memory, frequencies) == 112, "Memory.frequencies");
static_assert(offsetof(Memory, angles) == 120, "Memory.angles");
static_assert(offsetof(Memory, normed) == 128, "Memory.normed");
static_assert(offsetof(Memory, squares) == 136, "Memory.squares");
static_assert(offsetof(Memory, projected) == 144, "Memory.projected");
static_assert(offsetof(Memory, queries) == 152, "Memory.queries");
static_assert(offsetof(Memory, own_keys) == 160, "Memory.own_keys");
static_assert(offsetof(Memory, own_values) == 168, "Memory.own_values");
static_assert(offsetof(Memory, attention_parts) == 176, "Memory.attention_parts");
static_assert(offsetof(Memory, attended) == 184, "Memory.attended");
static_assert(offsetof(Memory, router_parts) == 192, "Memory.router_parts");
static_assert(offsetof(Memory, router_logits) == 200, "Memory.router_logits");
static_assert(offsetof(Memory, dense_inner) == 208, "Memory.dense_inner");
static_assert(offsetof(Memory, expert_inner) == 216, "Memory.expert_inner");
static_assert(offsetof(Memory, taps) == 224, "Memory.taps");
static_assert(offsetof(Memory, fused) == 232, "Memory.fused");
static_assert(offsetof(Memory, logits) == 240, "Memory.logits");
static_assert(offsetof(Memory, barrier) == 248, "Memory.barrier");
static_assert(offsetof(Memory, fault) == 256, "Memory.fault");
static_assert(offsetof(Memory, rank) == 264, "Memory.rank");
static_assert(offsetof(Memory, wait_max_ms) == 268, "Memory.wait_max_ms");
static_assert(offsetof(Memory, exchange) == 272, "Memory.exchange");
static_assert(offsetof(Memory, trace) == 280, "Memory.trace");

struct alignas(8) Fault {
  uint32_t code;
  uint32_t rank;
  uint32_t cta;
  uint32_t phase;
  uint64_t wanted;
  uint64_t seen;
};
static_assert(sizeof(Fault) == 32, "size of Fault");
static_assert(offsetof(Fault, code) == 0, "Fault.code");
static_assert(offsetof(Fault, rank) == 4, "Fault.rank");
static_assert(offsetof(Fault, cta) == 8, "Fault.cta");
static_assert(offsetof(Fault, phase) == 12, "Fault.phase");
static_assert(offsetof(Fault, wanted) == 16, "Fault.wanted");
static_assert(offsetof(Fault, seen) == 24, "Fault.seen");

}  // namespace kilotok
