//! The state that the engine's thread publishes: whether steps finish, whether new requests are
//! admitted, and the load. An engine is healthy if replies progress: if there is work but no step
//! has finished for a while, it is stalled.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kilotok_sched::Stats;

use crate::clock::Clock;
use crate::completion_rate::CompletionRate;

/// The health of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ok {
        /// Whether the engine has work.
        busy: bool,
    },
    /// There is work, but no step has finished for this long.
    Stalled { for_ms: u64 },
    /// The engine failed, and nothing will run again.
    Failed { message: String },
    /// New requests are refused, admitted ones continue.
    Draining,
}

/// The phases of a server. They only advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lifecycle {
    Accepting = 0,
    /// New requests are refused.
    Draining = 1,
    /// Running requests are ended as well.
    Stopped = 2,
}

/// Written by the engine's thread and by admission, read by every thread.
pub(crate) struct EngineStatus {
    pub(crate) clock: Clock,
    stall_us: u64,
    lifecycle: AtomicU8,
    /// Requests that were admitted, or have a reservation, and have not ended.
    held: AtomicU32,
    /// The time of the last progress, plus 1: a step finished, or work came to an idle engine. 0
    /// means no work.
    progress_us: AtomicU64,
    /// Commands that the engine's thread has not read.
    unread: AtomicU32,
    failure: OnceLock<String>,
    stats: Mutex<Stats>,
    completion_rate: Mutex<CompletionRate>,
}

impl EngineStatus {
    pub(crate) fn new(clock: Clock, stall_ms: u32) -> Self {
        Self {
            completion_rate: Mutex::new(CompletionRate::new(clock.now_us())),
            clock,
            stall_us: u64::from(stall_ms) * 1000,
            lifecycle: AtomicU8::new(Lifecycle::Accepting as u8),
            held: AtomicU32::new(0),
            progress_us: AtomicU64::new(0),
            unread: AtomicU32::new(0),
            failure: OnceLock::new(),
            stats: Mutex::default(),
        }
    }

    pub(crate) fn health(&self) -> Health {
        if let Some(message) = self.failure() {
            return Health::Failed { message: message.into() };
        }
        let progress_us = self.progress_us.load(Ordering::SeqCst);
        let busy = progress_us > 0;
        let waited_us = (self.clock.now_us() + 1).saturating_sub(progress_us);
        if busy && waited_us > self.stall_us {
            return Health::Stalled { for_ms: waited_us / 1000 };
        }
        if self.lifecycle() == Lifecycle::Accepting {
            Health::Ok { busy }
        } else {
            Health::Draining
        }
    }

    /// Notes that a step finished.
    pub(crate) fn progress(&self, now_us: u64) {
        self.progress_us.store(now_us + 1, Ordering::SeqCst);
    }

    /// Notes that there is work, whether or not it progresses.
    pub(crate) fn busy(&self) {
        if self.progress_us.load(Ordering::SeqCst) == 0 {
            let now_us = self.clock.now_us();
            let _ = self.progress_us.compare_exchange(
                0,
                now_us + 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        }
    }

    /// Notes that there is no work, unless commands have been sent in the meantime.
    pub(crate) fn idle(&self) {
        self.progress_us.store(0, Ordering::SeqCst);
        if self.unread.load(Ordering::SeqCst) > 0 {
            self.busy();
        }
    }

    /// Counts a command. Called before the command is sent.
    pub(crate) fn command_sent(&self) {
        self.unread.fetch_add(1, Ordering::SeqCst);
        self.busy();
    }

    /// Uncounts a command that was read, or could not be sent.
    pub(crate) fn command_read(&self) {
        self.unread.fetch_sub(1, Ordering::SeqCst);
    }

    /// Notes a failure. The first one is kept, as the cause of later ones.
    pub(crate) fn fail(&self, message: String) {
        let _ = self.failure.set(message);
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(crate) fn lifecycle(&self) -> Lifecycle {
        match self.lifecycle.load(Ordering::Acquire) {
            0 => Lifecycle::Accepting,
            1 => Lifecycle::Draining,
            _ => Lifecycle::Stopped,
        }
    }

    pub(crate) fn close(&self, lifecycle: Lifecycle) {
        self.lifecycle.fetch_max(lifecycle as u8, Ordering::AcqRel);
    }

    /// Holds `count` more requests, if all together are then at most `held_max`.
    pub(crate) fn try_hold(&self, count: u32, held_max: u32) -> bool {
        let more = |held: u32| held.checked_add(count).filter(|held| *held <= held_max);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Releases `count` requests that have ended.
    pub(crate) fn release(&self, count: u32) {
        self.held.fetch_sub(count, Ordering::AcqRel);
    }

    pub(crate) fn held(&self) -> u32 {
        self.held.load(Ordering::Acquire)
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn completion_rate(&self) -> MutexGuard<'_, CompletionRate> {
        self.completion_rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
