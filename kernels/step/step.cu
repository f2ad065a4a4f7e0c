// The kernels that the engine launches: one CTA per SM, all resident.
#define KILOTOK_CTA_PER_SM
#include "kilotok/layout/planned.cuh"
#include "kilotok/phase/drafts.cuh"
#include "step/context.cuh"
#include "step/one.cuh"
#include "step/step.cuh"
#include "step/verify.cuh"

namespace kilotok {

static_assert(ptx::CTA_PER_SM, "this comes before whatever else includes CTAs");

// What each warp role does in a kernel for up to TILES tiles of tokens.
template <bool DRAFT, int TILES>
struct Pass {
  static constexpr Launch LAUNCH = DRAFT ? Launch::DraftRows : Launch::Target;
  // Counts the attention work by which consumers and producer divide it.
  static __device__ __forceinline__ void begin(Warp& w) {
    using P = Part<DRAFT>;
    count_pairs<P::ATTENTION, P::ATTENTION_END, DRAFT>(w.cta, w.shared.pairs, w.batch());
    __syncthreads();
  }
  static __device__ __forceinline__ void consume(Warp& w) {
    consume_pass<DRAFT, TILES>(w);
    if constexpr (DRAFT) {
      w.cta.sync_grid();
      static_assert(sizeof(DraftScratch) <= SCRATCH_BYTES, "it fits the sums' place");
      choose_drafts(w.cta, *reinterpret_cast<DraftScratch*>(w.shared.sums.scratch), w.batch(),
                    w.batch().counts.collectives + 1);
    }
  }
  static __device__ __forceinline__ void produce(Warp& w) { produce_pass<DRAFT, TILES>(w); }
  static __device__ __forceinline__ void epilogue(Warp& w) { epilogue_pass<DRAFT, TILES>(w); }
};

// The same for one token of a model that has code for it.
template <bool HAS>
struct OneTokenPass {
  static constexpr Launch LAUNCH = Launch::Target;
  static __device__ __forceinline__ void begin(Warp& w) {
    begin_one(w);
    __syncthreads();
  }
  static __device__ __forceinline__ void consume(Warp& w) { consume_one(w); }
  static __device__ __forceinline__ void produce(Warp& w) { produce_one(w); }
  static __device__ __forceinline__ void epilogue(Warp& w) { epilogue_one(w); }
};

template <int TILES>
struct Context {
  static constexpr Launch LAUNCH = Launch::DraftContext;
  static __device__ __forceinline__ void begin(Warp&) {}
  static __device__ __forceinline__ void consume(Warp& w) { consume_context<TILES>(w); }
  static __device__ __forceinline__ void produce(Warp& w) { produce_context<TILES>(w); }
  static __device__ __forceinline__ void epilogue(Warp& w) { epilogue_context(w); }
};

template <bool HAS>
__device__ __forceinline__ void run_if(const Memory& memory) {
  if constexpr (HAS) run<OneTokenPass<HAS>>(memory);
}

// Records the time of the drafter's progress; later launches of a step overwrite it.
__device__ __forceinline__ void note_drafted(const Memory& memory) {
  if (threadIdx.x == 0 && ptx::cta_index() == 0 && cta_shared().batch.token_count() > 0)
    at<Timestamps>(memory.timestamps)->drafted = ptx::nanoseconds();
}

}  // namespace kilotok

using namespace kilotok;

// What the host needs to launch the kernels below; `take_plan` has its own.
static_assert(sizeof(VerifyShared) <= sizeof(Shared), "a kernel gets as much as any other");
static_assert(sizeof(Shared) <= SHARED_MAX, "a CTA's memory suffices");
static_assert(planned::SHARED == sizeof(Shared), "the host's plan");
extern "C" __device__ const unsigned SHARED_BYTES = sizeof(Shared);
extern "C" __device__ const unsigned THREAD_COUNT = THREADS;
// The largest number of tokens of the kernels for one tile. Those with `_many` in their names take
// more.
extern "C" __device__ const unsigned ONE_TILE = TILE_TOKENS;
// Whether there is a kernel for one token, `target_one`.
extern "C" __device__ const unsigned HAS_ONE_TOKEN = HAS_ONE;

