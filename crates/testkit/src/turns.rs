//! Tests that take turns.

use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    static OWN: MutexGuard<'static, ()> = TURN.lock().unwrap_or_else(PoisonError::into_inner);
}

/// Waits until no other thread of the process has a turn. The calling thread keeps its turn until
/// it ends, as threads of tests do after each test, and may ask again. For tests of GPUs: every
/// engine needs the whole GPU, and several at once spoil each other's results.
pub fn take_turn() {
    OWN.with(|_| ());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::sync_channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_turn_lasts_until_its_thread_ends() {
        let ended = Arc::new(AtomicBool::new(false));
        let (has_turn, turns) = sync_channel(1);
        let (go_on, may_end) = sync_channel(1);
        let first = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                take_turn();
                take_turn();
                has_turn.send(()).unwrap();
                may_end.recv().unwrap();
                ended.store(true, Ordering::SeqCst);
            }
        });
        turns.recv().unwrap();
        let second = thread::spawn(move || {
            take_turn();
            assert!(ended.load(Ordering::SeqCst), "the first thread still has its turn");
        });
        go_on.send(()).unwrap();
        first.join().unwrap();
        second.join().unwrap();
    }
}
