//! One rank: a GPU with its memory and kernels, and how it runs a pass.

use std::sync::Arc;

use kilotok_abi::{Exchange, Fault, Memory};
use kilotok_engine::EngineError;

use crate::batch::DeviceBatch;
use crate::constants::Constants;
use crate::driver::{Device, DeviceMemory, DriverError, Kernel, Module, Pinned, Rows};
use crate::fault::timeout_of;
use crate::layout::Layout;
use crate::places::CHUNK_ROWS;

/// How long a GPU waits for anything. A whole pass of the largest model takes milliseconds.
const WAIT_MAX_MS: u32 = 2000;
/// Constants of the kernels: how much shared memory a CTA wants, and how many threads it has.
const SHARED_BYTES: &str = "SHARED_BYTES";
const THREAD_COUNT: &str = "THREAD_COUNT";

/// What a launch does; each is a kernel of that name in `kernels/step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Tokens through the target's layers to logits.
    Target,
    /// Taps of committed tokens to the drafter's keys and values.
    DraftContext,
    /// Draft rows through the drafter's layers to logits.
    DraftRows,
}

pub(crate) struct Rank {
    index: usize,
    device: Arc<Device>,
    memory: DeviceMemory,
    layout: Layout,
    argument: Memory,
    staging: Pinned,
    fault: Pinned,
    grid: u32,
    thread_count: u32,
    vocab: Share,
    kernels: Kernels,
    /// The kernels are in it.
    _module: Module,
}

/// A rank's share of the vocabulary.
#[derive(Clone, Copy)]
struct Share {
    first: usize,
    count: usize,
    /// Logits from one wanted token's to the next one's.
    stride: usize,
    /// Of all ranks.
    whole: usize,
}

struct Kernels {
    target: Kernel,
    /// Context and rows, of a model that has a drafter.
    draft: Option<(Kernel, Kernel)>,
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
        let fault = Pinned::new(device, size_of::<Fault>())?;
        let argument = Memory {
            rank: index as u32,
            fault: fault.address(),
            wait_max_ms: WAIT_MAX_MS,
            ..layout.memory
        };
        let module = Module::load(device, cubin)?;
        let count = constants.vocab / constants.launch.ranks;
        let rank = Self {
            index,
            device: device.clone(),
            staging: Pinned::new(device, layout.batch.bytes)?,
            argument,
            fault,
            grid: constants.launch.grid as u32,
            thread_count: module.constant(THREAD_COUNT)?,
            vocab: Share {
                first: index * count,
                count,
                stride: constants.head().units() * CHUNK_ROWS,
                whole: constants.vocab,
            },
            kernels: kernels(&module, constants.draft_rows > 0)?,
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
        let to = self.argument.exchange - self.memory.address();
        self.memory.write(to as usize, bytemuck::bytes_of(exchange))
    }

    /// Starts a pass over a batch, after so many exchanges between ranks.
    pub(crate) fn start(
        &mut self,
        pass: Pass,
        batch: &DeviceBatch,
        exchanges: u32,
    ) -> Result<(), EngineError> {
        self.try_start(pass, batch, exchanges).map_err(|error| self.error(&error))
    }

    fn try_start(
        &mut self,
        pass: Pass,
        batch: &DeviceBatch,
        exchanges: u32,
    ) -> Result<(), DriverError> {
        let place = |address: u64| (address - self.memory.address()) as usize;
        let (to, barrier) = (place(self.argument.batch), place(self.argument.barrier));
        let bytes = batch.write(&self.layout.batch, exchanges, self.staging.write()?);
        self.memory.send(to, &self.staging, 0..bytes)?;
        self.memory.clear(barrier..barrier + self.layout.barrier_bytes)?;
        let kernel = match (pass, &self.kernels.draft) {
            (Pass::Target, _) => &self.kernels.target,
            (Pass::DraftContext, Some((context, _))) => context,
            (Pass::DraftRows, Some((_, rows))) => rows,
            (_, None) => panic!("{pass:?} of a model without a drafter"),
        };
        #[expect(unsafe_code, reason = "what a kernel does is not checked")]
        // SAFETY: the kernels take a `Memory`. Its addresses are those of the memory map, whose
        // buffers have the sizes that the kernels were compiled with; the map's memory, and the
        // pinned memory of the fault, are dropped after the stream is finished.
        unsafe {
            kernel.launch(self.grid, self.thread_count, &self.argument)
        }
    }

    /// Starts to copy this rank's logits of the wanted tokens to `[wanted, vocab]`.
    pub(crate) fn fetch_logits(
        &self,
        wanted_count: usize,
        to: &mut Pinned,
    ) -> Result<(), EngineError> {
        let Share { first, count, stride, whole } = self.vocab;
        let bytes = |values: usize| values * size_of::<f32>();
        let rows = Rows {
            count: wanted_count,
            bytes: bytes(count),
            pitch: bytes(stride),
            to_offset: bytes(first),
            to_pitch: bytes(whole),
        };
        let from = (self.argument.logits - self.memory.address()) as usize;
        self.memory.fetch(from, to, &rows).map_err(|error| self.error(&error))
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
    let kernel = |name| module.kernel(name, shared_bytes);
    Ok(Kernels {
        target: kernel("target")?,
        draft: if drafter { Some((kernel("draft_context")?, kernel("draft_rows")?)) } else { None },
    })
}

#[cfg(test)]
mod tests;
