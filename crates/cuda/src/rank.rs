//! One rank: a GPU with its memory and kernels, and the chain of launches that runs a step.

use std::sync::Arc;
use std::time::Duration;

use bytemuck::Zeroable;
use kilotok_abi::{
    Fault, Memory, PLAN_CTA_BYTES, PLAN_THREAD_BYTES, Peers, PlanMemory, ReadMemory, STAMPS_MAX,
    Stamped, Timestamps, WideMemory,
};
use kilotok_engine::{EngineError, PhaseTime, StepTimes};

use crate::chain::{Narrow, Shape, Target, Tiles};
use crate::constants::Constants;
use crate::driver::doorbell::Doorbell;
use crate::driver::{Device, DeviceMemory, DriverError, Kernel, Module, Pinned, Start, now};
use crate::fault::RankFailure;
use crate::layout::{Arguments, Layout};
use crate::order;
use crate::stamps::phase_times;
use crate::upload::Copy;
use crate::wide::{WideKernel, WideLaunch, WideLayers, WideStep};

/// How long after its beginning a launch may wait for anything. A whole pass of the largest model
/// takes milliseconds.
pub(crate) const WAIT_MAX_MS: u32 = 1000;
/// Names of constants in the kernels: shared memory and threads of a CTA, the most tokens of the
/// kernels for one tile, and whether there is one for one token.
const SHARED_BYTES: &str = "SHARED_BYTES";
const THREAD_COUNT: &str = "THREAD_COUNT";
const ONE_TILE: &str = "ONE_TILE";
const HAS_ONE_TOKEN: &str = "HAS_ONE_TOKEN";
/// Shared memory of a CTA of the wide pass.
const WIDE_SHARED_BYTES: &str = "WIDE_SHARED_BYTES";
/// Threads of a CTA of the kernel that measures how fast memory is read.
const READ_THREAD_COUNT: &str = "READ_THREAD_COUNT";
/// Bytes that this kernel reads at a time, and how often. They are much more than fits into L2 and
/// take an H200 a millisecond or two, so that starting the kernel and noticing its end take less
/// than a hundredth of the time.
const READ_BYTES_MAX: usize = 8 << 30;
const READ_COUNT: u32 = 8;
/// Threads of a CTA of the kernel that copies the plan.
const PLAN_THREADS: usize = PLAN_CTA_BYTES / PLAN_THREAD_BYTES;

/// The launches of a step; each is a kernel of that name in `kernels/step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The target's layers over all tokens, to logits; over one token by a kernel for it alone.
    Target(Tiles),
    OneToken,
    /// Sampling and verification by the logits of all ranks. After the wide pass, which samples in
    /// launches of its own, verification alone.
    Verify(Target),
    /// The drafter's keys and values from the taps of the target's tokens.
    DraftContext(Tiles),
    /// The drafter's layers over a batch of draft rows, given by its number.
    DraftRows(usize, Tiles),
    /// A phase of a layer of the wide pass.
    Wide(WideLaunch, WideStep),
    /// After the layers of the wide pass: the setup of slots that requests enter.
    Slots(WideStep),
    /// The logits of a slice of the wanted tokens.
    Head,
    /// Sampling from these logits; the number is that of the slice's first wanted token.
    Sample(WideStep, u32),
}

/// Everything that a rank does in a step, from the doorbell on.
pub(crate) struct Chain<'a> {
    pub(crate) number: u32,
    pub(crate) shape: &'a Shape,
    /// Its plan, the lists, and which of the lists are copied.
    pub(crate) mailbox: &'a Pinned,
    pub(crate) lists: &'a Pinned,
    pub(crate) copies: &'a [Copy],
}

pub(crate) struct Rank {
    index: usize,
    device: Arc<Device>,
    memory: DeviceMemory,
    layout: Layout,
    arguments: Arguments,
    fault: Pinned,
    timestamps: Pinned,
    results: Pinned,
    grid: u32,
    thread_count: u32,
    narrow: Narrow,
    kernels: Kernels,
    wide_layers: WideLayers,
    pub(crate) doorbell: Arc<Doorbell>,
    /// Keeps the kernels loaded.
    _module: Module,
}

