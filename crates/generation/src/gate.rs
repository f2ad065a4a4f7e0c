//! The way in: a bounded number of requests, and a [`Ticket`] for each reply. Dropping the ticket
//! cancels the request, so a closed socket, a timeout and a change of mind take one path. Knows no
//! HTTP; whoever holds a ticket makes text of its tokens.

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

use crate::bell::Bell;
use crate::drive::{Drive, Parts};
use crate::guide::Guide;
use crate::health::{Board, Doors};
use crate::metrics::Metrics;
use crate::post::{Arrival, Mail, Post};
use crate::updates::{Leave, Mailbox};

pub use crate::drive::EngineFailed;
pub use crate::health::Health;
pub use crate::stopwatch::Stopwatch;
pub use crate::updates::{Ended, Failure, FailureKind, StepShare, Times, Update};

#[cfg(test)]
mod tests;

/// Most requests that may wait, whatever is asked for. Each holds a socket, its text and its
/// prompt; and room for what the engine's thread hears of all of them is taken at start.
pub const QUEUE_MAX: u32 = 1 << 16;
/// A request hears whether it is let in once the step in flight is done, or a few later ones if
/// very many come at once. A caller is sent away when the engine stalls meanwhile, or when this
/// takes longer than so many times what a stalled step takes.
const ANSWER_STALLS_MAX: u32 = 2;

/// What whoever runs the server may set.
#[derive(Clone)]
pub struct GateOptions {
    /// Requests that may wait beyond those that the engine could run; at most [`QUEUE_MAX`].
    pub queue_max: u32,
    /// A step that takes longer is a stalled engine.
    pub stall_ms: u32,
    /// Threads that make grammar masks.
    pub guide_threads: u32,
    pub stopwatch: Stopwatch,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self {
            queue_max: 1024,
            stall_ms: 10_000,
            guide_threads: 2,
            stopwatch: Stopwatch::default(),
        }
    }
}

/// A request for one reply.
pub struct Ask {
    /// What [`Gate::abort`] knows it by. Several may have the same.
    pub request_id: String,
    /// Its `needs_masks` is set by the gate.
    pub submission: Submission,
    pub grammar: Option<Grammar>,
}

/// Why a request was not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("too many requests are waiting; try again in {retry_after_s} s")]
    QueueFull { retry_after_s: u64 },
    #[error(
        "the prompt has {token_count} tokens; with one of the reply, at most {context_max} fit"
    )]
    TooLong { token_count: u32, context_max: u32 },
    /// It breaks a limit of the engine.
    #[error("{0}")]
    Illegal(String),
    #[error("the server is shutting down")]
    Draining,
    #[error("the engine has failed: {0}")]
    Failed(String),
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests that are prepared, or were let in and have not ended.
    pub held: u32,
    /// Those of them that have a share of each step.
    pub running: u32,
    /// Positions whose keys and values are in use, and how many there is room for.
    pub token_count: u64,
    pub token_max: u64,
    /// How full the fullest page group is; 1 is full.
    pub usage: f64,
}

impl Load {
    pub fn waiting(&self) -> u32 {
        self.held.saturating_sub(self.running)
    }
}

/// See the file's head.
#[derive(Clone)]
pub struct Gate(Arc<Lobby>);

struct Lobby {
    caps: Caps,
    context_max: u32,
    /// Most requests that may be held.
    room: u32,
    stall: Duration,
    board: Arc<Board>,
    bell: Arc<Bell>,
    metrics: Arc<Metrics>,
    post: Post,
    next_key: AtomicU64,
    /// One for each ticket.
    mailboxes: Mutex<BTreeMap<u64, Arc<Mailbox>>>,
    ended: watch::Receiver<Option<Result<(), EngineFailed>>>,
}

/// The engine's thread, for whoever must know how it ended.
pub struct Driver(thread::JoinHandle<Result<(), EngineFailed>>);

