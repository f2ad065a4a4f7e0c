//! `/v1/chat/completions`: the contents of a stream's chunks, and that they add up to the whole
//! reply.

use kilotok_testkit::with_fields;
use serde_json::{Value, json};

use super::server::{Server, Setup};

const PATH: &str = "/v1/chat/completions";

/// A request whose reply is known.
fn say(text: &str, more: &Value) -> Value {
    let request = json!({
        "model": "toy",
        "messages": [{"role": "user", "content": format!("say:{text}")}],
        "temperature": 0,
    });
    with_fields(request, more)
}

/// A request with a random reply.
fn babble(more: &Value) -> Value {
    let request = json!({
        "messages": [{"role": "user", "content": "anything"}],
        "seed": 7,
        "max_tokens": 24,
        "ignore_eos": true,
    });
    with_fields(request, more)
}

fn choice(answer: &Value) -> &Value {
    &answer["choices"][0]
}

fn content(answer: &Value) -> &str {
    choice(answer)["message"]["content"].as_str().unwrap()
}

#[test]
fn a_reply() {
    let server = Server::start(Setup::steady());
    let answer = server.post(PATH, &say("hello there", &json!({}))).good();
    assert_eq!(content(&answer), "hello there");
    assert_eq!(choice(&answer)["finish_reason"], "stop");
    assert_eq!(choice(&answer)["stop_reason"], Value::Null);
    assert_eq!(choice(&answer)["message"]["role"], "assistant");
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "toy");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    // The end token counts as a token.
    assert_eq!(answer["usage"]["completion_tokens"], "hello there".len() + 1);
    let metrics = &answer["metrics"];
    assert!(metrics["tokens_per_second"].as_f64().unwrap() > 0.0, "{metrics}");
    let drafts = &metrics["speculative_decoding"];
    let steps = drafts["num_spec_steps"].as_u64().unwrap();
    let by_count = drafts["acceptance_histogram"].as_array().unwrap();
    assert_eq!(by_count.iter().map(|count| count.as_u64().unwrap()).sum::<u64>(), steps);
    assert_eq!(by_count.len(), 8);
}

#[test]
fn a_stream_is_framed_as_clients_expect() {
    let server = Server::new();
    let request = say(
        "hällo thére",
        &json!({
            "stream": true, "stream_options": {"include_usage": true},
        }),
    );
    let answer = server.post(PATH, &request);
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    let events = answer.events();
    let (chunks, done) = events.split_at(events.len() - 1);
    assert_eq!(done[0], "[DONE]");
    for chunk in chunks {
        for field in ["id", "created", "model"] {
            assert_eq!(chunk[field], chunks[0][field]);
        }
        assert_eq!(chunk["object"], "chat.completion.chunk");
    }
    let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
    assert_eq!(delta(&chunks[0]), json!({"role": "assistant", "content": ""}));
    assert!(chunks[1..].iter().all(|chunk| delta(chunk)["role"].is_null()));
    let (usage, rest) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], "hällo thére".len() + 1);
    assert!(usage["metrics"]["tokens_per_second"].is_number());
    let (finish, said) = rest.split_last().unwrap();
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(delta(finish), json!({}));
    for chunk in said {
        assert!(chunk["choices"][0]["finish_reason"].is_null() && chunk["usage"].is_null());
    }
    let text: String =
        said.iter().map(|chunk| delta(chunk)["content"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, "hällo thére");
    // With drafts, several tokens of a step are in the same chunk.
    assert!(said.len() < text.len(), "{} chunks", said.len());
}

#[test]
fn usage_rides_along_if_asked_for() {
    let server = Server::new();
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let request = say("abcdefghij", &json!({"stream": true, "stream_options": options}));
    let events = server.post(PATH, &request).events();
    let counts: Vec<_> = events[1..events.len() - 1]
        .iter()
        .map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert!(counts.is_sorted() && counts.last() == Some(&11), "{counts:?}");
    assert!(events[2]["metrics"].is_object());
    let interval = json!({"stream": true, "stream_interval": 1000});
    let events = server.post(PATH, &say("abcdefghij", &interval)).events();
    // Role, first tokens, the other tokens if they came later, finish, and the end mark.
    assert!((4..=5).contains(&events.len()), "{events:?}");
    assert!(events[events.len() - 2]["metrics"]["tokens_per_second"].is_number());
}

/// The text and the reasoning of a stream with one choice.
fn heard(events: &[Value]) -> [String; 2] {
    let deltas = events.iter().map(|chunk| &chunk["choices"][0]["delta"]);
    ["content", "reasoning"]
        .map(|name| deltas.clone().filter_map(|delta| delta[name].as_str()).collect())
}

