// Quantised weights as a file has them: repacked for quantized_linear, or as float32.
#include <algorithm>

#include "half.h"
#include "ops.h"
#include "quant_form.h"

namespace specedge {
namespace {

// 32 consecutive weights of one output.
struct Block {
  uint8_t codes[kBlock];
  uint16_t halves[2];  // float16 scale and minimum
  float scale;         // of float8 codes
  uint8_t bytes[2];    // their factors, or one of each 16 weights, or a power of two
};

uint16_t half_at(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }

void read_nibbles(const uint8_t* p, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = p[i] & 15;
    codes[16 + i] = p[i] >> 4;
  }
}

void add_fifth_bits(const uint8_t* p, uint8_t* codes) {
  for (int i = 0; i < kBlock; ++i) codes[i] |= (p[i / 8] >> i % 8 & 1) << 4;
}

// The scale and minimum factors of block j of a Q4_K or Q5_K group: 6 bits each, in 12 bytes.
void read_factors(const uint8_t* p, int j, uint8_t* bytes) {
  if (j < 4) {
    bytes[0] = p[j] & 63;
    bytes[1] = p[j + 4] & 63;
  } else {
    bytes[0] = (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
    bytes[1] = p[j + 4] >> 4 | p[j] >> 6 << 4;
  }
}

// p: 144 or, with the fifth bits, 176 bytes.
void read_q45_k(const uint8_t* p, int j, bool five, Block& block) {
  block.halves[0] = half_at(p);
  block.halves[1] = half_at(p + 2);
  read_factors(p + 4, j, block.bytes);
  const uint8_t *high = p + 16, *low = p + (five ? 48 : 16) + j / 2 * kBlock;
  for (int i = 0; i < kBlock; ++i) {
    block.codes[i] = low[i] >> j % 2 * 4 & 15;
    if (five) block.codes[i] |= (high[i] >> j & 1) << 4;
  }
}

void read_q6_k(const uint8_t* p, int j, Block& block) {
  const uint8_t *low = p + j / 4 * 64 + j % 2 * kBlock, *high = p + 128 + j / 4 * kBlock;
  for (int i = 0; i < kBlock; ++i) {
    block.codes[i] = uint8_t((low[i] >> j % 4 / 2 * 4 & 15) | (high[i] >> j % 4 * 2 & 3) << 4);
  }
  block.bytes[0] = p[192 + 2 * j];
  block.bytes[1] = p[193 + 2 * j];
  block.halves[0] = half_at(p + 208);
}

void read_iq4_xs(const uint8_t* p, int j, Block& block) {
  block.halves[0] = half_at(p);
  const int low = p[4 + j / 2] >> j % 2 * 4 & 15, high = half_at(p + 2) >> 2 * j & 3;
  block.bytes[0] = uint8_t((low | high << 4) - 32);
  read_nibbles(p + 8 + 16 * j, block.codes);
}

// Block j of a stored group, at p.
Block read_block(Quant quant, const uint8_t* p, int j) {
  Block block{};
  switch (quant) {
    case Quant::q4_0:
    case Quant::iq4_nl:
      block.halves[0] = half_at(p);
      read_nibbles(p + 2, block.codes);
      break;
    case Quant::q4_1:
      block.halves[0] = half_at(p);
      block.halves[1] = half_at(p + 2);
      read_nibbles(p + 4, block.codes);
      break;
    case Quant::q5_0:
      block.halves[0] = half_at(p);
      read_nibbles(p + 6, block.codes);
      add_fifth_bits(p + 2, block.codes);
      break;
    case Quant::q5_1:
      block.halves[0] = half_at(p);
      block.halves[1] = half_at(p + 2);
      read_nibbles(p + 8, block.codes);
      add_fifth_bits(p + 4, block.codes);
      break;
    case Quant::q8_0:
      block.halves[0] = half_at(p);
      std::memcpy(block.codes, p + 2, kBlock);
      break;
    case Quant::q4_k:
      read_q45_k(p, j, false, block);
      break;
    case Quant::q5_k:
      read_q45_k(p, j, true, block);
      break;
    case Quant::q6_k:
      read_q6_k(p, j, block);
      break;
    case Quant::iq4_xs:
      read_iq4_xs(p, j, block);
      break;
    case Quant::mxfp4:
      block.bytes[0] = p[0];
      read_nibbles(p + 1, block.codes);
      break;
    case Quant::fp8:
    case Quant::fp8_32:
      std::memcpy(&block.scale, p, 4);
      std::memcpy(block.codes, p + 4 + j * kBlock, kBlock);
      break;
  }
  return block;
}

float float_of_half(uint16_t bits) {
  const f16 half{bits};
  return load(&half);
}

// Half of 2^(exponent - 127), because the codes are doubled; subnormal where it must be.
float float_of_exponent(uint8_t exponent) {
  return float_of_bits(exponent < 2 ? 0x00200000u << exponent : uint32_t(exponent - 1) << 23);
}

// The values of a block, with the bits of gguf-py's dequantize where ggml has the format.
template <Quant Q>
void values_of(const Block& block, float* out) {
  constexpr Form form = form_of(Q);
  if constexpr (form.is_float8()) {
    for (int i = 0; i < kBlock; ++i) {
      const e4m3 code{block.codes[i]};
      out[i] = block.scale * load(&code);
    }
    return;
  }
  float scales[2], minimum = float_of_half(block.halves[1]);  // a scale for each 16 weights
  for (int half = 0; half < 2; ++half) {
    const uint8_t byte = block.bytes[form.has_two_scales() ? half : 0];
    scales[half] = form.halves ? float_of_half(block.halves[0]) : float_of_exponent(byte);
    if constexpr (form.halves && form.bytes) scales[half] *= float(int8_t(byte));
  }
  if constexpr (form.halves && form.bytes) minimum *= -float(block.bytes[1]);
  for (int i = 0; i < kBlock; ++i) {
    int code = block.codes[i];
    if constexpr (form.has_table()) code = table_of(form.codes)[code];
    if constexpr (form.bits == 8) code = int8_t(code);
    const float value = scales[i / 16] * float(code - form.offset);
    out[i] = form.has_minimum() ? value + minimum : value;
  }
}

// Writes the codes of one output of a packed block, those of four inputs as one word.
void place_codes(const uint8_t* codes, int bits, int64_t column, uint8_t* packed) {
  constexpr int kWord = 4, kStride = kColumns * kWord;
  uint32_t words[kBlock / kWord], planes[2] = {};
  std::memcpy(words, codes, sizeof words);
  uint8_t* const to = packed + kWord * column;
  if (bits == 8) {
    for (int g = 0; g < 8; ++g) std::memcpy(to + kStride * g, words + g, kWord);
    return;
  }
  for (int g = 0; g < 4; ++g) {
    const uint32_t low = (words[g] & 0x0f0f0f0f) | (words[g + 4] & 0x0f0f0f0f) << 4;
    std::memcpy(to + kStride * g, &low, kWord);
  }
  for (int g = 0; g < 8; ++g) {
    const uint32_t high = words[g] >> 4 & 0x03030303;
    planes[bits == 6 ? g / 4 : 0] |= high << (bits == 6 ? g % 4 * 2 : g);
  }
  for (int p = 0; p < bits - 4; ++p) {
    std::memcpy(to + kStride * (4 + p), planes + p, kWord);
  }
}

// One output of a packed group.
template <Quant Q>
void place_group(const uint8_t* stored, int64_t column, uint8_t* packed) {
  constexpr Form form = form_of(Q);
  for (int64_t j = 0; j < form.group; ++j) {
    const Block block = read_block(Q, stored, int(j));
    uint8_t* bytes = packed + form.head_bytes() + j * form.block_bytes();
    for (int64_t h = 0; h < form.halves; ++h) {
      std::memcpy(packed + 2 * (kColumns * h + column), block.halves + h, 2);
    }
    if constexpr (form.is_float8()) std::memcpy(packed + 4 * column, &block.scale, 4);
    for (int64_t i = 0; i < form.bytes; ++i) bytes[kColumns * i + column] = block.bytes[i];
    place_codes(block.codes, form.bits, column, bytes + kColumns * form.bytes);
  }
}

template <Quant Q>
void pack(const uint8_t* stored, int64_t outputs, int64_t inputs, uint8_t* packed) {
  constexpr Form form = form_of(Q);
  const int64_t groups = form.groups(inputs), panel_bytes = groups * form.group_bytes();
#pragma omp parallel for if (outputs * inputs > 1 << 18)
  for (int64_t panel = 0; panel < (outputs + kColumns - 1) / kColumns; ++panel) {
    uint8_t* to = packed + panel * panel_bytes;
    std::fill_n(to, panel_bytes, uint8_t(0));
    for (int64_t column = 0; column < kColumns; ++column) {
      const int64_t output = panel * kColumns + column;
      if (output >= outputs) break;
      for (int64_t g = 0; g < groups; ++g) {
        place_group<Q>(stored + (output * groups + g) * form.stored_bytes, column,
                       to + g * form.group_bytes());
      }
    }
  }
}

// What place_codes wrote of one output.
void read_codes(const uint8_t* packed, int bits, int64_t column, uint8_t* codes) {
  constexpr int kWord = 4, kStride = kColumns * kWord;
  const uint8_t* const from = packed + kWord * column;
  for (int i = 0; i < kBlock; ++i) {
    const int g = i / kWord, j = i % kWord;
    if (bits == 8) {
      codes[i] = from[kStride * g + j];
      continue;
    }
    codes[i] = from[kStride * (g % 4) + j] >> g / 4 * 4 & 15;
    const uint8_t* const high = from + kStride * 4 + j;
    if (bits == 5) codes[i] |= (high[0] >> g & 1) << 4;
    if (bits == 6) codes[i] |= (high[kStride * (g / 4)] >> g % 4 * 2 & 3) << 4;
  }
}

// Block j of one output of a packed group.
template <Quant Q>
Block read_packed(const uint8_t* group, int64_t j, int64_t column) {
  constexpr Form form = form_of(Q);
  Block block{};
  for (int64_t h = 0; h < form.halves; ++h) {
    std::memcpy(block.halves + h, group + 2 * (kColumns * h + column), 2);
  }
  if constexpr (form.is_float8()) std::memcpy(&block.scale, group + 4 * column, 4);
  const uint8_t* bytes = group + form.head_bytes() + j * form.block_bytes();
  for (int64_t i = 0; i < form.bytes; ++i) block.bytes[i] = bytes[kColumns * i + column];
  read_codes(bytes + kColumns * form.bytes, form.bits, column, block.codes);
  return block;
}

template <Quant Q>
void decode(const uint8_t* stored, int64_t rows, int64_t inputs, float* out) {
  constexpr Form form = form_of(Q);
  for (int64_t g = 0; g < rows * form.groups(inputs); ++g) {
    for (int64_t j = 0; j < form.group; ++j) {
      values_of<Q>(read_block(Q, stored + g * form.stored_bytes, int(j)),
                   out + (g * form.group + j) * kBlock);
    }
  }
}

}  // namespace

void pack_quantized(const uint8_t* stored, Quant quant, int64_t outputs, int64_t inputs,
                    uint8_t* packed) {
  with_quant(quant, [&]<Quant Q>() { pack<Q>(stored, outputs, inputs, packed); });
}

void packed_row(const uint8_t* packed, Quant quant, int64_t m, int64_t inputs, float* out) {
  with_quant(quant, [&]<Quant Q>() {
    constexpr Form form = form_of(Q);
    const uint8_t* panel = packed + m / kColumns * form.panel_bytes(inputs);
    for (int64_t block = 0; block < inputs / kBlock; ++block) {
      const uint8_t* group = panel + block / form.group * form.group_bytes();
      values_of<Q>(read_packed<Q>(group, block % form.group, m % kColumns), out + block * kBlock);
    }
  });
}

void dequantize(const uint8_t* stored, Quant quant, int64_t rows, int64_t inputs, float* out) {
  with_quant(quant, [&]<Quant Q>() { decode<Q>(stored, rows, inputs, out); });
}

}  // namespace specedge
