// Codes as signed bytes and products of four, 64-bit ARM. Part of quant_block.h.
#pragma once

#include "quant_block.h"

namespace specedge {
namespace {

// 4 inputs of 4 outputs times the same 4 activations, added to a sum for each output.
inline int32x4_t add_products(int32x4_t sums, int8x16_t codes, int8x16_t activations) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sums, codes, activations);
#else
  // Two products of bytes fit 16 bits: activations are at most 127.
  const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(activations));
  const int16x8_t high = vmull_s8(vget_high_s8(codes), vget_high_s8(activations));
  return vpadalq_s16(sums, vpaddq_s16(low, high));
#endif
}

// Bits first .. first + n - 1 of each byte, at bit 4.
inline uint8x16_t bits_at_4(uint8x16_t plane, int first, int n) {
  return vandq_u8(vshlq_u8(plane, vdupq_n_s8(int8_t(4 - first))),
                  vdupq_n_u8(uint8_t(((1 << n) - 1) << 4)));
}

// 4 inputs of 4 outputs, 8 times -> as bytes that are stored
template <Quant Q>
inline void load_codes(const uint8_t* from, uint8x16_t (&codes)[8]) {
  constexpr Form form = form_of(Q);
  if constexpr (form.bits == 8) {
    for (int g = 0; g < 8; ++g) codes[g] = vld1q_u8(from + 32 * g);
  } else {
    for (int g = 0; g < 4; ++g) {
      const uint8x16_t pairs = vld1q_u8(from + 32 * g);
      codes[g] = vandq_u8(pairs, vdupq_n_u8(15));
      codes[4 + g] = vshrq_n_u8(pairs, 4);
    }
  }
  if constexpr (form.bits == 5) {
    const uint8x16_t plane = vld1q_u8(from + 128);
    for (int g = 0; g < 8; ++g) codes[g] = vorrq_u8(codes[g], bits_at_4(plane, g, 1));
  }
  if constexpr (form.bits == 6) {
    for (int g = 0; g < 8; ++g) {
      const uint8x16_t plane = vld1q_u8(from + 128 + g / 4 * 32);
      codes[g] = vorrq_u8(codes[g], bits_at_4(plane, g % 4 * 2, 2));
    }
  }
}

template <Quant Q>
struct Weights {
  static constexpr Form form = form_of(Q);
  int8x16_t values[kVecs][8];

  explicit Weights(Place place) {
    for (int i = 0; i < kVecs; ++i) {
      uint8x16_t codes[8];
      load_codes<Q>(place.panels[0] + 16 * i, codes);
      for (int g = 0; g < 8; ++g) {
        if constexpr (form.codes == Codes::plain) {
          values[i][g] = vreinterpretq_s8_u8(codes[g]);
        } else {
          values[i][g] = vqtbl1q_s8(vld1q_s8(table_of(form.codes)), codes[g]);
        }
        if constexpr (form.offset != 0) {
          values[i][g] = vsubq_s8(values[i][g], vdupq_n_s8(form.offset));
        }
      }
    }
  }

  // The integer of one input, of each output.
  void value(int input, ivec (&out)[kVecs]) const {
    for (int i = 0; i < kVecs; ++i) {
      out[i] = (ivec)values[i][input / 4] << (24 - input % 4 * 8) >> 24;
    }
  }

  // Sum of value times activation over the block, of each output.
  void dot(const Scales& scales, const Rounded& x, vec (&out)[kVecs]) const {
    constexpr int kParts = form.has_two_scales() ? 2 : 1, kGroups = 8 / kParts;
    ivec totals[kVecs] = {};
    for (int part = 0; part < kParts; ++part) {
      int32x4_t sums[kVecs] = {};
      for (int g = part * kGroups; g < (part + 1) * kGroups; ++g) {
        const int8x16_t activations =
            vreinterpretq_s8_s32(vdupq_n_s32(load_as<int32_t>(x.q + 4 * g)));
        for (int i = 0; i < kVecs; ++i) sums[i] = add_products(sums[i], values[i][g], activations);
      }
      for (int i = 0; i < kVecs; ++i) {
        totals[i] += form.has_two_scales() ? (ivec)sums[i] * scales.halves[part][i] : (ivec)sums[i];
      }
    }
    for (int i = 0; i < kVecs; ++i) out[i] = floats_of(totals[i]);
  }
};

}  // namespace
}  // namespace specedge
