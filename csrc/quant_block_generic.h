// Codes as words and plain loops, for processors that are neither x86 with AVX2 nor 64-bit ARM.
// Part of quant_block.h.
#pragma once

#include "quant_block.h"

namespace specedge {
namespace {

template <Quant Q>
struct Weights {
  static constexpr Form form = form_of(Q);
  int16_t values[kColumns][kBlock];

  explicit Weights(Place place) {
    const uint8_t* packed = place.panels[0];
    for (int column = 0; column < kColumns; ++column) {
      for (int input = 0; input < kBlock; ++input) {
        values[column][input] = value_at(packed + 4 * column + input % 4, input / 4);
      }
    }
  }

  // Of group g, at the byte that belongs to one output and one of four inputs.
  static int16_t value_at(const uint8_t* p, int g) {
    if constexpr (form.bits == 8) return form.is_signed ? int8_t(p[32 * g]) : p[32 * g];
    int code = p[32 * (g % 4)] >> g / 4 * 4 & 15;
    if constexpr (form.bits == 5) code |= (p[128] >> g & 1) << 4;
    if constexpr (form.bits == 6) code |= (p[128 + g / 4 * 32] >> g % 4 * 2 & 3) << 4;
    if constexpr (form.has_table()) code = table_of(form.codes)[code];
    return int16_t(code - form.offset);
  }

  void value(int input, ivec (&out)[kVecs]) const {
    int32_t lanes[kColumns];
    for (int c = 0; c < kColumns; ++c) lanes[c] = values[c][input];
    std::memcpy(out, lanes, sizeof lanes);
  }

  void dot(const Scales& scales, const Rounded& x, vec (&out)[kVecs]) const {
    int32_t factors[2][kColumns];
    float lanes[kColumns];
    if constexpr (form.has_two_scales()) std::memcpy(factors, scales.halves, sizeof factors);
    int16_t q[kBlock];
    for (int i = 0; i < kBlock; ++i) q[i] = x.q[i];
    for (int c = 0; c < kColumns; ++c) {
      int32_t sums[2] = {};
      for (int i = 0; i < kBlock; ++i) sums[i / 16] += values[c][i] * q[i];
      if constexpr (form.has_two_scales()) {
        for (int half = 0; half < 2; ++half) sums[half] *= factors[half][c];
      }
      lanes[c] = float(sums[0] + sums[1]);
    }
    std::memcpy(out, lanes, sizeof lanes);
  }
};

}  // namespace
}  // namespace specedge
