//! One rank: a GPU with its memory and kernels, and how it runs a step.

use std::sync::Arc;

use kilotok_abi::{Exchange, Fault, Memory, STAMPS_MAX};
use kilotok_engine::{EngineError, PhaseTime, StepPart};

use crate::constants::Constants;
use crate::driver::{Device, DeviceMemory, DriverError, Event, Kernel, Module, Pinned};
use crate::fault::timeout_of;
use crate::layout::{Arguments, Layout};
use crate::stamps::phase_times;
use crate::upload::Copy;

/// How long after its beginning a launch may still wait for anything. A whole pass of the largest
/// model takes milliseconds.
const WAIT_MAX_MS: u32 = 1000;
/// Constants of the kernels: how much shared memory a CTA wants, how many threads it has, and how
/// many tokens the kernels for one tile take.
const SHARED_BYTES: &str = "SHARED_BYTES";
const THREAD_COUNT: &str = "THREAD_COUNT";
const ONE_TILE: &str = "ONE_TILE";

/// What a launch does, and with how many tokens; each is a kernel of that name in `kernels/step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Tokens through the target's layers to logits.
    Target(usize),
    /// The choice of tokens by the logits of all ranks.
    Verify,
    /// Taps of the target's tokens to the drafter's keys and values.
    DraftContext(usize),
    /// A batch of draft rows, by its number, through the drafter's layers to drafts.
    DraftRows(usize, usize),
}

impl Pass {
    /// Of which part of a step its launches are, in their order.
    fn part(launch: usize) -> StepPart {
        if launch < 2 { StepPart::Verify } else { StepPart::Draft }
    }
}

pub(crate) struct Rank {
    index: usize,
    device: Arc<Device>,
    memory: DeviceMemory,
    layout: Layout,
    arguments: Arguments,
    fault: Pinned,
    grid: u32,
    thread_count: u32,
    kernels: Kernels,
    /// When a step began, when its tokens were chosen, when its drafts were.
    events: [Event; 3],
    /// The kernels are in it.
    _module: Module,
}

struct Kernels {
    target: Tiled,
    verify: Kernel,
    /// Context and rows, of a model that has a drafter.
    draft: Option<(Tiled, Tiled)>,
}

/// A kernel for one tile of tokens, and one for more.
struct Tiled {
    one: Kernel,
    many: Kernel,
    /// Tokens of a tile.
    tile: usize,
}

impl Tiled {
    fn of(&self, tokens: usize) -> &Kernel {
        if tokens > self.tile { &self.many } else { &self.one }
    }
}

/// What a GPU came to, by the index of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Begun,
    Verified,
    Drafted,
}

impl Rank {
    /// Takes the memory that `layout_at` plans, and loads the kernels.
    pub(crate) fn new(
        index: usize,
        device: &Arc<Device>,
        constants: &Constants,
        cubin: &[u8],
        layout_at: impl Fn(u64) -> Layout,
    ) -> Result<Self, DriverError> {
        let memory = DeviceMemory::new(device, layout_at(0).map.bytes() as usize)?;
        let layout = layout_at(memory.address());
        let fault = Pinned::new(std::slice::from_ref(device), size_of::<Fault>())?;
        let arguments = layout.arguments(&Memory {
            rank: index as u32,
            fault: fault.address(),
            wait_max_ms: WAIT_MAX_MS,
            ..layout.memory
        });
        let module = Module::load(device, cubin)?;
        let rank = Self {
            index,
            device: device.clone(),
            arguments,
            fault,
            grid: constants.launch.grid as u32,
            thread_count: module.constant(THREAD_COUNT)?,
            kernels: kernels(&module, constants.draft_rows > 0)?,
            events: [Event::new(device)?, Event::new(device)?, Event::new(device)?],
            _module: module,
            memory,
            layout,
        };
        for (address, bytes) in rank.layout.tables(constants) {
            rank.memory.write((address - rank.memory.address()) as usize, &bytes)?;
        }
        Ok(rank)
    }

    pub(crate) fn memory(&self) -> (&DeviceMemory, &Layout) {
        (&self.memory, &self.layout)
    }

    /// Where other ranks write what they send to this one.
    pub(crate) fn receiver(&self) -> u64 {
        self.layout.receiver
    }

    /// Tells this rank where all of them receive.
    pub(crate) fn connect(&self, exchange: &Exchange) -> Result<(), DriverError> {
        let to = self.arguments.target.exchange - self.memory.address();
        self.memory.write(to as usize, bytemuck::bytes_of(exchange))
    }

    /// Starts to take in a step: the first bytes of `upload`, and `copies` of the lists, which
    /// kernels read too.
    pub(crate) fn begin(
        &mut self,
        upload: (&Pinned, usize),
        lists: &Pinned,
        copies: &[Copy],
    ) -> Result<(), EngineError> {
        self.arguments.verify.sampling.masks = lists.address();
        self.try_begin(upload, lists, copies).map_err(|error| self.error(&error))
    }

    fn try_begin(
        &self,
        (upload, bytes): (&Pinned, usize),
        lists: &Pinned,
        copies: &[Copy],
    ) -> Result<(), DriverError> {
        self.event(Moment::Begun).record()?;
        let place = |address: u64| (address - self.memory.address()) as usize;
        let (to, barrier) = (self.arguments.target.batch, place(self.arguments.target.barrier));
        self.memory.send(place(to), upload, 0..bytes)?;
        for Copy { to, from } in copies {
            self.memory.send(*to, lists, from.clone())?;
        }
        self.memory.clear(barrier..barrier + self.layout.barrier_bytes)
    }

