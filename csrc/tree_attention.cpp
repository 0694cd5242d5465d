// Attention of tree nodes over a paged cache, one (request, key/value head, block of rows) at a
// time. The bits of a row depend on its query and on the keys and values of its path alone:
//
//   * a score is one chain of multiply-adds over D, whichever keys are scored beside it;
//   * the softmax runs online over blocks of 64 positions of the *path*, aligned to position 0, and
//     begins anew every 512;
//   * values are added in the order of positions, and so are the sums of these stretches.
//
// A stretch knows nothing of those before it: where there are fewer blocks of rows than threads
// could use, as when one long text is decoded alone, its stretches are worked on at the same time.
//
// So a node of a tree, the same node in another batch, and the same text decoded token by token
// or prefilled in chunks give equal bits. Blocks that all rows share (the prefix) are scored for
// all of them at once; the slots around the tree are scored once and gathered along each path.
#include <omp.h>

#include <cstdlib>
#include <new>

#include "isa.h"
#include "online_softmax.h"
#include "paged.h"
#include "threads.h"
#include "tile.h"
#include "tree_path.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int64_t kQueries = 96;          // query vectors of one task, so that staging a block pays
constexpr int64_t kStretch = 8 * kBlock;  // positions
constexpr int64_t kTasksOfThread = 4;     // with fewer, some threads have nothing to do at the end
constexpr int64_t kMostPartBytes = 64 << 20;  // what stretches that are worked on at once may take

