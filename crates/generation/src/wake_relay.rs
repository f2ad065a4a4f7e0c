//! Wakes the readers of replies. Waking a task from a thread outside its runtime costs a system
//! call, and on a machine with few cores each of these calls yields the core: for all rows of a
//! step, that would take longer than the rest of the engine thread's work. So the engine's thread
//! wakes one task of the runtime per step, and that task wakes the readers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// See the file's head.
#[derive(Default)]
pub(crate) struct WakeRelay {
    /// The readers to be woken; each reader has at most one waker here.
    wakers: Mutex<Vec<Waker>>,
    notify: Notify,
    closed: AtomicBool,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl WakeRelay {
    /// Has the task wake all of these.
    pub(crate) fn wake(&self, wakers: &mut Vec<Waker>) {
        if !wakers.is_empty() {
            self.wakers().append(wakers);
            self.notify.notify_one();
        }
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the task: no more readers will be woken.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Starts the waking task on the caller's runtime, unless it runs already.
    pub(crate) fn ensure_running(self: &Arc<Self>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // The task ends early if its runtime is dropped.
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
