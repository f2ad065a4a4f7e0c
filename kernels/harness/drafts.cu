// The choice of drafts over the logits of two ranks: the argmax at every wanted token, the first
// one of equals, as `likeliest` in crates/batch; or, in every second run of the cases, a draft that
// is drawn from the likeliest tokens of both ranks. How it is drawn from them is checked by
// `sample`. Checked and timed. Needs a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/drafts.cu -o drafts
//   ./drafts            checks and times
//   ./drafts check      checks alone, for compute-sanitizer
//
// One rank runs, first as rank 0, then as rank 1; the packets of the other rank are written before.
// Ties lie within a few logits, between threads, CTAs and ranks. There are zeros of both signs,
// infinities, and logits of which some or all are NaN. Besides the token, the packets that are sent
// and the parts that are left must be right, and nothing after them may be written. How ranks wait
// for each other is checked by `collectives`. Returns 1 if anything is wrong.
#define HARNESS_RANKS 2
#include "ranks.h"

#include <functional>

#include "bench.h"
#include "kilotok/phase/drafts.cuh"

namespace bench {

using namespace kilotok;

static_assert(VOCAB % RANKS == 0, "ranks have as many tokens each");

struct DraftWork {
  int wanted_count, repeats;
  uint32_t number;
};

struct DraftShared {
  DraftScratch scratch;
  HeldBatch batch;
};

__global__ void __launch_bounds__(CONSUMERS, 1)
    draft(const __grid_constant__ Memory memory, const __grid_constant__ DraftWork work) {
  DraftShared& shared = *reinterpret_cast<DraftShared*>(asked_memory());
  shared.batch.fetch(memory);
  if (threadIdx.x == 0)
    wait_context = WaitContext::begin(memory.fault, memory.wait_max_ms, memory.rank);
  __syncthreads();
  Cta cta(memory, 0);
  for (int i = 0; i < work.repeats; i++) {
    choose_drafts(cta, shared.scratch, shared.batch, work.number);
    cta.sync_grid();
  }
}

// One case: a row of logits of the whole vocabulary.
using Row = std::vector<float>;

Row plain_row(int seed) {
  Row row(VOCAB);
  for (int id = 0; id < VOCAB; id++)
    row[id] = 8 * uniform(static_cast<uint64_t>(seed), static_cast<uint64_t>(id));
  return row;
}

// The cases, repeated over the rows.
const std::function<void(Row&)> CASES[] = {
    [](Row&) {},
    // The largest logit is the last one, then the first one.
    [](Row& row) { row.back() = 9; },
    [](Row& row) { row[0] = 9; },
    // Ties: between neighbours, between threads, across ranks (twice), between all.
    [](Row& row) { row[41] = row[42] = row[43] = 9; },
    [](Row& row) { row[VOCAB / 2 - 5] = row[7] = 9; },
    [](Row& row) { row[VOCAB / 2 - 1] = row[VOCAB / 2] = 9; },
    [](Row& row) { row[VOCAB - 3] = row[VOCAB / 2 + 6] = 9; },
    [](Row& row) { row.assign(VOCAB, -2.5f); },
    // Zeros are equal, whatever their sign.
    [](Row& row) {
      row.assign(VOCAB, -1);
      row[20] = -0.0f;
      row[60] = row[VOCAB / 2 + 1] = 0.0f;
    },
    // Infinity is an ordinary value.
    [](Row& row) { row[VOCAB / 2 + 9] = row[VOCAB - 1] = INFINITY; },
    [](Row& row) {
      row.assign(VOCAB, -INFINITY);
      row[VOCAB - 2] = -3e38f;
    },
    [](Row& row) { row.assign(VOCAB, -INFINITY); },
    // NaN only: any valid token.
    [](Row& row) { row.assign(VOCAB, NAN); },
    [](Row& row) { row[0] = row[33] = row[VOCAB / 2] = NAN; },
};
constexpr int CASE_COUNT = static_cast<int>(std::size(CASES));

// The reference of `argmax`.
uint32_t likeliest_of(const Row& row, int begin, int end) {
  uint32_t best = begin;
  for (int id = begin + 1; id < end; id++)
    if (row[id] > row[best]) best = id;
  return best;
}

struct DraftCheck {
  Buffers buffers;
  std::vector<Row> rows;
  Memory memory = {};
  DraftMemory drafting = {};
  Peers receivers = {};
  DraftWork work = {};

