// Structs and constants that host and GPU share.
// Generated from crates/abi by `cargo xtask abi`; do not edit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kilotok {

constexpr int GROUPS_MAX = 4;

constexpr int RANKS_MAX = 8;

constexpr int COUNTER_BYTES = 128;

constexpr int COUNTERS = 4;

constexpr int PLAN_THREAD_BYTES = 16;

constexpr int PLAN_CTA_BYTES = 4096;

constexpr int SPAN_TOKENS = 128;

constexpr int BAD_WORDS_MAX = 2048;

constexpr int BAD_TOKENS_MAX = 16384;

constexpr int RECENT_MAX = 512;

constexpr int END_TOKENS_MAX = 1152;

constexpr int TOPS_MAX = 20;

constexpr int PARTS_MAX = 16;

constexpr int CANDIDATES_MAX = 64;

constexpr int BY_MATCH = 65536;

constexpr int BY_REJECTION = 65537;

constexpr int WANTED_MAX = 2048;

constexpr int SEEN = 32768;

constexpr int OUTPUT_COUNT_MAX = 32767;

constexpr int STAMPS_MAX = 8192;

constexpr int STAMP_COUNT = 25;

enum class Purpose : uint32_t {
  Target = 0,
  Draft = 1,
  Accept = 2,
  Residual = 3,
  Weight = 4,
};

enum class ChoiceFault : uint32_t {
  None = 0,
  NotFinite = 1,
  NothingAllowed = 2,
};

enum class Waits : uint32_t {
  Grid = 1,
  Page = 2,
  FreePage = 3,
  Peer = 4,
  Routes = 5,
  Sums = 6,
  Operand = 7,
  Value = 8,
};

enum class Launch : uint32_t {
  Other = 0,
  Target = 1,
  Verify = 2,
  DraftContext = 3,
  DraftRows = 4,
  Wide = 5,
};

enum class WideCollective : uint32_t {
  Parts = 0,
  Norms = 1,
  Choices = 2,
  Wanted = 3,
};

enum class Stamp : uint32_t {
  Begun = 1,
  Ended = 2,
  Barrier = 3,
  Embed = 4,
  AllReduce = 5,
  AddRmsNorm = 6,
  Project = 7,
  AttentionIn = 8,
  Attention = 9,
  Output = 10,
  RouterParts = 11,
  RouterSums = 12,
  Routes = 13,
  GateUp = 14,
  Down = 15,
  Head = 16,
  AllGather = 17,
  Sample = 18,
  Accept = 19,
  Fuse = 20,
  ContextNorm = 21,
  ContextKeys = 22,
  ArgmaxDrafts = 23,
  GatherRows = 24,
  Combine = 25,
};

constexpr const char* name_of(Waits value) {
  switch (value) {
    case Waits::Grid: return "Grid";
    case Waits::Page: return "Page";
    case Waits::FreePage: return "FreePage";
    case Waits::Peer: return "Peer";
    case Waits::Routes: return "Routes";
    case Waits::Sums: return "Sums";
    case Waits::Operand: return "Operand";
    case Waits::Value: return "Value";
  }
  return "";
}

