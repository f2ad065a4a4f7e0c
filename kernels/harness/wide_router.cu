// Chooses the experts of many tokens, as the wide pass does, compares with the narrow pass over the
// same tokens, 64 at a time, bit for bit, and times it beside the least time that the hardware
// allows (the floor). Needs a GPU:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/wide_router.cu -o wide_router
//   ./wide_router          checks and times
//   ./wide_router check    checks alone
//
// Scores, experts and weights must be the same, also those of a token that is NaN. Returns 1 if
// anything is wrong.
#include "kilotok/wide/router.cuh"
#include "router_roles.cuh"

namespace bench {

using wide::RouterMemory;

template <int KIND>
__global__ void __launch_bounds__(wide::ROUTER_THREADS, 1)
    scores_kernel(const RouterMemory memory, const uint64_t fault, const uint32_t wait_ms) {
  if (threadIdx.x == 0) wait_context = WaitContext::begin(fault, wait_ms, 0);
  wide::router_scores<KIND>(*reinterpret_cast<wide::RouterShared<KIND>*>(asked_memory()), memory);
}

template <int KIND>
__global__ void __launch_bounds__(wide::CHOOSING_THREADS)
    choose_kernel(const RouterMemory memory) {
  __shared__ wide::ChosenExperts shared;
  wide::top_k_experts<KIND>(shared, memory);
}

template <int KIND>
struct WideRouter {
  using R = Router<KIND>;
  static constexpr FeedForward F = R::F;
  static constexpr int EXPERTS = R::EXPERTS, ROW = ROUTER_ROW<KIND>;
  Buffers buffers;
  int most;
  std::vector<float> stream;
  RouterMemory memory = {};
  RouterWork narrow = {};
  Memory narrow_memory;

  explicit WideRouter(int tokens)
      : most(tokens),
        stream(uniforms(size_t{1} * tokens * HIDDEN, 2, 0, 1)),
        narrow_memory(memory_of_router(buffers, TOKENS_MAX)) {
    std::vector<float> router =
        uniforms(size_t{OWNER_UNITS} * OWNER_ROWS * ROW, 2 / std::sqrt(1.0f * HIDDEN), 0, 5);
    std::vector<float> bias = uniforms(EXPERTS, 0.2f, 0, 4);
    // Pairs of experts have the same scores: of equals the lower is taken.
    for (size_t i = 0; i < router.size(); i++) {
      if (i % 4 == 1) router[i] = router[i - 1];
      if (i / ROW >= HIDDEN || i % ROW >= EXPERTS) router[i] = 0;
    }
    for (int e = 1; e < EXPERTS; e += 4) bias[e] = bias[e - 1];
    // A token that is NaN.
    stream[size_t{HIDDEN} * (most / 2) + HIDDEN / 3] = NAN;
    memory.stream = buffers.put(stream);
    memory.norm = narrow.norm = buffers.put(uniforms(HIDDEN, 0.3f, 1, 3));
    memory.router = narrow.router = buffers.put(packed_router<KIND>(router));
    memory.bias = narrow.bias = buffers.put(bias);
    memory.inverse_rms = buffers.take(size_t{4} * most);
    memory.scores = buffers.take(size_t{4} * most * SCORES_EACH);
    memory.parts = buffers.take(size_t{4} * most * HIDDEN);
    memory.experts = buffers.take(size_t{4} * most * F.top_k);
    memory.weights = buffers.take(size_t{4} * most * F.top_k);
    narrow.copies = narrow.repeats = 1;
    narrow.residual = buffers.take(size_t{4} * TOKENS_MAX * HIDDEN);
    narrow.part = buffers.take(size_t{4} * TOKENS_MAX * HIDDEN, 0);
  }

  // The narrow pass's results for 64 tokens: scores, 1 / rms, experts and weights. After the last
  // token come the first ones again.
  std::vector<float> run_narrow(int first, int tokens) {
    std::vector<float> residual;
    for (int i = 0; i < TOKENS_MAX; i++) {
      const float* from = &stream[size_t{1} * ((first + i) % tokens) * HIDDEN];
      residual.insert(residual.end(), from, from + HIDDEN);
    }
    Buffers::copy(narrow.residual, residual);
    roles_ms<RouterRoles<KIND>>(narrow_memory, narrow);
    return read<float>(narrow_memory.router_scores, size_t{TOKENS_MAX} * SCORES_EACH);
  }

