// Links and the queues before them. A port is one direction of a link: what its node sends.
//
// A port has a queue of data, first in first out, and one of credits, which leave at no more than
// 84 bytes for every 1,538 of data and are dropped beyond eight (ExpressPass, arXiv:1610.04688).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "event_queue.h"

constexpr int kFrameBytes = 1538;  // the largest Ethernet frame, with preamble and gap
constexpr int kHeaderBytes = 78;
constexpr int kPayloadBytes = kFrameBytes - kHeaderBytes;
constexpr int kLeastBytes = 84;  // the smallest frame: a credit, an acknowledgement, a request
constexpr std::uint32_t kCreditQueue = 8;  // credits, whatever their sizes: none is favoured
constexpr int kCreditBurstBytes = 2 * kLeastBytes;

// The phantom queue drains at 19/20 of the link's rate (HULL, NSDI 2012).
constexpr std::int64_t kPhantomOf = 20, kPhantomDrain = 19;

enum class Kind : std::uint8_t { kRequest, kAccept, kCredit, kData, kStop, kAck };

struct Packet {
  Time sent = 0;    // by its host; an answer has that of what it answers: a credit, or data
  Time queued = 0;  // an ack: how long its data waited on the way
  std::uint32_t flow = 0;
  std::uint32_t number = 0;  // of data or a credit; an ack: the first packet still missing
  std::uint32_t credit = 0;  // the number of the credit that data answers
  std::uint16_t bytes = 0;   // on the wire
  Kind kind = Kind::kData;
  std::uint8_t hop = 0;  // ports that it has left behind
  bool marked = false;   // congestion experienced; an ack: what its data said
};

// Packets by number, first in first out; grows, never shrinks.
class Fifo {
 public:
  bool empty() const { return first_ == end_; }
  std::uint32_t size() const { return end_ - first_; }
  std::uint32_t front() const { return ring_[first_ & mask()]; }

  void push(std::uint32_t packet) {
    if (end_ - first_ == ring_.size()) grow();
    ring_[end_++ & mask()] = packet;
  }

  std::uint32_t pop() { return ring_[first_++ & mask()]; }

 private:
  std::uint32_t mask() const { return static_cast<std::uint32_t>(ring_.size()) - 1; }

  void grow() {
    std::vector<std::uint32_t> larger(ring_.empty() ? 8 : 2 * ring_.size());
    std::uint32_t count = 0;
    while (!empty()) larger[count++] = pop();
    ring_.swap(larger);
    first_ = 0, end_ = count;
  }

  std::vector<std::uint32_t> ring_;
  std::uint32_t first_ = 0, end_ = 0;
};

// Since restart(), in bytes on the wire.
struct PortCounts {
  std::int64_t sent_bytes = 0, sent_credits = 0;
  std::int64_t most_bytes = 0;  // data waiting, that which goes at once included
  double byte_ps = 0;           // data waiting, integrated over time
};

struct Port {
  Time ps_per_byte = 0, delay = 0;
  std::int64_t limit_bytes = 0;
  std::int64_t mark_bytes = 0;     // data that finds as much waiting is marked; 0: none is
  std::int64_t phantom_bytes = 0;  // data that makes the phantom queue longer is marked; 0: none is

  Time free_at = 0, wakes_at = -1;
  Fifo data{}, credits{};
  std::int64_t data_bytes = 0;
  Time changed = 0;   // when data_bytes was last other
  Time refilled = 0;  // when the tokens were last counted
  std::int64_t tokens = 0;
  Time phantom_at = 0;
  std::int64_t phantom = 0;                                   // bytes · ps_per_byte · kPhantomOf
  std::int64_t dropped = 0, dropped_credits = 0, marked = 0;  // packets
  PortCounts counts{};

  Time takes(int bytes) const { return bytes * ps_per_byte; }

  // A token is 1/84 of a picosecond's worth, so that 84 of 1,622 bytes are whole numbers.
  std::int64_t cost(int bytes) const { return takes(bytes) * (kFrameBytes + kLeastBytes); }

  void refill(Time now) {
    const std::int64_t most = cost(kCreditBurstBytes);
    const Time elapsed = now - refilled;
    tokens = elapsed > most / kLeastBytes ? most : std::min(most, tokens + elapsed * kLeastBytes);
    refilled = now;
  }

  // When a credit of so many bytes may leave; the tokens have been counted.
  Time allowed_at(int bytes) const {
    const std::int64_t missing = cost(bytes) - tokens;
    return missing <= 0 ? refilled : refilled + (missing + kLeastBytes - 1) / kLeastBytes;
  }

