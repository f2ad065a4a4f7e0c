// The warps of a CTA of a pass: what they share, and the state of each between phases.
#pragma once

#include "kilotok/phase/attn_schedule.cuh"
#include "kilotok/phase/gathered.cuh"

namespace kilotok {

// The progress of a consumer warp, in shared memory. In registers it would be spilled to local
// memory, which is as slow as L2 or slower.
struct alignas(16) PipelineState {
  // Position in the ring and in the stages of partial sums.
  int page;
  uint32_t page_parity;
  int sum;
  uint32_t sum_parity;
  // How often experts were chosen, and how many turns of the layers have begun.
  uint32_t routed_count, turn_count;
};

// Shared memory of a CTA: 227 KB, less a little for the kernels' static variables.
constexpr int SHARED_MAX = 227 * 1024 - 256;

struct Shared {
  Memory memory;
  RingMemory ring;
  SumMemory sums;
  StreamMemory stream;
  union {
    // For one tile of tokens, or for more.
    Routes routes;
    GatheredRoutes gathered;
  };
  HeldBatch batch;
  // The memory of this layer and of the next.
  LayerMemory layers[2];
  PairsByKind pairs;
  // Mbarriers that complete when the chosen experts of a network are known, when their routes are,
  // and when producer and epilogue no longer need these: a warp that is late must not miss a phase.
  alignas(8) uint64_t experts_chosen;
  alignas(8) uint64_t routes_ready;
  alignas(8) uint64_t routes_free;
  PipelineState pipelines[CONSUMER_WARPS];
};

__device__ __forceinline__ Shared& cta_shared() {
  extern __shared__ __align__(128) char shared_bytes[];
  return *reinterpret_cast<Shared*>(shared_bytes);
}

// Called by all threads of a CTA before they take their roles.
__device__ __forceinline__ void set_up(const Memory& memory,
                                       Launch launch = Launch::Other) {
  Shared& shared = cta_shared();
  if (threadIdx.x == 0) {
    shared.memory = memory;
    wait_context = WaitContext::begin(memory.fault, memory.wait_max_ms, memory.rank, launch);
    ptx::mbarrier_init(ptx::shared_address(&shared.experts_chosen),
                       TILE_TOKENS * ptx::WARP_ARRIVALS);
    ptx::mbarrier_init(ptx::shared_address(&shared.routes_ready), ptx::arrivals(CONSUMERS));
    ptx::mbarrier_init(ptx::shared_address(&shared.routes_free),
                       1 + EPILOGUE_WARPS * ptx::WARP_ARRIVALS);
    Sums(shared.sums).init();
    Ring(shared.ring).init();
  }
  if (threadIdx.x < CONSUMER_WARPS) shared.pipelines[threadIdx.x] = {};
  shared.batch.fetch(memory);
  shared.stream.fetch_peers(memory);
  __syncthreads();
}

// The layers of the target, or of the drafter.
template <bool DRAFT>
struct Part {
  static constexpr int LAYER_COUNT = DRAFT ? DRAFT_LAYERS : LAYERS;
  static constexpr int ATTENTION = DRAFT ? DRAFT_ATTENTION : 0;
  static constexpr int ATTENTION_END = DRAFT ? ATTENTION_KINDS : DRAFT_ATTENTION;
  static constexpr int FEED_FORWARD = DRAFT ? DRAFT_FEED_FORWARD : 0;
  static constexpr int FEED_FORWARD_END = DRAFT ? FEED_FORWARD_KINDS : DRAFT_FEED_FORWARD;
  static constexpr float EPS = DRAFT ? DRAFT_NORM_EPS : NORM_EPS;

  // Consumers: copies a layer's addresses into shared memory, which the acquire of a grid barrier
  // does not invalidate as it does L1.
  static __device__ __forceinline__ void fetch_layer(const Cta& cta, LayerMemory* layers,
                                                     int index) {
    constexpr int WORDS = sizeof(LayerMemory) / 4;
    if (index >= LAYER_COUNT || cta.thread() >= WORDS) return;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(&layer(cta.memory, index));
    reinterpret_cast<uint32_t*>(&layers[index % 2])[cta.thread()] = from[cta.thread()];
  }
  static __device__ __forceinline__ const LayerMemory& layer(const Memory& memory, int index) {
    return at<const LayerMemory>(DRAFT ? memory.draft_layers : memory.layers)[index];
  }

  // The RMSNorm before layer `index`, or before the head when there is no such layer: the address
  // of its weights, and the scale of the operand that it yields.
  struct Norm {
    uint64_t weights;
    float scale;
  };
  static __device__ __forceinline__ Norm norm_before(const Memory& memory,
                                                     const LayerMemory& layer, int index) {
    const bool last = index == LAYER_COUNT;
    return {!last ? layer.input_norm : DRAFT ? memory.draft_norm : memory.final_norm,
            last ? 1.0f : projection_scale(layer.attention)};
  }
};

// The state of a warp in a pass.
struct Warp {
  Shared& shared;
  Cta cta;
  // Of producer and epilogue: their positions, and how often they have waited for routes. Consumers
  // keep theirs in shared memory.
  Ring ring;
  Sums sums;
  uint32_t routed_count;

