//! A run on the engine itself, with the scheduler but without a server: the difference from a run
//! against a server is the cost of the server. Prompts are random tokens, or a file's prompts as
//! tokenized by the model's tokenizer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use kilotok_abi::{Sampling, TokenId};
use kilotok_engine::{Engine, SlotSetup};
use kilotok_sched::{Advance, RequestId, Scheduler, Submission};
use kilotok_text::{Conversation, Message, Text, Wanted};

use super::prompts::{self, Content, Prompt};
use super::sample::{Drafting, Outcome, Sample};
use super::{Args, arrivals};
use crate::config::{Config, RawConfig};
use crate::engine;

/// A wait for the next arrival is cut into pieces of this length, so that no arrival is missed.
const NAP_MAX: Duration = Duration::from_millis(2);

/// A request that was admitted.
struct Running {
    place: usize,
    arrived: Duration,
}

/// The loop's state.
struct Bench {
    engine: Box<dyn Engine>,
    sched: Scheduler,
    start: Instant,
    running: BTreeMap<RequestId, Running>,
    samples: Vec<Sample>,
    drafting: Drafting,
}

pub(super) fn run(args: &Args, model: &str) -> Result<Outcome> {
    let config = config(args, model)?;
    let loaded = engine::load(&config)?;
    let name = config.served_names.join(", ");
    let end_tokens = if args.ignore_end() { Vec::new() } else { loaded.spec.end_tokens.clone() };
    let vocab_size = loaded.engine.caps().vocab_size;
    let asked = submissions(args, &loaded, vocab_size, &end_tokens)?;
    let mut bench = Bench::new(loaded.engine, &config);
    for submission in asked.iter().cycle().take(args.warmup as usize) {
        bench.drive(vec![submission.clone()], &[Duration::ZERO], 1, &ProgressBar::hidden())?;
    }
    let mut bench = Bench::new(bench.engine, &config);
    let due = arrivals::due(asked.len(), args.request_rate, args.seed);
    let bar = ProgressBar::new(asked.len() as u64);
    bench.drive(asked, &due, args.in_flight_max().unwrap_or(usize::MAX), &bar)?;
    bar.finish_and_clear();
    Ok(Outcome {
        model: name,
        what: "engine without a server".to_owned(),
        duration: bench.start.elapsed(),
        samples: bench.samples,
        drafting: bench.drafting,
    })
}

/// The settings of an engine that is just large enough for the load.
fn config(args: &Args, model: &str) -> Result<Config> {
    let slots = args.concurrency.unwrap_or(if args.request_rate.is_some() { 8 } else { 1 });
    let context = args.dataset.is_none().then_some(args.input_len + args.output_len);
    let raw = RawConfig {
        model: Some(model.to_owned()),
        load_format: args.load_format,
        engine: args.engine_kind,
        ranks: args.ranks,
        slots: u32::try_from(slots).ok(),
        context_max: context,
        drafts: Some(!args.no_drafts),
        knobs: args.knobs.clone(),
        ..RawConfig::default()
    };
    Config::resolve(&raw, Vec::new())
}

fn submissions(
    args: &Args,
    loaded: &engine::Loaded,
    vocab_size: u32,
    end_tokens: &[TokenId],
) -> Result<Vec<Submission>> {
    let count = args.request_count();
    let prompts: Vec<(Vec<TokenId>, u32)> = if let Some(path) = &args.dataset {
        let text = Text::open(&loaded.folder).context("the tokenizer, for --dataset")?;
        let prompts = prompts::read(path, count as usize, args.output_len)?;
        let encode = |prompt: &Prompt| Ok((encode(&text, prompt)?, prompt.output_count));
        prompts.iter().map(encode).collect::<Result<_>>()?
    } else {
        let (shared, length) = (args.prefix_len as usize, args.input_len as usize);
        let tokens = |index| prompts::tokens(args.seed, index, shared, length, vocab_size);
        (0..count).map(|index| (tokens(index), args.output_len)).collect()
    };
    let submission = |(prompt, token_max): (Vec<TokenId>, u32)| {
        let temperature = args.temperature as f32;
        let sampling = Sampling { temperature, seed: args.seed, ..Sampling::GREEDY };
        let mut setup = SlotSetup::new(sampling, prompt.len() as u32);
        setup.verification = args.verification();
        setup.end_tokens = end_tokens.to_vec();
        Submission::new(prompt, setup, token_max)
    };
    Ok(prompts.into_iter().map(submission).collect())
}

