// Feed-forward networks, of experts and dense ones, with all warp roles as in a step: checks inner
// values and sums against double precision, and times them. Needs a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/experts.cu -o experts
//   ./experts            checks and times
//   ./experts check      checks alone, for compute-sanitizer
//
// Experts are chosen from given scores; gate, up and down are those of each kind of the model. The
// GPU's result of gate and up is compared with double precision, and then used as the operand of
// the reference of down, so that both are held to the error of their own sums. A launch computes
// several networks, with other experts each; a token's bits must not depend on anything else in the
// batch. Times include everything: choice of experts, gate and up, a barrier, down, a barrier.
// Returns 1 if anything is wrong.
#include "experts_roles.cuh"
#include "weights.h"

namespace bench {

// The number of different experts: more would take the host long to make. Expert e equals e -
// DIFFERENT.
constexpr int DIFFERENT_MAX = 13;

// The weights of a kind, the tokens' operand and their scores.
template <int KIND>
struct ExpertsCheck {
  using Roles = ExpertsRoles<KIND>;
  using GateUp = GateUpMatrix<KIND>;
  using Down = DownMatrix<KIND>;
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr bool DENSE = IS_DENSE<KIND>;
  static constexpr int EXPERTS = larger(F.experts, 1);
  static constexpr int CHOICES = larger(F.top_k, 1);
  static constexpr int INNER_BYTES = DENSE ? DenseInner<KIND>::ROW_BYTES : EXPERT_INNER_BYTES;
  static constexpr int DIFFERENT = smaller(EXPERTS, DIFFERENT_MAX);
  // Each repeat has its own scores.
  static constexpr int TABLES = 20;
  static constexpr float SCALE = operand_scale(F.format);
  Buffers buffers;
  std::mt19937 random{7};
  std::vector<Weights<GateUp>> gate_up;
  std::vector<Weights<Down>> down;
  Activations x{random, TOKENS_MAX, HIDDEN, NORMED_BYTES, SCALE};
  std::vector<float> scores, squares, bias = uniforms(EXPERTS, 0.3f, 0, 11);
  ExpertsWork work = {};
  uint64_t inner, scores_at, squares_at;

  ExpertsCheck() {
    for (int e = 0; e < DIFFERENT; e++) {
      gate_up.emplace_back(random);
      down.emplace_back(random);
    }
    const float rms = sum_size();
    for (int i = 0; i < TABLES * TOKENS_MAX * SCORES_EACH; i++)
      scores.push_back((i % SCORES_EACH == EXPERTS_MAX ? 1 / rms : 0.5f) *
                       (1.01f + uniform(12, i)));
    const float square = OWNER_ROWS * rms * rms;
    squares = uniforms(size_t{READERS} * TOKENS_MAX * SQUARES_EACH, 0.5f * square, square, 13);
    work.gate_up = buffers.take(EXPERTS * GateUp::BYTES);
    work.down = buffers.take(EXPERTS * Down::BYTES);
    for (int e = 0; e < EXPERTS; e++) {
      Buffers::copy(work.gate_up + e * GateUp::BYTES, gate_up[e % DIFFERENT].packed);
      Buffers::copy(work.down + e * Down::BYTES, down[e % DIFFERENT].packed);
    }
    work.bias = buffers.put(bias);
    work.operand = buffers.put(x.operand);
    // Columns beyond the last are zeros.
    inner = buffers.put(std::vector<uint16_t>(inner_values()));
    scores_at = buffers.put(scores);
    squares_at = buffers.put(squares);
  }

  // The size of the sums of gate and up, chosen so that silu gets values around 1.
  float sum_size() const {
    double squares_of_some = 0;
    constexpr int SOME = 16;
    for (int row = 0; row < SOME; row++) {
      Product p;
      p.add(gate_up[0].row(row), x.row(row), HIDDEN);
      squares_of_some += p.sum * p.sum;
    }
    return static_cast<float>(std::sqrt(squares_of_some / SOME));
  }

  static constexpr size_t inner_values() {
    return (DENSE ? TOKENS_MAX * INNER_BYTES : TILE_INNER_BYTES + GATHERED_INNER_BYTES) / 2;
  }

  Memory memory(int token_count, int table) {
    Memory m = memory_of_batch(buffers, token_count);
    m.normed = work.operand;
    m.squares = squares_at;
    m.router_scores = scores_at + table * SCORES_BYTES;
    m.expert_inner = inner;
    m.dense_inner = inner - DenseInner<KIND>::PLACE;
    return m;
  }

  // One expert of a token and its weight.
  struct Choice {
    int expert;
    double weight;
  };

