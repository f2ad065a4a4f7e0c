// The router from the stream to the routes: checks scores against double precision, experts and
// weights against these scores, and times it. Needs a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/router.cu -o router
//   ./router            checks and times
//   ./router check      checks alone, for compute-sanitizer
//
// For each kind of network with experts of the model these are checked: every score, each token's
// experts and their weights, that all CTAs compute the same routes, that a token's weights do not
// depend on other tokens, and the effect of a token that is NaN. Returns 1 if anything is wrong.
// Ties, and scores that are no numbers, are in crates/cpu/src/phase/kernels.rs.
#include <bit>

#include "router_roles.cuh"

namespace bench {

// The router of one kind, a stream of TOKENS_MAX tokens, and the expected results.
template <int KIND>
struct RouterCheck {
  using Roles = RouterRoles<KIND>;
  using R = Router<KIND>;
  static constexpr FeedForward F = R::F;
  static constexpr int EXPERTS = R::EXPERTS, ROW = ROUTER_ROW<KIND>;
  Buffers buffers;
  std::vector<float> residual = uniforms(size_t{TOKENS_MAX} * HIDDEN, 2, 0, 1);
  std::vector<float> part = uniforms(size_t{TOKENS_MAX} * HIDDEN, 1, 0, 2);
  std::vector<float> norm = uniforms(HIDDEN, 0.3f, 1, 3);
  std::vector<float> bias = uniforms(EXPERTS, 0.2f, 0, 4);
  // `[columns][experts]`, with the owners' padded columns.
  std::vector<float> router =
      uniforms(size_t{OWNER_UNITS} * OWNER_ROWS * ROW, 2 / std::sqrt(1.0f * HIDDEN), 0, 5);
  RouterWork work = {};

  // A token's expected scores and their tolerances.
  struct Token {
    std::vector<double> scores, tolerances;
    double inverse_rms;
  };

  explicit RouterCheck(int copies) {
    // As the host writes them: zeros beyond the last column and the last expert.
    for (size_t i = 0; i < router.size(); i++) {
      if (i / ROW >= HIDDEN || i % ROW >= EXPERTS) router[i] = 0;
      if (F.router_bf16) router[i] = bench::bf16_value(bench::bf16_bits(router[i]));
    }
    work.residual = buffers.put(residual);
    work.part = buffers.put(part);
    work.norm = buffers.put(norm);
    work.bias = buffers.put(bias);
    work.router = buffers.take(copies * R::BYTES);
    work.copies = copies;
    put_router(router);
  }

  void put_router(const std::vector<float>& values) {
    const std::vector<char> bytes = packed_router<KIND>(values);
    for (int copy = 0; copy < work.copies; copy++)
      Buffers::copy(work.router + copy * R::BYTES, bytes);
  }

  Memory memory(int token_count) { return memory_of_router(buffers, token_count); }

  // The errors of F32 sums of 48 products of an owner, of 11 owners of a warp and of 12 warps, each
  // rounded or truncated in the 24th place of no more than the sum of magnitudes; as many for 1 /
  // rms, which all scores share; and of products of F32 routers, 2^-21. A sigmoid quarters an
  // error, and rounds by itself, relative to 1. A weight has the error of activation.cuh.
  static constexpr double SUM_ERROR = 88.0 / (1 << 24), OWN_ERROR = 8.0 / (1 << 24);
  static constexpr double WEIGHT_ERROR = 1.0 / (1 << 19);

  Token expected(int token) const {
    Token t = {std::vector<double>(EXPERTS), std::vector<double>(EXPERTS), 0};
    std::vector<double> magnitudes(EXPERTS);
    double squares = 0;
    for (int column = 0; column < HIDDEN; column++) {
      const size_t place = size_t{1} * token * HIDDEN + column;
      const float x = residual[place] + part[place];
      const double scaled = x * norm[column];
      squares += static_cast<double>(x) * x;
      const float* weights = &router[size_t{1} * column * ROW];
      for (int e = 0; e < EXPERTS; e++) {
        t.scores[e] += scaled * weights[e];
        magnitudes[e] += std::fabs(scaled * weights[e]);
      }
    }
    t.inverse_rms = 1 / std::sqrt(squares / HIDDEN + Roles::EPS);
    for (int e = 0; e < EXPERTS; e++) {
      const double product = t.scores[e] * t.inverse_rms;
      const double off = magnitudes[e] * t.inverse_rms * SUM_ERROR;
      t.tolerances[e] = R::SOFTMAX ? off + std::fabs(product) * OWN_ERROR : off / 4 + OWN_ERROR;
      t.scores[e] = R::SOFTMAX ? product : 1 / (1 + std::exp(-product));
    }
    return t;
  }

