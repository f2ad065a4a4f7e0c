// Networks of experts over many tokens, as the wide pass computes them: sorted choices, gate and
// up, down, sums. Compares with the narrow pass over the same tokens, 64 at a time, and times each
// kernel beside the least time that the hardware allows (its floor). Needs a GPU:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/wide_experts.cu -o wide_experts
//   ./wide_experts          checks and times
//   ./wide_experts check    checks a few hundred tokens
//
// Inner values and sums must have the bits of the narrow pass. Returns 1 if anything is wrong.
#include "experts_roles.cuh"
#include "kilotok/wide/experts.cuh"
#include "weights.h"

namespace bench {

using wide::ExpertsMemory;

template <int KIND>
__global__ void __launch_bounds__(wide::SORTERS) sort_kernel(const ExpertsMemory memory) {
  __shared__ wide::SortMemory<FEED_FORWARDS[KIND].experts> shared;
  wide::sort_choices<KIND>(shared, memory.routes);
  wide::clear_inner_end<KIND>(memory);
}

// The shared memory of the kernels for few rows, and of the others.
template <int KIND, bool FEW>
using Shared = std::conditional_t<FEW, wide::RunsShared<KIND, wide::FEW_ROWS>,
                                  wide::ExpertsShared<KIND>>;

template <int KIND, bool GATE_UP, bool FEW>
__global__ void __launch_bounds__(wide::ExpertsCta::THREADS, 1)
    multiply_kernel(const ExpertsMemory memory, const uint64_t fault, const uint32_t wait_ms) {
  auto& shared = *reinterpret_cast<Shared<KIND, FEW>*>(asked_memory());
  if (threadIdx.x == 0) wait_context = WaitContext::begin(fault, wait_ms, 0);
  const auto multiply = [&](auto& runs) {
    if constexpr (GATE_UP)
      wide::gate_up(runs, memory);
    else
      wide::down(runs, memory);
  };
  if constexpr (FEW)
    multiply(shared);
  else
    wide::with_runs<KIND>(shared, memory.routes, multiply);
}

template <int KIND>
__global__ void __launch_bounds__(wide::SORTERS) combine_kernel(const ExpertsMemory memory) {
  wide::combine<KIND>(memory);
}

// Which experts tokens choose.
enum class Choosing { Evenly, OneForAll, AllTheSame };

// Different experts: more would take the host long to make. Expert e is like e - DIFFERENT.
constexpr int DIFFERENT_EXPERTS = 5;

template <int KIND>
struct WideExperts {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  using GateUp = GateUpMatrix<KIND>;
  using Down = DownMatrix<KIND>;
  Buffers buffers;
  int most, capacity;
  std::vector<uint16_t> normed;
  std::vector<float> scores;
  ExpertsMemory memory = {};
  ExpertsWork narrow = {};
  Memory narrow_memory;

  explicit WideExperts(int tokens)
      : most(tokens), capacity(wide::rows_max(tokens, F.experts, F.top_k)) {
    std::mt19937 random(5);
    memory.gate_up = narrow.gate_up = buffers.take(F.experts * GateUp::BYTES);
    memory.down = narrow.down = buffers.take(F.experts * Down::BYTES);
    for (int i = 0; i < smaller(F.experts, DIFFERENT_EXPERTS); i++) {
      const Weights<GateUp> gate_up(random, 0);
      const Weights<Down> down(random, 0);
      for (int e = i; e < F.experts; e += DIFFERENT_EXPERTS) {
        Buffers::copy(memory.gate_up + e * GateUp::BYTES, gate_up.packed);
        Buffers::copy(memory.down + e * Down::BYTES, down.packed);
      }
    }
    for (size_t i = 0; i < static_cast<size_t>(most) * HIDDEN; i++)
      normed.push_back(bf16_bits(uniform(41, i) * operand_scale(F.format)));
    memory.normed = buffers.put(normed);
    take_memory();
  }

