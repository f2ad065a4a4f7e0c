// Multiplies matrices as the phases do, checks the products against double precision and measures
// how much of the memory's speed the walk leaves. Needs a GPU:
//   nvcc -std=c++20 -arch=sm_90a -O3 -I kernels/include -I kernels/models/slice matrix.cu -o matrix
//   ./matrix          checks and times
//   ./matrix check    a few matrices, once, for compute-sanitizer
// Prints a line for each matrix and number of tokens; returns 1 if a product is wrong.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kilotok/layout/agree.cuh"
#include "kilotok/walk/matrix.cuh"

namespace kilotok {

#define CHECK(call)                                                              \
  do {                                                                           \
    const cudaError_t error = (call);                                            \
    if (error != cudaSuccess) {                                                  \
      printf("%s, line %d: %s\n", #call, __LINE__, cudaGetErrorString(error));   \
      exit(1);                                                                   \
    }                                                                            \
  } while (0)

// Under compute-sanitizer everything takes a hundred times as long.
constexpr uint32_t WAIT_MAX_MS = 60000;

// What one launch does: multiplies copies of a matrix, one after the other.
struct Work {
  uint64_t weights;
  uint64_t operand;
  uint32_t* barrier;
  float* products;
  Fault* fault;
  int copies;
  int tiles;
};

struct SharedMemory {
  RingMemory ring;
  SumMemory sums;
};

enum class Kind { Multiply, ReadOnly };

// Where the products go: `[tokens][rows]`.
template <class M>
struct Store {
  static constexpr int STRIDE = M::UNITS * 16 * M::ROW_TILES;
  float* products;

  __device__ __forceinline__ void operator()(int unit, int row_tile, int tile, int lane,
                                             const float4& values) const {
    const int row = (unit * M::ROW_TILES + row_tile) * 16 + lane / 4;
    float* to = products + (tile * TILE_TOKENS + lane % 4 * 2) * STRIDE + row;
    to[0] = values.x;
    to[STRIDE] = values.y;
    to[8] = values.z;
    to[STRIDE + 8] = values.w;
  }
};

// Takes every page and reads nothing of it: the speed of the ring alone.
template <class M>
__device__ __forceinline__ void read_pages(const Cta& cta, Ring& ring, int first) {
  for (int unit = first; unit < M::UNITS; unit += M::CTAS)
    for (int step = 0; step < M::STEPS; step += M::PAGE_STEPS) {
      ring.take();
      ring.release(cta.lane());
    }
}

template <class M, Kind KIND>
__global__ void __launch_bounds__(THREADS, 1) walk(const Memory memory, const Work work) {
  extern __shared__ __align__(128) char bytes[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(bytes);
  Cta cta(memory, 0);
  Ring ring(shared.ring);
  Sums sums(shared.sums);
  if (threadIdx.x == 0) {
    cta_place = Place::begin(reinterpret_cast<uint64_t>(work.fault), WAIT_MAX_MS, 0);
    ring.init();
    sums.init();
  }
  __syncthreads();
  const Store<M> store = {work.products};
  // Turns, so that all CTAs have the same number of units in the end.
  const auto first = [&](int copy) { return (cta.index() + copy * (M::UNITS % GRID)) % GRID; };
  if (threadIdx.x < CONSUMERS) {
    ptx::more_registers<CONSUMER_REGISTERS>();
    for (int copy = 0; copy < work.copies; copy++) {
      if constexpr (KIND == Kind::ReadOnly) {
        read_pages<M>(cta, ring, first(copy));
      } else {
        // As after a grid barrier: nothing of the operand is in the first-level cache.
        if (cta.thread() == 0) ptx::load_acquire(work.barrier);
        cta.sync();
        const auto every = [](int column) { return column; };
        if (work.tiles <= 1)
          multiply<M, 1>(cta, ring, sums, work.operand, M::COLUMNS_PADDED * 2, first(copy), every,
                         Nothing{}, store);
        else
          multiply<M, TILES_MAX>(cta, ring, sums, work.operand, M::COLUMNS_PADDED * 2, first(copy),
                                 every, Nothing{}, store);
      }
    }
    return;
  }
  ptx::fewer_registers<HELPER_REGISTERS>();
  if (threadIdx.x >= CONSUMERS + 32) {
    for (int copy = 0; KIND == Kind::Multiply && copy < work.copies; copy++)
      add<M>(cta, sums, first(copy), work.tiles, store);
  } else if (threadIdx.x == CONSUMERS) {
    for (int copy = 0; copy < work.copies; copy++)
      produce<M>(ring, work.weights + copy * M::BYTES, first(copy));
  }
}

float e4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float value = exponent == 0 ? std::ldexp(mantissa, -9)
                                    : std::ldexp(8 + mantissa, exponent - 10);
  return code & 128 ? -value : value;
}

float e2m1(int code) {
  const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return code & 8 ? -values[code & 7] : values[code & 7];
}

uint16_t bf16_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bf16_value(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// A chunk's code for one value, and the value.
struct Packer {
  Format format;
  char* chunk;

  void put_word(int at, uint32_t bits) const {
    uint32_t word;
    memcpy(&word, chunk + at, 4);
    word |= bits;
    memcpy(chunk + at, &word, 4);
  }

  // Of E2M1, the bits of a code within the words of two steps, see layout/chunk.cuh.
  void put_e2m1(int at, int step, int reg, int half, uint32_t code) const {
    const uint32_t sign = code >> 3, magnitude = code & 7, first = 16 * half;
    if (reg < 3) {
      const int signs[3] = {15, 11, 21}, magnitudes[3] = {6, 2, 12};
      put_word(at + step * 4, sign << (first + signs[reg]) % 32);
      put_word(at + step * 4, magnitude << (first + magnitudes[reg]));
    } else if (step == 0) {
      put_word(at, sign << (first + 9) | (magnitude & 3) << first);
      put_word(at + 4, magnitude >> 2 << first);
    } else {
      put_word(at + 4, sign << (first + 17) % 32 | magnitude >> 1 << (first + 9));
      put_word(at, (magnitude & 1) << (first + 10));
    }
  }

  // Row and column within the chunk.
  void put(int row, int column, uint32_t code) const {
    const int step = column / 16, in_step = column % 16;
    const int lane = row % 8 * 4 + in_step % 8 / 2, half = column % 2;
    const int reg = row / 8 + in_step / 8 * 2;
    if (format == Format::Bf16) {
      put_word(step * 512 + lane * 16 + reg * 4, code << (16 * half));
    } else if (format == Format::Fp8) {
      const uint32_t sign = code >> 7, rest = code & 127;
      const uint32_t bits = reg % 2 == 0 ? sign << 15 | rest << 4
                                         : sign << 11 | rest >> 4 << 12 | (rest & 15);
      put_word(step / 2 * 512 + lane * 16 + step % 2 * 8 + reg / 2 * 4, bits << (16 * half));
    } else {
      put_e2m1(lane * 16 + step / 2 * 8, step % 2, reg, half, code);
    }
  }

  // Scales carry what moving the codes' bits takes away.
  void put_scale(int row, int group, uint32_t bits) const {
    if (format == Format::Fp8)
      put_word(1024 + row * 4, bits);
    else
      put_word(512 + row % 8 * 4, bits << (row / 8 * 16 + group * 8));
  }
};

// A random matrix: packed, and the values of some rows.
template <class M>
struct Sample {
  static constexpr int ROWS_KEPT = 96;
  std::vector<char> packed;
  std::vector<int> rows;
  std::vector<double> values;

  explicit Sample(std::mt19937& random) : packed(M::BYTES) {
    std::vector<int> kept(M::ROWS, -1);
    for (int i = 0; i < ROWS_KEPT; i++) {
      const int row = i < 16 ? i : i < 32 ? M::ROWS - 1 - (i - 16) : random() % M::ROWS;
      if (kept[row] < 0) {
        kept[row] = rows.size();
        rows.push_back(row);
      }
    }
    values.resize(rows.size() * M::COLUMNS);
    for (int row = 0; row < M::ROWS; row++)
      for (int column = 0; column < M::COLUMNS; column += 32) fill(random, row, column, kept[row]);
  }

  // 32 columns of a row, which share their scale.
  void fill(std::mt19937& random, int row, int column, int kept) {
    const int unit = row / (16 * M::ROW_TILES), row_tile = row / 16 % M::ROW_TILES;
    const int chunk = column / 64, warp = row_tile * M::COLUMN_WARPS + chunk % M::COLUMN_WARPS;
    const size_t step = static_cast<size_t>(unit) * M::STEPS + chunk / M::COLUMN_WARPS;
    char* to = packed.data() + step * M::STEP_BYTES + warp * M::CHUNK_BYTES;
    const Packer packer = {M::FORMAT, to};
    float scale = 1;
    if (M::FORMAT == Format::Mxfp4) {
      const uint32_t code = 118 + random() % 4;
      scale = std::ldexp(1.0f, static_cast<int>(code) - 127);
      packer.put_scale(row % 16, column % 64 / 32, code + 26);
    } else if (M::FORMAT == Format::Fp8) {
      scale = (1 + row * 37 % 64 / 64.0f) * (1 + column / 64 % 8) / 4096;
      const float stored = scale * 1048576;
      uint32_t bits;
      memcpy(&bits, &stored, 4);
      if (column % 64 == 0) packer.put_scale(row % 16, 0, bits);
    }
    for (int i = 0; i < 32 && column + i < M::COLUMNS; i++) {
      uint32_t code = random();
      float value;
      if (M::FORMAT == Format::Bf16) {
        code = bf16_bits((static_cast<int>(code & 0xffff) - 32768) / 1048576.0f);
        value = bf16_value(code);
      } else if (M::FORMAT == Format::Fp8) {
        code &= 255;
        if ((code & 127) == 127) code--;
        value = e4m3(code);
      } else {
        code &= 15;
        value = e2m1(code);
      }
      packer.put(row % 16, column % 64 + i, code);
      if (kept >= 0)
        values[static_cast<size_t>(kept) * M::COLUMNS + column + i] =
            static_cast<double>(value) * scale;
    }
  }
};

// Activations as an operand, and their values.
template <class M>
struct Activations {
  std::vector<uint16_t> operand;
  std::vector<double> values;

  explicit Activations(std::mt19937& random)
      : operand(static_cast<size_t>(TOKENS_MAX) * M::COLUMNS_PADDED),
        values(static_cast<size_t>(TOKENS_MAX) * M::COLUMNS) {
    std::normal_distribution<float> normal;
    for (int token = 0; token < TOKENS_MAX; token++)
      for (int column = 0; column < M::COLUMNS; column++) {
        const float value = bf16_value(bf16_bits(normal(random)));
        const size_t byte = operand_row(token, M::COLUMNS_PADDED * 2) + operand_offset(column);
        operand[byte / 2] = bf16_bits(value * operand_scale(M::FORMAT));
        values[static_cast<size_t>(token) * M::COLUMNS + column] = value;
      }
  }
};

// F32 sums of so many products, each sum of 16 cut off rather than rounded: an error of a few units
// in the 23rd place of the sum of magnitudes.
constexpr double TOLERANCE = 1.0 / (1 << 21);

template <class M>
bool check(const Sample<M>& sample, const Activations<M>& x, const std::vector<float>& found,
           int token_count) {
  double worst = 0;
  for (size_t kept = 0; kept < sample.rows.size(); kept++)
    for (int token = 0; token < token_count; token++) {
      double sum = 0, magnitude = 0;
      for (int column = 0; column < M::COLUMNS; column++) {
        const double product = sample.values[kept * M::COLUMNS + column] *
                               x.values[static_cast<size_t>(token) * M::COLUMNS + column];
        sum += product;
        magnitude += std::fabs(product);
      }
      const size_t stride = static_cast<size_t>(M::UNITS) * 16 * M::ROW_TILES;
      const double error = std::fabs(found[token * stride + sample.rows[kept]] - sum) / magnitude;
      worst = error > worst ? error : worst;
      if (!(error <= TOLERANCE)) {
        printf("row %d, token %d: %g, not %g\n", sample.rows[kept], token,
               found[token * stride + sample.rows[kept]], sum);
        return false;
      }
    }
  printf("  worst error %.2g of the magnitudes\n", worst);
  return true;
}

// Bytes of copies of a matrix, many times what the caches hold.
constexpr size_t READ_BYTES = size_t{3} << 30;
constexpr int RUNS = 5;
// To be checked alone: more than one, so that the ring goes on from one to the next.
constexpr int COPIES_CHECKED = 3;

template <class M, Kind KIND>
float best_ms(const Work& work, int runs) {
  auto* kernel = walk<M, KIND>;
  const int bytes = sizeof(SharedMemory);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  float best = 1e9f;
  for (int run = 0; run < runs; run++) {
    CHECK(cudaEventRecord(start));
    kernel<<<GRID, THREADS, bytes>>>(Memory{}, work);
    CHECK(cudaEventRecord(stop));
    const cudaError_t error = cudaDeviceSynchronize();
    if (error != cudaSuccess) {
      printf("%s; waited for %u\n", cudaGetErrorString(error), work.fault->code);
      exit(1);
    }
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    best = ms < best ? ms : best;
  }
  return best;
}

void describe(const char* name, const void* kernel) {
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, kernel));
  printf("%s: %d registers, %zu bytes of spills\n", name, attributes.numRegs,
         attributes.localSizeBytes);
}

template <class M>
bool measure(const char* name, bool small) {
  describe(name, reinterpret_cast<const void*>(walk<M, Kind::Multiply>));
  std::mt19937 random(1);
  const Sample<M> sample(random);
  const Activations<M> x(random);
  Work work = {};
  work.copies = small ? COPIES_CHECKED : static_cast<int>(READ_BYTES / M::BYTES);
  const int runs = small ? 1 : RUNS;
  char *weights, *operand;
  CHECK(cudaMalloc(&weights, work.copies * M::BYTES));
  for (int copy = 0; copy < work.copies; copy++)
    CHECK(cudaMemcpy(weights + copy * M::BYTES, sample.packed.data(), M::BYTES,
                     cudaMemcpyHostToDevice));
  CHECK(cudaMalloc(&operand, x.operand.size() * 2));
  CHECK(cudaMemcpy(operand, x.operand.data(), x.operand.size() * 2, cudaMemcpyHostToDevice));
  std::vector<float> products(static_cast<size_t>(TOKENS_MAX) * M::UNITS * 16 * M::ROW_TILES);
  CHECK(cudaMalloc(&work.products, products.size() * 4));
  CHECK(cudaMallocHost(&work.fault, sizeof(Fault)));
  CHECK(cudaMalloc(&work.barrier, 4));
  *work.fault = {};
  work.weights = reinterpret_cast<uint64_t>(weights);
  work.operand = reinterpret_cast<uint64_t>(operand);
  const double gigabytes = work.copies * M::BYTES / 1e9;
  const float floor_ms = best_ms<M, Kind::ReadOnly>(work, runs);
  printf("  pages alone: %.0f GB/s\n", gigabytes / floor_ms * 1e3);
  std::vector<float> few;
  bool right = true;
  for (int tiles : {1, TILES_MAX}) {
    work.tiles = tiles;
    const float ms = best_ms<M, Kind::Multiply>(work, runs);
    printf("  %d tokens: %.0f GB/s, %.1f %%, %.2f us a matrix\n", tiles * TILE_TOKENS,
           gigabytes / ms * 1e3, 100 * floor_ms / ms, ms * 1e3 / work.copies);
    CHECK(cudaMemcpy(products.data(), work.products, products.size() * 4, cudaMemcpyDeviceToHost));
    right = check<M>(sample, x, products, tiles * TILE_TOKENS) && right;
    if (tiles == 1) few = products;
  }
  const size_t shared_values = static_cast<size_t>(TILE_TOKENS) * M::UNITS * 16 * M::ROW_TILES;
  if (memcmp(few.data(), products.data(), shared_values * 4) != 0) {
    printf("  a token's bits depend on how many there are\n");
    right = false;
  }
  CHECK(cudaFree(weights));
  CHECK(cudaFree(operand));
  CHECK(cudaFree(work.products));
  CHECK(cudaFreeHost(work.fault));
  CHECK(cudaFree(work.barrier));
  return right;
}

}  // namespace kilotok

int main(int argc, char** argv) {
  using namespace kilotok;
  const bool small = argc > 1 && strcmp(argv[1], "check") == 0;
  bool right = measure<QkvMatrix<0>>("qkv, FP8", small);
  right = measure<OutputMatrix<0>>("output, BF16", small) && right;
  right = measure<Matrix<Format::Mxfp4, 32 * 512, HIDDEN, 1>>("gate and up of 32 experts, MXFP4",
                                                           small) &&
          right;
  right = measure<DownMatrix<0>>("down of the dense layer, FP8", small) && right;
  right = measure<HeadMatrix>("head, BF16", small) && right;
  right = measure<Matrix<Format::Mxfp4, 200, 480, 1>>("uneven, MXFP4", small) && right;
  right = measure<Matrix<Format::Fp8, 200, 800, OWNER_TILES>>("uneven, FP8", small) && right;
  puts(right ? "all right" : "WRONG");
  return right ? 0 : 1;
}
