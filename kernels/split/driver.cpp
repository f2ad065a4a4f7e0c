// A libcuda that makes several GPUs of one, so that ranks which are to have one each share it: green
// contexts, with multiprocessors of their own. Whatever does not ask for a GPU is left to the
// driver, with which this is linked.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

template <class Function>
Function find(const char* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  void* const found = library ? dlsym(library, name) : nullptr;
  if (!found) std::fprintf(stderr, "%s: %s\n", name, dlerror()), std::abort();
  return reinterpret_cast<Function>(found);
}

// The driver's own function of a name that is taken here: cuda.h renames some by macros.
#define NAME(function) #function
#define DRIVERS(function) find<decltype(&function)>(NAME(function))

// Multiprocessors of Hopper can only be had by so many.
constexpr unsigned GROUP = 8;
// The GPU that is split.
constexpr CUdevice GPU = 0;

struct Split {
  CUresult code = CUDA_SUCCESS;
  std::vector<CUdevResource> parts;
  // Made when they are first wanted, and kept until the process ends.
  std::vector<CUcontext> contexts;
};

unsigned wanted() {
  const char* text = std::getenv("SPLIT_GPUS");
  const int count = text ? std::atoi(text) : 8;
  return count > 0 ? static_cast<unsigned>(count) : 1;
}

Split make() {
  Split split;
  CUdevResource all;
  split.code = cuDeviceGetDevResource(GPU, &all, CU_DEV_RESOURCE_TYPE_SM);
  if (split.code) return split;
  unsigned count = wanted();
  const unsigned each = all.sm.smCount / count / GROUP * GROUP;
  split.parts.resize(count);
  split.contexts.resize(count);
  split.code = cuDevSmResourceSplitByCount(split.parts.data(), &count, &all, nullptr, 0, each);
  if (!split.code && count < wanted()) split.code = CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  if (split.code)
    std::fprintf(stderr, "GPU 0 is not split in %u (%d)\n", wanted(), split.code);
  return split;
}

Split& split() {
  static Split made = make();
  return made;
}

CUresult make_context(CUdevResource& part, CUcontext* context) {
  CUdevResourceDesc description;
  CUgreenCtx green;
  if (const CUresult code = cuDevResourceGenerateDesc(&description, &part, 1)) return code;
  if (const CUresult code = cuGreenCtxCreate(&green, description, GPU, CU_GREEN_CTX_DEFAULT_STREAM))
    return code;
  return cuCtxFromGreenCtx(context, green);
}

}  // namespace

extern "C" {

CUresult cuDeviceGetCount(int* count) {
  *count = static_cast<int>(split().parts.size());
  return split().code;
}

CUresult cuDeviceGet(CUdevice* device, int index) {
  if (index < 0 || index >= static_cast<int>(split().parts.size())) return CUDA_ERROR_INVALID_DEVICE;
  *device = index;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  return DRIVERS(cuDeviceGetName)(name, bytes, GPU);
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  const CUresult code = DRIVERS(cuDeviceTotalMem)(bytes, GPU);
  *bytes /= wanted();
  return code;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (attribute != CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    return DRIVERS(cuDeviceGetAttribute)(value, attribute, GPU);
  *value = static_cast<int>(split().parts[device].sm.smCount);
  return CUDA_SUCCESS;
}

// Of several that are opened at once each has its own place.
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  CUcontext& made = split().contexts[device];
  const CUresult code = made ? CUDA_SUCCESS : make_context(split().parts[device], &made);
  *context = made;
  return code;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) {
  CUcontext current = nullptr;
  if (const CUresult code = cuCtxGetCurrent(&current)) return code;
  for (size_t i = 0; i < split().contexts.size(); i++)
    if (current && split().contexts[i] == current) {
      *device = static_cast<CUdevice>(i);
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_CONTEXT;
}

// Memory is the same.
CUresult cuCtxEnablePeerAccess(CUcontext, unsigned) { return CUDA_SUCCESS; }

CUresult cuMemGetInfo(size_t* free, size_t* total) {
  const CUresult code = DRIVERS(cuMemGetInfo)(free, total);
  *free /= wanted();
  *total /= wanted();
  return code;
}

}  // extern "C"
