// Every CPU op over plain pointers and sizes. Letters as in specedge_kernels/__init__.py; tensors
// are contiguous unless strides (in elements) are given. Knows nothing of Python or torch.
// Wrong values raise std::invalid_argument before anything is written.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "host_device.h"

namespace specedge {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2, e4m3 = 3 };

// Formats of quantised weights, by ggml's numbers; from 256 on, those that ggml does not have.
enum class Quant : int {
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  iq4_xs = 23,
  mxfp4 = 39,
  fp8 = 256,
  fp8_32 = 257
};

// One of the two caches of a layer: [P, S, Hk, D], D contiguous.
struct Cache {
  void* data;
  Dtype dtype;
  int64_t n_pages, page_size, n_heads, head_dim;
  int64_t page_stride, token_stride, head_stride;
};

// The bytes of a whole cache: n_layers * n_parts planes of [P, S, Hk] runs of run_bytes.
struct Planes {
  char* data;
  int64_t n_layers, n_parts, n_pages, page_size, n_heads, run_bytes;
  int64_t layer_stride, part_stride, page_stride, token_stride, head_stride;  // bytes
};

// The trees of a batch, as tree_attention sees them.
struct Trees {
  int64_t batch, rows, words, pages_per_request;
  const int32_t* page_table;   // [B, M]
  const int32_t* prefix_lens;  // [B]
  const int32_t* n_nodes;      // [B]
  const int32_t* offsets;      // [B+1]
  const int64_t* ancestors;    // [N, W]
  const int32_t* depth;        // [N]
};

// What stored keys or values are multiplied by: one number, or one for each head.
struct Scale {
  float all = 1;
  const float* by_head = nullptr;  // [Hk] or null

  SPECEDGE_HOST_DEVICE float of(int64_t head) const { return by_head ? by_head[head] : all; }
};

struct Scoring {
  float scale, softcap;
  int64_t window;
  Scale k_scale, v_scale;
  const float* sinks;  // [Hq], one more score a row, without a value; or null
};

// Half-rotated: dimension d turns with d + D/2, and the first half of sin is negated.
struct Rope {
  const float *cos, *sin;    // [C, D]
  int64_t n_positions;       // C
  const int64_t* positions;  // [N]
};

// The RMS norm of each query and key head before it turns.
struct HeadNorms {
  const float* weight;  // [Hq + Hk, D], or null for no norm
  float eps;
};

// Weights [M, K] as floats.
struct Panels {
  const void* data;  // [ceil(M / 64), K, 64]
  Dtype dtype;
};

// Weights [M, K] from pack_quantized, parts of one format each one after the other. Unless `exact`,
// activations are rounded to 8 bits.
struct QuantizedParts {
  const uint8_t* packed;
  std::vector<Quant> quants;
  std::vector<int64_t> outputs;
  bool exact;
};

// A product x [N, K] -> [N, M]: packed weights and what is added to each output.
struct Linear {
  std::variant<Panels, QuantizedParts> weights;
  int64_t inputs, outputs;
  const float* bias;  // [M] or null
};

// Which set of weights each row of x is multiplied with, for a product with several sets.
struct Groups {
  const int32_t* sets;  // [N, k]; -1 for none
  int64_t n_sets;       // E
  int64_t per_row;      // k
  const float* bias;    // [E, M] or null
};

// How a router chooses k of E experts.
struct Routing {
  int64_t k;
  bool sigmoid, normalise;
  float scale;
  const float* bias;  // [E] or null
  int64_t n_groups, top_groups, group_best;
};

// The parameters of one draw per row, each [N].
struct Draws {
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const int64_t *seed, *position;
};

// The tokens that may be drawn: bit t % 32 of word t / 32.
struct Masks {
  const int32_t* words;  // [M, ceil(V / 32)]
  int64_t count;         // M
  const int32_t* row;    // [N], -1 where all tokens are allowed; null where they are for all rows
};

// The trees of a batch, one token a node.
struct Drafts {
  int64_t batch, words;
  const int64_t* tokens;     // [N]
  const int64_t* ancestors;  // [N, W]
  const int32_t* offsets;    // [B+1]
};

// What is done to the logits of each request. Lists have the tokens of request b, rising, at
// offsets[b] .. offsets[b+1]-1.
struct Edits {
  int64_t n_text, n_bias;                          // K, J
  const int32_t* text_offsets;                     // [B+1]
  const int64_t* text_tokens;                      // [K]
  const int32_t* text_counts;                      // [K], 0 for what is in the prompt alone
  const int32_t* bias_offsets;                     // [B+1]
  const int64_t* bias_tokens;                      // [J]
  const float* bias_values;                        // [J]
  const float *repetition, *frequency, *presence;  // [B]
};

// parents [N], offsets [B+1] -> ancestors [N, W], depth [N]
void build_tree(const int32_t* parents, const int32_t* offsets, int64_t batch, int64_t rows,
                int64_t words, int64_t* ancestors, int32_t* depth);

// k / k_scale [N, Hk, D] and v / v_scale [N, Hk, Dv] into the caches at slots [N]
void append_kv(const void* k, const void* v, Dtype dtype, const Cache& k_cache,
               const Cache& v_cache, const int64_t* slots, int64_t rows, const Scale& k_scale,
               const Scale& v_scale);

