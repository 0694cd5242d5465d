#include "native.h"

namespace specedge::native {

namespace {

std::vector<float> numbers(int64_t n, Random& random) {
  std::vector<float> values(n);
  for (float& value : values) value = random.number();
  return values;
}

// The best `count` of [n], the first of equal ones first.
std::vector<int64_t> best(std::span<const float> ranks, int64_t count) {
  std::vector<int64_t> order(ranks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return ranks[a] > ranks[b]; });
  order.resize(count);
  return order;
}

// What a row's experts are chosen by: closed groups have -inf.
std::vector<float> ranks_of(std::span<const float> logits, std::span<const double> scores,
                            const Routing& rule) {
  std::vector<float> ranks(logits.begin(), logits.end());
  const int64_t size = int64_t(ranks.size()) / rule.n_groups;
  if (!rule.bias && rule.n_groups == 1) return ranks;
  for (size_t e = 0; e < ranks.size(); ++e) {
    ranks[e] = float(scores[e]) + (rule.bias ? rule.bias[e] : 0);
  }
  std::vector<float> group_ranks(rule.n_groups);
  for (int64_t g = 0; g < rule.n_groups; ++g) {
    const std::span<const float> own(ranks.data() + g * size, size);
    for (int64_t e : best(own, rule.group_best)) group_ranks[g] += own[e];
  }
  std::vector<char> open(rule.n_groups);
  for (int64_t g : best(group_ranks, rule.top_groups)) open[g] = 1;
  for (size_t e = 0; e < ranks.size(); ++e) {
    if (!open[e / size]) ranks[e] = float(-kInfinity);
  }
  return ranks;
}

}  // namespace

void check_route(Random& random) {
  const int64_t rows = random.pick({0, 1, 3}), n_groups = random.pick({1, 1, 2, 4});
  const int64_t size = random.between(1, 17), n = n_groups * size;
  const int64_t top_groups = random.between(1, n_groups), group_best = random.between(1, size);
  const std::vector<float> bias = numbers(n, random);
  const Routing rule{
      random.between(1, top_groups * size),      random.chance(50), random.chance(50), 2.5f,
      random.chance(50) ? bias.data() : nullptr, n_groups,          top_groups,        group_best};
  std::vector<float> logits = numbers(rows * n, random);
  const bool strange = random.chance(20);  // then nothing but places can be said
  for (float& logit : logits) {
    if (random.fill() % 4 == 0) logit = 1;  // equal ones
    if (strange && random.fill() % 3 == 0) logit = std::numeric_limits<float>::quiet_NaN();
  }
  std::vector<int32_t> experts(rows * rule.k, -1);
  std::vector<float> weights(rows * rule.k);
  route(logits.data(), rows, n, rule, experts.data(), weights.data());
  for (int64_t row = 0; row < rows; ++row) {
    const std::span<const float> own(logits.data() + row * n, n);
    std::vector<char> chosen(n);
    for (int64_t j = 0; j < rule.k; ++j) {
      const int32_t expert = experts[row * rule.k + j];
      expect(expert >= 0 && expert < n && !chosen[expert]++, "route: no expert, or one twice");
    }
    if (strange) continue;
    double top = -kInfinity, all = 0, total = 0;
    for (float logit : own) top = std::max(top, double(logit));
    for (float logit : own) all += std::exp(logit - top);
    std::vector<double> scores(n);
    for (int64_t e = 0; e < n; ++e) {
      scores[e] = rule.sigmoid ? 1 / (1 + std::exp(-double(own[e]))) : std::exp(own[e] - top) / all;
    }
    const std::vector<int64_t> want = best(ranks_of(own, scores, rule), rule.k);
    for (int64_t expert : want) total += scores[expert];
    for (int64_t j = 0; j < rule.k; ++j) {
      const int64_t at = row * rule.k + j;
      const double weight = scores[want[j]] * rule.scale / (rule.normalise ? total : 1);
      expect(experts[at] == want[j], "route: another expert is better");
      expect_near(weights[at], weight, 1e-6 * weight, "weight of an expert", at);
    }
  }
}

void check_weighted_sum(Random& random) {
  const int64_t rows = random.pick({0, 1, 3}), parts = random.between(1, 9);
  const int64_t width = random.pick({0, 1, 3, 16, 17, 65});
  Numbers y(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16}), rows * parts * width, random);
  const std::vector<float> weights = numbers(rows * parts, random);
  Numbers out(y.type(), rows * width);
  weighted_sum(y.data(), y.type(), weights.data(), rows, parts, width, out.data());
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t row = i / width;
    double sum = 0, size = 0;
    for (int64_t j = 0; j < parts; ++j) {
      const double part = weights[row * parts + j] * y.get((row * parts + j) * width + i % width);
      sum += part, size += std::abs(part);
    }
    expect_near(out.get(i), sum, (size + 1) * out.precision(), "sum of parts", i);
  }
}

}  // namespace specedge::native
