#include "native.h"

namespace specedge::native {
namespace {

// Lists of rising tokens, one for each request, and where they begin.
struct Lists {
  std::vector<int32_t> offsets{0};
  std::vector<int64_t> tokens;
};

Lists make_lists(Random& random, int64_t batch, int64_t vocabulary) {
  Lists lists;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t one_in = random.pick({1, 2, 10, 1000});
    for (int64_t token = 0; token < vocabulary; ++token) {
      if (int64_t(random.fill()) % one_in == 0) lists.tokens.push_back(token);
    }
    lists.offsets.push_back(int32_t(lists.tokens.size()));
  }
  lists.tokens.shrink_to_fit();
  return lists;
}

// A logit of row `row` of request b after all of it, in double.
double edited(const Forest& forest, const std::vector<int64_t>& tokens, const Edits& edits,
              int64_t b, int64_t node, int64_t token, double x) {
  for (int64_t i = edits.bias_offsets[b]; i < edits.bias_offsets[b + 1]; ++i) {
    if (edits.bias_tokens[i] == token) x += edits.bias_values[i];
  }
  bool in_text = false;
  int64_t count = 0;
  for (int64_t i = edits.text_offsets[b]; i < edits.text_offsets[b + 1]; ++i) {
    if (edits.text_tokens[i] != token) continue;
    in_text = true;
    count += edits.text_counts[i];
  }
  for (int64_t above : forest.path(b, node)) {
    count += above > 0 && tokens[forest.offsets[b] + above] == token;
  }
  if (!in_text && count == 0) return x;
  x = x > 0 ? x / edits.repetition[b] : x * edits.repetition[b];
  return x - edits.frequency[b] * double(count) - (count > 0 ? edits.presence[b] : 0);
}

}  // namespace

void check_edit_logits(Random& random) {
  Forest forest = make_forest(random, 100);
  const int64_t batch = forest.batch(), rows = forest.rows(), vocabulary = random.between(1, 60);
  std::vector<int64_t> ancestors(rows * forest.words), tokens(rows);
  std::vector<int32_t> depth(rows);
  build_tree(forest.parents.data(), forest.offsets.data(), batch, rows, forest.words,
             ancestors.data(), depth.data());
  std::vector<float> logits(rows * vocabulary), numbers[3];
  for (float& logit : logits) logit = random.number();
  for (int64_t& token : tokens) token = int64_t(random.fill() % uint64_t(vocabulary));
  Lists text = make_lists(random, batch, vocabulary), bias = make_lists(random, batch, vocabulary);
  std::vector<int32_t> counts(text.tokens.size());
  std::vector<float> values(bias.tokens.size());
  for (int32_t& count : counts) count = int32_t(random.fill() % 4);
  for (float& value : values) value = random.number();
  for (int64_t b = 0; b < batch; ++b) {
    numbers[0].push_back(random.pick({1.0f, 0.5f, 1.3f, 2.0f}));
    numbers[1].push_back(random.pick({0.0f, 0.5f, -1.0f}));
    numbers[2].push_back(random.pick({0.0f, 0.25f, -2.0f}));
  }
  const bool is_spoilt = random.chance(40);
  if (is_spoilt) {
    switch (random.between(0, 6)) {
      case 0:
        random.spoil(text.offsets, int64_t(text.tokens.size()));
        break;
      case 1:
        random.spoil(text.tokens, vocabulary);
        break;
      case 2:
        random.spoil(counts);
        break;
      case 3:
        random.spoil(bias.offsets, int64_t(bias.tokens.size()));
        break;
      case 4:
        random.spoil(bias.tokens, vocabulary);
        break;
      case 5:
        random.spoil(tokens, vocabulary);
        break;
      case 6:
        random.spoil(forest.offsets, rows);
        break;
    }
  }
  const Drafts drafts{batch, forest.words, tokens.data(), ancestors.data(), forest.offsets.data()};
  const Edits edits{int64_t(text.tokens.size()),
                    int64_t(bias.tokens.size()),
                    text.offsets.data(),
                    text.tokens.data(),
                    counts.data(),
                    bias.offsets.data(),
                    bias.tokens.data(),
                    values.data(),
                    numbers[0].data(),
                    numbers[1].data(),
                    numbers[2].data()};
  const std::vector<float> before = logits;
  if (!accepted([&] { edit_logits(logits.data(), rows, vocabulary, drafts, edits); })) {
    expect(is_spoilt, "a good call was refused");
    return expect(logits == before, "written to, then refused");
  }
  if (is_spoilt) return;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t node = 0; node < forest.size(b); ++node) {
      for (int64_t token = 0; token < vocabulary; ++token) {
        const int64_t i = (forest.offsets[b] + node) * vocabulary + token;
        const double want = edited(forest, tokens, edits, b, node, token, before[i]);
        expect_near(logits[i], want, 1e-4 + 1e-5 * std::abs(want), "logit", i);
      }
    }
  }
}

void check_token_logprobs(Random& random) {
  const int64_t vocabulary = random.pick({1, 2, 15, 16, 17, 300});
  const int64_t n = random.between(0, vocabulary);
  std::vector<float> logits(vocabulary), tops(n);
  for (float& logit : logits) logit = random.chance(5) ? float(-kInfinity) : random.number() * 9;
  if (random.chance(10)) logits[random.between(0, vocabulary - 1)] = random.pick({NAN, HUGE_VALF});
  const int64_t token =
      random.chance(10) ? random.hostile<int64_t>(vocabulary) : random.between(-1, vocabulary - 1);
  float logprob = 7;
  std::vector<int64_t> ids(n, -7);
  const bool is_good = accepted([&] {
    token_logprobs(logits.data(), 1, vocabulary, &token, n, &logprob, ids.data(), tops.data());
  });
  expect(is_good == (token >= -1 && token < vocabulary), "token ", token);
  if (!is_good) return;
  double top = -kInfinity, total = 0;
  bool is_broken = false;
  for (float logit : logits) {
    is_broken = is_broken || std::isnan(logit);
    top = std::max(top, double(logit));
  }
  is_broken = is_broken || !std::isfinite(top);
  for (float logit : logits) total += std::exp(logit - top);
  const auto due = [&](int64_t id) {
    return is_broken || id < 0 ? double(NAN) : logits[id] - top - std::log(total);
  };
  expect_near(logprob, due(token), 1e-5, "log-probability of token", token);
  std::vector<float> sorted = logits;
  if (!is_broken) std::sort(sorted.rbegin(), sorted.rend());
  for (int64_t i = 0; i < n; ++i) {
    expect(is_broken ? ids[i] == -1 : ids[i] >= 0 && ids[i] < vocabulary, "best token ", ids[i]);
    if (!is_broken) expect(logits[ids[i]] == sorted[i], "best token ", ids[i], " at place ", i);
    expect_near(tops[i], due(ids[i]), 1e-5, "log-probability of choice", i);
  }
}

}  // namespace specedge::native
