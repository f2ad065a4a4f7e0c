// The cases of the sampling harness: read from a file, batched, compared with the answers. Host
// code only.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kilotok/abi.h"
#include "kilotok/model.h"

namespace kilotok {

constexpr uint32_t NONE = ~0u;
constexpr uint32_t MAGIC = 0x6b746b31;
constexpr size_t STEPS_MAX = 3;

struct LogitFormula {
  uint32_t kind, seed;
  float scale, offset;
  uint32_t instead_first, instead_count;
};

struct MaskFormula {
  uint32_t kind, seed, besides_first, besides_count;
};

struct RowFormula {
  LogitFormula formula;
  std::vector<uint32_t> instead;
};

struct MaskRow {
  MaskFormula formula;
  std::vector<uint32_t> besides;
};

// A draft that is drawn: the drafter's logits, and the distribution (`law`) as pairs of token and
// probability.
struct DraftRow {
  RowFormula row;
  std::vector<uint32_t> law;
};

struct Score {
  uint32_t logprob, rank;
  std::vector<uint32_t> tops;
};

struct Step {
  uint32_t start, sample, top_count;
  std::vector<uint32_t> known, drafts, scored;
  std::vector<RowFormula> rows;
  std::vector<MaskRow> masks;
  std::vector<DraftRow> drawn;
  // The answer.
  std::vector<uint32_t> tokens;
  uint32_t fault, fault_position;
  std::vector<Score> reports, scores;
};

struct Case {
  Slot slot;
  std::vector<Bias> biases;
  std::vector<uint32_t> bad_ends, bad_tokens, end_tokens, history;
  std::vector<Step> steps;
};

struct Group {
  uint32_t vocab;
  std::vector<Case> cases;
};

// The arguments with which a draft is drawn.
struct DraftOrder {
  uint32_t slot, index, first;
};

// The rows of one step of all cases that have it. A case's slot is its index in the group.
struct StepBatch {
  std::vector<BatchRow> batch_rows;
  std::vector<BatchToken> tokens;
  std::vector<SampleRow> rows;
  std::vector<Wanted> wanted;
  std::vector<LogitFormula> logits;
  std::vector<MaskFormula> masks;
  std::vector<uint32_t> words;
  // For drafts that are drawn.
  std::vector<DraftOrder> draws;
  std::vector<LogitFormula> draft_logits;
};

struct Answers {
  // The drafts that are drawn, and their distributions.
  std::vector<uint32_t> drafts;
  std::vector<Candidate> laws;
  std::vector<RowChoice> rows;
  std::vector<uint32_t> chosen;
  std::vector<Report> reports;
  std::vector<Top> tops;
};

class Reader {
 public:
  explicit Reader(std::vector<uint32_t> words) : words_(std::move(words)) {}

  uint32_t word() {
    if (at_ == words_.size()) {
      std::fprintf(stderr, "the file ends early\n");
      std::exit(2);
    }
    return words_[at_++];
  }

