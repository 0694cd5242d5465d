// Frames a second through a ring: a bare one of elements alone, one that brings the bytes too, and
// as the module has it, every element checked, between two guests.
#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "load.h"

namespace load {

namespace {

constexpr uint32_t kCapacity = kDirectSizes.data;  // as that of two guests
constexpr size_t kFrame = 32;

// The least that a ring can be: two positions and elements, both sides polling, nothing checked.
// The bytes of an element, where it brings some, lie beside it as they do in an arena.
struct Bare {
  alignas(64) std::atomic<uint32_t> head;
  alignas(64) std::atomic<uint32_t> tail;
  alignas(64) Element elements[kCapacity];
  alignas(64) char bytes[kCapacity][kFrame];
  std::atomic<uint32_t> is_over;
};

void rest() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

template <bool kBrings>
void produce(Bare& ring, uint32_t batch, double seconds) {
  const char frame[kFrame] = {};
  uint32_t head = 0, tail = 0;
  const int64_t until = now_ns() + int64_t(seconds * 1e9);
  for (uint32_t n = 0; n % 1024 || now_ns() < until; ++n) {
    while (head + batch - tail > kCapacity) {
      tail = ring.tail.load(std::memory_order_acquire);
      if (head + batch - tail > kCapacity) rest();
    }
    for (uint32_t i = 0; i < batch; ++i, ++head) {
      if (kBrings) std::memcpy(ring.bytes[head % kCapacity], frame, kFrame);
      ring.elements[head % kCapacity] = {
          .op = Op::data, .slot = i, .value = head, .length = kFrame};
    }
    ring.head.store(head, std::memory_order_release);
  }
  ring.is_over = 1;
}

template <bool kBrings>
uint64_t consume(Bare& ring, uint32_t batch) {
  uint64_t taken = 0;
  int sum = 0;
  uint32_t head = 0, tail = 0;
  for (;;) {
    head = ring.head.load(std::memory_order_acquire);
    if (head == tail && ring.is_over && ring.head.load(std::memory_order_acquire) == head)
      return taken;
    if (head == tail) rest();
    while (tail != head) {
      const uint32_t end = tail + std::min(batch, head - tail);
      taken += end - tail;
      for (; tail != end; ++tail) {
        if (ring.elements[tail % kCapacity].value != tail) fail("an element was lost");
        if (kBrings) sum += ring.bytes[tail % kCapacity][0];
      }
      asm volatile("" : : "r"(sum));
      ring.tail.store(tail, std::memory_order_release);
    }
  }
}

template <bool kBrings>
void bare(uint32_t batch, double seconds) {
  void* memory =
      mmap(nullptr, sizeof(Bare), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Bare& ring = *new (memory) Bare{};
  Child producer([&] {
    pin(0);
    produce<kBrings>(ring, batch, seconds);
  });
  pin(1);
  const int64_t start = now_ns();
  const uint64_t taken = consume<kBrings>(ring, batch);
  print("frames_per_s", double(taken) / (double(now_ns() - start) * 1e-9));
}

void send_for(Guest& guest, uint32_t slot, uint32_t batch, double seconds) {
  char frame[kFrame] = {};
  const int64_t until = now_ns() + int64_t(seconds * 1e9);
  for (uint32_t n = 0; n % 1024 || now_ns() < until; ++n) {
    for (uint32_t i = 0; i < batch; ++i) {
      while (!guest.put_frame(slot, {frame, kFrame})) {
        guest.flush();
        guest.wait(100, 100'000);
        guest.poll([](const Event&) {});
      }
    }
    guest.flush();
  }
}

void module(const std::string& path, uint32_t batch, double seconds) {
  Listening receiver(path);
  Child producer([&] {
    pin(0);
    Guest guest(path);
    const uint32_t slot = connect_and_see(guest, receiver.port);
    send_for(guest, slot, batch, seconds);
    guest.close(slot);
    guest.detach();
  });
  pin(1);
  receiver.accept();
  const int64_t start = now_ns();
  uint64_t bytes = 0;
  for (bool is_over = false; !is_over;) {
    receiver.guest.wait(100, 100'000);
    receiver.guest.poll([&](const Event& event) {
      if (event.kind == Event::Kind::data) bytes += event.bytes.size();
      is_over |= event.kind == Event::Kind::end;
    });
  }
  if (bytes % kFrame) fail("a frame was not whole");
  print("frames_per_s", double(bytes / kFrame) / (double(now_ns() - start) * 1e-9));
}

}  // namespace

void rings(const std::string& path, const std::string& kind, int batch, double seconds) {
  if (kind == "bare") return bare<false>(uint32_t(batch), seconds);
  if (kind == "bytes") return bare<true>(uint32_t(batch), seconds);
  module(path, uint32_t(batch), seconds);
}

}  // namespace load
