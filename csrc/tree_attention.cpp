// Attention of tree nodes over a paged cache, one (request, key/value head, block of rows) at a
// time. The bits of a row depend on its query and on the keys and values of its path alone:
//
//   * a score is one chain of multiply-adds over D, whichever keys are scored beside it;
//   * the softmax runs online over blocks of 64 positions of the *path*, aligned to position 0;
//   * values are added in the order of positions.
//
// So a node of a tree, the same node in another batch, and the same text decoded token by token
// or prefilled in chunks give equal bits. Blocks that all rows share (the prefix) are scored for
// all of them at once; the slots around the tree are scored once and gathered along each path.
#include <cstdlib>

#include "isa.h"
#include "tile.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int64_t kBlock = 64;    // positions of one softmax step
constexpr int64_t kQueries = 96;  // query vectors of one task, so that staging a block pays
constexpr float kMinusInfinity = -__builtin_inff();

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t round_down(int64_t a, int64_t unit) { return a / unit * unit; }
int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// Memory of one task, freed with it.
class Arena {
 public:
  explicit Arena(int64_t bytes) : memory_(std::aligned_alloc(64, round_up(bytes, 64))) {
    if (!memory_) std::abort();
    next_ = static_cast<char*>(memory_);
  }
  Arena(const Arena&) = delete;
  ~Arena() { std::free(memory_); }

  template <typename T>
  T* take(int64_t n) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += round_up(n * sizeof(T), 64);
    return taken;
  }

 private:
  void* memory_;
  char* next_;
};

// One query node: its path is the prefix, then the nodes of its mask, `length` tokens in all.
struct Row {
  const int64_t* mask;  // [W]
  int64_t prefix, node, length;
  int64_t start;     // the first visible position
  int64_t straight;  // positions below this one lie in the slot of the same number
};

Row describe(const Trees& trees, int64_t b, int64_t row, int64_t window) {
  const int64_t* mask = trees.ancestors + row * trees.words;
  const int64_t prefix = trees.prefix_lens[b], depth = trees.depth[row];
  const int64_t node = trees.n_nodes[b] - (trees.offsets[b + 1] - row);
  const int64_t length = prefix + depth + 1;
  int64_t leading = depth == node ? node + 1 : 0;
  if (leading == 0) {
    while (mask[leading / 64] >> (leading % 64) & 1) ++leading;
  }
  return {mask, prefix, node, length, window < 0 ? 0 : larger(0, length - window),
          prefix + leading};
}

// The slots of positions from .. to-1 of a row's path.
void path_slots(const Row& row, int64_t from, int64_t to, int32_t* slots) {
  int64_t position = from;
  for (; position < to && position < row.straight; ++position) *slots++ = int32_t(position);
  int64_t reached = row.straight;
  for (int64_t node = row.straight - row.prefix; position < to; ++node) {
    if (!(row.mask[node / 64] >> (node % 64) & 1)) continue;
    if (reached++ < position) continue;
    *slots++ = int32_t(row.prefix + node);
    ++position;
  }
}

typedef float quad __attribute__((vector_size(16)));
typedef uint16_t quad_half_bits __attribute__((vector_size(8)));
typedef uint32_t quad_bits __attribute__((vector_size(16)));

quad load_quad(const float* p) { return load_as<quad>(p); }

quad load_quad(const bf16* p) {
  return (quad)(__builtin_convertvector(load_as<quad_half_bits>(p), quad_bits) << 16);
}

quad load_quad(const f16* p) {
#if defined(__F16C__)
  return (quad)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return quad{load(p), load(p + 1), load(p + 2), load(p + 3)};
#endif
}

