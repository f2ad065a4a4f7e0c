// The activation functions and the choice of experts, on inputs of a test of crates/cpu, which
// compares the outputs with its own (phase/kernels.rs). On a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/harness/phase_model kernels/harness/phase.cu -o phase
//   KILOTOK_PHASE=$PWD/phase cargo test -p kilotok-cpu --lib kernels::
//
// The argument is a phase's place in the list below. Rows of F32 come from stdin and go to stdout.
#include "bench.h"
#include "kilotok/phase/router.cuh"

namespace bench {

using namespace kilotok;

// Gate and up -> the inner value.
template <int KIND>
struct Activate {
  static constexpr int IN = 2, OUT = 1;

  static __device__ void run(const float* in, float* out) { *out = activate<KIND>(in[0], in[1]); }
};

// A token's scores, 1 / rms, and the bias of each expert -> the experts, and their weights.
template <int KIND>
struct Choose {
  static constexpr FeedForward F = FEED_FORWARDS[KIND];
  static constexpr int IN = F.experts + 1 + F.experts, OUT = F.top_k * 2;

  static __device__ void run(const float* in, float* out) {
    __shared__ uint16_t experts[F.top_k];
    const int lane = threadIdx.x;
    const Scores<KIND, false> scores(in, in + F.experts + 1, lane);
    top_k_of_token(scores, experts, out + F.top_k, lane, [](const auto&) {});
    if (lane < F.top_k) out[lane] = experts[lane];
  }
};

template <class Phase>
__global__ void rows(const float* in, float* out, int count) {
  for (int row = 0; row < count; row++) {
    Phase::run(in + row * Phase::IN, out + row * Phase::OUT);
    __syncwarp();
  }
}

template <class Phase>
void run(const std::vector<float>& in) {
  Buffers buffers;
  int count = static_cast<int>(in.size()) / Phase::IN;
  const float* from = at<const float>(buffers.put(in));
  const uint64_t to = buffers.take(size_t{4} * count * Phase::OUT);
  float* out = at<float>(to);
  void* arguments[] = {&from, &out, &count};
  launch_ms(rows<Phase>, dim3(1), 32, 0, arguments);
  const std::vector<float> found = read<float>(to, size_t{1} * count * Phase::OUT);
  std::fwrite(found.data(), 4, found.size(), stdout);
}

constexpr void (*PHASES[])(const std::vector<float>& in) = {
    run<Activate<0>>, run<Activate<1>>, run<Choose<0>>, run<Choose<1>>, run<Choose<2>>};

}  // namespace bench

int main(int, char** argv) {
  std::vector<float> in;
  for (float value; std::fread(&value, 4, 1, stdin) == 1;) in.push_back(value);
  bench::PHASES[std::atoi(argv[1])](in);
}