struct Kernels {
    count_off: Kernel,
    take_plan: Kernel,
    read_memory: (Kernel, u32),
    target: Tiled,
    /// The target over one token.
    one_token: Option<Kernel>,
    verify: Kernel,
    /// Context and rows, of a model with a drafter.
    draft: Option<(Tiled, Tiled)>,
    wide: Option<WideKernels>,
}

/// The kernels of the wide pass in the order of [`WideKernel`], each with the threads of a CTA;
/// then those that choose tokens after it.
struct WideKernels {
    kernels: Vec<(Kernel, u32)>,
    slots: Kernel,
    head: Kernel,
    sample: Kernel,
    verify: Kernel,
}

/// A kernel for one tile of tokens, and one for more.
struct Tiled {
    one: Kernel,
    many: Kernel,
}

impl Tiled {
    fn of(&self, tiles: Tiles) -> &Kernel {
        match tiles {
            Tiles::One => &self.one,
            Tiles::Many => &self.many,
        }
    }
}

impl Rank {
    /// Allocates the memory that `layout_at` plans, and loads the kernels.
    pub(crate) fn new(
        index: usize,
        device: &Arc<Device>,
        constants: &Constants,
        cubin: &[u8],
        doorbell: &Arc<Doorbell>,
        layout_at: impl Fn(u64) -> Layout,
    ) -> Result<Self, DriverError> {
        let memory = DeviceMemory::new(device, layout_at(0).map.bytes() as usize)?;
        let layout = layout_at(memory.address());
        let pinned = |bytes| Pinned::new(std::slice::from_ref(device), bytes);
        let (fault, timestamps) = (pinned(size_of::<Fault>())?, pinned(size_of::<Timestamps>())?);
        let results = pinned(layout.results.bytes)?;
        let target = Memory {
            rank: index as u32,
            fault: fault.address(),
            timestamps: timestamps.address(),
            wait_max_ms: WAIT_MAX_MS,
            ..layout.memory
        };
        let arguments = layout.arguments(&target, results.address());
        let module = Module::load(device, cubin)?;
        let wide = arguments.wide.map(|_| wide_kernels(&module)).transpose()?;
        let kernels = kernels(&module, constants.draft_rows > 0)?;
        let rank = Self {
            index,
            device: device.clone(),
            arguments,
            fault,
            timestamps,
            results,
            grid: constants.launch.grid as u32,
            thread_count: module.constant(THREAD_COUNT)?,
            narrow: Narrow {
                tile_tokens: module.constant(ONE_TILE)? as usize,
                has_one_token: kernels.one_token.is_some(),
            },
            kernels: Kernels { wide, ..kernels },
            wide_layers: WideLayers::new(constants),
            doorbell: doorbell.clone(),
            _module: module,
            memory,
            layout,
        };
        rank.check_numbers()?;
        for (address, bytes) in rank.layout.tables(constants) {
            rank.memory.write((address - rank.memory.address()) as usize, &bytes)?;
        }
        Ok(rank)
    }

    /// Checks that the CTAs of a launch have the numbers from 0 on, each once.
    fn check_numbers(&self) -> Result<(), DriverError> {
        let devices = std::slice::from_ref(&self.device);
        let numbers = Pinned::new(devices, self.grid as usize * size_of::<u32>())?;
        launch(&self.kernels.count_off, (self.grid, self.thread_count), &numbers.address())?;
        self.device.finish()?;
        let mut found = vec![0_u32; self.grid as usize];
        numbers.peek(bytemuck::cast_slice_mut(&mut found));
        if count_up(found) {
            return Ok(());
        }
        Err(DriverError::Numbers { index: self.device.index(), grid: self.grid })
    }

