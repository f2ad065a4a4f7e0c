//! Receivers of a pull's progress.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

use kilotok_weights::Progress;

#[derive(Default)]
pub(crate) struct Recorder {
    begins: AtomicUsize,
    total: AtomicU64,
    arrived: AtomicU64,
    cancel_after: Option<u64>,
}

impl Recorder {
    pub(crate) fn cancelling_after(bytes: u64) -> Self {
        Self { cancel_after: Some(bytes), ..Self::default() }
    }

    /// Calls of `begin`, the total it gave, and the bytes that arrived.
    pub(crate) fn counts(&self) -> (usize, u64, u64) {
        let Self { begins, total, arrived, .. } = self;
        (
            begins.load(Ordering::SeqCst),
            total.load(Ordering::SeqCst),
            arrived.load(Ordering::SeqCst),
        )
    }
}

impl Progress for Recorder {
    fn begin(&self, total_bytes: u64) {
        self.begins.fetch_add(1, Ordering::SeqCst);
        self.total.store(total_bytes, Ordering::SeqCst);
    }

    fn advance(&self, bytes: u64) {
        self.arrived.fetch_add(bytes, Ordering::SeqCst);
    }

    fn cancelled(&self) -> bool {
        self.cancel_after.is_some_and(|limit| self.arrived.load(Ordering::SeqCst) >= limit)
    }
}

/// Records which threads report bytes.
#[derive(Default)]
pub(crate) struct Threads(pub(crate) Mutex<HashSet<ThreadId>>);

impl Progress for Threads {
    fn begin(&self, _: u64) {}
    fn advance(&self, _: u64) {
        self.0.lock().unwrap().insert(thread::current().id());
    }
    fn cancelled(&self) -> bool {
        false
    }
}
