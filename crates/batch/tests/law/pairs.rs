//! Draws of pairs of tokens in many settings at once. All settings share their random numbers,
//! because computing them is most of the work of a draw. Thresholds and residuals do not depend on
//! random numbers, and are computed once for each setting.

use kilotok_abi::{Purpose, TokenId};
use kilotok_sampling::{Acceptance, Draws, Fault, Proposal, Rule, match_drafts, winner};

use crate::draw::{
    NODES, SplitMix, Tables, draft_count, draw, draw_drafts, likeliest, node_of, tokens_of,
};
use crate::setup::{HISTORY, Row, VOCAB};
use crate::{DRAFTS, DRAWS, Setting, Way};

/// Tokens of a sequence.
const PAIR: usize = 2;
/// Number of draws whose random numbers are kept at the same time. Those of more draws would not
/// fit into a core's cache.
const KEPT: usize = 1000;

/// The random numbers of one draw.
struct Noise {
    /// Uniform numbers that choose drafts, and below, that accept them. There are drafts only at
    /// the first position.
    draft: [f32; DRAFTS],
    accept: [f32; DRAFTS],
    /// Logarithms of the exponential numbers of a race, by position after the history.
    target: [Row<f32>; PAIR],
    residual: [Row<f32>; PAIR],
}

impl Noise {
    fn new(draw: u64) -> Self {
        const FIRST: u32 = HISTORY.len() as u32;
        let mut random = SplitMix(draw << 40);
        let accept = |i| Draws::of_draft(draw, FIRST, i as u32, Purpose::Accept).uniform(0);
        let race = |purpose, offset| {
            let mut numbers = [0.0; VOCAB];
            Draws::new(draw, FIRST + offset as u32, purpose).log_exponentials(0, &mut numbers);
            numbers
        };
        Self {
            draft: std::array::from_fn(|_| random.uniform()),
            accept: std::array::from_fn(accept),
            target: std::array::from_fn(|offset| race(Purpose::Target, offset)),
            residual: std::array::from_fn(|offset| race(Purpose::Residual, offset)),
        }
    }

    fn winner(&self, purpose: Purpose, offset: usize, logits: &Row<f32>) -> Option<TokenId> {
        let numbers = if purpose == Purpose::Target { &self.target } else { &self.residual };
        winner(&numbers[offset], logits)
    }
}

/// Cumulative probabilities of the drafts, by offset and last token.
type DraftLaws = Vec<[Row<f32>; VOCAB]>;

/// The drafts of the first position, and the nodes after 0, 1, .. of them.
struct Drafted {
    drafts: [TokenId; DRAFTS],
    nodes: [usize; DRAFTS + 1],
}

impl Drafted {
    fn new(laws: &DraftLaws, noise: &Noise) -> Self {
        let mut drafts = [0; DRAFTS];
        let nodes = draw_drafts(&[], &mut drafts, |i, offset, last| {
            draw(&laws[offset][last], noise.draft[i])
        });
        Self { drafts, nodes }
    }
}

/// The values that all draws of a setting share.
struct Pairs {
    rows: Vec<Row<f32>>,
    /// By the last node of a round; for ways that verify with a rule.
    judged: Vec<Option<Judged>>,
}

/// A rule's verdict about some drafts.
struct Judged {
    acceptance: Acceptance,
    /// By the number of accepted drafts: the purpose and the logits with which the next token is
    /// drawn.
    next: Vec<(Purpose, Row<f32>)>,
}

impl Pairs {
    /// Beside the values, the distributions of the drafts.
    fn new(setting: Setting) -> (Self, DraftLaws) {
        assert_eq!(setting.length, PAIR);
        let tables = Tables::new(setting, false);
        let judged = match setting.way {
            Way::Match => Vec::new(),
            Way::Judge(rule) => judged(rule, &tables),
        };
        let Tables { rows, mut cumulative, .. } = tables;
        if setting.way == Way::Match && setting.greedy {
            let only = |law| {
                std::array::from_fn(|token| if token < likeliest(law) as usize { 0.0 } else { 2.0 })
            };
            cumulative = tables.drafts.iter().map(|laws| laws.each_ref().map(only)).collect();
        }
        (Self { rows, judged }, cumulative)
    }