// rows: 64 pointers to [D] -> keys [D, 64]
template <typename T>
void transpose(const T* const* rows, int64_t dim, float* keys) {
  for (int64_t lane = 0; lane < kBlock; lane += 4) {
    int64_t d = 0;
    for (; d + 4 <= dim; d += 4) {
      const quad a = load_quad(rows[lane] + d), b = load_quad(rows[lane + 1] + d);
      const quad c = load_quad(rows[lane + 2] + d), e = load_quad(rows[lane + 3] + d);
      const quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const quad ce_low = __builtin_shufflevector(c, e, 0, 4, 1, 5);
      const quad ce_high = __builtin_shufflevector(c, e, 2, 6, 3, 7);
      const quad columns[4] = {__builtin_shufflevector(ab_low, ce_low, 0, 1, 4, 5),
                               __builtin_shufflevector(ab_low, ce_low, 2, 3, 6, 7),
                               __builtin_shufflevector(ab_high, ce_high, 0, 1, 4, 5),
                               __builtin_shufflevector(ab_high, ce_high, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) std::memcpy(keys + (d + i) * kBlock + lane, columns + i, 16);
    }
    for (; d < dim; ++d) {
      for (int64_t i = lane; i < lane + 4; ++i) keys[d * kBlock + i] = load(rows[i] + d);
    }
  }
}

// One head of one cache, seen through one request's pages.
struct Tokens {
  const Cache& cache;
  const int32_t* pages;
  int64_t head;

  template <typename T>
  const T* at(int64_t slot) const {
    return static_cast<const T*>(cache.data) +
           pages[slot / cache.page_size] * cache.page_stride +
           slot % cache.page_size * cache.token_stride + head * cache.head_stride;
  }

  // Slots first .. first+63 -> keys [D, 64]; slots outside lo .. hi-1 are not read and give 0.
  template <typename T>
  void stage_keys(int64_t first, int64_t lo, int64_t hi, const void* zeros, float* keys) const {
    const T* rows[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      const bool valid = first + i >= lo && first + i < hi;
      rows[i] = valid ? at<T>(first + i) : static_cast<const T*>(zeros);
    }
    transpose(rows, cache.head_dim, keys);
  }

  // Slots lo .. hi-1 -> values [hi - lo, width], zero beyond D.
  template <typename T>
  void stage_values(int64_t lo, int64_t hi, int64_t width, float* values) const {
    const int64_t dim = cache.head_dim;
    for (int64_t slot = lo; slot < hi; ++slot, values += width) {
      const T* row = at<T>(slot);
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) store_vec(values + d, load_vec(row + d));
      for (; d < dim; ++d) values[d] = load(row + d);
      for (; d < width; ++d) values[d] = 0;
    }
  }
};

void stage_keys(const Tokens& tokens, int64_t first, int64_t lo, int64_t hi, const void* zeros,
                float* keys) {
  switch (tokens.cache.dtype) {
    case Dtype::f32:
      return tokens.stage_keys<float>(first, lo, hi, zeros, keys);
    case Dtype::bf16:
      return tokens.stage_keys<bf16>(first, lo, hi, zeros, keys);
    case Dtype::f16:
      return tokens.stage_keys<f16>(first, lo, hi, zeros, keys);
  }
}

void stage_values(const Tokens& tokens, int64_t lo, int64_t hi, int64_t width, float* values) {
  switch (tokens.cache.dtype) {
    case Dtype::f32:
      return tokens.stage_values<float>(lo, hi, width, values);
    case Dtype::bf16:
      return tokens.stage_values<bf16>(lo, hi, width, values);
    case Dtype::f16:
      return tokens.stage_values<f16>(lo, hi, width, values);
  }
}

// The running softmax of n query vectors: weighted values, largest score, sum of weights.
struct State {
  float* sums;  // [n, width]
  float* top;   // [n]
  float* total;  // [n]
  int64_t width;

  State from(int64_t vector) const {
    return {sums + vector * width, top + vector, total + vector, width};
  }
};

float exp_of(float x) {
  float lanes[kLanes];
  store_vec(lanes, specedge::exp_of(splat(x)));
  return lanes[0];
}

