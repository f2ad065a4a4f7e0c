// Multiplies matrices as the phases do, checks the products against double precision and measures
// how much of the memory's speed the walk leaves. Needs a GPU:
//   nvcc -std=c++20 -arch=sm_90a -O3 -I kernels/include -I kernels/models/slice matrix.cu -o matrix
//   ./matrix          checks and times
//   ./matrix check    a few matrices, once, for compute-sanitizer
// Prints a line for each matrix and number of tokens; returns 1 if a product is wrong.
#include "weights.h"

#include "kilotok/layout/agree.cuh"
#include "kilotok/phase/stream.cuh"

namespace bench {

using namespace kilotok;

// What one launch does: multiplies copies of a matrix, one after the other.
struct Work {
  uint64_t weights, operand, barrier, products, fault;
  uint32_t wait_max_ms;
  int copies, tiles;
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
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(asked_memory());
  Cta cta(memory, 0);
  Ring ring(shared.ring);
  Sums sums(shared.sums);
  if (threadIdx.x == 0) {
    cta_place = Place::begin(work.fault, work.wait_max_ms, 0);
    ring.init();
    sums.init();
  }
  __syncthreads();
  const Store<M> store = {at<float>(work.products)};
  // Turns, so that all CTAs have the same number of units in the end.
  const auto first = [&](int copy) { return (cta.index() + copy * (M::UNITS % GRID)) % GRID; };
  if (threadIdx.x < CONSUMERS) {
    ptx::more_registers<CONSUMER_REGISTERS>();
    for (int copy = 0; copy < work.copies; copy++) {
      if constexpr (KIND == Kind::ReadOnly) {
        read_pages<M>(cta, ring, first(copy));
      } else {
        // As after a grid barrier: nothing of the operand is in the first-level cache.
        if (cta.thread() == 0) ptx::load_acquire(at<const uint32_t>(work.barrier));
        cta.sync();
        const EveryToken every = {work.tiles};
        if (work.tiles <= 1)
          multiply<M, 1>(cta, ring, sums, work.operand, M::COLUMNS_PADDED * 2, first(copy), every,
                         [] {}, Nothing{}, store);
        else
          multiply<M, TILES_MAX>(cta, ring, sums, work.operand, M::COLUMNS_PADDED * 2, first(copy),
                                 every, [] {}, Nothing{}, store);
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
      if (work.tiles <= 1)
        produce<M, 1>(ring, work.weights + copy * M::BYTES, first(copy));
      else
        produce<M, TILES_MAX>(ring, work.weights + copy * M::BYTES, first(copy));
  }
}

// Rows of which products are checked.
constexpr int ROWS_CHECKED = 96;

template <class M>
void check(const Weights<M>& weights, const Activations& x, const std::vector<float>& found,
           int token_count, Verdict& verdict) {
  for (size_t kept = 0; kept < weights.rows.size(); kept++)
    for (int token = 0; token < token_count; token++) {
      Product wanted;
      wanted.add(weights.row(static_cast<int>(kept)), x.row(token), M::COLUMNS);
      const int row = weights.rows[kept];
      verdict.near(found[static_cast<size_t>(token) * Store<M>::STRIDE + row], wanted.sum,
                   wanted.magnitude * TOLERANCE, "product of row, token", row, token);
    }
}

// Bytes of copies of a matrix, many times what the caches hold.
constexpr size_t READ_BYTES = size_t{3} << 30;
constexpr int RUNS = 5;
// To be checked alone: more than one, so that the ring goes on from one to the next.
constexpr int COPIES_CHECKED = 3;

template <class M, Kind KIND>
float best_ms(const Work& work, int runs) {
  Memory memory = {};
  void* arguments[] = {&memory, const_cast<Work*>(&work)};
  float best = INFINITY;
  for (int run = 0; run < runs; run++)
    best = std::min(best, launch_ms(walk<M, KIND>, dim3(GRID), THREADS, sizeof(SharedMemory),
                                    arguments));
  return best;
}

template <class Kernel>
void describe(const char* name, Kernel* kernel) {
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, kernel));
  printf("%s: %d registers, %zu bytes of spills\n", name, attributes.numRegs,
         attributes.localSizeBytes);
}

template <class M>
bool measure(const char* name, bool small) {
  describe(name, walk<M, Kind::Multiply>);
  std::mt19937 random(1);
  const Weights<M> weights(random, ROWS_CHECKED);
  const Activations x(random, TOKENS_MAX, M::COLUMNS, M::COLUMNS_PADDED * 2,
                      operand_scale(M::FORMAT));
  Buffers buffers;
  Work work = {};
  work.copies = small ? COPIES_CHECKED : static_cast<int>(READ_BYTES / M::BYTES);
  const int runs = small ? 1 : RUNS;
  work.weights = buffers.take(work.copies * M::BYTES);
  for (int copy = 0; copy < work.copies; copy++)
    Buffers::copy(work.weights + copy * M::BYTES, weights.packed);
  work.operand = buffers.put(x.operand);
  const size_t products_count = size_t{TOKENS_MAX} * Store<M>::STRIDE;
  work.products = buffers.take(products_count * 4);
  work.barrier = buffers.put(std::vector<uint32_t>(1));
  work.fault = fault_address();
  work.wait_max_ms = wait_max_ms();
  const double gigabytes = work.copies * M::BYTES / 1e9;
  const float floor_ms = small ? 0 : best_ms<M, Kind::ReadOnly>(work, runs);
  if (!small) printf("  pages alone: %.0f GB/s\n", gigabytes / floor_ms * 1e3);
  Verdict verdict = {name};
  std::vector<float> few;
  for (int tiles : {1, 2, 3, 4, 6, TILES_MAX}) {
    work.tiles = tiles;
    const float ms = best_ms<M, Kind::Multiply>(work, runs);
    if (!small)
      printf("  %d tokens: %.0f GB/s, %.1f %%, %.2f us a matrix\n", tiles * TILE_TOKENS,
             gigabytes / ms * 1e3, 100 * floor_ms / ms, ms * 1e3 / work.copies);
    const std::vector<float> products = read<float>(work.products, products_count);
    check<M>(weights, x, products, tiles * TILE_TOKENS, verdict);
    if (tiles == 1) few = products;
    for (size_t i = 0; i < size_t{TILE_TOKENS} * Store<M>::STRIDE; i++)
      verdict.exact(products[i], few[i], "product with more tokens",
                    static_cast<int>(i / Store<M>::STRIDE), static_cast<int>(i % Store<M>::STRIDE));
  }
  return verdict.print();
}

}  // namespace bench

int main(int argc, char** argv) {
  using namespace bench;
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