  void waiting(Time now, std::int64_t change) {
    counts.byte_ps += static_cast<double>(data_bytes) * static_cast<double>(now - changed);
    changed = now;
    data_bytes += change;
    counts.most_bytes = std::max(counts.most_bytes, data_bytes);
  }

  void restart(Time now) {
    counts = {.most_bytes = data_bytes};
    changed = now;
  }

  // Whether a data packet that leaves now finds the phantom queue too long.
  bool phantom_marks(Time now, int bytes) {
    phantom = std::max<std::int64_t>(0, phantom - (now - phantom_at) * kPhantomDrain);
    phantom += takes(bytes) * kPhantomOf;
    phantom_at = now;
    return phantom > phantom_bytes * ps_per_byte * kPhantomOf;
  }
};

class Network {
 public:
  explicit Network(EventQueue& events) : events_(events) {}

  std::vector<Port> ports;

  Packet& packet(std::uint32_t which) { return packets_[which]; }
  void free(std::uint32_t which) { unused_.push_back(which); }
  std::uint32_t in_flight() const {
    return static_cast<std::uint32_t>(packets_.size() - unused_.size());
  }

  std::uint32_t make(const Packet& packet) {
    if (unused_.empty()) {
      packets_.push_back(packet);
      return static_cast<std::uint32_t>(packets_.size()) - 1;
    }
    const std::uint32_t which = unused_.back();
    unused_.pop_back();
    packets_[which] = packet;
    return which;
  }

  // A packet comes to a port, which drops it, sends it, or lets it wait.
  void enqueue(std::uint32_t number, std::uint32_t which, Time now) {
    Port& port = ports[number];
    Packet& packet = packets_[which];
    if (packet.kind == Kind::kCredit) {
      if (port.credits.size() == kCreditQueue) {
        ++port.dropped_credits;
        return free(which);
      }
      port.credits.push(which);
    } else {
      if (port.data_bytes + packet.bytes > port.limit_bytes) {
        ++port.dropped;
        return free(which);
      }
      if (port.mark_bytes && port.data_bytes >= port.mark_bytes && packet.kind == Kind::kData) {
        packet.marked = true;
        ++port.marked;
      }
      port.waiting(now, packet.bytes);
      port.data.push(which);
    }
    if (now >= port.free_at) {
      serve(number, now);
    } else if (port.wakes_at < 0 || port.wakes_at > port.free_at) {
      wake(number, port.free_at);
    }
  }

  // What was pushed for an earlier plan is no longer meant.
  void woken(std::uint32_t number, Time now) {
    if (ports[number].wakes_at == now) serve(number, now);
  }

 private:
  // The link is free: a credit if its tokens are there, else data.
  void serve(std::uint32_t number, Time now) {
    Port& port = ports[number];
    port.wakes_at = -1;
    if (!port.credits.empty()) {
      port.refill(now);
      const int bytes = packets_[port.credits.front()].bytes;
      if (port.tokens >= port.cost(bytes)) {
        port.tokens -= port.cost(bytes);
        ++port.counts.sent_credits;
        return send(number, port.credits.pop(), now);
      }
    }
    if (!port.data.empty()) {
      const std::uint32_t which = port.data.pop();
      Packet& packet = packets_[which];
      port.waiting(now, -packet.bytes);
      port.counts.sent_bytes += packet.bytes;
      if (port.phantom_bytes && port.phantom_marks(now, packet.bytes) &&
          packet.kind == Kind::kData) {
        packet.marked = true;
        ++port.marked;
      }
      return send(number, which, now);
    }
    if (!port.credits.empty()) {
      wake(number, port.allowed_at(packets_[port.credits.front()].bytes));
    }
  }

  void send(std::uint32_t number, std::uint32_t which, Time now) {
    Port& port = ports[number];
    Packet& packet = packets_[which];
    ++packet.hop;
    port.free_at = now + port.takes(packet.bytes);
    events_.push(port.free_at + port.delay, Happens::kArrival, which);
    if (!port.data.empty()) {
      wake(number, port.free_at);
    } else if (!port.credits.empty()) {
      port.refill(now);
      const Time allowed = port.allowed_at(packets_[port.credits.front()].bytes);
      wake(number, std::max(port.free_at, allowed));
    }
  }

  void wake(std::uint32_t number, Time time) {
    ports[number].wakes_at = time;
    events_.push(time, Happens::kPort, number);
  }

  EventQueue& events_;
  std::vector<Packet> packets_;
  std::vector<std::uint32_t> unused_;
};
