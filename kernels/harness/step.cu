// Times the target's pass over random weights, as a whole and between grid barriers: the cost of
// one rank of a model without a checkpoint, a host engine or a drafter. Weights repeat every few
// layers, far enough apart that no cache keeps them.
//
// The results are checked for consistency: all logits must be finite, and logits, keys and values
// must have the same bits in every pass. The logits of the first row's tokens must also have the
// same bits in the kernel for more tiles of tokens, or, if there are several, in that for one,
// whether or not the row has other rows beside it. A race may need hundreds of passes to show, and
// other rounding may show in one context of a dozen. Returns 1 if anything is wrong.
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -DKILOTOK_STAMPS -I kernels \
//     -I kernels/include -I kernels/models/slice kernels/harness/step.cu -o step
//   ./step [tokens] [context] [passes] [tokens of a row]
#include "step/step.cu"

#include <numeric>

#include "bench.h"
#include "random_model.cuh"

namespace {

using bench::fill;
using bench::fill_chunks;
using bench::floats;
using bench::make_layers;
using bench::matrix;
using bench::take;

// Tokens of a row at most: a draft and the token before it.
constexpr int ROW_TOKENS = 8;
constexpr size_t LOGITS_BYTES = static_cast<size_t>(TOKENS_MAX) * VOCAB_ROWS * 4;

Memory workspace() {
  Memory m = {};
  m.batch = take(sizeof(Batch));
  m.tokens = take(sizeof(BatchToken) * TOKENS_MAX);
  m.rows = take(sizeof(BatchRow) * TOKENS_MAX);
  m.wanted = take(4 * TOKENS_MAX);
  m.embedding = take(static_cast<size_t>(VOCAB) * HIDDEN * 2);
  fill(fill_chunks, at<uint32_t>(m.embedding), static_cast<size_t>(VOCAB) * HIDDEN / 1024, 0,
       uint64_t{99});
  m.final_norm = floats(HIDDEN, 0.1f, 1.0f, 98);
  m.head = matrix<HeadMatrix>(1, 97);
  m.frequencies = floats(ATTENTION_KINDS * ROPE_PAIRS_MAX, 0.5f, 0.5f, 96);
  m.angles = take(static_cast<size_t>(ATTENTION_KINDS) * TOKENS_MAX * ROPE_PAIRS_MAX * 8);
  m.normed = take(static_cast<size_t>(TOKENS_MAX) * NORMED_BYTES);
  m.squares = take(static_cast<size_t>(READERS) * TOKENS_MAX * SQUARES_EACH * 4);
  m.projected = take(static_cast<size_t>(TOKENS_MAX) * PROJECTED_ROWS * 4);
  m.queries = take(static_cast<size_t>(TOKENS_MAX) * QUERY_VALUES * 4);
  m.own_keys = take(1 << 24);
  m.own_values = take(1 << 24);
  m.attention_parts = take(ATTENTION_PARTS_BYTES);
  m.attended = take(static_cast<size_t>(TOKENS_MAX) * ATTENDED_BYTES);
  m.router_parts = take(static_cast<size_t>(OWNER_UNITS) * TOKENS_MAX * EXPERTS_MAX * 4);
  m.router_scores = take(static_cast<size_t>(TOKENS_MAX) * SCORES_EACH * 4);
  m.dense_inner = take(static_cast<size_t>(TOKENS_MAX) * DENSE_INNER_BYTES);
  m.expert_inner = take(TILE_INNER_BYTES + GATHERED_INNER_BYTES);
  m.taps = take(static_cast<size_t>(TOKENS_MAX) * TAPS_BYTES);
  m.fused = take(static_cast<size_t>(TOKENS_MAX) * HIDDEN * 4);
  m.logits = take(LOGITS_BYTES);
  m.barrier = take(4096);
  m.trace = take(STAMPS_MAX * sizeof(Stamped));
  m.wait_max_ms = bench::wait_max_ms();
  m.fault = bench::fault_address();
  return m;
}

// Uploads rows of the given numbers of tokens, whose contexts have `each` pages. A row's tokens,
// positions and pages do not depend on other rows.
void upload_batch(Memory& m, const std::vector<int>& counts, int context, int each) {
  std::vector<BatchToken> list;
  std::vector<BatchRow> rows;
  std::vector<uint32_t> pages, wanted;
  for (int count : counts) {
    const uint32_t row = static_cast<uint32_t>(rows.size());
    BatchRow r = {};
    r.start = context;
    r.first = static_cast<uint32_t>(list.size());
    r.count = count;
    for (uint32_t& place : r.pages_at) place = row * each;
    rows.push_back(r);
    for (int i = 0; i < count; i++)
      list.push_back({((row * ROW_TOKENS + i) * 7919 + 13) % VOCAB,
                      static_cast<uint32_t>(context + i), row, 0});
  }
  for (size_t i = 0; i < rows.size() * each; i++) pages.push_back(static_cast<uint32_t>(i));
  for (size_t i = 0; i < list.size(); i++) wanted.push_back(static_cast<uint32_t>(i));
  const Batch batch = {static_cast<uint32_t>(list.size()), static_cast<uint32_t>(rows.size()),
                       static_cast<uint32_t>(list.size()), 0};
  auto up = [](uint64_t to, const void* from, size_t bytes) {
    CHECK(cudaMemcpy(at<void>(to), from, bytes, cudaMemcpyHostToDevice));
  };
  up(m.batch, &batch, sizeof batch);
  up(m.tokens, list.data(), list.size() * sizeof(BatchToken));
  up(m.rows, rows.data(), rows.size() * sizeof(BatchRow));
  up(m.pages, pages.data(), pages.size() * 4);
  up(m.wanted, wanted.data(), wanted.size() * 4);
}

float launch(const Memory& m, int tokens) {
  CHECK(cudaMemset(at<void>(m.barrier), 0, COUNTERS * COUNTER_BYTES));
  CHECK(cudaMemset(at<void>(m.trace), 0, STAMPS_MAX * sizeof(Stamped)));
  // Logits that are not written are NaN.
  CHECK(cudaMemset(at<void>(m.logits), 0xff, LOGITS_BYTES));
  void* arguments[] = {const_cast<Memory*>(&m)};
  return bench::launch_ms(tokens > TILE_TOKENS      ? target_many
                          : HAS_ONE && tokens == 1 ? target_one
                                                   : target,
                          dim3(GRID), THREADS, sizeof(Shared), arguments);
}

// The time of the first CTA from one stamp to the next, summed by the stamp that ends it. A
// barrier's time is the first CTA's wait for the others after a phase.
void print_phases(const Memory& m) {
  std::vector<Stamped> stamps(STAMPS_MAX);
  CHECK(cudaMemcpy(stamps.data(), at<void>(m.trace), stamps.size() * sizeof(Stamped),
                   cudaMemcpyDeviceToHost));
  int count = 0;
  while (count < STAMPS_MAX && stamps[count].what != 0) count++;
  if (count == 0 || stamps[count - 1].what != static_cast<uint32_t>(Stamp::Ended)) {
    std::printf("  no stamps, or more than %d\n", STAMPS_MAX);
    return;
  }
  const Stamped &begun = stamps[0], &ended = stamps[count - 1];
  const double cycles_per_us =
      1e3 * (ended.cycles - begun.cycles) / (ended.number - begun.number);
  double own[STAMP_COUNT + 1] = {}, waits[STAMP_COUNT + 1] = {};
  uint32_t phase = 0;
  for (int i = 1; i < count; i++) {
    const double us = (stamps[i].cycles - stamps[i - 1].cycles) / cycles_per_us;
    if (stamps[i].what == static_cast<uint32_t>(Stamp::Barrier))
      waits[phase] += us;
    else
      own[phase = stamps[i].what] += us;
  }
  std::printf("  us a layer: own, then waiting at the barriers after it\n");
  for (int k = 1; k <= STAMP_COUNT; k++)
    if (own[k] + waits[k] > 0)
      std::printf("  %-15s %7.2f %7.2f\n", name_of(static_cast<Stamp>(k)), own[k] / LAYERS,
                  waits[k] / LAYERS);
}

// The logits of all tokens of the last pass.
std::vector<float> read_logits(const Memory& m) {
  return bench::read<float>(m.logits, LOGITS_BYTES / 4);
}

// Keys, then values, of all K/V heads of a token in a layer: the most of any kind.
constexpr int STORED_VALUES = over_kinds<0, DRAFT_ATTENTION>([](auto kind) {
  constexpr Attention A = ATTENTIONS[decltype(kind)::value];
  return A.kv_heads * (A.qk_dim + A.v_dim);
});

// Copies the keys and values of the batch's tokens from their pages to `to`,
// `[layers][tokens][STORED_VALUES]`.
__global__ void collect(Memory m, uint16_t* to, int tokens) {
  for (int i = blockIdx.x; i < LAYERS * tokens; i += gridDim.x) {
    const LayerMemory& l = at<const LayerMemory>(m.layers)[i / tokens];
    const BatchToken& t = at<const BatchToken>(m.tokens)[i % tokens];
    const BatchRow& row = at<const BatchRow>(m.rows)[t.row];
    with_kind<0, DRAFT_ATTENTION>(l.attention, [&](auto kind) {
      constexpr int KIND = decltype(kind)::value;
      constexpr Attention A = ATTENTIONS[KIND];
      constexpr int EACH = A.qk_dim + A.v_dim;
      for (int k = threadIdx.x; k < A.kv_heads * EACH; k += blockDim.x) {
        const int head = k / EACH, dim = k % EACH;
        const uint32_t place = cache_index<KIND>(at<const uint32_t>(m.pages),
                                                  row.pages_at[A.page_group], t.position, head);
        to[static_cast<size_t>(i) * STORED_VALUES + k] =
            dim < A.qk_dim
                ? at<const uint16_t>(l.keys)[cache_offset<A.qk_dim>(place, dim)]
                : at<const uint16_t>(l.values)[cache_offset<A.v_dim>(place, dim - A.qk_dim)];
      }
    });
  }
}

// The results of a pass.
struct Left {
  std::vector<float> logits;
  std::vector<uint16_t> stored;

