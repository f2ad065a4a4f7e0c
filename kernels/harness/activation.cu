// The activation functions of feed-forward networks beside their formulas in double precision, on
// both sides of every limit. Needs a GPU:
//
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/activation.cu -o activation
//   ./activation         checks; there is nothing to time
//
// Returns 1 if anything is wrong.
#include "bench.h"
#include "kilotok/phase/activation.cuh"

namespace bench {

using namespace kilotok;

constexpr int CTA_THREADS = 128;
// gpt-oss's.
constexpr float ALPHA = 1.702f, LIMIT = 7;
// Four times the relative error that activation.cuh states.
constexpr double TOLERANCE = 1.0 / (1 << 17);

struct Work {
  uint64_t gates, ups, values;
  int count;
  Activation activation;
};

__global__ void __launch_bounds__(CTA_THREADS, 1) activate_all(const Work work) {
  for (int i = threadIdx.x; i < work.count; i += CTA_THREADS)
    at<float>(work.values)[i] = activate(work.activation, ALPHA, LIMIT,
                                         at<const float>(work.gates)[i],
                                         at<const float>(work.ups)[i]);
}

double expected(Activation activation, double gate, double up) {
  if (activation == Activation::SiluMul) return gate / (1 + std::exp(-gate)) * up;
  // The gate has no lower limit.
  const double g = std::min(gate, double{LIMIT}), u = std::clamp<double>(up, -LIMIT, LIMIT);
  return g / (1 + std::exp(-double{ALPHA} * g)) * (u + 1);
}

bool check(Activation activation, const char* name) {
  const std::vector<float> sides = {-20, -7.5f, -7,   -6.5f, -1,   -0.25f, 0,
                                    0.5f, 1,    6.5f, 7,     7.5f, 20};
  std::vector<float> gates, ups;
  for (const float gate : sides)
    for (const float up : sides) {
      gates.push_back(gate);
      ups.push_back(up);
    }
  Buffers buffers;
  const int count = static_cast<int>(gates.size());
  Work work = {buffers.put(gates), buffers.put(ups), buffers.take(gates.size() * 4), count,
               activation};
  void* arguments[] = {&work};
  launch_ms(activate_all, dim3(1), CTA_THREADS, 0, arguments);
  const std::vector<float> found = read<float>(work.values, gates.size());
  Verdict verdict = {name};
  for (int i = 0; i < count; i++) {
    const double wanted = expected(activation, gates[i], ups[i]);
    verdict.near(found[i], wanted, std::fabs(wanted) * TOLERANCE, "value of gate, up",
                 i / static_cast<int>(sides.size()), i % static_cast<int>(sides.size()));
  }
  return verdict.print();
}

bool all(bool) {
  const bool silu = check(Activation::SiluMul, "silu of the gate, times up");
  return check(Activation::ClampedSwiglu, "the clamped activation of gpt-oss") && silu;
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all); }
