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

// What the tokens at even places, and at odd places, of kLanes are hashed from.
struct Counters {
  word_vec even, odd;
};

inline Counters counters(const int64_t* tokens) {
#if defined(__AVX512F__)
  const __m512i places = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i first = load_as<__m512i>(tokens), second = load_as<__m512i>(tokens + 8);
  const word_vec even = (word_vec)_mm512_permutex2var_epi64(first, places, second);
  const word_vec odd = (word_vec)_mm512_permutex2var_epi64(first, places + 1, second);
#else
  word_vec even, odd;
  for (int64_t j = 0; j < kLanes / 2; ++j) {
    even[j] = uint64_t(tokens[2 * j]);
    odd[j] = uint64_t(tokens[2 * j + 1]);
  }
#endif
  return {(even + 1) * kGolden, (odd + 1) * kGolden};
}

// Of tokens first, first + 1 ...
inline Counters counters(int64_t first) {
  word_vec even, odd;
  for (int64_t j = 0; j < kLanes / 2; ++j) {
    even[j] = uint64_t(2 * j + 1) * kGolden;
    odd[j] = uint64_t(2 * j + 2) * kGolden;
  }
  return {even + uint64_t(first) * kGolden, odd + uint64_t(first) * kGolden};
}

// Of tokens ids[i ...] or, without ids, i ...; arbitrary beyond n.
inline Hash hash_at(const int64_t* ids, int64_t i, int64_t n, uint64_t key) {
  int64_t some[kLanes];
  if (ids && i + kLanes > n) {
    for (int64_t j = 0; j < kLanes; ++j) some[j] = ids[i + j < n ? i + j : i];
  }
  const Counters of = !ids ? counters(i) : counters(i + kLanes > n ? some : ids + i);
  const word_vec even = mix(of.even + key), odd = mix(of.odd + key);
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
