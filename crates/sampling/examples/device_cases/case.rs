//! One case: a request, and the steps of its slot.

use kilotok_abi::{FORBIDDEN, Sampling, SlotLists, TokenId};
use kilotok_sampling::{Fault, Logprobs, Proposal, Ranking, Rule, Sampler, Setup, logprobs};

use crate::rows::{Logits, Mask, Random};

pub(crate) type Words = Vec<u32>;

const NONE: u32 = !0;
const DRAFTS_MAX: u32 = 7;
const TOPS_MAX: u32 = 20;
/// More repetitions than the GPU's counters count, in some cases of one vocabulary.
const OFTEN: usize = 40_000;
const OFTEN_VOCAB: u32 = 31;

pub(crate) fn write_case(words: &mut Words, vocab: u32, random: &mut Random) {
    let history = {
        let few = random.of(&[4, 50, u32::MAX]);
        let mut tokens = random.tokens(vocab.min(few), 40);
        tokens.push(random.below(vocab));
        if vocab == OFTEN_VOCAB && random.chance(4) {
            let token = random.below(vocab);
            tokens.resize(tokens.len() + OFTEN, token);
        }
        tokens
    };
    let setup = random_setup(random, vocab, &history);
    setup.check(vocab as usize).expect("a setup that makes sense");
    let lists = SlotLists::new(
        setup.sampling,
        setup.prompt_count,
        &setup.logit_bias,
        &setup.bad_words,
        &setup.end_tokens,
    );
    let lists = lists.expect("lists that fit");
    words.extend(sampling_words(&setup.sampling));
    let draft_temperature: f32 = random.of(&[0.4, 0.4, 1.0, 1.0, 1.6, 0.0]);
    words.extend([setup.prompt_count, draft_temperature.to_bits()]);
    words.push(lists.biases.len() as u32);
    words.extend(lists.biases.iter().flat_map(|bias| [bias.token, bias.bias.to_bits()]));
    for list in [&lists.bad_ends, &lists.bad_tokens, &lists.end_tokens, &history] {
        write_list(words, list);
    }
    let drawn = (!setup.is_greedy() && random.chance(60)).then_some(draft_temperature);
    write_steps(words, vocab, random, (setup, drawn), history);
}

fn sampling_words(s: &Sampling) -> [u32; 10] {
    [
        s.seed as u32,
        (s.seed >> 32) as u32,
        s.temperature.to_bits(),
        s.top_p.to_bits(),
        s.min_p.to_bits(),
        s.repetition_penalty.to_bits(),
        s.presence_penalty.to_bits(),
        s.frequency_penalty.to_bits(),
        s.top_k,
        s.min_tokens,
    ]
}

fn random_setup(random: &mut Random, vocab: u32, history: &[TokenId]) -> Setup {
    let mut sampling = Sampling {
        seed: random.bits(),
        temperature: random.of(&[0.0, 0.0, 1.0, 1.0, 0.7, 0.3, 1.5, 1e-5, 100.0]),
        ..Sampling::GREEDY
    };
    if random.chance(40) {
        sampling.top_k = random.of(&[1, 2, 20, 50, 1500, 3000, vocab / 2, vocab, vocab + 1]);
    }
    if random.chance(40) {
        sampling.top_p = random.of(&[0.95, 0.8, 0.5, 0.01, 0.999, 1e-6, 0.999_999_9]);
    }
    if random.chance(25) {
        sampling.min_p = random.of(&[0.05, 0.5, 1.0, 1e-3, 1e-40]);
    }
    if random.chance(25) {
        sampling.repetition_penalty = random.of(&[1.2, 0.5, 1e6, 1e-30, 3.0]);
    }
    if random.chance(25) {
        sampling.presence_penalty = random.of(&[0.5, -2.0, 1e6]);
        sampling.frequency_penalty = random.of(&[0.1, 0.0, -0.3]);
    }
    let prompt_end = history.len().min(60) as u32 + 6;
    let mut setup = Setup::new(sampling, random.below(prompt_end));
    if random.chance(25) {
        let values = [1.0, -3.0, 10.0, 0.9 * FORBIDDEN, f32::NEG_INFINITY];
        let count = random.of(&[3, vocab.min(300), vocab]);
        let mut tokens: Vec<_> = (0..count).map(|_| random.below(vocab)).collect();
        tokens.sort_unstable();
        tokens.dedup();
        setup.logit_bias = tokens.into_iter().map(|token| (token, random.of(&values))).collect();
        if vocab > 1000 {
            setup.logit_bias.truncate(500);
        }
    }
    if random.chance(25) {
        let count = random.of(&[1, 10, 500]);
        setup.bad_words = (0..count).map(|_| bad_word(random, vocab, history)).collect();
    }
    if random.chance(25) {
        setup.sampling.min_tokens = random.below(12);
        setup.end_tokens = random.tokens(vocab, 40);
    }
    setup
}

