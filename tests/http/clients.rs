//! The clients that users have: OpenAI's and Anthropic's SDKs, schemathesis, Prometheus and a
//! browser drive a server. Their programs are in `tests/sdk` and `tests/page`.

use std::process::Command;
use std::time::Duration;

use kilotok_server::ServerConfig;
use kilotok_testkit::{ScriptedEngine, Skill};

use crate::server::{Server, Setup, text};

/// Tests run in the package's folder.
const PYTHON: &str = "target/sdk/venv/bin/python";

/// One key for our own programs, and the one that the tests of openai's SDK send.
const KEYS: [&str; 2] = ["test-key", "My API Key"];

/// The names that those tests ask for come after ours.
const NAMES: [&str; 3] = ["parrot", "gpt-6-astra", "gpt-3.5-turbo-instruct"];

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn sdks_and_prometheus_are_served() {
    let config =
        ServerConfig { served_names: owned(&NAMES), api_keys: owned(&KEYS), ..Default::default() };
    pytest("tests/sdk", &Server::start(Setup { config, ..Setup::steady() }));
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn the_page_works_in_a_browser() {
    let mock = Command::new(PYTHON).args(["tests/page/test_page.py"]).status();
    assert!(mock.is_ok_and(|status| status.success()), "the page fails on a mock, see above");
    pytest("tests/page", &unhurried());
}

/// Goes on until it is stopped, and so slowly that a person can: a few hundred tokens a second.
fn unhurried() -> Server {
    const WORDS: &[u8] = b"la la, ";
    const TOKEN_TIME: Duration = Duration::from_millis(2);
    let Setup { caps, limits, options, config, .. } = Setup::steady();
    let engine = ScriptedEngine::new(caps, Skill::Percent(70)).speaking(Box::new(|text| {
        std::thread::sleep(TOKEN_TIME);
        Some(WORDS[text.len() % WORDS.len()].into())
    }));
    Server::of(Box::new(engine), text(), limits, options, config)
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn pytest(folder: &str, server: &Server) {
    let status = Command::new(PYTHON)
        .args(["-m", "pytest", "-q", "--timeout=90", "--durations=5", folder])
        .env("KILOTOK_URL", format!("http://{}", server.address))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status();
    assert!(status.is_ok_and(|status| status.success()), "pytest {folder} failed, see above");
}