  float number() {
    const uint32_t bits = word();
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  std::vector<uint32_t> some(size_t count) {
    std::vector<uint32_t> values(count);
    for (uint32_t& value : values) value = word();
    return values;
  }

  std::vector<uint32_t> list() { return some(word()); }

 private:
  std::vector<uint32_t> words_;
  size_t at_ = 0;
};

inline std::vector<Score> read_scores(Reader& in) {
  std::vector<Score> scores(in.word());
  for (Score& score : scores) {
    score.logprob = in.word();
    score.rank = in.word();
    score.tops = in.some(in.word() * 2);
  }
  return scores;
}

inline void read_row(Reader& in, RowFormula& row) {
  row.formula.kind = in.word();
  row.formula.seed = in.word();
  row.formula.scale = in.number();
  row.formula.offset = in.number();
  row.instead = in.some(in.word() * 2);
}

inline Step read_step(Reader& in) {
  Step step{};
  step.start = in.word();
  step.known = in.list();
  step.drafts = in.list();
  step.scored = in.list();
  step.sample = in.word();
  step.top_count = in.word();
  step.masks.resize(in.word());
  step.drawn.resize(in.word() ? step.drafts.size() : 0);
  step.rows.resize(in.word());
  for (RowFormula& row : step.rows) read_row(in, row);
  for (MaskRow& mask : step.masks) {
    mask.formula.kind = in.word();
    mask.formula.seed = in.word();
    mask.besides = in.list();
  }
  for (DraftRow& draft : step.drawn) {
    read_row(in, draft.row);
    draft.law = in.some(in.word() * 2);
  }
  step.tokens = in.list();
  step.fault = in.word();
  step.fault_position = in.word();
  step.reports = read_scores(in);
  step.scores = read_scores(in);
  return step;
}

inline Case read_case(Reader& in) {
  Case one{};
  Sampling& s = one.slot.sampling;
  s.seed = in.word();
  s.seed |= static_cast<uint64_t>(in.word()) << 32;
  for (float* value : {&s.temperature, &s.top_p, &s.min_p, &s.repetition_penalty,
                       &s.presence_penalty, &s.frequency_penalty})
    *value = in.number();
  s.top_k = in.word();
  s.min_tokens = in.word();
  one.slot.prompt_count = in.word();
  one.slot.draft_temperature = in.number();
  one.biases.resize(in.word());
  for (Bias& bias : one.biases) {
    bias.token = in.word();
    bias.bias = in.number();
  }
  one.bad_ends = in.list();
  one.bad_tokens = in.list();
  one.end_tokens = in.list();
  one.history = in.list();
  one.slot.bad_word_count = one.bad_ends.size();
  one.slot.end_token_count = one.end_tokens.size();
  one.slot.biased = !one.biases.empty();
  const uint32_t steps = in.word();
  for (uint32_t i = 0; i < steps; i++) one.steps.push_back(read_step(in));
  return one;
}

inline std::vector<Group> read_groups(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) {
    std::perror(path);
    std::exit(2);
  }
  std::fseek(file, 0, SEEK_END);
  std::vector<uint32_t> words(std::ftell(file) / 4);
  std::rewind(file);
  const size_t read = std::fread(words.data(), 4, words.size(), file);
  std::fclose(file);
  if (read != words.size() || read == 0 || words[0] != MAGIC) {
    std::fprintf(stderr, "%s: no file of cases\n", path);
    std::exit(2);
  }
  Reader in(std::move(words));
  in.word();
  std::vector<Group> groups(in.word());
  for (Group& group : groups) {
    group.vocab = in.word();
    const uint32_t cases = in.word();
    for (uint32_t i = 0; i < cases; i++) group.cases.push_back(read_case(in));
  }
  return groups;
}

inline LogitFormula add_row(StepBatch& batch, const RowFormula& row) {
  LogitFormula formula = row.formula;
  formula.instead_first = batch.words.size();
  formula.instead_count = row.instead.size() / 2;
  batch.words.insert(batch.words.end(), row.instead.begin(), row.instead.end());
  return formula;
}

inline void add_formulas(StepBatch& batch, const Step& step) {
  for (const RowFormula& row : step.rows) batch.logits.push_back(add_row(batch, row));
  for (const DraftRow& draft : step.drawn)
    batch.draft_logits.push_back(add_row(batch, draft.row));
  for (const MaskRow& mask : step.masks) {
    MaskFormula formula = mask.formula;
    formula.besides_first = batch.words.size();
    formula.besides_count = mask.besides.size();
    batch.words.insert(batch.words.end(), mask.besides.begin(), mask.besides.end());
    batch.masks.push_back(formula);
  }
}

inline void add_row(StepBatch& batch, const Case& one, uint32_t slot, size_t index) {
  const Step& step = one.steps[index];
  const uint32_t known = step.known.size(), count = known + step.drafts.size();
  SampleRow row{};
  row.slot = slot;
  row.known_count = known;
  const uint32_t choice_count = step.masks.empty() ? step.drafts.size() + 1 : step.masks.size();
  row.choice_count = step.sample ? choice_count : 0;
  row.verified = step.drawn.empty() ? BY_MATCH : BY_REJECTION;
  row.fresh = index == 0;
  row.wanted_first = batch.wanted.size();
  row.wanted_count = step.rows.size();
  row.mask_first = step.masks.empty() ? NONE : batch.masks.size();
  row.top_count = step.top_count;
  row.history_count = one.history.size();
  row.bias_count = one.biases.size();
  row.draft = NONE;
  const uint32_t index_of_row = batch.rows.size();
  for (uint32_t token = 0; token < count; token++) {
    const bool scored = token < step.scored.size();
    if (scored || (step.sample && token + 1 >= known))
      batch.wanted.push_back({index_of_row, token, scored ? step.scored[token] : NONE, 0});
  }
  for (uint32_t i = 0; i < step.drawn.size(); i++)
    batch.draws.push_back({slot, i, step.start + known});
  batch.batch_rows.push_back({step.start, static_cast<uint32_t>(batch.tokens.size()), count, NONE,
                              {}});
  for (uint32_t token = 0; token < count; token++) {
    const uint32_t id = token < known ? step.known[token] : step.drafts[token - known];
    batch.tokens.push_back({id, step.start + token, index_of_row, 0});
  }
  add_formulas(batch, step);
  batch.rows.push_back(row);
}

inline StepBatch batch_of(const Group& group, size_t step) {
  StepBatch batch;
  for (uint32_t slot = 0; slot < group.cases.size(); slot++)
    if (step < group.cases[slot].steps.size()) add_row(batch, group.cases[slot], slot, step);
  return batch;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Describes how a score differs, or is empty.
inline std::string compare_score(const Score& wanted, float logprob, uint32_t rank,
                                 const Top* tops) {
  char text[200];
  if (wanted.logprob != bits_of(logprob) || wanted.rank != rank) {
    std::snprintf(text, sizeof(text), "logprob %08x rank %u, not %08x %u", bits_of(logprob), rank,
                  wanted.logprob, wanted.rank);
    return text;
  }
  for (size_t i = 0; i < wanted.tops.size() / 2; i++)
    if (tops[i].token != wanted.tops[i * 2] || bits_of(tops[i].logprob) != wanted.tops[i * 2 + 1]) {
      std::snprintf(text, sizeof(text), "top %zu is %u %08x, not %u %08x", i, tops[i].token,
                    bits_of(tops[i].logprob), wanted.tops[i * 2], wanted.tops[i * 2 + 1]);
      return text;
    }
  return "";
}

// Describes how a distribution differs, or is empty.
inline std::string compare_law(const std::vector<uint32_t>& wanted, const Candidate* law) {
  char text[200];
  for (size_t i = 0; i < CANDIDATES_MAX; i++) {
    const bool exists = i < wanted.size() / 2;
    const uint32_t token = exists ? wanted[i * 2] : NONE;
    const uint32_t probability = exists ? wanted[i * 2 + 1] : 0;
    if (law[i].token == token && bits_of(law[i].probability) == probability) continue;
    std::snprintf(text, sizeof(text), "candidate %zu is %u %08x, not %u %08x", i, law[i].token,
                  bits_of(law[i].probability), token, probability);
    return text;
  }
  return "";
}

// Compares the drafts that were drawn and their distributions with the cases; returns how many are
// wrong.
inline size_t compare_drafts(const Group& group, const StepBatch& batch, size_t step,
                             const Answers& answers) {
  size_t wrong = 0;
  for (size_t i = 0; i < batch.draws.size(); i++) {
    const DraftOrder& draw = batch.draws[i];
    const Step& one = group.cases[draw.slot].steps[step];
    const size_t law = (size_t{draw.slot} * DRAFT_ROWS + draw.index) * CANDIDATES_MAX;
    std::string found = compare_law(one.drawn[draw.index].law, &answers.laws[law]);
    if (found.empty() && answers.drafts[i] != one.drafts[draw.index])
      found = "token " + std::to_string(answers.drafts[i]) + ", not " +
              std::to_string(one.drafts[draw.index]);
    if (found.empty()) continue;
    if (wrong++ > 3) continue;
    const Slot& slot = group.cases[draw.slot].slot;
    std::printf("vocabulary %u case %u step %zu draft %u: %s (temperature %g of %g, kind %u)\n",
                group.vocab, draw.slot, step, draw.index, found.c_str(), slot.draft_temperature,
                slot.sampling.temperature, one.drawn[draw.index].row.formula.kind);
  }
  return wrong;
}

inline std::string compare_row(const Step& step, const SampleRow& row, const RowChoice& choice,
                               const Answers& answers, const Slot& slot) {
  char text[200];
  if (choice.token_count != step.tokens.size() || choice.fault != step.fault ||
      choice.scored_count != step.scores.size() ||
      (step.fault != 0 && choice.fault_position != step.fault_position)) {
    std::snprintf(text, sizeof(text), "%u tokens, %u scored, fault %u at %u; not %zu %zu %u %u",
                  choice.token_count, choice.scored_count, choice.fault, choice.fault_position,
                  step.tokens.size(), step.scores.size(), step.fault, step.fault_position);
    return text;
  }
  const uint32_t first = row.wanted_first + row.wanted_count - step.drafts.size() - 1;
  for (size_t i = 0; i < step.tokens.size(); i++)
    if (answers.chosen[first + i] != step.tokens[i]) {
      std::snprintf(text, sizeof(text), "token %zu is %u, not %u", i, answers.chosen[first + i],
                    step.tokens[i]);
      return text;
    }
  std::string found;
  for (size_t i = 0; i < step.reports.size() && found.empty(); i++) {
    const Report& report = answers.reports[first + i];
    found = compare_score(step.reports[i], report.chosen, report.chosen_rank,
                          &answers.tops[(first + i) * TOPS_MAX]);
  }
  for (size_t i = 0; i < step.scores.size() && found.empty(); i++) {
    const Report& report = answers.reports[row.wanted_first + i];
    found = compare_score(step.scores[i], report.scored, report.scored_rank,
                          &answers.tops[(row.wanted_first + i) * TOPS_MAX]);
  }
  const uint32_t known = step.start + step.known.size() + step.tokens.size();
  if (found.empty() && !step.tokens.empty() &&
      (slot.anchor != step.tokens.back() || slot.known != known || !slot.held))
    found = "the slot is not at the last token";
  return found;
}

inline size_t compare(const Group& group, const StepBatch& batch, size_t step,
                      const Answers& answers, const std::vector<Slot>& slots) {
  constexpr int SHOWN_MAX = 20;
  static int shown = 0;
  size_t wrong = 0;
  for (size_t i = 0; i < batch.rows.size(); i++) {
    const SampleRow& row = batch.rows[i];
    const Case& one = group.cases[row.slot];
    const std::string difference =
        compare_row(one.steps[step], row, answers.rows[i], answers, slots[row.slot]);
    if (difference.empty()) continue;
    wrong++;
    if (shown++ >= SHOWN_MAX) continue;
    const Sampling& s = one.slot.sampling;
    std::printf("vocabulary %u case %u step %zu: %s (temperature %g top_k %u top_p %g min_p %g "
                "biased %u words %u masks %zu, judged %zu, kind %u)\n",
                group.vocab, row.slot, step, difference.c_str(), s.temperature, s.top_k, s.top_p,
                s.min_p, one.slot.biased, one.slot.bad_word_count, one.steps[step].masks.size(),
                one.steps[step].drawn.size(), one.steps[step].rows[0].formula.kind);
  }
  return wrong;
}

}  // namespace kilotok
