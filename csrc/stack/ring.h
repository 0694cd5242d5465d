// A ring of elements in shared memory: one producer, one consumer, neither trusts the other.
// The positions are counts that wrap, and each side keeps its own. An element says itself that it
// is there, by a bit that turns with every lap (as the completion queues of NVMe have it): whoever
// waits for the next one looks at its cache line and at no other.
#pragma once
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <string_view>
#include <utility>
#include <vector>

#include "copy.h"
#include "element.h"

namespace specedge::stack {

// What both sides see, and the elements behind it. Fresh memory, all zero, is an empty ring.
struct RingHeader {
  alignas(64) uint32_t tail;     // the consumer's line: elements whose room it has given back
  alignas(64) uint32_t is_full;  // read often, written seldom: the producer waits for room
  uint32_t is_awake;             // the consumer polls, and needs no bell
};

// An element as it is written and read, each word once. It is put together and taken apart in
// registers: to read a word of what was just written in smaller parts would have to wait for all
// that was written before, among it lines that the other side has just read.
using Words = std::array<uint64_t, sizeof(Element) / sizeof(uint64_t)>;
constexpr uint64_t kPhase = uint64_t(kPhaseFlag) << 8, kInside = uint64_t(kInsideFlag) << 8;

constexpr Words packed(const Element& element) {
  const auto address = std::bit_cast<std::array<uint64_t, 2>>(element.address);
  return {uint64_t(element.op) | uint64_t(element.flags) << 8 | uint64_t(element.port) << 16 |
              uint64_t(element.slot) << 32,
          element.value | uint64_t(element.length) << 32, address[0], address[1]};
}
constexpr Element unpacked(const Words& words) {
  return {.op = Op(words[0] & 0xff),
          .flags = uint8_t(words[0] >> 8),
          .port = uint16_t(words[0] >> 16),
          .slot = uint32_t(words[0] >> 32),
          .value = uint32_t(words[1]),
          .length = uint32_t(words[1] >> 32),
          .address = std::bit_cast<Address>(std::array{words[2], words[3]})};
}

// An element's place in a ring, a line of the cache. Of data that is short it has the bytes too,
// instead of an address and behind it: who reads it touches no other line.
struct alignas(64) Cell {
  std::array<uint64_t, 2> words;
  union {
    std::array<uint64_t, 2> address;
    char bytes[kInsideBytes];
  };
};
static_assert(sizeof(Cell) == 64);

// A line that is soon written to is asked for before: else that, and all that is written after it,
// waits until the other side's copy of it has gone.
inline void ask_for(const void* line) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));
#else
  __builtin_prefetch(line, 1);
#endif
}

// The phase of an element that is there; in the first lap over fresh memory it is set.
inline uint64_t phase(uint32_t position, uint32_t capacity) {
  return position & capacity ? 0 : kPhase;
}

template <typename Word>
Word load(const Word& word) {
  return std::atomic_ref(const_cast<Word&>(word)).load(std::memory_order_acquire);
}
template <typename Word>
void store(Word& word, Word value) {
  std::atomic_ref(word).store(value, std::memory_order_release);
}
// Between what is written and what is looked at next, by each side of a ring: so at least one of
// them sees the other.
inline void barrier() { std::atomic_thread_fence(std::memory_order_seq_cst); }
// Where the kernel can (membarrier(2)), whoever is about to sleep has every process that shows
// elements pass a barrier, so that none of them needs one of its own while nobody sleeps.
inline bool passes_others_barriers() {
  static const bool is_so =
      !syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0);
  return is_so;
}
inline void barrier_for_all() {
  barrier();
  syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
}

class Producer {
 public:
  Producer() = default;
  // `arena`: of the bytes that its elements bring, if they do.
  Producer(RingHeader* header, Cell* cells, uint32_t capacity, char* arena = nullptr)
      : arena_(arena), header_(header), cells_(cells), capacity_(capacity) {}

  // Whether one more element fits. Also false for ever once the consumer has written nonsense.
  bool has_room() {
    if (head_ - tail_ < capacity_) return is_sound_;
    look();
    return is_sound_ && head_ - tail_ < capacity_;
  }

  // There must be room. The last one is held back, as it may still grow, and the first one since
  // what was shown last: the consumer reads in order, and so sees none of them.
  void put(const Element& element) {
    if (unshown() > 1) write(head_ - 1, held_[1]);
    held_[has_unshown()] = packed(element);
    ++head_;
  }

