// Rounded or exact activations times packed weights, a tile of outputs at a time. The integers of a
// block are summed exactly and blocks are added in increasing k, so a row's bits depend neither on
// the rows beside it nor on the number of threads.
#include "pieces.h"
#include "quant_block.h"
#include "tile.h"

namespace specedge::SPECEDGE_ISA {
namespace {

#if defined(__AVX2__) || defined(__aarch64__)
constexpr int kFewRows = 4;  // whose sums are kept in registers
#else
constexpr int kFewRows = 1;
#endif
constexpr int64_t kAhead = 2048;  // bytes that are fetched before they are read
constexpr int64_t kTask = 32;  // outputs of one task of a thread, so that 576 of them can be halved
constexpr int64_t kWide = 64;  // outputs of one of exact activations

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// n_bytes of each panel, some time before they are read; beyond `end` of the first panel follow
// those of the next tile.
void fetch(Place place, int64_t n_bytes, const uint8_t* end, int64_t panel_bytes) {
  const int64_t ahead =
      place.panels[0] + kAhead < end ? kAhead : kAhead + (kPanels - 1) * panel_bytes;
  for (const uint8_t* panel : place.panels) {
    for (int64_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(panel + ahead + i);
  }
}

// Rows of x [K / 32, N] times a tile of outputs -> sums [rows, kTile]. ROWS is their number, or 0.
template <Quant Q, int ROWS>
void multiply_tile(const Rounded* x, int64_t x_stride, Place place, int64_t groups, int64_t n_rows,
                   vec (*out)[kVecs]) {
  constexpr Form form = form_of(Q);
  const int64_t rows = ROWS ? ROWS : n_rows;
  const int64_t panel_bytes = groups * form.group_bytes();
  const uint8_t* const end = place.panels[0] + panel_bytes;
  vec sums[ROWS ? ROWS : kQuantizedRows][kVecs];
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < kVecs; ++i) sums[r][i] = vec{};
  }
  for (int64_t g = 0; g < groups; ++g) {
    Scales shared;
    load_group<Q>(place, shared);
    place = place + form.head_bytes();
    for (int64_t b = 0; b < form.group; ++b, x += x_stride) {
      fetch(place, form.block_bytes(), end, panel_bytes);
      const Scales scales = load_scales<Q>(place, shared);
      const Weights<Q> weights(place + kColumns * form.bytes);
      place = place + form.block_bytes();
      for (int64_t r = 0; r < rows; ++r) {
        vec dots[kVecs];
        weights.dot(scales, x[r], dots);
        for (int i = 0; i < kVecs; ++i) {
          sums[r][i] = fma(scales.scale[i] * splat(x[r].scale), dots[i], sums[r][i]);
          if constexpr (form.has_minimum()) {
            sums[r][i] = fma(scales.minimum[i], splat(x[r].scaled_sum), sums[r][i]);
          }
        }
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < kVecs; ++i) out[r][i] = sums[r][i];
  }
}

// As many rows at compile time as have sums in registers, else any number.
template <Quant Q, int ROWS = kFewRows>
void multiply_rows(const Rounded* x, int64_t x_stride, Place place, int64_t groups, int64_t rows,
                   vec (*out)[kVecs]) {
  if (ROWS == 0 || rows == ROWS) {
    multiply_tile<Q, ROWS>(x, x_stride, place, groups, rows, out);
  } else if constexpr (ROWS > 0) {
    multiply_rows<Q, ROWS - 1>(x, x_stride, place, groups, rows, out);
  }
}

// The panels from `first` on; beyond the last one the last again.
Place place_at(const uint8_t* panels, int64_t panel_bytes, int64_t first, int64_t n_panels) {
  Place place;
  for (int64_t p = 0; p < kPanels; ++p) {
    place.panels[p] = panels + smaller(first + p, n_panels - 1) * panel_bytes;
  }
  return place;
}

// The first columns of sums [rows, width of a tile] -> out, the rows of a run
void put(const float* sums, int64_t width, const Runs& runs, int64_t run, int64_t columns,
         float* out, int64_t stride) {
  for (int64_t row = runs.first[run]; row < runs.first[run + 1]; ++row, sums += width) {
    std::memcpy(out + runs.place(row) * stride, sums, smaller(width, columns) * sizeof(float));
  }
}

template <Quant Q>
void multiply(const Rounded* x, const uint8_t* panels, int64_t set_bytes, const Runs& runs,
              int64_t inputs, int64_t outputs, float* out, int64_t stride) {
  constexpr Form form = form_of(Q);
  const int64_t groups = form.groups(inputs), n_panels = (outputs + kColumns - 1) / kColumns;
  const int64_t n_tasks = (outputs + kTask - 1) / kTask;
  const int64_t n_pieces = runs.count * n_tasks, some = pieces_at_a_time(n_pieces);
#pragma omp parallel for schedule(dynamic, some) if (runs.rows() * inputs * outputs > 1 << 18)
  for (int64_t i = 0; i < n_pieces; ++i) {
    const auto [run, task] = piece_at(runs, n_tasks, i);
    const int64_t row = runs.first[run], n = runs.first[run + 1] - row;
    const uint8_t* const set = panels + runs.sets[run] * set_bytes;
    const int64_t end = smaller((task + 1) * kTask, outputs);
    for (int64_t column = task * kTask; column < end; column += kTile) {
      vec sums[kQuantizedRows][kVecs];
      multiply_rows<Q>(x + row, runs.rows(),
                       place_at(set, groups * form.group_bytes(), column / kColumns, n_panels),
                       groups, n, sums);
      put(reinterpret_cast<const float*>(sums), kTile, runs, run, outputs - column, out + column,
          stride);
    }
  }
}

// What codes stand for, but for their scale.
template <Quant Q>
vec number_of(ivec codes) {
  if constexpr (form_of(Q).is_float8()) return float_of_e4m3<vec>((bits_vec)codes);
  return floats_of(codes);
}

// Block b of a tile of panels as float32 -> out [kBlock, kWide]
template <Quant Q>
void dequantize_tile(Place panels, int64_t b, float* out) {
  constexpr Form form = form_of(Q);
  const Place group = panels + b / form.group * form.group_bytes();
  const Place block = group + form.head_bytes() + b % form.group * form.block_bytes();
  Scales shared;
  load_group<Q>(group, shared);
  const Scales scales = load_scales<Q>(block, shared);
  const Weights<Q> weights(block + kColumns * form.bytes);
  for (int input = 0; input < kBlock; ++input) {
    ivec codes[kVecs];
    weights.value(input, codes);
    for (int i = 0; i < kVecs; ++i) {
      vec scale = scales.scale[i];
      if constexpr (form.has_two_scales()) scale *= floats_of(scales.halves[input / 16][i]);
      vec value = scale * number_of<Q>(codes[i]);
      if constexpr (form.has_minimum()) value += scales.minimum[i];
      store_vec(out + input * kWide + i * kLanes, value);
    }
  }
}

// x [rows, K] times kWide outputs of `n_panels` panels from `first` on -> sums [rows, kWide]
template <Quant Q>
void multiply_dequantized(const float* x, const uint8_t* panels, int64_t first, int64_t n_panels,
                          int64_t rows, int64_t inputs, float* sums) {
  constexpr Form form = form_of(Q);
  const int64_t panel_bytes = form.groups(inputs) * form.group_bytes();
  const int64_t n_tiles = (smaller(kWide / kColumns, n_panels - first) + kPanels - 1) / kPanels;
  std::memset(sums, 0, rows * kWide * sizeof(float));
  alignas(64) float weights[kBlock * kWide];
  for (int64_t b = 0; b < inputs / kBlock; ++b) {
    for (int64_t tile = 0; tile < n_tiles; ++tile) {
      dequantize_tile<Q>(place_at(panels, panel_bytes, first + tile * kPanels, n_panels), b,
                         weights + tile * kTile);
    }
    multiply_add(x + b * kBlock, inputs, rows, Strided<float>{weights, kWide}, kBlock,
                 n_tiles * kTile, sums, kWide);
  }
}

template <Quant Q>
void multiply_all(const float* x, const uint8_t* panels, int64_t set_bytes, const Runs& runs,
                  int64_t inputs, int64_t outputs, float* out, int64_t stride) {
  const int64_t n_panels = (outputs + kColumns - 1) / kColumns;
  const int64_t n_tiles = (outputs + kWide - 1) / kWide;
  const int64_t n_pieces = runs.count * n_tiles, some = pieces_at_a_time(n_pieces);
#pragma omp parallel for schedule(dynamic, some) if (runs.rows() * inputs * outputs > 1 << 18)
  for (int64_t i = 0; i < n_pieces; ++i) {
    const auto [run, tile] = piece_at(runs, n_tiles, i);
    const int64_t row = runs.first[run], n = runs.first[run + 1] - row, column = tile * kWide;
    alignas(64) float sums[kQuantizedRows * kWide];
    multiply_dequantized<Q>(x + row * inputs, panels + runs.sets[run] * set_bytes,
                            column / kColumns, n_panels, n, inputs, sums);
    put(sums, kWide, runs, run, outputs - column, out + column, stride);
  }
}

}  // namespace

void multiply_exact(const float* x, const uint8_t* panels, int64_t set_bytes, Quant quant,
                    const Runs& runs, int64_t inputs, int64_t outputs, float* out, int64_t stride) {
  with_quant(quant, [&]<Quant Q>() {
    multiply_all<Q>(x, panels, set_bytes, runs, inputs, outputs, out, stride);
  });
}

void multiply_rounded(const Rounded* rounded, const uint8_t* panels, int64_t set_bytes, Quant quant,
                      const Runs& runs, int64_t inputs, int64_t outputs, float* out,
                      int64_t stride) {
  with_quant(quant, [&]<Quant Q>() {
    if constexpr (!form_of(Q).is_float8()) {
      multiply<Q>(rounded, panels, set_bytes, runs, inputs, outputs, out, stride);
    }
  });
}

}  // namespace specedge::SPECEDGE_ISA
