#include "ops.h"
#include "stored.h"

namespace specedge {

// k, v [N, Hk, D] into the caches [P, S, Hk, D] at slots [N]
void append_kv(const void* k, const void* v, Dtype dtype, const Cache& k_cache,
               const Cache& v_cache, const int64_t* slots, int64_t rows, float k_scale,
               float v_scale) {
  check_slots(slots, rows, k_cache);
  const int64_t width = k_cache.n_heads * k_cache.head_dim;
  with_type(dtype, [&]<typename From>() {
    const From* keys = static_cast<const From*>(k);
    const From* values = static_cast<const From*>(v);
#pragma omp parallel for schedule(static) if (rows * width > 32768)
    for (int64_t row = 0; row < rows; ++row) {
      if (slots[row] < 0) continue;
      store_token(keys + row * width, k_cache, slots[row], k_scale);
      store_token(values + row * width, v_cache, slots[row], v_scale);
    }
  });
}

}  // namespace specedge