// Raw scores [64] -> weights in place; positions outside lo .. hi-1 get exactly 0.
void softmax_step(float* scores, int64_t lo, int64_t hi, const Scoring& scoring,
                  const State& state) {
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    vec s = load_vec(scores + i) * scoring.scale;
    if (scoring.softcap > 0) s = tanh_of(s / scoring.softcap) * scoring.softcap;
    store_vec(scores + i, s);
  }
  for (int64_t i = 0; i < lo; ++i) scores[i] = kMinusInfinity;
  for (int64_t i = hi; i < kBlock; ++i) scores[i] = kMinusInfinity;
  vec best = splat(*state.top);
  for (int64_t i = 0; i < kBlock; i += kLanes) best = specedge::larger(load_vec(scores + i), best);
  const float top = max_of(best);
  // Without a finite score yet, exp(-inf - 0) gives the zeros that are due.
  const float shift = top == kMinusInfinity ? 0.0f : top;
  vec sum = vec{};
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    const vec weight = specedge::exp_of(load_vec(scores + i) - shift);
    store_vec(scores + i, weight);
    sum += weight;
  }
  const float decay = exp_of(*state.top - shift);
  *state.total = *state.total * decay + sum_of(sum);
  *state.top = top;
  for (int64_t d = 0; d < state.width; d += kLanes) {
    store_vec(state.sums + d, load_vec(state.sums + d) * decay);
  }
}

// Adds a block to n query vectors: scores [n, 64] at score_stride, value rows of positions lo ...
template <typename Values>
void absorb(float* scores, int64_t score_stride, int64_t n, int64_t lo, int64_t hi, Values values,
            const Scoring& scoring, const State& state) {
  for (int64_t i = 0; i < n; ++i) {
    softmax_step(scores + i * score_stride, lo, hi, scoring, state.from(i));
  }
  multiply_add(scores + lo, score_stride, n, values, hi - lo, state.width, state.sums,
               state.width);
}

// Query nodes first_row .. end_row-1 of request b, the query heads of one key/value head.
struct Task {
  int64_t b, head, first_row, end_row;
};

// What the rows of a task have in common, in positions. Blocks in common_begin .. common_end-1 are
// visible to every row and lie in the same slots for all.
struct Span {
  int64_t start, common_begin, common_end, end_slot, longest;
};

Span span_of(const Trees& trees, const Task& task, int64_t window) {
  int64_t start = INT64_MAX, last_start = 0, straight = INT64_MAX, end_slot = 0, longest = 0;
  for (int64_t r = task.first_row; r < task.end_row; ++r) {
    const Row row = describe(trees, task.b, r, window);
    start = smaller(start, row.start);
    last_start = larger(last_start, row.start);
    straight = smaller(straight, row.straight);
    end_slot = larger(end_slot, row.prefix + row.node + 1);
    longest = larger(longest, row.length);
  }
  const int64_t begin = round_up(last_start, kBlock), end = round_down(straight, kBlock);
  if (begin >= end) {
    const int64_t only = round_down(start, kBlock);
    return {start, only, only, end_slot, longest};
  }
  return {start, begin, end, end_slot, longest};
}

class Attention {
 public:
  Attention(const Cache& k_cache, const Cache& v_cache, const Trees& trees, const Scoring& scoring,
            const Task& task, int64_t group)
      : trees_(trees),
        scoring_(scoring),
        task_(task),
        group_(group),
        dim_(k_cache.head_dim),
        width_(round_up(k_cache.head_dim, kLanes)),
        vectors_((task.end_row - task.first_row) * group),
        span_(span_of(trees, task, scoring.window)),
        keys_{k_cache, trees.page_table + task.b * trees.pages_per_request, task.head},
        values_{v_cache, keys_.pages, task.head},
        slots_(larger(kBlock, larger(head_slots(), tail_slots()))),
        arena_(arena_bytes()) {
    queries = arena_.take<float>(vectors_ * dim_);
    scores_ = arena_.take<float>(vectors_ * slots_);
    staged_keys_ = arena_.take<float>(dim_ * kBlock);
    staged_values_ = arena_.take<float>(slots_ * width_);
    zeros_ = arena_.take<float>(dim_);
    path_ = arena_.take<int32_t>(slots_);
    state_ = {arena_.take<float>(vectors_ * width_), arena_.take<float>(vectors_),
              arena_.take<float>(vectors_), width_};
    std::memset(zeros_, 0, dim_ * sizeof(float));
    std::memset(state_.sums, 0, vectors_ * width_ * sizeof(float));
    for (int64_t i = 0; i < vectors_; ++i) {
      state_.top[i] = kMinusInfinity;
      state_.total[i] = 0;
    }
  }

