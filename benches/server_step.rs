//! The cost of a step beside the engine: scheduler, engine thread, command queue and metrics, with
//! 256 streaming clients and 64 rows in every step. The engine is scripted and its own time left
//! out; times are CPU time of the thread, so that other load on the machine does not count.
//! `--steps N` runs longer, to see whether memory grows.

#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cpu_time::ThreadTime;
use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{
    Caps, Engine, EngineError, PageGroup, PageKind, SlotSetup, StepId, StepOutput, StepPlan,
};
use kilotok_generation::{Admission, AdmissionOptions, Metrics, ReplyRequest};
use kilotok_sched::{Cost, Limits, Scheduler, Submission};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};

const ROWS: u32 = 64;
const CLIENTS: u64 = 256;
const STEPS: u64 = 20_000;
const PROMPT: u32 = 200;
const REPLY: u32 = 300;

fn caps() -> Caps {
    let group = |kind, page_count, window| PageGroup {
        kind,
        page_tokens: 64,
        page_count,
        window,
        page_bytes: 1 << 20,
    };
    Caps {
        slot_count: ROWS,
        row_max: ROWS,
        token_max: 1024,
        position_max: 1 << 15,
        groups: vec![
            group(PageKind::Full, 4096, None),
            group(PageKind::Window, 1024, Some(128)),
            group(PageKind::Draft, 2048, Some(1024)),
        ],
        ..ScriptedEngine::caps()
    }
}

fn submission(client: u64, turn: u64, drafts: bool) -> Submission {
    let setup = SlotSetup::new(Sampling { seed: client, ..Sampling::GREEDY }, 0);
    let token = |index: u32| (u64::from(index) * (client + 3) + turn) as TokenId % 256;
    // Lengths differ, so that replies do not end in one step.
    let reply = REPLY / 2 + (client * 37 + turn * 101) as u32 % REPLY;
    let mut submission = Submission::new((0..PROMPT).map(token).collect(), setup, reply);
    submission.drafts = drafts;
    submission
}

/// Microseconds of CPU between steps, by kind of step.
#[derive(Default)]
struct Times {
    /// Between two steps with the largest number of rows, none of them a prompt.
    full: Vec<f32>,
    /// Between any two steps.
    any: Vec<f32>,
}

/// Of this thread.
fn cpu_time() -> Duration {
    ThreadTime::now().as_duration()
}

/// The scripted engine, with a clock that runs between its calls.
struct Watched {
    inner: ScriptedEngine,
    idle_since: Option<(Duration, bool)>,
    times: Arc<Mutex<Times>>,
    step_count: Arc<AtomicU64>,
}

impl Watched {
    /// Measures so many steps. Memory for them is touched now, so that it does not grow later.
    fn new(step_max: u64) -> Self {
        let room = || {
            let mut room = vec![1.0; step_max as usize + 1000];
            room.clear();
            room
        };
        Self {
            inner: ScriptedEngine::new(caps(), DraftAccuracy::Percent(80)),
            idle_since: None,
            times: Arc::new(Mutex::new(Times { full: room(), any: room() })),
            step_count: Arc::default(),
        }
    }
}

impl Engine for Watched {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        let full = plan.rows.len() == ROWS as usize
            && plan.rows.iter().all(|row| row.setup.is_none() && row.sample);
        if let Some((since, was_full)) = self.idle_since.take() {
            let us = cpu_time().saturating_sub(since).as_secs_f32() * 1e6;
            let mut times = self.times.lock().expect("no thread panics");
            times.any.push(us);
            if full && was_full {
                times.full.push(us);
            }
        }
        let step = self.inner.submit(plan)?;
        self.idle_since = Some((cpu_time(), full));
        Ok(step)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        self.inner.wait(step, out)?;
        self.step_count.fetch_add(1, Ordering::Relaxed);
        // The time until the next submit is not the engine's. The thread spends none between a
        // submit and its wait.
        if let Some((since, _)) = &mut self.idle_since {
            *since = cpu_time();
        }
        Ok(())
    }
}

fn percentiles(name: &str, mut us: Vec<f32>) {
    us.sort_by(f32::total_cmp);
    let at = |part: f64| us[((us.len() - 1) as f64 * part) as usize];
    let mean = us.iter().sum::<f32>() / us.len() as f32;
    let (half, most, nearly) = (at(0.5), at(0.9), at(0.99));
    println!("| {name} | {} | {mean:.1} | {half:.1} | {most:.1} | {nearly:.1} |", us.len());
}

