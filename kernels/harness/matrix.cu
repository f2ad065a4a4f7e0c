// Multiplies matrices as the phases do, checks the products against double precision and measures
// which share of the memory's bandwidth the GEMM reaches. Needs a GPU:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels/include \
//     -I kernels/models/slice kernels/harness/matrix.cu -o matrix
//   ./matrix          checks and times
//   ./matrix check    a few matrices, once, for compute-sanitizer
// Prints a line for each matrix and number of tokens; returns 1 if a product is wrong.
#include "kilotok/layout/planned.cuh"
#include "matrix_walk.cuh"

namespace bench {

using namespace kilotok;

// The number of rows whose products are checked.
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

// Bytes of all copies of a matrix, many times what the caches hold.
constexpr size_t READ_BYTES = size_t{3} << 30;
// The copies in a check: more than one, so that the ring continues from one to the next.
constexpr int COPIES_CHECKED = 3;

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
