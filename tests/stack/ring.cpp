// Two threads and a ring of bytes between them: `ring SEED BURSTS`. What is put comes out once, in
// order and whole, however it is shown together, over many laps of the ring and of its arena, while
// both look or sleep at random; of no bell that one waits for may one be lost.
#include "ring.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "messages.h"

using namespace specedge::stack;

namespace {

constexpr uint32_t kCapacity = 16, kArenaBytes = 2 * kFrameBytes;

struct Random {
  uint64_t state;
  uint32_t below(uint32_t most) {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return uint32_t((z ^ (z >> 31)) % most);
  }
};

struct Memory {
  RingHeader header;
  Cell cells[kCapacity];
  char arena[kArenaBytes];
};

void expect(bool is_so, const char* what) {
  if (is_so) return;
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(1);
}

// A bell of its own for each side; it sleeps until the other has rung.
struct Bells {
  int producer = make_bell(), consumer = make_bell();
};
void sleep_until_rung(int bell) {
  pollfd rung{bell, POLLIN, 0};
  uint64_t count;
  while (read(bell, &count, sizeof count) != sizeof count) poll(&rung, 1, -1);
}

char byte_at(uint64_t at) { return char(at % 251); }

void produce(Memory& memory, Bells bells, Random random, uint32_t bursts) {
  DataProducer ring({&memory.header, memory.cells, kCapacity, memory.arena}, kArenaBytes);
  std::vector<char> piece(kFrameBytes);
  uint64_t said = 0;
  uint32_t controls = 0;
  const auto show = [&] {
    if (ring.publish()) ::ring(bells.consumer);
  };
  // At least one byte, or room for an element.
  const auto room = [&](uint32_t wanted) {
    uint32_t found;
    while (!(found = ring.room(wanted))) {
      show();
      ring.want_room();
      if (!ring.room(wanted)) sleep_until_rung(bells.producer);
    }
    return found;
  };
  while (bursts--) {
    for (uint32_t n = random.below(2 * kCapacity); n; --n) {
      const uint32_t length = room(1 + random.below(random.below(8) ? 100 : kFrameBytes));
      if (random.below(4) == 0) {
        ring.put_control({.op = Op::sent, .slot = controls++, .address = {uint8_t(controls)}});
        continue;
      }
      const bool is_in_place = random.below(2);
      char* to = is_in_place ? ring.place() : piece.data();
      for (uint32_t i = 0; i < length; ++i) to[i] = byte_at(said++);
      if (!is_in_place) ring.fill(piece.data(), length);
      ring.put_data(random.below(2), length);
    }
    show();
  }
  room(1);
  ring.put_control({.op = Op::end, .slot = controls, .value = uint32_t(said)});
  show();
}

void consume(Memory& memory, Bells bells, Random random) {
  DataConsumer ring({&memory.header, memory.cells, kCapacity}, memory.arena, kArenaBytes);
  uint64_t heard = 0, insides = 0, outsides = 0;
  uint32_t controls = 0;
  for (bool is_over = false; !is_over;) {
    for (uint32_t n = 1 + random.below(kCapacity); n && ring.has_next(); --n) {
      const Element element = ring.peek();
      if (element.op == Op::data) {
        const std::string_view bytes = ring.bytes(element);
        expect(bytes.size() == element.length, "its bytes are not where it says");
        for (const char byte : bytes)
          expect(byte == byte_at(heard++), "a byte is not what was put");
        const char* cells = reinterpret_cast<const char*>(memory.cells);
        const bool is_inside = bytes.data() >= cells && bytes.data() < cells + sizeof memory.cells;
        expect(is_inside == (bytes.size() <= kInsideBytes), "short pieces alone are in the ring");
        ++(is_inside ? insides : outsides);
      } else {
        is_over = element.op == Op::end;
        expect(element.slot == controls, "an element is not the next that was put");
        expect(is_over || element.address == Address{uint8_t(++controls)}, "it is not whole");
        expect(!is_over || element.value == uint32_t(heard), "bytes were lost");
      }
      ring.take();
    }
    if (ring.release()) ::ring(bells.producer);
    if (is_over || ring.has_next()) continue;
    ring.set_awake(random.below(2) && passes_others_barriers());
    for (uint32_t looks = random.below(1000); looks && !ring.has_next(); --looks) continue;
    barrier();
    if (ring.is_waited_for()) ::ring(bells.producer);
    ring.set_awake(false);
    barrier_for_all();
    if (!ring.has_next()) sleep_until_rung(bells.consumer);
  }
  expect(insides && outsides, "both kinds of pieces come");
}

// Wherever a piece goes, all of it gets there and nothing beside it, by each of the ways to copy.
void look_at_copies() {
  constexpr size_t kEdge = 64;
  std::vector<char> from(4096 + kEdge), to(from.size() + 2 * kEdge);
  for (size_t i = 0; i < from.size(); ++i) from[i] = byte_at(i);
  for (size_t offset = 0; offset < kEdge; ++offset) {
    Copier copier;
    for (size_t n = 0; n < 2 * kEdge; ++n) {
      const size_t length = 4095 + n / 2;  // the first two turns of a copier try one way each
      if (n % 2 == 0) copier = {};
      std::fill(to.begin(), to.end(), '!');
      copier(to.data() + offset, from.data(), length);
      expect(std::equal(from.begin(), from.begin() + long(length), to.begin() + long(offset)),
             "a byte was copied wrong");
      const auto is_free = [](char byte) { return byte == '!'; };
      expect(std::all_of(to.begin(), to.begin() + long(offset), is_free) &&
                 std::all_of(to.begin() + long(offset + length), to.end(), is_free),
             "it was copied over an edge");
    }
  }
}

// Who sees what was written after a piece sees all of the piece.
void look_at_order() {
  constexpr uint32_t kPieces = 5000;
  alignas(64) static char place[4096 + 64];
  std::atomic<uint32_t> shown = 0, seen = 0;
  const auto wait_for = [](const std::atomic<uint32_t>& count, uint32_t piece) {
    while (count != piece) std::this_thread::yield();
  };
  std::thread reader([&] {
    for (uint32_t piece = 1; piece <= kPieces; ++piece) {
      wait_for(shown, piece);
      for (size_t left = 4096 + 16 * (piece % 4); left--;)
        expect(place[left] == char(piece), "a piece was shown before it was there");
      seen = piece;
    }
  });
  for (uint32_t piece = 1; piece <= kPieces; ++piece) {
    const std::vector<char> from(4096 + 16 * (piece % 4), char(piece));
    Copier()(place, from.data(), from.size());
    shown.store(piece, std::memory_order_release);
    wait_for(seen, piece);
  }
  reader.join();
}

// Whatever an element says, its bytes are those of its own place or of the arena, or there are
// none.
void look_at_edges(Memory& memory) {
  constexpr uint32_t edges[] = {0,           1,
                                47,          48,
                                49,          kFrameBytes - 1,
                                kFrameBytes, kFrameBytes + 1,
                                kArenaBytes, kArenaBytes + 1,
                                ~0u,         1u << 31};
  Producer says(&memory.header, memory.cells, kCapacity);  // of no arena: it copies nothing
  DataConsumer hears({&memory.header, memory.cells, kCapacity}, memory.arena, kArenaBytes);
  for (const uint8_t flags : {uint8_t{0}, kInsideFlag})
    for (const uint32_t to_end : edges)
      for (const uint32_t length : edges) {
        const uint32_t value = kArenaBytes - to_end;
        expect(says.has_room(), "there is no room");
        const Cell& cell = memory.cells[says.head() % kCapacity];
        says.put({.op = Op::data, .flags = flags, .slot = 0, .value = value, .length = length});
        says.publish();
        const std::string_view bytes = hears.bytes(hears.peek());
        const bool is_held =
            flags ? length <= 48 : length <= 65536 && uint64_t(value) + length <= kArenaBytes;
        expect(bytes.size() == (is_held ? length : 0), "bytes from elsewhere");
        const char* first = flags ? cell.bytes : memory.arena + value;
        expect(bytes.empty() || bytes.data() == first, "they are not where it says");
        hears.take();
        hears.release();
      }
}

}  // namespace

// Without arguments: looks at copies, their order and edges. With a seed and a number: so many
// bursts.
int main(int argc, char** argv) {
  alarm(120);
  if (argc == 1) {
    look_at_copies();
    look_at_order();
    look_at_edges(*std::make_unique<Memory>());
    return 0;
  }
  const Random random{std::strtoull(argv[1], nullptr, 10)};
  const auto memory = std::make_unique<Memory>();
  const Bells bells;
  std::thread consumer([&] { consume(*memory, bells, {~random.state}); });
  produce(*memory, bells, random, uint32_t(std::atoi(argv[2])));
  consumer.join();
  std::printf("%s bursts\n", argv[2]);
}