constexpr const char* name_of(Stamp value) {
  switch (value) {
    case Stamp::Begun: return "Begun";
    case Stamp::Ended: return "Ended";
    case Stamp::Barrier: return "Barrier";
    case Stamp::Embed: return "Embed";
    case Stamp::AllReduce: return "AllReduce";
    case Stamp::AddRmsNorm: return "AddRmsNorm";
    case Stamp::Project: return "Project";
    case Stamp::AttentionIn: return "AttentionIn";
    case Stamp::Attention: return "Attention";
    case Stamp::Output: return "Output";
    case Stamp::RouterParts: return "RouterParts";
    case Stamp::RouterSums: return "RouterSums";
    case Stamp::Routes: return "Routes";
    case Stamp::GateUp: return "GateUp";
    case Stamp::Down: return "Down";
    case Stamp::Head: return "Head";
    case Stamp::AllGather: return "AllGather";
    case Stamp::Sample: return "Sample";
    case Stamp::Accept: return "Accept";
    case Stamp::Fuse: return "Fuse";
    case Stamp::ContextNorm: return "ContextNorm";
    case Stamp::ContextKeys: return "ContextKeys";
    case Stamp::ArgmaxDrafts: return "ArgmaxDrafts";
    case Stamp::GatherRows: return "GatherRows";
    case Stamp::Combine: return "Combine";
  }
  return "";
}

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
  uint32_t slot;
  uint32_t pages_at[4];
};
static_assert(sizeof(BatchRow) == 32, "size of BatchRow");
static_assert(offsetof(BatchRow, start) == 0, "BatchRow.start");
static_assert(offsetof(BatchRow, first) == 4, "BatchRow.first");
static_assert(offsetof(BatchRow, count) == 8, "BatchRow.count");
static_assert(offsetof(BatchRow, slot) == 12, "BatchRow.slot");
static_assert(offsetof(BatchRow, pages_at) == 16, "BatchRow.pages_at");

struct alignas(4) Batch {
  uint32_t token_count;
  uint32_t row_count;
  uint32_t wanted_count;
  uint32_t collectives;
};
static_assert(sizeof(Batch) == 16, "size of Batch");
static_assert(offsetof(Batch, token_count) == 0, "Batch.token_count");
static_assert(offsetof(Batch, row_count) == 4, "Batch.row_count");
static_assert(offsetof(Batch, wanted_count) == 8, "Batch.wanted_count");
static_assert(offsetof(Batch, collectives) == 12, "Batch.collectives");

struct alignas(8) Peers {
  uint64_t receivers[8];
};
static_assert(sizeof(Peers) == 64, "size of Peers");
static_assert(offsetof(Peers, receivers) == 0, "Peers.receivers");

struct alignas(8) LayerMemory {
  uint32_t attention;
  uint32_t feed_forward;
  uint32_t tap;
  uint32_t reserved;
  uint64_t input_norm;
  uint64_t qkv;
  uint64_t qkv_bias;
  uint64_t q_norm;
  uint64_t k_norm;
  uint64_t sinks;
  uint64_t output;
  uint64_t output_bias;
  uint64_t post_norm;
  uint64_t router;
  uint64_t router_bias;
  uint64_t gate_up;
  uint64_t gate_up_bias;
  uint64_t down;
  uint64_t down_bias;
  uint64_t keys;
  uint64_t values;
};
static_assert(sizeof(LayerMemory) == 152, "size of LayerMemory");
static_assert(offsetof(LayerMemory, attention) == 0, "LayerMemory.attention");
static_assert(offsetof(LayerMemory, feed_forward) == 4, "LayerMemory.feed_forward");
static_assert(offsetof(LayerMemory, tap) == 8, "LayerMemory.tap");
static_assert(offsetof(LayerMemory, reserved) == 12, "LayerMemory.reserved");
static_assert(offsetof(LayerMemory, input_norm) == 16, "LayerMemory.input_norm");
static_assert(offsetof(LayerMemory, qkv) == 24, "LayerMemory.qkv");
static_assert(offsetof(LayerMemory, qkv_bias) == 32, "LayerMemory.qkv_bias");
static_assert(offsetof(LayerMemory, q_norm) == 40, "LayerMemory.q_norm");
static_assert(offsetof(LayerMemory, k_norm) == 48, "LayerMemory.k_norm");
static_assert(offsetof(LayerMemory, sinks) == 56, "LayerMemory.sinks");
static_assert(offsetof(LayerMemory, output) == 64, "LayerMemory.output");
static_assert(offsetof(LayerMemory, output_bias) == 72, "LayerMemory.output_bias");
static_assert(offsetof(LayerMemory, post_norm) == 80, "LayerMemory.post_norm");
static_assert(offsetof(LayerMemory, router) == 88, "LayerMemory.router");
static_assert(offsetof(LayerMemory, router_bias) == 96, "LayerMemory.router_bias");
static_assert(offsetof(LayerMemory, gate_up) == 104, "LayerMemory.gate_up");
static_assert(offsetof(LayerMemory, gate_up_bias) == 112, "LayerMemory.gate_up_bias");
static_assert(offsetof(LayerMemory, down) == 120, "LayerMemory.down");
static_assert(offsetof(LayerMemory, down_bias) == 128, "LayerMemory.down_bias");
static_assert(offsetof(LayerMemory, keys) == 136, "LayerMemory.keys");
static_assert(offsetof(LayerMemory, values) == 144, "LayerMemory.values");

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
  uint64_t router_scores;
  uint64_t dense_inner;
  uint64_t expert_inner;
  uint64_t taps;
  uint64_t fused;
  uint64_t logits;
  uint64_t drafting;
  uint64_t drafted;
  uint64_t barrier;
  uint64_t fault;
  uint32_t rank;
  uint32_t wait_max_ms;
  uint64_t peers;
  uint64_t trace;
  uint64_t timestamps;
};
static_assert(sizeof(Memory) == 312, "size of Memory");
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
static_assert(offsetof(Memory, router_scores) == 200, "Memory.router_scores");
static_assert(offsetof(Memory, dense_inner) == 208, "Memory.dense_inner");
static_assert(offsetof(Memory, expert_inner) == 216, "Memory.expert_inner");
static_assert(offsetof(Memory, taps) == 224, "Memory.taps");
static_assert(offsetof(Memory, fused) == 232, "Memory.fused");
static_assert(offsetof(Memory, logits) == 240, "Memory.logits");
static_assert(offsetof(Memory, drafting) == 248, "Memory.drafting");
static_assert(offsetof(Memory, drafted) == 256, "Memory.drafted");
static_assert(offsetof(Memory, barrier) == 264, "Memory.barrier");
static_assert(offsetof(Memory, fault) == 272, "Memory.fault");
static_assert(offsetof(Memory, rank) == 280, "Memory.rank");
static_assert(offsetof(Memory, wait_max_ms) == 284, "Memory.wait_max_ms");
static_assert(offsetof(Memory, peers) == 288, "Memory.peers");
static_assert(offsetof(Memory, trace) == 296, "Memory.trace");
static_assert(offsetof(Memory, timestamps) == 304, "Memory.timestamps");

