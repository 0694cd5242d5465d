#include <vector>

#include "isa.h"
#include "ops.h"
#include "stored.h"
#include "threads.h"

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

// x [heads, D], each head over its own RMS and times its weights [D] -> out
template <typename T>
void norm_heads(const T* x, const HeadNorms& norms, int64_t heads, int64_t dim, float* out) {
  convert(x, out, heads * dim, 1);
  for (int64_t head = 0; head < heads; ++head, out += dim) {
    isa().rms_norm(out, nullptr, norms.weight + head * dim, Dtype::f32, 1, dim, norms.eps, out);
  }
}

}  // namespace

void check_places(const Rope& rope, const Cache& cache, const int64_t* slots, int64_t rows) {
  check_slots(slots, rows, cache);
  for (int64_t row = 0; row < rows; ++row) {
    require(rope.positions[row] >= 0 && rope.positions[row] < rope.n_positions,
            "expected positions in 0 .. ", rope.n_positions - 1, ", got ", rope.positions[row],
            " at row ", row);
  }
}

// qk [N, Hq + Hk, D], v [N, Hk, D], cos and sin [C, D] -> q [N, Hq, D], k and v at slots [N]
void unchecked::rope_append_kv(const void* qk, int64_t qk_stride, const void* v, int64_t v_stride,
                               Dtype dtype, int64_t query_heads, const HeadNorms& norms,
                               const Rope& rope, const Cache& k_cache, const Cache& v_cache,
                               const int64_t* slots, int64_t rows, const Scale& k_scale,
                               const Scale& v_scale, void* q) {
  const int64_t dim = k_cache.head_dim, turning = query_heads + k_cache.n_heads;
  with_type(dtype, [&]<typename T>() {
    for_rows(rows, turning * dim, [&](int64_t row) {
      std::vector<float> turned(turning * dim), normed;
      const float *cos = rope.cos + rope.positions[row] * dim,
                  *sin = rope.sin + rope.positions[row] * dim;
      const T* heads = static_cast<const T*>(qk) + row * qk_stride;
      if (norms.weight) {
        normed.resize(turning * dim);
        norm_heads(heads, norms, turning, dim, normed.data());
        rotate(normed.data(), cos, sin, turning, dim, turned.data());
      } else {
        rotate(heads, cos, sin, turning, dim, turned.data());
      }
      convert(turned.data(), static_cast<T*>(q) + row * query_heads * dim, query_heads * dim, 1);
      if (slots[row] < 0) return;
      store_token(turned.data() + query_heads * dim, k_cache, slots[row], k_scale);
      store_token(static_cast<const T*>(v) + row * v_stride, v_cache, slots[row], v_scale);
    });
  });
}

void rope_append_kv(const void* qk, int64_t qk_stride, const void* v, int64_t v_stride, Dtype dtype,
                    int64_t query_heads, const HeadNorms& norms, const Rope& rope,
                    const Cache& k_cache, const Cache& v_cache, const int64_t* slots, int64_t rows,
                    const Scale& k_scale, const Scale& v_scale, void* q) {
  check_places(rope, k_cache, slots, rows);
  check_scales(k_scale, v_scale, k_cache.n_heads);
  unchecked::rope_append_kv(qk, qk_stride, v, v_stride, dtype, query_heads, norms, rope, k_cache,
                            v_cache, slots, rows, k_scale, v_scale, q);
}

}  // namespace specedge
