//! The parts that chat and plain completions share: the data that is sent besides the reply, and
//! the fields around the choices of a stream's chunk.

use kilotok_engine::TokenLogprobs;
use kilotok_generation::{Increment, ReplyStats};
use serde::Serialize;

use super::{LogprobText, ResponseHead};
use crate::error::ApiError;
use crate::params::sampling::ResolvedParams;
use crate::sse::SseBuffer;
use crate::wire::chunk::Chunk;
use crate::wire::generation::StreamOptions;
use crate::wire::logprobs::PromptLogprobs;
use crate::wire::metrics::Metrics;
use crate::wire::usage::Usage;

/// The data that a request asks for in its response.
pub(crate) struct OutputOptions {
    pub(crate) head: ResponseHead,
    /// The number of replies to each prompt.
    pub(crate) n: u32,
    pub(crate) choice_count: usize,
    /// Log-probabilities are wanted, with this many alternatives.
    pub(crate) logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    tokens_as_ids: bool,
    /// Token ids of the prompt and of the reply are wanted.
    pub(crate) token_ids: bool,
    stream: StreamOptions,
}

impl OutputOptions {
    pub(crate) fn new(
        head: ResponseHead,
        params: &ResolvedParams,
        prompt_count: usize,
        logprobs: Option<u32>,
        stream: Option<StreamOptions>,
    ) -> Self {
        let n = params.generation.n;
        Self {
            head,
            n,
            choice_count: prompt_count * n as usize,
            logprobs,
            prompt_logprobs: params.prompt_logprobs,
            tokens_as_ids: params.tokens_as_ids,
            token_ids: params.token_ids,
            stream: stream.unwrap_or_default(),
        }
    }

    /// Whether every chunk carries the usage so far.
    pub(crate) fn has_continuous_usage(&self) -> bool {
        self.stream.continuous_usage_stats == Some(true)
    }

    /// Whether the stream ends with a chunk for the usage.
    fn has_usage_chunk(&self) -> bool {
        self.stream.include_usage == Some(true)
    }

    pub(crate) fn logprob_text(&self) -> LogprobText<'_> {
        self.head.logprob_text(self.tokens_as_ids)
    }

    pub(crate) fn prompt_logprobs(&self, logprobs: &[TokenLogprobs]) -> Option<PromptLogprobs> {
        self.prompt_logprobs.map(|top_count| self.logprob_text().prompt(logprobs, top_count))
    }

    /// Complete replies, indexed by choice, made of all increments.
    pub(crate) fn replies(&self, increments: Vec<(usize, Increment)>) -> Vec<Increment> {
        let mut replies = vec![Increment::default(); self.choice_count];
        for (index, increment) in increments {
            replies[index].append(increment);
        }
        replies
    }

    pub(crate) fn usage(&self, stats: &[ReplyStats]) -> Usage {
        Usage::of(stats, self.n)
    }

    /// The speed of a request with one reply. Several replies have no common speed.
    pub(crate) fn metrics(&self, stats: &[ReplyStats]) -> Option<Metrics> {
        let only = stats.first().filter(|_| self.choice_count == 1);
        only.map(|stats| self.head.metrics(stats))
    }

    /// A chunk of a stream. `stats` are those of the replies so far.
    pub(crate) fn chunk<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        stats: &[ReplyStats],
    ) -> Chunk<'a, C> {
        let continuous = self.has_continuous_usage();
        Chunk {
            id: &self.head.id,
            object,
            created: self.head.created,
            model: &self.head.model,
            choices,
            system_fingerprint: None,
            usage: continuous.then(|| self.usage(stats)),
            prompt_logprobs: None,
            prompt_token_ids: None,
            metrics: if continuous { self.metrics(stats) } else { None },
            warnings: &[],
        }
    }

    /// The last chunk of a choice. It carries the speed, unless a chunk for the usage follows.
    pub(crate) fn last_chunk<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        stats: &[ReplyStats],
    ) -> Chunk<'a, C> {
        let mut chunk = self.chunk(object, choices, stats);
        chunk.warnings = &self.head.warnings;
        chunk.system_fingerprint = Some(&self.head.service.fingerprint);
        if !self.has_usage_chunk() {
            chunk.metrics = self.metrics(stats);
        }
        chunk
    }

    /// A stream that failed has no usage.
    pub(crate) fn fail(&mut self, error: &ApiError, out: &mut SseBuffer) {
        self.stream.include_usage = None;
        out.data(&error.body());
    }

    /// Ends a stream with choices of type `C`.
    pub(crate) fn end<C: Serialize>(
        &self,
        object: &'static str,
        stats: &[ReplyStats],
        out: &mut SseBuffer,
    ) {
        if self.has_usage_chunk() {
            let mut chunk = self.chunk::<C>(object, &[], stats);
            chunk.usage = Some(self.usage(stats));
            chunk.metrics = self.metrics(stats);
            out.data(&chunk);
        }
        out.text("[DONE]");
    }
}
