#include "decoder.h"

#include <deque>

#include "stored_weights.h"

namespace specedge::native {
namespace {

constexpr int64_t kPositions = 90;  // of the rotary tables

// A format whose blocks are of 32 weights.
Quant small_quant(Random& random) {
  return random.pick({Quant::q4_0, Quant::q4_1, Quant::q5_0, Quant::q5_1, Quant::q8_0,
                      Quant::iq4_nl, Quant::mxfp4});
}

// A small transformer; what its pointers point to is kept in `numbers`.
struct Model {
  Decoder decoder;
  std::deque<Numbers> numbers;
  std::deque<std::vector<uint8_t>> bytes;

  const float* vector(int64_t n, Random& random) {
    return static_cast<const float*>(tensor(Dtype::f32, n, random));
  }

  const void* tensor(Dtype type, int64_t n, Random& random) {
    return numbers.emplace_back(type, n, random).data();
  }

  Linear linear(int64_t inputs, int64_t outputs, Random& random) {
    const float* bias = random.chance(30) ? vector(outputs, random) : nullptr;
    if (inputs % kBlock == 0 && random.chance(50)) {
      return {parts(inputs, outputs, random), inputs, outputs, bias};
    }
    const Dtype type = random.pick({Dtype::f32, Dtype::bf16, Dtype::f16});
    const void* panels = tensor(type, (outputs + 63) / 64 * inputs * 64, random);
    return {Panels{panels, type}, inputs, outputs, bias};
  }

  // Several of one type, one behind the other.
  Linear sets(int64_t n, int64_t inputs, int64_t outputs, Random& random) {
    const Dtype type = random.pick({Dtype::f32, Dtype::bf16, Dtype::f16});
    const void* panels = tensor(type, n * ((outputs + 63) / 64) * inputs * 64, random);
    return {Panels{panels, type}, inputs, outputs, nullptr};
  }

  QuantizedParts parts(int64_t inputs, int64_t outputs, Random& random) {
    std::vector<uint8_t>& packed = bytes.emplace_back();
    QuantizedParts parts{nullptr, {}, {}, random.chance(50)};
    for (int64_t rest = outputs; rest > 0; rest -= parts.outputs.back()) {
      const Quant quant = small_quant(random);
      parts.quants.push_back(quant);
      parts.outputs.push_back(random.between(1, rest));
      const std::vector<uint8_t> panels =
          packed_of(make_stored(quant, parts.outputs.back(), inputs, random), quant,
                    parts.outputs.back(), inputs);
      packed.insert(packed.end(), panels.begin(), panels.end());
    }
    packed.shrink_to_fit();
    parts.packed = packed.data();
    return parts;
  }
};

Model make_model(Random& random) {
  Model model;
  Decoder& d = model.decoder;
  d.hidden = random.pick({1, 6, 20, 32, 64});
  d.heads = random.between(1, 2);
  d.query_heads = d.heads * random.between(1, 3);
  d.head_dim = random.pick({2, 6, 16});
  d.eps = 1e-5f;
  d.scale = 0.25f;
  d.n_positions = kPositions;
  d.cos = model.vector(kPositions * d.head_dim, random);
  d.sin = model.vector(kPositions * d.head_dim, random);
  d.norm = model.vector(d.hidden, random);
  d.head = model.linear(d.hidden, random.between(1, 70), random);
  d.vocabulary = d.head.outputs;
  d.embedding = nullptr;
  if (d.hidden % kBlock == 0 && random.chance(30)) {
    const Quant quant = small_quant(random);
    d.embedding_type = quant;
    d.embedding =
        model.bytes.emplace_back(make_stored(quant, d.vocabulary, d.hidden, random)).data();
  } else if (random.chance(50)) {
    const Dtype type = random.pick({Dtype::f32, Dtype::bf16, Dtype::f16});
    d.embedding_type = type;
    d.embedding = model.tensor(type, d.vocabulary * d.hidden, random);
  }
  const int64_t turning = d.query_heads + d.heads, layers = random.between(1, 3);
  for (int64_t i = 0; i < layers; ++i) {
    const int64_t inner = random.pick({1, 7, 33, 32});
    const bool is_mixed = random.chance(40);
    const int64_t n_experts = random.between(1, 4), k = random.between(1, n_experts);
    d.layers.push_back({model.vector(d.hidden, random),
                        model.linear(d.hidden, (turning + d.heads) * d.head_dim, random),
                        random.chance(50) ? model.vector(turning * d.head_dim, random) : nullptr,
                        model.linear(d.query_heads * d.head_dim, d.hidden, random),
                        model.vector(d.hidden, random),
                        is_mixed ? model.sets(n_experts, d.hidden, 2 * inner, random)
                                 : model.linear(d.hidden, 2 * inner, random),
                        is_mixed ? model.sets(n_experts, inner, d.hidden, random)
                                 : model.linear(inner, d.hidden, random),
                        inner, random.pick<int64_t>({-1, -1, 3}), std::nullopt});
    if (is_mixed) {
      d.layers.back().router = Router{model.linear(d.hidden, n_experts, random),
                                      n_experts,
                                      {k, false, random.chance(50), 1, nullptr, 1, 1, 1}};
    }
  }
  return model;
}

// Trees after prefixes of whole pages, in pages that follow one another.
struct Batch {
  Forest forest;
  int64_t page_size, pages_per_request = 0;
  std::vector<int32_t> page_table, prefix_lens, n_nodes, offsets, depth;
  std::vector<int64_t> ancestors, tokens, positions, slots, wanted;
  bool all_wanted = false;

