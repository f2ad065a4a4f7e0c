// Checks that products of warpgroups (`wgmma`) have the same bits as those of warps (`mma`). The
// hardware's documents do not promise it, and the wide pass needs it to have the bits of the narrow
// pass. Compares sums over the same columns in the same order, BF16 and TF32, of values of every
// kind; and sums of `mma` with its operands exchanged. Needs a GPU:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels/include \
//     -I kernels/models/slice kernels/harness/wgmma.cu -o wgmma
//   ./wgmma          columns up to 6144
//   ./wgmma check    up to 256
// Returns 1 if any bit differs.
#include "bench.h"

#include "kilotok/ptx/mma.cuh"
#include "kilotok/ptx/wgmma.cuh"

namespace bench {

using namespace kilotok;

constexpr int ROWS = 64, WARPGROUP = 128;

// Operands `[rows][columns]`, A with 64 rows; products `[64][N]`, first those of warps, then those
// of warpgroups.
struct Work {
  uint64_t a, b, products;
  // Each `run` columns have a sum of their own; these are added.
  int columns, run;
};

// A lane's four pairs of A, from 16 rows that begin at `row`.
__device__ __forceinline__ void load_a(const uint16_t* row, int columns, int lane,
                                       uint32_t (&a)[4]) {
  for (int i = 0; i < 4; i++)
    a[i] = *reinterpret_cast<const uint32_t*>(row + (lane / 4 + i % 2 * 8) * columns +
                                              lane % 4 * 2 + i / 2 * 8);
}

template <int N>
__device__ __forceinline__ void store(float* products, const float (&sums)[N / 2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < N / 2; i++)
    products[(threadIdx.x / 32 * 16 + lane / 4 + i % 4 / 2 * 8) * N + i / 4 * 8 + lane % 4 * 2 +
             i % 2] = sums[i];
}

// Sixteen columns of B in the layout that `wgmma` reads, two at a time.
template <int N>
__device__ __forceinline__ void bring_b(uint32_t shared, const uint16_t* b, int columns, int k) {
  __syncthreads();
  for (int i = threadIdx.x; i < N * 8; i += WARPGROUP) {
    const int row = i / 8, column = i % 8 * 2;
    ptx::store_shared_word(
        shared + ((row / 8 * 2 + column / 8) * 64 + row % 8 * 8 + column % 8) * 2,
        *reinterpret_cast<const uint32_t*>(b + row * columns + k + column));
  }
  ptx::wgmma_writes_fence();
  __syncthreads();
}

template <int N>
__global__ void __launch_bounds__(WARPGROUP, 1) compare(const Work work) {
  const uint32_t shared = ptx::shared_address(asked_memory());
  const int lane = threadIdx.x % 32, columns = work.columns;
  const uint16_t* rows = at<const uint16_t>(work.a) + threadIdx.x / 32 * 16 * columns;
  const uint16_t* b = at<const uint16_t>(work.b);
  float all[2][N / 2] = {}, sums[2][N / 2] = {};
  for (int k = 0; k < columns; k += 16) {
    bring_b<N>(shared, b, columns, k);
    uint32_t a[4];
    load_a(rows + k, columns, lane, a);
    const bool first = k % work.run == 0;
#pragma unroll
    for (int tile = 0; tile < N / 8; tile++) {
      float c[4];
#pragma unroll
      for (int i = 0; i < 4; i++) c[i] = first ? 0 : sums[0][tile * 4 + i];
      const uint16_t* row = b + (tile * 8 + lane / 4) * columns + k + lane % 4 * 2;
      ptx::mma(c, a, *reinterpret_cast<const uint32_t*>(row),
               *reinterpret_cast<const uint32_t*>(row + 8));
#pragma unroll
      for (int i = 0; i < 4; i++) sums[0][tile * 4 + i] = c[i];
    }
    ptx::wgmma_fence();
    ptx::wgmma<N>(sums[1], a, ptx::wgmma_operand(shared, 128, 256), !first);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sums[1]);
    if ((k + 16) % work.run != 0 && k + 16 < columns) continue;
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      for (int which = 0; which < 2; which++)
        all[which][i] = k < work.run ? sums[which][i] : all[which][i] + sums[which][i];
  }
  store<N>(at<float>(work.products), all[0]);
  store<N>(at<float>(work.products) + ROWS * N, all[1]);
}

// TF32 products of F32 operands, with 8 columns of B.
__global__ void __launch_bounds__(WARPGROUP, 1) compare_tf32(const Work work) {
  const uint32_t shared = ptx::shared_address(asked_memory());
  const int lane = threadIdx.x % 32, columns = work.columns;
  const float* b = at<const float>(work.b);
  float sums[2][4] = {};
  for (int k = 0; k < columns; k += 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < 64; i += WARPGROUP)
      ptx::store_shared_word(shared + (i % 8 / 4 * 32 + i / 8 * 4 + i % 4) * 4,
                             __float_as_uint(b[i / 8 * columns + k + i % 8]));
    ptx::wgmma_writes_fence();
    __syncthreads();
    const float* row = at<const float>(work.a) +
                       (threadIdx.x / 32 * 16 + lane / 4) * columns + k + lane % 4;
    const float a[4] = {row[0], row[8 * columns], row[4], row[8 * columns + 4]};
    const float* own = b + lane / 4 * columns + k + lane % 4;
    ptx::mma_tf32(sums[0], a, own[0], own[4]);
    ptx::wgmma_fence();
    ptx::wgmma_tf32(sums[1], a, ptx::wgmma_operand(shared, 128, 256), true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(sums[1]);
  }
  store<8>(at<float>(work.products), sums[0]);
  store<8>(at<float>(work.products) + ROWS * 8, sums[1]);
}