    pub(crate) fn memory(&self) -> (&DeviceMemory, &Layout) {
        (&self.memory, &self.layout)
    }

    /// The receive buffer, to which other ranks write.
    pub(crate) fn receiver(&self) -> u64 {
        self.layout.receiver
    }

    /// Gives this rank the addresses of all receive buffers.
    pub(crate) fn connect(&self, peers: &Peers) -> Result<(), DriverError> {
        let to = self.arguments.target.peers - self.memory.address();
        self.memory.write(to as usize, bytemuck::bytes_of(peers))
    }

    pub(crate) fn narrow(&self) -> Narrow {
        self.narrow
    }

    /// The launches of a chain, the same on all ranks.
    pub(crate) fn passes(&self, shape: &Shape) -> Vec<Pass> {
        let mut passes = Vec::new();
        let mut narrow = |target, tiles| {
            passes.extend([target, Pass::Verify(shape.target)]);
            passes.extend(self.kernels.draft.as_ref().map(|_| Pass::DraftContext(tiles)));
        };
        match shape.target {
            Target::OneToken => narrow(Pass::OneToken, Tiles::One),
            Target::Narrow(tiles) => narrow(Pass::Target(tiles), tiles),
            Target::Wide(step) => {
                let wide = |launch| Pass::Wide(launch, step);
                let layers = &self.wide_layers;
                passes.extend(layers.target_launches(&step).into_iter().map(wide));
                passes.push(Pass::Slots(step));
                for gather in layers.wanted_launches(step.wanted_count) {
                    let first = gather.slice.0;
                    passes.extend([wide(gather), Pass::Head, Pass::Sample(step, first)]);
                }
                self.stamp_sequence(&mut passes, 0);
                passes.push(Pass::Verify(shape.target));
                let mut context: Vec<_> = layers.context_launches().into_iter().map(wide).collect();
                self.stamp_sequence(&mut context, order::CONTEXT);
                passes.append(&mut context);
            }
        }
        let drafts = shape.drafts.iter().enumerate();
        passes.extend(drafts.map(|(batch, tiles)| Pass::DraftRows(batch, *tiles)));
        passes
    }

    /// Has launches of the wide pass make stamps, in the place where `launch` of the narrow pass
    /// has its own.
    fn stamp_sequence(&self, passes: &mut Vec<Pass>, launch: usize) {
        let Some(Pass::Wide(_, step)) = passes.first().copied() else { return };
        if self.layout.stamp_bytes == 0 {
            return;
        }
        let launches = passes.iter_mut().filter_map(|pass| match pass {
            Pass::Wide(launch, _) => Some(launch),
            _ => None,
        });
        let end = WideLaunch::add_stamps(launches, (launch * STAMPS_MAX) as u32);
        passes.extend(end.map(|launch| Pass::Wide(launch, step)));
    }

    /// Enqueues what comes before a chain's launches: the wait for the doorbell and the copy of the
    /// plan.
    pub(crate) fn begin(&self, chain: &Chain<'_>) -> Result<(), RankFailure> {
        let begun = self.doorbell.await_on(&self.device, chain.number);
        self.failing(chain, begun.and_then(|()| self.take_in(chain)))
    }

    pub(crate) fn launch(&self, chain: &Chain<'_>, pass: Pass) -> Result<(), RankFailure> {
        self.failing(chain, self.launch_pass(pass))
    }

    /// Enqueues what comes after them: the report that the chain has ended.
    pub(crate) fn end(&self, chain: &Chain<'_>) -> Result<(), RankFailure> {
        self.failing(chain, self.doorbell.tell_ended(&self.device, self.index, chain.number))
    }

    fn failing(
        &self,
        chain: &Chain<'_>,
        started: Result<(), DriverError>,
    ) -> Result<(), RankFailure> {
        started.map_err(|error| self.failed(&error, chain.number))
    }

