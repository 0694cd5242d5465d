#include <cmath>
#include <vector>

#include "half.h"
#include "ops.h"

namespace specedge::SPECEDGE_ISA {
namespace {

float load_any(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return load(static_cast<const float*>(p) + i);
  if (dtype == Dtype::bf16) return load(static_cast<const bf16*>(p) + i);
  return load(static_cast<const f16*>(p) + i);
}

void store_any(void* p, Dtype dtype, int64_t i, float value) {
  if (dtype == Dtype::f32) return store(static_cast<float*>(p) + i, value);
  if (dtype == Dtype::bf16) return store(static_cast<bf16*>(p) + i, value);
  return store(static_cast<f16*>(p) + i, value);
}

int64_t element(const Cache& cache, const int32_t* pages, int64_t position, int64_t head) {
  return pages[position / cache.page_size] * cache.page_stride +
         position % cache.page_size * cache.token_stride + head * cache.head_stride;
}

}  // namespace

void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,
                    const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out) {
  const int64_t dim = k_cache.head_dim, group = query_heads / k_cache.n_heads;
  for (int64_t b = 0; b < trees.batch; ++b) {
    const int64_t first = trees.offsets[b], end = trees.offsets[b + 1];
    const int32_t* pages = trees.page_table + b * trees.pages_per_request;
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = first; row < end; ++row) {
      const int64_t node = trees.n_nodes[b] - (end - row), prefix = trees.prefix_lens[b];
      std::vector<int64_t> positions;
      for (int64_t i = 0; i < prefix; ++i) positions.push_back(i);
      for (int64_t j = 0; j <= node; ++j) {
        if (trees.depth[row] == node ||
            trees.ancestors[row * trees.words + j / 64] >> (j % 64) & 1) {
          positions.push_back(prefix + j);
        }
      }
      const int64_t n = int64_t(positions.size());
      const int64_t start = scoring.window >= 0 && scoring.window < n ? n - scoring.window : 0;
      std::vector<float> scores(n);
      std::vector<double> sums(dim);
      for (int64_t head = 0; head < query_heads; ++head) {
        const int64_t base = (row * query_heads + head) * dim;
        float top = -INFINITY;
        for (int64_t i = start; i < n; ++i) {
          const int64_t at = element(k_cache, pages, positions[i], head / group);
          double sum = 0;
          for (int64_t d = 0; d < dim; ++d) {
            sum += double(load_any(q, dtype, base + d)) * load_any(k_cache.data, k_cache.dtype, at + d);
          }
          scores[i] = float(sum) * scoring.scale;
          if (scoring.softcap > 0) scores[i] = scoring.softcap * tanhf(scores[i] / scoring.softcap);
          top = scores[i] > top ? scores[i] : top;
        }
        double total = 0;
        for (double& sum : sums) sum = 0;
        for (int64_t i = start; i < n; ++i) {
          const int64_t at = element(v_cache, pages, positions[i], head / group);
          const double p = std::exp(double(scores[i]) - top);
          total += p;
          for (int64_t d = 0; d < dim; ++d) sums[d] += p * load_any(v_cache.data, v_cache.dtype, at + d);
        }
        for (int64_t d = 0; d < dim; ++d) {
          store_any(out, dtype, base + d, total > 0 ? float(sums[d] / total) : 0.0f);
        }
      }
    }
  }
}

}  // namespace specedge::SPECEDGE_ISA
