// Native vectors of the instruction set that this translation unit is compiled for.
//
// Included by sources that are compiled once per instruction set. Everything lives in an anonymous
// namespace and such sources use no inline function or template of the standard library: the
// linker keeps one copy of those, possibly the one that an older processor cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace specedge {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes)));
typedef double dvec __attribute__((vector_size(4 * kLanes)));  // half as many lanes
typedef int64_t lvec __attribute__((vector_size(4 * kLanes)));
typedef float half_vec __attribute__((vector_size(2 * kLanes)));
typedef uint16_t half_bits __attribute__((vector_size(2 * kLanes)));
typedef uint32_t bits_vec __attribute__((vector_size(4 * kLanes)));
typedef uint8_t byte_vec __attribute__((vector_size(kLanes)));

template <typename V, typename T>
inline V load_as(const T* p) {
  V value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline vec load_vec(const float* p) { return load_as<vec>(p); }

inline vec load_vec(const bf16* p) {
#if defined(__AVX512F__)
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_as<__m256i>(p)), 16);
#elif defined(__AVX2__)
  return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_as<__m128i>(p)), 16);
#else
  return (vec)(__builtin_convertvector(load_as<half_bits>(p), bits_vec) << 16);
#endif
}

inline vec load_vec(const f16* p) {
#if defined(__AVX512F__)
  return (vec)_mm512_cvtph_ps(load_as<__m256i>(p));
#elif defined(__AVX2__)
  return (vec)_mm256_cvtph_ps(load_as<__m128i>(p));
#elif defined(__aarch64__)
  return (vec)vcvt_f32_f16(load_as<float16x4_t>(p));
#else
  vec value;
  for (int i = 0; i < kLanes; ++i) value[i] = load(p + i);
  return value;
#endif
}

// As load(const e4m3*), for as many bytes as Bits has lanes, and without subnormal floats, which
// are slow to multiply.
template <typename Floats, typename Bits>
inline Floats float_of_e4m3(Bits bytes) {
  const Bits magnitude = bytes & 0x7fu, normal = (magnitude << 20) + 0x3c000000u;
  const Bits subnormal = (Bits)((Floats)(normal + 0x800000u) - 0x1p-6f);
  const Bits is_small = (Bits)(magnitude < 8u), is_nan = (Bits)(magnitude == 0x7fu);
  const Bits value = (is_small & subnormal) | (~is_small & normal) | (is_nan & 0x7fc00000u);
  return (Floats)(value | (bytes & 0x80u) << 24);
}

inline vec load_vec(const e4m3* p) {
#if defined(__AVX512F__)
  return float_of_e4m3<vec>((bits_vec)_mm512_cvtepu8_epi32(load_as<__m128i>(p)));
#elif defined(__AVX2__)
  return float_of_e4m3<vec>((bits_vec)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(p))));
#else
  return float_of_e4m3<vec>(__builtin_convertvector(load_as<byte_vec>(p), bits_vec));
#endif
}

inline void store_vec(float* p, vec value) { std::memcpy(p, &value, sizeof value); }

// Rounded to nearest even, one number at a time.
template <typename T>
inline void store_vec(T* p, vec value) {
  float lanes[kLanes];
  store_vec(lanes, value);
  for (int i = 0; i < kLanes; ++i) store(p + i, lanes[i]);
}

// The first n lanes, all of them if n is more; zeros beyond.
template <typename T>
inline vec load_first(const T* p, int64_t n) {
  if (n >= kLanes) return load_vec(p);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = load(p + i);
  return load_vec(lanes);
}

template <typename T>
inline void store_first(T* p, int64_t n, vec value) {
  if (n >= kLanes) return store_vec(p, value);
  float lanes[kLanes];
  store_vec(lanes, value);
  for (int64_t i = 0; i < n; ++i) store(p + i, lanes[i]);
}

// value - 0 is value itself, even for -0, so nothing is left of the subtraction.
inline vec splat(float value) { return value - vec{}; }