  Left(const Memory& m, uint64_t place, int tokens) : logits(read_logits(m)) {
    constexpr int CTAS = 1024, COLLECTORS = 64;
    uint16_t* to = at<uint16_t>(place);
    Memory memory = m;
    void* arguments[] = {&memory, &to, &tokens};
    CHECK(cudaLaunchKernel(collect, dim3(CTAS), dim3(COLLECTORS), arguments, 0, nullptr));
    stored = bench::read<uint16_t>(place, static_cast<size_t>(LAYERS) * tokens * STORED_VALUES);
  }
};

// Compares a pass with the first one over the same batch, and prints the first layer whose keys and
// values differ.
void compare(bench::Verdict& verdict, const Left& first, const Left& left, int tokens, int pass) {
  bool told = false;
  for (int i = 0; i < LAYERS * tokens; i++) {
    int differing = 0;
    for (size_t k = 0; k < STORED_VALUES; k++) {
      const size_t place = static_cast<size_t>(i) * STORED_VALUES + k;
      differing += first.stored[place] != left.stored[place];
    }
    verdict.exact(differing, 0, "values that differ from the first pass's of layer, token",
                  i / tokens, i % tokens);
    if (differing > 0 && !told)
      std::printf("  pass %d differs from layer %d, token %d on: %d of %d values there\n", pass,
                  i / tokens, i % tokens, differing, STORED_VALUES);
    told = told || differing > 0;
  }
  for (int token = 0; token < tokens; token++) {
    const size_t place = static_cast<size_t>(token) * VOCAB_ROWS;
    verdict.exact(std::memcmp(&left.logits[place], &first.logits[place],
                              VOCAB / RANKS * sizeof(float)) == 0,
                  true, "the first pass's bits of pass, token", pass, token);
  }
}

// `logits` are those of `tokens` tokens; `other` are those of the other kernel, in whose batch the
// first `same` tokens are the same.
bool check(bench::Verdict& verdict, const std::vector<float>& logits, int tokens,
           const std::vector<float>& other, int same) {
  for (int token = 0; token < tokens; token++)
    for (int row = 0; row < VOCAB / RANKS; row++) {
      const size_t place = static_cast<size_t>(token) * VOCAB_ROWS + row;
      verdict.exact(std::isfinite(logits[place]), true, "finite logit of token, row", token, row);
      if (token < same)
        verdict.exact(std::memcmp(&logits[place], &other[place], 4) == 0, true,
                      "the other kernel's bits of token, row", token, row);
    }
  return verdict.print();
}

}  // namespace

