//! How many drafts are accepted on held-out text, measured through the API, compared with PyTorch's
//! results on the same prompts (`crates/demo/train/evaluate.py`).
//!
//! `cargo test --release --test demo -- --ignored --nocapture` prints the table of
//! `benches/results/demo_acceptance.md`. It also writes every reply to the file that it names, for
//! `evaluate.py --replies`, in which PyTorch judges the same text. Another test does the same with
//! a GPU.

#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use kilotok_abi::TokenId;
use kilotok_engine::Verification;
use kilotok_model::Knobs;
use serde_json::{Value, json};

use crate::of_demo;
use crate::replies::{BEYOND, DRAFTS, check_metrics};
use crate::server::{Round, Server};

/// Most tokens of a prompt and its reply that are evaluated.
const LENGTH: usize = 512;
/// Name, temperature and `top_p` of each mode, as in `evaluate.py`.
const MODES: [(&str, f32, f32); 3] =
    [("greedy", 0.0, 1.0), ("temperature 1", 1.0, 1.0), ("temperature 1, top_p 0.95", 1.0, 0.95)];
const RULES: [(&str, Verification); 2] = [
    ("match", Verification::Match),
    ("rejection", Verification::Rejection { draft_temperature: 0.4 }),
];
/// As written by `rules.py`.
const TEMPERATURES: [&str; 2] = ["0.6", "1.0"];
/// Allowed difference between the served and PyTorch's acceptance length. The draws differ, so if
/// the sample is too small for this, [`ERRORS_MAX`] standard errors of the difference are allowed.
const SLACK: f64 = 0.05;
/// One correct comparison in 400 differs by more.
const ERRORS_MAX: f64 = 3.0;
/// The smallest acceptance lengths that the demo must show: set, mode, length.
const LEAST: [(&str, &str, f64); 5] = [
    ("code", "greedy", 4.0),
    ("code", "temperature 1", 3.3),
    ("chat", "greedy", 2.5),
    ("chat", "temperature 1", 2.5),
    ("chat", "temperature 1, top_p 0.95", 2.5),
];

/// The number of accepted drafts of each round, for each reply.
#[derive(Default)]
struct Replies(Vec<Vec<usize>>);

impl Replies {
    fn round_count(&self) -> f64 {
        self.0.iter().map(Vec::len).sum::<usize>() as f64
    }

    /// The shares of rounds that accept at least one draft, two drafts, and so on.
    fn rates(&self) -> Vec<f64> {
        let rate = |least: usize| {
            let rounds = self.0.iter().flatten();
            rounds.filter(|accepted| **accepted >= least).count() as f64 / self.round_count()
        };
        (1..=DRAFTS).map(rate).collect()
    }

    fn length(&self) -> f64 {
        1.0 + self.rates().iter().sum::<f64>()
    }

    /// Length, standard error, rates and rounds as the cells of a table.
    fn cells(&self) -> String {
        let rates: Vec<_> = self.rates().iter().map(|rate| format!("{rate:.3}")).collect();
        let (length, error, rounds) = (self.length(), self.standard_error(), self.round_count());
        format!("| {length:.3} | {error:.3} | {} | {rounds} |", rates.join(" "))
    }

    /// The standard error of the length. Rounds of the same reply are correlated, so the sample
    /// consists of replies.
    fn standard_error(&self) -> f64 {
        let mean = self.length() - 1.0;
        let residual = |rounds: &Vec<usize>| {
            (rounds.iter().sum::<usize>() as f64 - mean * rounds.len() as f64).powi(2)
        };
        let count = self.0.len() as f64;
        let sum: f64 = self.0.iter().map(residual).sum();
        (sum * count / (count - 1.0)).sqrt() / self.round_count()
    }
}

/// The accepted drafts of the rounds whose drafts all lie within the reply. PyTorch leaves out the
/// other rounds too, because tokens after the end are not part of the text.
fn counted(rounds: &[Round], length: usize) -> Vec<usize> {
    let mut said = 0;
    let mut accepted = Vec::new();
    for round in rounds {
        // The first token comes from the prompt, without drafts.
        if said > 0 && said + DRAFTS <= length {
            assert_eq!(round.drafted as usize, DRAFTS, "it was to draft as much as it can");
            accepted.push(round.tokens.len() - 1);
        }
        said += round.tokens.len();
    }
    accepted
}

