// Chooses tokens for the cases of a file and compares with its answers, bit for bit; or times
// typical requests.
//
//   cargo run --release -p kilotok-sampling --example device_cases -- FILE [PERCENT]
//   nvcc -std=c++20 -arch=sm_90a -O3 -I kernels/include -I kernels/harness
//     -I kernels/harness/sample_model kernels/harness/sample.cu -o sample
//   ./sample FILE [PARTS...]
//   ./sample --time [NAME]
//   ./sample --cold [NAME]
//
// --cold times single steps after a kernel that evicts code and data from the caches, as the passes
// over the layers do in an engine.
//
// PARTS is the number of CTAs that share a position. The file consists of 32-bit words; a list is
// its length, then its words. Magic, number of groups; for each group: vocabulary, number of cases;
// for each case: sampling, prompt_count, draft temperature, biases (pairs), ends of bad words,
// their tokens, end tokens, history, number of steps; for each step: start, known tokens, drafts,
// scored tokens, sample, top_count, number of masks, whether drafts are drawn, number of wanted
// tokens, then a formula of logits for each, a formula of each mask, for each draft that is drawn a
// formula of the drafter's logits and its law, and the answer.
#include <algorithm>
#include <string>

#include "bench.h"
#include "kilotok/phase/verify.cuh"
#include "kilotok/sample/draw.cuh"
#include "sample/typical.h"

using namespace kilotok;

constexpr int SHARED_BYTES =
    larger(larger(sizeof(SampleScratch), sizeof(VerifyScratch)), sizeof(DrawScratch));

// Draws a draft by each CTA, from a row that is read in parts; a launch begins with draft `first`.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draw_drafts(const __grid_constant__ DraftMemory memory, const DraftOrder* draws,
                const float* logits, int first, int vocab, int stride, int parts,
                uint32_t* drafted) {
  DrawScratch& scratch = *reinterpret_cast<DrawScratch*>(bench::asked_memory());
  if (threadIdx.x >= CONSUMERS) return;
  const int each = (vocab + parts * 128 - 1) / (parts * 128) * 128;
  const size_t index = first + blockIdx.x;
  uint64_t* candidates =
      at<uint64_t>(memory.candidates) + index * PARTS_MAX * CANDIDATES_MAX;
  const float* row = logits + index * stride;
  for (int part = 0; part < parts; part++) {
    const int begin = part * each < vocab ? part * each : vocab;
    const int end = begin + each < vocab ? begin + each : vocab;
    const RowPart own{row, begin, end, 0};
    list_candidates(scratch, own, part, candidates + part * CANDIDATES_MAX);
    Consumers::sync();
  }
  merge_candidates(scratch, candidates, parts);
  if (Consumers::warp() != 0) return;
  const DraftOrder& one = draws[index];
  const uint32_t token =
      draw(memory, scratch.list, {one.slot, static_cast<int>(one.index), one.first});
  if (Consumers::lane() == 0) drafted[index] = token;
}

// All phases of sampling, `repeats` times.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_step(const __grid_constant__ Memory memory,
                const __grid_constant__ SampleMemory sampling, int row_count, int wanted_count,
                int parts, int repeats) {
  char* shared = bench::asked_memory();
  if (threadIdx.x >= CONSUMERS) return;
  Cta cta(memory, 0);
  if (cta.thread() == 0)
    wait_context = WaitContext::begin(memory.fault, memory.wait_max_ms, 0);
  cta.sync();
  update_slots(cta, sampling, row_count);
  cta.sync_grid();
  for (int i = 0; i < repeats; i++) {
    sample(cta, sampling, *reinterpret_cast<SampleScratch*>(shared), wanted_count, parts);
    cta.sync_grid();
    verify_rows(cta, sampling, *reinterpret_cast<VerifyScratch*>(shared), row_count, parts,
                [](int, uint32_t, const Resolved*) {});
    cta.sync_grid();
  }
}

