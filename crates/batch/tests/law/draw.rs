//! Draws with the `sampling` crate, from rows that are computed once or every time, and draws with
//! mistakes.

use kilotok_abi::{Candidate, Purpose, Sampling, TokenId};
use kilotok_sampling::{
    Draws, History, Proposal, Ranking, Rule, Sampler, Setup, TargetLaw, Verdict, probabilities,
    process,
};

use crate::setup::{
    FREQUENCY, HISTORY, PRESENCE, REPETITION, Row, TEMPERATURE, VOCAB, mask_of, setup_of,
};
use crate::{DRAFTS, DRAWS, FEW_DRAWS, Setting, Way, drafter_logits, target_logits};

/// Rows by history: node 0 is [`HISTORY`], and `after(node, token)` has one more token.
type Tree = Vec<Row<f32>>;

pub(super) const NODES: usize = 1 + VOCAB + VOCAB * VOCAB + VOCAB * VOCAB * VOCAB;

fn after(node: usize, token: TokenId) -> usize {
    VOCAB * node + token as usize + 1
}

pub(super) fn node_of(tokens: &[TokenId]) -> usize {
    tokens.iter().fold(0, |node, &token| after(node, token))
}

pub(super) fn tokens_of(mut node: usize) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    while node > 0 {
        tokens.insert(0, ((node - 1) % VOCAB) as TokenId);
        node = (node - 1) / VOCAB;
    }
    tokens
}

/// The rows as processed by the crate. With `snapshot`, they only take the tokens of [`HISTORY`]
/// into account.
fn processed_rows(combination: u32, snapshot: bool) -> Tree {
    let setup = setup_of(combination);
    let row_of = |node| {
        let tokens = [&HISTORY[..], &tokens_of(node)].concat();
        let last = tokens[tokens.len() - 1];
        let seen = if snapshot { &HISTORY[..] } else { &tokens };
        let history = History::new(&setup, seen);
        let mask = [mask_of(combination, last)];
        let mut row = target_logits(tokens.len() - HISTORY.len(), last);
        let position = tokens.len() as u32;
        let ranking = &mut Ranking::default();
        process(&setup, &history, position, Some(&mask), &mut row, ranking)
            .expect("allowed tokens");
        row
    };
    (0..NODES).map(row_of).collect()
}

/// Rows by offset and last token.
type DraftLaws = Vec<[Row<f32>; VOCAB]>;

/// The distribution from which the crate draws each draft.
fn draft_laws(setting: Setting) -> DraftLaws {
    let mut sampler = Sampler::new(setup_of(setting.combination), &HISTORY);
    let mut law = |offset, last| {
        let mut proposal = Proposal::default();
        let logits = drafter_logits(setting.drafter, offset, last as TokenId);
        sampler.propose(&mut proposal, setting.draft_temperature, &logits).expect("a draft");
        row_of(&proposal.laws[0])
    };
    (0..DRAFTS).map(|offset| std::array::from_fn(|last| law(offset, last))).collect()
}

fn row_of(law: &[Candidate]) -> Row<f32> {
    let mut row = [0.0; VOCAB];
    for candidate in law {
        row[candidate.token as usize] = candidate.probability;
    }
    row
}

/// The candidates of a row of probabilities.
fn law_of(row: &Row<f32>) -> Vec<Candidate> {
    let candidates = (0..).zip(row).filter(|&(_, &probability)| probability > 0.0);
    candidates.map(|(token, &probability)| Candidate { token, probability }).collect()
}

/// Rows and distributions of a setting, computed once.
pub(super) struct Tables {
    pub(super) rows: Tree,
    pub(super) laws: Tree,
    pub(super) drafts: DraftLaws,
    pub(super) cumulative: DraftLaws,
    candidates: Vec<[Vec<Candidate>; VOCAB]>,
    length: usize,
}

impl Tables {
    pub(super) fn new(setting: Setting, snapshot: bool) -> Self {
        let rows = processed_rows(setting.combination, snapshot);
        let setup = setup_of(setting.combination);
        let mut laws = rows.clone();
        for law in &mut laws {
            probabilities(&setup, law).expect("allowed tokens");
        }
        let drafts = draft_laws(setting);
        let cumulative = drafts.iter().map(|laws| laws.each_ref().map(cumulative)).collect();
        let candidates = drafts.iter().map(|laws| laws.each_ref().map(law_of)).collect();
        Self { rows, laws, drafts, cumulative, candidates, length: setting.length }
    }

    /// The target's distributions at all nodes.
    pub(super) fn target(&self) -> Vec<TargetLaw<'_>> {
        let law = |row| TargetLaw::new(row).expect("allowed tokens");
        self.rows.iter().map(|row| law(row)).collect()
    }

    /// Fills the proposal that follows `tokens`, see [`draw_drafts`].
    pub(super) fn propose(
        &self,
        tokens: &[TokenId],
        proposal: &mut Proposal,
        draw: impl FnMut(usize, usize, usize) -> TokenId,
    ) -> [usize; DRAFTS + 1] {
        let done = tokens.len();
        proposal.first = (HISTORY.len() + done) as u32;
        proposal.drafts.resize(draft_count(done, self.length), 0);
        let nodes = draw_drafts(tokens, &mut proposal.drafts, draw);
        // The lists are reused, because there are millions of draws.
        proposal.laws.resize(proposal.drafts.len(), Vec::new());
        let before = [last_of(tokens)].into_iter().chain(proposal.drafts.iter().copied());
        for ((law, last), offset) in proposal.laws.iter_mut().zip(before).zip(done..) {
            law.clone_from(&self.candidates[offset][last as usize]);
        }
        nodes
    }
}

