//! A reply that must follow a JSON schema does so according to an independent validator, whatever
//! the model would write and its drafter proposes.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use jsonschema::Validator;
use kilotok_engine::Verification;
use kilotok_testkit::DraftAccuracy;
use serde_json::{Value, json};

use super::server::{Server, Setup};

const GENERATIONS: u64 = 1000;
/// Number of concurrent clients.
const CLIENTS: usize = 4;
/// A token that is valid nowhere in JSON.
const ILLEGAL: u32 = 1;

struct Case {
    name: String,
    schema: Value,
    oracle: Validator,
}

/// The cases in tests/schemas.
fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let list: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        for case in list {
            let name = format!("{}: {}", file.display(), case["description"]);
            let schema = case["schema"].clone();
            let oracle = jsonschema::options().should_validate_formats(true).build(&schema);
            cases.push(Case { name, schema, oracle: oracle.unwrap() });
        }
    }
    assert!(cases.len() >= 50, "{} schemas", cases.len());
    cases
}

#[test]
fn every_reply_follows_its_schema() {
    let drafted = follow_all(DraftAccuracy::Percent(70), true);
    assert!(drafted > GENERATIONS, "hardly anything was drafted");
}

/// Drafts are drawn, and drafts that the schema forbids are verified too.
#[test]
fn so_it_does_under_rejection_sampling() {
    for skill in [DraftAccuracy::Percent(70), DraftAccuracy::Always(ILLEGAL)] {
        assert!(follow_all(skill, false) > GENERATIONS, "hardly anything was drafted");
    }
}

#[test]
fn so_it_does_when_all_drafts_are_illegal() {
    // Sample and match does not even try such drafts.
    assert_eq!(follow_all(DraftAccuracy::Always(ILLEGAL), true), 0);
}

#[test]
fn so_it_does_when_most_drafts_are_illegal() {
    assert!(follow_all(DraftAccuracy::Always(b'"'.into()), true) > 0);
}

/// Returns how many drafts were verified: by sample and match if requests are `seeded`, otherwise
/// by rejection sampling.
fn follow_all(skill: DraftAccuracy, seeded: bool) -> u64 {
    let cases = cases();
    let mut setup = Setup { skill, ..Setup::steady() };
    setup.config.verification = Verification::Rejection { draft_temperature: 1.0 };
    let server = Server::start(setup);
    let (next, drafted) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= GENERATIONS {
                        return;
                    }
                    let case = &cases[seed as usize % cases.len()];
                    let seed = seeded.then_some(seed);
                    drafted.fetch_add(follow(&server, case, seed), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(server.get("/load").good()["server_load"], 0);
    drafted.into_inner()
}

/// Runs one case; returns how many drafts were verified.
fn follow(server: &Server, case: &Case, seed: Option<u64>) -> u64 {
    let form = json!({"name": "case", "schema": case.schema, "strict": true});
    // Tokens that close strings, lists, objects and the reply are made likely: otherwise random
    // text would not end.
    let bias = json!({"34": 8, "93": 8, "125": 8, "258": 8});
    let request = json!({
        "messages": [{"role": "user", "content": "say:no JSON at all"}],
        "response_format": {"type": "json_schema", "json_schema": form},
        "chat_template_kwargs": {"enable_thinking": false},
        "seed": seed, "temperature": 1, "logit_bias": bias, "max_tokens": 1500,
    });
    let answer = server.post("/v1/chat/completions", &request).good();
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    let drafted = answer["metrics"]["speculative_decoding"]["num_draft_tokens"].as_u64();
    // Without a seed, every run differs, and a reply may not end.
    if seed.is_none() && choice["finish_reason"] == "length" {
        return drafted.unwrap_or_default();
    }
    assert_eq!(choice["finish_reason"], "stop", "{} seed {seed:?}: {text}", case.name);
    let document: Value = serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("{} seed {seed:?}: {error}: {text}", case.name));
    if let Err(error) = case.oracle.validate(&document) {
        panic!("{} seed {seed:?}: {error}: {text}", case.name);
    }
    drafted.unwrap_or_default()
}