// Copies a step's plan from the host's memory to the GPU's, and acknowledges the doorbell. Each CTA
// copies PLAN_CTA_BYTES, repeatedly if there are too few CTAs.
static_assert(PLAN_THREAD_BYTES == sizeof(uint4), "one load");
constexpr int PLAN_THREADS = PLAN_CTA_BYTES / PLAN_THREAD_BYTES;
extern "C" __global__ void __launch_bounds__(PLAN_THREADS)
    take_plan(const __grid_constant__ PlanMemory plan) {
  const uint32_t now = ptx::nanoseconds();
  uint32_t place = blockIdx.x * PLAN_CTA_BYTES + threadIdx.x * PLAN_THREAD_BYTES;
  // The acknowledgement does not order other writes, so neither it nor the loads after it have to
  // wait.
  if (place == 0) *at<volatile uint32_t>(plan.acknowledged) = plan.number;
#pragma unroll 1
  for (; place < plan.bytes; place += gridDim.x * PLAN_CTA_BYTES) {
    const uint4 words = ptx::load_system(at<const char>(plan.from) + place);
    ptx::store_l2(at<char>(plan.to) + place, words);
    // A plan without tokens belongs to a step that is not run.
    if (place == 0 && words.x > 0) at<Timestamps>(plan.timestamps)->begun = now;
  }
}

// Writes the CTAs' numbers in the order of `blockIdx`, in a launch of as many CTAs as the other
// kernels have. The host checks that they are 0 to GRID - 1.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    count_off(const __grid_constant__ uint64_t numbers) {
  if (threadIdx.x == 0) at<uint32_t>(numbers)[blockIdx.x] = ptx::cta_index();
}

// Loads of a thread that are in flight at once. All SMs together have 8.7 MB in flight, twice what
// an H200 reads in a microsecond, which is longer than a load takes.
constexpr int READ_LOADS = 8, READ_THREADS = 512;

extern "C" __device__ const unsigned READ_THREAD_COUNT = READ_THREADS;

// Only reads memory: `kilotok bench` prints the bandwidth that it reaches beside that of phases.
extern "C" __global__ void __launch_bounds__(READ_THREADS)
    read_memory(const __grid_constant__ ReadMemory read) {
  const uint64_t threads = static_cast<uint64_t>(gridDim.x) * READ_THREADS;
  const uint64_t step = threads * READ_LOADS * sizeof(uint4);
  const uint64_t thread = static_cast<uint64_t>(blockIdx.x) * READ_THREADS + threadIdx.x;
  const char* from = at<const char>(read.from) + thread * sizeof(uint4);
  uint32_t sum = 0;
#pragma unroll 1
  for (uint64_t place = 0; place + step <= read.bytes; place += step) {
    uint4 words[READ_LOADS];
#pragma unroll
    for (int i = 0; i < READ_LOADS; i++)
      words[i] = ptx::load_weights(from + place + i * threads * sizeof(uint4));
#pragma unroll
    for (int i = 0; i < READ_LOADS; i++) sum |= words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
  }
  if (sum == 1) *at<uint32_t>(read.to) = sum;
}

// Each pass is compiled twice, for one tile of tokens and for more: as one kernel they would fit
// neither the registers nor the instruction cache.

// The target's layers over a batch: writes the logits of the wanted tokens and the taps of all
// tokens.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    target(const __grid_constant__ Memory memory) {
  run<Pass<false, 1>>(memory);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    target_one(const __grid_constant__ Memory memory) {
  run_if<HAS_ONE>(memory);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    target_many(const __grid_constant__ Memory memory) {
  run<Pass<false, TILES_MAX>>(memory);
}

// Samples and verifies: chooses the tokens that follow the wanted ones by the logits of all ranks,
// and sets where drafts begin.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    verify(const __grid_constant__ VerifyMemory arguments) {
  extern __shared__ __align__(128) char shared_bytes[];
  if (threadIdx.x < CONSUMERS)
    choose_tokens(arguments, *reinterpret_cast<VerifyShared*>(shared_bytes));
}

// Keys and values of the batch's tokens in every layer of the drafter, computed from the target's
// taps. Those of rejected drafts are overwritten before they are read, as in the target's own
// cache.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draft_context(const __grid_constant__ Memory memory) {
  run<Context<1>>(memory);
  note_drafted(memory);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draft_context_many(const __grid_constant__ Memory memory) {
  run<Context<TILES_MAX>>(memory);
  note_drafted(memory);
}

// The drafter's layers over draft rows: chooses the drafts at the wanted tokens.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draft_rows(const __grid_constant__ Memory memory) {
  run<Pass<true, 1>>(memory);
  note_drafted(memory);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draft_rows_many(const __grid_constant__ Memory memory) {
  run<Pass<true, TILES_MAX>>(memory);
  note_drafted(memory);
}
