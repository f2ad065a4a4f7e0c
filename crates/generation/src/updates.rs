//! What a reader gets of its reply, and the mailbox in which that waits for it. What comes while
//! the reader is busy is merged, so a slow reader holds up nobody and its mailbox is never larger
//! than its reply. Knows neither scheduler nor HTTP.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kilotok_abi::TokenId;
use kilotok_engine::TokenLogprobs;

use crate::metrics::{EndReason, Ending};

/// What came of a reply since the last update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    pub tokens: Vec<TokenId>,
    /// One per token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's next tokens, if asked for. The first has none.
    pub scored: Vec<TokenLogprobs>,
    /// Tokens of the prompt that need not be computed, because pages had them.
    pub cached_count: u32,
    /// The steps that the tokens came from, oldest first.
    pub steps: Vec<StepShare>,
    /// How long it took so far.
    pub times: Times,
    /// Set in the last update.
    pub finish: Option<Ended>,
}

/// What one step did for a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepShare {
    pub token_count: u32,
    pub drafted_count: u32,
    pub accepted_count: u32,
}

/// Durations of a reply, in milliseconds. 0 is what has not happened yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// From arrival to the first row in a step.
    pub queue_ms: f64,
    /// From arrival to the first token.
    pub ttft_ms: f64,
    /// From the first token to the newest.
    pub decode_ms: f64,
}

/// How a reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has as many tokens as were asked for, or as there is room for.
    Length,
    /// Its last token is one of the end tokens.
    EndToken,
    /// Somebody had it aborted by its id.
    Aborted,
    Failed(Failure),
}

/// Why a reply is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The engine failed, and all replies with it.
    Engine,
    /// No further token can be chosen for this reply; others go on.
    Fault,
    /// The same, because the request itself forbids every token.
    NothingAllowed,
    /// There is too much to do just now; the same request may work later.
    Busy,
    /// The server stops and waits no longer.
    Shutdown,
}

impl Failure {
    pub(crate) fn ended(kind: FailureKind, message: impl Into<String>) -> Ended {
        Ended::Failed(Self { kind, message: message.into() })
    }
}

/// Why nobody waits for the rest of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The reader is gone.
    Cancelled,
    /// The reader found the reply complete after so many tokens.
    Stopped { kept: u32 },
    /// Somebody had it aborted by its id.
    Aborted,
}

impl Leave {
    /// What a reply that was left is counted as, whatever else ended it meanwhile.
    pub(crate) fn count(self, ending: &mut Ending) {
        ending.reason = match self {
            Self::Cancelled | Self::Aborted => EndReason::Abort,
            Self::Stopped { kept } => {
                ending.token_count = ending.token_count.min(kept);
                EndReason::Stop
            }
        };
    }
}

/// Where a reply waits for its reader. The engine's thread puts, one task takes.
pub(crate) struct Mailbox {
    pub(crate) request_id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pending: Update,
    /// Something is pending that the reader has not been given.
    ready: bool,
    /// The last update is pending or was taken.
    ended: bool,
    left: Option<Leave>,
    /// Of a reply that has ended, until its reader has decided whether it was complete before.
    ending: Option<Ending>,
    reader: Option<Waker>,
}

impl Mailbox {
    pub(crate) fn new(request_id: String) -> Self {
        Self { request_id, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic can leave it half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what is pending; the reader gets it as one update and is to be woken. Nothing is
    /// added for one who has left; then it says why.
    pub(crate) fn put(
        &self,
        wakers: &mut Vec<Waker>,
        add: impl FnOnce(&mut Update),
    ) -> Option<Leave> {
        let mut state = self.state();
        if state.left.is_none() {
            wakers.extend(state.add(add));
        }
        state.left
    }

    /// Ends the reply at once, even for a reader who is taken to have left.
    pub(crate) fn end(&self, ended: Ended) {
        let reader = self.state().add(|update| update.finish = Some(ended));
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    pub(crate) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Update> {
        let mut state = self.state();
        if state.ready {
            state.ready = false;
            return Poll::Ready(std::mem::take(&mut state.pending));
        }
        let reader = context.waker();
        if !state.reader.as_ref().is_some_and(|known| known.will_wake(reader)) {
            state.reader = Some(reader.clone());
        }
        Poll::Pending
    }

    /// Notes that nobody waits for the rest. False if that was known, or there is no rest. Whoever
    /// gets an ending has to count it.
    pub(crate) fn leave(&self, why: Leave) -> (bool, Option<Ending>) {
        let mut state = self.state();
        let news = state.left.is_none() && !state.ended;
        if news {
            state.left = Some(why);
        } else if why == Leave::Aborted {
            // Too late, and no word of the reader.
            return (false, None);
        }
        let mut ending = state.ending.take();
        if let Some(ending) = &mut ending
            && (news || why != Leave::Cancelled)
        {
            why.count(ending);
        }
        (news, ending)
    }

    /// Keeps the ending until the reader is done. If the reader has left, or was told another end,
    /// it comes back and has to be counted.
    pub(crate) fn keep(&self, mut ending: Ending) -> Option<Ending> {
        let mut state = self.state();
        if let Some(why) = state.left.or(state.ended.then_some(Leave::Cancelled)) {
            why.count(&mut ending);
            return Some(ending);
        }
        state.ending = Some(ending);
        None
    }

    pub(crate) fn left(&self) -> Option<Leave> {
        self.state().left
    }
}

impl State {
    /// Returns whom to wake.
    fn add(&mut self, add: impl FnOnce(&mut Update)) -> Option<Waker> {
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

    fn take(mailbox: &Mailbox) -> Option<Update> {
        match mailbox.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(update) => Some(update),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_is_not_taken_is_merged() {
        let mailbox = Mailbox::new("a".into());
        assert_eq!(take(&mailbox), None);
        for token in [5, 6, 7] {
            mailbox.put(&mut Vec::new(), |update| update.tokens.push(token));
        }
        mailbox.end(Ended::Length);
        let update = take(&mailbox).unwrap();
        assert_eq!((update.tokens, update.finish), (vec![5, 6, 7], Some(Ended::Length)));
        assert_eq!(take(&mailbox), None);
    }

    #[test]
    fn nothing_follows_the_end() {
        let mailbox = Mailbox::new("a".into());
        mailbox.end(Ended::Aborted);
        mailbox.put(&mut Vec::new(), |update| update.tokens.push(1));
        mailbox.end(Ended::Length);
        let last = Update { finish: Some(Ended::Aborted), ..Update::default() };
        assert_eq!(take(&mailbox), Some(last));
        assert_eq!(take(&mailbox), None);
        assert!(!mailbox.leave(Leave::Cancelled).0, "an ended reply cannot be left");
    }

    #[test]
    fn a_reader_is_woken_once() {
        let mailbox = Mailbox::new("a".into());
        let mut wakers = Vec::new();
        let mut put = || {
            mailbox.put(&mut wakers, |update| update.tokens.push(1));
            wakers.len()
        };
        assert_eq!(put(), 0, "nobody waits");
        assert!(take(&mailbox).is_some());
        assert_eq!(take(&mailbox), None);
        assert_eq!((put(), put()), (1, 1));
    }

    #[test]
    fn the_first_reason_to_leave_counts() {
        let mailbox = Mailbox::new("a".into());
        assert!(mailbox.leave(Leave::Stopped { kept: 3 }).0);
        assert!(!mailbox.leave(Leave::Cancelled).0);
        assert_eq!(mailbox.left(), Some(Leave::Stopped { kept: 3 }));
    }
}
