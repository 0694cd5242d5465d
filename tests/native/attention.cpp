#include "native.h"

namespace specedge::native {
namespace {

// A whole call of tree_attention; the tables own what Trees points to.
struct Case {
  Forest forest;
  int64_t heads, group, dim, value_dim, page_size, n_pages = 0, pages_per_request = 0;
  bool heads_first;  // [P, Hk, S, D] in memory
  std::vector<int32_t> page_table, prefix_lens, n_nodes, offsets{0}, depth;
  std::vector<int64_t> ancestors;
  std::vector<float> k_scales, v_scales, sinks;  // empty where there are none
  Scoring scoring{1, 0, -1, {}, {}, nullptr};

  int64_t length(int64_t b) const { return prefix_lens[b] + forest.size(b); }

  // Of heads of `width` numbers.
  Cache cache(Numbers& numbers, int64_t width) const {
    const int64_t token = heads_first ? width : heads * width,
                  head = heads_first ? page_size * width : width;
    return {numbers.data(),
            numbers.type(),
            n_pages,
            page_size,
            heads,
            width,
            heads * page_size * width,
            token,
            head};
  }

  // Where head h of position `position` of request b begins, in heads.
  int64_t place(int64_t b, int64_t position, int64_t h) const {
    const int64_t page = page_table[b * pages_per_request + position / page_size];
    const int64_t offset = position % page_size;
    return page * heads * page_size + (heads_first ? h * page_size + offset : offset * heads + h);
  }

  int64_t cost() const {
    int64_t total = 0;
    for (int64_t b = 0; b < forest.batch(); ++b) total += forest.size(b) * length(b);
    return total * heads * group * (dim + value_dim) / 2;
  }

  Trees trees() const {
    return {forest.batch(),    offsets.back(),     forest.words,   pages_per_request,
            page_table.data(), prefix_lens.data(), n_nodes.data(), offsets.data(),
            ancestors.data(),  depth.data()};
  }
};

// Pages in any order; those a request does not need have ids that no cache has.
void make_pages(Case& c, Random& random) {
  const int64_t batch = c.forest.batch();
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t needed = (c.length(b) + c.page_size - 1) / c.page_size;
    c.n_pages += needed;
    c.pages_per_request = std::max(c.pages_per_request, needed);
  }
  c.n_pages += random.between(0, 2);
  std::vector<int32_t> pages(c.n_pages);
  std::iota(pages.begin(), pages.end(), 0);
  random.shuffle(pages);
  c.page_table.assign(batch * c.pages_per_request, -7);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i * c.page_size < c.length(b); ++i, pages.pop_back()) {
      c.page_table[b * c.pages_per_request + i] = pages.back();
    }
  }
}

// The last rows of each tree are queried, the nodes before them are cached.
void make_rows(Case& c, Random& random) {
  std::vector<int64_t> masks(c.forest.rows() * c.forest.words);
  std::vector<int32_t> depth(c.forest.rows());
  build_tree(c.forest.parents.data(), c.forest.offsets.data(), c.forest.batch(), c.forest.rows(),
             c.forest.words, masks.data(), depth.data());
  for (int64_t b = 0; b < c.forest.batch(); ++b) {
    const int64_t cached = random.chance(30) ? random.between(0, c.forest.size(b)) : 0;
    for (int64_t row = c.forest.offsets[b] + cached; row < c.forest.offsets[b + 1]; ++row) {
      c.depth.push_back(depth[row]);
      for (int64_t w = 0; w < c.forest.words; ++w) {
        c.ancestors.push_back(masks[row * c.forest.words + w]);
      }
    }
    c.n_nodes.push_back(int32_t(c.forest.size(b)));
    c.offsets.push_back(int32_t(c.depth.size()));
  }
}

