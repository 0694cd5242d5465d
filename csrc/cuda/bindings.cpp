// The CUDA kernels over raw pointers and a stream; shapes were checked by specedge_kernels/ops.py.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cuda/compact_kv.h"
#include "cuda/launch.h"

namespace py = pybind11;
using namespace specedge;

PYBIND11_MODULE(_cuda, m) {
  using Address = std::uintptr_t;
  m.doc() = "CUDA kernels of specedge; call them through specedge_kernels.ops.";
  m.def("compact_kv",
        [](Address kv, int64_t n_layers, int64_t page_size, int64_t n_heads, int64_t run_bytes,
           int64_t word_bytes, int64_t layer_stride, int64_t half_stride, int64_t page_stride,
           int64_t token_stride, int64_t head_stride, Address page_table, int64_t pages_per_request,
           Address prefix_lens, Address path, Address accepted_lens, int64_t batch,
           int64_t max_path, Address stream) {
          const CompactKv arguments{reinterpret_cast<char*>(kv),
                                    n_heads,
                                    page_size,
                                    pages_per_request,
                                    max_path,
                                    word_bytes,
                                    run_bytes / word_bytes,
                                    layer_stride,
                                    half_stride,
                                    page_stride,
                                    token_stride,
                                    head_stride,
                                    reinterpret_cast<const int32_t*>(page_table),
                                    reinterpret_cast<const int32_t*>(prefix_lens),
                                    reinterpret_cast<const int32_t*>(path),
                                    reinterpret_cast<const int32_t*>(accepted_lens)};
          const char* error =
              launch_compact_kv(arguments, 2 * n_layers, batch, reinterpret_cast<void*>(stream));
          if (error) throw std::runtime_error(error);
        });
}