    /// Enqueues the kernel that copies the plan, whose counters are zeros, and the copies of lists.
    fn take_in(&self, chain: &Chain<'_>) -> Result<(), DriverError> {
        let bytes = chain.shape.upload_bytes;
        assert!(bytes <= chain.mailbox.bytes(), "what is taken is there");
        let plan = PlanMemory {
            from: chain.mailbox.address(),
            to: self.arguments.target.batch,
            acknowledged: self.doorbell.acknowledge_address(self.index),
            timestamps: self.timestamps.address(),
            bytes: bytes as u32,
            number: chain.number,
        };
        let ctas = (bytes.div_ceil(PLAN_CTA_BYTES) as u32).min(self.grid);
        launch(&self.kernels.take_plan, (ctas, PLAN_THREADS as u32), &plan)?;
        for Copy { to, from } in chain.copies {
            self.memory.send(*to, chain.lists, from.clone())?;
        }
        Ok(())
    }

    /// The offset of an address in this rank's memory.
    fn place(&self, address: u64) -> usize {
        (address - self.memory.address()) as usize
    }

    fn launch_pass(&self, pass: Pass) -> Result<(), DriverError> {
        let Self { arguments, kernels: Kernels { target, one_token, .. }, .. } = self;
        let Kernels { verify, draft, wide, .. } = &self.kernels;
        let all = (self.grid, self.thread_count);
        let has_wide = || wide.as_ref().expect("the wide pass has kernels where it is taken");
        let kernels = draft.as_ref().ok_or(pass);
        let no_drafter = |pass| panic!("{pass:?} of a model without a drafter");
        match pass {
            Pass::Target(tiles) => launch(target.of(tiles), all, &arguments.target),
            Pass::OneToken => {
                let kernel = one_token.as_ref().expect("it is taken where there is one");
                launch(kernel, all, &arguments.target)
            }
            Pass::Verify(Target::OneToken | Target::Narrow(_)) => {
                launch(verify, all, &arguments.verify)
            }
            Pass::Verify(Target::Wide(step)) => {
                launch(&has_wide().verify, all, &step.sampling(&arguments.verify, 0))
            }
            Pass::DraftContext(tiles) => {
                let (context, _) = kernels.unwrap_or_else(no_drafter);
                launch(context.of(tiles), all, &arguments.context)
            }
            Pass::DraftRows(batch, tiles) => {
                let (_, rows) = kernels.unwrap_or_else(no_drafter);
                launch(rows.of(tiles), all, &arguments.drafts[batch])
            }
            Pass::Wide(wide_launch, step) => {
                let (kernel, threads) = &has_wide().kernels[wide_launch.kernel as usize];
                let memory = arguments.wide.as_ref().expect("the wide pass has memory");
                let memory = step.memory(memory, &arguments.target, wide_launch);
                launch_wide(kernel, (self.grid, *threads), &memory)
            }
            Pass::Slots(step) => {
                launch(&has_wide().slots, all, &step.sampling(&arguments.verify, 0))
            }
            Pass::Head => launch(&has_wide().head, all, &arguments.head),
            Pass::Sample(step, first) => {
                let mut sampling = step.sampling(&arguments.verify, first);
                sampling.memory.batch = arguments.head.batch;
                launch(&has_wide().sample, all, &sampling)
            }
        }
    }

    /// Times of the last step, which has ended: up to the choice of tokens, and from there up to
    /// the drafts.
    pub(crate) fn times(&self) -> StepTimes {
        let mut timestamps = Timestamps::zeroed();
        self.timestamps.peek(bytemuck::bytes_of_mut(&mut timestamps));
        let Timestamps { begun, verified, drafted, .. } = timestamps;
        let time = |from, to: u32| Duration::from_nanos(u64::from(to.wrapping_sub(from)));
        let draft =
            if self.kernels.draft.is_some() { time(verified, drafted) } else { Duration::ZERO };
        StepTimes { verify: time(begun, verified), draft }
    }

    /// Reads the first bytes of the last step's results.
    pub(crate) fn results(&self, into: &mut [u8]) {
        self.results.peek(into);
    }

