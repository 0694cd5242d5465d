// Transports with a window of packets: TCP's handshake, acknowledgements, fast retransmission
// (RFC 6582) and timeout, under the window of one of three papers.
//
//   DCTCP (SIGCOMM 2010, RFC 8257): a share alpha of marked packets takes alpha/2 of the window.
//   HULL (NSDI 2012): the same, with marks from phantom queues; the network makes the difference.
//   DX (USENIX ATC 2015): the mean queueing delay Q of a round trip takes Q/V of the window.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "wire.h"

enum class Control { kMarks, kDelay };

class Windowed {
 public:
  static constexpr std::uint32_t kFirstWindow = 10;  // RFC 6928

  struct State {
    // the sender's; packets are counted, not bytes
    double window = kFirstWindow, threshold = std::numeric_limits<double>::infinity();
    std::uint32_t acked = 0, next = 0;
    bool open = false, recovering = false;
    std::uint32_t duplicates = 0, recover = 0, resent = 0;
    std::uint32_t round_end = kFirstWindow - 1;  // an acknowledgement beyond it ends the round
    std::uint32_t reduced_for = 0;               // one reduction until this is acknowledged
    std::uint32_t round_acked = 0, round_marked = 0;
    double alpha = 1;     // RFC 8257, section 3.3
    double delay_ps = 0;  // sum of the round
    double srtt_ps = 0, rttvar_ps = 0, least_rtt_ps = 0;
    Time timeout = kLeastTimeout, deadline = 0;
    bool timed = false;
    // the receiver's
    std::uint32_t expected = 0;
    std::vector<bool> beyond{};  // which of the packets after the expected one are there
  };

  Windowed(Wire& wire, Control control)
      : wire_(wire), control_(control), states_(wire.flows.size()) {}

  const State& state(std::uint32_t flow) const { return states_[flow]; }
  double allowed(std::uint32_t flow) const { return states_[flow].window; }

  void start(std::uint32_t flow) {
    send(flow, Kind::kRequest, kLeastBytes, {});
    restart_timer(flow, states_[flow]);
  }

  void receive(const Packet& packet) {
    State& state = states_[packet.flow];
    switch (packet.kind) {
      case Kind::kRequest:
        return send(packet.flow, Kind::kAccept, kLeastBytes, {});
      case Kind::kAccept:
        state.open = true;
        return send_window(packet.flow, state);
      case Kind::kData:
        return take(packet, state);
      default:
        acknowledge(packet, state);
    }
  }

  void timer(std::uint32_t flow) {
    State& state = states_[flow];
    state.timed = false;
    if (state.acked == wire_.flows[flow].packets) return;
    if (wire_.now < state.deadline) return wait(flow, state);
    state.timeout = std::min(2 * state.timeout, kMostTimeout);
    if (!state.open) return start(flow);
    state.threshold = std::max(state.window / 2, 2.0);
    state.window = 1;
    state.next = state.round_end = state.acked;
    state.recovering = false;
    state.duplicates = 0;
    send_window(flow, state);
  }

 private:
  static constexpr double kGain = 1.0 / 16;
  static constexpr Time kLeastTimeout = 10'000'000'000, kMostTimeout = 640'000'000'000;

  void send(std::uint32_t flow, Kind kind, int bytes, Packet packet) {
    packet.flow = flow, packet.kind = kind, packet.bytes = static_cast<std::uint16_t>(bytes);
    packet.sent = wire_.now;
    wire_.send(packet);
  }

  void send_data(std::uint32_t flow, std::uint32_t number) {
    send(flow, Kind::kData, wire_.flows[flow].frame_of(number), {.number = number});
  }

  void send_window(std::uint32_t flow, State& state) {
    const std::uint32_t packets = wire_.flows[flow].packets;
    while (state.next < packets && state.next - state.acked + 1 <= state.window) {
      send_data(flow, state.next++);
    }
    restart_timer(flow, state);
  }

  void restart_timer(std::uint32_t flow, State& state) {
    state.deadline = wire_.now + state.timeout;
    if (!state.timed) wait(flow, state);
  }

  void wait(std::uint32_t flow, State& state) {
    state.timed = true;
    wire_.wake_flow(flow, state.deadline);
  }

  void take(const Packet& data, State& state) {
    const Flow& flow = wire_.flows[data.flow];
    const std::size_t ahead = data.number - state.expected;
    const bool known =
        data.number < state.expected || (ahead < state.beyond.size() && state.beyond[ahead]);
    if (!known) {
      wire_.delivered(data.flow, flow.payload_of(data.number));
      if (ahead > 0) {
        if (ahead >= state.beyond.size()) state.beyond.resize(ahead + 1);
        state.beyond[ahead] = true;
      } else {
        move_on(state);
      }
    }
    const Time queued = wire_.now - data.sent - wire_.base_delay(flow, data.bytes);
    wire_.send({.sent = data.sent,
                .queued = queued,
                .flow = data.flow,
                .number = state.expected,
                .bytes = kLeastBytes,
                .kind = Kind::kAck,
                .marked = data.marked});
  }

