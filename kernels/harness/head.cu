// The head of a pass: logits of the wanted tokens from the normed stream, checked against double
// precision and timed. Needs a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/head.cu -o head
//   ./head            checks and times
//   ./head check      checks alone, for compute-sanitizer
//
// Logits of the first, the last and some other rows must be products times the token's 1 / rms. In
// all rows they must be finite, be in the order of the wanted tokens, and have the same bits
// whatever other tokens are wanted and however many: one tile of them, a few of several tiles, two
// tiles, all. Nothing after them may be written. Returns 1 if anything is wrong.
#include "roles.cuh"
#include "weights.h"

namespace bench {

static_assert(RANKS == 1, "one rank's head");

struct HeadWork {
  int repeats;
};

// The end of a pass of the kernel for up to TILES tiles of tokens.
template <int TILES>
struct HeadRoles {
  using Work = HeadWork;

  static __device__ __forceinline__ bool is_one_tile(const Warp& w) {
    return TILES == 1 || w.batch().counts.wanted_count <= TILE_TOKENS;
  }

  static __device__ __forceinline__ void consume(Warp& w, const Work& work) {
    for (int i = 0; i < work.repeats; i++) {
      w.cta.arrive_grid();
      if (is_one_tile(w))
        logits<false, 1>(w);
      else
        logits<false, TILES>(w);
    }
  }

  static __device__ __forceinline__ void produce(Warp& w, const Work& work) {
    const uint64_t head = w.cta.memory.head;
    const int first = first_unit<HeadMatrix>(w.cta);
    for (int i = 0; i < work.repeats; i++) {
      if (is_one_tile(w))
        kilotok::produce<HeadMatrix, 1>(w.ring, head, first);
      else
        kilotok::produce<HeadMatrix, TILES>(w.ring, head, first);
    }
  }

  static __device__ __forceinline__ void epilogue(Warp& w, const Work& work) {
    const Memory& memory = w.cta.memory;
    const WantedTokens wanted(memory, w.batch().counts);
    for (int i = 0; i < work.repeats; i++)
      kilotok::epilogue<HeadMatrix>(w.cta, w.sums, first_unit<HeadMatrix>(w.cta), wanted.tiles(),
                               StoreLogits{at<float>(memory.logits), w.stream(), wanted});
  }
};

struct HeadCheck {
  static constexpr int ROWS_KEPT = 256;
  // A token with small squares, in which the epsilon of the norm shows.
  static constexpr int SMALL_TOKEN = 3;
  Buffers buffers;
  std::mt19937 random{23};
  Weights<HeadMatrix> head{random, ROWS_KEPT};
  Activations x{random, TOKENS_MAX, HIDDEN, NORMED_BYTES, 1.0f};
  // By token: the owners' sums of squares, and 1 / rms.
  std::vector<float> squares;
  std::vector<double> inverse_rms;
  Memory memory = {};

  HeadCheck() : squares(size_t{READERS} * TOKENS_MAX * SQUARES_EACH, NAN) {
    for (int token = 0; token < TOKENS_MAX; token++) {
      const float size = token == SMALL_TOKEN ? 1e-5f : 0.5f + token;
      double sum = 0;
      for (int unit = 0; unit < OWNER_UNITS; unit++) {
        const size_t place =
            (static_cast<size_t>(Reader::Projection) * TOKENS_MAX + token) * SQUARES_EACH + unit;
        squares[place] = OWNER_ROWS * size * (1.5f + uniform(7, place));
        sum += squares[place];
      }
      inverse_rms.push_back(1 / std::sqrt(sum / HIDDEN + NORM_EPS));
    }
    memory = memory_of_batch(buffers, TOKENS_MAX);
    memory.head = buffers.put(head.packed);
    memory.normed = buffers.put(x.operand);
    memory.squares = buffers.put(squares);
    memory.wanted = buffers.take(TOKENS_MAX * 4);
    memory.logits = buffers.take(logit_count() * 4);
  }

  static size_t logit_count() { return size_t{TOKENS_MAX} * VOCAB_ROWS; }

