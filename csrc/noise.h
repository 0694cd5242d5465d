// Counter-based noise: 64 bits that are a pure function of (seed, position, token), by the
// finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): mix(key + (token + 1) * kGolden), as
// gumbel.h has it for many tokens at once. Static, as half.h.
#pragma once

#include <cstdint>

namespace specedge {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio

// Word is uint64_t, or a vector of them.
template <typename Word>
inline Word mix(Word z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

[[maybe_unused]] inline uint64_t noise_key(int64_t seed, int64_t position) {
  return mix(mix(uint64_t(seed)) + (uint64_t(position) + 1) * kGolden);
}

}  // namespace
}  // namespace specedge
