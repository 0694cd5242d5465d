#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "noise.h"
#include "ops.h"

namespace specedge::SPECEDGE_ISA {

void draft_topk(const float* logits, int64_t rows, int64_t vocabulary, int64_t k,
                const float* temperature, const int64_t* seed, const int64_t* position,
                const int64_t* token_ids, int64_t* ids, float* logprobs) {
  std::vector<float> coupled(vocabulary);
  std::vector<int64_t> order(vocabulary);
  for (int64_t row = 0; row < rows; ++row) {
    const uint64_t key = noise_key(seed[row], position[row]);
    const float t = std::max(temperature[row], 0.0f);
    for (int64_t i = 0; i < vocabulary; ++i) {
      coupled[i] = logits[row * vocabulary + i] + t * gumbel(key, token_ids ? token_ids[i] : i);
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return coupled[a] > coupled[b]; });
    const float top = coupled[order[0]];
    double sum = 0;
    for (float value : coupled) sum += std::exp(double(value) - top);
    const float log_sum = top + float(std::log(sum));
    for (int64_t i = 0; i < k; ++i) {
      ids[row * k + i] = token_ids ? token_ids[order[i]] : order[i];
      logprobs[row * k + i] = coupled[order[i]] - log_sum;
    }
  }
}

}  // namespace specedge::SPECEDGE_ISA
