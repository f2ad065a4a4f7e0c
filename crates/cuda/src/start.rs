//! Starts an engine for a model: plans the memory, compiles the kernels, allocates the memory and
//! loads the weights.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kilotok_abi::{Peers, RANKS_MAX};
use kilotok_batch::{Grouping, InFlight, SizeError, Sizes, Slots};
use kilotok_engine::{Caps, EngineError};
use kilotok_model::{ModelSpec, Ranks, RanksError, check_ranks, declare};
use kilotok_weights::{LoadError, Piece, Progress, Tensor, WeightSource, load};

use crate::batch::DraftShape;
use crate::compile::Toolchain;
use crate::constants::{Constants, Launch};
use crate::driver::doorbell::Doorbell;
use crate::driver::{Device, Driver, DriverError, Gpu, Pinned};
use crate::engine::{CudaEngine, HostMemory, STEP_MAX, TOKENS_MAX, WIDE_STEP_MAX};
use crate::layout::{Extent, Layout};
use crate::memory_map::{DoesNotFit, MemoryMap, RESERVE_BYTES};
use crate::nvrtc::{CompileError, Version};
use crate::rank::Rank;
use crate::repack::Repacker;
use crate::sources::Program;
use crate::upload::lists_bytes;
use crate::wide;
use crate::wide_attention;

/// Keys and values are BF16.
pub const VALUE_BYTES: usize = 2;

/// The wide pass's buffers take at most one part in this many of the memory that weights and the
/// narrow pass leave, because longer steps gain less than more pages.
const WIDE_SHARE: u64 = 4;

