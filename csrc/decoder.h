// A decoder-only transformer of the llama kind, so that a step costs its products and little else.
// Made of the ops of ops.h: the bits are those of calling them one after another.
#pragma once

#include <optional>
#include <vector>

#include "ops.h"

namespace specedge {

// What chooses k of E experts for a row.
struct Router {
  Linear linear;  // H -> E
  int64_t n_experts;
  Routing rule;
};

struct DecoderLayer {
  const float* attention_norm;   // [H]
  Linear qkv;                    // H -> (Hq + 2 Hk) D
  const float* qk_norm;          // [Hq + Hk, D] or null
  Linear output;                 // Hq D -> H
  const float* mlp_norm;         // [H]
  Linear gate_up;                // H -> 2 I
  Linear down;                   // I -> H
  int64_t inner;                 // I
  int64_t window;                // as in Scoring
  std::optional<Router> router;  // of experts: gate_up and down are then E sets of weights
};

struct Decoder {
  int64_t hidden, query_heads, heads, head_dim;  // H, Hq, Hk, D
  float eps, scale;
  const float *cos, *sin;  // [C, D]
  int64_t n_positions;     // C
  // [V, H], quantised as in a GGUF file or not; null where it is the weights of the head
  const void* embedding;
  std::variant<Dtype, Quant> embedding_type;
  int64_t vocabulary;  // V
  const float* norm;   // [H]
  Linear head;         // H -> V or fewer
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
  const int64_t *tokens, *positions, *slots;  // [N]
  const int64_t* wanted;                      // [R], null for all rows
  int64_t n_wanted;
};

// -> out [R, H], hidden states after the last layer; keys and values of all rows are written.
void decode(const Decoder& decoder, const LayeredCache& kv, const Pass& pass, float* out);

// hidden [R, H] -> their logits [R, outputs of the head]
void logits(const Decoder& decoder, float* hidden, int64_t rows, float* out);

}  // namespace specedge
