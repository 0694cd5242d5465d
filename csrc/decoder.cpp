#include "decoder.h"

#include <algorithm>
#include <memory>

#include "checks.h"
#include "quant_form.h"
#include "stored.h"

namespace specedge {
namespace {

using Floats = std::unique_ptr<float[]>;

Floats floats(int64_t n) { return std::make_unique_for_overwrite<float[]>(n); }

int64_t item_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : dtype == Dtype::e4m3 ? 1 : 2; }

// The keys (half 0) or values (half 1) of one layer.
Cache part(const LayeredCache& kv, int64_t layer, int64_t half) {
  Cache cache = kv.first_keys;
  const int64_t elements = layer * kv.layer_stride + half * kv.half_stride;
  cache.data = static_cast<char*>(cache.data) + elements * item_bytes(cache.dtype);
  return cache;
}

// Row `index` of a table [V, width] -> to [width]
void table_row(const void* table, std::variant<Dtype, Quant> type, int64_t width, int64_t index,
               float* to) {
  if (const Quant* quant = std::get_if<Quant>(&type)) {
    const int64_t offset = index * form_of(*quant).row_bytes(width);
    dequantize(static_cast<const uint8_t*>(table) + offset, *quant, 1, width, to);
    return;
  }
  with_type(std::get<Dtype>(type), [&]<typename T>() {
    convert(static_cast<const T*>(table) + index * width, to, width, 1);
  });
}

// rows[i] of from [*, width] -> to [n, width]
void gather(const float* from, const int64_t* rows, int64_t n, int64_t width, float* to) {
  for (int64_t i = 0; i < n; ++i) std::copy_n(from + rows[i] * width, width, to + i * width);
}

// One step on its way through the layers.
class Step {
 public:
  Step(const Decoder& decoder, const LayeredCache& kv, const Pass& pass)
      : decoder_(decoder),
        kv_(kv),
        pass_(pass),
        rope_{decoder.cos, decoder.sin, decoder.n_positions, pass.positions},
        mixed_width_(decoder.query_heads * decoder.head_dim),
        qkv_width_(mixed_width_ + 2 * decoder.heads * decoder.head_dim),
        n_(pass.trees.rows) {
    check();
    const int64_t most = std::max(n_, pass.n_wanted);
    embedded_ = floats(n_ * decoder.hidden);
    normed_ = floats(most * decoder.hidden);
    delta_ = floats(most * decoder.hidden);
    qkv_ = floats(n_ * qkv_width_);
    q_ = floats(most * mixed_width_);
    mixed_ = floats(n_ * mixed_width_);
    size_feeding(most);
  }

  void run(float* out) {
    embed();
    const int64_t last = int64_t(decoder_.layers.size()) - 1;
    for (int64_t layer = 0; layer < last; ++layer) {
      append(layer);
      attend(layer);
      feed(decoder_.layers[layer]);
    }
    append(last);
    if (pass_.n_wanted == 0) return;
    attend(last);
    keep_wanted(out);
    feed(decoder_.layers[last]);
    for (int64_t i = 0; i < n_ * decoder_.hidden; ++i) out[i] = x_[i] + delta_[i];
  }

 private:
  // Room for what the MLPs and the experts of so many rows make.
  void size_feeding(int64_t most) {
    int64_t inner = 0, experts = 0, chosen = 0;
    for (const DecoderLayer& layer : decoder_.layers) {
      const int64_t k = layer.router ? layer.router->rule.k : 0;
      inner = std::max(inner, std::max<int64_t>(k, 1) * layer.inner);
      experts = std::max(experts, layer.router ? layer.router->n_experts : 0);
      chosen = std::max(chosen, k);
    }
    gate_up_ = floats(most * 2 * inner);
    inner_ = floats(most * inner);
    scores_ = floats(most * experts);
    shares_ = floats(most * chosen);
    parts_ = floats(most * chosen * decoder_.hidden);
    chosen_ = std::make_unique_for_overwrite<int32_t[]>(most * chosen);
  }

  void check() const {
    for (int64_t i = 0; pass_.wanted && i < pass_.n_wanted; ++i) {
      require(pass_.wanted[i] >= 0 && pass_.wanted[i] < n_, "expected wanted rows in 0 .. ", n_ - 1,
              ", got ", pass_.wanted[i], " at index ", i);
    }
    for (int64_t row = 0; row < n_; ++row) {
      require(pass_.tokens[row] >= 0 && pass_.tokens[row] < decoder_.vocabulary,
              "expected tokens in 0 .. ", decoder_.vocabulary - 1, ", got ", pass_.tokens[row],
              " at row ", row);
    }
    check_places(rope_, kv_.first_keys, pass_.slots, n_);
    const DecoderLayer* before = nullptr;
    for (const DecoderLayer& layer : decoder_.layers) {
      if (!before || layer.window != before->window) {
        check_trees(pass_.trees, kv_.first_keys, layer.window);
      }
      before = &layer;
    }
  }

