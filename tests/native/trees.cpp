#include "native.h"

namespace specedge::native {
namespace {

// Row v: its own bit, and those of its ancestors that have one.
std::vector<int64_t> masks_of(const Forest& forest) {
  std::vector<int64_t> masks(forest.rows() * forest.words);
  for (int64_t b = 0; b < forest.batch(); ++b) {
    for (int64_t node = 0; node < forest.size(b); ++node) {
      for (int64_t j : forest.path(b, node)) {
        if (j >= 64 * forest.words) continue;
        int64_t& word = masks[(forest.offsets[b] + node) * forest.words + j / 64];
        word = int64_t(uint64_t(word) | uint64_t(1) << (j % 64));
      }
    }
  }
  return masks;
}

// Gives a node a parent that does not come before it.
void spoil_parent(Forest& forest, Random& random) {
  if (forest.rows() == 0) return;
  const int64_t row = random.between(0, forest.rows() - 1);
  int64_t node = row;
  for (int32_t offset : forest.offsets) {
    if (offset <= row) node = row - offset;
  }
  forest.parents[row] = random.chance(50) ? int32_t(node) : random.hostile<int32_t>(node);
}

// The deepest accepted node's path; of equals, that of the lowest numbered.
std::vector<int64_t> longest_accepted(const Forest& forest, int64_t b,
                                      const std::vector<int64_t>& tokens,
                                      const std::vector<int64_t>& target) {
  std::vector<int64_t> best;
  const int64_t first = forest.offsets[b];
  for (int64_t node = 0; node < forest.size(b); ++node) {
    const std::vector<int64_t> path = forest.path(b, node);
    bool holds = true;
    for (size_t j = 1; j < path.size(); ++j) {
      holds = holds && tokens[first + path[j]] == target[first + path[j - 1]];
    }
    if (holds && path.size() > best.size()) best = path;
  }
  return best;
}

// In a path, a star, any tree, a binary one, or a path with a leaf at every other node.
int64_t parent_of(int64_t node, int64_t shape, Random& random) {
  switch (shape) {
    case 0:
      return node - 1;
    case 1:
      return node > 0 ? 0 : -1;
    case 2:
      return random.between(-1, node - 1);
    case 3:
      return (node + 1) / 2 - 1;
    default:
      return node % 2 ? node - 1 : std::max<int64_t>(-1, node - 2);
  }
}

}  // namespace

Forest make_forest(Random& random, int64_t most) {
  Forest forest;
  int64_t largest = 1;
  for (int64_t b = random.between(0, 4); b > 0; --b) {
    const int64_t size =
        std::min(most, random.pick<int64_t>({0, 1, 1, 2, 5, 32, 63, 64, 65, 129, 200, 256}));
    const int64_t shape = random.between(0, 4);
    for (int64_t node = 0; node < size; ++node) {
      forest.parents.push_back(int32_t(parent_of(node, shape, random)));
    }
    forest.offsets.push_back(forest.offsets.back() + int32_t(size));
    largest = std::max(largest, size);
  }
  forest.words = (largest + 63) / 64 + random.between(0, 1);
  return forest;
}

void check_build_tree(Random& random) {
  Forest forest = make_forest(random, 256);
  if (random.chance(20)) forest.words = 1;
  const bool is_hostile = random.chance(40);
  const int64_t rows = forest.rows(), batch = forest.batch();
  if (is_hostile) {
    random.chance(50) ? spoil_parent(forest, random) : random.spoil(forest.offsets, rows);
  }
  std::vector<int64_t> masks(rows * forest.words, 7);
  std::vector<int32_t> depth(rows, 7);
  const bool taken = accepted([&] {
    build_tree(forest.parents.data(), forest.offsets.data(), batch, rows, forest.words,
               masks.data(), depth.data());
  });
  if (!taken) {
    expect(is_hostile, "build_tree refused a good case");
    expect(masks == std::vector<int64_t>(masks.size(), 7), "build_tree wrote and then refused");
    return;
  }
  expect(masks == masks_of(forest), "build_tree: wrong masks");
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t node = 0; node < forest.size(b); ++node) {
      expect(depth[forest.offsets[b] + node] + 1 == int64_t(forest.path(b, node).size()),
             "build_tree: wrong depth of node ", node);
    }
  }
}

void check_verify(Random& random) {
  Forest forest = make_forest(random, 256);
  std::vector<int64_t> masks = masks_of(forest), tokens, target;
  for (int64_t row = 0; row < forest.rows(); ++row) {
    tokens.push_back(random.between(0, random.pick({0, 1, 2})));
    target.push_back(random.chance(20) ? random.hostile<int64_t>() : 0);
  }
  const int64_t batch = forest.batch(), rows = forest.rows(), max_path = random.pick({0, 3, 256});
  Forest given = forest;
  const bool is_hostile = random.chance(40);
  if (is_hostile) random.chance(70) ? random.spoil(masks) : random.spoil(given.offsets);
  std::vector<int32_t> path(batch * max_path), lengths(batch);
  std::vector<int64_t> bonus(batch);
  const bool taken = accepted([&] {
    verify(tokens.data(), masks.data(), given.offsets.data(), target.data(), batch, rows,
           forest.words, max_path, path.data(), lengths.data(), bonus.data());
  });
  if (is_hostile) return;
  bool fits = true;
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<int64_t> want = longest_accepted(forest, b, tokens, target);
    fits = fits && int64_t(want.size()) <= max_path;
    if (!taken) continue;
    expect(lengths[b] == int64_t(want.size()), "verify: wrong length of request ", b);
    for (int64_t j = 0; j < max_path; ++j) {
      expect(path[b * max_path + j] == (j < lengths[b] ? want[j] : -1), "verify: wrong path");
    }
    expect(bonus[b] == (want.empty() ? -1 : target[forest.offsets[b] + want.back()]),
           "verify: wrong bonus of request ", b);
  }
  expect(taken == fits, "verify: a path of more than ", max_path, " nodes was taken, or refused");
}

}  // namespace specedge::native
