#include "isa.h"
#include "tile.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int64_t kPanel = 64, kChunkRows = 96;
// Inputs per pass: the weights of a pass stay in the first-level cache while rows go by.
constexpr int64_t kChunkInputs = 128;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows [rows, K] of x times one panel [K, 64] -> width columns of out.
template <typename T>
void multiply_panel(const float* x, const T* panel, int64_t rows, int64_t inputs, int64_t width,
                    float* out, int64_t out_stride) {
  alignas(64) float sums[kChunkRows * kPanel];
  std::memset(sums, 0, rows * kPanel * sizeof(float));
  for (int64_t k = 0; k < inputs; k += kChunkInputs) {
    multiply_add(x + k, inputs, rows, Strided<T>{panel + k * kPanel, kPanel},
                 smaller(kChunkInputs, inputs - k), kPanel, sums, kPanel);
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
