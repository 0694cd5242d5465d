// Bytes into memory that another core has read last, and will read next.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace specedge::stack {

// Short pieces word by word: memory read in longer words than it was written in would wait for all
// writes before.
inline void copy(char* to, const char* from, size_t length) {
  if (length > 64) {
    std::memcpy(to, from, length);
    return;
  }
  size_t at = 0;
  for (; at + sizeof(uint64_t) <= length; at += sizeof(uint64_t))
    std::memcpy(to + at, from + at, sizeof(uint64_t));
  for (; at < length; ++at) to[at] = from[at];
}

#if defined(__x86_64__)
// Past the caches, in order with what is written after it.
inline void copy_past(char* to, const char* from, size_t length) {
  constexpr size_t kWord = sizeof(__m128i);
  size_t at = -reinterpret_cast<uintptr_t>(to) % kWord;
  std::memcpy(to, from, at);
  for (; at + kWord <= length; at += kWord)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
  std::memcpy(to + at, from + at, length - at);
  _mm_sfence();
}

// Long pieces go by the caches, where the writer first has to take each line away from the reader,
// or past them by memory: between near cores the one is twice as fast, between far ones the other.
// Which it is changes as the kernel, or a host below it, moves the two: of every so many pieces the
// first two try one way each.
class Copier {
 public:
  void operator()(char* to, const char* from, size_t length) {
    if (length < kLong) return copy(to, from, length);
    const uint32_t turn = turns_++ % kTurns;
    if (turn > 1) return is_past_faster_ ? copy_past(to, from, length) : copy(to, from, length);
    const uint64_t start = __rdtsc();
    turn ? copy(to, from, length) : copy_past(to, from, length);
    const double ticks_a_byte = double(__rdtsc() - start) / double(length);
    if (turn)
      is_past_faster_ = past_ticks_a_byte_ < kClearly * ticks_a_byte;
    else
      past_ticks_a_byte_ = ticks_a_byte;
  }

 private:
  static constexpr size_t kLong = 4 << 10;
  static constexpr uint32_t kTurns = 64;
  static constexpr double kClearly = 0.75;  // as the reader, too, has farther to fetch it

  uint32_t turns_ = 0;
  double past_ticks_a_byte_ = 0;
  bool is_past_faster_ = false;
};
#else
struct Copier {
  void operator()(char* to, const char* from, size_t length) { copy(to, from, length); }
};
#endif

}  // namespace specedge::stack
