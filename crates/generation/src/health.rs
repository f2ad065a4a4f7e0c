//! What the engine's thread lets others know of it without being asked: whether steps get done,
//! whether new requests are welcome, how much it has to do. Health is decode progress: where there
//! is work and no step was done for a while, the engine is stalled, whatever it believes itself.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kilotok_sched::Stats;

use crate::pace::Pace;
use crate::stopwatch::Stopwatch;

/// How the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ok {
        /// Whether there is work.
        busy: bool,
    },
    /// There is work, but no step was done for so long.
    Stalled { for_ms: u64 },
    /// It failed, and nothing will run again.
    Failed { message: String },
    /// New requests are refused, old ones go on.
    Draining,
}

/// Whom the server lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doors {
    Open = 0,
    /// Nobody new.
    Draining = 1,
    /// Those inside have to leave.
    Shut = 2,
}

/// Written by the engine's thread, read by all.
pub(crate) struct Board {
    pub(crate) stopwatch: Stopwatch,
    stall_us: u64,
    doors: AtomicU8,
    /// Requests that were let in and have not ended.
    held: AtomicU32,
    /// When a step was last done or work came after none, and one more; 0 without work.
    progress_us: AtomicU64,
    /// Messages that the engine's thread has not read.
    unread: AtomicU32,
    failure: OnceLock<String>,
    stats: Mutex<Stats>,
    pace: Mutex<Pace>,
}

impl Board {
    pub(crate) fn new(stopwatch: Stopwatch, stall_ms: u32) -> Self {
        Self {
            pace: Mutex::new(Pace::new(stopwatch.now_us())),
            stopwatch,
            stall_us: u64::from(stall_ms) * 1000,
            doors: AtomicU8::new(Doors::Open as u8),
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
        let waited_us = (self.stopwatch.now_us() + 1).saturating_sub(progress_us);
        if busy && waited_us > self.stall_us {
            return Health::Stalled { for_ms: waited_us / 1000 };
        }
        if self.doors() == Doors::Open { Health::Ok { busy } } else { Health::Draining }
    }

    /// A step was done.
    pub(crate) fn progress(&self, now_us: u64) {
        self.progress_us.store(now_us + 1, Ordering::SeqCst);
    }

    /// There is work, whether or not it gets done.
    pub(crate) fn busy(&self) {
        if self.progress_us.load(Ordering::SeqCst) == 0 {
            let now_us = self.stopwatch.now_us();
            let _ = self.progress_us.compare_exchange(
                0,
                now_us + 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        }
    }

    /// There is none but to read what was posted meanwhile.
    pub(crate) fn idle(&self) {
        self.progress_us.store(0, Ordering::SeqCst);
        if self.unread.load(Ordering::SeqCst) > 0 {
            self.busy();
        }
    }

    /// The engine's thread has a message to read. Counted before it is sent.
    pub(crate) fn posted(&self) {
        self.unread.fetch_add(1, Ordering::SeqCst);
        self.busy();
    }

    /// It was read, or could not be sent.
    pub(crate) fn read(&self) {
        self.unread.fetch_sub(1, Ordering::SeqCst);
    }

    /// The first failure is the cause of the others.
    pub(crate) fn fail(&self, message: String) {
        let _ = self.failure.set(message);
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(crate) fn doors(&self) -> Doors {
        match self.doors.load(Ordering::Acquire) {
            0 => Doors::Open,
            1 => Doors::Draining,
            _ => Doors::Shut,
        }
    }

    /// Doors that are shut do not open again.
    pub(crate) fn close(&self, doors: Doors) {
        self.doors.fetch_max(doors as u8, Ordering::AcqRel);
    }

    /// Room for so many more requests, if there is any.
    pub(crate) fn hold(&self, count: u32, room: u32) -> bool {
        let more = |held: u32| held.checked_add(count).filter(|held| *held <= room);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// A request has ended.
    pub(crate) fn release(&self, count: u32) {
        self.held.fetch_sub(count, Ordering::AcqRel);
    }

    pub(crate) fn held(&self) -> u32 {
        self.held.load(Ordering::Acquire)
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
