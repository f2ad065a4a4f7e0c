// The collectives between ranks (all-reduce of parts, all-gather of logits, argmax of drafts),
// checked and timed. One GPU for each rank, with peer access to the others:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -DCOLLECTIVE_RANKS=8 -I kernels \
//     -I kernels/include -I kernels/models/slice kernels/harness/collectives.cu -o collectives
//   ./collectives            checks and times
//   ./collectives check      checks alone, for compute-sanitizer
//   ./collectives lost       launches the first rank alone: its wait must time out and name a rank
//
// If there are fewer GPUs, ranks share them if they fit, and are checked but not timed. The three
// that are compiled in by default fit one GPU. Sums must have the bits of BF16 parts added in F32
// in rank order, at every rank; parts differ so much in size that another order would give other
// bits. Logits and drafts must be those that were sent. Everything is repeated within one launch
// and over several. Returns 1 if anything is wrong.
#ifndef COLLECTIVE_RANKS
#define COLLECTIVE_RANKS 3
#endif
#define HARNESS_RANKS COLLECTIVE_RANKS
#include "ranks.h"

#include <memory>

#include "bench.h"
#include "kilotok/comm/all_gather.cuh"

namespace bench {

using namespace kilotok;
static_assert(RANKS > 1 && RANKS <= RANKS_MAX, "one rank has no peers");

struct CollectiveWork {
  // The `Memory` of each rank of this GPU.
  uint64_t memories;
  int token_count, repeats;
  // The number of all-reduces and all-gathers in earlier launches.
  uint32_t collectives, gathered;
  // For each rank of this GPU, if results are kept: sums, F32 `[repeats][token_count][HIDDEN]`;
  // logits, `[repeats][token_count][VOCAB]`; drafts, `[repeats][token_count][RANKS]`.
  uint64_t sums, logits, drafts;
};

struct CollectiveShared {
  Memory memory;
  StreamMemory stream;
};

// A rank's part of a sum, from 2^-16 to 2^15.
__host__ __device__ inline float part_of(int rank, int repeat, int token, int column) {
  const uint64_t i = (static_cast<uint64_t>(repeat) * TOKENS_MAX + token) * HIDDEN + column;
  const uint32_t bits = (111 + mixed(200 + rank, i) % 32) << 23;
  float size;
  memcpy(&size, &bits, 4);
  return uniform(100 + rank, i) * size;
}
__host__ __device__ inline float logit_of(int repeat, int token, int id) {
  return uniform(300, (static_cast<uint64_t>(repeat) * TOKENS_MAX + token) * VOCAB + id);
}
__host__ __device__ inline uint64_t draft_of(int rank, int repeat, int token) {
  const uint64_t i = (static_cast<uint64_t>(repeat) * TOKENS_MAX + token) * RANKS + rank;
  return static_cast<uint64_t>(mixed(400, i)) << 32 | mixed(401, i);
}

__device__ __forceinline__ void fill_parts(const Cta& cta, StreamMemory& stream, int repeat,
                                           int token_count) {
  for (int k = cta.thread(); k < token_count * OWNER_ROWS; k += CONSUMERS) {
    const int token = k / OWNER_ROWS, row = k % OWNER_ROWS;
    const int column = cta.index() * OWNER_ROWS + row;
    stream.part[token][row] =
        column < HIDDEN ? part_of(static_cast<int>(cta.memory.rank), repeat, token, column) : 0;
  }
}

__device__ __forceinline__ void keep_sums(const Cta& cta, const StreamMemory& stream, float* to,
                                          int token_count) {
  for (int k = cta.thread(); k < token_count * OWNER_ROWS; k += CONSUMERS) {
    const int token = k / OWNER_ROWS, row = k % OWNER_ROWS;
    const int column = cta.index() * OWNER_ROWS + row;
    if (column < HIDDEN) to[token * HIDDEN + column] = stream.part[token][row];
  }
}

// Sends and receives the logits and drafts of all tokens, and stores them.
__device__ __forceinline__ void gather(Cta& cta, const CollectiveWork& work, int repeat,
                                       int place) {
  const Memory& memory = cta.memory;
  const int count = work.token_count, stride = GRID * CONSUMERS;
  const int first = cta.index() * CONSUMERS + cta.thread();
  const int own = static_cast<int>(memory.rank) * RANK_LOGITS;
  for (int i = first; i < count * RANK_LOGITS; i += stride)
    at<float>(memory.logits)[i / RANK_LOGITS * VOCAB_ROWS + i % RANK_LOGITS] =
        logit_of(repeat, i / RANK_LOGITS, own + i % RANK_LOGITS);
  cta.sync_grid();
  start_all_gather(cta, count);
  cta.sync_grid();
  const uint32_t number = work.gathered + repeat + 1;
  finish_all_gather(cta, number);
  const size_t kept = (static_cast<size_t>(place) * work.repeats + repeat) * count;
  const float* received =
      at<const float>(at<const Peers>(memory.peers)->receivers[memory.rank] + LOGITS_OFFSET);
  for (int i = first; i < count * RANK_LOGITS * RANKS; i += stride) {
    const int token = i / (RANK_LOGITS * RANKS), id = i % (RANK_LOGITS * RANKS);
    at<float>(work.logits)[(kept + token) * VOCAB + id] =
        ptx::load_l2(received + static_cast<size_t>(token) * LOGITS_STRIDE + id);
  }
  for (int token = cta.index(); cta.warp() == 0 && token < count; token += GRID) {
    const uint64_t mine = draft_of(static_cast<int>(memory.rank), repeat, token);
    const uint64_t theirs = all_reduce_min(cta, token, mine, number);
    if (cta.lane() < RANKS)
      at<uint64_t>(work.drafts)[(kept + token) * RANKS + cta.lane()] = theirs;
  }
  cta.sync_grid();
}

// The most ranks that can share a GPU: three, whose order shows in sums. With more there are too
// few registers.
constexpr int SHARING = RANKS <= 3 ? RANKS : 2;

// Row `blockIdx.y` of the grid is a rank.
__global__ void __launch_bounds__(CONSUMERS, SHARING)
    collectives(const __grid_constant__ CollectiveWork work) {
  CollectiveShared& shared = *reinterpret_cast<CollectiveShared*>(asked_memory());
  const int place = blockIdx.y;
  Words<sizeof(Memory)>(work.memories + place * sizeof(Memory)).store(&shared.memory);
  __syncthreads();
  const Memory& memory = shared.memory;
  if (threadIdx.x == 0)
    wait_context = WaitContext::begin(memory.fault, memory.wait_max_ms, memory.rank);
  shared.stream.fetch_peers(memory);
  __syncthreads();
  Cta cta(memory, work.collectives);
  for (int i = 0; i < work.repeats; i++) {
    if (work.logits != 0) gather(cta, work, i, place);
    if (is_owner(cta)) {
      // If sums are not kept they are the next parts: only the time matters.
      if (work.sums != 0 || i == 0) fill_parts(cta, shared.stream, i, work.token_count);
      all_reduce(cta, shared.stream, work.token_count);
      cta.sync();
      const size_t kept = static_cast<size_t>(place) * work.repeats + i;
      if (work.sums != 0)
        keep_sums(cta, shared.stream, at<float>(work.sums) + kept * work.token_count * HIDDEN,
                  work.token_count);
    }
    if (work.logits != 0) cta.sync_grid();
  }
}

// A GPU with its ranks.
struct Gpu {
  int index, first, count;
  Buffers buffers;
  std::vector<Memory> memories;
  uint64_t barriers;
  CollectiveWork work = {};
  cudaEvent_t start, end;

