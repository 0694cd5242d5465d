#include "native.h"

namespace specedge::native {

void check_linear(Random& random) {
  const int64_t rows = random.pick({0, 1, 5, 6, 7, 95, 97}),
                inputs = random.pick({0, 1, 127, 129, 300});
  const int64_t outputs = random.pick({0, 1, 63, 64, 65, 130}), panels = (outputs + 63) / 64;
  Numbers x(Dtype::f32, rows * inputs, random), out(Dtype::f32, rows * outputs);
  Numbers weights(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16}), panels * inputs * 64, random);
  Numbers bias(Dtype::f32, outputs, random);
  const bool biased = random.chance(30);
  const Linear linear{Panels{weights.data(), weights.type()}, inputs, outputs,
                      biased ? reinterpret_cast<const float*>(bias.data()) : nullptr};
  multiply(linear, reinterpret_cast<const float*>(x.data()), rows,
           reinterpret_cast<float*>(out.data()));
  const std::vector<float> left = x.floats(), right = weights.floats();
  std::vector<float> weight(inputs);
  for (int64_t m = 0; m < outputs; ++m) {
    weight_row(linear, m, weight.data());
    for (int64_t k = 0; k < inputs; ++k) {
      expect(weight[k] == right[(m / 64 * inputs + k) * 64 + m % 64], "other weight of output ", m);
    }
  }
  for (int64_t i = 0; i < rows * outputs; ++i) {
    const int64_t row = i / outputs, m = i % outputs;
    double want = biased ? bias.get(m) : 0;
    for (int64_t k = 0; k < inputs; ++k) {
      want += double(left[row * inputs + k]) * right[(m / 64 * inputs + k) * 64 + m % 64];
    }
    expect_near(out.get(i), want, 1e-5 * double(inputs + 1), "product of row", row);
  }
}

}  // namespace specedge::native
