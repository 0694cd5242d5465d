// Every product and sum is rounded by itself, so that all instruction sets give the same bits.
#include "isa.h"
#include "threads.h"
#include "vec.h"

namespace specedge::SPECEDGE_ISA {
namespace {

template <typename T>
void sum_rows(const void* y, const float* weights, int64_t rows, int64_t parts, int64_t width,
              void* out) {
  for_rows(rows, parts * width, [=](int64_t row) {
    const T* from = static_cast<const T*>(y) + row * parts * width;
    T* to = static_cast<T*>(out) + row * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      vec sum{};
      for (int64_t j = 0; j < parts; ++j) {
        sum += weights[row * parts + j] * load_first(from + j * width + i, width - i);
      }
      store_first(to + i, width - i, sum);
    }
  });
}

}  // namespace

void weighted_sum(const void* y, Dtype dtype, const float* weights, int64_t rows, int64_t parts,
                  int64_t width, void* out) {
  switch (dtype) {
    case Dtype::f32:
      return sum_rows<float>(y, weights, rows, parts, width, out);
    case Dtype::bf16:
      return sum_rows<bf16>(y, weights, rows, parts, width, out);
    case Dtype::f16:
      return sum_rows<f16>(y, weights, rows, parts, width, out);
    case Dtype::e4m3:
      return;  // refused by ops.py
  }
}

}  // namespace specedge::SPECEDGE_ISA
