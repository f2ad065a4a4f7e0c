// The all-reduce of the wide pass, with a norm between its halves. Every rank owns a share of a
// step's tokens: it alone has their residual stream, computes their norms, and chooses their
// experts.
//
//   reduce-scatter   the launch before a norm sends this rank's part of a token, BF16, to the
//                    token's owner, a GEMM while it multiplies the next tokens. The norm adds the
//                    parts in rank order: the bits of comm/all_reduce.cuh
//   all-gather       owners store what they make of a token in the memory of all ranks: the next
//                    GEMM's operand and 1 / rms, taps, the chosen experts, the head's operand
//
// A CTA that has sent its parts sets a flag of its own on every rank, and a norm waits for the
// flags of all CTAs. In an all-gather a CTA waits only for the CTAs of the same number. Nothing is
// overwritten before it was read. A rank sends parts after all its earlier launches have ended, and
// an owner stores in another rank's memory only after it has received that rank's parts. A rank
// sends the next parts only after it has received what the owners made of these, and they have read
// them by then.
#pragma once

#include "kilotok/comm/all_reduce.cuh"

namespace kilotok::wide {

struct RanksMemory {
  // The ranks' receive buffers: memory lies at the same distance from them on all ranks.
  uint64_t peers;
  // U32 `[WideCollective][RANKS][GRID]`: the number of the last collective for which a CTA of a
  // rank has sent all.
  uint64_t flags;
  // This rank; the number of the launch's collective in the step.
  uint32_t rank, number;
  // The tokens of the step.
  int count;
};

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

  // Tells all ranks that this CTA's part of a collective has been sent to them, and waits until the
  // CTAs of the same number have done the same.
  __device__ __forceinline__ void finish(WideCollective collective) const {
    if constexpr (RANKS == 1) return;
    tell(collective);
    const int k = threadIdx.x;
    if (k > 0 && k < RANKS) wait(collective, after(k), ptx::cta_index());
    __syncthreads();
  }

  // Tells all ranks that this CTA's part of a collective has been sent to them.
  __device__ __forceinline__ void tell(WideCollective collective) const {
    __threadfence_system();
    __syncthreads();
    const int k = threadIdx.x;
    if (k == 0 || k >= RANKS) return;
    const Peers& peers = *at<const Peers>(memory.peers);
    const uint64_t own = flag(collective, rank, ptx::cta_index());
    ptx::store_release_system(
        at<uint32_t>(own - peers.receivers[rank] + peers.receivers[after(k)]), memory.number);
  }

  // Waits until all CTAs of all ranks have sent their parts. This rank's launch before has ended.
  __device__ __forceinline__ void wait_for_parts() const {
    for (int i = threadIdx.x; i < (RANKS - 1) * GRID; i += blockDim.x)
      wait(WideCollective::Parts, after(1 + i / GRID), i % GRID);
    __syncthreads();
  }

 private:
  // The address on this rank of a CTA's flag.
  __device__ __forceinline__ uint64_t flag(WideCollective collective, int from, int cta) const {
    return memory.flags +
           ((static_cast<int>(collective) * RANKS + from) * GRID + cta) * sizeof(uint32_t);
  }
  __device__ __forceinline__ void wait(WideCollective collective, int from, int cta) const {
    const uint32_t* arrived = at<const uint32_t>(flag(collective, from, cta));
    wait_for(Waits::Peer, memory.number, [&](uint32_t& missing) {
      missing = from;
      return ptx::load_acquire_system(arrived) == memory.number;
    });
  }
};

// How a launch sends its parts to the tokens' owners.
struct PartsMemory {
  // BF16 `[ranks][tokens of a share][HIDDEN]`, on every rank: the parts of its own tokens.
  uint64_t received;
  RanksMemory ranks;
};

struct PartsSender {
  const PartsMemory& memory;
  const Peers& peers;
  int rank, share;

  __device__ __forceinline__ explicit PartsSender(const PartsMemory& of_launch)
      : memory(of_launch),
        peers(*at<const Peers>(memory.ranks.peers)),
        rank(memory.ranks.rank),
        share(ceil_div(memory.ranks.count, RANKS)) {}

  // Where the owner of a token receives this rank's part of it, from a column on.
  __device__ __forceinline__ uint16_t* place(int token, int column) const {
    const int owner = token / share;
    const size_t index = size_t{1} * rank * share + (token - owner * share);
    return at<uint16_t>(memory.received - peers.receivers[rank] + peers.receivers[owner]) +
           index * HIDDEN + column;
  }
  // The first token of the rank after this one. Every rank sends parts of its tokens first, so that
  // all links are busy.
  __device__ __forceinline__ int first_token() const { return (rank + 1) % RANKS * share; }
  // All threads of a CTA, after its last part.
  __device__ __forceinline__ void end() const { Ranks(memory.ranks).tell(WideCollective::Parts); }
};

}  // namespace kilotok::wide
