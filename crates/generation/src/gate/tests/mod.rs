//! The engine's thread between its two ends: tickets in, an engine out. Engines are scripted, and
//! held or broken by channels and step numbers, never by time.

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
use kilotok_testkit::{ScriptedEngine, Skill};
use tokio::task::JoinHandle;

use super::*;

/// Nothing here takes a second; a test that waits this long is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// A gate, its driver, what it counts, and its clock.
struct Rig {
    gate: Gate,
    driver: Driver,
    metrics: Arc<Metrics>,
    hand: Arc<Hand>,
}

/// A clock's hand, which moves by so much whenever it is looked at.
#[derive(Default)]
struct Hand {
    now_us: AtomicU64,
    stride_us: AtomicU64,
}

impl Rig {
    fn new(engine: impl Engine + 'static) -> Self {
        Self::with(engine, Limits::default(), 1024)
    }

    fn with(engine: impl Engine + 'static, limits: Limits, queue_max: u32) -> Self {
        Self::timed(engine, limits, queue_max, |hand| hand)
    }

    /// One whose threads of that name do not get past their next look at the clock while the sender
    /// is there.
    fn stuck(
        engine: impl Engine + 'static,
        limits: Limits,
        queue_max: u32,
        name: &'static str,
    ) -> (Self, SyncSender<()>) {
        let (free, held) = sync_channel::<()>(0);
        let held = Mutex::new(held);
        let rig = Self::timed(engine, limits, queue_max, |hand| {
            Stopwatch::new(move || {
                if thread::current().name().is_some_and(|own| own.starts_with(name)) {
                    let _ = held.lock().unwrap().recv();
                }
                hand.now_us()
            })
        });
        (rig, free)
    }

    fn timed(
        engine: impl Engine + 'static,
        limits: Limits,
        queue_max: u32,
        look: impl FnOnce(Stopwatch) -> Stopwatch,
    ) -> Self {
        let metrics = Arc::new(Metrics::new("toy", engine.caps()));
        let hand = Arc::new(Hand::default());
        let read = Arc::clone(&hand);
        let stopwatch = look(Stopwatch::new(move || {
            read.now_us.fetch_add(read.stride_us.load(Ordering::SeqCst), Ordering::SeqCst)
        }));
        let options = GateOptions { queue_max, stall_ms: 5_000, guide_threads: 1, stopwatch };
        let (gate, driver) = Gate::start(Box::new(engine), limits, Arc::clone(&metrics), options);
        Self { gate, driver, metrics, hand }
    }

    /// Lets time pass.
    fn pass_ms(&self, ms: u64) {
        self.hand.now_us.fetch_add(ms * 1000, Ordering::SeqCst);
    }

    /// Every step takes its time, so that drafts are worth theirs.
    fn lively(self) -> Self {
        self.hand.stride_us.store(500, Ordering::SeqCst);
        self
    }

    async fn submit(&self, ask: Ask) -> Ticket {
        self.gate.submit(ask).await.unwrap()
    }

    /// Asks while a step is held: let in, but not answered before the step is done.
    async fn submit_late(&self, ask: Ask) -> JoinHandle<Result<Ticket, Refusal>> {
        let (gate, held) = (self.gate.clone(), self.gate.load().held);
        let late = tokio::spawn(async move { gate.submit(ask).await });
        until("it is in", || self.gate.load().held == held + 1).await;
        late
    }

    /// Nothing of any request is left, and the next one is served.
    async fn is_clean(&self) {
        until("everyone has left", || {
            let load = self.gate.load();
            let idle = self.gate.health() == Health::Ok { busy: false };
            load.held == 0 && load.running == 0 && load.usage == 0.0 && idle
        })
        .await;
        assert!(self.gate.0.mailboxes().is_empty());
        let reply = read(self.submit(ask(text(9, 77), 5)).await).await;
        assert_eq!((reply.tokens.len(), reply.ended), (5, Ended::Length));
    }
}

fn engine() -> ScriptedEngine {
    ScriptedEngine::new(ScriptedEngine::caps(), Skill::Percent(70))
}

fn text(count: u32, first: TokenId) -> Vec<TokenId> {
    (0..count).map(|index| (first + index * 7) % 256).collect()
}

fn submission(prompt: Vec<TokenId>, token_max: u32) -> Submission {
    Submission::new(prompt, SlotSetup::new(Sampling::GREEDY, 0), token_max)
}

fn ask(prompt: Vec<TokenId>, token_max: u32) -> Ask {
    named("", prompt, token_max)
}

fn named(request_id: &str, prompt: Vec<TokenId>, token_max: u32) -> Ask {
    Ask { request_id: request_id.into(), submission: submission(prompt, token_max), grammar: None }
}

/// A whole reply.
struct Read {
    tokens: Vec<TokenId>,
    steps: Vec<StepShare>,
    cached_count: u32,
    update_count: usize,
    ended: Ended,
}

async fn read(mut ticket: Ticket) -> Read {
    let (mut tokens, mut steps) = (Vec::new(), Vec::new());
    let mut update_count = 0;
    loop {
        let update = soon("an update", ticket.next()).await.unwrap();
        update_count += 1;
        tokens.extend(update.tokens);
        steps.extend(update.steps);
        if let Some(ended) = update.finish {
            assert_eq!(soon("the end", ticket.next()).await, None, "nothing follows the end");
            let cached_count = update.cached_count;
            return Read { tokens, steps, cached_count, update_count, ended };
        }
    }
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

/// What the scheduler gives without a server around it, in order of admission.
fn alone(submissions: Vec<Submission>) -> Vec<Vec<TokenId>> {
    let mut engine = engine();
    let mut sched = Scheduler::new(engine.caps(), Limits::default());
    let mut replies = BTreeMap::new();
    for submission in submissions {
        replies.insert(sched.admit(submission).unwrap(), Vec::new());
    }
    while !sched.is_idle() {
        let plan = sched.plan().unwrap();
        let step = engine.submit(&plan.step).unwrap();
        let mut output = StepOutput::default();
        engine.wait(step, &mut output).unwrap();
        for advance in sched.absorb(output, 1000).unwrap() {
            replies.get_mut(&advance.id).unwrap().extend(advance.tokens);
        }
    }
    replies.into_values().collect()
}
