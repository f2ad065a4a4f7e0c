//! A server of the demo model as `kilotok serve` makes it, except that it drafts as much as it can
//! in every round, and that the test can see the rounds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use kilotok_abi::TokenId;
use kilotok_batch::Sizes;
use kilotok_cpu::CpuEngine;
use kilotok_cuda::{CudaEngine, CudaOptions, Found, TOKENS_MAX};
use kilotok_engine::{Caps, Engine, EngineError, StepId, StepOutput, StepPlan, Verification};
use kilotok_generation::{Admission, AdmissionOptions, Clock, Metrics};
use kilotok_model::Knobs;
use kilotok_sched::{Cost, Limits};
use kilotok_server::{ServeError, ServerConfig, Service, serve};
use kilotok_text::{Grammars, Text};
use kilotok_weights::Quiet;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{checkpoint, of_demo};

/// The cost that the scheduler is given for every step, with which every draft pays.
const STEP_US: u64 = 1000;

/// A row that chose tokens: the accepted drafts and one of the target's own.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) drafted: u32,
    pub(crate) tokens: Vec<TokenId>,
}

type Rounds = Arc<Mutex<Vec<Round>>>;

/// An engine that records its rounds.
struct Watched {
    inner: Box<dyn Engine>,
    drafted: Vec<u32>,
    rounds: Rounds,
}

fn sizes() -> Sizes {
    Sizes { position_max: 1024, ..Sizes::default() }
}

impl Engine for Watched {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        self.drafted = plan.rows.iter().map(|row| row.tokens.draft_count()).collect();
        self.inner.submit(plan)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        self.inner.wait(step, out)?;
        let rows = self.drafted.iter().zip(&out.rows).filter(|(_, row)| !row.tokens.is_empty());
        let rounds = rows.map(|(&drafted, row)| Round { drafted, tokens: row.tokens.clone() });
        self.rounds.lock().unwrap().extend(rounds);
        Ok(())
    }
}

fn reference(knobs: &Knobs) -> Box<dyn Engine> {
    let checkpoint = checkpoint(knobs);
    let engine = CpuEngine::start(checkpoint.spec(), &checkpoint, &sizes(), &Quiet);
    Box::new(engine.unwrap())
}

pub(crate) struct Server {
    address: SocketAddr,
    rounds: Rounds,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Server {
    /// Starts the server with the reference engine.
    pub(crate) fn start() -> Self {
        Self::start_with(&Knobs::default())
    }

    pub(crate) fn start_with(knobs: &Knobs) -> Self {
        Self::with(reference(knobs), Verification::Match)
    }

    /// Starts the server with the reference engine, and with this rule for requests that sample
    /// without a seed.
    pub(crate) fn start_verifying(verification: Verification) -> Self {
        Self::with(reference(&Knobs::default()), verification)
    }

    /// Starts the server with a GPU and this rule. If there is no GPU, returns the reason.
    pub(crate) fn start_on_gpu(verification: Verification) -> Result<Self, String> {
        let sizes = Sizes { token_max: TOKENS_MAX, ..sizes() };
        let options = CudaOptions { sizes, ..CudaOptions::default() };
        Found::look(1, &options.toolchain).map_err(|error| error.to_string())?;
        let checkpoint = checkpoint(&Knobs::default());
        let engine = CudaEngine::start(checkpoint.spec(), &checkpoint, &options, &Quiet, &|_| {});
        let engine = Box::new(engine.unwrap_or_else(|error| panic!("{error}")));
        Ok(Self::with(engine, verification))
    }

    fn with(inner: Box<dyn Engine>, verification: Verification) -> Self {
        let text = Arc::new(Text::open(&of_demo("checkpoint")).unwrap());
        let rounds = Rounds::default();
        let engine = Watched { inner, drafted: Vec::new(), rounds: Arc::clone(&rounds) };
        let vocab_size = engine.caps().vocab_size;
        let grammars = Grammars::new(&text, vocab_size, &text.defaults().end_tokens).unwrap();
        let metrics = Arc::new(Metrics::new("demo", engine.caps()));
        let cost = Cost { base_us: STEP_US as f32, token_us: 0.0, draft_us: 0.0 };
        let limits = Limits { cost, learning_share: 0.0, ..Limits::default() };
        let readings = AtomicU64::new(0);
        let clock = Clock::new(move || STEP_US * readings.fetch_add(1, Ordering::Relaxed));
        let options = AdmissionOptions { clock, ..AdmissionOptions::default() };
        let (admission, _thread) =
            Admission::start(Box::new(engine), limits, Arc::clone(&metrics), options);
        let served_names = vec!["demo".into()];
        let config = ServerConfig { served_names, verification, ..ServerConfig::default() };
        let service = Arc::new(Service::new(text, Arc::new(grammars), admission, metrics, config));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(serve(listener, service, async {
                let _ = stopped.await;
            }))
        });
        Self { address, rounds, stop: Some(stop), thread: Some(thread) }
    }

    /// The answer to a request, and the rounds that it took. Only one request may run at a time.
    pub(crate) fn ask(&mut self, path: &str, body: &Value) -> (Value, Vec<Round>) {
        self.rounds.lock().unwrap().clear();
        let mut socket = TcpStream::connect(self.address).unwrap();
        let body = body.to_string();
        write!(
            socket,
            "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        (serde_json::from_str(body).unwrap(), std::mem::take(&mut self.rounds.lock().unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
