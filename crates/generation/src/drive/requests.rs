//! How requests come to the engine's thread and leave it: admission, readers who go away, grammars.

use std::sync::Arc;

use kilotok_abi::TokenId;
use kilotok_sched::{Refused, Submission};
use kilotok_text::{GrammarError, Masks};

use super::Drive;
use super::live::Live;
use crate::gate::{Ask, Refusal};
use crate::guide::{Guided, Job};
use crate::metrics::{EndReason, Ending, Siblings};
use crate::post::Arrival;
use crate::updates::{Failure, FailureKind, Leave};

impl Drive {
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        let Arrival { arrived_us, prompts, answer } = arrival;
        let (mut submissions, mut replies, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for asks in prompts {
            let siblings = Arc::new(Siblings::of(asks.len()));
            let first = asks.first().map(|(_, ask, _)| &ask.submission);
            sizes.extend(first.map(|own| (asks.len(), own.prompt.len() as u32, own.token_max)));
            for (key, Ask { submission, grammar, .. }, mailbox) in asks {
                let prompt_count = submission.prompt.len() as u32;
                let needs_masks = grammar.is_some();
                submissions.push(Submission { needs_masks, ..submission });
                replies.push((key, mailbox, Arc::clone(&siblings), prompt_count, grammar));
            }
        }
        let reply_count = replies.len() as u32;
        let ids = match self.parts.sched.admit_all(submissions) {
            Ok(ids) => ids,
            Err(refused) => {
                self.board.release(reply_count);
                if self.live.is_empty() {
                    self.board.idle();
                }
                let _ = answer.send(Err(refusal(&refused)));
                return;
            }
        };
        for (count, prompt_count, token_max) in sizes {
            // The scheduler let it in, so its prompt fits.
            let room = self.parts.sched.context_max() - prompt_count;
            self.meter.asked(count, token_max.min(room));
        }
        let mut keys = Vec::with_capacity(ids.len());
        for (id, (key, mailbox, siblings, prompt_count, grammar)) in ids.into_iter().zip(replies) {
            let live = Live::new(mailbox, id, siblings, arrived_us, prompt_count, grammar);
            self.live.insert(key, live);
            self.keys.insert(id, key);
            keys.push(key);
        }
        for key in keys {
            self.guide(key, Vec::new(), Vec::new());
        }
        // Whoever does not wait for the answer has dropped the tickets: that mail comes next.
        let _ = answer.send(Ok(()));
    }

    /// Gives up a reply whose reader has left.
    pub(super) fn leave(&mut self, key: u64) {
        let Some(live) = self.live.get_mut(&key) else {
            return;
        };
        let why = live.mailbox.left().unwrap_or(Leave::Cancelled);
        match why {
            Leave::Stopped { kept } => self.parts.sched.stop(live.id, kept),
            Leave::Cancelled | Leave::Aborted => self.parts.sched.cancel(live.id),
        };
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
        self.parts.sched.cancel(live.id);
        if let Some((live, ending)) = self.forget(key, EndReason::Error) {
            self.meter.ended(ending);
            live.mailbox.end(Failure::ended(kind, message));
        }
    }

    /// Takes a reply out that the scheduler no longer knows. Its ending is to be counted.
    pub(super) fn forget(&mut self, key: u64, reason: EndReason) -> Option<(Live, Ending)> {
        let live = self.live.remove(&key)?;
        self.keys.remove(&live.id);
        let now_us = self.now_us();
        if self.live.is_empty() {
            self.board.idle();
        }
        self.board.release(1);
        self.board.pace().ended(now_us);
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
            // The text is not constrained here, so no mask is needed.
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
        let provided = made.and_then(|(grammar, masks)| {
            live.grammar = Some(grammar);
            let provided = self.parts.sched.provide_masks(live.id, masks.draft_count, masks.masks);
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

fn refusal(refused: &Refused) -> Refusal {
    match *refused {
        Refused::QueueFull { .. } => Refusal::QueueFull { retry_after_s: 1 },
        Refused::PromptTooLong { token_count, context_max } => {
            Refusal::TooLong { token_count, context_max }
        }
        Refused::Nothing | Refused::Illegal { .. } => Refusal::Illegal(refused.to_string()),
    }
}
