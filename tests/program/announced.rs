//! What a server announces about itself: on its page, and at its start.

use super::{CHAT, Server, kilotok, model, serving};

#[test]
fn the_page_asks_the_demo_model_what_it_can_answer() {
    let mut command = kilotok(&["serve", "--port", "0"]);
    let server = Server::spawn(command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")));
    let page = server.request("GET / HTTP/1.1", "");
    let answers = ["def primes", "def merge", "97", "Python functions"];
    assert_eq!(kilotok_demo::EXAMPLES.len(), answers.len());
    for (example, says) in kilotok_demo::EXAMPLES.iter().zip(answers) {
        assert!(page.contains(example), "{example}");
        let messages = serde_json::json!([{"role": "user", "content": example}]);
        let request = serde_json::json!({"messages": messages, "temperature": 0});
        let answer = server.request(CHAT, &request.to_string());
        assert!(answer.contains(says), "{example}: {answer}");
    }
}

#[test]
fn a_server_that_is_open_to_all_says_so_where_it_is_read() {
    let server = Server::start(&["--host", "0.0.0.0"]);
    let warning = server.said.find("WARNING: anyone who can reach this server may use it");
    let ready = server.said.find("ready after").unwrap();
    assert!(warning.is_some_and(|at| at < ready), "{}", server.said);
    assert!(server.said.contains("--host 127.0.0.1"), "{}", server.said);
    for closed in [&["--host", "0.0.0.0", "--api-key", "k"][..], &[]] {
        let server = Server::spawn(serving(model(), closed).env_remove("KILOTOK_API_KEY"));
        assert!(!server.said.contains("anyone"), "{}", server.said);
    }
}
