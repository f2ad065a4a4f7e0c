//! How many drafts both rules accept after the same texts: sample and match, and rejection sampling
//! at several draft temperatures. `acceptance.rs` measures lengths of whole replies, whose texts
//! differ between the rules; at the same positions, differences of 0.05 become visible.

use std::collections::BTreeMap;

use kilotok_abi::{PageId, Sampling, SlotId, TokenId};
use kilotok_batch::Sizes;
use kilotok_cpu::CpuEngine;
use kilotok_engine::{
    Engine, PageRun, Row, RowOutput, RowTokens, SlotSetup, StepPlan, Verification,
};
use kilotok_model::Knobs;
use kilotok_testkit::host::{Drafts, Host, How, Request};
use kilotok_text::{Conversation, Message, Text};
use kilotok_weights::Quiet;
use serde_json::Value;

use crate::{checkpoint, of_demo};

/// Number of prompts of each set.
const PROMPTS: usize = 48;
const SETS: [&str; 3] = ["code", "functions", "chat"];
const REPLY: u32 = 200;
/// Tokens between two measured positions.
const STRIDE: usize = 9;
const DRAFTS: u32 = 7;
/// One correct comparison in 740 is further below.
const ERRORS_MAX: f64 = 3.0;
/// Draft temperatures; `None` is sample and match.
const RULES: [Option<f32>; 7] =
    [None, Some(0.0), Some(0.4), Some(0.6), Some(0.7), Some(0.85), Some(1.0)];

fn row(engine: &dyn Engine, start: usize, tokens: RowTokens) -> Row {
    let page = |count: u32| (0..count).map(PageId).collect();
    let groups = engine.caps().groups.iter();
    let end = start as u32 + tokens.count();
    let pages = groups
        .map(|group| PageRun { first: 0, pages: page(end.div_ceil(group.page_tokens)) })
        .collect();
    Row { pages, ..Row::new(SlotId(0), start as u32, tokens) }
}

fn run(engine: &mut dyn Engine, row: Row) -> RowOutput {
    engine.run(&StepPlan { rows: vec![row] }).unwrap().rows.remove(0)
}

/// The number of drafts that are accepted after the text's first `count` tokens and one token that
/// the target samples. The keys and values of the text are in the pages; those from `count` on are
/// overwritten.
fn accepted(engine: &mut dyn Engine, text: &[TokenId], count: usize, setup: SlotSetup) -> usize {
    let tokens = RowTokens::Given { tokens: vec![text[count - 1]], draft_count: 0 };
    let first = row(engine, count - 1, tokens);
    let held = run(engine, Row { setup: Some(Box::new(setup)), draft_next: DRAFTS, ..first });
    assert_eq!(held.held_count, DRAFTS);
    let drafted = row(engine, count, RowTokens::Held { draft_count: DRAFTS });
    run(engine, drafted).tokens.len() - 1
}

/// The tokens of a prompt or of a conversation.
fn tokens_of(text: &Text, prompt: &Value) -> Vec<TokenId> {
    if let Some(prompt) = prompt["prompt"].as_str() {
        return text.encode_plain(prompt).unwrap();
    }
    let owned = |value: &Value| value.as_str().unwrap().to_owned();
    let message = |said: &Value| Message {
        role: owned(&said["role"]),
        content: owned(&said["content"]),
        ..Message::default()
    };
    let messages = prompt["messages"].as_array().unwrap().iter().map(message).collect();
    let conversation =
        Conversation { messages, add_generation_prompt: true, ..Conversation::default() };
    text.encode(&text.render(&conversation).unwrap().prompt).unwrap()
}

#[test]
#[ignore = "a quarter of an hour in release"]
fn rules_at_the_same_places() {
    let checkpoint = checkpoint(&Knobs::default());
    let sizes = Sizes { position_max: 1024, ..Sizes::default() };
    let mut engine = CpuEngine::start(checkpoint.spec(), &checkpoint, &sizes, &Quiet).unwrap();
    let text = Text::open(&of_demo("checkpoint")).unwrap();
    let prompts = std::fs::read_to_string(of_demo("held_out.jsonl")).unwrap();
    let lines: Vec<Value> =
        prompts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    println!("| text | temperature | draft temperature | length | more than match | places |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (set, temperature) in SETS.into_iter().flat_map(|set| [(set, 1.0), (set, 0.6)]) {
        let of_set = lines.iter().filter(|prompt| prompt["set"] == set).take(PROMPTS);
        let prompts: Vec<_> = of_set.map(|prompt| tokens_of(&text, prompt)).collect();
        // For each rule, the accepted drafts at every position.
        let mut all: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let sampling = Sampling { seed: index as u64, temperature, ..Sampling::GREEDY };
            let mut request = Request::greedy(prompt.clone(), REPLY);
            request.setup.sampling = sampling;
            let drafts = Drafts::Held { made: DRAFTS, used: DRAFTS };
            let reply = Host::new(&mut engine, 0).run(&request, &How { drafts, ..How::default() });
            let whole = [&prompt[..], &reply.unwrap().tokens].concat();
            let tokens = RowTokens::Given { tokens: whole.clone(), draft_count: 0 };
            let setup = SlotSetup::new(sampling, prompt.len() as u32);
            let filled = Row { sample: false, ..row(&engine, 0, tokens) };
            run(&mut engine, Row { setup: Some(Box::new(setup.clone())), ..filled });
            for count in (prompt.len()..whole.len()).rev().step_by(STRIDE) {
                for (rule, factor) in RULES.iter().enumerate() {
                    let verification = factor.map_or(Verification::Match, |draft_temperature| {
                        Verification::Rejection { draft_temperature }
                    });
                    let seed = (index * 1000 + count) as u64;
                    let sampling = Sampling { seed, ..sampling };
                    let setup = SlotSetup { sampling, verification, ..setup.clone() };
                    let accepted = accepted(&mut engine, &whole, count, setup);
                    all.entry(rule).or_default().push(accepted as f64);
                }
            }
        }
        for (rule, accepted) in &all {
            let count = accepted.len() as f64;
            let length = 1.0 + accepted.iter().sum::<f64>() / count;
            let gains: Vec<f64> = accepted.iter().zip(&all[&0]).map(|(a, b)| a - b).collect();
            let gain = gains.iter().sum::<f64>() / count;
            let variance = gains.iter().map(|x| (x - gain) * (x - gain)).sum::<f64>() / count;
            let error = (variance / count).sqrt();
            let name = RULES[*rule].map_or("match".to_owned(), |factor| factor.to_string());
            let gained = format!("{gain:+.3} ± {error:.3}");
            println!("| {set} | {temperature} | {name} | {length:.3} | {gained} | {count} |");
            // With greedy drafts, both rules accept the same share; the default temperature is the
            // best of the others.
            if matches!(RULES[*rule], Some(0.0 | 0.4)) {
                assert!(
                    gain >= -ERRORS_MAX * error,
                    "{set}, {name} at {temperature}: {gain} ± {error}"
                );
            }
        }
    }
}
