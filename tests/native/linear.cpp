#include "native.h"

namespace specedge::native {
namespace {

// A few rows times some of three sets, against the product with each set alone: the same bits.
void check_grouped(Random& random) {
  const int64_t rows = random.pick({0, 1, 2, 9}), inputs = random.pick({0, 1, 33}), sets = 3;
  const int64_t outputs = random.pick({1, 64, 70}), per_row = random.pick({0, 1, 3});
  const int64_t set_size = (outputs + 63) / 64 * inputs * 64, pairs = rows * per_row;
  Numbers x(Dtype::f32, rows * inputs, random);
  Numbers weights(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16}), sets * set_size, random);
  std::vector<int32_t> chosen(pairs);
  for (int32_t& set : chosen) set = int32_t(random.between(-1, sets - 1));
  const bool spoilt = pairs > 0 && random.chance(20);
  if (spoilt) chosen[random.between(0, pairs - 1)] = random.chance(50) ? int32_t(sets) : -2;
  const Linear all{Panels{weights.data(), weights.type()}, inputs, outputs, nullptr};
  std::vector<float> out(pairs * outputs), want(outputs);
  const float* rows_of_x = reinterpret_cast<const float*>(x.data());
  const auto multiply_all = [&] {
    grouped_multiply(all, {chosen.data(), sets, per_row, nullptr}, rows_of_x, rows, out.data());
  };
  try {
    multiply_all();
  } catch (const std::invalid_argument&) {
    expect(spoilt, "good groups were refused");
    return;
  }
  expect(!spoilt, "spoilt groups were taken");
  const int64_t item = weights.type() == Dtype::f32 ? 4 : 2;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    std::fill(want.begin(), want.end(), 0.0f);
    if (chosen[pair] >= 0) {
      const char* set = weights.data() + chosen[pair] * set_size * item;
      const Linear one{Panels{set, weights.type()}, inputs, outputs, nullptr};
      multiply(one, rows_of_x + pair / per_row * inputs, 1, want.data());
    }
    const bool same = std::equal(want.begin(), want.end(), out.begin() + pair * outputs);
    expect(same, "other product of pair ", pair);
  }
}

}  // namespace

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
  check_grouped(random);
}

}  // namespace specedge::native
