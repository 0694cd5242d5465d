// What is compiled once per instruction set, and the choice among them at run time.
#pragma once

#include <cstdint>

#include "ops.h"

namespace specedge {

struct RowMax {
  float value;
  int64_t index;  // of the first maximum
  bool has_nan;
};

// 32 activations of a row, x ~ scale * q with |q| <= 127.
struct alignas(16) Rounded {
  int8_t q[32];
  int16_t sums[2];  // of each half of q
  float scale;
  float scaled_sum;  // of all of q
};

// Rows of x that are multiplied with several sets of weights: run i is rows first[i] ..
// first[i+1]-1 of x, times set number sets[i]. Row r of x becomes row places[r] of out, by default
// r.
struct Runs {
  int64_t count;
  const int64_t* first;   // [count + 1]
  const int64_t* sets;    // [count]
  const int64_t* places;  // [rows] or null

  int64_t rows() const { return first[count]; }
  int64_t place(int64_t row) const { return places ? places[row] : row; }
};

// Rows of a run at most, where weights are floats and where they are quantised.
constexpr int64_t kFloatRows = 96, kQuantizedRows = 64;

// As in ops.h, for arguments that were checked.
#define SPECEDGE_QUANTIZED_PER_ISA                                                               \
  /* Packed panels of one format, sets `set_bytes` apart, times rounded [K / 32, N], or x [N, K] \
     -> out [N, M], rows `stride` apart. */                                                      \
  void multiply_rounded(const Rounded* rounded, const uint8_t* panels, int64_t set_bytes,        \
                        Quant quant, const Runs& runs, int64_t inputs, int64_t outputs,          \
                        float* out, int64_t stride);                                             \
  void multiply_exact(const float* x, const uint8_t* panels, int64_t set_bytes, Quant quant,     \
                      const Runs& runs, int64_t inputs, int64_t outputs, float* out,             \
                      int64_t stride);

#define SPECEDGE_PER_ISA                                                                           \
  SPECEDGE_QUANTIZED_PER_ISA                                                                       \
  void linear(const float* x, const void* panels, Dtype dtype, const Runs& runs, int64_t inputs,   \
              int64_t outputs, float* out);                                                        \
  /* x [N, K] -> rounded [K / 32, N] */                                                            \
  void round_activations(const float* x, int64_t rows, int64_t inputs, Rounded* rounded);          \
  void rms_norm(void* x, const void* delta, const void* weight, Dtype dtype, int64_t rows,         \
                int64_t width, float eps, void* out);                                              \
  void silu_mul(const void* gate_up, Dtype dtype, int64_t rows, int64_t width, void* out);         \
  void weighted_sum(const void* y, Dtype dtype, const float* weights, int64_t rows, int64_t parts, \
                    int64_t width, void* out);                                                     \
  void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,       \
                      const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out, \
                      float* lse);                                                                 \
  /* The maximum of x [n], n >= 1. What is not allowed [ceil(n / 32)] is -inf; null allows all. */ \
  RowMax row_max(const float* x, const uint32_t* allowed, int64_t n);                              \
  /* x [n] / divisor -> out [n]; -inf for what is not allowed. */                                  \
  void divide(const float* x, const uint32_t* allowed, int64_t n, float divisor, float* out);      \
  /* The first index from `start` on with x > threshold, or n. */                                  \
  int64_t find_above(const float* x, int64_t start, int64_t n, float threshold);                   \
  /* Sum of e^(x - shift), in double; x <= shift. The same bits in all sets. */                    \
  double exp_sum(const float* x, int64_t n, float shift);                                          \
  /* x + factor * noise of tokens ids [n], by default 0 .. n-1 -> out [n] */                       \
  void add_noise(const float* x, const int64_t* ids, int64_t n, uint64_t key, float factor,        \
                 float* out);                                                                      \
  /* The first index of the maximum of x / divisor - top + noise of what is allowed. Fast where    \
     `start`, which is allowed, is likely. */                                                      \
  int64_t noisy_argmax(const float* x, const uint32_t* allowed, const int64_t* ids, int64_t n,     \
                       float divisor, float top, uint64_t key, int64_t start);

namespace generic {
SPECEDGE_PER_ISA
}
#if defined(__x86_64__)
namespace avx2 {
SPECEDGE_PER_ISA
}
namespace avx512 {
SPECEDGE_PER_ISA
}
// Dot products of bytes are for quantised weights alone.
namespace avx512vnni {
SPECEDGE_QUANTIZED_PER_ISA
}
#elif defined(__aarch64__)
namespace dotprod {
SPECEDGE_QUANTIZED_PER_ISA
}
#endif

struct Isa {
  const char* name;
  decltype(&generic::linear) linear;
  decltype(&generic::round_activations) round_activations;
  decltype(&generic::multiply_rounded) multiply_rounded;
  decltype(&generic::multiply_exact) multiply_exact;
  decltype(&generic::rms_norm) rms_norm;
  decltype(&generic::silu_mul) silu_mul;
  decltype(&generic::weighted_sum) weighted_sum;
  decltype(&generic::tree_attention) tree_attention;
  decltype(&generic::row_max) row_max;
  decltype(&generic::divide) divide;
  decltype(&generic::find_above) find_above;
  decltype(&generic::exp_sum) exp_sum;
  decltype(&generic::add_noise) add_noise;
  decltype(&generic::noisy_argmax) noisy_argmax;
};

// The best set this processor runs, or the lower one named by SPECEDGE_ISA.
const Isa& isa();

}  // namespace specedge
