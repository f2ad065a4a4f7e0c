// All-reduce of the ranks' *parts*, which are added to the residual stream. They travel as BF16 in
// packets of 16 bytes and are added in F32 in rank order, so that all ranks get the same bits.
// There are two kinds, with the same bits:
//
//   one shot   every owner sends its part to the same CTA of every other rank, which adds all
//   two shots  a reduce-scatter and an all-gather: a rank adds a share of the packets, and sends
//              the sums, F32, to the others. Fewer bytes, but two trips through the network
//
// No fence is needed, because each value shows by itself whether it has arrived: a location is
// empty while it holds a zero. Therefore zeros are sent as negative zeros, and the reader of a
// packet or a sum clears its location.
//
// A rank is at most one collective ahead of another, because its next one needs the other's
// packets, or sums of them. So two sets of locations suffice, provided that two consecutive
// all-reduces use different ones, also from one launch to the next. Every receiver has
// `[2][ranks][owner units][packets]` packets and, after them, `[2][owner units][packets]` sums,
// indexed by the parity of the collective's number. Between the clearing of a location and its next
// packet there are a release by this CTA, at a grid barrier or where an operand is counted, and
// then another all-reduce with the sending rank.
#pragma once

#include "kilotok/phase/add_rms_norm.cuh"

namespace kilotok {

constexpr int PACKET_VALUES = 8;
constexpr int TOKEN_PACKETS = OWNER_ROWS / PACKET_VALUES;
static_assert(OWNER_ROWS % PACKET_VALUES == 0, "packets are full");
constexpr int UNIT_PACKETS = TOKENS_MAX * TOKEN_PACKETS;
constexpr size_t PACKETS_BYTES = size_t{2} * RANKS * OWNER_UNITS * UNIT_PACKETS * 16;
constexpr int SUM_BYTES = PACKET_VALUES * 4;
constexpr size_t ALL_REDUCE_BYTES =
    PACKETS_BYTES + size_t{2} * OWNER_UNITS * UNIT_PACKETS * SUM_BYTES;

// Two shots are faster on eight H200 from 8 tokens on, and never on four.
constexpr int TWO_SHOT_RANKS = 8;
constexpr int TWO_SHOT_TOKENS = 8;

__device__ __forceinline__ size_t packet_offset(uint32_t number, int from, int unit, int packet) {
  return (((number & 1) * size_t{RANKS} + from) * OWNER_UNITS + unit) * UNIT_PACKETS * 16 +
         static_cast<size_t>(packet) * 16;
}

__device__ __forceinline__ size_t sum_offset(uint32_t number, int unit, int packet) {
  return PACKETS_BYTES + ((number & 1) * size_t{OWNER_UNITS} + unit) * UNIT_PACKETS * SUM_BYTES +
         static_cast<size_t>(packet) * SUM_BYTES;
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

// Four values of a sum, none of which is sent as the word zero.
__device__ __forceinline__ uint4 make_sums(const float* values) {
  const auto word = [](float value) {
    const uint32_t bits = __float_as_uint(value);
    return bits == 0 ? 0x80000000u : bits;
  };
  return make_uint4(word(values[0]), word(values[1]), word(values[2]), word(values[3]));
}

__device__ __forceinline__ bool has_zero(const uint4& words) {
  return words.x == 0 || words.y == 0 || words.z == 0 || words.w == 0;
}

// One all-reduce as an owner sees it.
struct AllReduce {
  StreamMemory& stream;
  uint32_t number;
  int rank, unit, count;

  __device__ __forceinline__ float* values(int packet) const {
    return &stream.part[packet / TOKEN_PACKETS][packet % TOKEN_PACKETS * PACKET_VALUES];
  }

  __device__ __forceinline__ char* receiver(int of) const {
    return at<char>(stream.peers.receivers[of]);
  }

  __device__ __forceinline__ char* part(int of, int from, int packet) const {
    return receiver(of) + packet_offset(number, from, unit, packet);
  }

  __device__ __forceinline__ char* sum(int of, int packet) const {
    return receiver(of) + sum_offset(number, unit, packet);
  }

  __device__ __forceinline__ void send_part(int to, int packet) const {
    ptx::store_system(part(to, rank, packet), make_packet(values(packet)));
  }

  // Waits for the other ranks' parts of a packet.
  __device__ __forceinline__ void receive_parts(uint4 (&packets)[RANKS], int packet) const {
    wait_for(Waits::Peer, number, [&](uint32_t& missing) {
      missing = RANKS;
#pragma unroll
      for (int from = 0; from < RANKS; from++)
        if (from != rank) packets[from] = ptx::load_system(part(rank, from, packet));
#pragma unroll
      for (int from = 0; from < RANKS; from++)
        if (from != rank && zero_halves(packets[from]) != 0) missing = from;
      return missing == RANKS;
    });
  }

  __device__ __forceinline__ void add_parts(float (&total)[PACKET_VALUES],
                                            const uint4 (&packets)[RANKS], int packet) const {
#pragma unroll
    for (int from = 0; from < RANKS; from++)
      add_packet(total, from == rank ? make_packet(values(packet)) : packets[from]);
  }

  __device__ __forceinline__ void clear_part(int from, int packet) const {
    ptx::store_l2(part(rank, from, packet), make_uint4(0, 0, 0, 0));
  }

  __device__ __forceinline__ void one_shot(const Cta& cta) const {
    // Every rank begins with the rank after it, so that all links are busy.
#pragma unroll 1
    for (int i = cta.thread(); i < count * (RANKS - 1); i += CONSUMERS)
      send_part((rank + 1 + i / count) % RANKS, i % count);
    // No thread overwrites a part before it has been sent to all ranks.
    cta.sync();
    for (int packet = cta.thread(); packet < count; packet += CONSUMERS) {
      uint4 packets[RANKS];
      receive_parts(packets, packet);
      float total[PACKET_VALUES] = {};
#pragma unroll
      for (int from = 0; from < RANKS; from++)
        if (from != rank) clear_part(from, packet);
      add_parts(total, packets, packet);
#pragma unroll
      for (int i = 0; i < PACKET_VALUES; i++) values(packet)[i] = total[i];
    }
  }

  __device__ __forceinline__ void two_shots(const Cta& cta) const {
    const int share = ceil_div(count, RANKS), first = rank * share;
    const int own_count = max(min(share, count - first), 0);
#pragma unroll 1
    for (int i = cta.thread(); i < share * (RANKS - 1); i += CONSUMERS) {
      const int to = (rank + 1 + i / share) % RANKS, packet = to * share + i % share;
      if (packet < count) send_part(to, packet);
    }
    // One thread for each rank that receives a sum. All of them compute the sum, which takes less
    // time than handing it over.
#pragma unroll 1
    for (int i = cta.thread(); i < own_count * (RANKS - 1); i += CONSUMERS) {
      const int to = (rank + 1 + i / own_count) % RANKS, packet = first + i % own_count;
      uint4 packets[RANKS];
      receive_parts(packets, packet);
      float total[PACKET_VALUES] = {};
      add_parts(total, packets, packet);
      send_sum(sum(to, packet), total);
      // Others of these threads still read the part, so this rank's own sum is not stored there but
      // sent, too.
      if (i < own_count) send_sum(sum(rank, packet), total);
    }
    cta.sync();
#pragma unroll 1
    for (int i = cta.thread(); i < own_count * (RANKS - 1); i += CONSUMERS)
      clear_part((rank + 1 + i / own_count) % RANKS, first + i % own_count);
#pragma unroll 1
    for (int packet = cta.thread(); packet < count; packet += CONSUMERS)
      receive_sum(packet, packet / share);
  }

  static __device__ __forceinline__ void send_sum(char* to, const float* total) {
    ptx::store_system(to, make_sums(total));
    ptx::store_system(to + 16, make_sums(total + 4));
  }

  // Waits for a sum, replaces this rank's part with it, and clears its location.
  __device__ __forceinline__ void receive_sum(int packet, int from) const {
    char* place = sum(rank, packet);
    uint4 words[2];
    wait_for(Waits::Peer, number, [&](uint32_t& missing) {
      words[0] = ptx::load_system(place);
      words[1] = ptx::load_system(place + 16);
      missing = from;
      return !has_zero(words[0]) && !has_zero(words[1]);
    });
    ptx::store_l2(place, make_uint4(0, 0, 0, 0));
    ptx::store_l2(place + 16, make_uint4(0, 0, 0, 0));
    float* to = values(packet);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t bits[4] = {words[half].x, words[half].y, words[half].z, words[half].w};
      // Adding zero makes a negative zero positive.
#pragma unroll
      for (int i = 0; i < 4; i++) to[half * 4 + i] = __uint_as_float(bits[i]) + 0.0f;
    }
  }
};

// Owners: replaces `stream.part` with the sum of all ranks' parts.
__device__ __forceinline__ void all_reduce(Cta& cta, StreamMemory& stream, int token_count) {
  if constexpr (RANKS == 1) return;
  cta.collectives++;
  cta.sync();
  const AllReduce reduce{stream, cta.collectives, static_cast<int>(cta.memory.rank), cta.index(),
                         token_count * TOKEN_PACKETS};
  if (RANKS >= TWO_SHOT_RANKS && token_count >= TWO_SHOT_TOKENS)
    reduce.two_shots(cta);
  else
    reduce.one_shot(cta);
  cta.stamp(Stamp::AllReduce);
}

}  // namespace kilotok
