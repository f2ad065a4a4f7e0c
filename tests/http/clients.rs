//! The clients that users have: OpenAI's and Anthropic's SDKs, schemathesis, Prometheus and a
//! browser drive a server. Their programs are in `tests/sdk` and `tests/page`.

use std::process::Command;

use kilotok_server::ServerConfig;

use crate::server::{Server, Setup};

/// Tests run in the package's folder.
const PYTHON: &str = "target/sdk/venv/bin/python";

/// One key for our own programs, and the one that the tests of openai's SDK send.
const KEYS: [&str; 2] = ["test-key", "My API Key"];

/// The names that those tests ask for come after ours.
const NAMES: [&str; 3] = ["parrot", "gpt-6-astra", "gpt-3.5-turbo-instruct"];

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn sdks_and_prometheus_are_served() {
    pytest("tests/sdk", &KEYS);
}

#[test]
#[ignore = "needs the clients that tests/sdk/setup fetches"]
fn the_page_works_in_a_browser() {
    let mock = Command::new(PYTHON).args(["tests/page/test_page.py"]).status();
    assert!(mock.is_ok_and(|status| status.success()), "the page fails on a mock, see above");
    pytest("tests/page", &[]);
}

fn pytest(folder: &str, keys: &[&str]) {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let config = ServerConfig {
        served_names: owned(&NAMES),
        api_keys: owned(keys),
        ..ServerConfig::default()
    };
    let server = Server::start(Setup { config, ..Setup::steady() });
    let status = Command::new(PYTHON)
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=90", folder])
        .env("KILOTOK_URL", format!("http://{}", server.address))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status();
    assert!(status.is_ok_and(|status| status.success()), "pytest {folder} failed, see above");
}
