// A model of random weights, for the harnesses of whole passes.
#pragma once

#include "bench.h"
#include "kilotok/layout/buffers.cuh"
#include "kilotok/phase/router.cuh"

namespace bench {

using namespace kilotok;

constexpr int DISTINCT_LAYERS = 6;

inline uint64_t take(size_t bytes) {
  void* p = nullptr;
  CHECK(cudaMalloc(&p, bytes + 4096));
  CHECK(cudaMemset(p, 0, bytes + 4096));
  return reinterpret_cast<uint64_t>(p);
}

// Fills chunks with small random weights.
__global__ void fill_chunks(uint32_t* words, size_t chunks, int format, uint64_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  const int chunk_words = chunk_bytes(static_cast<Format>(format)) / 4;
  const int code_words = format == 0 ? chunk_words : format == 1 ? 256 : 128;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
       i < chunks * chunk_words; i += step) {
    const uint32_t r = mixed(seed, i);
    uint32_t word = r;
    if (format == 0) word = (r & 0x807f807fu) | 0x3c003c00u;
    // Excludes the largest exponents.
    if (format == 1) word = r & 0xbbffbbffu;
    // Scales differ, so that the use of another chunk's would show.
    if (static_cast<int>(i % chunk_words) >= code_words)
      word = format == 1 ? __float_as_uint((0.014f + 0.002f * (r % 8)) * 1048576)
                         : 0x92929292u + (r & 0x01010101u);
    words[i] = word;
  }
}

__global__ void fill_floats(float* values, size_t count, float scale, float offset, uint64_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += step)
    values[i] = offset + scale * (static_cast<int>(mixed(seed, i)) / 2147483648.0f);
}

template <class... Arguments>
void fill(void (*kernel)(Arguments...), Arguments... given) {
  constexpr int CTAS = 512, FILLERS = 256;
  void* arguments[] = {&given...};
  CHECK(cudaLaunchKernel(kernel, dim3(CTAS), dim3(FILLERS), arguments, 0, nullptr));
}

template <class M>
uint64_t matrix(size_t copies, uint64_t seed) {
  const uint64_t address = take(M::BYTES * copies);
  const size_t chunks = M::BYTES * copies / M::CHUNK_BYTES;
  fill(fill_chunks, at<uint32_t>(address), chunks, static_cast<int>(M::FORMAT), seed);
  return address;
}

inline uint64_t floats(size_t count, float scale, float offset, uint64_t seed) {
  const uint64_t address = take(count * 4);
  fill(fill_floats, at<float>(address), count, scale, offset, seed);
  return address;
}

// The memory of one layer of given kinds.
template <int A, int F>
LayerMemory layer(uint64_t seed) {
  LayerMemory l = {};
  const Attention& a = ATTENTIONS[A];
  l.attention = A;
  l.feed_forward = F;
  l.tap = ~0u;
  l.input_norm = floats(HIDDEN, 0.1f, 1.0f, seed + 1);
  l.qkv = matrix<QkvMatrix<A>>(1, seed + 2);
  if (a.bias) {
    l.qkv_bias = floats(QkvMatrix<A>::UNITS * 16, 0.1f, 0.0f, seed + 10);
    l.output_bias = floats(OutputMatrix<A>::UNITS * OWNER_ROWS, 0.1f, 0.0f, seed + 11);
  }
  if (a.qk_norm) {
    l.q_norm = floats(a.qk_dim, 0.1f, 1.0f, seed + 14);
    l.k_norm = floats(a.qk_dim, 0.1f, 1.0f, seed + 15);
  }
  l.sinks = floats(a.q_heads, 1.0f, 0.0f, seed + 3);
  l.output = matrix<OutputMatrix<A>>(1, seed + 4);
  l.post_norm = floats(HIDDEN, 0.1f, 1.0f, seed + 5);
  const int experts = larger(FEED_FORWARDS[F].experts, 1);
  if constexpr (!IS_DENSE<F>) {
    if (FEED_FORWARDS[F].router_bf16) {
      // Pairs of small weights, as in chunks.
      const size_t chunks = Router<F>::BYTES / chunk_bytes(Format::Bf16) + 1;
      l.router = take(chunks * chunk_bytes(Format::Bf16));
      fill(fill_chunks, at<uint32_t>(l.router), chunks, 0, seed + 6);
    } else {
      l.router = floats(Router<F>::BYTES / 4, 0.05f, 0.0f, seed + 6);
    }
    l.router_bias = floats(experts, 0.001f, 0.0f, seed + 7);
  }
  l.gate_up = matrix<GateUpMatrix<F>>(experts, seed + 8);
  l.down = matrix<DownMatrix<F>>(experts, seed + 9);
  if constexpr (FEED_FORWARDS[F].bias) {
    l.gate_up_bias = floats(size_t{2} * experts * FEED_FORWARDS[F].width, 0.1f, 0.0f, seed + 12);
    l.down_bias = floats(size_t{1} * experts * HIDDEN, 0.1f, 0.0f, seed + 13);
  }
  return l;
}

// A model's layers, with a few distinct weights, each with pages of its own.
inline void make_layers(Memory& m, int page_count) {
  // The second kinds, if there are any.
  constexpr int A = smaller(DRAFT_ATTENTION - 1, 1), F = smaller(DRAFT_FEED_FORWARD - 1, 1);
  std::vector<LayerMemory> distinct, layers;
  for (int i = 0; i < DISTINCT_LAYERS; i++)
    distinct.push_back(i == 0   ? layer<0, 0>(i * 100)
                       : i == 1 ? layer<0, F>(i * 100)
                                : layer<A, F>(i * 100));
  for (int i = 0; i < LAYERS; i++) {
    LayerMemory l = distinct[i == 0 ? 0 : i % 7 == 0 ? 1 : 2 + i % (DISTINCT_LAYERS - 2)];
    const Attention& a = ATTENTIONS[l.attention];
    const size_t positions = static_cast<size_t>(page_count) * PAGE_TOKENS * a.kv_heads;
    l.keys = take(positions * a.qk_dim * 2);
    l.values = take(positions * a.v_dim * 2);
    layers.push_back(l);
  }
  m.layers = take(layers.size() * sizeof(LayerMemory));
  CHECK(cudaMemcpy(at<void>(m.layers), layers.data(), layers.size() * sizeof(LayerMemory),
                   cudaMemcpyHostToDevice));
}

}  // namespace bench
