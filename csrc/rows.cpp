// Vectorised passes over one row of logits; target_tokens and draft_topk are made of them.
#include "gumbel.h"
#include "isa.h"
#include "vec.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

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

// A row of logits, and as load_some kLanes of them from i on.
struct Logits {
  const float* x;  // [n]
  int64_t n;

  vec at(int64_t i) const { return load_some(x, i, n); }
};

// The same, with -inf for tokens whose bit is not set.
struct AllowedLogits : Logits {
  const uint32_t* bits;  // [ceil(n / 32)]

  vec at(int64_t i) const {
    return select_bits(bits[i / 32], i % 32, Logits::at(i), splat(kMinusInfinity));
  }
};

// f(0), f(kLanes) ... below n, 32 numbers at a time: a word of bits is loaded once for all.
template <typename F>
void for_vectors(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int j = 0; j < 32; j += kLanes) f(i + j);
  }
  for (; i < n; i += kLanes) f(i);
}

template <typename Row>
RowMax max_of_row(const Row& row) {
  vec best = splat(kMinusInfinity);
  ivec is_nan = ivec{};
  for_vectors(row.n, [&](int64_t i) {
    const vec values = row.at(i);
    is_nan |= values != values;
    best = larger(values, best);
  });
  const float value = max_of(best);
  if (any(is_nan)) return {value, -1, true};
  for (int64_t i = 0;; i += kLanes) {
    const vec values = row.at(i);
    if (!any(values == splat(value))) continue;
    while (values[i % kLanes] != value) ++i;
    return {value, i, false};
  }
}

template <typename Row>
void divide_row(const Row& row, float divisor, float* out) {
  for_vectors(row.n, [&](int64_t i) { store_some(out, i, row.n, row.at(i) / divisor); });
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

RowMax row_max(const float* x, const uint32_t* allowed, int64_t n) {
  return allowed ? max_of_row(AllowedLogits{{x, n}, allowed}) : max_of_row(Logits{x, n});
}

void divide(const float* x, const uint32_t* allowed, int64_t n, float divisor, float* out) {
  if (allowed) return divide_row(AllowedLogits{{x, n}, allowed}, divisor, out);
  divide_row(Logits{x, n}, divisor, out);
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
  // Sixteen sums, each of every sixteenth number, whatever the instruction set: equal bits.
  constexpr int kSums = 16, kHalf = kLanes / 2;
  dvec sums[kSums / kHalf] = {};
  for (int64_t i = 0; i < n; i += kSums) {
    for (int j = 0; j < kSums && i + j < n; j += kLanes) {
      float lanes[kLanes];
      store_vec(lanes, load_some(x, i + j, n));
      for (int h = 0; h < 2; ++h) {
        const half_vec half = load_as<half_vec>(lanes + h * kHalf);
        sums[j / kHalf + h] += exp_of(__builtin_convertvector(half, dvec) - double(shift));
      }
    }
  }
  double total = 0;
  for (const dvec& some : sums) {
    for (int i = 0; i < kHalf; ++i) total += some[i];
  }
  return total;
}

void add_noise(const float* x, const int64_t* ids, int64_t n, uint64_t key, float factor,
               float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store_some(out, i, n, load_some(x, i, n) + gumbel(hash_at(ids, i, n, key)) * factor);
  }
}

int64_t noisy_argmax(const float* x, const int64_t* ids, int64_t n, float top, uint64_t key,
                     int64_t start) {
  float best = kMinusInfinity;
  int64_t index = start;
  const auto look = [&](int64_t i) {
    const vec values = load_some(x, i, n) - top;
    // Most tokens cannot win with the largest noise, and most of the others with about their own.
    if (!any(values + kMostNoise >= splat(best))) return;
    const Hash hash = hash_at(ids, i, n, key);
    if (!any(values + most_noise(hash) >= splat(best))) return;
    const vec noisy = values + gumbel(hash);
    for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
      if (noisy[j] > best || (noisy[j] == best && i + j < index)) {
        best = noisy[j];
        index = i + j;
      }
    }
  };
  look(start);
  for (int64_t i = 0; i < n; i += kLanes) look(i);
  return index;
}

}  // namespace specedge::SPECEDGE_ISA
