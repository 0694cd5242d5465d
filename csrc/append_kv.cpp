#include <cstring>

#include "checks.h"
#include "half.h"
#include "ops.h"

namespace specedge {
namespace {

template <typename From, typename To>
void convert(const From* from, To* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(to + i, load(from + i));
}

template <typename T>
void convert(const T* from, T* to, int64_t n) {
  std::memcpy(to, from, n * sizeof(T));
}

// rows [N, Hk, D] -> cache [P, S, Hk, D] at slots [N]
template <typename From, typename To>
void scatter(const From* from, To* to, const Cache& cache, const int64_t* slots, int64_t rows) {
  const int64_t heads = cache.n_heads, dim = cache.head_dim, size = cache.page_size;
#pragma omp parallel for schedule(static) if (rows * heads * dim > 65536)
  for (int64_t row = 0; row < rows; ++row) {
    if (slots[row] < 0) continue;
    To* token = to + slots[row] / size * cache.page_stride + slots[row] % size * cache.token_stride;
    for (int64_t head = 0; head < heads; ++head) {
      convert(from + (row * heads + head) * dim, token + head * cache.head_stride, dim);
    }
  }
}

template <typename From>
void scatter_from(const From* from, const Cache& cache, const int64_t* slots, int64_t rows) {
  switch (cache.dtype) {
    case Dtype::f32:
      return scatter(from, static_cast<float*>(cache.data), cache, slots, rows);
    case Dtype::bf16:
      return scatter(from, static_cast<bf16*>(cache.data), cache, slots, rows);
    case Dtype::f16:
      return scatter(from, static_cast<f16*>(cache.data), cache, slots, rows);
  }
}

void append(const void* from, Dtype dtype, const Cache& cache, const int64_t* slots, int64_t rows) {
  switch (dtype) {
    case Dtype::f32:
      return scatter_from(static_cast<const float*>(from), cache, slots, rows);
    case Dtype::bf16:
      return scatter_from(static_cast<const bf16*>(from), cache, slots, rows);
    case Dtype::f16:
      return scatter_from(static_cast<const f16*>(from), cache, slots, rows);
  }
}

}  // namespace

// k, v [N, Hk, D] into the caches [P, S, Hk, D] at slots [N]
void append_kv(const void* k, const void* v, Dtype dtype, const Cache& k_cache,
               const Cache& v_cache, const int64_t* slots, int64_t rows) {
  const int64_t n_slots = k_cache.n_pages * k_cache.page_size;
  for (int64_t row = 0; row < rows; ++row) {
    require(slots[row] < n_slots, "expected slots below ", n_slots, ", got ", slots[row],
            " at row ", row);
  }
  append(k, dtype, k_cache, slots, rows);
  append(v, dtype, v_cache, slots, rows);
}

}  // namespace specedge
