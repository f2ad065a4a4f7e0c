// Attention of many tokens, as the wide pass computes it. Compares every bit with the narrow pass,
// which goes through the same tokens 64 at a time, and times it beside the least time that the
// hardware allows (the floor). Needs a GPU:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/wide_attn.cu -o wide_attn
//   ./wide_attn          checks and times
//   ./wide_attn check    checks a few hundred tokens
// Returns 1 if a bit differs.
#include "attn_roles.cuh"
#include "kilotok/wide/attn_rows.cuh"
#include "weights.h"

namespace bench {

struct Waiting {
  uint64_t fault;
  uint32_t wait_max_ms;
};

__global__ void angles_kernel(const wide::AttnInMemory memory) {
  wide::rope_angles(memory, 0, ATTENTION_KINDS, wide::THREADS);
}

template <int KIND>
__global__ void __launch_bounds__(wide::THREADS, 1) split_kernel(const wide::AttnInMemory memory) {
  wide::split_heads<KIND>(memory);
}

template <int KIND>
__global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    attn_in_kernel(const wide::AttnInMemory memory, const Waiting waiting) {
  if (threadIdx.x == 0) wait_context = WaitContext::begin(waiting.fault, waiting.wait_max_ms, 0);
  wide::attn_in<QkvMatrix, QkvMatrix<KIND>, KIND, KIND + 1>(
      *reinterpret_cast<wide::GemmShared*>(asked_memory()), memory, KIND);
}

// The most tokens for which the GEMM of few tokens can do the same.
template <int KIND>
constexpr int FEW_MAX = wide::FewWork<QkvMatrix<KIND>>::TOKENS_MAX;
template <int KIND>
__global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    attn_in_few_kernel(const wide::AttnInMemory memory, const Waiting waiting) {
  if (threadIdx.x == 0) wait_context = WaitContext::begin(waiting.fault, waiting.wait_max_ms, 0);
  if constexpr (FEW_MAX<KIND> > 0)
    wide::attn_in<QkvMatrix, QkvMatrix<KIND>, KIND, KIND + 1>(
        *reinterpret_cast<wide::FewShared*>(asked_memory()), memory, KIND);
}

// The products of that GEMM, F32 `[tokens][PROJECTED_ROWS]`.
template <int KIND>
__global__ void __launch_bounds__(wide::GEMM_THREADS, 1)
    products_kernel(const wide::AttnInMemory memory, const Waiting waiting) {
  if (threadIdx.x == 0) wait_context = WaitContext::begin(waiting.fault, waiting.wait_max_ms, 0);
  wide::multiply_projections<QkvMatrix<KIND>>(
      *reinterpret_cast<wide::GemmShared*>(asked_memory()), memory,
      at<const char>(at<const LayerMemory>(memory.layer)->qkv),
      [&](int row_tile, int token, int end, int lane, wide::TilesProducts& products) {
        for (int i = 0; i < wide::TILES_AT_ONCE; i++, token += TILE_TOKENS) {
          if (token >= end) break;
          float* to = at<float>(memory.projected) + static_cast<size_t>(token) * PROJECTED_ROWS +
                      row_tile * 16 + lane % 4 * 2;
          for (int j = 0; j < 2; j++) {
            to[j] = products[i].low[j];
            to[8 + j] = products[i].high[j];
          }
        }
      });
}

// The narrow pass's epilogue on the products in `projected`: it stores queries, keys and values.
struct NarrowShared {
  HeldBatch batch;
  StreamMemory stream;
};
template <int KIND>
__global__ void __launch_bounds__(THREADS, 1)
    narrow_heads_kernel(const Memory memory, const uint64_t inverse_rms) {
  auto& shared = *reinterpret_cast<NarrowShared*>(asked_memory());
  shared.batch.fetch(memory);
  __syncthreads();
  const int count = shared.batch.token_count(), lane = threadIdx.x % 32;
  if (static_cast<int>(threadIdx.x) < count)
    shared.stream.inverse_rms[threadIdx.x] = at<const float>(inverse_rms)[threadIdx.x];
  __syncthreads();
  const StoreHeads<KIND> store = {memory,        *at<const LayerMemory>(memory.layers),
                                  shared.batch,  shared.stream,
                                  nullptr, ProjectionUse(KIND), false};
  constexpr int UNITS = QkvMatrix<KIND>::ROWS / 16;
  const int tiles = ceil_div(count, TILE_TOKENS);
  for (int i = ptx::cta_index() * (THREADS / 32) + threadIdx.x / 32; i < UNITS * tiles;
       i += GRID * (THREADS / 32)) {
    const int unit = i / tiles, token = i % tiles * TILE_TOKENS + lane % 4 * 2;
    const float* from = at<const float>(memory.projected) +
                        static_cast<size_t>(token) * PROJECTED_ROWS + unit * 16 + lane / 4;
    store(unit, 0, i % tiles, lane,
          make_float4(from[0], from[PROJECTED_ROWS], from[8], from[PROJECTED_ROWS + 8]));
  }
}

template <int KIND>
__global__ void __launch_bounds__(wide::THREADS, 1)
    attn_kernel(const wide::AttnMemory memory, const Waiting waiting) {
  if (threadIdx.x == 0) wait_context = WaitContext::begin(waiting.fault, waiting.wait_max_ms, 0);
  wide::attn<KIND>(*reinterpret_cast<wide::AttnShared<KIND>*>(asked_memory()), memory);
}

// The same for a window, as steps with many rows compute it.
template <int KIND>
__global__ void __launch_bounds__(wide::THREADS, 1)
    window_rows_kernel(const wide::AttnMemory memory, const Waiting waiting) {
  if (threadIdx.x == 0) wait_context = WaitContext::begin(waiting.fault, waiting.wait_max_ms, 0);
  if constexpr (ATTENTIONS[KIND].window > 0)
    wide::window_rows<KIND>(*reinterpret_cast<wide::RowsShared<KIND>*>(asked_memory()), memory);
}

// The tokens of a sequence in a step.
struct Row {
  uint32_t start, count;
};

// A kind's tokens, keys and values on the device; keys and values are there twice, for either pass.
template <int KIND>
class World {
 public:
  static constexpr Attention A = ATTENTIONS[KIND];

