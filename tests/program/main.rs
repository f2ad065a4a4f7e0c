//! The program as users run it: it serves a small model with dummy weights, and other commands chat
//! with it, measure it, check its health and stop it. Then come all kinds of invalid arguments.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod announced;
mod checkpoint;
mod families;
mod operation;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

const CHAT: &str = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json";
const COMPLETIONS: &str = "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json";

/// The checkpoint that all tests share.
static MODEL: LazyLock<String> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("toy");
    checkpoint::write(&folder);
    folder.to_str().unwrap().to_owned()
});

/// The program, without settings from this machine's environment.
fn kilotok(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kilotok"));
    for name in [
        "KILOTOK_API_KEY",
        "KILOTOK_CONFIG",
        "KILOTOK_LOG",
        "NO_COLOR",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
    ] {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    kilotok(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must fail, and returns its output.
fn refused(args: &[&str]) -> String {
    let output = run(args);
    assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

fn model() -> &'static str {
    &MODEL
}

fn serving(model: &str, more: &[&str]) -> Command {
    let mut command = kilotok(&["serve", model, "--load-format", "dummy", "--port", "0"]);
    command.args(["--slots", "4", "--served-model-name", "toy"]);
    if !more.contains(&"--context-max") {
        command.args(["--context-max", "512"]);
    }
    command.args(more);
    command
}

/// A server that has announced its address.
struct Server {
    child: Child,
    url: String,
    /// Its output until then.
    said: String,
}

impl Server {
    fn start(more: &[&str]) -> Self {
        Self::start_model(model(), more)
    }

    fn start_model(model: &str, more: &[&str]) -> Self {
        Self::spawn(&mut serving(model, more))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            said.push_str(&line);
            said.push('\n');
            if line.starts_with("curl") {
                break;
            }
        }
        let url = said.lines().find_map(|line| line.trim().strip_prefix("API  "));
        let url = url.unwrap_or_else(|| panic!("it does not listen:\n{said}"));
        let url = url.trim().trim_end_matches("/v1").to_owned();
        Self { child, url, said }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Sends a raw request and reads the answer to its end.
    fn request(&self, head: &str, body: &str) -> String {
        let mut answer = Vec::new();
        self.send(head, body).read_to_end(&mut answer).unwrap();
        text(&answer)
    }

    /// The same for a server that may have stopped: `None` if it did not begin an answer.
    fn request_if_there(&self, head: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).ok()?;
        let length = body.len();
        let mut answer = Vec::new();
        let _ = write!(
            stream,
            "{head}\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let _ = stream.read_to_end(&mut answer);
        (!answer.is_empty()).then(|| text(&answer))
    }

    fn send(&self, head: &str, body: &str) -> TcpStream {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head}\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_says_what_it_does_and_the_line_it_gives_works() {
    let mut server = Server::start(&["--n-max", "2", "--stop-max", "1", "--chunk-max", "100000"]);
    for part in ["model", "engine", "memory", "weights", "pages, full", "512 tokens"] {
        assert!(server.said.contains(part), "{part}:\n{}", server.said);
    }
    // Chunks have the requested length, because a processor takes steps of any length.
    for part in ["2 to one request", "100000 prompt tokens or 35 ms"] {
        assert!(server.said.contains(part), "{part}:\n{}", server.said);
    }
    let curl = server.said.lines().last().unwrap();
    let body = curl.split_once("-d '").unwrap().1.strip_suffix('\'').unwrap();
    assert!(curl.contains(&format!("{}/v1/chat/completions", server.url)), "{curl}");
    let mut short: Value = serde_json::from_str(body).unwrap();
    short["max_tokens"] = 8.into();
    let answer = server.request(CHAT, &short.to_string());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"finish_reason\""), "{answer}");
    assert!(server.request("GET / HTTP/1.1", "").contains("<title>kilotok</title>"));

    let health = run(&["health", &server.url]);
    assert!(health.status.success());
    let found = format!("{}: ok, 0 requests running, 0 waiting\n", server.url);
    assert_eq!(text(&health.stdout), found);
    assert!(run(&["health", "--ready", "--url", &server.url]).status.success());
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success(), "a drain is no failure");
    assert!(refused(&["health", "--url", &server.url]).contains("cannot be reached"));
}

/// An output on which every write fails, as on a full disk.
fn full() -> Stdio {
    fs::File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_log_that_cannot_be_written_costs_no_reply() {
    let mut server = Server::spawn(serving(model(), &[]).stderr(full()));
    let body = r#"{"prompt": "a", "max_tokens": 4, "ignore_eos": true}"#;
    for _ in 0..2 {
        let answer = server.request(COMPLETIONS, body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("\"completion_tokens\":4"), "{answer}");
    }
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success(), "a drain is no failure");
    // Failing to print an error must not be a second error.
    let status = kilotok(&["check", "/nope"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn all_of_a_log_in_json_is_json() {
    let mut command = serving(model(), &["--log-format", "json"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let message = event["message"].as_str().unwrap();
        if message == "ready" {
            let id = child.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        }
        said.push_str(message);
        said.push('\n');
    }
    assert!(child.wait().unwrap().success());
    assert!(said.contains("loading weights") && said.ends_with("stopped\n"), "{said}");
    assert!(!said.contains("a moment longer"), "there is no --drain-delay: {said}");
}

#[test]
fn keys_of_the_environment_are_one_or_several() {
    let keys = ("KILOTOK_API_KEY", "k1, k2");
    let server = Server::spawn(serving(model(), &[]).env(keys.0, keys.1));
    let curl = server.said.lines().last().unwrap();
    // As a shell would run it, with the key substituted.
    let shown = curl.replacen("curl -N", "printf '%s\\n'", 1);
    let words = Command::new("sh").args(["-c", &shown]).env(keys.0, keys.1).output().unwrap();
    let words = text(&words.stdout);
    let key = words.lines().find(|word| word.starts_with("Authorization")).unwrap();
    let answer =
        server.request(&format!("{COMPLETIONS}\r\n{key}"), r#"{"prompt": "a", "max_tokens": 1}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{key}: {answer}");
    let output = serving(model(), &[]).env(keys.0, " , ").output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("has no key in it"), "{said}");
}

/// Like the models in benches/models, which have no tokenizer.
#[test]
fn a_config_alone_is_served() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(Path::new(model()).join("config.json"), folder.path().join("config.json")).unwrap();
    let server = Server::start_model(folder.path().to_str().unwrap(), &[]);
    assert!(server.said.contains("tokens    made up"), "{}", server.said);
    let body = r#"{"messages": [{"role": "user", "content": "Grüße"}], "stream": true,
        "max_tokens": 9, "ignore_eos": true, "return_token_ids": true}"#;
    let answer = server.request(CHAT, body);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
    let events = answer.lines().filter_map(|line| line.strip_prefix("data: {"));
    let events = events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).unwrap());
    let (mut text, mut tokens) = (String::new(), 0);
    for choice in events.filter_map(|event| event["choices"].get(0).cloned()) {
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        tokens += choice["token_ids"].as_array().map_or(0, Vec::len);
    }
    assert!(tokens == 9 && !text.is_empty(), "{text}: {answer}");
    let body = r#"{"prompt": "Grüße"}"#;
    let answer = server.request("POST /tokenize HTTP/1.1", body);
    assert!(answer.contains("71,114,195,188,195,159,101"), "a token is a byte: {answer}");
}

#[test]
fn a_reply_that_runs_is_finished_after_sigterm() {
    let mut server = Server::start(&[]);
    let body = r#"{"prompt": "a", "max_tokens": 48, "ignore_eos": true, "stream": true}"#;
    let mut stream = server.send(COMPLETIONS, body);
    let mut answer = vec![0; 1];
    // Once the first byte of the answer is there, the request was admitted.
    stream.read_exact(&mut answer).unwrap();
    server.signal("-TERM");
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    assert!(answer.contains("\"finish_reason\":\"length\""), "{answer}");
    assert!(answer.contains("data: [DONE]"), "{answer}");
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn sigterm_under_load_loses_no_reply_that_was_let_in() {
    const CLIENTS: usize = 12;
    let mut server = Server::start(&[]);
    let whole = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let body = r#"{"prompt": "a", "max_tokens": 24, "ignore_eos": true}"#;
                // Until the server no longer answers. Every answer that it begins is complete.
                while let Some(answer) = server.request_if_there(COMPLETIONS, body) {
                    let refused = answer.starts_with("HTTP/1.1 503");
                    let complete = answer.contains("\"completion_tokens\":24");
                    assert!(refused || complete, "{answer}");
                    whole.fetch_add(usize::from(complete), Ordering::Relaxed);
                }
            });
        }
        while whole.load(Ordering::Relaxed) < CLIENTS {
            std::thread::yield_now();
        }
        server.signal("-TERM");
    });
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_second_signal_ends_what_runs() {
    // The reply is so long that it is incomplete at the second signal.
    let mut server = Server::start(&["--context-max", "4096"]);
    let body = r#"{"prompt": "a", "max_tokens": 4000, "ignore_eos": true, "stream": true}"#;
    let mut stream = server.send(COMPLETIONS, body);
    let mut answer = vec![0; 1];
    stream.read_exact(&mut answer).unwrap();
    server.signal("-TERM");
    // Once new requests are refused, the first signal has arrived.
    let short = r#"{"prompt": "a", "max_tokens": 1}"#;
    while server.request(COMPLETIONS, short).starts_with("HTTP/1.1 200") {}
    server.signal("-INT");
    stream.read_to_end(&mut answer).unwrap();
    assert!(text(&answer).contains("\"error\""), "{}", text(&answer));
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_server_is_chatted_with_and_measured() {
    let server = Server::start(&["--api-key", "sesame"]);
    let chat = ["chat", "--url", &server.url, "--max-tokens", "12", "--temperature", "0"];
    let ask = |key: &str| {
        let mut command = kilotok(&chat);
        command.args(["--api-key", key]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"Hello\n").unwrap();
        child.wait_with_output().unwrap()
    };
    let (first, second) = (ask("sesame"), ask("sesame"));
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(!first.stdout.trim_ascii().is_empty());
    assert_eq!(first.stdout, second.stdout);
    assert!(text(&ask("open").stderr).contains("--api-key"));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let bench = kilotok(&["bench", "--url", &server.url, "-c", "2", "-n", "6"])
        .args(["--input-len", "64", "--output-len", "9", "--json", file.to_str().unwrap()])
        .env("KILOTOK_API_KEY", "sesame")
        .output()
        .unwrap();
    assert!(bench.status.success(), "{}", text(&bench.stderr));
    let result: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!((&result["completed"], &result["failed"]), (&6.into(), &0.into()));
    assert_eq!(result["total_output_tokens"], 54);
    for length in result["input_lens"].as_array().unwrap() {
        // Words have one to ten bytes here, and every byte is a token.
        assert!((40..=90).contains(&length.as_u64().unwrap()), "{length}");
    }
    assert!(result["mean_ttft_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn an_engine_is_measured_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let args = ["bench", "--engine", model(), "--load-format", "dummy", "-c", "3", "-n", "7"];
    let output = kilotok(&args)
        .args(["--input-len", "40", "--output-len", "10", "--json", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let result: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(result["completed"], 7);
    assert_eq!(
        (&result["total_input_tokens"], &result["total_output_tokens"]),
        (&280.into(), &70.into())
    );
    assert_eq!(result["max_concurrent_requests"], 3);
}

#[test]
fn what_a_bench_cannot_do_or_would_not_look_at_is_refused() {
    let engine = ["--engine", model(), "--load-format", "dummy"];
    let with_engine = |more: &[&'static str]| [&engine[..], more].concat();
    let huge = u64::MAX.to_string();
    for (args, expected) in [
        (vec!["-n", &huge], "--num-prompts <COUNT>"),
        (vec!["-n", "4294967296"], "1..=1000000"),
        (vec!["--warmup", &huge], "--warmup <COUNT>"),
        (vec!["--input-len", &huge], "--input-len <TOKENS>"),
        (vec!["--prefix-len", &huge], "--prefix-len <TOKENS>"),
        (vec!["-n", "1000000", "--input-len", "10000000"], "1000001 prompts of --input-len"),
        (with_engine(&["-n", "4294967297"]), "--num-prompts <COUNT>"),
        (with_engine(&["--output-len", "4294967295"]), "--output-len <TOKENS>"),
        (vec!["-n", "3", "--request-rate", "1e-300"], "--request-rate is 0.000"),
        (vec!["--temperature", "NaN"], "--temperature <TEMPERATURE>"),
        (vec!["--ranks", "2"], "--engine <MODEL>"),
        (vec!["--no-drafts"], "--engine <MODEL>"),
        (vec!["--load-format", "dummy"], "--engine <MODEL>"),
        (vec!["--window-keys", "3"], "--engine <MODEL>"),
        (with_engine(&["--batch", "2"]), "--rounds <COUNT>"),
        (with_engine(&["--context", "2"]), "--rounds <COUNT>"),
        (with_engine(&["--draft-len", "2"]), "--rounds <COUNT>"),
        (with_engine(&["--assume-acceptance", "2"]), "--rounds <COUNT>"),
        (with_engine(&["--commit", "a"]), "--rounds <COUNT>"),
        (with_engine(&["--rounds", "1", "--save-texts"]), "'--save-texts'"),
    ] {
        let said = refused(&[&["bench"], &args[..]].concat());
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert!(refused(&["chat", "--temperature", "inf"]).contains("a number from 0 on"));
}

#[test]
fn rounds_are_measured_without_requests() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rounds.json");
    let args = ["bench", "--engine", model(), "--load-format", "dummy", "--rounds", "4"];
    let output = kilotok(&args)
        .args(["--batch", "1,2", "--draft-len", "0,3", "--context", "40", "--engine-kind", "cpu"])
        .args(["--assume-acceptance", "2.5", "--out", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("assumed acceptance length of 2.5"));
    let results: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let shapes: Vec<_> = results
        .as_array()
        .unwrap()
        .iter()
        .map(|result| {
            assert!(result["round_ms_p50"].as_f64() > Some(0.0), "{result}");
            assert!(result["distinct_experts"].as_f64() >= Some(1.0), "{result}");
            (result["batch"].as_u64().unwrap(), result["draft"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(shapes, [(1, 0), (2, 0), (1, 3), (2, 3)]);
    let chunks = ["--chunk-len", "30,100", "--context", "40", "--engine-kind", "cpu"];
    assert!(kilotok(&args).args(chunks).output().unwrap().status.success());
    let more = ["bench", "--engine", model(), "--load-format", "dummy", "--rounds", "1"];
    let said = refused(&[&more[..], &["--context", "40", "--draft-len", "60000"]].concat());
    assert!(said.contains("--draft-len is 60000"), "{said}");
    // The error comes before any measurement, whose results would be lost.
    let said = refused(&[&more[..], &["--context", "40", "--draft-len", "0,60000"]].concat());
    assert!(said.contains("--draft-len is 60000") && !said.contains("loading"), "{said}");
    let nowhere = folder.path().join("none/rounds.json");
    let said = refused(&[&more[..], &["--out", nowhere.to_str().unwrap()]].concat());
    assert!(said.contains("none/rounds.json") && !said.contains("loading"), "{said}");
    let said = refused(&[&more[..], &["--context", "40", "--assume-acceptance", "99"]].concat());
    assert!(said.contains("bring at most"), "{said}");
    // Options that only apply to requests are refused, not ignored.
    let said = refused(&[&more[..], &["--phases", "--engine-kind", "cpu"]].concat());
    assert!(said.contains("--phases: only kernels on GPUs tell how long"), "{said}");
    let said = refused(&["bench", "--engine", model(), "--phases"]);
    assert!(said.contains("--rounds <COUNT>"), "{said}");
    let said = refused(&[&more[..], &["--json", "rounds.json"]].concat());
    assert!(said.contains("'--rounds <COUNT>' cannot be used with '--json <FILE>'"), "{said}");
    let said = refused(&[&more[..], &["--output-len", "4"]].concat());
    assert!(said.contains("cannot be used with '--output-len <TOKENS>'"), "{said}");
    let output = kilotok(&more)
        .args(["--context", "40", "--engine-kind", "cpu", "--no-drafts"])
        .output()
        .unwrap();
    let table = text(&output.stdout);
    let row = table.lines().last().unwrap_or_default();
    assert_eq!(row.split_whitespace().nth(1), Some("0"), "{table}");
}

#[test]
fn what_is_typed_wrongly_is_said_before_anything_is_loaded() {
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = used.local_addr().unwrap().port().to_string();
    let serve = |more: &[&str]| {
        let mut args = vec!["serve", model(), "--load-format", "dummy"];
        args.extend(more);
        refused(&args)
    };
    for (args, expected) in [
        (&["--port", &*port] as &[&str], "(another --port may be free, 0 always is)"),
        (
            &["--host", "nowhere.invalid", "--port", "0"],
            "cannot listen on nowhere.invalid:0 (--host is an address",
        ),
        // Brackets as in URLs are removed.
        (&["--host", "[127.0.0.1]", "--port", &*port], "cannot listen on 127.0.0.1:"),
        (&["--ranks", "3"], "1, 2, 4 or 8"),
        (&["--slots", "0"], "--slots is 0"),
        (&["--slots", "100000"], "--slots is 100000"),
        (&["--port", "0", "--context-max", "999999"], "trained for"),
        (&["--port", "0", "--kv-gib", "0.0000001"], "--kv-gib"),
        (&["--kv-gib", "-1"], "--kv-gib"),
        (&["--tls-cert", "cert.pem"], "--tls-key"),
        (&["--tls-cert", "no.pem", "--tls-key", "no.key"], "no.pem"),
        (
            &["--tls-cert", "tests/http/tls/certificate.pem", "--tls-key", "README.md"],
            "README.md: there is no private key",
        ),
        (&["--cors-origin", "example.org"], "scheme://host"),
        (&["--api-key", ""], "API key"),
        (&["--n-max", "0"], "--n-max is 0"),
        (&["--stop-max", "257"], "--stop-max is 257"),
        (&["--waiting-max", "4294967295"], "--waiting-max is 4294967295: give 0 to 65536"),
        (&["--max-tokens-default", "0"], "--max-tokens-default is 0"),
        (&["--drain-delay", "-1"], "--drain-delay"),
        (&["--reply-format", "latin"], "--reply-format"),
        (&["--drafts", "--no-drafts"], "--no-drafts"),
        (&["--config", "no.toml"], "no.toml"),
    ] {
        let said = serve(args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert!(refused(&["serve", "no/such/model"]).contains("no/such/model"));
    let empty = tempfile::tempdir().unwrap();
    let said = refused(&["serve", empty.path().to_str().unwrap(), "--port", "0"]);
    assert!(said.contains("config.json"), "{said}");
    for args in [["bench", "--concurrency", "0"], ["bench", "--request-rate", "0"]] {
        assert!(refused(&args).contains(args[1]));
    }
}

#[test]
fn a_config_file_stands_behind_flags() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let path = folder.path().join("kilotok.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let file = write("slots = 2\nport = 1\n[knobs]\nwindow-keys = 17\ndraft-fp8 = true\n");
    let server = Server::start(&["--config", &file]);
    assert!(server.said.contains("4 requests"), "the flag's slots:\n{}", server.said);
    assert!(server.said.contains("window of 17"), "the file's knob:\n{}", server.said);
    assert!(server.said.contains("networks in FP8"), "the file's knob:\n{}", server.said);
    for (text, expected) in [
        ("slots = 2\nslotz = 3\n", "slotz"),
        ("slots = \"two\"\n", "line 1"),
        ("[knobs]\nnothing = 1\n", "nothing"),
        ("slots = 2\nmodel\n", "line 2"),
    ] {
        let said = refused(&["serve", "--config", &write(text)]);
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn a_broken_tokenizer_is_told_of_before_weights_are_read() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken_tokenizer");
    checkpoint::write(&folder);
    std::fs::write(folder.join("tokenizer.json"), "{").unwrap();
    let folder = folder.to_str().unwrap();
    let said = refused(&["serve", folder, "--load-format", "dummy", "--port", "0"]);
    assert!(said.contains("tokenizer.json") && !said.contains("loading weights"), "{said}");
}

#[test]
fn what_every_request_would_fail_by_is_told_at_start_and_by_check() {
    let name = "broken_text";
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let path = folder.to_str().unwrap();
    for (file, content, expected) in [
        ("generation_config.json", "{\"temperature\": -1}", "temperature is -1"),
        ("chat_template.jinja", "{{ messages | nothing }}", "filter nothing is unknown"),
    ] {
        checkpoint::write(&folder);
        std::fs::write(folder.join(file), content).unwrap();
        let dummy = ["serve", path, "--load-format", "dummy", "--port", "0"];
        for args in [&dummy[..], &["check", path]] {
            let said = refused(args);
            assert!(said.contains(file) && said.contains(expected), "{said}");
        }
        std::fs::remove_file(folder.join(file)).unwrap();
    }
}

#[test]
fn the_example_of_a_config_is_one() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/example.toml");
    let help = text(&run(&["serve", "--help"]).stdout);
    let flags = help.lines().filter_map(|line| line.trim_start().split_once("--"));
    let flags = flags.filter(|(before, _)| before.is_empty() || before.starts_with('-'));
    let names = flags.map(|(_, flag)| flag.split(' ').next().unwrap());
    let has = fs::read_to_string(example).unwrap();
    for name in names.filter(|name| !name.starts_with("no-") && !["config", "help"].contains(name))
    {
        assert!(has.contains(&format!("{name} = ")), "--{name}");
    }
    let said =
        refused(&["serve", model(), "--config", example, "--load-format", "dummy", "--ranks", "3"]);
    // The whole file was read, and the flag was checked.
    assert!(said.contains("--ranks is 3"), "{said}");
}
