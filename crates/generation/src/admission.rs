//! Admission: at most `held_max` requests run or wait, and each admitted reply has a
//! [`TokenStream`]. Dropping the stream cancels the reply, so a closed connection, a timeout and an
//! abandoned request are all handled in the same way.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use kilotok_engine::{Caps, Engine};
use kilotok_sched::{GroupUsage, Limits, Scheduler, Submission};
use kilotok_text::Grammar;
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;
use crate::command::{Command, CommandQueue, Submit};
use crate::engine_thread::{EngineFailed, EngineLoop, Parts};
use crate::health::{EngineStatus, Health, Lifecycle};
use crate::increment::{FailureKind, FinishReason, Increment};
use crate::mask_workers::MaskWorkers;
use crate::metrics::Metrics;
use crate::reply_channel::{CancelReason, ReplyChannel};
use crate::wake_relay::WakeRelay;

#[cfg(test)]
mod tests;

/// The largest [`AdmissionOptions::waiting_max`]. Each waiting request holds a socket, its text and
/// its prompt, and the command queue is allocated at start for the largest number of them.
pub const WAITING_MAX: u32 = 1 << 16;
/// A request is told whether it is admitted after the step in flight, or a few steps later if very
/// many arrive at once. It is refused if the engine stalls in the meantime, or if the answer takes
/// longer than this many times the time after which a step counts as stalled.
const ANSWER_STALLS_MAX: u32 = 2;

/// Options besides the scheduler's [`Limits`].
#[derive(Clone)]
pub struct AdmissionOptions {
    /// Requests that may wait to start, beside those that run. Preempted requests do not count.
    pub waiting_max: u32,
    /// An engine whose step takes longer is stalled.
    pub stall_ms: u32,
    /// Threads that make grammar masks.
    pub mask_threads: u32,
    pub clock: Clock,
}

impl Default for AdmissionOptions {
    fn default() -> Self {
        Self { waiting_max: 1024, stall_ms: 10_000, mask_threads: 2, clock: Clock::default() }
    }
}

/// A request for one reply.
pub struct ReplyRequest {
    /// The id by which [`Admission::abort`] ends the reply. Several requests may have the same id.
    pub request_id: String,
    /// The engine's thread sets its `needs_masks`.
    pub submission: Submission,
    pub grammar: Option<Grammar>,
}

/// The reason why a request was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("too many requests are waiting; try again in {retry_after_s} s")]
    QueueFull { retry_after_s: u64 },
    #[error(
        "the prompt has {token_count} tokens; with one of the reply, at most {context_max} fit"
    )]
    TooLong { token_count: u32, context_max: u32 },
    /// The request breaks a limit of the engine.
    #[error("{0}")]
    Illegal(String),
    #[error("the server is shutting down")]
    Draining,
    #[error("the engine has failed: {0}")]
    Failed(String),
}

/// The load of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests that were admitted, or have a reservation, and have not ended.
    pub held: u32,
    /// How many of the held requests have a slot. Each has a row in every step; if more rows decode
    /// than a narrow step takes, they take turns.
    pub running: u32,
    /// Positions whose keys and values are in use, and below, how many there can be.
    pub token_count: u64,
    pub token_max: u64,
    /// How full the fullest page group is, among the groups that hold all positions of a text; 1 is
    /// full.
    pub usage: f64,
}

impl Load {
    pub fn waiting(&self) -> u32 {
        self.held.saturating_sub(self.running)
    }
}

/// See the file's head.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    caps: Caps,
    context_max: u32,
    /// Most requests that may be held: running and waiting ones together.
    held_max: u32,
    stall: Duration,
    status: Arc<EngineStatus>,
    wake_relay: Arc<WakeRelay>,
    metrics: Arc<Metrics>,
    commands: CommandQueue,
    next_key: AtomicU64,
    /// The channel of each stream, by the stream's key.
    channels: Mutex<BTreeMap<u64, Arc<ReplyChannel>>>,
    ended: watch::Receiver<Option<Result<(), EngineFailed>>>,
}

/// The handle of the engine's thread.
pub struct EngineThread(thread::JoinHandle<Result<(), EngineFailed>>);

