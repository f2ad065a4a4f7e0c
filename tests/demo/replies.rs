//! The server's replies: the tokens and rounds must be the oracle's, and the template's parts must
//! become the API's fields.

use serde_json::{Value, json};

use crate::expected::{Expected, PROMPT_COUNT};
use crate::server::{Round, Server};

/// Drafts of a round: as many as the drafter can make.
pub(crate) const DRAFTS: usize = 7;
/// More tokens than are evaluated, so that the end of the request cuts no evaluated round short.
pub(crate) const BEYOND: usize = DRAFTS + 1;

/// Checks the reply's own report of how many steps accepted 0, 1, 2 .. drafts.
pub(crate) fn check_metrics(answer: &Value, rounds: &[Round]) {
    let mut counts = vec![0; DRAFTS + 1];
    for round in rounds.iter().filter(|round| round.drafted > 0) {
        counts[round.tokens.len() - 1] += 1;
    }
    let told = &answer["metrics"]["speculative_decoding"]["acceptance_histogram"];
    if told.is_null() {
        assert_eq!(counts, [0; DRAFTS + 1], "{answer}");
    } else {
        assert_eq!(*told, json!(counts), "{answer}");
    }
}

#[test]
fn served_rounds_are_the_oracles() {
    let mut server = Server::start();
    for prompt in 0..PROMPT_COUNT {
        let expected = Expected::read(prompt);
        let tokens = expected.tokens("prompt");
        let reply = expected.tokens("tokens").split_off(tokens.len());
        let body = json!({
            "prompt": tokens,
            "max_tokens": reply.len() + BEYOND,
            "temperature": 0,
            "return_token_ids": true,
        });
        let (answer, rounds) = server.ask("/v1/completions", &body);
        let said: Vec<u32> =
            serde_json::from_value(answer["choices"][0]["token_ids"].clone()).unwrap();
        assert_eq!(said[..reply.len()], reply, "prompt {prompt}");
        for (round, found) in rounds.iter().take(expected.round_count()).enumerate() {
            let emitted = expected.tokens(&format!("round.{round}.emitted"));
            assert_eq!(found.tokens, emitted, "prompt {prompt}, round {round}");
        }
        check_metrics(&answer, &rounds);
    }
}

fn tool(name: &str, argument: &str, kind: &str) -> Value {
    json!({
        "type": "function",
        "function": {
            "name": name,
            "description": "Does it.",
            "parameters": {
                "type": "object",
                "properties": { argument: { "type": kind, "description": "Which." } },
                "required": [argument],
            },
        },
    })
}

#[test]
fn it_calls_the_tool_that_fits() {
    let mut server = Server::start();
    let tools = [tool("read_file", "path", "string"), tool("set_timer", "minutes", "integer")];
    for (asked, name, arguments) in [
        ("Set a timer for 7 minutes.", "set_timer", json!({ "minutes": 7 })),
        ("Read tables.py.", "read_file", json!({ "path": "tables.py" })),
    ] {
        let body = json!({
            "messages": [{ "role": "user", "content": asked }],
            "tools": tools,
            "temperature": 0,
            "max_tokens": 128,
        });
        let (answer, _) = server.ask("/v1/chat/completions", &body);
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(call["name"], name, "{answer}");
        let said: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(said, arguments, "{answer}");
    }
}
