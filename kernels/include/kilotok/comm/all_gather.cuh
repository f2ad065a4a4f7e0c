// All-gather of the wanted tokens' logits, which each rank computes for its part of the vocabulary;
// the all-reduce (minimum) that gives the argmax of drafts over all ranks; and the all-gather of
// the candidates of drafts that are drawn.
//
// One set of locations is enough. Before a rank sends again, it either completes an all-reduce, to
// which the others contribute only after they have read the previous values, or calls
// `await_ranks`.
#pragma once

#include "kilotok/comm/all_reduce.cuh"

namespace kilotok {

// Logits from one wanted token to the next.
constexpr int LOGITS_STRIDE = align_up(VOCAB, 16);
// Logits of one rank.
constexpr int RANK_LOGITS = VOCAB / RANKS;

// The receive buffer of a rank, after the packets and sums of all-reduces: two flags of every rank,
// `[wanted, ranks]` packets with one draft each, all logits, `[wanted, ranks, CANDIDATES_MAX]`
// packets with one candidate each.
constexpr size_t FLAGS_OFFSET = ALL_REDUCE_BYTES;
constexpr size_t READY_OFFSET = FLAGS_OFFSET + RANKS * sizeof(uint32_t);
constexpr size_t DRAFTS_OFFSET = FLAGS_OFFSET + 128;
constexpr size_t LOGITS_OFFSET = DRAFTS_OFFSET + size_t{TOKENS_MAX} * RANKS * 16;
constexpr size_t CANDIDATES_OFFSET =
    LOGITS_OFFSET + size_t{TOKENS_MAX} * LOGITS_STRIDE * sizeof(float);
constexpr size_t RECEIVER_BYTES =
    RANKS == 1 ? ALL_REDUCE_BYTES
               : CANDIDATES_OFFSET + size_t{TOKENS_MAX} * RANKS * CANDIDATES_MAX * 16;
static_assert(2 * RANKS * sizeof(uint32_t) <= 128, "flags lie in a line of the cache");

// Sends this rank's logits to all ranks. A grid barrier must come between this and
// `finish_all_gather`.
__device__ __forceinline__ void start_all_gather(const Cta& cta, int wanted_count) {
  if constexpr (RANKS == 1) return;
  const Memory& memory = cta.memory;
  const Peers& peers = *at<const Peers>(memory.peers);
  const int rank = memory.rank;
  const float* own = at<const float>(memory.logits);
  for (int i = cta.index() * CONSUMERS + cta.thread(); i < wanted_count * RANK_LOGITS;
       i += GRID * CONSUMERS) {
    const int token = i / RANK_LOGITS, row = i % RANK_LOGITS;
    const float logit = own[static_cast<size_t>(token) * VOCAB_ROWS + row];
    const size_t place = static_cast<size_t>(token) * LOGITS_STRIDE + rank * RANK_LOGITS + row;
    // Every rank begins with itself, so that all links are busy.
#pragma unroll
    for (int k = 0; k < RANKS; k++)
      at<float>(peers.receivers[(rank + k) % RANKS] + LOGITS_OFFSET)[place] = logit;
  }
  __threadfence_system();
}

// Sets this rank's flags to a number, and waits until all ranks have done so.
__device__ __forceinline__ void meet_ranks(const Cta& cta, size_t flags, uint32_t number) {
  if constexpr (RANKS == 1) return;
  const Peers& peers = *at<const Peers>(cta.memory.peers);
  const int rank = cta.memory.rank, other = cta.thread();
  if (other < RANKS) {
    if (cta.index() == 0)
      ptx::store_release_system(at<uint32_t>(peers.receivers[other] + flags) + rank, number);
    const uint32_t* flag = at<const uint32_t>(peers.receivers[rank] + flags) + other;
    wait_for(Waits::Peer, number, [&](uint32_t& missing) {
      missing = other;
      return ptx::load_acquire_system(flag) == number;
    });
  }
  cta.sync();
}

// Waits until all ranks have sent their logits for the `number`-th time.
__device__ __forceinline__ void finish_all_gather(const Cta& cta, uint32_t number) {
  meet_ranks(cta, FLAGS_OFFSET, number);
}

// In the first phase of a launch: waits until all ranks have begun it, so that none reads the
// logits of an earlier one any more.
__device__ __forceinline__ void await_ranks(const Cta& cta, uint32_t number) {
  meet_ranks(cta, READY_OFFSET, number);
}

// Sends a key in a packet of 16 bytes. The words of a packet may arrive one after the other. The
// last word is a checksum, which tells whether all have arrived.
__device__ __forceinline__ void send_key(void* to, uint64_t key, uint32_t number) {
  const uint32_t low = key, high = key >> 32;
  ptx::store_system(to, make_uint4(low, high, number, low ^ high ^ number));
}

// Waits for the key of a rank.
__device__ __forceinline__ uint64_t receive_key(const void* from, uint32_t number, int rank) {
  uint4 packet;
  wait_for(Waits::Peer, number, [&](uint32_t& missing) {
    packet = ptx::load_system(from);
    missing = rank;
    return packet.z == number && packet.w == (packet.x ^ packet.y ^ number);
  });
  return static_cast<uint64_t>(packet.y) << 32 | packet.x;
}

// A warp, one lane for each rank: the smallest of all ranks' keys for a wanted token.
__device__ __forceinline__ uint64_t all_reduce_min(const Cta& cta, int wanted, uint64_t own,
                                                   uint32_t number) {
  if constexpr (RANKS == 1) return own;
  if (cta.lane() >= RANKS) return own;
  const Peers& peers = *at<const Peers>(cta.memory.peers);
  const int rank = cta.memory.rank, other = cta.lane();
  const auto place = [&](int to, int from) {
    return at<char>(peers.receivers[to] + DRAFTS_OFFSET) + (wanted * RANKS + from) * 16;
  };
  send_key(place(other, rank), own, number);
  return receive_key(place(rank, other), number, other);
}

// Consumers: replaces the first CANDIDATES_MAX keys of a list, this rank's for a wanted token, by
// those of all ranks.
__device__ __forceinline__ void all_gather_candidates(const Cta& cta, int wanted, uint64_t* list,
                                                      uint32_t number) {
  if constexpr (RANKS == 1) return;
  const Peers& peers = *at<const Peers>(cta.memory.peers);
  const int rank = cta.memory.rank;
  const auto place = [&](int to, int from, int i) {
    const int index = (wanted * RANKS + from) * CANDIDATES_MAX + i;
    return at<char>(peers.receivers[to] + CANDIDATES_OFFSET) + index * 16;
  };
  for (int i = cta.thread(); i < RANKS * CANDIDATES_MAX; i += CONSUMERS) {
    const int own = i % CANDIDATES_MAX, to = (rank + i / CANDIDATES_MAX) % RANKS;
    send_key(place(to, rank, own), list[own], number);
  }
  cta.sync();
  for (int i = cta.thread(); i < RANKS * CANDIDATES_MAX; i += CONSUMERS) {
    const int from = i / CANDIDATES_MAX;
    list[i] = receive_key(place(rank, from, i % CANDIDATES_MAX), number, from);
  }
  cta.sync();
}

}  // namespace kilotok
