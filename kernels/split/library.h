// Access to the libraries that those of this folder replace.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

// The function of that name. Aborts if there is none.
template <class Function>
Function find(const char* library, const char* name) {
  void* const opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  void* const found = opened ? dlsym(opened, name) : nullptr;
  if (!found) {
    std::fprintf(stderr, "%s of %s: %s\n", name, library, dlerror());
    std::abort();
  }
  return reinterpret_cast<Function>(found);
}