  void take_memory() {
    const size_t choices = static_cast<size_t>(most) * F.top_k, rows = capacity;
    wide::Routes& routes = memory.routes;
    routes.experts = buffers.take(choices * 4);
    routes.weights = buffers.take(choices * 4);
    routes.inverse_rms = buffers.take(size_t{4} * most);
    routes.first_rows = buffers.take((F.experts + 1) * 4);
    routes.counts = buffers.take(F.experts * 4);
    routes.rows = buffers.take(choices * 4);
    routes.choices = buffers.take(rows * 4);
    routes.factors = buffers.take(rows * 8);
    memory.inner = buffers.take(wide::operand_bytes(F.width, capacity));
    memory.products = buffers.take(wide::product_bytes(HIDDEN, capacity));
    memory.sums = buffers.take(size_t{4} * most * HIDDEN);
    memory.capacity = capacity;
    narrow.bias = buffers.put(std::vector<float>(F.experts));
    narrow.repeats = 1;
    narrow.operand = buffers.take(size_t{TOKENS_MAX} * NORMED_BYTES);
    narrow.sums = buffers.take(size_t{TOKENS_MAX} * HIDDEN * 4);
    narrow_memory = memory_of_batch(buffers, TOKENS_MAX);
    narrow_memory.normed = buffers.take(size_t{TOKENS_MAX} * NORMED_BYTES);
    narrow_memory.squares = buffers.take(size_t{READERS} * TOKENS_MAX * SQUARES_EACH * 4, 0);
    narrow_memory.router_scores = buffers.take(SCORES_BYTES);
    narrow_memory.expert_inner = buffers.take(TILE_INNER_BYTES + GATHERED_INNER_BYTES, 0);
  }

  // The score of an expert for a token. `how` can raise the scores of one expert, or of the first
  // few, above all others.
  float score(Choosing how, int token, int expert) const {
    const int above = how == Choosing::AllTheSame ? F.top_k : how == Choosing::OneForAll ? 1 : 0;
    const int from = F.experts / 2 + expert % F.experts;
    const float some = 0.5f * (1.01f + uniform(43, size_t{1} * token * F.experts + expert));
    return (from + F.experts / 2) % F.experts < above ? 1 + some : some;
  }

  // Sums of gate and up are some tens of times an activation.
  static float inverse_rms(int token) { return 0.02f * (1.5f + uniform(45, token)); }

  // The narrow pass over 64 tokens. After the last token come the first ones again.
  void run_narrow(Choosing how, int first, int tokens) {
    std::vector<uint16_t> operand(size_t{TOKENS_MAX} * NORMED_BYTES / 2);
    std::vector<float> table(size_t{TOKENS_MAX} * SCORES_EACH);
    for (int i = 0; i < TOKENS_MAX; i++) {
      const int token = (first + i) % tokens;
      for (int column = 0; column < HIDDEN; column++)
        operand[(operand_row(i, NORMED_BYTES) + operand_offset(column)) / 2] =
            normed[static_cast<size_t>(token) * HIDDEN + column];
      for (int e = 0; e < F.experts; e++) table[i * SCORES_EACH + e] = score(how, token, e);
      table[i * SCORES_EACH + EXPERTS_MAX] = inverse_rms(token);
    }
    Buffers::copy(narrow.operand, operand);
    Buffers::copy(narrow_memory.router_scores, table);
    roles_ms<ExpertsRoles<KIND>>(narrow_memory, narrow);
  }

  // The narrow pass's results for a batch.
  struct Narrow {
    std::vector<float> scores, sums;
    std::vector<uint16_t> inner;

    uint32_t expert(int token, int place) const {
      uint32_t expert;
      std::memcpy(&expert, &scores[token * SCORES_EACH + CHOSEN + place], 4);
      return expert;
    }
    float weight(int token, int place) const {
      return scores[token * SCORES_EACH + CHOSEN + TOP_K_MAX + place];
    }
    // The rows of choices: by expert, then token.
    std::vector<int> rows() const {
      std::vector<std::pair<uint32_t, int>> sorted;
      for (int i = 0; i < TOKENS_MAX * F.top_k; i++)
        sorted.push_back({expert(i / F.top_k, i % F.top_k), i});
      std::sort(sorted.begin(), sorted.end());
      std::vector<int> rows(sorted.size());
      for (size_t row = 0; row < rows.size(); row++)
        rows[sorted[row].second] = static_cast<int>(row);
      return rows;
    }
    uint16_t inner_value(int row, int value) const {
      constexpr int STEP = GATHERED_STEP_BYTES / 2;
      return inner[(TILE_INNER_BYTES +
                    (size_t{1} * (value / STEP) * GATHERED_ROWS + row) * GATHERED_ROW_BYTES +
                    value % STEP / 32 * 64 + half_offset(value)) / 2];
    }
  };