  // The value by which experts are chosen.
  float merit(const float* scores, int e) const {
    return F.router_bias ? scores[e] + bias[e] : scores[e];
  }

  // The best experts in ascending order.
  std::vector<int> chosen(const float* scores) const {
    std::vector<int> order(EXPERTS);
    for (int e = 0; e < EXPERTS; e++) order[e] = e;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return merit(scores, a) > merit(scores, b); });
    order.resize(F.top_k);
    std::sort(order.begin(), order.end());
    return order;
  }

  // A token's experts and weights as the routes have them.
  struct Choice {
    std::vector<int> experts;
    std::vector<float> weights;
  };

  static std::vector<Choice> choices(const Routes& routes, int token_count, Verdict& verdict) {
    std::vector<Choice> found(token_count);
    int row = 0;
    for (int entry = 0; entry < routes.count; entry++) {
      // The entries are the chosen experts, each once, in ascending order.
      if (entry > 0)
        verdict.exact(routes.experts[entry - 1] < routes.experts[entry], true, "order of entry",
                      entry, 0);
      for (int token = 0; token < token_count; token++) {
        const int choice = routes.choices[entry][token];
        if (choice < 0) continue;
        found[token].experts.push_back(routes.experts[entry]);
        found[token].weights.push_back(choice < F.top_k ? routes.weights[token][choice] : NAN);
        if (Moe<KIND>::HAS_ALL_ROWS)
          verdict.exact(routes.places[token][entry],
                        AllRows<KIND>::place(token * F.top_k + choice), "place of token, entry",
                        token, entry);
        else
          verdict.exact(routes.sorted.first_rows[entry] +
                            std::popcount(routes.sorted.tokens[entry] & ((1u << token) - 1)),
                        row++, "row of token, entry", token, entry);
      }
    }
    return found;
  }

  static std::vector<Choice> choices(const GatheredRoutes& routes, int token_count,
                                     Verdict& verdict) {
    std::vector<Choice> found(token_count);
    verdict.exact(routes.first_rows[routes.count], token_count * F.top_k, "rows", 0, 0);
    for (int entry = 0; entry < routes.count; entry++) {
      const int first = routes.first_rows[entry], rows = routes.first_rows[entry + 1] - first;
      verdict.exact(rows > 0 && rows <= TILE_TOKENS, true, "rows of entry", entry, rows);
      // Experts ascend. Where one has several entries, all but the last are full.
      const int next = entry + 1 < routes.count ? routes.experts[entry + 1] : F.experts;
      verdict.exact(rows == TILE_TOKENS ? next >= routes.experts[entry]
                                        : next > routes.experts[entry],
                    true, "order of entry", entry, 0);
      uint64_t set = 0;
      for (int row = first; row < first + rows; row++) {
        const int token = routes.tokens[row];
        verdict.exact(set >> token, uint64_t{0}, "order of token of row", token, row);
        set |= uint64_t{1} << token;
        found[token].experts.push_back(routes.experts[entry]);
        found[token].weights.push_back(routes.weights[row]);
      }
    }
    return found;
  }

  // The routes, which must be the same in all CTAs.
  template <class R>
  std::vector<Choice> choices_of_all(const Memory& m, int token_count, Verdict& verdict) {
    Buffers here;
    work.repeats = 2;
    work.routes = here.take(sizeof(R) * GRID);
    roles_ms<Roles>(m, work);
    const std::vector<R> all = read<R>(work.routes, GRID);
    work.routes = 0;
    const std::vector<Choice> found = choices(all[0], token_count, verdict);
    for (int cta = 1; cta < GRID; cta++) {
      const std::vector<Choice> other = choices(all[cta], token_count, verdict);
      for (int token = 0; token < token_count; token++)
        verdict.exact(found[token].experts == other[token].experts, true, "routes of CTA, token",
                      cta, token);
    }
    return found;
  }

  std::vector<Choice> choices(const Memory& m, int token_count, Verdict& verdict) {
    return token_count <= TILE_TOKENS ? choices_of_all<Routes>(m, token_count, verdict)
                                      : choices_of_all<GatheredRoutes>(m, token_count, verdict);
  }

  void check_token(int token, const Choice& c, const float* scores, Verdict& verdict) {
    const Token t = expected(token);
    for (int e = 0; e < EXPERTS; e++)
      verdict.near(scores[e], t.scores[e], t.tolerances[e], "score of token, expert", token, e);
    verdict.near(scores[EXPERTS], t.inverse_rms, t.inverse_rms * SUM_ERROR, "1 / rms of token",
                 token, 0);
    const std::vector<int> wanted = chosen(scores);
    verdict.exact(c.experts == wanted, true, "experts of token", token, 0);
    if (c.experts != wanted) return;
    const auto share = [&](int e) {
      return R::SOFTMAX ? std::exp(double{merit(scores, e)}) : scores[e];
    };
    double total = 0;
    for (int e = 0; e < EXPERTS; e++)
      if (!F.normalise || std::find(wanted.begin(), wanted.end(), e) != wanted.end())
        total += share(e);
    if (!F.normalise && !R::SOFTMAX) total = 1;
    for (size_t i = 0; i < wanted.size(); i++) {
      const double weight = share(wanted[i]) / total * F.scale;
      verdict.near(c.weights[i], weight, weight * WEIGHT_ERROR, "weight of token, expert", token,
                   wanted[i]);
    }
  }

  // Checks `token_count` tokens, and returns their weights, `[tokens][top_k]`.
  std::vector<float> check(int token_count, Verdict& verdict) {
    const Memory m = memory(token_count);
    const std::vector<Choice> all = choices(m, token_count, verdict);
    const auto scores = read<float>(m.router_scores, size_t{TOKENS_MAX} * SCORES_EACH);
    std::vector<float> weights;
    for (int token = 0; token < token_count; token++) {
      const Choice& c = all[token];
      check_token(token, c, &scores[size_t{1} * token * SCORES_EACH], verdict);
      weights.insert(weights.end(), c.weights.begin(), c.weights.end());
    }
    return weights;
  }

  // A token that is NaN gets NaN weights, and does not affect other tokens.
  void check_nan(const std::vector<float>& weights, int token_count, Verdict& verdict) {
    const int spoilt = token_count - 1;
    std::vector<float> bad = residual;
    bad[size_t{1} * spoilt * HIDDEN + HIDDEN / 2] = NAN;
    Buffers::copy(work.residual, bad);
    const std::vector<Choice> all = choices(memory(token_count), token_count, verdict);
    Buffers::copy(work.residual, residual);
    for (int token = 0; token < token_count; token++) {
      const Choice& c = all[token];
      verdict.exact(c.weights.size(), F.top_k, "weights beside a NaN of token", token, 0);
      for (int i = 0; i < smaller(F.top_k, static_cast<int>(c.weights.size())); i++) {
        const float before = weights[token * F.top_k + i];
        const bool right = token == spoilt ? std::isnan(c.weights[i]) : c.weights[i] == before;
        verdict.exact(right, true, "weight beside a NaN of token", token, i);
      }
    }
  }
};