    /// Starts a launch of the step.
    pub(crate) fn start(&self, pass: Pass) -> Result<(), EngineError> {
        self.try_start(pass).map_err(|error| self.error(&error))
    }

    fn try_start(&self, pass: Pass) -> Result<(), DriverError> {
        let Self { arguments, kernels: Kernels { target, verify, draft }, .. } = self;
        let kernels = draft.as_ref().ok_or(pass);
        let no_drafter = |pass| panic!("{pass:?} of a model without a drafter");
        match pass {
            Pass::Target(tokens) => self.launch(target.of(tokens), &arguments.target),
            Pass::Verify => self.launch(verify, &arguments.verify),
            Pass::DraftContext(tokens) => {
                let (context, _) = kernels.unwrap_or_else(no_drafter);
                self.launch(context.of(tokens), &arguments.context)
            }
            Pass::DraftRows(batch, tokens) => {
                let (_, rows) = kernels.unwrap_or_else(no_drafter);
                self.launch(rows.of(tokens), &arguments.drafts[batch])
            }
        }
    }

    fn launch<T: bytemuck::Pod>(&self, kernel: &Kernel, argument: &T) -> Result<(), DriverError> {
        #[expect(unsafe_code, reason = "what a kernel does is not checked")]
        // SAFETY: the target's and the drafter's kernels take a `Memory`, the other one a
        // `VerifyMemory`. Their addresses are those of the memory map, whose buffers have the
        // sizes that the kernels were compiled with, and of pinned memory; the map's memory and
        // that of the fault are dropped after the stream is finished, lists are written and
        // dropped when all streams are.
        unsafe {
            kernel.launch(self.grid, self.thread_count, argument)
        }
    }

    /// Notes when the GPU has come so far.
    pub(crate) fn note(&self, moment: Moment) -> Result<(), EngineError> {
        self.event(moment).record().map_err(|error| self.error(&error))
    }

    /// Milliseconds of a finished step to the choice of its tokens, and from there to its drafts.
    pub(crate) fn milliseconds(&self) -> Result<(f32, f32), EngineError> {
        let [begun, verified, drafted] = &self.events;
        let times = verified.since(begun).and_then(|first| Ok((first, drafted.since(verified)?)));
        times.map_err(|error| self.error(&error))
    }

    /// What the stamps of the last step say, which are taken into `host` and away.
    pub(crate) fn phase_times(&self, host: &mut Pinned) -> Result<Vec<PhaseTime>, EngineError> {
        let error = |reason| EngineError::Device { rank: self.index, reason };
        let bytes = self.take_stamps(host).map_err(|reason| error(reason.to_string()))?;
        let launches = bytemuck::cast_slice(bytes).chunks(STAMPS_MAX).enumerate();
        let parts = launches.map(|(index, stamps)| (Pass::part(index), stamps));
        phase_times(parts).map_err(|reason| error(reason.to_string()))
    }

    fn take_stamps<'a>(&self, host: &'a mut Pinned) -> Result<&'a [u8], DriverError> {
        let place = (self.layout.memory.trace - self.memory.address()) as usize;
        let range = place..place + self.layout.stamp_bytes;
        self.memory.fetch(range.clone(), host)?;
        self.memory.clear(range)?;
        host.read()
    }

    fn event(&self, moment: Moment) -> &Event {
        &self.events[moment as usize]
    }

    /// Starts to copy the first bytes of a step's results.
    pub(crate) fn fetch(&self, bytes: usize, to: &mut Pinned) -> Result<(), EngineError> {
        let from = (self.layout.results_at - self.memory.address()) as usize;
        self.memory.fetch(from..from + bytes, to).map_err(|error| self.error(&error))
    }

    /// Waits for all that was started.
    pub(crate) fn finish(&self) -> Result<(), EngineError> {
        self.device.finish().map_err(|error| self.error(&error))
    }

    fn error(&self, error: &DriverError) -> EngineError {
        self.timeout()
            .unwrap_or_else(|| EngineError::Device { rank: self.index, reason: error.to_string() })
    }

    /// The wait that ran out, if one did.
    pub(crate) fn timeout(&self) -> Option<EngineError> {
        let record: [u8; size_of::<Fault>()] = self.fault.peek();
        timeout_of(&bytemuck::pod_read_unaligned(&record))
    }
}

fn kernels(module: &Module, drafter: bool) -> Result<Kernels, DriverError> {
    let shared_bytes = module.constant(SHARED_BYTES)?;
    let tile = module.constant(ONE_TILE)? as usize;
    let kernel = |name: &str| module.kernel(name, shared_bytes);
    let tiled =
        |name| Ok(Tiled { one: kernel(name)?, many: kernel(&format!("{name}_many"))?, tile });
    Ok(Kernels {
        target: tiled("target")?,
        verify: kernel("verify")?,
        draft: if drafter { Some((tiled("draft_context")?, tiled("draft_rows")?)) } else { None },
    })
}

#[cfg(test)]
mod tests;