  // Show what was put. True: the consumer may sleep, its bell must be rung.
  bool publish() {
    if (!has_unshown()) return false;
    if (unshown() > 1) write(head_ - 1, held_[1]);
    const uint32_t before = std::exchange(published_, head_);
    write(before, held_[0]);
    if (is_passive_) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
      if (load(header_->is_awake)) return false;  // before it sleeps, it looks behind a barrier
    }
    barrier();
    return !load(header_->is_awake) && load(header_->tail) == before;
  }

  // Ask for a bell when the consumer makes room. Look once more before waiting for it.
  void want_room() {
    store(header_->is_full, 1u);
    barrier();
  }

  // Elements that the consumer has taken, as far as was looked.
  uint32_t look() {
    const uint32_t tail = load(header_->tail);
    if (published_ - tail > capacity_) is_sound_ = false;
    if (is_sound_) tail_ = tail;
    return tail_;
  }
  bool is_sound() const { return is_sound_; }
  uint32_t head() const { return head_; }
  bool has_unshown() const { return head_ != published_; }
  uint32_t capacity() const { return capacity_; }

 protected:
  // Of the element put last, which was not shown yet.
  Words& last() { return held_[unshown() > 1]; }

  char* arena_ = nullptr;

 private:
  static constexpr uint32_t kCellsAhead = 3;

  uint32_t unshown() const { return head_ - published_; }
  // The first word comes last, and with it all that was written before.
  void write(uint32_t position, const Words& words) {
    const auto put = [](uint64_t& at, uint64_t word) {
      std::atomic_ref(at).store(word, std::memory_order_relaxed);
    };
    Cell& cell = cells_[position & (capacity_ - 1)];
    ask_for(&cells_[(position + kCellsAhead) & (capacity_ - 1)]);
    const auto offset = uint32_t(words[1]), length = uint32_t(words[1] >> 32);
    const bool is_data = Op(words[0] & 0xff) == Op::data;
    const bool is_inside = is_data && arena_ && length <= kInsideBytes;
    if (is_inside) {
      copy(cell.bytes, arena_ + offset, length);
    } else if (!is_data) {
      put(cell.address[0], words[2]);
      put(cell.address[1], words[3]);
    }
    put(cell.words[1], words[1]);
    store(cell.words[0], words[0] | (is_inside ? kInside : 0) | phase(position, capacity_));
  }

  RingHeader* header_ = nullptr;
  Cell* cells_ = nullptr;
  uint32_t capacity_ = 0, head_ = 0, published_ = 0, tail_ = 0;
  Words held_[2];  // the first and the last of those that are not shown
  bool is_sound_ = true, is_passive_ = passes_others_barriers();
};

class Consumer {
 public:
  Consumer() = default;
  Consumer(RingHeader* header, const Cell* cells, uint32_t capacity)
      : header_(header), cells_(cells), capacity_(capacity) {}

  // Whether there is one to take. A producer that is not honest can say so without end.
  bool has_next() const { return (load(next().words[0]) & kPhase) == phase(tail_, capacity_); }

  // A copy of the next element, which the producer cannot change any more.
  Element peek() const {
    const auto get = [](const uint64_t& word) {
      return std::atomic_ref(const_cast<uint64_t&>(word)).load(std::memory_order_relaxed);
    };
    const Cell& cell = next();
    return unpacked({get(cell.words[0]) & ~kPhase, get(cell.words[1]), get(cell.address[0]),
                     get(cell.address[1])});
  }
  void take() { ++tail_; }

  // Elements whose room was not given back.
  uint32_t taken() const { return tail_ - released_; }
  // Give back the room of what was taken. True: the producer waits for it, ring its bell. While
  // awake, ask is_waited_for once more behind a barrier, when there is nothing else to do.
  bool release() {
    if (!taken()) return false;
    store(header_->tail, released_ = tail_);
    if (!is_awake_) barrier();
    return is_waited_for();
  }
  bool is_waited_for() {
    if (!load(header_->is_full)) return false;
    store(header_->is_full, 0u);
    return true;
  }

  // Say whether a bell is wanted; before waiting for one, look once more behind barrier_for_all.
  void set_awake(bool awake) { store<uint32_t>(header_->is_awake, is_awake_ = awake); }
  uint32_t capacity() const { return capacity_; }

 protected:
  const Cell& next() const { return cells_[tail_ & (capacity_ - 1)]; }

