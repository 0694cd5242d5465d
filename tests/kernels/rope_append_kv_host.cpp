// Runs the body of the CUDA kernel that turns and appends on a CPU, warp by warp; the sum over a
// warp is the kernel's own, in the same order.
#include "cuda/rope_append_kv.h"
#include "host.h"

int main() {
  const auto sizes = read_array<int64_t>(8);
  const int64_t rows = sizes[0], backwards = sizes[6];
  const auto floats = read_array<float>(2);
  // Keys have a scale for each head, values one for all.
  const auto k_scales = read_array<float>(sizes[7]);
  const auto qkv = read_bytes(), qk_norm = read_bytes(), cos = read_bytes(), sin = read_bytes();
  const auto positions = read_array<int64_t>(rows), slots = read_array<int64_t>(rows);
  HostCache k_cache, v_cache;
  std::vector<char> q(sizes[5]);
  const specedge::Rope rope{reinterpret_cast<const float*>(cos.data()),
                            reinterpret_cast<const float*>(sin.data()), sizes[4], positions.data()};
  const specedge::RopeAppendKv arguments{qkv.data(),
                                         q.data(),
                                         specedge::Dtype(sizes[1]),
                                         qk_norm.empty() ? nullptr : qk_norm.data(),
                                         specedge::Dtype(sizes[2]),
                                         floats[0],
                                         sizes[3],
                                         rope,
                                         k_cache.view(),
                                         v_cache.view(),
                                         {1, k_scales.data()},
                                         {floats[1]},
                                         slots.data()};
  const int64_t heads = arguments.heads(), n = rows * heads;
  for (int64_t step = 0; step < n; ++step) {
    const int64_t i = backwards ? n - 1 - step : step, row = i / heads, head = i % heads;
    float squares[specedge::kWarp];
    for (int lane = 0; lane < specedge::kWarp; ++lane) {
      squares[lane] = specedge::square_sum_lane(arguments, row, head, lane);
    }
    for (int other = specedge::kWarp / 2; other > 0; other /= 2) {
      for (int lane = 0; lane < other; ++lane) squares[lane] += squares[lane + other];
    }
    for (int lane = 0; lane < specedge::kWarp; ++lane) {
      specedge::rope_append_lane(arguments, row, head, lane, squares[0]);
    }
  }
  write_bytes(q);
  write_bytes(k_cache.bytes);
  write_bytes(v_cache.bytes);
}
