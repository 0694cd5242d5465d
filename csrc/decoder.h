// The layers of a decoder-only transformer of the llama kind as one call, so that a step costs its
// products and little else. Knows neither embedding nor output head.
#pragma once

#include <vector>

#include "ops.h"

namespace specedge {

struct DecoderLayer {
  const float* attention_norm;  // [H]
  Linear qkv;                   // H -> (Hq + 2 Hk) D
  const float* qk_norm;         // [Hq + Hk, D] or null
  Linear output;                // Hq D -> H
  const float* mlp_norm;        // [H]
  Linear gate_up;               // H -> 2 I
  Linear down;                  // I -> H
  int64_t window;               // as in Scoring
};

struct Decoder {
  int64_t hidden, inner, query_heads, heads, head_dim;  // H, I, Hq, Hk, D
  float eps, scale;
  const float *cos, *sin;  // [C, D]
  int64_t n_positions;     // C
  std::vector<DecoderLayer> layers;
};

// kv [L, 2, P, S, Hk, D], D contiguous; strides in elements.
struct LayeredCache {
  Cache first_keys;
  int64_t layer_stride, half_stride;
};

// The rows of one step, and which of their hidden states are wanted.
struct Pass {
  Trees trees;
  const int64_t *positions, *slots;  // [N]
  const int64_t* wanted;             // [R], null for all rows
  int64_t n_wanted;
};

// x [N, H] embedded -> out [R, H] after the last layer. x is overwritten; keys and values of all
// rows are written. Made of the ops of ops.h: the bits are those of calling them one after another.
void decode(const Decoder& decoder, const LayeredCache& kv, const Pass& pass, float* x, float* out);

}  // namespace specedge
