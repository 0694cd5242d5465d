// A ring of elements in shared memory: one producer, one consumer, neither trusts the other.
// The positions are counts that wrap; head - tail elements are in the ring.
#pragma once
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "element.h"

namespace specedge::stack {

// What both sides see. Fresh memory, all zero, is an empty ring.
struct RingHeader {
  alignas(64) uint32_t head;     // the producer's line
  alignas(64) uint32_t tail;     // the consumer's line
  alignas(64) uint32_t is_full;  // read often, written seldom: the producer waits for room
  uint32_t is_awake;             // the consumer polls, and needs no bell
};

inline uint32_t load(const uint32_t& word) {
  return std::atomic_ref(const_cast<uint32_t&>(word)).load(std::memory_order_acquire);
}
inline void store(uint32_t& word, uint32_t value) {
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
  Producer(RingHeader* header, Element* elements, uint32_t capacity)
      : header_(header), elements_(elements), capacity_(capacity) {}

  // Whether one more element fits. Also false for ever once the consumer has written nonsense.
  bool has_room() {
    if (head_ - tail_ < capacity_) return is_sound_;
    look();
    return is_sound_ && head_ - tail_ < capacity_;
  }

  // There must be room.
  void put(const Element& element) { elements_[head_++ & (capacity_ - 1)] = element; }
  // Of the element put last, which must not have been shown yet.
  void set_length(uint32_t length) { elements_[(head_ - 1) & (capacity_ - 1)].length = length; }

  // Show what was put. True: the consumer may sleep, its bell must be rung.
  bool publish() {
    if (head_ == published_) return false;
    const uint32_t before = published_;
    store(header_->head, published_ = head_);
    if (is_passive_) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
      if (load(header_->is_awake)) return false;  // before it sleeps, it looks behind a barrier
    }
    barrier();
    return !load(header_->is_awake) && load(header_->tail) == before;
  }

  // Ask for a bell when the consumer makes room. Look once more before waiting for it.
  void want_room() {
    store(header_->is_full, 1);
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
  RingHeader* header_ = nullptr;
  Element* elements_ = nullptr;
  uint32_t capacity_ = 0, head_ = 0, published_ = 0, tail_ = 0;
  bool is_sound_ = true, is_passive_ = passes_others_barriers();
};

class Consumer {
 public:
  Consumer() = default;
  Consumer(RingHeader* header, const Element* elements, uint32_t capacity)
      : header_(header), elements_(elements), capacity_(capacity) {}

  // Elements that can be taken; none once the producer has written nonsense.
  uint32_t available() {
    if (head_ == tail_) look();
    return head_ - tail_;
  }
  uint32_t look() {
    const uint32_t head = load(header_->head);
    if (head - tail_ > capacity_) is_sound_ = false;
    if (is_sound_) head_ = head;
    return head_ - tail_;
  }

  // A copy of the next element, which the producer cannot change any more.
  Element peek() const {
    Element element;
    __builtin_memcpy(&element, &elements_[tail_ & (capacity_ - 1)], sizeof element);
    return element;
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
    store(header_->is_full, 0);
    return true;
  }

  // Say whether a bell is wanted; before waiting for one, look once more behind barrier_for_all.
  void set_awake(bool awake) { store(header_->is_awake, is_awake_ = awake); }
  bool is_sound() const { return is_sound_; }

 private:
  RingHeader* header_ = nullptr;
  const Element* elements_ = nullptr;
  uint32_t capacity_ = 0, head_ = 0, tail_ = 0, released_ = 0;
  bool is_sound_ = true, is_awake_ = false;
};

// A producer whose elements bring bytes: the arena is filled round and round, and what an element
// takes of it comes free with the element. Its size is a power of two.
class DataProducer : public Producer {
 public:
  DataProducer() = default;
  DataProducer(Producer ring, char* arena, uint32_t arena_bytes)
      : Producer(ring), arena_(arena), arena_bytes_(arena_bytes), ends_(ring.capacity()) {}

  // Room for up to `wanted` bytes in one piece, as many as there are; 0: none, or no element.
  uint32_t room(uint32_t wanted) {
    // The other side's position costs a line of its cache: seldom, but in time to begin anew.
    if (filled_ - stocked_ >= kStock) take_stock();
    uint32_t found = has_room() ? contiguous(wanted) : 0;
    if (found == wanted) return found;
    take_stock();
    return has_room() ? contiguous(wanted) : 0;
  }

  char* place() const { return arena_ + at(filled_); }

  // After room() and writing to place(). Bytes that follow on what the last element brings to the
  // same slot travel with it, if it was not shown yet.
  void put_data(uint32_t slot, uint32_t length, uint16_t generation = 0) {
    const uint32_t offset = at(filled_);
    filled_ += length;
    const bool follows = has_unshown() && last_.op == Op::data && last_.slot == slot &&
                         last_.port == generation && last_.value + last_.length == offset &&
                         last_.length + length <= kFrameBytes;
    if (follows) {
      ends_[(head() - 1) & (capacity() - 1)] = filled_;
      return set_length(last_.length += length);
    }
    put_control(
        {.op = Op::data, .port = generation, .slot = slot, .value = offset, .length = length});
  }
  void put_control(const Element& element) {
    ends_[head() & (capacity() - 1)] = filled_;
    put(last_ = element);
  }

 private:
  static constexpr uint64_t kStock = 8 << 10;

  uint32_t at(uint64_t count) const { return uint32_t(count) & (arena_bytes_ - 1); }
  void take_stock() {
    const uint32_t tail = look();
    if (tail == head()) {  // begin anew: the same few pages, as long as they do
      first_ = tail;
      filled_ = 0;
    }
    freed_ = tail == first_ ? 0 : ends_[(tail - 1) & (capacity() - 1)];
    stocked_ = filled_;
  }
  uint32_t contiguous(uint32_t wanted) {
    const uint64_t free = arena_bytes_ - (filled_ - freed_);
    const uint64_t to_edge = arena_bytes_ - at(filled_);
    if (to_edge >= wanted || free <= to_edge || to_edge >= kFrameBytes / 4)
      return uint32_t(std::min<uint64_t>({wanted, free, to_edge}));
    filled_ += to_edge;  // left out; it comes free with the element that follows
    return uint32_t(std::min<uint64_t>(wanted, free - to_edge));
  }
  char* arena_ = nullptr;
  uint64_t arena_bytes_ = 0, filled_ = 0, freed_ = 0;
  uint64_t stocked_ = 0;  // filled_, when the other side's position was last looked at
  uint32_t first_ = 0;    // where filled_ was zero
  std::vector<uint64_t> ends_;
  Element last_;
};

}  // namespace specedge::stack
