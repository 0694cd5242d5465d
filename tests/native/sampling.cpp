#include "native.h"

namespace specedge::native {
namespace {

struct Draw {
  float temperature, top_p, min_p;
  int32_t top_k;
  int64_t seed, position;
};

Draw make_draw(Random& random) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = -std::log(0.0f);
  return {random.pick({0.0f, -1.0f, 0.3f, 1.0f, 1.0f, 5.0f, 1e-40f, nan, infinity}),
          random.pick({1.0f, 1.0f, 0.9f, 0.5f, 0.0f, nan, -1.0f, 2.0f}),
          random.pick({0.0f, 0.0f, 0.05f, 1.0f, 2.0f, nan}),
          random.pick({0, 0, 1, 5, 400, -1, INT32_MAX, INT32_MIN}),
          random.hostile<int64_t>(),
          random.hostile<int64_t>()};
}

// One row of logits: ordinary, all below zero, partly or wholly forbidden, all equal, or broken.
std::vector<float> make_logits(Random& random, int64_t vocabulary) {
  const float infinity = -std::log(0.0f), shift = random.pick({0.0f, 0.0f, -30.0f, 1000.0f});
  const int64_t forbidden = random.pick({0, 0, 30, 100}), spread = random.pick({1, 1, 0});
  std::vector<float> logits(vocabulary);
  for (float& logit : logits) {
    const bool is_forbidden = int64_t(random.fill() % 100) < forbidden;
    logit = is_forbidden ? -infinity : random.number() * float(spread) * 3 + shift;
  }
  if (random.chance(10)) logits[random.between(0, vocabulary - 1)] = random.pick({NAN, infinity});
  return logits;
}

// A token's value, and whether the limits allow it, within rounding, at least and at most.
struct Choice {
  int64_t token;
  double value;
  bool surely, perhaps;
};

std::vector<Choice> choices(const std::vector<float>& logits, const Draw& draw) {
  std::vector<Choice> order;
  for (size_t i = 0; i < logits.size(); ++i) {
    order.push_back({int64_t(i), double(logits[i] / draw.temperature), true, true});
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Choice& a, const Choice& b) { return a.value > b.value; });
  const double top = order[0].value;
  double total = 0, before = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (draw.top_k > 0 && int64_t(i) >= draw.top_k) order[i].surely = order[i].perhaps = false;
    if (order[i].perhaps) total += std::exp(order[i].value - top);
  }
  for (Choice& choice : order) {
    const auto within = [&](double slack) {
      return !(draw.top_p < 1 && before >= (draw.top_p + slack) * total) &&
             !(draw.min_p > 0 && choice.value < top + std::log(draw.min_p) - 10 * slack);
    };
    choice.surely = choice.surely && within(-1e-6);
    choice.perhaps = choice.perhaps && within(1e-6);
    before += std::exp(choice.value - top);
  }
  order[0].surely = order[0].perhaps = true;
  return order;
}

void check_draw(const std::vector<float>& logits, const Draw& draw, int64_t got) {
  const auto top = std::max_element(logits.begin(), logits.end());
  const bool is_broken =
      std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); });
  if (is_broken || !std::isfinite(*top))
    return expect(got == -1, "expected -1 for a broken row, got ", got);
  expect(got >= 0 && got < int64_t(logits.size()), "drew token ", got);
  if (std::isinf(draw.temperature)) return;
  if (!(draw.temperature > 0) || !std::isfinite(*top / draw.temperature)) {
    return expect(got == top - logits.begin(), "expected the greatest logit, got token ", got);
  }
  const uint64_t key = noise_key(draw.seed, draw.position);
  double best = -kInfinity, reached = -kInfinity;
  for (const Choice& choice : choices(logits, draw)) {
    const double score = choice.value - double(*top / draw.temperature) + gumbel(key, choice.token);
    if (choice.surely) best = std::max(best, score);
    if (choice.token == got) {
      expect(choice.perhaps, "drew token ", got, ", which the limits forbid");
      reached = score;
    }
  }
  expect(reached >= best - 1e-4, "drew token ", got, " of score ", reached, " where one has ",
         best);
}

