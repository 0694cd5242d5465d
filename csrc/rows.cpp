// Vectorised passes over one row of logits; target_tokens and draft_topk are made of them.
#include "isa.h"
#include "noise.h"
#include "vec.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// The largest noise there is, -log(-log(1 - 2^-24)), rounded up.
constexpr float kMostNoise = 16.64f;

// Up to kLanes values of x from i on; -inf beyond n.
vec load_some(const float* x, int64_t i, int64_t n) {
  if (i + kLanes <= n) return load_vec(x + i);
  float lanes[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) lanes[j] = i + j < n ? x[i + j] : kMinusInfinity;
  return load_vec(lanes);
}

void store_some(float* x, int64_t i, int64_t n, vec value) {
  if (i + kLanes <= n) return store_vec(x + i, value);
  float lanes[kLanes];
  store_vec(lanes, value);
  for (int64_t j = 0; i + j < n; ++j) x[i + j] = lanes[j];
}

// Gumbel noise of kLanes tokens: ids[i ...] or, without ids, i ...; arbitrary beyond n.
vec noise_at(const int64_t* ids, int64_t i, int64_t n, uint64_t key) {
  uint64_t tokens[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) tokens[j] = uint64_t(i + j);
  if (ids) {
    for (int64_t j = 0; j < kLanes; ++j) tokens[j] = uint64_t(ids[i + j < n ? i + j : i]);
  }
  int32_t bits[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) bits[j] = int32_t(noise_bits(key, tokens[j]));
  const vec u = (__builtin_convertvector(load_as<ivec>(bits), vec) + 0.5f) * 0x1p-23f;
  return -log_of(-log_of(u));
}

// e^x in double for x <= 0: exactly 0 below -700. Reduction to |r| <= log(2) / 2, then the Taylor
// polynomial of degree 13, whose remainder is below 2^-57.
dvec exp_of(dvec x) {
  const dvec shifted = x * 1.4426950408889634 + 0x1.8p52;
  const dvec n = shifted - 0x1.8p52;
  const dvec r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  dvec p = r * (1.0 / 13.0) + 1.0;
  for (int i = 12; i > 0; --i) p = p * r * (1.0 / i) + 1.0;
  const dvec scaled = (dvec)((lvec)p + ((lvec)shifted << 52));
  const lvec vanishes = x < -700.0, is_number = x == x;
  return (dvec)((lvec)scaled & ~vanishes & is_number) + (dvec)((lvec)x & ~is_number);
}

}  // namespace

RowMax row_max(const float* x, int64_t n) {
  vec best = splat(kMinusInfinity);
  ivec is_nan = ivec{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const vec values = load_some(x, i, n);
    is_nan |= values != values;
    best = larger(values, best);
  }
  const float value = max_of(best);
  if (any(is_nan)) return {value, -1, true};
  int64_t index = 0;
  while (x[index] != value) ++index;
  return {value, index, false};
}

void divide(const float* x, int64_t n, float divisor, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) store_some(out, i, n, load_some(x, i, n) / divisor);
}

int64_t find_above(const float* x, int64_t start, int64_t n, float threshold) {
  for (int64_t i = start; i < n; i += kLanes) {
    if (!any(load_some(x, i, n) > splat(threshold))) continue;
    for (int64_t j = i; j < n; ++j) {
      if (x[j] > threshold) return j;
    }
  }
  return n;
}

double exp_sum(const float* x, int64_t n, float shift) {
  constexpr int kHalf = kLanes / 2;
  dvec sums[2] = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    float lanes[kLanes];
    store_vec(lanes, load_some(x, i, n));
    for (int h = 0; h < 2; ++h) {
      const half_vec half = load_as<half_vec>(lanes + h * kHalf);
      sums[h] += exp_of(__builtin_convertvector(half, dvec) - double(shift));
    }
  }
  double total = 0;
  for (int h = 0; h < 2; ++h) {
    for (int i = 0; i < kHalf; ++i) total += sums[h][i];
  }
  return total;
}

void add_noise(const float* x, const int64_t* ids, int64_t n, uint64_t key, float factor,
               float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store_some(out, i, n, load_some(x, i, n) + noise_at(ids, i, n, key) * factor);
  }
}

int64_t noisy_argmax(const float* x, const int64_t* ids, int64_t n, uint64_t key) {
  float best = kMinusInfinity;
  int64_t index = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const vec values = load_some(x, i, n);
    // Most tokens cannot win even with the largest noise.
    if (!any(values + kMostNoise > splat(best))) continue;
    const vec noisy = values + noise_at(ids, i, n, key);
    if (!any(noisy > splat(best))) continue;
    for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
      if (noisy[j] > best) {
        best = noisy[j];
        index = i + j;
      }
    }
  }
  return index;
}

}  // namespace specedge::SPECEDGE_ISA
