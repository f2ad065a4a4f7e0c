// All-reduce of what the wide pass adds to the residual stream. Every rank owns a share of the
// tokens. Parts travel to their owner as BF16, which adds them in rank order, and the sums travel
// to all ranks as F32: a reduce-scatter and an all-gather. So all ranks have the bits that
// comm/all_reduce.cuh gives the narrow pass.
//
// A CTA exchanges packets only with the CTAs of the same number on the other ranks, and one flag
// for each of these says that all have arrived. Nothing is overwritten before it was read. An owner
// overwrites `part` of another rank with sums only after it has received that part. A rank sends
// parts of the next all-reduce after it has received all sums of this one, before which their
// owners have read all parts.
#pragma once

#include "kilotok/comm/all_reduce.cuh"
#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

struct AllReduceMemory {
  // F32 `[capacity][HIDDEN]`: this rank's part, and in the end the sum.
  uint64_t part;
  // BF16 `[RANKS][tokens of a share][HIDDEN]`: the other ranks' parts of this rank's tokens.
  uint64_t received;
  // U32 `[exchanges][RANKS][GRID]`: the last all-reduce for which a CTA of a rank has sent all.
  uint64_t flags;
  // The ranks' receive buffers: memory lies at the same distance from them on all ranks.
  uint64_t peers;
  uint32_t rank, number;
  int count;
};

enum class Exchange { Parts, Sums };
constexpr int EXCHANGES = 2;

// Packets whose loads a thread has under way at a time.
constexpr int PACKETS = 4;

// What a CTA of a rank exchanges. All threads of the CTA call its functions, SORTERS of them.
struct AllReduce {
  static constexpr int TOKEN_PACKETS = HIDDEN / PACKET_VALUES;
  static_assert(HIDDEN % PACKET_VALUES == 0, "packets are full");
  const AllReduceMemory& memory;
  const Peers& peers;
  int rank, share;

  __device__ __forceinline__ explicit AllReduce(const AllReduceMemory& memory_of_rank)
      : memory(memory_of_rank),
        peers(*at<const Peers>(memory.peers)),
        rank(static_cast<int>(memory.rank)),
        share(ceil_div(memory.count, RANKS)) {}

  // The address on a rank of what lies at `address` on this one.
  __device__ __forceinline__ uint64_t on(int to, uint64_t address) const {
    return address - peers.receivers[rank] + peers.receivers[to];
  }
  __device__ __forceinline__ float* values(uint64_t part, int owner, int packet) const {
    return at<float>(part) + static_cast<size_t>(owner) * share * HIDDEN +
           static_cast<size_t>(packet) * PACKET_VALUES;
  }
  __device__ __forceinline__ char* place(uint64_t received, int from, int packet) const {
    return at<char>(received) +
           (static_cast<size_t>(from) * share * TOKEN_PACKETS + packet) * sizeof(uint4);
  }
  __device__ __forceinline__ uint32_t* flag(uint64_t flags, Exchange exchange, int from) const {
    return at<uint32_t>(flags) +
           (static_cast<int>(exchange) * RANKS + from) * GRID + ptx::cta_index();
  }

  // Calls `f` with this thread's packets of an owner's tokens, several at a time, and their number.
  template <class F>
  __device__ __forceinline__ void for_packets(int owner, F f) const {
    const int tokens = min(share, memory.count - owner * share);
    const int count = tokens * TOKEN_PACKETS, step = GRID * SORTERS;
#pragma unroll 1
    for (int first = ptx::cta_index() * SORTERS + static_cast<int>(threadIdx.x); first < count;
         first += PACKETS * step)
      f(first, step, min(PACKETS, ceil_div(count - first, step)));
  }

  __device__ __forceinline__ uint4 load_part(int owner, int packet) const {
    const float4* from = reinterpret_cast<const float4*>(values(memory.part, owner, packet));
    const float4 low = from[0], high = from[1];
    const float all[PACKET_VALUES] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    return make_packet(all);
  }

  __device__ __forceinline__ void send_parts(int owner) const {
    const uint64_t received = on(owner, memory.received);
    for_packets(owner, [&](int first, int step, int count) {
      uint4 packets[PACKETS];
#pragma unroll
      for (int i = 0; i < PACKETS; i++)
        packets[i] = i < count ? load_part(owner, first + i * step) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int i = 0; i < PACKETS; i++)
        if (i < count) ptx::store_system(place(received, rank, first + i * step), packets[i]);
    });
  }

  // Adds the parts of this rank's tokens, and stores the sums on every rank.
  __device__ __forceinline__ void send_sums() const {
    for_packets(rank, [&](int first, int step, int count) {
#pragma unroll 1
      for (int i = 0; i < count; i++) {
        const int packet = first + i * step;
        uint4 packets[RANKS];
#pragma unroll
        for (int from = 0; from < RANKS; from++)
          packets[from] = from == rank ? load_part(rank, packet)
                                       : ptx::load_l2(place(memory.received, from, packet));
        float sum[PACKET_VALUES] = {};
#pragma unroll
        for (int from = 0; from < RANKS; from++) add_packet(sum, packets[from]);
        const auto words = [&](int k) {
          return make_uint4(__float_as_uint(sum[k]), __float_as_uint(sum[k + 1]),
                            __float_as_uint(sum[k + 2]), __float_as_uint(sum[k + 3]));
        };
        // Every rank begins with itself, so that all links are busy.
#pragma unroll
        for (int k = 0; k < RANKS; k++) {
          float* to = values(on((rank + k) % RANKS, memory.part), rank, packet);
          ptx::store_system(to, words(0));
          ptx::store_system(to + PACKET_VALUES / 2, words(4));
        }
      }
    });
  }

  // Tells a rank that all of an exchange has been sent to it.
  __device__ __forceinline__ void tell(Exchange exchange, int to) const {
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0)
      ptx::store_release_system(flag(on(to, memory.flags), exchange, rank), memory.number);
  }

  // Waits until all of an exchange has arrived from all ranks.
  __device__ __forceinline__ void wait(Exchange exchange) const {
    const int from = threadIdx.x;
    if (from < RANKS && from != rank) {
      const uint32_t* arrived = flag(memory.flags, exchange, from);
      wait_for(Waits::Peer, memory.number, [&](uint32_t& missing) {
        missing = from;
        return ptx::load_acquire_system(arrived) == memory.number;
      });
    }
    __syncthreads();
  }
};

// Called by all threads of all CTAs, SORTERS each.
__device__ __forceinline__ void all_reduce(const AllReduceMemory& memory) {
  if constexpr (RANKS > 1) {
    const AllReduce work(memory);
    // Every rank begins with the rank after it, so that all links are busy.
    for (int k = 1; k < RANKS; k++) {
      const int to = (work.rank + k) % RANKS;
      work.send_parts(to);
      work.tell(Exchange::Parts, to);
    }
    work.wait(Exchange::Parts);
    work.send_sums();
    for (int k = 1; k < RANKS; k++) work.tell(Exchange::Sums, (work.rank + k) % RANKS);
    work.wait(Exchange::Sums);
  }
}

// Called by all threads of all CTAs, SORTERS each: a part of zeros, for ranks that each fill some
// columns of it.
__device__ __forceinline__ void clear_part(uint64_t part, int count) {
  for (int i = ptx::cta_index() * SORTERS + threadIdx.x; i < count * (HIDDEN / 4);
       i += GRID * SORTERS)
    at<float4>(part)[i] = make_float4(0, 0, 0, 0);
}

}  // namespace kilotok::wide
