// Activations as quantized_linear multiplies them: 8 bits, and a scale for each 32 of a row.
#include "isa.h"
#include "vec.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int kParts = 32 / kLanes;
constexpr float kRound = 0x1.8p23f;  // added, it leaves the nearest even integer in the last bits

typedef int8_t small_vec __attribute__((vector_size(kLanes)));

int32_t max_of(ivec v) {
  int32_t lanes[kLanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
}

int32_t sum_of(ivec v) {
  int32_t lanes[kLanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

Rounded round_block(const float* x) {
  vec values[kParts];
  ivec largest = {};
  for (int i = 0; i < kParts; ++i) {
    values[i] = load_vec(x + i * kLanes);
    // Magnitudes of floats are ordered as their bits are, with NaN the largest.
    const ivec magnitude = (ivec)values[i] & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float most = float_of_bits(uint32_t(max_of(largest)));
  if (!(most < __builtin_inff())) return {{}, {}, __builtin_nanf(""), __builtin_nanf("")};
  if (most < 0x1p-100f) return {};
  const vec inverse = splat(127 / most);
  Rounded rounded;
  ivec sums[2] = {};
  for (int i = 0; i < kParts; ++i) {
    const ivec q = (ivec)(values[i] * inverse + kRound) - (ivec)splat(kRound);
    const small_vec bytes = __builtin_convertvector(q, small_vec);
    std::memcpy(rounded.q + i * kLanes, &bytes, sizeof bytes);
    sums[2 * i / kParts] += q;
  }
  for (int half = 0; half < 2; ++half) rounded.sums[half] = int16_t(sum_of(sums[half]));
  rounded.scale = most / 127;
  rounded.scaled_sum = rounded.scale * float(rounded.sums[0] + rounded.sums[1]);
  return rounded;
}

}  // namespace

void round_activations(const float* x, int64_t rows, int64_t inputs, Rounded* rounded) {
  const int64_t blocks = inputs / 32;
#pragma omp parallel for if (rows * inputs > 1 << 16)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      rounded[b * rows + row] = round_block(x + row * inputs + b * 32);
    }
  }
}

}  // namespace specedge::SPECEDGE_ISA
