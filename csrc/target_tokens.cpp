#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "noise.h"
#include "ops.h"

namespace specedge::SPECEDGE_ISA {
namespace {

int64_t draw(const float* logits, int64_t vocabulary, float temperature, int64_t top_k, float top_p,
             float min_p, uint64_t key) {
  float top = -std::numeric_limits<float>::infinity();
  int64_t best = -1;
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (std::isnan(logits[i])) return -1;
    if (logits[i] > top) {
      top = logits[i];
      best = i;
    }
  }
  if (!std::isfinite(top)) return -1;
  if (!(temperature > 0)) return best;
  std::vector<int64_t> order(vocabulary);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  const int64_t kept = top_k > 0 ? std::min(top_k, vocabulary) : vocabulary;
  const float first = top / temperature;
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) total += std::exp(double(logits[order[i]] / temperature) - first);
  double before = 0;
  float best_value = -std::numeric_limits<float>::infinity();
  best = -1;
  for (int64_t i = 0; i < kept; ++i) {
    const float scaled = logits[order[i]] / temperature;
    if (i > 0 && top_p < 1 && before >= top_p) break;
    if (i > 0 && min_p > 0 && scaled < first + std::log(min_p)) break;
    before += std::exp(double(scaled) - first) / total;
    const float value = scaled + gumbel(key, order[i]);
    if (value > best_value || (value == best_value && order[i] < best)) {
      best_value = value;
      best = order[i];
    }
  }
  return best;
}

}  // namespace

void target_tokens(const float* logits, int64_t rows, int64_t vocabulary, const Draws& draws,
                   int64_t* out) {
  for (int64_t row = 0; row < rows; ++row) {
    out[row] = draw(logits + row * vocabulary, vocabulary, draws.temperature[row], draws.top_k[row],
                    draws.top_p[row], draws.min_p[row],
                    noise_key(draws.seed[row], draws.position[row]));
  }
}

}  // namespace specedge::SPECEDGE_ISA
