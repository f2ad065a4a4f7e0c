//! A run against a server. Times are measured at the client; the acceptance of drafts comes from
//! the server's replies or metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::prompts::{self, Content, Prompt};
use super::sample::{Drafting, Outcome, Sample};
use super::{Args, Endpoint, arrivals};
use crate::client::Client;
use crate::config::VerifyRule;
use crate::environment;

/// Makes and sends requests.
struct RequestSender {
    client: Client,
    model: String,
    endpoint: Endpoint,
    temperature: f64,
    /// `None` if the server should verify drafts by rejection sampling.
    seed: Option<u64>,
    ignore_end: bool,
    save_text: bool,
    token_count: AtomicU64,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    let client = Client::new(&args.server, environment::api_key())?;
    let asker = Arc::new(RequestSender {
        model: client.model(args.model.as_deref()).await?,
        client,
        endpoint: args.endpoint,
        temperature: args.temperature,
        seed: (args.verify != Some(VerifyRule::Rejection)).then_some(args.seed),
        ignore_end: args.ignore_end(),
        save_text: args.save_texts,
        token_count: AtomicU64::new(0),
    });
    let bar = ProgressBar::new(args.request_count().into());
    bar.set_message("warming up");
    let mut prompts = asker.prompts(args).await?;
    // The warm-up has its own prompts, so that the run finds none of its prompts in the cache.
    for prompt in &prompts.split_off(args.request_count() as usize) {
        if let Some(error) = asker.ask(prompt).await.error {
            bail!("warming up: {error}");
        }
    }
    asker.token_count.store(0, Ordering::Relaxed);
    let before = asker.drafting().await;
    let start = Instant::now();
    let samples = send(args, &asker, prompts, start, &bar).await;
    let duration = start.elapsed();
    let after = asker.drafting().await;
    bar.finish_and_clear();
    if samples.is_empty() {
        bail!("stopped before the first reply was complete");
    }
    let mut drafting = Drafting::default();
    for sample in &samples {
        drafting.add(&sample.drafting);
    }
    if let (Some(before), Some(after)) = (before, after) {
        // The metrics tell acceptance by position in the row, but for all clients together.
        drafting = Drafting { assumed: drafting.assumed, ..after.since(&before) };
    }
    let (what, model) = (asker.client.base.clone(), asker.model.clone());
    Ok(Outcome { model, what, samples, duration, drafting })
}

