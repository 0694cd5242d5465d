// A guest that writes nonsense, or is killed, beside one that does not: `hostile PATH SEED CASES
// nonsense|kill`. Each case is a guest of its own. The daemon and the honest guest must go on,
// whatever it does: to the daemon's rings, over its socket, and in the memory that it shares with
// the honest guest. With `talk`, two that mean well, and look, sleep and are busy at random; with
// `leave`, two of which one leaves some of what it hears for later.
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "guest.h"

using namespace specedge::stack;

namespace {

struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t most) { return uint32_t(next() % most); }
  // Small, or at an edge, or anything.
  uint32_t number() {
    constexpr uint32_t edges[] = {0,          1,          0xffff,     0x10000,
                                  0x7fffffff, 0x80000000, 0xffffffff, kMaxSlots};
    const uint32_t how = below(4);
    return how < 2 ? below(8) : how == 2 ? edges[below(8)] : uint32_t(next());
  }
};

constexpr Address kLoopback = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
constexpr Sizes kSizes{.control = 64, .data = 64, .arena_bytes = 2 * kFrameBytes};

[[noreturn]] void fail(const char* what, uint64_t seed) {
  std::fprintf(stderr, "seed %llu: %s\n", (unsigned long long)seed, what);
  std::exit(1);
}

// Echoes to whoever comes, and talks to itself to see that all is well.
class Honest {
 public:
  explicit Honest(const std::string& path) : guest_(path) {
    listener_ = guest_.listen(kLoopback, 0);
    guest_.accept(listener_, 16);
    while (!port) work(100);
    slot_ = guest_.connect(kLoopback, port);
  }

  void work(int timeout_ms) {
    guest_.wait(timeout_ms);
    guest_.poll([&](const Event& event) { heard(event); });
  }

  // Whether what it says to itself still comes back.
  bool is_well() {
    const uint64_t before = echoed_;
    bool is_sent = false;
    for (int n = 0; n < 600; ++n) {
      if (!is_sent && is_connected_) is_sent = guest_.send_frame(slot_, "are you there?") == 14;
      work(50);
      if (is_lost_) return false;
      if (echoed_ >= before + 14) return true;
    }
    return false;
  }

  uint16_t port = 0;

 private:
  void heard(const Event& event) {
    switch (event.kind) {
      case Event::Kind::listening:
        port = event.port;
        break;
      case Event::Kind::connected:
        is_connected_ = true;
        break;
      case Event::Kind::data:
        if (event.slot == slot_)
          echoed_ += event.bytes.size();
        else
          guest_.send_frame(event.slot, event.bytes);
        break;
      case Event::Kind::end:
        guest_.close(event.slot);
        break;
      case Event::Kind::lost:
        is_lost_ = true;
        break;
      default:
        break;
    }
  }

  Guest guest_;
  uint32_t listener_ = 0, slot_ = 0;
  uint64_t echoed_ = 0;
  bool is_connected_ = false, is_lost_ = false;
};

