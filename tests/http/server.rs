//! A server with the real router on a scripted engine, and a client that shows every byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use kilotok_engine::{Caps, Engine};
use kilotok_generation::{Admission, AdmissionOptions, Clock, Metrics};
use kilotok_sched::{Cost, Limits};
use kilotok_server::{ServeError, ServerConfig, Service, serve};
use kilotok_testkit::{DraftAccuracy, Script, ScriptedEngine, repeat_prompt};
use kilotok_text::{Grammars, Text};
use serde_json::Value;
use tokio::sync::oneshot;

/// Longer than anything here takes, so that a test that hangs fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// Pause between two checks for an event that must happen. Without it, a fixed number of checks
/// would depend on the machine's speed.
const PAUSE: Duration = Duration::from_millis(1);

const TURN_START: u32 = 257;
const TURN_END: u32 = 258;
const THINK: [u32; 2] = [259, 260];

/// The parts of a server.
pub(crate) struct Setup {
    pub(crate) caps: Caps,
    pub(crate) skill: DraftAccuracy,
    pub(crate) limits: Limits,
    pub(crate) options: AdmissionOptions,
    pub(crate) config: ServerConfig,
    pub(crate) brake: Option<Brake>,
    pub(crate) fail_at: Option<u64>,
}

impl Default for Setup {
    fn default() -> Self {
        let caps = Caps { vocab_size: 265, position_max: 2048, ..ScriptedEngine::caps() };
        Self {
            caps,
            skill: DraftAccuracy::Percent(70),
            limits: eager(),
            options: AdmissionOptions::default(),
            config: ServerConfig {
                served_names: vec!["toy".into(), "alias/toy".into()],
                ..ServerConfig::default()
            },
            brake: None,
            fail_at: None,
        }
    }
}

/// For the scheduler drafts cost nothing, so all of them are tried, however fast the machine is.
fn eager() -> Limits {
    let cost = Cost { base_us: 1000.0, token_us: 0.0, draft_us: 0.0 };
    Limits { cost, learning_share: 0.0, ..Limits::default() }
}

impl Setup {
    /// A millisecond passes at every reading of the clock, so steps always cost the same and drafts
    /// pay.
    pub(crate) fn steady() -> Self {
        let readings = AtomicU64::new(0);
        let now_us = move || 1000 * readings.fetch_add(1, Ordering::Relaxed);
        let options = AdmissionOptions { clock: Clock::new(now_us), ..AdmissionOptions::default() };
        Self { options, ..Self::default() }
    }
}

/// Holds an engine until the test releases more work: tokens of a scripted engine, steps of
/// another.
#[derive(Clone, Default)]
pub(crate) struct Brake(Arc<(Mutex<u64>, Condvar)>);

impl Brake {
    pub(crate) fn release(&self, count: u64) {
        *self.0.0.lock().unwrap() += count;
        self.0.1.notify_all();
    }

    pub(crate) fn wait(&self) {
        let left = self.0.0.lock().unwrap();
        let (mut left, waited) =
            self.0.1.wait_timeout_while(left, PATIENCE, |left| *left == 0).unwrap();
        assert!(!waited.timed_out(), "the brake was not released");
        *left -= 1;
    }
}

/// Waits until something happens that must happen.
#[track_caller]
pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    let looks_max = PATIENCE.as_millis() / PAUSE.as_millis();
    let came = (0..looks_max).any(|_| {
        std::thread::sleep(PAUSE);
        done()
    });
    assert!(came, "{what} does not come");
}

/// A tokenizer whose tokens are bytes, and a few special tokens.
pub(crate) fn text() -> Text {
    Text::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/fixtures/mimo")).unwrap()
}

