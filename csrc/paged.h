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

// One number of each of as many rows as a step of `transpose` takes, and the ways of pairing two.
#if defined(__AVX2__)
constexpr int64_t kStep = 8;
typedef float column __attribute__((vector_size(32)));

template <typename T>
inline column load_column(const T* const* rows, int64_t d) {
  const quad low = load_quad(rows[0] + d), high = load_quad(rows[4] + d);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
}
inline column low_ones(column a, column b) { return (column)_mm256_unpacklo_ps(a, b); }
inline column high_ones(column a, column b) { return (column)_mm256_unpackhi_ps(a, b); }
inline column low_twos(column a, column b) {
  return (column)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
}
inline column high_twos(column a, column b) {
  return (column)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
}
#else
constexpr int64_t kStep = 4;
typedef quad column;

template <typename T>
inline column load_column(const T* const* rows, int64_t d) {
  return load_quad(rows[0] + d);
}
inline column low_ones(column a, column b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline column high_ones(column a, column b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
inline column low_twos(column a, column b) { return __builtin_shufflevector(a, b, 0, 1, 4, 5); }
inline column high_twos(column a, column b) { return __builtin_shufflevector(a, b, 2, 3, 6, 7); }
#endif

inline void store_column(float* p, column value) { std::memcpy(p, &value, sizeof value); }

constexpr int64_t kLineBytes = 64;

// Where the keys and values of the next block lie, which are asked for while this one is worked on:
// the numbers of a head are a few lines here and a few there, which no processor foresees, and each
// of them would be waited for.
struct Ahead {
  const char* keys[kBlock];
  const char* values[kBlock];
  int64_t value_bytes = -1;  // of a row; -1: nothing is known of that block

  // Of `rows` rows from one on, the line that begins at a byte.
  void ask_for(int64_t row, int64_t rows, int64_t byte) const {
    for (int64_t i = row; i < row + rows; ++i) {
      __builtin_prefetch(keys[i] + byte, 0, 2);
      if (byte < value_bytes) __builtin_prefetch(values[i] + byte, 0, 2);
    }
  }
};

// rows: n pointers to [D], n a multiple of kLanes -> the first n columns of keys [D, 64]
template <typename T>
inline void transpose(const T* const* rows, int64_t n, int64_t dim, float* keys,
                      const Ahead& ahead) {
  // Each turn asks for its share of what is ahead, so that memory has always enough to do.
  constexpr int64_t kTurns = kLineBytes / (4 * sizeof(T));
  constexpr int64_t kRows = kTurns < kStep ? kStep / kTurns : 1;
  const bool asks = ahead.value_bytes >= 0;
  for (int64_t lane = 0; lane < n; lane += kStep, rows += kStep) {
    int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
      const int64_t row = d / 4 % kTurns * kRows;
      if (asks && row < kStep) ahead.ask_for(lane + row, kRows, d / 4 / kTurns * kLineBytes);
      const column a = load_column(rows, d), b = load_column(rows + 1, d);
      const column c = load_column(rows + 2, d), e = load_column(rows + 3, d);
      const column ab_low = low_ones(a, b), ab_high = high_ones(a, b);
      const column ce_low = low_ones(c, e), ce_high = high_ones(c, e);
      float* to = keys + d * kBlock + lane;
      store_column(to, low_twos(ab_low, ce_low));
      store_column(to + kBlock, high_twos(ab_low, ce_low));
      store_column(to + 2 * kBlock, low_twos(ab_high, ce_high));
      store_column(to + 3 * kBlock, high_twos(ab_high, ce_high));
    }
    for (; d < dim; ++d) {
      for (int64_t i = 0; i < kStep; ++i) keys[d * kBlock + lane + i] = load(rows[i] + d);
    }
  }
}

// One head of one cache, seen through one request's pages.
struct Tokens {
  const Cache& cache;
  const int32_t* pages;
  int64_t head;

  // Where slots lo .. hi-1 lie -> rows. A division for each would take as long as attending to it.
  template <typename T, typename Row>
  void find(int64_t lo, int64_t hi, const Row** rows) const {
    for (int64_t slot = lo; slot < hi;) {
      const int64_t page = slot / cache.page_size, first = page * cache.page_size;
      const int64_t end = smaller(hi, first + cache.page_size);
      const T* row = static_cast<const T*>(cache.data) + pages[page] * cache.page_stride +
                     (slot - first) * cache.token_stride + head * cache.head_stride;
      for (; slot < end; ++slot, row += cache.token_stride) {
        *rows++ = reinterpret_cast<const Row*>(row);
      }
    }
  }

  template <typename T>
  int64_t find_rows(int64_t first, const char** rows) const {
    find<T>(first, first + kBlock, rows);
    return cache.head_dim * int64_t(sizeof(T));
  }

  // The same of a block, whatever the numbers are. Returns the bytes of a row.
  int64_t find_block(int64_t first, const char** rows) const {
    switch (cache.dtype) {
      case Dtype::f32:
        return find_rows<float>(first, rows);
      case Dtype::bf16:
        return find_rows<bf16>(first, rows);
      case Dtype::f16:
        return find_rows<f16>(first, rows);
      case Dtype::e4m3:
        return find_rows<e4m3>(first, rows);
    }
    __builtin_unreachable();
  }

  // Slots first .. first+n-1 -> columns of keys [D, 64]; slots outside lo .. hi-1 are not read and
  // give 0.
  template <typename T>
  void stage_keys(int64_t first, int64_t n, int64_t lo, int64_t hi, const void* zeros, float* keys,
                  const Ahead& ahead) const {
    const T* rows[kBlock];
    for (const T*& row : rows) row = static_cast<const T*>(zeros);
    const int64_t begin = larger(first, lo);
    find<T>(begin, smaller(first + n, hi), rows + (begin - first));
    transpose(rows, n, cache.head_dim, keys, ahead);
  }

  // Slots lo .. hi-1 -> values [hi - lo, width], zero beyond D.
  template <typename T>
  void stage_values(int64_t lo, int64_t hi, int64_t width, float* values) const {
    const int64_t dim = cache.head_dim;
    for (int64_t first = lo; first < hi; first += kBlock) {
      const T* rows[kBlock];
      const int64_t n = smaller(kBlock, hi - first);
      find<T>(first, first + n, rows);
      for (int64_t i = 0; i < n; ++i, values += width) {
        int64_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) store_vec(values + d, load_vec(rows[i] + d));
        for (; d < dim; ++d) values[d] = load(rows[i] + d);
        for (; d < width; ++d) values[d] = 0;
      }
    }
  }
};

inline void stage_keys(const Tokens& tokens, int64_t first, int64_t n, int64_t lo, int64_t hi,
                       const void* zeros, float* keys, const Ahead& ahead) {
  switch (tokens.cache.dtype) {
    case Dtype::f32:
      return tokens.stage_keys<float>(first, n, lo, hi, zeros, keys, ahead);
    case Dtype::bf16:
      return tokens.stage_keys<bf16>(first, n, lo, hi, zeros, keys, ahead);
    case Dtype::f16:
      return tokens.stage_keys<f16>(first, n, lo, hi, zeros, keys, ahead);
    case Dtype::e4m3:
      return tokens.stage_keys<e4m3>(first, n, lo, hi, zeros, keys, ahead);
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
