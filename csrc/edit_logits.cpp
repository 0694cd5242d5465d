#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "checks.h"
#include "ops.h"
#include "threads.h"

namespace specedge {
namespace {

// Offsets [B+1] must cut B consecutive lists of rising tokens from the first of `size` entries.
void check_lists(const char* name, const int32_t* offsets, const int64_t* tokens, int64_t size,
                 int64_t batch, int64_t vocabulary) {
  require(offsets[batch] <= size, "expected at most ", size, " ", name, ", got ", offsets[batch]);
  check_offsets(offsets, batch, offsets[batch]);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = offsets[b], least = 0; i < offsets[b + 1]; least = tokens[i++] + 1) {
      require(tokens[i] >= least && tokens[i] < vocabulary, "request ", b, ": expected ", name,
              " in rising order in 0 .. ", vocabulary - 1, ", got ", tokens[i], " at index ", i);
    }
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
  for (int64_t i = 0; i < edits.text_offsets[batch]; ++i) {
    require(edits.text_counts[i] >= 0, "expected counts of 0 or more, got ", edits.text_counts[i],
            " at index ", i);
  }
  for (int64_t i = 0; i < edits.bias_offsets[batch]; ++i) {
    require(!std::isnan(edits.bias_values[i]), "expected biases that are numbers, got ",
            edits.bias_values[i], " at index ", i);
  }
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

// The tokens of a node and its ancestors in rising order, without node 0.
std::vector<int64_t> drafted_tokens(const Drafts& drafts, int64_t b, int64_t row) {
  const int64_t first = drafts.offsets[b], node = row - first;
  std::vector<int64_t> drafted;
  for (int64_t word = 0; word <= node / 64; ++word) {
    uint64_t bits = uint64_t(drafts.ancestors[row * drafts.words + word]);
    if (word == node / 64) bits &= ~uint64_t(0) >> (63 - node % 64);
    if (word == 0) bits &= ~uint64_t(1);
    for (; bits; bits &= bits - 1) {
      drafted.push_back(drafts.tokens[first + word * 64 + std::countr_zero(bits)]);
    }
  }
  std::sort(drafted.begin(), drafted.end());
  return drafted;
}

// logits [V] of a row of request b
void edit_row(float* logits, const Edits& edits, int64_t b, const std::vector<int64_t>& drafted) {
  for (int64_t i = edits.bias_offsets[b]; i < edits.bias_offsets[b + 1]; ++i) {
    logits[edits.bias_tokens[i]] += edits.bias_values[i];
  }
  const float repetition = edits.repetition[b], frequency = edits.frequency[b],
              presence = edits.presence[b];
  auto next = drafted.begin();
  // A token that is `count` times in the output, and as often again as it was drafted.
  const auto penalise = [&](int64_t token, int64_t count) {
    for (; next != drafted.end() && *next == token; ++next) ++count;
    const float x = logits[token];
    const float penalised = (x > 0 ? x / repetition : x * repetition) - frequency * float(count);
    logits[token] = count > 0 ? penalised - presence : penalised;
  };
  // Both lists rise: one walk over the two.
  for (int64_t i = edits.text_offsets[b]; i < edits.text_offsets[b + 1]; ++i) {
    while (next != drafted.end() && *next < edits.text_tokens[i]) penalise(*next, 0);
    penalise(edits.text_tokens[i], edits.text_counts[i]);
  }
  while (next != drafted.end()) penalise(*next, 0);
}

}  // namespace

// logits [N, V] in place
void edit_logits(float* logits, int64_t rows, int64_t vocabulary, const Drafts& drafts,
                 const Edits& edits) {
  check(edits, drafts, rows, vocabulary);
  const int32_t* end = drafts.offsets + drafts.batch + 1;
  for_rows(rows, edits.n_text + edits.n_bias, [&](int64_t row) {
    const int64_t b = std::upper_bound(drafts.offsets, end, int32_t(row)) - drafts.offsets - 1;
    edit_row(logits + row * vocabulary, edits, b, drafted_tokens(drafts, b, row));
  });
}

}  // namespace specedge
