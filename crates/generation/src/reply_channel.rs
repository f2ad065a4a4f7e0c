//! The channel of one reply from the engine's thread to the task that reads it. It holds one
//! increment: tokens that arrive while the reader is busy are merged into it, so a slow reader
//! delays no step, and the channel never holds more than one complete reply.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::increment::{FinishReason, Increment};
use crate::metrics::FinishedStats;
use crate::stats::ReplyStats;

/// The reason why the rest of a reply is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CancelReason {
    /// The reader was dropped: the connection closed, or the request timed out.
    Dropped,
    /// The reader found the reply complete after `kept` tokens.
    Complete { kept: u32 },
    /// The reply was aborted by its id.
    Aborted,
}

impl CancelReason {
    /// Changes the statistics of a cancelled reply to this reason, whatever else ended it in the
    /// meantime.
    pub(crate) fn count(self, stats: &mut FinishedStats) {
        stats.finish = match self {
            Self::Dropped | Self::Aborted => FinishReason::Aborted.label(),
            Self::Complete { kept } => {
                stats.token_count = stats.token_count.min(kept);
                FinishReason::EndToken.label()
            }
        };
    }
}

/// See the file's head. The engine's thread puts increments in, and one task takes them out.
pub(crate) struct ReplyChannel {
    pub(crate) request_id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When it is taken, its statistics stay: they cover the whole reply.
    pending: Increment,
    /// Whether `pending` has anything that the reader has not taken.
    ready: bool,
    /// Whether the last increment is pending or was taken.
    ended: bool,
    cancelled: Option<CancelReason>,
    /// The statistics of a reply that has ended, until its reader has decided whether the reply was
    /// complete earlier.
    finished: Option<FinishedStats>,
    reader: Option<Waker>,
}

impl ReplyChannel {
    pub(crate) fn new(request_id: String, prompt_count: u32) -> Self {
        let pending = Increment { stats: ReplyStats::new(prompt_count), ..Increment::default() };
        Self { request_id, state: Mutex::new(State { pending, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic can leave the state half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the pending increment, and the reader's waker to `wakers`. A cancelled reply gets
    /// nothing; instead, the reason is returned.
    pub(crate) fn put(
        &self,
        wakers: &mut Vec<Waker>,
        add: impl FnOnce(&mut Increment),
    ) -> Option<CancelReason> {
        let mut state = self.state();
        if state.cancelled.is_none() {
            wakers.extend(state.add(add));
        }
        state.cancelled
    }

    /// Ends the reply at once, even if it was cancelled.
    pub(crate) fn end(&self, finish: FinishReason) {
        let reader = self.state().add(|pending| pending.finish = Some(finish));
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    pub(crate) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Increment> {
        let mut state = self.state();
        if state.ready {
            state.ready = false;
            let rest = Increment { stats: state.pending.stats.clone(), ..Increment::default() };
            return Poll::Ready(std::mem::replace(&mut state.pending, rest));
        }
        let reader = context.waker();
        if !state.reader.as_ref().is_some_and(|known| known.will_wake(reader)) {
            state.reader = Some(reader.clone());
        }
        Poll::Pending
    }

    /// Notes that the rest is not read. Returns false if the reply was cancelled already or has
    /// ended. The caller must count any statistics that are returned.
    pub(crate) fn cancel(&self, reason: CancelReason) -> (bool, Option<FinishedStats>) {
        let mut state = self.state();
        let is_first = state.cancelled.is_none() && !state.ended;
        if is_first {
            state.cancelled = Some(reason);
        } else if reason == CancelReason::Aborted {
            // The abort is too late, and does not tell what the reader decided.
            return (false, None);
        }
        let mut finished = state.finished.take();
        if let Some(finished) = &mut finished
            && (is_first || reason != CancelReason::Dropped)
        {
            reason.count(finished);
        }
        (is_first, finished)
    }

    /// Keeps the statistics until the reader is done. If the reply was cancelled, or had ended
    /// already, they are returned, and the caller must count them.
    pub(crate) fn keep(&self, mut finished: FinishedStats) -> Option<FinishedStats> {
        let mut state = self.state();
        if let Some(reason) = state.cancelled.or(state.ended.then_some(CancelReason::Dropped)) {
            reason.count(&mut finished);
            return Some(finished);
        }
        state.finished = Some(finished);
        None
    }

    pub(crate) fn cancelled(&self) -> Option<CancelReason> {
        self.state().cancelled
    }
}

impl State {
    /// Applies `add` to the pending increment. Returns the waker of the reader, if it waits.
    fn add(&mut self, add: impl FnOnce(&mut Increment)) -> Option<Waker> {
        if self.ended {
            return None;
        }
        add(&mut self.pending);
        self.ended = self.pending.finish.is_some();
        self.ready = true;
        self.reader.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(channel: &ReplyChannel) -> Option<Increment> {
        match channel.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(increment) => Some(increment),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_is_not_taken_is_merged() {
        let channel = ReplyChannel::new("a".into(), 0);
        assert_eq!(take(&channel), None);
        for token in [5, 6, 7] {
            channel.put(&mut Vec::new(), |pending| pending.tokens.push(token));
        }
        channel.end(FinishReason::Length);
        let increment = take(&channel).unwrap();
        assert_eq!(
            (increment.tokens, increment.finish),
            (vec![5, 6, 7], Some(FinishReason::Length))
        );
        assert_eq!(take(&channel), None);
    }

    #[test]
    fn nothing_follows_the_end() {
        let channel = ReplyChannel::new("a".into(), 0);
        channel.end(FinishReason::Aborted);
        channel.put(&mut Vec::new(), |pending| pending.tokens.push(1));
        channel.end(FinishReason::Length);
        let last = Increment { finish: Some(FinishReason::Aborted), ..Increment::default() };
        assert_eq!(take(&channel), Some(last));
        assert_eq!(take(&channel), None);
        assert!(!channel.cancel(CancelReason::Dropped).0, "an ended reply cannot be cancelled");
    }

    #[test]
    fn a_reader_is_woken_once() {
        let channel = ReplyChannel::new("a".into(), 0);
        let mut wakers = Vec::new();
        let mut put = || {
            channel.put(&mut wakers, |pending| pending.tokens.push(1));
            wakers.len()
        };
        assert_eq!(put(), 0, "no reader waits");
        assert!(take(&channel).is_some());
        assert_eq!(take(&channel), None);
        assert_eq!((put(), put()), (1, 1));
    }

    #[test]
    fn the_first_reason_to_cancel_counts() {
        let channel = ReplyChannel::new("a".into(), 0);
        assert!(channel.cancel(CancelReason::Complete { kept: 3 }).0);
        assert!(!channel.cancel(CancelReason::Dropped).0);
        assert_eq!(channel.cancelled(), Some(CancelReason::Complete { kept: 3 }));
    }
}