  // Whether the GEMM computes the projections (FewNormed: the GEMM of few tokens), or their
  // products are given.
  enum class From { Normed, FewNormed, Projected };

  explicit World(std::vector<Row> rows, From from = From::Projected)
      : rows_(std::move(rows)), from_(from) {
    for (const Row& row : rows_) tokens_ += row.count;
    capacity_ = align_up(tokens_, 128);
    take_pages();
    std::vector<float> sinks, norms, frequencies(ATTENTION_KINDS * ROPE_PAIRS_MAX);
    for (int i = 0; i < A.q_heads; i++) sinks.push_back(2 * uniform(1, i));
    for (int i = 0; i < A.qk_dim; i++) norms.push_back(1 + 0.3f * uniform(2, i));
    for (size_t i = 0; i < frequencies.size(); i++)
      frequencies[i] = std::pow(10000.0f, -static_cast<float>(i % ROPE_PAIRS_MAX) / ROPE_PAIRS_MAX);
    LayerMemory layer = {};
    layer.sinks = buffers_.put(sinks);
    layer.q_norm = layer.k_norm = buffers_.put(norms);
    const auto keys = context(A.qk_dim, 3), values = context(A.v_dim, 4);
    for (LayerMemory& l : layers_) {
      l = layer;
      l.keys = buffers_.put(keys);
      l.values = buffers_.put(values);
    }
    in_.layer = attn_.layer = buffers_.put(std::vector<LayerMemory>{layers_[1]});
    in_.capacity = attn_.capacity = capacity_;
    in_.frequencies = buffers_.put(frequencies);
    in_.angles = buffers_.take(size_t{8} * ATTENTION_KINDS * capacity_ * ROPE_PAIRS_MAX);
    in_.projected = buffers_.put(
        uniforms(static_cast<size_t>(tokens_) * PROJECTED_ROWS, 2, 0, 5));
    if (is_multiplied()) take_normed();
    in_.queries = attn_.queries = buffers_.take(size_t{2} * capacity_ * QUERY_VALUES);
    attn_.attended = buffers_.take(wide::operand_bytes(ATTENDED, capacity_));
    place_step();
    narrow_.layers = buffers_.put(std::vector<LayerMemory>{layers_[0]});
    take_narrow();
  }

