// Reads one head of a paged cache into dense float32 blocks. Static, as vec.h.
#pragma once

#include "tree_path.h"
#include "vec.h"

namespace specedge {
namespace {

typedef float quad __attribute__((vector_size(16)));
typedef uint8_t quad_bytes __attribute__((vector_size(4)));
typedef uint16_t quad_half_bits __attribute__((vector_size(8)));
typedef uint32_t quad_bits __attribute__((vector_size(16)));

inline quad load_quad(const float* p) { return load_as<quad>(p); }

inline quad load_quad(const bf16* p) {
  return (quad)(__builtin_convertvector(load_as<quad_half_bits>(p), quad_bits) << 16);
}

inline quad load_quad(const f16* p) {
#if defined(__F16C__)
  return (quad)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return quad{load(p), load(p + 1), load(p + 2), load(p + 3)};
#endif
}

inline quad load_quad(const e4m3* p) {
#if defined(__AVX2__)
  return float_of_e4m3<quad>((quad_bits)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(load_as<int32_t>(p))));
#else
  return float_of_e4m3<quad>(__builtin_convertvector(load_as<quad_bytes>(p), quad_bits));
#endif
}

inline void store_quad(float* p, quad value) { std::memcpy(p, &value, sizeof value); }

// rows: n pointers to [D], n a multiple of 4 -> the first n columns of keys [D, 64]
template <typename T>
inline void transpose(const T* const* rows, int64_t n, int64_t dim, float* keys) {
  for (int64_t lane = 0; lane < n; lane += 4) {
    int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
      const quad a = load_quad(rows[lane] + d), b = load_quad(rows[lane + 1] + d);
      const quad c = load_quad(rows[lane + 2] + d), e = load_quad(rows[lane + 3] + d);
      const quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const quad ce_low = __builtin_shufflevector(c, e, 0, 4, 1, 5);
      const quad ce_high = __builtin_shufflevector(c, e, 2, 6, 3, 7);
      float* to = keys + d * kBlock + lane;
      store_quad(to, __builtin_shufflevector(ab_low, ce_low, 0, 1, 4, 5));
      store_quad(to + kBlock, __builtin_shufflevector(ab_low, ce_low, 2, 3, 6, 7));
      store_quad(to + 2 * kBlock, __builtin_shufflevector(ab_high, ce_high, 0, 1, 4, 5));
      store_quad(to + 3 * kBlock, __builtin_shufflevector(ab_high, ce_high, 2, 3, 6, 7));
    }
    for (; d < dim; ++d) {
      for (int64_t i = lane; i < lane + 4; ++i) keys[d * kBlock + i] = load(rows[i] + d);
    }
  }
}

// One head of one cache, seen through one request's pages.
struct Tokens {
  const Cache& cache;
  const int32_t* pages;
  int64_t head;

  template <typename T>
  const T* at(int64_t slot) const {
    return static_cast<const T*>(cache.data) + pages[slot / cache.page_size] * cache.page_stride +
           slot % cache.page_size * cache.token_stride + head * cache.head_stride;
  }

  // Slots first .. first+n-1 -> columns of keys [D, 64]; slots outside lo .. hi-1 are not read and
  // give 0.
  template <typename T>
  void stage_keys(int64_t first, int64_t n, int64_t lo, int64_t hi, const void* zeros,
                  float* keys) const {
    const T* rows[kBlock];
    for (int64_t i = 0; i < n; ++i) {
      const bool valid = first + i >= lo && first + i < hi;
      rows[i] = valid ? at<T>(first + i) : static_cast<const T*>(zeros);
    }
    transpose(rows, n, cache.head_dim, keys);
  }

  // Slots lo .. hi-1 -> values [hi - lo, width], zero beyond D.
  template <typename T>
  void stage_values(int64_t lo, int64_t hi, int64_t width, float* values) const {
    const int64_t dim = cache.head_dim;
    for (int64_t slot = lo; slot < hi; ++slot, values += width) {
      const T* row = at<T>(slot);
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) store_vec(values + d, load_vec(row + d));
      for (; d < dim; ++d) values[d] = load(row + d);
      for (; d < width; ++d) values[d] = 0;
    }
  }
};

inline void stage_keys(const Tokens& tokens, int64_t first, int64_t n, int64_t lo, int64_t hi,
                       const void* zeros, float* keys) {
  switch (tokens.cache.dtype) {
    case Dtype::f32:
      return tokens.stage_keys<float>(first, n, lo, hi, zeros, keys);
    case Dtype::bf16:
      return tokens.stage_keys<bf16>(first, n, lo, hi, zeros, keys);
    case Dtype::f16:
      return tokens.stage_keys<f16>(first, n, lo, hi, zeros, keys);
    case Dtype::e4m3:
      return tokens.stage_keys<e4m3>(first, n, lo, hi, zeros, keys);
  }
}

inline void stage_values(const Tokens& tokens, int64_t lo, int64_t hi, int64_t width,
                         float* values) {
  switch (tokens.cache.dtype) {
    case Dtype::f32:
      return tokens.stage_values<float>(lo, hi, width, values);
    case Dtype::bf16:
      return tokens.stage_values<bf16>(lo, hi, width, values);
    case Dtype::f16:
      return tokens.stage_values<f16>(lo, hi, width, values);
    case Dtype::e4m3:
      return tokens.stage_values<e4m3>(lo, hi, width, values);
  }
}

}  // namespace
}  // namespace specedge
