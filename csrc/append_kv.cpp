#include "ops.h"
#include "stored.h"

namespace specedge {

// k [N, Hk, D], v [N, Hk, Dv] into the caches [P, S, Hk, D] and [P, S, Hk, Dv] at slots [N]
void append_kv(const void* k, const void* v, Dtype dtype, const Cache& k_cache,
               const Cache& v_cache, const int64_t* slots, int64_t rows, const Scale& k_scale,
               const Scale& v_scale) {
  check_slots(slots, rows, k_cache);
  check_scales(k_scale, v_scale, k_cache.n_heads);
  const int64_t k_width = k_cache.n_heads * k_cache.head_dim;
  const int64_t v_width = v_cache.n_heads * v_cache.head_dim;
  with_type(dtype, [&]<typename From>() {
    const From* keys = static_cast<const From*>(k);
    const From* values = static_cast<const From*>(v);
#pragma omp parallel for schedule(static) if (rows * (k_width + v_width) > 65536)
    for (int64_t row = 0; row < rows; ++row) {
      if (slots[row] < 0) continue;
      store_token(keys + row * k_width, k_cache, slots[row], k_scale);
      store_token(values + row * v_width, v_cache, slots[row], v_scale);
    }
  });
}

}  // namespace specedge