impl Driver {
    /// Waits until the engine's thread ends: after a drain, when the gate is shut, or because the
    /// engine failed.
    pub fn join(self) -> Result<(), EngineFailed> {
        let lost = |_| Err(EngineFailed("its thread could not even say why".into()));
        self.0.join().unwrap_or_else(lost)
    }
}

impl Gate {
    /// Starts the engine's thread. It ends when the last gate and the last ticket are gone, if not
    /// before.
    ///
    /// # Panics
    /// If the system has no thread for the engine.
    pub fn start(
        engine: Box<dyn Engine>,
        mut limits: Limits,
        metrics: Arc<Metrics>,
        options: GateOptions,
    ) -> (Self, Driver) {
        let caps = engine.caps().clone();
        let running_max =
            limits.running_max.min(caps.slot_count).min(caps.row_max).min(caps.token_max).max(1);
        let room = running_max.saturating_add(options.queue_max.min(QUEUE_MAX));
        // The bound is kept here, so that a burst into an empty server is not refused.
        limits.waiting_max = room;
        metrics.configured(&caps, limits.prefix_cache);
        let sched = Scheduler::new(&caps, limits);
        let context_max = sched.context_max();
        let board = Arc::new(Board::new(options.stopwatch, options.stall_ms));
        // Jobs of requests that left meanwhile wait beside those of the ones who came instead.
        let job_max = 2 * room as usize;
        // That each request came and left, what came of the jobs, and that the doors moved.
        let (sender, inbox) = sync_channel(2 * room as usize + job_max + 1);
        let post = Post::new(sender, Arc::clone(&board));
        let stopwatch = &board.stopwatch;
        let guide = Guide::start(options.guide_threads, job_max, &post, &metrics, stopwatch);
        let (tell, ended) = watch::channel(None);
        let bell = Arc::new(Bell::default());
        let parts = Parts { inbox, tell, guide, bell: Arc::clone(&bell), sched, engine };
        let drive = Drive::new(parts, Arc::clone(&board), Arc::clone(&metrics));
        let thread = thread::Builder::new().name("kilotok-engine".into());
        let thread = thread.spawn(move || drive.run()).expect("the system has a thread");
        let lobby = Lobby {
            caps,
            context_max,
            room,
            stall: Duration::from_millis(u64::from(options.stall_ms)),
            board,
            bell,
            metrics,
            post,
            next_key: AtomicU64::new(0),
            mailboxes: Mutex::default(),
            ended,
        };
        (Self(Arc::new(lobby)), Driver(thread))
    }

    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    /// Most tokens of a prompt and its reply together.
    pub fn context_max(&self) -> u32 {
        self.0.context_max
    }

    /// Most replies that may be asked for at once.
    pub fn room(&self) -> u32 {
        self.0.room
    }

    /// Asks for a reply. Dropping the future, like dropping the ticket, cancels the request.
    pub async fn submit(&self, ask: Ask) -> Result<Ticket, Refusal> {
        let mut tickets = self.submit_many(vec![ask]).await?;
        tickets.pop().ok_or_else(|| Refusal::Failed("the request was lost".into()))
    }

    /// Asks for several replies to one prompt, see [`Gate::submit_all`].
    pub async fn submit_many(&self, asks: Vec<Ask>) -> Result<Vec<Ticket>, Refusal> {
        self.submit_all(vec![asks]).await
    }