/// All drafts pay, though the scripted engine is too fast for that: its cost is given, not
/// measured.
fn eager() -> Limits {
    let cost = Cost { base_us: 1000.0, token_us: 0.0, draft_us: 0.0 };
    Limits { cost, learning_share: 0.0, ..Limits::default() }
}

/// The same requests without a server around the scheduler.
fn scheduler_alone(drafts: bool, step_count: u64) {
    let mut engine = Watched::new(step_count);
    let mut sched = Scheduler::new(&caps(), eager());
    let mut turns = 0;
    for client in 0..CLIENTS {
        sched.admit(submission(client, 0, drafts)).expect("it is legal");
    }
    for _ in 0..step_count {
        let plan = sched.plan().expect("no step is in flight");
        let output = engine.run(&plan.step).expect("the plan is legal");
        let advances = sched.absorb(output, 4000).expect("a step is in flight");
        for _ in advances.iter().filter(|advance| advance.finish.is_some()) {
            turns += 1;
            sched.admit(submission(turns % CLIENTS, turns, drafts)).expect("it is legal");
        }
    }
    let times = std::mem::take(&mut *engine.times.lock().expect("no thread panics"));
    let name = if drafts { "with drafts" } else { "without" };
    percentiles(&format!("scheduler alone, {name}, {ROWS} decoding rows"), times.full);
}

/// Bytes that the process has in memory, in MiB.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

async fn client(admission: Admission, client: u64, drafts: bool, over: Arc<AtomicBool>) -> u64 {
    let mut token_count = 0;
    for turn in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let submission = submission(client, turn, drafts);
        let request =
            ReplyRequest { request_id: format!("{client}-{turn}"), submission, grammar: None };
        let mut stream = admission.submit(request).await.expect("there is room for all");
        while let Some(increment) = stream.next().await {
            token_count += increment.tokens.len() as u64;
            // Some hang up early.
            if (client + turn).is_multiple_of(16) && token_count.is_multiple_of(7) {
                break;
            }
        }
    }
    token_count
}

fn served(drafts: bool, step_max: u64) {
    let engine = Watched::new(step_max);
    let (times, step_count) = (Arc::clone(&engine.times), Arc::clone(&engine.step_count));
    let metrics = Arc::new(Metrics::new("bench", engine.caps()));
    let limits = eager();
    let (admission, thread) =
        Admission::start(Box::new(engine), limits, metrics, AdmissionOptions::default());
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().expect("the system has threads");
    let over = Arc::new(AtomicBool::new(false));
    let mut memory = Vec::new();
    let token_count: u64 = runtime.block_on(async {
        let spawn =
            |number| tokio::spawn(client(admission.clone(), number, drafts, Arc::clone(&over)));
        let clients: Vec<_> = (0..CLIENTS).map(spawn).collect();
        let mut next = step_max / 5;
        while step_count.load(Ordering::Relaxed) < step_max {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if step_count.load(Ordering::Relaxed) >= next {
                next += step_max / 5;
                memory.push(resident_mib());
            }
        }
        over.store(true, Ordering::Relaxed);
        let mut token_count = 0;
        for client in clients {
            token_count += client.await.expect("clients do not panic");
        }
        token_count
    });
    drop(admission);
    thread.join().expect("the engine does not fail");
    let Times { full, any } = std::mem::take(&mut *times.lock().expect("no thread panics"));
    let name = if drafts { "with drafts" } else { "without" };
    percentiles(&format!("served, {name}, {ROWS} decoding rows"), full);
    percentiles(&format!("served, {name}, any step"), any);
    let memory: Vec<String> = memory.iter().map(|mib| format!("{mib:.0}")).collect();
    println!("  {token_count} tokens; MiB resident along the way: {}", memory.join(", "));
}

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--steps").skip(1);
    let steps = args.next().and_then(|steps| steps.parse().ok()).unwrap_or(STEPS);
    println!("| | steps | mean us | 50 % | 90 % | 99 % |");
    println!("|---|---|---|---|---|---|");
    for drafts in [false, true] {
        scheduler_alone(drafts, steps.min(STEPS));
        served(drafts, steps);
    }
}
