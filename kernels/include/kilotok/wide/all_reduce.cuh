// All-reduce of what the wide pass adds to the residual stream. Every rank owns a share of the
// tokens. Parts travel to their owner as BF16, which adds them in rank order, and the sums travel
// to all ranks as F32: a reduce-scatter and an all-gather. Two ranks own all tokens both: parts
// alone are fewer bytes then. So all ranks have the bits that comm/all_reduce.cuh gives the narrow
// pass.
//
// A CTA exchanges packets only with the CTAs of the same number on the other ranks, and one flag
// for each of these says that all have arrived. Nothing is overwritten before it was read. An owner
// overwrites `part` of another rank with sums only after it has received that part. A rank sends
// parts of the next all-reduce after it has received all sums of this one, before which their
// owners have read all parts. Two ranks receive consecutive parts in two places: a rank sends those
// after the next ones only when it has received the next, before which the other has read these.
#pragma once

#include "kilotok/comm/all_reduce.cuh"
#include "kilotok/wide/routes.cuh"

namespace kilotok::wide {

struct AllReduceMemory {
  // F32 `[capacity][HIDDEN]`: this rank's part, and in the end the sum.
  uint64_t part;
  // BF16 `[ranks][tokens of a share][HIDDEN]`: the other ranks' parts of this rank's tokens. Of two
  // ranks `[2][tokens][HIDDEN]`, by the all-reduce's number.
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

// Whether every rank owns all tokens.
constexpr bool OWNS_ALL = RANKS == 2;
// Packets whose loads a thread has under way at a time; values of a sum that it stores at a time.
constexpr int PACKETS = 4, SUM_VALUES = 4;

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
        share(OWNS_ALL ? memory.count : ceil_div(memory.count, RANKS)) {}

  __device__ __forceinline__ int first_token(int owner) const {
    return OWNS_ALL ? 0 : owner * share;
  }
  __device__ __forceinline__ int packet_count(int owner) const {
    return min(share, memory.count - first_token(owner)) * TOKEN_PACKETS;
  }
  // The address on a rank of what lies at `address` on this one.
  __device__ __forceinline__ uint64_t on(int to, uint64_t address) const {
    return address - peers.receivers[rank] + peers.receivers[to];
  }
  // A value among those of an owner's tokens.
  __device__ __forceinline__ float* value(uint64_t part, int owner, size_t index) const {
    return at<float>(part) + static_cast<size_t>(first_token(owner)) * HIDDEN + index;
  }
  // The same as a rank's part is received.
  __device__ __forceinline__ uint16_t* place(uint64_t received, int from, size_t index) const {
    const int buffer = OWNS_ALL ? static_cast<int>(memory.number & 1) : from;
    return at<uint16_t>(received) + static_cast<size_t>(buffer) * share * HIDDEN + index;
  }
  __device__ __forceinline__ uint32_t* flag(uint64_t flags, Exchange exchange, int from) const {
    return at<uint32_t>(flags) +
           (static_cast<int>(exchange) * RANKS + from) * GRID + ptx::cta_index();
  }

  // Sends this rank's part of an owner's tokens. A CTA has every GRID-th run of packets, one for
  // each thread.
  __device__ __forceinline__ void send_parts(int owner) const {
    const uint64_t received = on(owner, memory.received);
    const int count = packet_count(owner), step = GRID * SORTERS;
#pragma unroll 1
    for (int first = ptx::cta_index() * SORTERS + static_cast<int>(threadIdx.x); first < count;
         first += PACKETS * step) {
      const auto index = [&](int i) { return size_t{PACKET_VALUES} * (first + i * step); };
      uint4 packets[PACKETS];
#pragma unroll
      for (int i = 0; i < PACKETS; i++) {
        if (first + i * step >= count) continue;
        const float4* from =
            reinterpret_cast<const float4*>(value(memory.part, owner, index(i)));
        const float4 low = from[0], high = from[1];
        const float all[PACKET_VALUES] = {low.x,  low.y,  low.z,  low.w,
                                          high.x, high.y, high.z, high.w};
        packets[i] = make_packet(all);
      }
#pragma unroll
      for (int i = 0; i < PACKETS; i++)
        if (first + i * step < count)
          ptx::store_system(place(received, rank, index(i)), packets[i]);
    }
  }

  // The sum of all ranks' parts, from the value `index` of this rank's tokens on.
  __device__ __forceinline__ float4 add_parts(size_t index) const {
    float parts[RANKS][SUM_VALUES];
#pragma unroll
    for (int from = 0; from < RANKS; from++) {
      uint2 words;
      if (from == rank) {
        const float4 own = *reinterpret_cast<const float4*>(value(memory.part, rank, index));
        words = make_uint2(ptx::pack_bf16(own.x, own.y), ptx::pack_bf16(own.z, own.w));
      } else {
        words = ptx::load_l2_pair(place(memory.received, from, index));
      }
      parts[from][0] = ptx::from_bf16(static_cast<uint16_t>(words.x));
      parts[from][1] = ptx::from_bf16(static_cast<uint16_t>(words.x >> 16));
      parts[from][2] = ptx::from_bf16(static_cast<uint16_t>(words.y));
      parts[from][3] = ptx::from_bf16(static_cast<uint16_t>(words.y >> 16));
    }
    float sum[SUM_VALUES] = {};
#pragma unroll
    for (int from = 0; from < RANKS; from++)
#pragma unroll
      for (int i = 0; i < SUM_VALUES; i++) sum[i] += parts[from][i];
    return make_float4(sum[0], sum[1], sum[2], sum[3]);
  }

  // Adds the parts of this rank's tokens, and stores the sums on every rank that does not. A CTA
  // has the runs of packets that those of its number have sent.
  __device__ __forceinline__ void send_sums() const {
    constexpr int EACH = PACKET_VALUES / SUM_VALUES;
    const int count = packet_count(rank) * EACH;
#pragma unroll 1
    for (int run = ptx::cta_index() * SORTERS * EACH; run < count; run += GRID * SORTERS * EACH)
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const int packet = run + i * SORTERS + static_cast<int>(threadIdx.x);
        if (packet >= count) continue;
        const size_t index = static_cast<size_t>(packet) * SUM_VALUES;
        const float4 sum = add_parts(index);
        const uint4 words = make_uint4(__float_as_uint(sum.x), __float_as_uint(sum.y),
                                       __float_as_uint(sum.z), __float_as_uint(sum.w));
        // Every rank begins with itself, so that all links are busy.
#pragma unroll
        for (int k = 0; k < (OWNS_ALL ? 1 : RANKS); k++)
          ptx::store_system(value(on((rank + k) % RANKS, memory.part), rank, index), words);
      }
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
    if constexpr (OWNS_ALL) return;
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