// Memory of one task, freed with it.
class Arena {
 public:
  explicit Arena(int64_t bytes) : memory_(std::aligned_alloc(64, round_up(bytes, 64))) {
    if (!memory_) throw std::bad_alloc();
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

// Adds a block to n query vectors: scores [n, 64] at score_stride, value rows of positions lo ...
template <typename Values>
void absorb(float* scores, int64_t score_stride, int64_t n, int64_t lo, int64_t hi, Values values,
            const Scoring& scoring, const State& state) {
  for (int64_t i = 0; i < n; ++i) {
    softmax_step(scores + i * score_stride, lo, hi, scoring, state.from(i));
  }
  multiply_add(scores + lo, score_stride, n, values, hi - lo, state.width, state.sums, state.width);
}

// The scale of a head's keys goes into that of its scores.
Scoring scoring_of(const Scoring& scoring, int64_t head) {
  Scoring own = scoring;
  own.scale *= scoring.k_scale.of(head);
  return own;
}

class Attention {
 public:
  template <typename T>
  Attention(const T* q, const Cache& k_cache, const Cache& v_cache, const Trees& trees,
            const Scoring& scoring, const Task& task, int64_t group)
      : trees_(trees),
        scoring_(scoring_of(scoring, task.head)),
        task_(task),
        group_(group),
        dim_(k_cache.head_dim),
        width_(round_up(v_cache.head_dim, kLanes)),
        in_place_(v_cache.dtype == Dtype::f32 && width_ == v_cache.head_dim),
        vectors_((task.end_row - task.first_row) * group),
        span_(span_of(trees, task, scoring.window)),
        keys_{k_cache, trees.page_table + task.b * trees.pages_per_request, task.head},
        values_{v_cache, keys_.pages, task.head},
        slots_(larger(kBlock, larger(head_slots(), tail_slots()))),
        arena_(arena_bytes()) {
    queries_ = arena_.take<float>(vectors_ * dim_);
    scores_ = arena_.take<float>(vectors_ * slots_);
    staged_keys_ = arena_.take<float>(dim_ * kBlock);
    staged_values_ = arena_.take<float>(slots_ * width_);
    zeros_ = arena_.take<float>(dim_);
    value_rows_ = arena_.take<const float*>(slots_);
    path_ = arena_.take<int32_t>(slots_);
    path_scores_ = arena_.take<float>(group_ * kBlock);
    std::memset(zeros_, 0, dim_ * sizeof(float));
    std::memset(path_scores_, 0, group_ * kBlock * sizeof(float));
    float* query = queries_;
    for (int64_t row = task.first_row; row < task.end_row; ++row) {
      const T* from = q + (row * k_cache.n_heads + task.head) * group * dim_;
      for (int64_t i = 0; i < group * dim_; ++i) *query++ = load(from + i);
    }
  }

  // Where the stretch begins that holds the first position of all rows, and where the last one
  // ends.
  int64_t first_stretch() const { return round_down(span_.start, kStretch); }
  int64_t end() const { return span_.longest; }

  // What the rows find in the positions from .. to-1 of their paths, whole blocks.
  void run(int64_t from, int64_t to, const State& state) {
    state_ = state;
    state_.clear(vectors_);
    const int64_t begin = larger(from, smaller(span_.common_begin, to));
    attend_paths(larger(from, round_down(span_.start, kBlock)), begin, begin);
    const int64_t end = smaller(to, larger(span_.common_end, from));
    for (int64_t first = begin; first < end; first += kBlock) {
      look_ahead(first + kBlock, end);
      attend_common(first);
    }
    attend_paths(end, smaller(to, round_up(span_.longest, kBlock)), span_.end_slot);
  }

 private:
  int64_t head_slots() const { return span_.common_begin - round_down(span_.start, kBlock); }
  int64_t tail_slots() const { return round_up(span_.end_slot - span_.common_end, kBlock); }

  int64_t arena_bytes() const {
    const int64_t floats =
        vectors_ * (dim_ + slots_) + dim_ * (kBlock + 1) + slots_ * (width_ + 1) + group_ * kBlock;
    return floats * int64_t(sizeof(float)) + slots_ * int64_t(sizeof(float*)) + 16 * 64;
  }

  // What is asked for while the block before is worked on.
  void look_ahead(int64_t first, int64_t end) {
    ahead_.value_bytes = -1;
    if (first == end) return;
    keys_.find_block(first, ahead_.keys);
    ahead_.value_bytes = values_.find_block(first, ahead_.values);
  }

  // Of the slots first .. first+63 those in lo .. hi-1 -> raw scores of all vectors.
  void score(int64_t first, int64_t lo, int64_t hi, float* scores) {
    const int64_t n = smaller(kBlock, round_up(hi - first, kLanes));
    stage_keys(keys_, first, n, lo, hi, zeros_, staged_keys_, ahead_);
    for (int64_t i = 0; i < vectors_; ++i) std::memset(scores + i * slots_, 0, n * sizeof(float));
    multiply_add(queries_, dim_, vectors_, Strided<float>{staged_keys_, kBlock}, dim_, n, scores,
                 slots_);
  }

  void attend_common(int64_t first) {
    score(first, first, first + kBlock, scores_);
    find_values(first, first, first + kBlock);
    absorb(scores_, slots_, vectors_, 0, kBlock, Scattered{value_rows_}, scoring_, state_);
  }

  // The values of slots lo .. hi-1 as float32 -> value_rows_, from slot `from` on.
  void find_values(int64_t from, int64_t lo, int64_t hi) {
    const float** rows = value_rows_ + (lo - from);
    if (in_place_) return values_.find<float>(lo, hi, rows);
    stage_values(values_, lo, hi, width_, staged_values_);
    for (int64_t i = 0; i < hi - lo; ++i) rows[i] = staged_values_ + i * width_;
  }

  // Positions from .. to-1 of every row, each along its own path through slots from .. end_slot-1.
  void attend_paths(int64_t from, int64_t to, int64_t end_slot) {
    if (from >= to) return;
    const int64_t first = larger(from, span_.start);
    for (int64_t slot = from; slot < end_slot; slot += kBlock) {
      score(slot, first, end_slot, scores_ + (slot - from));
    }
    find_values(from, first, end_slot);
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
    for (int64_t i = 0; i < hi - lo; ++i) rows[i] = value_rows_[slots[i] - from];
    for (int64_t g = 0; g < group_; ++g) {
      const float* scores = scores_ + (index * group_ + g) * slots_ - from;
      for (int64_t i = lo; i < hi; ++i) path_scores_[g * kBlock + i] = scores[slots[i - lo]];
    }
    absorb(path_scores_, kBlock, group_, lo, hi, Scattered{rows}, scoring_,
           state_.from(index * group_));
  }

  const Trees& trees_;
  const Scoring scoring_;
  const Task& task_;
  const int64_t group_, dim_, width_;
  const bool in_place_;  // values are read where they lie
  const int64_t vectors_;
  const Span span_;
  const Tokens keys_, values_;
  const int64_t slots_;  // the most slots of one region
  Arena arena_;
  float *queries_, *scores_, *staged_keys_, *staged_values_, *zeros_, *path_scores_;
  const float** value_rows_;
  int32_t* path_;
  State state_;
  Ahead ahead_;
};

// Of n query vectors.
int64_t state_bytes(int64_t n, int64_t width) {
  return n * (width + 2) * int64_t(sizeof(float)) + 3 * 64;
}
State take_state(Arena& arena, int64_t n, int64_t width) {
  return {arena.take<float>(n * width), arena.take<float>(n), arena.take<float>(n), width};
}

// q [N, Hq, D], out [N, Hq, Dv]; lse [N, Hq] or null
template <typename T>
class Batch {
 public:
  Batch(const T* q, int64_t query_heads, const Cache& k_cache, const Cache& v_cache,
        const Trees& trees, const Scoring& scoring, T* out, float* lse)
      : q_(q),
        query_heads_(query_heads),
        heads_(k_cache.n_heads),
        group_(query_heads / k_cache.n_heads),
        width_(round_up(v_cache.head_dim, kLanes)),
        rows_per_task_(larger(1, kQueries / group_)),
        k_cache_(k_cache),
        v_cache_(v_cache),
        trees_(trees),
        scoring_(scoring),
        out_(out),
        lse_(lse) {
    int64_t start = INT64_MAX, end = 0;
    for (int64_t b = 0; b < trees.batch; ++b) {
      const int64_t prefix = trees.prefix_lens[b], slots = prefix + trees.n_nodes[b];
      n_tasks_ += heads_ * tasks_of(b);
      n_scores_ += (trees.offsets[b + 1] - trees.offsets[b]) * slots * query_heads;
      start = smaller(start, scoring.window < 0 ? 0 : larger(0, prefix + 1 - scoring.window));
      end = larger(end, slots);
    }
    first_stretch_ = start / kStretch;
    n_stretches_ = (end + kStretch - 1) / kStretch - first_stretch_;
  }

  void run() const {
    // A single short decode step is done before a second thread would have woken.
    const bool is_short = n_scores_ * (k_cache_.head_dim + v_cache_.head_dim) <= 1 << 19;
    const int64_t threads = omp_get_max_threads();
    const bool is_few = threads > 1 && n_tasks_ < kTasksOfThread * threads;
    const bool is_long = n_stretches_ > 1 && part_bytes() <= kMostPartBytes;
    if (!is_short && is_few && is_long) return attend_by_stretches();
    for_all(n_tasks_, !is_short, [&](int64_t i) { attend(task_at(i)); });
  }

 private:
  template <typename Body>
  static void for_all(int64_t n, bool is_long, Body body) {
    Failure failure;
#pragma omp parallel for schedule(dynamic) if (is_long)
    for (int64_t i = 0; i < n; ++i) failure.keep([&] { body(i); });
    failure.rethrow();
  }

  // Blocks of rows never cross requests; the heads of a block are adjacent.
  int64_t tasks_of(int64_t b) const {
    const int64_t rows = trees_.offsets[b + 1] - trees_.offsets[b];
    return (rows + rows_per_task_ - 1) / rows_per_task_;
  }

  Task task_at(int64_t index) const {
    int64_t b = 0, block = index / heads_;
    while (block >= tasks_of(b)) block -= tasks_of(b++);
    const int64_t first = trees_.offsets[b] + block * rows_per_task_;
    return {b, index % heads_, first, smaller(first + rows_per_task_, trees_.offsets[b + 1])};
  }

  int64_t part_bytes() const {
    return state_bytes(n_stretches_ * trees_.rows * query_heads_, width_);
  }

  int64_t vectors_of(const Task& task) const { return (task.end_row - task.first_row) * group_; }

  // A task's stretches one after the other.
  void attend(const Task& task) const {
    Attention attention(q_, k_cache_, v_cache_, trees_, scoring_, task, group_);
    const int64_t n = vectors_of(task);
    Arena arena(2 * state_bytes(n, width_));
    const State all = take_state(arena, n, width_), part = take_state(arena, n, width_);
    begin(task, all);
    for (int64_t first = attention.first_stretch(); first < attention.end(); first += kStretch) {
      attention.run(first, first + kStretch, part);
      fold(part, n, all);
    }
    finish(task, all);
  }

  // The stretches of all tasks at once, each with a state of its own.
  void attend_by_stretches() const {
    Arena arena(part_bytes());
    const State parts = take_state(arena, n_stretches_ * trees_.rows * query_heads_, width_);
    const auto part = [&](const Task& task, int64_t stretch) {
      const int64_t head = stretch * heads_ + task.head;
      return parts.from((head * trees_.rows + task.first_row) * group_);
    };
    for_all(n_tasks_ * n_stretches_, true, [&](int64_t i) {
      const Task task = task_at(i / n_stretches_);
      const int64_t stretch = i % n_stretches_, from = (first_stretch_ + stretch) * kStretch;
      Attention attention(q_, k_cache_, v_cache_, trees_, scoring_, task, group_);
      attention.run(from, from + kStretch, part(task, stretch));
    });
    for_all(n_tasks_, true, [&](int64_t i) {
      const Task task = task_at(i);
      const int64_t n = vectors_of(task);
      Arena memory(state_bytes(n, width_));
      const State all = take_state(memory, n, width_);
      begin(task, all);
      for (int64_t stretch = 0; stretch < n_stretches_; ++stretch)
        fold(part(task, stretch), n, all);
      finish(task, all);
    });
  }

  // A sink is as a first key, whose value is zero.
  void begin(const Task& task, const State& state) const {
    const int64_t n = vectors_of(task);
    state.clear(n);
    if (!scoring_.sinks) return;
    for (int64_t i = 0; i < n; ++i) {
      state.top[i] = scoring_.sinks[task.head * group_ + i % group_];
      state.total[i] = 1;
    }
  }

  void finish(const Task& task, State state) const {
    const int64_t v_dim = v_cache_.head_dim;
    const float v_scale = scoring_.v_scale.of(task.head);
    for (int64_t row = task.first_row; row < task.end_row; ++row) {
      for (int64_t g = 0; g < group_; ++g, state = state.from(1)) {
        const int64_t vector = row * query_heads_ + task.head * group_ + g;
        // Without keys the sums are zero.
        const float total = *state.total == 0 ? 1.0f : *state.total;
        T* to = out_ + vector * v_dim;
        for (int64_t d = 0; d < v_dim; ++d) store(to + d, state.sums[d] / total * v_scale);
        if (lse_) lse_[vector] = *state.top + log_of(total);
      }
    }
  }

  const T* q_;
  const int64_t query_heads_, heads_, group_, width_, rows_per_task_;
  const Cache &k_cache_, &v_cache_;
  const Trees& trees_;
  const Scoring& scoring_;
  T* out_;
  float* lse_;
  int64_t n_tasks_ = 0, n_scores_ = 0, first_stretch_, n_stretches_;
};

template <typename T>
void attend(const void* q, int64_t query_heads, const Cache& k_cache, const Cache& v_cache,
            const Trees& trees, const Scoring& scoring, void* out, float* lse) {
  Batch<T>(static_cast<const T*>(q), query_heads, k_cache, v_cache, trees, scoring,
           static_cast<T*>(out), lse)
      .run();
}

}  // namespace

void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,
                    const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out,
                    float* lse) {
  switch (dtype) {
    case Dtype::f32:
      return attend<float>(q, query_heads, k_cache, v_cache, trees, scoring, out, lse);
    case Dtype::bf16:
      return attend<bf16>(q, query_heads, k_cache, v_cache, trees, scoring, out, lse);
    case Dtype::f16:
      return attend<f16>(q, query_heads, k_cache, v_cache, trees, scoring, out, lse);
    case Dtype::e4m3:
      return;  // refused by ops.py
  }
}

}  // namespace specedge::SPECEDGE_ISA