impl EngineThread {
    /// Waits until the engine's thread ends: after a drain, when it is stopped, or because the
    /// engine failed.
    pub fn join(self) -> Result<(), EngineFailed> {
        let lost = |_| Err(lost());
        self.0.join().unwrap_or_else(lost)
    }
}

fn lost() -> EngineFailed {
    EngineFailed("its thread ended without an outcome".into())
}

impl Admission {
    /// Starts the engine's thread. It ends at the latest when the last admission and the last
    /// stream are dropped.
    ///
    /// # Panics
    /// If the system cannot start a thread for the engine.
    pub fn start(
        engine: Box<dyn Engine>,
        mut limits: Limits,
        metrics: Arc<Metrics>,
        options: AdmissionOptions,
    ) -> (Self, EngineThread) {
        let caps = engine.caps().clone();
        let running_max = limits.running(&caps);
        let held_max = running_max.saturating_add(options.waiting_max.min(WAITING_MAX));
        // All held requests may be in the queue at once, as after a burst into an empty server.
        limits.queue_max = held_max;
        metrics.configured(&caps, limits.prefix_cache);
        let sched = Scheduler::new(&caps, limits);
        let context_max = sched.context_max();
        let status = Arc::new(EngineStatus::new(options.clock, options.stall_ms));
        // Jobs of cancelled requests may still wait beside the jobs of the requests that replaced
        // them.
        let job_max = 2 * held_max as usize;
        // Room for every command that can be pending: a submit and a cancel per request, a result
        // per mask job, and one change of the lifecycle.
        let (sender, receiver) = sync_channel(2 * held_max as usize + job_max + 1);
        let commands = CommandQueue::new(sender, Arc::clone(&status));
        let clock = &status.clock;
        let masks = MaskWorkers::start(options.mask_threads, job_max, &commands, &metrics, clock);
        let (tell, ended) = watch::channel(None);
        let wake_relay = Arc::new(WakeRelay::default());
        let parts = Parts {
            commands: receiver,
            ended: tell,
            masks,
            wake_relay: Arc::clone(&wake_relay),
            sched,
            engine,
        };
        let engine_loop = EngineLoop::new(parts, Arc::clone(&status), Arc::clone(&metrics));
        let thread = thread::Builder::new().name("kilotok-engine".into());
        let thread = thread.spawn(move || engine_loop.run()).expect("the system has a thread");
        let shared = Shared {
            caps,
            context_max,
            held_max,
            stall: Duration::from_millis(u64::from(options.stall_ms)),
            status,
            wake_relay,
            metrics,
            commands,
            next_key: AtomicU64::new(0),
            channels: Mutex::default(),
            ended,
        };
        (Self(Arc::new(shared)), EngineThread(thread))
    }

    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    /// Most tokens of a prompt and its reply together.
    pub fn context_max(&self) -> u32 {
        self.0.context_max
    }

    /// Most requests that may be held, and so most replies that one request may have.
    pub fn held_max(&self) -> u32 {
        self.0.held_max
    }

    /// Submits one reply. Dropping the future, like dropping the stream, cancels the reply.
    pub async fn submit(&self, request: ReplyRequest) -> Result<TokenStream, Refusal> {
        let mut streams = self.submit_all(vec![vec![request]]).await?;
        streams.pop().ok_or_else(|| Refusal::Failed("the request was lost".into()))
    }

