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
#include <utility>
#include <vector>

#include "element.h"

namespace specedge::stack {

// What both sides see, and the elements behind it. Fresh memory, all zero, is an empty ring.
struct RingHeader {
  alignas(64) uint32_t tail;     // the consumer's line: elements whose room it has given back
  alignas(64) uint32_t is_full;  // read often, written seldom: the producer waits for room
  uint32_t is_awake;             // the consumer polls, and needs no bell
};

// An element as it is in a ring: each word is written and read once.
using Cell = std::array<uint64_t, sizeof(Element) / sizeof(uint64_t)>;
constexpr uint64_t kPhase = std::bit_cast<Cell>(Element{.flags = kPhaseFlag})[0];

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
  Producer(RingHeader* header, Cell* cells, uint32_t capacity)
      : header_(header), cells_(cells), capacity_(capacity) {}

  // Whether one more element fits. Also false for ever once the consumer has written nonsense.
  bool has_room() {
    if (head_ - tail_ < capacity_) return is_sound_;
    look();
    return is_sound_ && head_ - tail_ < capacity_;
  }

  // There must be room. The last one is held back, as it may still grow, and the first one since
  // what was shown last: the consumer reads in order, and so sees none of them.
  void put(const Element& element) {
    if (head_ - published_ == 1)
      first_ = last_;
    else if (has_unshown())
      write(head_ - 1, last_);
    last_ = element;
    ++head_;
  }
  // Of the element put last, which must not have been shown yet.
  const Element& last() const { return last_; }
  void set_length(uint32_t length) { last_.length = length; }

  // Show what was put. True: the consumer may sleep, its bell must be rung.
  bool publish() {
    if (!has_unshown()) return false;
    const uint32_t before = std::exchange(published_, head_);
    if (head_ - before > 1) write(head_ - 1, std::exchange(last_, first_));
    write(before, last_);
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

 private:
  // The phase comes last, and with it all that was written before.
  void write(uint32_t position, const Element& element) {
    Cell& cell = cells_[position & (capacity_ - 1)];
    const Cell words = std::bit_cast<Cell>(element);
    for (size_t i = 1; i < words.size(); ++i)
      std::atomic_ref(cell[i]).store(words[i], std::memory_order_relaxed);
    store(cell[0], words[0] | phase(position, capacity_));
  }

  RingHeader* header_ = nullptr;
  Cell* cells_ = nullptr;
  uint32_t capacity_ = 0, head_ = 0, published_ = 0, tail_ = 0;
  Element first_, last_;  // of those that are not shown
  bool is_sound_ = true, is_passive_ = passes_others_barriers();
};

class Consumer {
 public:
  Consumer() = default;
  Consumer(RingHeader* header, const Cell* cells, uint32_t capacity)
      : header_(header), cells_(cells), capacity_(capacity) {}

  // Whether there is one to take. A producer that is not honest can say so without end.
  bool has_next() const { return (load(next()[0]) & kPhase) == phase(tail_, capacity_); }

  // A copy of the next element, which the producer cannot change any more.
  Element peek() const {
    Cell words;
    for (size_t i = 0; i < words.size(); ++i)
      words[i] = std::atomic_ref(const_cast<uint64_t&>(next()[i])).load(std::memory_order_relaxed);
    words[0] &= ~kPhase;
    return std::bit_cast<Element>(words);
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

 private:
  const Cell& next() const { return cells_[tail_ & (capacity_ - 1)]; }

  RingHeader* header_ = nullptr;
  const Cell* cells_ = nullptr;
  uint32_t capacity_ = 0, tail_ = 0, released_ = 0;
  bool is_awake_ = false;
};

// A producer whose elements bring bytes: the arena is filled round and round, and what an element
// takes of it comes free with the element. Its size is a power of two.
class DataProducer : public Producer {
 public:
  DataProducer() = default;
  DataProducer(Producer ring, char* arena, uint32_t arena_bytes)
      : Producer(ring), arena_(arena), arena_bytes_(arena_bytes), starts_(ring.capacity()) {}

  // Room for up to `wanted` bytes in one piece, as many as there are; 0: none, or no element.
  uint32_t room(uint32_t wanted) {
    if (filled_ + wanted <= surely_ && has_room()) return wanted;
    // The other side's position costs a line of its cache: seldom, but in time to begin anew.
    take_stock();
    return has_room() ? contiguous(wanted) : 0;
  }

  char* place() const { return arena_ + at(filled_); }

  // After room() and writing to place(). Bytes that follow on what the last element brings to the
  // same slot travel with it, if it was not shown yet.
  void put_data(uint32_t slot, uint32_t length, uint16_t generation = 0) {
    const uint32_t offset = at(filled_);
    filled_ += length;
    const Element& before = last();
    const bool follows = has_unshown() && before.op == Op::data && before.slot == slot &&
                         before.port == generation && before.value + before.length == offset &&
                         before.length + length <= kFrameBytes;
    if (follows) {
      ended_ = filled_;
      return set_length(before.length + length);
    }
    put_control(
        {.op = Op::data, .port = generation, .slot = slot, .value = offset, .length = length});
  }
  void put_control(const Element& element) {
    starts_[head() & (capacity() - 1)] = std::exchange(ended_, filled_);
    put(element);
  }

 private:
  static constexpr uint64_t kStock = 8 << 10;

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
  char* arena_ = nullptr;
  uint64_t arena_bytes_ = 0, filled_ = 0, freed_ = 0;
  uint64_t surely_ = 0;           // up to where it can be filled without another look
  uint64_t ended_ = 0;            // of what is filled, what the elements take
  std::vector<uint64_t> starts_;  // of an element, what those before it take
};

}  // namespace specedge::stack
