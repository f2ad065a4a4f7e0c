//! The engine's thread: it takes what came in, has the scheduler plan a step and the engine run it,
//! and hands out what came of it. All that is decided here is who hears what; which row runs is the
//! scheduler's to say, and tokens are the engine's.

mod live;
mod requests;

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

use crate::bell::Bell;
use crate::gate::shut_down;
use crate::guide::Guide;
use crate::health::{Board, Doors};
use crate::metrics::{EndReason, Meter, Metrics, StepSize};
use crate::post::Mail;
use crate::updates::{Ended, Failure, FailureKind};

use live::Live;

/// Messages handled between two steps: many at once must not hold up those who run.
const MAIL_MAX: usize = 256;
/// Without work the thread looks up now and then, should a message have been lost.
const IDLE_WAIT: Duration = Duration::from_millis(500);

/// Why the engine ended before it was told to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineFailed(pub String);

impl From<Misuse> for EngineFailed {
    fn from(misuse: Misuse) -> Self {
        Self(misuse.to_string())
    }
}

/// What the thread owns from the start. Dropped in this order: who waits for an answer must not
/// wait for the engine.
pub(crate) struct Parts {
    pub(crate) inbox: Receiver<Mail>,
    pub(crate) tell: watch::Sender<Option<Result<(), EngineFailed>>>,
    pub(crate) guide: Guide,
    pub(crate) bell: Arc<Bell>,
    pub(crate) sched: Scheduler,
    pub(crate) engine: Box<dyn Engine>,
}

pub(crate) struct Drive {
    parts: Parts,
    board: Arc<Board>,
    meter: Meter,
    live: BTreeMap<u64, Live>,
    keys: HashMap<RequestId, u64>,
    /// Readers of what this step brought.
    wakers: Vec<Waker>,
    /// When the engine became free, if the step before this turn was the last thing it did.
    free_us: Option<u64>,
}

impl Drive {
    pub(crate) fn new(parts: Parts, board: Arc<Board>, metrics: Arc<Metrics>) -> Self {
        Self {
            parts,
            board,
            meter: Meter::new(metrics),
            live: BTreeMap::new(),
            keys: HashMap::new(),
            wakers: Vec::new(),
            free_us: None,
        }
    }