Case make_case(Random& random) {
  Case c;
  do {
    c = Case{};
    c.forest = make_forest(random, random.pick({8, 70, 256}));
    c.heads = random.between(1, 3);
    c.group = random.pick({1, 2, 3, 4, 7, 8});
    c.dim = random.pick({1, 6, 20, 64, 80, 128, 256, 576});
    c.value_dim = random.chance(50) ? c.dim : random.pick({1, 7, 16, 64, 100, 512});
    c.page_size = random.pick({1, 3, 16, 32, 64});
    c.heads_first = random.chance(50);
    for (int64_t b = 0; b < c.forest.batch(); ++b) {
      c.prefix_lens.push_back(
          int32_t(random.pick<int64_t>({0, 1, 63, 64, 65, random.between(0, 300)})));
    }
  } while (c.cost() > 3'000'000);
  make_pages(c, random);
  make_rows(c, random);
  c.scoring.scale = random.pick({1.0f, 0.125f});
  c.scoring.softcap = random.pick({0.0f, 0.0f, 5.0f});
  c.scoring.window = random.pick<int64_t>({-1, -1, 0, 1, 5, 64, 100});
  c.scoring.v_scale.all = random.pick({1.0f, 0.5f});
  const auto some = [&](int64_t n, std::vector<float> choice) {
    std::vector<float> numbers(random.chance(30) ? n : 0);
    for (float& number : numbers) number = choice[random.between(0, int64_t(choice.size()) - 1)];
    return numbers;
  };
  c.k_scales = some(c.heads, {1, 0.5f, 1.7f});
  c.v_scales = some(c.heads, {1, 0.5f, 1.7f});
  c.sinks = some(c.heads * c.group, {0, 3, -3, 40, -40, -INFINITY});
  return c;
}

// Random where a request has written, NaN elsewhere; now and then NaN in what it wrote, too.
Numbers make_cache(const Case& c, int64_t width, Random& random) {
  Numbers cache(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::e4m3}),
                c.n_pages * c.page_size * c.heads * width);
  for (int64_t i = 0; i < cache.size(); ++i) cache.set(i, NAN);
  for (int64_t b = 0; b < c.forest.batch(); ++b) {
    for (int64_t position = 0; position < c.length(b); ++position) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t first = c.place(b, position, h) * width;
        for (int64_t d = 0; d < width; ++d) cache.set(first + d, random.number());
        if (random.fill() % 3000 == 0) cache.set(first, NAN);
      }
    }
  }
  return cache;
}

// The cache positions that a node sees, in the order of its path.
std::vector<int64_t> visible(const Case& c, int64_t b, int64_t node) {
  std::vector<int64_t> positions(c.prefix_lens[b]);
  std::iota(positions.begin(), positions.end(), 0);
  for (int64_t j : c.forest.path(b, node)) positions.push_back(c.prefix_lens[b] + j);
  const int64_t length = int64_t(positions.size()), window = c.scoring.window;
  if (window >= 0 && length > window) positions.erase(positions.begin(), positions.end() - window);
  return positions;
}

// One query vector [D] of head h -> its attention [Dv] and the logarithm of its sum, in double.
double attend(const Case& c, int64_t h, const float* q, const std::vector<float>& keys,
              const std::vector<float>& values, const std::vector<int64_t>& places,
              std::vector<double>& out) {
  const double k_scale = c.scoring.k_scale.of(h / c.group);
  const double v_scale = c.scoring.v_scale.of(h / c.group);
  std::vector<double> scores;
  double top = c.sinks.empty() ? -kInfinity : c.sinks[h], total = 0;
  for (int64_t place : places) {
    double score = 0;
    for (int64_t d = 0; d < c.dim; ++d) score += double(q[d]) * keys[place * c.dim + d];
    score *= c.scoring.scale * k_scale;
    if (c.scoring.softcap > 0) score = std::tanh(score / c.scoring.softcap) * c.scoring.softcap;
    scores.push_back(score);
    top = std::isnan(score) ? score : std::max(top, score);
    if (std::isnan(top)) break;
  }
  out.assign(c.value_dim, std::isnan(top) ? NAN : 0);
  if (std::isnan(top)) return NAN;
  for (double score : scores) total += std::exp(score - top);
  if (!c.sinks.empty() && top > -kInfinity) total += std::exp(c.sinks[h] - top);
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(scores[i] - top) / total * v_scale;
    for (int64_t d = 0; d < c.value_dim; ++d) {
      out[d] += weight * values[places[i] * c.value_dim + d];
    }
  }
  return top + std::log(total);
}

