// Times a step of the wide pass over random weights, as a whole and by kernel. Weights repeat every
// few layers, far enough apart that no cache keeps them. The stream must be finite, and have the
// same bits when the step is repeated. Needs a GPU:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/wide_step.cu -o wide_step
//   ./wide_step          prompts of 65 to 8,192 tokens, from position 0 on, and a token each of 65
//                        to 256 users
//   ./wide_step check    a short one, not timed
// Returns 1 if anything is wrong.
#include "step/step.cu"
#include "step/wide.cu"

#include <bit>

#include "random_model.cuh"

namespace bench {

// The engine's launches are in crates/cuda/src/wide.rs.
struct WideKernel {
  const char* name;
  void (*kernel)(WideMemory);
  int threads;
};
constexpr WideKernel EMBED = {"embed", wide_embed, wide::SORTERS};
constexpr WideKernel INPUT_NORM = {"input norm", wide_input_norm, wide::NORM_THREADS};
constexpr WideKernel QKV = {"q, k, v", wide_qkv, wide::GEMM_THREADS};
constexpr WideKernel QKV_FEW = {"q, k, v of few", wide_qkv_few, wide::GEMM_THREADS};
constexpr WideKernel HEADS = {"heads", wide_heads, wide::THREADS};
constexpr WideKernel ATTENTION[] = {{"full attention", wide_attention, wide::THREADS},
                                    {"window attention", wide_attention, wide::THREADS}};
constexpr WideKernel ATTENTION_ROWS[] = {
    {"full attention, rows", wide_attention_rows, wide::THREADS},
    {"window attention, rows", wide_attention_rows, wide::THREADS}};
constexpr WideKernel OUTPUT = {"output", wide_output, wide::GEMM_THREADS};
constexpr WideKernel POST_NORM = {"post norm", wide_post_norm, wide::NORM_THREADS};
constexpr WideKernel DENSE[] = {{"dense gate, up", wide_dense_gate_up, wide::GEMM_THREADS},
                                {"dense down", wide_dense_down, wide::GEMM_THREADS}};
constexpr WideKernel ROUTER[] = {{"router scores", wide_router_scores, wide::ROUTER_THREADS},
                                 {"top-k experts", wide_top_k_experts, wide::CHOOSING_THREADS}};
constexpr WideKernel SORT = {"sort choices", wide_sort_choices, wide::SORTERS};
constexpr WideKernel GATE_UP[] = {{"gate, up", wide_gate_up, wide::ExpertsCta::THREADS},
                                  {"gate, up", wide_gate_up_few, wide::ExpertsCta::THREADS}};
constexpr WideKernel DOWN[] = {{"down", wide_down, wide::ExpertsCta::THREADS},
                               {"down", wide_down_few, wide::ExpertsCta::THREADS}};
constexpr WideKernel COMBINE = {"combine", wide_combine, wide::SORTERS};

// The most tokens for which a kind of attention has QKV_FEW.
template <int KIND = 0>
uint32_t few_tokens(uint32_t kind) {
  if constexpr (KIND < DRAFT_ATTENTION)
    return kind == KIND ? wide::FewWork<QkvMatrix<KIND>>::TOKENS_MAX : few_tokens<KIND + 1>(kind);
  return 0;
}

struct WideLaunch {
  const WideKernel* kernel;
  uint32_t layer, first, count;
};

// The norm adds the products of the launch before it.
void add_input_norm(std::vector<WideLaunch>& launches, uint32_t layer) {
  const WideLaunch last = launches.back();
  const bool products = last.kernel == &DOWN[0] || last.kernel == &DOWN[1];
  launches.push_back({&INPUT_NORM, layer, 0, products ? uint32_t{HIDDEN} : 0});
}

// The step's launches up to the last layer's experts, and the norm after them.
std::vector<WideLaunch> launches_of(const std::vector<LayerMemory>& layers, uint32_t tokens,
                                    bool many_rows) {
  std::vector<WideLaunch> launches = {{&EMBED, 0, 0, 0}};
  for (uint32_t i = 0; i < layers.size(); i++) {
    const auto add = [&](const WideKernel& kernel) { launches.push_back({&kernel, i, 0, 0}); };
    const Attention& attention = ATTENTIONS[layers[i].attention];
    add_input_norm(launches, i);
    add(tokens <= few_tokens(layers[i].attention) ? QKV_FEW : QKV);
    if (!attention.paired) add(HEADS);
    const bool window = attention.window > 0;
    const bool has_rows = window || planned::DECODE[layers[i].attention];
    add(has_rows && many_rows ? ATTENTION_ROWS[window] : ATTENTION[window]);
    add(OUTPUT);
    const bool dense = FEED_FORWARDS[layers[i].feed_forward].experts == 0;
    if (dense) add(POST_NORM);
    for (const WideKernel& kernel : dense ? DENSE : ROUTER) add(kernel);
    if (dense) continue;
    const bool few = static_cast<size_t>(tokens) <= planned::WIDE_FEW_ROWS[layers[i].feed_forward];
    add(SORT);
    add(GATE_UP[few]);
    add(DOWN[few]);
    if (FEED_FORWARDS[layers[i].feed_forward].bias) add(COMBINE);
  }
  add_input_norm(launches, static_cast<uint32_t>(layers.size()));
  return launches;
}

template <class Of>
constexpr size_t networks(Of of) {
  return over_kinds<0, DRAFT_FEED_FORWARD>(
      [&](auto kind) { return of(FEED_FORWARDS[decltype(kind)::value]); });
}

// The tokens of a step: a prompt from position 0 on, or one token of each of as many users, whose
// earlier keys are random.
struct StepShape {
  int tokens;
  bool users;

