//! The distribution of generated tokens: with any processors, any drafter and any way of verifying
//! its drafts, sequences of tokens must follow the target's distribution. The definitions are
//! written out here in f64 ([`exact_law`]), and the draws of the `sampling` crate are compared with
//! them.
//!
//! The target is a table over 8 tokens whose logits depend on the last token and the position. A
//! draw is the first 2 or 3 tokens after a history; it begins with a draft of 3 tokens and, if
//! drafts are rejected, continues with further rounds. One million draws per setting are compared
//! with the exact joint distribution of the tokens by a chi-square test; sequences with probability
//! 0 must not occur at all. The seeds are fixed, so the test does the same each time. For a correct
//! sampler, the probability that a test function fails was one in a million.
//!
//! - All 2^11 combinations of processors, 2 tokens. Each combination has one of 9 pairs of a
//!   drafter (good, bad, adversarial) and a way of verifying (sample and match, token and joint
//!   verification), so that any two processors are combined in all 9 pairs. Rows are processed
//!   once per history and setting, and settings share their random numbers, see `pairs.rs`.
//!   An ignored test runs every combination with all 9 pairs.
//! - Each of the 9 pairs, most processors on, 3 tokens, with no state kept between draws.
//! - The step of an engine, most processors on, 3 tokens, 0 to 7 drafts: rejection sampling as
//!   rows use it, see `step.rs`.
//! - Rules with a mistake, and hosts that choose drafts depending on what was drawn, 3 tokens:
//!   each must be detected, with certainty.

mod draw;
mod exact;
mod pairs;
mod setup;
mod step;

use std::array;
use std::sync::LazyLock;

use kilotok_abi::{Purpose, TokenId};
use kilotok_sampling::{Draws, Proposal, Rule};
use rayon::prelude::*;

use draw::{
    Mistake, SplitMix, Tables, count_mistaken, count_with_samplers, draw, judge, last_of, node_of,
};
use exact::Finding;
use pairs::count_pairs;
use setup::{COMBINATIONS, FREQUENCY, MASK, PRESENCE, REPETITION, Row, TEMPERATURE, VOCAB};
use step::{Host, count_with_steps};

const DRAFTS: usize = 3;
const DRAWS: u64 = 1_000_000;
/// Settings of whole steps.
const STEP_SETTINGS: usize = 5;
/// Enough draws to detect most wrong rules and hosts, as tests check.
const FEW_DRAWS: u64 = DRAWS / 4;
const FALSE_ALARM: f64 = 1e-6;
/// Number of settings whose draws share their random numbers.
const SHARING: usize = 128;

/// Number of positions in a table: more than a sequence and its drafts have.
const OFFSETS: usize = 32;

/// Indexed by table, position after the history and last token. Computed once, because a setting
/// reads them millions of times.
static TABLES: LazyLock<[[[Row<f32>; VOCAB]; OFFSETS]; 3]> = LazyLock::new(|| {
    let entry = |table, offset, last, token| {
        let draws = Draws::of_draft(3, offset as u32, table as u32, Purpose::Weight);
        (draws.bits((last * VOCAB + token) as u32) % 17) as f32 / 4.0 - 2.0
    };
    array::from_fn(|table| {
        array::from_fn(|offset| {
            array::from_fn(|last| array::from_fn(|token| entry(table, offset, last, token)))
        })
    })
});

/// A multiple of 0.25 from -2 to 2, so equal logits are frequent.
fn table(table: usize, offset: usize, last: TokenId, token: usize) -> f32 {
    TABLES[table][offset][last as usize][token]
}

