// What happens next: a heap of four children a node, earliest first, first come first among equals.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

using Time = std::int64_t;  // picoseconds

enum class Happens : std::uint8_t { kArrival, kPort, kTimer, kStart, kSample, kMeasure };

class EventQueue {
 public:
  struct Event {
    Time time;
    std::uint64_t order_and_what;  // 35 bits of order, 5 of what, 24 of which

    Happens happens() const { return static_cast<Happens>(order_and_what >> kWhich & 31); }
    std::uint32_t which() const { return order_and_what & (kMostThings - 1); }
    bool before(const Event& other) const { return key() < other.key(); }

   private:
    // One comparison for both: a branch on equal times is one that a processor cannot foresee.
    unsigned __int128 key() const {
      return static_cast<unsigned __int128>(time) << 64 | order_and_what;
    }
  };

  static constexpr std::uint32_t kMostThings = 1u << 24;

  bool empty() const { return heap_.empty(); }
  std::uint64_t pushed() const { return pushed_; }

  void push(Time time, Happens what, std::uint32_t which) {
    const Event event{
        time, pushed_++ << (kWhich + 5) | static_cast<std::uint64_t>(what) << kWhich | which};
    std::size_t hole = heap_.size();
    heap_.push_back(event);
    while (hole > 0 && event.before(heap_[(hole - 1) / 4])) {
      heap_[hole] = heap_[(hole - 1) / 4];
      hole = (hole - 1) / 4;
    }
    heap_[hole] = event;
  }

  Event pop() {
    const Event first = heap_.front(), last = heap_.back();
    heap_.pop_back();
    if (!heap_.empty()) sink(last);
    return first;
  }

 private:
  static constexpr int kWhich = 24;

  void sink(const Event& event) {
    const std::size_t count = heap_.size();
    std::size_t hole = 0;
    for (std::size_t child = 1; child < count; child = 4 * hole + 1) {
      std::size_t least = child;
      const std::size_t end = child + 4 < count ? child + 4 : count;
      for (std::size_t other = child + 1; other < end; ++other) {
        least = heap_[other].before(heap_[least]) ? other : least;
      }
      if (!heap_[least].before(event)) break;
      heap_[hole] = heap_[least];
      hole = least;
    }
    heap_[hole] = event;
  }

  std::vector<Event> heap_;
  std::uint64_t pushed_ = 0;
};
