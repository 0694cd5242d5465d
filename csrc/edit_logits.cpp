#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "checks.h"
#include "ops.h"
#include "threads.h"

namespace specedge {
namespace {

// Logits of a text lie anywhere in a row: they are asked for so many ahead, and each takes as long
// as so many numbers that lie in a row.
constexpr int64_t kTokensAhead = 32, kNumbersOfALogit = 8;

// Offsets [B+1] must cut B consecutive lists of rising tokens from the first of `size` entries.
void check_lists(const char* name, const int32_t* offsets, const int64_t* tokens, int64_t size,
                 int64_t batch, int64_t vocabulary) {
  require(offsets[batch] <= size, "expected at most ", size, " ", name, ", got ", offsets[batch]);
  check_offsets(offsets, batch, offsets[batch]);
  for (int64_t b = 0; b < batch; ++b) {
    int64_t i = offsets[b], least = 0;
    while (i < offsets[b + 1] && tokens[i] >= least && tokens[i] < vocabulary) {
      least = tokens[i++] + 1;
    }
    if (i == offsets[b + 1]) continue;
    require(false, "request ", b, ": expected ", name, " in rising order in 0 .. ", vocabulary - 1,
            ", got ", tokens[i], " at index ", i);
  }
}

void check_nodes(const Drafts& drafts, int64_t rows, int64_t b, int64_t vocabulary) {
  const int64_t first = drafts.offsets[b], n_nodes = drafts.offsets[b + 1] - first;
  require(n_nodes <= 64 * drafts.words, "request ", b, ": expected at most ", 64 * drafts.words,
          " nodes for masks of ", drafts.words, " words, got ", n_nodes);
  for (int64_t node = 1; node < n_nodes && first + node < rows; ++node) {
    const int64_t token = drafts.tokens[first + node];
    require(token >= 0 && token < vocabulary, "request ", b, ": expected tokens in 0 .. ",
            vocabulary - 1, ", got ", token, " at node ", node);
  }
}

void check_values(const Edits& edits, int64_t batch) {
  for (int64_t b = 0; b < batch; ++b) {
    require(edits.repetition[b] > 0 && std::isfinite(edits.repetition[b]), "request ", b,
            ": expected a repetition penalty of more than 0, and finite, got ",
            edits.repetition[b]);
    require(std::isfinite(edits.frequency[b]) && std::isfinite(edits.presence[b]), "request ", b,
            ": expected penalties that are finite, got ", edits.frequency[b], " and ",
            edits.presence[b]);
  }
  const int64_t n_text = edits.text_offsets[batch], n_bias = edits.bias_offsets[batch];
  int64_t i = 0;
  while (i < n_text && edits.text_counts[i] >= 0) ++i;
  if (i < n_text)
    require(false, "expected counts of 0 or more, got ", edits.text_counts[i], " at index ", i);
  i = 0;
  while (i < n_bias && !std::isnan(edits.bias_values[i])) ++i;
  if (i < n_bias)
    require(false, "expected biases that are numbers, got ", edits.bias_values[i], " at index ", i);
}

void check(const Edits& edits, const Drafts& drafts, int64_t rows, int64_t vocabulary) {
  const int64_t batch = drafts.batch;
  check_offsets(drafts.offsets, batch, rows);
  for (int64_t b = 0; b < batch; ++b) check_nodes(drafts, rows, b, vocabulary);
  check_lists("text tokens", edits.text_offsets, edits.text_tokens, edits.n_text, batch,
              vocabulary);
  check_lists("bias tokens", edits.bias_offsets, edits.bias_tokens, edits.n_bias, batch,
              vocabulary);
  check_values(edits, batch);
}

// Each request's nodes [N] by rising token, so that no row sorts those above it.
std::vector<int64_t> nodes_by_token(const Drafts& drafts, int64_t rows) {
  std::vector<int64_t> nodes(rows);
  for (int64_t b = 0; b < drafts.batch; ++b) {
    const int64_t* tokens = drafts.tokens + drafts.offsets[b];
    const auto begin = nodes.begin() + drafts.offsets[b],
               end = nodes.begin() + drafts.offsets[b + 1];
    std::iota(begin, end, 0);
    std::sort(begin, end, [&](int64_t i, int64_t j) { return tokens[i] < tokens[j]; });
  }
  return nodes;
}

// The tokens of a node and its ancestors but node 0, one after the other as they rise.
class Drafted {
 public:
  Drafted(const Drafts& drafts, const std::vector<int64_t>& by_token, int64_t b, int64_t row)
      : tokens_(drafts.tokens + drafts.offsets[b]),
        mask_(drafts.ancestors + row * drafts.words),
        node_(row - drafts.offsets[b]),
        next_(by_token.data() + drafts.offsets[b]),
        end_(by_token.data() + drafts.offsets[b + 1]) {
    advance();
  }

  // More than any token where none is left.
  int64_t token() const { return token_; }

  void advance() {
    while (next_ != end_) {
      const int64_t node = *next_++;
      if (node == 0 || node > node_ || !(mask_[node / 64] >> (node % 64) & 1)) continue;
      token_ = tokens_[node];
      return;
    }
    token_ = kNone;
  }

  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

 private:
  const int64_t *tokens_, *mask_;
  int64_t node_;
  const int64_t *next_, *end_;
  int64_t token_;
};

// logits [V] of a row of request b
void edit_row(float* logits, const Edits& edits, int64_t b, Drafted drafted) {
  for (int64_t i = edits.bias_offsets[b]; i < edits.bias_offsets[b + 1]; ++i) {
    logits[edits.bias_tokens[i]] += edits.bias_values[i];
  }
  const float repetition = edits.repetition[b], frequency = edits.frequency[b];
  const float presence[] = {0, edits.presence[b]};
  // A token that is `count` times in the output, and as often again as it was drafted. Without a
  // branch on what lies far away: one that is foreseen wrongly would wait for it.
  const auto penalise = [&](int64_t token, int64_t count) {
    for (; drafted.token() == token; drafted.advance()) ++count;
    const float x = logits[token], scaled[] = {x * repetition, x / repetition};
    logits[token] = scaled[x > 0] - frequency * float(count) - presence[count > 0];
  };
  // Both lists rise: one walk over the two.
  const int64_t end = edits.text_offsets[b + 1];
  for (int64_t i = edits.text_offsets[b]; i < end; ++i) {
    const int64_t token = edits.text_tokens[i];
    if (i + kTokensAhead < end) __builtin_prefetch(logits + edits.text_tokens[i + kTokensAhead], 1);
    while (drafted.token() < token) penalise(drafted.token(), 0);
    penalise(token, edits.text_counts[i]);
  }
  while (drafted.token() != Drafted::kNone) penalise(drafted.token(), 0);
}

}  // namespace

// logits [N, V] in place
void edit_logits(float* logits, int64_t rows, int64_t vocabulary, const Drafts& drafts,
                 const Edits& edits) {
  check(edits, drafts, rows, vocabulary);
  const int32_t* end = drafts.offsets + drafts.batch + 1;
  const std::vector<int64_t> by_token = nodes_by_token(drafts, rows);
  const int64_t width = (edits.n_text + edits.n_bias) / std::max<int64_t>(drafts.batch, 1);
  for_rows(rows, width * kNumbersOfALogit, [&](int64_t row) {
    const int64_t b = std::upper_bound(drafts.offsets, end, int32_t(row)) - drafts.offsets - 1;
    edit_row(logits + row * vocabulary, edits, b, Drafted(drafts, by_token, b, row));
  });
}

}  // namespace specedge