/// Requests a reply. Returns its tokens within the evaluated length, and its rounds.
fn ask(server: &mut Server, prompt: &Value, body: &Value) -> (Vec<TokenId>, Vec<Round>) {
    let is_text = prompt["prompt"].is_string();
    let path = if is_text { "/v1/completions" } else { "/v1/chat/completions" };
    let (answer, rounds) = server.ask(path, body);
    let count = |name: &str| answer["usage"][name].as_u64().unwrap() as usize;
    let token_max = prompt["max_tokens"].as_u64().unwrap() as usize;
    assert_eq!(count("prompt_tokens") + token_max, LENGTH, "the template gives another prompt");
    check_metrics(&answer, &rounds);
    let mut tokens: Vec<TokenId> = rounds.iter().flat_map(|round| round.tokens.clone()).collect();
    tokens.truncate(count("completion_tokens").min(token_max));
    (tokens, rounds)
}

fn body_of(prompt: &Value, seed: usize, temperature: f32, top_p: f32) -> Value {
    let mut body = json!({
        "max_tokens": prompt["max_tokens"].as_u64().unwrap() as usize + BEYOND,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    });
    for field in ["prompt", "messages", "tools"] {
        if !prompt[field].is_null() {
            body[field] = prompt[field].clone();
        }
    }
    if !prompt["enable_thinking"].is_null() {
        body["chat_template_kwargs"] = json!({ "enable_thinking": prompt["enable_thinking"] });
    }
    body
}

#[test]
#[ignore = "a thousand replies: minutes in release, see the file's head"]
fn acceptance_is_what_pytorch_says() {
    measure(Server::start(), false);
}

/// With `--draft-fp8`: the drafts differ, but equally many must be accepted, within the slack.
#[test]
#[ignore = "a thousand replies: minutes in release, see the file's head"]
fn acceptance_of_fp8_drafts_is_what_pytorch_says_of_floats() {
    let knobs = Knobs { draft_fp8: true, ..Knobs::default() };
    measure(Server::start_with(&knobs), true);
}

#[test]
#[ignore = "a thousand replies: a minute with a GPU, see the file's head"]
fn acceptance_from_a_gpu_is_what_pytorch_says() {
    match Server::start_on_gpu(Verification::Match) {
        Ok(server) => measure(server, true),
        Err(reason) => println!("skipped: {reason}"),
    }
}

/// The lengths of both rules on every set, at the temperatures at which models are served, compared
/// with those of `crates/demo/train/rules.py`. Every reply is written to a file for that program's
/// `--replies`.
#[test]
#[ignore = "fourteen hundred replies: minutes in release, see the file's head"]
fn rejection_sampling_accepts_as_many_drafts() {
    measure_rules(|rule| Ok(Server::start_verifying(rule)));
}

#[test]
#[ignore = "fourteen hundred replies: a minute with a GPU, see the file's head"]
fn rejection_sampling_from_a_gpu_accepts_as_many_drafts() {
    measure_rules(Server::start_on_gpu);
}

fn measure_rules(start: impl Fn(Verification) -> Result<Server, String>) {
    let prompts = prompts();
    let figures = std::fs::read(of_demo("figures/held_out.rules.json")).unwrap();
    let figures: Value = serde_json::from_slice(&figures).unwrap();
    let (mut lines, mut failures) = (String::new(), Vec::new());
    // The length and its error with sample and match.
    let mut matched: BTreeMap<(String, &str), (f64, f64)> = BTreeMap::new();
    println!("| text | temperature | rule | PyTorch | length | standard error | rates | rounds |");
    println!("|---|---:|---|---:|---:|---:|---|---:|");
    for (rule, verification) in RULES {
        let mut server = match start(verification) {
            Ok(server) => server,
            Err(reason) => return println!("skipped: {reason}"),
        };
        for temperature in TEMPERATURES {
            for (set, replies) in ask_all(&mut server, &prompts, temperature, rule, &mut lines) {
                let (length, error) = (replies.length(), replies.standard_error());
                let expected = &figures[&set][temperature][rule];
                let number = |name: &str| expected[name].as_f64().unwrap();
                let (theirs, their_error) = (number("length"), number("error"));
                println!("| {set} | {temperature} | {rule} | {theirs:.3} {}", replies.cells());
                let by_chance = ERRORS_MAX * error.hypot(their_error);
                if (length - theirs).abs() > SLACK.max(by_chance) {
                    failures
                        .push(format!("{set}, {temperature}, {rule}: {length:.3}, {theirs:.3}"));
                }
                let usual = *matched.entry((set.clone(), temperature)).or_insert((length, error));
                if length < usual.0 - ERRORS_MAX * error.hypot(usual.1) {
                    failures
                        .push(format!("{set}, {temperature}: {length:.3} after {:.3}", usual.0));
                }
            }
        }
    }
    write_replies("demo_rules.jsonl", &lines);
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Requests replies to all prompts. Returns them by set, and adds a line for each to `lines`.
fn ask_all(
    server: &mut Server,
    prompts: &[Value],
    temperature: &str,
    rule: &str,
    lines: &mut String,
) -> BTreeMap<String, Replies> {
    let mut sets: BTreeMap<String, Replies> = BTreeMap::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let mut body = body_of(prompt, 0, temperature.parse().unwrap(), 1.0);
        // A reply with a seed is always verified by sample and match.
        body.as_object_mut().unwrap().remove("seed");
        let (tokens, rounds) = ask(server, prompt, &body);
        let accepted = counted(&rounds, tokens.len());
        let line = json!({
            "prompt": index, "set": prompt["set"], "temperature": temperature, "rule": rule,
            "tokens": tokens, "accepted": accepted,
        });
        writeln!(lines, "{line}").unwrap();
        sets.entry(prompt["set"].as_str().unwrap().to_owned()).or_default().0.push(accepted);
    }
    sets
}