  Gpu(int device, int first_rank, int rank_count, uint32_t wait_ms)
      : index(device), first(first_rank), count(rank_count), memories(rank_count) {
    CHECK(cudaSetDevice(index));
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    barriers = buffers.take(size_t{COUNTERS} * COUNTER_BYTES * count);
    for (int i = 0; i < count; i++) {
      Memory& m = memories[i];
      m = {};
      m.rank = static_cast<uint32_t>(first + i);
      m.barrier = barriers + i * COUNTERS * COUNTER_BYTES;
      m.logits = buffers.take(size_t{TOKENS_MAX} * VOCAB_ROWS * 4);
      m.fault = fault_address();
      m.wait_max_ms = wait_ms;
    }
  }
};

// All ranks, on as many GPUs as there are.
struct Ranks {
  std::vector<std::unique_ptr<Gpu>> gpus;
  Peers receivers = {};
  uint32_t reduced = 0, gathered = 0;

  Ranks(int gpu_count, uint32_t wait_ms) {
    for (int i = 0; i < gpu_count; i++) {
      const int first = i * RANKS / gpu_count, end = (i + 1) * RANKS / gpu_count;
      gpus.push_back(std::make_unique<Gpu>(i, first, end - first, wait_ms));
      for (int rank = first; rank < end; rank++)
        receivers.receivers[rank] = gpus[i]->buffers.take(RECEIVER_BYTES, 0);
    }
    for (auto& gpu : gpus) {
      CHECK(cudaSetDevice(gpu->index));
      for (const auto& other : gpus) {
        if (other == gpu) continue;
        int can = 0;
        CHECK(cudaDeviceCanAccessPeer(&can, gpu->index, other->index));
        if (!can) {
          std::printf("GPU %d does not reach the memory of %d\n", gpu->index, other->index);
          std::exit(1);
        }
        CHECK(cudaDeviceEnablePeerAccess(other->index, 0));
      }
      const uint64_t peers = gpu->buffers.put(std::vector<Peers>{receivers});
      for (Memory& m : gpu->memories) m.peers = peers;
      gpu->work.memories = gpu->buffers.put(gpu->memories);
      // Loads the code now, not while another GPU waits.
      CHECK(cudaFuncSetAttribute(collectives, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(sizeof(CollectiveShared))));
    }
  }

