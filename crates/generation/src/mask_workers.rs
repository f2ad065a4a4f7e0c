//! Threads that compute the masks of replies with a grammar, so that a slow grammar delays only its
//! own reply and no step. A reply's grammar is moved into the job, and returns to the engine's
//! thread with the masks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kilotok_abi::TokenId;
use kilotok_text::{Grammar, GrammarError, Masks};

use crate::clock::{Clock, seconds};
use crate::command::{Command, CommandQueue};
use crate::metrics::Metrics;
use crate::reply_channel::ReplyChannel;

/// The new tokens of a reply, and the drafts after them.
pub(crate) struct MaskJob {
    pub(crate) key: u64,
    pub(crate) channel: Arc<ReplyChannel>,
    pub(crate) grammar: Grammar,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) drafts: Vec<TokenId>,
}

/// The reply's grammar, and the masks of the positions that follow.
pub(crate) struct MaskResult {
    pub(crate) key: u64,
    pub(crate) made: Result<(Grammar, Masks), GrammarError>,
}

/// The threads. They end when this value is dropped.
pub(crate) struct MaskWorkers {
    jobs: SyncSender<Box<MaskJob>>,
}

impl MaskWorkers {
    /// Starts the threads. At most `job_max` jobs may wait.
    pub(crate) fn start(
        thread_count: u32,
        job_max: usize,
        commands: &CommandQueue,
        metrics: &Arc<Metrics>,
        clock: &Clock,
    ) -> Self {
        let (jobs, taken) = sync_channel(job_max);
        let taken = Arc::new(Mutex::new(taken));
        for index in 0..thread_count.max(1) {
            let worker = Worker {
                jobs: Arc::clone(&taken),
                commands: commands.clone(),
                metrics: Arc::clone(metrics),
                clock: clock.clone(),
            };
            let named = thread::Builder::new().name(format!("kilotok-masks-{index}"));
            named.spawn(move || worker.run()).expect("the system has a thread for grammars");
        }
        Self { jobs }
    }

    /// Queues a job; returns false if too many are waiting.
    pub(crate) fn send(&self, job: MaskJob) -> bool {
        self.jobs.try_send(Box::new(job)).is_ok()
    }
}

struct Worker {
    jobs: Arc<Mutex<Receiver<Box<MaskJob>>>>,
    commands: CommandQueue,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Worker {
    fn run(self) {
        while let Some(job) = self.next() {
            let command = if job.channel.cancelled().is_some() {
                // The reader's own cancel command is lost if the queue was full.
                Command::Cancel(job.key)
            } else {
                self.work(*job)
            };
            // This wait is short, because every step empties the queue. If the engine's thread is
            // gone, so is the work.
            if self.commands.send(command).is_err() {
                return;
            }
        }
    }

    fn work(&self, job: MaskJob) -> Command {
        let key = job.key;
        let start_us = self.clock.now_us();
        let made = catch_unwind(AssertUnwindSafe(|| masks(job)));
        let made = made.unwrap_or_else(|_| Err(GrammarError::Fault("it panicked".into())));
        self.metrics.masked(seconds(start_us, self.clock.now_us()));
        Command::Masks(Box::new(MaskResult { key, made }))
    }

    fn next(&self) -> Option<Box<MaskJob>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

fn masks(job: MaskJob) -> Result<(Grammar, Masks), GrammarError> {
    let MaskJob { mut grammar, tokens, drafts, .. } = job;
    let accepted = grammar.accept(&tokens);
    let masks = accepted.and_then(|()| grammar.masks(&drafts))?;
    Ok((grammar, masks))
}
