// The body of the CUDA kernel from a layer's projections to its queries and its cache: norm of
// queries and keys, rotary position, append. A warp takes a head. The two steps around the sum over
// the warp are host-device functions of the lane, so that the tests run this very source on a CPU.
#pragma once

#include <cmath>

#include "cuda/append_kv.h"

namespace specedge {

constexpr int kWarp = 32, kHeadsPerBlock = 8;

// qkv [N, Hq + 2 Hk, D] -> q [N, Hq, D], k and v into the caches at slots [N]
struct RopeAppendKv {
  const void* qkv;
  void* q;
  Dtype dtype;
  const void* qk_norm;  // [Hq + Hk, D] or null
  Dtype norm_dtype;
  float eps;
  int64_t query_heads;
  Rope rope;
  Cache k_cache, v_cache;
  Scale k_scale, v_scale;
  const int64_t* slots;

  SPECEDGE_HOST_DEVICE int64_t heads() const { return query_heads + 2 * k_cache.n_heads; }
  // Queries and keys are normalised and turned, values are not.
  SPECEDGE_HOST_DEVICE bool turns(int64_t head) const { return head < heads() - k_cache.n_heads; }
  SPECEDGE_HOST_DEVICE int64_t start(int64_t row, int64_t head) const {
    return (row * heads() + head) * k_cache.head_dim;
  }
};

// This lane's part of the sum of squares of a head; 0 where there is no norm.
SPECEDGE_HOST_DEVICE inline float square_sum_lane(const RopeAppendKv& a, int64_t row, int64_t head,
                                                  int lane) {
  float sum = 0;
  if (!a.qk_norm || !a.turns(head)) return sum;
  for (int64_t d = lane; d < a.k_cache.head_dim; d += kWarp) {
    const float x = load_number(a.qkv, a.dtype, a.start(row, head) + d);
    sum += x * x;
  }
  return sum;
}

// Element d of a query or key head before it is turned.
SPECEDGE_HOST_DEVICE inline float normed(const RopeAppendKv& a, int64_t row, int64_t head,
                                         int64_t d, float factor) {
  const float x = load_number(a.qkv, a.dtype, a.start(row, head) + d);
  if (!a.qk_norm) return x;
  return x * factor * load_number(a.qk_norm, a.norm_dtype, head * a.k_cache.head_dim + d);
}

SPECEDGE_HOST_DEVICE inline void store_head(const RopeAppendKv& a, int64_t row, int64_t head,
                                            int64_t d, float value) {
  const int64_t slot = a.slots[row];
  if (head < a.query_heads) {
    store_number(a.q, a.dtype, (row * a.query_heads + head) * a.k_cache.head_dim + d, value);
  } else if (slot >= 0 && a.turns(head)) {
    const int64_t kv_head = head - a.query_heads;
    store_number(a.k_cache.data, a.k_cache.dtype, place(a.k_cache, slot, kv_head) + d,
                 value / a.k_scale.of(kv_head));
  } else if (slot >= 0) {
    const int64_t kv_head = head - a.query_heads - a.k_cache.n_heads;
    store_number(a.v_cache.data, a.v_cache.dtype, place(a.v_cache, slot, kv_head) + d,
                 value / a.v_scale.of(kv_head));
  }
}

// This lane's elements of a head, d and d + D/2 together; `squares` is summed over the warp.
SPECEDGE_HOST_DEVICE inline void rope_append_lane(const RopeAppendKv& a, int64_t row, int64_t head,
                                                  int lane, float squares) {
  const int64_t dim = a.k_cache.head_dim, half = dim / 2;
  const float* cos = a.rope.cos + a.rope.positions[row] * dim;
  const float* sin = a.rope.sin + a.rope.positions[row] * dim;
  const float factor = 1 / sqrtf(squares / float(dim) + a.eps);
  for (int64_t d = lane; d < half; d += kWarp) {
    if (a.turns(head)) {
      const float low = normed(a, row, head, d, factor);
      const float high = normed(a, row, head, d + half, factor);
      store_head(a, row, head, d, low * cos[d] + high * sin[d]);
      store_head(a, row, head, d + half, high * cos[d + half] + low * sin[d + half]);
    } else {
      store_head(a, row, head, d, load_number(a.qkv, a.dtype, a.start(row, head) + d));
      store_head(a, row, head, d + half,
                 load_number(a.qkv, a.dtype, a.start(row, head) + d + half));
    }
  }
}

}  // namespace specedge