// a * b + c, rounded once where the processor can.
inline vec fma(vec a, vec b, vec c) {
#if defined(__AVX512F__)
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline vec select(ivec condition, vec yes, vec no) {
  return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}

// Lane i of yes where bit first + i is set, else of no.
inline vec select_bits(uint32_t bits, int first, vec yes, vec no) {
#if defined(__AVX512F__)
  return (vec)_mm512_mask_mov_ps((__m512)no, __mmask16(bits >> first), (__m512)yes);
#elif defined(__AVX2__)
  // A lane's bit becomes its sign.
  const __m256i places =
      _mm256_sub_epi32(_mm256_set1_epi32(31 - first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i signs = _mm256_sllv_epi32(_mm256_set1_epi32(int(bits)), places);
  return (vec)_mm256_blendv_ps((__m256)no, (__m256)yes, _mm256_castsi256_ps(signs));
#else
  bits_vec own;
  for (int i = 0; i < kLanes; ++i) own[i] = 1u << i;
  return select((ivec)(((bits >> first) & own) == own), yes, no);
#endif
}

// a > b ? a : b, so b where either is NaN.
inline vec larger(vec a, vec b) {
#if defined(__AVX512F__)
  return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}

// Whether any lane of a comparison holds.
inline bool any(ivec condition) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)condition) != 0;
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)condition) != 0;
#else
  int64_t words[kLanes / 2];
  std::memcpy(words, &condition, sizeof words);
  int64_t found = 0;
  for (int i = 0; i < kLanes / 2; ++i) found |= words[i];
  return found != 0;
#endif
}

// All lanes in one, each with the one half a vector away, then a quarter, and so on.
template <typename F>
inline float fold(vec v, F f) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 wide = f(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
  const __m256 wide = (__m256)v;
#endif
  const __m128 four = f(_mm256_castps256_ps128(wide), _mm256_extractf128_ps(wide, 1));
  const __m128 two = f(four, _mm_movehl_ps(four, four));
  return f(two, (__m128)_mm_movehdup_ps(two))[0];
#else
  float lanes[kLanes];
  store_vec(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = f(lanes[i], lanes[i + width]);
  }
  return lanes[0];
#endif
}

inline float sum_of(vec v) {
  return fold(v, [](auto a, auto b) { return a + b; });
}

inline float max_of(vec v) {
  return fold(v, [](auto a, auto b) { return a > b ? a : b; });
}

// e^x for x up to 88; exactly 0 below -87, NaN stays NaN. Cody-Waite reduction, polynomial of
// degree 6 (Cephes, expf).
inline vec exp_of(vec x) {
  const vec shifted = fma(x, splat(1.44269504f), splat(0x1.8p23f));
  const vec n = shifted - 0x1.8p23f;
  const vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  // Unsigned: where x is below -87 the sum wraps, and is not selected.
  const vec scaled = (vec)((bits_vec)p + ((bits_vec)shifted << 23));
  return select(x == x, select(x < splat(-87.0f), vec{}, scaled), x);
}

// Natural logarithm of positive normal x (Cephes, logf), relatively exact near 1.
inline vec log_of(vec x) {
  // Splits x = 2^e * m with m in [sqrt(1/2), sqrt(2)).
  const ivec offset = (ivec)x - 0x3f3504f3;
  const vec e = __builtin_convertvector(offset >> 23, vec);
  const vec m = (vec)((offset & 0x7fffff) + 0x3f3504f3) - 1.0f;
  vec p = splat(7.0376836292e-2f);
  p = fma(p, m, splat(-1.1514610310e-1f));
  p = fma(p, m, splat(1.1676998740e-1f));
  p = fma(p, m, splat(-1.2420140846e-1f));
  p = fma(p, m, splat(1.4249322787e-1f));
  p = fma(p, m, splat(-1.6668057665e-1f));
  p = fma(p, m, splat(2.0000714765e-1f));
  p = fma(p, m, splat(-2.4999993993e-1f));
  p = fma(p, m, splat(3.3333331174e-1f));
  const vec square = m * m;
  vec y = p * square * m;
  y = fma(e, splat(-2.12194440e-4f), y);
  y = fma(square, splat(-0.5f), y);
  return fma(e, splat(0.693359375f), m + y);
}

// tanh x: a polynomial near 0 (Cephes, tanhf), 1 - 2 / (e^2x + 1) elsewhere.
inline vec tanh_of(vec x) {
  const vec z = x * x, size = select(x < vec{}, -x, x);
  vec p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const vec near = fma(p * z, x, x);
  const vec far =
      1.0f - 2.0f / (exp_of(select(size > splat(9.0f), splat(9.0f), size) * 2.0f) + 1.0f);
  const vec signed_far = select(x < vec{}, -far, far);
  return select(size < splat(0.625f), near, select(x == x, signed_far, x));
}

}  // namespace
}  // namespace specedge