  std::vector<Narrow> run_narrow(Choosing how, int tokens) {
    std::vector<Narrow> batches;
    for (int first = 0; first < tokens; first += TOKENS_MAX) {
      run_narrow(how, first, tokens);
      batches.push_back(
          {read<float>(narrow_memory.router_scores, size_t{TOKENS_MAX} * SCORES_EACH),
           read<float>(narrow.sums, size_t{TOKENS_MAX} * HIDDEN),
           read<uint16_t>(narrow_memory.expert_inner,
                          (TILE_INNER_BYTES + GATHERED_INNER_BYTES) / 2)});
    }
    return batches;
  }

  // Milliseconds of each kernel.
  struct Times {
    float sort, gate_up, down, combine;
  };

  template <bool FEW>
  Times run_wide() {
    uint64_t fault = fault_address();
    uint32_t wait_ms = wait_max_ms();
    void* arguments[] = {&memory, &fault, &wait_ms};
    const dim3 grid(GRID);
    constexpr int THREADS = wide::ExpertsCta::THREADS;
    constexpr size_t SHARED = sizeof(Shared<KIND, FEW>);
    return {launch_ms(sort_kernel<KIND>, grid, wide::SORTERS, 0, arguments),
            launch_ms(multiply_kernel<KIND, true, FEW>, grid, THREADS, SHARED, arguments),
            launch_ms(multiply_kernel<KIND, false, FEW>, grid, THREADS, SHARED, arguments),
            launch_ms(combine_kernel<KIND>, grid, wide::SORTERS, 0, arguments)};
  }

  void set_routes(int tokens, const std::vector<uint32_t>& experts,
                  const std::vector<float>& weights) {
    std::vector<float> inverse(tokens);
    for (int token = 0; token < tokens; token++) inverse[token] = inverse_rms(token);
    memory.routes.tokens = tokens;
    Buffers::copy(memory.routes.experts, experts);
    Buffers::copy(memory.routes.weights, weights);
    Buffers::copy(memory.routes.inverse_rms, inverse);
  }

  bool check(Choosing how, const char* name, int tokens) {
    const std::vector<Narrow> batches = run_narrow(how, tokens);
    std::vector<uint32_t> experts;
    std::vector<float> weights;
    for (int i = 0; i < tokens * F.top_k; i++) {
      const Narrow& batch = batches[i / F.top_k / TOKENS_MAX];
      experts.push_back(batch.expert(i / F.top_k % TOKENS_MAX, i % F.top_k));
      weights.push_back(batch.weight(i / F.top_k % TOKENS_MAX, i % F.top_k));
    }
    set_routes(tokens, experts, weights);
    const auto check_runs = [&](const char* runs) {
      char title[80];
      std::snprintf(title, sizeof title, "kind %d, %s, %d tokens%s", KIND, name, tokens, runs);
      Verdict verdict = {title};
      check_inner(batches, tokens, verdict);
      check_sums(batches, tokens, verdict);
      return verdict.print();
    };
    run_wide<false>();
    const bool right = check_runs("");
    run_wide<true>();
    return check_runs(", kernels for few rows") && right;
  }

  void check_inner(const std::vector<Narrow>& batches, int tokens, Verdict& verdict) const {
    const auto rows = read<uint32_t>(memory.routes.rows, size_t{1} * tokens * F.top_k);
    const auto inner =
        read<uint16_t>(memory.inner, wide::operand_bytes(F.width, capacity) / 2);
    for (size_t batch = 0; batch < batches.size(); batch++) {
      const std::vector<int> narrow_rows = batches[batch].rows();
      for (int i = 0; i < TOKENS_MAX * F.top_k; i++) {
        const size_t choice = batch * TOKENS_MAX * F.top_k + i;
        if (choice >= rows.size()) break;
        for (int value = 0; value < F.width; value++)
          verdict.exact(
              inner[wide::operand_place(static_cast<int>(rows[choice]), value, capacity) / 2],
              batches[batch].inner_value(narrow_rows[i], value), "inner value of choice",
              static_cast<int>(choice), value);
      }
    }
  }

