// A libcuda with emulated GPUs: their memory is the host's, their kernels are CPU code from
// nvrtc.cpp. Streams are threads, and so is every CTA of a module. It has the functions that
// crates/cuda uses. Only streams wait for the work of a stream.
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "worker.h"

namespace {

using emulator::CtaThread;
using emulator::Launch;
using emulator::THREADS_MAX;
using emulator::Worker;

enum Code {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NOT_FOUND = 500,
  NOT_READY = 600,
  PEER_ALREADY_ENABLED = 704,
  LAUNCH_FAILED = 719,
};

enum Attribute {
  CLOCK_RATE = 13,
  MULTIPROCESSORS = 16,
  CAPABILITY_MAJOR = 75,
  CAPABILITY_MINOR = 76
};

// The most CTAs of a module, each of which has a thread.
constexpr int CTAS_MAX = 192;
constexpr size_t ALIGNMENT = 512;
// The clock at a slowness of 1.
constexpr uint64_t CLOCK_KHZ = 1980000;
// The interval at which a stream polls a word.
constexpr unsigned WAIT_MICROSECONDS = 20;

int number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

struct Device {
  int index;
  std::atomic<bool> broken{false};
  std::atomic<uint64_t> launches{0};
  // The devices whose memory it can access.
  std::vector<Device*> peers;
};

struct Stream {
  Device* device;
  Worker worker;
};

// In the driver's layout.
struct LaunchConfig {
  unsigned grid[3];
  unsigned threads[3];
  unsigned shared_bytes;
  Stream* stream;
  void* attributes;
  unsigned attribute_count;
};

using Kernel = void (*)(const void*);

struct Module {
  void* library;
  std::string file;
  void (*run)(const Launch&, Kernel);
  std::vector<std::unique_ptr<CtaThread>> ctas;
};

struct Function {
  Module* module;
  Kernel kernel;
  // The size of its single argument.
  size_t argument_bytes;
};

std::vector<std::unique_ptr<Device>>& devices() {
  static auto& all = *[] {
    auto* made = new std::vector<std::unique_ptr<Device>>;
    const int count = number("EMULATED_GPUS", 8);
    for (int i = 0; i < count; i++) {
      made->push_back(std::make_unique<Device>());
      made->back()->index = i;
    }
    return made;
  }();
  return all;
}

thread_local Device* current = nullptr;

// A failed GPU is reported on all GPUs with access to its memory, where work that was started goes
// on.
int state() {
  if (!current) return INVALID_CONTEXT;
  const auto broken = [](const Device* device) { return device->broken.load(); };
  const bool reached = std::any_of(current->peers.begin(), current->peers.end(), broken);
  return reached || broken(current) ? LAUNCH_FAILED : SUCCESS;
}

int then(Stream* stream, std::function<void()> work) {
  if (const int code = state()) return code;
  stream->worker.then([device = stream->device, work = std::move(work)] {
    if (!device->broken) work();
  });
  return SUCCESS;
}

// The length of a shared object, which ends with its section table.
size_t image_bytes(const void* image) {
  const auto* header = static_cast<const Elf64_Ehdr*>(image);
  return header->e_shoff + static_cast<size_t>(header->e_shnum) * header->e_shentsize;
}

void launch(Device& device, const Function& function, int grid, int threads,
            const std::vector<char>& argument) {
  Module& module = *function.module;
  while (static_cast<int>(module.ctas.size()) < grid)
    module.ctas.push_back(std::make_unique<CtaThread>());
  const uint64_t seed = ++device.launches * 0x9e3779b97f4a7c15u + device.index;
  for (int cta = 0; cta < grid; cta++)
    module.ctas[cta]->worker.then([&, cta] {
      module.run({cta, grid, threads, argument.data(), module.ctas[cta]->stacks, seed ^ cta * 77u,
                  &device.broken},
                 function.kernel);
    });
  for (int cta = 0; cta < grid; cta++) module.ctas[cta]->worker.finish();
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return devices().empty() ? NO_DEVICE : SUCCESS; }

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return SUCCESS;
}

int cuDeviceGetCount(int* count) {
  *count = static_cast<int>(devices().size());
  return SUCCESS;
}

int cuDeviceGet(int* device, int index) {
  if (index < 0 || index >= static_cast<int>(devices().size())) return INVALID_DEVICE;
  *device = index;
  return SUCCESS;
}

int cuDeviceGetName(char* name, int bytes, int) {
  std::snprintf(name, static_cast<size_t>(bytes), "emulated GPU");
  return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = static_cast<size_t>(number("EMULATED_MEMORY_MIB", 4096)) << 20;
  return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case MULTIPROCESSORS: *value = std::min(number("EMULATED_SMS", 4), CTAS_MAX); return SUCCESS;
    case CLOCK_RATE: *value = static_cast<int>(CLOCK_KHZ / emulator::slowness()); return SUCCESS;
    case CAPABILITY_MAJOR: *value = 9; return SUCCESS;
    case CAPABILITY_MINOR: *value = 0; return SUCCESS;
    default: return INVALID_VALUE;
  }
}

