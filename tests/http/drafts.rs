//! Drafts change no token: random requests of every kind must get the same bytes with and without
//! drafts, with and without a stream, however good the drafts are and whatever else is served.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kilotok_cpu::{CpuEngine, CpuOptions};
use kilotok_engine::Verification;
use kilotok_model::Knobs;
use kilotok_testkit::{DraftAccuracy, Random};
use kilotok_text::Text;
use kilotok_weights::{Checkpoint, Quiet};
use serde_json::{Value, json};

use super::server::{Server, Setup};
use super::shapes::{CALLS, tools};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Number of requests to the scripted engine, which is fast.
const REQUESTS: u64 = 2000;
/// Number of requests to the demo model, which take two minutes of both cores. An ignored test
/// sends all of them.
const DEMO_REQUESTS: u64 = 40;
const DEMO_REQUESTS_ALL: u64 = 400;
/// Number of concurrent clients, so that rows share steps in many different ways.
const CLIENTS: usize = 4;

#[test]
fn random_requests_get_the_same_bytes_with_drafts_and_without() {
    let with = |skill| Server::start(Setup { skill, ..Setup::steady() });
    let (good, bad) = (with(DraftAccuracy::Percent(70)), with(DraftAccuracy::Always(b'!'.into())));
    let drafted = compare(REQUESTS, &good, &bad);
    assert!(drafted.accepted > 10_000, "drafts that are hardly accepted show little: {drafted:?}");
}

/// A reply reports how its drafts were verified.
#[test]
fn requests_that_sample_and_name_no_seed_are_verified_by_rejection_sampling() {
    let mut setup = Setup { skill: DraftAccuracy::Percent(70), ..Setup::steady() };
    setup.config.verification = Verification::Rejection { draft_temperature: 1.0 };
    let server = Server::start(setup);
    let seed = json!(7);
    for (seed, temperature, rule) in [
        (Value::Null, 1, "rejection"),
        (Value::Null, 0, "match"),
        (seed.clone(), 1, "match"),
        (seed, 0, "match"),
    ] {
        let request = json!({
            "prompt": "abc", "max_tokens": 40, "temperature": temperature, "seed": seed,
        });
        let answer = server.post(COMPLETIONS, &request).good();
        let speculation = &answer["metrics"]["speculative_decoding"];
        assert_eq!(speculation["verification"], rule, "{request}: {answer}");
    }
}

/// Assumed acceptance applies to all requests, produces as many tokens as assumed, and is reported.
#[test]
fn acceptance_can_be_assumed() {
    let mut setup = Setup { skill: DraftAccuracy::Always(b'!'.into()), ..Setup::steady() };
    setup.config.verification = Verification::assumed(2.5, 7).unwrap();
    let server = Server::start(setup);
    for (seed, temperature) in [(Value::Null, 1), (Value::Null, 0), (json!(7), 1)] {
        let request = json!({
            "prompt": "abc", "max_tokens": 400, "temperature": temperature, "seed": seed,
            "ignore_eos": true,
        });
        let answer = server.post(COMPLETIONS, &request).good();
        let speculation = &answer["metrics"]["speculative_decoding"];
        assert_eq!(speculation["verification"], "assumed", "{request}: {answer}");
        // The mean of some 160 steps, each of which deviates by about 2. Steps with fewer drafts
        // produce fewer tokens.
        let length = speculation["mean_acceptance_length"].as_f64().unwrap();
        assert!((1.7..3.2).contains(&length), "{length}");
    }
    let accepted = |rule| {
        let labels = r#"engine="0",model_name="toy",position="0",rule="#;
        server.metric(&format!("kilotok:drafts_accepted_total{{{labels}\"{rule}\"}}"))
    };
    assert!(accepted("assumed") > 0.0);
    assert_eq!(["match", "rejection"].map(accepted), [0.0; 2]);
}

#[test]
fn so_they_do_from_a_real_model() {
    let (one, other) = (demo(), demo());
    let drafted = compare(DEMO_REQUESTS, &one, &other);
    assert!(drafted.accepted > 100, "{drafted:?}");
}

#[test]
#[ignore = "takes minutes; a tenth of it runs always"]
fn so_do_many_from_a_real_model() {
    let (one, other) = (demo(), demo());
    let drafted = compare(DEMO_REQUESTS_ALL, &one, &other);
    assert!(drafted.accepted > 1000, "{drafted:?}");
}

/// The demo model on the reference engine.
fn demo() -> Server {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/demo/checkpoint");
    let checkpoint = Checkpoint::open(&folder, &Knobs::default()).unwrap();
    let options = CpuOptions {
        rank_count: 1,
        slot_count: 8,
        token_max: 128,
        position_max: 1024,
        page_tokens: 16,
        page_count: 512,
    };
    let engine = CpuEngine::start(checkpoint.spec(), &checkpoint, &options, &Quiet).unwrap();
    let Setup { limits, options, config, .. } = Setup::steady();
    let text = Text::open(&folder).unwrap();
    Server::of(Box::new(engine), text, limits, options, config)
}