struct alignas(8) WideMemory {
  Memory memory;
  uint64_t head_batch;
  uint64_t stream;
  uint64_t part;
  uint64_t normed;
  uint64_t normed_rows;
  uint64_t inverse_rms;
  uint64_t angles;
  uint64_t queries;
  uint64_t projected;
  uint64_t attended;
  uint64_t dense_inner;
  uint64_t taps;
  uint64_t scores;
  uint64_t experts;
  uint64_t weights;
  uint64_t first_rows;
  uint64_t counts;
  uint64_t rows;
  uint64_t choices;
  uint64_t factors;
  uint64_t expert_inner;
  uint64_t products;
  uint64_t received;
  uint64_t flags;
  uint64_t spans;
  uint32_t capacity;
  uint32_t expert_capacity;
  uint32_t token_count;
  uint32_t row_count;
  uint32_t wanted_count;
  uint32_t layer;
  uint32_t slice_first;
  uint32_t slice_count;
  uint32_t collective;
  uint32_t stamp;
  uint32_t stamp_place;
  uint32_t reserved;
};
static_assert(sizeof(WideMemory) == 560, "size of WideMemory");
static_assert(offsetof(WideMemory, memory) == 0, "WideMemory.memory");
static_assert(offsetof(WideMemory, head_batch) == 312, "WideMemory.head_batch");
static_assert(offsetof(WideMemory, stream) == 320, "WideMemory.stream");
static_assert(offsetof(WideMemory, part) == 328, "WideMemory.part");
static_assert(offsetof(WideMemory, normed) == 336, "WideMemory.normed");
static_assert(offsetof(WideMemory, normed_rows) == 344, "WideMemory.normed_rows");
static_assert(offsetof(WideMemory, inverse_rms) == 352, "WideMemory.inverse_rms");
static_assert(offsetof(WideMemory, angles) == 360, "WideMemory.angles");
static_assert(offsetof(WideMemory, queries) == 368, "WideMemory.queries");
static_assert(offsetof(WideMemory, projected) == 376, "WideMemory.projected");
static_assert(offsetof(WideMemory, attended) == 384, "WideMemory.attended");
static_assert(offsetof(WideMemory, dense_inner) == 392, "WideMemory.dense_inner");
static_assert(offsetof(WideMemory, taps) == 400, "WideMemory.taps");
static_assert(offsetof(WideMemory, scores) == 408, "WideMemory.scores");
static_assert(offsetof(WideMemory, experts) == 416, "WideMemory.experts");
static_assert(offsetof(WideMemory, weights) == 424, "WideMemory.weights");
static_assert(offsetof(WideMemory, first_rows) == 432, "WideMemory.first_rows");
static_assert(offsetof(WideMemory, counts) == 440, "WideMemory.counts");
static_assert(offsetof(WideMemory, rows) == 448, "WideMemory.rows");
static_assert(offsetof(WideMemory, choices) == 456, "WideMemory.choices");
static_assert(offsetof(WideMemory, factors) == 464, "WideMemory.factors");
static_assert(offsetof(WideMemory, expert_inner) == 472, "WideMemory.expert_inner");
static_assert(offsetof(WideMemory, products) == 480, "WideMemory.products");
static_assert(offsetof(WideMemory, received) == 488, "WideMemory.received");
static_assert(offsetof(WideMemory, flags) == 496, "WideMemory.flags");
static_assert(offsetof(WideMemory, spans) == 504, "WideMemory.spans");
static_assert(offsetof(WideMemory, capacity) == 512, "WideMemory.capacity");
static_assert(offsetof(WideMemory, expert_capacity) == 516, "WideMemory.expert_capacity");
static_assert(offsetof(WideMemory, token_count) == 520, "WideMemory.token_count");
static_assert(offsetof(WideMemory, row_count) == 524, "WideMemory.row_count");
static_assert(offsetof(WideMemory, wanted_count) == 528, "WideMemory.wanted_count");
static_assert(offsetof(WideMemory, layer) == 532, "WideMemory.layer");
static_assert(offsetof(WideMemory, slice_first) == 536, "WideMemory.slice_first");
static_assert(offsetof(WideMemory, slice_count) == 540, "WideMemory.slice_count");
static_assert(offsetof(WideMemory, collective) == 544, "WideMemory.collective");
static_assert(offsetof(WideMemory, stamp) == 548, "WideMemory.stamp");
static_assert(offsetof(WideMemory, stamp_place) == 552, "WideMemory.stamp_place");
static_assert(offsetof(WideMemory, reserved) == 556, "WideMemory.reserved");

