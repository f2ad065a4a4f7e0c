//! Makes the masks of replies that are bound to a grammar, on a few threads of its own: a slow
//! grammar delays its own reply and nobody else's step. A reply's grammar travels with the work and
//! comes back through the engine's inbox with the masks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kilotok_abi::TokenId;
use kilotok_text::{Grammar, GrammarError, Masks};

use crate::metrics::Metrics;
use crate::post::{Mail, Post};
use crate::stopwatch::{Stopwatch, seconds};
use crate::updates::Mailbox;

/// The tokens that a reply has got, and the drafts that follow them.
pub(crate) struct Job {
    pub(crate) key: u64,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) grammar: Grammar,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) drafts: Vec<TokenId>,
}

/// What may be chosen next.
pub(crate) struct Guided {
    pub(crate) key: u64,
    pub(crate) made: Result<(Grammar, Masks), GrammarError>,
}

/// The threads. They end when this is dropped.
pub(crate) struct Guide {
    jobs: SyncSender<Box<Job>>,
}

impl Guide {
    /// At most `job_max` jobs wait.
    pub(crate) fn start(
        thread_count: u32,
        job_max: usize,
        post: &Post,
        metrics: &Arc<Metrics>,
        stopwatch: &Stopwatch,
    ) -> Self {
        let (jobs, taken) = sync_channel(job_max);
        let taken = Arc::new(Mutex::new(taken));
        for index in 0..thread_count.max(1) {
            let worker = Worker {
                jobs: Arc::clone(&taken),
                post: post.clone(),
                metrics: Arc::clone(metrics),
                stopwatch: stopwatch.clone(),
            };
            let named = thread::Builder::new().name(format!("kilotok-guide-{index}"));
            named.spawn(move || worker.run()).expect("the system has a thread for grammars");
        }
        Self { jobs }
    }

    /// False if too many jobs wait already.
    pub(crate) fn send(&self, job: Job) -> bool {
        self.jobs.try_send(Box::new(job)).is_ok()
    }
}

struct Worker {
    jobs: Arc<Mutex<Receiver<Box<Job>>>>,
    post: Post,
    metrics: Arc<Metrics>,
    stopwatch: Stopwatch,
}

impl Worker {
    fn run(self) {
        while let Some(job) = self.next() {
            let mail = if job.mailbox.left().is_some() {
                // The one who left could not say so if the inbox was full.
                Mail::Left(job.key)
            } else {
                self.masks(*job)
            };
            // A full inbox is emptied every step; without its reader there is nothing to do.
            if self.post.send(mail).is_err() {
                return;
            }
        }
    }

    fn masks(&self, job: Job) -> Mail {
        let key = job.key;
        let start_us = self.stopwatch.now_us();
        let made = catch_unwind(AssertUnwindSafe(|| guide(job)));
        let made = made.unwrap_or_else(|_| Err(GrammarError::Fault("it panicked".into())));
        self.metrics.masked(seconds(start_us, self.stopwatch.now_us()));
        Mail::Guided(Box::new(Guided { key, made }))
    }

    fn next(&self) -> Option<Box<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

fn guide(job: Job) -> Result<(Grammar, Masks), GrammarError> {
    let Job { mut grammar, tokens, drafts, .. } = job;
    let accepted = grammar.accept(&tokens);
    let masks = accepted.and_then(|()| grammar.masks(&drafts))?;
    Ok((grammar, masks))
}
