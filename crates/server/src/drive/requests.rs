//! How requests come to the engine's thread and leave it: admission, copies of one prompt, readers
//! who go away, grammars.

use std::sync::Arc;

use kilotok_abi::TokenId;
use kilotok_sched::Refused;
use kilotok_text::{GrammarError, Masks};

use super::Drive;
use super::live::Live;
use crate::gate::{Arrival, Refusal};
use crate::guide::{Guided, Job};
use crate::metrics::{EndReason, Ending, Siblings};
use crate::updates::{Failure, FailureKind, Leave};

impl Drive {
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        let Arrival { arrived_us, asks, answer } = arrival;
        let reply_count = asks.len();
        let keys: Vec<u64> = asks.iter().map(|(key, ..)| *key).collect();
        let Some((&first, copies)) = keys.split_first() else {
            return;
        };
        let mut asked = None;
        let siblings = Arc::new(Siblings::of(reply_count));
        for (key, ask, mailbox) in asks {
            let mut submission = ask.submission;
            submission.needs_masks = ask.grammar.is_some();
            asked.get_or_insert((submission.prompt.len(), submission.token_max));
            let siblings = Arc::clone(&siblings);
            let live = Live::new(mailbox, first, siblings, arrived_us, submission, ask.grammar);
            self.live.insert(key, live);
        }
        // Known before it is scheduled: there it may fail already, and they start.
        self.copies.insert(first, copies.to_vec());
        self.board.busy();
        if let Err(refusal) = self.schedule(first) {
            self.copies.remove(&first);
            for key in &keys {
                self.live.remove(key);
            }
            if self.live.is_empty() {
                self.board.idle();
            }
            self.board.release(reply_count as u32);
            let _ = answer.send(Err(refusal));
            return;
        }
        let (prompt_count, token_max) = asked.unwrap_or_default();
        // The scheduler let it in, so its prompt fits.
        let room = self.parts.sched.context_max() - prompt_count as u32;
        self.meter.asked(reply_count, token_max.min(room));
        if prompt_count <= self.parts.alone_max {
            self.start_copies(first);
        }
        // Whoever does not wait for the answer has dropped the tickets: that mail comes next.
        let _ = answer.send(Ok(()));
    }

    /// Puts a request into the scheduler's queue.
    fn schedule(&mut self, key: u64) -> Result<(), Refusal> {
        let Some(live) = self.live.get_mut(&key) else {
            return Ok(());
        };
        let Some(asked) = live.asked.take() else {
            return Ok(());
        };
        let id = self.parts.sched.admit(asked).map_err(|refused| match refused {
            Refused::QueueFull { .. } => Refusal::QueueFull { retry_after_s: 1 },
            Refused::PromptTooLong { token_count, context_max } => {
                Refusal::TooLong { token_count, context_max }
            }
            Refused::Nothing | Refused::Illegal { .. } => Refusal::Illegal(refused.to_string()),
        })?;
        live.id = Some(id);
        self.keys.insert(id, key);
        self.guide(key, Vec::new(), Vec::new());
        Ok(())
    }

    /// The first of a family has its first token or has ended: the prompt is in the pages as far
    /// as it ever will be.
    pub(super) fn start_copies(&mut self, family: u64) {
        for key in self.copies.remove(&family).unwrap_or_default() {
            if let Err(refusal) = self.schedule(key) {
                let busy = matches!(refusal, Refusal::QueueFull { .. });
                let kind = if busy { FailureKind::Busy } else { FailureKind::Fault };
                self.fail(key, kind, refusal.to_string());
            }
        }
    }

    /// Gives up a reply whose reader has left.
    pub(super) fn leave(&mut self, key: u64) {
        let Some(live) = self.live.get_mut(&key) else {
            return;
        };
        let why = live.mailbox.left().unwrap_or(Leave::Cancelled);
        if let Some(id) = live.id {
            match why {
                Leave::Stopped { kept } => self.parts.sched.stop(id, kept),
                Leave::Cancelled | Leave::Aborted => self.parts.sched.cancel(id),
            };
        }
        if let Some((_, mut ending)) = self.forget(key, EndReason::Abort) {
            why.count(&mut ending);
            self.meter.ended(ending);
        }
    }

    /// Ends one reply with an error; the others go on.
    pub(super) fn fail(&mut self, key: u64, kind: FailureKind, message: String) {
        let Some(live) = self.live.get(&key) else {
            return;
        };
        if let Some(id) = live.id {
            self.parts.sched.cancel(id);
        }
        if let Some((live, ending)) = self.forget(key, EndReason::Error) {
            self.meter.ended(ending);
            live.mailbox.end(Failure::ended(kind, message));
        }
    }

    /// Takes a reply out that the scheduler no longer knows. Its ending is to be counted.
    pub(super) fn forget(&mut self, key: u64, reason: EndReason) -> Option<(Live, Ending)> {
        let live = self.live.remove(&key)?;
        if let Some(id) = live.id {
            self.keys.remove(&id);
        }
        let now_us = self.now_us();
        if self.live.is_empty() {
            self.board.idle();
        }
        self.board.release(1);
        self.board.pace().ended(now_us);
        if live.family == key {
            self.start_copies(key);
        }
        let ending = live.ending(reason, now_us);
        Some((live, ending))
    }

    /// Has the masks made for what comes after `tokens`, if the reply is bound to a grammar.
    pub(super) fn guide(&mut self, key: u64, tokens: Vec<TokenId>, drafts: Vec<TokenId>) {
        let Some(live) = self.live.get_mut(&key) else {
            return;
        };
        let Some(mut grammar) = live.grammar.take() else {
            return;
        };
        if grammar.pass(&tokens, &drafts) {
            // Nothing is bound here, and nobody is waited for.
            let masks = Masks { draft_count: drafts.len() as u32, masks: Vec::new() };
            let guided = Guided { key, made: Ok((grammar, masks)) };
            return self.guided(guided);
        }
        let mailbox = Arc::clone(&live.mailbox);
        if !self.parts.guide.send(Job { key, mailbox, grammar, tokens, drafts }) {
            let message = "too many grammars are being followed at once; try again";
            self.fail(key, FailureKind::Busy, message.into());
        }
    }

    pub(super) fn guided(&mut self, guided: Guided) {
        let Guided { key, made } = guided;
        let Some(live) = self.live.get_mut(&key) else {
            return;
        };
        let Some(id) = live.id else {
            return;
        };
        let provided = made.and_then(|(grammar, masks)| {
            live.grammar = Some(grammar);
            let provided = self.parts.sched.provide_masks(id, masks.draft_count, masks.masks);
            provided.map_err(|misuse| GrammarError::Fault(misuse.to_string()))
        });
        if let Err(error) = provided {
            let message = format!("the grammar of this reply failed: {error}");
            let kind = if let GrammarError::Fault(reason) = error {
                tracing::error!(reason, "a grammar failed");
                FailureKind::Fault
            } else {
                // As when it was compiled: the same request would fail again.
                FailureKind::NothingAllowed
            };
            self.fail(key, kind, message);
        }
    }
}
