// The body of the CUDA kernel that appends keys and values, as a host-device function of the block
// and thread, so that the tests run this very source on a CPU.
#pragma once

#include "half.h"
#include "host_device.h"
#include "ops.h"

namespace specedge {

constexpr int kAppendThreads = 256;

// k / k_scale and v / v_scale [N, Hk, D] into the caches [P, S, Hk, D] at slots [N]
struct AppendKv {
  const void *k, *v;
  Dtype dtype;
  Cache k_cache, v_cache;
  float k_scale, v_scale;
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

SPECEDGE_HOST_DEVICE inline void append_kv_thread(const AppendKv& a, int64_t row, int thread,
                                                  int n_threads) {
  const int64_t slot = a.slots[row];
  if (slot < 0) return;
  const int dim = int(a.k_cache.head_dim), width = int(a.k_cache.n_heads) * dim;
  for (int i = thread; i < width; i += n_threads) {
    const int head = i / dim, d = i % dim;
    const float key = load_number(a.k, a.dtype, row * width + i);
    const float value = load_number(a.v, a.dtype, row * width + i);
    store_number(a.k_cache.data, a.k_cache.dtype, place(a.k_cache, slot, head) + d,
                 key / a.k_scale);
    store_number(a.v_cache.data, a.v_cache.dtype, place(a.v_cache, slot, head) + d,
                 value / a.v_scale);
  }
}

}  // namespace specedge
