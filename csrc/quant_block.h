// A packed block of 32 inputs by kTile outputs in registers, and its products with activations
// rounded to 8 bits. Integer products are exact, so every instruction set finds the same ones.
#pragma once

#include "isa.h"
#include "quant_form.h"
#include "vec.h"

namespace specedge {
namespace {

// Panels side by side: as many outputs as a vector has lanes, but at least one panel's. Where a
// product is one instruction, twice as many: activations are loaded once for both vectors.
#if defined(__AVX512VNNI__)
constexpr int kPanels = 4;
#else
constexpr int kPanels = kLanes > kColumns ? kLanes / kColumns : 1;
#endif
constexpr int kTile = kPanels * kColumns, kVecs = kTile / kLanes;

// Where the same part of each panel lies.
struct Place {
  const uint8_t* panels[kPanels];

  Place operator+(int64_t n_bytes) const {
    Place place = *this;
    for (const uint8_t*& panel : place.panels) panel += n_bytes;
    return place;
  }
};

// The float16 numbers at a place, one per output.
inline void load_halves(Place place, vec (&out)[kVecs]) {
#if defined(__AVX512F__)
  for (int i = 0; i < kVecs; ++i) {
    const uint8_t* const* panels = place.panels + 2 * i;
    const __m256i low = _mm256_castsi128_si256(load_as<__m128i>(panels[0]));
    out[i] = (vec)_mm512_cvtph_ps(_mm256_inserti128_si256(low, load_as<__m128i>(panels[1]), 1));
  }
#else
  for (int i = 0; i < kVecs; ++i) {
    out[i] = load_vec(reinterpret_cast<const f16*>(place.panels[0]) + i * kLanes);
  }
#endif
}

// The float32 numbers at a place, one per output.
inline void load_floats(Place place, vec (&out)[kVecs]) {
  float lanes[kTile];
  for (int p = 0; p < kPanels; ++p) {
    std::memcpy(lanes + p * kColumns, place.panels[p], kColumns * sizeof(float));
  }
  std::memcpy(out, lanes, sizeof lanes);
}

// The bytes at a place as signed integers, one per output.
inline void load_bytes(Place place, ivec (&out)[kVecs]) {
#if defined(__AVX512F__)
  for (int i = 0; i < kVecs; ++i) {
    out[i] = (ivec)_mm512_cvtepi8_epi32(
        _mm_unpacklo_epi64(_mm_cvtsi64_si128(load_as<int64_t>(place.panels[2 * i])),
                           _mm_cvtsi64_si128(load_as<int64_t>(place.panels[2 * i + 1]))));
  }
#elif defined(__AVX2__)
  out[0] = (ivec)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_as<int64_t>(place.panels[0])));
#elif defined(__aarch64__)
  const int16x8_t words = vmovl_s8(load_as<int8x8_t>(place.panels[0]));
  out[0] = (ivec)vmovl_s16(vget_low_s16(words));
  out[1] = (ivec)vmovl_s16(vget_high_s16(words));
#else
  int32_t lanes[kTile];
  for (int i = 0; i < kTile; ++i) lanes[i] = int8_t(place.panels[0][i]);
  std::memcpy(out, lanes, sizeof lanes);
#endif
}

// 2^(exponent - 128), for exponents 0 .. 255: subnormal for the first two.
inline vec half_power_of_two(ivec exponent) {
  const ivec small = 0x00200000 + (0x00200000 & (exponent == 1)), others = (exponent - 1) << 23;
  return select(exponent < 2, (vec)small, (vec)others);
}

inline vec floats_of(ivec values) { return __builtin_convertvector(values, vec); }

// What a block's integers are multiplied by, one per output.
struct Scales {
  vec scale[kVecs], minimum[kVecs];
  ivec halves[2][kVecs];  // of 16 inputs each, within `scale`
};

// The numbers that a group's blocks share.
template <Quant Q>
inline void load_group(Place group, Scales& shared) {
  constexpr Form form = form_of(Q);
  if constexpr (form.is_float8()) load_floats(group, shared.scale);
  if constexpr (form.halves > 0) load_halves(group, shared.scale);
  if constexpr (form.has_minimum()) load_halves(group + 2 * kColumns, shared.minimum);
}

template <Quant Q>
inline Scales load_scales(Place block, const Scales& shared) {
  constexpr Form form = form_of(Q);
  Scales scales = shared;
  if constexpr (form.bytes > 0) load_bytes(block, scales.halves[0]);
  if constexpr (form.bytes > 1) load_bytes(block + kColumns, scales.halves[1]);
  for (int i = 0; i < kVecs; ++i) {
    if constexpr (form.codes == Codes::fp4) {
      scales.scale[i] = half_power_of_two(scales.halves[0][i] & 255);
    } else if constexpr (form.bytes > 0 && !form.has_two_scales()) {
      scales.scale[i] *= floats_of(scales.halves[0][i]);
      if constexpr (form.has_minimum()) scales.minimum[i] *= -floats_of(scales.halves[1][i]);
    }
  }
  return scales;
}

}  // namespace
}  // namespace specedge

#if defined(__AVX2__)
#include "quant_block_x86.h"
#elif defined(__aarch64__)
#include "quant_block_neon.h"
#else
#include "quant_block_generic.h"
#endif