    /// The phase times of the last step, by its stamps, which are copied to `host` and cleared.
    pub(crate) fn phase_times(&self, host: &Pinned) -> Result<Vec<PhaseTime>, EngineError> {
        let error = |reason| EngineError::Device { rank: self.index, reason };
        let stamps = self.take_stamps(host).map_err(|reason| error(reason.to_string()))?;
        let launches = stamps.chunks(STAMPS_MAX).enumerate();
        let parts = launches.map(|(index, stamps)| (order::part(index), stamps));
        phase_times(parts).map_err(|reason| error(reason.to_string()))
    }

    /// Bytes a second at which all multiprocessors read this rank's memory.
    pub(crate) fn read_rate(&self) -> Result<f64, EngineError> {
        let bytes = self.layout.map.bytes().min(READ_BYTES_MAX as u64);
        let read = || {
            let (kernel, threads) = &self.kernels.read_memory;
            let (from, to) = (self.memory.address(), self.results.address());
            let memory = ReadMemory { from, bytes, to };
            let repeat = |count| {
                (0..count).try_for_each(|_| launch(kernel, (self.grid, *threads), &memory))?;
                self.device.finish()
            };
            // The first finish also dismisses the launches that wait for the next step's doorbell.
            repeat(1)?;
            let began = now();
            repeat(READ_COUNT)?;
            Ok(began.elapsed())
        };
        let took: Result<Duration, DriverError> = read();
        let took = took
            .map_err(|error| EngineError::Device { rank: self.index, reason: error.to_string() })?;
        Ok(bytes as f64 * f64::from(READ_COUNT) / took.as_secs_f64())
    }

    fn take_stamps(&self, host: &Pinned) -> Result<Vec<Stamped>, DriverError> {
        let place = self.place(self.layout.memory.trace);
        let range = place..place + self.layout.stamp_bytes;
        self.memory.fetch(range.clone(), host)?;
        self.memory.clear(range)?;
        self.device.finish()?;
        let count = self.layout.stamp_bytes / size_of::<Stamped>();
        let mut stamps = vec![Stamped::zeroed(); count];
        host.peek(bytemuck::cast_slice_mut(&mut stamps));
        Ok(stamps)
    }

    /// Whether the GPU, or one whose memory it can access, has failed.
    pub(crate) fn is_broken(&self) -> bool {
        self.device.is_idle().is_err()
    }

    /// The last chain that it has begun, and the last one that it has ended.
    pub(crate) fn progress(&self) -> (u32, u32) {
        self.doorbell.progress(self.index)
    }

    /// The error for a rank that did not begin.
    pub(crate) fn unresponsive(&self) -> EngineError {
        let reason = "does not respond to its doorbell: the launches of a step did not begin";
        EngineError::Device { rank: self.index, reason: reason.to_owned() }
    }

    /// The failure of a rank that has neither ended the chain of that number nor reported an error.
    pub(crate) fn endless(&self, number: u32, step_max: Duration) -> RankFailure {
        let reason = format!("did not end a step within {step_max:?}");
        RankFailure { runs: true, ..self.failed(&reason, number) }
    }

    /// Stops waiting for the rank, for good.
    pub(crate) fn abandon(&self) {
        self.device.abandon();
    }

    /// The rank's failure, or `None` if it has completed everything up to the chain of that number.
    pub(crate) fn unfinished(&self, number: u32, step_max: Duration) -> Option<RankFailure> {
        match self.device.is_idle() {
            Ok(true) => None,
            Ok(false) => Some(self.endless(number, step_max)),
            Err(error) => Some(self.failed(&error, number)),
        }
    }

    fn failed(&self, reason: &impl ToString, number: u32) -> RankFailure {
        let look = || {
            let mut record = Fault::zeroed();
            self.fault.peek(bytemuck::bytes_of_mut(&mut record));
            record
        };
        // The code is written last: once it is there, a second read has the whole record.
        let record = (look().code != 0).then(look);
        let behind = number.wrapping_sub(self.progress().1);
        RankFailure { rank: self.index, reason: reason.to_string(), runs: false, behind, record }
    }

