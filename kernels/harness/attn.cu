// Checks attention against a reference in double precision, checks that each token's bits are those
// it has alone, and times it.
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/attn.cu -o attn
//   ./attn            checks, then times
//   ./attn check      a small part of the checks, for compute-sanitizer
//
// A model's constants are compiled in; any of its kinds of attention is checked.
#include "attn_roles.cuh"

using namespace kilotok;

namespace {

using bench::ATTN;
using bench::ATTN_IN;

// A uniform number from -1 to 1, a hash of its arguments.
float random_of(uint64_t sequence, uint64_t position, uint64_t what, uint64_t i) {
  uint64_t z = (sequence << 56) ^ (position << 32) ^ (what << 24) ^ (i + 1);
  for (int round = 0; round < 2; round++) {
    z = (z + 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull;
    z ^= z >> 29;
  }
  return static_cast<float>(static_cast<int64_t>(z)) / 9223372036854775808.0f;
}
enum What { QUERY_ROW, KEY_ROW, VALUE_ROW, SINK, NORM };

uint16_t bf16(float value) { return bench::bf16_bits(value); }
float number(uint16_t bits) { return bench::bf16_value(bits); }

struct Row {
  uint64_t sequence;
  uint32_t start, count;
};

template <class T>
uint64_t take(const std::vector<T>& values) {
  void* p = nullptr;
  CHECK(cudaMalloc(&p, std::max<size_t>(values.size() * sizeof(T), 16)));
  CHECK(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return reinterpret_cast<uint64_t>(p);
}

template <class T>
void upload(uint64_t to, const std::vector<T>& values) {
  CHECK(cudaMemcpy(at<void>(to), values.data(), values.size() * sizeof(T),
                   cudaMemcpyHostToDevice));
}

// Rows of one kind of attention on the device, and the expected results.
template <int KIND>
struct World {
  static constexpr Attention A = ATTENTIONS[KIND];
  static constexpr bool OWN = KIND >= DRAFT_ATTENTION;
  std::vector<Row> rows;
  // For each row the first position that has a page, and the index of its pages in the table.
  std::vector<uint32_t> first_needed, table_at;
  Memory memory = {};
  std::vector<uint64_t> owned;
  // A position of sequence 0 with a key that overflows, or none.
  uint32_t spoilt = ~0u;

  explicit World(std::vector<Row> given, uint32_t spoilt_position = ~0u)
      : rows(std::move(given)), spoilt(spoilt_position) {
    take_pages();
    LayerMemory layer = {};
    layer.keys = page_values(KEY_ROW);
    layer.values = page_values(VALUE_ROW);
    std::vector<float> sinks, norms;
    for (int i = 0; i < A.q_heads; i++) sinks.push_back(2 * random_of(0, 0, SINK, i));
    for (int i = 0; i < A.qk_dim; i++) norms.push_back(1 + 0.3f * random_of(0, 0, NORM, i));
    layer.sinks = keep(take(sinks));
    layer.q_norm = layer.k_norm = keep(take(norms));
    memory.layers = keep(take(std::vector<LayerMemory>{layer}));
    memory.batch = keep(take(std::vector<Batch>(1)));
    memory.tokens = keep(take(std::vector<BatchToken>(TOKENS_MAX)));
    memory.rows = keep(take(std::vector<BatchRow>(TOKENS_MAX)));
    memory.angles = bytes(size_t{8} * ATTENTION_KINDS * TOKENS_MAX * ROPE_PAIRS_MAX);
    memory.projected = bytes(size_t{4} * TOKENS_MAX * PROJECTED_ROWS);
    memory.queries = bytes(size_t{2} * TOKENS_MAX * QUERY_VALUES);
    memory.own_keys = bytes(size_t{2} * TOKENS_MAX * A.kv_heads * A.qk_dim);
    memory.own_values = bytes(size_t{2} * TOKENS_MAX * A.kv_heads * A.v_dim);
    memory.attention_parts = bytes(ATTENTION_PARTS_BYTES);
    memory.attended = bytes(size_t{TOKENS_MAX} * ATTENDED_BYTES);
    memory.barrier = bytes(COUNTERS * COUNTER_BYTES);
    memory.wait_max_ms = bench::wait_max_ms();
    memory.fault = bench::fault_address();
  }
  World(const World&) = delete;
  ~World() {
    for (uint64_t address : owned) cudaFree(at<void>(address));
  }

  uint64_t keep(uint64_t address) {
    owned.push_back(address);
    return address;
  }
  // Memory that has not been written is NaN.
  uint64_t bytes(size_t count) { return keep(take(std::vector<uint8_t>(count, 0xff))); }

  float projected(const Row& row, uint32_t position, What what, int i) const {
    return random_of(row.sequence, position, what, i) * (what == VALUE_ROW ? 1 : 2);
  }

  uint32_t end(const Row& row) const { return OWN ? row.start : row.start + row.count; }

  // Pages in a mixed order. Those before the window do not exist.
  std::vector<uint32_t> table;
  uint32_t page_count = 0;
  void take_pages() {
    for (const Row& row : rows) {
      const uint32_t window = A.window;
      const uint32_t first = window > 0 && row.start >= window ? row.start - window + 1 : 0;
      first_needed.push_back(first);
      table_at.push_back(page_count);
      page_count += ceil_div(end(row), PAGE_TOKENS) - first / PAGE_TOKENS;
    }
    page_count = larger(page_count, 1);
    for (uint32_t i = 0; i < page_count; i++) table.push_back(i);
    for (uint32_t i = page_count - 1; i > 0; i--)
      std::swap(table[i], table[(i * 2654435761u >> 7) % (i + 1)]);
    memory.pages = keep(take(table));
  }

  uint16_t context(const Row& row, uint32_t position, What what, int head, int dim) const {
    const int dims = what == KEY_ROW ? A.qk_dim : A.v_dim;
    if (what == KEY_ROW && position == spoilt && row.sequence == 0) return bf16(-3e38f);
    return bf16(projected(row, position, what, head * dims + dim));
  }

  uint64_t page_values(What what) {
    const int dims = what == KEY_ROW ? A.qk_dim : A.v_dim;
    std::vector<uint16_t> values(size_t{page_count} * A.kv_heads * PAGE_TOKENS * dims, 0xffff);
    for (size_t r = 0; r < rows.size(); r++)
      for (uint32_t p = first_needed[r]; p < rows[r].start; p++)
        for (int head = 0; head < A.kv_heads; head++) {
          const uint32_t in_row = p / PAGE_TOKENS - first_needed[r] / PAGE_TOKENS;
          const uint32_t page = table[table_at[r] + in_row];
          const uint32_t place = (page * A.kv_heads + head) * PAGE_TOKENS + p % PAGE_TOKENS;
          for (int d = 0; d < dims; d++)
            values[what == KEY_ROW ? cache_offset<A.qk_dim>(place, d)
                                   : cache_offset<A.v_dim>(place, d)] =
                context(rows[r], p, what, head, d);
        }
    return keep(take(values));
  }

  // A batch of tokens `skip` to `skip + count` - 1 of the given rows.
  struct Piece {
    int row;
    uint32_t skip, count;
  };
  int place(const std::vector<Piece>& pieces) {
    std::vector<BatchToken> tokens;
    std::vector<BatchRow> batch_rows;
    std::vector<float> values;
    std::vector<float2> angles(size_t{ATTENTION_KINDS} * TOKENS_MAX * ROPE_PAIRS_MAX);
    for (const Piece& piece : pieces) {
      const Row& row = rows[piece.row];
      BatchRow b = {};
      b.start = row.start + piece.skip;
      b.first = static_cast<uint32_t>(tokens.size());
      b.count = piece.count;
      for (uint32_t& pages_at : b.pages_at)
        pages_at = table_at[piece.row] - first_needed[piece.row] / PAGE_TOKENS;
      for (uint32_t p = b.start; p < b.start + b.count; p++) {
        for (int i = 0; i < A.rope_pairs; i++) {
          const double angle = angle_of(p, i);
          angles[(KIND * TOKENS_MAX + tokens.size()) * ROPE_PAIRS_MAX + i] = {
              static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
        }
        tokens.push_back({0, p, static_cast<uint32_t>(batch_rows.size()), 0});
        values.resize(tokens.size() * PROJECTED_ROWS);
        float* to = values.data() + (tokens.size() - 1) * PROJECTED_ROWS;
        for (int i = 0; i < A.q_heads * A.qk_dim; i++) to[i] = projected(row, p, QUERY_ROW, i);
        for (int i = 0; i < A.kv_heads * A.qk_dim; i++)
          to[QkvRows<KIND>::KEY + i] = projected(row, p, KEY_ROW, i);
        for (int i = 0; i < A.kv_heads * A.v_dim; i++)
          to[QkvRows<KIND>::VALUE + i] = projected(row, p, VALUE_ROW, i);
      }
      batch_rows.push_back(b);
    }
    upload(memory.tokens, tokens);
    upload(memory.rows, batch_rows);
    upload(memory.projected, values);
    upload(memory.angles, angles);
    upload(memory.batch, std::vector<Batch>{{static_cast<uint32_t>(tokens.size()),
                                             static_cast<uint32_t>(batch_rows.size()), 0, 0}});
    return static_cast<int>(tokens.size());
  }

  static double angle_of(uint32_t position, int pair) {
    return position * std::pow(10000.0, -static_cast<double>(pair) / larger(A.rope_pairs, 1));
  }

  float launch(int phases, int repeats) {
    return bench::roles_ms<bench::AttentionRoles<KIND>>(memory, {phases, repeats});
  }

  // The bits of the attended values, `[tokens, q_heads * v_dim]`.
  std::vector<uint16_t> attended(int token_count) {
    CHECK(cudaMemset(at<void>(memory.attended), 0xff, size_t{TOKENS_MAX} * ATTENDED_BYTES));
    launch(ATTN_IN | ATTN, 1);
    std::vector<uint16_t> rows(size_t{TOKENS_MAX} * ATTENDED_BYTES / 2);
    CHECK(cudaMemcpy(rows.data(), at<void>(memory.attended), rows.size() * 2,
                     cudaMemcpyDeviceToHost));
    std::vector<uint16_t> values;
    for (int token = 0; token < token_count; token++)
      for (int column = 0; column < A.q_heads * A.v_dim; column++)
        values.push_back(rows[(Attended<KIND>::row(token) + operand_offset(column)) / 2]);
    return values;
  }

  // A head of a token after RMSNorm and RoPE.
  std::vector<double> turned(const Row& row, uint32_t position, What what, int head) const {
    std::vector<double> x(A.qk_dim);
    double square = 0;
    for (int d = 0; d < A.qk_dim; d++) {
      x[d] = projected(row, position, what, head * A.qk_dim + d);
      square += x[d] * x[d];
    }
    if (A.qk_norm)
      for (int d = 0; d < A.qk_dim; d++)
        x[d] *= (1 + 0.3f * random_of(0, 0, NORM, d)) /
                std::sqrt(square / A.qk_dim + A.qk_norm_eps);
    for (int i = 0; i < A.rope_pairs; i++) {
      const double c = std::cos(angle_of(position, i)), s = std::sin(angle_of(position, i));
      const double a = x[i], b = x[i + A.rope_pairs];
      x[i] = a * c - b * s;
      x[i + A.rope_pairs] = b * c + a * s;
    }
    return x;
  }

  // The expected values of one head of a token, with keys and values as they are stored.
  std::vector<double> expected(const Row& row, uint32_t position, int head) const {
    const int kv_head = head / (A.q_heads / A.kv_heads);
    const uint32_t first =
        A.window > 0 && position >= A.window ? position - A.window + 1 : 0;
    const std::vector<double> q = turned(row, position, QUERY_ROW, head);
    std::vector<double> scores, out(A.v_dim);
    const uint32_t seen_end = OWN ? row.start + row.count : position + 1;
    double largest = -1e300;
    for (uint32_t p = first; p < seen_end; p++) {
      double score = 0;
      const bool stored = p < row.start;
      const std::vector<double> k =
          stored ? std::vector<double>() : turned(row, p, KEY_ROW, kv_head);
      for (int d = 0; d < A.qk_dim; d++)
        score += q[d] * (stored ? number(context(row, p, KEY_ROW, kv_head, d))
                                : number(bf16(static_cast<float>(k[d]))));
      scores.push_back(score / std::sqrt(static_cast<double>(A.qk_dim)));
      largest = std::max(largest, scores.back());
    }
    double sum = A.sinks ? std::exp(2 * random_of(0, 0, SINK, head) - largest) : 0;
    for (double score : scores) sum += std::exp(score - largest);
    for (uint32_t p = first; p < seen_end; p++) {
      const double weight = std::exp(scores[p - first] - largest) / sum;
      for (int d = 0; d < A.v_dim; d++)
        out[d] += weight * (p < row.start
                                ? number(context(row, p, VALUE_ROW, kv_head, d))
                                : number(bf16(A.value_scale * projected(row, p, VALUE_ROW,
                                                                        kv_head * A.v_dim + d))));
    }
    return out;
  }

  // The whole batch.
  std::vector<Piece> all() const {
    std::vector<Piece> pieces;
    for (size_t r = 0; r < rows.size(); r++)
      pieces.push_back({static_cast<int>(r), 0, rows[r].count});
    return pieces;
  }
};

int failures = 0;

// Queries, weights and results are BF16, each with an error of at most 2^-9 of itself. With scores
// up to about 4 that amounts to 2 % of a value's share. Values are below 1, and so is the result.
constexpr double TOLERANCE = 0.02;

template <int KIND>
void check_values(const char* name, World<KIND>& world, const std::vector<uint16_t>& values) {
  using W = World<KIND>;
  double worst = 0, squares = 0, size = 0;
  int token = 0;
  for (const Row& row : world.rows)
    for (uint32_t p = row.start; p < row.start + row.count; p++, token++) {
      if (token % 7 != 0 && row.start + row.count > 600) continue;
      for (int head = token % 3; head < W::A.q_heads; head += 3) {
        const std::vector<double> wanted = world.expected(row, p, head);
        for (int d = 0; d < W::A.v_dim; d++) {
          const double seen = number(values[(token * W::A.q_heads + head) * W::A.v_dim + d]);
          const double off = std::fabs(seen - wanted[d]);
          worst = off <= worst ? worst : off;  // takes a NaN
          squares += off * off;
          size += wanted[d] * wanted[d];
        }
      }
    }
  const bool good = worst < TOLERANCE;
  failures += !good;
  std::printf("%-28s kind %d: worst %.5f, relative rms %.5f %s\n", name, KIND, worst,
              std::sqrt(squares / size), good ? "" : "WRONG");
}

// Every token (of a draft, every row) must have the same bits in the batch as alone.
template <int KIND>
void check_bits(const char* name, World<KIND>& world, const std::vector<uint16_t>& together) {
  using W = World<KIND>;
  constexpr size_t WIDTH = W::A.q_heads * W::A.v_dim;
  size_t first = 0, different = 0, compared = 0;
  for (size_t r = 0; r < world.rows.size(); r++) {
    const uint32_t count = world.rows[r].count, each = W::OWN ? count : 1;
    for (uint32_t skip = 0; skip < count; skip += each) {
      const int tokens = world.place({{static_cast<int>(r), skip, each}});
      const std::vector<uint16_t> alone = world.attended(tokens);
      for (size_t i = 0; i < tokens * WIDTH; i++)
        different += alone[i] != together[first * WIDTH + i];
      compared += tokens * WIDTH;
      first += tokens;
    }
  }
  auto pieces = world.all();
  std::reverse(pieces.begin(), pieces.end());
  world.place(pieces);
  const std::vector<uint16_t> reversed = world.attended(static_cast<int>(first));
  size_t at = 0;
  for (const auto& piece : pieces) {
    size_t before = 0;
    for (int r = 0; r < piece.row; r++) before += world.rows[r].count;
    for (size_t i = 0; i < piece.count * WIDTH; i++)
      different += reversed[at * WIDTH + i] != together[before * WIDTH + i];
    at += piece.count;
  }
  failures += different != 0;
  std::printf("%-28s kind %d: %zu of %zu bits differ alone %s\n", name, KIND, different, compared,
              different ? "WRONG" : "");
}

// If a step has only some tokens of a row, the first or the last, their bits are the same as with
// all of them.
template <int KIND>
void check_counts(const char* name, uint32_t start, const std::vector<uint32_t>& counts) {
  using W = World<KIND>;
  constexpr size_t WIDTH = W::A.q_heads * W::A.v_dim;
  World<KIND> world({{1, start, TOKENS_MAX}});
  const std::vector<uint16_t> all = world.attended(world.place(world.all()));
  size_t different = 0, compared = 0;
  for (uint32_t count : counts)
    for (uint32_t skip : {0u, TOKENS_MAX - count}) {
      const std::vector<uint16_t> some = world.attended(world.place({{0, skip, count}}));
      for (size_t i = 0; i < count * WIDTH; i++) different += some[i] != all[skip * WIDTH + i];
      compared += count * WIDTH;
    }
  failures += different != 0;
  std::printf("%-28s kind %d: %zu of %zu bits differ in steps of other sizes %s\n", name, KIND,
              different, compared, different ? "WRONG" : "");
}

template <int KIND>
void check(const char* name, std::vector<Row> rows) {
  World<KIND> world(std::move(rows));
  const int tokens = world.place(world.all());
  const std::vector<uint16_t> values = world.attended(tokens);
  check_values<KIND>(name, world, values);
  check_bits<KIND>(name, world, values);
}

// A score that overflows must make the tokens to which it is visible NaN, and no others.
template <int KIND>
void check_overflow() {
  using W = World<KIND>;
  constexpr size_t WIDTH = W::A.q_heads * W::A.v_dim;
  constexpr uint32_t SPOILT = 5;
  World<KIND> world({{0, 20, 1}, {1, 20, 1}}, SPOILT);
  const int tokens = world.place(world.all());
  const std::vector<uint16_t> values = world.attended(tokens);
  const bool sees = W::A.window == 0 || 20 - SPOILT < static_cast<uint32_t>(W::A.window);
  size_t wrong = 0;
  for (size_t i = 0; i < 2 * WIDTH; i++)
    wrong += std::isnan(number(values[i])) != (i < WIDTH && sees);
  failures += wrong != 0;
  std::printf("%-28s kind %d: %zu wrong %s\n", "a score that overflows", KIND, wrong,
              wrong ? "WRONG" : "");
}

template <int KIND>
void time_rows(const char* name, std::vector<Row> rows) {
  // Long contexts take long.
  const int repeats = rows[0].start > 100000 ? 20 : 200;
  World<KIND> world(std::move(rows));
  world.place(world.all());
  double us[4] = {};
  for (int phases = 0; phases < 4; phases++) {
    std::vector<float> times;
    for (int i = 0; i < 5; i++) times.push_back(world.launch(phases, repeats));
    std::sort(times.begin(), times.end());
    us[phases] = times[2] * 1000.0 / repeats;
  }
  std::printf("%-28s kind %d: attn_in %.2f us, attn %.2f us (two barriers %.2f, all %.2f)\n", name,
              KIND, us[ATTN_IN] - us[0], us[ATTN] - us[0], us[0], us[ATTN_IN | ATTN]);
}

template <int KIND>
void check_kind(bool small) {
  constexpr uint32_t D = DRAFT_ROWS;
  constexpr bool OWN = KIND >= DRAFT_ATTENTION;
  check<KIND>("from the start", {{1, 0, D}});
  check<KIND>("three rows", {{1, 37, D}, {2, 200, OWN ? D : 1}, {3, 1030, D}});
  check_overflow<KIND>();
  constexpr uint32_t LONG = CHUNK_KEYS * CHUNKS_MAX;
  // As many chunks as there can be. Alone these are one tile, which is combined by other warps.
  if (ATTENTIONS[KIND].window == 0)
    check<KIND>("chunks grow, two tiles", {{1, LONG - 3, D}, {2, LONG - 1, D}});
  if (!OWN) check_counts<KIND>("some of 64 tokens", 37, {1, 2, 13, 63});
  if (small) return;
  check<KIND>("chunks grow", {{1, LONG - 3, D}});
  check<KIND>("chunks of three", {{1, 20000, D}, {2, 16384, D}});
  if (OWN) {
    check<KIND>("eight drafts", {{1, 1, D}, {2, 7, D}, {3, 8, D}, {4, 500, D}, {5, 1500, D}});
    return;
  }
  std::vector<uint32_t> counts;
  for (uint32_t count = 1; count <= TOKENS_MAX; count++) counts.push_back(count);
  check_counts<KIND>("all counts", 0, counts);
  check_counts<KIND>("all counts, chunks grow", LONG - 30, counts);
  check_counts<KIND>("all counts at 40000", 40000, counts);
  if (ATTENTIONS[KIND].window == 0)
    check<KIND>("a long context", {{1, 131072 - D, D}, {2, 100000, 1}});
  check<KIND>("a prompt", {{1, 0, TOKENS_MAX}});
  check<KIND>("a prompt goes on", {{1, 300, TOKENS_MAX - 9}, {2, 64, 1}, {3, 129, 8}});
  std::vector<Row> singles;
  for (uint32_t i = 0; i < TOKENS_MAX; i++) singles.push_back({i + 1, i * 37, 1});
  check<KIND>("single tokens", singles);
}

template <int KIND>
void time_kind() {
  constexpr uint32_t D = DRAFT_ROWS;
  for (uint32_t start : {512u, 4096u, 8180u, 32760u}) {
    char name[64];
    std::snprintf(name, sizeof name, "%u tokens at %u", D, start);
    time_rows<KIND>(name, {{1, start, D}});
  }
  if (ATTENTIONS[KIND].window == 0) {
    time_rows<KIND>("8 tokens at 131064", {{1, 131064, D}});
    time_rows<KIND>("8 tokens at 1048560", {{1, 1048560, D}});
    time_rows<KIND>("1 token at 131064", {{1, 131064, 1}});
    time_rows<KIND>("2 rows of 8 at 65536", {{1, 65536, D}, {2, 65536, D}});
    time_rows<KIND>("64 tokens at 131008", {{1, 131008, TOKENS_MAX}});
  }
  time_rows<KIND>("1 token at 4096", {{1, 4096, 1}});
  if (KIND < DRAFT_ATTENTION)
    for (uint32_t users : {8u, uint32_t{TOKENS_MAX}})
      for (uint32_t start : {1024u, 8192u}) {
        char name[64];
        std::snprintf(name, sizeof name, "%u users at %u", users, start);
        std::vector<Row> singles;
        for (uint32_t i = 0; i < users; i++) singles.push_back({i + 1, start + i * 5, 1});
        time_rows<KIND>(name, singles);
      }
  std::vector<Row> rows;
  for (uint32_t i = 0; i < TOKENS_MAX / D; i++) rows.push_back({i + 1, 4096 + i * 5, D});
  time_rows<KIND>("rows of drafts at 4096", rows);
  if (KIND < DRAFT_ATTENTION) time_rows<KIND>("a prompt at 4096", {{1, 4096, TOKENS_MAX}});
}

template <int KIND>
void all_kinds(bool small) {
  if constexpr (KIND < ATTENTION_KINDS) {
    check_kind<KIND>(small);
    if (!small) time_kind<KIND>();
    all_kinds<KIND + 1>(small);
  }
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, parts %.1f MB\n", device.name, ATTENTION_PARTS_BYTES / 1e6);
  all_kinds<0>(argc > 1 && std::strcmp(argv[1], "check") == 0);
  std::printf(failures ? "%d checks failed\n" : "all good\n", failures);
  return failures != 0;
}
