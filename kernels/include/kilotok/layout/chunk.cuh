// Weights in the order in which the tensor cores read them. A *chunk* is 16 rows x 64 columns in
// one of three formats. Codes are laid out so that few instructions turn them into operand A of
// four steps of 16 columns. `crates/cuda/src/repack` writes what `load` reads here.
//
//   BF16    step s at s * 512: 16 bytes a lane, registers a0 a1 a2 a3.
//   FP8     steps 2p, 2p + 1 at p * 512: 16 bytes a lane, a word for each pair of registers, a0 a1,
//           a2 a3 of the first step, then of the second. Each half of a word has a value of either
//           register: the first one's sign in bit 15 and the rest in bits 10 to 4, the second one's
//           sign in bit 11 and the rest in bits 14 to 12 and 3 to 0. Then 16 F32 scales, one a row.
//   MXFP4   16 bytes a lane, a word for each step; see `place` in the packer for the bits. Then a
//           word for each g: E8M0 scales of row g, both groups, and of row g + 8, both groups.
//
// Moving the bits of a code yields a BF16 number that is 2^-120 (FP8) or 2^-126 (MXFP4) times its
// value. QUANTISED_SCALE compensates 2^100 of that and the stored scales the rest: they are 2^20
// and 2^26 times those of the checkpoint. Bytes of zero are weights of zero.
#pragma once

#include "kilotok/layout/operand.cuh"
#include "kilotok/shape.cuh"

namespace kilotok {

__host__ __device__ constexpr int chunk_bytes(Format format) {
  return format == Format::Bf16 ? 2048 : format == Format::Fp8 ? 1024 + 64 : 512 + 32;
}

// The factor of activations that are multiplied with weights of this format.
__host__ __device__ constexpr float operand_scale(Format format) {
  return format == Format::Bf16 ? 1.0f : QUANTISED_SCALE;
}

// A chunk lies in shared memory, where its address is a `uint32_t`, or in the GPU's memory, where
// it is a pointer.
__device__ __forceinline__ uint4 load_sixteen(uint32_t at) { return ptx::load_shared(at); }
__device__ __forceinline__ uint4 load_sixteen(const char* at) { return ptx::load_weights(at); }
__device__ __forceinline__ uint32_t load_four(uint32_t at) { return ptx::load_shared_word(at); }
__device__ __forceinline__ uint32_t load_four(const char* at) {
  return ptx::load_weights_word(at);
}

template <Format F>
struct Chunk;

template <>
struct Chunk<Format::Bf16> {
  uint4 words[4];

  template <class Bytes>
  __device__ __forceinline__ void load(Bytes chunk, int lane) {
#pragma unroll
    for (int step = 0; step < 4; step++) words[step] = load_sixteen(chunk + lane * 16 + step * 512);
  }

  template <int TILES>
  __device__ __forceinline__ void multiply(float (&acc)[TILES][4],
                                           const OperandChunk (&x)[TILES]) const {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const uint4& w = words[step];
      const uint32_t a[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
        ptx::mma(acc[tile], a, x[tile].word(step, 0), x[tile].word(step, 1));
    }
  }
};

template <>
struct Chunk<Format::Fp8> {
  uint4 pairs[2];
  float scales[2];

  template <class Bytes>
  __device__ __forceinline__ void load(Bytes chunk, int lane) {
#pragma unroll
    for (int pair = 0; pair < 2; pair++) pairs[pair] = load_sixteen(chunk + lane * 16 + pair * 512);
    scales[0] = __uint_as_float(load_four(chunk + 1024 + lane / 4 * 4));
    scales[1] = __uint_as_float(load_four(chunk + 1056 + lane / 4 * 4));
  }

  static __device__ __forceinline__ uint32_t first(uint32_t word) { return word & 0x87f087f0u; }
  static __device__ __forceinline__ uint32_t second(uint32_t word) {
    return (word << 4 & 0x80f080f0u) | (word >> 4 & 0x07000700u);
  }

  template <int TILES>
  __device__ __forceinline__ void multiply(float (&acc)[TILES][4],
                                           const OperandChunk (&x)[TILES]) const {
    float sums[TILES][4] = {};
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const uint4& w = pairs[step / 2];
      const uint32_t low = step % 2 == 0 ? w.x : w.z, high = step % 2 == 0 ? w.y : w.w;
      const uint32_t a[4] = {first(low), second(low), first(high), second(high)};
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
        ptx::mma(sums[tile], a, x[tile].word(step, 0), x[tile].word(step, 1));
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[tile][i] += sums[tile][i] * scales[i / 2];
  }
};

template <>
struct Chunk<Format::Mxfp4> {
  uint4 words;
  uint32_t scales;

  template <class Bytes>
  __device__ __forceinline__ void load(Bytes chunk, int lane) {
    words = load_sixteen(chunk + lane * 16);
    scales = load_four(chunk + 512 + lane / 4 * 4);
  }

  // Decodes two steps of 16 columns, which share their scales. Three codes of a word need a shift
  // and a mask; the fourth codes of both words are merged first.
  static __device__ __forceinline__ void decode(uint32_t x, uint32_t y, uint32_t (&a)[4],
                                                uint32_t (&b)[4]) {
    constexpr uint32_t home = 0x81C081C0u, fourth = 0x06030603u;
    const uint32_t z = ptx::select_bits(fourth, x, y << 2);
    a[0] = x & home;
    a[1] = x << 4 & home;
    a[2] = __funnelshift_r(x, x, 6) & home;
    a[3] = z << 6 & home;
    b[0] = y & home;
    b[1] = y << 4 & home;
    b[2] = __funnelshift_r(y, y, 6) & home;
    b[3] = __funnelshift_r(z, z, 4) & home;
  }

  // Scale `i`: its byte becomes the exponent of an F32 number.
  __device__ __forceinline__ float scale(int i) const {
    return __uint_as_float((i < 3 ? scales << (23 - 8 * i) : scales >> 1) & 0x7F800000u);
  }

  template <int TILES>
  __device__ __forceinline__ void multiply(float (&acc)[TILES][4],
                                           const OperandChunk (&x)[TILES]) const {
    // Both groups are interleaved, which hides the latency of each group's products.
    uint32_t a[2][4], b[2][4];
    decode(words.x, words.y, a[0], b[0]);
    decode(words.z, words.w, a[1], b[1]);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      float sums[2][4] = {};
#pragma unroll
      for (int group = 0; group < 2; group++)
        ptx::mma(sums[group], a[group], x[tile].word(group * 2, 0), x[tile].word(group * 2, 1));
#pragma unroll
      for (int group = 0; group < 2; group++)
        ptx::mma(sums[group], b[group], x[tile].word(group * 2 + 1, 0),
                 x[tile].word(group * 2 + 1, 1));
#pragma unroll
      for (int group = 0; group < 2; group++) {
        const float low = scale(group), high = scale(2 + group);
        acc[tile][0] += sums[group][0] * low;
        acc[tile][1] += sums[group][1] * low;
        acc[tile][2] += sums[group][2] * high;
        acc[tile][3] += sums[group][3] * high;
      }
    }
  }
};

}  // namespace kilotok
