// Threads for work of many equal rows. Static, as vec.h.
#pragma once

#include <cstdint>
#include <exception>

namespace specedge {
namespace {

// Less than this many numbers are done before a second thread would have woken.
constexpr int64_t kNumbersWorthThreads = 32768;

// What bodies in a parallel region throw, such as std::bad_alloc: nothing may leave such a region,
// or the process ends. The first is kept, and thrown when all threads are done.
class Failure {
 public:
  template <typename Body>
  void keep(Body body) noexcept {
    try {
      body();
    } catch (...) {
#pragma omp critical(specedge_failure)
      if (!first_) first_ = std::current_exception();
    }
  }

  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::exception_ptr first_;
};

// body(row) for every row of `width` numbers, in any order.
template <typename Body>
inline void for_rows(int64_t rows, int64_t width, Body body) {
  if (rows * width <= kNumbersWorthThreads) {
    for (int64_t row = 0; row < rows; ++row) body(row);
    return;
  }
  Failure failure;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) failure.keep([&] { body(row); });
  failure.rethrow();
}

}  // namespace
}  // namespace specedge