#[test]
fn choices_are_different_and_counted_together() {
    let server = Server::new();
    let answer = server.post(PATH, &babble(&json!({"n": 5}))).good();
    let choices = answer["choices"].as_array().unwrap();
    let texts: std::collections::BTreeSet<_> =
        choices.iter().map(|choice| choice["message"]["content"].to_string()).collect();
    assert_eq!((choices.len(), texts.len()), (5, 5));
    assert_eq!(answer["usage"]["completion_tokens"], 5 * 24);
    assert_eq!(answer["metrics"], Value::Null);
    let one = server.post(PATH, &babble(&json!({}))).good();
    assert_eq!(answer["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    // The first choice equals the only choice of a request with one.
    assert_eq!(choices[0]["message"], choice(&one)["message"]);
    let other = server.post(PATH, &babble(&json!({"seed": 8}))).good();
    assert_ne!(choice(&other)["message"], choice(&one)["message"]);
}

#[test]
fn stop_strings_end_a_reply() {
    let server = Server::new();
    let stopped = |more| server.post(PATH, &say("one two three", &more)).good();
    let answer = stopped(json!({"stop": ["xyz", " thr"]}));
    assert_eq!(content(&answer), "one two");
    assert_eq!(choice(&answer)["finish_reason"], "stop");
    assert_eq!(choice(&answer)["stop_reason"], " thr");
    assert_eq!(answer["usage"]["completion_tokens"], "one two thr".len());
    let answer = stopped(json!({"stop": "two", "include_stop_str_in_output": true}));
    assert_eq!(content(&answer), "one two");
    let answer = stopped(json!({"stop": "o", "min_tokens": 4}));
    assert_eq!(content(&answer), "one tw");
    let answer = stopped(json!({"stop_token_ids": [u32::from(b'w')]}));
    assert_eq!(content(&answer), "one t");
    assert_eq!(choice(&answer)["stop_reason"], u32::from(b'w'));
    let answer = stopped(json!({"max_completion_tokens": 5}));
    assert_eq!((content(&answer), &choice(&answer)["finish_reason"]), ("one t", &json!("length")));
    let events = server.post(PATH, &say("one two", &json!({"stop": "w", "stream": true}))).events();
    assert_eq!(heard(&events)[0], "one t");
}

#[test]
fn reasoning_has_both_its_names() {
    let server = Server::new();
    let told = "<think>let me see</think>forty-two";
    let answer = server.post(PATH, &say(told, &json!({}))).good();
    let message = &choice(&answer)["message"];
    assert_eq!(message["content"], "forty-two");
    assert_eq!(message["reasoning"], "let me see");
    assert_eq!(message["reasoning_content"], "let me see");
    let details = &answer["usage"]["completion_tokens_details"];
    // The closing tag counts as reasoning.
    assert_eq!(details["reasoning_tokens"], "let me see".len() + 1);
    let events = server.post(PATH, &say(told, &json!({"stream": true}))).events();
    assert_eq!(heard(&events), ["forty-two", "let me see"]);
    for chunk in &events[..events.len() - 1] {
        let delta = &chunk["choices"][0]["delta"];
        assert_eq!(delta["reasoning"], delta["reasoning_content"]);
    }
    let answer = server.post(PATH, &say(told, &json!({"include_reasoning": false}))).good();
    assert_eq!(choice(&answer)["message"].get("reasoning"), None);
    assert_eq!(content(&answer), "forty-two");
    let off = json!({"reasoning_effort": "none"});
    let prompt = server.post("/v1/chat/completions/render", &say("x", &off)).good();
    assert!(prompt["prompt"].as_str().unwrap().ends_with("<think></think>"), "{prompt}");
}

#[test]
fn log_probabilities_rebuild_the_text() {
    let server = Server::new();
    let more = json!({"logprobs": true, "top_logprobs": 2, "return_token_ids": true});
    let answer = server.post(PATH, &say("naïve", &more)).good();
    let tokens = choice(&answer)["logprobs"]["content"].as_array().unwrap();
    // The end token has an entry too, as in vLLM.
    let bytes: Vec<u8> = tokens[..tokens.len() - 1]
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(bytes, "naïve".as_bytes());
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    let ids = choice(&answer)["token_ids"].as_array().unwrap();
    assert_eq!(ids.len(), tokens.len());
    assert!(answer["prompt_token_ids"].as_array().unwrap().len() > 10);
    let answer = server.post(
        PATH,
        &say(
            "ab",
            &json!({
                "logprobs": true, "return_tokens_as_token_ids": true, "prompt_logprobs": 1,
            }),
        ),
    );
    let answer = answer.good();
    assert_eq!(choice(&answer)["logprobs"]["content"][0]["token"], "token_id:97");
    let prompt = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!(prompt.len() as u64, answer["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(prompt[0].is_null() && prompt[1].is_object());
}

#[test]
fn a_prompt_that_was_computed_is_not_computed_again() {
    let server = Server::new();
    let request = say("the same thing, at some length", &json!({}));
    let first = server.post(PATH, &request).good();
    let second = server.post(PATH, &request).good();
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(&first), 0);
    assert!(cached(&second).as_u64().unwrap() > 0);
    let salted = with_fields(request, &json!({"cache_salt": "mine"}));
    assert_eq!(cached(&server.post(PATH, &salted).good()), 0);
}

#[test]
fn prompts_are_rendered_cut_and_continued() {
    let server = Server::new();
    let request = json!({"messages": [
        {"role": "user", "content": "say:abcdef"},
        {"role": "assistant", "content": "abc"},
    ], "continue_final_message": true, "echo": true,
       "chat_template_kwargs": {"enable_thinking": false}});
    let answer = server.post(PATH, &request).good();
    assert_eq!(content(&answer), "abcdef");
    // The user's text is not part of the reply's message.
    let answer = server.post(PATH, &say("ab", &json!({"echo": true}))).good();
    assert_eq!(content(&answer), "ab");
    let long = "x".repeat(5000);
    let answer = server.post(PATH, &say(&long, &json!({})));
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("messages"))
    );
    let cut = json!({"truncate_prompt_tokens": 100, "max_tokens": 1});
    let answer = server.post(PATH, &say(&long, &cut)).good();
    assert_eq!(answer["usage"]["prompt_tokens"], 100);
}
