// A libnvrtc that numbers CTAs by their place in the launch, because the SMs of a part of a GPU
// (driver.cpp) may have any numbers. It cannot be linked with NVRTC, which has the same library
// name.
#include <nvrtc.h>

#include <string>
#include <vector>

#include "library.h"

namespace {

// In the text of `kilotok/ptx/thread.cuh`.
const std::string BY_MULTIPROCESSOR = "%%smid", BY_LAUNCH = "%%ctaid.x";

#define NVRTCS(function) find<decltype(&function)>(NVRTC, #function)

}  // namespace

extern "C" {

nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* text, const char* name, int count,
                               const char* const* headers, const char* const* names) {
  std::vector<std::string> texts(headers, headers + count);
  std::vector<const char*> ours;
  bool found = false;
  for (std::string& header : texts) {
    const size_t at = header.find(BY_MULTIPROCESSOR);
    if (at != std::string::npos) {
      header.replace(at, BY_MULTIPROCESSOR.size(), BY_LAUNCH);
      found = true;
    }
    ours.push_back(header.c_str());
  }
  // A program without headers has no kernels.
  if (!found && count > 0) {
    std::fprintf(stderr, "kernels/split/nvrtc.cpp: nothing is numbered by %s\n",
                 BY_MULTIPROCESSOR.c_str());
    return NVRTC_ERROR_INVALID_INPUT;
  }
  return NVRTCS(nvrtcCreateProgram)(program, text, name, count, ours.data(), names);
}

nvrtcResult nvrtcVersion(int* major, int* minor) { return NVRTCS(nvrtcVersion)(major, minor); }

const char* nvrtcGetErrorString(nvrtcResult code) { return NVRTCS(nvrtcGetErrorString)(code); }

nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char* const* options) {
  return NVRTCS(nvrtcCompileProgram)(program, count, options);
}

nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
  return NVRTCS(nvrtcDestroyProgram)(program);
}

nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t* bytes) {
  return NVRTCS(nvrtcGetProgramLogSize)(program, bytes);
}

nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
  return NVRTCS(nvrtcGetProgramLog)(program, log);
}

nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t* bytes) {
  return NVRTCS(nvrtcGetCUBINSize)(program, bytes);
}

nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* code) {
  return NVRTCS(nvrtcGetCUBIN)(program, code);
}

nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, size_t* bytes) {
  return NVRTCS(nvrtcGetPTXSize)(program, bytes);
}

nvrtcResult nvrtcGetPTX(nvrtcProgram program, char* ptx) {
  return NVRTCS(nvrtcGetPTX)(program, ptx);
}

}  // extern "C"