fn prompts() -> Vec<Value> {
    let prompts = std::fs::read_to_string(of_demo("held_out.jsonl")).unwrap();
    prompts.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `others`: greedy text or drafts may differ from PyTorch's.
fn measure(mut server: Server, others: bool) {
    let prompts = prompts();
    let figures = std::fs::read(of_demo("figures/held_out.figures.json")).unwrap();
    let figures: Value = serde_json::from_slice(&figures).unwrap();
    let mut lines = String::new();
    let mut failures = Vec::new();
    println!("| text | mode | PyTorch | length | standard error | rates 1 to 7 | rounds |");
    println!("|---|---|---:|---:|---:|---|---:|");
    for (mode, temperature, top_p) in MODES {
        let mut sets: BTreeMap<&str, Replies> = BTreeMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let set = prompt["set"].as_str().unwrap();
            let body = body_of(prompt, index, temperature, top_p);
            let (tokens, rounds) = ask(&mut server, prompt, &body);
            let accepted = counted(&rounds, tokens.len());
            let line = json!({
                "prompt": index, "set": set, "mode": mode, "tokens": tokens, "accepted": accepted,
            });
            writeln!(lines, "{line}").unwrap();
            sets.entry(set).or_default().0.push(accepted);
        }
        for (set, replies) in &sets {
            let expected = figures[set][mode]["length"].as_f64().unwrap();
            failures.extend(judge(set, mode, replies, expected, others));
        }
    }
    write_replies("demo_replies.jsonl", &lines);
    assert!(failures.is_empty(), "{failures:#?}");
}

fn write_replies(name: &str, lines: &str) {
    // The second folder exists where there are only the files for a machine with GPUs.
    let folders = [env!("CARGO_TARGET_TMPDIR"), "out"].map(Path::new);
    let folder = folders.into_iter().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let path = folder.join(name);
    std::fs::write(&path, lines).unwrap();
    println!("\nevery reply is in {}", path.display());
}

/// Prints a line of the table, and returns what is wrong with it.
fn judge(set: &str, mode: &str, replies: &Replies, expected: f64, others: bool) -> Option<String> {
    let (length, error) = (replies.length(), replies.standard_error());
    println!("| {set} | {mode} | {expected:.3} {}", replies.cells());
    // PyTorch's own draws have an error of the same size. A GPU's greedy text departs from
    // PyTorch's at the first near tie, and is a different draw from there on; so are drafts of
    // other weights.
    let by_chance =
        if mode == "greedy" && !others { 0.0 } else { ERRORS_MAX * error * 2_f64.sqrt() };
    let least = LEAST.iter().find(|(s, m, _)| (*s, *m) == (set, mode));
    if (length - expected).abs() > SLACK.max(by_chance) {
        Some(format!("{set}, {mode}: {length:.3}, PyTorch says {expected:.3}"))
    } else if let Some((_, _, least)) = least.filter(|(_, _, least)| length < *least) {
        Some(format!("{set}, {mode}: {length:.3} is below {least}"))
    } else {
        None
    }
}