struct alignas(8) PlanMemory {
  uint64_t from;
  uint64_t to;
  uint64_t acknowledged;
  uint64_t timestamps;
  uint32_t bytes;
  uint32_t number;
};
static_assert(sizeof(PlanMemory) == 40, "size of PlanMemory");
static_assert(offsetof(PlanMemory, from) == 0, "PlanMemory.from");
static_assert(offsetof(PlanMemory, to) == 8, "PlanMemory.to");
static_assert(offsetof(PlanMemory, acknowledged) == 16, "PlanMemory.acknowledged");
static_assert(offsetof(PlanMemory, timestamps) == 24, "PlanMemory.timestamps");
static_assert(offsetof(PlanMemory, bytes) == 32, "PlanMemory.bytes");
static_assert(offsetof(PlanMemory, number) == 36, "PlanMemory.number");

struct alignas(8) ReadMemory {
  uint64_t from;
  uint64_t bytes;
  uint64_t to;
};
static_assert(sizeof(ReadMemory) == 24, "size of ReadMemory");
static_assert(offsetof(ReadMemory, from) == 0, "ReadMemory.from");
static_assert(offsetof(ReadMemory, bytes) == 8, "ReadMemory.bytes");
static_assert(offsetof(ReadMemory, to) == 16, "ReadMemory.to");

