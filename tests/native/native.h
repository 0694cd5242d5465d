// What the checks of this folder share: random numbers, arrays without a byte to spare, verdicts.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "noise.h"
#include "ops.h"
#include "stored.h"

namespace specedge::native {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A pure function of a seed, or of the bytes of a fuzzer, so that a failed case can be run again
// alone. Bytes make the choices and after the last come zeros, which choose small, ordinary cases.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}
  explicit Random(std::span<const uint8_t> choices) : choices_(choices), state_(mix(bits(2))) {}

  // A choice of n bytes.
  uint64_t bits(int n = 8) {
    if (!choices_) return fill();
    uint64_t value = 0;
    for (; n > 0 && !choices_->empty(); --n, choices_ = choices_->subspan(1)) {
      value = value << 8 | choices_->front();
    }
    return value;
  }

  // What fills tensors: too much for a fuzzer to choose, and it steers little.
  uint64_t fill() { return mix(state_ += kGolden); }

  // Both ends included.
  int64_t between(int64_t low, int64_t high) {
    const uint64_t most = uint64_t(high - low);
    return low + int64_t(bits((std::bit_width(most) + 7) / 8) % (most + 1));
  }

  bool chance(int64_t percent) { return between(1, 100) > 100 - percent; }

  float number() { return float(int64_t(fill() % 8001) - 4000) / 1000; }

  template <typename T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, int64_t(values.size()) - 1)];
  }

  // An index, length or mask that nobody should have sent; `limit` is the first one too large.
  template <typename T>
  T hostile(int64_t limit = 64) {
    if (chance(50)) return T(limit + between(-1, 1));
    if (chance(30)) return T(bits(sizeof(T)));
    return pick<T>({std::numeric_limits<T>::min(), std::numeric_limits<T>::max(), -1, 0, 1, 63, 64,
                    1 << 20, std::numeric_limits<T>::max() - 1});
  }

  // Replaces one entry of a table, if it has any.
  template <typename T>
  void spoil(std::vector<T>& table, int64_t limit = 64) {
    if (!table.empty()) table[between(0, int64_t(table.size()) - 1)] = hostile<T>(limit);
  }

  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (int64_t i = int64_t(values.size()) - 1; i > 0; --i) {
      std::swap(values[i], values[fill() % uint64_t(i + 1)]);
    }
  }

 private:
  std::optional<std::span<const uint8_t>> choices_;
  uint64_t state_;
};

// n numbers of one type in memory of exactly their size: the sanitiser guards both ends.
class Numbers {
 public:
  Numbers(Dtype type, int64_t n) : type_(type), size_(n), bytes_(n * item_bytes(), 0x7f) {}

  Numbers(Dtype type, int64_t n, Random& random) : Numbers(type, n) {
    for (int64_t i = 0; i < n; ++i) set(i, random.number());
  }

  Dtype type() const { return type_; }
  int64_t size() const { return size_; }
  char* data() { return bytes_.data(); }
  const std::vector<char>& bytes() const { return bytes_; }

  int64_t item_bytes() const { return type_ == Dtype::f32 ? 4 : type_ == Dtype::e4m3 ? 1 : 2; }

  float get(int64_t i) const {
    float value = 0;
    with_type(type_,
              [&]<typename T>() { value = load(reinterpret_cast<const T*>(bytes_.data()) + i); });
    return value;
  }

  // All of them, for oracles that read each many times.
  std::vector<float> floats() const {
    std::vector<float> values(size_);
    for (int64_t i = 0; i < size_; ++i) values[i] = get(i);
    return values;
  }

  void set(int64_t i, float value) {
    with_type(type_, [&]<typename T>() { store(reinterpret_cast<T*>(bytes_.data()) + i, value); });
  }

  // The largest relative error of one rounding to this type, and a little for float32 sums.
  double precision() const {
    switch (type_) {
      case Dtype::f32:
        return 1e-4;
      case Dtype::bf16:
        return 1e-2;
      case Dtype::f16:
        return 2e-3;
      case Dtype::e4m3:
        return 0.07;
    }
    return 0;
  }

 private:
  Dtype type_;
  int64_t size_;
  std::vector<char> bytes_;
};

template <typename... Parts>
void expect(bool holds, const Parts&... sentence) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << sentence);
  throw std::runtime_error(text.str());
}

// NaN where NaN is due, else within `error` of what is due.
inline void expect_near(double got, double want, double error, const char* what, int64_t index) {
  const bool near =
      std::isnan(want) ? std::isnan(got) : got == want || std::abs(got - want) <= error;
  expect(near, what, " ", index, ": expected ", want, " within ", error, ", got ", got);
}

// Whether an op took its arguments, rather than refusing a wrong value.
template <typename Op>
bool accepted(Op op) {
  try {
    op();
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

// Standard Gumbel noise: -log(-log(1 - v)) of v = (hash | 1) / 2^64.
inline double gumbel(uint64_t key, int64_t token) {
  const uint64_t odd = mix(key + (uint64_t(token) + 1) * kGolden) | 1;
  const double v = double(odd) * 0x1p-64, rest = double(-odd) * 0x1p-64;
  return -std::log(v < 0.5 ? -std::log1p(-v) : -std::log(rest));
}

// The trees of a batch: parents [N] inside their own tree, offsets [B+1].
struct Forest {
  std::vector<int32_t> parents, offsets{0};
  int64_t words = 1;

  int64_t batch() const { return int64_t(offsets.size()) - 1; }
  int64_t rows() const { return offsets.back(); }
  int64_t size(int64_t b) const { return offsets[b + 1] - offsets[b]; }

  // Nodes from the root down to `node` of tree b.
  std::vector<int64_t> path(int64_t b, int64_t node) const {
    std::vector<int64_t> nodes;
    while (node >= 0) {
      nodes.push_back(node);
      node = parents[offsets[b] + node];
      expect(node < nodes.back(), "a node was taken whose parent is no earlier node");
    }
    std::reverse(nodes.begin(), nodes.end());
    return nodes;
  }
};

// Up to four trees of up to `most` nodes: empty, single, deep, flat and irregular ones.
Forest make_forest(Random& random, int64_t most);

// One check of each op: a random case against plain arithmetic, or a spoilt one that must be
// refused before anything is written, or be harmless. They throw where an op is wrong.
void check_build_tree(Random& random);
void check_verify(Random& random);
void check_tree_attention(Random& random);
void check_append_kv(Random& random);
void check_rope_append_kv(Random& random);
void check_compact_kv(Random& random);
void check_target_tokens(Random& random);
void check_edit_logits(Random& random);
void check_token_logprobs(Random& random);
void check_draft_topk(Random& random);
void check_linear(Random& random);
void check_rms_norm(Random& random);
void check_silu_mul(Random& random);
void check_route(Random& random);
void check_weighted_sum(Random& random);
void check_decode(Random& random);
void check_quantized_linear(Random& random);

// Attention twice: it has the most ways.
constexpr void (*kChecks[])(Random&) = {
    check_build_tree,     check_verify,           check_tree_attention, check_append_kv,
    check_rope_append_kv, check_compact_kv,       check_target_tokens,  check_draft_topk,
    check_linear,         check_tree_attention,   check_rms_norm,       check_silu_mul,
    check_decode,         check_quantized_linear, check_edit_logits,    check_token_logprobs,
    check_route,          check_weighted_sum};

}  // namespace specedge::native