#[derive(Debug, Default)]
struct Drafted {
    steps: u64,
    drafts: u64,
    accepted: u64,
}

/// Sends every request to one server without drafts and with them, and as a stream to the other
/// server.
fn compare(count: u64, one: &Server, other: &Server) -> Drafted {
    let next = AtomicU64::new(0);
    let drafted = Mutex::new(Drafted::default());
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let metrics = compare_one(seed, one, other);
                    let number = |name: &str| metrics[name].as_u64().unwrap_or_default();
                    let mut drafted = drafted.lock().unwrap();
                    drafted.steps += number("num_spec_steps");
                    drafted.drafts += number("num_draft_tokens");
                    drafted.accepted += number("num_accepted_draft_tokens");
                }
            });
        }
    });
    let drafted = drafted.into_inner().unwrap();
    for server in [one, other] {
        assert_eq!(server.get("/load").good()["server_load"], 0);
    }
    drafted
}

/// Sends one request in all these ways; returns the metrics of its drafts.
fn compare_one(seed: u64, one: &Server, other: &Server) -> Value {
    let (path, mut request) = request(&mut Random::new(seed));
    request["seed"] = json!(seed);
    request["request_id"] = json!(format!("r{seed}"));
    let mut ask = |server: &Server, drafts: bool, stream: bool| {
        request["drafts"] = json!(drafts);
        request["stream"] = json!(stream);
        // With a salt for each reply, no reply uses the pages of an earlier one.
        request["cache_salt"] = json!(format!("{seed} {drafts} {stream}"));
        server.post(path, &request)
    };
    let (plain, drafted, streamed) =
        (ask(one, false, false), ask(one, true, false), ask(other, true, true));
    assert_eq!(plain.status, drafted.status, "{seed}: {request}");
    if plain.status != 200 {
        assert_eq!(plain.text(), drafted.text(), "{seed}: {request}");
        // If a request is refused because of its grammar, it must be refused in every way.
        assert_eq!(plain.status, 400, "{seed}: {}: {request}", plain.text());
        return Value::Null;
    }
    let (mut plain, mut drafted) = (plain.good(), drafted.good());
    let metrics = drafted["metrics"]["speculative_decoding"].take();
    clear_times(&mut plain);
    clear_times(&mut drafted);
    assert_eq!(plain.to_string(), drafted.to_string(), "{seed}: {request}");
    let whole = told(&plain["choices"]);
    assert_eq!(whole, added_up(&streamed.events()), "{seed}: {request}");
    metrics
}

/// Removes the values that differ between any two replies: times, and random names.
fn clear_times(answer: &mut Value) {
    assert!(answer["created"].take().is_u64());
    answer["metrics"].take();
    for choice in answer["choices"].as_array_mut().unwrap() {
        for call in choice["message"]["tool_calls"].as_array_mut().into_iter().flatten() {
            assert!(call["id"].take().is_string());
        }
    }
}

/// The parts of a reply that its reader sees, with or without a stream.
#[derive(Debug, Default, PartialEq)]
struct Told {
    text: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    logprobs: Vec<Value>,
    token_ids: Vec<Value>,
    ended: Value,
}

impl Told {
    fn add(&mut self, said: &Value, choice: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.text += &text(&said["content"]);
        self.text += &text(&choice["text"]);
        self.reasoning += &text(&said["reasoning"]);
        for (place, call) in said["tool_calls"].as_array().into_iter().flatten().enumerate() {
            let index = call["index"].as_u64().map_or(place, |index| index as usize);
            if index == self.calls.len() {
                self.calls.push(<(String, String)>::default());
            }
            self.calls[index].0 += &text(&call["function"]["name"]);
            self.calls[index].1 += &text(&call["function"]["arguments"]);
        }
        let entries = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let logprobs = &choice["logprobs"];
        self.logprobs.extend(entries(&logprobs["content"]));
        let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
        let lists = lists.map(|list| entries(&logprobs[list]));
        for index in 0..lists[0].len() {
            let entry = |list: &Vec<Value>| list.get(index).cloned();
            self.logprobs.push(json!(lists.iter().map(entry).collect::<Vec<_>>()));
        }
        self.token_ids.extend(entries(&choice["token_ids"]));
        if !choice["finish_reason"].is_null() {
            self.ended = json!([choice["finish_reason"], choice["stop_reason"]]);
        }
    }
}

fn told(choices: &Value) -> Vec<Told> {
    let choices = choices.as_array().unwrap().iter();
    let tell = |choice: &Value| {
        let mut told = Told::default();
        told.add(&choice["message"], choice);
        told
    };
    choices.map(tell).collect()
}

