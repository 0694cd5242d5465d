// The experts of each row, by its own logits alone: scores in double, rounded once at the end.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops.h"
#include "threads.h"

namespace specedge {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// softmax or sigmoid of logits [E]
void score(const float* logits, int64_t n, bool sigmoid, std::vector<double>& scores) {
  if (sigmoid) {
    for (int64_t e = 0; e < n; ++e) scores[e] = 1 / (1 + std::exp(-double(logits[e])));
    return;
  }
  const double top = *std::max_element(logits, logits + n);
  double total = 0;
  for (int64_t e = 0; e < n; ++e) total += scores[e] = std::exp(logits[e] - top);
  for (double& value : scores) value /= total;
}

// The index of the largest of `ranks` that is still open; the first of equal ones. NaN comes last.
int64_t take_best(const float* ranks, std::vector<char>& open) {
  int64_t best = -1;
  for (int64_t i = 0; i < int64_t(open.size()); ++i) {
    if (open[i] && (best < 0 || ranks[i] > ranks[best] || std::isnan(ranks[best]))) best = i;
  }
  open[best] = 0;
  return best;
}

// The sum of the largest `count` ranks [n].
float best_sum(const float* ranks, int64_t n, int64_t count) {
  std::vector<char> open(n, 1);
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += ranks[take_best(ranks, open)];
  return sum;
}

// Leaves only experts of the best groups open.
void choose_groups(const Routing& rule, const std::vector<float>& ranks, std::vector<char>& open) {
  const int64_t size = int64_t(ranks.size()) / rule.n_groups;
  std::vector<float> group_ranks(rule.n_groups);
  for (int64_t g = 0; g < rule.n_groups; ++g) {
    group_ranks[g] = best_sum(ranks.data() + g * size, size, rule.group_best);
  }
  std::vector<char> closed(rule.n_groups, 1);
  for (int64_t i = 0; i < rule.top_groups; ++i) take_best(group_ranks.data(), closed);
  for (int64_t e = 0; e < int64_t(open.size()); ++e) open[e] = !closed[e / size];
}

void route_row(const float* logits, int64_t n, const Routing& rule, int32_t* experts,
               float* weights) {
  std::vector<double> scores(n);
  score(logits, n, rule.sigmoid, scores);
  std::vector<float> ranks(logits, logits + n);
  if (rule.bias || rule.n_groups > 1) {
    for (int64_t e = 0; e < n; ++e) ranks[e] = float(scores[e]) + (rule.bias ? rule.bias[e] : 0);
  }
  std::vector<char> open(n, 1);
  if (rule.n_groups > 1) choose_groups(rule, ranks, open);
  double total = 0;
  for (int64_t j = 0; j < rule.k; ++j) {
    experts[j] = int32_t(take_best(ranks.data(), open));
    total += scores[experts[j]];
  }
  const double factor = rule.scale / (rule.normalise ? total : 1);
  for (int64_t j = 0; j < rule.k; ++j) weights[j] = float(scores[experts[j]] * factor);
}

}  // namespace

void route(const float* logits, int64_t rows, int64_t n_experts, const Routing& rule,
           int32_t* experts, float* weights) {
  for_rows(rows, n_experts * rule.k, [&](int64_t row) {
    route_row(logits + row * n_experts, n_experts, rule, experts + row * rule.k,
              weights + row * rule.k);
  });
}

}  // namespace specedge
