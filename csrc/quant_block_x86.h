// Codes as bytes and products of pairs, AVX2 and wider. Part of quant_block.h.
#pragma once

#include "quant_block.h"

namespace specedge {
namespace {

typedef uint8_t bytes __attribute__((vector_size(4 * kLanes)));
typedef int16_t words __attribute__((vector_size(4 * kLanes)));

#if defined(__AVX512F__)
inline bytes load_codes(Place place, int i, int64_t offset) {
  const uint8_t* const* panels = place.panels + 2 * i;
  const __m512i low = _mm512_castsi256_si512(load_as<__m256i>(panels[0] + offset));
  return (bytes)_mm512_inserti64x4(low, load_as<__m256i>(panels[1] + offset), 1);
}
inline bytes look_up(const int8_t* table, bytes codes) {
  const __m512i wide = _mm512_broadcast_i32x4(load_as<__m128i>(table));
  return (bytes)_mm512_shuffle_epi8(wide, (__m512i)codes);
}
inline bytes broadcast(const void* four) {
  return (bytes)_mm512_set1_epi32(load_as<int32_t>(static_cast<const char*>(four)));
}
// Pairs of unsigned times signed bytes, saturating.
inline words multiply_pairs(bytes a, bytes b) {
  return (words)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
}
inline ivec multiply_pairs(words a, words b) {
  return (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
inline bytes magnitude(bytes a) { return (bytes)_mm512_abs_epi8((__m512i)a); }
// b with the sign of a, where a is not 0.
inline bytes with_sign(bytes b, bytes a) {
  const __mmask64 negative = _mm512_movepi8_mask((__m512i)a);
  return (bytes)_mm512_mask_sub_epi8((__m512i)b, negative, _mm512_setzero_si512(), (__m512i)b);
}
#else
inline bytes load_codes(Place place, int, int64_t offset) {
  return load_as<bytes>(place.panels[0] + offset);
}
inline bytes look_up(const int8_t* table, bytes codes) {
  const __m256i wide = _mm256_broadcastsi128_si256(load_as<__m128i>(table));
  return (bytes)_mm256_shuffle_epi8(wide, (__m256i)codes);
}
inline bytes broadcast(const void* four) {
  return (bytes)_mm256_set1_epi32(load_as<int32_t>(static_cast<const char*>(four)));
}
// Pairs of unsigned times signed bytes, saturating.
inline words multiply_pairs(bytes a, bytes b) {
  return (words)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
}
inline ivec multiply_pairs(words a, words b) {
  return (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
inline bytes magnitude(bytes a) { return (bytes)_mm256_abs_epi8((__m256i)a); }
// b with the sign of a, where a is not 0.
inline bytes with_sign(bytes b, bytes a) { return (bytes)_mm256_sign_epi8((__m256i)b, (__m256i)a); }
#endif

inline words splat_word(int value) { return int16_t(value) - words{}; }

// Each lane's two words.
inline words words_of(ivec low, ivec high) { return (words)((low & 0xffff) | high << 16); }

// Bits first .. first + n - 1 of each byte, at bit 4.
inline bytes bits_at_4(bytes plane, int first, int n) {
  const words moved = first <= 4 ? (words)plane << (4 - first) : (words)plane >> (first - 4);
  return (bytes)moved & uint8_t(((1 << n) - 1) << 4);
}

// 4 inputs of as many outputs as a vector has lanes, 8 times -> as bytes
template <Quant Q>
inline void load_weights(Place place, int i, bytes (&codes)[8]) {
  constexpr Form form = form_of(Q);
  if constexpr (form.bits == 8) {
    for (int g = 0; g < 8; ++g) codes[g] = load_codes(place, i, 32 * g);
  } else {
    for (int g = 0; g < 4; ++g) {
      const bytes pairs = load_codes(place, i, 32 * g);
      codes[g] = pairs & 15;
      codes[4 + g] = (bytes)((words)pairs >> 4) & 15;
    }
  }
  if constexpr (form.bits == 5) {
    const bytes plane = load_codes(place, i, 128);
    for (int g = 0; g < 8; ++g) codes[g] |= bits_at_4(plane, g, 1);
  }
  if constexpr (form.bits == 6) {
    for (int half = 0; half < 2; ++half) {
      const bytes plane = load_codes(place, i, 128 + 32 * half);
      for (int g = 0; g < 4; ++g) codes[4 * half + g] |= bits_at_4(plane, 2 * g, 2);
    }
  }
  if constexpr (form.has_table()) {
    for (bytes& group : codes) group = look_up(table_of(form.codes), group);
  }
}

template <Quant Q>
struct Weights {
  static constexpr Form form = form_of(Q);
  bytes codes[kVecs][8];

  explicit Weights(Place place) {
    for (int i = 0; i < kVecs; ++i) {
      load_weights<Q>(place, i, codes[i]);
#if defined(__AVX512VNNI__)
      if constexpr (form.is_signed) {
        for (bytes& group : codes[i]) group ^= 0x80;
      }
#endif
    }
  }

  // The integer of one input, of each output.
  void value(int input, ivec (&out)[kVecs]) const {
    for (int i = 0; i < kVecs; ++i) {
      const ivec moved = (ivec)codes[i][input / 4] << (24 - input % 4 * 8);
      out[i] = form.is_signed && !kOffset ? moved >> 24 : (ivec)((bits_vec)moved >> 24) - kOffset;
    }
  }

#if defined(__AVX512VNNI__)
  // The processor multiplies unsigned by signed bytes.
  static constexpr int kOffset = form.is_signed ? 128 : form.offset;

  // Inputs 4 first .. 4 (first + n) - 1, of each output, added to sums.
  void add_products(int first, int n, const Rounded& x, ivec (&sums)[kVecs]) const {
    for (int g = first; g < first + n; ++g) {
      const __m512i activations = (__m512i)broadcast(x.q + 4 * g);
      for (int i = 0; i < kVecs; ++i) {
        sums[i] = (ivec)_mm512_dpbusd_epi32((__m512i)sums[i], (__m512i)codes[i][g], activations);
      }
    }
  }

  // Sum of value times activation over the block, of each output.
  void dot(const Scales& scales, const Rounded& x, vec (&out)[kVecs]) const {
    constexpr int kParts = form.has_two_scales() ? 2 : 1, kGroups = 8 / kParts;
    const words x_sums = (words)broadcast(x.sums);
    for (int part = 0; part < kParts; ++part) {
      ivec start = {};
      if constexpr (kOffset != 0) {
        const int both = -kOffset & 0xffff;
        const int factors = kParts == 1 ? both << 16 | both : part ? -kOffset << 16 : both;
        start = multiply_pairs((words)(ivec{} + factors), x_sums);
      }
      ivec sums[kVecs];
      for (ivec& sum : sums) sum = start;
      add_products(part * kGroups, kGroups, x, sums);
      for (int i = 0; i < kVecs; ++i) {
        const vec sum = floats_of(sums[i]);
        if constexpr (kParts == 1) {
          out[i] = sum;
        } else {
          // Whole numbers below 2^24, so nothing is rounded.
          const vec scale = floats_of(scales.halves[part][i]);
          out[i] = part ? fma(sum, scale, out[i]) : sum * scale;
        }
      }
    }
  }
#else
  static constexpr int kOffset = form.offset;
  // Pairs may be added in 16 bits while they stay below 2^15; activations are at most 127.
  static constexpr int kPairs = form.is_signed                                 ? 1
                                : form.bits == 4 && form.codes == Codes::plain ? 8
                                : form.bits == 6                               ? 2
                                                                               : 4;

  words pairs(int g, const Rounded& x) const {
    const bytes activations = broadcast(x.q + 4 * g);
    if constexpr (!form.is_signed) return multiply_pairs(codes[0][g], activations);
    return multiply_pairs(magnitude(codes[0][g]), with_sign(activations, codes[0][g]));
  }

  // Sum of value times activation over the block, of each output.
  void dot(const Scales& scales, const Rounded& x, vec (&out)[kVecs]) const {
    const ivec first = scales.halves[0][0], second = scales.halves[1][0];
    ivec total = {};
    for (int g = 0; g < 8; g += kPairs) {
      words sum = pairs(g, x);
      for (int i = 1; i < kPairs; ++i) sum += pairs(g + i, x);
      const ivec scale = g < 4 ? first : second;
      total += multiply_pairs(sum, form.has_two_scales() ? words_of(scale, scale) : splat_word(1));
    }
    const words sums = (words)broadcast(x.sums);
    if constexpr (form.has_two_scales()) {
      total -= multiply_pairs(words_of(first, second), sums) * form.offset;
    } else if constexpr (form.offset != 0) {
      total -= multiply_pairs(splat_word(form.offset), sums);
    }
    out[0] = floats_of(total);
  }
#endif
};

}  // namespace
}  // namespace specedge
