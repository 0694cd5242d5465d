#include <algorithm>
#include <string>

#include "checks.h"
#include "ops.h"

namespace specedge {
namespace {

void check_parents(const int32_t* parents, const int32_t* offsets, int64_t batch) {
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t node = 0; node < offsets[b + 1] - offsets[b]; ++node) {
      const int64_t parent = parents[offsets[b] + node];
      require(parent >= -1 && parent < node, "request ", b, ": expected the parent of node ", node,
              " to be -1 or an earlier node, got ", parent);
    }
  }
}

}  // namespace

// parents [N], offsets [B+1] -> ancestors [N, W], depth [N]
void build_tree(const int32_t* parents, const int32_t* offsets, int64_t batch, int64_t rows,
                int64_t words, int64_t* ancestors, int32_t* depth) {
  check_offsets(offsets, batch, rows);
  check_parents(parents, offsets, batch);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t first = offsets[b];
    for (int64_t node = 0; node < offsets[b + 1] - first; ++node) {
      int64_t* mask = ancestors + (first + node) * words;
      const int64_t parent = parents[first + node];
      if (parent >= 0) {
        std::copy_n(ancestors + (first + parent) * words, words, mask);
      } else {
        std::fill_n(mask, words, 0);
      }
      depth[first + node] = parent >= 0 ? depth[first + parent] + 1 : 0;
      if (node < 64 * words) mask[node / 64] |= int64_t(uint64_t(1) << (node % 64));
    }
  }
}

}  // namespace specedge
