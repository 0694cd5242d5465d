// Runs the body of the CUDA compaction kernel on a CPU, block by block and thread by thread.
#include "cuda/compact_kv.h"
#include "host.h"

int main() {
  const std::vector<int64_t> sizes = read_array<int64_t>(16);
  const int64_t layers = sizes[0], batch = sizes[1], n_bytes = sizes[2], backwards = sizes[3];
  const int64_t parts = sizes[15], planes = layers * parts;
  const int64_t pages_per_request = sizes[6], max_path = sizes[7];
  const auto page_table = read_array<int32_t>(batch * pages_per_request);
  const auto prefix_lens = read_array<int32_t>(batch);
  const auto path = read_array<int32_t>(batch * max_path);
  const auto accepted_lens = read_array<int32_t>(batch);
  auto kv = read_array<char>(n_bytes);
  const specedge::CompactKv arguments{kv.data(),
                                      parts,
                                      sizes[4],
                                      sizes[5],
                                      pages_per_request,
                                      max_path,
                                      sizes[8],
                                      sizes[9],
                                      sizes[10],
                                      sizes[11],
                                      sizes[12],
                                      sizes[13],
                                      sizes[14],
                                      page_table.data(),
                                      prefix_lens.data(),
                                      path.data(),
                                      accepted_lens.data()};
  const int64_t n_threads = specedge::kCompactThreads, n = planes * batch * n_threads;
  for (int64_t step = 0; step < n; ++step) {
    const int64_t i = backwards ? n - 1 - step : step;
    specedge::compact_kv_thread(arguments, i / n_threads % planes, i / n_threads / planes,
                                i % n_threads, n_threads);
  }
  write_bytes(kv);
}
