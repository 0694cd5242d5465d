// Two processes of one host: how long a message and its answer take, and how many bytes pass.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>

#include "load.h"

namespace load {

namespace {

constexpr size_t kMessage = 32;

// What came is looked at, by every kind alike: a cache line at a time.
void read_through(std::string_view bytes) {
  unsigned sum = 0;
  for (size_t at = 0; at < bytes.size(); at += 64) sum += uint8_t(bytes[at]);
  asm volatile("" : : "r"(sum));
}

// One end of something that messages go by.
class End {
 public:
  virtual ~End() = default;
  virtual void send(const char* data, size_t size) = 0;  // all of it
  virtual bool receive(size_t size) = 0;                 // so many bytes; false: the end
};

class StreamEnd : public End {
 public:
  explicit StreamEnd(Descriptor socket) : socket_(std::move(socket)) {}
  void send(const char* data, size_t size) override {
    while (size) {
      const ssize_t taken = ::send(socket_.get(), data, size, MSG_NOSIGNAL);
      if (taken <= 0) fail("the stream broke");
      data += taken;
      size -= size_t(taken);
    }
  }
  bool receive(size_t size) override {
    static char buffer[1 << 18];
    while (size) {
      const ssize_t got = recv(socket_.get(), buffer, std::min(size, sizeof buffer), 0);
      if (got <= 0) return false;
      read_through({buffer, size_t(got)});
      size -= size_t(got);
    }
    return true;
  }

 private:
  Descriptor socket_;
};

class BellEnd : public End {
 public:
  BellEnd(int mine, int theirs) : mine_(mine), theirs_(theirs) {}
  void send(const char*, size_t) override { ring(theirs_); }
  bool receive(size_t) override {
    uint64_t count;
    return read(mine_, &count, sizeof count) == sizeof count && count < (1 << 20);
  }

 private:
  int mine_, theirs_;
};

// The least that two processes can do: a word each, in a cache line of its own, that the other
// looks at.
struct Flags {
  alignas(64) std::atomic<uint32_t> count[2][16];
};
constexpr uint32_t kOver = ~0u;

class FlagEnd : public End {
 public:
  FlagEnd(Flags& flags, int mine) : mine_(flags.count[mine][0]), theirs_(flags.count[!mine][0]) {}
  void send(const char*, size_t) override { mine_.store(++sent_, std::memory_order_release); }
  bool receive(size_t) override {
    uint32_t now;
    while ((now = theirs_.load(std::memory_order_acquire)) == received_) {
    }
    return (received_ = now) != kOver;
  }
  void end() { mine_ = kOver; }

 private:
  std::atomic<uint32_t>&mine_, &theirs_;
  uint32_t sent_ = 0, received_ = 0;
};

class GuestEnd : public End {
 public:
  GuestEnd(Guest& guest, uint32_t slot, int64_t spin_ns)
      : guest_(guest), slot_(slot), spin_ns_(spin_ns) {}
  void send(const char* data, size_t size) override {
    while (size) {
      const size_t taken = guest_.send_frame(slot_, {data, size});
      data += taken;
      size -= taken;
      if (size) work();
    }
  }
  bool receive(size_t size) override {
    while (got_ < size && !is_over_) work();
    if (got_ < size) return false;
    got_ -= size;
    return true;
  }

 private:
  void work() {
    guest_.wait(1000, spin_ns_);
    guest_.poll([&](const Event& event) {
      if (event.kind == Event::Kind::data) {
        read_through(event.bytes);
        got_ += event.bytes.size();
      }
      is_over_ |= event.kind == Event::Kind::end || event.kind == Event::Kind::closed;
    });
  }