/// Often one whose beginning is in the history.
fn bad_word(random: &mut Random, vocab: u32, history: &[TokenId]) -> Vec<TokenId> {
    let mut word = if random.chance(70) {
        let end = if random.chance(50) { history.len() as u32 } else { random.below(40) + 1 };
        let end = end.min(history.len() as u32);
        let len = random.below(4).min(end);
        history[(end - len) as usize..end as usize].to_vec()
    } else {
        random.tokens(vocab, 5)
    };
    word.push(random.below(vocab));
    word
}

fn write_steps(
    words: &mut Words,
    vocab: u32,
    random: &mut Random,
    (setup, draft_temperature): (Setup, Option<f32>),
    mut tokens: Vec<TokenId>,
) {
    let mut sampler = Sampler::new(setup, &tokens);
    let step_count = random.below(3) + 1;
    let count_at = words.len();
    words.push(0);
    let chunk = random.chance(20) && (2..OFTEN).contains(&tokens.len());
    let known = tokens.len() as u32;
    let mut start = if chunk { 0 } else { known - 1 - random.below(known.min(6)) };
    for index in 0..step_count {
        words[count_at] += 1;
        let is_chunk = chunk && index == 0;
        if index > 0 && !is_chunk && random.chance(10) {
            for token in random.tokens(vocab, 3) {
                tokens.push(token);
                sampler.push(token);
            }
        }
        let end =
            if is_chunk { random.below(tokens.len() as u32 - 1) + 1 } else { tokens.len() as u32 };
        let row = tokens[start as usize..end as usize].to_vec();
        let step = Step { vocab, start, known: row, sample: !is_chunk, draft_temperature };
        let Some(chosen) = step.write(words, random, &mut sampler) else { break };
        start = if is_chunk { end } else { end + chosen.len() as u32 - 1 };
        tokens.extend(chosen);
    }
}

struct Step {
    vocab: u32,
    start: u32,
    known: Vec<TokenId>,
    sample: bool,
    /// Present if drafts are drawn.
    draft_temperature: Option<f32>,
}

/// Drafts that are drawn, and the drafter's logits of each.
struct Drawn {
    proposal: Proposal,
    rows: Vec<Logits>,
}

impl Step {
    /// Writes the step and its answer. Returns the tokens; none after a fault.
    fn write(
        &self,
        words: &mut Words,
        random: &mut Random,
        sampler: &mut Sampler,
    ) -> Option<Vec<TokenId>> {
        let vocab = self.vocab;
        let draft_count = if self.sample { random.below(DRAFTS_MAX + 1) } else { 0 };
        let count = self.known.len() as u32 + draft_count;
        let top_count = if random.chance(30) { random.below(TOPS_MAX + 1) } else { NONE };
        let scored = if random.chance(25) { random.tokens(vocab, count) } else { Vec::new() };
        let first_sampled = if self.sample { self.known.len() as u32 - 1 } else { count };
        let wanted = (0..count).filter(|&t| t < scored.len() as u32 || t >= first_sampled);
        let rows: Vec<Logits> = wanted.map(|_| Logits::random(random, vocab)).collect();
        let masked = self.sample && random.chance(25);
        let sampled = &rows[rows.len() - if self.sample { draft_count as usize + 1 } else { 0 }..];
        let drawn = self.draw(random, sampler, sampled, draft_count);
        let lacking = u32::from(drawn.is_some() && random.chance(30));
        let mask_count = if masked { draft_count + 1 - lacking } else { 0 };
        let masks: Vec<Mask> = (0..mask_count).map(|_| Mask::random(random, vocab)).collect();
        let drafts = match &drawn {
            Some(drawn) => drawn.proposal.drafts.clone(),
            None => self.drafts(random, sampler, sampled, &masks, draft_count),
        };
        words.push(self.start);
        for list in [&self.known, &drafts, &scored] {
            write_list(words, list);
        }
        words.extend([u32::from(self.sample), top_count, mask_count]);
        words.extend([u32::from(drawn.is_some()), rows.len() as u32]);
        for row in &rows {
            row.words(words);
        }
        for mask in &masks {
            mask.words(words);
        }
        for (row, law) in drawn.iter().flat_map(|drawn| drawn.rows.iter().zip(&drawn.proposal.laws))
        {
            row.words(words);
            words.push(law.len() as u32);
            words.extend(law.iter().flat_map(|one| [one.token, one.probability.to_bits()]));
        }
        let proposal = drawn.map(|drawn| drawn.proposal);
        self.answer(words, sampler, &rows, &masks, (&drafts, proposal), &scored, top_count)
    }

