//! Bare rounds of an engine, with plans made here: no requests, no scheduler. Every round verifies
//! drafts at the same positions and drafts again, so that it costs what a round of replies costs at
//! that context. Keys and values of the context are zeros, drafts are random tokens.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kilotok_abi::{PageId, Sampling, SlotId};
use kilotok_engine::{
    Caps, Engine, PageGroup, PageRun, Row, RowTokens, SlotSetup, StepOutput, StepPlan, StepTimes,
};
use kilotok_model::{FeedForwardSpec, ModelSpec, Part, WeightDecl, WeightId, declare};
use serde_json::{Map, Value, json};

use super::figures::Figures;
use super::{Args, prompts};
use crate::config::{Config, RawConfig};
use crate::engine;

/// Rounds before those that count.
const WARMUP: u32 = 5;
/// A run of more is a typing error.
const ROUNDS_MAX: u32 = 1_000_000;
/// Positions behind the context: drafts of any engine fit.
const DRAFT_ROOM: u32 = 64;
/// Rows of one step beyond this are a typing error.
const BATCH_MAX: u32 = 4096;

#[derive(clap::Args)]
#[command(next_help_heading = "Rounds")]
pub(crate) struct RoundArgs {
    /// With --engine: measure so many bare rounds of each batch, draft length and context, instead
    /// of requests.
    #[arg(
        long,
        requires = "engine",
        conflicts_with_all = ["json", "concurrency", "request_rate", "num_prompts"],
        value_name = "COUNT"
    )]
    rounds: Option<u32>,
    /// Rows of a round.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    batch: Vec<u32>,
    /// Drafts that a row verifies and makes [default: as many as the engine can].
    #[arg(long, value_delimiter = ',', value_name = "TOKENS")]
    draft_len: Vec<u32>,
    /// Tokens before the row.
    #[arg(long, value_delimiter = ',', default_value = "1024", value_name = "TOKENS")]
    context: Vec<u32>,
    /// Tokens that a round of one row is to bring: what speed would be if it were so.
    #[arg(long, value_name = "TOKENS")]
    assume_acceptance: Option<f64>,
    /// Write the results here: a list with an entry for each batch, draft length and context.
    #[arg(long, requires = "rounds", value_name = "FILE")]
    out: Option<PathBuf>,
    /// The commit to name in it [default: that of the folder, if git knows].
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
}

impl RoundArgs {
    pub(super) fn wanted(&self) -> bool {
        self.rounds.is_some()
    }

    fn check(&self) -> Result<u32> {
        let rounds = self.rounds.unwrap_or_default();
        ensure!((1..=ROUNDS_MAX).contains(&rounds), "--rounds is {rounds}: 1 to {ROUNDS_MAX}");
        for batch in &self.batch {
            ensure!((1..=BATCH_MAX).contains(batch), "--batch is {batch}: give 1 to {BATCH_MAX}");
        }
        let acceptance = self.assume_acceptance.unwrap_or(1.0);
        ensure!(
            (1.0..=1e3).contains(&acceptance),
            "--assume-acceptance is {acceptance}: a round brings at least 1 token"
        );
        Ok(rounds)
    }
}

/// The shape of a round.
#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: u32,
    draft: u32,
    context: u32,
}

struct Measured {
    shape: Shape,
    /// All in milliseconds; what devices took is known if there are any.
    round: Figures,
    verify: Option<Figures>,
    draft: Option<Figures>,
    distinct_experts: f64,
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
pub(super) fn run(args: &Args, model: &str) -> Result<()> {
    let own = &args.round;
    let count = own.check()?;
    let config = config(args, model)?;
    let mut loaded = engine::load(&config)?;
    let draft_max = loaded.engine.caps().draft_max;
    let drafts = if own.draft_len.is_empty() { &[draft_max][..] } else { &own.draft_len };
    let mut results = Vec::new();
    println!("{model} on {}, {count} rounds of each kind", loaded.device);
    println!("{}", header(own.assume_acceptance));
    for &context in &own.context {
        for &draft in drafts {
            for &batch in &own.batch {
                let shape = Shape { batch, draft, context };
                let measured = measure(&mut *loaded.engine, &loaded.spec, args, shape, count)?;
                println!("{}", line(&measured, own.assume_acceptance));
                results.push(json(args, model, &loaded, &measured));
            }
        }
    }
    if let Some(path) = &own.out {
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        println!("written to {}", path.display());
    }
    Ok(())
}

/// An engine that is just large enough.
fn config(args: &Args, model: &str) -> Result<Config> {
    let longest = |values: &[u32]| values.iter().copied().max();
    let context = longest(&args.round.context).unwrap_or(1).saturating_add(DRAFT_ROOM);
    let raw = RawConfig {
        model: Some(model.to_owned()),
        load_format: args.load_format,
        engine: args.engine_kind,
        ranks: args.ranks,
        slots: longest(&args.round.batch),
        context_max: Some(context),
        knobs: args.knobs.clone(),
        ..RawConfig::default()
    };
    Config::resolve(&raw, Vec::new())
}

#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn now() -> Instant {
    Instant::now()
}

