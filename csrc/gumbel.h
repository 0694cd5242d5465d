// Gumbel noise of kLanes tokens at a time: -log(-log(1 - v)) of v = (hash | 1) / 2^64.
//
// Only float32 operations that IEEE 754 fixes, rounded one by one in the order of
// reference.gumbel_of, so that every instruction set gives the same bits. For sources that are
// compiled once per instruction set, as vec.h.
#pragma once

#include "noise.h"
#include "vec.h"

namespace specedge {
namespace {

// The largest noise there is, log 2^64, rounded up.
constexpr float kMostNoise = 44.37f;

typedef uint64_t word_vec __attribute__((vector_size(4 * kLanes)));  // half as many lanes

// The halves of each token's hash.
struct Hash {
  ivec high, low;
};

// Of tokens ids[i ...] or, without ids, i ...; arbitrary beyond n.
inline Hash hash_at(const int64_t* ids, int64_t i, int64_t n, uint64_t key) {
  word_vec even, odd;  // of tokens at even places, at odd places
  if (ids) {
    uint64_t tokens[2][kLanes / 2];
    for (int64_t j = 0; j < kLanes; ++j)
      tokens[j % 2][j / 2] = uint64_t(ids[i + j < n ? i + j : i]);
    even = load_as<word_vec>(tokens[0]) * kGolden + (key + kGolden);
    odd = load_as<word_vec>(tokens[1]) * kGolden + (key + kGolden);
  } else {
    for (int64_t j = 0; j < kLanes / 2; ++j) {
      even[j] = uint64_t(2 * j + 1) * kGolden;
      odd[j] = uint64_t(2 * j + 2) * kGolden;
    }
    even += key + uint64_t(i) * kGolden;
    odd += key + uint64_t(i) * kGolden;
  }
  even = mix(even);
  odd = mix(odd);
  return {(ivec)(even >> 32 | (odd & 0xFFFFFFFF00000000u)),
          (ivec)((even & 0xFFFFFFFFu) | odd << 32)};
}

// No less than the noise of a hash, in few steps: log x is not below the straight line between
// powers of two, which the bits of x are.
inline vec most_noise(Hash hash) {
  const vec v = __builtin_convertvector((ivec)((bits_vec)hash.high >> 1), vec);
  constexpr float kLog2 = 0.69314718f;
  // 31 for the scale of v, 127 for the exponent's bias, and more than rounding takes.
  return (31 + 127) * kLog2 + 0.001f - __builtin_convertvector((ivec)v, vec) * (kLog2 * 0x1p-23f);
}

// x = 2^exponent (1 + f) with 1 + f from sqrt(1/2) to sqrt(2), for normal x > 0.
struct Split {
  ivec exponent;
  vec f;
};

inline Split split(vec x) {
  const ivec offset = (ivec)x - 0x3f3504f3;
  return {offset >> 23, (vec)((offset & 0x7fffff) + 0x3f3504f3) - 1.0f};
}

// log(2^exponent (1 + f)), relatively exact near 1; minimax polynomial.
inline vec unfused_log(Split x) {
  vec p = x.f * -0.100823812f + 0.161805019f;
  p = p * x.f + -0.172432244f;
  p = p * x.f + 0.199068829f;
  p = p * x.f + -0.249712288f;
  p = p * x.f + 0.333347142f;
  p = p * x.f + -0.500003219f;
  return __builtin_convertvector(x.exponent, vec) * 0.693147182f + (x.f * x.f * p + x.f);
}

inline vec gumbel(Hash hash) {
  const ivec is_upper = hash.high >> 31;
  const vec high = __builtin_convertvector(hash.high ^ is_upper, vec);
  const vec low = __builtin_convertvector((ivec)((bits_vec)(hash.low ^ is_upper) >> 1), vec);
  const vec r = (high + (low + 0.5f) * 0x1p-31f) * 0x1p-32f;  // the lesser of v and 1 - v
  Split u = split(select(is_upper, r, 1.0f - r));
  u.f = select(u.exponent == 0, -r, u.f);  // where 1 - r is rounded, r itself is exact
  return -unfused_log(split(-unfused_log(u)));
}

}  // namespace
}  // namespace specedge
