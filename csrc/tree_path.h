// Where the tokens of a query node's path lie: positions count along the path, slots along the
// cache (prefix, then nodes in their own order). Static, as vec.h.
#pragma once

#include "ops.h"

namespace specedge {
namespace {

constexpr int64_t kBlock = 64;  // positions of one softmax step

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_down(int64_t a, int64_t unit) { return a / unit * unit; }
inline int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// One query node: its path is the prefix, then the nodes of its mask, `length` tokens in all.
struct Row {
  const int64_t* mask;  // [W]
  int64_t prefix, node, length;
  int64_t start;     // the first visible position
  int64_t straight;  // positions below this one lie in the slot of the same number
};

inline Row describe(const Trees& trees, int64_t b, int64_t row, int64_t window) {
  const int64_t* mask = trees.ancestors + row * trees.words;
  const int64_t prefix = trees.prefix_lens[b], depth = trees.depth[row];
  const int64_t node = trees.n_nodes[b] - (trees.offsets[b + 1] - row);
  const int64_t length = prefix + depth + 1;
  int64_t leading = depth == node ? node + 1 : 0;
  if (leading == 0) {
    while (mask[leading / 64] >> (leading % 64) & 1) ++leading;
  }
  return {
      mask, prefix, node, length, window < 0 ? 0 : larger(0, length - window), prefix + leading};
}

// The slots of positions from .. to-1 of a row's path.
inline void path_slots(const Row& row, int64_t from, int64_t to, int32_t* slots) {
  int64_t position = from;
  for (; position < to && position < row.straight; ++position) *slots++ = int32_t(position);
  int64_t reached = row.straight;
  for (int64_t node = row.straight - row.prefix; position < to; ++node) {
    if (!(row.mask[node / 64] >> (node % 64) & 1)) continue;
    if (reached++ < position) continue;
    *slots++ = int32_t(row.prefix + node);
    ++position;
  }
}

// Query nodes first_row .. end_row-1 of request b, the query heads of one key/value head.
struct Task {
  int64_t b, head, first_row, end_row;
};

// What the rows of a task have in common, in positions. Blocks in common_begin .. common_end-1 are
// visible to every row and lie in the same slots for all.
struct Span {
  int64_t start, common_begin, common_end, end_slot, longest;
};

inline Span span_of(const Trees& trees, const Task& task, int64_t window) {
  int64_t start = INT64_MAX, last_start = 0, straight = INT64_MAX, end_slot = 0, longest = 0;
  for (int64_t r = task.first_row; r < task.end_row; ++r) {
    const Row row = describe(trees, task.b, r, window);
    start = smaller(start, row.start);
    last_start = larger(last_start, row.start);
    straight = smaller(straight, row.straight);
    end_slot = larger(end_slot, row.prefix + row.node + 1);
    longest = larger(longest, row.length);
  }
  const int64_t begin = round_up(last_start, kBlock), end = round_down(straight, kBlock);
  if (begin >= end) {
    const int64_t only = round_down(start, kBlock);
    return {start, only, only, end_slot, longest};
  }
  return {start, begin, end, end_slot, longest};
}

}  // namespace
}  // namespace specedge