fn measure(
    engine: &mut dyn Engine,
    spec: &ModelSpec,
    args: &Args,
    shape: Shape,
    count: u32,
) -> Result<Measured> {
    let caps = engine.caps().clone();
    check(&caps, shape)?;
    let (mut rounds, mut times) = (Vec::new(), Vec::<StepTimes>::new());
    for round in 0..WARMUP + count {
        let plan = plan(&caps, args, shape, round)?;
        let mut out = StepOutput::default();
        let began = now();
        let step = engine.submit(&plan)?;
        engine.wait(step, &mut out)?;
        let took = began.elapsed();
        if let Some(fault) = out.rows.iter().find_map(|row| row.fault) {
            bail!("round {round}: {fault}");
        }
        if round >= WARMUP {
            rounds.push(took);
            times.extend(engine.times());
        }
    }
    let figures = |of: fn(&StepTimes) -> Duration| {
        (!times.is_empty()).then(|| Figures::of(times.iter().map(of).map(milliseconds)))
    };
    Ok(Measured {
        shape,
        round: Figures::of(rounds.into_iter().map(milliseconds)),
        verify: figures(|times| times.verify),
        draft: figures(|times| times.draft),
        distinct_experts: distinct_experts(spec, shape.batch * (shape.draft + 1)),
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn check(caps: &Caps, Shape { batch, draft, context }: Shape) -> Result<()> {
    ensure!(
        draft <= caps.draft_max,
        "--draft-len is {draft}: the engine takes up to {}",
        caps.draft_max
    );
    let tokens = u64::from(batch) * u64::from(draft + 1);
    ensure!(
        tokens <= u64::from(caps.token_max) && batch <= caps.row_max,
        "--batch {batch} with --draft-len {draft} makes {tokens} tokens: a step of this engine \
         holds {} of {} rows",
        caps.token_max,
        caps.row_max
    );
    ensure!(
        u64::from(context) + u64::from(draft) < u64::from(caps.position_max),
        "--context {context}: there is room for {} positions",
        caps.position_max
    );
    Ok(())
}

/// The same rows in every round, with other tokens.
fn plan(caps: &Caps, args: &Args, shape: Shape, round: u32) -> Result<StepPlan> {
    let Shape { batch, draft, context } = shape;
    let row = |slot: u32| {
        let index = round.wrapping_mul(batch).wrapping_add(slot);
        let count = draft as usize + 1;
        let tokens = prompts::tokens(args.seed, index, 0, count, caps.vocab_size);
        let sampling =
            Sampling { temperature: args.temperature, seed: args.seed, ..Sampling::GREEDY };
        let setup = (round == 0).then(|| Box::new(SlotSetup::new(sampling, context)));
        let pages = caps.groups.iter().map(|group| pages(group, slot, context, count as u32));
        Ok(Row {
            slot: SlotId(slot),
            setup,
            start: context,
            tokens: RowTokens::Given { tokens, draft_count: draft },
            sample: true,
            pages: pages.collect::<Result<_>>()?,
            masks: Vec::new(),
            logprobs: None,
            scored: Vec::new(),
            draft_next: if caps.drafter { draft } else { 0 },
            report_drafts: false,
        })
    };
    Ok(StepPlan { rows: (0..batch).map(row).collect::<Result<_>>()? })
}

/// A row's own pages of a group.
fn pages(group: &PageGroup, slot: u32, start: u32, count: u32) -> Result<PageRun> {
    let first = group.first_needed(start) / group.page_tokens;
    let each = (start + count).div_ceil(group.page_tokens) - first;
    let own = u64::from(slot) * u64::from(each)..u64::from(slot + 1) * u64::from(each);
    ensure!(
        own.end <= u64::from(group.page_count),
        "the engine has {} pages, and a row of this context needs {each}: fewer rows, or a \
         shorter --context",
        group.page_count
    );
    Ok(PageRun { first, pages: own.map(|page| PageId(page as u32)).collect() })
}

/// Experts of a layer that so many tokens have chosen between them, if they choose at random; the
/// mean of all layers that have some.
fn distinct_experts(spec: &ModelSpec, token_count: u32) -> f64 {
    let layers = spec.layers.iter().filter_map(|layer| match &layer.feed_forward {
        FeedForwardSpec::Experts(experts) => {
            let (count, top_k) = (experts.count as f64, experts.top_k as f64);
            Some(count * (1.0 - (1.0 - top_k / count).powf(f64::from(token_count))))
        }
        FeedForwardSpec::Dense(_) => None,
    });
    Figures::of(layers).mean
}

/// Bytes of weights that a rank reads, as they are published: for the target, and for the drafter.
fn weight_bytes(spec: &ModelSpec, ranks: usize, distinct_experts: f64) -> (f64, f64) {
    let experts = spec.layers.iter().find_map(|layer| match &layer.feed_forward {
        FeedForwardSpec::Experts(experts) => Some(experts.count as f64),
        FeedForwardSpec::Dense(_) => None,
    });
    let read = distinct_experts / experts.unwrap_or(1.0);
    let (mut target, mut drafter) = (0.0, 0.0);
    for decl in declare(spec) {
        let bytes = engine::declared_bytes(&decl) as f64;
        let WeightDecl { id, part, .. } = decl;
        match id {
            WeightId::Embedding => {}
            WeightId::Head => {
                target += bytes;
                drafter += bytes;
            }
            WeightId::Expert(..) => target += bytes * read,
            _ if part == Part::Drafter => drafter += bytes,
            _ => target += bytes,
        }
    }
    (target / ranks as f64, if spec.drafter.is_some() { drafter / ranks as f64 } else { 0.0 })
}

fn header(acceptance: Option<f64>) -> String {
    let assumed = acceptance.map_or(String::new(), |length| {
        format!("  tokens/s of a row at an assumed acceptance length of {length}")
    });
    format!(
        "{:>6}{:>7}{:>9}{:>9}{:>10}{:>10}{:>10}{:>10}{assumed}",
        "batch", "draft", "context", "experts", "round p50", "p99", "verify", "draft"
    )
}

fn line(measured: &Measured, acceptance: Option<f64>) -> String {
    let Measured { shape: Shape { batch, draft, context }, round, verify, .. } = measured;
    let device = |figures: &Option<Figures>| {
        figures.as_ref().map_or("-".to_owned(), |figures| format!("{:.3}", figures.median()))
    };
    let speed = acceptance.map_or(String::new(), |length| {
        format!("  {:.0} (assumed)", length * 1e3 / round.median())
    });
    format!(
        "{batch:>6}{draft:>7}{context:>9}{:>9.1}{:>10.3}{:>10.3}{:>10}{:>10}{speed}",
        measured.distinct_experts,
        round.median(),
        round.percentile(99.0),
        device(verify),
        device(&measured.draft),
    )
}

fn json(args: &Args, model: &str, loaded: &engine::Loaded, measured: &Measured) -> Value {
    let Measured { shape, round, verify, draft, distinct_experts } = measured;
    let ranks = args.ranks.unwrap_or(1);
    let (target_bytes, draft_bytes) = weight_bytes(&loaded.spec, ranks as usize, *distinct_experts);
    let mut phases = Map::new();
    for (name, figures, bytes) in [("verify", verify, target_bytes), ("draft", draft, draft_bytes)]
    {
        if let Some(figures) = figures {
            let us = figures.median() * 1e3;
            phases.insert(name.to_owned(), json!({ "us": us, "bytes": bytes.round() as u64 }));
        }
    }
    let median = |figures: &Option<Figures>| figures.as_ref().map(Figures::median);
    let mut all = json!({
        "device": loaded.device,
        "command": command(),
        "commit": args.round.commit.clone().or_else(commit),
        "model": model,
        "weights": if args.is_dummy() { "dummy" } else { "checkpoint" },
        "layers": loaded.spec.layers.len(),
        "ranks": ranks,
        "batch": shape.batch,
        "draft": shape.draft,
        "context": shape.context,
        "rounds": args.round.rounds,
        "distinct_experts": distinct_experts,
        "distinct_experts_are": "what uniform routing of random tokens gives, not counted",
        "round_ms_p50": round.median(),
        "round_ms_p99": round.percentile(99.0),
        "verify_ms_p50": median(verify),
        "draft_ms_p50": median(draft),
        "phases": phases,
        "bytes_are": "of weights that a rank reads, as published; the head is in both phases",
    });
    if let Some(length) = args.round.assume_acceptance {
        all["assumed_acceptance_length"] = length.into();
        all["tokens_per_s_if_so"] = (length * 1e3 / round.median()).into();
    }
    all
}

/// As it was typed, wherever the program lies.
fn command() -> String {
    let words = std::env::args().skip(1);
    std::iter::once("kilotok".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use kilotok_engine::PageKind;
    use kilotok_testkit::Toy;

    use super::*;

    #[test]
    fn rows_have_pages_of_their_own() {
        let kind = PageKind::Window;
        let group =
            PageGroup { kind, page_tokens: 4, page_count: 8, window: Some(9), page_bytes: 0 };
        // From position 22, eight before the row, to 32.
        let run = pages(&group, 1, 30, 3).unwrap();
        assert_eq!((run.first, run.pages.len()), (5, 4));
        assert!(
            pages(&group, 0, 30, 3).unwrap().pages.iter().all(|page| !run.pages.contains(page))
        );
        let error = pages(&PageGroup { page_count: 7, ..group }, 1, 30, 3).unwrap_err();
        assert!(error.to_string().contains("7 pages"), "{error}");
    }

    #[test]
    fn tokens_choose_experts_at_random() {
        let spec = Toy::pro_fp4().spec();
        let top_k = distinct_experts(&spec, 1);
        assert!((top_k - top_k.round()).abs() < 1e-9, "one token has its own: {top_k}");
        assert!(distinct_experts(&spec, 8) > top_k);
        let (one, two) = (weight_bytes(&spec, 1, 8.0), weight_bytes(&spec, 2, 8.0));
        assert_eq!(one.0, two.0 * 2.0);
        assert!(one.1 > 0.0 && weight_bytes(&spec, 1, 4.0).0 < one.0);
    }
}
