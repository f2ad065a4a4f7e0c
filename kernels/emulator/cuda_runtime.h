// The part of CUDA's runtime that the harnesses use, on emulated GPUs: their memory is the host's,
// a kernel is a function of this program. Included after cta.h.
//
// A GPU executes its work in order on a thread of its own, so that kernels of several GPUs run at
// the same time. Memory that has not been written is NaN.
#pragma once

#include <tuple>
#include <utility>

#include "cta.h"
#include "worker.h"

// Dynamic shared memory, in each namespace in which kernels name it.
alignas(128) inline thread_local char shared_bytes[emulator::SHARED_MAX];
namespace kilotok {
alignas(128) inline thread_local char shared_bytes[emulator::SHARED_MAX];
}
namespace bench {
alignas(128) inline thread_local char shared_bytes[emulator::SHARED_MAX];
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101,
  cudaErrorPeerAccessAlreadyEnabled = 704,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned width = 1, unsigned height = 1, unsigned depth = 1)
      : x(width), y(height), z(depth) {}
};
struct cudaDeviceProp {
  char name[256];
  int multiProcessorCount;
};
struct cudaFuncAttributes {
  size_t localSizeBytes, sharedSizeBytes;
  int numRegs;
};
using cudaEvent_t = double*;
using cudaStream_t = void*;

namespace emulator {

// Threads that compute CTAs which need not run together.
constexpr int FREE_CTAS = 2;
constexpr size_t ALIGNMENT = 512;
constexpr int UNWRITTEN = 0xff;

// A kernel and its arguments.
template <class... Arguments>
struct Called {
  void (*kernel)(Arguments...);
  std::tuple<std::remove_const_t<Arguments>...> arguments;

  static void run(const void* call) {
    const auto& called = *static_cast<const Called*>(call);
    std::apply(called.kernel, called.arguments);
  }
};

// What is passed to a CTA, and its row of the grid.
struct RowLaunch : Launch {
  int row;
};

struct Device {
  std::atomic<bool> broken{false};
  uint64_t launches = 0;
  std::vector<std::unique_ptr<CtaThread>> ctas;
  Worker stream;

  cudaError_t state() const { return broken ? cudaErrorLaunchFailure : cudaSuccess; }
  cudaError_t finish() {
    stream.finish();
    return state();
  }
  cudaError_t then(std::function<void()> work) {
    stream.then([this, work = std::move(work)] {
      if (!broken) work();
    });
    return state();
  }

  // CTAs that wait for each other need a thread each; other CTAs may run in any order.
  void launch(void (*kernel)(const void*), const void* call, dim3 grid, int threads,
              bool together) {
    const int count = static_cast<int>(grid.x * grid.y);
    const int width = together ? count : std::min(count, FREE_CTAS);
    while (static_cast<int>(ctas.size()) < width) ctas.push_back(std::make_unique<CtaThread>());
    const uint64_t seed = ++launches * 0x9e3779b97f4a7c15u;
    for (int first = 0; first < width; first++)
      ctas[first]->worker.then([=, this] {
        for (int i = first; i < count && !broken; i += width) {
          const int x = static_cast<int>(i % grid.x), y = static_cast<int>(i / grid.x);
          const RowLaunch launch = {{x, static_cast<int>(grid.x), threads, call,
                                     ctas[first]->stacks, seed ^ i * 77u, &broken}, y};
          for (char* bytes : {::shared_bytes, kilotok::shared_bytes, bench::shared_bytes})
            memset(bytes, UNWRITTEN, SHARED_MAX);
          emulator::run(launch, kernel);
        }
      });
    for (int first = 0; first < width; first++) ctas[first]->worker.finish();
  }
};

inline int current_device = 0;

inline std::vector<std::unique_ptr<Device>>& devices() {
  static auto& all = *[] {
    auto* made = new std::vector<std::unique_ptr<Device>>;
    const char* text = std::getenv("EMULATED_GPUS");
    for (int i = 0; i < (text ? std::atoi(text) : 8); i++)
      made->push_back(std::make_unique<Device>());
    return made;
  }();
  return all;
}
inline Device& device() { return *devices()[static_cast<size_t>(current_device)]; }

template <class... Arguments, size_t... INDEX>
cudaError_t launch(void (*kernel)(Arguments...), dim3 grid, dim3 threads, void** arguments,
                   bool together, std::index_sequence<INDEX...>) {
  using Call = Called<Arguments...>;
  if (threads.x > THREADS_MAX) return cudaErrorInvalidValue;
  const Call call = {
      kernel, {*static_cast<std::remove_const_t<Arguments>*>(arguments[INDEX])...}};
  return device().then([=, device = &device()] {
    device->launch(&Call::run, &call, grid, static_cast<int>(threads.x), together);
  });
}

struct CtaRow {
  operator int() const { return static_cast<const RowLaunch*>(here->launch)->row; }
};

}  // namespace emulator

// Replaces that of cta.h, which supports grids of one row.
struct { emulator::CtaIndex x; emulator::CtaRow y; } static const cta_indices;
#define blockIdx cta_indices

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorLaunchFailure: return "a CTA gave up";
    default: return "invalid argument";
  }
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(emulator::devices().size());
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= static_cast<int>(emulator::devices().size()))
    return cudaErrorInvalidDevice;
  emulator::current_device = index;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated GPU", 132};
  return cudaSuccess;
}
inline cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return emulator::device().finish(); }
inline cudaError_t cudaGetLastError() { return emulator::device().state(); }

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const size_t whole = (bytes / emulator::ALIGNMENT + 1) * emulator::ALIGNMENT;
  *memory = std::aligned_alloc(emulator::ALIGNMENT, whole);
  if (!*memory) return cudaErrorMemoryAllocation;
  memset(*memory, emulator::UNWRITTEN, whole);
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}
inline cudaError_t cudaFree(void* memory) {
  const cudaError_t state = emulator::device().finish();
  std::free(memory);
  return state;
}
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
template <class T>
cudaError_t cudaMalloc(T** memory, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
template <class T>
cudaError_t cudaHostAlloc(T** memory, size_t bytes, unsigned flags) {
  return cudaHostAlloc(reinterpret_cast<void**>(memory), bytes, flags);
}
template <class T>
cudaError_t cudaMallocHost(T** memory, size_t bytes) {
  return cudaHostAlloc(memory, bytes, 0);
}

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  const cudaError_t state = emulator::device().finish();
  memcpy(to, from, bytes);
  return state;
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return emulator::device().then([=] { memset(to, value, bytes); });
}

inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new double{0};
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event) {
  return emulator::device().then([=] { *event = emulator::nanoseconds() * 1e-6; });
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return emulator::device().finish(); }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  *ms = static_cast<float>(*end - *start);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return static_cast<size_t>(bytes) > emulator::SHARED_MAX ? cudaErrorInvalidValue : cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  *attributes = {};
  return cudaSuccess;
}
template <class... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 threads,
                             void** arguments, size_t = 0, cudaStream_t = nullptr) {
  return emulator::launch(kernel, grid, threads, arguments, false,
                          std::index_sequence_for<Arguments...>());
}
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument),
                               std::remove_const_t<Argument> argument) {
  void* arguments[] = {&argument};
  return emulator::launch(kernel, config->gridDim, config->blockDim, arguments, false,
                          std::index_sequence_for<Argument>());
}
template <class... Arguments>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Arguments...), dim3 grid, dim3 threads,
                                        void** arguments, size_t = 0, cudaStream_t = nullptr) {
  return emulator::launch(kernel, grid, threads, arguments, true,
                          std::index_sequence_for<Arguments...>());
}