  float* queries;  // [vectors, D], filled by the caller

  State run() {
    attend_paths(round_down(span_.start, kBlock), span_.common_begin, span_.common_begin);
    for (int64_t first = span_.common_begin; first < span_.common_end; first += kBlock) {
      attend_common(first);
    }
    attend_paths(span_.common_end, round_up(span_.longest, kBlock), span_.end_slot);
    return state_;
  }

 private:
  int64_t head_slots() const { return span_.common_begin - round_down(span_.start, kBlock); }
  int64_t tail_slots() const { return round_up(span_.end_slot - span_.common_end, kBlock); }

  int64_t arena_bytes() const {
    const int64_t floats = vectors_ * (dim_ + slots_ + width_ + 2) + dim_ * (kBlock + 1) +
                           slots_ * (width_ + 1);
    return floats * int64_t(sizeof(float)) + 16 * 64;
  }

  // Slots first .. first+63, at least those in lo .. hi-1 -> raw scores of all vectors.
  void score(int64_t first, int64_t lo, int64_t hi, float* scores) {
    stage_keys(keys_, first, lo, hi, zeros_, staged_keys_);
    for (int64_t i = 0; i < vectors_; ++i) {
      std::memset(scores + i * slots_, 0, kBlock * sizeof(float));
    }
    multiply_add(queries, dim_, vectors_, Strided<float>{staged_keys_, kBlock}, dim_, kBlock,
                 scores, slots_);
  }

  void attend_common(int64_t first) {
    score(first, first, first + kBlock, scores_);
    stage_values(values_, first, first + kBlock, width_, staged_values_);
    absorb(scores_, slots_, vectors_, 0, kBlock, Strided<float>{staged_values_, width_}, scoring_,
           state_);
  }

  // Positions from .. to-1 of every row, each along its own path through slots from .. end_slot-1.
  void attend_paths(int64_t from, int64_t to, int64_t end_slot) {
    if (from >= to) return;
    const int64_t first = larger(from, span_.start);
    for (int64_t slot = from; slot < end_slot; slot += kBlock) {
      score(slot, first, end_slot, scores_ + (slot - from));
    }
    stage_values(values_, first, end_slot, width_, staged_values_ + (first - from) * width_);
    for (int64_t r = task_.first_row; r < task_.end_row; ++r) {
      attend_path(describe(trees_, task_.b, r, scoring_.window), r - task_.first_row, from, to);
    }
  }

  void attend_path(const Row& row, int64_t index, int64_t from, int64_t to) {
    const int64_t begin = larger(from, row.start), end = smaller(to, row.length);
    if (begin >= end) return;
    path_slots(row, begin, end, path_);
    for (int64_t block = round_down(begin, kBlock); block < end; block += kBlock) {
      const int64_t lo = larger(begin, block), hi = smaller(end, block + kBlock);
      attend_path_block(path_ + (lo - begin), index, from, lo - block, hi - block);
    }
  }