    /// Asks for the replies of one request, by prompt: all are let in or none is. They count as one
    /// request in the queue. Of the replies to one prompt the others start when the first has its
    /// first token, and find the prompt computed.
    pub async fn submit_all(&self, prompts: Vec<Vec<Ask>>) -> Result<Vec<Ticket>, Refusal> {
        let count = prompts.iter().map(|asks| asks.len() as u32).sum();
        self.admit(count).inspect_err(|refusal| self.0.note(refusal))?;
        self.0.bell.attend();
        let arrived_us = self.0.board.stopwatch.now_us();
        let (answer, answered) = oneshot::channel();
        let mut tickets = Vec::with_capacity(count as usize);
        let mut keyed = |ask: Ask| {
            let ticket = self.ticket(ask.request_id.clone());
            let reply = (ticket.key, ask, Arc::clone(&ticket.mailbox));
            tickets.push(ticket);
            reply
        };
        let prompts = prompts.into_iter().map(|asks| asks.into_iter().map(&mut keyed).collect());
        let arrival = Box::new(Arrival { arrived_us, prompts: prompts.collect(), answer });
        let posted = self.0.post.try_send(Mail::Arrival(arrival));
        let refused = match posted {
            Ok(()) => self.answer(answered).await,
            Err(error) => {
                self.0.board.release(count);
                match error {
                    TrySendError::Full(_) => Err(self.0.queue_full()),
                    TrySendError::Disconnected(_) => Err(self.0.over()),
                }
            }
        };
        refused.inspect_err(|refusal| self.0.note(refusal)).map(|()| tickets)
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

    /// What can be said without the engine's thread.
    fn admit(&self, count: u32) -> Result<(), Refusal> {
        let lobby = &self.0;
        match lobby.board.health() {
            Health::Ok { .. } => {}
            Health::Stalled { .. } => return Err(lobby.stalled()),
            Health::Failed { .. } | Health::Draining => return Err(lobby.over()),
        }
        if count == 0 || count > lobby.room {
            let room = lobby.room;
            return Err(Refusal::Illegal(format!("{count} replies; 1 to {room} are possible")));
        }
        if lobby.board.hold(count, lobby.room) { Ok(()) } else { Err(lobby.queue_full()) }
    }

    /// Has a request count as one that waits while its prompt or its grammar is made. Beyond those
    /// who may wait, nothing is made for anyone.
    pub fn place(&self) -> Result<Place, Refusal> {
        if self.0.board.hold(1, self.0.room) {
            return Ok(Place(Arc::clone(&self.0)));
        }
        let refusal = self.0.queue_full();
        self.0.note(&refusal);
        Err(refusal)
    }

    fn ticket(&self, request_id: String) -> Ticket {
        let key = self.0.next_key.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::new(Mailbox::new(request_id));
        self.0.mailboxes().insert(key, Arc::clone(&mailbox));
        Ticket { key, mailbox, lobby: Arc::clone(&self.0), over: false }
    }

    /// Ends all replies of that id at once, and returns how many. No reply has the empty id.
    pub fn abort(&self, request_id: &str) -> usize {
        self.abort_where(|mailbox| !request_id.is_empty() && mailbox.request_id == request_id)
    }

    /// The same of all whose ids begin so.
    pub fn abort_all(&self, prefix: &str) -> usize {
        self.abort_where(|mailbox| mailbox.request_id.starts_with(prefix))
    }

    fn abort_where(&self, which: impl Fn(&Mailbox) -> bool) -> usize {
        let mut count = 0;
        for (key, mailbox) in self.0.mailboxes().iter().filter(|(_, mailbox)| which(mailbox)) {
            if self.0.leave(*key, mailbox, Leave::Aborted) {
                mailbox.end(Ended::Aborted);
                count += 1;
            }
        }
        count
    }

    pub fn load(&self) -> Load {
        let stats = self.0.board.stats();
        let part = |group: &GroupUsage| f64::from(group.used) / f64::from(group.page_count.max(1));
        let tokens = |count: fn(&GroupUsage) -> u32| {
            let mut groups = stats.groups.iter().zip(&self.0.caps.groups);
            let full = groups.find(|(_, group)| group.window.is_none());
            full.map_or(0, |(usage, group)| u64::from(count(usage)) * u64::from(group.page_tokens))
        };
        Load {
            held: self.0.board.held(),
            running: stats.running,
            token_count: tokens(|usage| usage.used),
            token_max: tokens(|usage| usage.page_count),
            usage: stats.groups.iter().map(part).fold(0.0, f64::max),
        }
    }

    pub fn health(&self) -> Health {
        self.0.board.health()
    }

    /// Refuses new requests and lets the old ones finish; then the engine's thread ends.
    pub fn drain(&self) {
        self.0.close(Doors::Draining);
    }

    /// Ends whatever is left with an error, whether or not the engine still answers.
    pub fn shut(&self) {
        self.0.shut();
    }

    /// Waits until the engine's thread ends, see [`Driver::join`].
    pub async fn ended(&self) -> Result<(), EngineFailed> {
        let mut ended = self.0.ended.clone();
        let lost = EngineFailed("its thread could not even say why".into());
        match ended.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err(lost),
        }
    }
}

