//! `kilotok kernels build`: compiles a model's GPU kernels into the cache, so that the model's
//! first start need not wait for them, or have NVRTC. This command needs NVRTC, but no GPU.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kilotok_cuda::{CudaOptions, Found, Sizes};
use kilotok_weights::read_spec;

use crate::environment::{self, folder};
use crate::knobs::KnobArgs;
use crate::output::say;

/// The multiprocessors of an H100 or H200, assumed if there is no GPU.
const MULTIPROCESSORS: u32 = 132;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Compile the kernels of a model, unless they are in the cache. They are compiled for this
    /// machine's GPUs, or for H100 and H200 if it has none. Starts with the same build of NVRTC, or
    /// with none, use them.
    Build(Build),
}

#[derive(clap::Args)]
struct Build {
    /// A model's folder, or its name on the Hugging Face hub.
    model: String,
    /// Number of tensor-parallel ranks that will share the model: 1, 2, 4 or 8.
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// Tokens per page of the KV cache, the same as for `serve`.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    page_tokens: u32,
    /// Folder in which to keep the kernels, instead of the cache.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    knobs: KnobArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Action::Build(args) = &args.action;
    build(args)
}

fn build(args: &Build) -> Result<()> {
    let folder = folder(&args.model)?;
    let spec =
        read_spec(&folder, &args.knobs.knobs()?).with_context(|| folder.display().to_string())?;
    let mut toolchain = environment::toolchain();
    toolchain.cache = args.cache.clone().or(toolchain.cache);
    // One GPU suffices to determine their kind.
    let found = Found::look(1, &toolchain);
    if let Err(reason) = &found {
        say!("for GPUs of {MULTIPROCESSORS} multiprocessors, as there are none to ask: {reason}");
    }
    let multiprocessors = found.map_or(MULTIPROCESSORS, |found| found.multiprocessors());
    let sizes = Sizes { rank_count: args.ranks, page_tokens: args.page_tokens, ..Sizes::default() };
    let options = CudaOptions { sizes, toolchain, ..CudaOptions::default() };
    let bytes = options.build(&spec, multiprocessors, &|line| say!("{line}"))?;
    say!("{bytes} bytes of code for {multiprocessors} multiprocessors");
    Ok(())
}
