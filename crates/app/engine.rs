//! Builds an engine from a resolved config: finds the checkpoint, chooses the device, plans the
//! memory, loads the weights. This module knows no server.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kilotok_cpu::CpuEngine;
use kilotok_cuda::{CudaEngine, CudaOptions};
use kilotok_engine::{Caps, Engine};
use kilotok_model::{ModelSpec, WeightDecl, declare};
use kilotok_weights::{Checkpoint, Dummy, WeightSource, read_spec};

use crate::check::stored_bytes;
use crate::config::{Config, LoadFormat};
use crate::device::Device;
use crate::environment::{self, folder};
use crate::output::progress_line;
use crate::plan::EnginePlan;
use crate::progress::WorkProgress;

/// The seed of dummy weights, which are the same on every machine.
const DUMMY_SEED: u64 = 0;

/// A checkpoint that was opened, and the plan of its memory.
pub(crate) struct Planned {
    pub(crate) folder: PathBuf,
    pub(crate) spec: ModelSpec,
    pub(crate) plan: EnginePlan,
    pub(crate) chosen: Device,
    /// Whether kernels are compiled with stamps, to measure each phase.
    pub(crate) stamps: bool,
    source: Source,
}

enum Source {
    Checkpoint(Box<Checkpoint>),
    Dummy,
}

pub(crate) struct Loaded {
    pub(crate) folder: PathBuf,
    pub(crate) spec: ModelSpec,
    pub(crate) engine: Box<dyn Engine>,
    /// The device in a few words.
    pub(crate) device: String,
}

/// Plans an engine; downloads the model if it is missing.
pub(crate) fn plan(config: &Config) -> Result<Planned> {
    let folder = folder(&config.model)?;
    let named = || folder.display().to_string();
    let (spec, source, bytes) = match config.load_format {
        LoadFormat::Dummy => {
            let spec = read_spec(&folder, &config.knobs).with_context(named)?;
            let bytes = declare(&spec).iter().map(declared_bytes).sum();
            (spec, Source::Dummy, bytes)
        }
        LoadFormat::Auto => {
            let checkpoint = Checkpoint::open(&folder, &config.knobs).with_context(named)?;
            let spec = checkpoint.spec().clone();
            let bytes = declare(&spec).iter().map(|decl| stored_bytes(&checkpoint, decl)).sum();
            let bytes: Result<usize, _> = bytes;
            (spec, Source::Checkpoint(Box::new(checkpoint)), bytes? as u64)
        }
    };
    let chosen = Device::new(&config.engine, &spec)?;
    let settings = chosen.with_slots(&config.engine, &spec)?;
    let room = chosen.room(&settings, config.limits.chunk_max, &spec, bytes)?;
    let plan = EnginePlan::new(&settings, &config.limits, &spec, room)?;
    Ok(Planned { folder, spec, plan, chosen, stamps: false, source })
}

/// Bytes of a weight as published, in the first of the accepted types. If it shares a tensor with
/// other weights, only its part counts.
pub(crate) fn declared_bytes(decl: &WeightDecl) -> u64 {
    let bytes = decl.stored().into_iter().map(|tensor| {
        let values: usize = tensor.shape.iter().product();
        tensor.dtypes[0].bytes() as u64 * values as u64
    });
    bytes.sum::<u64>() / decl.stack_size() as u64
}

impl Planned {
    /// Limits of the engine.
    pub(crate) fn caps(&self) -> Caps {
        let (spec, sizes) = (&self.spec, &self.plan.sizes);
        match self.chosen {
            Device::Cpu { .. } => sizes.caps(spec, &sizes.groups(spec, kilotok_cpu::VALUE_BYTES)),
            Device::Gpus(_) => self.options().caps(spec),
        }
    }

    fn options(&self) -> CudaOptions {
        let toolchain = environment::toolchain();
        let (sizes, stamps) = (self.plan.sizes.clone(), self.stamps);
        CudaOptions { sizes, toolchain, stamps, ..CudaOptions::default() }
    }

    pub(crate) fn load(self) -> Result<Loaded> {
        let options = self.options();
        let Self { folder, spec, plan, chosen, source, .. } = self;
        let source: &dyn WeightSource = match &source {
            Source::Checkpoint(checkpoint) => checkpoint.as_ref(),
            Source::Dummy => &Dummy::new(DUMMY_SEED),
        };
        let device = chosen.device();
        let bar = WorkProgress::new("loading weights");
        let engine: Box<dyn Engine> = match chosen {
            Device::Cpu { .. } => Box::new(CpuEngine::start(&spec, source, &plan.sizes, &bar)?),
            Device::Gpus(_) => {
                Box::new(CudaEngine::start(&spec, source, &options, &bar, &progress_line)?)
            }
        };
        Ok(Loaded { folder, spec, engine, device })
    }
}

pub(crate) fn load(config: &Config) -> Result<Loaded> {
    plan(config)?.load()
}
