// A libcuda that splits one GPU into several, for ranks that need a GPU each: green contexts, with
// SMs of their own. Functions that do not name a GPU are left to the driver, which this library is
// linked with.
#include <cuda.h>

#include <algorithm>

#include "library.h"

namespace {

// The driver's own function behind a name that is defined here; cuda.h renames some by macros.
#define NAME(function) #function
#define DRIVERS(function) find<decltype(&function)>("libcuda.so.1", NAME(function))

// Hopper's SMs are partitioned in groups of this size. The driver rounds up, which may be too many.
constexpr unsigned GROUP_MULTIPROCESSORS = 8;
constexpr unsigned PARTS_MAX = 8;
// The GPU that is split.
constexpr CUdevice WHOLE = 0;

// Kept until the process ends.
struct Parts {
  unsigned count = 0;
  CUdevResource resources[PARTS_MAX];
  CUcontext contexts[PARTS_MAX];
};

CUresult make_context(CUdevResource& resource, CUcontext* context) {
  CUdevResourceDesc description;
  CUgreenCtx green;
  CUresult code = cuDevResourceGenerateDesc(&description, &resource, 1);
  if (!code) code = cuGreenCtxCreate(&green, description, WHOLE, CU_GREEN_CTX_DEFAULT_STREAM);
  if (!code) code = cuCtxFromGreenCtx(context, green);
  return code;
}

CUresult make_parts(unsigned wanted, Parts& parts) {
  CUdevResource all;
  if (const CUresult code = cuDeviceGetDevResource(WHOLE, &all, CU_DEV_RESOURCE_TYPE_SM))
    return code;
  const unsigned each = all.sm.smCount / wanted / GROUP_MULTIPROCESSORS * GROUP_MULTIPROCESSORS;
  parts.count = wanted;
  if (const CUresult code =
          cuDevSmResourceSplitByCount(parts.resources, &parts.count, &all, nullptr, 0, each))
    return code;
  if (parts.count < wanted) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  for (unsigned i = 0; i < wanted; i++)
    if (const CUresult code = make_context(parts.resources[i], &parts.contexts[i])) return code;
  return CUDA_SUCCESS;
}

const Parts& parts() {
  static const Parts all = [] {
    const char* text = std::getenv("SPLIT_GPUS");
    const int wanted = text ? std::atoi(text) : static_cast<int>(PARTS_MAX);
    Parts made;
    const CUresult code = wanted < 1 || wanted > static_cast<int>(PARTS_MAX)
                              ? CUDA_ERROR_INVALID_VALUE
                              : make_parts(wanted, made);
    if (code) {
      const char* name = "an unknown error";
      cuGetErrorName(code, &name);
      std::fprintf(stderr, "GPU %d is not split in %d parts, as SPLIT_GPUS wants, 1 to %u: %s\n",
                   WHOLE, wanted, PARTS_MAX, name);
      std::abort();
    }
    return made;
  }();
  return all;
}

}  // namespace

extern "C" {

CUresult cuDeviceGetCount(int* count) {
  *count = static_cast<int>(parts().count);
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int index) {
  if (index < 0 || index >= static_cast<int>(parts().count)) return CUDA_ERROR_INVALID_DEVICE;
  *device = index;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int bytes, CUdevice) {
  return DRIVERS(cuDeviceGetName)(name, bytes, WHOLE);
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  const CUresult code = DRIVERS(cuDeviceTotalMem)(bytes, WHOLE);
  *bytes /= parts().count;
  return code;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (attribute != CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    return DRIVERS(cuDeviceGetAttribute)(value, attribute, WHOLE);
  *value = static_cast<int>(parts().resources[device].sm.smCount);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = parts().contexts[device];
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) {
  CUcontext current;
  if (const CUresult code = cuCtxGetCurrent(&current)) return code;
  const CUcontext* const end = parts().contexts + parts().count;
  const CUcontext* const found = std::find(parts().contexts, end, current);
  *device = static_cast<CUdevice>(found - parts().contexts);
  return found == end ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

// The parts share their memory.
CUresult cuCtxEnablePeerAccess(CUcontext, unsigned) { return CUDA_SUCCESS; }

CUresult cuMemGetInfo(size_t* free, size_t* total) {
  const CUresult code = DRIVERS(cuMemGetInfo)(free, total);
  *free /= parts().count;
  *total /= parts().count;
  return code;
}

}  // extern "C"
