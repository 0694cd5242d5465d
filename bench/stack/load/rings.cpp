// Frames a second through a ring: a bare one, and as the module has it between two guests. The same
// frames in each, of which every one is written and looked at.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "load.h"

namespace load {

namespace {

struct Frame {
  uint64_t number;
  uint64_t rest[3];
};

constexpr uint32_t kCapacity = kDirectSizes.arena_bytes / sizeof(Frame);
// Frames that two guests can have under way between them, in batches of so many.
uint32_t capacity(uint32_t batch) { return std::min(kDirectSizes.data * batch, kCapacity); }

void write(char* place, uint64_t number) {
  const Frame frame{number, {number, 1, 2}};
  std::memcpy(place, &frame, sizeof frame);
}
void look(const char* place, uint64_t number) {
  Frame frame;
  std::memcpy(&frame, place, sizeof frame);
  if (frame.number != number) fail("a frame was lost");
}

// The least that a ring can be: two positions, and elements that are the frames; both sides poll,
// and nothing is checked. It may ask for the lines it will write, as the module does.
struct Bare {
  alignas(64) std::atomic<uint32_t> head;
  alignas(64) std::atomic<uint32_t> tail;
  alignas(64) char frames[kCapacity][sizeof(Frame)];
  std::atomic<uint32_t> is_over;
};

void rest() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

void produce(Bare& ring, bool asks, uint32_t batch, double seconds) {
  constexpr uint32_t kAhead = 8;
  const uint32_t room = capacity(batch);
  uint32_t head = 0, tail = 0;
  const int64_t until = now_ns() + int64_t(seconds * 1e9);
  for (uint32_t n = 0; n % 1024 || now_ns() < until; ++n) {
    while (head + batch - tail > room) {
      tail = ring.tail.load(std::memory_order_acquire);
      if (head + batch - tail > room) rest();
    }
    for (uint32_t i = 0; i < batch; ++i, ++head) {
      if (asks) ask_for(ring.frames[(head + kAhead) & (room - 1)]);
      write(ring.frames[head & (room - 1)], head);
    }
    ring.head.store(head, std::memory_order_release);
  }
  ring.is_over = 1;
}

uint64_t consume(Bare& ring, uint32_t batch) {
  const uint32_t room = capacity(batch);
  uint64_t taken = 0;
  uint32_t head = 0, tail = 0;
  for (;;) {
    head = ring.head.load(std::memory_order_acquire);
    if (head == tail && ring.is_over && ring.head.load(std::memory_order_acquire) == head)
      return taken;
    if (head == tail) rest();
    while (tail != head) {
      const uint32_t end = tail + std::min(batch, head - tail);
      taken += end - tail;
      for (; tail != end; ++tail) look(ring.frames[tail & (room - 1)], tail);
      ring.tail.store(tail, std::memory_order_release);
    }
  }
}

void bare(bool asks, uint32_t batch, double seconds) {
  void* memory =
      mmap(nullptr, sizeof(Bare), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Bare& ring = *new (memory) Bare{};
  Child producer([&] {
    pin(0);
    produce(ring, asks, batch, seconds);
  });
  pin(1);
  const int64_t start = now_ns();
  const uint64_t taken = consume(ring, batch);
  print("frames_per_s", double(taken) / (double(now_ns() - start) * 1e-9));
}

void wait_for_room(Guest& guest) {
  guest.flush();
  guest.wait(100, 100'000);
  guest.poll([](const Event&) {});
}

// A batch written in place, as far as there is room in one piece.
void put_batch(Guest& guest, uint32_t slot, uint64_t first, uint32_t batch) {
  for (const uint64_t end = first + batch; first < end;) {
    const std::span<char> room = guest.room(slot, (end - first) * sizeof(Frame));
    if (room.empty()) wait_for_room(guest);
    for (size_t at = 0; at < room.size(); at += sizeof(Frame)) write(room.data() + at, first++);
    guest.put(slot, room.size());
  }
}

// A batch of a call for each frame.
void put_each(Guest& guest, uint32_t slot, uint64_t first, uint32_t batch) {
  char frame[sizeof(Frame)];
  for (uint32_t i = 0; i < batch; ++i) {
    write(frame, first + i);
    while (!guest.put_frame(slot, {frame, sizeof frame})) wait_for_room(guest);
  }
}

void module(const std::string& path, bool is_in_place, uint32_t batch, double seconds) {
  Listening receiver(path);
  Child producer([&] {
    pin(0);
    Guest guest(path);
    const uint32_t slot = connect_and_see(guest, receiver.port);
    const int64_t until = now_ns() + int64_t(seconds * 1e9);
    for (uint64_t n = 0; n % 1024 || now_ns() < until; ++n) {
      (is_in_place ? put_batch : put_each)(guest, slot, n * batch, batch);
      guest.flush();
    }
    guest.close(slot);
    guest.detach();
  });
  pin(1);
  receiver.accept();
  const int64_t start = now_ns();
  uint64_t frames = 0;
  for (bool is_over = false; !is_over;) {
    receiver.guest.wait(100, 100'000);
    receiver.guest.poll([&](const Event& event) {
      if (event.bytes.size() % sizeof(Frame)) fail("a frame was not whole");
      for (size_t at = 0; at < event.bytes.size(); at += sizeof(Frame))
        look(event.bytes.data() + at, frames++);
      is_over |= event.kind == Event::Kind::end;
    });
  }
  print("frames_per_s", double(frames) / (double(now_ns() - start) * 1e-9));
}

}  // namespace

void rings(const std::string& path, const std::string& kind, int batch, double seconds) {
  if (kind.starts_with("bare")) return bare(kind == "bare-asking", uint32_t(batch), seconds);
  module(path, kind == "in-place", uint32_t(batch), seconds);
}

}  // namespace load