// Multiplies sixteen rows of A with sixteen of B, first as such, then with A and B exchanged:
// products `[2][A][B]`. For sixteen rows the registers of operand A are those of two operands B.
__global__ void __launch_bounds__(32, 1) compare_places(const Work work) {
  const int lane = threadIdx.x, columns = work.columns;
  const uint16_t* rows[] = {at<const uint16_t>(work.a), at<const uint16_t>(work.b)};
  float sums[2][2][4] = {};
  for (int k = 0; k < columns; k += 16) {
    uint32_t words[2][4];
    for (int i = 0; i < 2; i++) load_a(rows[i] + k, columns, lane, words[i]);
    for (int i = 0; i < 2; i++)
      for (int half = 0; half < 2; half++)
        ptx::mma(sums[i][half], words[i], words[1 - i][half], words[1 - i][half + 2]);
  }
  float* products = at<float>(work.products);
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + i / 2 * 8, other = half * 8 + lane % 4 * 2 + i % 2;
      products[row * 16 + other] = sums[0][half][i];
      products[256 + other * 16 + row] = sums[1][half][i];
    }
}

enum class Values { Uniform, Exponents, Codes, Zeros };

// Exponents of 40 binades; MXFP4 codes as BF16, where a tiny number is multiplied with a huge one;
// zeros of both signs among others.
float value(Values kind, uint64_t seed, size_t i, bool weight) {
  const float from_half = uniform(seed, i);
  const int draw = static_cast<int>(mixed(seed + 1, i) % 40);
  if (kind == Values::Exponents) return std::ldexp(from_half, draw - 20);
  if (kind == Values::Zeros) return draw < 36 ? std::copysign(0.0f, from_half) : from_half;
  if (kind == Values::Uniform) return from_half;
  const float codes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return weight ? std::ldexp(std::copysign(codes[draw % 8], from_half), -126)
                : std::ldexp(from_half, 100);
}

// Compares all bits of the products that a kernel stored twice, N columns each.
template <class Kernel>
bool compare_products(const char* name, Kernel kernel, Work work, Buffers& buffers, int n,
                      size_t count, int threads, int shared_bytes) {
  work.products = buffers.take(2 * count * 4);
  void* arguments[] = {&work};
  launch_ms(kernel, dim3(1), threads, shared_bytes, arguments);
  const auto found = read<uint32_t>(work.products, 2 * count);
  size_t differ = 0;
  for (size_t i = 0; i < count; i++) differ += found[i] != found[count + i];
  std::printf("%-32s %3d x %4d, runs of %4d: %zu of %zu differ %s\n", name, n, work.columns,
              work.run, differ, count, differ ? "WRONG" : "");
  return differ == 0;
}

template <int N>
bool compare_bf16(const char* name, Values kind, int columns, int run) {
  Buffers buffers;
  std::vector<uint16_t> a(size_t{ROWS} * columns), b(size_t{N} * columns);
  for (size_t i = 0; i < a.size(); i++) a[i] = bf16_bits(value(kind, 21, i, true));
  for (size_t i = 0; i < b.size(); i++) b[i] = bf16_bits(value(kind, 23, i, false));
  const Work work = {buffers.put(a), buffers.put(b), 0, columns, run};
  return compare_products(name, compare<N>, work, buffers, N, size_t{ROWS} * N, WARPGROUP,
                          N * 32);
}

bool compare_tf32s(int columns) {
  Buffers buffers;
  const Work work = {buffers.put(uniforms(size_t{ROWS} * columns, 1, 0, 25)),
                     buffers.put(uniforms(size_t{8} * columns, 1, 0, 27)), 0, columns, columns};
  return compare_products("TF32", compare_tf32, work, buffers, 8, ROWS * 8, WARPGROUP, 256);
}

// With the operands exchanged.
bool compare_exchanged(const char* name, Values kind, int columns) {
  Buffers buffers;
  std::vector<uint16_t> a(size_t{16} * columns), b(size_t{16} * columns);
  for (size_t i = 0; i < a.size(); i++) a[i] = bf16_bits(value(kind, 21, i, true));
  for (size_t i = 0; i < b.size(); i++) b[i] = bf16_bits(value(kind, 23, i, false));
  const Work work = {buffers.put(a), buffers.put(b), 0, columns, columns};
  return compare_products(name, compare_places, work, buffers, 16, 256, 32, 0);
}

bool all(bool small) {
  const int most = small ? 256 : 6144;
  bool right = compare_tf32s(most);
  const auto kinds = {std::pair{"uniform", Values::Uniform},
                      std::pair{"40 binades", Values::Exponents},
                      std::pair{"codes of MXFP4", Values::Codes},
                      std::pair{"mostly zeros", Values::Zeros}};
  for (const auto& [name, kind] : kinds)
    right = compare_exchanged("operands exchanged", kind, most) && right;
  for (const auto& [name, kind] : kinds)
    for (int columns : {16, 64, most})
      for (int run : {columns, 32}) {
        right = compare_bf16<8>(name, kind, columns, run) && right;
        right = compare_bf16<16>(name, kind, columns, run) && right;
        right = compare_bf16<24>(name, kind, columns, run) && right;
        right = compare_bf16<32>(name, kind, columns, run) && right;
        right = compare_bf16<40>(name, kind, columns, run) && right;
        right = compare_bf16<48>(name, kind, columns, run) && right;
        right = compare_bf16<64>(name, kind, columns, run) && right;
        right = compare_bf16<72>(name, kind, columns, run) && right;
        right = compare_bf16<128>(name, kind, columns, run) && right;
        right = compare_bf16<136>(name, kind, columns, run) && right;
      }
  return right;
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run_all(argc, argv, bench::all); }
