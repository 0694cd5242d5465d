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

// A row of logits. Positions are i + j with i a multiple of 32, so that j alone says which bits of
// a word of a mask are meant.
struct Logits {
  const float* x;  // [n]
  int64_t n;

  vec all(int64_t i, int j) const { return load_some(x, i + j, n); }
  vec at(int64_t i, int j) const { return all(i, j); }
  // Whether any of the 32 from i on are allowed; lanes of forbidden ones of i + j on become -inf.
  bool allows(int64_t) const { return true; }
  vec only_allowed(int64_t, int, vec values) const { return values; }
};

// The same, with -inf for tokens whose bit is not set.
struct AllowedLogits : Logits {
  const uint32_t* bits;  // [ceil(n / 32)]

  vec at(int64_t i, int j) const { return only_allowed(i, j, all(i, j)); }
  bool allows(int64_t i) const { return bits[i / 32] != 0; }
  vec only_allowed(int64_t i, int j, vec values) const {
    return select_bits(bits[i / 32], j, values, splat(kMinusInfinity));
  }
};

constexpr int kInAWord = 32 / kLanes;

// f(i, j, which) of all vectors from `begin`, a multiple of 32, to `end` of which any token is
// allowed. A word of bits is loaded once for all of its vectors; `which` tells these apart.
template <typename Row, typename F>
void for_vectors(const Row& row, int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + 32 <= end; i += 32) {
    if (!row.allows(i)) continue;
    for (int which = 0; which < kInAWord; ++which) f(i, which * kLanes, which);
  }
  for (int j = 0; i + j < end; j += kLanes) f(i, j, 0);
}

// Of so many numbers at a time, so that the first of equal ones is looked for among few.
constexpr int64_t kStretch = 1024;

template <typename Row>
RowMax max_of_row(const Row& row) {
  float value = kMinusInfinity;
  ivec is_nan = ivec{};
  int64_t at = 0;
  for (int64_t begin = 0; begin < row.n; begin += kStretch) {
    // Several chains, as each waits for its last comparison.
    vec best[kInAWord];
    for (vec& some : best) some = splat(kMinusInfinity);
    const int64_t end = begin + kStretch < row.n ? begin + kStretch : row.n;
    for_vectors(row, begin, end, [&](int64_t i, int j, int which) {
      const vec values = row.at(i, j);
      is_nan |= values != values;
      best[which] = larger(values, best[which]);
    });
    for (const vec& some : best) best[0] = larger(some, best[0]);
    const float most = max_of(best[0]);
    if (most > value) {
      value = most;
      at = begin;
    }
  }
  if (any(is_nan)) return {value, -1, true};
  for (;; at += kLanes) {
    const vec values = row.at(at / 32 * 32, at % 32);
    if (!any(values == splat(value))) continue;
    while (values[at % kLanes] != value) ++at;
    return {value, at, false};
  }
}

template <typename Row>
void divide_row(const Row& row, float divisor, float* out) {
  // Of all vectors: what is forbidden is written as well.
  for_vectors(Logits{row.x, row.n}, 0, row.n, [&](int64_t i, int j, int) {
    store_some(out, i + j, row.n, row.at(i, j) / divisor);
  });
}

template <typename Row>
int64_t noisy_argmax_of_row(const Row& row, const int64_t* ids, float divisor, float top,
                            uint64_t key, int64_t start) {
  float best = kMinusInfinity;
  int64_t index = start;
  const auto look = [&](int64_t i, int j, int) {
    vec values = row.all(i, j) / divisor - top;
    // Most tokens cannot win with the largest noise, and most of the others with about their own.
    if (!any(values + kMostNoise >= splat(best))) return;
    const Hash hash = hash_at(ids, i + j, row.n, key);
    if (!any(values + most_noise(hash) >= splat(best))) return;
    values = row.only_allowed(i, j, values);
    if (!any(values + most_noise(hash) >= splat(best))) return;
    const vec noisy = values + gumbel(hash);
    for (int64_t lane = 0; lane < kLanes && i + j + lane < row.n; ++lane) {
      const int64_t token = i + j + lane;
      if (noisy[lane] > best || (noisy[lane] == best && token < index)) {
        best = noisy[lane];
        index = token;
      }
    }
  };
  look(start / 32 * 32, start % 32 / kLanes * kLanes, 0);
  for_vectors(row, 0, row.n, look);
  return index;
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

int64_t noisy_argmax(const float* x, const uint32_t* allowed, const int64_t* ids, int64_t n,
                     float divisor, float top, uint64_t key, int64_t start) {
  const Logits row{x, n};
  if (!allowed) return noisy_argmax_of_row(row, ids, divisor, top, key, start);
  return noisy_argmax_of_row(AllowedLogits{row, allowed}, ids, divisor, top, key, start);
}

}  // namespace specedge::SPECEDGE_ISA
