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
#include <new>

#include "isa.h"
#include "online_softmax.h"
#include "paged.h"
#include "threads.h"
#include "tile.h"
#include "tree_path.h"

namespace specedge::SPECEDGE_ISA {
namespace {

constexpr int64_t kQueries = 96;  // query vectors of one task, so that staging a block pays

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
  Attention(const Cache& k_cache, const Cache& v_cache, const Trees& trees, const Scoring& scoring,
            const Task& task, int64_t group)
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
    queries = arena_.take<float>(vectors_ * dim_);
    scores_ = arena_.take<float>(vectors_ * slots_);
    staged_keys_ = arena_.take<float>(dim_ * kBlock);
    staged_values_ = arena_.take<float>(slots_ * width_);
    zeros_ = arena_.take<float>(dim_);
    value_rows_ = arena_.take<const float*>(slots_);
    path_ = arena_.take<int32_t>(slots_);
    path_scores_ = arena_.take<float>(group_ * kBlock);
    state_ = {arena_.take<float>(vectors_ * width_), arena_.take<float>(vectors_),
              arena_.take<float>(vectors_), width_};
    std::memset(zeros_, 0, dim_ * sizeof(float));
    std::memset(path_scores_, 0, group_ * kBlock * sizeof(float));
    std::memset(state_.sums, 0, vectors_ * width_ * sizeof(float));
    // A sink is as a first key, whose value is zero.
    const float* sinks = scoring.sinks ? scoring.sinks + task.head * group : nullptr;
    for (int64_t i = 0; i < vectors_; ++i) {
      state_.top[i] = sinks ? sinks[i % group] : kMinusInfinity;
      state_.total[i] = sinks ? 1 : 0;
    }
  }

  float* queries;  // [vectors, D], filled by the caller

  State run() {
    attend_paths(round_down(span_.start, kBlock), span_.common_begin, span_.common_begin);
    for (int64_t first = span_.common_begin; first < span_.common_end; first += kBlock) {
      look_ahead(first + kBlock);
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
                           slots_ * (width_ + 1) + group_ * kBlock;
    return floats * int64_t(sizeof(float)) + slots_ * int64_t(sizeof(float*)) + 16 * 64;
  }

  // What is asked for while the block before is worked on.
  void look_ahead(int64_t first) {
    ahead_.value_bytes = -1;
    if (first == span_.common_end) return;
    keys_.find_block(first, ahead_.keys);
    ahead_.value_bytes = values_.find_block(first, ahead_.values);
  }

  // Of the slots first .. first+63 those in lo .. hi-1 -> raw scores of all vectors.
  void score(int64_t first, int64_t lo, int64_t hi, float* scores) {
    const int64_t n = smaller(kBlock, round_up(hi - first, kLanes));
    stage_keys(keys_, first, n, lo, hi, zeros_, staged_keys_, ahead_);
    for (int64_t i = 0; i < vectors_; ++i) std::memset(scores + i * slots_, 0, n * sizeof(float));
    multiply_add(queries, dim_, vectors_, Strided<float>{staged_keys_, kBlock}, dim_, n, scores,
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
  float *scores_, *staged_keys_, *staged_values_, *zeros_, *path_scores_;
  const float** value_rows_;
  int32_t* path_;
  State state_;
  Ahead ahead_;
};

// q [N, Hq, D], out [N, Hq, Dv]; lse [N, Hq] or null
template <typename T>
void attend(const T* q, int64_t query_heads, const Cache& k_cache, const Cache& v_cache,
            const Trees& trees, const Scoring& scoring, const Task& task, T* out, float* lse) {
  const int64_t dim = k_cache.head_dim, v_dim = v_cache.head_dim;
  const int64_t group = query_heads / k_cache.n_heads;
  const float v_scale = scoring.v_scale.of(task.head);
  Attention attention(k_cache, v_cache, trees, scoring, task, group);
  const auto vector = [&](int64_t row, int64_t g) {
    return row * query_heads + task.head * group + g;
  };
  float* query = attention.queries;
  for (int64_t row = task.first_row; row < task.end_row; ++row) {
    for (int64_t i = 0; i < group * dim; ++i) *query++ = load(q + vector(row, 0) * dim + i);
  }
  State state = attention.run();
  for (int64_t row = task.first_row; row < task.end_row; ++row) {
    for (int64_t g = 0; g < group; ++g, state = state.from(1)) {
      // Without keys the sums are zero.
      const float total = *state.total == 0 ? 1.0f : *state.total;
      T* to = out + vector(row, g) * v_dim;
      for (int64_t d = 0; d < v_dim; ++d) store(to + d, state.sums[d] / total * v_scale);
      if (lse) lse[vector(row, g)] = *state.top + log_of(total);
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
                const Trees& trees, const Scoring& scoring, void* out, float* lse) {
  const int64_t heads = k_cache.n_heads, rows_per_task = larger(1, kQueries * heads / query_heads);
  int64_t n_tasks = 0, n_scores = 0;
  for (int64_t b = 0; b < trees.batch; ++b) {
    n_tasks += heads * tasks_of(trees, b, rows_per_task);
    n_scores += (trees.offsets[b + 1] - trees.offsets[b]) *
                (int64_t(trees.prefix_lens[b]) + trees.n_nodes[b]) * query_heads;
  }
  // A single short decode step is done before a second thread would have woken.
  Failure failure;
#pragma omp parallel for schedule(dynamic) if (n_scores * (k_cache.head_dim + v_cache.head_dim) > \
                                                   1 << 21)
  for (int64_t i = 0; i < n_tasks; ++i) {
    failure.keep([&] {
      attend(static_cast<const T*>(q), query_heads, k_cache, v_cache, trees, scoring,
             task_at(trees, i, heads, rows_per_task), static_cast<T*>(out), lse);
    });
  }
  failure.rethrow();
}

}  // namespace

void tree_attention(const void* q, Dtype dtype, int64_t query_heads, const Cache& k_cache,
                    const Cache& v_cache, const Trees& trees, const Scoring& scoring, void* out,
                    float* lse) {
  switch (dtype) {
    case Dtype::f32:
      return attend_all<float>(q, query_heads, k_cache, v_cache, trees, scoring, out, lse);
    case Dtype::bf16:
      return attend_all<bf16>(q, query_heads, k_cache, v_cache, trees, scoring, out, lse);
    case Dtype::f16:
      return attend_all<f16>(q, query_heads, k_cache, v_cache, trees, scoring, out, lse);
    case Dtype::e4m3:
      return;  // refused by ops.py
  }
}

}  // namespace specedge::SPECEDGE_ISA