class Hostile {
 public:
  Hostile(const std::string& path, Random& random, uint16_t port) : random_(random), port_(port) {
    socket_ = Descriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, path.c_str(), path.size());
    if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&name), sizeof name)) return;
    if (random_.below(8) == 0) {
      say();  // and is no guest
      return;
    }
    send_message(socket_.get(), {.kind = Kind::attach, .sizes = kSizes});
    while (!region_) {
      usleep(100);
      hear();
    }
    jobs_ = region_->producer(Region::Ring::job);
    sends_ = region_->producer(Region::Ring::send);
    completions_ = region_->consumer(Region::Ring::completion);
    receives_ = region_->consumer(Region::Ring::receive);
  }

  void act() {
    if (!region_) return;
    if (is_polite_ && random_.below(20)) {
      ask();
      send();
      ring(bell_.get());
      if (random_.below(3) == 0) read();
      return;
    }
    switch (random_.below(8)) {
      case 0:
        say();
        break;
      case 1:
        if (random_.below(2))
          overwrite(*region_, Region::Ring(random_.below(4)));
        else
          turn_phases(memory_of(*region_, kSizes), bytes_before_arenas(kSizes), bell_.get());
        break;
      case 2:
      case 3:
        hear();
        if (direct_) spoil_direct();
        break;
      case 4:
        run_ahead(random_.below(2) ? jobs_ : sends_);
        break;
      default:
        ask();
        send();
    }
    ring(bell_.get());
  }

 private:
  // Make room for what it is told, unread.
  void read() {
    hear();
    for (const auto which : {Region::Ring::completion, Region::Ring::receive}) {
      Consumer& ring = which == Region::Ring::completion ? completions_ : receives_;
      while (ring.has_next()) ring.take();
      ring.release();
    }
  }

  // One message of any kind and text, sometimes with descriptors that nobody wants.
  void say() {
    Header header{.kind = Kind(random_.below(12)), .slot = random_.number()};
    header.version = random_.below(4) ? kVersion : random_.number();
    header.sizes = {random_.number(), random_.number(), random_.number()};
    if (header.kind == Kind::move) header.kind = Kind::status;  // it would be obeyed
    constexpr const char* texts[] = {"", "server\n", "client\nhere\n", "client\n\npinned", "x"};
    const int descriptors[] = {0, 0, 0};
    const size_t count = random_.below(3) ? 0 : 3;
    send_message(socket_.get(), header, texts[random_.below(5)], {descriptors, count});
    if (random_.below(8) == 0) ::send(socket_.get(), texts, random_.below(40), MSG_NOSIGNAL);
  }

  void hear() {
    Message message;
    const Received received = receive_message(socket_.get(), message, true);
    if (received == Received::gone) std::exit(3);
    if (received != Received::message || message.descriptors.size() != 3) return;
    if (message.header.kind == Kind::attached) {
      region_ = std::make_unique<Region>(message.descriptors[0].get(), kSizes);
      bell_ = std::move(message.descriptors[1]);
    } else if (message.header.kind == Kind::direct) {
      direct_ = std::make_unique<Region>(message.descriptors[0].get(), kDirectSizes);
      peer_bell_ = std::move(message.descriptors[2]);
    }
  }

  // A slot that it may use, or one that it may not.
  uint32_t fresh_slot() { return is_polite_ ? next_slot_++ : random_.number(); }
  uint32_t known_slot() {
    return is_polite_ && next_slot_ ? random_.below(next_slot_) : random_.number();
  }

  // Elements that could be meant, in any order; one who is polite keeps the rules for long.
  void ask() {
    constexpr Op ops[] = {Op::connect, Op::connect, Op::listen, Op::accept,
                          Op::accept,  Op::abort,   Op::pause,  Op::resume};
    for (uint32_t n = random_.below(12); n && jobs_.has_room(); --n) {
      Element job{.op = is_polite_ ? ops[random_.below(8)] : Op(random_.below(10))};
      const bool makes = job.op == Op::connect || job.op == Op::listen || job.op == Op::accept;
      if (job.op == Op::accept && !ports_) continue;
      job.flags = random_.below(16) ? 0 : kTls;
      job.value = is_polite_ && job.op == Op::accept ? port_slot_ : random_.number();
      job.slot = makes ? fresh_slot() : known_slot();
      job.port = random_.below(8) ? port_ : uint16_t(random_.next());
      job.address = kLoopback;
      if (job.op == Op::listen) {
        job.port = 0;
        port_slot_ = job.slot;
        ++ports_;
      }
      if (random_.below(16) == 0) job.address[random_.below(16)] ^= 255;
      jobs_.put(job);
    }
    jobs_.publish();
  }

  void send() {
    constexpr Op ops[] = {Op::data, Op::data, Op::data, Op::data, Op::data, Op::end, Op::closed};
    for (uint32_t n = random_.below(12); n && sends_.has_room(); --n) {
      Element sent{.op = is_polite_ ? ops[random_.below(7)] : Op(random_.next())};
      sent.port = uint16_t(is_polite_ ? 0 : random_.below(2));
      sent.slot = known_slot();
      sent.value = is_polite_ ? random_.below(kFrameBytes) : random_.number();
      sent.length = is_polite_ ? 1 + random_.below(kFrameBytes) : random_.number();
      if (random_.below(4) == 0) {
        sent.flags = kInsideFlag;
        if (is_polite_) sent.length = 1 + random_.below(kInsideBytes + !random_.below(32));
      }
      sends_.put(sent);
    }
    sends_.publish();
  }

  // Where a memory begins, and how much of it is rings.
  static size_t bytes_before_arenas(Sizes sizes) {
    return Region::bytes(sizes) - 2 * size_t(sizes.arena_bytes);
  }
  static char* memory_of(const Region& region, Sizes sizes) {
    return region.arena(Region::Ring::send) - bytes_before_arenas(sizes);
  }

  // Any bytes over a ring's positions and elements.
  void overwrite(Region& region, Region::Ring which) {
    char* memory = memory_of(region, kSizes);
    const size_t at[] = {0, 4096, 8192, 12288};
    for (uint32_t n = random_.below(20); n; --n) {
      const uint32_t word = random_.number();
      const size_t offset = at[int(which)] + 4 * random_.below(random_.below(2) ? 36 : 700);
      std::memcpy(memory + std::min(offset, bytes_before_arenas(kSizes) - 4), &word, 4);
    }
  }

  // What says that elements are there: taken back, put on, or changed for ever while others look.
  void turn_phases(char* memory, size_t bytes, int bell) {
    const auto turn = [&](size_t cell) { memory[cell * sizeof(Cell) + 1] ^= char(kPhaseFlag); };
    const uint32_t cells = uint32_t(bytes / sizeof(Cell));
    for (uint32_t n = 1 + random_.below(100); n; --n) {
      const uint32_t first = random_.below(cells), count = 1 + random_.below(cells - first);
      for (uint32_t i = 0; i < (random_.below(2) ? count : 1); ++i) turn(first + i);
      if (n % 8 == 0) ring(bell);
      if (random_.below(2)) turn(first);  // back at once
    }
  }

  // Elements over those that nobody has taken yet, laps ahead.
  void run_ahead(Producer& producer) {
    for (uint32_t n = random_.below(4 * producer.capacity()); n; --n) {
      producer.put({.op = Op(random_.below(14)),
                    .port = uint16_t(random_.below(2)),
                    .slot = known_slot(),
                    .value = random_.number(),
                    .length = random_.number()});
      if (random_.below(16) == 0) producer.publish();
    }
    producer.publish();
  }

  void spoil_direct() {
    char* memory = memory_of(*direct_, kDirectSizes);
    const size_t bytes = bytes_before_arenas(kDirectSizes);
    switch (random_.below(3)) {
      case 0:
        turn_phases(memory, bytes, peer_bell_.get());
        break;
      case 1: {
        Producer ahead = direct_->producer(Region::Ring(2 + random_.below(2)));
        run_ahead(ahead);
        break;
      }
      default:
        for (uint32_t n = 1 + random_.below(40); n; --n) {
          const uint32_t word = random_.number();
          std::memcpy(memory + 4 * random_.below(uint32_t(bytes / 4)), &word, 4);
        }
    }
    ring(peer_bell_.get());
  }

  Random& random_;
  uint16_t port_;
  Descriptor socket_, bell_, peer_bell_;
  std::unique_ptr<Region> region_, direct_;
  Producer jobs_, sends_;
  Consumer completions_, receives_;
  const bool is_polite_ = random_.below(4) != 0;
  uint32_t next_slot_ = 0, ports_ = 0, port_slot_ = 0;
};

