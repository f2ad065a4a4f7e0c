//! A server under the conditions of real machines: nothing reads its output, few files may be open,
//! web pages call it by their own names, and it is stopped while requests arrive.

use std::fs;
use std::io::{Read, Write, pipe};
use std::process::{Command, Stdio};
use std::thread;

use super::{COMPLETIONS, Server, kilotok, model, serving, text};

const SHORT: &str = r#"{"prompt": "a", "max_tokens": 1}"#;

/// A server that is started by a shell, which sets a limit first.
fn limited(limit: &str, plain: &Command) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]);
    command.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null());
    command
}

/// With the default settings, which many users have.
#[test]
fn the_demo_model_needs_no_more_memory_than_it_may_have() {
    let demo = kilotok(&["serve", "demo", "--engine", "cpu", "--port", "0"]);
    // The allocator's arenas reserve addresses for each core, but no memory.
    let mut command = limited("-v 4194304", &demo);
    let mut server = Server::spawn(command.env("MALLOC_ARENA_MAX", "2"));
    assert!(server.request(COMPLETIONS, SHORT).starts_with("HTTP/1.1 200"));
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
}

fn ask(server: &Server, host: &str) -> String {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    text(&answer)
}

/// A pipe that is full from the first line on, and that is never read.
#[test]
fn a_log_that_is_not_read_stops_nothing() {
    let (_unread, mut full) = pipe().unwrap();
    let log = full.try_clone().unwrap();
    // The thread ends when the pipe's other end is closed.
    thread::spawn(move || full.write_all(&vec![b'x'; 1 << 24]));
    let mut command = serving(model(), &[]);
    let mut server = Server::spawn(command.env("KILOTOK_LOG", "trace").stderr(log));
    let lost = || {
        let metrics = server.request("GET /metrics HTTP/1.1", "");
        let line = metrics.lines().find(|line| line.starts_with("kilotok:log_lines_lost_total"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // More lines than the buffer holds.
    while lost() == 0 {
        let answer = server.request(COMPLETIONS, SHORT);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(server.request("GET /health HTTP/1.1", "").starts_with("HTTP/1.1 200"));
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success(), "a drain is no failure");
}

#[test]
fn without_keys_only_names_of_this_machine_are_answered() {
    let server = Server::start(&[]);
    let port = server.url.rsplit(':').next().unwrap();
    for own in ["localhost", "127.0.0.1", "[::1]", "app.localhost"] {
        let answer = ask(&server, &format!("{own}:{port}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{own}: {answer}");
    }
    let answer = ask(&server, &format!("evil.example:{port}"));
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("--allowed-hosts"), "{answer}");
    drop(server);
    let server = Server::start(&["--allowed-hosts", "evil.example"]);
    assert!(ask(&server, "evil.example").starts_with("HTTP/1.1 200"));
    assert!(ask(&server, "other.example").starts_with("HTTP/1.1 403"));
    drop(server);
    let server = Server::start(&["--api-key", "sesame"]);
    assert!(ask(&server, "evil.example").starts_with("HTTP/1.1 200"));
}

#[test]
fn open_files_are_as_many_as_the_system_allows() {
    let server = Server::spawn(&mut limited("-Sn 200; ulimit -Hn 300", &serving(model(), &[])));
    let line = server.said.lines().find(|line| line.trim().starts_with("open files")).unwrap();
    assert!(line.ends_with(" 300"), "{line}");
}

#[test]
fn a_server_without_descriptors_says_so_and_goes_on() {
    let mut command = limited("-n 64", &serving(model(), &[]));
    let mut server = Server::spawn(command.stderr(Stdio::piped()));
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let connect = || std::net::TcpStream::connect(&address).unwrap();
    let idle: Vec<_> = (0..80).map(|_| connect()).collect();
    let mut log = server.child.stderr.take().unwrap();
    let mut said = String::new();
    while !said.contains("connections cannot be accepted") {
        let mut byte = [0];
        log.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
    drop(idle);
    let metrics = server.request("GET /metrics HTTP/1.1", "");
    let line = metrics.lines().find(|line| line.starts_with("kilotok:accepts_failed_total"));
    assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
}

/// If the system has no further thread, work waits for this one instead of failing.
#[test]
fn a_thread_for_blocking_work_is_there_from_the_start() {
    let mut server = Server::spawn(&mut serving(model(), &[]));
    // The server announces its address a moment before it handles requests.
    assert!(server.request("GET /version HTTP/1.1", "").starts_with("HTTP/1.1 200"));
    let tasks = fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let handlers = names.filter(|name| name.trim_end() == "kilotok-handler").count();
    assert_eq!(handlers, thread::available_parallelism().unwrap().get() + 1);
    server.signal("-TERM");
    assert!(server.child.wait().unwrap().success());
}
