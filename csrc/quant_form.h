// How quantised weights lie packed: panels of 8 outputs, each cut into blocks of 32 inputs.
//
// A panel is a row of groups of 1, 4 or 8 blocks. A group is its float16 numbers (`halves` times 8,
// one per output) or, of float8 codes, its float32 scales (8), then its blocks. A block is its byte
// scales (`bytes` times 8) and its codes:
//
//     4 low bits   128 bytes: byte 32 (g % 4) + 4 column + j holds input 4 g + j, of groups g < 4
//                  in the low nibble and of the others in the high one
//     5th bit      32 bytes: byte 4 column + j has bit g for input 4 g + j
//     5th and 6th  twice 32 bytes: of g < 4 and of the others, bits 2 (g % 4) and the next
//     8 bits       256 bytes: byte 32 g + 4 column + j
//
// So one load is 4 inputs of 8 outputs, a product of it with 4 broadcast activations is 4 partial
// sums per output, and no sum ever crosses outputs. A weight is scale * (code - offset) or scale *
// code + minimum, where a table may stand between the stored code and the one that is meant. A code
// of float8 is a number itself.
#pragma once

#include "ops.h"

namespace specedge {
namespace {

constexpr int64_t kColumns = 8, kBlock = 32;

enum class Codes { plain, nonlinear, fp4, e4m3 };

struct Form {
  int bits;              // of a stored code
  int64_t group;         // blocks that share float16 numbers
  int64_t stored_bytes;  // of a group of one output in a file
  int64_t halves;        // per output: none, the scale, or the scale and the minimum
  int64_t bytes;         // per output and block: factors of those
  bool is_signed;        // the codes are int8
  int offset;            // what unsigned codes exceed their values by
  Codes codes = Codes::plain;

  constexpr bool has_table() const { return codes == Codes::nonlinear || codes == Codes::fp4; }
  constexpr bool is_float8() const { return codes == Codes::e4m3; }
  constexpr bool has_minimum() const { return halves == 2; }
  constexpr bool has_two_scales() const { return bytes == 2 && halves == 1; }  // per 16 inputs
  constexpr int64_t code_bytes() const { return kColumns * kBlock / 8 * bits; }
  constexpr int64_t block_bytes() const { return kColumns * bytes + code_bytes(); }
  constexpr int64_t head_bytes() const { return kColumns * (is_float8() ? 4 : 2 * halves); }
  constexpr int64_t group_bytes() const { return head_bytes() + group * block_bytes(); }
  constexpr int64_t groups(int64_t inputs) const { return inputs / (kBlock * group); }
  constexpr int64_t row_bytes(int64_t inputs) const { return groups(inputs) * stored_bytes; }
  constexpr int64_t panel_bytes(int64_t inputs) const { return groups(inputs) * group_bytes(); }
  constexpr int64_t packed_bytes(int64_t outputs, int64_t inputs) const {
    return (outputs + kColumns - 1) / kColumns * panel_bytes(inputs);
  }
};

// ggml's definitions of its formats: ggml-common.h and gguf-py's quants.py. A group of the others
// is a float32 scale and then a float8 code (e4m3) for each input.
constexpr Form form_of(Quant quant) {
  switch (quant) {
    case Quant::q4_0:
      return {4, 1, 18, 1, 0, false, 8};
    case Quant::q4_1:
      return {4, 1, 20, 2, 0, false, 0};
    case Quant::q5_0:
      return {5, 1, 22, 1, 0, false, 16};
    case Quant::q5_1:
      return {5, 1, 24, 2, 0, false, 0};
    case Quant::q8_0:
      return {8, 1, 34, 1, 0, true, 0};
    case Quant::q4_k:
      return {4, 8, 144, 2, 2, false, 0};
    case Quant::q5_k:
      return {5, 8, 176, 2, 2, false, 0};
    case Quant::q6_k:
      return {6, 8, 210, 1, 2, false, 32};
    case Quant::iq4_nl:
      return {4, 1, 18, 1, 0, true, 0, Codes::nonlinear};
    case Quant::iq4_xs:
      return {4, 8, 136, 1, 1, true, 0, Codes::nonlinear};
    case Quant::mxfp4:
      return {4, 1, 17, 0, 1, false, 12, Codes::fp4};
    case Quant::fp8:
      return {8, 4, 132, 0, 0, false, 0, Codes::e4m3};
    case Quant::fp8_32:
      return {8, 1, 36, 0, 0, false, 0, Codes::e4m3};
  }
  return {};
}

// f<Q>() with the format that quant names.
template <typename F>
void with_quant(Quant quant, F f) {
  switch (quant) {
    case Quant::q4_0:
      return f.template operator()<Quant::q4_0>();
    case Quant::q4_1:
      return f.template operator()<Quant::q4_1>();
    case Quant::q5_0:
      return f.template operator()<Quant::q5_0>();
    case Quant::q5_1:
      return f.template operator()<Quant::q5_1>();
    case Quant::q8_0:
      return f.template operator()<Quant::q8_0>();
    case Quant::q4_k:
      return f.template operator()<Quant::q4_k>();
    case Quant::q5_k:
      return f.template operator()<Quant::q5_k>();
    case Quant::q6_k:
      return f.template operator()<Quant::q6_k>();
    case Quant::iq4_nl:
      return f.template operator()<Quant::iq4_nl>();
    case Quant::iq4_xs:
      return f.template operator()<Quant::iq4_xs>();
    case Quant::mxfp4:
      return f.template operator()<Quant::mxfp4>();
    case Quant::fp8:
      return f.template operator()<Quant::fp8>();
    case Quant::fp8_32:
      return f.template operator()<Quant::fp8_32>();
  }
}

// The codes that the 4 stored bits of some formats stand for; fp4's are doubled and 12 too large.
constexpr int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
constexpr int8_t kFp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

constexpr const int8_t* table_of(Codes codes) {
  return codes == Codes::nonlinear ? kNonlinear : kFp4;
}

}  // namespace
}  // namespace specedge
