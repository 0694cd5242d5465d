#include "native.h"

namespace specedge::native {

void check_rms_norm(Random& random) {
  const int64_t rows = random.pick({0, 1, 5}), width = random.pick({1, 3, 16, 63, 64, 65, 130});
  const Dtype type = random.pick({Dtype::f32, Dtype::bf16, Dtype::f16});
  Numbers x(type, rows * width, random), delta(type, rows * width, random);
  Numbers weight(type, width, random), out(type, rows * width), grown = x;
  const bool grows = random.chance(50);
  if (grows) {
    for (int64_t i = 0; i < rows * width; ++i) grown.set(i, x.get(i) + delta.get(i));
  }
  rms_norm(x.data(), grows ? delta.data() : nullptr, weight.data(), type, rows, width, 1e-5f,
           out.data());
  expect(x.bytes() == grown.bytes(), "rms_norm: a wrong sum");
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += std::pow(x.get(row * width + i), 2);
    for (int64_t i = 0; i < width; ++i) {
      const double norm = x.get(row * width + i) / std::sqrt(squares / double(width) + 1e-5);
      expect_near(out.get(row * width + i), norm * weight.get(i), 32 * out.precision(),
                  "norm of row", row);
    }
  }
}

void check_silu_mul(Random& random) {
  const int64_t rows = random.pick({0, 1, 5}), width = random.pick({0, 1, 3, 16, 17, 65});
  Numbers gate_up(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16}), rows * 2 * width, random);
  for (int64_t i = 0; i < gate_up.size(); ++i) {
    if (random.fill() % 8 == 0) gate_up.set(i, 100 * random.number());
  }
  Numbers out(gate_up.type(), rows * width);
  silu_mul(gate_up.data(), gate_up.type(), rows, width, out.data());
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t from = i / width * 2 * width + i % width;
    const double gate = gate_up.get(from), up = gate_up.get(from + width);
    const double want = gate / (1 + std::exp(-gate)) * up;
    if (std::abs(want) > 6e4) continue;  // no float16
    expect_near(out.get(i), want, (std::abs(want) + 1) * out.precision(), "gated number", i);
  }
}

}  // namespace specedge::native
