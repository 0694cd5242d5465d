// Random quantised weights as a GGUF file has them.
#pragma once

#include "native.h"
#include "quant_form.h"

namespace specedge::native {

const auto kQuants = {Quant::q4_0,   Quant::q4_1,   Quant::q5_0, Quant::q5_1,
                      Quant::q8_0,   Quant::q4_k,   Quant::q5_k, Quant::q6_k,
                      Quant::iq4_nl, Quant::iq4_xs, Quant::mxfp4};

// All but some of the float16 numbers are small.
inline std::vector<uint8_t> make_stored(Quant quant, int64_t rows, int64_t inputs, Random& random) {
  const Form form = form_of(quant);
  const int64_t groups = rows * form.groups(inputs);
  std::vector<uint8_t> stored(groups * form.stored_bytes);
  for (uint8_t& byte : stored) byte = uint8_t(random.fill());
  const int64_t first = quant == Quant::q6_k ? 208 : 0;
  for (int64_t group = 0; group < groups; ++group) {
    uint8_t* bytes = stored.data() + group * form.stored_bytes;
    if (form.halves == 0) bytes[0] = uint8_t(110 + bytes[0] % 20);
    for (int64_t i = 0; i < form.halves; ++i) {
      if (random.fill() % 1000) bytes[first + 2 * i + 1] &= 0xbb;
    }
  }
  return stored;
}

// Packed into memory that was not cleared.
inline std::vector<uint8_t> packed_of(const std::vector<uint8_t>& stored, Quant quant,
                                      int64_t outputs, int64_t inputs) {
  std::vector<uint8_t> packed(form_of(quant).packed_bytes(outputs, inputs), 0x7f);
  pack_quantized(stored.data(), quant, outputs, inputs, packed.data());
  return packed;
}

}  // namespace specedge::native
