// The kernels that the engine launches: one CTA per SM, all resident.
#include "step/context.cuh"
#include "step/step.cuh"

namespace kilotok {

// Sets up a CTA; then its consumers call `consume`, one thread `produce`, the adders `add`.
template <class Consume, class Produce, class Add>
__device__ __forceinline__ void run(const Memory& memory, Consume consume, Produce produce,
                                    Add add) {
  extern __shared__ __align__(128) char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  Ring ring(shared.ring);
  Sums sums(shared.sums);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(ptx::shared_address(&shared.routed), 1);
    sums.init();
    ring.init();
  }
  __syncthreads();
  const Place place = {at<Fault>(memory.fault), memory.wait_max_ms * 1000000ull, memory.rank, 0};
  const Batch& batch = *at<const Batch>(memory.batch);
  Cta cta = {memory, place, 0, batch.exchanges, 0};
  Walker walker = {cta, ring, sums, shared, batch, 0};
  if (threadIdx.x < CONSUMERS) {
    ptx::more_registers<CONSUMER_REGISTERS>();
    consume(walker);
  } else {
    ptx::fewer_registers<HELPER_REGISTERS>();
    if (threadIdx.x >= CONSUMERS + 32)
      add(walker);
    else if (threadIdx.x == CONSUMERS)
      produce(walker);
  }
}

}  // namespace kilotok

using namespace kilotok;

// What a launch of a kernel here must ask for.
extern "C" __device__ const unsigned SHARED_BYTES = sizeof(Shared);
extern "C" __device__ const unsigned THREAD_COUNT = THREADS;

// The target's layers over a batch, to the logits of the wanted tokens and the taps of all.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    target(const __grid_constant__ Memory memory) {
  run(memory, [](Walker& w) { consume_pass<false>(w); }, [](Walker& w) { produce_pass<false>(w); },
      [](Walker& w) { add_pass<false>(w); });
}

// Keys and values of committed tokens in every layer of the drafter, from the target's taps.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draft_context(const __grid_constant__ Memory memory) {
  run(memory, [](Walker& w) { consume_context(w); }, [](Walker& w) { produce_context(w); },
      [](Walker& w) { add_context(w); });
}

// The drafter's layers over draft rows, to the logits of the wanted ones.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draft_rows(const __grid_constant__ Memory memory) {
  run(memory, [](Walker& w) { consume_pass<true>(w); }, [](Walker& w) { produce_pass<true>(w); },
      [](Walker& w) { add_pass<true>(w); });
}
