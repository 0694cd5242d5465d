#include <vector>

#include "ops.h"
#include "stored.h"

namespace specedge {
namespace {

// x [heads, D] turned by the table rows cos, sin [D] -> out [heads, D]: d turns with d + D/2.
// Two products and a sum, each rounded, as torch does it.
template <typename T>
void rotate(const T* x, const float* cos, const float* sin, int64_t heads, int64_t dim,
            float* out) {
  const int64_t half = dim / 2;
  for (int64_t head = 0; head < heads; ++head, x += dim, out += dim) {
#pragma omp simd
    for (int64_t d = 0; d < half; ++d) {
      const float low = load(x + d), high = load(x + d + half);
      out[d] = low * cos[d] + high * sin[d];
      out[d + half] = high * cos[d + half] + low * sin[d + half];
    }
  }
}

}  // namespace

// qk [N, Hq + Hk, D], v [N, Hk, D], cos and sin [C, D] -> q [N, Hq, D], k and v at slots [N]
void rope_append_kv(const void* qk, int64_t qk_stride, const void* v, int64_t v_stride, Dtype dtype,
                    int64_t query_heads, const Rope& rope, const Cache& k_cache,
                    const Cache& v_cache, const int64_t* slots, int64_t rows, float k_scale,
                    float v_scale, void* q) {
  check_slots(slots, rows, k_cache);
  for (int64_t row = 0; row < rows; ++row) {
    require(rope.positions[row] >= 0 && rope.positions[row] < rope.n_positions,
            "expected positions in 0 .. ", rope.n_positions - 1, ", got ", rope.positions[row],
            " at row ", row);
  }
  const int64_t dim = k_cache.head_dim, turning = query_heads + k_cache.n_heads;
  with_type(dtype, [&]<typename T>() {
    const T *turn_in = static_cast<const T*>(qk), *values = static_cast<const T*>(v);
    T* out = static_cast<T*>(q);
#pragma omp parallel if (rows * turning * dim > 32768)
    {
      std::vector<float> turned(turning * dim);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t table_row = rope.positions[row] * dim;
        rotate(turn_in + row * qk_stride, rope.cos + table_row, rope.sin + table_row, turning, dim,
               turned.data());
        convert(turned.data(), out + row * query_heads * dim, query_heads * dim, 1);
        if (slots[row] < 0) continue;
        store_token(turned.data() + query_heads * dim, k_cache, slots[row], k_scale);
        store_token(values + row * v_stride, v_cache, slots[row], v_scale);
      }
    }
  });
}

}  // namespace specedge