// Connects, sends and parts as a good guest does, for ever: until it is killed.
[[noreturn]] void live(const std::string& path, Random& random, uint16_t port) {
  const std::string bytes(3 * kFrameBytes, 'x');
  for (;;) {
    Guest guest(path, kSizes);
    std::vector<uint32_t> slots;
    for (uint32_t n = 1 + random.below(4); n; --n) slots.push_back(guest.connect(kLoopback, port));
    for (uint32_t n = random.below(30); n; --n) {
      const uint32_t slot = slots[random.below(uint32_t(slots.size()))];
      guest.send_frame(slot,
                       std::string_view(bytes).substr(0, random.below(uint32_t(bytes.size()))));
      if (random.below(8) == 0) guest.end(slot);
      if (random.below(8) == 0) guest.abort(slot);
      guest.wait(1);
      guest.poll([](const Event&) {});
    }
  }
}

[[noreturn]] void write_nonsense(const std::string& path, Random& random, uint16_t port) {
  Hostile hostile(path, random, port);
  for (uint32_t acts = random.below(40); acts; --acts) {
    hostile.act();
    if (random.below(4) == 0) usleep(random.below(300));
  }
  _exit(0);
}

// Says so much and hears as much, in pieces; of no bell that it waits for may one be lost.
void talk(Guest& guest, uint32_t to_say, uint32_t to_hear, Random random) {
  constexpr uint32_t kNone = ~0u;
  uint32_t slot = kNone;  // until one stands
  const auto byte_at = [](uint32_t at) { return char(at % 251); };
  std::string piece;
  // As put_frame, but perhaps not all of what there is room for.
  const auto in_place = [&](const std::string& all) {
    size_t taken = 0;
    while (taken < all.size()) {
      std::span<char> room = guest.room(slot, all.size() - taken);
      if (room.empty()) break;
      if (random.below(4) == 0) room = room.first(random.below(uint32_t(room.size()) + 1));
      std::copy_n(all.data() + taken, room.size(), room.data());
      guest.put(slot, room.size());
      taken += room.size();
    }
    return taken;
  };
  for (uint32_t said = 0, heard = 0; said < to_say || heard < to_hear;) {
    bool is_blocked = said == to_say || slot == kNone;
    for (uint32_t n = random.below(8); n && !is_blocked; --n) {
      const uint32_t most = random.below(50) ? 200 : 3 * kFrameBytes;
      piece.resize(std::min(1 + random.below(most), to_say - said));
      for (uint32_t at = 0; at < piece.size(); ++at) piece[at] = byte_at(said + at);
      const size_t taken = random.below(2) ? guest.put_frame(slot, piece) : in_place(piece);
      said += uint32_t(taken);
      is_blocked = said == to_say || taken < piece.size();
    }
    guest.flush();
    if (random.below(8) == 0) usleep(random.below(500));
    if (heard < to_hear || said < to_say)
      guest.wait(is_blocked ? -1 : 0, random.below(3) * random.below(50'000));
    guest.poll([&](const Event& event) {
      if (event.kind == Event::Kind::connected || event.kind == Event::Kind::accepted)
        slot = event.slot;
      if (event.kind != Event::Kind::data) return;
      for (const char byte : event.bytes)
        if (byte != byte_at(heard++)) fail("a byte is not what was said", random.state);
    });
  }
}

void talk(const std::string& path, uint64_t seed) {
  constexpr uint32_t kMuch = 8 << 20, kLittle = 16 << 10;  // so that one waits for room alone
  alarm(60);
  Guest guest(path);
  const uint32_t listener = guest.listen(kLoopback, 0);
  guest.accept(listener, 1);
  uint16_t port = 0;
  while (!port) {
    guest.wait(1000);
    guest.poll([&](const Event& event) { port = event.port; });
  }
  const pid_t child = fork();
  if (!child) {
    alarm(60);
    Guest other(path);
    other.connect(kLoopback, port);
    talk(other, kLittle, kMuch, {~seed});
    other.detach();
    _exit(0);
  }
  talk(guest, kMuch, kLittle, {seed});
  int status = 0;
  waitpid(child, &status, 0);
  if (status) fail("the other has failed", seed);
}

Event until(Guest& guest, Event::Kind kind) {
  Event found;
  for (bool has_come = false; !has_come;) {
    guest.wait(1000);
    guest.poll([&](const Event& event) {
      if (event.kind != kind) return;
      found = event;
      has_come = true;
    });
  }
  return found;
}

// More comes than is read at a time, while the guest is awake, or is not: what is left is heard
// without another word of who has said it.
void leave(const std::string& path, bool is_awake) {
  const int64_t spin_ns = is_awake ? 1'000'000'000 : 0;
  alarm(60);
  Guest hears(path), says(path);
  const uint32_t listener = hears.listen(kLoopback, 0);
  const uint16_t port = until(hears, Event::Kind::listening).port;
  hears.accept(listener, 1);
  until(hears, Event::Kind::listening);
  says.connect(kLoopback, port);
  const uint32_t slot = until(says, Event::Kind::connected).slot;
  until(hears, Event::Kind::accepted);
  uint32_t said = uint32_t(says.send_frame(slot, "!")), heard = 0;
  const auto poll = [&] {
    hears.poll([&](const Event& event) { heard += uint32_t(event.bytes.size()); });
  };
  hears.wait(-1, spin_ns);
  poll();
  poll();  // whose bell has rung is known by now
  while (says.send_frame(slot, "!")) ++said;
  hears.wait(-1, spin_ns);
  poll();
  if (heard == said) fail("all was read at a time", is_awake);
  hears.wait(-1);
  poll();
  if (heard != said) fail("what was left is not heard", is_awake);
}

}  // namespace

int main(int, char** argv) {
  const std::string path = argv[1];
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  const bool talks = !std::strcmp(argv[4], "talk");
  if (talks || !std::strcmp(argv[4], "leave")) {
    for (uint64_t n = seed; n < seed + std::strtoull(argv[3], nullptr, 10); ++n)
      talks ? talk(path, n) : leave(path, n % 2);
    std::printf("%s cases\n", argv[3]);
    return 0;
  }
  const bool is_killed = !std::strcmp(argv[4], "kill");
  Honest honest(path);
  for (int n = 0; n < std::atoi(argv[3]); ++n) {
    Random random{seed + uint64_t(n)};
    // In a process of its own, which may end as it likes.
    const pid_t child = fork();
    if (!child && is_killed) live(path, random, honest.port);
    if (!child) write_nonsense(path, random, honest.port);
    for (int waits = 0; waits < 3; ++waits) honest.work(1);
    if (is_killed) {
      usleep(random.below(4000));
      kill(child, SIGKILL);
    }
    if (n % 8 == 0 && !honest.is_well()) fail("the honest guest is not served", seed + uint64_t(n));
    while (waitpid(-1, nullptr, is_killed ? 0 : WNOHANG) > 0 && !is_killed) continue;
  }
  if (!honest.is_well()) fail("the honest guest is not served at the end", seed);
  std::printf("%s cases\n", argv[3]);
  return 0;
}
