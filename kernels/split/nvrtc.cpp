// A libnvrtc that has NVRTC number CTAs as launches do: of the multiprocessors that a GPU of
// driver.cpp has, no one knows which numbers they have.
#include <dlfcn.h>
#include <nvrtc.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

const std::string HEADER = "kilotok/ptx/thread.cuh";
const std::string BY_MULTIPROCESSOR = "%%smid", BY_LAUNCH = "%%ctaid.x";

template <class Function>
Function find(const char* name) {
  static void* const library = dlopen(NVRTC, RTLD_NOW | RTLD_LOCAL);
  void* const found = library ? dlsym(library, name) : nullptr;
  if (!found) std::fprintf(stderr, "%s: %s\n", name, dlerror()), std::abort();
  return reinterpret_cast<Function>(found);
}

#define NVRTCS(function) find<decltype(&function)>(#function)

}  // namespace

extern "C" {

nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* text, const char* name, int count,
                               const char* const* headers, const char* const* names) {
  std::vector<const char*> ours(headers, headers + count);
  std::string threads;
  bool replaced = false;
  for (int i = 0; i < count; i++) {
    if (names[i] != HEADER) continue;
    threads = headers[i];
    const size_t at = threads.find(BY_MULTIPROCESSOR);
    if (at == std::string::npos) continue;
    threads.replace(at, BY_MULTIPROCESSOR.size(), BY_LAUNCH);
    ours[i] = threads.c_str();
    replaced = true;
  }
  if (!replaced) {
    std::fprintf(stderr, "kernels/split/nvrtc.cpp: no %s that has %s\n", HEADER.c_str(),
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

}  // extern "C"
