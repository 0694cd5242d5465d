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

// Raw scores [64] -> weights in place; positions outside lo .. hi-1 get exactly 0.
inline void softmax_step(float* scores, int64_t lo, int64_t hi, const Scoring& scoring,
                         const State& state) {
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    vec s = load_vec(scores + i) * scoring.scale;
    if (scoring.softcap > 0) s = tanh_of(s / scoring.softcap) * scoring.softcap;
    store_vec(scores + i, s);
  }
  for (int64_t i = 0; i < lo; ++i) scores[i] = kMinusInfinity;
  for (int64_t i = hi; i < kBlock; ++i) scores[i] = kMinusInfinity;
  vec best = splat(*state.top);
  for (int64_t i = 0; i < kBlock; i += kLanes) best = larger(load_vec(scores + i), best);
  const float top = max_of(best);
  // Without a finite score yet, exp(-inf - 0) gives the zeros that are due.
  const float shift = top == kMinusInfinity ? 0.0f : top;
  vec sum = vec{};
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    const vec weight = exp_of(load_vec(scores + i) - shift);
    store_vec(scores + i, weight);
    sum += weight;
  }
  const float decay = exp_of(*state.top - shift);
  *state.total = *state.total * decay + sum_of(sum);
  *state.top = top;
  for (int64_t d = 0; d < state.width; d += kLanes) {
    store_vec(state.sums + d, load_vec(state.sums + d) * decay);
  }
}

}  // namespace
}  // namespace specedge
