// The CUDA kernels over raw pointers and a stream; shapes were checked by specedge_kernels/ops.py.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cuda/append_kv.h"
#include "cuda/compact_kv.h"
#include "cuda/launch.h"
#include "cuda/rope_append_kv.h"

namespace py = pybind11;
using namespace specedge;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of specedge; call them through specedge_kernels.ops.";

  // Types are the numbers of _cpu.Dtype, and classes this module's own: both modules may be loaded.
  py::class_<Cache>(m, "Cache", py::module_local())
      .def(py::init([](Address data, int dtype, int64_t n_pages, int64_t page_size, int64_t n_heads,
                       int64_t head_dim, int64_t page_stride, int64_t token_stride,
                       int64_t head_stride) {
        return Cache{at<void>(data), Dtype(dtype), n_pages,      page_size,  n_heads,
                     head_dim,       page_stride,  token_stride, head_stride};
      }));

  m.def("append_kv", [](Address k, Address v, int dtype, const Cache& k_cache, const Cache& v_cache,
                        Address slots, int64_t rows, float k_scale, Address k_scales, float v_scale,
                        Address v_scales, Address stream) {
    const AppendKv arguments{at<void>(k),
                             at<void>(v),
                             Dtype(dtype),
                             k_cache,
                             v_cache,
                             Scale{k_scale, at<float>(k_scales)},
                             Scale{v_scale, at<float>(v_scales)},
                             at<int64_t>(slots)};
    check(launch_append_kv(arguments, rows, at<void>(stream)));
  });

  m.def("rope_append_kv",
        [](Address qkv, int dtype, int64_t query_heads, Address qk_norm, int norm_dtype, float eps,
           Address cos, Address sin, int64_t n_positions, Address positions, const Cache& k_cache,
           const Cache& v_cache, Address slots, int64_t rows, float k_scale, Address k_scales,
           float v_scale, Address v_scales, Address q, Address stream) {
          const Rope rope{at<float>(cos), at<float>(sin), n_positions, at<int64_t>(positions)};
          const RopeAppendKv arguments{at<void>(qkv),
                                       at<void>(q),
                                       Dtype(dtype),
                                       at<void>(qk_norm),
                                       Dtype(norm_dtype),
                                       eps,
                                       query_heads,
                                       rope,
                                       k_cache,
                                       v_cache,
                                       Scale{k_scale, at<float>(k_scales)},
                                       Scale{v_scale, at<float>(v_scales)},
                                       at<int64_t>(slots)};
          check(launch_rope_append_kv(arguments, rows, at<void>(stream)));
        });

  m.def("compact_kv",
        [](Address kv, int64_t n_layers, int64_t n_parts, int64_t page_size, int64_t n_heads,
           int64_t run_bytes, int64_t word_bytes, int64_t layer_stride, int64_t part_stride,
           int64_t page_stride, int64_t token_stride, int64_t head_stride, Address page_table,
           int64_t pages_per_request, Address prefix_lens, Address path, Address accepted_lens,
           int64_t batch, int64_t max_path, Address stream) {
          const CompactKv arguments{at<char>(kv),
                                    n_parts,
                                    n_heads,
                                    page_size,
                                    pages_per_request,
                                    max_path,
                                    word_bytes,
                                    run_bytes / word_bytes,
                                    layer_stride,
                                    part_stride,
                                    page_stride,
                                    token_stride,
                                    head_stride,
                                    at<int32_t>(page_table),
                                    at<int32_t>(prefix_lens),
                                    at<int32_t>(path),
                                    at<int32_t>(accepted_lens)};
          check(launch_compact_kv(arguments, n_layers * n_parts, batch, at<void>(stream)));
        });
}