  const char* name() const { return users ? "users" : "tokens"; }
};
constexpr int USERS_MAX = 256;

struct WideModel {
  int capacity;
  // The position of a user's token.
  uint32_t position;
  int page_count;
  Memory narrow = {};
  WideMemory memory = {};
  std::vector<LayerMemory> layers;

  // The memory of a step, as `memory` in crates/cuda/src/wide.rs plans it.
  explicit WideModel(int tokens, uint32_t users_position)
      : capacity(align_up(tokens, wide::TOKENS)), position(users_position) {
    const size_t room = capacity;
    const size_t experts = networks([](auto f) { return f.experts; });
    const size_t choices = room * networks([](auto f) { return f.top_k; });
    const size_t rows = align_up(static_cast<int>(choices), TILE_TOKENS) + experts * TILE_TOKENS;
    const size_t width = networks([](auto f) { return f.experts > 0 ? f.width : 0; });
    page_count =
        std::max<int>(ceil_div(capacity, PAGE_TOKENS) + 1, USERS_MAX * pages_each());
    narrow.wait_max_ms = wait_max_ms();
    narrow.fault = fault_address();
    narrow.tokens = take(sizeof(BatchToken) * room);
    narrow.rows = take(sizeof(BatchRow) * USERS_MAX);
    narrow.pages = take(page_count * 4);
    narrow.embedding = take(static_cast<size_t>(VOCAB) * HIDDEN * 2);
    fill(fill_chunks, at<uint32_t>(narrow.embedding), static_cast<size_t>(VOCAB) * HIDDEN / 1024,
         0, uint64_t{99});
    narrow.final_norm = floats(HIDDEN, 0.1f, 1.0f, 98);
    narrow.frequencies = floats(ATTENTION_KINDS * ROPE_PAIRS_MAX, 0.5f, 0.5f, 96);
    make_layers(narrow, page_count);
    layers = read<LayerMemory>(narrow.layers, LAYERS);
    for (const LayerMemory& layer : layers) fill_pages(layer, page_count);
    memory.stream = take(room * HIDDEN * 4);
    memory.part = take(room * HIDDEN * 4);
    memory.normed = take(wide::operand_bytes(HIDDEN, capacity));
    memory.normed_rows = take(room * HIDDEN * 2);
    memory.inverse_rms = take(room * 4);
    memory.angles = take(room * ATTENTION_KINDS * ROPE_PAIRS_MAX * 8);
    memory.queries = take(room * QUERY_VALUES * 2);
    memory.projected = take(room * PROJECTED_ROWS * 4);
    memory.attended = take(wide::operand_bytes(
        wide::operand_columns_before<OutputMatrix, DRAFT_ATTENTION>(), capacity));
    memory.dense_inner = take(wide::operand_bytes(
        wide::operand_columns_before<DenseDown, DRAFT_FEED_FORWARD>(), capacity));
    memory.scores = take(room * SCORES_EACH * 4);
    memory.experts = take(room * TOP_K_MAX * 4);
    memory.weights = take(room * TOP_K_MAX * 4);
    memory.first_rows = take((experts + 1) * 4);
    memory.counts = take(experts * 4);
    memory.rows = take(choices * 4);
    memory.choices = take(rows * 4);
    memory.factors = take(rows * 8);
    memory.expert_inner = take(wide::operand_bytes(width, rows));
    memory.products = take(wide::product_bytes(HIDDEN, rows));
    memory.capacity = capacity;
    memory.expert_capacity = rows;
  }