    /// Until the doors are shut, everyone has left after a drain, or the engine fails.
    pub(crate) fn run(mut self) -> Result<(), EngineFailed> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.turn()));
        let panicked = |panic| Err(EngineFailed(format!("panic: {}", panic_text(panic))));
        let outcome = outcome.unwrap_or_else(panicked);
        self.close(&outcome);
        outcome
    }

    fn turn(&mut self) -> Result<(), EngineFailed> {
        let mut busy = false;
        while !self.is_over() {
            self.read_inbox(busy);
            let plan = self.parts.sched.plan()?;
            self.publish();
            busy = !plan.ids.is_empty();
            if !busy {
                // Replies that are still there wait for masks: the engine has nothing to do.
                self.board.idle();
                self.free_us = None;
                continue;
            }
            self.board.busy();
            if let Some(done) = self.step(&plan)? {
                let advances = self.absorb(&plan, done)?;
                self.publish();
                self.deliver(advances);
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        match self.board.doors() {
            Doors::Open => false,
            // Those who were let in may still be in the inbox.
            Doors::Draining => self.live.is_empty() && self.board.held() == 0,
            Doors::Shut => true,
        }
    }

    fn read_inbox(&mut self, busy: bool) {
        if !busy && let Ok(mail) = self.parts.inbox.recv_timeout(IDLE_WAIT) {
            self.read(mail);
        }
        let mails: Vec<Mail> = self.parts.inbox.try_iter().take(MAIL_MAX).collect();
        for mail in mails {
            self.read(mail);
        }
    }

    fn read(&mut self, mail: Mail) {
        self.board.read();
        match mail {
            Mail::Arrival(arrival) => self.arrive(*arrival),
            Mail::Left(key) => self.leave(key),
            Mail::Guided(guided) => self.guided(*guided),
            Mail::Look => {}
        }
    }

    /// Has the engine run a plan. None if it refused.
    fn step(&mut self, plan: &Plan) -> Result<Option<Done>, EngineFailed> {
        let start_us = self.now_us();
        if let Some(free_us) = self.free_us.take() {
            self.meter.host(free_us, start_us);
        }
        for (row, id) in plan.step.rows.iter().zip(&plan.ids) {
            if row.setup.is_some()
                && let Some(live) = self.keys.get(id).and_then(|key| self.live.get_mut(key))
            {
                live.enters(start_us);
            }
        }
        let engine = &mut self.parts.engine;
        let mut output = StepOutput::default();
        let done = engine.submit(&plan.step).and_then(|step| engine.wait(step, &mut output));
        match done {
            Ok(()) => Ok(Some(Done { output, step_us: self.now_us() - start_us })),
            Err(EngineError::Plan { row, reason }) => {
                self.refused(plan, row, &reason)?;
                Ok(None)
            }
            Err(error) => Err(EngineFailed(error.to_string())),
        }
    }

    /// The plan was a mistake of ours. The row that the engine objects to is given up, so that the
    /// next plan is another one; everyone else's rows are computed again.
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

    fn absorb(&mut self, plan: &Plan, done: Done) -> Result<Vec<Advance>, EngineFailed> {
        let Done { output, step_us } = done;
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
        self.board.progress(now_us);
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
        self.parts.bell.ring(&mut self.wakers);
    }

    fn deliver_one(&mut self, key: u64, advance: Advance, now_us: u64) {
        let Some(live) = self.live.get_mut(&key) else {
            return;
        };
        live.advances(&advance, now_us, &self.meter);
        if let Some(finish) = advance.finish {
            let (ended, reason) = self.ended(finish);
            // Whoever hears of the end finds the place free.
            if let Some((live, ending)) = self.forget(key, reason) {
                if let Some(ending) = live.mailbox.keep(ending) {
                    self.meter.ended(ending);
                }
                live.put(advance, Some(ended), &mut self.wakers);
            }
            return;
        }
        if advance.tokens.is_empty() && advance.scored.is_empty() {
            // A part of a prompt is no news.
            return;
        }
        let guided = live.guided && !advance.tokens.is_empty();
        let seen = guided.then(|| (advance.tokens.clone(), advance.drafts.clone()));
        if live.put(advance, None, &mut self.wakers).is_some() {
            self.leave(key);
        } else if let Some((tokens, drafts)) = seen {
            self.guide(key, tokens, drafts);
        }
    }

    fn ended(&self, finish: Finish) -> (Ended, EndReason) {
        let fault = match finish {
            Finish::Length => return (Ended::Length, EndReason::Length),
            Finish::EndToken => return (Ended::EndToken, EndReason::Stop),
            Finish::Fault(fault) => fault,
        };
        let (kind, message) = match fault {
            RowFault::NotFinite { .. } => {
                self.meter.corrupted();
                let hint = "the model or its weights are at fault";
                (FailureKind::Fault, format!("{fault}: {hint}"))
            }
            // Not where: of several choices any may come to it first, one speaks for all.
            RowFault::NothingAllowed { .. } => {
                let why =
                    "grammar, allowed tokens, bad words and min_tokens leave nothing to choose";
                (FailureKind::NothingAllowed, format!("no token is allowed: {why}"))
            }
        };
        (Failure::ended(kind, message), EndReason::Error)
    }

    fn now_us(&self) -> u64 {
        self.board.stopwatch.now_us()
    }

    /// Tells everyone how much there is to do.
    fn publish(&mut self) {
        debug_assert_eq!(self.parts.sched.check(), Ok(()));
        let stats = self.parts.sched.stats();
        self.meter.publish(&stats);
        *self.board.stats() = stats;
    }

    /// Ends whatever is left and says how it went.
    fn close(&mut self, outcome: &Result<(), EngineFailed>) {
        let (ended, reason) = match outcome {
            Ok(()) => (shut_down(), EndReason::Abort),
            Err(error) => {
                tracing::error!(%error, "the engine's thread ends");
                self.board.fail(error.to_string());
                let message = format!("the engine failed: {error}");
                (Failure::ended(FailureKind::Engine, message), EndReason::Error)
            }
        };
        self.board.close(Doors::Draining);
        for key in self.live.keys().copied().collect::<Vec<_>>() {
            if let Some((live, ending)) = self.forget(key, reason) {
                self.meter.ended(ending);
                live.mailbox.end(ended.clone());
            }
        }
        // A panic may have come between a reader's update and its waking.
        self.parts.bell.ring(&mut self.wakers);
        self.parts.bell.close();
        self.meter.stopped();
        *self.board.stats() = Stats::default();
        self.parts.tell.send_replace(Some(outcome.clone()));
    }
}

/// What came of a step, and how long it took.
struct Done {
    output: StepOutput,
    step_us: u64,
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast::<String>().map(|text| *text);
    let text = text.or_else(|panic| panic.downcast::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|_| "without a word".into())
}
