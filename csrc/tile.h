// The register tile under linear and tree_attention: out[rows, columns] += x[rows, K] * w[K,
// columns], where every output is one chain of fused multiply-adds in increasing k. Its bits
// therefore do not depend on how rows and columns are grouped.
#pragma once

#include "vec.h"

namespace specedge {
namespace {

constexpr int kTileRows = 6;

// Rows of w, `stride` elements apart.
template <typename T>
struct Strided {
  const T* first;
  int64_t stride;

  const T* row(int64_t k) const { return first + k * stride; }

  template <int N>
  void prefetch(int64_t, int64_t) const {}
};

// The same, of a matrix that is read once: asks for N columns of the row `ahead` of the one in use,
// as far as the second-level cache, since so much would push the rest out of the first.
template <typename T>
struct Streamed {
  const T* first;
  int64_t stride, ahead;

  const T* row(int64_t k) const { return first + k * stride; }

  template <int N>
  void prefetch(int64_t k, int64_t column) const {
    const char* next = reinterpret_cast<const char*>(row(k + ahead) + column);
    for (size_t byte = 0; byte < N * sizeof(T); byte += 64) __builtin_prefetch(next + byte, 0, 2);
  }
};

// Rows of w wherever they lie.
struct Scattered {
  const float* const* rows;

  const float* row(int64_t k) const { return rows[k]; }

  template <int N>
  void prefetch(int64_t, int64_t) const {}
};

template <int ROWS, int VECS, typename Weights>
inline void multiply_tile(const float* x, int64_t x_stride, Weights w, int64_t column, int64_t n_k,
                          float* out, int64_t out_stride) {
  vec sums[ROWS][VECS];
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < VECS; ++c) sums[r][c] = load_vec(out + r * out_stride + c * kLanes);
  }
  for (int64_t k = 0; k < n_k; ++k) {
    const auto* weights = w.row(k) + column;
    w.template prefetch<VECS * kLanes>(k, column);
    vec columns[VECS];
    for (int c = 0; c < VECS; ++c) columns[c] = load_vec(weights + c * kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const vec scalar = splat(x[r * x_stride + k]);
      for (int c = 0; c < VECS; ++c) sums[r][c] = fma(scalar, columns[c], sums[r][c]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < VECS; ++c) store_vec(out + r * out_stride + c * kLanes, sums[r][c]);
  }
}

// The widest tile whose sums leave registers for a row of weights.
constexpr int tile_vecs(int rows) {
  const int most = (kRegisters - kRegisters / 4) / rows;
  return most >= 8 && kLanes < 16 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

template <int ROWS, typename Weights>
inline void multiply_rows(const float* x, int64_t x_stride, Weights w, int64_t n_k, int64_t columns,
                          float* out, int64_t out_stride) {
  constexpr int kVecs = tile_vecs(ROWS);
  int64_t c = 0;
  for (; c + kVecs * kLanes <= columns; c += kVecs * kLanes) {
    multiply_tile<ROWS, kVecs>(x, x_stride, w, c, n_k, out + c, out_stride);
  }
  for (; c < columns; c += kLanes) {
    multiply_tile<ROWS, 1>(x, x_stride, w, c, n_k, out + c, out_stride);
  }
}

// x [rows, n_k], w [n_k, columns] -> out [rows, columns] +=; columns a multiple of kLanes
template <typename Weights>
inline void multiply_add(const float* x, int64_t x_stride, int64_t rows, Weights w, int64_t n_k,
                         int64_t columns, float* out, int64_t out_stride) {
  while (rows > 0) {
    // Tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
    const int64_t n_tiles = (rows + kTileRows - 1) / kTileRows;
    const int64_t height = (rows + n_tiles - 1) / n_tiles;
    switch (height) {
      case 1:
        multiply_rows<1>(x, x_stride, w, n_k, columns, out, out_stride);
        break;
      case 2:
        multiply_rows<2>(x, x_stride, w, n_k, columns, out, out_stride);
        break;
      case 3:
        multiply_rows<3>(x, x_stride, w, n_k, columns, out, out_stride);
        break;
      case 4:
        multiply_rows<4>(x, x_stride, w, n_k, columns, out, out_stride);
        break;
      case 5:
        multiply_rows<5>(x, x_stride, w, n_k, columns, out, out_stride);
        break;
      default:
        multiply_rows<kTileRows>(x, x_stride, w, n_k, columns, out, out_stride);
    }
    rows -= height;
    x += height * x_stride;
    out += height * out_stride;
  }
}

}  // namespace
}  // namespace specedge
