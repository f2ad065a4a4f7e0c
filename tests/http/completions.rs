//! `/v1/completions`, as lm-eval and others use it, and the tokenizer's endpoints.

use kilotok_testkit::with_fields;
use serde_json::{Value, json};

use super::server::Server;

const PATH: &str = "/v1/completions";

fn numbers(value: &Value) -> Vec<Option<f64>> {
    value.as_array().unwrap().iter().map(Value::as_f64).collect()
}

#[test]
fn prompts_come_in_four_forms() {
    let server = Server::new();
    let texts = |prompt: Value| {
        let request = json!({"prompt": prompt, "temperature": 0, "max_tokens": 8});
        let answer = server.post(PATH, &request).good();
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(texts(json!("say:abc\n")), ["abc"]);
    assert_eq!(texts(json!(["say:abc\n", "say:defg\n"])), ["abc", "defg"]);
    assert_eq!(texts(json!(ids("say:abc\n"))), ["abc"]);
    assert_eq!(texts(json!([ids("say:abc\n"), ids("say:de\n")])), ["abc", "de"]);
    for bad in [json!([]), json!([[]]), json!(["a", 1]), json!([1, "a"]), json!(3), json!([-1])] {
        let answer = server.post(PATH, &json!({"prompt": bad}));
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
        assert!(answer.json()["error"]["param"].as_str().unwrap().starts_with("prompt"), "{bad}");
    }
    let answer = server.post(PATH, &json!({"prompt": [7, 265]}));
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("token 265"));
}

/// As in lm-eval: the log-likelihood of a text is read from its echo.
#[test]
fn an_echo_scores_the_prompt() {
    let server = Server::new();
    let request = json!({
        "prompt": "some text", "max_tokens": 1, "temperature": 0, "logprobs": 2, "echo": true,
        "seed": 1234, "ignore_eos": true,
    });
    let answer = server.post(PATH, &request).good();
    let choice = &answer["choices"][0];
    let logprobs = &choice["logprobs"];
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with("some text") && text.len() > "some text".len());
    let chosen = numbers(&logprobs["token_logprobs"]);
    assert_eq!(chosen.len(), "some text".len() + 1);
    assert_eq!(chosen[0], None);
    assert!(chosen[1..].iter().all(|logprob| logprob.unwrap() < 0.0));
    assert_eq!(logprobs["text_offset"].as_array().unwrap().len(), chosen.len());
    assert_eq!(logprobs["text_offset"][3], 3);
    assert_eq!(logprobs["tokens"][3], "e");
    for (index, logprob) in chosen.iter().enumerate().skip(1) {
        let top = logprobs["top_logprobs"][index].as_object().unwrap();
        assert!((2..=3).contains(&top.len()));
        assert_eq!(top[logprobs["tokens"][index].as_str().unwrap()].as_f64(), *logprob);
    }
    // lm-eval drops the last token. It must be there, even if it is the end token.
    let mut end = request.clone();
    end["prompt"] = json!("say:\n");
    end["ignore_eos"] = json!(false);
    let end = &server.post(PATH, &end).good()["choices"][0];
    assert_eq!((&end["finish_reason"], &end["text"]), (&json!("stop"), &json!("say:\n")));
    assert_eq!(numbers(&end["logprobs"]["token_logprobs"]).len(), "say:\n".len() + 1);
    // A request for the scores only.
    let mut silent = request.clone();
    silent["max_tokens"] = json!(0);
    let silent = server.post(PATH, &silent).good();
    assert_eq!(silent["choices"][0]["text"], "some text");
    let scores = numbers(&silent["choices"][0]["logprobs"]["token_logprobs"]);
    assert_eq!(scores, chosen[..chosen.len() - 1]);
    // The same as a stream.
    let mut stream = request;
    stream["stream"] = json!(true);
    let events = server.post(PATH, &stream).events();
    let mut told = Vec::new();
    let mut offsets = Vec::new();
    for chunk in &events[..events.len() - 1] {
        let logprobs = &chunk["choices"][0]["logprobs"];
        if logprobs.is_object() {
            told.extend(numbers(&logprobs["token_logprobs"]));
            offsets.extend(logprobs["text_offset"].as_array().unwrap().clone());
        }
    }
    assert_eq!(told, chosen);
    assert_eq!(Value::from(offsets), logprobs["text_offset"]);
}

#[test]
fn a_score_is_what_generating_said() {
    let server = Server::new();
    let request = json!({
        "prompt": "begin", "max_tokens": 12, "seed": 3, "logprobs": 0, "ignore_eos": true,
        "return_token_ids": true,
    });
    let generated = &server.post(PATH, &request).good()["choices"][0];
    let ids = [&generated["prompt_token_ids"], &generated["token_ids"]];
    let ids: Vec<_> = ids.into_iter().flat_map(|ids| ids.as_array().unwrap()).collect();
    let request = json!({"prompt": ids, "max_tokens": 0, "logprobs": 0, "echo": true});
    let scored = &server.post(PATH, &request).good()["choices"][0];
    let scores = numbers(&scored["logprobs"]["token_logprobs"]);
    assert_eq!(scores[5..], numbers(&generated["logprobs"]["token_logprobs"]));
}

