//! The engine's thread between streams on one side and an engine on the other. Engines are
//! scripted, and held or broken through channels and step numbers, never through time.

mod copies;
mod ends;
mod engines;
mod faults;
mod masks;
mod numbers;
mod replies;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{Caps, Engine, SlotSetup, StepOutput};
use kilotok_sched::{Limits, Scheduler, Submission};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};
use tokio::task::JoinHandle;

use self::engines::{Hold, held};
use super::*;
use crate::increment::FinishReason;
use crate::stats::ReplyStats;

/// No test here takes a second; one that waits this long is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// An admission, its engine's thread, its metrics, and its clock.
struct Rig {
    admission: Admission,
    thread: EngineThread,
    metrics: Arc<Metrics>,
    clock: Arc<TestClock>,
}

/// A clock that advances by `stride_us` whenever it is read.
#[derive(Default)]
struct TestClock {
    now_us: AtomicU64,
    stride_us: AtomicU64,
}

impl Rig {
    fn new(engine: impl Engine + 'static) -> Self {
        Self::with(engine, Limits::default(), 1024)
    }

    /// A rig whose engine is held back.
    fn held(engine: ScriptedEngine) -> (Self, Hold) {
        let (engine, hold) = held(engine);
        (Self::new(engine), hold)
    }

    fn with(engine: impl Engine + 'static, limits: Limits, waiting_max: u32) -> Self {
        Self::timed(engine, limits, waiting_max, |clock| clock)
    }

    /// A rig whose threads of that name stop at their next reading of the clock until the sender is
    /// dropped.
    fn stuck(
        engine: impl Engine + 'static,
        limits: Limits,
        waiting_max: u32,
        name: &'static str,
    ) -> (Self, SyncSender<()>) {
        let (free, held) = sync_channel::<()>(0);
        let held = Mutex::new(held);
        let rig = Self::timed(engine, limits, waiting_max, |clock| {
            Clock::new(move || {
                if thread::current().name().is_some_and(|own| own.starts_with(name)) {
                    let _ = held.lock().unwrap().recv();
                }
                clock.now_us()
            })
        });
        (rig, free)
    }

    fn timed(
        engine: impl Engine + 'static,
        limits: Limits,
        waiting_max: u32,
        look: impl FnOnce(Clock) -> Clock,
    ) -> Self {
        let metrics = Arc::new(Metrics::new("toy", engine.caps()));
        let test_clock = Arc::new(TestClock::default());
        let read = Arc::clone(&test_clock);
        let clock = look(Clock::new(move || {
            read.now_us.fetch_add(read.stride_us.load(Ordering::SeqCst), Ordering::SeqCst)
        }));
        let options = AdmissionOptions { waiting_max, stall_ms: 5_000, mask_threads: 1, clock };
        let (admission, thread) =
            Admission::start(Box::new(engine), limits, Arc::clone(&metrics), options);
        Self { admission, thread, metrics, clock: test_clock }
    }

    /// Lets time pass.
    fn pass_ms(&self, ms: u64) {
        self.clock.now_us.fetch_add(ms * 1000, Ordering::SeqCst);
    }

    /// Lets every step take time, so that drafting pays.
    fn lively(self) -> Self {
        self.clock.stride_us.store(500, Ordering::SeqCst);
        self
    }

    async fn submit(&self, request: ReplyRequest) -> TokenStream {
        self.admission.submit(request).await.unwrap()
    }

    /// Submits while a step is held: the request counts as held, but is not answered before the
    /// step ends.
    async fn submit_late(&self, request: ReplyRequest) -> JoinHandle<Result<TokenStream, Refusal>> {
        let (admission, held) = (self.admission.clone(), self.admission.load().held);
        let late = tokio::spawn(async move { admission.submit(request).await });
        until("it is in", || self.admission.load().held == held + 1).await;
        late
    }

    /// Checks that nothing of any request remains, and that the next one is served.
    async fn is_clean(&self) {
        until("no reply is held", || {
            let load = self.admission.load();
            let idle = self.admission.health() == Health::Ok { busy: false };
            load.held == 0 && load.running == 0 && load.usage == 0.0 && idle
        })
        .await;
        assert!(self.admission.0.channels().is_empty());
        let reply = read(self.submit(request(text(9, 77), 5)).await).await;
        assert_eq!((reply.tokens.len(), reply.finish), (5, FinishReason::Length));
    }
}

fn engine() -> ScriptedEngine {
    ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Percent(70))
}

fn text(count: u32, first: TokenId) -> Vec<TokenId> {
    (0..count).map(|index| (first + index * 7) % 256).collect()
}

fn submission(prompt: Vec<TokenId>, token_max: u32) -> Submission {
    Submission::new(prompt, SlotSetup::new(Sampling::GREEDY, 0), token_max)
}

fn request(prompt: Vec<TokenId>, token_max: u32) -> ReplyRequest {
    named("", prompt, token_max)
}

fn named(request_id: &str, prompt: Vec<TokenId>, token_max: u32) -> ReplyRequest {
    ReplyRequest {
        request_id: request_id.into(),
        submission: submission(prompt, token_max),
        grammar: None,
    }
}

/// The value of the first series that has the model's labels and these.
fn value(metrics: &Metrics, name: &str, labels: &str) -> f64 {
    let text = metrics.text();
    let found = text.lines().find_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        (rest.starts_with('{') && rest.contains(labels)).then_some(value)
    });
    found.unwrap_or_else(|| panic!("no {name} {labels} in {text}")).parse().unwrap()
}

/// A complete reply.
struct Read {
    tokens: Vec<TokenId>,
    stats: ReplyStats,
    increment_count: usize,
    finish: FinishReason,
}

async fn read(mut stream: TokenStream) -> Read {
    let mut reply = Increment::default();
    for increment_count in 1.. {
        reply.append(soon("an increment", stream.next()).await.unwrap());
        if let Some(finish) = reply.finish {
            assert_eq!(soon("the end", stream.next()).await, None, "nothing follows the end");
            return Read { tokens: reply.tokens, stats: reply.stats, increment_count, finish };
        }
    }
    unreachable!("a reply has an end")
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(STUCK, future).await;
    waited.unwrap_or_else(|_| panic!("{what} does not come"))
}

async fn until(what: &str, done: impl Fn() -> bool) {
    soon(what, async {
        while !done() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The scheduler's replies without a server around it, in order of admission.
fn alone(submissions: Vec<Submission>) -> Vec<Vec<TokenId>> {
    let mut engine = engine();
    let mut sched = Scheduler::new(engine.caps(), Limits::default());
    let mut replies = BTreeMap::new();
    for submission in submissions {
        replies.insert(sched.admit(submission).unwrap(), Vec::new());
    }
    while !sched.is_idle() {
        let plan = sched.plan().unwrap();
        let output = engine.run(&plan.step).unwrap();
        for advance in sched.absorb(output, 1000).unwrap() {
            replies.get_mut(&advance.id).unwrap().extend(advance.tokens);
        }
    }
    replies.into_values().collect()
}
