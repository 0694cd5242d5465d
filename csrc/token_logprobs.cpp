#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "checks.h"
#include "isa.h"
#include "largest.h"
#include "ops.h"
#include "threads.h"

namespace specedge {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// logits [V], a token or -1 -> its log-probability, and the best n with theirs; all NaN and -1 for
// a row that has no probabilities
void row_logprobs(const float* logits, int64_t vocabulary, int64_t token, int64_t n,
                  std::vector<int64_t>& columns, float* logprob, int64_t* top_tokens,
                  float* top_logprobs) {
  const RowMax most = isa().row_max(logits, nullptr, vocabulary);
  if (most.has_nan || !std::isfinite(most.value)) {
    *logprob = kNaN;
    std::fill_n(top_tokens, n, -1);
    std::fill_n(top_logprobs, n, kNaN);
    return;
  }
  const double log_sum =
      double(most.value) + std::log(isa().exp_sum(logits, vocabulary, most.value));
  *logprob = token < 0 ? kNaN : float(logits[token] - log_sum);
  if (n == 0) return;
  largest(logits, vocabulary, n, columns);
  for (int64_t i = 0; i < n; ++i) {
    top_tokens[i] = columns[i];
    top_logprobs[i] = float(logits[columns[i]] - log_sum);
  }
}

}  // namespace

// logits [N, V], tokens [N] -> logprobs [N], top_tokens [N, n], top_logprobs [N, n]
void token_logprobs(const float* logits, int64_t rows, int64_t vocabulary, const int64_t* tokens,
                    int64_t n, float* logprobs, int64_t* top_tokens, float* top_logprobs) {
  for (int64_t row = 0; row < rows; ++row) {
    require(tokens[row] >= -1 && tokens[row] < vocabulary, "row ", row,
            ": expected a token in -1 .. ", vocabulary - 1, ", got ", tokens[row]);
  }
  Failure failure;
#pragma omp parallel if (rows * vocabulary > 1 << 16)
  {
    std::vector<int64_t> columns;
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < rows; ++row) {
      failure.keep([&] {
        row_logprobs(logits + row * vocabulary, vocabulary, tokens[row], n, columns, logprobs + row,
                     top_tokens + row * n, top_logprobs + row * n);
      });
    }
  }
  failure.rethrow();
}

}  // namespace specedge
