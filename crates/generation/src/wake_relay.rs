//! Wakes the readers of replies. To wake a task from a thread outside of its runtime costs a system
//! call, and where cores are few each one yields the core: for all rows of a step that would be
//! more than everything else that the engine's thread does. So it wakes one task of the runtime,
//! once per step, and that task wakes the readers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// See the file's head.
#[derive(Default)]
pub(crate) struct WakeRelay {
    /// Of readers that are to be woken; each reader has at most one here.
    wakers: Mutex<Vec<Waker>>,
    notify: Notify,
    closed: AtomicBool,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl WakeRelay {
    /// Wakes all of these.
    pub(crate) fn wake(&self, wakers: &mut Vec<Waker>) {
        if !wakers.is_empty() {
            self.wakers().append(wakers);
            self.notify.notify_one();
        }
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more readers will be woken.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Makes sure that a task of the caller's runtime does the waking.
    pub(crate) fn ensure_running(self: &Arc<Self>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // It ends early with a runtime that is dropped.
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(Arc::clone(self).run()));
        }
    }

    async fn run(self: Arc<Self>) {
        loop {
            let closed = self.closed.load(Ordering::Acquire);
            let wakers = std::mem::take(&mut *self.wakers());
            wakers.into_iter().for_each(Waker::wake);
            if closed {
                return;
            }
            self.notify.notified().await;
        }
    }
}
