//! `kilotok replay`

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kilotok_cpu::{CpuEngine, CpuOptions};
use kilotok_engine::trace::{self, Header, Trace};
use kilotok_engine::{Engine, StepOutput, StepPlan};
use kilotok_model::{Knobs, ModelSpec};
use kilotok_weights::{Checkpoint, Dummy, WeightSource, read_spec};

use crate::environment::folder;
use crate::knobs::KnobArgs;
use crate::output::say;
use crate::progress::WorkProgress;

/// The seed of dummy weights. It is fixed, so that their traces can be compared.
const DUMMY_SEED: u64 = 0;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// File with the trace: lines of JSON, the first for the header, each other for a step.
    trace: PathBuf,
    /// The model's folder, or its name on the Hugging Face hub [default: the model that the trace
    /// names].
    #[arg(long)]
    model: Option<String>,
    /// Where weights come from: `safetensors` reads the checkpoint, `dummy` makes them up and reads
    /// only the configs [default: what the trace says].
    #[arg(long)]
    load_format: Option<LoadFormat>,
    /// Number of tensor-parallel ranks to compute with [default: the trace's].
    #[arg(long)]
    ranks: Option<usize>,
    /// Write the trace with the outputs of this run to this file.
    #[arg(long)]
    record: Option<PathBuf>,
    #[command(flatten)]
    knobs: KnobArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LoadFormat {
    Safetensors,
    Dummy,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut trace = read(&args.trace)?;
    let header = &trace.header;
    let format = match (args.load_format, header.load_format.as_deref()) {
        (Some(format), _) => format,
        (None, None) => LoadFormat::Safetensors,
        (None, Some("dummy")) => LoadFormat::Dummy,
        (None, Some(other)) => bail!("load_format {other:?} is neither safetensors nor dummy"),
    };
    let folder = folder(args.model.as_deref().unwrap_or(&header.model))?;
    let mut options = options(header);
    options.rank_count = args.ranks.unwrap_or(options.rank_count);
    let mut engine = start(&folder, format, &options, &args.knobs.knobs()?)?;
    if let Some(caps) =
        header.caps.as_ref().filter(|_| args.model.is_none() && args.ranks.is_none())
        && caps != engine.caps()
    {
        bail!(
            "the trace was recorded by another kind of engine: {caps:?}, not {:?}",
            engine.caps()
        );
    }
    if args.record.is_some() {
        // They are removed so that the outputs of this run replace them.
        trace.steps.iter_mut().for_each(|step| step.output = None);
    }
    let (outputs, time) = timed(|| trace::replay(&mut engine, &trace));
    let outputs = outputs?;
    for (index, (step, output)) in trace.steps.iter().zip(&outputs).enumerate() {
        say!("step {index}: {}", summary(&step.plan, output));
    }
    let token_count: usize =
        outputs.iter().flat_map(|out| &out.rows).map(|row| row.tokens.len()).sum();
    let compared = trace.steps.iter().filter(|step| step.output.is_some()).count();
    let (steps, rate) = (outputs.len(), token_count as f64 / time.as_secs_f64());
    say!("{steps} steps, {token_count} tokens, {rate:.1} tokens a second");
    match compared {
        0 => say!("no outputs to compare with: nothing was checked"),
        _ => say!("{compared} outputs compared, all equal"),
    }
    if let Some(path) = &args.record {
        for (step, output) in trace.steps.iter_mut().zip(outputs) {
            step.output = Some(output);
        }
        let file = File::create(path).with_context(|| path.display().to_string())?;
        trace::write(&trace, file).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Trace> {
    let named = || path.display().to_string();
    let file = File::open(path).with_context(named)?;
    trace::read(BufReader::new(file)).with_context(named)
}

/// Options for an engine like the recorded one.
fn options(header: &Header) -> CpuOptions {
    let options = CpuOptions { rank_count: header.ranks as usize, ..CpuOptions::default() };
    let Some(caps) = &header.caps else { return options };
    let group = caps.groups.first();
    CpuOptions {
        slot_count: caps.slot_count,
        token_max: caps.token_max,
        position_max: caps.position_max,
        page_tokens: group.map_or(options.page_tokens, |group| group.page_tokens),
        page_count: group.map_or(options.page_count, |group| group.page_count),
        ..options
    }
}

fn start(
    folder: &Path,
    format: LoadFormat,
    options: &CpuOptions,
    knobs: &Knobs,
) -> Result<CpuEngine> {
    let bar = WorkProgress::new("loading");
    let start =
        |spec: &ModelSpec, source: &dyn WeightSource| CpuEngine::start(spec, source, options, &bar);
    Ok(match format {
        LoadFormat::Safetensors => {
            let checkpoint = Checkpoint::open(folder, knobs)?;
            start(checkpoint.spec(), &checkpoint)?
        }
        LoadFormat::Dummy => start(&read_spec(folder, knobs)?, &Dummy::new(DUMMY_SEED))?,
    })
}

#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let value = run();
    (value, start.elapsed())
}

/// The number of tokens that each row of a step read and produced.
fn summary(plan: &StepPlan, output: &StepOutput) -> String {
    let rows = plan.rows.iter().zip(&output.rows).map(|(row, out)| {
        let (count, drafts) = (row.tokens.count(), row.tokens.draft_count());
        let outcome = match &out.fault {
            Some(fault) => fault.to_string(),
            None => format!("{:?}", out.tokens),
        };
        format!(
            "slot {}, {count} tokens from {} ({drafts} drafts) -> {outcome}",
            row.slot, row.start
        )
    });
    rows.collect::<Vec<_>>().join("; ")
}