void compare(const Case& c, const std::vector<float>& q, const std::vector<float>& keys,
             const std::vector<float>& values, const Numbers& got, const std::vector<float>& lse) {
  std::vector<double> want;
  const int64_t query_heads = c.heads * c.group;
  for (int64_t b = 0; b < c.forest.batch(); ++b) {
    for (int64_t row = c.offsets[b]; row < c.offsets[b + 1]; ++row) {
      const std::vector<int64_t> seen = visible(c, b, c.n_nodes[b] - (c.offsets[b + 1] - row));
      for (int64_t h = 0; h < query_heads; ++h) {
        std::vector<int64_t> places;
        for (int64_t position : seen) places.push_back(c.place(b, position, h / c.group));
        const int64_t vector = row * query_heads + h;
        const double sum = attend(c, h, &q[vector * c.dim], keys, values, places, want);
        for (int64_t d = 0; d < c.value_dim; ++d) {
          expect_near(got.get(vector * c.value_dim + d), want[d], 4 * got.precision(),
                      "attention of row", row);
        }
        if (!lse.empty() && !std::isnan(sum)) {
          expect_near(lse[vector], sum, 1e-3, "logarithm of the sum of row", row);
        }
      }
    }
  }
}

void spoil(Case& c, Random& random) {
  switch (random.between(0, 6)) {
    case 0:
      return random.spoil(c.page_table, c.n_pages);
    case 1:
      return random.spoil(c.prefix_lens, c.pages_per_request * c.page_size);
    case 2:
      return random.spoil(c.n_nodes, c.pages_per_request * c.page_size);
    case 3:
      return random.spoil(c.offsets, c.offsets.back());
    case 4:
      return random.spoil(c.ancestors);
    case 5:
      for (std::vector<float>* some : {&c.k_scales, &c.v_scales, &c.sinks}) {
        if (!some->empty()) (*some)[0] = random.pick({NAN, INFINITY, 0.0f, -1.0f});
      }
      return;
    default:
      return random.spoil(c.depth, random.between(0, 5));
  }
}

}  // namespace

void check_tree_attention(Random& random) {
  Case c = make_case(random);
  Numbers keys = make_cache(c, c.dim, random), values = make_cache(c, c.value_dim, random);
  const int64_t vectors = c.offsets.back() * c.heads * c.group;
  Numbers q(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16}), vectors * c.dim, random);
  Numbers out(q.type(), vectors * c.value_dim);
  const Numbers untouched = out;
  std::vector<float> lse(random.chance(50) ? vectors : 0);
  const Cache k_cache = c.cache(keys, c.dim), v_cache = c.cache(values, c.value_dim);
  Trees trees = c.trees();
  const auto first = [](const auto& some) { return some.empty() ? nullptr : some.data(); };
  c.scoring.k_scale.by_head = first(c.k_scales);
  c.scoring.v_scale.by_head = first(c.v_scales);
  c.scoring.sinks = first(c.sinks);
  const bool is_hostile = random.chance(40);
  if (is_hostile) spoil(c, random);
  const bool taken = accepted([&] {
    tree_attention(q.data(), q.type(), c.heads * c.group, k_cache, v_cache, trees, c.scoring,
                   out.data(), lse.empty() ? nullptr : lse.data());
  });
  expect(taken || is_hostile, "tree_attention refused a good case");
  if (!taken) expect(out.bytes() == untouched.bytes(), "tree_attention wrote and then refused");
  if (!is_hostile) compare(c, q.floats(), keys.floats(), values.floats(), out, lse);
}

}  // namespace specedge::native
