// Masks of the tokens that may be drawn. Compiled for the baseline only.
#pragma once

#include "checks.h"
#include "ops.h"

namespace specedge {

inline void check_masks(const Masks& masks, int64_t rows) {
  for (int64_t row = 0; masks.row && row < rows; ++row) {
    require(masks.row[row] >= -1 && masks.row[row] < masks.count, "row ", row,
            ": expected a mask row in -1 .. ", masks.count - 1, ", got ", masks.row[row]);
  }
}

// The words of one row's mask, or null where all tokens are allowed.
inline const uint32_t* mask_of(const Masks& masks, int64_t row, int64_t vocabulary) {
  if (!masks.row || masks.row[row] < 0) return nullptr;
  return reinterpret_cast<const uint32_t*>(masks.words) + masks.row[row] * ((vocabulary + 31) / 32);
}

}  // namespace specedge