struct alignas(4) Timestamps {
  uint32_t begun;
  uint32_t verified;
  uint32_t drafted;
  uint32_t reserved;
};
static_assert(sizeof(Timestamps) == 16, "size of Timestamps");
static_assert(offsetof(Timestamps, begun) == 0, "Timestamps.begun");
static_assert(offsetof(Timestamps, verified) == 4, "Timestamps.verified");
static_assert(offsetof(Timestamps, drafted) == 8, "Timestamps.drafted");
static_assert(offsetof(Timestamps, reserved) == 12, "Timestamps.reserved");

struct alignas(4) Fault {
  uint32_t code;
  uint32_t rank;
  uint32_t cta;
  uint32_t launch;
  uint32_t phase;
  uint32_t wanted;
  uint32_t seen;
};
static_assert(sizeof(Fault) == 28, "size of Fault");
static_assert(offsetof(Fault, code) == 0, "Fault.code");
static_assert(offsetof(Fault, rank) == 4, "Fault.rank");
static_assert(offsetof(Fault, cta) == 8, "Fault.cta");
static_assert(offsetof(Fault, launch) == 12, "Fault.launch");
static_assert(offsetof(Fault, phase) == 16, "Fault.phase");
static_assert(offsetof(Fault, wanted) == 20, "Fault.wanted");
static_assert(offsetof(Fault, seen) == 24, "Fault.seen");

struct alignas(8) Slot {
  Sampling sampling;
  uint32_t prompt_count;
  uint32_t known;
  uint32_t anchor;
  uint32_t held;
  uint32_t bad_word_count;
  uint32_t end_token_count;
  uint32_t biased;
  float draft_temperature;
};
static_assert(sizeof(Slot) == 72, "size of Slot");
static_assert(offsetof(Slot, sampling) == 0, "Slot.sampling");
static_assert(offsetof(Slot, prompt_count) == 40, "Slot.prompt_count");
static_assert(offsetof(Slot, known) == 44, "Slot.known");
static_assert(offsetof(Slot, anchor) == 48, "Slot.anchor");
static_assert(offsetof(Slot, held) == 52, "Slot.held");
static_assert(offsetof(Slot, bad_word_count) == 56, "Slot.bad_word_count");
static_assert(offsetof(Slot, end_token_count) == 60, "Slot.end_token_count");
static_assert(offsetof(Slot, biased) == 64, "Slot.biased");
static_assert(offsetof(Slot, draft_temperature) == 68, "Slot.draft_temperature");

struct alignas(4) Bias {
  uint32_t token;
  float bias;
};
static_assert(sizeof(Bias) == 8, "size of Bias");
static_assert(offsetof(Bias, token) == 0, "Bias.token");
static_assert(offsetof(Bias, bias) == 4, "Bias.bias");

struct alignas(4) Candidate {
  uint32_t token;
  float probability;
};
static_assert(sizeof(Candidate) == 8, "size of Candidate");
static_assert(offsetof(Candidate, token) == 0, "Candidate.token");
static_assert(offsetof(Candidate, probability) == 4, "Candidate.probability");

struct alignas(8) SampleRow {
  uint32_t slot;
  uint32_t known_count;
  uint32_t choice_count;
  uint32_t fresh;
  uint32_t wanted_first;
  uint32_t wanted_count;
  uint32_t mask_first;
  uint32_t top_count;
  uint64_t history;
  uint64_t biases;
  uint32_t history_count;
  uint32_t bias_count;
  uint32_t draft;
  uint32_t verified;
};
static_assert(sizeof(SampleRow) == 64, "size of SampleRow");
static_assert(offsetof(SampleRow, slot) == 0, "SampleRow.slot");
static_assert(offsetof(SampleRow, known_count) == 4, "SampleRow.known_count");
static_assert(offsetof(SampleRow, choice_count) == 8, "SampleRow.choice_count");
static_assert(offsetof(SampleRow, fresh) == 12, "SampleRow.fresh");
static_assert(offsetof(SampleRow, wanted_first) == 16, "SampleRow.wanted_first");
static_assert(offsetof(SampleRow, wanted_count) == 20, "SampleRow.wanted_count");
static_assert(offsetof(SampleRow, mask_first) == 24, "SampleRow.mask_first");
static_assert(offsetof(SampleRow, top_count) == 28, "SampleRow.top_count");
static_assert(offsetof(SampleRow, history) == 32, "SampleRow.history");
static_assert(offsetof(SampleRow, biases) == 40, "SampleRow.biases");
static_assert(offsetof(SampleRow, history_count) == 48, "SampleRow.history_count");
static_assert(offsetof(SampleRow, bias_count) == 52, "SampleRow.bias_count");
static_assert(offsetof(SampleRow, draft) == 56, "SampleRow.draft");
static_assert(offsetof(SampleRow, verified) == 60, "SampleRow.verified");

