// The only file that knows Python: raw pointers in, plain functions called without the GIL.
// Shapes, types and devices were checked by specedge_kernels/ops.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decoder.h"
#include "isa.h"
#include "ops.h"

namespace py = pybind11;
using namespace specedge;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of specedge over raw pointers; call them through specedge_kernels.ops.";

  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::f32)
      .value("bfloat16", Dtype::bf16)
      .value("float16", Dtype::f16)
      .value("float8_e4m3fn", Dtype::e4m3);

  py::enum_<Quant>(m, "Quant")
      .value("Q4_0", Quant::q4_0)
      .value("Q4_1", Quant::q4_1)
      .value("Q5_0", Quant::q5_0)
      .value("Q5_1", Quant::q5_1)
      .value("Q8_0", Quant::q8_0)
      .value("Q4_K", Quant::q4_k)
      .value("Q5_K", Quant::q5_k)
      .value("Q6_K", Quant::q6_k)
      .value("IQ4_NL", Quant::iq4_nl)
      .value("IQ4_XS", Quant::iq4_xs)
      .value("MXFP4", Quant::mxfp4)
      .value("FP8", Quant::fp8)
      .value("FP8_32", Quant::fp8_32);

  py::class_<Cache>(m, "Cache")
      .def(py::init([](Address data, Dtype dtype, int64_t n_pages, int64_t page_size,
                       int64_t n_heads, int64_t head_dim, int64_t page_stride, int64_t token_stride,
                       int64_t head_stride) {
        return Cache{at<void>(data), dtype,       n_pages,      page_size,  n_heads,
                     head_dim,       page_stride, token_stride, head_stride};
      }));

  py::class_<Linear>(m, "Linear")
      .def(py::init([](Address panels, Dtype dtype, int64_t inputs, int64_t outputs, Address bias) {
        return Linear{Panels{at<void>(panels), dtype}, inputs, outputs, at<float>(bias)};
      }))
      .def(py::init([](Address packed, std::vector<Quant> quants, std::vector<int64_t> sizes,
                       bool exact, int64_t inputs, int64_t outputs, Address bias) {
        return Linear{
            QuantizedParts{at<uint8_t>(packed), std::move(quants), std::move(sizes), exact}, inputs,
            outputs, at<float>(bias)};
      }));

  py::class_<LayeredCache>(m, "LayeredCache")
      .def(py::init([](const Cache& first_keys, int64_t layer_stride, int64_t half_stride) {
        return LayeredCache{first_keys, layer_stride, half_stride};
      }));

  py::class_<Router>(m, "Router")
      .def(py::init([](const Linear& linear, int64_t n_experts, int64_t k, bool normalise) {
        return Router{linear, n_experts, {k, false, normalise, 1, nullptr, 1, 1, 1}};
      }));

  py::class_<Decoder>(m, "Decoder")
      .def(py::init([](int64_t hidden, int64_t query_heads, int64_t heads, int64_t head_dim,
                       float eps, float scale, Address cos, Address sin, int64_t n_positions,
                       Address embedding, std::variant<Dtype, Quant> embedding_type,
                       int64_t vocabulary, Address norm, const Linear& head) {
        return Decoder{
            hidden,         query_heads,    heads,           head_dim,    eps,
            scale,          at<float>(cos), at<float>(sin),  n_positions, at<void>(embedding),
            embedding_type, vocabulary,     at<float>(norm), head,        {}};
      }))
      .def("add_layer",
           [](Decoder& decoder, Address attention_norm, const Linear& qkv, Address qk_norm,
              const Linear& output, Address mlp_norm, const Linear& gate_up, const Linear& down,
              int64_t inner, int64_t window, const std::optional<Router>& router) {
             decoder.layers.push_back({at<float>(attention_norm), qkv, at<float>(qk_norm), output,
                                       at<float>(mlp_norm), gate_up, down, inner, window, router});
           });

  py::class_<Planes>(m, "Planes")
      .def(py::init([](Address data, int64_t n_layers, int64_t n_parts, int64_t n_pages,
                       int64_t page_size, int64_t n_heads, int64_t run_bytes, int64_t layer_stride,
                       int64_t part_stride, int64_t page_stride, int64_t token_stride,
                       int64_t head_stride) {
        return Planes{at<char>(data), n_layers,    n_parts,      n_pages,
                      page_size,      n_heads,     run_bytes,    layer_stride,
                      part_stride,    page_stride, token_stride, head_stride};
      }));

  m.def("isa", [] { return isa().name; }, "The instruction set in use.");

  m.def("build_tree", [](Address parents, Address offsets, int64_t batch, int64_t rows,
                         int64_t words, Address ancestors, Address depth) {
    py::gil_scoped_release release;
    build_tree(at<int32_t>(parents), at<int32_t>(offsets), batch, rows, words,
               at<int64_t>(ancestors), at<int32_t>(depth));
  });

  m.def(
      "tree_attention",
      [](Address q, Dtype dtype, int64_t query_heads, const Cache& k_cache, const Cache& v_cache,
         int64_t batch, int64_t rows, int64_t words, int64_t pages_per_request, Address page_table,
         Address prefix_lens, Address n_nodes, Address offsets, Address ancestors, Address depth,
         float scale, float softcap, int64_t window, float k_scale, Address k_scales, float v_scale,
         Address v_scales, Address sinks, Address out, Address lse) {
        py::gil_scoped_release release;
        const Trees trees{batch,
                          rows,
                          words,
                          pages_per_request,
                          at<int32_t>(page_table),
                          at<int32_t>(prefix_lens),
                          at<int32_t>(n_nodes),
                          at<int32_t>(offsets),
                          at<int64_t>(ancestors),
                          at<int32_t>(depth)};
        const Scoring scoring{scale,
                              softcap,
                              window,
                              Scale{k_scale, at<float>(k_scales)},
                              Scale{v_scale, at<float>(v_scales)},
                              at<float>(sinks)};
        tree_attention(at<void>(q), dtype, query_heads, k_cache, v_cache, trees, scoring,
                       at<void>(out), at<float>(lse));
      });

  m.def("append_kv", [](Address k, Address v, Dtype dtype, const Cache& k_cache,
                        const Cache& v_cache, Address slots, int64_t rows, float k_scale,
                        Address k_scales, float v_scale, Address v_scales) {
    py::gil_scoped_release release;
    append_kv(at<void>(k), at<void>(v), dtype, k_cache, v_cache, at<int64_t>(slots), rows,
              Scale{k_scale, at<float>(k_scales)}, Scale{v_scale, at<float>(v_scales)});
  });

  m.def("rope_append_kv",
        [](Address qk, int64_t qk_stride, Address v, int64_t v_stride, Dtype dtype,
           int64_t query_heads, Address qk_norm, float eps, Address cos, Address sin,
           int64_t n_positions, Address positions, const Cache& k_cache, const Cache& v_cache,
           Address slots, int64_t rows, float k_scale, Address k_scales, float v_scale,
           Address v_scales, Address q) {
          py::gil_scoped_release release;
          const Rope rope{at<float>(cos), at<float>(sin), n_positions, at<int64_t>(positions)};
          rope_append_kv(at<void>(qk), qk_stride, at<void>(v), v_stride, dtype, query_heads,
                         HeadNorms{at<float>(qk_norm), eps}, rope, k_cache, v_cache,
                         at<int64_t>(slots), rows, Scale{k_scale, at<float>(k_scales)},
                         Scale{v_scale, at<float>(v_scales)}, at<void>(q));
        });

  m.def("compact_kv",
        [](const Planes& kv, Address page_table, int64_t pages_per_request, Address prefix_lens,
           Address path, Address accepted_lens, int64_t batch, int64_t max_path) {
          py::gil_scoped_release release;
          compact_kv(kv, at<int32_t>(page_table), pages_per_request, at<int32_t>(prefix_lens),
                     at<int32_t>(path), at<int32_t>(accepted_lens), batch, max_path);
        });

  m.def("verify", [](Address tokens, Address ancestors, Address offsets, Address target,
                     int64_t batch, int64_t rows, int64_t words, int64_t max_path, Address path,
                     Address accepted_lens, Address bonus) {
    py::gil_scoped_release release;
    verify(at<int64_t>(tokens), at<int64_t>(ancestors), at<int32_t>(offsets), at<int64_t>(target),
           batch, rows, words, max_path, at<int32_t>(path), at<int32_t>(accepted_lens),
           at<int64_t>(bonus));
  });

  m.def("target_tokens",
        [](Address logits, int64_t rows, int64_t vocabulary, Address temperature, Address top_k,
           Address top_p, Address min_p, Address seed, Address position, Address mask,
           int64_t n_masks, Address mask_row, Address out) {
          py::gil_scoped_release release;
          const Masks masks{at<int32_t>(mask), n_masks, at<int32_t>(mask_row)};
          const Draws draws{at<float>(temperature), at<int32_t>(top_k), at<float>(top_p),
                            at<float>(min_p),       at<int64_t>(seed),  at<int64_t>(position)};
          target_tokens(at<float>(logits), rows, vocabulary, masks, draws, at<int64_t>(out));
        });

  m.def("edit_logits",
        [](Address logits, int64_t rows, int64_t vocabulary, Address tokens, Address ancestors,
           int64_t words, Address offsets, int64_t batch, Address text_offsets, Address text_tokens,
           Address text_counts, int64_t n_text, Address bias_offsets, Address bias_tokens,
           Address bias_values, int64_t n_bias, Address repetition, Address frequency,
           Address presence) {
          py::gil_scoped_release release;
          const Drafts drafts{batch, words, at<int64_t>(tokens), at<int64_t>(ancestors),
                              at<int32_t>(offsets)};
          const Edits edits{n_text,
                            n_bias,
                            at<int32_t>(text_offsets),
                            at<int64_t>(text_tokens),
                            at<int32_t>(text_counts),
                            at<int32_t>(bias_offsets),
                            at<int64_t>(bias_tokens),
                            at<float>(bias_values),
                            at<float>(repetition),
                            at<float>(frequency),
                            at<float>(presence)};
          edit_logits(at<float>(logits), rows, vocabulary, drafts, edits);
        });

  m.def("token_logprobs",
        [](Address logits, int64_t rows, int64_t vocabulary, Address tokens, int64_t n,
           Address logprobs, Address top_tokens, Address top_logprobs) {
          py::gil_scoped_release release;
          token_logprobs(at<float>(logits), rows, vocabulary, at<int64_t>(tokens), n,
                         at<float>(logprobs), at<int64_t>(top_tokens), at<float>(top_logprobs));
        });

  m.def("draft_topk",
        [](Address logits, int64_t rows, int64_t vocabulary, int64_t k, Address temperature,
           Address seed, Address position, Address token_ids, Address ids, Address logprobs) {
          py::gil_scoped_release release;
          draft_topk(at<float>(logits), rows, vocabulary, k, at<float>(temperature),
                     at<int64_t>(seed), at<int64_t>(position), at<int64_t>(token_ids),
                     at<int64_t>(ids), at<float>(logprobs));
        });

  m.def("multiply", [](const Linear& linear, Address x, int64_t rows, Address out) {
    py::gil_scoped_release release;
    multiply(linear, at<float>(x), rows, at<float>(out));
  });

  m.def("grouped_multiply", [](const Linear& linear, Address sets, int64_t n_sets, int64_t per_row,
                               Address bias, Address x, int64_t rows, Address out) {
    py::gil_scoped_release release;
    const Groups groups{at<int32_t>(sets), n_sets, per_row, at<float>(bias)};
    grouped_multiply(linear, groups, at<float>(x), rows, at<float>(out));
  });

  m.def("route", [](Address logits, int64_t rows, int64_t n_experts, int64_t k, bool sigmoid,
                    bool normalise, float scale, Address bias, int64_t n_groups, int64_t top_groups,
                    int64_t group_best, Address experts, Address weights) {
    py::gil_scoped_release release;
    const Routing rule{k,        sigmoid,    normalise, scale, at<float>(bias),
                       n_groups, top_groups, group_best};
    route(at<float>(logits), rows, n_experts, rule, at<int32_t>(experts), at<float>(weights));
  });

  m.def("weighted_sum", [](Address y, Dtype dtype, Address weights, int64_t rows, int64_t parts,
                           int64_t width, Address out) {
    py::gil_scoped_release release;
    weighted_sum(at<void>(y), dtype, at<float>(weights), rows, parts, width, at<void>(out));
  });

  m.def("rms_norm", [](Address x, Address delta, Address weight, Dtype dtype, int64_t rows,
                       int64_t width, float eps, Address out) {
    py::gil_scoped_release release;
    rms_norm(at<void>(x), at<void>(delta), at<void>(weight), dtype, rows, width, eps,
             at<void>(out));
  });

  m.def("silu_mul", [](Address gate_up, Dtype dtype, int64_t rows, int64_t width, Address out) {
    py::gil_scoped_release release;
    silu_mul(at<void>(gate_up), dtype, rows, width, at<void>(out));
  });

  m.def("decode", [](const Decoder& decoder, const LayeredCache& kv, Address tokens, int64_t rows,
                     Address positions, Address slots, int64_t batch, int64_t words,
                     int64_t pages_per_request, Address page_table, Address prefix_lens,
                     Address n_nodes, Address offsets, Address ancestors, Address depth,
                     Address wanted, int64_t n_wanted, Address out) {
    py::gil_scoped_release release;
    const Trees trees{batch,
                      rows,
                      words,
                      pages_per_request,
                      at<int32_t>(page_table),
                      at<int32_t>(prefix_lens),
                      at<int32_t>(n_nodes),
                      at<int32_t>(offsets),
                      at<int64_t>(ancestors),
                      at<int32_t>(depth)};
    const Pass pass{trees,
                    at<int64_t>(tokens),
                    at<int64_t>(positions),
                    at<int64_t>(slots),
                    at<int64_t>(wanted),
                    n_wanted};
    decode(decoder, kv, pass, at<float>(out));
  });

  m.def("logits", [](const Decoder& decoder, Address hidden, int64_t rows, Address out) {
    py::gil_scoped_release release;
    logits(decoder, at<float>(hidden), rows, at<float>(out));
  });

  m.def("pack_quantized",
        [](Address stored, Quant quant, int64_t outputs, int64_t inputs, Address packed) {
          py::gil_scoped_release release;
          pack_quantized(at<uint8_t>(stored), quant, outputs, inputs, at<uint8_t>(packed));
        });

  m.def("dequantize", [](Address stored, Quant quant, int64_t rows, int64_t inputs, Address out) {
    py::gil_scoped_release release;
    dequantize(at<uint8_t>(stored), quant, rows, inputs, at<float>(out));
  });
}
