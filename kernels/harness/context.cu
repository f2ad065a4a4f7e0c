// The drafter's context: runs the engine's kernels that compute keys and values from taps, checks
// the result of each of their phases against double precision, and times them. Needs a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/context.cu -o context
//   ./context            checks and times
//   ./context check      checks alone, for compute-sanitizer
//
// The fused context is compared with products of the taps; the normed operand, bit for bit, with
// the RMSNorm of the fused context in F32; keys and values, normed and rotated, with products of
// that operand. So each phase is held to the error of its own sums. Only the entries of the batch's
// positions may be written, and a token's bits must not depend on the others. Returns 1 if anything
// is wrong.
#include "step/step.cu"

#include "weights.h"

namespace bench {

static_assert(RANKS == 1 && DRAFT_LAYERS > 0, "one rank's drafter");

// Tokens of one sequence, and the first of their rows of taps.
struct Row {
  uint32_t start, count, tap;
};

// The number of rows of taps; the others are NaN.
constexpr int TAP_ROWS = 16, TAP_STEP = TOKENS_MAX / TAP_ROWS;
constexpr float EPS = DRAFT_NORM_EPS;
constexpr uint16_t UNWRITTEN = 0xffff;

struct Layer {
  LayerMemory memory = {};
  std::vector<float> values, k_norm;
  size_t key_values, value_values;
};

constexpr int kind_of(int layer) {
  return DRAFT_ATTENTION + layer % (ATTENTION_KINDS - DRAFT_ATTENTION);
}

// The drafter, and tokens' taps.
struct ContextCheck {
  Buffers buffers;
  std::mt19937 random{17};
  Weights<FuseMatrix> fuse{random};
  Activations taps{random, TOKENS_MAX, TAPS * HIDDEN, TAPS_BYTES, 1.0f};
  std::vector<float> norm = uniforms(HIDDEN, 0.3f, 1, 21), frequencies;
  std::vector<Layer> layers;
  // The expected fused context for each row of taps, computed at first use.
  std::vector<std::vector<Product>> fused = std::vector<std::vector<Product>>(TOKENS_MAX);
  Memory memory = {};
  // The batch's tokens.
  std::vector<BatchToken> tokens;
  std::vector<BatchRow> rows;
  std::vector<uint32_t> pages;

  // The most pages of a batch in each group.
  static constexpr int PAGES = TOKENS_MAX / PAGE_TOKENS + 2 * TOKENS_MAX;

  ContextCheck() {
    for (int i = 0; i < ATTENTION_KINDS * ROPE_PAIRS_MAX; i++)
      frequencies.push_back(
          static_cast<float>(std::pow(10000.0, -(i % ROPE_PAIRS_MAX) / (1.0 * ROPE_PAIRS_MAX))));
    for (int row = 0; row < TOKENS_MAX; row++)
      for (int column = 0; row % TAP_STEP != 0 && column < TAPS * HIDDEN; column++)
        taps.operand[(operand_row(row, TAPS_BYTES) + operand_offset(column)) / 2] = UNWRITTEN;
    std::vector<LayerMemory> list;
    for (int i = 0; i < DRAFT_LAYERS; i++) {
      make_layer<DRAFT_ATTENTION>(i);
      list.push_back(layers[i].memory);
    }
    memory = {};
    memory.draft_layers = buffers.put(list);
    memory.draft_fc = buffers.put(fuse.packed);
    memory.draft_context_norm = buffers.put(norm);
    memory.frequencies = buffers.put(frequencies);
    memory.taps = buffers.put(taps.operand);
    memory.batch = buffers.take(sizeof(Batch));
    memory.tokens = buffers.take(TOKENS_MAX * sizeof(BatchToken));
    memory.rows = buffers.take(TOKENS_MAX * sizeof(BatchRow));
    memory.pages = buffers.take(size_t{4} * GROUPS_MAX * PAGES);
    memory.angles = buffers.take(size_t{8} * ATTENTION_KINDS * TOKENS_MAX * ROPE_PAIRS_MAX);
    // Columns beyond the last are zeros.
    memory.normed = buffers.put(std::vector<uint16_t>(size_t{TOKENS_MAX} * NORMED_BYTES / 2));
    memory.squares = buffers.take(size_t{READERS} * TOKENS_MAX * SQUARES_EACH * 4);
    memory.projected = buffers.take(size_t{TOKENS_MAX} * PROJECTED_ROWS * 4);
    memory.fused = buffers.take(size_t{TOKENS_MAX} * FuseMatrix::ROWS * 4);
    memory.barrier = buffers.take(COUNTERS * COUNTER_BYTES);
    memory.trace = buffers.take(STAMPS_MAX * sizeof(Stamped));
    memory.fault = fault_address();
    memory.timestamps = buffers.take(sizeof(Timestamps));
    memory.wait_max_ms = wait_max_ms();
  }