/// The target's logits for the token `offset` after the history.
fn target_logits(offset: usize, last: TokenId) -> Row<f32> {
    std::array::from_fn(|token| table(0, offset, last, token))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Drafter {
    /// Near the target.
    Good,
    /// Ignores the token before.
    Bad,
    /// Prefers the tokens that the target does not.
    Adversarial,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Match,
    Judge(Rule),
}

fn drafter_logits(drafter: Drafter, offset: usize, last: TokenId) -> Row<f32> {
    let target = target_logits(offset, last);
    std::array::from_fn(|token| match drafter {
        Drafter::Good => target[token] + 0.4 * table(1, offset, last, token),
        Drafter::Bad => table(2, offset, 0, token),
        Drafter::Adversarial => -target[token],
    })
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    combination: u32,
    drafter: Drafter,
    way: Way,
    /// The temperature of the drafts, relative to the request's.
    draft_temperature: f32,
    /// Whether drafts to be matched are the drafter's likeliest tokens.
    greedy: bool,
    /// Tokens of a sequence.
    length: usize,
}

impl Setting {
    fn new(combination: u32, length: usize) -> Self {
        Self::of_pair(combination, combination as usize % 9, length)
    }

    /// `pair` numbers the pairs of a drafter and a way.
    fn of_pair(combination: u32, pair: usize, length: usize) -> Self {
        Self {
            combination,
            drafter: [Drafter::Good, Drafter::Bad, Drafter::Adversarial][pair % 3],
            way: [Way::Match, Way::Judge(Rule::Token), Way::Judge(Rule::Joint)][pair / 3],
            draft_temperature: [1.0, 0.5, 0.0][combination as usize / 9 % 3],
            greedy: (combination / 18).is_multiple_of(2),
            length,
        }
    }
}

#[test]
fn any_two_processors_meet_all_drafters_and_ways() {
    for a in 0..11 {
        for b in 0..11 {
            let both = 1 << a | 1 << b;
            let mut pairs: Vec<_> =
                (0..COMBINATIONS).filter(|c| c & both == both).map(|c| c % 9).collect();
            pairs.sort_unstable();
            pairs.dedup();
            assert_eq!(pairs.len(), 9);
        }
    }
}

#[test]
fn every_combination_keeps_the_law() {
    let settings: Vec<_> = (0..COMBINATIONS).map(|k| Setting::new(k, 2)).collect();
    assert_right(&settings);
}

#[test]
#[ignore = "nine times the test above"]
fn every_combination_keeps_the_law_with_every_drafter_and_way() {
    let settings: Vec<_> =
        (0..9 * COMBINATIONS).map(|k| Setting::of_pair(k / 9, k as usize % 9, 2)).collect();
    assert_right(&settings);
}

fn assert_right(settings: &[Setting]) {
    settings.par_chunks(SHARING).for_each(|sharing| {
        for (setting, counts) in sharing.iter().zip(count_pairs(sharing)) {
            Finding::new(*setting, &counts).assert_right(setting, settings.len());
        }
    });
}

#[test]
fn whole_samplers_keep_the_law() {
    // Each pair of a drafter and a way of verifying once, with different combinations of
    // processors, from all of them down.
    (0..9).into_par_iter().for_each(|k| {
        let setting = Setting::new(COMBINATIONS - 1 - 113 * k, 3);
        Finding::new(setting, &count_with_samplers(setting)).assert_right(setting, 9);
    });
}

/// Most processors, all drafters; drafts at the request's temperature, at half of it, and greedy.
#[test]
fn steps_keep_the_law() {
    let drafters = [Drafter::Good, Drafter::Bad, Drafter::Adversarial];
    (0..STEP_SETTINGS).into_par_iter().for_each(|k| {
        let (drafter, draft_temperature) = (drafters[k % 3], [1.0, 0.5, 0.0][(k / 3 + k) % 3]);
        let combination = COMBINATIONS - 1 - 113 * k as u32;
        let setting = Setting { drafter, draft_temperature, ..Setting::new(combination, 3) };
        let host = if k == 4 { Host::Given } else { Host::Right };
        let finding = Finding::new(setting, &count_with_steps(setting, host, DRAWS));
        finding.assert_right(setting, STEP_SETTINGS);
    });
}

/// A host must not leave a draft out because the grammar forbids it, or because of which token it
/// is.
#[test]
fn hosts_that_look_at_drafts_are_found() {
    let combination = MASK | REPETITION | TEMPERATURE;
    let draft_temperature = 1.0;
    let setting = Setting { draft_temperature, ..Setting::new(combination, 3) };
    [Host::Right, Host::WithoutForbidden, Host::ByToken].into_par_iter().for_each(|host| {
        let draws = if host == Host::Right { DRAWS } else { FEW_DRAWS };
        let finding = Finding::new(setting, &count_with_steps(setting, host, draws));
        if host == Host::Right {
            finding.assert_right(setting, 1);
        } else {
            assert!(finding.probability() < 1e-100, "{host:?} {finding:?}");
        }
    });
}

#[test]
fn mistakes_are_found() {
    let cases = [
        (Mistake::None, Rule::Token),
        (Mistake::None, Rule::Joint),
        (Mistake::GreedyMatch, Rule::Token),
        (Mistake::SharedNoise, Rule::Token),
        (Mistake::WholeTarget, Rule::Token),
        (Mistake::Snapshot, Rule::Token),
        (Mistake::BeforePenalties, Rule::Joint),
        (Mistake::OtherProposal, Rule::Token),
        (Mistake::ReusedNoise, Rule::Joint),
    ];
    let combination = REPETITION | PRESENCE | FREQUENCY | TEMPERATURE;
    cases.into_par_iter().for_each(|(mistake, rule)| {
        for drafter in [Drafter::Good, Drafter::Bad] {
            let setting =
                Setting { drafter, draft_temperature: 1.0, ..Setting::new(combination, 3) };
            let finding = Finding::new(setting, &count_mistaken(setting, rule, mistake));
            if mistake == Mistake::None {
                finding.assert_right(setting, 4);
            } else {
                assert!(finding.probability() < 1e-100, "{mistake:?} {setting:?} {finding:?}");
            }
        }
    });
}

/// The expected number of drafts accepted after `tokens`, by definition: the sum over i of the
/// probability that i or more are accepted. `drawn` is the probability that the drafts in `tokens`
/// are drawn, `kept` that they are accepted.
fn expected_accepted(
    tables: &Tables,
    rule: Rule,
    tokens: &[TokenId],
    drawn: f64,
    kept: f64,
) -> f64 {
    if tokens.len() == DRAFTS {
        return 0.0;
    }
    let q = &tables.drafts[tokens.len()][last_of(tokens) as usize];
    let p = &tables.laws[node_of(tokens)];
    let drafts = (0..VOCAB).filter(|&draft| q[draft] > 0.0);
    drafts
        .map(|draft| {
            let ratio = f64::from(p[draft]) / f64::from(q[draft]);
            let drawn = drawn * f64::from(q[draft]);
            let kept = match rule {
                Rule::Token => kept * ratio.min(1.0),
                Rule::Joint => (kept * ratio).min(1.0),
            };
            let longer = [tokens, &[draft as TokenId]].concat();
            drawn * kept + expected_accepted(tables, rule, &longer, drawn, kept)
        })
        .sum()
}

#[test]
fn joint_verification_keeps_no_fewer_drafts() {
    for drafter in [Drafter::Good, Drafter::Bad, Drafter::Adversarial] {
        let combination = TEMPERATURE | REPETITION;
        let setting = Setting { drafter, draft_temperature: 1.0, ..Setting::new(combination, 3) };
        let tables = Tables::new(setting, false);
        let target = tables.target();
        let kept = [Rule::Token, Rule::Joint].map(|rule| {
            let mut proposal = Proposal::default();
            let mut random = SplitMix(5);
            let mut sum = 0;
            for seed in 0..DRAWS {
                let nodes = tables.propose(&[], &mut proposal, |_, offset, last| {
                    draw(&tables.cumulative[offset][last], random.uniform())
                });
                sum += judge(&target, (rule, seed), &proposal, nodes).accepted;
            }
            let mean = sum as f64 / DRAWS as f64;
            let expected = expected_accepted(&tables, rule, &[], 1.0, 1.0);
            // Five standard deviations of the mean of numbers from 0 to 3.
            assert!((mean - expected).abs() < 5.0 * 1.5 / 1000.0, "{mean} for {expected}");
            expected
        });
        assert!(kept[1] > kept[0], "{drafter:?} {kept:?}");
    }
}
