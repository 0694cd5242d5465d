#include <algorithm>
#include <bit>
#include <vector>

#include "checks.h"
#include "ops.h"

namespace specedge {
namespace {

// The nodes of one tree, as masks: row v of ancestors holds v and its ancestors.
struct Tree {
  const int64_t* ancestors;  // [T, W]
  int64_t words;

  uint64_t up_to(int64_t node, int64_t last, int64_t word) const {
    const uint64_t bits = uint64_t(ancestors[node * words + word]);
    if (word < last / 64) return bits;
    return word > last / 64 ? 0 : bits & (~uint64_t(0) >> (63 - last % 64));
  }

  int64_t parent(int64_t node) const {
    for (int64_t word = (node - 1) / 64; node > 0 && word >= 0; --word) {
      const uint64_t bits = up_to(node, node - 1, word);
      if (bits) return word * 64 + 63 - std::countl_zero(bits);
    }
    return -1;
  }

  int64_t path_length(int64_t node) const {
    int64_t count = 0;
    for (int64_t word = 0; word < words; ++word) count += std::popcount(up_to(node, node, word));
    return count;
  }

  void write_path(int64_t node, int32_t* path) const {
    for (int64_t word = 0; word < words; ++word) {
      for (uint64_t bits = up_to(node, node, word); bits; bits &= bits - 1) {
        *path++ = int32_t(word * 64 + std::countr_zero(bits));
      }
    }
  }
};

void check_masks(const Tree& tree, int64_t n_nodes, int64_t b) {
  for (int64_t node = 0; node < n_nodes; ++node) {
    require(uint64_t(tree.ancestors[node * tree.words + node / 64]) >> (node % 64) & 1, "request ",
            b, ": expected the mask of node ", node, " to hold the node itself");
  }
}

// The first of the deepest accepted nodes, or -1 for an empty tree.
int64_t walk(const Tree& tree, const int64_t* tokens, const int64_t* target, int64_t n_nodes) {
  std::vector<bool> accepted(n_nodes);
  int64_t best = -1, best_length = 0;
  for (int64_t node = 0; node < n_nodes; ++node) {
    const int64_t parent = tree.parent(node);
    accepted[node] = parent < 0 || (accepted[parent] && tokens[node] == target[parent]);
    if (accepted[node] && tree.path_length(node) > best_length) {
      best = node;
      best_length = tree.path_length(node);
    }
  }
  return best;
}

}  // namespace

// tokens [N], ancestors [N, W], offsets [B+1], target [N] -> path [B, A], accepted [B], bonus [B]
void verify(const int64_t* tokens, const int64_t* ancestors, const int32_t* offsets,
            const int64_t* target, int64_t batch, int64_t rows, int64_t words, int64_t max_path,
            int32_t* path, int32_t* accepted_lens, int64_t* bonus) {
  check_offsets(offsets, batch, rows);
  std::fill_n(path, batch * max_path, -1);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t first = offsets[b], n_nodes = offsets[b + 1] - first;
    require(n_nodes <= 64 * words, "request ", b, ": expected at most ", 64 * words,
            " nodes for masks of ", words, " words, got ", n_nodes);
    const Tree tree{ancestors + first * words, words};
    check_masks(tree, n_nodes, b);
    const int64_t best = walk(tree, tokens + first, target + first, n_nodes);
    const int64_t length = best < 0 ? 0 : tree.path_length(best);
    require(length <= max_path, "request ", b, ": expected an accepted path of at most ", max_path,
            " nodes, got ", length);
    if (best >= 0) tree.write_path(best, path + b * max_path);
    accepted_lens[b] = int32_t(length);
    bonus[b] = best < 0 ? -1 : target[first + best];
  }
}

}  // namespace specedge