  template <int KIND>
  void make_layer(int index) {
    if constexpr (KIND + 1 < ATTENTION_KINDS)
      if (kind_of(index) > KIND) return make_layer<KIND + 1>(index);
    constexpr Attention A = ATTENTIONS[KIND];
    Weights<QkvMatrix<KIND>> qkv(random);
    Layer l;
    l.k_norm = uniforms(A.qk_dim, 0.3f, 1, 30 + index);
    l.key_values = size_t{PAGES} * A.kv_heads * PAGE_TOKENS * A.qk_dim;
    l.value_values = size_t{PAGES} * A.kv_heads * PAGE_TOKENS * A.v_dim;
    l.memory.attention = KIND;
    l.memory.qkv = buffers.put(qkv.packed);
    l.memory.k_norm = buffers.put(l.k_norm);
    l.memory.keys = buffers.take(l.key_values * 2);
    l.memory.values = buffers.take(l.value_values * 2);
    l.values = std::move(qkv.values);
    layers.push_back(std::move(l));
  }

  // Sets a batch. Every group has pages of its own, in a mixed order.
  void place(const std::vector<Row>& given) {
    tokens.clear();
    rows.clear();
    pages.assign(size_t{GROUPS_MAX} * PAGES, ~0u);
    uint32_t taken = 0;
    for (const Row& row : given) {
      BatchRow b = {};
      b.start = row.start;
      b.first = static_cast<uint32_t>(tokens.size());
      b.count = row.count;
      const uint32_t first = row.start / PAGE_TOKENS;
      const uint32_t end = (row.start + row.count - 1) / PAGE_TOKENS + 1;
      for (uint32_t group = 0; group < GROUPS_MAX; group++) {
        b.pages_at[group] = group * PAGES + taken - first;
        for (uint32_t i = 0; i < end - first; i++)
          pages[group * PAGES + taken + i] = (PAGES - 1 - taken - i + group * 5) % PAGES;
      }
      taken += end - first;
      for (uint32_t i = 0; i < row.count; i++)
        tokens.push_back({0, row.start + i, static_cast<uint32_t>(rows.size()),
                          (row.tap + i * 5) % TAP_ROWS * TAP_STEP});
      rows.push_back(b);
    }
    Buffers::copy(memory.batch, std::vector<Batch>{{static_cast<uint32_t>(tokens.size()),
                                                    static_cast<uint32_t>(rows.size()), 0, 0}});
    Buffers::copy(memory.tokens, tokens);
    Buffers::copy(memory.rows, rows);
    Buffers::copy(memory.pages, pages);
  }

  float launch() {
    CHECK(cudaMemset(at<void>(memory.barrier), 0, COUNTERS * COUNTER_BYTES));
    void* arguments[] = {&memory};
    const auto kernel = tokens.size() > TILE_TOKENS ? draft_context_many : draft_context;
    return launch_ms(kernel, dim3(GRID), THREADS, sizeof(Shared), arguments);
  }

  const std::vector<Product>& wanted_fused(uint32_t tap) {
    std::vector<Product>& wanted = fused[tap];
    if (wanted.empty()) {
      wanted.resize(HIDDEN);
      for (int row = 0; row < HIDDEN; row++)
        wanted[row].add(fuse.row(row), taps.row(static_cast<int>(tap)), TAPS * HIDDEN);
    }
    return wanted;
  }

  // Values and their tolerances.
  struct Estimate {
    std::vector<double> values, off;

    void add(double value, double tolerance) {
      values.push_back(value);
      off.push_back(tolerance);
    }
  };

  // The relative error of a few F32 operations or functions.
  static constexpr double STEP = 1.0 / (1 << 21);

  static void norm_head(Estimate& x, const std::vector<float>& weights) {
    double square = 0, off = 0;
    for (size_t d = 0; d < x.values.size(); d++) {
      square += x.values[d] * x.values[d];
      off += std::fabs(x.values[d]) * x.off[d];
    }
    const double scale = 1 / std::sqrt(square / x.values.size() + EPS);
    for (size_t d = 0; d < x.values.size(); d++) {
      const double by = scale * weights[d];
      x.off[d] = std::fabs(by) * (x.off[d] + std::fabs(x.values[d]) * (off / square + STEP));
      x.values[d] *= by;
    }
  }

