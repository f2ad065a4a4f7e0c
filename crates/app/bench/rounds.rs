//! Bare rounds of an engine, with plans made here: there are no requests and no scheduler. Every
//! round verifies drafts at the same positions and drafts again, so it costs as much as a round of
//! real replies with that context. Keys and values of the context are zeros, and drafts are random
//! tokens. With `--verify`, rows verify the drafter's own drafts and advance by those that are
//! accepted.

use std::fs;
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kilotok_abi::{PageId, Sampling, SlotId};
use kilotok_engine::{
    Caps, Engine, PageGroup, PageRun, Row, RowOutput, RowTokens, SlotSetup, StepPart, StepPlan,
    StepTimes,
};
use kilotok_model::{FeedForwardSpec, LayerSpec, ModelSpec};
use kilotok_sched::TAIL_INTERVAL;
use serde_json::{Map, Value, json};

use super::bytes::{RoundBytes, distinct_experts};
use super::figures::Figures;
use super::phases::{DeviceRound, Phase, add_json, part_name, phases, table};
use super::round_args::Routing;
use super::{Args, prompts, writable};
use crate::config::{Config, EngineKind, RawConfig};
use crate::engine;
use crate::output::{lines, say};

/// Rounds before the measured ones.
const WARMUP: u32 = 5;
/// Positions after the context, enough for the drafts of any engine.
const DRAFT_ROOM: u32 = 64;
/// Most tokens that a row gains in a round: drafters make 7 drafts.
const GAINED_MAX: u32 = 8;

const BYTES_ARE: &str = "\
    that a rank reads: in each phase its weights once, as published or in the other precision that \
    they are used in, of the experts the distinct ones; and keys and values of the context. The \
    head is in both parts";
const PHASES_ARE: &str = "\
    us is the first CTA's own time in all layers, wait_us what it then waits for the others; rest \
    is before, between and at the end of kernels. Medians, of kernels that stamps slow a little";

/// The shape of a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) batch: u32,
    pub(super) draft: u32,
    /// Tokens of a prompt, if the rows compute part of one.
    pub(super) chunk: Option<u32>,
    pub(super) context: u32,
}

impl Shape {
    pub(super) fn token_count(self) -> u32 {
        self.batch * self.row_tokens()
    }

    fn row_tokens(self) -> u32 {
        self.chunk.unwrap_or(self.draft + 1)
    }

    /// The assumed acceptance length, limited by the number of drafts.
    fn acceptance(self, assumed: Option<f64>) -> Option<f64> {
        assumed.map(|length| length.min(f64::from(self.draft + 1)))
    }
}

/// The mean number of distinct experts of a layer in a round.
#[derive(Clone, Copy)]
enum Experts {
    /// Counted by the kernels.
    Counted(f64),
    /// As expected from uniform routing.
    Uniform(f64),
}

impl Experts {
    fn new(spec: &ModelSpec, shape: Shape, rounds: &[DeviceRound]) -> Self {
        let of = |round: &DeviceRound| round.phases.iter().map(|phase| phase.experts).sum::<u64>();
        let counted = Figures::of(rounds.iter().map(|round| of(round) as f64)).mean;
        if counted > 0.0 {
            Self::Counted(counted / expert_layers(spec) as f64)
        } else {
            Self::Uniform(distinct_experts(spec, shape.token_count()))
        }
    }

    fn count(self) -> f64 {
        match self {
            Self::Counted(count) | Self::Uniform(count) => count,
        }
    }

    fn says(self) -> &'static str {
        match self {
            Self::Counted(_) => "counted by the kernels, one again for every eight of its tokens",
            Self::Uniform(_) => "what uniform routing of random tokens gives, not counted",
        }
    }
}

fn expert_layers(spec: &ModelSpec) -> usize {
    let has_experts =
        |layer: &&LayerSpec| matches!(layer.feed_forward, FeedForwardSpec::Experts(_));
    spec.layers.iter().filter(has_experts).count()
}

