// The ops that are compiled once per instruction set: check values, then call the chosen one.
#include <algorithm>
#include <bit>
#include <limits>
#include <memory>

#include "checks.h"
#include "isa.h"
#include "ops.h"
#include "quant_form.h"
#include "stored.h"

namespace specedge {
namespace {

int64_t path_length(const int64_t* mask, int64_t node) {
  int64_t count = 0;
  for (int64_t word = 0; word < node / 64; ++word) count += std::popcount(uint64_t(mask[word]));
  return count + std::popcount(uint64_t(mask[node / 64]) << (63 - node % 64));
}

// A row that is not the end of a chain needs a mask that holds its whole path.
void check_row(const Trees& trees, int64_t b, int64_t row, int64_t node) {
  const int64_t depth = trees.depth[row];
  require(depth >= 0 && depth <= node, "request ", b, ": expected a depth in 0 .. ", node,
          " for node ", node, ", got ", depth);
  if (depth == node) return;
  require(node < 64 * trees.words, "request ", b, ": expected masks of more than ", trees.words,
          " words for node ", node, ", which does not end a chain");
  const int64_t* mask = trees.ancestors + row * trees.words;
  require(mask[node / 64] >> (node % 64) & 1, "request ", b, ": expected the mask of node ", node,
          " to hold the node itself");
  require(path_length(mask, node) == depth + 1, "request ", b, ": expected ", depth + 1,
          " nodes in the mask of node ", node, " at depth ", depth, ", got ",
          path_length(mask, node));
}

// The first position that any row of request b attends to.
int64_t first_visible(const Trees& trees, int64_t b, int64_t window) {
  if (window < 0) return 0;
  int64_t first = int64_t(trees.prefix_lens[b]) + trees.n_nodes[b];
  for (int64_t row = trees.offsets[b]; row < trees.offsets[b + 1]; ++row) {
    const int64_t length = int64_t(trees.prefix_lens[b]) + trees.depth[row] + 1;
    first = std::min(first, std::max<int64_t>(0, length - window));
  }
  return first;
}

void check_request(const Trees& trees, const Cache& cache, int64_t b, int64_t window) {
  const int64_t first = trees.offsets[b], rows = trees.offsets[b + 1] - first;
  const int64_t n_nodes = trees.n_nodes[b], prefix = trees.prefix_lens[b];
  require(prefix >= 0, "request ", b, ": expected a prefix length of 0 or more, got ", prefix);
  require(n_nodes >= rows, "request ", b, ": expected at least as many nodes as its ", rows,
          " rows, got ", n_nodes);
  require(prefix + n_nodes <= INT32_MAX, "request ", b, ": expected at most ", INT32_MAX,
          " tokens, got ", prefix + n_nodes);
  for (int64_t r = 0; r < rows; ++r) check_row(trees, b, first + r, n_nodes - rows + r);
  if (rows > 0) {
    check_pages(trees.page_table + b * trees.pages_per_request, trees.pages_per_request,
                cache.n_pages, cache.page_size, first_visible(trees, b, window), prefix + n_nodes,
                b);
  }
}

// -inf is no sink at all.
void check_sinks(const float* sinks, int64_t query_heads) {
  for (int64_t head = 0; sinks && head < query_heads; ++head) {
    require(sinks[head] <= std::numeric_limits<float>::max(),
            "expected sinks that are finite or -inf, got ", sinks[head], " for head ", head);
  }
}

void panel_row(const Panels& panels, int64_t m, int64_t inputs, float* out) {
  with_type(panels.dtype, [&]<typename T>() {
    const T* weight = static_cast<const T*>(panels.data) + m / 64 * inputs * 64 + m % 64;
    for (int64_t k = 0; k < inputs; ++k) out[k] = load(weight + k * 64);
  });
}

void part_row(const QuantizedParts& parts, int64_t m, int64_t inputs, float* out) {
  const uint8_t* packed = parts.packed;
  size_t part = 0;
  for (; m >= parts.outputs[part]; m -= parts.outputs[part++]) {
    packed += form_of(parts.quants[part]).packed_bytes(parts.outputs[part], inputs);
  }
  packed_row(packed, parts.quants[part], m, inputs, out);
}

// Each part's outputs stand beside those of the others in `out`.
void multiply_parts(const QuantizedParts& parts, const float* x, int64_t rows, const Linear& linear,
                    float* out) {
  const int64_t inputs = linear.inputs, stride = linear.outputs;
  std::unique_ptr<Rounded[]> rounded;
  if (!parts.exact) {
    rounded = std::make_unique_for_overwrite<Rounded[]>(rows * (inputs / kBlock));
    isa().round_activations(x, rows, inputs, rounded.get());
  }
  const uint8_t* packed = parts.packed;
  for (size_t part = 0; part < parts.quants.size(); ++part) {
    const Quant quant = parts.quants[part];
    const int64_t outputs = parts.outputs[part];
    if (parts.exact) {
      isa().multiply_exact(x, packed, quant, rows, inputs, outputs, out, stride);
    } else {
      isa().multiply_rounded(rounded.get(), packed, quant, rows, inputs, outputs, out, stride);
    }
    packed += form_of(quant).packed_bytes(outputs, inputs);
    out += outputs;
  }
}

}  // namespace

void weight_row(const Linear& linear, int64_t m, float* out) {
  if (const Panels* panels = std::get_if<Panels>(&linear.weights)) {
    panel_row(*panels, m, linear.inputs, out);
  } else {
    part_row(std::get<QuantizedParts>(linear.weights), m, linear.inputs, out);
  }
}

void multiply(const Linear& linear, const float* x, int64_t rows, float* out) {
  if (const Panels* panels = std::get_if<Panels>(&linear.weights)) {
    isa().linear(x, panels->data, panels->dtype, rows, linear.inputs, linear.outputs, out);
  } else {
    multiply_parts(std::get<QuantizedParts>(linear.weights), x, rows, linear, out);
  }
  if (!linear.bias) return;
  for (int64_t row = 0; row < rows; ++row, out += linear.outputs) {
    for (int64_t m = 0; m < linear.outputs; ++m) out[m] += linear.bias[m];
  }
}

void rms_norm(void* x, const void* delta, const void* weight, Dtype dtype, int64_t rows,
              int64_t width, float eps, void* out) {
  isa().rms_norm(x, delta, weight, dtype, rows, width, eps, out);
}

void silu_mul(const void* gate_up, Dtype dtype, int64_t rows, int64_t width, void* out) {
  isa().silu_mul(gate_up, dtype, rows, width, out);
}

void check_trees(const Trees& trees, const Cache& cache, int64_t window) {
  check_offsets(trees.offsets, trees.batch, trees.rows);
  for (int64_t b = 0; b < trees.batch; ++b) check_request(trees, cache, b, window);
}

void unchecked::tree_attention(const void* q, Dtype dtype, int64_t query_heads,
                               const Cache& k_cache, const Cache& v_cache, const Trees& trees,
                               const Scoring& scoring, void* out, float* lse) {
  isa().tree_attention(q, dtype, query_heads, k_cache, v_cache, trees, scoring, out, lse);
}

void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,
                    const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out,
                    float* lse) {
  check_trees(trees, k_cache, scoring.window);
  check_scales(scoring.k_scale, scoring.v_scale, k_cache.n_heads);
  check_sinks(scoring.sinks, query_heads);
  unchecked::tree_attention(q, dtype, query_heads, k_cache, v_cache, trees, scoring, out, lse);
}

}  // namespace specedge