  template <int KIND>
  void rotate_head(Estimate& x, uint32_t position) const {
    constexpr int PAIRS = ATTENTIONS[KIND].rope_pairs;
    for (int i = 0; i < PAIRS; i++) {
      const float angle =
          static_cast<float>(position) * frequencies[KIND * ROPE_PAIRS_MAX + i];
      const double c = std::cos(static_cast<double>(angle));
      const double s = std::sin(static_cast<double>(angle));
      const double a = x.values[i], b = x.values[i + PAIRS];
      const double own = x.off[i], other = x.off[i + PAIRS];
      const double size = STEP * (std::fabs(a) + std::fabs(b));
      x.values[i] = a * c - b * s;
      x.values[i + PAIRS] = b * c + a * s;
      x.off[i] = std::fabs(c) * own + std::fabs(s) * other + size;
      x.off[i + PAIRS] = std::fabs(c) * other + std::fabs(s) * own + size;
    }
  }

  // The row of the projection that holds a dimension of a head of keys or values.
  template <int KIND>
  static int row_of(bool is_value, int head, int dim) {
    constexpr Attention A = ATTENTIONS[KIND];
    const int dims = is_value ? A.v_dim : A.qk_dim;
    const int first = (is_value ? QkvRows<KIND>::VALUE : QkvRows<KIND>::KEY) + head * dims;
    if (!A.paired || is_value || dim >= 2 * A.rope_pairs) return first + dim;
    const int pair = dim % A.rope_pairs;
    return first + pair / 8 * 16 + pair % 8 + dim / A.rope_pairs * 8;
  }

  // The expected key or value of a head, from the operand as the GPU computed it.
  template <int KIND>
  Estimate wanted(const Layer& layer, const std::vector<float>& x, double inverse_rms,
                  uint32_t position, int head, bool is_value) const {
    constexpr Attention A = ATTENTIONS[KIND];
    Estimate e;
    for (int d = 0; d < (is_value ? A.v_dim : A.qk_dim); d++) {
      Product p;
      const size_t row = static_cast<size_t>(row_of<KIND>(is_value, head, d));
      p.add(&layer.values[row * HIDDEN], x, HIDDEN);
      const double by = inverse_rms * (is_value ? A.value_scale : 1);
      e.add(p.sum * by, (p.magnitude * TOLERANCE + std::fabs(p.sum) * STEP) * by);
    }
    if (is_value) return e;
    if (A.qk_norm) norm_head(e, layer.k_norm);
    rotate_head<KIND>(e, position);
    return e;
  }

  // Checks the keys or values of a layer; `seen` gets the bits of the batch's last row.
  template <int KIND>
  void check_pages(const Layer& layer, const std::vector<std::vector<float>>& x,
                   const std::vector<double>& inverse_rms, bool is_value, Verdict& verdict,
                   std::vector<uint16_t>& seen) {
    constexpr Attention A = ATTENTIONS[KIND];
    const int dims = is_value ? A.v_dim : A.qk_dim;
    std::vector<uint16_t> found = read<uint16_t>(is_value ? layer.memory.values : layer.memory.keys,
                                                 is_value ? layer.value_values : layer.key_values);
    for (size_t t = 0; t < tokens.size(); t++)
      for (int head = 0; head < A.kv_heads; head++) {
        const uint32_t position = tokens[t].position;
        const uint32_t page =
            pages[rows[tokens[t].row].pages_at[A.page_group] + position / PAGE_TOKENS];
        const uint32_t place =
            (page * A.kv_heads + head) * PAGE_TOKENS + position % PAGE_TOKENS;
        const Estimate e = wanted<KIND>(layer, x[t], inverse_rms[t], position, head, is_value);
        for (int d = 0; d < dims; d++) {
          uint16_t& bits =
              found[is_value ? cache_offset<A.v_dim>(place, d) : cache_offset<A.qk_dim>(place, d)];
          // Rounded to BF16.
          const double off = e.off[d] + (std::fabs(e.values[d]) + e.off[d]) / (1 << 8);
          verdict.near(bf16_value(bits), e.values[d], off,
                       is_value ? "value of token, dimension" : "key of token, dimension",
                       static_cast<int>(t), head * dims + d);
          if (tokens[t].row + 1 == rows.size()) seen.push_back(bits);
          bits = UNWRITTEN;
        }
      }
    const auto strange = std::count_if(found.begin(), found.end(),
                                       [](uint16_t bits) { return bits != UNWRITTEN; });
    verdict.exact(static_cast<double>(strange), 0, "written elsewhere, of kind", KIND, is_value);
  }