int cuDevicePrimaryCtxRetain(Device** context, int device) {
  *context = devices()[device].get();
  return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuCtxSetCurrent(Device* context) {
  current = context;
  return SUCCESS;
}

int cuCtxGetDevice(int* device) {
  if (!current) return INVALID_CONTEXT;
  *device = current->index;
  return SUCCESS;
}

int cuCtxEnablePeerAccess(Device* peer, unsigned) {
  if (const int code = state()) return code;
  auto& peers = current->peers;
  if (std::find(peers.begin(), peers.end(), peer) != peers.end()) return PEER_ALREADY_ENABLED;
  peers.push_back(peer);
  return SUCCESS;
}

int cuStreamCreate(Stream** stream, unsigned) {
  if (const int code = state()) return code;
  *stream = new Stream{current, {}};
  return SUCCESS;
}

int cuStreamDestroy_v2(Stream* stream) {
  delete stream;
  return SUCCESS;
}

// The context's own stream never has pending work.
int cuStreamQuery(Stream* stream) {
  if (const int code = state()) return code;
  return stream && !stream->worker.idle() ? NOT_READY : SUCCESS;
}

// Waits until the word has reached the value; numbers may wrap.
int cuStreamWaitValue32_v2(Stream* stream, uint64_t address, uint32_t value, unsigned flags) {
  if (flags != 0) return INVALID_VALUE;
  return then(stream, [=] {
    const std::atomic_ref word(*reinterpret_cast<uint32_t*>(address));
    while (static_cast<int32_t>(word.load() - value) < 0 && !stream->device->broken)
      usleep(WAIT_MICROSECONDS);
  });
}

int cuStreamWriteValue32_v2(Stream* stream, uint64_t address, uint32_t value, unsigned) {
  return then(stream, [=] { std::atomic_ref(*reinterpret_cast<uint32_t*>(address)).store(value); });
}

int cuMemGetInfo_v2(size_t* free, size_t* total) {
  cuDeviceTotalMem_v2(total, 0);
  *free = *total;
  return state();
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  if (const int code = state()) return code;
  const size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  void* memory = std::aligned_alloc(ALIGNMENT, whole);
  *address = reinterpret_cast<uint64_t>(memory);
  return memory ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFree_v2(uint64_t address) {
  if (const int code = state()) return code;
  std::free(reinterpret_cast<void*>(address));
  return SUCCESS;
}

int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  uint64_t address = 0;
  const int code = cuMemAlloc_v2(&address, bytes);
  *memory = reinterpret_cast<void*>(address);
  return code;
}

int cuMemFreeHost(void* memory) {
  if (const int code = state()) return code;
  std::free(memory);
  return SUCCESS;
}

int cuMemHostGetDevicePointer_v2(uint64_t* address, void* memory, unsigned) {
  *address = reinterpret_cast<uint64_t>(memory);
  return SUCCESS;
}

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  if (const int code = state()) return code;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return SUCCESS;
}

int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  if (const int code = state()) return code;
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
  return then(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
  return then(stream, [=] { std::memcpy(to, reinterpret_cast<const void*>(from), bytes); });
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
  return then(stream, [=] { std::memset(reinterpret_cast<void*>(to), value, bytes); });
}

int cuModuleLoadData(Module** loaded, const void* image) {
  if (const int code = state()) return code;
  // A file name of its own, because each GPU has its own variables.
  const char* temporary = std::getenv("TMPDIR");
  std::string file = std::string(temporary ? temporary : "/tmp") + "/module-XXXXXX";
  const int descriptor = mkstemp(file.data());
  if (descriptor < 0) return INVALID_IMAGE;
  const size_t bytes = image_bytes(image);
  const bool whole = write(descriptor, image, bytes) == static_cast<ssize_t>(bytes);
  close(descriptor);
  void* library = whole ? dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  unlink(file.c_str());
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return INVALID_IMAGE;
  }
  auto run = reinterpret_cast<void (*)(const Launch&, Kernel)>(dlsym(library, "emulator_run"));
  *loaded = new Module{library, file, run, {}};
  return run ? SUCCESS : INVALID_IMAGE;
}

int cuModuleUnload(Module* module) {
  if (const int code = state()) return code;
  module->ctas.clear();
  dlclose(module->library);
  delete module;
  return SUCCESS;
}

int cuModuleGetGlobal_v2(uint64_t* address, size_t* bytes, Module* module, const char* name) {
  const void* found = dlsym(module->library, name);
  if (!found) return NOT_FOUND;
  *address = reinterpret_cast<uint64_t>(found);
  *bytes = sizeof(unsigned);
  return state();
}

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  const auto find = [&](const char* what) {
    return dlsym(module->library, (std::string(what) + name).c_str());
  };
  void* found = find("emulator_call_");
  if (!found) return NOT_FOUND;
  const size_t bytes = *static_cast<const size_t*>(find("emulator_bytes_"));
  *function = new Function{module, reinterpret_cast<Kernel>(found), bytes};
  return state();
}

int cuFuncSetAttribute(Function*, int, int) { return state(); }

// All CTAs run at the same time, and after the launch before, whatever the attributes are.
int cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** arguments, void**) {
  const unsigned grid = config->grid[0], threads = config->threads[0];
  Stream* stream = config->stream;
  if (grid > CTAS_MAX || threads > THREADS_MAX || config->shared_bytes > emulator::SHARED_MAX)
    return INVALID_VALUE;
  const char* bytes = static_cast<const char*>(arguments[0]);
  const std::vector<char> argument(bytes, bytes + function->argument_bytes);
  return then(stream, [=] {
    launch(*stream->device, *function, static_cast<int>(grid), static_cast<int>(threads), argument);
  });
}

}  // extern "C"
