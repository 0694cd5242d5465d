// Scalar conversions of bfloat16, IEEE half and float8 e4m3, rounding to nearest even. Bit patterns
// only, so that every instruction set gives the same result. Everything is static: this header is
// compiled for several instruction sets and must not leave a shared copy behind.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace specedge {
namespace {

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

// Four bits of exponent, three of mantissa (arXiv:2209.05433): no infinities, one NaN, at most 448.
struct e4m3 {
  uint8_t bits;
};

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline float load(const float* p) { return *p; }

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline float load(const bf16* p) {
  return float_of_bits(uint32_t(p->bits) << 16);
}

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline float load(const f16* p) {
  const uint32_t sign = uint32_t(p->bits & 0x8000u) << 16, magnitude = p->bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Moves the exponent by 112 in floating point, which also normalises subnormals.
  const float value = float_of_bits(magnitude << 13) * 0x1p112f;
  return float_of_bits(sign | bits_of_float(value));
}

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline float load(const e4m3* p) {
  const uint32_t sign = uint32_t(p->bits & 0x80u) << 24, magnitude = p->bits & 0x7fu;
  if (magnitude == 0x7fu) return float_of_bits(sign | 0x7fc00000u);
  const float value = float_of_bits(magnitude << 20) * 0x1p120f;  // normalises subnormals too
  return float_of_bits(sign | bits_of_float(value));
}

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline void store(float* p, float value) { *p = value; }

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline void store(bf16* p, float value) {
  const uint32_t bits = bits_of_float(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  p->bits = is_nan ? 0x7fc0u : uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

[[maybe_unused]] SPECEDGE_HOST_DEVICE inline void store(f16* p, float value) {
  const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) {
    p->bits = sign | 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 2^16 or more
    p->bits = sign | 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded bits at the end
    const float shifted = float_of_bits(magnitude) + 0.5f;
    p->bits = sign | uint16_t(bits_of_float(shifted) - 0x3f000000u);
  } else {
    p->bits = sign | uint16_t((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
  }
}

// Saturates at 448; what rounds to nothing keeps its sign.
[[maybe_unused]] SPECEDGE_HOST_DEVICE inline void store(e4m3* p, float value) {
  const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffffu;
  const uint8_t sign = uint8_t(bits >> 24 & 0x80u);
  if (magnitude > 0x7f800000u) {
    p->bits = sign | 0x7fu;
  } else if (magnitude >= 0x43e00000u) {  // 448 or more
    p->bits = sign | 0x7eu;
  } else if (magnitude < 0x3c800000u) {  // subnormal, below 2^-6: adding 2^14 rounds to 2^-9
    p->bits = sign | uint8_t(bits_of_float(float_of_bits(magnitude) + 0x1p14f));
  } else {
    p->bits = sign | uint8_t((magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20);
  }
}

}  // namespace
}  // namespace specedge