  void check_sums(const std::vector<Narrow>& batches, int tokens, Verdict& verdict) const {
    const auto sums = read<float>(memory.sums, size_t{1} * tokens * HIDDEN);
    for (size_t i = 0; i < sums.size(); i++) {
      const size_t token = i / HIDDEN;
      const float narrow =
          batches[token / TOKENS_MAX].sums[token % TOKENS_MAX * HIDDEN + i % HIDDEN];
      verdict.exact(bits(sums[i]), bits(narrow), "sum of token, column", static_cast<int>(token),
                    static_cast<int>(i % HIDDEN));
    }
  }

  static uint32_t bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
  }

  // Operations of an H100's tensor cores in a second, and bytes that its memory reads.
  static constexpr double FLOPS = 989e12, BYTES = 3.05e12;

  // Times tokens whose experts are drawn evenly.
  void time(int tokens) {
    std::vector<uint32_t> experts;
    for (int token = 0; token < tokens; token++) {
      std::vector<uint32_t> own;
      for (uint32_t i = 0; static_cast<int>(own.size()) < F.top_k; i++) {
        const uint32_t expert = mixed(47, token * 1000 + i) % F.experts;
        if (std::find(own.begin(), own.end(), expert) == own.end()) own.push_back(expert);
      }
      std::sort(own.begin(), own.end());
      experts.insert(experts.end(), own.begin(), own.end());
    }
    set_routes(tokens, experts, std::vector<float>(experts.size(), 0.125f));
    std::vector<uint32_t> sorted = experts;
    std::sort(sorted.begin(), sorted.end());
    const double used =
        static_cast<double>(std::unique(sorted.begin(), sorted.end()) - sorted.begin());
    const bool few = tokens <= static_cast<int>(planned::WIDE_FEW_ROWS[KIND]);
    const auto run = [&] { return few ? run_wide<true>() : run_wide<false>(); };
    Times best = run();
    constexpr int RUNS = 5;
    for (int i = 0; i < RUNS; i++) {
      const Times t = run();
      best = {std::min(best.sort, t.sort), std::min(best.gate_up, t.gate_up),
              std::min(best.down, t.down), std::min(best.combine, t.combine)};
    }
    const double flop = 2.0 * tokens * F.top_k * F.width * HIDDEN;
    std::printf("  %5d tokens: sort %.0f us, gate and up %.0f (%.0f TFLOP/s, %.0f "
                "GB/s, floor %.0f), down %.0f (%.0f TFLOP/s, %.0f GB/s, floor %.0f), sum %.0f\n",
                tokens, best.sort * 1e3, best.gate_up * 1e3,
                2 * flop / best.gate_up / 1e9, used * GateUp::BYTES / best.gate_up / 1e6,
                1e6 * std::max(2 * flop / FLOPS, used * GateUp::BYTES / BYTES), best.down * 1e3,
                flop / best.down / 1e9, used * Down::BYTES / best.down / 1e6,
                1e6 * std::max(flop / FLOPS, used * Down::BYTES / BYTES), best.combine * 1e3);
  }
};

template <int KIND>
bool all_kinds(bool small) {
  if constexpr (KIND == FEED_FORWARD_KINDS) {
    return true;
  } else if constexpr (IS_DENSE<KIND>) {
    return all_kinds<KIND + 1>(small);
  } else {
    WideExperts<KIND> c(small ? 208 : 8192);
    bool right = true;
    for (int tokens : {1, 77, small ? 203 : 1000}) {
      right = c.check(Choosing::Evenly, "evenly", tokens) && right;
      right = c.check(Choosing::OneForAll, "one expert for all", tokens) && right;
      right = c.check(Choosing::AllTheSame, "all the same", tokens) && right;
    }
    // Enough tokens for runs of 96 rows.
    if (!small) right = c.check(Choosing::Evenly, "evenly", 2500) && right;
    for (int tokens : {64, 256, 1024, 2048, 4096, 8192})
      if (!small) c.time(tokens);
    return all_kinds<KIND + 1>(small) && right;
  }
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all_kinds<0>); }