  // Milliseconds.
  float launch(int token_count, const std::vector<uint32_t>& wanted, int repeats) {
    Buffers::copy(memory.batch,
                  std::vector<Batch>{{static_cast<uint32_t>(token_count), 1,
                                      static_cast<uint32_t>(wanted.size()), 0}});
    Buffers::copy(memory.wanted, wanted);
    CHECK(cudaMemset(at<void>(memory.logits), 0xff, logit_count() * 4));
    const HeadWork work = {repeats};
    return token_count > TILE_TOKENS ? roles_ms<HeadRoles<TILES_MAX>>(memory, work)
                                     : roles_ms<HeadRoles<1>>(memory, work);
  }

  // The relative error of 1 / rms: no more than a dozen roundings of a sum of positive numbers,
  // halved by the root, the root's own two units in the 23rd place, and the products'.
  static constexpr double RMS_ERROR = 12.0 / (1 << 24);

  void check_token(int token, const float* logits, Verdict& verdict) const {
    for (size_t i = 0; i < head.rows.size(); i++) {
      Product p;
      p.add(head.row(static_cast<int>(i)), x.row(token), HIDDEN);
      verdict.near(logits[head.rows[i]], p.sum * inverse_rms[token],
                   (p.magnitude * TOLERANCE + std::fabs(p.sum) * RMS_ERROR) * inverse_rms[token],
                   "logit of token, row", token, head.rows[i]);
    }
  }

  // Logits of all tokens, in their own order.
  std::vector<float> all;

  void check(int token_count, const std::vector<uint32_t>& wanted, Verdict& verdict) {
    launch(token_count, wanted, 1);
    const auto found = read<float>(memory.logits, logit_count());
    const bool first = all.empty();
    if (first) all.resize(found.size());
    for (size_t i = 0; i < wanted.size(); i++) {
      const float* logits = &found[i * VOCAB_ROWS];
      float* before = &all[wanted[i] * size_t{VOCAB_ROWS}];
      if (first) check_token(static_cast<int>(wanted[i]), logits, verdict);
      for (int row = 0; row < VOCAB; row++) {
        if (first) before[row] = logits[row];
        verdict.exact(std::isfinite(logits[row]), true, "finite logit of token, row", wanted[i],
                      row);
        verdict.exact(std::memcmp(&logits[row], &before[row], 4) == 0, true,
                      "the same bits of token, row", wanted[i], row);
      }
    }
    size_t strange = 0;
    for (size_t i = wanted.size() * VOCAB_ROWS; i < found.size(); i++)
      strange += !std::isnan(found[i]);
    verdict.exact(static_cast<double>(strange), 0, "written behind, of", token_count,
                  static_cast<int>(wanted.size()));
  }

  // Tokens in a mixed order, each once.
  static std::vector<uint32_t> mixed_tokens(int token_count, int wanted_count) {
    std::vector<uint32_t> wanted;
    for (int i = 0; i < wanted_count; i++) wanted.push_back((i * 5 + 3) % token_count);
    return wanted;
  }

  bool check_all() {
    static_assert(TOKENS_MAX % 5 != 0 && TILE_TOKENS % 5 != 0, "every token comes once");
    Verdict verdict = {"logits"};
    check(TOKENS_MAX, mixed_tokens(TOKENS_MAX, TOKENS_MAX), verdict);
    check(TOKENS_MAX, mixed_tokens(TOKENS_MAX, 2 * TILE_TOKENS), verdict);
    check(TOKENS_MAX, mixed_tokens(TOKENS_MAX, 3 * TILE_TOKENS - 3), verdict);
    check(TOKENS_MAX, mixed_tokens(TOKENS_MAX, TILE_TOKENS - 1), verdict);
    check(TILE_TOKENS, mixed_tokens(TILE_TOKENS, TILE_TOKENS), verdict);
    check(TILE_TOKENS, {SMALL_TOKEN}, verdict);
    return verdict.print();
  }

  void time(int wanted_count) {
    const int tokens = std::max(wanted_count, TILE_TOKENS);
    const double us = best_us(20, [&](int repeats) {
      return launch(tokens, mixed_tokens(tokens, wanted_count), repeats);
    });
    char name[64];
    std::snprintf(name, sizeof name, "  %d wanted of %d tokens, with a barrier", wanted_count,
                  tokens);
    print_time(name, us, HeadMatrix::BYTES);
  }
};

}  // namespace bench

int main(int argc, char** argv) {
  return bench::run_all(argc, argv, [](bool small) {
    bench::HeadCheck c;
    const bool right = c.check_all();
    for (int wanted : {1, 8, 16, 64})
      if (!small) c.time(wanted);
    return right;
  });
}