    /// Submits the replies of one request, grouped by prompt: either all are admitted or none. They
    /// count as one request in the queue. Of the replies to the same prompt, the first computes the
    /// prompt; the others start when it has its first token, and find the prompt in the cache.
    pub async fn submit_all(
        &self,
        prompts: Vec<Vec<ReplyRequest>>,
    ) -> Result<Vec<TokenStream>, Refusal> {
        let count = prompts.iter().map(|requests| requests.len() as u32).sum();
        self.admit(count).inspect_err(|refusal| self.0.count_refusal(refusal))?;
        self.0.wake_relay.ensure_running();
        let arrived_us = self.0.status.clock.now_us();
        let (answer, answered) = oneshot::channel();
        let mut streams = Vec::with_capacity(count as usize);
        let mut keyed = |request: ReplyRequest| {
            let prompt_count = request.submission.prompt.len() as u32;
            let stream = self.stream(request.request_id.clone(), prompt_count);
            let reply = (stream.key, request, Arc::clone(&stream.channel));
            streams.push(stream);
            reply
        };
        let prompts =
            prompts.into_iter().map(|requests| requests.into_iter().map(&mut keyed).collect());
        let submit = Box::new(Submit { arrived_us, prompts: prompts.collect(), answer });
        let admitted = match self.0.commands.try_send(Command::Submit(submit)) {
            Ok(()) => self.answer(answered).await,
            Err(error) => {
                self.0.status.release(count);
                match error {
                    TrySendError::Full(_) => Err(self.0.queue_full()),
                    TrySendError::Disconnected(_) => Err(self.0.over()),
                }
            }
        };
        admitted.inspect_err(|refusal| self.0.count_refusal(refusal)).map(|()| streams)
    }

    async fn answer(
        &self,
        mut answered: oneshot::Receiver<Result<(), Refusal>>,
    ) -> Result<(), Refusal> {
        for _ in 0..ANSWER_STALLS_MAX {
            match tokio::time::timeout(self.0.stall, &mut answered).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(_)) => return Err(self.0.over()),
                Err(_) if matches!(self.health(), Health::Stalled { .. }) => break,
                Err(_) => {}
            }
        }
        Err(self.0.stalled())
    }

    /// Refuses a request if that can be decided without the engine's thread.
    fn admit(&self, count: u32) -> Result<(), Refusal> {
        let shared = &self.0;
        match shared.status.health() {
            Health::Ok { .. } => {}
            Health::Stalled { .. } => return Err(shared.stalled()),
            Health::Failed { .. } | Health::Draining => return Err(shared.over()),
        }
        let held_max = shared.held_max;
        if count == 0 || count > held_max {
            let message = format!("{count} replies; 1 to {held_max} are possible");
            return Err(Refusal::Illegal(message));
        }
        if shared.status.try_hold(count, held_max) { Ok(()) } else { Err(shared.queue_full()) }
    }

    /// Counts a request as waiting while its prompt or its grammar is made. If the queue is full,
    /// the request is refused before either is made.
    pub fn reserve(&self) -> Result<Reservation, Refusal> {
        if self.0.status.try_hold(1, self.0.held_max) {
            return Ok(Reservation(Arc::clone(&self.0)));
        }
        let refusal = self.0.queue_full();
        self.0.count_refusal(&refusal);
        Err(refusal)
    }

    fn stream(&self, request_id: String, prompt_count: u32) -> TokenStream {
        let key = self.0.next_key.fetch_add(1, Ordering::Relaxed);
        let channel = Arc::new(ReplyChannel::new(request_id, prompt_count));
        self.0.channels().insert(key, Arc::clone(&channel));
        TokenStream { key, channel, shared: Arc::clone(&self.0), over: false }
    }

    /// Ends all replies with this id at once; returns how many there were. The empty id matches no
    /// reply.
    pub fn abort(&self, request_id: &str) -> usize {
        self.abort_where(|channel| !request_id.is_empty() && channel.request_id == request_id)
    }

    /// Ends all replies whose ids begin with this prefix.
    pub fn abort_all(&self, prefix: &str) -> usize {
        self.abort_where(|channel| channel.request_id.starts_with(prefix))
    }

    fn abort_where(&self, which: impl Fn(&ReplyChannel) -> bool) -> usize {
        let mut count = 0;
        for (key, channel) in self.0.channels().iter().filter(|(_, channel)| which(channel)) {
            if self.0.cancel(*key, channel, CancelReason::Aborted) {
                channel.end(FinishReason::Aborted);
                count += 1;
            }
        }
        count
    }

    pub fn load(&self) -> Load {
        let stats = self.0.status.stats();
        let tokens = |count: fn(&GroupUsage) -> u32| {
            let mut groups = stats.groups.iter().zip(&self.0.caps.groups);
            let full = groups.find(|(_, group)| group.window.is_none());
            full.map_or(0, |(usage, group)| u64::from(count(usage)) * u64::from(group.page_tokens))
        };
        Load {
            held: self.0.status.held(),
            running: stats.running,
            token_count: tokens(|usage| usage.used),
            token_max: tokens(|usage| usage.page_count),
            usage: stats.usage(),
        }
    }

    pub fn health(&self) -> Health {
        self.0.status.health()
    }

    /// Refuses new requests and lets the admitted ones finish; then the engine's thread ends.
    pub fn drain(&self) {
        self.0.close(Lifecycle::Draining);
    }

    /// Ends all remaining replies with an error, even if the engine no longer responds.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Waits until the engine's thread ends, see [`EngineThread::join`].
    pub async fn ended(&self) -> Result<(), EngineFailed> {
        let mut ended = self.0.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err(lost()),
        }
    }
}

