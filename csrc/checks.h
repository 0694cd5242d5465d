// Checks of values: a wrong one becomes std::invalid_argument, which Python sees as ValueError.
// Compiled for the baseline only.
#pragma once

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>

#include "ops.h"

namespace specedge {

template <typename... Parts>
void require(bool holds, const Parts&... sentence) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << sentence);
  throw std::invalid_argument(text.str());
}

// offsets [B+1] must cut rows 0 .. N-1 into B consecutive requests.
inline void check_offsets(const int32_t* offsets, int64_t batch, int64_t rows) {
  require(offsets[0] == 0, "expected offsets to start at 0, got ", offsets[0]);
  for (int64_t b = 0; b < batch; ++b) {
    require(offsets[b] <= offsets[b + 1], "expected offsets not to decrease, got ", offsets[b],
            " then ", offsets[b + 1], " at request ", b);
  }
  require(offsets[batch] == rows, "expected the last offset to be the number of rows ", rows,
          ", got ", offsets[batch]);
}

inline void check_scales(const Scale& k_scale, const Scale& v_scale, int64_t heads) {
  for (int64_t head = 0; head < heads; ++head) {
    for (const Scale* scale : {&k_scale, &v_scale}) {
      require(scale->of(head) > 0 && std::isfinite(scale->of(head)), "expected a ",
              scale == &k_scale ? "k_scale" : "v_scale", " of more than 0, and finite, got ",
              scale->of(head), " for head ", head);
    }
  }
}

// Tokens first .. end-1 of request b must lie on pages of the cache.
inline void check_pages(const int32_t* pages, int64_t pages_per_request, int64_t n_pages,
                        int64_t page_size, int64_t first, int64_t end, int64_t b) {
  require((end + page_size - 1) / page_size <= pages_per_request, "request ", b,
          ": expected pages for ", end, " tokens, got a page table of ", pages_per_request,
          " pages of ", page_size);
  for (int64_t i = first / page_size; i * page_size < end; ++i) {
    require(pages[i] >= 0 && pages[i] < n_pages, "request ", b, ": expected page ids in 0 .. ",
            n_pages - 1, ", got ", pages[i], " at index ", i);
  }
}

}  // namespace specedge
