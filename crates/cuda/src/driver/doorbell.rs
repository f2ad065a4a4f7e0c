//! The doorbell: a word of the host's memory for which the streams of all ranks wait, and beside it
//! the progress of each rank. A stream may wait for it forever, so this is the one place that knows
//! of such streams, and every function that may wait for a stream dismisses them first.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, Pinned, Result};

/// The distance between words that different GPUs write.
const LINE_WORDS: usize = 32;

/// Numbers count chains of launches on all ranks' streams, each of which begins when the doorbell
/// has been rung with its number.
pub(crate) struct Doorbell {
    words: Pinned,
}

/// Whether a number that grows, and may wrap, has reached another.
pub(crate) fn reached(seen: u32, number: u32) -> bool {
    seen.wrapping_sub(number).cast_signed() >= 0
}

impl Doorbell {
    /// A doorbell that has not been rung; no rank has begun or ended chain 1.
    pub(crate) fn new(devices: &[Arc<Device>]) -> Result<Arc<Self>> {
        let bytes = (1 + devices.len()) * LINE_WORDS * size_of::<u32>();
        Ok(Arc::new(Self { words: Pinned::new(devices, bytes)? }))
    }

    /// Begins all chains up to this one on every rank; everything written before is visible to
    /// them.
    pub(crate) fn ring(&self, number: u32) {
        self.word(0).store(number, Ordering::Release);
    }

    /// The last chain that a rank has begun, and the last one that it has ended, whose results are
    /// complete.
    pub(crate) fn progress(&self, rank: usize) -> (u32, u32) {
        let [acknowledged, ended] = Self::of_rank(rank);
        (self.word(acknowledged).load(Ordering::Acquire), self.word(ended).load(Ordering::Acquire))
    }

    /// Makes the stream of a rank wait for this number.
    pub(crate) fn await_on(&self, device: &Device, number: u32) -> Result<()> {
        device.wait_word(&self.words, 0, number)
    }

    /// The address of the word in which a rank acknowledges a number.
    pub(crate) fn acknowledge_address(&self, rank: usize) -> u64 {
        self.words.word_address(Self::of_rank(rank)[0])
    }

    /// Makes the stream of a rank report that everything before is complete.
    pub(crate) fn tell_ended(&self, device: &Device, rank: usize, number: u32) -> Result<()> {
        device.write_word(&self.words, Self::of_rank(rank)[1], number)
    }

    /// Enqueues a chain by `start` that waits for the doorbell.
    pub(crate) fn start_ahead<E>(
        self: &Arc<Self>,
        number: u32,
        start: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut quiet = dismiss_pending();
        // Parts of it may wait even if it does not start on every rank.
        *quiet.waiting = Some(PendingChain { doorbell: self.clone(), number });
        start()
    }

    /// Calls `prepare` and rings for the waiting chain. If that has been dismissed meanwhile, does
    /// neither and returns false.
    pub(crate) fn answer(self: &Arc<Self>, number: u32, prepare: impl FnOnce()) -> bool {
        let own = |waiting: &mut PendingChain| {
            waiting.number == number && Arc::ptr_eq(&waiting.doorbell, self)
        };
        let mut waiting = waiting();
        let found = waiting.take_if(own);
        if found.is_some() {
            prepare();
            self.ring(number);
        }
        found.is_some()
    }

    fn of_rank(rank: usize) -> [usize; 2] {
        let line = (1 + rank) * LINE_WORDS;
        [line, line + 1]
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        self.words.word(index)
    }
}

/// A chain that was enqueued ahead. Until its plan is written it does nothing when it is rung for.
struct PendingChain {
    doorbell: Arc<Doorbell>,
    number: u32,
}

/// The waiting chain, one for all engines of the process: they may share a GPU, and then a driver
/// function that waits for all work of the GPU.
static PENDING: Mutex<Option<PendingChain>> = Mutex::new(None);

fn waiting() -> MutexGuard<'static, Option<PendingChain>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this exists, no stream waits for a doorbell: everything that was started ends by itself.
pub(crate) struct NothingPending {
    waiting: MutexGuard<'static, Option<PendingChain>>,
    /// Dropped after the lock, which its drop takes if it was the doorbell's last user.
    _dismissed: Option<PendingChain>,
}

/// Dismisses the waiting chain.
pub(crate) fn dismiss_pending() -> NothingPending {
    let mut waiting = waiting();
    let dismissed = waiting.take();
    if let Some(PendingChain { doorbell, number }) = &dismissed {
        doorbell.ring(*number);
    }
    NothingPending { waiting, _dismissed: dismissed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap() {
        assert!(reached(5, 5) && reached(6, 5) && !reached(4, 5));
        assert!(reached(2, u32::MAX) && !reached(u32::MAX, 2));
    }
}
