// The memory that a guest shares with the daemon, or with a guest beside it, and what is in it
// where.
#pragma once
#include <cstddef>

#include "ring.h"

namespace specedge::stack {

// Sizes of a memory, as a guest asks for them.
struct Sizes {
  uint32_t control = 0;      // elements of the job and of the completion ring
  uint32_t data = 0;         // elements of the send and of the receive ring
  uint32_t arena_bytes = 0;  // of either direction

  // Powers of two within what the daemon grants.
  bool are_fair() const {
    const auto power = [](uint32_t value) { return value && !(value & (value - 1)); };
    return power(control) && power(data) && power(arena_bytes) && control >= 16 &&
           control <= 1 << 16 && data >= 16 && data <= 1 << 16 && arena_bytes >= 2 * kFrameBytes &&
           arena_bytes <= 64 << 20;
  }
};

constexpr Sizes kDirectSizes{.control = 0, .data = 1024, .arena_bytes = 4 * kFrameBytes};

// Memory of its own, mapped from a sealed descriptor: neither side can make it shorter, so that no
// access to it can fail.
class Region {
 public:
  enum class Ring { job, completion, send, receive };

  Region() = default;
  Region(int descriptor, Sizes sizes);  // throws std::system_error
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  ~Region();

  static size_t bytes(Sizes sizes);
  static int make(Sizes sizes);  // a sealed memfd of that size; throws std::system_error

  Producer producer(Ring ring) const;
  Consumer consumer(Ring ring) const;
  // Of the send or the receive ring, with its arena.
  DataProducer data_producer(Ring ring) const;
  DataConsumer data_consumer(Ring ring) const;
  char* arena(Ring ring) const;

 private:
  uint32_t capacity(Ring ring) const;
  RingHeader* header(Ring ring) const;

  char* memory_ = nullptr;
  Sizes sizes_;
};

}  // namespace specedge::stack