/// The capacity of an engine, and where its kernels come from.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    pub sizes: Sizes,
    pub toolchain: Toolchain,
    /// Whether kernels record stamps, which takes them a little time.
    pub stamps: bool,
    /// Steps of more tokens take the wide pass; [`TOKENS_MAX`] if not set. For tests, which have
    /// few tokens.
    pub wide_above: Option<u32>,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("{wanted} ranks need as many GPUs, and there are {found} (--ranks)")]
    TooFewGpus { wanted: usize, found: usize },
    #[error(
        "GPU {index} has {found} multiprocessors and GPU 0 has {wanted}: ranks need GPUs of one \
         kind (CUDA_VISIBLE_DEVICES)"
    )]
    UnlikeGpus { index: usize, found: u32, wanted: u32 },
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Ranks(#[from] RanksError),
    #[error("{0}")]
    Model(String),
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The most tokens of a step, whatever the memory: more than [`TOKENS_MAX`] if the wide pass runs
/// the model.
pub fn step_max(spec: &ModelSpec) -> u32 {
    if wide_attention::unfit(spec).is_none() { wide::CAPACITY_MAX } else { TOKENS_MAX }
}

impl CudaOptions {
    /// The limits of an engine with these options.
    pub fn caps(&self, spec: &ModelSpec) -> Caps {
        let sizes = self.sizes(spec);
        let caps = sizes.caps(spec, &sizes.groups(spec, VALUE_BYTES));
        let wide_above = self.wide_above(spec, &sizes);
        let (rows_max, wanted_max) = wide::rows_and_wanted_max(wide_above.is_some());
        Caps {
            row_max: caps.row_max.min(caps.token_max).min(rows_max as u32),
            wanted_max: caps.wanted_max.min(wanted_max as u32),
            wide_from: wide_above.map(|above| above + 1),
            ..caps
        }
    }

    /// The sizes that were asked for, with steps that the model's passes can take.
    fn sizes(&self, spec: &ModelSpec) -> Sizes {
        Sizes { token_max: self.sizes.token_max.min(step_max(spec)), ..self.sizes }
    }

    /// Tokens above which steps take the wide pass, if it runs the model and steps may be so long.
    fn wide_above(&self, spec: &ModelSpec, sizes: &Sizes) -> Option<u32> {
        let above = self.wide_above.unwrap_or(TOKENS_MAX).min(TOKENS_MAX);
        (wide_attention::unfit(spec).is_none() && sizes.token_max > above).then_some(above)
    }

    /// These options with steps of up to `token_max` tokens, or the longest for which this much
    /// free memory of a GPU has room. Of the memory that the rest leaves, the wide pass's buffers
    /// take a part and pages the other.
    ///
    /// # Errors
    /// A model or sizes that the kernels do not support.
    pub fn with_longest_steps(
        &self,
        spec: &ModelSpec,
        multiprocessors: u32,
        free_bytes: u64,
        token_max: u32,
    ) -> Result<Self, StartError> {
        let of = |token_max| {
            let sizes = Sizes { token_max, ..self.sizes.clone() };
            Self { sizes, ..self.clone() }
        };
        let bytes = |token_max| -> Result<u64, StartError> {
            Ok(of(token_max).memory_map(spec, multiprocessors)?.bytes())
        };
        let narrow = bytes(TOKENS_MAX)?;
        let room = free_bytes.saturating_sub(narrow.saturating_add(RESERVE_BYTES)) / WIDE_SHARE;
        let mut token_max = of(token_max).sizes(spec).token_max;
        while token_max > TOKENS_MAX && bytes(token_max)? - narrow > room {
            token_max /= 2;
        }
        Ok(of(token_max))
    }

    /// The memory map of each GPU with this many SMs, before any memory is allocated.
    ///
    /// # Errors
    /// A model or sizes that the kernels do not support.
    pub fn memory_map(
        &self,
        spec: &ModelSpec,
        multiprocessors: u32,
    ) -> Result<MemoryMap, StartError> {
        let plan = Plan::new(spec, self, multiprocessors)?;
        Ok(plan.layout(spec, 0).map)
    }

    /// Checks that the model's kernels can be had, by a compiler or from the toolchain's folder.
    ///
    /// # Errors
    /// A model that the kernels do not support, or neither a compiler nor kernels in the folder.
    pub fn check_kernels(&self, spec: &ModelSpec, found: &Found) -> Result<(), StartError> {
        let plan = Plan::new(spec, self, found.multiprocessors())?;
        Ok(self.toolchain.check(&plan.program(), Some(found.driver.version))?)
    }

    /// Compiles the kernels of a model into the toolchain's folder, also without a GPU. Returns the
    /// bytes of their code.
    ///
    /// # Errors
    /// A model that the kernels do not support, no compiler, or a folder that cannot be written.
    pub fn build(
        &self,
        spec: &ModelSpec,
        multiprocessors: u32,
        tell: &dyn Fn(&str),
    ) -> Result<usize, StartError> {
        let plan = Plan::new(spec, self, multiprocessors)?;
        let driver = Driver::open().ok().map(|driver| driver.version);
        let code = self.toolchain.code(&plan.program(), driver, tell)?;
        match code.unkept {
            Some(error) => Err(error.into()),
            None => Ok(code.cubin.len()),
        }
    }
}

/// A model with everything that follows from it and the options.
struct Plan {
    sizes: Sizes,
    constants: Constants,
    grouping: Grouping,
    extent: Extent,
    wide_above: Option<u32>,
}

impl Plan {
    fn new(
        spec: &ModelSpec,
        options: &CudaOptions,
        multiprocessors: u32,
    ) -> Result<Self, StartError> {
        options.sizes.check()?;
        let sizes = options.sizes(spec);
        check_ranks(spec, sizes.rank_count)?;
        let launch = Launch {
            ranks: sizes.rank_count,
            grid: multiprocessors as usize,
            tokens_max: TOKENS_MAX as usize,
            page_tokens: sizes.page_tokens as usize,
        };
        let unfit = |error: crate::constants::UnfitError| StartError::Model(error.to_string());
        let constants = Constants::new(spec, launch).map_err(unfit)?;
        let grouping = sizes.groups(spec, VALUE_BYTES);
        let wide_above = options.wide_above(spec, &sizes);
        let wide_capacity = wide_above.map_or(0, |_| wide::capacity(sizes.token_max));
        let extent = Extent { stamps: options.stamps, wide_capacity };
        Ok(Self { sizes, constants, grouping, extent, wide_above })
    }

    fn layout(&self, spec: &ModelSpec, base: u64) -> Layout {
        Layout::new(spec, &self.constants, &self.sizes, &self.grouping, self.extent, base)
    }

    fn program(&self) -> Program {
        Program::new(&self.constants.header(), self.extent.stamps)
    }
}

/// The machine that an engine would run on.
#[derive(Clone, Debug)]
pub struct Found {
    pub driver: Driver,
    /// One for each rank.
    pub gpus: Vec<Gpu>,
    /// The free memory of the GPU with least.
    pub free_bytes: u64,
    /// The NVRTC that would compile kernels. Without one, an engine starts with those that the
    /// toolchain's folder has for its model.
    pub compiler: Result<(PathBuf, Version), CompileError>,
    /// Kept open, because opening takes long: an engine that starts meanwhile shares them.
    _devices: Vec<Arc<Device>>,
}

impl Found {
    /// Looks for everything that ranks need besides a model: a driver, the first GPUs, a compiler,
    /// which may be missing.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn look(rank_count: usize, toolchain: &Toolchain) -> Result<Self, StartError> {
        let driver = Driver::open()?;
        let gpus = choose_gpus(driver, rank_count)?;
        let compiler = toolchain.compiler(Some(driver.version));
        let devices = Device::open_all(&gpus)?;
        let free = |device: &Arc<Device>| Ok(device.memory_bytes()?.0);
        let free: Vec<u64> = devices.iter().map(free).collect::<Result<_, DriverError>>()?;
        let free_bytes = free.into_iter().min().unwrap_or_default();
        Ok(Self { driver, gpus, free_bytes, compiler, _devices: devices })
    }

    /// The SMs of each GPU: they are alike.
    pub fn multiprocessors(&self) -> u32 {
        multiprocessors(&self.gpus)
    }
}