    /// Appends the tokens of one round, as far as a pair needs them.
    fn round(&self, noise: &Noise, drafted: &Drafted, tokens: &mut Vec<TokenId>) {
        let done = tokens.len();
        let (mut drafts, mut nodes) = (&drafted.drafts[..], &drafted.nodes[..]);
        let only = [node_of(tokens)];
        if done > 0 {
            (drafts, nodes) = (&[], &only);
        }
        let Some(judged) = self.judged.get(nodes[drafts.len()]) else {
            let choose = |i: usize| {
                let winner = noise.winner(Purpose::Target, done + i, &self.rows[nodes[i]]);
                winner.ok_or(Fault::NothingAllowed)
            };
            let drafts = &drafts[..drafts.len().min(PAIR - done - 1)];
            return match_drafts(drafts, tokens, choose).expect("allowed tokens");
        };
        let judged = judged.as_ref().expect("a round ends here");
        let accepted = judged.acceptance.accepted(|i| noise.accept[i]);
        tokens.extend_from_slice(&drafts[..accepted]);
        if tokens.len() < PAIR {
            let (purpose, logits) = &judged.next[accepted];
            tokens.extend(noise.winner(*purpose, done + accepted, logits));
        }
    }
}

/// The verdicts about all possible drafts, by the last node of their round.
fn judged(rule: Rule, tables: &Tables) -> Vec<Option<Judged>> {
    let target = tables.target();
    let after = |node| {
        let tokens = tokens_of(node);
        let done = (0..PAIR).find(|&done| done + draft_count(done, PAIR) == tokens.len())?;
        let (tokens, drafts) = tokens.split_at(done);
        let mut proposal = Proposal::default();
        let nodes = tables.propose(tokens, &mut proposal, |i, _, _| drafts[i]);
        let laws = &nodes.map(|node| target[node])[..=drafts.len()];
        let acceptance = proposal.acceptance(rule, laws);
        let next = |accepted| {
            let (purpose, logits) = proposal.next(&acceptance, laws, accepted).expect("a row");
            (purpose, logits[..].try_into().expect("a row"))
        };
        let next = (0..=drafts.len()).map(next).collect();
        Some(Judged { acceptance, next })
    };
    (0..NODES).map(after).collect()
}

/// How often each pair is drawn, for each setting.
pub(super) fn count_pairs(settings: &[Setting]) -> Vec<Vec<u32>> {
    // Most settings have the distributions of another one's drafts, and then its drafts too.
    let mut laws = Vec::new();
    let with_laws = settings.iter().map(|setting| {
        let (pairs, own) = Pairs::new(*setting);
        let place = laws.iter().position(|other| *other == own).unwrap_or(laws.len());
        if place == laws.len() {
            laws.push(own);
        }
        (pairs, place)
    });
    let all: Vec<_> = with_laws.collect();
    let mut counts = vec![vec![0; VOCAB * VOCAB]; settings.len()];
    let mut tokens = Vec::with_capacity(PAIR + DRAFTS);
    for first in (0..DRAWS).step_by(KEPT) {
        let kept: Vec<_> = (first..first + KEPT as u64).map(Noise::new).collect();
        let draw_all = |laws| kept.iter().map(|noise| Drafted::new(laws, noise)).collect();
        let drafted: Vec<Vec<_>> = laws.iter().map(draw_all).collect();
        for ((pairs, place), counts) in all.iter().zip(&mut counts) {
            for (noise, drafted) in kept.iter().zip(&drafted[*place]) {
                tokens.clear();
                while tokens.len() < PAIR {
                    pairs.round(noise, drafted, &mut tokens);
                }
                counts[VOCAB * tokens[0] as usize + tokens[1] as usize] += 1;
            }
        }
    }
    counts
}