__device__ uint4 formula_bits(uint32_t index, uint32_t purpose, uint32_t kind, uint32_t seed,
                              uint32_t key) {
  uint32_t c[4] = {index, purpose, kind, 0xc0de}, k[2] = {seed, key};
  for (int round = 0; round < 10; round++) {
    const uint64_t even = static_cast<uint64_t>(c[0]) * 0xd2511f53u;
    const uint64_t odd = static_cast<uint64_t>(c[2]) * 0xcd9e8d57u;
    c[0] = static_cast<uint32_t>(odd >> 32) ^ c[1] ^ k[0];
    c[1] = static_cast<uint32_t>(odd);
    c[2] = static_cast<uint32_t>(even >> 32) ^ c[3] ^ k[1];
    c[3] = static_cast<uint32_t>(even);
    k[0] += 0x9e3779b9u;
    k[1] += 0xbb67ae85u;
  }
  return make_uint4(c[0], c[1], c[2], c[3]);
}

__device__ float formula_logit(const LogitFormula& f, uint32_t bits) {
  const float unit = exact::mul(__uint2float_rn(bits >> 8), 5.9604645e-8f);
  const float square = exact::mul(unit, unit);
  switch (f.kind) {
    case 0: return exact::add(exact::mul(unit, f.scale), f.offset);
    case 1: return exact::add(exact::mul(exact::mul(square, square), f.scale), f.offset);
    case 2: return exact::add(exact::mul(__uint2float_rn(bits & 7), f.scale), f.offset);
    case 3: return f.offset;
    case 4: return __uint_as_float((bits >> 23 & 255) == 255 ? bits & 0xbfffffff : bits);
    // The sum of four uniform numbers: nearly normal, as a model's logits are.
    case 6: {
      const float sum = __uint2float_rn((bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) +
                                        (bits >> 24));
      return exact::add(exact::mul(sum, f.scale), f.offset);
    }
    default: return (bits & 1023) == 0 ? exact::mul(unit, f.scale) : f.offset;
  }
}

// A row of logits. Values beyond the vocabulary must not be used, so they are NaN.
__global__ void make_logits(const LogitFormula* formulas, const uint32_t* instead, float* logits,
                            int vocab, int stride) {
  const LogitFormula f = formulas[blockIdx.x];
  float* row = logits + static_cast<size_t>(blockIdx.x) * stride;
  for (int quad = threadIdx.x; quad < stride / 4; quad += blockDim.x) {
    const uint4 bits = formula_bits(quad, 0, f.kind, f.seed, 7);
    const uint32_t four[4] = {bits.x, bits.y, bits.z, bits.w};
    for (int j = 0; j < 4; j++)
      row[quad * 4 + j] =
          quad * 4 + j < vocab ? formula_logit(f, four[j]) : __uint_as_float(0x7fc00000);
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (uint32_t i = 0; i < f.instead_count; i++) {
    const uint32_t* pair = instead + f.instead_first + i * 2;
    row[pair[0]] = __uint_as_float(pair[1]);
  }
}

__global__ void make_masks(const MaskFormula* formulas, const uint32_t* besides, uint32_t* masks,
                           int words) {
  const MaskFormula f = formulas[blockIdx.x];
  uint32_t* mask = masks + static_cast<size_t>(blockIdx.x) * words;
  for (int word = threadIdx.x; word < words; word += blockDim.x) {
    const uint4 b = formula_bits(word, 1, 0, f.seed, 9);
    mask[word] = f.kind == 0 ? b.x : f.kind == 1 ? b.x & b.y & b.z : f.kind == 2 ? 0u : ~0u;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (uint32_t i = 0; i < f.besides_count; i++) {
    const uint32_t token = besides[f.besides_first + i];
    mask[token / 32] |= 1u << token % 32;
  }
}

// Launches one CTA for each row.
template <class... Arguments>
static void make(void (*kernel)(Arguments...), size_t rows, Arguments... given) {
  constexpr int MAKERS = 256;
  void* arguments[] = {&given...};
  CHECK(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(rows)), dim3(MAKERS), arguments, 0,
                         nullptr));
}

// Device memory that grows to the program's longest batch.
struct Room {
  void* address = nullptr;
  size_t bytes = 0;

  template <class T>
  T* take(size_t count) {
    const size_t wanted = count * sizeof(T) + 64;
    if (wanted > bytes) {
      if (address) CHECK(cudaFree(address));
      CHECK(cudaMalloc(&address, wanted));
      bytes = wanted;
    }
    return static_cast<T*>(address);
  }