/// The first GPUs, all of which must be supported.
fn choose_gpus(driver: Driver, rank_count: usize) -> Result<Vec<Gpu>, StartError> {
    let gpus = driver.gpus()?;
    if gpus.len() < rank_count {
        return Err(StartError::TooFewGpus { wanted: rank_count, found: gpus.len() });
    }
    let chosen = &gpus[..rank_count];
    chosen.iter().try_for_each(Gpu::check)?;
    check_alike(chosen)?;
    Ok(chosen.to_vec())
}

/// Kernels are compiled for a number of SMs, and need all of them.
fn check_alike(gpus: &[Gpu]) -> Result<(), StartError> {
    let wanted = gpus.first().map_or(0, |gpu| gpu.multiprocessors);
    let Some(other) = gpus.iter().find(|gpu| gpu.multiprocessors != wanted) else { return Ok(()) };
    Err(StartError::UnlikeGpus { index: other.index, found: other.multiprocessors, wanted })
}

/// The SMs of each of these GPUs, which are alike.
fn multiprocessors(gpus: &[Gpu]) -> u32 {
    gpus.first().map_or(1, |gpu| gpu.multiprocessors)
}

/// Enables peer access between all GPUs.
fn connect(devices: &[Arc<Device>]) -> Result<(), DriverError> {
    for (index, device) in devices.iter().enumerate() {
        let others = devices.iter().enumerate().filter(|(other, _)| *other != index);
        others.map(|(_, peer)| peer).try_for_each(|peer| device.enable_peer(peer))?;
    }
    Ok(())
}

/// A message that says why no step takes the wide pass, if the model does not allow it.
fn narrow_only(spec: &ModelSpec) -> String {
    let line = |reason| format!("steps have up to {TOKENS_MAX} tokens: the wide pass {reason}\n");
    wide_attention::unfit(spec).map_or_else(String::new, line)
}

/// A time limit at the slowest of these GPUs' clocks.
fn at_clocks(gpus: &[Gpu], limit: Duration) -> Duration {
    gpus.iter().map(|gpu| gpu.at_its_clock(limit)).max().unwrap_or(limit)
}

