// The body of the CUDA kernel that appends keys and values, as a host-device function of the block
// and thread, so that the tests run this very source on a CPU.
#pragma once

#include "half.h"
#include "host_device.h"
#include "ops.h"

namespace specedge {

constexpr int kAppendThreads = 256;

// k / k_scale [N, Hk, D] and v / v_scale [N, Hk, Dv] into the caches [P, S, Hk, D] and
// [P, S, Hk, Dv] at slots [N]
struct AppendKv {
  const void *k, *v;
  Dtype dtype;
  Cache k_cache, v_cache;
  Scale k_scale, v_scale;
  const int64_t* slots;
};

SPECEDGE_HOST_DEVICE inline float load_number(const void* from, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::f32:
      return load(static_cast<const float*>(from) + i);
    case Dtype::bf16:
      return load(static_cast<const bf16*>(from) + i);
    case Dtype::f16:
      return load(static_cast<const f16*>(from) + i);
    case Dtype::e4m3:
      return load(static_cast<const e4m3*>(from) + i);
  }
  return 0;
}

SPECEDGE_HOST_DEVICE inline void store_number(void* to, Dtype dtype, int64_t i, float value) {
  switch (dtype) {
    case Dtype::f32:
      return store(static_cast<float*>(to) + i, value);
    case Dtype::bf16:
      return store(static_cast<bf16*>(to) + i, value);
    case Dtype::f16:
      return store(static_cast<f16*>(to) + i, value);
    case Dtype::e4m3:
      return store(static_cast<e4m3*>(to) + i, value);
  }
}

SPECEDGE_HOST_DEVICE inline int64_t place(const Cache& cache, int64_t slot, int64_t head) {
  return slot / cache.page_size * cache.page_stride + slot % cache.page_size * cache.token_stride +
         head * cache.head_stride;
}

// Row `row` of heads [N, Hk, D] / their scale -> the cache's token in `slot`
SPECEDGE_HOST_DEVICE inline void append_heads(const void* heads, Dtype dtype, int64_t row,
                                              const Cache& cache, int64_t slot, const Scale& scale,
                                              int thread, int n_threads) {
  const int dim = int(cache.head_dim), width = int(cache.n_heads) * dim;
  for (int i = thread; i < width; i += n_threads) {
    const int head = i / dim;
    const float x = load_number(heads, dtype, row * width + i);
    store_number(cache.data, cache.dtype, place(cache, slot, head) + i % dim, x / scale.of(head));
  }
}

SPECEDGE_HOST_DEVICE inline void append_kv_thread(const AppendKv& a, int64_t row, int thread,
                                                  int n_threads) {
  const int64_t slot = a.slots[row];
  if (slot < 0) return;
  append_heads(a.k, a.dtype, row, a.k_cache, slot, a.k_scale, thread, n_threads);
  append_heads(a.v, a.dtype, row, a.v_cache, slot, a.v_scale, thread, n_threads);
}

}  // namespace specedge
