#include "isa.h"
#include "pieces.h"
#include "tile.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int64_t kPanel = 64;
// Inputs per pass: the weights of a pass stay in the first-level cache while rows go by, and leave
// room for the rows. Processors without AVX-512 have 32 KiB of it, those with it 48.
constexpr int64_t kChunkInputs = kLanes == 16 ? 128 : 64;

// Weights are asked for so many inputs ahead, which is long enough for memory to answer.
constexpr int64_t kInputsAhead = 128;
// Up to so many rows, each tile converts the weights it reads.
constexpr int64_t kFewRows = 16;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// x [rows, n_k] times the weights [n_k, 64] of a pass, added to sums [rows, 64]. For many rows the
// weights are converted to float32 first, once.
template <typename T>
void multiply_pass(const float* x, int64_t x_stride, const T* weights, int64_t rows, int64_t n_k,
                   float* sums) {
  if (sizeof(T) == sizeof(float) || rows <= kFewRows) {
    multiply_add(x, x_stride, rows, Streamed<T>{weights, kPanel, kInputsAhead}, n_k, kPanel, sums,
                 kPanel);
    return;
  }
  alignas(64) float wide[kChunkInputs * kPanel];
  for (int64_t i = 0; i < n_k * kPanel; i += kLanes) store_vec(wide + i, load_vec(weights + i));
  multiply_add(x, x_stride, rows, Strided<float>{wide, kPanel}, n_k, kPanel, sums, kPanel);
}

// Rows [rows, K] of x times one panel [K, 64] -> sums [rows, 64]
template <typename T>
void multiply_panel(const float* x, const T* panel, int64_t rows, int64_t inputs, float* sums) {
  std::memset(sums, 0, rows * kPanel * sizeof(float));
  for (int64_t k = 0; k < inputs; k += kChunkInputs) {
    multiply_pass(x + k, inputs, panel + k * kPanel, rows, smaller(kChunkInputs, inputs - k), sums);
  }
}

template <typename T>
void multiply(const float* x, const T* panels, const Runs& runs, int64_t inputs, int64_t outputs,
              float* out) {
  const int64_t n_panels = (outputs + kPanel - 1) / kPanel;
  const int64_t n_pieces = runs.count * n_panels, some = pieces_at_a_time(n_pieces);
#pragma omp parallel for schedule(dynamic, some) if (runs.rows() * inputs * outputs > 1 << 18)
  for (int64_t i = 0; i < n_pieces; ++i) {
    const auto [run, panel] = piece_at(runs, n_panels, i);
    const int64_t first = runs.first[run], rows = runs.first[run + 1] - first;
    alignas(64) float sums[kFloatRows * kPanel];
    multiply_panel(x + first * inputs,
                   panels + (runs.sets[run] * n_panels + panel) * inputs * kPanel, rows, inputs,
                   sums);
    const int64_t column = panel * kPanel, width = smaller(kPanel, outputs - column);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(out + runs.place(first + r) * outputs + column, sums + r * kPanel,
                  width * sizeof(float));
    }
  }
}

}  // namespace

void linear(const float* x, const void* panels, Dtype dtype, const Runs& runs, int64_t inputs,
            int64_t outputs, float* out) {
  switch (dtype) {
    case Dtype::f32:
      return multiply(x, static_cast<const float*>(panels), runs, inputs, outputs, out);
    case Dtype::bf16:
      return multiply(x, static_cast<const bf16*>(panels), runs, inputs, outputs, out);
    case Dtype::f16:
      return multiply(x, static_cast<const f16*>(panels), runs, inputs, outputs, out);
    case Dtype::e4m3:
      return;  // refused by ops.py
  }
}

}  // namespace specedge::SPECEDGE_ISA