impl CudaEngine {
    /// Compiles the kernels if they are new, allocates the memory and reads the weights. Calls
    /// `tell` with messages for the user.
    ///
    /// # Errors
    /// No suitable GPUs, a model that does not fit them, or a weight that cannot be read.
    pub fn start(
        spec: &ModelSpec,
        source: &dyn WeightSource,
        options: &CudaOptions,
        progress: &dyn Progress,
        tell: &dyn Fn(&str),
    ) -> Result<Self, StartError> {
        let driver = Driver::open()?;
        let gpus = choose_gpus(driver, options.sizes.rank_count)?;
        let plan = Plan::new(spec, options, multiprocessors(&gpus))?;
        let map = plan.layout(spec, 0).map;
        tell(&format!("{}memory of each GPU\n{map}", narrow_only(spec)));
        let devices = Device::open_all(&gpus)?;
        connect(&devices)?;
        for device in &devices {
            let (free, total) = device.memory_bytes()?;
            map.check(free, total)?;
        }
        let constants = &plan.constants;
        let code = options.toolchain.code(&plan.program(), Some(driver.version), tell)?;
        if let Some(error) = &code.unkept {
            tell(&format!("the next start compiles again: {error}"));
        }
        let (caps, doorbell) = (options.caps(spec), Doorbell::new(&devices)?);
        for device in &devices {
            // Finds out whether streams can wait for the doorbell, before anything is loaded.
            doorbell.await_on(device, 0)?;
        }
        let host = HostMemory::new(constants, &caps, &plan.layout(spec, 0), &devices)?;
        let bytes = host.bytes() + gpus.len() * host.result_places.bytes;
        tell(&format!("memory of the host for GPUs: {bytes} bytes"));
        let rank = |(index, device)| {
            Rank::new(index, device, constants, &code.cubin, &doorbell, |base| {
                let mut layout = plan.layout(spec, base);
                layout.sampling.masks = host.lists.address();
                layout
            })
        };
        let ranks: Vec<Rank> = devices.iter().enumerate().map(rank).collect::<Result<_, _>>()?;
        let mut peers = Peers { receivers: [0; RANKS_MAX] };
        for (receiver, rank) in peers.receivers.iter_mut().zip(&ranks) {
            *receiver = rank.receiver();
        }
        ranks.iter().try_for_each(|rank| rank.connect(&peers))?;
        load_weights(spec, source, constants, &ranks, progress)?;
        let step_limits = [STEP_MAX, WIDE_STEP_MAX].map(|limit| at_clocks(&gpus, limit));
        let mut engine = Self {
            caps,
            ranks,
            slots: Slots::new(plan.sizes.slot_count as usize, spec.vocab_size),
            host,
            draft_shape: DraftShape::new(spec),
            collectives: 0,
            collectives_max: collectives_max(constants),
            doorbell,
            step_max: step_limits[0],
            step_limits,
            wide_above: plan.wide_above.map(|above| above as usize),
            number: 0,
            ahead: None,
            in_flight: InFlight::default(),
            times: None,
            broken: None,
        };
        engine.warm_up()?;
        Ok(engine)
    }
}

impl HostMemory {
    /// Allocates the host's memory by the layout at address 0, in which addresses are offsets.
    fn new(
        constants: &Constants,
        caps: &Caps,
        layout: &Layout,
        devices: &[Arc<Device>],
    ) -> Result<Self, DriverError> {
        let take = |bytes| Pinned::new(devices, bytes);
        let Layout { upload, results, sampling, stamp_bytes, .. } = layout;
        Ok(Self {
            mailboxes: [take(upload.bytes)?, take(upload.bytes)?],
            upload_places: upload.clone(),
            lists: take(lists_bytes(constants, caps))?,
            result_places: *results,
            tables: *sampling,
            stamps: (*stamp_bytes > 0).then(|| take(*stamp_bytes)).transpose()?,
        })
    }

    fn bytes(&self) -> usize {
        let [even, odd] = &self.mailboxes;
        let all = [even, odd, &self.lists].into_iter().chain(&self.stamps);
        all.map(Pinned::bytes).sum()
    }
}

/// The most collectives of a launch: one after the embedding or the fusion of taps, two in each
/// layer. This number is odd, and so is the number that every launch really runs. So the last
/// collective of a launch and the first of the next use different locations, which
/// `kernels/include/kilotok/comm/all_reduce.cuh` requires of any two in a row. Between steps, some
/// of which leave out launches, the host waits for all ranks.
fn collectives_max(constants: &Constants) -> u32 {
    1 + 2 * constants.layers.len().max(constants.draft_layers.len()) as u32
}