  // Whether pages and results have the bits of the narrow pass.
  bool compare(const char* name) {
    run_angles();
    make_heads();
    attend();
    if (is_multiplied()) launch_gemm(products_kernel<KIND>);
    const std::vector<uint16_t> found = read_wide(), wanted = run_narrow();
    if (A.window > 0) {
      CHECK(cudaMemset(at<void>(attn_.attended), 0xff, wide::operand_bytes(ATTENDED, capacity_)));
      attend_rows();
    }
    size_t differ = 0, differ_by_rows = 0;
    const std::vector<uint16_t> by_rows = read_wide();
    for (size_t i = 0; i < found.size(); i++) differ_by_rows += by_rows[i] != wanted[i];
    for (size_t i = 0; i < found.size(); i++) {
      if ((found[i] != wanted[i] || std::isnan(bf16_value(found[i]))) && differ++ == 0)
        std::printf("  token %zu, column %zu is %g, not %g\n", i / COLUMNS, i % COLUMNS,
                    bf16_value(found[i]), bf16_value(wanted[i]));
    }
    const size_t pages = differ_in(layers_[0].keys, layers_[1].keys, A.qk_dim) +
                         differ_in(layers_[0].values, layers_[1].values, A.v_dim);
    const bool right = differ + differ_by_rows + pages == 0;
    std::printf("%-28s%-8s kind %d: %zu of %zu differ, %zu by rows, %zu in pages %s\n", name,
                from_ == From::Normed ? "attn_in" : is_multiplied() ? "few" : "", KIND, differ,
                found.size(), differ_by_rows, pages,
                right ? "" : "WRONG");
    return right;
  }

  // Microseconds of the fastest of some runs.
  double time() {
    run_angles();
    make_heads();
    return best_us(1, [&](int) { return attend(); });
  }
  double time_rows() {
    run_angles();
    make_heads();
    return best_us(1, [&](int) { return attend_rows(); });
  }
  double time_attn_in() {
    run_angles();
    return best_us(1, [&](int) { return make_heads(); });
  }

  // The operations of a launch over the keys that tokens see.
  double flop() const {
    double keys = 0;
    for (const Row& row : rows_)
      for (uint32_t p = row.start; p < row.start + row.count; p++)
        keys += A.window > 0 ? std::min<uint32_t>(p + 1, A.window) : p + 1;
    return keys * A.q_heads * (A.qk_dim + A.v_dim) * 2;
  }

 private:
  static constexpr int COLUMNS = A.q_heads * A.v_dim;
  static constexpr int ATTENDED = wide::operand_columns_before<OutputMatrix, ATTENTION_KINDS>();
  std::vector<Row> rows_;
  From from_;
  std::vector<uint32_t> table_, table_at_, first_page_;

  bool is_multiplied() const { return from_ != From::Projected; }
  int tokens_ = 0, capacity_ = 0;
  LayerMemory layers_[2];
  wide::AttnInMemory in_ = {};
  wide::AttnMemory attn_ = {};
  Memory narrow_ = {};
  Buffers buffers_;

  // Pages in a mixed order; those before the window do not exist.
  void take_pages() {
    uint32_t count = 0;
    for (const Row& row : rows_) {
      const uint32_t window = A.window;
      const uint32_t first = window > 0 && row.start >= window ? row.start - window + 1 : 0;
      first_page_.push_back(first / PAGE_TOKENS);
      table_at_.push_back(count);
      count += ceil_div(row.start + row.count, PAGE_TOKENS) - first / PAGE_TOKENS;
    }
    for (uint32_t i = 0; i < count; i++) table_.push_back(i);
    for (uint32_t i = count - 1; i > 0; i--) std::swap(table_[i], table_[mixed(6, i) % (i + 1)]);
    attn_.step.pages = in_.step.pages = narrow_.pages = buffers_.put(table_);
  }

  // Keys or values of positions before the step; those that are not written are NaN.
  std::vector<uint16_t> context(int dims, uint64_t seed) const {
    std::vector<uint16_t> all(table_.size() * A.kv_heads * PAGE_TOKENS * dims, 0xffff);
    for (size_t r = 0; r < rows_.size(); r++)
      for (uint32_t p = first_page_[r] * PAGE_TOKENS; p < rows_[r].start; p++) {
        const uint32_t page = table_[table_at_[r] + p / PAGE_TOKENS - first_page_[r]];
        for (int head = 0; head < A.kv_heads; head++) {
          const uint32_t place = (page * A.kv_heads + head) * PAGE_TOKENS + p % PAGE_TOKENS;
          uint16_t* group = all.data() + size_t{place / GROUP_KEYS} * GROUP_KEYS * dims;
          for (int d = 0; d < dims; d++)
            group[in_group_offset(place % GROUP_KEYS, d)] =
                bf16_bits(uniform(seed, static_cast<size_t>(place) * dims + d));
        }
      }
    return all;
  }

