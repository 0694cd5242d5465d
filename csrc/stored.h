// How a head's numbers enter the paged cache. Compiled for the baseline only.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "half.h"
#include "ops.h"

namespace specedge {

// f<T>() with the type that dtype names.
template <typename F>
void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f32:
      return f.template operator()<float>();
    case Dtype::bf16:
      return f.template operator()<bf16>();
    case Dtype::f16:
      return f.template operator()<f16>();
    case Dtype::e4m3:
      return f.template operator()<e4m3>();
  }
}

// from [n] / scale -> to [n], rounded to nearest even
template <typename From, typename To>
void convert(const From* from, To* to, int64_t n, float scale) {
  if constexpr (std::is_same_v<From, To>) {
    if (scale == 1) {
      std::memcpy(to, from, n * sizeof(To));
      return;
    }
  }
  for (int64_t i = 0; i < n; ++i) store(to + i, load(from + i) / scale);
}

// heads [Hk, D] / their scale -> the cache's token in `slot`
template <typename From>
void store_token(const From* heads, const Cache& cache, int64_t slot, const Scale& scale) {
  const int64_t start =
      slot / cache.page_size * cache.page_stride + slot % cache.page_size * cache.token_stride;
  with_type(cache.dtype, [&]<typename To>() {
    To* token = static_cast<To*>(cache.data) + start;
    for (int64_t head = 0; head < cache.n_heads; ++head) {
      convert(heads + head * cache.head_dim, token + head * cache.head_stride, cache.head_dim,
              scale.of(head));
    }
  });
}

// Rows are written side by side: two of them in one slot would be a race.
inline void check_slots(const int64_t* slots, int64_t rows, const Cache& cache) {
  const int64_t n_slots = cache.n_pages * cache.page_size;
  std::vector<bool> taken(n_slots);
  for (int64_t row = 0; row < rows; ++row) {
    require(slots[row] < n_slots, "expected slots below ", n_slots, ", got ", slots[row],
            " at row ", row);
    if (slots[row] < 0) continue;
    require(!taken[slots[row]], "expected distinct slots, got ", slots[row], " again at row ", row);
    taken[slots[row]] = true;
  }
}

}  // namespace specedge
