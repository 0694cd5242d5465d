// A network of queues and links, packet by packet: a scenario on standard input, one line for each
// port, flow and sample on standard output. bench/expresspass/engine.py speaks both.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "express_pass.h"
#include "windowed.h"

namespace {

struct Scenario {
  std::string transport;
  ExpressPass::Settings credits{};
  std::uint64_t seed = 0;
  Time until = 0;         // the end, if packets are still on their way then
  Time measure_from = 0;  // ports count from here
  Time sample_every = 0;  // 0: never
};

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "the scenario cannot be read: %s\n", why.c_str());
  std::exit(2);
}

Flow read_flow(std::istream& in, Wire& wire) {
  Flow flow{};
  int hops = 0;
  in >> flow.start >> flow.bytes >> hops;
  if (!in || flow.start < 0 || flow.bytes == 0 || hops < 1 || hops > 16) refuse("a flow");
  const std::int64_t packets = (flow.bytes + kPayloadBytes - 1) / kPayloadBytes;
  if (packets > UINT32_MAX - 1) refuse("a flow too large");
  flow.packets = flow.endless() ? UINT32_MAX : static_cast<std::uint32_t>(packets);
  flow.path = static_cast<std::uint32_t>(wire.paths.size());
  flow.hops = static_cast<std::uint8_t>(hops);
  for (std::uint32_t port = 0; hops > 0; --hops) {
    if (!(in >> port) || port >= wire.network.ports.size()) refuse("a path");
    wire.paths.push_back(port);
  }
  return flow;
}

Port read_port(std::istream& in) {
  Port port{};
  in >> port.ps_per_byte >> port.delay >> port.limit_bytes >> port.mark_bytes >> port.phantom_bytes;
  const bool sound = port.ps_per_byte > 0 && port.ps_per_byte <= 1'000'000 && port.delay >= 0 &&
                     port.limit_bytes >= kFrameBytes && port.mark_bytes >= 0 &&
                     port.phantom_bytes >= 0;
  if (!in || !sound) refuse("a port");
  port.tokens = port.cost(kCreditBurstBytes);
  return port;
}

// Ports 2n and 2n + 1 are the two directions of a link; flows come in the order of their start.
void read_network(std::istream& in, Wire& wire) {
  for (std::string word; in >> word;) {
    if (word == "port") {
      wire.network.ports.push_back(read_port(in));
    } else if (word == "flow") {
      wire.flows.push_back(read_flow(in, wire));
      if (wire.flows.size() > 1 && wire.flows.end()[-2].start > wire.flows.back().start) {
        refuse("flows out of order");
      }
    } else {
      refuse(word);
    }
  }
  if (wire.flows.empty() || wire.network.ports.size() % 2) refuse("no flows, or half a link");
  if (wire.flows.size() >= EventQueue::kMostThings) refuse("too many flows");
}

Scenario read_scenario(std::istream& in) {
  Scenario scenario;
  in >> scenario.transport >> scenario.credits.start_rate >> scenario.credits.start_weight;
  in >> scenario.seed >> scenario.until >> scenario.measure_from >> scenario.sample_every;
  const auto share = [](double value) { return value > 0 && value <= 1; };
  if (!in || !share(scenario.credits.start_rate) || !share(scenario.credits.start_weight) ||
      scenario.until <= 0 || scenario.sample_every < 0) {
    refuse("its first line");
  }
  return scenario;
}

struct Done {
  std::uint64_t events = 0, arrivals = 0, received = 0;
};

// What each flow has got so far, and what its transport allows it: a share, or a window.
void print_sample(const Wire& wire, const auto& transport) {
  std::printf("sample %" PRId64, wire.now);
  for (std::uint32_t flow = 0; flow < wire.flows.size(); ++flow) {
    std::printf(" %" PRId64 " %.6g", wire.flows[flow].delivered, transport.allowed(flow));
  }
  std::printf("\n");
}