  Guest& guest_;
  uint32_t slot_;
  int64_t spin_ns_;
  size_t got_ = 0;
  bool is_over_ = false;
};

// Runs one side in this process, the other in a child.
void pair(const std::string& path, const std::string& kind, bool is_pinned,
          const std::function<void(End&)>& here, const std::function<void(End&)>& there) {
  const int64_t spin_ns = kind == "shm-polling" ? 1'000'000'000 : kind == "shm" ? 20'000 : 0;
  const auto settle = [&](int cpu) {
    if (is_pinned) pin(cpu);
  };
  if (kind.starts_with("shm")) {
    Listening listening(path);
    Child other([&] {
      settle(0);
      Guest guest(path);
      const uint32_t slot = connect_and_see(guest, listening.port);
      GuestEnd end(guest, slot, spin_ns);
      there(end);
      guest.close(slot);
      guest.detach();
    });
    settle(1);
    GuestEnd end(listening.guest, listening.accept(), spin_ns);
    return here(end);
  }
  if (kind == "eventfd") {
    const int bells[] = {eventfd(0, 0), eventfd(0, 0)};
    Child other([&] {
      BellEnd end(bells[0], bells[1]);
      there(end);
      const uint64_t over = 1 << 20;
      if (write(bells[1], &over, sizeof over) != sizeof over) fail("a bell");
    });
    BellEnd end(bells[1], bells[0]);
    return here(end);
  }
  if (kind == "flag") {
    void* memory =
        mmap(nullptr, sizeof(Flags), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    Flags& flags = *new (memory) Flags{};
    Child other([&] {
      settle(0);
      FlagEnd end(flags, 0);
      there(end);
      end.end();
    });
    settle(1);
    FlagEnd end(flags, 1);
    return here(end);
  }
  int ends[2];
  if (kind == "unix") {
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) fail("a socket pair");
  } else {
    Descriptor listener(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof name;
    auto* address = reinterpret_cast<sockaddr*>(&name);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener.get(), address, size) || listen(listener.get(), 1) ||
        getsockname(listener.get(), address, &size) || connect(ends[0], address, size))
      fail("a TCP connection");
    ends[1] = accept(listener.get(), nullptr, nullptr);
    const int yes = 1;
    for (const int end : ends) setsockopt(end, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  }
  Descriptor first(ends[0]), second(ends[1]);
  Child other([&] {
    first = Descriptor();
    StreamEnd end(std::move(second));
    there(end);
  });
  second = Descriptor();
  StreamEnd end(std::move(first));
  here(end);
}

}  // namespace

void round_trips(const std::string& path, const std::string& kind, double seconds) {
  const std::array<char, kMessage> message{};
  std::vector<int64_t> times;
  const auto ask = [&](End& end) {
    const int64_t until = now_ns() + int64_t(seconds * 1e9);
    for (int64_t start = now_ns(); start < until || times.size() < 100;) {
      end.send(message.data(), kMessage);
      if (!end.receive(kMessage)) fail("no answer came");
      const int64_t now = now_ns();
      times.push_back(now - start);
      start = now;
    }
  };
  double used_s = 0;
  const auto answer = [&](End& end) {
    while (end.receive(kMessage)) end.send(message.data(), kMessage);
  };
  // The child asks for so long; this process answers.
  const bool is_pinned = kind == "shm-polling" || kind == "flag";
  pair(path, kind, is_pinned, answer, [&](End& end) {
    const double before_s = cpu_s();
    ask(end);
    used_s = cpu_s() - before_s;
    std::sort(times.begin(), times.end());
    print("round_trip_us", double(times[times.size() / 2]) * 1e-3);
    print("p99_us", double(times[times.size() * 99 / 100]) * 1e-3);
    print("cpu_us", used_s * 1e6 / double(times.size()));
  });
}

void stream(const std::string& path, const std::string& kind, size_t bytes, double seconds) {
  const std::string message(bytes, 'x');
  uint64_t received = 0;
  const int64_t start = now_ns();
  double used_s = 0;
  pair(
      path, kind, false,
      [&](End& end) {
        const double before_s = cpu_s();
        while (end.receive(bytes)) received += bytes;
        used_s = cpu_s() - before_s;
      },
      [&](End& end) {
        const int64_t until = now_ns() + int64_t(seconds * 1e9);
        const double before_s = cpu_s();
        uint64_t sent = 0;
        for (uint32_t n = 0; n % 16 || now_ns() < until; ++n, sent += bytes)
          end.send(message.data(), bytes);
        print("sender_cpu_ns_per_byte", (cpu_s() - before_s) * 1e9 / double(sent));
      });
  print("bytes_per_s", double(received) / (double(now_ns() - start) * 1e-9));
  print("receiver_cpu_ns_per_byte", used_s * 1e9 / double(received));
}

}  // namespace load
