// The all-reduce of the wide pass, with a norm between its halves. Every rank owns a share of a
// step's tokens: it alone has their residual stream, computes their norms, and chooses their
// experts.
//
//   reduce-scatter   before a norm each rank sends its parts of a token, BF16, to the token's
//                    owner, which adds them in rank order: the bits of comm/all_reduce.cuh
//   all-gather       owners store what they make of a token in the memory of all ranks: the next
//                    GEMM's operand and 1 / rms, taps, the chosen experts, the head's operand
//
// A CTA exchanges tokens only with the CTAs of the same number on the other ranks, and one flag for
// each of these says that all have arrived. Nothing is overwritten before it was read. A rank sends
// parts after all its earlier launches have ended, and an owner stores in another rank's memory
// only after it has received that rank's parts. A rank sends the next parts only after it has
// received what the owners made of these, and they have read them by then.
#pragma once

#include "kilotok/comm/all_reduce.cuh"

namespace kilotok::wide {

struct RanksMemory {
  // The ranks' receive buffers: memory lies at the same distance from them on all ranks.
  uint64_t peers;
  // U32 `[EXCHANGES][RANKS][GRID]`: the last exchange for which a CTA of a rank has sent all.
  uint64_t flags;
  // The exchange's number; the tokens of the step.
  uint32_t rank, number;
  int count;
};

enum class Exchange { Parts, Norms, Choices, Wanted };
constexpr int EXCHANGES = 4;

// Packets whose loads a thread has in flight.
constexpr int PACKETS = 4;

// The ranks as one of them sees them. All threads of a CTA call its functions.
struct Ranks {
  const RanksMemory& memory;
  int rank, share;
  // The distance from this rank's memory to that of the k-th rank after it.
  int64_t offsets[RANKS];

  __device__ __forceinline__ explicit Ranks(const RanksMemory& of_launch)
      : memory(of_launch),
        rank(RANKS == 1 ? 0 : static_cast<int>(memory.rank)),
        share(ceil_div(memory.count, RANKS)) {
    if constexpr (RANKS == 1) {
      offsets[0] = 0;
    } else {
      const Peers& peers = *at<const Peers>(memory.peers);
#pragma unroll
      for (int k = 0; k < RANKS; k++)
        offsets[k] = static_cast<int64_t>(peers.receivers[after(k)] - peers.receivers[rank]);
    }
  }

  // The k-th rank after this one. Every rank begins with the rank after it, so that all links are
  // busy.
  __device__ __forceinline__ int after(int k) const { return (rank + k) % RANKS; }
  // The tokens that a rank owns: the first, and how many.
  __device__ __forceinline__ int first_token(int owner) const { return owner * share; }
  __device__ __forceinline__ int token_count(int owner) const {
    return max(min(share, memory.count - first_token(owner)), 0);
  }
  __device__ __forceinline__ bool owns(int token) const { return token / share == rank; }

  // Given an address on this rank, calls `store` with the corresponding address of each rank.
  template <class Store>
  __device__ __forceinline__ void on_all(uint64_t address, Store store) const {
#pragma unroll
    for (int k = 0; k < RANKS; k++) store(address + offsets[k]);
  }

  // Tells all ranks that this CTA's part of an exchange has been sent to them, and waits until all
  // ranks have done the same.
  __device__ __forceinline__ void finish(Exchange exchange) const {
    if constexpr (RANKS == 1) return;
    __threadfence_system();
    __syncthreads();
    const int k = threadIdx.x;
    if (k > 0 && k < RANKS) {
      const auto flag = [&](int from) {
        return memory.flags + ((static_cast<int>(exchange) * RANKS + from) * GRID +
                               ptx::cta_index()) * sizeof(uint32_t);
      };
      const Peers& peers = *at<const Peers>(memory.peers);
      const uint64_t to = flag(rank) - peers.receivers[rank] + peers.receivers[after(k)];
      ptx::store_release_system(at<uint32_t>(to), memory.number);
      const uint32_t* arrived = at<const uint32_t>(flag(after(k)));
      wait_for(Waits::Peer, memory.number, [&](uint32_t& missing) {
        missing = after(k);
        return ptx::load_acquire_system(arrived) == memory.number;
      });
    }
    __syncthreads();
  }
};

// Sends this rank's parts of the other ranks' tokens, F32 `[tokens][HIDDEN]`, to those ranks'
// receive buffers, BF16 `[ranks][tokens of a share][HIDDEN]`. A CTA has every GRID-th token of a
// share. Called by THREADS threads.
template <int THREADS>
__device__ __forceinline__ void send_parts(const Ranks& ranks, uint64_t part, uint64_t received) {
  constexpr int TOKEN_PACKETS = HIDDEN / PACKET_VALUES;
  static_assert(HIDDEN % PACKET_VALUES == 0, "packets are full");
  const int first = ptx::cta_index();
#pragma unroll
  for (int k = 1; k < RANKS; k++) {
    const int owner = ranks.after(k), tokens = ranks.token_count(owner);
    const int count = tokens > first ? ceil_div(tokens - first, GRID) * TOKEN_PACKETS : 0;
    const auto place = [&](int packet) {
      const int index = first + packet / TOKEN_PACKETS * GRID;
      return size_t{1} * index * HIDDEN + packet % TOKEN_PACKETS * PACKET_VALUES;
    };
    const float* from = at<const float>(part) + size_t{1} * ranks.first_token(owner) * HIDDEN;
    uint16_t* to = at<uint16_t>(received + ranks.offsets[k]) +
                   size_t{1} * ranks.rank * ranks.share * HIDDEN;
#pragma unroll 1
    for (int packet = threadIdx.x; packet < count; packet += PACKETS * THREADS) {
      uint4 packets[PACKETS];
#pragma unroll
      for (int i = 0; i < PACKETS; i++) {
        if (packet + i * THREADS >= count) continue;
        const float4* values =
            reinterpret_cast<const float4*>(from + place(packet + i * THREADS));
        const float4 low = values[0], high = values[1];
        const float all[PACKET_VALUES] = {low.x,  low.y,  low.z,  low.w,
                                          high.x, high.y, high.z, high.w};
        packets[i] = make_packet(all);
      }
#pragma unroll
      for (int i = 0; i < PACKETS; i++)
        if (packet + i * THREADS < count)
          ptx::store_system(to + place(packet + i * THREADS), packets[i]);
    }
  }
}

// Called by all threads of all CTAs, any number of them: fills a part with zeros, before each rank
// writes some of its columns.
__device__ __forceinline__ void clear_part(uint64_t part, int count) {
  for (int i = ptx::cta_index() * blockDim.x + threadIdx.x; i < count * (HIDDEN / 4);
       i += GRID * blockDim.x)
    at<float4>(part)[i] = make_float4(0, 0, 0, 0);
}

}  // namespace kilotok::wide