// qk [N, Hq + Hk, D] turned -> q [N, Hq, D] and, with v [N, Hk, D], the caches; rows have strides
void rope_append_kv(const void* qk, int64_t qk_stride, const void* v, int64_t v_stride, Dtype dtype,
                    int64_t query_heads, const HeadNorms& norms, const Rope& rope,
                    const Cache& k_cache, const Cache& v_cache, const int64_t* slots, int64_t rows,
                    const Scale& k_scale, const Scale& v_scale, void* q);

// kv [L, X, P, S, Hk, D] as L X planes of bytes
void compact_kv(const Planes& kv, const int32_t* page_table, int64_t pages_per_request,
                const int32_t* prefix_lens, const int32_t* path, const int32_t* accepted_lens,
                int64_t batch, int64_t max_path);

// tokens [N], ancestors [N, W], offsets [B+1], target [N] -> path [B, A], accepted [B], bonus [B]
void verify(const int64_t* tokens, const int64_t* ancestors, const int32_t* offsets,
            const int64_t* target, int64_t batch, int64_t rows, int64_t words, int64_t max_path,
            int32_t* path, int32_t* accepted_lens, int64_t* bonus);

// logits [N, V] -> out [N]
void target_tokens(const float* logits, int64_t rows, int64_t vocabulary, const Masks& masks,
                   const Draws& draws, int64_t* out);

// logits [N, V] in place: bias, then penalties for the text and the drafted tokens above a row
void edit_logits(float* logits, int64_t rows, int64_t vocabulary, const Drafts& drafts,
                 const Edits& edits);

// logits [N, V], tokens [N] or -1 -> logprobs [N], top_tokens [N, n], top_logprobs [N, n]
void token_logprobs(const float* logits, int64_t rows, int64_t vocabulary, const int64_t* tokens,
                    int64_t n, float* logprobs, int64_t* top_tokens, float* top_logprobs);

// logits [N, V], token_ids [V] or null -> ids [N, k], logprobs [N, k]
void draft_topk(const float* logits, int64_t rows, int64_t vocabulary, int64_t k,
                const float* temperature, const int64_t* seed, const int64_t* position,
                const int64_t* token_ids, int64_t* ids, float* logprobs);

// Row m of the weights -> out [K]
void weight_row(const Linear& linear, int64_t m, float* out);

// x [N, K] -> out [N, M]
void multiply(const Linear& linear, const float* x, int64_t rows, float* out);

// x [N, K] times the E sets of `linear`, as `groups` says -> out [N k, M]. The linear's own bias is
// null.
void grouped_multiply(const Linear& linear, const Groups& groups, const float* x, int64_t rows,
                      float* out);

// logits [N, E] -> experts [N, k], best first, and their weights [N, k]
void route(const float* logits, int64_t rows, int64_t n_experts, const Routing& rule,
           int32_t* experts, float* weights);

// y [N, k, M], weights [N, k] -> out [N, M]: sums in the order of k
void weighted_sum(const void* y, Dtype dtype, const float* weights, int64_t rows, int64_t parts,
                  int64_t width, void* out);

// x [N, H] += delta [N, H] or null; x / sqrt(mean(x^2) + eps) * weight [H] -> out [N, H]
void rms_norm(void* x, const void* delta, const void* weight, Dtype dtype, int64_t rows,
              int64_t width, float eps, void* out);

// gate_up [N, 2 I] -> silu(gate) * up [N, I]
void silu_mul(const void* gate_up, Dtype dtype, int64_t rows, int64_t width, void* out);

// stored [M, bytes of K inputs] as in a GGUF file -> panels [ceil(M / 8), panel bytes]; K a
// multiple of the format's block
void pack_quantized(const uint8_t* stored, Quant quant, int64_t outputs, int64_t inputs,
                    uint8_t* packed);

// stored [N, bytes of K inputs] -> out [N, K]
void dequantize(const uint8_t* stored, Quant quant, int64_t rows, int64_t inputs, float* out);

// Row m of weights that pack_quantized packed -> out [K]
void packed_row(const uint8_t* packed, Quant quant, int64_t m, int64_t inputs, float* out);

// q [N, Hq, D] -> out [N, Hq, Dv] of the same type; lse [N, Hq] or null
void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,
                    const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out,
                    float* lse);

// The checks of tables that rope_append_kv and tree_attention make, for callers that run these over
// the same ones many times.
void check_places(const Rope& rope, const Cache& cache, const int64_t* slots, int64_t rows);
void check_trees(const Trees& trees, const Cache& cache, int64_t window);

// Without any check of values.
namespace unchecked {

void rope_append_kv(const void* qk, int64_t qk_stride, const void* v, int64_t v_stride, Dtype dtype,
                    int64_t query_heads, const HeadNorms& norms, const Rope& rope,
                    const Cache& k_cache, const Cache& v_cache, const int64_t* slots, int64_t rows,
                    const Scale& k_scale, const Scale& v_scale, void* q);
void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,
                    const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out,
                    float* lse);

}  // namespace unchecked
}  // namespace specedge
