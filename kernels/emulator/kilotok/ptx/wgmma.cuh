// Matrix products of a warpgroup, with checks for errors that a GPU does not report: sums accessed
// before they are waited for, a missing fence, warps of a group that begin different products, and
// operands written without a fence.
#pragma once

#include "kilotok/ptx/mma.cuh"
#include "kilotok/ptx/async.cuh"

namespace kilotok::ptx {

[[noreturn]] inline void wgmma_misused(const char* how) {
  std::fprintf(stderr, "thread %d: %s\n", emulator::here->current->index, how);
  emulator::trap();
}

inline void wgmma_fence() {
  __syncwarp();
  emulator::here->current->work.fenced = true;
}

inline void wgmma_ready(uint32_t (&)[4]) {}

inline void wgmma_commit() { emulator::here->current->work.committed++; }

inline void wgmma_multiply(emulator::Wgmma& product) {
  emulator::multiply_rows(product, reinterpret_cast<const char*>(&emulator::here),
                          emulator::lane());
}

// Completes the product at `place`, for the next one in flight with the same sums or for the
// thread.
inline void wgmma_finish(emulator::AsyncWork& work, size_t place) {
  emulator::Wgmma& product = *work.products[place];
  if (!product.early) wgmma_multiply(product);
  float* to = product.sums;
  for (size_t i = place + 1; i < work.under_way && to == product.sums; i++)
    if (work.products[i]->sums == product.sums) to = work.products[i]->before;
  for (int i = 0; i < product.columns / 2; i++) {
    if (!emulator::is_under_way(product.sums[i]))
      wgmma_misused("sums were written while a product was under way");
    to[i] = (product.add ? product.before[i] : 0.0f) + product.products[i];
  }
}

template <int PENDING, int COUNT>
void wgmma_wait(float (&)[COUNT]) {
  __syncwarp();
  emulator::AsyncWork& work = emulator::here->current->work;
  size_t done = 0;
  while (done < work.under_way && work.products[done]->group < work.committed - PENDING)
    wgmma_finish(work, done++);
  const auto first = work.products.begin();
  std::rotate(first, first + done, first + work.under_way);
  work.under_way -= done;
  work.fenced = false;
}

inline void wgmma_writes_fence() {
  std::memset(emulator::here->current->written, 0, sizeof(emulator::Pieces));
  std::memset(emulator::here->copied, 0, sizeof(emulator::Pieces));
}

inline uint64_t wgmma_operand(uint32_t address, uint32_t k_bytes, uint32_t column_bytes) {
  // A GPU's descriptor has fourteen bits for a multiple of sixteen bytes.
  if (reinterpret_cast<uintptr_t>(shared<char>(address)) % 16 != 0 || k_bytes % 16 != 0 ||
      column_bytes % 16 != 0 || k_bytes >> 18 != 0 || column_bytes >> 18 != 0)
    wgmma_misused("an operand of products does not lie as it has to");
  return address | static_cast<uint64_t>(k_bytes / 16) << 32 |
         static_cast<uint64_t>(column_bytes / 16) << 48;
}
inline uint64_t wgmma_swizzled(uint32_t address, uint32_t column_bytes) {
  if (address % 1024 != 0 || column_bytes % 16 != 0)
    wgmma_misused("a swizzled operand does not lie as it has to");
  return address | static_cast<uint64_t>(column_bytes / 16) << 48;
}
inline uint64_t wgmma_operand_at(uint64_t operand, uint32_t bytes) { return operand + bytes; }

// Checks that all warps of a group begin the same products.
inline void wgmma_compare(uint64_t operand, int columns) {
  const int index = emulator::here->current->index;
  const int number = emulator::here->current->work.count;
  emulator::Warpgroup& group = emulator::here->warpgroups[index / emulator::WARPGROUP];
  const int place = number % emulator::NOTED;
  const uint64_t what = operand + static_cast<uint64_t>(columns) * 0x9e3779b97f4a7c15u;
  if (group.numbers[place] == number && group.operands[place] != what)
    wgmma_misused("warps of a warpgroup multiply with different operands");
  group.numbers[place] = number;
  group.operands[place] = what;
}

// Checks that writes of other threads to an operand were followed by a fence.
inline void wgmma_check_written(uint64_t operand, int columns) {
  const emulator::Operand b = emulator::Operand::of(operand);
  emulator::Pieces pieces = {};
  for (int column = 0; column < columns; column++)
    for (int k = 0; k < 2; k++)
      emulator::note(pieces, reinterpret_cast<uintptr_t>(shared<char>(b.piece(column, k))));
  if (emulator::meet(pieces, emulator::here->copied) ||
      emulator::marked_by(pieces, &emulator::Thread::written) >= 0)
    wgmma_misused("an operand was written without a fence before the barrier");
}

// Begins a product of a lane's rows of A.
inline void wgmma_begin(float* sums, int columns, int k, const float (&a)[2][emulator::K_MAX],
                        uint64_t b, bool add, bool turned = false) {
  emulator::Thread& thread = *emulator::here->current;
  if (!thread.work.fenced) wgmma_misused("a product begins without a fence");
  thread.work.count++;
  if (emulator::lane() == 0) wgmma_compare(b, columns);
  emulator::Wgmma& product = thread.work.begin();
  product.sums = sums;
  product.columns = columns;
  product.k = k;
  product.group = thread.work.committed;
  product.add = add;
  product.turned = turned;
  product.b = b;
  std::memcpy(product.a, a, sizeof(product.a));
  // Sums in flight are replaced when they are complete.
  std::copy(sums, sums + columns / 2, product.before);
  std::fill(sums, sums + columns / 2, __uint_as_float(emulator::UNDER_WAY));
  if (thread.index % emulator::WARPGROUP == 0) wgmma_check_written(b, columns);
  product.early = emulator::draw() % 2 == 0;
  if (product.early) wgmma_multiply(product);
}

template <int N>
void wgmma(float (&sums)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add,
           bool turned = false) {
  const emulator::Shown* shown = emulator::show(a, 4);
  float rows[2][emulator::K_MAX];
  for (int k = 0; k < emulator::K_MAX; k++) {
    const uint32_t* lane = shown[emulator::lane() / 4 * 4 + k % 8 / 2];
    for (int row = 0; row < 2; row++)
      rows[row][k] = from_bf16(static_cast<uint16_t>(lane[k / 8 * 2 + row] >> 16 * (k % 2)));
  }
  wgmma_begin(sums, N, emulator::K_MAX, rows, b, add, turned);
}
template <int N>
void wgmma_turned(float (&sums)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  wgmma<N>(sums, a, b, add, true);
}

// A is read at once.
inline void wgmma_shared(float (&sums)[32], uint64_t a, uint64_t b, bool add) {
  const emulator::Operand operand = emulator::Operand::of(a);
  const int thread = emulator::here->current->index % emulator::WARPGROUP;
  if (thread == 0) wgmma_check_written(a, 64);
  float rows[2][emulator::K_MAX];
  for (int half = 0; half < 2; half++)
    for (int k = 0; k < emulator::K_MAX; k++)
      rows[half][k] = emulator::bf16_at(
          shared<const char>(operand.address) + (thread / 32 * 2 + half) * operand.column_bytes +
          k / 8 * operand.k_bytes + emulator::lane() / 4 * 16 + k % 8 * 2);
  wgmma_begin(sums, 64, emulator::K_MAX, rows, b, add);
}

template <int COUNT>
void wgmma_tf32(float (&sums)[COUNT], const float (&a)[4], uint64_t b, bool add) {
  uint32_t words[4];
  for (int i = 0; i < 4; i++) words[i] = __float_as_uint(a[i]) & 0xffffe000;
  const emulator::Shown* shown = emulator::show(words, 4);
  float rows[2][emulator::K_MAX] = {};
  for (int k = 0; k < 8; k++)
    for (int row = 0; row < 2; row++)
      rows[row][k] = __uint_as_float(shown[emulator::lane() / 4 * 4 + k % 4][k / 4 * 2 + row]);
  wgmma_begin(sums, COUNT * 2, 8, rows, b, add);
}

}  // namespace kilotok::ptx