impl Shared {
    fn channels(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<ReplyChannel>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a command that may be lost if the queue is full: the engine's thread checks the
    /// channels and the lifecycle anyway.
    fn send(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// Returns false if the reply had already ended or was already cancelled.
    fn cancel(&self, key: u64, channel: &ReplyChannel, reason: CancelReason) -> bool {
        let (is_first, finished) = channel.cancel(reason);
        if let Some(finished) = finished {
            self.metrics.finished(finished);
        }
        if is_first {
            self.send(Command::Cancel(key));
        }
        is_first
    }

    fn close(&self, lifecycle: Lifecycle) {
        self.status.close(lifecycle);
        self.send(Command::Wake);
    }

    fn stop(&self) {
        self.close(Lifecycle::Stopped);
        for channel in self.channels().values() {
            channel.end(shut_down());
        }
    }

    fn queue_full(&self) -> Refusal {
        let waiting = self.status.held().saturating_sub(self.status.stats().running);
        let now_us = self.status.clock.now_us();
        let retry_after_s = self.status.completion_rate().retry_after_s(waiting, now_us);
        Refusal::QueueFull { retry_after_s }
    }

    /// The reason why the engine's thread accepts no more requests.
    fn over(&self) -> Refusal {
        match self.status.failure() {
            Some(message) => Refusal::Failed(message.into()),
            None => Refusal::Draining,
        }
    }

    fn stalled(&self) -> Refusal {
        match self.status.health() {
            Health::Stalled { for_ms } => {
                Refusal::Failed(format!("it has finished no step for {for_ms} ms"))
            }
            _ => Refusal::Failed("it did not answer in time".into()),
        }
    }

    fn count_refusal(&self, refusal: &Refusal) {
        match refusal {
            Refusal::QueueFull { .. } => self.metrics.rejected("queue_full"),
            Refusal::Draining => self.metrics.rejected("draining"),
            Refusal::Failed(_) => self.metrics.rejected("failed"),
            Refusal::TooLong { .. } | Refusal::Illegal(_) => {}
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn shut_down() -> FinishReason {
    let message = "the server stopped before the reply was complete";
    FinishReason::failed(FailureKind::Shutdown, message)
}

/// See [`Admission::reserve`]. Dropping the reservation gives it up.
pub struct Reservation(Arc<Shared>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.status.release(1);
    }
}

/// The tokens of one reply, as they are generated. Dropping the stream cancels the reply.
pub struct TokenStream {
    key: u64,
    channel: Arc<ReplyChannel>,
    shared: Arc<Shared>,
    /// The last increment was returned, or the reader found the reply complete.
    over: bool,
}

impl TokenStream {
    /// Everything since the last call, merged into one increment; `None` after the last one.
    /// Nothing is lost if the future is dropped. The increment has tokens but no text, see
    /// [`crate::ReplyStream`].
    pub async fn next(&mut self) -> Option<Increment> {
        if self.over {
            return None;
        }
        let increment = poll_fn(|context| self.channel.poll_take(context)).await;
        self.over = increment.finish.is_some();
        Some(increment)
    }

    /// Ends the reply after `kept` tokens, because the reader found a stop string.
    pub fn complete(&mut self, kept: u32) {
        self.cancel(CancelReason::Complete { kept });
        self.over = true;
    }

    fn cancel(&self, reason: CancelReason) {
        self.shared.cancel(self.key, &self.channel, reason);
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.cancel(CancelReason::Dropped);
        self.shared.channels().remove(&self.key);
    }
}
