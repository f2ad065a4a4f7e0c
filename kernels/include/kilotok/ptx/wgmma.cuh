// Matrix products of a warpgroup (`wgmma`). Four warps, of which the first has a number divisible
// by four, multiply 64 rows of A, 16 a warp, with N columns of B. A comes from registers, in each
// warp as for `mma`; B from shared memory. Sums stay in registers, four for every eight columns, as
// `mma` has them. They equal those of `mma` bit for bit over the same k in the same order
// (harness/wgmma.cu).
//
// A product is asynchronous. Its registers must not be accessed between fence and wait.
#pragma once

#include "kilotok/ptx/async.cuh"

namespace kilotok::ptx {

// Orders this warp's register accesses: needed before the first product, and after writes to A or
// to the sums.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Operand A is complete before the products after this. Otherwise the compiler may compute it among
// them, and make them wait for one another.
__device__ __forceinline__ void wgmma_ready(uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) asm volatile("" : "+r"(a[i]));
}

// Commits the products since the last commit as one group.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most PENDING groups are in flight; the groups that compute `sums` must be complete
// then.
template <int PENDING, int COUNT>
__device__ __forceinline__ void wgmma_wait(float (&sums)[COUNT]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
  // Keeps the compiler from reading the sums before the wait.
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

// Makes this thread's writes to shared memory visible to products that begin after a barrier.
__device__ __forceinline__ void wgmma_writes_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The descriptor of B in shared memory, which lies in core matrices of 8 columns x 16 bytes along
// k, 128 bytes each, column by column. `k_bytes` is the distance between neighbours along k,
// `column_bytes` that between neighbours along the columns. Both are multiples of 16.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address, uint32_t k_bytes,
                                                  uint32_t column_bytes) {
  return static_cast<uint64_t>(address >> 4 & 0x3fff) | static_cast<uint64_t>(k_bytes >> 4) << 16 |
         static_cast<uint64_t>(column_bytes >> 4) << 32;
}

// The same for B in the 128-byte swizzle: columns have 128 bytes along k, and piece p of 16 bytes
// lies at p ^ column % 8. Eight columns begin at a multiple of 1024 bytes.
__device__ __forceinline__ uint64_t wgmma_swizzled(uint32_t address, uint32_t column_bytes) {
  return wgmma_operand(address, 16, column_bytes) | uint64_t{1} << 62;
}

// The descriptor of the operand that lies `bytes` further on.
__device__ __forceinline__ uint64_t wgmma_operand_at(uint64_t operand, uint32_t bytes) {
  return operand + (bytes >> 4);
}

// sums (+)= a b: BF16 products, F32 sums, 16 along k. Without `add` the sums begin at zero. TURNED:
// B is transposed; it lies row by row, in pieces of 8 along k x 8 columns, with 16 bytes a row.
template <int N, bool TURNED>
struct Wgmma;

#define KILOTOK_EIGHT(i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

template <bool TURNED>
struct Wgmma<8, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3"
        "}, {%4, %5, %6, %7}, %8, p, 1, 1, %10;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<16, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[8], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, {%8, %9, %10, %11}, %12, p, 1, 1, %14;\n}"
        : KILOTOK_EIGHT(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<24, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[12], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %17, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
        "}, {%12, %13, %14, %15}, %16, p, 1, 1, %18;\n}"
        : KILOTOK_EIGHT(0), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<32, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[16], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<40, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[20], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %25, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19"
        "}, {%20, %21, %22, %23}, %24, p, 1, 1, %26;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<48, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[24], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %29, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19, %20, %21, %22, %23"
        "}, {%24, %25, %26, %27}, %28, p, 1, 1, %30;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<64, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[32], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<72, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[36], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %41, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35"
        "}, {%36, %37, %38, %39}, %40, p, 1, 1, %42;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24), "+f"(d[32]),
          "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<80, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[40], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %45, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39"
        "}, {%40, %41, %42, %43}, %44, p, 1, 1, %46;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24),
          KILOTOK_EIGHT(32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<96, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[48], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
        "%47"
        "}, {%48, %49, %50, %51}, %52, p, 1, 1, %54;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24),
          KILOTOK_EIGHT(32), KILOTOK_EIGHT(40)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<128, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[64], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
        "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24),
          KILOTOK_EIGHT(32), KILOTOK_EIGHT(40), KILOTOK_EIGHT(48), KILOTOK_EIGHT(56)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <bool TURNED>
struct Wgmma<136, TURNED> {
  static __device__ __forceinline__ void multiply(float (&d)[68], const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %73, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n136k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
        "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63, %64, %65, %66, %67"
        "}, {%68, %69, %70, %71}, %72, p, 1, 1, %74;\n}"
        : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24),
          KILOTOK_EIGHT(32), KILOTOK_EIGHT(40), KILOTOK_EIGHT(48), KILOTOK_EIGHT(56), "+f"(d[64]),
          "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(TURNED ? 1 : 0));
  }
};

template <int N>
__device__ __forceinline__ void wgmma(float (&sums)[N / 2], const uint32_t (&a)[4], uint64_t b,
                                      bool add) {
  Wgmma<N, false>::multiply(sums, a, b, add);
}
template <int N>
__device__ __forceinline__ void wgmma_turned(float (&sums)[N / 2], const uint32_t (&a)[4],
                                             uint64_t b, bool add) {
  Wgmma<N, true>::multiply(sums, a, b, add);
}

// The same with A in shared memory, where its 64 rows are stored like 64 columns of B.
__device__ __forceinline__ void wgmma_shared(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;\n}"
      : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// The same for TF32 and 8 or 64 columns, 8 along k; A as in `mma_tf32`.
__device__ __forceinline__ void wgmma_tf32(float (&d)[4], const float (&a)[4], uint64_t b,
                                           bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "%8, p, 1, 1;\n}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "l"(b), "r"(static_cast<int>(add)));
}
__device__ __forceinline__ void wgmma_tf32(float (&d)[32], const float (&a)[4], uint64_t b,
                                           bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1;\n}"
      : KILOTOK_EIGHT(0), KILOTOK_EIGHT(8), KILOTOK_EIGHT(16), KILOTOK_EIGHT(24)
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "l"(b), "r"(static_cast<int>(add)));
}
#undef KILOTOK_EIGHT

}  // namespace kilotok::ptx
