// Multiplies matrices as the wide pass does, compares every bit with the narrow pass over the same
// tokens, and prints times beside the least that the hardware allows (the floor). Needs a GPU:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels -I kernels/include \
//     -I kernels/models/slice kernels/harness/wide_matrix.cu -o wide_matrix
//   ./wide_matrix          checks and times
//   ./wide_matrix check    checks a few hundred tokens
// Returns 1 if a bit differs.
#include "kilotok/wide/gemm.cuh"
#include "matrix_walk.cuh"

namespace bench {

struct WideWork {
  uint64_t weights, operand, products, fault;
  uint32_t wait_max_ms;
  int copies, tokens, capacity;
};

// Products `[tokens][rows]`, as the narrow walk stores them.
template <class M>
struct WideStore {
  float* products;
  int token_count;

  __device__ __forceinline__ void operator()(int row_tile, int first, int lane,
                                             const float4& v) const {
    const int token = first + lane % 4 * 2;
    float* to = products + static_cast<size_t>(token) * Store<M>::STRIDE + row_tile * 16 + lane / 4;
    if (token < token_count) {
      to[0] = v.x;
      to[8] = v.z;
    }
    if (token + 1 < token_count) {
      to[Store<M>::STRIDE] = v.y;
      to[Store<M>::STRIDE + 8] = v.w;
    }
  }
};

template <class M>
__global__ void __launch_bounds__(wide::GEMM_THREADS, 1) wide_walk(const WideWork work) {
  auto& shared = *reinterpret_cast<wide::GemmShared*>(asked_memory());
  if (threadIdx.x == 0) {
    wait_context = WaitContext::begin(work.fault, work.wait_max_ms, 0);
    wide::GemmRing<M>(shared).init();
  }
  __syncthreads();
  const wide::GemmWork<M> items(work.tokens);
  // Each copy begins with another CTA, so that all CTAs get the same number of items.
  const auto first = [&](int copy) {
    return (ptx::cta_index() + copy * (items.count() % GRID)) % GRID;
  };
  wide::with_gemm_roles<M>(
      [&] {
        wide::GemmRing<M> ring(shared);
        const WideStore<M> store = {at<float>(work.products), work.tokens};
        for (int copy = 0; copy < work.copies; copy++)
          wide::consume_gemm<M>(
              shared, ring, at<const char>(work.weights) + copy * M::BYTES, items, first(copy),
              [&](int row_tile, int token, int, const float4& values) {
                store(row_tile, token, threadIdx.x % 32, values);
              },
              [](const wide::GemmWork<M>&, int) {});
      },
      [&] {
        wide::GemmRing<M> ring(shared);
        const wide::Operand operand = {at<const char>(work.operand), work.capacity};
        for (int copy = 0; copy < work.copies; copy++)
          wide::produce_gemm<M>(ring, operand, items, first(copy));
      });
}

template <class M>
float wide_ms(const WideWork& work, int runs) {
  void* arguments[] = {const_cast<WideWork*>(&work)};
  float best = INFINITY;
  for (int run = 0; run < runs; run++)
    best = std::min(best, launch_ms(wide_walk<M>, dim3(GRID), wide::GEMM_THREADS,
                                    sizeof(wide::GemmShared), arguments));
  return best;
}

// Values over 2^9, as activations have them, `[tokens][columns]`.
template <class M>
std::vector<uint16_t> values(int tokens) {
  std::vector<uint16_t> all(static_cast<size_t>(tokens) * M::COLUMNS);
  for (size_t i = 0; i < all.size(); i++)
    all[i] = bf16_bits(std::ldexp(uniform(31, i), static_cast<int>(mixed(33, i) % 10) - 6) *
                       operand_scale(M::FORMAT));
  return all;
}

// The values as the operand of the wide pass; and as that of the narrow pass, for a batch from
// token `first` on.
template <class M>
std::vector<uint16_t> wide_operand(const std::vector<uint16_t>& all, int tokens) {
  std::vector<uint16_t> operand(wide::operand_bytes(M::COLUMNS, tokens) / 2);
  for (int token = 0; token < tokens; token++)
    for (int column = 0; column < M::COLUMNS; column++)
      operand[wide::operand_place(token, column, tokens) / 2] =
          all[static_cast<size_t>(token) * M::COLUMNS + column];
  return operand;
}
template <class M>
std::vector<uint16_t> narrow_operand(const std::vector<uint16_t>& all, int first, int count) {
  constexpr int BYTES = M::COLUMNS_PADDED * 2;
  std::vector<uint16_t> operand(size_t{TOKENS_MAX} * BYTES / 2);
  for (int token = 0; token < count; token++)
    for (int column = 0; column < M::COLUMNS; column++)
      operand[(operand_row(token, BYTES) + operand_offset(column)) / 2] =
          all[static_cast<size_t>(first + token) * M::COLUMNS + column];
  return operand;
}

// Whether all tokens have the bits of the narrow pass.
template <class M>
bool compare(const char* name, const Work& narrow, const WideWork& work,
             const std::vector<uint16_t>& all) {
  constexpr size_t STRIDE = Store<M>::STRIDE;
  const auto found = read<uint32_t>(work.products, work.tokens * STRIDE);
  size_t differ = 0;
  for (int first = 0; first < work.tokens; first += TOKENS_MAX) {
    const int count = std::min(TOKENS_MAX, work.tokens - first);
    Buffers::copy(narrow.operand, narrow_operand<M>(all, first, count));
    best_ms<M, Kind::Multiply>(narrow, 1);
    const auto wanted = read<uint32_t>(narrow.products, count * STRIDE);
    for (size_t i = 0; i < wanted.size(); i++) differ += found[first * STRIDE + i] != wanted[i];
  }
  std::printf("  %5d tokens: %zu of %zu differ %s\n", work.tokens, differ,
              work.tokens * STRIDE, differ ? "WRONG" : "");
  if (differ) std::printf("  %s: WRONG\n", name);
  return differ == 0;
}

// Bytes of all copies of a matrix, more than caches hold.
constexpr size_t WEIGHTS_BYTES = size_t{1} << 29;

// BF16 operations of an H100's tensor cores in a second, and bytes that its memory reads.
constexpr double FLOPS = 989e12, BYTES = 3.05e12;

template <class M>
void time(WideWork work, const char* name) {
  work.copies = static_cast<int>(std::max<size_t>(WEIGHTS_BYTES / M::BYTES, 2));
  const double us = wide_ms<M>(work, RUNS) * 1e3 / work.copies;
  const double flop = 2.0 * M::ROWS * M::COLUMNS * work.tokens;
  const double floor_us = std::max(flop / FLOPS, M::BYTES / BYTES) * 1e6;
  std::printf("  %s, %d tokens: %.1f us a matrix, %.0f TFLOP/s, %.0f GB/s, floor %.1f us\n", name,
              work.tokens, us, flop / us / 1e6, M::BYTES / us / 1e3, floor_us);
}

// Prints the time of the narrow pass for the most tokens that it takes.
template <class M>
void time_narrow(Work work, int copies) {
  work.copies = copies;
  std::printf("  the narrow pass, %d tokens: %.1f us a matrix\n", TOKENS_MAX,
              best_ms<M, Kind::Multiply>(work, RUNS) * 1e3 / copies);
}

template <class M>
bool measure(const char* name, bool small) {
  std::puts(name);
  describe("  wide", wide_walk<M>);
  constexpr int FEW[] = {1, 65, 203}, MANY[] = {1, 8, 31, 32, 64, 100, 128, 1025, 8192};
  const int most = small ? 208 : 8192;
  std::mt19937 random(1);
  const Weights<M> weights(random, 0);
  const std::vector<uint16_t> all = values<M>(most);
  Buffers buffers;
  const int copies =
      small ? 1 : static_cast<int>(std::max<size_t>(WEIGHTS_BYTES / M::BYTES, 2));
  Work narrow = {};
  narrow.weights = buffers.take(copies * M::BYTES);
  for (int copy = 0; copy < copies; copy++)
    Buffers::copy(narrow.weights + copy * M::BYTES, weights.packed);
  narrow.copies = 1;
  narrow.tiles = TILES_MAX;
  narrow.operand = buffers.take(size_t{TOKENS_MAX} * M::COLUMNS_PADDED * 2);
  narrow.products = buffers.take(size_t{TOKENS_MAX} * Store<M>::STRIDE * 4);
  narrow.barrier = buffers.put(std::vector<uint32_t>(1));
  narrow.fault = fault_address();
  narrow.wait_max_ms = wait_max_ms();
  WideWork work = {narrow.weights, buffers.put(wide_operand<M>(all, most)),
                   buffers.take(static_cast<size_t>(most) * Store<M>::STRIDE * 4), narrow.fault,
                   narrow.wait_max_ms, 1, 0, most};
  if (!small) time_narrow<M>(narrow, copies);
  bool right = true;
  const auto check = [&](int tokens) {
    work.tokens = tokens;
    CHECK(cudaMemset(at<void>(work.products), 0xff, size_t{4} * tokens * Store<M>::STRIDE));
    wide_ms<M>(work, 1);
    right = compare<M>(name, narrow, work, all) && right;
    if (!small) time<M>(work, name);
  };
  if (small)
    for (int tokens : FEW) check(tokens);
  else
    for (int tokens : MANY) check(tokens);
  return right;
}

bool all(bool small) {
  bool right = measure<QkvMatrix<0>>("qkv, FP8", small);
  right = measure<OutputMatrix<0>>("output, BF16", small) && right;
  right = measure<Matrix<Format::Mxfp4, 8 * 512, HIDDEN, 1>>("gate and up of 8 experts, MXFP4",
                                                              small) && right;
  right = measure<DownMatrix<0>>("down of the dense layer, FP8", small) && right;
  right = measure<Matrix<Format::Mxfp4, 200, 480, 1>>("uneven, MXFP4", small) && right;
  right = measure<Matrix<Format::Fp8, 200, 800, OWNER_TILES>>("uneven, FP8", small) && right;
  return right;
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all); }