void arrive(Wire& wire, std::uint32_t which, auto& transport, Done& done) {
  ++done.arrivals;
  const Packet packet = wire.network.packet(which);
  if (packet.hop < wire.flows[packet.flow].hops) {
    return wire.network.enqueue(wire.next_port(packet), which, wire.now);
  }
  ++done.received;
  wire.network.free(which);
  transport.receive(packet);
}

Done simulate(Wire& wire, const Scenario& scenario, auto& transport) {
  Done done;
  wire.events.push(wire.flows[0].start, Happens::kStart, 0);
  if (scenario.measure_from) wire.events.push(scenario.measure_from, Happens::kMeasure, 0);
  if (scenario.sample_every) wire.events.push(scenario.sample_every, Happens::kSample, 0);
  while (!wire.events.empty()) {
    const EventQueue::Event event = wire.events.pop();
    if (event.time > scenario.until) break;
    wire.now = event.time;
    ++done.events;
    const std::uint32_t which = event.which();
    switch (event.happens()) {
      case Happens::kArrival:
        arrive(wire, which, transport, done);
        break;
      case Happens::kPort:
        wire.network.woken(which, wire.now);
        break;
      case Happens::kTimer:
        transport.timer(which);
        break;
      case Happens::kStart:
        if (which + 1 < wire.flows.size()) {
          wire.events.push(wire.flows[which + 1].start, Happens::kStart, which + 1);
        }
        transport.start(which);
        break;
      case Happens::kSample:
        print_sample(wire, transport);
        wire.events.push(wire.now + scenario.sample_every, Happens::kSample, 0);
        break;
      case Happens::kMeasure:
        for (Port& port : wire.network.ports) port.restart(wire.now);
    }
  }
  return done;
}

void print(Wire& wire, const Done& done) {
  std::int64_t dropped = 0, dropped_credits = 0;
  for (Port& port : wire.network.ports) {
    port.waiting(wire.now, 0);
    const PortCounts& counts = port.counts;
    dropped += port.dropped;
    dropped_credits += port.dropped_credits;
    std::printf("port %" PRId64 " %" PRId64 " %" PRId64 " %.0f %" PRId64 " %" PRId64 " %" PRId64
                "\n",
                counts.sent_bytes, counts.sent_credits, counts.most_bytes, counts.byte_ps,
                port.dropped, port.dropped_credits, port.marked);
  }
  std::printf("end %" PRId64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64
              " %" PRIu32 "\n",
              wire.now, done.events, done.arrivals, wire.made, done.received, dropped,
              dropped_credits, wire.network.in_flight());
}

void print_flow(const Flow& flow, const ExpressPass::State& state) {
  std::printf("flow %" PRId64 " %" PRId64 " %" PRIu32 " %" PRIu32 " 0\n", flow.finished,
              flow.delivered, state.credits, state.wasted);
}

void print_flow(const Flow& flow, const Windowed::State& state) {
  std::printf("flow %" PRId64 " %" PRId64 " 0 0 %" PRIu32 "\n", flow.finished, flow.delivered,
              state.resent);
}

void run(Wire& wire, const Scenario& scenario, auto&& transport) {
  print(wire, simulate(wire, scenario, transport));
  for (std::uint32_t flow = 0; flow < wire.flows.size(); ++flow) {
    print_flow(wire.flows[flow], transport.state(flow));
  }
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  Scenario scenario = read_scenario(std::cin);
  Wire wire(scenario.seed);
  read_network(std::cin, wire);
  if (scenario.transport == "expresspass") {
    run(wire, scenario, ExpressPass(wire, scenario.credits));
  } else if (scenario.transport == "dctcp" || scenario.transport == "hull") {
    run(wire, scenario, Windowed(wire, Control::kMarks));
  } else if (scenario.transport == "dx") {
    run(wire, scenario, Windowed(wire, Control::kDelay));
  } else {
    refuse("there is no transport " + scenario.transport);
  }
}