  BatchRow batch_row(int row, uint32_t skip, uint32_t first, uint32_t count) const {
    BatchRow b = {rows_[row].start + skip, first, count, 0, {}};
    for (uint32_t& pages_at : b.pages_at) pages_at = table_at_[row] - first_page_[row];
    return b;
  }

  void place_step() {
    std::vector<BatchToken> tokens;
    std::vector<BatchRow> rows;
    for (size_t r = 0; r < rows_.size(); r++) {
      rows.push_back(batch_row(r, 0, tokens.size(), rows_[r].count));
      for (uint32_t i = 0; i < rows_[r].count; i++)
        tokens.push_back({0, rows_[r].start + i, static_cast<uint32_t>(r), 0});
    }
    in_.step.tokens = buffers_.put(tokens);
    in_.step.rows = buffers_.put(rows);
    in_.step.count = tokens_;
    in_.step.row_count = static_cast<int>(rows.size());
    attn_.step = in_.step;
  }

  void take_narrow() {
    narrow_.batch = buffers_.take(sizeof(Batch));
    narrow_.tokens = buffers_.take(sizeof(BatchToken) * TOKENS_MAX);
    narrow_.rows = buffers_.take(sizeof(BatchRow) * TOKENS_MAX);
    narrow_.angles = buffers_.take(size_t{8} * ATTENTION_KINDS * TOKENS_MAX * ROPE_PAIRS_MAX);
    narrow_.projected = buffers_.take(size_t{4} * TOKENS_MAX * PROJECTED_ROWS);
    narrow_.queries = buffers_.take(size_t{2} * TOKENS_MAX * QUERY_VALUES);
    narrow_.attention_parts = buffers_.take(ATTENTION_PARTS_BYTES);
    narrow_.attended = buffers_.take(size_t{TOKENS_MAX} * ATTENDED_BYTES);
    narrow_.barrier = buffers_.take(COUNTERS * COUNTER_BYTES);
    narrow_.wait_max_ms = wait_max_ms();
    narrow_.fault = fault_address();
  }

  // The normed tokens as the GEMM's operand, their 1 / rms and weights.
  void take_normed() {
    using M = QkvMatrix<KIND>;
    std::mt19937 random(1);
    const Weights<M> weights(random, 0);
    layers_[1].qkv = buffers_.put(weights.packed);
    in_.layer = attn_.layer = buffers_.put(std::vector<LayerMemory>{layers_[1]});
    std::vector<uint16_t> operand(wide::operand_bytes(HIDDEN, capacity_) / 2);
    for (int token = 0; token < tokens_; token++)
      for (int column = 0; column < HIDDEN; column++)
        operand[wide::operand_place(token, column, capacity_) / 2] = bf16_bits(
            uniform(7, static_cast<size_t>(token) * HIDDEN + column) * operand_scale(A.format));
    in_.normed = buffers_.put(operand);
    in_.inverse_rms = buffers_.put(uniforms(capacity_, 0.02f, 0.1f, 8));
  }

  template <class M>
  float launch(void (*kernel)(M), M memory) {
    void* arguments[] = {&memory};
    return launch_ms(kernel, dim3(GRID), wide::THREADS, 0, arguments);
  }
  template <class M>
  float launch(void (*kernel)(M, Waiting), M memory, int threads, size_t shared_bytes) {
    Waiting waiting = {fault_address(), wait_max_ms()};
    void* arguments[] = {&memory, &waiting};
    return launch_ms(kernel, dim3(GRID), threads, shared_bytes, arguments);
  }
  // The GEMM of q, k and v with one of its epilogues.
  float launch_gemm(void (*kernel)(wide::AttnInMemory, Waiting)) {
    return launch(kernel, in_, wide::GEMM_THREADS, sizeof(wide::GemmShared));
  }
  void run_angles() { launch(angles_kernel, in_); }
  float make_heads() {
    if (from_ == From::Projected) return launch(split_kernel<KIND>, in_);
    return launch_gemm(from_ == From::Normed ? attn_in_kernel<KIND> : attn_in_few_kernel<KIND>);
  }
  float attend() {
    return launch(attn_kernel<KIND>, attn_, wide::THREADS, sizeof(wide::AttnShared<KIND>));
  }
  float attend_rows() {
    if constexpr (A.window > 0)
      return launch(window_rows_kernel<KIND>, attn_, wide::THREADS, sizeof(wide::RowsShared<KIND>));
    return 0;
  }

