//! Several prompts in one request.

use serde_json::json;

use super::server::{Brake, Server, Setup, until};

#[test]
fn they_are_asked_together() {
    let brake = Brake::default();
    let server = Server::start(Setup { brake: Some(brake.clone()), ..Setup::default() });
    let prompts = ["say:a\n", "say:bc\n", "say:def\n", "say:ghij\n"];
    let request = json!({"prompt": prompts, "temperature": 0});
    let open = server.begin("/v1/completions", &request);
    // The engine is held, so no step ends.
    until("the fourth prompt", || server.get("/load").good()["server_load"] == 4);
    // Enough for all drafts too.
    brake.release(100_000);
    let answer = open.answer().good();
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "bc", "def", "ghij"]);
}

#[test]
fn all_are_let_in_or_none_is() {
    let server = Server::new();
    let long = "x".repeat(3000);
    let request = json!({"prompt": ["a", long, "b"], "max_tokens": 2});
    let answer = server.post("/v1/completions", &request);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("prompt")));
    until("an empty server", || server.get("/load").good()["server_load"] == 0);
    let request = json!({"prompt": ["say:a\n", "say:b\n"], "temperature": 0});
    let answer = server.post("/v1/completions", &request).good();
    assert_eq!(answer["choices"][1]["text"], "b");
}
