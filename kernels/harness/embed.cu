// The beginning of a pass: the embedding of tokens and the RoPE angles of positions, checked and
// timed. Needs a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/embed.cu -o embed
//   ./embed            checks and times
//   ./embed check      checks alone, for compute-sanitizer
//
// Two ranks share the vocabulary, and run one after the other. Each must begin with a stream of
// zeros and add the rows of its own tokens, rank 0 also the drafter's mask, bit for bit. Rows of
// tokens that the batch does not have are NaN. Cosines and sines are compared with double
// precision, for the target's kinds of attention and the drafter's, and nothing else may be
// written. Returns 1 if anything is wrong.
#define HARNESS_RANKS 2
#include "ranks.h"

#include "bench.h"
#include "kilotok/phase/embed.cuh"

namespace bench {

using namespace kilotok;

constexpr int RANK_ROWS = VOCAB / RANKS, COLUMNS = OWNER_UNITS * OWNER_ROWS;
static_assert(VOCAB % RANKS == 0, "ranks have as many tokens each");

struct EmbedWork {
  // The kinds of attention `first` to `end` - 1 are rotated.
  int first, end, repeats;
  // F32 `[tokens][COLUMNS]` if they are kept: the stream, and what is added to it.
  uint64_t residual, part;
};

struct EmbedShared {
  HeldBatch batch;
  StreamMemory stream;
};

__global__ void __launch_bounds__(CONSUMERS, 1)
    embeds(const __grid_constant__ Memory memory, const __grid_constant__ EmbedWork work) {
  EmbedShared& shared = *reinterpret_cast<EmbedShared*>(asked_memory());
  StreamMemory& stream = shared.stream;
  if (threadIdx.x == 0)
    wait_context = WaitContext::begin(memory.fault, memory.wait_max_ms, memory.rank);
  shared.batch.fetch(memory);
  for (int k = threadIdx.x; k < TOKENS_MAX * OWNER_ROWS; k += CONSUMERS)
    stream.residual[k / OWNER_ROWS][k % OWNER_ROWS] =
        stream.part[k / OWNER_ROWS][k % OWNER_ROWS] = NAN;
  __syncthreads();
  Cta cta(memory, 0);
  for (int i = 0; i < work.repeats; i++) {
    rope_angles(cta, shared.batch, work.first, work.end);
    if (is_owner(cta)) embed(cta, stream, shared.batch);
    cta.sync();
  }
  if (work.part == 0 || !is_owner(cta)) return;
  for (int k = cta.thread(); k < shared.batch.token_count() * OWNER_ROWS; k += CONSUMERS) {
    const int token = k / OWNER_ROWS, row = k % OWNER_ROWS;
    const size_t place = static_cast<size_t>(token) * COLUMNS + cta.index() * OWNER_ROWS + row;
    at<float>(work.residual)[place] = stream.residual[token][row];
    at<float>(work.part)[place] = stream.part[token][row];
  }
}

struct EmbedCheck {
  Buffers buffers;
  std::vector<BatchToken> tokens = std::vector<BatchToken>(TOKENS_MAX);
  std::vector<float> mask = uniforms(HIDDEN, 1, 0, 2);
  std::vector<float> frequencies = uniforms(ATTENTION_KINDS * ROPE_PAIRS_MAX, 0.5f, 0.5f, 3);
  Memory memory = {};
  EmbedWork work = {};

  static uint16_t embedding(uint32_t id, int column) {
    return bf16_bits(uniform(1, static_cast<uint64_t>(id) * HIDDEN + column));
  }

  EmbedCheck() {
    // Each rank's first and last token, some masks, and one token twice.
    const uint32_t ids[] = {0,         RANK_ROWS - 1, MASK_TOKEN, RANK_ROWS,
                            VOCAB - 1, RANK_ROWS - 1, MASK_TOKEN, 1};
    // Up to the positions that are exact in F32, and beyond.
    const uint32_t positions[] = {0, 1, 4095, 131071, 1048575, 16777217, 7, 2000000000};
    for (uint32_t i = 0; i < TOKENS_MAX; i++) {
      const bool given = i < std::size(ids);
      tokens[i] = {given ? ids[i] : mixed(4, i) % VOCAB,
                   given ? positions[i] : mixed(5, i) % (1u << 20), 0, 0};
    }
    memory.tokens = buffers.put(tokens);
    memory.rows = buffers.put(std::vector<BatchRow>(TOKENS_MAX));
    memory.batch = buffers.take(sizeof(Batch));
    memory.embedding = buffers.take(size_t{RANK_ROWS} * HIDDEN * 2);
    memory.draft_mask = buffers.put(mask);
    memory.frequencies = buffers.put(frequencies);
    memory.angles = buffers.take(angle_count() * 4);
    memory.barrier = buffers.take(COUNTERS * COUNTER_BYTES);
    memory.fault = fault_address();
    memory.wait_max_ms = wait_max_ms();
    work.residual = buffers.take(size_t{TOKENS_MAX} * COLUMNS * 4);
    work.part = buffers.take(size_t{TOKENS_MAX} * COLUMNS * 4);
  }

