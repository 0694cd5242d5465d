// The largest of a row, without sorting it. Compiled for the baseline only.
#pragma once

#include <vector>

#include "isa.h"

namespace specedge {

// The columns of the k largest of x [n], best first, ties to the lowest column.
inline void largest(const float* x, int64_t n, int64_t k, std::vector<int64_t>& columns) {
  columns.clear();
  const auto insert = [&](int64_t column) {
    int64_t place = int64_t(columns.size());
    columns.push_back(column);
    for (; place > 0 && x[columns[place - 1]] < x[column]; --place) {
      columns[place] = columns[place - 1];
    }
    columns[place] = column;
  };
  for (int64_t column = 0; column < k; ++column) insert(column);
  int64_t column = isa().find_above(x, k, n, x[columns.back()]);
  while (column < n) {
    columns.pop_back();
    insert(column);
    column = isa().find_above(x, column + 1, n, x[columns.back()]);
  }
}

}  // namespace specedge