  std::vector<uint16_t> read_wide() const {
    const auto operand =
        read<uint16_t>(attn_.attended, wide::operand_bytes(ATTENDED, capacity_) / 2);
    const size_t place = wide::kind_operand<OutputMatrix, KIND>(capacity_);
    std::vector<uint16_t> all(static_cast<size_t>(tokens_) * COLUMNS);
    for (int token = 0; token < tokens_; token++)
      for (int column = 0; column < COLUMNS; column++)
        all[static_cast<size_t>(token) * COLUMNS + column] =
            operand[(place + wide::operand_place(token, column, capacity_)) / 2];
    return all;
  }

  static void move(uint64_t to, uint64_t from, size_t bytes) {
    Buffers::copy(to, read<uint8_t>(from, bytes));
  }

  // The narrow pass over tokens `first` to `end`, with their angles and projections.
  void narrow_step(int first, int end) {
    std::vector<BatchToken> tokens;
    std::vector<BatchRow> rows;
    int begin = 0;
    for (size_t r = 0; r < rows_.size(); begin += rows_[r++].count) {
      const int from = std::max(first, begin);
      const int to = std::min<int>(end, begin + rows_[r].count);
      if (from >= to) continue;
      rows.push_back(batch_row(r, from - begin, tokens.size(), to - from));
      for (int i = from; i < to; i++)
        tokens.push_back(
            {0, rows_[r].start + i - begin, static_cast<uint32_t>(rows.size() - 1), 0});
    }
    Buffers::copy(narrow_.tokens, tokens);
    Buffers::copy(narrow_.rows, rows);
    Buffers::copy(narrow_.batch, std::vector<Batch>{{static_cast<uint32_t>(tokens.size()),
                                                     static_cast<uint32_t>(rows.size()), 0, 0}});
    move(narrow_.angles + size_t{8} * KIND * TOKENS_MAX * ROPE_PAIRS_MAX,
         in_.angles + size_t{8} * (KIND * capacity_ + first) * ROPE_PAIRS_MAX,
         size_t{8} * tokens.size() * ROPE_PAIRS_MAX);
    move(narrow_.projected, in_.projected + size_t{4} * first * PROJECTED_ROWS,
         size_t{4} * tokens.size() * PROJECTED_ROWS);
    if (is_multiplied()) {
      uint64_t inverse_rms = in_.inverse_rms + size_t{4} * first;
      void* arguments[] = {&narrow_, &inverse_rms};
      launch_ms(narrow_heads_kernel<KIND>, dim3(GRID), THREADS, sizeof(NarrowShared), arguments);
    }
    roles_ms<AttentionRoles<KIND>>(narrow_, {is_multiplied() ? ATTN : ATTN_IN | ATTN, 1});
  }

  std::vector<uint16_t> run_narrow() {
    std::vector<uint16_t> all;
    for (int first = 0; first < tokens_; first += TOKENS_MAX) {
      const int end = std::min(first + TOKENS_MAX, tokens_);
      narrow_step(first, end);
      const auto operand =
          read<uint16_t>(narrow_.attended, size_t{TOKENS_MAX} * ATTENDED_BYTES / 2);
      for (int token = 0; token < end - first; token++)
        for (int column = 0; column < COLUMNS; column++)
          all.push_back(operand[(Attended<KIND>::row(token) + operand_offset(column)) / 2]);
    }
    return all;
  }