  // Cosines and sines.
  static size_t angle_count() { return size_t{2} * ATTENTION_KINDS * TOKENS_MAX * ROPE_PAIRS_MAX; }

  void become(uint32_t rank) {
    memory.rank = rank;
    CHECK(cudaMemset(at<void>(memory.embedding), 0xff, size_t{RANK_ROWS} * HIDDEN * 2));
    std::vector<uint16_t> row(HIDDEN);
    for (const BatchToken& token : tokens) {
      if (token.token == MASK_TOKEN || token.token / RANK_ROWS != rank) continue;
      for (int column = 0; column < HIDDEN; column++) row[column] = embedding(token.token, column);
      Buffers::copy(memory.embedding + size_t{token.token % RANK_ROWS} * HIDDEN * 2, row);
    }
  }

  // Milliseconds.
  float launch(uint32_t token_count, bool drafter, int repeats) {
    Buffers::copy(memory.batch, std::vector<Batch>{{token_count, 1, 0, 0}});
    CHECK(cudaMemset(at<void>(memory.angles), 0xff, angle_count() * 4));
    work.first = drafter ? DRAFT_ATTENTION : 0;
    work.end = drafter ? ATTENTION_KINDS : DRAFT_ATTENTION;
    work.repeats = repeats;
    void* arguments[] = {&memory, &work};
    return launch_ms(embeds, dim3(GRID), CONSUMERS, sizeof(EmbedShared), arguments);
  }

  void check_stream(uint32_t token_count, Verdict& verdict) const {
    const auto residual = read<float>(work.residual, size_t{TOKENS_MAX} * COLUMNS);
    const auto part = read<float>(work.part, size_t{TOKENS_MAX} * COLUMNS);
    for (uint32_t token = 0; token < token_count; token++)
      for (int column = 0; column < COLUMNS; column++) {
        const uint32_t id = tokens[token].token;
        const bool masked = id == MASK_TOKEN;
        const bool own = masked ? memory.rank == 0 : id / RANK_ROWS == memory.rank;
        float wanted = 0;
        if (own && column < HIDDEN)
          wanted = masked ? mask[column] : bf16_value(embedding(id, column));
        const size_t place = size_t{token} * COLUMNS + column;
        verdict.exact(residual[place], 0, "stream of token, column", token, column);
        verdict.exact(part[place], wanted, "to be added of token, column", token, column);
      }
  }

  // Rounded once, from functions in double precision, whose error is a few units in the last place.
  static constexpr double ROUNDED = 1.0 / (1 << 24), OWN = 1e-14;

  void check_rotations(uint32_t token_count, Verdict& verdict) const {
    const auto found = read<float>(memory.angles, angle_count());
    size_t strange = 0;
    for (size_t i = 0; i < found.size(); i += 2) {
      const int pair = static_cast<int>(i / 2 % ROPE_PAIRS_MAX);
      const uint32_t token = i / 2 / ROPE_PAIRS_MAX % TOKENS_MAX;
      const int kind = static_cast<int>(i / 2 / ROPE_PAIRS_MAX / TOKENS_MAX);
      if (token >= token_count || kind < work.first || kind >= work.end) {
        strange += !std::isnan(found[i]) || !std::isnan(found[i + 1]);
        continue;
      }
      const float position = static_cast<float>(tokens[token].position);
      const float angle = position * frequencies[kind * ROPE_PAIRS_MAX + pair];
      const double cosine = std::cos(static_cast<double>(angle));
      const double sine = std::sin(static_cast<double>(angle));
      verdict.near(found[i], cosine, std::fabs(cosine) * ROUNDED + OWN, "cosine of token, pair",
                   token, pair);
      verdict.near(found[i + 1], sine, std::fabs(sine) * ROUNDED + OWN, "sine of token, pair",
                   token, pair);
    }
    verdict.exact(static_cast<double>(strange), 0, "written elsewhere, of", token_count, 0);
  }

  bool check_all() {
    bool right = true;
    for (uint32_t rank = 0; rank < RANKS; rank++) {
      char name[64];
      std::snprintf(name, sizeof name, "embeddings and rotations, rank %u", rank);
      Verdict verdict = {name};
      become(rank);
      for (uint32_t token_count : {5u, static_cast<uint32_t>(TOKENS_MAX)})
        for (bool drafter : {false, true}) {
          launch(token_count, drafter, 1);
          check_stream(token_count, verdict);
          check_rotations(token_count, verdict);
        }
      right = verdict.print() && right;
    }
    return right;
  }

  void time(uint32_t token_count) {
    work.part = work.residual = 0;
    const double us =
        best_us(1000, [&](int repeats) { return launch(token_count, false, repeats); });
    std::printf("  %u tokens, rows of the embedding in caches: %.2f us\n", token_count, us);
  }
};

}  // namespace bench

int main(int argc, char** argv) {
  return bench::run_all(argc, argv, [](bool small) {
    bench::EmbedCheck c;
    const bool right = c.check_all();
    for (uint32_t tokens : {1, 8, 64})
      if (!small) c.time(tokens);
    return right;
  });
}
