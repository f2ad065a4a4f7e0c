//! Wakes readers. Waking a task from a thread that is not its runtime's costs a system call, and
//! where cores are few each one hands the core over: for all rows of a step that is more than
//! everything else the engine's thread does. So it rings a bell, once per step, and a task of the
//! runtime wakes the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// See the file's head.
#[derive(Default)]
pub(crate) struct Bell {
    /// Readers who are to be woken; each waits in one place.
    wakers: Mutex<Vec<Waker>>,
    rung: Notify,
    over: AtomicBool,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Bell {
    /// Wakes all of these.
    pub(crate) fn ring(&self, wakers: &mut Vec<Waker>) {
        if !wakers.is_empty() {
            self.wakers().append(wakers);
            self.rung.notify_one();
        }
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It will not be rung again.
    pub(crate) fn close(&self) {
        self.over.store(true, Ordering::Release);
        self.rung.notify_one();
    }

    /// Sees to it that somebody in a runtime hears the bell.
    pub(crate) fn attend(self: &Arc<Self>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // It ends early with a runtime that is dropped.
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(Arc::clone(self).wake()));
        }
    }

    async fn wake(self: Arc<Self>) {
        loop {
            let over = self.over.load(Ordering::Acquire);
            let wakers = std::mem::take(&mut *self.wakers());
            wakers.into_iter().for_each(Waker::wake);
            if over {
                return;
            }
            self.rung.notified().await;
        }
    }
}
