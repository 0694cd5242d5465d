#include <cmath>
#include <vector>

#include "isa.h"
#include "largest.h"
#include "noise.h"
#include "ops.h"
#include "threads.h"

namespace specedge {
// logits [N, V], token_ids [V] or null -> ids [N, k], logprobs [N, k]
void draft_topk(const float* logits, int64_t rows, int64_t vocabulary, int64_t k,
                const float* temperature, const int64_t* seed, const int64_t* position,
                const int64_t* token_ids, int64_t* ids, float* logprobs) {
  Failure failure;
#pragma omp parallel if (rows * vocabulary > 1 << 16)
  {
    std::vector<float> noisy;
    std::vector<int64_t> columns;
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < rows; ++row) {
      failure.keep([&] {
        const float* coupled = logits + row * vocabulary;
        if (temperature[row] > 0) {
          noisy.resize(vocabulary);
          isa().add_noise(coupled, token_ids, vocabulary, noise_key(seed[row], position[row]),
                          temperature[row], noisy.data());
          coupled = noisy.data();
        }
        largest(coupled, vocabulary, k, columns);
        const float top = coupled[columns[0]];
        const double log_sum = double(top) + std::log(isa().exp_sum(coupled, vocabulary, top));
        for (int64_t i = 0; i < k; ++i) {
          ids[row * k + i] = token_ids ? token_ids[columns[i]] : columns[i];
          logprobs[row * k + i] = float(coupled[columns[i]] - log_sum);
        }
      });
    }
  }
  failure.rethrow();
}

}  // namespace specedge
