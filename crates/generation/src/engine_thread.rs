//! The engine's thread. In a loop it reads commands, has the scheduler plan a step and the engine
//! run it, and puts the outcome of the step into the channels of the replies. The scheduler decides
//! which rows run, and the engine which tokens are chosen.

mod active;
mod commands;

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::task::Waker;
use std::time::Duration;

use kilotok_engine::{Engine, EngineError, RowFault, RowTokens, StepOutput};
use kilotok_sched::{Advance, Finish, Misuse, Plan, RequestId, Scheduler, Stats};
use tokio::sync::watch;

use crate::admission::shut_down;
use crate::command::Command;
use crate::health::{EngineStatus, Lifecycle};
use crate::increment::{FailureKind, FinishReason};
use crate::mask_workers::MaskWorkers;
use crate::metrics::{Meter, Metrics, StepSize};
use crate::wake_relay::WakeRelay;
use active::ActiveReply;

/// Most commands that are read between two steps: a burst must not delay running replies.
const COMMANDS_PER_STEP_MAX: usize = 256;
/// Debug builds check the scheduler once in this many steps, and whenever no reply runs: a check
/// visits all cached pages. The scheduler's own tests check it after each step.
const CHECKED_STEPS: u64 = 8;
/// An idle thread wakes up this often, in case a command was lost because the queue was full.
const IDLE_WAIT: Duration = Duration::from_millis(500);

/// The reason why the engine's thread ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineFailed(pub String);

impl From<Misuse> for EngineFailed {
    fn from(misuse: Misuse) -> Self {
        Self(misuse.to_string())
    }
}

/// The parts that the thread owns from the start. Their order is the order in which they are
/// dropped: callers that wait for an answer must not wait until the engine is dropped.
pub(crate) struct Parts {
    pub(crate) commands: Receiver<Command>,
    pub(crate) ended: watch::Sender<Option<Result<(), EngineFailed>>>,
    pub(crate) masks: MaskWorkers,
    pub(crate) wake_relay: Arc<WakeRelay>,
    pub(crate) sched: Scheduler,
    pub(crate) engine: Box<dyn Engine>,
}

pub(crate) struct EngineLoop {
    parts: Parts,
    status: Arc<EngineStatus>,
    meter: Meter,
    /// By the key of the reply's token stream.
    active: BTreeMap<u64, ActiveReply>,
    keys: HashMap<RequestId, u64>,
    /// The wakers of readers that get an increment from this step.
    wakers: Vec<Waker>,
    /// When the engine finished the last step; `None` if it ran out of work after that.
    free_us: Option<u64>,
}

impl EngineLoop {
    pub(crate) fn new(parts: Parts, status: Arc<EngineStatus>, metrics: Arc<Metrics>) -> Self {
        Self {
            parts,
            status,
            meter: Meter::new(metrics),
            active: BTreeMap::new(),
            keys: HashMap::new(),
            wakers: Vec::new(),
            free_us: None,
        }
    }