  void embed() {
    x_ = embedded_.get();
    for (int64_t row = 0; row < n_; ++row) {
      float* to = x_ + row * decoder_.hidden;
      if (decoder_.embedding) {
        table_row(decoder_.embedding, decoder_.embedding_type, decoder_.hidden, pass_.tokens[row],
                  to);
      } else {
        weight_row(decoder_.head, pass_.tokens[row], to);
      }
    }
  }

  // The queries of all rows; their keys and values go into the cache.
  void append(int64_t index) {
    const DecoderLayer& layer = decoder_.layers[index];
    const float* delta = index > 0 ? delta_.get() : nullptr;
    rms_norm(x_, delta, layer.attention_norm, Dtype::f32, n_, decoder_.hidden, decoder_.eps,
             normed_.get());
    multiply(layer.qkv, normed_.get(), n_, qkv_.get());
    const int64_t turning = (decoder_.query_heads + decoder_.heads) * decoder_.head_dim;
    unchecked::rope_append_kv(qkv_.get(), qkv_width_, qkv_.get() + turning, qkv_width_, Dtype::f32,
                              decoder_.query_heads, {layer.qk_norm, decoder_.eps}, rope_,
                              part(kv_, index, 0), part(kv_, index, 1), pass_.slots, n_, {}, {},
                              q_.get());
  }

  void attend(int64_t index) {
    const Scoring scoring{decoder_.scale, 0, decoder_.layers[index].window, {}, {}, nullptr};
    unchecked::tree_attention(q_.get(), Dtype::f32, decoder_.query_heads, part(kv_, index, 0),
                              part(kv_, index, 1), pass_.trees, scoring, mixed_.get(), nullptr);
  }

  // From here on nobody reads the other rows; x goes on in `out`.
  void keep_wanted(float* out) {
    if (!pass_.wanted) return;
    gather(x_, pass_.wanted, pass_.n_wanted, decoder_.hidden, out);
    gather(mixed_.get(), pass_.wanted, pass_.n_wanted, mixed_width_, q_.get());
    mixed_.swap(q_);
    n_ = pass_.n_wanted;
    x_ = out;
  }

  // What attention gave, and the MLP or the experts.
  void feed(const DecoderLayer& layer) {
    multiply(layer.output, mixed_.get(), n_, delta_.get());
    rms_norm(x_, delta_.get(), layer.mlp_norm, Dtype::f32, n_, decoder_.hidden, decoder_.eps,
             normed_.get());
    if (layer.router) {
      mix(layer, *layer.router);
      return;
    }
    multiply(layer.gate_up, normed_.get(), n_, gate_up_.get());
    silu_mul(gate_up_.get(), Dtype::f32, n_, layer.inner, inner_.get());
    multiply(layer.down, inner_.get(), n_, delta_.get());
  }

  void mix(const DecoderLayer& layer, const Router& router) {
    const int64_t k = router.rule.k;
    multiply(router.linear, normed_.get(), n_, scores_.get());
    route(scores_.get(), n_, router.n_experts, router.rule, chosen_.get(), shares_.get());
    grouped_multiply(layer.gate_up, {chosen_.get(), router.n_experts, k, nullptr}, normed_.get(),
                     n_, gate_up_.get());
    silu_mul(gate_up_.get(), Dtype::f32, n_ * k, layer.inner, inner_.get());
    grouped_multiply(layer.down, {chosen_.get(), router.n_experts, 1, nullptr}, inner_.get(),
                     n_ * k, parts_.get());
    weighted_sum(parts_.get(), Dtype::f32, shares_.get(), n_, k, decoder_.hidden, delta_.get());
  }

  const Decoder& decoder_;
  const LayeredCache& kv_;
  const Pass& pass_;
  const Rope rope_;
  const int64_t mixed_width_, qkv_width_;
  int64_t n_;           // rows of x
  float* x_ = nullptr;  // [n, H]; delta is still to be added to it
  Floats embedded_, normed_, delta_, qkv_, q_, mixed_, gate_up_, inner_;
  Floats scores_, shares_, parts_;     // of experts: [n, E], [n, k], [n k, H]
  std::unique_ptr<int32_t[]> chosen_;  // [n, k]
};

}  // namespace

void decode(const Decoder& decoder, const LayeredCache& kv, const Pass& pass, float* out) {
  require(!decoder.layers.empty(), "expected a decoder of at least one layer");
  Step(decoder, kv, pass).run(out);
}

void logits(const Decoder& decoder, float* hidden, int64_t rows, float* out) {
  const Floats normed = floats(rows * decoder.hidden);
  rms_norm(hidden, nullptr, decoder.norm, Dtype::f32, rows, decoder.hidden, decoder.eps,
           normed.get());
  multiply(decoder.head, normed.get(), rows, out);
}

}  // namespace specedge
