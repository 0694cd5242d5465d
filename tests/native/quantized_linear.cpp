#include "native.h"
#include "quant_form.h"

namespace specedge::native {
namespace {

const auto kQuants = {Quant::q4_0,   Quant::q4_1,   Quant::q5_0, Quant::q5_1,
                      Quant::q8_0,   Quant::q4_k,   Quant::q5_k, Quant::q6_k,
                      Quant::iq4_nl, Quant::iq4_xs, Quant::mxfp4};

// Random rows as in a file; all but some of the float16 numbers are small.
std::vector<uint8_t> make_stored(Quant quant, int64_t rows, int64_t groups, Random& random) {
  const Form form = form_of(quant);
  std::vector<uint8_t> stored(rows * groups * form.stored_bytes);
  for (uint8_t& byte : stored) byte = uint8_t(random.fill());
  const int64_t first = quant == Quant::q6_k ? 208 : 0;
  for (int64_t group = 0; group < rows * groups; ++group) {
    uint8_t* bytes = stored.data() + group * form.stored_bytes;
    if (form.halves == 0) bytes[0] = uint8_t(110 + bytes[0] % 20);
    for (int64_t i = 0; i < form.halves; ++i) {
      if (random.fill() % 1000) bytes[first + 2 * i + 1] &= 0xbb;
    }
  }
  return stored;
}

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
    const Form form = form_of(quants[part]);
    const std::vector<uint8_t> stored =
        make_stored(quants[part], outputs[part], form.groups(inputs), random);
    std::vector<uint8_t> panels((outputs[part] + 7) / 8 * form.groups(inputs) * form.group_bytes(),
                                0x7f);
    std::vector<float> values(outputs[part] * inputs);
    pack_quantized(stored.data(), quants[part], outputs[part], inputs, panels.data());
    dequantize(stored.data(), quants[part], outputs[part], inputs, values.data());
    packed.insert(packed.end(), panels.begin(), panels.end());
    weights.insert(weights.end(), values.begin(), values.end());
  }
  packed.shrink_to_fit();

  std::vector<float> x(rows * inputs);
  for (float& value : x) value = random.number();
  const int64_t columns = std::accumulate(outputs.begin(), outputs.end(), int64_t(0));
  std::vector<float> out(rows * columns, kInfinity);
  quantized_linear(x.data(), packed.data(), quants.data(), outputs.data(), n_parts, rows, inputs,
                   exact, out.data());
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