/// Draws the drafts after `tokens`: `draw(i, offset, last)` draws draft i. Returns the nodes after
/// 0, 1, .. drafts.
pub(super) fn draw_drafts(
    tokens: &[TokenId],
    drafts: &mut [TokenId],
    mut draw: impl FnMut(usize, usize, usize) -> TokenId,
) -> [usize; DRAFTS + 1] {
    let mut nodes = [node_of(tokens); DRAFTS + 1];
    let mut last = last_of(tokens);
    for (i, draft) in drafts.iter_mut().enumerate() {
        last = draw(i, tokens.len() + i, last as usize);
        *draft = last;
        nodes[i + 1] = after(nodes[i], last);
    }
    nodes
}

/// Verifies drafts with the target's distributions at the nodes after 0, 1, .. of them.
pub(super) fn judge(
    target: &[TargetLaw<'_>],
    (rule, seed): (Rule, u64),
    proposal: &Proposal,
    nodes: [usize; DRAFTS + 1],
) -> Verdict {
    proposal.judge(rule, seed, &nodes.map(|node| target[node])[..=proposal.drafts.len()])
}

/// Number of drafts in a round after `done` tokens of `length`: 3 at first, then at most as many as
/// can be emitted.
pub(super) fn draft_count(done: usize, length: usize) -> usize {
    if done == 0 { DRAFTS } else { length - done - 1 }
}

pub(super) fn last_of(tokens: &[TokenId]) -> TokenId {
    *tokens.last().unwrap_or(&HISTORY[HISTORY.len() - 1])
}

pub(super) fn likeliest(law: &Row<f32>) -> TokenId {
    (1..VOCAB).fold(0, |best, t| if law[t] > law[best] { t } else { best }) as TokenId
}

/// Random numbers for drafts, independent of every rule under test (Steele et al., 2014).
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// The first token whose cumulative probability exceeds a uniform number.
pub(super) fn draw(cumulative: &Row<f32>, uniform: f32) -> TokenId {
    cumulative.iter().filter(|&&sum| sum <= uniform).count() as TokenId
}

/// Cumulative probabilities. From the last possible token on they are out of reach, beyond 1.
pub(super) fn cumulative(law: &Row<f32>) -> Row<f32> {
    let last = (0..VOCAB).rfind(|&token| law[token] > 0.0).expect("a law");
    let mut sum = 0.0;
    std::array::from_fn(|token| {
        sum += law[token];
        if token < last { sum } else { 2.0 }
    })
}

/// How often each sequence is drawn. `round` appends the tokens of one round.
fn count(setting: Setting, draws: u64, mut round: impl FnMut(u64, &mut Vec<TokenId>)) -> Vec<u32> {
    let length = setting.length;
    let mut counts = vec![0; VOCAB.pow(length as u32)];
    let mut tokens = Vec::with_capacity(length + DRAFTS);
    for draw in 0..draws {
        let seed = u64::from(setting.combination) << 32 | draw;
        tokens.clear();
        while tokens.len() < length {
            round(seed, &mut tokens);
        }
        let sequence = tokens[..length].iter().fold(0, |sum, &t| VOCAB * sum + t as usize);
        counts[sequence] += 1;
    }
    counts
}

/// Draws as an engine does: with a slot's sampler, from raw logits to tokens.
pub(super) fn count_with_samplers(setting: Setting) -> Vec<u32> {
    let setup = setup_of(setting.combination);
    let mut sampler = Sampler::new(setup.clone(), &HISTORY);
    count(setting, DRAWS, |seed, tokens| {
        let done = tokens.len();
        if done == 0 {
            let sampling = Sampling { seed, ..setup.sampling };
            sampler = Sampler::new(Setup { sampling, ..setup.clone() }, &HISTORY);
        }
        let mut last = last_of(tokens);
        let first = (HISTORY.len() + done) as u32;
        let mut proposal = Proposal { first, ..Proposal::default() };
        let mut logits = target_logits(done, last).to_vec();
        let mut masks = vec![vec![mask_of(setting.combination, last)]];
        for offset in done..done + draft_count(done, setting.length) {
            let draft = drafter_logits(setting.drafter, offset, last);
            last =
                sampler.propose(&mut proposal, setting.draft_temperature, &draft).expect("a draft");
            logits.extend_from_slice(&target_logits(offset + 1, last));
            masks.push(vec![mask_of(setting.combination, last)]);
        }
        match setting.way {
            Way::Match => sampler.verify(first, &proposal.drafts, &masks, &logits, tokens),
            Way::Judge(rule) => sampler.judge(rule, &proposal, &masks, &logits, tokens),
        }
        .expect("allowed tokens");
    })
}

/// Rules that look right but have a mistake.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mistake {
    /// The correct rules, as a control.
    None,
    /// Keeps drafts that are the target's likeliest token, at any temperature.
    GreedyMatch,
    /// Draws the token after a rejected draft with the random numbers of that draft.
    SharedNoise,
    /// Draws that token from p instead of max(p - q, 0).
    WholeTarget,
    /// Processes all rows with the tokens known before the drafts.
    Snapshot,
    /// Verifies with the target's probabilities before its penalties.
    BeforePenalties,
    /// Verifies with a draft distribution that lacks the temperature with which the drafts were
    /// drawn.
    OtherProposal,
    /// Keys the random numbers of block verification by position alone: if drafts were rejected or
    /// not reached, the next round uses the same numbers again.
    ReusedNoise,
}