impl Lobby {
    fn mailboxes(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Mailbox>>> {
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message that may be lost when the inbox is full: mailboxes and doors are looked at anyway.
    fn send(&self, mail: Mail) {
        let _ = self.post.try_send(mail);
    }

    /// False if it had ended, or was left before.
    fn leave(&self, key: u64, mailbox: &Mailbox, why: Leave) -> bool {
        let (news, ending) = mailbox.leave(why);
        if let Some(ending) = ending {
            self.metrics.ended(ending);
        }
        if news {
            self.send(Mail::Left(key));
        }
        news
    }

    fn close(&self, doors: Doors) {
        self.board.close(doors);
        self.send(Mail::Look);
    }

    fn shut(&self) {
        self.close(Doors::Shut);
        for mailbox in self.mailboxes().values() {
            mailbox.end(shut_down());
        }
    }

    fn queue_full(&self) -> Refusal {
        let waiting = self.board.held().saturating_sub(self.board.stats().running);
        let now_us = self.board.stopwatch.now_us();
        Refusal::QueueFull { retry_after_s: self.board.pace().retry_after_s(waiting, now_us) }
    }

    /// Why the engine's thread takes no more.
    fn over(&self) -> Refusal {
        match self.board.failure() {
            Some(message) => Refusal::Failed(message.into()),
            None => Refusal::Draining,
        }
    }

    fn stalled(&self) -> Refusal {
        match self.board.health() {
            Health::Stalled { for_ms } => {
                Refusal::Failed(format!("it has finished no step for {for_ms} ms"))
            }
            _ => Refusal::Failed("it did not answer in time".into()),
        }
    }

    fn note(&self, refusal: &Refusal) {
        match refusal {
            Refusal::QueueFull { .. } => self.metrics.rejected("queue_full"),
            Refusal::Draining => self.metrics.rejected("draining"),
            Refusal::Failed(_) => self.metrics.rejected("failed"),
            Refusal::TooLong { .. } | Refusal::Illegal(_) => {}
        }
    }
}

impl Drop for Lobby {
    fn drop(&mut self) {
        self.shut();
    }
}

pub(crate) fn shut_down() -> Ended {
    Failure::ended(FailureKind::Shutdown, "the server stopped before the reply was complete")
}

/// See [`Gate::place`]. Dropping it gives it back.
pub struct Place(Arc<Lobby>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.board.release(1);
    }
}

/// One running reply. Dropping it cancels the request.
pub struct Ticket {
    key: u64,
    mailbox: Arc<Mailbox>,
    lobby: Arc<Lobby>,
    /// The finish was handed out, or the reader wants no more.
    over: bool,
}

impl Ticket {
    /// What came since the last call, merged; None after the finish was handed out. Nothing is
    /// lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Update> {
        if self.over {
            return None;
        }
        let update = poll_fn(|context| self.mailbox.poll_take(context)).await;
        self.over = update.finish.is_some();
        Some(update)
    }

    /// The reader found a stop string: the reply is complete after `kept` tokens.
    pub fn stop(&mut self, kept: u32) {
        self.leave(Leave::Stopped { kept });
        self.over = true;
    }

    fn leave(&self, why: Leave) {
        self.lobby.leave(self.key, &self.mailbox, why);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave(Leave::Cancelled);
        self.lobby.mailboxes().remove(&self.key);
    }
}