  // Past the packet that was expected, and those that had come before it.
  static void move_on(State& state) {
    std::size_t there = 1;
    while (there < state.beyond.size() && state.beyond[there]) ++there;
    state.expected += static_cast<std::uint32_t>(there);
    const auto end =
        state.beyond.begin() + static_cast<std::ptrdiff_t>(std::min(there, state.beyond.size()));
    state.beyond.erase(state.beyond.begin(), end);
  }

  void acknowledge(const Packet& ack, State& state) {
    if (ack.number < state.acked) return;
    measure(ack, state);
    if (ack.number == state.acked) {
      duplicate(ack.flow, state);
    } else {
      const std::uint32_t more = ack.number - state.acked;
      state.acked = ack.number;
      state.next = std::max(state.next, state.acked);
      state.duplicates = 0;
      if (state.recovering) {
        recover(ack.flow, state, more);
      } else {
        control_ == Control::kMarks ? by_marks(ack, state, more) : by_delay(ack, state, more);
      }
    }
    send_window(ack.flow, state);
  }

  // RFC 6298.
  void measure(const Packet& ack, State& state) {
    const auto rtt_ps = static_cast<double>(wire_.now - ack.sent);
    if (state.srtt_ps == 0) {
      state.srtt_ps = state.least_rtt_ps = rtt_ps, state.rttvar_ps = rtt_ps / 2;
    } else {
      state.rttvar_ps += (std::abs(state.srtt_ps - rtt_ps) - state.rttvar_ps) / 4;
      state.srtt_ps += (rtt_ps - state.srtt_ps) / 8;
      state.least_rtt_ps = std::min(state.least_rtt_ps, rtt_ps);
    }
    const auto timeout = static_cast<Time>(state.srtt_ps + 4 * state.rttvar_ps);
    state.timeout = std::max(kLeastTimeout, timeout);
  }

  void duplicate(std::uint32_t flow, State& state) {
    if (state.next == state.acked) return;
    if (state.recovering) {
      state.window += 1;
    } else if (++state.duplicates == 3) {
      state.threshold = std::max(state.window / 2, 2.0);
      state.window = state.threshold + 3;
      state.recovering = true;
      state.recover = state.next;
      resend(flow, state);
    }
  }

  // An acknowledgement that does not cover all that was out points at the next loss.
  void recover(std::uint32_t flow, State& state, std::uint32_t more) {
    if (state.acked >= state.recover) {
      state.recovering = false;
      state.window = state.threshold;
    } else {
      state.window = std::max(1.0, state.window - more + 1);
      resend(flow, state);
    }
  }

  void resend(std::uint32_t flow, State& state) {
    ++state.resent;
    send_data(flow, state.acked);
  }

  void by_marks(const Packet& ack, State& state, std::uint32_t more) {
    state.round_acked += more;
    if (ack.marked) state.round_marked += more;
    if (state.acked > state.round_end) {
      const double marked = static_cast<double>(state.round_marked) / state.round_acked;
      state.alpha += kGain * (marked - state.alpha);
      state.round_acked = state.round_marked = 0;
      state.round_end = state.next;
    }
    if (!ack.marked) {
      state.window += state.window < state.threshold ? more : more / state.window;
    } else if (state.acked > state.reduced_for) {
      state.window = std::max(1.0, state.window * (1 - state.alpha / 2));
      state.threshold = state.window;
      state.reduced_for = state.next;
    }
  }

  // N flows of W packets each, one of them too many, hold C·R + N; N wait, for Q = N/C. To empty
  // the queue a flow has to fall by N/(C·R + N). As N·W = C·R + N, that is Q/V for V = R·W/(W - 1).
  void by_delay(const Packet& ack, State& state, std::uint32_t more) {
    // The first window waits for itself: it leaves all at once.
    if (state.acked > kFirstWindow) {
      state.delay_ps += static_cast<double>(ack.queued);
      ++state.round_acked;
    }
    const bool doubling = state.window < state.threshold;
    if (doubling) state.window += more;
    if (state.acked <= state.round_end) return;
    const double delay_ps = state.delay_ps / std::max(1u, state.round_acked);
    if (delay_ps > static_cast<double>(wire_.frame_ps(ack.flow))) {
      const double base_ps = state.least_rtt_ps * state.window / std::max(1.0, state.window - 1);
      state.window = std::max(1.0, state.window * (1 - delay_ps / base_ps));
      state.threshold = state.window;
    } else if (!doubling) {
      state.window += 1;
    }
    state.delay_ps = 0, state.round_acked = 0;
    state.round_end = state.next;
  }

  Wire& wire_;
  Control control_;
  std::vector<State> states_;
};
