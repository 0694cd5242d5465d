// Runs the body of the CUDA append kernel on a CPU, block by block and thread by thread.
#include "cuda/append_kv.h"
#include "host.h"

int main() {
  const auto sizes = read_array<int64_t>(4);
  const int64_t rows = sizes[0], backwards = sizes[2];
  // Keys have a scale for each head, values one for all.
  const auto k_scales = read_array<float>(sizes[3]);
  const float v_scale = read_array<float>(1)[0];
  const auto k = read_bytes(), v = read_bytes();
  const auto slots = read_array<int64_t>(rows);
  HostCache k_cache, v_cache;
  const specedge::AppendKv arguments{k.data(),       v.data(),       specedge::Dtype(sizes[1]),
                                     k_cache.view(), v_cache.view(), {1, k_scales.data()},
                                     {v_scale},      slots.data()};
  const int64_t n_threads = specedge::kAppendThreads, n = rows * n_threads;
  for (int64_t step = 0; step < n; ++step) {
    const int64_t i = backwards ? n - 1 - step : step;
    specedge::append_kv_thread(arguments, i / n_threads, int(i % n_threads), int(n_threads));
  }
  write_bytes(k_cache.bytes);
  write_bytes(v_cache.bytes);
}
