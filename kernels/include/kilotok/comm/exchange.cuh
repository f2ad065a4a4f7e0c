// The sum over ranks of what is to be added to the stream: every owner sends its part to the same
// CTA of every other rank, and adds what it receives, in rank order, so that all ranks get the same
// bits. Parts travel as BF16 in packets of 16 bytes that carry their own flag: nothing is fenced.
//
// A rank is at most one exchange ahead of another, for its next one needs the other's packets; so
// two sets of places are enough: `[2][ranks][owner units][packets]` at every receiver.
#pragma once

#include "kilotok/phase/stream.cuh"

namespace kilotok {

// Six values and the number of the exchange.
constexpr int PACKET_VALUES = 6;
constexpr int TOKEN_PACKETS = OWNER_ROWS / PACKET_VALUES;
constexpr int UNIT_PACKETS = TOKENS_MAX * TOKEN_PACKETS;
constexpr size_t EXCHANGE_BYTES = size_t{2} * RANKS * OWNER_UNITS * UNIT_PACKETS * 16;

__device__ __forceinline__ size_t packet_offset(uint32_t number, int from, int unit, int packet) {
  return (((number & 1) * size_t{RANKS} + from) * OWNER_UNITS + unit) * UNIT_PACKETS * 16 +
         static_cast<size_t>(packet) * 16;
}

__device__ __forceinline__ uint4 make_packet(const float* values, uint32_t number) {
  return make_uint4(ptx::pack_bf16(values[0], values[1]), ptx::pack_bf16(values[2], values[3]),
                    ptx::pack_bf16(values[4], values[5]), number);
}

__device__ __forceinline__ void add_packet(float (&sum)[PACKET_VALUES], const uint4& packet) {
  const uint32_t words[3] = {packet.x, packet.y, packet.z};
#pragma unroll
  for (int i = 0; i < PACKET_VALUES; i++)
    sum[i] += ptx::from_bf16(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
}

// Owners: replaces `stream.part` by the sum of all ranks' parts.
__device__ __forceinline__ void exchange(Cta& cta, StreamMemory& stream, int token_count) {
  if constexpr (RANKS == 1) return;
  cta.exchanges++;
  const Memory& memory = cta.memory;
  const uint32_t number = cta.exchanges;
  const int rank = memory.rank, unit = cta.index(), count = token_count * TOKEN_PACKETS;
  cta.sync();
  auto values_of = [&](int packet) {
    return &stream.part[packet / TOKEN_PACKETS][packet % TOKEN_PACKETS * PACKET_VALUES];
  };
  for (int packet = cta.thread(); packet < count; packet += CONSUMERS) {
    const uint4 sent = make_packet(values_of(packet), number);
    const size_t offset = packet_offset(number, rank, unit, packet);
    // Every rank begins with the next one, so that all links are busy.
#pragma unroll
    for (int k = 1; k < RANKS; k++)
      ptx::store_system(at<char>(stream.exchange.receivers[(rank + k) % RANKS]) + offset, sent);
  }
  const char* own = at<const char>(stream.exchange.receivers[rank]);
  for (int packet = cta.thread(); packet < count; packet += CONSUMERS) {
    uint4 packets[RANKS];
    wait_for(Waits::Peer, number, [&](uint32_t& seen) {
      bool all = true;
#pragma unroll
      for (int from = 0; from < RANKS; from++) {
        if (from == rank) continue;
        packets[from] = ptx::load_system(own + packet_offset(number, from, unit, packet));
      }
#pragma unroll
      for (int from = 0; from < RANKS; from++) {
        if (from == rank || packets[from].w == number) continue;
        all = false;
        seen = packets[from].w;
      }
      return all;
    });
    float* values = values_of(packet);
    float sum[PACKET_VALUES] = {};
#pragma unroll
    for (int from = 0; from < RANKS; from++)
      add_packet(sum, from == rank ? make_packet(values, number) : packets[from]);
#pragma unroll
    for (int i = 0; i < PACKET_VALUES; i++) values[i] = sum[i];
  }
  cta.stamp(Stamp::Exchange);
}

}  // namespace kilotok