  uint32_t pages_each() const { return position / PAGE_TOKENS + 1; }

  static void fill_pages(const LayerMemory& layer, size_t page_count) {
    const Attention& a = ATTENTIONS[layer.attention];
    const size_t page = 2 * PAGE_TOKENS * a.kv_heads, chunk = chunk_bytes(Format::Bf16);
    const auto fill_page = [&](uint64_t address, int dims, uint64_t seed) {
      fill(fill_chunks, at<uint32_t>(address), page_count * page * dims / chunk, 0, seed);
    };
    fill_page(layer.keys, a.qk_dim, 101);
    fill_page(layer.values, a.v_dim, 102);
  }

  void upload(const StepShape& step) {
    const uint32_t row_count = step.users ? step.tokens : 1;
    std::vector<BatchToken> list;
    std::vector<BatchRow> rows(row_count);
    std::vector<uint32_t> pages;
    for (uint32_t i = 0; i < static_cast<uint32_t>(step.tokens); i++)
      list.push_back({(i * 7919u + 13) % VOCAB, step.users ? position : i, step.users ? i : 0, 0});
    for (uint32_t i = 0; i < row_count; i++) {
      rows[i].start = step.users ? position : 0;
      rows[i].first = i;
      rows[i].count = step.users ? 1 : step.tokens;
      for (uint32_t& pages_at : rows[i].pages_at) pages_at = i * pages_each();
    }
    for (int i = 0; i < page_count; i++) pages.push_back(i);
    Buffers::copy(narrow.tokens, list);
    Buffers::copy(narrow.pages, pages);
    Buffers::copy(narrow.rows, rows);
    memory.memory = narrow;
    memory.token_count = step.tokens;
    memory.row_count = row_count;
  }