struct alignas(4) Wanted {
  uint32_t row;
  uint32_t token;
  uint32_t scored;
  uint32_t reserved;
};
static_assert(sizeof(Wanted) == 16, "size of Wanted");
static_assert(offsetof(Wanted, row) == 0, "Wanted.row");
static_assert(offsetof(Wanted, token) == 4, "Wanted.token");
static_assert(offsetof(Wanted, scored) == 8, "Wanted.scored");
static_assert(offsetof(Wanted, reserved) == 12, "Wanted.reserved");

struct alignas(4) Judged {
  float logit;
  float logprob;
  uint32_t rank;
};
static_assert(sizeof(Judged) == 12, "size of Judged");
static_assert(offsetof(Judged, logit) == 0, "Judged.logit");
static_assert(offsetof(Judged, logprob) == 4, "Judged.logprob");
static_assert(offsetof(Judged, rank) == 8, "Judged.rank");

struct alignas(8) ChoicePart {
  uint64_t best;
  uint64_t winner;
  uint64_t mass;
  uint32_t finite;
  uint32_t reserved;
};
static_assert(sizeof(ChoicePart) == 32, "size of ChoicePart");
static_assert(offsetof(ChoicePart, best) == 0, "ChoicePart.best");
static_assert(offsetof(ChoicePart, winner) == 8, "ChoicePart.winner");
static_assert(offsetof(ChoicePart, mass) == 16, "ChoicePart.mass");
static_assert(offsetof(ChoicePart, finite) == 24, "ChoicePart.finite");
static_assert(offsetof(ChoicePart, reserved) == 28, "ChoicePart.reserved");

struct alignas(4) RowChoice {
  uint32_t token_count;
  uint32_t scored_count;
  uint32_t fault;
  uint32_t fault_position;
};
static_assert(sizeof(RowChoice) == 16, "size of RowChoice");
static_assert(offsetof(RowChoice, token_count) == 0, "RowChoice.token_count");
static_assert(offsetof(RowChoice, scored_count) == 4, "RowChoice.scored_count");
static_assert(offsetof(RowChoice, fault) == 8, "RowChoice.fault");
static_assert(offsetof(RowChoice, fault_position) == 12, "RowChoice.fault_position");

struct alignas(4) Report {
  float chosen;
  uint32_t chosen_rank;
  float scored;
  uint32_t scored_rank;
};
static_assert(sizeof(Report) == 16, "size of Report");
static_assert(offsetof(Report, chosen) == 0, "Report.chosen");
static_assert(offsetof(Report, chosen_rank) == 4, "Report.chosen_rank");
static_assert(offsetof(Report, scored) == 8, "Report.scored");
static_assert(offsetof(Report, scored_rank) == 12, "Report.scored_rank");

struct alignas(4) Top {
  uint32_t token;
  float logprob;
};
static_assert(sizeof(Top) == 8, "size of Top");
static_assert(offsetof(Top, token) == 0, "Top.token");
static_assert(offsetof(Top, logprob) == 4, "Top.logprob");