fn added_up(events: &[Value]) -> Vec<Told> {
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let mut told: Vec<Told> = Vec::new();
    for chunk in chunks {
        for choice in chunk["choices"].as_array().unwrap_or_else(|| panic!("{chunk}")) {
            let index = choice["index"].as_u64().unwrap() as usize;
            told.resize_with(told.len().max(index + 1), Told::default);
            told[index].add(&choice["delta"], choice);
        }
    }
    told
}

const WORDS: [&str; 8] = [
    "one two three",
    "hällo thére 🦜",
    "",
    "a b a b a b",
    "<think>hm</think>yes",
    "E5e!",
    "{}",
    " ",
];

fn request(dice: &mut Random) -> (&'static str, Value) {
    let mut request = json!({"max_tokens": 1 + dice.below(60)});
    let path = if dice.percent(25) { COMPLETIONS } else { CHAT };
    if path == CHAT {
        talk(dice, &mut request);
    } else {
        let words = dice.pick(&WORDS);
        let said = if dice.percent(50) { format!("say:{words}\n") } else { format!("x{words}") };
        request["prompt"] = if dice.percent(30) { json!([said, "say:b\n"]) } else { json!(said) };
        if dice.percent(30) {
            request["echo"] = json!(true);
        }
        if dice.percent(40) {
            request["logprobs"] = json!(dice.below(5));
        }
    }
    choose(dice, &mut request);
    end(dice, &mut request);
    if dice.percent(20) {
        request["n"] = json!(1 + dice.below(3));
    }
    for flag in ["return_token_ids", "return_tokens_as_token_ids"] {
        if dice.percent(15) {
            request[flag] = json!(true);
        }
    }
    (path, request)
}

/// Chooses a conversation, and constraints of its reply.
fn talk(dice: &mut Random, request: &mut Value) {
    let shape = dice.below(6);
    let words = if shape == 1 { CALLS } else { dice.pick(&WORDS) };
    let content = if dice.percent(50) { format!("say:{words}") } else { words.to_owned() + "?" };
    request["messages"] = json!([{"role": "user", "content": content}]);
    if dice.percent(30) {
        let thinks = dice.percent(50);
        request["chat_template_kwargs"] = json!({"enable_thinking": thinks});
    }
    if dice.percent(30) {
        request["logprobs"] = json!(true);
        request["top_logprobs"] = json!(dice.below(4));
    }
    match shape {
        1 | 2 => {
            request["tools"] = tools();
            let named = json!({"type": "function", "function": {"name": "add"}});
            let choices = [json!("auto"), json!("required"), named, json!("none")];
            request["tool_choice"] = dice.pick(&choices);
            request["max_tokens"] = json!(60 + dice.below(120));
        }
        3 => {
            let form = json!({"name": "p", "schema": schema(), "strict": true});
            request["response_format"] = json!({"type": "json_schema", "json_schema": form});
        }
        4 => {
            let shapes = [
                json!({"regex": "[a-e]{2,9}(yes|no)"}),
                json!({"choice": ["red", "redder", "blue"]}),
                json!({"grammar": "start: /[a-c]+/ \"!\" | \"E5\" "}),
                json!({"json_object": true}),
            ];
            request["structured_outputs"] = dice.pick(&shapes);
        }
        _ => {}
    }
}

/// Chooses sampling parameters.
fn choose(dice: &mut Random, request: &mut Value) {
    request["temperature"] = dice.pick(&[json!(0), json!(0.3), json!(1), json!(1.7)]);
    let token = dice.below(256);
    let fields = [
        ("top_p", json!(0.8)),
        ("top_k", json!(1 + dice.below(40))),
        ("min_p", json!(0.05)),
        ("repetition_penalty", json!(1.3)),
        ("presence_penalty", json!(1.5)),
        ("frequency_penalty", json!(-0.7)),
        ("logit_bias", json!({token.to_string(): 7, "69": -100})),
        ("bad_words", json!(["e", "two"])),
    ];
    for (field, value) in fields {
        if dice.percent(15) {
            request[field] = value;
        }
    }
}

/// Chooses conditions that end the reply.
fn end(dice: &mut Random, request: &mut Value) {
    if dice.percent(30) {
        let stops = ["e", "E5", "two", "\u{15}", "ä", "u%"];
        request["stop"] = json!([dice.pick(&stops), dice.pick(&stops)]);
    }
    let fields = [
        ("include_stop_str_in_output", json!(true)),
        ("stop_token_ids", json!([101, 53])),
        ("min_tokens", json!(1)),
        ("ignore_eos", json!(true)),
        ("skip_special_tokens", json!(false)),
    ];
    for (field, value) in fields {
        if dice.percent(15) {
            request[field] = value;
        }
    }
}

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 99},
    }, "required": ["name", "age"], "additionalProperties": false})
}