  // One block of one row: positions lo .. hi-1 of the block lie in `slots`.
  void attend_path_block(const int32_t* slots, int64_t index, int64_t from, int64_t lo,
                         int64_t hi) {
    const float* rows[kBlock];
    for (int64_t i = lo; i < hi; ++i) rows[i - lo] = staged_values_ + (slots[i - lo] - from) * width_;
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t vector = index * group_ + g;
      alignas(64) float gathered[kBlock] = {};
      const float* scores = scores_ + vector * slots_;
      for (int64_t i = lo; i < hi; ++i) gathered[i] = scores[slots[i - lo] - from];
      absorb(gathered, kBlock, 1, lo, hi, Scattered{rows}, scoring_, state_.from(vector));
    }
  }

  const Trees& trees_;
  const Scoring& scoring_;
  const Task& task_;
  const int64_t group_, dim_, width_, vectors_;
  const Span span_;
  const Tokens keys_, values_;
  const int64_t slots_;  // the most slots of one region
  Arena arena_;
  float *scores_, *staged_keys_, *staged_values_, *zeros_;
  int32_t* path_;
  State state_;
};

// q, out [N, Hq, D]
template <typename T>
void attend(const T* q, int64_t query_heads, const Cache& k_cache, const Cache& v_cache,
            const Trees& trees, const Scoring& scoring, const Task& task, T* out) {
  const int64_t dim = k_cache.head_dim, group = query_heads / k_cache.n_heads;
  Attention attention(k_cache, v_cache, trees, scoring, task, group);
  const auto vector = [&](int64_t row, int64_t g) {
    return (row * query_heads + task.head * group + g) * dim;
  };
  float* query = attention.queries;
  for (int64_t row = task.first_row; row < task.end_row; ++row) {
    for (int64_t i = 0; i < group * dim; ++i) *query++ = load(q + vector(row, 0) + i);
  }
  State state = attention.run();
  for (int64_t row = task.first_row; row < task.end_row; ++row) {
    for (int64_t g = 0; g < group; ++g, state = state.from(1)) {
      T* to = out + vector(row, g);
      for (int64_t d = 0; d < dim; ++d) {
        store(to + d, *state.total > 0 ? state.sums[d] / *state.total : state.sums[d]);
      }
    }
  }
}

// Blocks of rows never cross requests; the heads of a block are adjacent.
int64_t tasks_of(const Trees& trees, int64_t b, int64_t rows_per_task) {
  return (trees.offsets[b + 1] - trees.offsets[b] + rows_per_task - 1) / rows_per_task;
}

Task task_at(const Trees& trees, int64_t index, int64_t heads, int64_t rows_per_task) {
  int64_t b = 0, block = index / heads;
  while (block >= tasks_of(trees, b, rows_per_task)) block -= tasks_of(trees, b++, rows_per_task);
  const int64_t first = trees.offsets[b] + block * rows_per_task;
  return {b, index % heads, first, smaller(first + rows_per_task, trees.offsets[b + 1])};
}

template <typename T>
void attend_all(const void* q, int64_t query_heads, const Cache& k_cache, const Cache& v_cache,
                const Trees& trees, const Scoring& scoring, void* out) {
  const int64_t heads = k_cache.n_heads, rows_per_task = larger(1, kQueries * heads / query_heads);
  int64_t n_tasks = 0;
  for (int64_t b = 0; b < trees.batch; ++b) n_tasks += heads * tasks_of(trees, b, rows_per_task);
#pragma omp parallel for schedule(dynamic) if (n_tasks > 1)
  for (int64_t i = 0; i < n_tasks; ++i) {
    attend(static_cast<const T*>(q), query_heads, k_cache, v_cache, trees, scoring,
           task_at(trees, i, heads, rows_per_task), static_cast<T*>(out));
  }
}

}  // namespace

void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,
                    const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out) {
  switch (dtype) {
    case Dtype::f32:
      return attend_all<float>(q, query_heads, k_cache, v_cache, trees, scoring, out);
    case Dtype::bf16:
      return attend_all<bf16>(q, query_heads, k_cache, v_cache, trees, scoring, out);
    case Dtype::f16:
      return attend_all<f16>(q, query_heads, k_cache, v_cache, trees, scoring, out);
  }
}

}  // namespace specedge::SPECEDGE_ISA
