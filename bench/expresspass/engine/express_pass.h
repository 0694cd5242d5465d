// ExpressPass (arXiv:1610.04688): the receiver sends credits, each of which lets one frame go.
#pragma once

#include <algorithm>
#include <vector>

#include "wire.h"

class ExpressPass {
 public:
  struct Settings {
    double start_rate;    // of the most that the link can carry (the paper's alpha)
    double start_weight;  // of that most in the first increase
  };

  struct State {
    // the receiver's
    double rate = 0, weight = 0, rtt_ps = 0;
    bool sending = false, may_increase = false;
    Time updated = 0;
    std::uint32_t credits = 0, awaited = 0;  // numbers: of the next to send, of the next to return
    std::uint32_t counted = 0, lost = 0;     // of the credits since the last update
    // the sender's
    std::uint32_t packets = 0, wasted = 0;
  };

  ExpressPass(Wire& wire, const Settings& settings)
      : wire_(wire), settings_(settings), states_(wire.flows.size()) {}

  const State& state(std::uint32_t flow) const { return states_[flow]; }
  double allowed(std::uint32_t flow) const { return states_[flow].rate; }

  void start(std::uint32_t flow) { send(flow, Kind::kRequest, kLeastBytes, {}); }

  void receive(const Packet& packet) {
    State& state = states_[packet.flow];
    switch (packet.kind) {
      case Kind::kRequest:
        state.rate = settings_.start_rate;
        state.weight = settings_.start_weight;
        state.updated = wire_.now;
        state.sending = true;
        return send_credit(packet.flow);
      case Kind::kCredit:
        return answer(packet, state);
      case Kind::kData:
        return take(packet, state);
      default:
        state.sending = false;
    }
  }

  // The next credit is due.
  void timer(std::uint32_t flow) {
    if (states_[flow].sending) send_credit(flow);
  }

 private:
  static constexpr double kTargetLoss = 0.125, kLeastWeight = 0.01, kMostWeight = 0.5;
  static constexpr double kWeightStep = 0.05, kJitter = 0.1;
  static constexpr int kSizeJitter = 8;  // bytes more or fewer than 84, as the authors simulate it

  void send(std::uint32_t flow, Kind kind, int bytes, Packet packet) {
    packet.flow = flow, packet.kind = kind, packet.bytes = static_cast<std::uint16_t>(bytes);
    wire_.send(packet);
  }

  void send_credit(std::uint32_t flow) {
    State& state = states_[flow];
    update(flow, state);
    // Credits of one size leave two switches at the very same pace, and one flow's then always find
    // the second queue full.
    const int bytes = kLeastBytes - kSizeJitter + wire_.dice.among(2 * kSizeJitter + 1);
    send(flow, Kind::kCredit, bytes, {.sent = wire_.now, .number = state.credits++});
    const double jitter = 1 + kJitter * (2 * wire_.dice.uniform() - 1);
    const double gap_ps = static_cast<double>(least_gap(flow)) / state.rate * jitter;
    wire_.wake_flow(flow, wire_.now + static_cast<Time>(gap_ps));
  }

  // Between credits, at the most that the receiver's link can carry.
  Time least_gap(std::uint32_t flow) const {
    const Flow& of = wire_.flows[flow];
    return wire_.network.ports[wire_.paths[of.path + of.hops - 1] ^ 1].takes(kFrameBytes +
                                                                             kLeastBytes);
  }

  // Once a round trip, from the share of credits that came to nothing.
  void update(std::uint32_t flow, State& state) {
    const auto elapsed_ps = static_cast<double>(wire_.now - state.updated);
    if (state.counted == 0 || elapsed_ps < state.rtt_ps) return;
    const auto gap_ps = static_cast<double>(least_gap(flow));
    const double loss = static_cast<double>(state.lost) / state.counted;
    const double target = (1 - state.rate) * kTargetLoss;
    if (loss > target) {
      const double returned = (state.counted - state.lost) * gap_ps / elapsed_ps;
      state.rate = std::min(state.rate, returned * (1 + target));
      state.weight = std::max(state.weight / 2, kLeastWeight);
      state.may_increase = false;
    } else {
      if (state.may_increase) state.weight = std::min(state.weight + kWeightStep, kMostWeight);
      state.may_increase = true;
      state.rate = state.weight + (1 - state.weight) * state.rate;
    }
    state.rate = std::clamp(state.rate, std::min(1.0, gap_ps / state.rtt_ps), 1.0);
    state.counted = state.lost = 0;
    state.updated = wire_.now;
  }

  void answer(const Packet& credit, State& state) {
    const Flow& flow = wire_.flows[credit.flow];
    if (state.packets == flow.packets) {
      ++state.wasted;
      return;
    }
    const std::uint32_t number = state.packets++;
    send(credit.flow, Kind::kData, flow.frame_of(number),
         {.sent = credit.sent, .number = number, .credit = credit.number});
    if (state.packets == flow.packets) send(credit.flow, Kind::kStop, kLeastBytes, {});
  }

  void take(const Packet& data, State& state) {
    const std::uint32_t lost = data.credit - state.awaited;
    state.counted += lost + 1;
    state.lost += lost;
    state.awaited = data.credit + 1;
    const auto rtt_ps = static_cast<double>(wire_.now - data.sent);
    state.rtt_ps = state.rtt_ps > 0 ? 0.8 * state.rtt_ps + 0.2 * rtt_ps : rtt_ps;
    wire_.delivered(data.flow, wire_.flows[data.flow].payload_of(data.number));
  }

  Wire& wire_;
  Settings settings_;
  std::vector<State> states_;
};