  // Begins the kernels of the first GPUs.
  void begin(int token_count, int repeats, size_t gpu_count) {
    const bool gathers = gpus[0]->work.logits != 0;
    for (size_t i = 0; i < gpu_count; i++) {
      Gpu& gpu = *gpus[i];
      gpu.work.token_count = token_count;
      gpu.work.repeats = repeats;
      gpu.work.collectives = reduced;
      gpu.work.gathered = gathered;
      CHECK(cudaSetDevice(gpu.index));
      CHECK(cudaMemset(at<void>(gpu.barriers), 0, size_t{COUNTERS} * COUNTER_BYTES * gpu.count));
      CHECK(cudaDeviceSynchronize());
    }
    for (size_t i = 0; i < gpu_count; i++) {
      Gpu& gpu = *gpus[i];
      void* arguments[] = {&gpu.work};
      const dim3 grid(gathers ? GRID : OWNER_UNITS, gpu.count);
      CHECK(cudaSetDevice(gpu.index));
      CHECK(cudaEventRecord(gpu.start));
      CHECK(cudaLaunchCooperativeKernel(collectives, grid, dim3(CONSUMERS), arguments,
                                        sizeof(CollectiveShared), nullptr));
      CHECK(cudaEventRecord(gpu.end));
    }
    reduced += repeats;
    gathered += gathers ? repeats : 0;
  }

  // Runs all kernels. Returns the milliseconds of the last one to begin, which does not wait for
  // others to begin.
  float launch(int token_count, int repeats) {
    begin(token_count, repeats, gpus.size());
    float ms = 0;
    for (auto& gpu : gpus) {
      CHECK(cudaSetDevice(gpu->index));
      CHECK(cudaDeviceSynchronize());
      CHECK(cudaEventElapsedTime(&ms, gpu->start, gpu->end));
    }
    return ms;
  }

