// All-reduce of what is added to the residual stream. Every owner sends its part to the same CTA of
// every other rank and adds what it receives in rank order, so that all ranks get the same bits.
// Parts travel as BF16 in packets of 16 bytes. No fence is needed, because each value shows by
// itself whether it has arrived: a location is empty while it holds a zero. Therefore zeros are
// sent as negative zeros, and the reader of a packet clears its location.
//
// A rank is at most one collective ahead of another, because its next one needs the other's
// packets. So two sets of locations suffice, provided that two consecutive all-reduces use
// different ones, also from one launch to the next: `[2][ranks][owner units][packets]` at every
// receiver, indexed by the parity of the collective's number. Between the clearing of a location
// and its next packet there are a release by this CTA, at a grid barrier or where an operand is
// counted, and then another all-reduce with the sending rank.
#pragma once

#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

constexpr int PACKET_VALUES = 8;
constexpr int TOKEN_PACKETS = OWNER_ROWS / PACKET_VALUES;
static_assert(OWNER_ROWS % PACKET_VALUES == 0, "packets are full");
constexpr int UNIT_PACKETS = TOKENS_MAX * TOKEN_PACKETS;
constexpr size_t ALL_REDUCE_BYTES = size_t{2} * RANKS * OWNER_UNITS * UNIT_PACKETS * 16;

__device__ __forceinline__ size_t packet_offset(uint32_t number, int from, int unit, int packet) {
  return (((number & 1) * size_t{RANKS} + from) * OWNER_UNITS + unit) * UNIT_PACKETS * 16 +
         static_cast<size_t>(packet) * 16;
}

__device__ __forceinline__ uint4 make_packet(const float* values) {
  const auto word = [](float low, float high) {
    const uint32_t bits = ptx::pack_bf16(low, high);
    return bits | ((bits & 0xffff) == 0 ? 0x8000u : 0) | (bits >> 16 == 0 ? 0x80000000u : 0);
  };
  return make_uint4(word(values[0], values[1]), word(values[2], values[3]),
                    word(values[4], values[5]), word(values[6], values[7]));
}

__device__ __forceinline__ void add_packet(float (&sum)[PACKET_VALUES], const uint4& packet) {
  const uint32_t words[4] = {packet.x, packet.y, packet.z, packet.w};
#pragma unroll
  for (int i = 0; i < PACKET_VALUES; i++)
    sum[i] += ptx::from_bf16(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
}

// Owners: replaces `stream.part` with the sum of all ranks' parts.
__device__ __forceinline__ void all_reduce(Cta& cta, StreamMemory& stream, int token_count) {
  if constexpr (RANKS == 1) return;
  cta.collectives++;
  const Memory& memory = cta.memory;
  const uint32_t number = cta.collectives;
  const int rank = memory.rank, unit = cta.index(), count = token_count * TOKEN_PACKETS;
  cta.sync();
  auto values_of = [&](int packet) {
    return &stream.part[packet / TOKEN_PACKETS][packet % TOKEN_PACKETS * PACKET_VALUES];
  };
  // Every rank begins with the rank after it, so that all links are busy.
#pragma unroll 1
  for (int i = cta.thread(); i < count * (RANKS - 1); i += CONSUMERS) {
    const int packet = i % count, to = (rank + 1 + i / count) % RANKS;
    ptx::store_system(at<char>(stream.peers.receivers[to]) +
                          packet_offset(number, rank, unit, packet),
                      make_packet(values_of(packet)));
  }
  // No thread overwrites a part before it has been sent to all ranks.
  cta.sync();
  char* own = at<char>(stream.peers.receivers[rank]);
  for (int packet = cta.thread(); packet < count; packet += CONSUMERS) {
    uint4 packets[RANKS];
    wait_for(Waits::Peer, number, [&](uint32_t& missing) {
      missing = RANKS;
#pragma unroll
      for (int from = 0; from < RANKS; from++)
        if (from != rank)
          packets[from] = ptx::load_system(own + packet_offset(number, from, unit, packet));
#pragma unroll
      for (int from = 0; from < RANKS; from++)
        if (from != rank && zero_halves(packets[from]) != 0) missing = from;
      return missing == RANKS;
    });
    float* values = values_of(packet);
    float sum[PACKET_VALUES] = {};
#pragma unroll
    for (int from = 0; from < RANKS; from++) {
      if (from != rank)
        ptx::store_l2(own + packet_offset(number, from, unit, packet), make_uint4(0, 0, 0, 0));
      add_packet(sum, from == rank ? make_packet(values) : packets[from]);
    }
#pragma unroll
    for (int i = 0; i < PACKET_VALUES; i++) values[i] = sum[i];
  }
  cta.stamp(Stamp::AllReduce);
}

}  // namespace kilotok
