// A row's sum of squares is always that of 64 columns: numbers 0, 64, 128 ... of the row in order,
// then 1, 65 ..., whatever the vectors hold, and then the columns by halves. Nothing here is
// contracted, so that the bits are the same on every instruction set.
#include "isa.h"
#include "threads.h"
#include "vec.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int64_t kColumns = 64;
constexpr int kVecs = kColumns / kLanes;

// x [width] += delta, rounded as x is stored; returns the sum of squares of what is stored.
template <typename T>
float add_and_square(T* x, const T* delta, int64_t width) {
  vec sums[kVecs] = {};
  for (int64_t first = 0; first < width; first += kColumns) {
    for (int c = 0; c < kVecs; ++c) {
      const int64_t i = first + c * kLanes, n = width - i;
      if (n <= 0) break;
      if (delta) store_first(x + i, n, load_first(x + i, n) + load_first(delta + i, n));
      const vec value = load_first(x + i, n);
      sums[c] += value * value;
    }
  }
  for (int half = kVecs / 2; half > 0; half /= 2) {
    for (int c = 0; c < half; ++c) sums[c] += sums[c + half];
  }
  return sum_of(sums[0]);
}

template <typename T>
void norm_row(T* x, const T* delta, const T* weight, int64_t width, float eps, T* out) {
  const float inverse =
      1.0f / __builtin_sqrtf(add_and_square(x, delta, width) / float(width) + eps);
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t n = width - i;
    store_first(out + i, n, load_first(x + i, n) * inverse * load_first(weight + i, n));
  }
}

template <typename T>
void norm_rows(void* x, const void* delta, const void* weight, int64_t rows, int64_t width,
               float eps, void* out) {
  for_rows(rows, width, [=](int64_t row) {
    const T* added = delta ? static_cast<const T*>(delta) + row * width : nullptr;
    norm_row(static_cast<T*>(x) + row * width, added, static_cast<const T*>(weight), width, eps,
             static_cast<T*>(out) + row * width);
  });
}

}  // namespace

void rms_norm(void* x, const void* delta, const void* weight, Dtype dtype, int64_t rows,
              int64_t width, float eps, void* out) {
  switch (dtype) {
    case Dtype::f32:
      return norm_rows<float>(x, delta, weight, rows, width, eps, out);
    case Dtype::bf16:
      return norm_rows<bf16>(x, delta, weight, rows, width, eps, out);
    case Dtype::f16:
      return norm_rows<f16>(x, delta, weight, rows, width, eps, out);
    case Dtype::e4m3:
      return;  // refused by ops.py
  }
}

}  // namespace specedge::SPECEDGE_ISA