  Pass pass() const {
    const Trees trees{forest.batch(),    forest.rows(),      forest.words,   pages_per_request,
                      page_table.data(), prefix_lens.data(), n_nodes.data(), offsets.data(),
                      ancestors.data(),  depth.data()};
    return {trees,
            tokens.data(),
            positions.data(),
            slots.data(),
            all_wanted ? nullptr : wanted.data(),
            all_wanted ? forest.rows() : int64_t(wanted.size())};
  }
};

Batch make_batch(int64_t vocabulary, Random& random) {
  Batch batch;
  batch.forest = make_forest(random, 20);
  batch.page_size = random.pick({1, 4, 16});
  const int64_t requests = batch.forest.batch(), rows = batch.forest.rows();
  batch.pages_per_request = (40 + batch.page_size - 1) / batch.page_size;
  batch.page_table.resize(requests * batch.pages_per_request);
  std::iota(batch.page_table.begin(), batch.page_table.end(), 0);
  batch.ancestors.resize(rows * batch.forest.words);
  batch.depth.resize(rows);
  batch.offsets = batch.forest.offsets;
  build_tree(batch.forest.parents.data(), batch.offsets.data(), requests, rows, batch.forest.words,
             batch.ancestors.data(), batch.depth.data());
  for (int64_t b = 0; b < requests; ++b) {
    const int64_t prefix = random.between(0, 20);
    batch.prefix_lens.push_back(int32_t(prefix));
    batch.n_nodes.push_back(int32_t(batch.forest.size(b)));
    for (int64_t node = 0; node < batch.forest.size(b); ++node) {
      batch.tokens.push_back(int64_t(random.fill() % uint64_t(vocabulary)));
      batch.positions.push_back(prefix + batch.depth[batch.offsets[b] + node]);
      batch.slots.push_back(b * batch.pages_per_request * batch.page_size + prefix + node);
    }
  }
  batch.all_wanted = random.chance(30);
  for (int64_t row = 0; row < rows; ++row) {
    if (random.chance(40)) batch.wanted.push_back(row);
  }
  return batch;
}

void spoil(Batch& batch, int64_t vocabulary, Random& random) {
  switch (random.between(0, 6)) {
    case 0:
      return random.spoil(batch.tokens, vocabulary);
    case 1:
      return random.spoil(batch.positions, kPositions);
    case 2:
      return random.spoil(batch.slots, int64_t(batch.page_table.size()) * batch.page_size);
    case 3:
      return random.spoil(batch.wanted, batch.forest.rows());
    case 4:
      return random.spoil(batch.page_table, int64_t(batch.page_table.size()));
    case 5:
      return random.spoil(batch.prefix_lens, 40);
    default:
      return random.spoil(batch.depth, 5);
  }
}

Cache plane(const LayeredCache& kv, Numbers& numbers, int64_t index) {
  Cache cache = kv.first_keys;
  cache.data = numbers.data() + index * kv.half_stride * numbers.item_bytes();
  return cache;
}

// The embedding of a token; rows of the head are compared with what was packed elsewhere.
void look_up(const Decoder& d, int64_t token, float* out) {
  if (!d.embedding) return weight_row(d.head, token, out);
  if (const Quant* quant = std::get_if<Quant>(&d.embedding_type)) {
    const int64_t offset = token * form_of(*quant).row_bytes(d.hidden);
    return dequantize(static_cast<const uint8_t*>(d.embedding) + offset, *quant, 1, d.hidden, out);
  }
  with_type(std::get<Dtype>(d.embedding_type), [&]<typename T>() {
    const T* row = static_cast<const T*>(d.embedding) + token * d.hidden;
    for (int64_t k = 0; k < d.hidden; ++k) out[k] = load(row + k);
  });
}

// What the MLP or the experts of a layer make of normed rows.
void feed(const Decoder& d, const DecoderLayer& layer, const std::vector<float>& normed,
          int64_t rows, std::vector<float>& delta) {
  const int64_t k = layer.router ? layer.router->rule.k : 1;
  std::vector<float> gate_up(rows * k * 2 * layer.inner), inner(rows * k * layer.inner);
  if (!layer.router) {
    multiply(layer.gate_up, normed.data(), rows, gate_up.data());
    silu_mul(gate_up.data(), Dtype::f32, rows, layer.inner, inner.data());
    multiply(layer.down, inner.data(), rows, delta.data());
    return;
  }
  const int64_t n_experts = layer.router->n_experts;
  std::vector<float> scores(rows * n_experts), shares(rows * k), parts(rows * k * d.hidden);
  std::vector<int32_t> chosen(rows * k);
  multiply(layer.router->linear, normed.data(), rows, scores.data());
  route(scores.data(), rows, n_experts, layer.router->rule, chosen.data(), shares.data());
  grouped_multiply(layer.gate_up, {chosen.data(), n_experts, k, nullptr}, normed.data(), rows,
                   gate_up.data());
  silu_mul(gate_up.data(), Dtype::f32, rows * k, layer.inner, inner.data());
  grouped_multiply(layer.down, {chosen.data(), n_experts, 1, nullptr}, inner.data(), rows * k,
                   parts.data());
  weighted_sum(parts.data(), Dtype::f32, shares.data(), rows, k, d.hidden, delta.data());
}

// The same by the public ops, one after another; all rows to the end.
std::vector<float> one_by_one(const Decoder& d, const LayeredCache& kv, Numbers& numbers,
                              const Pass& pass) {
  const int64_t rows = pass.trees.rows, dim = d.head_dim, turning = d.query_heads + d.heads;
  const int64_t stride = (turning + d.heads) * dim;
  std::vector<float> x(rows * d.hidden), delta(rows * d.hidden), normed(rows * d.hidden);
  std::vector<float> qkv(rows * stride + 1), q(rows * d.query_heads * dim), mixed(q.size());
  for (int64_t row = 0; row < rows; ++row) {
    look_up(d, pass.tokens[row], x.data() + row * d.hidden);
  }
  for (int64_t index = 0; index < int64_t(d.layers.size()); ++index) {
    const DecoderLayer& layer = d.layers[index];
    const Rope rope{d.cos, d.sin, d.n_positions, pass.positions};
    const Cache keys = plane(kv, numbers, 2 * index), values = plane(kv, numbers, 2 * index + 1);
    rms_norm(x.data(), index > 0 ? delta.data() : nullptr, layer.attention_norm, Dtype::f32, rows,
             d.hidden, d.eps, normed.data());
    multiply(layer.qkv, normed.data(), rows, qkv.data());
    rope_append_kv(qkv.data(), stride, qkv.data() + (rows > 0 ? turning * dim : 0), stride,
                   Dtype::f32, d.query_heads, {layer.qk_norm, d.eps}, rope, keys, values,
                   pass.slots, rows, {}, {}, q.data());
    tree_attention(q.data(), Dtype::f32, d.query_heads, keys, values, pass.trees,
                   {d.scale, 0, layer.window, {}, {}, nullptr}, mixed.data(), nullptr);
    multiply(layer.output, mixed.data(), rows, delta.data());
    rms_norm(x.data(), delta.data(), layer.mlp_norm, Dtype::f32, rows, d.hidden, d.eps,
             normed.data());
    feed(d, layer, normed, rows, delta);
  }
  for (size_t i = 0; i < x.size(); ++i) x[i] += delta[i];
  return x;
}

// To the bit, but for the sign of a NaN, which is the compiler's choice.
bool is_same(float want, float got) {
  return std::isnan(want) ? std::isnan(got) : bits_of_float(want) == bits_of_float(got);
}

}  // namespace

void check_decode(Random& random) {
  Model model = make_model(random);
  const Decoder& decoder = model.decoder;
  Batch batch = make_batch(decoder.vocabulary, random);
  const int64_t n_pages = int64_t(batch.page_table.size()),
                token = decoder.heads * decoder.head_dim;
  const int64_t half = n_pages * batch.page_size * token, planes = 2 * decoder.layers.size();
  Numbers kv(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::e4m3}), planes * half,
             random);
  const bool is_hostile = random.chance(40);
  if (is_hostile) spoil(batch, decoder.vocabulary, random);
  const Pass pass = batch.pass();
  const Numbers before = kv;
  Numbers expected = kv;
  const LayeredCache cache{{kv.data(), kv.type(), n_pages, batch.page_size, decoder.heads,
                            decoder.head_dim, batch.page_size * token, token, decoder.head_dim},
                           2 * half,
                           half};
  std::vector<float> out(pass.n_wanted * decoder.hidden);
  const bool taken = accepted([&] { decode(decoder, cache, pass, out.data()); });
  expect(taken || is_hostile, "decode refused a good case");
  if (!taken) expect(kv.bytes() == before.bytes(), "decode wrote and then refused");
  if (is_hostile) return;
  const std::vector<float> want = one_by_one(decoder, cache, expected, pass);
  for (int64_t i = 0; i < kv.size(); ++i) {
    expect(is_same(expected.get(i), kv.get(i)), "decode: wrong keys or values");
  }
  for (int64_t i = 0; i < int64_t(out.size()); ++i) {
    const int64_t row = batch.all_wanted ? i / decoder.hidden : batch.wanted[i / decoder.hidden];
    const float due = want[row * decoder.hidden + i % decoder.hidden];
    expect(is_same(due, out[i]), "hidden state of row ", row, ": expected ", due, ", got ", out[i]);
  }
  std::vector<float> scores(pass.n_wanted * decoder.head.outputs);
  logits(decoder, out.data(), pass.n_wanted, scores.data());
}

}  // namespace specedge::native
