// Shared by the harnesses: checked CUDA calls, GPU memory, seeded random numbers, and timed
// launches.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kilotok/cta.cuh"

namespace bench {

using kilotok::at;

// The fault record of all kernels of the program.
inline kilotok::Fault* fault = nullptr;

[[noreturn]] inline void fail(const char* call, int line, cudaError_t error) {
  std::printf("%s, line %d: %s\n", call, line, cudaGetErrorString(error));
  if (fault && fault->code)
    std::printf("rank %u, CTA %u, phase %u: wait for %s timed out: wanted %llu, seen %llu\n",
                fault->rank, fault->cta, fault->phase,
                kilotok::name_of(static_cast<kilotok::Waits>(fault->code)),
                static_cast<unsigned long long>(fault->wanted),
                static_cast<unsigned long long>(fault->seen));
  std::exit(1);
}

#define CHECK(call)                                                   \
  do {                                                                \
    const cudaError_t error = (call);                                 \
    if (error != cudaSuccess) bench::fail(#call, __LINE__, error);    \
  } while (0)

inline uint64_t fault_address() {
  if (!fault) {
    CHECK(cudaHostAlloc(&fault, sizeof(*fault), cudaHostAllocMapped | cudaHostAllocPortable));
    *fault = {};
  }
  return reinterpret_cast<uint64_t>(fault);
}

// Under compute-sanitizer everything takes a hundred times as long.
inline uint32_t wait_max_ms() {
  const char* wait = std::getenv("KILOTOK_WAIT_MS");
  return wait ? static_cast<uint32_t>(std::atoi(wait)) : 60000;
}

// Memory of one GPU, freed at the end of its scope. Memory is filled with NaN, unless `take` is
// told otherwise.
class Buffers {
 public:
  Buffers() = default;
  Buffers(const Buffers&) = delete;
  ~Buffers() {
    for (uint64_t address : owned_) cudaFree(at<void>(address));
  }

  uint64_t take(size_t bytes, int fill = 0xff) {
    void* p = nullptr;
    CHECK(cudaMalloc(&p, std::max<size_t>(bytes, 16)));
    CHECK(cudaMemset(p, fill, std::max<size_t>(bytes, 16)));
    owned_.push_back(reinterpret_cast<uint64_t>(p));
    return owned_.back();
  }

  template <class T>
  uint64_t put(const std::vector<T>& values) {
    const uint64_t address = take(values.size() * sizeof(T));
    copy(address, values);
    return address;
  }

  template <class T>
  static void copy(uint64_t to, const std::vector<T>& values) {
    CHECK(cudaMemcpy(at<void>(to), values.data(), values.size() * sizeof(T),
                     cudaMemcpyHostToDevice));
  }

 private:
  std::vector<uint64_t> owned_;
};

template <class T>
std::vector<T> read(uint64_t address, size_t count) {
  std::vector<T> values(count);
  CHECK(cudaMemcpy(values.data(), at<void>(address), count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

inline uint16_t bf16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float bf16_value(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// Pseudo-random bits from a seed and a number, the same on the host and on the GPU.
__host__ __device__ inline uint32_t mixed(uint64_t seed, uint64_t i) {
  uint64_t z = (i + 1 + (seed << 40)) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>(z ^ (z >> 31));
}

// From -1 to 1; a multiple of 2^-20, so that products with few bits are exact.
__host__ __device__ inline float uniform(uint64_t seed, uint64_t i) {
  return static_cast<float>(static_cast<int32_t>(mixed(seed, i)) >> 11) / 1048576.0f;
}

inline std::vector<float> uniforms(size_t count, float scale, float offset, uint64_t seed) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; i++) values[i] = offset + scale * uniform(seed, i);
  return values;
}

// The dynamic shared memory of a launch.
__device__ __forceinline__ char* asked_memory() {
  extern __shared__ __align__(128) char shared_bytes[];
  return shared_bytes;
}

// Milliseconds of a cooperative launch.
template <class... Arguments>
float launch_ms(void (*kernel)(Arguments...), dim3 grid, int threads, size_t shared_bytes,
                void** arguments) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)));
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  CHECK(cudaEventRecord(start));
  CHECK(cudaLaunchCooperativeKernel(kernel, grid, dim3(threads), arguments, shared_bytes, nullptr));
  CHECK(cudaEventRecord(end));
  CHECK(cudaEventSynchronize(end));
  float ms = 0;
  CHECK(cudaEventElapsedTime(&ms, start, end));
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(end));
  return ms;
}

// Microseconds of one repeat in the fastest run; `run_ms(repeats)` runs once.
template <class Run>
double best_us(int repeats, Run run_ms) {
  constexpr int RUNS = 5;
  float best = INFINITY;
  for (int run = 0; run < RUNS; run++) best = std::min(best, run_ms(repeats));
  return best * 1e3 / repeats;
}

// The fastest read bandwidth, in bytes a second: measured on an H200.
constexpr double FASTEST = 4.55e12;

// Prints a time beside the share of that bandwidth which it reaches, on whichever GPU.
inline void print_time(const char* name, double us, double bytes) {
  std::printf("%s: %.2f us, %.1f MB, %.1f %% of an H200's 4.55 TB/s\n", name, us, bytes / 1e6,
              100 * bytes / FASTEST / (us * 1e-6));
}

// Counts wrong values and prints the first one.
struct Verdict {
  const char* name;
  size_t compared = 0, wrong = 0;
  // The largest error relative to its tolerance.
  double worst = 0;

  void exact(double found, double wanted, const char* what, int a, int b) {
    near(found, wanted, 0, what, a, b);
  }
  void near(double found, double wanted, double tolerance, const char* what, int a, int b) {
    compared++;
    const double off = std::fabs(found - wanted);
    if (tolerance > 0) worst = std::max(worst, off / tolerance);
    if (off <= tolerance) return;
    if (wrong++ == 0)
      std::printf("  %s: %s %d, %d is %.9g, not %.9g (%.3g allowed)\n", name, what, a, b, found,
                  wanted, tolerance);
  }
  // Prints the result, and returns whether all values were right.
  bool print() const {
    std::printf("%-32s %zu compared, %zu wrong, worst %.2f of what is allowed %s\n", name,
                compared, wrong, worst, wrong ? "WRONG" : "");
    return wrong == 0 && compared > 0;
  }
};

// A harness's `main`: `all(small)` checks, and times unless `small`.
inline int run_all(int argc, char** argv, bool (*all)(bool small)) {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, hidden size %d\n", device.name, kilotok::HIDDEN);
  const bool right = all(argc > 1 && std::strcmp(argv[1], "check") == 0);
  std::puts(right ? "all right" : "WRONG");
  return right ? 0 : 1;
}

}  // namespace bench
