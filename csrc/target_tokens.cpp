#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "isa.h"
#include "masks.h"
#include "noise.h"
#include "ops.h"
#include "threads.h"

namespace specedge {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Limits {
  int64_t top_k;
  float top_p, min_p;

  bool none() const { return top_k <= 0 && !(top_p < 1) && !(min_p > 0); }
};

struct Candidate {
  float value;
  int64_t token;
  double weight;  // its probability times a constant of the row
};

// Falling value, ties by rising token.
bool ahead(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.token < b.token);
}

// One row of logits / T, and its maximum.
struct Row {
  const float* scaled;  // [V]
  int64_t vocabulary;
  float top;

  // All tokens of at least this value.
  std::vector<Candidate> above(float threshold) const {
    std::vector<Candidate> found;
    const float below = std::nextafter(threshold, -kInfinity);
    for (int64_t i = isa().find_above(scaled, 0, vocabulary, below); i < vocabulary;
         i = isa().find_above(scaled, i + 1, vocabulary, below)) {
      found.push_back({scaled[i], i, std::exp(double(scaled[i]) - double(top))});
    }
    return found;
  }

  // Tokens from the top down, as deep as needed until there are enough.
  template <typename Enough>
  std::vector<Candidate> until(Enough enough) const {
    for (float depth = 4; depth < 512; depth *= 2) {
      std::vector<Candidate> found = above(top - depth);
      if (enough(found)) return found;
    }
    return above(-kInfinity);
  }
};

double total_weight(const std::vector<Candidate>& candidates) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

void keep_best(std::vector<Candidate>& candidates, int64_t n) {
  if (n >= int64_t(candidates.size())) return;
  std::nth_element(candidates.begin(), candidates.begin() + n, candidates.end(), ahead);
  candidates.resize(n);
}

// Keeps the fewest best candidates that together weigh at least `wanted`, by halving.
void keep_weight(std::vector<Candidate>& candidates, double wanted) {
  auto begin = candidates.begin(), end = candidates.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, ahead);
    double upper = 0;
    for (auto i = begin; i != middle; ++i) upper += i->weight;
    if (upper >= wanted) {
      end = middle;
    } else {
      wanted -= upper;
      begin = middle;
    }
  }
  candidates.erase(end, candidates.end());
}

// Tokens kept by top-k, then top-p of what is left, and min-p.
std::vector<Candidate> allowed(const Row& row, const Limits& limits) {
  const float lowest =
      limits.min_p > 0 ? row.top + float(std::log(double(limits.min_p))) : -kInfinity;
  std::vector<Candidate> kept;
  if (limits.top_k > 0) {
    kept = row.until([&](const auto& found) { return int64_t(found.size()) >= limits.top_k; });
    keep_best(kept, limits.top_k);
    if (limits.top_p < 1) keep_weight(kept, limits.top_p * total_weight(kept));
  } else if (limits.top_p < 1) {
    const double wanted = limits.top_p * isa().exp_sum(row.scaled, row.vocabulary, row.top);
    kept = row.until([&](const auto& found) { return total_weight(found) > wanted * (1 + 1e-9); });
    keep_weight(kept, wanted);
  } else {
    kept = row.above(std::min(lowest, row.top));
  }
  // The likeliest token stays whatever the limits.
  if (lowest > row.top) keep_best(kept, 1);
  std::erase_if(kept, [&](const Candidate& c) { return c.value < std::min(lowest, row.top); });
  return kept;
}

// logits [V], mask or null, room for what is kept of them -> the drawn token, or -1
int64_t draw(const float* logits, const uint32_t* mask, int64_t vocabulary, float temperature,
             const Limits& limits, uint64_t key, std::vector<float>& scaled) {
  const RowMax most = isa().row_max(logits, mask, vocabulary);
  if (most.has_nan || !std::isfinite(most.value)) return -1;
  // A temperature so small that even the greatest logit overflows is as good as none.
  const bool is_greedy = !(temperature > 0) || !std::isfinite(most.value / temperature);
  if (is_greedy) return most.index;
  // -inf divided by infinity would be a number that is none.
  temperature = std::min(temperature, std::numeric_limits<float>::max());
  const float top = most.value / temperature;
  if (limits.none()) {
    return isa().noisy_argmax(logits, mask, nullptr, vocabulary, temperature, top, key, most.index);
  }
  scaled.resize(vocabulary);
  isa().divide(logits, mask, vocabulary, temperature, scaled.data());
  std::vector<Candidate> kept = allowed({scaled.data(), vocabulary, top}, limits);
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  std::vector<float> values;
  std::vector<int64_t> tokens;
  for (const Candidate& candidate : kept) {
    values.push_back(candidate.value);
    tokens.push_back(candidate.token);
  }
  const int64_t n = int64_t(kept.size());
  return tokens[isa().noisy_argmax(values.data(), nullptr, tokens.data(), n, 1, top, key, 0)];
}

}  // namespace

// logits [N, V] -> out [N]
void target_tokens(const float* logits, int64_t rows, int64_t vocabulary, const Masks& masks,
                   const Draws& draws, int64_t* out) {
  check_masks(masks, rows);
  Failure failure;
#pragma omp parallel if (rows * vocabulary > 1 << 16)
  {
    std::vector<float> scaled;
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < rows; ++row) {
      failure.keep([&] {
        out[row] =
            draw(logits + row * vocabulary, mask_of(masks, row, vocabulary), vocabulary,
                 draws.temperature[row], {draws.top_k[row], draws.top_p[row], draws.min_p[row]},
                 noise_key(draws.seed[row], draws.position[row]), scaled);
      });
    }
  }
  failure.rethrow();
}

}  // namespace specedge
