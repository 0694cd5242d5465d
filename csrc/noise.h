// Counter-based Gumbel noise: a pure function of (seed, position, token).
#pragma once

#include <cmath>
#include <cstdint>

namespace specedge {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio

inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline uint64_t noise_key(int64_t seed, int64_t position) {
  return mix(mix(uint64_t(seed)) + uint64_t(position + 1) * kGolden);
}

inline float gumbel(uint64_t key, int64_t token) {
  const uint64_t bits = mix(key + uint64_t(token + 1) * kGolden) >> 41;
  return -logf(-logf((float(bits) + 0.5f) * 0x1p-23f));
}

}  // namespace
}  // namespace specedge