  // In ascending order of experts: the index of a choice determines where its inner values are.
  std::vector<Choice> choices(int table, int token) const {
    if (DENSE) return {{0, 1}};
    const float* s = &scores[(static_cast<size_t>(table) * TOKENS_MAX + token) * SCORES_EACH];
    std::vector<int> order(EXPERTS);
    for (int e = 0; e < EXPERTS; e++) order[e] = e;
    const auto merit = [&](int e) { return s[e] + (F.router_bias ? bias[e] : 0); };
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return merit(a) > merit(b); });
    const double largest = merit(order[0]);
    const auto share = [&](int e) -> double {
      return Router<KIND>::SOFTMAX ? std::exp(merit(e) - largest) : s[e];
    };
    double all = 0, total = 0;
    for (int e : order) all += share(e);
    order.resize(F.top_k);
    std::sort(order.begin(), order.end());
    for (int e : order) total += share(e);
    const double divisor = F.normalise ? total : Router<KIND>::SOFTMAX ? all : 1;
    std::vector<Choice> chosen;
    for (int e : order) chosen.push_back({e, share(e) / divisor * F.scale});
    return chosen;
  }

  double inverse_rms(int table, int token) const {
    if (!DENSE)
      return scores[(static_cast<size_t>(table) * TOKENS_MAX + token) * SCORES_EACH + EXPERTS_MAX];
    double sum = 0;
    for (int unit = 0; unit < OWNER_UNITS; unit++)
      sum += squares[(static_cast<int>(Reader::FeedForward) * size_t{TOKENS_MAX} + token) *
                         SQUARES_EACH + unit];
    return 1 / std::sqrt(sum / HIDDEN + Part<Roles::DRAFT>::EPS);
  }

  // The relative error of rounding to BF16, and of the activation and the factors in F32.
  static constexpr double ROUNDING = 1.0 / (1 << 8) + 1.0 / (1 << 19);

  // Rows of the inner operand by token and choice; for several tiles of tokens, and where one tile
  // has not all of them in shared memory, they are sorted by expert.
  std::vector<int> rows(int table, int token_count) const {
    std::vector<std::pair<int, int>> sorted;
    for (int token = 0; token < token_count; token++)
      for (const Choice& c : choices(table, token))
        sorted.push_back({c.expert, static_cast<int>(sorted.size())});
    if (!DENSE && (are_gathered(token_count) || !Moe<KIND>::HAS_ALL_ROWS))
      std::sort(sorted.begin(), sorted.end());
    std::vector<int> rows(sorted.size());
    for (size_t row = 0; row < rows.size(); row++) rows[sorted[row].second] = static_cast<int>(row);
    return rows;
  }

  static bool are_gathered(int token_count) { return !DENSE && token_count > TILE_TOKENS; }

  // Byte offset of a value of a sorted row of one tile.
  static size_t sorted_place(int row, int i) {
    using R = SortedRows<KIND>;
    return size_t{1} * (i / R::STEP_COLUMNS) * R::STEP_BYTES + row * R::RUN_BYTES +
           i % R::STEP_COLUMNS / 32 * 64 + half_offset(i);
  }

  // The values of a row of the inner operand, times SCALE.
  static std::vector<float> inner_row(const std::vector<uint16_t>& left, int row, bool gathered) {
    std::vector<float> values(F.width);
    constexpr int STEP = GATHERED_STEP_BYTES / 2;
    for (int i = 0; i < F.width; i++) {
      const size_t place = TILE_INNER_BYTES +
                           (size_t{1} * (i / STEP) * GATHERED_ROWS + row) * GATHERED_ROW_BYTES +
                           i % STEP / 32 * 64 + half_offset(i);
      if (gathered)
        values[i] = bench::bf16_value(left[place / 2]);
      else if constexpr (DENSE || Moe<KIND>::HAS_ALL_ROWS)
        values[i] = operand_value(left, row, INNER_BYTES, i);
      else
        values[i] = bench::bf16_value(left[sorted_place(row, i) / 2]);
      values[i] /= SCALE;
    }
    return values;
  }

  void check_inner(int token, const Choice& choice, double rms, const std::vector<float>& found,
                   Verdict& verdict) const {
    const Weights<GateUp>& weights = gate_up[choice.expert % DIFFERENT];
    for (int i = 0; i < F.width; i++) {
      const int gate_row = i / 8 * 16 + i % 8;
      Product gate, up;
      gate.add(weights.row(gate_row), x.row(token), HIDDEN);
      up.add(weights.row(gate_row + 8), x.row(token), HIDDEN);
      const double g = gate.sum * rms, u = up.sum * rms, silu = g / (1 + std::exp(-g));
      const double value = silu * u * choice.weight;
      // The slope of silu is at most 1.1.
      const double off = (1.1 * gate.magnitude * std::fabs(u) + std::fabs(silu) * up.magnitude) *
                         rms * choice.weight * TOLERANCE;
      verdict.near(found[i], value, std::fabs(value) * ROUNDING + off, "inner value of token, row",
                   token, i);
    }
  }

  // Checks a network: the inner operand that it left, and its sums, `[tokens][HIDDEN]`.
  void check_network(int table, int token_count, const std::vector<uint16_t>& left,
                     const float* sums, Verdict& verdict) const {
    const std::vector<int> rows_of = rows(table, token_count);
    for (int token = 0; token < token_count; token++) {
      const std::vector<Choice> chosen = choices(table, token);
      const double rms = inverse_rms(table, token);
      std::vector<Product> wanted(HIDDEN);
      std::vector<double> rounding(HIDDEN);
      for (size_t place = 0; place < chosen.size(); place++) {
        const std::vector<float> values =
            inner_row(left, rows_of[token * CHOICES + place], are_gathered(token_count));
        check_inner(token, chosen[place], rms, values, verdict);
        for (int column = 0; column < HIDDEN; column++) {
          Product product;
          product.add(down[chosen[place].expert % DIFFERENT].row(column), values, F.width);
          wanted[column].sum += product.sum;
          wanted[column].magnitude += product.magnitude;
          // The product of one of several experts is rounded.
          if (!DENSE) rounding[column] += std::fabs(product.sum) * ROUNDING;
        }
      }
      for (int column = 0; column < HIDDEN; column++)
        verdict.near(sums[static_cast<size_t>(token) * HIDDEN + column], wanted[column].sum,
                     wanted[column].magnitude * TOLERANCE + rounding[column],
                     "sum of token, column", token, column);
    }
  }

  // Runs the networks of tables from `first` on, one after the other. The last one is checked, the
  // sums of all are returned.
  std::vector<float> check(int first, int repeats, int token_count, Verdict& verdict) {
    Buffers here;
    work.repeats = repeats;
    work.sums = here.take(size_t{4} * repeats * TOKENS_MAX * HIDDEN);
    Memory m = memory(token_count, first);
    m.normed = here.take(x.operand.size() * 2);
    roles_ms<Roles>(m, work);
    const auto sums = read<float>(work.sums, size_t{1} * repeats * TOKENS_MAX * HIDDEN);
    work.sums = 0;
    const int last = repeats - 1;
    check_network(first + last, token_count, read<uint16_t>(inner, inner_values()),
                  &sums[size_t{1} * last * TOKENS_MAX * HIDDEN], verdict);
    return sums;
  }

  bool check_all() {
    char name[64];
    std::snprintf(name, sizeof name, "%d networks of kind %d", EXPERTS, KIND);
    Verdict verdict = {name};
    constexpr int REPEATS = 3;
    const std::vector<float> all = check(0, REPEATS, TOKENS_MAX, verdict);
    // Fewer tokens, in one tile and in several that are not full, have the same bits.
    for (int tokens : {1, TILE_TOKENS - 3, TILE_TOKENS + 1, 2 * TILE_TOKENS + 5}) {
      const std::vector<float> few = check(0, 1, tokens, verdict);
      for (size_t i = 0; i < size_t{1} * tokens * HIDDEN; i++)
        verdict.exact(few[i], all[i], "sum without others", static_cast<int>(i / HIDDEN),
                      static_cast<int>(i % HIDDEN));
    }
    return verdict.print();
  }

  // The bytes of weights that a repeat reads, on average over all tables.
  double bytes(int token_count) const {
    size_t networks = 0;
    for (int table = 0; table < TABLES; table++) {
      std::vector<int> tokens_of(EXPERTS);
      for (int token = 0; token < token_count; token++)
        for (const Choice& c : choices(table, token)) tokens_of[c.expert]++;
      // The tokens of a dense network share their weights.
      for (int count : tokens_of)
        networks += DENSE ? 1 : static_cast<size_t>(ceil_div(count, TILE_TOKENS));
    }
    return static_cast<double>(networks) / TABLES * (GateUp::BYTES + Down::BYTES);
  }

  void time(int token_count) {
    constexpr int RUNS = 9;
    work.repeats = TABLES;
    std::vector<float> times;
    for (int run = 0; run < RUNS; run++)
      times.push_back(roles_ms<Roles>(memory(token_count, 0), work));
    std::sort(times.begin(), times.end());
    char name[64];
    std::snprintf(name, sizeof name, "  kind %d, %d tokens, median", KIND, token_count);
    print_time(name, times[RUNS / 2] * 1e3 / TABLES, bytes(token_count));
  }
};

template <int KIND>
bool all_kinds(bool small) {
  if constexpr (KIND == FEED_FORWARD_KINDS) {
    return true;
  } else {
    bool right;
    {
      ExpertsCheck<KIND> c;
      right = c.check_all();
      for (int tokens = TILE_TOKENS; tokens <= TOKENS_MAX; tokens *= 2)
        if (!small) c.time(tokens);
    }
    return all_kinds<KIND + 1>(small) && right;
  }
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all_kinds<0>); }