struct Measured {
    shape: Shape,
    /// All times are in milliseconds. Those of devices are known if there are devices.
    round: Figures,
    verify: Option<Figures>,
    draft: Option<Figures>,
    experts: Experts,
    bytes: RoundBytes,
    /// Bytes per second that a device's memory can deliver, if there are devices.
    read_rate: Option<f64>,
    phases: Vec<Phase>,
}

pub(super) fn run(args: &Args, model: &str) -> Result<()> {
    let own = &args.round;
    let count = own.check()?;
    ensure!(
        !own.phases || args.engine_kind != Some(EngineKind::Cpu),
        "--phases: only kernels on GPUs tell how long each phase takes, not --engine-kind cpu"
    );
    let config = config(args, model)?;
    let mut planned = engine::plan(&config)?;
    planned.stamps = own.phases;
    let caps = planned.caps();
    let shapes = shapes(args, caps.draft_max);
    // Checked before weights are loaded.
    shapes.iter().try_for_each(|shape| check(&caps, *shape))?;
    let most = shapes.iter().map(|shape| shape.draft + 1).max().unwrap_or(1);
    ensure!(
        own.assume_acceptance.is_none_or(|length| length <= f64::from(most)),
        "--assume-acceptance: these rounds bring at most {most} tokens"
    );
    if let Some(path) = &own.out {
        writable(path)?;
    }
    let mut loaded = planned.load()?;
    let mut results = Vec::new();
    say!("{model} on {}, {count} rounds of each kind", loaded.device);
    let read_rate = loaded.engine.read_rate()?;
    if let Some(rate) = read_rate {
        say!("a plain read of its memory: {:.2} TB/s", rate / 1e12);
    }
    say!("{}", header(own.assume_acceptance));
    for shape in shapes {
        let measured = measure(&mut *loaded.engine, &loaded.spec, args, shape, count)?;
        let measured = Measured { read_rate, ..measured };
        say!("{}", line(&measured, own.assume_acceptance));
        lines(format_args!("{}", phase_lines(&measured)));
        results.push(json(args, model, &loaded, &measured));
    }
    if let Some(path) = &own.out {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        say!("written to {}", path.display());
    }
    Ok(())
}

/// All shapes to be measured, in order.
fn shapes(args: &Args, draft_max: u32) -> Vec<Shape> {
    let own = &args.round;
    let drafts = match &own.draft_len[..] {
        [] if args.no_drafts => &[0],
        [] => &[draft_max][..],
        given => given,
    };
    let rows: Vec<(u32, Option<u32>)> = if own.chunk_len.is_empty() {
        drafts.iter().map(|&draft| (draft, None)).collect()
    } else {
        own.chunk_len.iter().map(|&chunk| (0, Some(chunk))).collect()
    };
    let mut shapes = Vec::new();
    for &context in &own.context {
        for &(draft, chunk) in &rows {
            shapes.extend(own.batch.iter().map(|&batch| Shape { batch, draft, chunk, context }));
        }
    }
    shapes
}

/// The settings of an engine that is just large enough.
fn config(args: &Args, model: &str) -> Result<Config> {
    let longest = |values: &[u32]| values.iter().copied().max();
    let context = longest(&args.round.context).unwrap_or(1).saturating_add(room(args));
    let context = context.saturating_add(longest(&args.round.chunk_len).unwrap_or(0));
    let raw = RawConfig {
        model: Some(model.to_owned()),
        load_format: args.load_format,
        engine: if args.round.phases { Some(EngineKind::Cuda) } else { args.engine_kind },
        ranks: args.ranks,
        slots: longest(&args.round.batch),
        context_max: Some(context),
        chunk_max: longest(&args.round.chunk_len),
        knobs: args.knobs.clone(),
        ..RawConfig::default()
    };
    Config::resolve(&raw, Vec::new())
}