// For each row none, or one of up to three masks; sometimes one that is not there.
Masks make_masks(Random& random, int64_t rows, int64_t vocabulary, std::vector<int32_t>& words,
                 std::vector<int32_t>& mask_row) {
  if (random.chance(40)) return {};
  const int64_t count = random.between(0, 3), one_in = random.pick({1, 2, 30});
  words.assign(count * ((vocabulary + 31) / 32), 0);
  for (int32_t& word : words) {
    for (int bit = 0; bit < 32; ++bit) word |= int32_t(random.fill() % one_in == 0) << bit;
  }
  words.shrink_to_fit();
  for (int64_t row = 0; row < rows; ++row) {
    mask_row.push_back(int32_t(random.between(-1, count - 1)));
  }
  if (random.chance(10)) random.spoil(mask_row, count);
  return {words.data(), count, mask_row.data()};
}

}  // namespace

void check_target_tokens(Random& random) {
  const int64_t rows = random.between(0, 3), vocabulary = random.pick({1, 2, 15, 16, 17, 100, 900});
  std::vector<float> logits, temperature, top_p, min_p;
  std::vector<int32_t> top_k, words, mask_row;
  std::vector<int64_t> seed, position, out(rows, 7);
  std::vector<Draw> draws;
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<float> values = make_logits(random, vocabulary);
    logits.insert(logits.end(), values.begin(), values.end());
    const Draw draw = draws.emplace_back(make_draw(random));
    temperature.push_back(draw.temperature);
    top_k.push_back(draw.top_k);
    top_p.push_back(draw.top_p);
    min_p.push_back(draw.min_p);
    seed.push_back(draw.seed);
    position.push_back(draw.position);
  }
  logits.shrink_to_fit();
  const Masks masks = make_masks(random, rows, vocabulary, words, mask_row);
  const bool is_good = accepted([&] {
    target_tokens(logits.data(), rows, vocabulary, masks,
                  {temperature.data(), top_k.data(), top_p.data(), min_p.data(), seed.data(),
                   position.data()},
                  out.data());
  });
  const bool is_due = std::all_of(mask_row.begin(), mask_row.end(), [&](int32_t m) {
    return !masks.row || (m >= -1 && m < masks.count);
  });
  expect(is_good == is_due, "masks were ", is_good ? "taken" : "refused");
  for (int64_t row = 0; is_good && row < rows; ++row) {
    const auto first = logits.begin() + row * vocabulary;
    std::vector<float> values{first, first + vocabulary};
    if (masks.row && mask_row[row] >= 0) {
      const int32_t* mask = masks.words + mask_row[row] * ((vocabulary + 31) / 32);
      for (int64_t t = 0; t < vocabulary; ++t) {
        if (!(uint32_t(mask[t / 32]) >> (t % 32) & 1)) values[t] = float(-kInfinity);
      }
    }
    check_draw(values, draws[row], out[row]);
  }
}

void check_draft_topk(Random& random) {
  const int64_t vocabulary = random.pick({1, 2, 15, 16, 17, 300}),
                k = random.between(1, vocabulary);
  const std::vector<float> logits = make_logits(random, vocabulary);
  const float temperature = random.pick({0.0f, -1.0f, 0.7f, 1.0f, 3.0f});
  const int64_t seed = random.hostile<int64_t>(), position = random.hostile<int64_t>();
  std::vector<int64_t> token_ids, ids(k, -7);
  for (int64_t i = 0; i < vocabulary; ++i) token_ids.push_back(3 * i + 1);
  const bool is_cut = random.chance(50);
  std::vector<float> logprobs(k);
  draft_topk(logits.data(), 1, vocabulary, k, &temperature, &seed, &position,
             is_cut ? token_ids.data() : nullptr, ids.data(), logprobs.data());
  const auto column = [&](int64_t id) { return is_cut ? (id - 1) / 3 : id; };
  std::vector<double> scores, sorted;
  double total = 0;
  for (int64_t i = 0; i < vocabulary; ++i) {
    const double noise = gumbel(noise_key(seed, position), is_cut ? token_ids[i] : i);
    scores.push_back(logits[i] + (temperature > 0 ? temperature * noise : 0));
  }
  sorted = scores;
  std::sort(sorted.rbegin(), sorted.rend());
  for (double score : scores) total += std::exp(score - sorted[0]);
  const bool is_finite = std::isfinite(total);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t c = column(ids[i]);
    expect(c >= 0 && c < vocabulary, "drafted token ", ids[i]);
    expect(std::count(ids.begin(), ids.end(), ids[i]) == 1, "drafted token ", ids[i], " twice");
    if (!is_finite) continue;
    const double error = 1e-3 + 1e-6 * std::abs(sorted[0]);
    expect_near(scores[c], sorted[i], error, "score of choice", i);
    expect_near(logprobs[i], sorted[i] - sorted[0] - std::log(total), error, "log-probability", i);
  }
}

}  // namespace specedge::native