  // Milliseconds of each of both kernels.
  std::pair<float, float> run_wide(int tokens) {
    memory.tokens = tokens;
    uint64_t fault = fault_address();
    uint32_t wait_ms = wait_max_ms();
    void* arguments[] = {&memory, &fault, &wait_ms};
    const float scores = launch_ms(scores_kernel<KIND>, dim3(GRID), wide::ROUTER_THREADS,
                                   sizeof(wide::RouterShared<KIND>), arguments);
    return {scores,
            launch_ms(choose_kernel<KIND>, dim3(GRID), wide::CHOOSING_THREADS, 0, arguments)};
  }

  // All NaN count as equal.
  static uint32_t bits(float value) {
    if (std::isnan(value)) return SOME_NAN;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
  }

  bool check(int tokens) {
    std::vector<float> wanted, inverse;
    for (int first = 0; first < tokens; first += TOKENS_MAX) {
      const std::vector<float> batch = run_narrow(first, tokens);
      wanted.insert(wanted.end(), batch.begin(), batch.end());
    }
    for (int token = 0; token < tokens; token++)
      inverse.push_back(wanted[size_t{1} * token * SCORES_EACH + EXPERTS]);
    Buffers::copy(memory.inverse_rms, inverse);
    run_wide(tokens);
    const auto scores = read<float>(memory.scores, size_t{1} * tokens * SCORES_EACH);
    const auto experts = read<uint32_t>(memory.experts, size_t{1} * tokens * F.top_k);
    const auto weights = read<float>(memory.weights, size_t{1} * tokens * F.top_k);
    char title[64];
    std::snprintf(title, sizeof title, "kind %d, %d tokens", KIND, tokens);
    Verdict verdict = {title};
    for (int token = 0; token < tokens; token++) {
      const float* narrow = &wanted[size_t{1} * token * SCORES_EACH];
      for (int e = 0; e < EXPERTS; e++)
        verdict.exact(bits(scores[size_t{1} * token * SCORES_EACH + e]), bits(narrow[e]),
                      "score of token, expert", token, e);
      for (int i = 0; i < F.top_k; i++) {
        const int choice = token * F.top_k + i;
        verdict.exact(experts[choice], bits(narrow[CHOSEN + i]), "expert of token, place", token,
                      i);
        verdict.exact(bits(weights[choice]), bits(narrow[CHOSEN + TOP_K_MAX + i]),
                      "weight of token, place", token, i);
      }
    }
    return verdict.print();
  }

  // BF16 operations of an H100's tensor cores in a second; TF32 has half of that. Each product
  // takes three.
  static constexpr double FLOPS = 989e12;

  void time(int tokens) {
    std::pair<float, float> best = run_wide(tokens);
    constexpr int RUNS = 5;
    for (int i = 0; i < RUNS; i++) {
      const std::pair<float, float> t = run_wide(tokens);
      best = {std::min(best.first, t.first), std::min(best.second, t.second)};
    }
    const double flop = 3.0 * 2 * tokens * HIDDEN * EXPERTS * (F.router_bf16 ? 1 : 2);
    std::printf("  %5d tokens: scores %.0f us (floor %.0f), choice %.0f us\n", tokens,
                best.first * 1e3, flop / FLOPS * 1e6, best.second * 1e3);
  }
};

template <int KIND>
bool all_kinds(bool small) {
  if constexpr (KIND == FEED_FORWARD_KINDS) {
    return true;
  } else if constexpr (FEED_FORWARDS[KIND].experts == 0) {
    return all_kinds<KIND + 1>(small);
  } else {
    WideRouter<KIND> c(small ? 80 : 8192);
    bool right = true;
    for (int tokens : {1, 77, 203, 4400})
      if (tokens <= c.most) right = c.check(tokens) && right;
    for (int tokens : {64, 256, 1024, 4096, 8192})
      if (!small) c.time(tokens);
    return all_kinds<KIND + 1>(small) && right;
  }
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all_kinds<0>); }
