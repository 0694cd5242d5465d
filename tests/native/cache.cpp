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
  for (int64_t& slot : pool.slots) slot = random.fill() % 7 == 0 ? -slot - 1 : slot;
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

// Of each head, or of all.
std::vector<float> scales_of(Random& random, int64_t heads) {
  std::vector<float> scales(random.chance(50) ? heads : 1);
  for (float& scale : scales) scale = random.pick({1.0f, 1.0f, 0.5f, 0.3f, 1e-5f});
  return scales;
}

Scale as_scale(const std::vector<float>& scales) {
  return scales.size() > 1 ? Scale{1, scales.data()} : Scale{scales[0]};
}

}  // namespace

void check_append_kv(Random& random) {
  Pool pool = make_pool(random, random.pick({1, 7, 16, 64, 128}));
  const bool is_hostile = random.chance(40);
  if (is_hostile) spoil_slots(pool, random);
  const int64_t rows = int64_t(pool.slots.size()), width = pool.heads * pool.dim;
  const Dtype type = random.pick({Dtype::f32, Dtype::bf16, Dtype::f16});
  Numbers k(type, rows * width, random), v(type, rows * width, random);
  const std::vector<float> k_scales = scales_of(random, pool.heads);
  const std::vector<float> v_scales = scales_of(random, pool.heads);
  const Scale k_scale = as_scale(k_scales), v_scale = as_scale(v_scales);
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
    const int64_t head = i % width / pool.dim, to = pool.place(slot, head) + i % pool.dim;
    want_keys.set(to, k.get(i) / k_scale.of(head));
    want_values.set(to, v.get(i) / v_scale.of(head));
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
  Numbers norms(Dtype::f32, turning * dim, random);
  const bool normed = random.chance(40);
  Numbers cos(Dtype::f32, n_positions * dim, random), sin(Dtype::f32, n_positions * dim, random);
  std::vector<int64_t> positions(rows);
  for (int64_t& position : positions) position = int64_t(random.fill() % uint64_t(n_positions));
  if (is_hostile) {
    random.chance(50) ? random.spoil(positions, n_positions) : spoil_slots(pool, random);
  }
  const Numbers keys = pool.keys, values = pool.values;
  // An empty array has no address to add to.
  const char* const v = rows > 0 ? qkv.data() + turning * dim * qkv.item_bytes() : nullptr;
  const Rope rope{reinterpret_cast<const float*>(cos.data()),
                  reinterpret_cast<const float*>(sin.data()), n_positions, positions.data()};
  const bool taken = accepted([&] {
    rope_append_kv(qkv.data(), stride, v, stride, qkv.type(), query_heads,
                   {normed ? reinterpret_cast<const float*>(norms.data()) : nullptr, 1e-5f}, rope,
                   pool.cache(pool.keys), pool.cache(pool.values), pool.slots.data(), rows,
                   Scale{0.5f}, {}, q.data());
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
    double squares = 0;
    for (int64_t j = 0; j < dim; ++j) squares += std::pow(qkv.get(from + j), 2);
    const auto turning_in = [&](int64_t j) {
      if (!normed) return double(qkv.get(from + j));
      const double size = std::sqrt(squares / double(dim) + 1e-5);
      return qkv.get(from + j) / size * norms.get(head * dim + j);
    };
    const double want =
        turning_in(d) * cos.get(angle) + turning_in((d + half) % dim) * sin.get(angle);
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

// A whole call of compact_kv: paths that climb, over pages that no two requests share.
struct Moves {
  int64_t batch, layers, parts, heads, page_size, run_bytes, pages_per_request, max_path;
  std::vector<int32_t> pages, page_table, prefix_lens, path, accepted_lens;

  int64_t n_pages() const { return batch * pages_per_request + 1; }
  int64_t token_stride() const { return heads * run_bytes; }
  int64_t page_stride() const { return page_size * token_stride(); }
  int64_t part_stride() const { return n_pages() * page_stride(); }
  int64_t planes() const { return layers * parts; }

  int64_t place(int64_t b, int64_t position) const {
    return page_table[b * pages_per_request + position / page_size] * page_stride() +
           position % page_size * token_stride();
  }
};

void add_request(Moves& moves, Random& random) {
  for (int64_t i = 0; i < moves.pages_per_request; ++i, moves.pages.pop_back()) {
    moves.page_table.push_back(moves.pages.back());
  }
  const int64_t tokens = moves.pages_per_request * moves.page_size;
  const int64_t prefix = random.between(0, tokens), room = tokens - prefix;
  const int64_t count = random.between(0, std::min(moves.max_path, room));
  int64_t node = -1;
  for (int64_t j = 0; j < moves.max_path; ++j) {
    if (j < count) node += random.chance(50) ? 1 : random.between(1, room - node - count + j);
    moves.path.push_back(j < count ? int32_t(node) : -5);
  }
  moves.prefix_lens.push_back(int32_t(prefix));
  moves.accepted_lens.push_back(int32_t(count));
}

Moves make_moves(Random& random) {
  Moves moves{random.between(0, 3),
              random.between(1, 3),
              random.between(1, 2),
              random.between(1, 3),
              random.pick({1, 3, 16, 64}),
              random.pick({1, 6, 8, 20, 64, 128}),
              random.between(1, 4),
              random.pick({0, 1, 4, 40}),
              {},
              {},
              {},
              {},
              {}};
  moves.pages.resize(moves.n_pages());
  std::iota(moves.pages.begin(), moves.pages.end(), 0);
  random.shuffle(moves.pages);
  for (int64_t b = 0; b < moves.batch; ++b) add_request(moves, random);
  return moves;
}

void spoil(Moves& moves, Random& random) {
  std::vector<int32_t>* tables[] = {&moves.page_table, &moves.prefix_lens, &moves.path,
                                    &moves.accepted_lens};
  random.spoil(*tables[random.between(0, 3)], random.pick({moves.max_path, moves.n_pages()}));
}

// The bytes after the moves, each from where it lay before all of them.
std::vector<char> moved(const Moves& moves, const std::vector<char>& before) {
  std::vector<char> after = before;
  for (int64_t b = 0; b < moves.batch; ++b) {
    for (int64_t j = 0; j < moves.accepted_lens[b]; ++j) {
      const int64_t node = moves.path[b * moves.max_path + j];
      const int64_t from = moves.place(b, moves.prefix_lens[b] + node);
      const int64_t to = moves.place(b, moves.prefix_lens[b] + j);
      for (int64_t plane = 0; plane < moves.planes(); ++plane) {
        const auto first = before.begin() + plane * moves.part_stride();
        std::copy_n(first + from, moves.token_stride(),
                    after.begin() + plane * moves.part_stride() + to);
      }
    }
  }
  return after;
}

// The CUDA kernel's body, thread after thread.
void compact_as_on_gpu(const Moves& moves, std::vector<char>& kv) {
  const int64_t word_bytes = std::gcd<int64_t>(moves.run_bytes, 16), planes = moves.planes();
  const CompactKv arguments{kv.data(),
                            moves.parts,
                            moves.heads,
                            moves.page_size,
                            moves.pages_per_request,
                            moves.max_path,
                            word_bytes,
                            moves.run_bytes / word_bytes,
                            moves.parts * moves.part_stride(),
                            moves.part_stride(),
                            moves.page_stride(),
                            moves.token_stride(),
                            moves.run_bytes,
                            moves.page_table.data(),
                            moves.prefix_lens.data(),
                            moves.path.data(),
                            moves.accepted_lens.data()};
  for (int64_t i = 0; i < planes * moves.batch * kCompactThreads; ++i) {
    const int64_t block = i / kCompactThreads;
    compact_kv_thread(arguments, block % planes, block / planes, i % kCompactThreads,
                      kCompactThreads);
  }
}

}  // namespace

void check_compact_kv(Random& random) {
  Moves moves = make_moves(random);
  const bool is_hostile = random.chance(40);
  if (is_hostile) spoil(moves, random);
  std::vector<char> kv(moves.planes() * moves.part_stride());
  for (char& byte : kv) byte = char(random.fill());
  const std::vector<char> before = kv;
  const Planes planes{kv.data(),
                      moves.layers,
                      moves.parts,
                      moves.n_pages(),
                      moves.page_size,
                      moves.heads,
                      moves.run_bytes,
                      moves.parts * moves.part_stride(),
                      moves.part_stride(),
                      moves.page_stride(),
                      moves.token_stride(),
                      moves.run_bytes};
  const bool taken = accepted([&] {
    compact_kv(planes, moves.page_table.data(), moves.pages_per_request, moves.prefix_lens.data(),
               moves.path.data(), moves.accepted_lens.data(), moves.batch, moves.max_path);
  });
  if (!taken) {
    expect(is_hostile, "compact_kv refused a good case");
    expect(kv == before, "compact_kv wrote and then refused");
    return;
  }
  const std::vector<char> want = moved(moves, before);
  expect(kv == want, "compact_kv: wrong bytes");
  std::vector<char> on_gpu = before;
  compact_as_on_gpu(moves, on_gpu);
  expect(on_gpu == want, "the CUDA body of compact_kv: wrong bytes");
}

}  // namespace specedge::native