  template <int KIND>
  void check_layer(int index, const std::vector<std::vector<float>>& x,
                   const std::vector<double>& inverse_rms, Verdict& verdict,
                   std::vector<uint16_t>& seen) {
    if constexpr (KIND + 1 < ATTENTION_KINDS)
      if (kind_of(index) > KIND)
        return check_layer<KIND + 1>(index, x, inverse_rms, verdict, seen);
    for (bool is_value : {false, true})
      check_pages<KIND>(layers[index], x, inverse_rms, is_value, verdict, seen);
  }

  // Checks a batch. Returns the bits of the last row's keys and values.
  std::vector<uint16_t> check(const std::vector<Row>& given, Verdict& verdict) {
    place(given);
    for (const Layer& l : layers) {
      CHECK(cudaMemset(at<void>(l.memory.keys), 0xff, l.key_values * 2));
      CHECK(cudaMemset(at<void>(l.memory.values), 0xff, l.value_values * 2));
    }
    launch();
    const auto found = read<float>(memory.fused, size_t{TOKENS_MAX} * HIDDEN);
    const auto normed = read<uint16_t>(memory.normed, size_t{TOKENS_MAX} * NORMED_BYTES / 2);
    std::vector<std::vector<float>> x(tokens.size());
    std::vector<double> inverse_rms;
    for (size_t t = 0; t < tokens.size(); t++) {
      const std::vector<Product>& wanted = wanted_fused(tokens[t].tap);
      double squares = 0;
      for (int column = 0; column < HIDDEN; column++) {
        const float value = found[t * HIDDEN + column];
        verdict.near(value, wanted[column].sum, wanted[column].magnitude * TOLERANCE,
                     "fused of token, column", static_cast<int>(t), column);
        x[t].push_back(operand_value(normed, static_cast<int>(t), NORMED_BYTES, column));
        verdict.exact(x[t].back(), bf16_value(bf16_bits(value * norm[column])),
                      "normed of token, column", static_cast<int>(t), column);
        squares += static_cast<double>(value) * value;
      }
      inverse_rms.push_back(1 / std::sqrt(squares / HIDDEN + EPS));
    }
    std::vector<uint16_t> seen;
    for (int i = 0; i < DRAFT_LAYERS; i++)
      check_layer<DRAFT_ATTENTION>(i, x, inverse_rms, verdict, seen);
    return seen;
  }

  bool check_all() {
    Verdict verdict = {"the drafter's context"};
    const Row alone = {3, 5, 2};
    const std::vector<uint16_t> few = check({alone}, verdict);
    const uint32_t rest = TOKENS_MAX - 8 - 1 - alone.count;
    const std::vector<uint16_t> all =
        check({{0, 8, 0}, {1000, 1, 7}, {31000, rest, 1}, alone}, verdict);
    for (size_t i = 0; i < few.size(); i++)
      verdict.exact(all[i], few[i], "bits without others", static_cast<int>(i), 0);
    return verdict.print();
  }

  template <int KIND>
  static double layer_bytes(int index) {
    if constexpr (KIND + 1 < ATTENTION_KINDS)
      if (kind_of(index) > KIND) return layer_bytes<KIND + 1>(index);
    using M = QkvMatrix<KIND>;
    return 1.0 * (M::UNITS - QkvRows<KIND>::KEY / 16) * M::UNIT_BYTES;
  }

  void time(uint32_t token_count) {
    constexpr int RUNS = 21;
    place({{4096, token_count, 0}});
    std::vector<float> times;
    for (int run = 0; run < RUNS; run++) times.push_back(launch());
    std::sort(times.begin(), times.end());
    double bytes = FuseMatrix::BYTES;
    for (int i = 0; i < DRAFT_LAYERS; i++) bytes += layer_bytes<DRAFT_ATTENTION>(i);
    char name[64];
    std::snprintf(name, sizeof name, "  %u tokens, with the launch, median", token_count);
    print_time(name, times[RUNS / 2] * 1e3, bytes);
  }
};

}  // namespace bench

int main(int argc, char** argv) {
  return bench::run_all(argc, argv, [](bool small) {
    bench::ContextCheck c;
    const bool right = c.check_all();
    for (uint32_t tokens : {TILE_TOKENS, TOKENS_MAX})
      if (!small) c.time(tokens);
    return right;
  });
}