/// Positions after the context.
fn room(args: &Args) -> u32 {
    let rounds = args.verify.and(args.round.rounds).map_or(0, |count| count + WARMUP);
    rounds.saturating_mul(GAINED_MAX).saturating_add(DRAFT_ROOM)
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
    let (mut rounds, mut devices) = (Vec::new(), Vec::new());
    let mut places = vec![Place { start: shape.context, held: None }; shape.batch as usize];
    for round in 0..WARMUP + count {
        let plan = plan(&caps, args, shape, &places, round)?;
        let began = now();
        let out = engine.run(&plan)?;
        let took = began.elapsed();
        if let Some(fault) = out.rows.iter().find_map(|row| row.fault) {
            bail!("round {round}: {fault}");
        }
        if args.verify.is_some() {
            places.iter_mut().zip(&out.rows).for_each(|(place, row)| place.go_on(row));
        }
        let phases = engine.phase_times()?;
        if round >= WARMUP {
            rounds.push(took);
            devices.extend(engine.times().map(|times| DeviceRound { times, phases }));
        }
    }
    let figures = |of: fn(&StepTimes) -> Duration| {
        let times = devices.iter().map(|device| milliseconds(of(&device.times)));
        (!devices.is_empty()).then(|| Figures::of(times))
    };
    let experts = Experts::new(spec, shape, &devices);
    let bytes = RoundBytes::new(spec, args.ranks.unwrap_or(1) as usize, shape, experts.count());
    Ok(Measured {
        shape,
        round: Figures::of(rounds.into_iter().map(milliseconds)),
        verify: figures(|times| times.verify),
        draft: figures(|times| times.draft),
        experts,
        phases: phases(&devices, &bytes),
        bytes,
        read_rate: None,
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn check(caps: &Caps, shape: Shape) -> Result<()> {
    let Shape { batch, draft, context, .. } = shape;
    ensure!(
        draft <= caps.draft_max,
        "--draft-len is {draft}: the engine takes up to {}",
        caps.draft_max
    );
    let of_rows = |each: u32| u64::from(batch) * u64::from(each);
    let (tokens, wanted) = (of_rows(shape.row_tokens()), of_rows(draft + 1));
    let Caps { token_max, wanted_max, row_max, .. } = caps;
    ensure!(
        tokens <= u64::from(*token_max) && wanted <= u64::from(*wanted_max) && batch <= *row_max,
        "--batch {batch} makes {tokens} tokens, {wanted} of them with logits: a step of this \
         engine holds {token_max} and {wanted_max}, of {row_max} rows",
    );
    ensure!(
        u64::from(context) + u64::from(shape.row_tokens()) <= u64::from(caps.position_max),
        "--context {context}: there is room for {} positions",
        caps.position_max
    );
    Ok(())
}

/// The start of a row, and the number of drafts in its slot if the row verifies those.
#[derive(Clone, Copy)]
struct Place {
    start: u32,
    held: Option<u32>,
}

impl Place {
    fn go_on(&mut self, row: &RowOutput) {
        self.start += row.tokens.len() as u32;
        self.held = Some(row.held_count);
    }
}

/// The plan of a round: the same rows in every round, with other tokens.
fn plan(caps: &Caps, args: &Args, shape: Shape, places: &[Place], round: u32) -> Result<StepPlan> {
    let Shape { batch, draft, context, .. } = shape;
    let row = |(slot, place): (u32, &Place)| {
        let index = round.wrapping_mul(batch).wrapping_add(slot);
        let count = shape.row_tokens() as usize;
        let tokens = match args.round.routing {
            Routing::Uniform => prompts::tokens(args.seed, index, 0, count, caps.vocab_size),
            Routing::Same => vec![round % caps.vocab_size; count],
        };
        let temperature = args.temperature as f32;
        let sampling = Sampling { temperature, seed: args.seed, ..Sampling::GREEDY };
        let verification = args.verification();
        let setup = SlotSetup { verification, ..SlotSetup::new(sampling, context) };
        let own = place.start..place.start + count as u32;
        let room_end = context + room(args) + shape.chunk.unwrap_or(0);
        ensure!(own.end <= room_end, "a row gained more tokens than there is room for");
        let held = context..if args.verify.is_some() { room_end } else { own.end };
        let pages = caps.groups.iter().map(|group| pages(group, slot, held.clone(), own.clone()));
        let given = RowTokens::Given { tokens, draft_count: draft };
        let tokens =
            place.held.map_or(given, |held| RowTokens::Held { draft_count: held.min(draft) });
        Ok(Row {
            setup: (round == 0).then(|| Box::new(setup)),
            pages: pages.collect::<Result<_>>()?,
            later_starts: shape.chunk.map_or(Vec::new(), |_| later_starts(own)),
            draft_next: if caps.drafter { draft } else { 0 },
            ..Row::new(SlotId(slot), place.start, tokens)
        })
    };
    Ok(StepPlan { rows: (0..batch).zip(places).map(row).collect::<Result<_>>()? })
}

/// Where rows start that later read what a prompt chunk writes, as in the scheduler's plans: at the
/// tails of a long text, and behind the chunk.
fn later_starts(chunk: Range<u32>) -> Vec<u32> {
    let first = chunk.start / TAIL_INTERVAL + 1;
    let tails = (first..).map(|index| index * TAIL_INTERVAL);
    tails.take_while(|tail| *tail < chunk.end).chain([chunk.end]).collect()
}

/// The pages of a group for a row, among the pages that its slot has for the positions `held`.
fn pages(group: &PageGroup, slot: u32, held: Range<u32>, row: Range<u32>) -> Result<PageRun> {
    let first_of = |start| group.first_needed(start) / group.page_tokens;
    let (begin, first) = (first_of(held.start), first_of(row.start));
    let each = held.end.div_ceil(group.page_tokens) - begin;
    let own = u64::from(slot) * u64::from(each)..u64::from(slot + 1) * u64::from(each);
    ensure!(
        own.end <= u64::from(group.page_count),
        "the engine has {} pages, and a row of this context needs {each}: fewer rows, or a \
         shorter --context",
        group.page_count
    );
    let end = row.end.div_ceil(group.page_tokens);
    let pages = (first..end).map(|page| PageId(own.start as u32 + page - begin));
    Ok(PageRun { first, pages: pages.collect() })
}

fn header(acceptance: Option<f64>) -> String {
    let assumed = acceptance.map_or(String::new(), |length| {
        format!("  tokens/s of a row at an assumed acceptance length of {length}")
    });
    format!(
        "{:>6}{:>7}{:>7}{:>9}{:>9}{:>10}{:>10}{:>10}{:>10}{assumed}",
        "batch", "draft", "chunk", "context", "experts", "round p50", "p99", "verify", "draft"
    )
}

fn line(measured: &Measured, acceptance: Option<f64>) -> String {
    let Measured { shape: Shape { batch, draft, chunk, context }, round, verify, .. } = measured;
    let device = |figures: &Option<Figures>| {
        figures.as_ref().map_or("-".to_owned(), |figures| format!("{:.3}", figures.median()))
    };
    let speed = measured.shape.acceptance(acceptance).map_or(String::new(), |length| {
        format!("  {:.0} (assumed)", length * 1e3 / round.median())
    });
    format!(
        "{batch:>6}{draft:>7}{:>7}{context:>9}{:>9.1}{:>10.3}{:>10.3}{:>10}{:>10}{speed}",
        chunk.map_or("-".to_owned(), |chunk| chunk.to_string()),
        measured.experts.count(),
        round.median(),
        round.percentile(99.0),
        device(verify),
        device(&measured.draft),
    )
}

fn json(args: &Args, model: &str, loaded: &engine::Loaded, measured: &Measured) -> Value {
    let Measured { shape, round, verify, draft, experts, .. } = measured;
    let median = |figures: &Option<Figures>| figures.as_ref().map(Figures::median);
    let mut all = json!({
        "device": loaded.device,
        "command": command(),
        "commit": args.round.commit.clone().or_else(commit),
        "model": model,
        "weights": if args.is_dummy() { "dummy" } else { "checkpoint" },
        "layers": loaded.spec.layers.len(),
        "ranks": args.ranks.unwrap_or(1),
        "batch": shape.batch,
        "draft": shape.draft,
        "chunk": shape.chunk,
        "context": shape.context,
        "rounds": args.round.rounds,
        "routing": format!("{:?}", args.round.routing).to_lowercase(),
        "distinct_experts": experts.count(),
        "distinct_experts_are": experts.says(),
        "round_ms_p50": round.median(),
        "round_ms_p99": round.percentile(99.0),
        "verify_ms_p50": median(verify),
        "draft_ms_p50": median(draft),
    });
    add_phases(&mut all, measured);
    if let Some(length) = shape.acceptance(args.round.assume_acceptance) {
        all["assumed_acceptance_length"] = length.into();
        all["tokens_per_s_if_so"] = (length * 1e3 / round.median()).into();
    }
    all
}

/// Adds the time by phase, and the floor by bytes.
fn add_phases(all: &mut Value, measured: &Measured) {
    let Measured { round, verify, draft, bytes, phases, .. } = measured;
    let mut by_name = Map::new();
    for (part, figures) in [(StepPart::Verify, verify), (StepPart::Draft, draft)] {
        if let Some(figures) = figures {
            let (us, bytes) = (figures.median() * 1e3, bytes.of_part(part).round() as u64);
            by_name.insert(part_name(part).to_owned(), json!({ "us": us, "bytes": bytes }));
        }
    }
    add_json(phases, &mut by_name);
    all["phases"] = by_name.into();
    all["bytes_are"] = BYTES_ARE.into();
    if let Some(rate) = measured.read_rate {
        let floor_us = bytes.floor_us(rate);
        all["floor_us"] = floor_us.into();
        all["floor_share"] = (floor_us / 1e3 / round.median()).into();
        all["floor_is"] = floor_is(rate).into();
        all["read_bytes_per_s"] = rate.into();
    }
    if !phases.is_empty() {
        all["phases_are"] = PHASES_ARE.into();
    }
}

/// The table of phases, if they were measured, and the floor by bytes.
fn phase_lines(measured: &Measured) -> String {
    let Some(rate) = measured.read_rate.filter(|_| !measured.phases.is_empty()) else {
        return String::new();
    };
    let floor_us = measured.bytes.floor_us(rate);
    let share = floor_us / 1e3 / measured.round.median() * 100.0;
    format!(
        "{}    floor of {floor_us:.0} us, {share:.0} % of the round: {}\n",
        table(&measured.phases, rate),
        floor_is(rate)
    )
}

fn floor_is(read_rate: f64) -> String {
    format!("bytes at {:.2} TB/s, by a plain read of this device's memory", read_rate / 1e12)
}

/// The command line, without the program's path.
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
    use kilotok_abi::Stamp;
    use kilotok_engine::{PageKind, PhaseTime};
    use kilotok_testkit::Toy;

    use super::*;

    #[test]
    fn rows_have_pages_of_their_own() {
        let kind = PageKind::Window;
        let group =
            PageGroup { kind, page_tokens: 4, page_count: 8, window: Some(9), page_bytes: 0 };
        // From position 22, which is eight before the row, to 32.
        let run = pages(&group, 1, 30..33, 30..33).unwrap();
        assert_eq!((run.first, run.pages.len()), (5, 4));
        assert!(
            pages(&group, 0, 30..33, 30..33)
                .unwrap()
                .pages
                .iter()
                .all(|page| !run.pages.contains(page))
        );
        let error = pages(&PageGroup { page_count: 7, ..group }, 1, 30..33, 30..33).unwrap_err();
        assert!(error.to_string().contains("7 pages"), "{error}");
    }

    /// A round of 2 ms: 1 ms for the target, 0.5 ms for the drafter.
    fn measured(phases_told: bool) -> Measured {
        let shape = Shape { batch: 1, draft: 3, chunk: None, context: 20 };
        let bytes = RoundBytes::new(&Toy::pro_fp4().spec(), 1, shape, 3.0);
        let us = Duration::from_micros;
        let time = |part, phase| PhaseTime { part, phase, own: us(300), wait: us(100), experts: 0 };
        let told = vec![time(StepPart::Verify, Stamp::Down), time(StepPart::Draft, Stamp::Down)];
        let times = StepTimes { verify: us(1000), draft: us(500) };
        let device = DeviceRound { times, phases: if phases_told { told } else { Vec::new() } };
        Measured {
            shape,
            round: Figures::of([2.0]),
            verify: Some(Figures::of([1.0])),
            draft: Some(Figures::of([0.5])),
            experts: Experts::Counted(3.0),
            phases: phases(&[device], &bytes),
            bytes,
            read_rate: Some(4e12),
        }
    }

    #[test]
    fn experts_are_those_that_kernels_counted() {
        let spec = Toy::pro_fp4().spec();
        let layers = expert_layers(&spec) as u64;
        let shape = Shape { batch: 1, draft: 3, chunk: None, context: 20 };
        let round = |each: u64| {
            let (own, wait) = (Duration::ZERO, Duration::ZERO);
            let (part, phase) = (StepPart::Verify, Stamp::Routes);
            let phases = vec![PhaseTime { part, phase, own, wait, experts: each * layers }];
            DeviceRound { times: StepTimes::default(), phases }
        };
        let counted = Experts::new(&spec, shape, &[round(2), round(5)]);
        assert!(matches!(counted, Experts::Counted(3.5)), "{}", counted.count());
        let uniform = Experts::new(&spec, shape, &[]);
        assert_eq!(uniform.count(), distinct_experts(&spec, 4));
        assert!(uniform.says().contains("not counted"));
    }

    #[test]
    fn results_say_where_time_went() {
        let measured = measured(true);
        let mut all = json!({});
        add_phases(&mut all, &measured);
        let phases = all["phases"].as_object().unwrap();
        let names: Vec<_> = phases.keys().map(String::as_str).collect();
        let whole = ["verify", "draft", "verify.down", "verify.rest", "draft.down", "draft.rest"];
        assert_eq!(names, whole);
        for (part, us) in [("verify", 1000.0), ("draft", 500.0)] {
            assert_eq!(phases[part]["us"], us);
            let (down, rest) = (format!("{part}.down"), format!("{part}.rest"));
            assert_eq!(
                (&phases[&down]["us"], &phases[&down]["wait_us"]),
                (&json!(300.0), &json!(100.0))
            );
            // The expected value is a floating-point sum of nanoseconds.
            assert!((phases[&rest]["us"].as_f64().unwrap() - (us - 400.0)).abs() < 1e-6);
            assert!(phases[part]["bytes"].as_u64() > phases[&down]["bytes"].as_u64());
        }
        let bytes: u64 =
            ["verify", "draft"].map(|part| phases[part]["bytes"].as_u64().unwrap()).iter().sum();
        let floor_us = all["floor_us"].as_f64().unwrap();
        // Bytes are rounded to integers.
        assert!((floor_us - bytes as f64 / 4e6).abs() < 1e-6, "{all}");
        assert!((all["floor_share"].as_f64().unwrap() - floor_us / 2000.0).abs() < 1e-9);
        assert!(all["floor_is"].as_str().unwrap().contains("4.00 TB/s, by a plain read"));
        assert!(phase_lines(&measured).contains(&floor_is(4e12)));
    }

    #[test]
    fn results_of_rounds_that_tell_no_phases_have_both_parts() {
        let measured = measured(false);
        let mut all = json!({});
        add_phases(&mut all, &measured);
        assert_eq!(all["phases"].as_object().unwrap().len(), 2);
        assert!(all["floor_us"].as_f64() > Some(0.0) && all["phases_are"].is_null());
        assert_eq!(phase_lines(&measured), "");
        // Without the devices' times there is no floor.
        let mut all = json!({});
        add_phases(&mut all, &Measured { verify: None, draft: None, read_rate: None, ..measured });
        assert!(all["phases"] == json!({}) && all["floor_us"].is_null());
    }
}
