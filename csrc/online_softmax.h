// The running softmax of attention (FlashAttention, arXiv:2205.14135, algorithm 1), one block of 64
// positions at a time. Static, as vec.h.
#pragma once

#include "tree_path.h"
#include "vec.h"

namespace specedge {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// The running softmax of n query vectors: weighted values, largest score, sum of weights.
struct State {
  float* sums;   // [n, width]
  float* top;    // [n]
  float* total;  // [n]
  int64_t width;

  State from(int64_t vector) const {
    return {sums + vector * width, top + vector, total + vector, width};
  }

  // As of n vectors that have seen nothing.
  void clear(int64_t n) const {
    std::memset(sums, 0, n * width * sizeof(float));
    for (int64_t i = 0; i < n; ++i) top[i] = kMinusInfinity, total[i] = 0;
  }
};

inline float exp_of(float x) {
  float lanes[kLanes];
  store_vec(lanes, exp_of(splat(x)));
  return lanes[0];
}

inline float log_of(float x) {
  float lanes[kLanes];
  store_vec(lanes, log_of(splat(x)));
  return lanes[0];
}

// Of n query vectors: what another state of theirs has seen, added to one that has seen what lies
// before. One that has seen nothing changes no bit.
inline void fold(const State& other, int64_t n, const State& state) {
  for (int64_t i = 0; i < n; ++i) {
    const State from = other.from(i), to = state.from(i);
    if (*from.top == kMinusInfinity) continue;
    const float top = *from.top > *to.top ? *from.top : *to.top;
    const float decay = *to.top == top ? 1.0f : exp_of(*to.top - top);
    const float share = *from.top == top ? 1.0f : exp_of(*from.top - top);
    *to.total = *to.total * decay + *from.total * share;
    *to.top = top;
    for (int64_t d = 0; d < state.width; d += kLanes) {
      const vec before = load_vec(to.sums + d) * decay;
      store_vec(to.sums + d, fma(load_vec(from.sums + d), splat(share), before));
    }
  }
}

// Scores outside lo .. hi-1 become -inf.
inline void hide(vec* scores, int64_t lo, int64_t hi) {
  int32_t lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  ivec index = load_as<ivec>(lanes);
  for (int i = 0; i < kBlock / kLanes; ++i, index += kLanes) {
    const ivec visible = (index >= int32_t(lo)) & (index < int32_t(hi));
    scores[i] = select(visible, scores[i], splat(kMinusInfinity));
  }
}

// Raw scores [64] -> weights in place; positions outside lo .. hi-1 get exactly 0.
inline void softmax_step(float* scores, int64_t lo, int64_t hi, const Scoring& scoring,
                         const State& state) {
  constexpr int kVecs = kBlock / kLanes;
  vec s[kVecs];
  for (int i = 0; i < kVecs; ++i) {
    s[i] = load_vec(scores + i * kLanes) * scoring.scale;
    if (scoring.softcap > 0) s[i] = tanh_of(s[i] / scoring.softcap) * scoring.softcap;
  }
  if (lo > 0 || hi < kBlock) hide(s, lo, hi);
  vec best = splat(*state.top);
  for (const vec& some : s) best = larger(some, best);
  const float top = max_of(best);
  // Without a finite score yet, exp(-inf - 0) gives the zeros that are due.
  const float shift = top == kMinusInfinity ? 0.0f : top;
  vec sum = vec{};
  for (int i = 0; i < kVecs; ++i) {
    const vec weight = exp_of(s[i] - shift);
    store_vec(scores + i * kLanes, weight);
    sum += weight;
  }
  // What was added before counts for less, if the largest score has grown.
  const float decay = *state.top == shift ? 1.0f : exp_of(*state.top - shift);
  *state.total = *state.total * decay + sum_of(sum);
  *state.top = top;
  for (int64_t d = 0; decay != 1 && d < state.width; d += kLanes) {
    store_vec(state.sums + d, load_vec(state.sums + d) * decay);
  }
}

}  // namespace
}  // namespace specedge
