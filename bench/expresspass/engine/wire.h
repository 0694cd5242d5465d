// What a transport has of the world: flows with their paths, a clock, packets to send, one timer a
// flow, dice.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "network.h"

struct Flow {
  Time start;
  std::int64_t bytes;  // payload; endless if negative
  std::uint32_t packets;
  std::uint32_t path;  // index of its first port among the paths
  std::uint8_t hops;
  Time finished = -1;  // when all of its payload was there
  std::int64_t delivered = 0;

  bool endless() const { return bytes < 0; }

  int payload_of(std::uint32_t number) const {
    if (endless() || number + 1 < packets) return kPayloadBytes;
    return static_cast<int>(bytes - std::int64_t{number} * kPayloadBytes);
  }

  int frame_of(std::uint32_t number) const {
    return std::max(kLeastBytes, kHeaderBytes + payload_of(number));
  }
};

// SplitMix64 (Steele, Lea, Flood 2014).
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_(seed) {}

  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  int among(int count) { return static_cast<int>(uniform() * count); }

 private:
  std::uint64_t next() {
    std::uint64_t mixed = state_ += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
  }

  std::uint64_t state_;
};

class Wire {
 public:
  explicit Wire(std::uint64_t seed) : dice(seed), network(events) {}

  Time now = 0;
  Dice dice;
  EventQueue events;
  Network network;
  std::vector<Flow> flows;
  std::vector<std::uint32_t> paths;
  std::uint64_t made = 0;  // packets

  void send(Packet packet) {
    ++made;
    packet.hop = 0;
    network.enqueue(next_port(packet), network.make(packet), now);
  }

  void wake_flow(std::uint32_t flow, Time time) { events.push(time, Happens::kTimer, flow); }

  // Data goes from the first port of the path to the last, what answers it the same way back.
  std::uint32_t next_port(const Packet& packet) const {
    const Flow& flow = flows[packet.flow];
    const bool back =
        packet.kind == Kind::kAccept || packet.kind == Kind::kCredit || packet.kind == Kind::kAck;
    return back ? paths[flow.path + flow.hops - 1 - packet.hop] ^ 1 : paths[flow.path + packet.hop];
  }

  // Of a flow's data packet that never waits, from its first bit out to its last bit in.
  Time base_delay(const Flow& flow, int bytes) const {
    Time total = 0;
    for (int hop = 0; hop < flow.hops; ++hop) {
      const Port& port = network.ports[paths[flow.path + hop]];
      total += port.takes(bytes) + port.delay;
    }
    return total;
  }

  // Of the largest frame on the path's slowest link.
  Time frame_ps(std::uint32_t number) const {
    const Flow& flow = flows[number];
    Time most = 0;
    for (int hop = 0; hop < flow.hops; ++hop) {
      most = std::max(most, network.ports[paths[flow.path + hop]].takes(kFrameBytes));
    }
    return most;
  }

  void delivered(std::uint32_t number, int payload) {
    Flow& flow = flows[number];
    flow.delivered += payload;
    if (flow.delivered == flow.bytes) flow.finished = now;
  }
};