    /// Runs until it is stopped, all replies have ended after a drain, or the engine fails.
    pub(crate) fn run(mut self) -> Result<(), EngineFailed> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run_steps()));
        let panicked = |panic| Err(EngineFailed(format!("panic: {}", panic_text(panic))));
        let outcome = outcome.unwrap_or_else(panicked);
        self.close(&outcome);
        outcome
    }

    fn run_steps(&mut self) -> Result<(), EngineFailed> {
        let mut busy = false;
        while !self.is_over() {
            self.read_commands(busy);
            let plan = self.parts.sched.plan()?;
            self.publish();
            busy = !plan.ids.is_empty();
            if !busy {
                // All remaining replies wait for masks, so the engine has nothing to do.
                self.status.idle();
                self.free_us = None;
                continue;
            }
            self.status.busy();
            if let Some(result) = self.step(&plan)? {
                let advances = self.absorb(&plan, result)?;
                self.publish();
                self.deliver(advances);
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        match self.status.lifecycle() {
            Lifecycle::Accepting => false,
            // The queue of commands may still hold admitted replies.
            Lifecycle::Draining => self.active.is_empty() && self.status.held() == 0,
            Lifecycle::Stopped => true,
        }
    }

    fn read_commands(&mut self, busy: bool) {
        if !busy && let Ok(command) = self.parts.commands.recv_timeout(IDLE_WAIT) {
            self.execute(command);
        }
        let commands: Vec<_> = self.parts.commands.try_iter().take(COMMANDS_PER_STEP_MAX).collect();
        for command in commands {
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        self.status.command_read();
        match command {
            Command::Submit(submit) => self.submit(*submit),
            Command::Cancel(key) => self.cancel(key),
            Command::Masks(result) => self.provide_masks(*result),
            Command::Wake => {}
        }
    }

    /// Has the engine run a plan; `None` if the engine refused it.
    fn step(&mut self, plan: &Plan) -> Result<Option<StepResult>, EngineFailed> {
        let start_us = self.now_us();
        if let Some(free_us) = self.free_us.take() {
            self.meter.host(free_us, start_us);
        }
        for (row, id) in plan.step.rows.iter().zip(&plan.ids) {
            if row.setup.is_some()
                && let Some(reply) = self.keys.get(id).and_then(|key| self.active.get_mut(key))
            {
                reply.enters_slot(start_us);
            }
        }
        match self.parts.engine.run(&plan.step) {
            Ok(output) => Ok(Some(StepResult { output, step_us: self.now_us() - start_us })),
            Err(EngineError::Plan { row, reason }) => {
                self.refused(plan, row, &reason)?;
                Ok(None)
            }
            Err(error) => Err(EngineFailed(error.to_string())),
        }
    }

    /// Handles a plan that the engine refused because of a fault of the scheduler. The reply of the
    /// refused row fails, so that the next plan is a different one; all other rows are computed
    /// again.
    fn refused(&mut self, plan: &Plan, row: usize, reason: &str) -> Result<(), EngineFailed> {
        tracing::error!(row, reason, "the engine refused a plan");
        self.meter.plan_refused();
        self.parts.sched.abandon()?;
        let named = plan.ids.get(row).map(std::slice::from_ref);
        let keys: Vec<u64> =
            named.unwrap_or(&plan.ids).iter().filter_map(|id| self.keys.get(id).copied()).collect();
        for key in keys {
            let message = format!(
                "the engine refused this request's part of a step: {reason}. This is a fault of \
                 the server, please report it"
            );
            self.fail(key, FailureKind::Fault, message);
        }
        Ok(())
    }

    fn absorb(&mut self, plan: &Plan, result: StepResult) -> Result<Vec<Advance>, EngineFailed> {
        let StepResult { output, step_us } = result;
        let advances =
            self.parts.sched.absorb(output, u32::try_from(step_us).unwrap_or(u32::MAX))?;
        let given = plan.step.rows.iter().filter_map(|row| match &row.tokens {
            RowTokens::Given { tokens, .. } => Some(tokens.len()),
            RowTokens::Held { .. } => None,
        });
        let chosen: usize = advances.iter().map(|advance| advance.tokens.len()).sum();
        let row_count = plan.ids.len();
        self.meter.step(&StepSize {
            row_count,
            token_count: given.sum::<usize>() + chosen,
            step_us,
        });
        let now_us = self.now_us();
        self.status.progress(now_us);
        self.free_us = Some(now_us);
        Ok(advances)
    }

    fn deliver(&mut self, advances: Vec<Advance>) {
        let now_us = self.now_us();
        for advance in advances {
            if let Some(key) = self.keys.get(&advance.id).copied() {
                self.deliver_one(key, advance, now_us);
            }
        }
        self.parts.wake_relay.wake(&mut self.wakers);
    }

    fn deliver_one(&mut self, key: u64, advance: Advance, now_us: u64) {
        let Some(reply) = self.active.get_mut(&key) else {
            return;
        };
        reply.record(&advance, now_us, &self.meter);
        if let Some(finish) = advance.finish {
            let finish = self.finish_reason(finish);
            // Remove first: when the reader sees the end, the reply's place in the queue is free.
            if let Some((reply, finished)) = self.remove(key, &finish) {
                if let Some(finished) = reply.channel.keep(finished) {
                    self.meter.finished(finished);
                }
                reply.put(advance, Some(finish), &mut self.wakers);
            }
            return;
        }
        if advance.tokens.is_empty() && advance.scored.is_empty() {
            // A chunk of a prompt has nothing for the reader.
            return;
        }
        let masked = reply.has_grammar && !advance.tokens.is_empty();
        let masked = masked.then(|| (advance.tokens.clone(), advance.drafts.clone()));
        if reply.put(advance, None, &mut self.wakers).is_some() {
            self.cancel(key);
        } else if let Some((tokens, drafts)) = masked {
            self.request_masks(key, tokens, drafts);
        }
    }

    fn finish_reason(&self, finish: Finish) -> FinishReason {
        match finish {
            Finish::Length => FinishReason::Length,
            Finish::EndToken => FinishReason::EndToken,
            Finish::Fault(fault) => {
                if matches!(fault, RowFault::NotFinite { .. }) {
                    self.meter.corrupted();
                }
                FinishReason::of_fault(fault)
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.status.clock.now_us()
    }

    /// Publishes the load, and in debug builds checks the scheduler.
    fn publish(&mut self) {
        let stats = self.parts.sched.stats();
        if cfg!(debug_assertions)
            && (stats.running == 0 || stats.step_count.is_multiple_of(CHECKED_STEPS))
        {
            assert_eq!(self.parts.sched.check(), Ok(()));
        }
        self.meter.publish(&stats);
        *self.status.stats() = stats;
    }

    /// Ends the remaining replies, and publishes the outcome.
    fn close(&mut self, outcome: &Result<(), EngineFailed>) {
        let finish = match outcome {
            Ok(()) => shut_down(),
            Err(error) => {
                tracing::error!(%error, "the engine's thread ends");
                self.status.fail(error.to_string());
                let message = format!("the engine failed: {error}");
                FinishReason::failed(FailureKind::Engine, message)
            }
        };
        self.status.close(Lifecycle::Draining);
        for key in self.active.keys().copied().collect::<Vec<_>>() {
            if let Some((reply, finished)) = self.remove(key, &finish) {
                self.meter.finished(finished);
                reply.channel.end(finish.clone());
            }
        }
        // A panic may have struck after an increment was put and before its reader was woken.
        self.parts.wake_relay.wake(&mut self.wakers);
        self.parts.wake_relay.close();
        self.meter.stopped();
        *self.status.stats() = Stats::default();
        self.parts.ended.send_replace(Some(outcome.clone()));
    }
}

/// The output of a step, and how long it took.
struct StepResult {
    output: StepOutput,
    step_us: u64,
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast::<String>().map(|text| *text);
    let text = text.or_else(|panic| panic.downcast::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|_| "without a message".into())
}
