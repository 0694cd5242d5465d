#include <cstring>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace specedge {
namespace {

// Requests move side by side: what one of them touches must be its own.
void take_pages(std::vector<bool>& taken, const int32_t* pages, int64_t page_size, int64_t first,
                int64_t end, int64_t b) {
  for (int64_t i = first / page_size; i * page_size < end; ++i) {
    require(!taken[pages[i]], "request ", b, ": expected pages of its own, got ", pages[i],
            " again at index ", i);
    taken[pages[i]] = true;
  }
}

void check_paths(const Planes& kv, const int32_t* page_table, int64_t pages_per_request,
                 const int32_t* prefix_lens, const int32_t* path, const int32_t* accepted_lens,
                 int64_t batch, int64_t max_path) {
  std::vector<bool> taken(kv.n_pages);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = accepted_lens[b], prefix = prefix_lens[b];
    const int32_t* pages = page_table + b * pages_per_request;
    const int32_t* nodes = path + b * max_path;
    require(count >= 0 && count <= max_path, "request ", b,
            ": expected an accepted length in 0 .. ", max_path, ", got ", count);
    require(prefix >= 0, "request ", b, ": expected a prefix length of 0 or more, got ", prefix);
    for (int64_t j = 0; j < count; ++j) {
      require(nodes[j] > (j ? nodes[j - 1] : -1), "request ", b,
              ": expected path nodes to increase from 0 or more, got ", nodes[j], " at index ", j);
    }
    if (count == 0) continue;
    const int64_t end = prefix + nodes[count - 1] + 1;
    check_pages(pages, pages_per_request, kv.n_pages, kv.page_size, prefix, end, b);
    if (nodes[count - 1] >= count) take_pages(taken, pages, kv.page_size, prefix, end, b);
  }
}

}  // namespace

// kv [L, X, P, S, Hk, D], page_table [B, M], prefix_lens [B], path [B, A], accepted_lens [B]
void compact_kv(const Planes& kv, const int32_t* page_table, int64_t pages_per_request,
                const int32_t* prefix_lens, const int32_t* path, const int32_t* accepted_lens,
                int64_t batch, int64_t max_path) {
  check_paths(kv, page_table, pages_per_request, prefix_lens, path, accepted_lens, batch, max_path);
#pragma omp parallel for schedule(static) collapse(2) if (batch * kv.n_layers * kv.n_parts > 128)
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t plane = 0; plane < kv.n_layers * kv.n_parts; ++plane) {
      const int32_t* pages = page_table + b * pages_per_request;
      char* base =
          kv.data + plane / kv.n_parts * kv.layer_stride + plane % kv.n_parts * kv.part_stride;
      const auto token = [&](int64_t position) {
        return base + pages[position / kv.page_size] * kv.page_stride +
               position % kv.page_size * kv.token_stride;
      };
      // path[j] >= j and grows, so ascending j never overwrites a source that is still to be read.
      for (int64_t j = 0; j < accepted_lens[b]; ++j) {
        const int64_t node = path[b * max_path + j];
        if (node == j) continue;
        const char* from = token(prefix_lens[b] + node);
        char* to = token(prefix_lens[b] + j);
        for (int64_t head = 0; head < kv.n_heads; ++head) {
          std::memcpy(to + head * kv.head_stride, from + head * kv.head_stride, kv.run_bytes);
        }
      }
    }
  }
}

}  // namespace specedge