  __device__ __forceinline__ Warp()
      : shared(cta_shared()),
        cta(shared.memory, shared.batch.counts.collectives),
        ring(shared.ring),
        sums(shared.sums),
        routed_count(0) {}

  __device__ __forceinline__ const HeldBatch& batch() const { return shared.batch; }
  __device__ __forceinline__ int token_count() const { return shared.batch.token_count(); }
  __device__ __forceinline__ int tiles() const { return ceil_div(token_count(), TILE_TOKENS); }
  __device__ __forceinline__ StreamMemory& stream() const { return shared.stream; }

  // Consumers: publishes the routes, which all of them have seen, to producer and epilogue.
  __device__ __forceinline__ void publish_routes() {
    ptx::mbarrier_arrive_met<CONSUMERS>(ptx::shared_address(&shared.routes_ready), cta.thread());
  }

  // With one tile of tokens, consumer warps that may choose: a warp's token has its experts.
  // Producer: waits until all have, before it waits for their routes.
  __device__ __forceinline__ void publish_experts() {
    ptx::mbarrier_arrive_warp(ptx::shared_address(&shared.experts_chosen), cta.lane());
  }
  __device__ __forceinline__ void wait_experts() {
    wait_mbarrier(Waits::Routes, ptx::shared_address(&shared.experts_chosen), routed_count & 1);
  }

  // Producer and epilogue warps: wait for the next routes; release them.
  __device__ __forceinline__ void wait_routes() {
    wait_mbarrier(Waits::Routes, ptx::shared_address(&shared.routes_ready), routed_count++ & 1);
  }
  __device__ __forceinline__ void producer_releases_routes() {
    ptx::mbarrier_arrive(ptx::shared_address(&shared.routes_free));
  }
  __device__ __forceinline__ void epilogue_releases_routes() {
    ptx::mbarrier_arrive_warp(ptx::shared_address(&shared.routes_free), cta.lane());
  }

  // Consumers: waits until the previous routes are released.
  __device__ __forceinline__ void wait_routes_free() {
    const uint32_t count = next(&PipelineState::routed_count);
    if (count == 0) return;
    wait_mbarrier(Waits::Routes, ptx::shared_address(&shared.routes_free), (count + 1) & 1);
  }

  // Consumers: begins the next turn of the layers, of which a layer has two, and returns its
  // number; the current layer.
  __device__ __forceinline__ int next_turn() { return next(&PipelineState::turn_count); }
  __device__ __forceinline__ const LayerMemory& layer() const {
    return shared.layers[layer_index() % 2];
  }
  __device__ __forceinline__ int layer_index() const {
    const volatile PipelineState& state = shared.pipelines[cta.warp()];
    return (state.turn_count - 1) / 2;
  }

  // Consumers: calls `phase(ring, sums)` with the warp's saved positions, and saves them again.
  template <class Phase>
  __device__ __forceinline__ void with_pipeline(Phase phase) {
    PipelineState& state = shared.pipelines[cta.warp()];
    const uint4 was = ptx::load_shared(ptx::shared_address(&state));
    Ring own_ring(shared.ring);
    Sums own_sums(shared.sums);
    own_ring.stage = was.x;
    own_ring.parity = was.y;
    own_sums.stage = was.z;
    own_sums.parity = was.w;
    phase(own_ring, own_sums);
    __syncwarp();
    if (cta.lane() == 0) {
      state.page = own_ring.stage;
      state.page_parity = own_ring.parity;
      state.sum = own_sums.stage;
      state.sum_parity = own_sums.parity;
    }
    __syncwarp();
  }

 private:
  // Increments a counter and returns its old value.
  __device__ __forceinline__ uint32_t next(uint32_t PipelineState::* count) {
    volatile uint32_t& kept = shared.pipelines[cta.warp()].*count;
    const uint32_t was = kept;
    __syncwarp();
    if (cta.lane() == 0) kept = was + 1;
    __syncwarp();
    return was;
  }
};

// Sets up a CTA and dispatches each warp to its role.
template <class Roles>
__device__ __forceinline__ void run(const Memory& memory) {
  set_up(memory, Roles::LAUNCH);
  // A launch chain that was enqueued ahead and is not needed has an empty batch.
  if (cta_shared().batch.token_count() == 0) return;
  Warp warp;
  Roles::begin(warp);
  if (threadIdx.x < CONSUMERS) {
    ptx::more_registers<CONSUMER_REGISTERS>();
    warp.cta.stamp(Stamp::Begun);
    Roles::consume(warp);
    warp.cta.stamp(Stamp::Ended);
    // After a context switch (time-slicing, debugger) a CTA must be on the same SM as before. If it
    // is not, two CTAs had the same number, and no result may be used.
    if (warp.cta.index() != wait_context.cta) __trap();
  } else {
    ptx::fewer_registers<HELPER_REGISTERS>();
    if (threadIdx.x >= CONSUMERS + 32)
      Roles::epilogue(warp);
    else if (threadIdx.x == CONSUMERS)
      Roles::produce(warp);
  }
}

}  // namespace kilotok
