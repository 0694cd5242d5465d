// What asks, over many connections: each has one message under way, or they leave at a rate.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <deque>

#include "load.h"

namespace load {

namespace {

// Which connection asks when, and how long answers took. All connections ask at once, or, with a
// rate, one after the other at random intervals.
class Asking {
 public:
  Asking(int connections, double seconds, size_t bytes, double rate)
      : bytes_(bytes),
        rate_(rate),
        start_ns_(now_ns()),
        asked_ns_(connections),
        left_(connections) {
    until_ns_ = start_ns_ + int64_t(seconds * 1e9);
    due_ns_ = start_ns_;
    for (int number = 0; number < connections; ++number) idle_.push_back(number);
  }
  bool is_over() const { return now_ns() >= until_ns_; }

  // The next that asks now; -1: none does.
  int next() {
    const int64_t now = now_ns();
    if (idle_.empty() || (rate_ && now < due_ns_)) return -1;
    if (rate_) due_ns_ += int64_t(-std::log(1 - drand48()) / rate_ * 1e9);
    const int number = idle_.front();
    idle_.pop_front();
    asked_ns_[number] = now;
    left_[number] = bytes_;
    return number;
  }
  void answered(int number, size_t bytes) {
    if (bytes > left_[number]) fail("an answer is too long");
    if (left_[number] -= bytes) return;
    times_.push_back(now_ns() - asked_ns_[number]);
    idle_.push_back(number);
  }
  // How long to wait for answers before the next one has to ask.
  timespec pause() const {
    int64_t until = until_ns_;
    if (rate_ && !idle_.empty()) until = std::min(until, due_ns_);
    const int64_t left = std::max<int64_t>(0, until - now_ns());
    return {left / 1'000'000'000, left % 1'000'000'000};
  }
  void report() {
    if (times_.empty()) fail("no answer came");
    std::sort(times_.begin(), times_.end());
    print("requests_per_s", double(times_.size()) / (double(now_ns() - start_ns_) * 1e-9));
    print("p50_us", double(times_[times_.size() / 2]) * 1e-3);
    print("p99_us", double(times_[times_.size() * 99 / 100]) * 1e-3);
    print("requests", double(times_.size()));
  }

 private:
  size_t bytes_;
  double rate_;
  int64_t start_ns_, until_ns_, due_ns_;
  std::vector<int64_t> asked_ns_, times_;
  std::vector<size_t> left_;
  std::deque<int> idle_;
};

int connect_to(int port) {
  const int made = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(uint16_t(port));
  if (connect(made, reinterpret_cast<sockaddr*>(&name), sizeof name)) fail("no connection");
  const int yes = 1;
  setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  return made;
}

}  // namespace

void requests(int port, int connections, double seconds, size_t bytes, double rate) {
  const Descriptor epoll(epoll_create1(0));
  std::vector<Descriptor> sockets;
  for (int number = 0; number < connections; ++number) {
    sockets.emplace_back(connect_to(port));
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u32 = uint32_t(number);
    epoll_ctl(epoll.get(), EPOLL_CTL_ADD, sockets.back().get(), &event);
  }
  const std::string message(bytes, 'x');
  std::vector<char> buffer(1 << 16);
  epoll_event events[256];
  Asking asking(connections, seconds, bytes, rate);
  while (!asking.is_over()) {
    for (int number; (number = asking.next()) >= 0;)
      if (send(sockets[number].get(), message.data(), bytes, MSG_NOSIGNAL) != ssize_t(bytes))
        fail("the server is gone");
    const timespec pause = asking.pause();
    const int count = epoll_pwait2(epoll.get(), events, 256, &pause, nullptr);
    for (int i = 0; i < count; ++i) {
      const int number = int(events[i].data.u32);
      const ssize_t got = recv(sockets[number].get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got <= 0) fail("the server is gone");
      asking.answered(number, size_t(got));
    }
  }
  asking.report();
  print("cpu_s", cpu_s());
}

void guest_requests(const std::string& path, int port, int connections, double seconds,
                    size_t bytes, double rate) {
  Guest guest(path);
  std::vector<uint32_t> slots;
  for (int number = 0; number < connections; ++number)
    slots.push_back(connect(guest, uint16_t(port)));
  std::vector<int> number_of(slots.size() + 1);
  number_of.resize(*std::max_element(slots.begin(), slots.end()) + 1);
  for (int number = 0; number < connections; ++number) number_of[slots[number]] = number;
  const std::string message(bytes, 'x');
  const Descriptor epoll(epoll_create1(0));
  epoll_event event{};
  event.events = EPOLLIN;
  epoll_ctl(epoll.get(), EPOLL_CTL_ADD, guest.descriptor(), &event);
  const double before_s = cpu_s();
  Asking asking(connections, seconds, bytes, rate);
  while (!asking.is_over()) {
    for (int number; (number = asking.next()) >= 0;)
      if (guest.put_frame(slots[number], message) != bytes) fail("no room");
    guest.flush();
    const timespec pause = asking.pause();
    epoll_pwait2(epoll.get(), &event, 1, &pause, nullptr);
    guest.poll([&](const Event& came) {
      if (came.kind == Event::Kind::data)
        asking.answered(number_of[came.slot], came.bytes.size());
      else if (came.kind != Event::Kind::writable)
        fail("the server is gone");
    });
  }
  asking.report();
  print("cpu_s", cpu_s() - before_s);
}

void flood(const std::string& path, int port, int connections) {
  Guest guest(path);
  std::vector<uint32_t> slots;
  for (int number = 0; number < connections; ++number)
    slots.push_back(connect(guest, uint16_t(port)));
  const std::string frame(16 << 10, 'x');
  print("connected", connections);
  std::fflush(stdout);
  const auto send = [&](uint32_t slot) {
    while (guest.send_frame(slot, frame) == frame.size()) {
    }
  };
  for (const uint32_t slot : slots) send(slot);
  for (;;) {  // until it is ended
    guest.wait(-1);
    guest.poll([&](const Event& event) {
      if (event.kind == Event::Kind::writable) send(event.slot);
      if (event.kind == Event::Kind::lost) std::exit(0);
    });
  }
}

}  // namespace load