  size_t differ_in(uint64_t a, uint64_t b, int dims) const {
    const size_t count = table_.size() * A.kv_heads * PAGE_TOKENS * dims;
    const auto one = read<uint16_t>(a, count), other = read<uint16_t>(b, count);
    size_t differ = 0;
    for (size_t i = 0; i < count; i++) differ += one[i] != other[i];
    return differ;
  }
};

// BF16 operations of an H100's tensor cores in a second.
constexpr double FLOPS = 989e12;

template <int KIND>
void time_rows(const char* name, std::vector<Row> rows) {
  World<KIND> world(std::move(rows));
  const double us = world.time();
  std::printf("%-36s kind %d: %.1f us, %.0f TFLOP/s, floor %.1f us\n", name, KIND, us,
              world.flop() / us / 1e6, world.flop() / FLOPS * 1e6);
  if (ATTENTIONS[KIND].window > 0) std::printf("  as of many rows: %.1f us\n", world.time_rows());
}

template <int KIND>
void time_attn_in(int tokens, typename World<KIND>::From from) {
  using W = World<KIND>;
  using M = QkvMatrix<KIND>;
  const double us = W({{0, static_cast<uint32_t>(tokens)}}, from).time_attn_in();
  const double flop = 2.0 * M::ROWS * M::COLUMNS * tokens;
  std::printf("attn_in%s, %d tokens, kind %d: %.1f us, %.0f TFLOP/s, floor %.1f us\n",
              from == W::From::Normed ? "" : " of few", tokens, KIND, us, flop / us / 1e6,
              flop / FLOPS * 1e6);
}

template <int KIND>
bool check(const char* name, std::vector<Row> rows) {
  return World<KIND>(std::move(rows)).compare(name);
}

// With the GEMM and its epilogue.
template <int KIND>
bool check_attn_in(const char* name, const std::vector<Row>& rows) {
  using W = World<KIND>;
  if (!ATTENTIONS[KIND].paired) return true;
  int tokens = 0;
  for (const Row& row : rows) tokens += row.count;
  const bool right = W(rows, W::From::Normed).compare(name);
  return (tokens > FEW_MAX<KIND> || W(rows, W::From::FewNormed).compare(name)) && right;
}

template <int KIND>
bool check_kind(bool small) {
  constexpr uint32_t LONG = CHUNK_KEYS * CHUNKS_MAX;
  const std::vector<Row> several = {{0, 21}, {37, 9}, {130, 70}, {255, 1}, {1000, 3}};
  bool right = check<KIND>("one token", {{0, 1}});
  right = check<KIND>("several rows", several) && right;
  right = check_attn_in<KIND>("several rows", several) && right;
  right = check_attn_in<KIND>("few tokens", {{3, 33}, {70, 32}}) && right;
  // More tiles than CTAs.
  std::vector<Row> many;
  for (uint32_t i = 0; i < 150; i++) many.push_back({3 + i % 40 * 9, 1 + i % 2});
  right = check<KIND>("many rows", many) && right;
  if (ATTENTIONS[KIND].window == 0)
    right = check<KIND>("chunks grow", {{LONG - 5, 12}}) && right;
  if (small) return right;
  right = check<KIND>("a prompt", {{0, 3001}}) && right;
  right = check_attn_in<KIND>("a prompt", {{0, 1025}}) && right;
  for (uint32_t tokens : {128u, 161u, 192u, 250u, 256u})
    right = check_attn_in<KIND>("a short prompt", {{5, tokens}}) && right;
  std::vector<Row> users;
  for (uint32_t i = 0; i < 200; i++) users.push_back({100 + i * 31, 1});
  right = check_attn_in<KIND>("users", users) && right;
  right = check<KIND>("a prompt goes on", {{4093, 2050}, {17, 1}, {12345, 8}}) && right;
  std::vector<Row> rows;
  for (uint32_t i = 0; i < 100; i++) rows.push_back({i * 37, 1 + i % 7});
  return check<KIND>("a hundred rows", rows) && right;
}

template <int KIND>
void time_kind() {
  std::vector<Row> users;
  for (uint32_t i = 0; i < 256; i++) users.push_back({1000, 1});
  time_rows<KIND>("a token each of 256 users", users);
  users.back() = {0, 745};
  time_rows<KIND>("of 255, and a prompt of 745", users);
  time_rows<KIND>("a token each of 16 users", {users.begin(), users.begin() + 16});
  time_rows<KIND>("four tokens each of 16 users", std::vector<Row>(16, {1000, 4}));
  time_rows<KIND>("eight tokens each of 16 users", std::vector<Row>(16, {1000, 8}));
  for (uint32_t start : {0u, 16384u, 131072u})
    for (uint32_t count : {1000u, 4000u, 8192u}) {
      char name[64];
      std::snprintf(name, sizeof name, "%u tokens at %u", count, start);
      time_rows<KIND>(name, {{start, count}});
    }
  if (!ATTENTIONS[KIND].paired) return;
  using From = typename World<KIND>::From;
  for (int tokens : {65, 128, 256, 1000, 4000, 8192}) {
    time_attn_in<KIND>(tokens, From::Normed);
    if (tokens <= FEW_MAX<KIND>) time_attn_in<KIND>(tokens, From::FewNormed);
  }
}

template <int KIND>
bool all_kinds(bool small) {
  bool right = true;
  if constexpr (KIND < DRAFT_ATTENTION) {
    right = check_kind<KIND>(small);
    if (!small) time_kind<KIND>();
    right = all_kinds<KIND + 1>(small) && right;
  }
  return right;
}

bool all(bool small) { return all_kinds<0>(small); }

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all); }