    /// Waits for everything that was started.
    ///
    /// # Errors
    /// The error of the GPU, or of another one whose memory it can access.
    pub(crate) fn finish(&self) -> Result<(), DriverError> {
        self.device.finish()
    }
}

/// Whether these are the numbers from 0 on, each once.
fn count_up(mut numbers: Vec<u32>) -> bool {
    numbers.sort_unstable();
    numbers.iter().zip(0..).all(|(number, place)| *number == place)
}

/// Launches CTAs that can wait for each other, given their number and their threads.
fn launch<T: bytemuck::Pod>(
    kernel: &Kernel,
    ctas: (u32, u32),
    argument: &T,
) -> Result<(), DriverError> {
    launch_at(kernel, Start::Together, ctas, argument)
}

/// The same for a kernel of the wide pass, which begins early: its launches are many and short.
fn launch_wide(
    kernel: &Kernel,
    ctas: (u32, u32),
    argument: &WideMemory,
) -> Result<(), DriverError> {
    launch_at(kernel, Start::Early, ctas, argument)
}

fn launch_at<T: bytemuck::Pod>(
    kernel: &Kernel,
    start: Start,
    ctas: (u32, u32),
    argument: &T,
) -> Result<(), DriverError> {
    #[expect(unsafe_code, reason = "what a kernel does is not checked")]
    // SAFETY: the target's and the drafter's kernels take a `Memory`, those of the wide pass a
    // `WideMemory`, the others a `VerifyMemory`, a `PlanMemory`, a `ReadMemory` and an address.
    // Their addresses are those of the memory map, whose buffers have the sizes that the kernels
    // were compiled with, and of pinned memory; all of it is dropped after the stream is finished.
    // Into other ranks' memory they write only what those wait for in the same chain; if one of
    // them is given up, so are all. Kernels of the wide pass wait for the launch before at once
    // (`begin_wide`).
    unsafe {
        kernel.launch(start, ctas, argument)
    }
}

fn kernels(module: &Module, drafter: bool) -> Result<Kernels, DriverError> {
    let shared_bytes = module.constant(SHARED_BYTES)?;
    let kernel = |name: &str| module.kernel(name, shared_bytes);
    let tiled = |name| Ok(Tiled { one: kernel(name)?, many: kernel(&format!("{name}_many"))? });
    Ok(Kernels {
        count_off: kernel("count_off")?,
        take_plan: module.kernel("take_plan", 0)?,
        read_memory: (module.kernel("read_memory", 0)?, module.constant(READ_THREAD_COUNT)?),
        target: tiled("target")?,
        one_token: (module.constant(HAS_ONE_TOKEN)? != 0)
            .then(|| kernel("target_one"))
            .transpose()?,
        verify: kernel("verify")?,
        draft: if drafter { Some((tiled("draft_context")?, tiled("draft_rows")?)) } else { None },
        wide: None,
    })
}

fn wide_kernels(module: &Module) -> Result<WideKernels, DriverError> {
    let shared_bytes = module.constant(WIDE_SHARED_BYTES)?;
    let kernel =
        |(name, threads)| Ok((module.kernel(name, shared_bytes)?, module.constant(threads)?));
    let behind_bytes = module.constant(SHARED_BYTES)?;
    let behind = |name| module.kernel(name, behind_bytes);
    Ok(WideKernels {
        kernels: WideKernel::ALL.into_iter().map(kernel).collect::<Result<_, DriverError>>()?,
        slots: behind("wide_slots")?,
        head: behind("wide_head")?,
        sample: behind("wide_sample")?,
        verify: behind("wide_verify")?,
    })
}

#[cfg(any(test, feature = "faults"))]
mod faults;
#[cfg(test)]
pub(crate) mod tests;