/// Reads every rank's part of every weight and writes it to the kernels' buffers.
fn load_weights(
    spec: &ModelSpec,
    source: &dyn WeightSource,
    constants: &Constants,
    ranks: &[Rank],
    progress: &dyn Progress,
) -> Result<(), StartError> {
    let decls = declare(spec);
    let of_rank = |rank| Ranks { rank, count: ranks.len() };
    let pieces = decls.iter().flat_map(|decl| {
        (0..ranks.len()).map(move |rank| Piece { decl: decl.clone(), ranks: of_rank(rank) })
    });
    let pieces: Vec<_> = pieces.collect();
    let places: Vec<_> = ranks.iter().map(Rank::memory).collect();
    let repackers: Vec<_> = ranks.iter().map(|_| Repacker::new(constants)).collect();
    let watched = Watched { progress, failed: Mutex::new(None) };
    let put = |piece: &Piece, tensor: Tensor| -> Result<(), StartError> {
        let rank = piece.ranks.rank;
        let (memory, layout) = places[rank];
        let repacked = repackers[rank].repack(&piece.decl, tensor);
        let repacked = repacked.map_err(|error| StartError::Model(error.to_string()))?;
        let Some(repacked) = repacked else { return Ok(()) };
        let buffer = layout.weights[&repacked.buffer] - memory.address();
        Ok(memory.write(buffer as usize + repacked.offset, &repacked.bytes)?)
    };
    let loaded = load(source, &pieces, &watched, |piece, tensor| {
        if let Err(error) = put(piece, tensor) {
            watched.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    });
    match watched.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(loaded?),
    }
}

/// Also cancels when a weight could not be written.
struct Watched<'a> {
    progress: &'a dyn Progress,
    failed: Mutex<Option<StartError>>,
}

impl Progress for Watched<'_> {
    fn begin(&self, total_bytes: u64) {
        self.progress.begin(total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }

    fn cancelled(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some() || self.progress.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use kilotok_testkit::Toy;

    use super::*;
    use crate::compile::key;

    /// A part of a GPU has fewer multiprocessors: its kernels are not those of the whole one, nor
    /// are those of another number of ranks.
    #[test]
    fn kernels_of_a_part_of_a_gpu_have_a_key_of_their_own() {
        let spec = Toy::pro_fp4().spec();
        let of = |rank_count, multiprocessors| {
            let sizes = Sizes { rank_count, ..Sizes::default() };
            let options = CudaOptions { sizes, ..CudaOptions::default() };
            key(&Plan::new(&spec, &options, multiprocessors).unwrap().program())
        };
        let whole = of(8, 132);
        assert_eq!(whole, of(8, 132));
        assert_ne!(whole, of(8, 16));
        assert_ne!(whole, of(1, 132));
    }

    fn gpu(index: usize, multiprocessors: u32) -> Gpu {
        Gpu {
            index,
            name: "GPU".to_owned(),
            capability: (9, 0),
            multiprocessors,
            clock_khz: 0,
            mps: false,
            memory_bytes: 0,
        }
    }

    #[test]
    fn a_gpu_that_other_programs_share_is_refused() {
        assert_eq!(gpu(3, 132).check(), Ok(()));
        let shared = Gpu { mps: true, ..gpu(3, 132) };
        let refused = shared.check().unwrap_err();
        assert_eq!(refused, DriverError::Mps { index: 3 });
        let said = refused.to_string();
        assert!(said.starts_with("GPU 3 is shared by MPS") && said.contains("echo quit"), "{said}");
        // Where both are wrong, to stop MPS would not help.
        let old = Gpu { capability: (8, 0), ..shared };
        assert!(matches!(old.check(), Err(DriverError::Capability { index: 3, .. })));
    }

    #[test]
    fn gpus_of_different_kinds_are_refused() {
        assert!(check_alike(&[]).is_ok() && check_alike(&[gpu(0, 132), gpu(1, 132)]).is_ok());
        let refused = check_alike(&[gpu(0, 132), gpu(1, 114)]).unwrap_err().to_string();
        assert!(
            refused.starts_with("GPU 1 has 114 multiprocessors and GPU 0 has 132"),
            "{refused}"
        );
    }
}
