// A libnvrtc that compiles kernels to CPU code with the system's C++ compiler, for driver.cpp to
// load.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

// Options without undefined behaviour in this code, and with rounding as the source says.
// -O1 takes 9 s of a processor where -O2 -flto=auto takes 14, and the result is as fast.
constexpr const char* COMPILER =
    "g++ -std=c++20 -O1 -march=native -ffp-contract=off -fno-strict-aliasing -fPIC "
    "-shared -mtls-dialect=gnu2 -Wno-attributes";

// Headers of the compiler itself.
const std::set<std::string> OWN = {"cstdint", "cstddef"};

// The line of PTX that names the compiler.
const std::string PTX = "// Cuda compilation tools, V13." + std::to_string(VERSION) + ".0\n";

struct Program {
  std::string text, log, code;
  std::vector<std::pair<std::string, std::string>> headers;
};

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

// Code that is added to the kernels: dynamic shared memory, and for each kernel a function that
// takes the argument of a launch.
std::string driven(const Program& program) {
  std::string all = program.text;
  for (const auto& [name, text] : program.headers) all += text;
  std::ostringstream out;
  out << "namespace kilotok { alignas(128) thread_local char shared_bytes[emulator::SHARED_MAX]; "
         "}\n"
      << "alignas(128) thread_local char shared_bytes[emulator::SHARED_MAX];\n"
      << "extern \"C\" void emulator_run(const emulator::Launch& launch,\n"
      << "                             void (*kernel)(const void*)) {\n"
      << "  memset(::shared_bytes, 0xff, sizeof(::shared_bytes));\n"
      << "  memset(kilotok::shared_bytes, 0xff, sizeof(kilotok::shared_bytes));\n"
      << "  emulator::run(launch, kernel);\n}\n";
  const std::regex kernel(R"(__global__\s+void\s+__launch_bounds__\([^)]*\)\s*(\w+)\()");
  for (std::sregex_iterator found(all.begin(), all.end(), kernel), end; found != end; ++found) {
    const std::string name = (*found)[1];
    out << "extern \"C\" void emulator_call_" << name << "(const void* argument) {\n"
        << "  emulator::call(&" << name << ", argument);\n}\n"
        << "extern \"C\" const size_t emulator_bytes_" << name << " = emulator::argument_bytes(&"
        << name << ");\n";
  }
  return out.str();
}

int compile(Program& program) {
  const char* temporary = std::getenv("TMPDIR");
  std::string folder = (fs::path(temporary ? temporary : "/tmp") / "emulator-XXXXXX").string();
  if (!mkdtemp(folder.data())) return 1;
  const fs::path here = folder;
  for (const auto& [name, text] : program.headers)
    if (!OWN.count(name)) write(here / "headers" / name, text);
  write(here / "kernels.cpp", program.text + driven(program));
  const std::string quiet = " > '" + (here / "log").string() + "' 2>&1";
  // The emulator's headers come first, because those of ptx/ are for the GPU's compiler.
  const std::string command = std::string(COMPILER) + " -include '" EMULATOR "/cta.h' -I '" EMULATOR
                              "' -I '" + (here / "headers").string() + "' -o '" +
                              (here / "kernels.so").string() + "' '" +
                              (here / "kernels.cpp").string() + "'" + quiet;
  const bool good = std::system(command.c_str()) == 0;
  program.log = read(here / "log");
  program.code = read(here / "kernels.so");
  if (!std::getenv("EMULATOR_KEEP")) fs::remove_all(here);
  return good ? 0 : 6;
}

}  // namespace

extern "C" {

const char* nvrtcGetErrorString(int code) {
  return code == 0 ? "NVRTC_SUCCESS" : code == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR";
}

// The minor version identifies the emulator, so that a cache does not return kernels of another
// version.
int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = VERSION;
  return 0;
}

int nvrtcCreateProgram(Program** program, const char* text, const char*, int count,
                       const char* const* headers, const char* const* names) {
  *program = new Program{text, "", "", {}};
  for (int i = 0; i < count; i++) (*program)->headers.emplace_back(names[i], headers[i]);
  return 0;
}

// An empty program is compiled for the head of its PTX alone.
int nvrtcCompileProgram(Program* program, int, const char* const*) {
  return program->text.empty() ? 0 : compile(*program);
}

int nvrtcDestroyProgram(Program** program) {
  delete *program;
  *program = nullptr;
  return 0;
}

int nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
  *bytes = program->log.size() + 1;
  return 0;
}

int nvrtcGetProgramLog(Program* program, char* to) {
  memcpy(to, program->log.c_str(), program->log.size() + 1);
  return 0;
}

int nvrtcGetCUBINSize(Program* program, size_t* bytes) {
  *bytes = program->code.size();
  return 0;
}

int nvrtcGetCUBIN(Program* program, char* to) {
  memcpy(to, program->code.data(), program->code.size());
  return 0;
}

int nvrtcGetPTXSize(Program*, size_t* bytes) {
  *bytes = PTX.size() + 1;
  return 0;
}

int nvrtcGetPTX(Program*, char* to) {
  memcpy(to, PTX.c_str(), PTX.size() + 1);
  return 0;
}

}  // extern "C"