 private:
  RingHeader* header_ = nullptr;
  const Cell* cells_ = nullptr;
  uint32_t capacity_ = 0, tail_ = 0, released_ = 0;
  bool is_awake_ = false;
};

// A consumer of elements that bring bytes.
class DataConsumer : public Consumer {
 public:
  DataConsumer() = default;
  DataConsumer(Consumer ring, const char* arena, uint32_t arena_bytes)
      : Consumer(ring), arena_(arena), arena_bytes_(arena_bytes) {}

  // What the next element, of which this is a copy, brings, until it is taken. Empty: it says where
  // no bytes can be. Who has sent them can change them still.
  std::string_view bytes(const Element& element) const {
    const uint32_t length = element.length;
    if (element.flags & kInsideFlag) return {next().bytes, length <= kInsideBytes ? length : 0};
    const bool is_held =
        length <= kFrameBytes && length <= arena_bytes_ && element.value <= arena_bytes_ - length;
    return {is_held ? arena_ + element.value : arena_, is_held ? length : 0};
  }

 private:
  const char* arena_ = nullptr;
  uint32_t arena_bytes_ = 0;
};

// A producer whose elements bring bytes: the arena is filled round and round, and what an element
// takes of it comes free with the element. Its size is a power of two.
class DataProducer : public Producer {
 public:
  DataProducer() = default;
  DataProducer(Producer ring, uint32_t arena_bytes)
      : Producer(ring), arena_bytes_(arena_bytes), starts_(ring.capacity()) {}

  // Room for up to `wanted` bytes in one piece, as many as there are; 0: none, or no element.
  uint32_t room(uint32_t wanted) {
    ask_for(arena_ + at(filled_ + kBytesAhead));
    if (filled_ + wanted <= surely_ && has_room()) return wanted;
    // The other side's position costs a line of its cache: seldom, but in time to begin anew.
    take_stock();
    return has_room() ? contiguous(wanted) : 0;
  }

  char* place() const { return arena_ + at(filled_); }
  // Write there what room() has found room for.
  void fill(const char* from, uint32_t length) { copier_(place(), from, length); }

  // After room() and fill(), or writing to place(). Bytes that follow on what the last element
  // brings to the same slot travel with it, if it was not shown yet.
  void put_data(uint32_t slot, uint32_t length, uint16_t generation = 0) {
    const Element element{
        .op = Op::data, .port = generation, .slot = slot, .value = at(filled_), .length = length};
    filled_ += length;
    if (has_unshown() && grow_last(element))
      ended_ = filled_;
    else
      put_control(element);
  }
  void put_control(const Element& element) {
    starts_[head() & (capacity() - 1)] = std::exchange(ended_, filled_);
    put(element);
  }

 private:
  static constexpr uint64_t kStock = 8 << 10, kBytesAhead = 256;

  bool grow_last(const Element& by) {
    Words& words = last();
    const uint32_t value = uint32_t(words[1]), length = uint32_t(words[1] >> 32);
    const bool follows = words[0] == packed(by)[0] && value + length == by.value &&
                         length + by.length <= kFrameBytes;
    if (follows) words[1] += uint64_t(by.length) << 32;
    return follows;
  }
  uint32_t at(uint64_t count) const { return uint32_t(count) & (arena_bytes_ - 1); }
  void take_stock() {
    const uint32_t tail = look();
    const bool is_empty = tail == head();
    if (is_empty) filled_ = ended_ = 0;  // begin anew: the same few pages, as long as they do
    freed_ = is_empty ? 0 : starts_[tail & (capacity() - 1)];
  }
  uint32_t contiguous(uint32_t wanted) {
    uint64_t free = arena_bytes_ - (filled_ - freed_);
    uint64_t to_edge = arena_bytes_ - at(filled_);
    if (to_edge < wanted && free > to_edge && to_edge < kFrameBytes / 4) {
      filled_ += to_edge;  // left out; it comes free with the element that follows
      free -= to_edge;
      to_edge = arena_bytes_;
    }
    surely_ = filled_ + std::min({free, to_edge, kStock});
    return uint32_t(std::min<uint64_t>({wanted, free, to_edge}));
  }
  Copier copier_;
  uint64_t arena_bytes_ = 0, filled_ = 0, freed_ = 0;
  uint64_t surely_ = 0;           // up to where it can be filled without another look
  uint64_t ended_ = 0;            // of what is filled, what the elements take
  std::vector<uint64_t> starts_;  // of an element, what those before it take
};

}  // namespace specedge::stack