  // With `early`, as in the engine, CTAs begin where those of the launch before have ended.
  void launch(const WideLaunch& launch, bool early = true) const {
    WideMemory own = memory;
    own.layer = launch.layer;
    own.slice_first = launch.first;
    own.slice_count = launch.count;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = early;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(GRID);
    config.blockDim = dim3(launch.kernel->threads);
    config.dynamicSmemBytes = WIDE_SHARED_MAX;
    config.attrs = &attribute;
    config.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&config, launch.kernel->kernel, own));
  }

  // Milliseconds of a step.
  float run(const std::vector<WideLaunch>& launches, bool early = true) const {
    cudaEvent_t start, end;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    CHECK(cudaEventRecord(start));
    for (const WideLaunch& each : launches) launch(each, early);
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, start, end));
    return ms;
  }

  bool check(const std::vector<WideLaunch>& launches, const StepShape& step) const {
    const size_t count = static_cast<size_t>(step.tokens) * HIDDEN;
    run(launches);
    const auto first = read<float>(memory.stream, count);
    run(launches);
    const auto second = read<float>(memory.stream, count);
    Verdict verdict = {"stream"};
    for (size_t i = 0; i < count; i += 7) {
      const int token = static_cast<int>(i / HIDDEN), column = static_cast<int>(i % HIDDEN);
      verdict.exact(std::isfinite(first[i]), true, "finite value of token, column", token, column);
      verdict.exact(second[i], first[i], "the first run's value of token, column", token, column);
    }
    // To compare with other versions of the kernels.
    uint64_t hash = 0;
    for (float value : first) hash = hash * 31 + std::bit_cast<uint32_t>(value);
    std::printf("%d %s: the stream's hash is %016llx\n", step.tokens, step.name(),
                static_cast<unsigned long long>(hash));
    return verdict.print();
  }

  // Prints the time of the whole step, and of each kernel from event to event.
  void time(const std::vector<WideLaunch>& launches, const StepShape& step) const {
    float whole = run(launches), serial = run(launches, false);
    for (int i = 0; i < 2; i++) {
      whole = std::min(whole, run(launches));
      serial = std::min(serial, run(launches, false));
    }
    std::vector<cudaEvent_t> events(launches.size() + 1);
    for (cudaEvent_t& event : events) CHECK(cudaEventCreate(&event));
    CHECK(cudaEventRecord(events[0]));
    for (size_t i = 0; i < launches.size(); i++) {
      launch(launches[i]);
      CHECK(cudaEventRecord(events[i + 1]));
    }
    CHECK(cudaEventSynchronize(events.back()));
    struct Row {
      const char* name;
      int count;
      double ms;
    };
    std::vector<Row> rows;
    for (size_t i = 0; i < launches.size(); i++) {
      float ms = 0;
      CHECK(cudaEventElapsedTime(&ms, events[i], events[i + 1]));
      const char* name = launches[i].kernel->name;
      auto found = std::find_if(rows.begin(), rows.end(),
                                [&](const Row& row) { return row.name == name; });
      if (found == rows.end()) found = rows.insert(rows.end(), {name, 0, 0});
      found->count++;
      found->ms += ms;
    }
    double sum = 0;
    std::printf("%d %s: %.1f ms, %zu launches; %.1f ms if none begins early\n", step.tokens,
                step.name(), whole, launches.size(), serial);
    for (const Row& row : rows) {
      std::printf("  %-22s %4d times %8.1f us, %7.2f ms\n", row.name, row.count,
                  row.ms * 1e3 / row.count, row.ms);
      sum += row.ms;
    }
    std::printf("  sum with events        %29.2f ms\n", sum);
    for (cudaEvent_t& event : events) CHECK(cudaEventDestroy(event));
  }
};

bool all(bool small) {
  const auto prepare = [](const WideKernel& kernel) {
    CHECK(cudaFuncSetAttribute(kernel.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(WIDE_SHARED_MAX)));
  };
  for (const WideKernel* kernel :
       {&EMBED, &INPUT_NORM, &QKV, &QKV_FEW, &HEADS, &OUTPUT, &POST_NORM})
    prepare(*kernel);
  for (const WideKernel& kernel : ATTENTION) prepare(kernel);
  for (const WideKernel& kernel : ATTENTION_ROWS) prepare(kernel);
  for (const WideKernel& kernel : DENSE) prepare(kernel);
  for (const WideKernel& kernel : ROUTER) prepare(kernel);
  for (const WideKernel* kernel : {&SORT, &COMBINE}) prepare(*kernel);
  for (const WideKernel& kernel : GATE_UP) prepare(kernel);
  for (const WideKernel& kernel : DOWN) prepare(kernel);
  std::vector<StepShape> steps = {{70, false}, {70, true}};
  if (!small)
    steps = {{65, false},   {128, false},  {256, false}, {512, false}, {1000, false},
             {4000, false}, {8192, false}, {65, true},   {128, true},  {USERS_MAX, true}};
  WideModel model(small ? 70 : 8192, small ? 100 : 1000);
  bool right = true;
  for (const StepShape& step : steps) {
    model.upload(step);
    const std::vector<WideLaunch> launches = launches_of(model.layers, step.tokens, step.users);
    right = model.check(launches, step) && right;
    if (!small) model.time(launches, step);
  }
  return right;
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all); }
