#include "isa.h"
#include "tile.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int64_t kPanel = 64, kChunkRows = 96;
// Inputs per pass: the weights of a pass stay in the first-level cache while rows go by, and leave
// room for the rows. Processors without AVX-512 have 32 KiB of it, those with it 48.
constexpr int64_t kChunkInputs = kLanes == 16 ? 128 : 64;

// Weights are asked for so many inputs ahead: a tile narrower than a panel skips most of its bytes,
// and the processor does not see where that leads.
constexpr int64_t kInputsAhead = 64;
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

// Rows [rows, K] of x times one panel [K, 64] -> width columns of out.
template <typename T>
void multiply_panel(const float* x, const T* panel, int64_t rows, int64_t inputs, int64_t width,
                    float* out, int64_t out_stride) {
  alignas(64) float sums[kChunkRows * kPanel];
  std::memset(sums, 0, rows * kPanel * sizeof(float));
  for (int64_t k = 0; k < inputs; k += kChunkInputs) {
    multiply_pass(x + k, inputs, panel + k * kPanel, rows, smaller(kChunkInputs, inputs - k), sums);
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(out + row * out_stride, sums + row * kPanel, width * sizeof(float));
  }
}

template <typename T>
void multiply(const float* x, const T* panels, int64_t rows, int64_t inputs, int64_t outputs,
              float* out) {
  const int64_t n_panels = (outputs + kPanel - 1) / kPanel;
  const int64_t n_chunks = (rows + kChunkRows - 1) / kChunkRows;
#pragma omp parallel for collapse(2) schedule(dynamic) if (rows * inputs * outputs > 1 << 18)
  for (int64_t panel = 0; panel < n_panels; ++panel) {
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
      const int64_t row = chunk * kChunkRows, column = panel * kPanel;
      multiply_panel(x + row * inputs, panels + panel * inputs * kPanel,
                     smaller(kChunkRows, rows - row), inputs, smaller(kPanel, outputs - column),
                     out + row * outputs + column, outputs);
    }
  }
}

}  // namespace

void linear(const float* x, const void* panels, Dtype dtype, int64_t rows, int64_t inputs,
            int64_t outputs, float* out) {
  switch (dtype) {
    case Dtype::f32:
      return multiply(x, static_cast<const float*>(panels), rows, inputs, outputs, out);
    case Dtype::bf16:
      return multiply(x, static_cast<const bf16*>(panels), rows, inputs, outputs, out);
    case Dtype::f16:
      return multiply(x, static_cast<const f16*>(panels), rows, inputs, outputs, out);
    case Dtype::e4m3:
      return;  // refused by ops.py
  }
}

}  // namespace specedge::SPECEDGE_ISA