struct alignas(8) SampleMemory {
  uint32_t vocab;
  uint32_t stride;
  uint32_t mask_words;
  uint32_t reserved;
  uint64_t slots;
  uint64_t biases;
  uint64_t counts;
  uint64_t recent;
  uint64_t bad_tokens;
  uint64_t bad_ends;
  uint64_t end_tokens;
  uint64_t rows;
  uint64_t wanted;
  uint64_t masks;
  uint64_t processed;
  uint64_t choice_parts;
  uint64_t row_choices;
  uint64_t chosen;
  uint64_t reports;
  uint64_t tops;
  uint64_t logits;
  uint64_t drafts;
  uint64_t proposals;
  uint64_t judged;
};
static_assert(sizeof(SampleMemory) == 176, "size of SampleMemory");
static_assert(offsetof(SampleMemory, vocab) == 0, "SampleMemory.vocab");
static_assert(offsetof(SampleMemory, stride) == 4, "SampleMemory.stride");
static_assert(offsetof(SampleMemory, mask_words) == 8, "SampleMemory.mask_words");
static_assert(offsetof(SampleMemory, reserved) == 12, "SampleMemory.reserved");
static_assert(offsetof(SampleMemory, slots) == 16, "SampleMemory.slots");
static_assert(offsetof(SampleMemory, biases) == 24, "SampleMemory.biases");
static_assert(offsetof(SampleMemory, counts) == 32, "SampleMemory.counts");
static_assert(offsetof(SampleMemory, recent) == 40, "SampleMemory.recent");
static_assert(offsetof(SampleMemory, bad_tokens) == 48, "SampleMemory.bad_tokens");
static_assert(offsetof(SampleMemory, bad_ends) == 56, "SampleMemory.bad_ends");
static_assert(offsetof(SampleMemory, end_tokens) == 64, "SampleMemory.end_tokens");
static_assert(offsetof(SampleMemory, rows) == 72, "SampleMemory.rows");
static_assert(offsetof(SampleMemory, wanted) == 80, "SampleMemory.wanted");
static_assert(offsetof(SampleMemory, masks) == 88, "SampleMemory.masks");
static_assert(offsetof(SampleMemory, processed) == 96, "SampleMemory.processed");
static_assert(offsetof(SampleMemory, choice_parts) == 104, "SampleMemory.choice_parts");
static_assert(offsetof(SampleMemory, row_choices) == 112, "SampleMemory.row_choices");
static_assert(offsetof(SampleMemory, chosen) == 120, "SampleMemory.chosen");
static_assert(offsetof(SampleMemory, reports) == 128, "SampleMemory.reports");
static_assert(offsetof(SampleMemory, tops) == 136, "SampleMemory.tops");
static_assert(offsetof(SampleMemory, logits) == 144, "SampleMemory.logits");
static_assert(offsetof(SampleMemory, drafts) == 152, "SampleMemory.drafts");
static_assert(offsetof(SampleMemory, proposals) == 160, "SampleMemory.proposals");
static_assert(offsetof(SampleMemory, judged) == 168, "SampleMemory.judged");

struct alignas(8) VerifyMemory {
  Memory memory;
  SampleMemory sampling;
};
static_assert(sizeof(VerifyMemory) == 488, "size of VerifyMemory");
static_assert(offsetof(VerifyMemory, memory) == 0, "VerifyMemory.memory");
static_assert(offsetof(VerifyMemory, sampling) == 312, "VerifyMemory.sampling");

struct alignas(8) DraftMemory {
  uint64_t parts;
  uint64_t candidates;
  uint64_t slots;
  uint64_t proposals;
};
static_assert(sizeof(DraftMemory) == 32, "size of DraftMemory");
static_assert(offsetof(DraftMemory, parts) == 0, "DraftMemory.parts");
static_assert(offsetof(DraftMemory, candidates) == 8, "DraftMemory.candidates");
static_assert(offsetof(DraftMemory, slots) == 16, "DraftMemory.slots");
static_assert(offsetof(DraftMemory, proposals) == 24, "DraftMemory.proposals");

struct alignas(8) Stamped {
  uint32_t what;
  uint32_t number;
  uint64_t cycles;
};
static_assert(sizeof(Stamped) == 16, "size of Stamped");
static_assert(offsetof(Stamped, what) == 0, "Stamped.what");
static_assert(offsetof(Stamped, number) == 4, "Stamped.number");
static_assert(offsetof(Stamped, cycles) == 8, "Stamped.cycles");

}  // namespace kilotok