    /// Drafts by the target's own logits, or by others. None where they are not drawn.
    fn draw(
        &self,
        random: &mut Random,
        sampler: &mut Sampler,
        rows: &[Logits],
        count: u32,
    ) -> Option<Drawn> {
        let draft_temperature = self.draft_temperature.filter(|_| count > 0)?;
        let proposal = Proposal { first: self.first(), ..Proposal::default() };
        let mut drawn = Drawn { proposal, rows: Vec::new() };
        for row in rows.iter().take(count as usize) {
            let own = random.chance(70);
            let row = if own { row.clone() } else { Logits::random(random, self.vocab) };
            let logits = row.values(self.vocab);
            sampler.propose(&mut drawn.proposal, draft_temperature, &logits).ok()?;
            drawn.rows.push(row);
        }
        Some(drawn)
    }

    /// The target's own tokens as far as a random length, then a random token or two.
    fn drafts(
        &self,
        random: &mut Random,
        sampler: &Sampler,
        rows: &[Logits],
        masks: &[Mask],
        count: u32,
    ) -> Vec<TokenId> {
        let true_count = random.below(count + 1);
        let mut sampler = sampler.clone();
        let mut drafts = Vec::new();
        for (i, row) in rows.iter().enumerate().take(true_count as usize) {
            let mask = masks.get(i).map(|mask| mask.values(self.vocab));
            let position = self.first() + i as u32;
            let logits = row.values(self.vocab);
            let Ok(token) = sampler.choose(position, mask.as_deref(), &logits) else { break };
            sampler.push(token);
            drafts.push(token);
        }
        while drafts.len() < count as usize {
            drafts.push(random.below(self.vocab));
        }
        drafts
    }

    fn first(&self) -> u32 {
        self.start + self.known.len() as u32
    }

    #[expect(clippy::too_many_arguments, reason = "all that shapes an answer")]
    fn answer(
        &self,
        words: &mut Words,
        sampler: &mut Sampler,
        rows: &[Logits],
        masks: &[Mask],
        (drafts, proposal): (&[TokenId], Option<Proposal>),
        scored: &[TokenId],
        top_count: u32,
    ) -> Option<Vec<TokenId>> {
        let tops = if top_count == NONE { 0 } else { top_count as usize };
        let mut ranking = Ranking::default();
        let rows: Vec<Vec<f32>> = rows.iter().map(|row| row.values(self.vocab)).collect();
        let mut scores = Vec::new();
        for (i, (row, &token)) in rows.iter().zip(scored).enumerate() {
            match logprobs(row, token, tops, &mut ranking) {
                Ok(score) => scores.push(score),
                Err(fault) => {
                    let position = self.start + i as u32 + 1;
                    write_answer(words, &[], Some((fault, position)), &[], &scores);
                    return None;
                }
            }
        }
        let mut tokens = Vec::new();
        if !self.sample {
            write_answer(words, &tokens, None, &[], &scores);
            return Some(tokens);
        }
        let sampled = &rows[rows.len() - drafts.len() - 1..];
        let masks: Vec<Vec<u32>> = masks.iter().map(|mask| mask.values(self.vocab)).collect();
        let logits = sampled.concat();
        let verified = match proposal {
            None => sampler.verify(self.first(), drafts, &masks, &logits, &mut tokens),
            Some(proposal) => sampler.judge(Rule::Joint, &proposal, &masks, &logits, &mut tokens),
        };
        let fault = verified.err().map(|fault| (fault, self.first() + tokens.len() as u32));
        let report =
            |(row, &token): (&Vec<f32>, &TokenId)| logprobs(row, token, tops, &mut ranking);
        let reports: Vec<Logprobs> = if top_count == NONE {
            Vec::new()
        } else {
            sampled.iter().zip(&tokens).map(report).collect::<Result<_, _>>().expect("finite")
        };
        write_answer(words, &tokens, fault, &reports, &scores);
        fault.is_none().then_some(tokens)
    }
}

fn write_answer(
    words: &mut Words,
    tokens: &[TokenId],
    fault: Option<(Fault, u32)>,
    reports: &[Logprobs],
    scores: &[Logprobs],
) {
    write_list(words, tokens);
    words.extend(match fault {
        None => [0, 0],
        Some((Fault::NotFinite, position)) => [1, position],
        Some((Fault::NothingAllowed, position)) => [2, position],
    });
    for reports in [reports, scores] {
        words.push(reports.len() as u32);
        for report in reports {
            words.extend([report.chosen.to_bits(), report.rank, report.top.len() as u32]);
            words.extend(report.top.iter().flat_map(|&(token, value)| [token, value.to_bits()]));
        }
    }
}

fn write_list(words: &mut Words, list: &[u32]) {
    words.push(list.len() as u32);
    words.extend(list);
}