#[test]
fn nothing_can_be_asked_for() {
    let server = Server::new();
    let request = json!({"prompt": ["ab", "c"], "max_tokens": 0, "echo": true, "n": 2});
    let answer = server.post(PATH, &request).good();
    let texts: Vec<_> =
        answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["ab", "ab", "c", "c"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

/// A single token has no score. This is not an error, for the sake of the other prompts.
#[test]
fn short_prompts_are_echoed_beside_those_that_are_scored() {
    let server = Server::new();
    let scores = |choice: &Value| numbers(&choice["logprobs"]["token_logprobs"]).len();
    let request = json!({
        "prompt": ["x", "some text", "y"], "max_tokens": 0, "echo": true, "logprobs": 1, "n": 2,
    });
    let answer = server.post(PATH, &request).good();
    let mut streamed = request;
    streamed["stream"] = json!(true);
    let events = server.post(PATH, &streamed).events();
    for (index, text) in ["x", "x", "some text", "some text", "y", "y"].into_iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!(text)));
        assert_eq!((scores(choice), &choice["finish_reason"]), (text.len(), &json!("length")));
        let chunks = events.iter().map(|event| &event["choices"][0]);
        let chunks: Vec<_> = chunks.filter(|chunk| chunk["index"] == index).collect();
        let [echo, end] = &chunks[..] else { panic!("{chunks:?}") };
        assert_eq!((scores(echo), &echo["text"]), (text.len(), &json!(text)));
        assert_eq!(end["finish_reason"], "length");
    }
    assert_eq!(answer["usage"]["prompt_tokens"], "xsome texty".len());
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null]));
}

#[test]
fn choices_are_numbered_by_prompt() {
    let server = Server::new();
    let request =
        json!({"prompt": ["say:a\n", "say:b\n"], "n": 2, "temperature": 0, "stream": true});
    let events = server.post(PATH, &request).events();
    let mut texts = vec![String::new(); 4];
    for choice in events.iter().filter_map(|event| event["choices"].as_array()).flatten() {
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ["a", "a", "b", "b"]);
}

#[test]
fn only_allowed_tokens_come() {
    let server = Server::new();
    let request = json!({
        "prompt": "x", "max_tokens": 40, "allowed_token_ids": [97, 98, 99], "temperature": 1,
    });
    let answer = server.post(PATH, &request).good();
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() == 40 && text.chars().all(|c| "abc".contains(c)), "{text}");
    let request = json!({
        "prompt": "x", "max_tokens": 60, "allowed_token_ids": [97, 98], "bad_words": ["ab", "bb"],
    });
    let answer = server.post(PATH, &request).good();
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(!text.contains("ab") && !text.contains("bb"), "{text}");
    for taken in [json!({"bad_words": ["a"]}), json!({"regex": "b"})] {
        let request = json!({"prompt": "x", "allowed_token_ids": [97], "ignore_eos": true});
        let answer = server.post(PATH, &with_fields(request, &taken));
        assert_eq!(answer.json()["error"]["code"], "nothing_allowed", "{}", answer.text());
    }
    let request = json!({"prompt": "x", "regex": "ab", "bad_words": ["b"], "ignore_eos": true});
    let answer = server.post(PATH, &request);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "nothing_allowed");
    // The error is the same whichever prompt reaches the position first, so drafts do not change
    // it.
    for prompts in [["x", "xyz"], ["xyz", "x"]] {
        let mut request = request.clone();
        request["prompt"] = json!(prompts);
        assert_eq!(server.post(PATH, &request).text(), answer.text());
    }
    let request = json!({"prompt": "x", "regex": "ab", "ignore_eos": true});
    assert_eq!(server.post(PATH, &request).good()["choices"][0]["text"], "ab");
}

#[test]
fn text_and_tokens() {
    let server = Server::new();
    let request = json!({"prompt": "a<|im_end|>é", "return_token_strs": true});
    let answer = server.post("/tokenize", &request).good();
    assert_eq!(answer["tokens"], json!([97, 258, 0xc3, 0xa9]));
    assert_eq!((&answer["count"], &answer["token_strs"][1]), (&json!(4), &json!("<|im_end|>")));
    let back = server.post("/detokenize", &json!({"tokens": answer["tokens"]})).good();
    assert_eq!(back["prompt"], "a<|im_end|>é");
    let talk = json!({"messages": [{"role": "user", "content": "hi"}]});
    let tokens = server.post("/tokenize", &talk).good()["tokens"].clone();
    let rendered = server.post("/v1/chat/completions/render", &talk).good();
    assert_eq!(rendered["token_ids"], tokens);
    let text = server.post("/detokenize", &json!({"tokens": tokens})).good();
    assert_eq!(text["prompt"], rendered["prompt"]);
    assert!(rendered["prompt"].as_str().unwrap().ends_with("<|im_start|>assistant\n"));
    let answer = server.post("/detokenize", &json!({"tokens": [1, 2, 999]}));
    assert_eq!(answer.json()["error"]["param"], "tokens[2]");
    assert_eq!(server.post("/tokenize", &json!({})).status, 400);
}
