//! What chat and plain completions have in common: what is shown besides the reply, and how a
//! stream goes on and ends.

use kilotok_engine::TokenLogprobs;
use serde::Serialize;

use super::Letterhead;
use crate::error::ApiError;
use crate::said::Spelling;
use crate::sse::Frames;
use crate::tally::{Tally, total};
use crate::wire::chunk::Chunk;
use crate::wire::logprobs::PromptLogprobs;
use crate::wire::sampled::StreamOptions;
use crate::wire::speed::Metrics;
use crate::wire::usage::Usage;

/// What the client wants to see.
pub(crate) struct Show {
    pub(crate) head: Letterhead,
    /// Replies to each prompt, and in all.
    pub(crate) n: u32,
    pub(crate) choice_count: usize,
    /// Log-probabilities, with so many alternatives.
    pub(crate) logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) tokens_as_ids: bool,
    /// Those of the prompt and of the reply.
    pub(crate) token_ids: bool,
    pub(crate) extras: Extras,
}

/// What a stream tells besides the replies: usage, before its end or on every chunk.
#[derive(Clone, Copy, Default)]
pub(crate) struct Extras {
    usage: bool,
    running_usage: bool,
}

impl Extras {
    pub(crate) fn of(options: Option<StreamOptions>) -> Self {
        let options = options.unwrap_or_default();
        Self {
            usage: options.include_usage.unwrap_or_default(),
            running_usage: options.continuous_usage_stats.unwrap_or_default(),
        }
    }
}

impl Show {
    pub(crate) fn spelling(&self) -> Spelling<'_> {
        self.head.spelling(self.tokens_as_ids)
    }

    pub(crate) fn prompt_logprobs(&self, scored: &[TokenLogprobs]) -> Option<PromptLogprobs> {
        self.prompt_logprobs.map(|top_count| self.spelling().prompt(scored, top_count))
    }

    pub(crate) fn running_usage(&self) -> bool {
        self.extras.running_usage
    }

    pub(crate) fn total(&self, tallies: &[Tally]) -> Usage {
        total(tallies.iter(), self.n)
    }

    /// Speed of a request with one reply; several have none in common.
    pub(crate) fn metrics(&self, tallies: &[Tally]) -> Option<Metrics> {
        let only = tallies.first().filter(|_| self.choice_count == 1);
        only.map(|tally| self.head.metrics(tally))
    }

    /// A chunk of a stream whose replies are as far as `tallies` say.
    pub(crate) fn chunk<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        tallies: &[Tally],
    ) -> Chunk<'a, C> {
        let running = self.running_usage();
        Chunk {
            id: &self.head.id,
            object,
            created: self.head.created,
            model: &self.head.model,
            choices,
            system_fingerprint: None,
            usage: running.then(|| self.total(tallies)),
            prompt_logprobs: None,
            prompt_token_ids: None,
            metrics: if running { self.metrics(tallies) } else { None },
            warnings: &[],
        }
    }

    /// The last chunk of a choice. Without one for the usage, it tells the speed.
    pub(crate) fn last_chunk<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        tallies: &[Tally],
    ) -> Chunk<'a, C> {
        let mut chunk = self.chunk(object, choices, tallies);
        chunk.warnings = &self.head.warnings;
        chunk.system_fingerprint = Some(&self.head.service.fingerprint);
        if !self.extras.usage {
            chunk.metrics = self.metrics(tallies);
        }
        chunk
    }

    /// A stream that failed tells no usage.
    pub(crate) fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        self.extras.usage = false;
        out.data(&error.body());
    }

    /// The end of a stream with choices `C`.
    pub(crate) fn end<C: Serialize>(
        &self,
        object: &'static str,
        tallies: &[Tally],
        out: &mut Frames,
    ) {
        if self.extras.usage {
            let mut chunk = self.chunk::<C>(object, &[], tallies);
            chunk.usage = Some(self.total(tallies));
            chunk.metrics = self.metrics(tallies);
            out.data(&chunk);
        }
        out.text("[DONE]");
    }
}
