//! What one reply cost, as far as it is: tokens, steps, drafts, time.

use crate::wire::speed::{Metrics, Speculation};
use crate::wire::usage::Usage;
use kilotok_generation::gate::{StepShare, Times};

/// See the file's head.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) prompt_count: u32,
    pub(crate) token_count: u32,
    pub(crate) cached_count: u32,
    pub(crate) reasoning_count: u32,
    /// The answer's first token, after all reasoning.
    pub(crate) answer_start: u32,
    times: Times,
    drafted_count: u64,
    accepted_count: u64,
    /// Steps by how many drafts were accepted, of those that verified some.
    accepted_by_count: Vec<u64>,
}

impl Tally {
    pub(crate) fn new(prompt_count: u32) -> Self {
        Self { prompt_count, ..Self::default() }
    }

    pub(crate) fn add(
        &mut self,
        token_count: u32,
        cached_count: u32,
        steps: &[StepShare],
        times: Times,
    ) {
        self.token_count += token_count;
        self.cached_count = self.cached_count.max(cached_count);
        // An end from elsewhere than a step brings none.
        if times != Times::default() {
            self.times = times;
        }
        for step in steps.iter().filter(|step| step.drafted_count > 0) {
            let accepted = step.accepted_count as usize;
            if self.accepted_by_count.len() <= accepted {
                self.accepted_by_count.resize(accepted + 1, 0);
            }
            self.accepted_by_count[accepted] += 1;
            self.drafted_count += u64::from(step.drafted_count);
            self.accepted_count += u64::from(step.accepted_count);
        }
    }

    /// `draft_max`: the most drafts that a step may have.
    pub(crate) fn metrics(&self, draft_max: u32) -> Metrics {
        let later = self.token_count.saturating_sub(1);
        let decode_ms = (later > 0 && self.times.decode_ms > 0.0).then_some(self.times.decode_ms);
        let rounded = |ms: f64| (ms * 1000.0).round() / 1000.0;
        let per_token = decode_ms.map(|ms| ms / f64::from(later));
        Metrics {
            time_to_first_token_ms: (self.token_count > 0).then(|| rounded(self.times.ttft_ms)),
            generation_time_ms: decode_ms.map(rounded),
            queue_time_ms: (self.times.queue_ms > 0.0).then(|| rounded(self.times.queue_ms)),
            mean_itl_ms: per_token.map(rounded),
            tokens_per_second: per_token.map(|ms| rounded(1000.0 / ms)),
            speculative_decoding: self.speculation(draft_max),
        }
    }

    fn speculation(&self, draft_max: u32) -> Option<Speculation> {
        let step_count: u64 = self.accepted_by_count.iter().sum();
        (step_count > 0).then(|| {
            let mut histogram = self.accepted_by_count.clone();
            histogram.resize(histogram.len().max(draft_max as usize + 1), 0);
            let rounded = |part: f64| (part * 1e4).round() / 1e4;
            Speculation {
                mean_acceptance_length: rounded(
                    1.0 + self.accepted_count as f64 / step_count as f64,
                ),
                draft_acceptance_rate: rounded(
                    self.accepted_count as f64 / self.drafted_count as f64,
                ),
                acceptance_histogram: histogram,
                num_spec_steps: step_count,
                num_accepted_draft_tokens: self.accepted_count,
                num_draft_tokens: self.drafted_count,
                num_spec_tokens: draft_max,
            }
        })
    }
}

/// Of several replies: each prompt counts once.
pub(crate) fn total<'a>(tallies: impl Iterator<Item = &'a Tally>, n: u32) -> Usage {
    let mut usage = Usage::default();
    for (index, tally) in tallies.enumerate() {
        if index % n.max(1) as usize == 0 {
            usage.prompt_tokens += tally.prompt_count;
            usage.prompt_tokens_details.cached_tokens += tally.cached_count;
        }
        usage.completion_tokens += tally.token_count;
        usage.completion_tokens_details.reasoning_tokens += tally.reasoning_count;
    }
    usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(token_count: u32, drafted_count: u32, accepted_count: u32) -> StepShare {
        StepShare { token_count, drafted_count, accepted_count }
    }

    #[test]
    fn drafts_are_counted() {
        let mut tally = Tally::new(5);
        let times = Times { queue_ms: 1.0, ttft_ms: 8.0, decode_ms: 4.0 };
        tally.add(1, 2, &[step(1, 0, 0)], times);
        assert_eq!(tally.metrics(3).speculative_decoding, None);
        tally.add(5, 0, &[step(4, 3, 3), step(1, 3, 0)], times);
        let metrics = tally.metrics(3);
        let told = metrics.speculative_decoding.unwrap();
        assert_eq!(told.acceptance_histogram, [1, 0, 0, 1]);
        assert_eq!((told.num_spec_steps, told.num_draft_tokens), (2, 6));
        assert_eq!((told.mean_acceptance_length, told.draft_acceptance_rate), (2.5, 0.5));
        assert_eq!(metrics.mean_itl_ms, Some(0.8));
        assert_eq!(metrics.tokens_per_second, Some(1250.0));
        let usage = total([&tally].into_iter(), 1);
        assert_eq!((usage.completion_tokens, usage.total_tokens), (6, 11));
        assert_eq!(usage.prompt_tokens_details.cached_tokens, 2);
    }

    #[test]
    fn a_reply_that_is_ended_keeps_its_times() {
        let mut tally = Tally::new(5);
        tally.add(3, 0, &[], Times { queue_ms: 1.0, ttft_ms: 8.0, decode_ms: 4.0 });
        let before = tally.metrics(3);
        tally.add(0, 0, &[], Times::default());
        assert_eq!(tally.metrics(3), before);
    }

    #[test]
    fn a_prompt_of_several_replies_counts_once() {
        let tally = Tally { token_count: 2, ..Tally::new(10) };
        let usage = total([&tally, &tally, &tally, &tally].into_iter(), 2);
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (20, 8));
        assert_eq!(usage.total_tokens, 28);
    }

    #[test]
    fn one_token_has_no_pace() {
        let mut tally = Tally::new(1);
        tally.add(1, 0, &[], Times { queue_ms: 0.5, ttft_ms: 2.0, decode_ms: 0.0 });
        let metrics = tally.metrics(0);
        assert_eq!((metrics.mean_itl_ms, metrics.tokens_per_second), (None, None));
        assert_eq!(metrics.time_to_first_token_ms, Some(2.0));
    }
}
