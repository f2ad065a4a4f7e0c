// The requests that are timed: eight positions of a large vocabulary, with nearly normal logits of
// deviation 2 and a few tokens far above, as a model has.
#pragma once

#include "sample/cases.h"

namespace kilotok {

struct Typical {
  const char* name;
  Case request;
  uint32_t top_count;
};

// `change` modifies the request. It has one known token and `drafts` drafts, all of which are
// wrong.
template <class Change>
inline Case typical(Change change, uint32_t drafts, bool masked = false) {
  Case one{};
  one.slot.sampling = {1, 1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0};
  change(one.slot.sampling);
  one.slot.prompt_count = 40;
  for (uint32_t i = 0; i < 40; i++) one.history.push_back(i * 3);
  Step step{};
  step.start = 39;
  step.sample = 1;
  step.top_count = NONE;
  step.known = {117};
  for (uint32_t i = 0; i < drafts; i++) step.drafts.push_back(i);
  for (uint32_t i = 0; i <= drafts; i++) {
    RowFormula row{};
    row.formula = {6, i, 0.0135f, -6.885f, 0, 0};
    for (uint32_t k = 0; k < 12; k++)
      row.instead.insert(row.instead.end(), {1000 + k * 1777 + i, bits_of(17.0f - k * 0.7f)});
    step.rows.push_back(row);
    if (masked) step.masks.push_back({{0, i, 0, 0}, {}});
  }
  one.steps.push_back(step);
  return one;
}

// The same with drafts that are drawn by the target's own logits.
inline Case judged(Case one) {
  Step& step = one.steps[0];
  one.slot.draft_temperature = 1.0f;
  for (size_t i = 0; i < step.drafts.size(); i++) step.drawn.push_back({step.rows[i], {}});
  return one;
}

inline std::vector<Typical> typical_requests() {
  const auto greedy = [](Sampling& s) { s.temperature = 0.0f; };
  const auto plain = [](Sampling&) {};
  const auto warm = [](Sampling& s) { s.temperature = 0.7f; };
  std::vector<Typical> all;
  all.push_back({"greedy", typical(greedy, 7), NONE});
  all.push_back({"greedy, 1 position", typical(greedy, 0), NONE});
  all.push_back({"greedy, masks", typical(greedy, 7, true), NONE});
  all.push_back({"greedy, logprobs", typical(greedy, 7), 0});
  all.push_back({"greedy, logprobs, 20 tops", typical(greedy, 7), 20});
  all.push_back({"temperature 1", typical(plain, 7), NONE});
  all.push_back({"temperature 0.7", typical(warm, 7), NONE});
  all.push_back({"temperature 0.7, masks", typical(warm, 7, true), NONE});
  const auto penalties = [](Sampling& s) { s.presence_penalty = s.frequency_penalty = 0.5f; };
  all.push_back({"penalties", typical(penalties, 7), NONE});
  const auto top_k = [](Sampling& s) { s.top_k = 50; };
  all.push_back({"top_k 50", typical(top_k, 7), NONE});
  const auto both = [](Sampling& s) {
    s.temperature = 0.7f;
    s.top_k = 20;
    s.top_p = 0.8f;
  };
  all.push_back({"temperature 0.7, top_k 20, top_p 0.8", typical(both, 7), NONE});
  const auto top_p = [](Sampling& s) { s.top_p = 0.95f; };
  all.push_back({"top_p 0.95", typical(top_p, 7), NONE});
  const auto hot = [](Sampling& s) {
    s.temperature = 2.0f;
    s.top_p = 0.95f;
  };
  all.push_back({"temperature 2, top_p 0.95", typical(hot, 7), NONE});
  const auto min_p = [](Sampling& s) { s.min_p = 0.05f; };
  all.push_back({"min_p 0.05", typical(min_p, 7), NONE});
  all.push_back({"temperature 1, judged", judged(typical(plain, 7)), NONE});
  all.push_back({"top_p 0.95, judged", judged(typical(top_p, 7)), NONE});
  all.push_back({"temperature 1, judged, logprobs", judged(typical(plain, 7)), 0});
  return all;
}

}  // namespace kilotok