int main(int argc, char** argv) {
  const int tokens = argc > 1 ? std::atoi(argv[1]) : 8;
  const int context = argc > 2 ? std::atoi(argv[2]) : 4096;
  const int passes = argc > 3 ? std::atoi(argv[3]) : 20;
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  const int of_row = argc > 4 ? std::atoi(argv[4]) : ROW_TOKENS;
  const int first = std::min(tokens, of_row), each = context / PAGE_TOKENS + 2;
  // Rows of one token are attended in another way than longer ones.
  std::vector<int> rows, others = {argc > 4 ? first + 1 : first};
  for (int i = 0; i < tokens; i += of_row) rows.push_back(std::min(of_row, tokens - i));
  if (tokens <= TILE_TOKENS) others.push_back(ROW_TOKENS);
  const int row_count = static_cast<int>(std::max(rows.size(), others.size()));
  Memory m = workspace();
  m.pages = take(static_cast<size_t>(row_count) * each * 4);
  make_layers(m, row_count * each);
  upload_batch(m, rows, context, each);
  const uint64_t stored = take(static_cast<size_t>(LAYERS) * tokens * STORED_VALUES * 2);
  std::vector<float> times;
  for (int i = 0; i < passes; i++) times.push_back(launch(m, tokens));
  std::sort(times.begin(), times.end());
  std::printf("%s, %d tokens, context %d: %.3f ms a pass (median), %.3f best\n", device.name,
              tokens, context, times[passes / 2], times[0]);
  print_phases(m);
  // Reading results between passes would affect their times, so other passes are compared.
  const Left first_pass(m, stored, tokens);
  bench::Verdict verdict = {"logits"};
  for (int i = 1; i < passes; i++) {
    launch(m, tokens);
    compare(verdict, first_pass, Left(m, stored, tokens), tokens, i);
  }
  for (int i = 0; i < 8; i++) std::printf("%g ", first_pass.logits[i]);
  std::printf("\n");
  upload_batch(m, others, context, each);
  launch(m, std::accumulate(others.begin(), others.end(), 0));
  return check(verdict, first_pass.logits, tokens, read_logits(m), first) ? 0 : 1;
}
