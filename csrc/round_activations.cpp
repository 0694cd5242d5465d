// Activations as quantized_linear multiplies them: 8 bits, and a scale for each 32 of a row.
#include "isa.h"
#include "vec.h"

namespace specedge::SPECEDGE_ISA {
namespace {

// Magnitudes of floats are ordered as their bits are, with NaN the largest.
constexpr int32_t kMagnitude = 0x7fffffff;

#if defined(__AVX2__)

int32_t largest_bits(const float* x) {
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 32; i += 8) {
    most = _mm256_max_epi32(
        most, _mm256_and_si256(load_as<__m256i>(x + i), _mm256_set1_epi32(kMagnitude)));
  }
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// The nearest integers to x * inverse, halves to even, and their sums.
void round_to_bytes(const float* x, float inverse, Rounded& rounded) {
  __m256i q[4];
  for (int i = 0; i < 4; ++i) {
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
  }
  const __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
  std::memcpy(rounded.q, &bytes, sizeof bytes);

  const __m256i one = _mm256_set1_epi16(1);
  const __m256i pairs =
      _mm256_hadd_epi32(_mm256_madd_epi16(low, one), _mm256_madd_epi16(high, one));
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  const int64_t sums = _mm_cvtsi128_si64(_mm_hadd_epi32(four, four));
  rounded.sums[0] = int16_t(sums);
  rounded.sums[1] = int16_t(sums >> 32);
}

#else

int32_t largest_bits(const float* x) {
  int32_t most = 0;
  for (int i = 0; i < 32; ++i) {
    const int32_t magnitude = int32_t(bits_of_float(x[i])) & kMagnitude;
    most = magnitude > most ? magnitude : most;
  }
  return most;
}

// The nearest integers to x * inverse, halves to even, and their sums.
void round_to_bytes(const float* x, float inverse, Rounded& rounded) {
  constexpr float kRound = 0x1.8p23f;  // added, it leaves the nearest integer in the last bits
  int32_t sums[2] = {};
  for (int i = 0; i < 32; ++i) {
    const float shifted = x[i] * inverse + kRound;
    const int32_t q = int32_t(bits_of_float(shifted)) - int32_t(bits_of_float(kRound));
    rounded.q[i] = int8_t(q);
    sums[i / 16] += q;
  }
  for (int half = 0; half < 2; ++half) rounded.sums[half] = int16_t(sums[half]);
}

#endif

void round_block(const float* x, Rounded& rounded) {
  const float most = float_of_bits(uint32_t(largest_bits(x)));
  if (most >= 0x1p-100f && most < __builtin_inff()) {
    round_to_bytes(x, 127 / most, rounded);
    rounded.scale = most / 127;
    rounded.scaled_sum = rounded.scale * float(rounded.sums[0] + rounded.sums[1]);
  } else {
    const float scale = most < 1 ? 0.0f : __builtin_nanf("");
    rounded = {{}, {}, scale, scale};
  }
}

}  // namespace

void round_activations(const float* x, int64_t rows, int64_t inputs, Rounded* rounded) {
  const int64_t blocks = inputs / 32;
#pragma omp parallel for if (rows * inputs > 1 << 16)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      round_block(x + row * inputs + b * 32, rounded[b * rows + row]);
    }
  }
}

}  // namespace specedge::SPECEDGE_ISA