/// The same with another chat template.
pub(crate) fn text_with_template(template: &str) -> Text {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/fixtures/mimo");
    let read = |name: &str| match name {
        "chat_template.jinja" => Some(template.as_bytes().to_vec()),
        name => std::fs::read(folder.join(name)).ok(),
    };
    Text::from_files(&read).unwrap()
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) service: Arc<Service>,
    runtime: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Server {
    pub(crate) fn start(setup: Setup) -> Self {
        let repeat = repeat_prompt(TURN_START, TURN_END, THINK.to_vec());
        let brake = setup.brake.clone();
        let script: Script = Box::new(move |text| {
            if let Some(brake) = &brake {
                brake.wait();
            }
            repeat(text)
        });
        let mut engine = ScriptedEngine::new(setup.caps, setup.skill).with_script(script);
        if let Some(step) = setup.fail_at {
            engine.fail_at(step, kilotok_engine::EngineError::Busy { in_flight: 9 });
        }
        Self::of(Box::new(engine), text(), setup.limits, setup.options, setup.config)
    }

    /// A server with any engine, and its text.
    pub(crate) fn of(
        engine: Box<dyn Engine>,
        text: Text,
        limits: Limits,
        options: AdmissionOptions,
        config: ServerConfig,
    ) -> Self {
        let caps = engine.caps();
        let end_tokens = &text.defaults().end_tokens;
        let grammars = Grammars::new(&text, caps.vocab_size, end_tokens).unwrap();
        let metrics = Arc::new(Metrics::new(&config.served_names[0], caps));
        let (admission, _thread) = Admission::start(engine, limits, Arc::clone(&metrics), options);
        let service = Service::new(Arc::new(text), Arc::new(grammars), admission, metrics, config);
        let service = Arc::new(service);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&service);
        let threads = tokio::runtime::Runtime::new().unwrap();
        let runtime = threads.handle().clone();
        let thread = std::thread::spawn(move || {
            let shutdown = async {
                let _ = stopped.await;
            };
            threads.block_on(serve(listener, shared, shutdown))
        });
        Self { address, service, runtime, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn new() -> Self {
        Self::start(Setup::default())
    }

    pub(crate) fn with(config: ServerConfig) -> Self {
        Self::start(Setup { config, ..Setup::default() })
    }

    /// Number of tasks that have not ended: those of connections, and the server's own.
    pub(crate) fn task_count(&self) -> usize {
        self.runtime.metrics().num_alive_tasks()
    }

    /// Returns a sender. Dropping it tells the server to stop.
    pub(crate) fn stop_later(&mut self) -> Option<oneshot::Sender<()>> {
        self.stop.take()
    }

    /// Tells the server to stop.
    pub(crate) fn signal(&mut self) {
        self.stop.take();
    }

    pub(crate) fn wait(&mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&head("GET", path, &[], 0), &[]).answer()
    }

    /// The value of the first metric whose line begins like this.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let metrics = self.get("/metrics");
        let line = metrics.text().lines().find(|line| line.starts_with(series)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes(), &[])
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        self.send(&head("POST", path, headers, body.len()), body).answer()
    }

    /// The complete answer of a server that may have stopped: `None` if the server did not begin
    /// one.
    pub(crate) fn post_if_there(&self, path: &str, body: &Value) -> Option<Answer> {
        let mut socket = TcpStream::connect(self.address).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = body.to_string();
        let _ = socket.write_all(&head("POST", path, &[], body.len()));
        let _ = socket.write_all(body.as_bytes());
        let mut open = Open { socket, seen: Vec::new() };
        let _ = open.socket.read_to_end(&mut open.seen);
        (!open.seen.is_empty()).then(|| Answer::parse(&open.seen))
    }

    /// Sends without waiting for the answer.
    pub(crate) fn begin(&self, path: &str, body: &Value) -> Open {
        let body = body.to_string();
        self.send(&head("POST", path, &[], body.len()), body.as_bytes())
    }

    pub(crate) fn send(&self, head: &[u8], body: &[u8]) -> Open {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(head).unwrap();
        // A server that has seen enough may close the connection before everything is sent.
        let _ = socket.write_all(body);
        Open { socket, seen: Vec::new() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.service.admission.stop();
        self.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let line = format!("{method} {path} HTTP/1.1");
    let length = length.to_string();
    let mut fields = vec![("host", "test"), ("connection", "close"), ("content-length", &length)];
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        fields.push(("content-type", "application/json"));
    }
    fields.extend(headers);
    let fields = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("{line}\r\n{}\r\n", fields.collect::<String>()).into_bytes()
}

/// A request whose answer is still arriving. Dropping it closes the socket.
pub(crate) struct Open {
    socket: TcpStream,
    seen: Vec<u8>,
}

impl Open {
    /// Closes the sending half.
    pub(crate) fn sent(&self) {
        // The server may have hung up already.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Reads this many bytes, or all if there are fewer.
    pub(crate) fn read(&mut self, count: usize) {
        let _ = (&mut self.socket).take(count as u64).read_to_end(&mut self.seen);
    }

    /// Reads the next bytes, of which there must be `count`.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads to the end; returns the status of the HTTP answer, if there is one.
    pub(crate) fn status_if_any(mut self) -> Option<u16> {
        let _ = self.socket.read_to_end(&mut self.seen);
        self.seen.starts_with(b"HTTP/1").then(|| Answer::parse(&self.seen).status)
    }

    /// Reads to the end; returns everything, whether or not it is an answer.
    pub(crate) fn rest(mut self) -> String {
        let _ = self.socket.read_to_end(&mut self.seen);
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Reads until this text has arrived.
    pub(crate) fn read_until(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let count = self.socket.read(&mut bytes).unwrap();
            assert!(count > 0, "no {text:?} in {}", String::from_utf8_lossy(&self.seen));
            self.seen.extend_from_slice(&bytes[..count]);
        }
    }

    pub(crate) fn answer(mut self) -> Answer {
        self.read_until("\r\n\r\n");
        // A reset after the complete answer is as good as its end.
        let _ = self.socket.read_to_end(&mut self.seen);
        Answer::parse(&self.seen)
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<_> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut body = bytes[end + 4..].to_vec();
        if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
            body = unchunked(&body);
        }
        Self { status, headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The JSON of an answer, whose status must be 200.
    #[track_caller]
    pub(crate) fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The `data` of all events; `[DONE]` is the string.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.named_events().into_iter().map(|(_, data)| data).collect()
    }

    /// The events with their names.
    #[track_caller]
    pub(crate) fn named_events(&self) -> Vec<(String, Value)> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        assert!(self.text().ends_with("\n\n"), "an event is not complete");
        let events = self.text().split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        events.map(event).collect()
    }
}

fn event(text: &str) -> (String, Value) {
    let mut name = String::new();
    let mut data = None;
    for line in text.split('\n') {
        match line.split_once(": ").unwrap() {
            ("event", value) => value.clone_into(&mut name),
            ("data", "[DONE]") => data = Some(Value::from("[DONE]")),
            ("data", value) => data = Some(serde_json::from_str(value).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    (name, data.expect("every event has data"))
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let rest = &body[end + 2..];
        if size == 0 {
            break;
        }
        out.extend_from_slice(&rest[..size.min(rest.len())]);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    out
}
