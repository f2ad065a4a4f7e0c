//! Real clients drive a server: SDKs, frameworks, coding agents, SGLang's router, schemathesis,
//! Prometheus and a browser. Their programs are in `tests/sdk` and `tests/page`.

use std::process::Command;
use std::time::Duration;

use kilotok_engine::{Caps, PageGroup, PageKind};
use kilotok_server::ServerConfig;
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};

use crate::server::{Server, Setup, text};

/// Relative to the package's folder, in which tests run.
const PYTHON: &str = "target/sdk/venv/bin/python";
const NODE: &str = "target/sdk/venv/bin/node";

/// Has the previous version of openai's SDK, which some frameworks still need.
const OLDER_PYTHON: &str = "target/sdk/openai_2/bin/python";

/// A key for our own programs, and the key that the tests of openai's SDK send.
const KEYS: [&str; 2] = ["test-key", "My API Key"];

/// Our model's name, followed by the names that those tests request.
const NAMES: [&str; 3] = ["parrot", "gpt-6-astra", "gpt-3.5-turbo-instruct"];

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn official_sdks_are_served() {
    pytest("tests/sdk/official", &[&Server::start(guarded(Setup::steady()))]);
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn frameworks_are_served() {
    pytest("tests/sdk/frameworks", &[&Server::start(guarded(Setup::steady()))]);
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn frameworks_on_an_older_sdk_are_served() {
    let server = Server::start(guarded(Setup::steady()));
    pytest_of(OLDER_PYTHON, "tests/sdk/openai_2", &[&server]);
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn coding_agents_are_served() {
    pytest("tests/sdk/agents", &[&Server::start(guarded(roomy()))]);
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn a_router_is_served() {
    let servers = [(); 2].map(|()| Server::start(guarded(roomy())));
    pytest("tests/sdk/router", &servers.each_ref());
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn metrics_are_read() {
    pytest("tests/sdk/metrics", &[&Server::start(guarded(Setup::steady()))]);
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn the_page_works_in_a_browser() {
    let markdown = Command::new(NODE).args(["tests/page/markdown.mjs"]).status();
    assert!(markdown.is_ok_and(|status| status.success()), "Markdown takes too long, see above");
    let mock = Command::new(PYTHON).args(["tests/page/test_page.py"]).status();
    assert!(mock.is_ok_and(|status| status.success()), "the page fails on a mock, see above");
    pytest("tests/page", &[&unhurried()]);
}

fn guarded(setup: Setup) -> Setup {
    let config =
        ServerConfig { served_names: owned(&NAMES), api_keys: owned(&KEYS), ..setup.config };
    Setup { config, ..setup }
}

/// For coding agents, whose first prompt has more than 50,000 bytes. Every byte is a token.
fn roomy() -> Setup {
    let group = |kind, page_count, window| {
        let page_tokens = 64;
        PageGroup { kind, page_tokens, page_count, window, page_bytes: 512 }
    };
    let groups = vec![
        group(PageKind::Full, 16_384, None),
        group(PageKind::Window, 4096, Some(16)),
        group(PageKind::Draft, 4096, Some(24)),
    ];
    let setup = Setup::steady();
    let caps = Caps { position_max: 1 << 18, token_max: 8192, groups, ..setup.caps };
    Setup { caps, skill: DraftAccuracy::Percent(90), ..setup }
}

/// A server with replies that do not end, slow enough for a person to stop: a few hundred tokens
/// per second.
fn unhurried() -> Server {
    const WORDS: &[u8] = b"la la, ";
    const TOKEN_TIME: Duration = Duration::from_millis(2);
    let Setup { caps, limits, options, config, .. } = Setup::steady();
    let engine =
        ScriptedEngine::new(caps, DraftAccuracy::Percent(70)).with_script(Box::new(|text| {
            std::thread::sleep(TOKEN_TIME);
            Some(WORDS[text.len() % WORDS.len()].into())
        }));
    Server::of(Box::new(engine), text(), limits, options, config)
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn pytest(folder: &str, servers: &[&Server]) {
    pytest_of(PYTHON, folder, servers);
}

/// Runs a folder of tests. `KILOTOK_URL` has the servers' addresses, separated by spaces.
fn pytest_of(python: &str, folder: &str, servers: &[&Server]) {
    let urls: Vec<_> = servers.iter().map(|server| format!("http://{}", server.address)).collect();
    let status = Command::new(python)
        .args(["-m", "pytest", "-q", "--timeout=90", "--durations=5", folder])
        .env("KILOTOK_URL", urls.join(" "))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status();
    assert!(status.is_ok_and(|status| status.success()), "pytest {folder} failed, see above");
}