  void keep(int token_count, int repeats, bool gathers) {
    const size_t count = size_t{1} * repeats * token_count;
    for (auto& gpu : gpus) {
      CHECK(cudaSetDevice(gpu->index));
      CollectiveWork& work = gpu->work;
      work.sums = gpu->buffers.take(count * gpu->count * HIDDEN * 4);
      work.logits = gathers ? gpu->buffers.take(count * gpu->count * VOCAB * 4) : 0;
      work.drafts = gathers ? gpu->buffers.take(count * gpu->count * RANKS * 8) : 0;
    }
  }
  void keep_nothing() {
    for (auto& gpu : gpus) gpu->work.sums = gpu->work.logits = gpu->work.drafts = 0;
  }
};

// The sum as every rank computes it: from 0, in rank order.
float sum_of(int repeat, int token, int column) {
  float sum = 0;
  for (int rank = 0; rank < RANKS; rank++)
    sum += bf16_value(bf16_bits(part_of(rank, repeat, token, column)));
  return sum;
}

void check_sums(const Gpu& gpu, int token_count, int repeats, Verdict& verdict) {
  const auto sums =
      read<float>(gpu.work.sums, size_t{1} * gpu.count * repeats * token_count * HIDDEN);
  for (int repeat = 0; repeat < repeats; repeat++)
    for (int token = 0; token < token_count; token++)
      for (int column = 0; column < HIDDEN; column++) {
        const float wanted = sum_of(repeat, token, column);
        for (int place = 0; place < gpu.count; place++) {
          const size_t row = (size_t{1} * place * repeats + repeat) * token_count + token;
          verdict.exact(sums[row * HIDDEN + column], wanted, "sum of rank, column",
                        gpu.first + place, column);
        }
      }
}

void check_gathered(const Gpu& gpu, int token_count, int repeats, Verdict& verdict) {
  const size_t count = size_t{1} * gpu.count * repeats * token_count;
  const auto logits = read<float>(gpu.work.logits, count * VOCAB);
  const auto drafts = read<uint64_t>(gpu.work.drafts, count * RANKS);
  for (size_t i = 0; i < count; i++) {
    const int token = static_cast<int>(i % token_count);
    const int repeat = static_cast<int>(i / token_count % repeats);
    const int rank = gpu.first + static_cast<int>(i / token_count / repeats);
    for (int id = 0; id < RANK_LOGITS * RANKS; id++)
      verdict.exact(logits[i * VOCAB + id], logit_of(repeat, token, id), "logit at rank, of", rank,
                    id);
    for (int other = 0; other < RANKS; other++)
      verdict.exact(drafts[i * RANKS + other] == draft_of(other, repeat, token), true,
                    "draft at rank, of rank", rank, other);
  }
}

bool check(Ranks& ranks) {
  Verdict verdict = {"sums, logits and drafts"};
  struct Case {
    int token_count, repeats;
    bool gathers;
  };
  // Odd numbers of all-reduces, so that launches begin at either set of locations.
  for (const Case& c : {Case{TILE_TOKENS, 9, false}, Case{TOKENS_MAX, 3, false},
                        Case{1, 5, true}, Case{TILE_TOKENS, 3, true}}) {
    ranks.keep(c.token_count, c.repeats, c.gathers);
    ranks.launch(c.token_count, c.repeats);
    for (const auto& gpu : ranks.gpus) {
      CHECK(cudaSetDevice(gpu->index));
      check_sums(*gpu, c.token_count, c.repeats, verdict);
      if (c.gathers) check_gathered(*gpu, c.token_count, c.repeats, verdict);
    }
    ranks.keep_nothing();
  }
  return verdict.print();
}

void time(Ranks& ranks) {
  for (int tokens : {1, 4, TILE_TOKENS, 16, 32, TOKENS_MAX}) {
    const double us = best_us(2000, [&](int repeats) { return ranks.launch(tokens, repeats); });
    std::printf("  %d tokens, %.0f KB of BF16, %d ranks: %.2f us an all-reduce\n", tokens,
                tokens * HIDDEN * 2 / 1024.0, RANKS, us);
  }
}

// The time limit of the first rank, which waits for ranks that are not launched.
constexpr uint32_t LOST_MS = 100;

// Its kernel times out; after that the program cannot use the GPU.
bool lose(Ranks& ranks) {
  ranks.begin(TILE_TOKENS, 1, 1);
  CHECK(cudaSetDevice(ranks.gpus[0]->index));
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("%s; rank %u, CTA %u: wait for %s timed out, collective %u\n",
              cudaGetErrorString(error), fault->rank, fault->cta,
              name_of(static_cast<Waits>(fault->code)), fault->wanted);
  return error != cudaSuccess && fault->rank == 0 && fault->wanted == 1 &&
         fault->code == static_cast<uint32_t>(Waits::Peer);
}

}  // namespace bench

int main(int argc, char** argv) {
  cudaDeviceProp device;
  int gpu_count = 0;
  CHECK(cudaGetDeviceCount(&gpu_count));
  CHECK(cudaGetDeviceProperties(&device, 0));
  gpu_count = std::min(gpu_count, kilotok::RANKS);
  std::printf("%s, hidden size %d, %d ranks on %d GPUs\n", device.name, kilotok::HIDDEN,
              kilotok::RANKS, gpu_count);
  const auto is = [&](const char* word) { return argc > 1 && std::strcmp(argv[1], word) == 0; };
  const bool lost = is("lost"), timed = !lost && !is("check") && gpu_count == kilotok::RANKS;
  if (gpu_count * bench::SHARING < kilotok::RANKS || (lost && gpu_count == 1)) {
    std::printf("skipped: %d ranks need as many GPUs\n", kilotok::RANKS);
    return 0;
  }
  bench::Ranks ranks(gpu_count, lost ? bench::LOST_MS : bench::wait_max_ms());
  const bool right = lost ? bench::lose(ranks) : bench::check(ranks);
  if (timed)
    bench::time(ranks);
  else if (argc == 1)
    std::puts("  not timed: ranks share GPUs");
  std::puts(right ? "all right" : "WRONG");
  return right ? 0 : 1;
}
