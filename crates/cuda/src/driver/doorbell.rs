//! The doorbell: a word of the host's memory for which the streams of all ranks wait, and beside it
//! what each rank says of itself. What waits may wait forever, so there is one place that knows of
//! it, and everything that could wait for a stream dismisses it first.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, Pinned, Result};

/// Words that different GPUs write lie so far apart.
const LINE_WORDS: usize = 32;

/// Numbers count chains: bursts of work on all ranks' streams, each of which begins when the bell
/// has been rung for it.
pub(crate) struct Doorbell {
    words: Pinned,
}

/// Whether a number that only grows, but may wrap, has come so far.
pub(crate) fn reached(seen: u32, number: u32) -> bool {
    seen.wrapping_sub(number).cast_signed() >= 0
}

impl Doorbell {
    /// Not rung; nobody has heard or ended chain 1.
    pub(crate) fn new(devices: &[Arc<Device>]) -> Result<Arc<Self>> {
        let bytes = (1 + devices.len()) * LINE_WORDS * size_of::<u32>();
        Ok(Arc::new(Self { words: Pinned::new(devices, bytes)? }))
    }

    /// Begins all chains up to this one on every rank, with all that was written before.
    pub(crate) fn ring(&self, number: u32) {
        self.word(0).store(number, Ordering::Release);
    }

    /// The last chain that a rank has begun, and the last that it has ended: its results are there.
    pub(crate) fn progress(&self, rank: usize) -> (u32, u32) {
        let [acknowledged, ended] = Self::of_rank(rank);
        (self.word(acknowledged).load(Ordering::Acquire), self.word(ended).load(Ordering::Acquire))
    }

    /// Makes the stream of a rank wait for this number.
    pub(crate) fn await_on(&self, device: &Device, number: u32) -> Result<()> {
        device.wait_word(&self.words, 0, number)
    }

    /// The address of the word in which a rank tells what number it has heard.
    pub(crate) fn acknowledge_address(&self, rank: usize) -> u64 {
        self.words.word_address(Self::of_rank(rank)[0])
    }

    /// Makes the stream of a rank tell that everything before is done.
    pub(crate) fn tell_ended(&self, device: &Device, rank: usize, number: u32) -> Result<()> {
        device.write_word(&self.words, Self::of_rank(rank)[1], number)
    }

    /// `start`s a chain that waits for the bell.
    pub(crate) fn start_ahead<E>(
        self: &Arc<Self>,
        number: u32,
        start: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut quiet = dismiss_pending();
        // Some of it may wait even if it does not start on every rank.
        *quiet.waiting = Some(PendingChain { doorbell: self.clone(), number });
        start()
    }

    /// Rings for the chain that waits, when `prepare` is done. If somebody has dismissed it
    /// meanwhile, neither happens and this is false.
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

/// A chain that was started ahead: until its plan is written it does nothing when it is rung for.
struct PendingChain {
    doorbell: Arc<Doorbell>,
    number: u32,
}

/// The one that waits, of all engines of the process: they may share a GPU, and then a driver's
/// function that waits for all that the GPU does.
static PENDING: Mutex<Option<PendingChain>> = Mutex::new(None);

fn waiting() -> MutexGuard<'static, Option<PendingChain>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this is there, nothing waits for a bell: everything that was started ends by itself.
pub(crate) struct NothingPending {
    waiting: MutexGuard<'static, Option<PendingChain>>,
    /// Goes after the lock, which it wants if it was the bell's last user.
    _dismissed: Option<PendingChain>,
}

/// Dismisses what waits.
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
