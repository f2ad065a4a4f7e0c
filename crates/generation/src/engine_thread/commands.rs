//! How the engine's thread executes commands: it submits and cancels replies, and takes in masks.

use std::sync::Arc;

use kilotok_abi::TokenId;
use kilotok_sched::{Refused, Submission};
use kilotok_text::{GrammarError, Masks};

use super::EngineLoop;
use super::active::ActiveReply;
use crate::admission::{Refusal, ReplyRequest};
use crate::command::Submit;
use crate::increment::{FailureKind, FinishReason};
use crate::mask_workers::{MaskJob, MaskResult};
use crate::metrics::{FinishedStats, Siblings};
use crate::reply_channel::CancelReason;

impl EngineLoop {
    pub(super) fn submit(&mut self, submit: Submit) {
        let Submit { arrived_us, prompts, answer } = submit;
        let (mut submissions, mut replies, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for requests in prompts {
            let siblings = Arc::new(Siblings::of(requests.len()));
            let first = requests.first().map(|(_, request, _)| &request.submission);
            sizes.extend(first.map(|own| (requests.len(), own.prompt.len() as u32, own.token_max)));
            for (key, ReplyRequest { submission, grammar, .. }, channel) in requests {
                let prompt_count = submission.prompt.len() as u32;
                let needs_masks = grammar.is_some();
                let rules = (grammar, submission.setup.verification);
                submissions.push(Submission { needs_masks, ..submission });
                replies.push((key, channel, Arc::clone(&siblings), prompt_count, rules));
            }
        }
        let reply_count = replies.len() as u32;
        let ids = match self.parts.sched.admit_all(submissions) {
            Ok(ids) => ids,
            Err(refused) => {
                self.status.release(reply_count);
                if self.active.is_empty() {
                    self.status.idle();
                }
                let _ = answer.send(Err(refusal(&refused)));
                return;
            }
        };
        for (count, prompt_count, token_max) in sizes {
            // The scheduler admitted it, so its prompt fits.
            let reply_max = self.parts.sched.context_max() - prompt_count;
            self.meter.submitted(count, token_max.min(reply_max));
        }
        let mut keys = Vec::with_capacity(ids.len());
        for (id, (key, channel, siblings, prompt_count, rules)) in ids.into_iter().zip(replies) {
            let reply = ActiveReply::new(channel, id, siblings, arrived_us, prompt_count, rules);
            self.active.insert(key, reply);
            self.keys.insert(id, key);
            keys.push(key);
        }
        for key in keys {
            self.request_masks(key, Vec::new(), Vec::new());
        }
        // If the caller no longer waits for the answer, it has dropped the streams, and the
        // commands that cancel them come next.
        let _ = answer.send(Ok(()));
    }

    /// Removes a reply that was cancelled.
    pub(super) fn cancel(&mut self, key: u64) {
        let Some(reply) = self.active.get_mut(&key) else {
            return;
        };
        let reason = reply.channel.cancelled().unwrap_or(CancelReason::Dropped);
        match reason {
            CancelReason::Complete { kept } => self.parts.sched.stop(reply.id, kept),
            CancelReason::Dropped | CancelReason::Aborted => self.parts.sched.cancel(reply.id),
        };
        if let Some((_, mut finished)) = self.remove(key, &FinishReason::Aborted) {
            reason.count(&mut finished);
            self.meter.finished(finished);
        }
    }

    /// Ends one reply with an error; the others continue.
    pub(super) fn fail(&mut self, key: u64, kind: FailureKind, message: String) {
        let Some(reply) = self.active.get(&key) else {
            return;
        };
        self.parts.sched.cancel(reply.id);
        let finish = FinishReason::failed(kind, message);
        if let Some((reply, finished)) = self.remove(key, &finish) {
            self.meter.finished(finished);
            reply.channel.end(finish);
        }
    }

    /// Removes a reply that the scheduler no longer knows. The caller must count its statistics.
    pub(super) fn remove(
        &mut self,
        key: u64,
        finish: &FinishReason,
    ) -> Option<(ActiveReply, FinishedStats)> {
        let reply = self.active.remove(&key)?;
        self.keys.remove(&reply.id);
        let now_us = self.now_us();
        if self.active.is_empty() {
            self.status.idle();
        }
        self.status.release(1);
        self.status.completion_rate().completed(now_us);
        let finished = reply.finished(finish.label(), now_us);
        Some((reply, finished))
    }

    /// Has a worker compute the masks of the positions after `tokens`, if the reply has a grammar.
    pub(super) fn request_masks(&mut self, key: u64, tokens: Vec<TokenId>, drafts: Vec<TokenId>) {
        let Some(reply) = self.active.get_mut(&key) else {
            return;
        };
        let Some(mut grammar) = reply.grammar.take() else {
            return;
        };
        if grammar.pass(&tokens, &drafts) {
            // The text is not constrained here, so no mask is needed.
            let masks = Masks { draft_count: drafts.len() as u32, masks: Vec::new() };
            return self.provide_masks(MaskResult { key, made: Ok((grammar, masks)) });
        }
        let channel = Arc::clone(&reply.channel);
        if !self.parts.masks.send(MaskJob { key, channel, grammar, tokens, drafts }) {
            let message = "too many grammars are being followed at once; try again";
            self.fail(key, FailureKind::Busy, message.into());
        }
    }

    pub(super) fn provide_masks(&mut self, result: MaskResult) {
        let MaskResult { key, made } = result;
        let Some(reply) = self.active.get_mut(&key) else {
            return;
        };
        let provided = made.and_then(|(grammar, masks)| {
            reply.grammar = Some(grammar);
            let provided = self.parts.sched.provide_masks(reply.id, masks.draft_count, masks.masks);
            provided.map_err(|misuse| GrammarError::Fault(misuse.to_string()))
        });
        if let Err(error) = provided {
            let message = format!("the grammar of this reply failed: {error}");
            let kind = if let GrammarError::Fault(reason) = error {
                tracing::error!(reason, "a grammar failed");
                FailureKind::Fault
            } else {
                // The same kind as at compile time: the same request would fail again.
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