fn encode(text: &Text, prompt: &Prompt) -> Result<Vec<TokenId>> {
    let Content::Text(asked) = &prompt.content else {
        bail!("--engine takes prompts, not messages: give lines with `prompt`");
    };
    if !text.has_template() {
        return Ok(text.encode(asked)?);
    }
    let (role, content) = ("user".to_owned(), asked.clone());
    let conversation = Conversation {
        messages: vec![Message { role, content, ..Message::default() }],
        add_generation_prompt: true,
        ..Conversation::default()
    };
    Ok(text.encode_rendered(&text.render(&conversation)?, &Wanted::default())?)
}

#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn now() -> Instant {
    Instant::now()
}

impl Bench {
    fn new(engine: Box<dyn Engine>, config: &Config) -> Self {
        let sched = Scheduler::new(engine.caps(), config.limits);
        Self {
            engine,
            sched,
            start: now(),
            running: BTreeMap::new(),
            samples: Vec::new(),
            drafting: Drafting::default(),
        }
    }

    /// Runs every request to its end. A request is admitted when it is due and there is room.
    fn drive(
        &mut self,
        asked: Vec<Submission>,
        due: &[Duration],
        in_flight_max: usize,
        bar: &ProgressBar,
    ) -> Result<()> {
        let mut waiting = asked.into_iter().zip(due).peekable();
        while waiting.peek().is_some() || !self.running.is_empty() {
            while self.running.len() < in_flight_max
                && let Some((submission, due)) =
                    waiting.next_if(|(_, due)| **due <= self.start.elapsed())
            {
                self.admit(submission, *due)?;
            }
            if !self.running.is_empty() {
                self.step(bar)?;
            } else if let Some((_, due)) = waiting.peek() {
                std::thread::sleep(due.saturating_sub(self.start.elapsed()).min(NAP_MAX));
            }
        }
        Ok(())
    }

    fn admit(&mut self, submission: Submission, due: Duration) -> Result<()> {
        let input_count = submission.prompt.len() as u32;
        let id = self.sched.admit(submission)?;
        let arrived = self.start.elapsed();
        let held_back = if due.is_zero() { due } else { arrived.saturating_sub(due) };
        let sample = Sample { start: arrived, held_back, input_count, ..Sample::default() };
        self.running.insert(id, Running { place: self.samples.len(), arrived });
        self.samples.push(sample);
        Ok(())
    }

    fn step(&mut self, bar: &ProgressBar) -> Result<()> {
        let plan = self.sched.plan()?;
        if plan.step.rows.is_empty() {
            bail!("the scheduler has nothing to do for {} requests", self.running.len());
        }
        let began = now();
        let out = self.engine.run(&plan.step)?;
        let step_us = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        let at = self.start.elapsed();
        for advance in self.sched.absorb(out, step_us)? {
            self.take(&advance, at, bar);
        }
        Ok(())
    }

    fn take(&mut self, advance: &Advance, at: Duration, bar: &ProgressBar) {
        let Some(running) = self.running.get(&advance.id) else { return };
        let sample = &mut self.samples[running.place];
        let (at, count) = (at.saturating_sub(running.arrived), advance.tokens.len() as u32);
        if count > 0 {
            sample.came.push((at, count));
            sample.output_count += count;
        }
        sample.latency = at;
        sample.cached_count = advance.cached_count;
        if advance.drafted_count > 0 {
            let accepted_at = (0..advance.drafted_count)
                .map(|place| u64::from(place < advance.accepted_count))
                .collect();
            self.drafting.add(&Drafting {
                row_count: 1,
                drafted_count: u64::from(advance.drafted_count),
                accepted_count: u64::from(advance.accepted_count),
                accepted_at,
                assumed: false,
            });
        }
        if let Some(finish) = &advance.finish {
            if let kilotok_sched::Finish::Fault(fault) = finish {
                sample.error = Some(fault.to_string());
            }
            self.running.remove(&advance.id);
            bar.inc(1);
        }
    }
}