  template <class T>
  T* put(const std::vector<T>& values) {
    T* to = take<T>(values.size());
    CHECK(cudaMemcpy(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return to;
  }
};

template <class T>
static uint64_t as_address(T* p) {
  return reinterpret_cast<uint64_t>(p);
}

// The device's tables and one batch.
struct Device {
  Memory memory{};
  SampleMemory sampling{};
  Room rooms[32];
  DraftMemory drafting{};
  uint64_t draws, draft_logits, drafted;
  int next = 0;

  template <class T>
  uint64_t put(const std::vector<T>& values) {
    return as_address(rooms[next++].put(values));
  }
  template <class T>
  uint64_t take(size_t count) {
    return as_address(rooms[next++].take<T>(count));
  }

  // Allocates the tables of the group's slots.
  void set_up(uint32_t vocab, size_t slot_count) {
    next = 0;
    sampling.vocab = vocab;
    sampling.stride = (vocab + 15) / 16 * 16;
    sampling.mask_words = (vocab + 31) / 32;
    sampling.biases = take<float>(slot_count * sampling.stride);
    sampling.counts = take<uint16_t>(slot_count * sampling.stride);
    sampling.recent = take<uint32_t>(slot_count * RECENT_MAX);
    sampling.slots = take<Slot>(slot_count);
    sampling.bad_tokens = take<uint32_t>(slot_count * BAD_TOKENS_MAX);
    sampling.bad_ends = take<uint32_t>(slot_count * BAD_WORDS_MAX);
    sampling.end_tokens = take<uint32_t>(slot_count * END_TOKENS_MAX);
    sampling.proposals = take<Candidate>(slot_count * DRAFT_ROWS * CANDIDATES_MAX);
    drafting.slots = sampling.slots;
    drafting.proposals = sampling.proposals;
    memory.barrier = take<uint32_t>(1);
    memory.fault = bench::fault_address();
    memory.wait_max_ms = bench::wait_max_ms();
  }

  void load(const StepBatch& batch) {
    const int first = next;
    memory.rows = put(batch.batch_rows);
    memory.tokens = put(batch.tokens);
    sampling.rows = put(batch.rows);
    sampling.wanted = put(batch.wanted);
    const size_t wanted = batch.wanted.size();
    sampling.logits = take<float>(wanted * sampling.stride);
    sampling.processed = take<float>(wanted * sampling.stride);
    sampling.masks = take<uint32_t>(batch.masks.size() * sampling.mask_words);
    sampling.choice_parts = take<ChoicePart>(wanted * PARTS_MAX);
    sampling.row_choices = take<RowChoice>(batch.rows.size());
    sampling.chosen = take<uint32_t>(wanted);
    sampling.reports = take<Report>(wanted);
    sampling.tops = take<Top>(wanted * TOPS_MAX);
    sampling.judged = take<Judged>(wanted * CANDIDATES_MAX);
    const size_t drawn = batch.draws.size();
    drafting.candidates = take<uint64_t>(drawn * PARTS_MAX * CANDIDATES_MAX);
    draws = put(batch.draws);
    drafted = take<uint32_t>(drawn);
    draft_logits = take<float>(drawn * sampling.stride);
    auto* draft_formulas = reinterpret_cast<const LogitFormula*>(put(batch.draft_logits));
    auto* formulas = reinterpret_cast<const LogitFormula*>(put(batch.logits));
    auto* besides = reinterpret_cast<const uint32_t*>(put(batch.words));
    const int vocab = sampling.vocab, stride = sampling.stride, words = sampling.mask_words;
    make(make_logits, wanted, formulas, besides, at_host<float>(sampling.logits), vocab, stride);
    if (drawn > 0)
      make(make_logits, drawn, draft_formulas, besides, at_host<float>(draft_logits), vocab,
           stride);
    if (!batch.masks.empty()) {
      auto* masks = reinterpret_cast<const MaskFormula*>(put(batch.masks));
      make(make_masks, batch.masks.size(), masks, besides, at_host<uint32_t>(sampling.masks),
           words);
    }
    CHECK(cudaDeviceSynchronize());
    next = first;
  }

  template <class T>
  static T* at_host(uint64_t address) {
    return reinterpret_cast<T*>(address);
  }

  // Draws the drafts, as many at a time as there are CTAs. Milliseconds.
  float draw(size_t count, int parts) {
    auto* one = at_host<const DraftOrder>(draws);
    auto* logits = at_host<const float>(draft_logits);
    auto* to = at_host<uint32_t>(drafted);
    int vocab = sampling.vocab, stride = sampling.stride;
    float ms = 0;
    for (int first = 0; first < static_cast<int>(count); first += GRID) {
      const unsigned left = static_cast<unsigned>(count) - first;
      void* arguments[] = {&drafting, &one, &logits, &first, &vocab, &stride, &parts, &to};
      ms += bench::launch_ms(draw_drafts, dim3(left < GRID ? left : GRID), THREADS, SHARED_BYTES,
                             arguments);
    }
    return ms;
  }

  // Milliseconds.
  float run(int rows, int wanted, int parts, int repeats) {
    CHECK(cudaMemset(at_host<void>(memory.barrier), 0, 4));
    void* arguments[] = {&memory, &sampling, &rows, &wanted, &parts, &repeats};
    return bench::launch_ms(sample_step, dim3(GRID), THREADS, SHARED_BYTES, arguments);
  }
};

template <class T>
static void write_row(uint64_t table, size_t index, size_t each, const std::vector<T>& values) {
  if (values.empty()) return;
  CHECK(cudaMemcpy(reinterpret_cast<T*>(table) + index * each, values.data(),
                   values.size() * sizeof(T), cudaMemcpyHostToDevice));
}

static void write_slots(Device& device, const Group& group) {
  for (size_t i = 0; i < group.cases.size(); i++) {
    const Case& one = group.cases[i];
    write_row(device.sampling.slots, i, 1, std::vector<Slot>{one.slot});
    write_row(device.sampling.bad_tokens, i, BAD_TOKENS_MAX, one.bad_tokens);
    write_row(device.sampling.bad_ends, i, BAD_WORDS_MAX, one.bad_ends);
    write_row(device.sampling.end_tokens, i, END_TOKENS_MAX, one.end_tokens);
  }
}

// The lists of fresh slots are concatenated in two buffers.
static void write_lists(Room& histories, Room& biases, const Group& group, StepBatch& batch) {
  std::vector<uint32_t> tokens;
  std::vector<Bias> entries;
  for (const SampleRow& row : batch.rows) {
    if (!row.fresh) continue;
    const Case& one = group.cases[row.slot];
    tokens.insert(tokens.end(), one.history.begin(), one.history.end());
    entries.insert(entries.end(), one.biases.begin(), one.biases.end());
  }
  uint64_t token = as_address(histories.put(tokens)), bias = as_address(biases.put(entries));
  for (SampleRow& row : batch.rows) {
    if (!row.fresh) continue;
    row.history = token;
    row.biases = bias;
    token += row.history_count * sizeof(uint32_t);
    bias += row.bias_count * sizeof(Bias);
  }
}

static Answers read_answers(const Device& device, const StepBatch& batch, size_t slot_count) {
  const size_t wanted = batch.wanted.size();
  return {bench::read<uint32_t>(device.drafted, batch.draws.size()),
          bench::read<Candidate>(device.sampling.proposals,
                                 slot_count * DRAFT_ROWS * CANDIDATES_MAX),
          bench::read<RowChoice>(device.sampling.row_choices, batch.rows.size()),
          bench::read<uint32_t>(device.sampling.chosen, wanted),
          bench::read<Report>(device.sampling.reports, wanted),
          bench::read<Top>(device.sampling.tops, wanted * TOPS_MAX)};
}

static size_t run_cases(const std::vector<Group>& groups, uint32_t parts) {
  Device device;
  Room histories, biases;
  size_t wrong = 0, steps = 0, positions = 0, drafts = 0;
  for (const Group& group : groups) {
    device.set_up(group.vocab, group.cases.size());
    write_slots(device, group);
    for (size_t step = 0; step < STEPS_MAX; step++) {
      StepBatch batch = batch_of(group, step);
      if (batch.rows.empty()) continue;
      write_lists(histories, biases, group, batch);
      device.load(batch);
      if (!batch.draws.empty()) device.draw(batch.draws.size(), static_cast<int>(parts));
      device.run(batch.rows.size(), batch.wanted.size(), parts, 1);
      const Answers answers = read_answers(device, batch, group.cases.size());
      wrong += compare_drafts(group, batch, step, answers);
      drafts += batch.draws.size();
      const auto slots = bench::read<Slot>(device.sampling.slots, group.cases.size());
      wrong += compare(group, batch, step, answers, slots);
      steps += batch.rows.size();
      positions += batch.wanted.size();
    }
  }
  std::printf("parts %u: %zu rows, %zu wanted tokens, %zu drafts drawn, %zu wrong\n", parts, steps,
              positions, drafts, wrong);
  // A file without cases proves nothing.
  return positions == 0 ? 1 : wrong;
}

// Evicts the L2 cache by its stores, and the instruction caches by its length.
__global__ void evict(uint4* memory, size_t count, uint32_t number) {
  constexpr int INSTRUCTIONS = 16'384;
  uint32_t a = number, b = threadIdx.x;
#pragma unroll
  for (int i = 0; i < INSTRUCTIONS / 2; i++) {
    a = a * 1'664'525u + b;
    b ^= a >> (i % 7 + 1);
  }
  const size_t thread = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (size_t i = thread; i < count; i += static_cast<size_t>(gridDim.x) * blockDim.x)
    memory[i] = make_uint4(a, b, a, b);
}

// The median of single steps, milliseconds.
static float cold_ms(Device& device, size_t wanted, uint32_t parts) {
  constexpr size_t QUADS = (256 << 20) / sizeof(uint4);
  constexpr int STEPS = 21;
  static Room room;
  uint4* memory = room.take<uint4>(QUADS);
  std::vector<float> all;
  for (uint32_t i = 0; i < STEPS; i++) {
    make(evict, GRID, memory, QUADS, i);
    all.push_back(device.run(1, static_cast<int>(wanted), static_cast<int>(parts), 1));
  }
  std::sort(all.begin(), all.end());
  return all[STEPS / 2];
}

static void clock(const char* name, const Case& one, uint32_t top_count, uint32_t parts,
                  bool cold) {
  constexpr int REPEATS = 200;
  Group group{VOCAB, {one}};
  group.cases[0].steps[0].top_count = top_count;
  Device device;
  Room histories, biases;
  device.set_up(VOCAB, 1);
  write_slots(device, group);
  StepBatch batch = batch_of(group, 0);
  write_lists(histories, biases, group, batch);
  device.load(batch);
  float draw_ms = 0;
  for (int i = 0; i < 5 && !batch.draws.empty(); i++)
    draw_ms = device.draw(batch.draws.size(), static_cast<int>(parts));
  device.run(1, batch.wanted.size(), parts, 1);
  float least = 1e9f;
  for (int i = 0; i < 5; i++) {
    const float ms = device.run(1, batch.wanted.size(), parts, REPEATS);
    least = ms < least ? ms : least;
  }
  const Answers answers = read_answers(device, batch, 1);
  if (cold) {
    std::printf("%-34s parts %2u: %7.2f us cold, with the launch\n", name, parts,
                cold_ms(device, batch.wanted.size(), parts) * 1000);
    return;
  }
  std::printf("%-34s parts %2u: %7.2f us a step of %zu positions (%u tokens)\n", name, parts,
              least * 1000 / REPEATS, batch.wanted.size(), answers.rows[0].token_count);
  if (!batch.draws.empty())
    std::printf("%-34s a CTA each: %.2f us for %zu drafts, with the launch\n", "  drawn before",
                draw_ms * 1000, batch.draws.size());
}

// Times all requests, or the one with the given name.
static void clocks(const std::string& name, bool cold) {
  for (const Typical& one : typical_requests())
    for (uint32_t parts : {1u, 16u})
      if (name.empty() || name == one.name)
        clock(one.name, one.request, one.top_count, parts, cold);
}

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: sample FILE [PARTS...] | --time [NAME] | --cold [NAME]\n");
    return 2;
  }
  const std::string what = arguments[1];
  if (what == "--time" || what == "--cold") {
    clocks(count > 2 ? arguments[2] : "", what == "--cold");
    return 0;
  }
  const std::vector<Group> groups = read_groups(arguments[1]);
  size_t wrong = 0;
  if (count == 2) wrong = run_cases(groups, 1);
  for (int i = 2; i < count; i++) wrong += run_cases(groups, std::atoi(arguments[i]));
  return wrong == 0 ? 0 : 1;
}
