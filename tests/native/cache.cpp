#include "cuda/compact_kv.h"
#include "native.h"

namespace specedge::native {
namespace {

// Two caches of one shape, and the slots of the rows to come.
struct Pool {
  int64_t n_pages, page_size, heads, dim;
  bool heads_first;  // [P, Hk, S, D] in memory
  Numbers keys, values;
  std::vector<int64_t> slots;

  int64_t token_stride() const { return heads_first ? dim : heads * dim; }
  int64_t head_stride() const { return heads_first ? page_size * dim : dim; }

  Cache cache(Numbers& numbers) const {
    return {numbers.data(),          numbers.type(), n_pages,      page_size, heads, dim,
            heads * page_size * dim, token_stride(), head_stride()};
  }

  int64_t place(int64_t slot, int64_t head) const {
    return slot / page_size * heads * page_size * dim + slot % page_size * token_stride() +
           head * head_stride();
  }
};

Pool make_pool(Random& random, int64_t dim) {
  const int64_t n_pages = random.between(1, 6), page_size = random.pick({1, 3, 16, 64});
  const int64_t heads = random.between(1, 3), size = n_pages * page_size * heads * dim;
  const auto type = [&] { return random.pick({Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::e4m3}); };
  Pool pool{n_pages,
            page_size,
            heads,
            dim,
            random.chance(50),
            Numbers(type(), size, random),
            Numbers(type(), size, random),
            {}};
  pool.slots.resize(n_pages * page_size);
  std::iota(pool.slots.begin(), pool.slots.end(), 0);
  random.shuffle(pool.slots);
  pool.slots.resize(random.between(0, n_pages * page_size));
  for (int64_t& slot : pool.slots) slot = random.chance(15) ? -random.between(1, 9) : slot;
  return pool;
}

// A slot beyond the cache, a negative one (which is skipped), or one that is taken twice.
void spoil_slots(Pool& pool, Random& random) {
  std::vector<int64_t>& slots = pool.slots;
  if (random.chance(50) || slots.size() < 2)
    return random.spoil(slots, pool.n_pages * pool.page_size);
  slots.front() = slots.back();
}

// Whether two rows want the same slot: which of them it would hold depends on the threads.
bool has_twins(std::vector<int64_t> slots) {
  std::erase_if(slots, [](int64_t slot) { return slot < 0; });
  std::sort(slots.begin(), slots.end());
  return std::adjacent_find(slots.begin(), slots.end()) != slots.end();
}

float scale_of(Random& random) { return random.pick({1.0f, 1.0f, 0.5f, 0.3f}); }

}  // namespace

void check_append_kv(Random& random) {
  Pool pool = make_pool(random, random.pick({1, 7, 16, 64, 128}));
  const bool is_hostile = random.chance(40);
  if (is_hostile) spoil_slots(pool, random);
  const int64_t rows = int64_t(pool.slots.size()), width = pool.heads * pool.dim;
  const Dtype type = random.pick({Dtype::f32, Dtype::bf16, Dtype::f16});
  Numbers k(type, rows * width, random), v(type, rows * width, random);
  const float k_scale = scale_of(random), v_scale = scale_of(random);
  Numbers want_keys = pool.keys, want_values = pool.values;
  const bool taken = accepted([&] {
    append_kv(k.data(), v.data(), type, pool.cache(pool.keys), pool.cache(pool.values),
              pool.slots.data(), rows, k_scale, v_scale);
  });
  expect(taken || is_hostile, "append_kv refused a good case");
  expect(!(taken && has_twins(pool.slots)), "append_kv took a slot twice");
  for (int64_t i = 0; taken && i < rows * width; ++i) {
    const int64_t slot = pool.slots[i / width];
    if (slot < 0) continue;
    const int64_t to = pool.place(slot, i % width / pool.dim) + i % pool.dim;
    want_keys.set(to, k.get(i) / k_scale);
    want_values.set(to, v.get(i) / v_scale);
  }
  expect(pool.keys.bytes() == want_keys.bytes(), "append_kv: wrong keys");
  expect(pool.values.bytes() == want_values.bytes(), "append_kv: wrong values");
}

void check_rope_append_kv(Random& random) {
  Pool pool = make_pool(random, random.pick({2, 6, 16, 64, 128}));
  const bool is_hostile = random.chance(40);
  const int64_t rows = int64_t(pool.slots.size()), dim = pool.dim, half = dim / 2;
  const int64_t query_heads = pool.heads * random.between(1, 4), n_positions = random.between(1, 9);
  const int64_t turning = query_heads + pool.heads, all_heads = turning + pool.heads;
  const int64_t stride = all_heads * dim;
  Numbers qkv(random.pick({Dtype::f32, Dtype::bf16, Dtype::f16}), rows * all_heads * dim, random);
  Numbers q(qkv.type(), rows * query_heads * dim);
  Numbers cos(Dtype::f32, n_positions * dim, random), sin(Dtype::f32, n_positions * dim, random);
  std::vector<int64_t> positions(rows);
  for (int64_t& position : positions) position = random.between(0, n_positions - 1);
  if (is_hostile) {
    random.chance(50) ? random.spoil(positions, n_positions) : spoil_slots(pool, random);
  }
  const Numbers keys = pool.keys, values = pool.values;
  const Rope rope{reinterpret_cast<const float*>(cos.data()),
                  reinterpret_cast<const float*>(sin.data()), n_positions, positions.data()};
  const bool taken = accepted([&] {
    rope_append_kv(qkv.data(), stride, qkv.data() + turning * dim * qkv.item_bytes(), stride,
                   qkv.type(), query_heads, rope, pool.cache(pool.keys), pool.cache(pool.values),
                   pool.slots.data(), rows, 0.5f, 1, q.data());
  });
  if (!taken) {
    expect(is_hostile, "rope_append_kv refused a good case");
    expect(pool.keys.bytes() == keys.bytes() && pool.values.bytes() == values.bytes(),
           "rope_append_kv wrote and then refused");
    return;
  }
  for (int64_t i = 0; i < rows * turning * dim; ++i) {
    const int64_t row = i / (turning * dim), head = i / dim % turning, d = i % dim;
    const int64_t from = (row * all_heads + head) * dim, angle = positions[row] * dim + d;
    const double want = double(qkv.get(from + d)) * cos.get(angle) +
                        double(qkv.get(from + (d + half) % dim)) * sin.get(angle);
    if (head < query_heads) {
      expect_near(q.get((row * query_heads + head) * dim + d), want, 32 * q.precision(),
                  "turned query of row", row);
    } else if (pool.slots[row] >= 0) {
      const double got = pool.keys.get(pool.place(pool.slots[row], head - query_heads) + d);
      expect_near(got, want / 0.5, 64 * pool.keys.precision(), "turned key of row", row);
    }
  }
}

namespace {

// One request's share of compact_kv: distinct pages, and a path that climbs.
void add_request(Random& random, std::vector<int32_t>& pages, int64_t max_path,
                 int64_t pages_per_request, int64_t page_size, std::vector<int32_t>& page_table,
                 std::vector<int32_t>& prefix_lens, std::vector<int32_t>& path,
                 std::vector<int32_t>& accepted_lens) {
  for (int64_t i = 0; i < pages_per_request; ++i, pages.pop_back())
    page_table.push_back(pages.back());
  const int64_t tokens = pages_per_request * page_size;
  const int64_t prefix = random.between(0, tokens), room = tokens - prefix;
  const int64_t count = random.between(0, std::min(max_path, room));
  int64_t node = -1;
  for (int64_t j = 0; j < max_path; ++j) {
    if (j < count) node += random.chance(50) ? 1 : random.between(1, room - node - count + j);
    path.push_back(j < count ? int32_t(node) : -5);
  }
  prefix_lens.push_back(int32_t(prefix));
  accepted_lens.push_back(int32_t(count));
}

}  // namespace

void check_compact_kv(Random& random) {
  const int64_t batch = random.between(0, 3), layers = random.between(1, 3),
                heads = random.between(1, 3);
  const int64_t page_size = random.pick({1, 3, 16, 64}), pages_per_request = random.between(1, 4);
  const int64_t run_bytes = random.pick({1, 6, 20, 64, 128}), max_path = random.pick({0, 1, 4, 40});
  const int64_t n_pages = batch * pages_per_request + 1;
  std::vector<int32_t> pages(n_pages), page_table, prefix_lens, path, accepted_lens;
  std::iota(pages.begin(), pages.end(), 0);
  random.shuffle(pages);
  for (int64_t b = 0; b < batch; ++b) {
    add_request(random, pages, max_path, pages_per_request, page_size, page_table, prefix_lens,
                path, accepted_lens);
  }
  const bool is_hostile = random.chance(40);
  if (is_hostile) {
    std::vector<int32_t>* tables[] = {&page_table, &prefix_lens, &path, &accepted_lens};
    random.spoil(*tables[random.between(0, 3)], random.pick({max_path, n_pages}));
  }
  const int64_t token = heads * run_bytes, page = page_size * token, half = n_pages * page;
  std::vector<char> kv(2 * layers * half);
  for (char& byte : kv) byte = char(random.bits());
  const std::vector<char> before = kv;
  const Planes planes{kv.data(), layers, n_pages, page_size, heads,    run_bytes,
                      2 * half,  half,   page,    token,     run_bytes};
  const bool taken = accepted([&] {
    compact_kv(planes, page_table.data(), pages_per_request, prefix_lens.data(), path.data(),
               accepted_lens.data(), batch, max_path);
  });
  if (!taken) {
    expect(is_hostile, "compact_kv refused a good case");
    expect(kv == before, "compact_kv wrote and then refused");
    return;
  }
  std::vector<char> want = before, on_gpu = before;
  const auto place = [&](int64_t b, int64_t position) {
    return page_table[b * pages_per_request + position / page_size] * page +
           position % page_size * token;
  };
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t j = 0; j < accepted_lens[b]; ++j) {
      const int64_t from = place(b, prefix_lens[b] + path[b * max_path + j]);
      const int64_t to = place(b, prefix_lens[b] + j);
      for (int64_t plane = 0; plane < 2 * layers; ++plane) {
        std::copy_n(before.begin() + plane * half + from, token, want.begin() + plane * half + to);
      }
    }
  }
  expect(kv == want, "compact_kv: wrong bytes");
  const int64_t word_bytes = std::gcd<int64_t>(run_bytes, 16);
  const CompactKv arguments{on_gpu.data(),
                            heads,
                            page_size,
                            pages_per_request,
                            max_path,
                            word_bytes,
                            run_bytes / word_bytes,
                            2 * half,
                            half,
                            page,
                            token,
                            run_bytes,
                            page_table.data(),
                            prefix_lens.data(),
                            path.data(),
                            accepted_lens.data()};
  for (int64_t i = 0; i < 2 * layers * batch * kCompactThreads; ++i) {
    compact_kv_thread(arguments, i / kCompactThreads % (2 * layers),
                      i / kCompactThreads / (2 * layers), i % kCompactThreads, kCompactThreads);
  }
  expect(on_gpu == want, "the CUDA body of compact_kv: wrong bytes");
}

}  // namespace specedge::native
