//! `kilotok replay`

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kilotok_cpu::{CpuEngine, CpuOptions};
use kilotok_engine::{StepOutput, StepPlan};
use kilotok_model::Knobs;
use kilotok_testkit::replay::{self, Trace};
use kilotok_weights::{Checkpoint, Dummy, WeightSource, read_spec};

use crate::environment::folder;
use crate::progress::Bar;

/// Dummy weights are the same everywhere: traces of them can be compared.
const DUMMY_SEED: u64 = 0;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A trace: lines of JSON, a header and then one step each.
    trace: PathBuf,
    /// The model's folder or name on the hub, instead of the one that the trace names.
    #[arg(long)]
    model: Option<String>,
    /// Where weights come from, instead of what the trace says. `dummy` makes them up and reads
    /// the configs alone.
    #[arg(long)]
    load_format: Option<LoadFormat>,
    /// Tensor-parallel ranks to compute as, instead of the trace's.
    #[arg(long)]
    ranks: Option<usize>,
    /// Write the trace again here, with the outputs of this run.
    #[arg(long)]
    record: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LoadFormat {
    Safetensors,
    Dummy,
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut trace = read(&args.trace)?;
    let header = &trace.header;
    let model = args.model.as_deref().unwrap_or(&header.model);
    let folder = folder(model).or_else(|error| beside(&args.trace, model).ok_or(error))?;
    let format = match (args.load_format, header.load_format.as_deref()) {
        (Some(format), _) => format,
        (None, None) => LoadFormat::Safetensors,
        (None, Some("dummy")) => LoadFormat::Dummy,
        (None, Some(other)) => bail!("load_format {other:?} is neither safetensors nor dummy"),
    };
    let rank_count = args.ranks.unwrap_or(header.ranks as usize);
    let mut engine = start(&folder, format, rank_count)?;
    if args.record.is_some() {
        // What is recorded replaces what was expected.
        trace.steps.iter_mut().for_each(|step| step.output = None);
    }
    let (outputs, time) = timed(|| replay::replay(&mut engine, &trace));
    let outputs = outputs?;
    for (index, (step, output)) in trace.steps.iter().zip(&outputs).enumerate() {
        println!("step {index}: {}", summary(&step.plan, output));
    }
    let token_count: usize =
        outputs.iter().flat_map(|out| &out.rows).map(|row| row.tokens.len()).sum();
    let compared = trace.steps.iter().filter(|step| step.output.is_some()).count();
    let (steps, rate) = (outputs.len(), token_count as f64 / time.as_secs_f64());
    println!("{steps} steps, {token_count} tokens, {rate:.1} tokens a second");
    println!("{compared} outputs compared, all equal");
    if let Some(path) = &args.record {
        for (step, output) in trace.steps.iter_mut().zip(outputs) {
            step.output = Some(output);
        }
        let file = File::create(path).with_context(|| path.display().to_string())?;
        replay::write(&trace, file).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Trace> {
    let named = || path.display().to_string();
    let file = File::open(path).with_context(named)?;
    replay::read(BufReader::new(file)).with_context(named)
}

/// A trace may name a folder relative to its own.
fn beside(trace: &Path, model: &str) -> Option<PathBuf> {
    let folder = trace.parent()?.join(model);
    folder.is_dir().then_some(folder)
}

fn start(folder: &Path, format: LoadFormat, rank_count: usize) -> Result<CpuEngine> {
    let knobs = Knobs::default();
    let options = CpuOptions { rank_count, ..CpuOptions::default() };
    let bar = Bar::new("loading");
    let begin = |spec, source: &dyn WeightSource| CpuEngine::start(spec, source, &options, &bar);
    Ok(match format {
        LoadFormat::Safetensors => {
            let checkpoint = Checkpoint::open(folder, &knobs)?;
            begin(checkpoint.spec(), &checkpoint)?
        }
        LoadFormat::Dummy => begin(&read_spec(folder, &knobs)?, &Dummy::new(DUMMY_SEED))?,
    })
}

#[expect(clippy::disallowed_methods, reason = "the app owns the clock")]
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let value = run();
    (value, start.elapsed())
}

/// What each row of a step took in and gave.
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
