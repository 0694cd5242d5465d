#include "stored_weights.h"

namespace specedge::native {
namespace {

// The values of activations that are rounded in blocks of 32.
std::vector<float> rounded(const std::vector<float>& x) {
  std::vector<float> values(x.size());
  for (size_t block = 0; block < x.size(); block += kBlock) {
    float most = 0;
    for (int64_t i = 0; i < kBlock; ++i) most = std::max(most, std::abs(x[block + i]));
    for (int64_t i = 0; i < kBlock; ++i) {
      const float q = most > 0 ? std::nearbyint(x[block + i] * (127 / most)) : 0;
      values[block + i] = q * (most / 127);
    }
  }
  return values;
}

}  // namespace

void check_quantized_linear(Random& random) {
  const int64_t n_parts = random.pick({1, 1, 2, 3});
  const int64_t inputs = 256 * random.pick({1, 0, 2, 3}), rows = random.pick({1, 0, 2, 5, 9, 65});
  const bool exact = random.chance(40);
  std::vector<Quant> quants;
  std::vector<int64_t> outputs;
  std::vector<uint8_t> packed;
  std::vector<float> weights;
  for (int64_t part = 0; part < n_parts; ++part) {
    quants.push_back(random.pick(kQuants));
    outputs.push_back(random.pick({0, 1, 7, 8, 9, 16, 70}));
    const std::vector<uint8_t> stored = make_stored(quants[part], outputs[part], inputs, random);
    const std::vector<uint8_t> panels = packed_of(stored, quants[part], outputs[part], inputs);
    std::vector<float> values(outputs[part] * inputs);
    dequantize(stored.data(), quants[part], outputs[part], inputs, values.data());
    packed.insert(packed.end(), panels.begin(), panels.end());
    weights.insert(weights.end(), values.begin(), values.end());
  }
  packed.shrink_to_fit();

  std::vector<float> x(rows * inputs);
  for (float& value : x) value = random.number();
  const int64_t columns = std::accumulate(outputs.begin(), outputs.end(), int64_t(0));
  std::vector<float> out(rows * columns, kInfinity);
  const Linear linear{QuantizedParts{packed.data(), quants, outputs, exact}, inputs, columns,
                      nullptr};
  multiply(linear, x.data(), rows, out.data());
  for (int64_t m = 0; m < columns; ++m) {
    std::vector<float> row(inputs);
    weight_row(linear, m, row.data());
    expect(inputs == 0 || std::memcmp(row.data(), &weights[m * inputs], 4 * inputs) == 0,
           "other weights of output ", m);
  }
  const std::vector<float> left = exact ? x : rounded(x);
  for (int64_t i = 0; i < rows * columns; ++i) {
    double want = 0, size = 0;
    for (int64_t k = 0; k < inputs; ++k) {
      const double term =
          double(left[i / columns * inputs + k]) * weights[i % columns * inputs + k];
      want += term;
      size += std::abs(term);
    }
    if (std::isfinite(size)) {
      expect_near(out[i], want, 1e-5 * size + 1e-30, "product", i);
    } else {
      expect(!std::isfinite(out[i]), "product ", i, " of infinite weights is ", out[i]);
    }
  }
}

}  // namespace specedge::native
