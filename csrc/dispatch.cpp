// The ops that are compiled once per instruction set: check values, then call the chosen one.
#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "checks.h"
#include "isa.h"
#include "ops.h"
#include "quant_form.h"
#include "stored.h"
#include "threads.h"

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

int64_t set_bytes(const QuantizedParts& parts, int64_t inputs) {
  int64_t n_bytes = 0;
  for (size_t part = 0; part < parts.quants.size(); ++part) {
    n_bytes += form_of(parts.quants[part]).packed_bytes(parts.outputs[part], inputs);
  }
  return n_bytes;
}

// Each part's outputs stand beside those of the others in `out`.
void multiply_parts(const QuantizedParts& parts, const float* x, const Runs& runs,
                    const Linear& linear, float* out) {
  const int64_t inputs = linear.inputs, stride = linear.outputs, rows = runs.rows();
  const int64_t bytes = set_bytes(parts, inputs);
  // Integers times float8 codes would be no integers.
  const auto is_rounded = [&](Quant quant) { return !parts.exact && !form_of(quant).is_float8(); };
  std::unique_ptr<Rounded[]> rounded;
  if (std::any_of(parts.quants.begin(), parts.quants.end(), is_rounded)) {
    rounded = std::make_unique_for_overwrite<Rounded[]>(rows * (inputs / kBlock));
    isa().round_activations(x, rows, inputs, rounded.get());
  }
  const uint8_t* packed = parts.packed;
  for (size_t part = 0; part < parts.quants.size(); ++part) {
    const Quant quant = parts.quants[part];
    const int64_t outputs = parts.outputs[part];
    if (!is_rounded(quant)) {
      isa().multiply_exact(x, packed, bytes, quant, runs, inputs, outputs, out, stride);
    } else {
      isa().multiply_rounded(rounded.get(), packed, bytes, quant, runs, inputs, outputs, out,
                             stride);
    }
    packed += form_of(quant).packed_bytes(outputs, inputs);
    out += outputs;
  }
}

// The rows of a product, in the order of the sets that they meet.
class RowsBySet {
 public:
  explicit RowsBySet(const Linear& linear)
      : most_(std::holds_alternative<Panels>(linear.weights) ? kFloatRows : kQuantizedRows) {}

  // The next rows of x, in runs of nearly equal length.
  void add(int64_t set, int64_t rows) {
    const int64_t start = first_.back(), n = (rows + most_ - 1) / most_;
    for (int64_t i = 1; i <= n; ++i) {
      first_.push_back(start + rows * i / n);
      sets_.push_back(set);
    }
  }

  Runs runs(const int64_t* places) const {
    return {int64_t(sets_.size()), first_.data(), sets_.data(), places};
  }

 private:
  int64_t most_;
  std::vector<int64_t> first_{0}, sets_;
};

void multiply_runs(const Linear& linear, const float* x, const Runs& runs, float* out) {
  if (const Panels* panels = std::get_if<Panels>(&linear.weights)) {
    isa().linear(x, panels->data, panels->dtype, runs, linear.inputs, linear.outputs, out);
  } else {
    multiply_parts(std::get<QuantizedParts>(linear.weights), x, runs, linear, out);
  }
}

void add_bias(const float* bias, int64_t n, float* out) {
  for (int64_t m = 0; m < n; ++m) out[m] += bias[m];
}

// Pairs [N k] by their sets, each set's in increasing order; where each set's begin -> [E + 1].
std::vector<int64_t> sorted_pairs(const Groups& groups, int64_t n_pairs,
                                  std::vector<int64_t>& begins) {
  begins.assign(groups.n_sets + 1, 0);
  for (int64_t pair = 0; pair < n_pairs; ++pair) {
    const int32_t set = groups.sets[pair];
    require(set >= -1 && set < groups.n_sets, "expected groups in -1 .. ", groups.n_sets - 1,
            ", got ", set, " at index ", pair);
    if (set >= 0) ++begins[set + 1];
  }
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  std::vector<int64_t> pairs(begins.back()), next = begins;
  for (int64_t pair = 0; pair < n_pairs; ++pair) {
    if (groups.sets[pair] >= 0) pairs[next[groups.sets[pair]]++] = pair;
  }
  return pairs;
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
  RowsBySet all(linear);
  all.add(0, rows);
  multiply_runs(linear, x, all.runs(nullptr), out);
  if (!linear.bias) return;
  for (int64_t row = 0; row < rows; ++row) {
    add_bias(linear.bias, linear.outputs, out + row * linear.outputs);
  }
}

void grouped_multiply(const Linear& linear, const Groups& groups, const float* x, int64_t rows,
                      float* out) {
  const int64_t n_pairs = rows * groups.per_row, inputs = linear.inputs, outputs = linear.outputs;
  std::vector<int64_t> begins;
  const std::vector<int64_t> pairs = sorted_pairs(groups, n_pairs, begins);
  RowsBySet by_set(linear);
  for (int64_t set = 0; set < groups.n_sets; ++set) {
    if (begins[set + 1] > begins[set]) by_set.add(set, begins[set + 1] - begins[set]);
  }
  const int64_t n = int64_t(pairs.size());
  const auto sorted = std::make_unique_for_overwrite<float[]>(n * inputs);
  for_rows(n, inputs, [&](int64_t i) {
    std::copy_n(x + pairs[i] / groups.per_row * inputs, inputs, sorted.get() + i * inputs);
  });
  multiply_runs(linear, sorted.get(), by_set.runs(pairs.data()), out);
  for (int64_t pair = 0; pair < n_pairs; ++pair, out += outputs) {
    if (groups.sets[pair] < 0) {
      std::fill_n(out, outputs, 0.0f);
    } else if (groups.bias) {
      add_bias(groups.bias + groups.sets[pair] * outputs, outputs, out);
    }
  }
}

void weighted_sum(const void* y, Dtype dtype, const float* weights, int64_t rows, int64_t parts,
                  int64_t width, void* out) {
  isa().weighted_sum(y, dtype, weights, rows, parts, width, out);
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
