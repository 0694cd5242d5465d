// Every number by the same vector code wherever it stands in its row.
#include "isa.h"
#include "threads.h"
#include "vec.h"

namespace specedge::SPECEDGE_ISA {
namespace {

// x / (1 + e^-x), with e^-|x|, which cannot overflow.
vec silu_of(vec x) {
  const ivec negative = x < vec{};
  const vec e = exp_of(select(negative, x, -x));
  return x * (select(negative, e, splat(1.0f)) / (e + 1.0f));
}

template <typename T>
void gate_rows(const void* gate_up, int64_t rows, int64_t width, void* out) {
  for_rows(rows, width, [=](int64_t row) {
    const T* gate = static_cast<const T*>(gate_up) + row * 2 * width;
    T* to = static_cast<T*>(out) + row * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t n = width - i;
      store_first(to + i, n, silu_of(load_first(gate + i, n)) * load_first(gate + width + i, n));
    }
  });
}

}  // namespace

void silu_mul(const void* gate_up, Dtype dtype, int64_t rows, int64_t width, void* out) {
  switch (dtype) {
    case Dtype::f32:
      return gate_rows<float>(gate_up, rows, width, out);
    case Dtype::bf16:
      return gate_rows<bf16>(gate_up, rows, width, out);
    case Dtype::f16:
      return gate_rows<f16>(gate_up, rows, width, out);
    case Dtype::e4m3:
      return;  // refused by ops.py
  }
}

}  // namespace specedge::SPECEDGE_ISA