template <int KIND>
void time_kind(int token_count) {
  RouterCheck<KIND> c(static_cast<int>(BEYOND_CACHES / Router<KIND>::BYTES) + 1);
  const Memory m = c.memory(token_count);
  const double us = best_us(200, [&](int repeats) {
    c.work.repeats = repeats;
    return roles_ms<RouterRoles<KIND>>(m, c.work);
  });
  char name[64];
  std::snprintf(name, sizeof name, "  kind %d, %d tokens, with barriers", KIND, token_count);
  print_time(name, us, Router<KIND>::BYTES);
}

template <int KIND>
bool all_kinds(bool small) {
  if constexpr (KIND == FEED_FORWARD_KINDS) {
    return true;
  } else if constexpr (FEED_FORWARDS[KIND].experts == 0) {
    return all_kinds<KIND + 1>(small);
  } else {
    RouterCheck<KIND> c(2);
    char name[64];
    std::snprintf(name, sizeof name, "%d experts of kind %d", FEED_FORWARDS[KIND].experts, KIND);
    Verdict verdict = {name};
    const std::vector<float> all = c.check(TOKENS_MAX, verdict);
    const std::vector<float> few = c.check(TILE_TOKENS - 3, verdict);
    for (size_t i = 0; i < std::min(few.size(), all.size()); i++)
      verdict.exact(few[i], all[i], "weight without others", static_cast<int>(i), 0);
    c.check_nan(few, TILE_TOKENS - 3, verdict);
    c.check_nan(all, TOKENS_MAX, verdict);
    bool right = verdict.print();
    for (int tokens : {TILE_TOKENS, TOKENS_MAX})
      if (!small) time_kind<KIND>(tokens);
    return all_kinds<KIND + 1>(small) && right;
  }
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all_kinds<0>); }