  DraftCheck() {
    for (int i = 0; i < TOKENS_MAX; i++) {
      rows.push_back(plain_row(i));
      CASES[i % CASE_COUNT](rows[i]);
    }
    memory.logits = buffers.take(size_t{TOKENS_MAX} * VOCAB_ROWS * 4);
    drafting.parts = buffers.take(size_t{TOKENS_MAX} * PARTS_MAX * 8);
    drafting.candidates = buffers.take(size_t{TOKENS_MAX} * PARTS_MAX * CANDIDATES_MAX * 8);
    drafting.proposals =
        buffers.take(size_t{TOKENS_MAX} * DRAFT_ROWS * CANDIDATES_MAX * sizeof(Candidate));
    Slot slot = {};
    slot.sampling = {1, 1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0};
    slot.draft_temperature = 1.0f;
    drafting.slots = buffers.put(std::vector<Slot>(TOKENS_MAX, slot));
    memory.drafting = buffers.put(std::vector<DraftMemory>{drafting});
    std::vector<uint32_t> wanted;
    std::vector<BatchToken> tokens;
    std::vector<BatchRow> batch_rows;
    for (uint32_t i = 0; i < TOKENS_MAX; i++) {
      wanted.push_back(i);
      tokens.push_back({0, 0, i, 0});
      // Its first draft is wanted.
      batch_rows.push_back({0, i - 1, 2, is_drawn(static_cast<int>(i)) ? i : ~0u, {}});
    }
    memory.wanted = buffers.put(wanted);
    memory.tokens = buffers.put(tokens);
    memory.rows = buffers.put(batch_rows);
    memory.batch = buffers.take(sizeof(Batch));
    memory.drafted = buffers.take(TOKENS_MAX * 4);
    memory.barrier = buffers.take(COUNTERS * COUNTER_BYTES);
    for (int rank = 0; rank < RANKS; rank++)
      receivers.receivers[rank] = buffers.take(RECEIVER_BYTES);
    memory.peers = buffers.put(std::vector<Peers>{receivers});
    memory.fault = fault_address();
    memory.wait_max_ms = wait_max_ms();
  }

  static bool is_drawn(int wanted) { return wanted / CASE_COUNT % 2 == 1; }

  // Whether `count` logits of a row, from `begin` on, are all finite.
  bool is_finite(int wanted, int begin, int count) const {
    return std::all_of(&rows[wanted][begin], &rows[wanted][begin] + count,
                       [](float logit) { return std::isfinite(logit); });
  }

  static uint64_t key_of(float logit, uint32_t token) {
    logit += 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &logit, 4);
    const uint32_t ascending = bits ^ (bits >> 31 ? ~0u : 0x80000000u);
    return static_cast<uint64_t>(~ascending) << 32 | token;
  }

  // The keys of the likeliest of `count` tokens, from `begin` on.
  std::vector<uint64_t> candidates_of(int wanted, int begin, int count) const {
    std::vector<uint64_t> keys(CANDIDATES_MAX);
    if (!is_finite(wanted, begin, count)) return keys;
    std::vector<uint64_t> all;
    for (int id = begin; id < begin + count; id++)
      all.push_back(key_of(rows[wanted][id], static_cast<uint32_t>(id)));
    std::sort(all.begin(), all.end());
    std::copy_n(all.begin(), CANDIDATES_MAX, keys.begin());
    return keys;
  }

  // Whether a row has NaN logits.
  bool is_spoilt(int wanted) const {
    return std::any_of(rows[wanted].begin(), rows[wanted].end(),
                       [](float logit) { return std::isnan(logit); });
  }

  // A rank's key for a row; smaller keys are more likely, see `exact::rank_key`.
  uint64_t best_of(int rank, int wanted) const {
    const int begin = rank * RANK_LOGITS;
    uint32_t token = likeliest_of(rows[wanted], begin, begin + RANK_LOGITS);
    float logit = rows[wanted][token] + 0.0f;
    // A rank whose logits are all NaN or -infinity has no token.
    if (std::isnan(logit)) logit = -INFINITY;
    if (logit == -INFINITY) token = NO_TOKEN;
    return key_of(logit, token);
  }

  // Writes the rank's logits, and the packets that the other rank has sent it.
  void become(uint32_t rank, uint32_t number) {
    memory.rank = rank;
    work.number = number;
    std::vector<float> own(size_t{TOKENS_MAX} * VOCAB_ROWS, NAN);
    std::vector<uint32_t> sent(size_t{TOKENS_MAX} * RANKS * 4);
    std::vector<uint32_t> candidates(size_t{TOKENS_MAX} * RANKS * CANDIDATES_MAX * 4);
    const auto write = [&](uint32_t* packet, uint64_t key) {
      packet[0] = static_cast<uint32_t>(key);
      packet[1] = static_cast<uint32_t>(key >> 32);
      packet[2] = number;
      packet[3] = packet[0] ^ packet[1] ^ number;
    };
    for (int i = 0; i < TOKENS_MAX; i++) {
      std::copy_n(&rows[i][rank * RANK_LOGITS], RANK_LOGITS, &own[size_t{VOCAB_ROWS} * i]);
      const uint32_t other = 1 - rank;
      write(&sent[(i * RANKS + other) * 4], best_of(static_cast<int>(other), i));
      const auto keys = candidates_of(i, static_cast<int>(other) * RANK_LOGITS, RANK_LOGITS);
      for (size_t k = 0; k < keys.size(); k++)
        write(&candidates[((i * RANKS + other) * CANDIDATES_MAX + k) * 4], keys[k]);
    }
    Buffers::copy(memory.logits, own);
    for (uint64_t receiver : receivers.receivers)
      if (receiver) CHECK(cudaMemset(at<void>(receiver), 0, RECEIVER_BYTES));
    Buffers::copy(receivers.receivers[rank] + DRAFTS_OFFSET, sent);
    Buffers::copy(receivers.receivers[rank] + CANDIDATES_OFFSET, candidates);
  }