/// Sends each prompt when it is due and there is room. Ctrl-C ends the run, keeping the results so
/// far.
async fn send(
    args: &Args,
    asker: &Arc<RequestSender>,
    prompts: Vec<Prompt>,
    start: Instant,
    bar: &ProgressBar,
) -> Vec<Sample> {
    let room = Arc::new(Semaphore::new(args.in_flight_max().unwrap_or(Semaphore::MAX_PERMITS)));
    let due = arrivals::due(prompts.len(), args.request_rate, args.seed);
    let random = args.request_rate.is_some();
    let mut tasks = JoinSet::new();
    let mut samples = Vec::with_capacity(prompts.len());
    let mut take = |sample: Sample| {
        let rate = asker.token_count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        bar.set_message(format!("{rate:.0} tokens a second"));
        bar.inc(1);
        samples.push(sample);
    };
    let feed = async {
        for (prompt, due) in prompts.into_iter().zip(due) {
            tokio::time::sleep_until(start + due).await;
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
            let sent = start.elapsed();
            let asker = Arc::clone(asker);
            tasks.spawn(async move {
                let sample = asker.ask(&prompt).await;
                drop(permit);
                let held_back = if random { sent.saturating_sub(due) } else { Duration::ZERO };
                Sample { start: sent, held_back, ..sample }
            });
            while let Some(Ok(sample)) = tasks.try_join_next() {
                take(sample);
            }
        }
        while let Some(sample) = tasks.join_next().await {
            sample.into_iter().for_each(&mut take);
        }
    };
    tokio::select! {
        () = feed => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    samples
}

impl RequestSender {
    /// All prompts of the run, followed by those for warming up.
    async fn prompts(&self, args: &Args) -> Result<Vec<Prompt>> {
        let count = args.request_count() + args.warmup;
        if let Some(path) = &args.dataset {
            return prompts::read(path, count as usize, args.output_len);
        }
        let length = self.word_count(args).await?;
        let prefix = args.prefix_len as usize * length / args.input_len as usize;
        let prompt = |index| Prompt {
            content: Content::Text(prompts::words(args.seed, index, prefix, length)),
            output_count: args.output_len,
        };
        Ok((0..count).map(prompt).collect())
    }

    /// How many words make a prompt of the wanted number of tokens. The server counts the tokens of
    /// words and template together; counting for one word and for all words separates the two.
    async fn word_count(&self, args: &Args) -> Result<usize> {
        let lengths = [1, prompts::WORDS.len()];
        let mut counts = [0.0; 2];
        for (count, words) in counts.iter_mut().zip(lengths) {
            let text = prompts::WORDS[..words].join(" ");
            let prompt = Prompt { content: Content::Text(text), output_count: 1 };
            let sample = self.ask(&prompt).await;
            if let Some(error) = sample.error {
                bail!("a first request failed: {error}");
            }
            *count = f64::from(sample.input_count);
        }
        let [one, all] = counts;
        let per_word = (all - one) / (lengths[1] - lengths[0]) as f64;
        if per_word <= 0.0 {
            // The server does not count tokens. A word is about one token.
            return Ok(args.input_len as usize);
        }
        let template = one - per_word;
        Ok((((f64::from(args.input_len) - template) / per_word).round() as usize).max(1))
    }

    /// Sends one request. An error is part of the sample.
    async fn ask(&self, prompt: &Prompt) -> Sample {
        let mut sample = Sample::default();
        let start = Instant::now();
        let body = self.body(prompt);
        if let Err(error) = self.receive(&body, start, &mut sample).await {
            sample.error = Some(format!("{error:#}"));
        }
        sample
    }

    fn body(&self, prompt: &Prompt) -> Value {
        let mut body = json!({
            "model": self.model,
            "max_tokens": prompt.output_count,
            "temperature": self.temperature,
            "stream": true,
            "stream_options": { "include_usage": true, "continuous_usage_stats": true },
        });
        match self.endpoint {
            Endpoint::Chat => body["messages"] = prompt.content.messages(),
            Endpoint::Completions => body["prompt"] = prompt.content.text().into(),
        }
        if let Some(seed) = self.seed {
            body["seed"] = seed.into();
        }
        if self.ignore_end {
            body["ignore_eos"] = true.into();
        }
        body
    }

    async fn receive(&self, body: &Value, start: Instant, sample: &mut Sample) -> Result<()> {
        let mut events = self.client.stream(self.endpoint.path(), body).await?;
        let mut known = 0;
        while let Some(event) = events.next().await? {
            let at = start.elapsed();
            let text = text_of(&event);
            let usage = &event["usage"];
            let counted = usage["completion_tokens"].as_u64().map(|count| count as u32);
            // Without a count, a chunk with text is taken for one token.
            let total = counted.unwrap_or(known + u32::from(!text.is_empty()));
            // An event without choices only has the final count, so no tokens arrive with it.
            let with_choices = event["choices"].as_array().is_some_and(|all| !all.is_empty());
            if total > known && with_choices {
                sample.came.push((at, total - known));
                self.token_count.fetch_add(u64::from(total - known), Ordering::Relaxed);
            }
            if with_choices {
                sample.latency = at;
            }
            known = total.max(known);
            sample.input_count = count(&usage["prompt_tokens"]).unwrap_or(sample.input_count);
            let cached = count(&usage["prompt_tokens_details"]["cached_tokens"]);
            sample.cached_count = cached.unwrap_or(sample.cached_count);
            if let Some(drafting) = drafting_of(&event["metrics"]) {
                sample.drafting = drafting;
            }
            if self.save_text {
                sample.text.push_str(&text);
            }
        }
        sample.output_count = known;
        if known == 0 {
            bail!("the reply is empty");
        }
        Ok(())
    }

    /// Acceptance according to the server's metrics, if it has them.
    async fn drafting(&self) -> Option<Drafting> {
        drafting_in(&self.client.get("/metrics").await.ok()?)
    }
}

fn count(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// The text in an event, whichever part of the reply it belongs to.
fn text_of(event: &Value) -> String {
    let choice = &event["choices"][0];
    let delta = &choice["delta"];
    let thought = delta["reasoning"].as_str().or_else(|| delta["reasoning_content"].as_str());
    let call = &delta["tool_calls"][0]["function"];
    let parts = [
        thought,
        delta["content"].as_str(),
        call["name"].as_str(),
        call["arguments"].as_str(),
        choice["text"].as_str(),
    ];
    parts.into_iter().flatten().collect()
}

/// Acceptance of one reply.
fn drafting_of(metrics: &Value) -> Option<Drafting> {
    let drafting = metrics.get("speculative_decoding").filter(|value| value.is_object())?;
    let number = |name: &str| drafting[name].as_u64();
    Some(Drafting {
        row_count: number("num_spec_steps")?,
        drafted_count: number("num_draft_tokens")?,
        accepted_count: number("num_accepted_draft_tokens")?,
        accepted_at: Vec::new(),
        assumed: drafting["verification"] == "assumed",
    })
}

/// Counters in Prometheus' text form, summed over their labels.
fn drafting_in(metrics: &str) -> Option<Drafting> {
    let mut drafting = Drafting::default();
    let mut found = false;
    let counters = metrics.lines().filter_map(|line| line.strip_prefix("vllm:spec_decode_num_"));
    for line in counters {
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse::<f64>().ok()? as u64;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        found = true;
        match name {
            "drafts_total" => drafting.row_count += value,
            "draft_tokens_total" => drafting.drafted_count += value,
            "accepted_tokens_total" => drafting.accepted_count += value,
            "accepted_tokens_per_pos_total" => {
                let place = labels.split_once("position=\"")?.1.split('"').next()?;
                let mut accepted_at = vec![0; place.parse::<u16>().ok()? as usize];
                accepted_at.push(value);
                drafting.add(&Drafting { accepted_at, ..Drafting::default() });
            }
            _ => {}
        }
    }
    found.then_some(drafting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_tell_what_became_of_drafts() {
        let text = "# TYPE vllm:spec_decode_num_drafts_total counter\n\
            vllm:spec_decode_num_drafts_total{engine=\"0\",model_name=\"a b\"} 10\n\
            vllm:spec_decode_num_draft_tokens_total{engine=\"0\"} 70\n\
            vllm:spec_decode_num_accepted_tokens_total{engine=\"0\"} 2.5e1\n\
            vllm:spec_decode_num_accepted_tokens_per_pos_total{engine=\"0\",position=\"1\"} 5\n\
            vllm:spec_decode_num_accepted_tokens_per_pos_total{position=\"0\"} 9\n\
            vllm:other_total 3\n";
        let found = drafting_in(text).unwrap();
        assert_eq!((found.row_count, found.drafted_count, found.accepted_count), (10, 70, 25));
        assert_eq!(found.accepted_at, [9, 5]);
        assert_eq!(found.acceptance(), Some(3.5));
        let before = Drafting { row_count: 4, accepted_at: vec![9], ..Drafting::default() };
        assert_eq!(found.since(&before).accepted_at, [0, 5]);
        assert_eq!(drafting_in("vllm:other_total 3\n"), None);
    }

    #[test]
    fn every_kind_of_text_counts() {
        for (event, expected) in [
            (json!({"choices": [{"delta": {"content": "a"}}]}), "a"),
            (json!({"choices": [{"delta": {"reasoning": "a", "reasoning_content": "a"}}]}), "a"),
            (json!({"choices": [{"text": "a"}]}), "a"),
            (json!({"choices": [{"delta": {"tool_calls": [{"function": {"name": "a"}}]}}]}), "a"),
            (json!({"choices": []}), ""),
        ] {
            assert_eq!(text_of(&event), expected, "{event}");
        }
    }
}
