// Threads for work of many equal rows. Static, as vec.h.
#pragma once

#include <cstdint>

namespace specedge {
namespace {

// Less than this many numbers are done before a second thread would have woken.
constexpr int64_t kNumbersWorthThreads = 32768;

// body(row) for every row of `width` numbers, in any order.
template <typename Body>
inline void for_rows(int64_t rows, int64_t width, Body body) {
  if (rows * width <= kNumbersWorthThreads) {
    for (int64_t row = 0; row < rows; ++row) body(row);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) body(row);
}

}  // namespace
}  // namespace specedge