  // Milliseconds.
  float launch(int wanted_count, int repeats) {
    CHECK(cudaMemset(at<void>(memory.barrier), 0, COUNTERS * COUNTER_BYTES));
    CHECK(cudaMemset(at<void>(memory.drafted), 0xff, TOKENS_MAX * 4));
    CHECK(cudaMemset(at<void>(drafting.parts), 0xff, size_t{TOKENS_MAX} * PARTS_MAX * 8));
    Buffers::copy(memory.batch, std::vector<Batch>{{0, 0, static_cast<uint32_t>(wanted_count), 0}});
    work.wanted_count = wanted_count;
    work.repeats = repeats;
    void* arguments[] = {&memory, &work};
    return launch_ms(draft, dim3(GRID), CONSUMERS, sizeof(DraftShared), arguments);
  }

  void check(int wanted_count, Verdict& verdict) {
    launch(wanted_count, 1);
    const int rank = static_cast<int>(memory.rank);
    const auto drafted = read<uint32_t>(memory.drafted, TOKENS_MAX);
    const auto parts = read<uint64_t>(drafting.parts, size_t{TOKENS_MAX} * PARTS_MAX);
    const auto sent = read<uint32_t>(receivers.receivers[1 - rank] + DRAFTS_OFFSET,
                                     size_t{TOKENS_MAX} * RANKS * 4);
    // All CTAs share the rows; see `parts_of`.
    const int part_count = std::max(1, std::min(PARTS_MAX, GRID / wanted_count));
    for (int i = 0; i < wanted_count; i++) {
      if (is_drawn(i)) {
        check_drawn(i, drafted[i], verdict);
        continue;
      }
      if (is_spoilt(i)) {
        verdict.exact(drafted[i] < VOCAB, true, "a token after token, of", i, wanted_count);
        continue;
      }
      verdict.exact(drafted[i], likeliest_of(rows[i], 0, VOCAB), "draft after token, of", i,
                    wanted_count);
      const uint64_t own = best_of(rank, i);
      const uint32_t* packet = &sent[(i * RANKS + rank) * 4];
      const uint32_t low = own, high = own >> 32;
      const bool whole = packet[0] == low && packet[1] == high && packet[2] == work.number &&
                         packet[3] == (low ^ high ^ work.number);
      verdict.exact(whole, true, "what is sent of token, of", i, wanted_count);
      const uint64_t* first = &parts[size_t{1} * i * PARTS_MAX];
      verdict.exact(*std::min_element(first, first + part_count) == own, true,
                    "the best part of token, of", i, wanted_count);
    }
    for (int i = wanted_count; i < TOKENS_MAX; i++)
      verdict.exact(drafted[i], ~0u, "nothing drafted at", i, wanted_count);
  }

  // The likeliest tokens of both ranks, and one of them. None where a logit is not finite.
  void check_drawn(int wanted, uint32_t drafted, Verdict& verdict) const {
    if (!is_finite(wanted, 0, VOCAB))
      return verdict.exact(drafted, NO_TOKEN, "no draft after token, of", wanted, TOKENS_MAX);
    const size_t law = static_cast<size_t>(wanted) * DRAFT_ROWS * CANDIDATES_MAX;
    const auto found = read<Candidate>(drafting.proposals + law * sizeof(Candidate),
                                       CANDIDATES_MAX);
    const auto keys = candidates_of(wanted, 0, VOCAB);
    bool one_of_them = false;
    for (int i = 0; i < CANDIDATES_MAX; i++) {
      verdict.exact(found[i].token, static_cast<uint32_t>(keys[i]), "candidate, of token", i,
                    wanted);
      one_of_them = one_of_them || found[i].token == drafted;
    }
    verdict.exact(one_of_them, true, "a candidate after token, of", wanted, TOKENS_MAX);
  }

  bool check_all() {
    Verdict verdict = {"drafts"};
    uint32_t number = 0;
    for (uint32_t rank = 0; rank < RANKS; rank++)
      for (int wanted_count : {1, CASE_COUNT, TOKENS_MAX}) {
        become(rank, ++number);
        check(wanted_count, verdict);
      }
    return verdict.print();
  }

  void time(int wanted_count) {
    const double us = best_us(500, [&](int repeats) { return launch(wanted_count, repeats); });
    std::printf("  after %d tokens, %d logits each, with two barriers: %.2f us\n", wanted_count,
                RANK_LOGITS, us);
  }
};

}  // namespace bench

int main(int argc, char** argv) {
  return bench::run_all(argc, argv, [](bool small) {
    bench::DraftCheck c;
    const bool right = c.check_all();
    for (int wanted : {1, 7, 56})
      if (!small) c.time(wanted);
    return right;
  });
}