pub(super) fn count_mistaken(setting: Setting, rule: Rule, mistake: Mistake) -> Vec<u32> {
    let ignored = match mistake {
        Mistake::BeforePenalties => REPETITION | PRESENCE | FREQUENCY,
        _ => 0,
    };
    let without = |ignored: u32| Setting { combination: setting.combination & !ignored, ..setting };
    let tables = Tables::new(without(ignored), mistake == Mistake::Snapshot);
    let others = draft_laws(without(TEMPERATURE));
    let mut proposal = Proposal::default();
    let target = tables.target();
    let draws = match mistake {
        // Right, and the mistake with the least effect.
        Mistake::None | Mistake::ReusedNoise => DRAWS,
        _ => FEW_DRAWS,
    };
    count(setting, draws, |seed, tokens| {
        let first = (HISTORY.len() + tokens.len()) as u32;
        let draws = |i: usize, purpose| match mistake {
            Mistake::ReusedNoise => Draws::new(seed, first + i as u32, purpose),
            _ => Draws::of_draft(seed, first, i as u32, purpose),
        };
        let mut believed = Vec::new();
        let nodes = tables.propose(tokens, &mut proposal, |i, offset, last| {
            if mistake == Mistake::OtherProposal {
                believed.push(law_of(&others[offset][last]));
            }
            race(draws(i, Purpose::Draft), |token| tables.drafts[offset][last][token])
        });
        if mistake == Mistake::OtherProposal {
            proposal.laws = believed;
        }
        let drafts = &proposal.drafts;
        let q: Vec<f32> = proposal.laws.iter().flat_map(|law| row_of(law)).collect();
        let p = nodes.map(|node| &tables.laws[node]);
        let right = judge(&target, (rule, seed), &proposal, nodes);
        let (accepted, mass) = match mistake {
            Mistake::GreedyMatch => {
                let matches = |&i: &usize| drafts[i] == likeliest(p[i]);
                ((0..drafts.len()).take_while(matches).count(), 1.0)
            }
            Mistake::ReusedNoise => {
                joint_verification(drafts, &q, &p, |i| draws(i, Purpose::Accept).uniform(0))
            }
            _ => (right.accepted, 1.0),
        };
        let refused = accepted < drafts.len();
        let whole = !refused || matches!(mistake, Mistake::GreedyMatch | Mistake::WholeTarget);
        let weight = |token: usize| {
            let taken = if whole { 0.0 } else { q[VOCAB * accepted + token] };
            mass * p[accepted][token] - taken
        };
        let draws = if refused && mistake == Mistake::SharedNoise {
            draws(accepted, Purpose::Draft)
        } else {
            Draws::new(seed, first + accepted as u32, Purpose::Residual)
        };
        tokens.extend_from_slice(&drafts[..accepted]);
        tokens.push(match mistake {
            Mistake::None
            | Mistake::Snapshot
            | Mistake::BeforePenalties
            | Mistake::OtherProposal => right.next.expect("a row"),
            _ => race(draws, |token| weight(token).max(0.0)),
        });
    })
}

fn race(draws: Draws, weight: impl Fn(usize) -> f32) -> TokenId {
    let logits: Row<f32> = std::array::from_fn(|token| weight(token).ln());
    draws.race_logits(&logits).unwrap_or(0)
}

/// How many drafts are accepted, and the running probability mass after them.
fn joint_verification(
    drafts: &[TokenId],
    q: &[f32],
    p: &[&Row<f32>],
    uniform: impl Fn(usize) -> f32,
) -> (usize, f32) {
    let mut masses = vec![1.0f32];
    for (i, &draft) in drafts.iter().enumerate() {
        let draft = draft as usize;
        masses.push((masses[i] * p[i][draft] / q[VOCAB * i + draft]).min(1.0));
    }
    let kept_below = |i: usize| {
        let excess = p[i].iter().zip(&q[VOCAB * i..]).map(|(p, q)| (masses[i] * p - q).max(0.0));
        let sum: f32 = excess.sum();
        if i == drafts.len() { masses[i] } else { sum / (sum + 1.0 - masses[i]) }
    };
    let kept = (1..=drafts.len()).rfind(|&i| uniform(i - 1) <= kept_below(i)).unwrap_or(0);
    (kept, masses[kept])
}
