//! Chooses the engine, for GPUs or for the processor, and determines its memory. Loads no model.

use std::fmt;

use anyhow::{Context, Result, ensure};
use indicatif::BinaryBytes;
use kilotok_batch::Sizes;
use kilotok_cuda::{CudaOptions, Found, StartError};
use kilotok_model::ModelSpec;

use crate::config::{EngineKind, EngineSettings};
use crate::environment;
use crate::machine::{self, Memory};
use crate::output::progress_line;
use crate::plan::{Room, StepBound, context_asked, step_tokens};

/// Requests that run at once on a processor, unless the user sets their number. The cores compute
/// rows one after the other, so more requests mostly slow each other down. A step of 8 tokens takes
/// 2.8 times as long as one of a single token (`benches/results/cpu_step.md`), so 8 requests still
/// gain from sharing it. With 256, others waited 0.6 s for one that wanted 128 replies, and the
/// demo model did not start in 4 GiB.
const CPU_SLOTS_USUAL: u32 = 8;
/// Keys and values take at most the processor's free memory divided by this.
const KV_SHARE: u64 = 4;
/// Free memory if the system does not report it.
const MEMORY_ASSUMED: u64 = 4 << 30;
/// The GPUs' free memory divided by this stays free, because drivers round allocations up.
const GPU_SHARE: u64 = 32;
/// The tables of slots take at most the GPUs' free memory divided by this, unless the user sets the
/// number of slots. The rest is for keys and values.
const SLOTS_SHARE: u64 = 16;

#[derive(Clone, Debug)]
pub(crate) enum Device {
    /// The reference engine, and the reason for not using GPUs.
    Cpu {
        why: String,
        rank_count: usize,
    },
    Gpus(Found),
}

impl Device {
    /// # Errors
    /// GPUs are required but cannot be used.
    pub(crate) fn new(settings: &EngineSettings, spec: &ModelSpec) -> Result<Self> {
        let rank_count = settings.rank_count;
        let cpu = |why| Ok(Self::Cpu { why, rank_count });
        match settings.kind {
            EngineKind::Cpu => cpu("as wished".to_owned()),
            EngineKind::Cuda => Ok(Self::Gpus(look(settings, spec).context("--engine cuda")?)),
            EngineKind::Auto => match look(settings, spec) {
                Ok(found) => Ok(Self::Gpus(found)),
                Err(error) => cpu(error.to_string()),
            },
        }
    }

    /// The device in a few words.
    pub(crate) fn device(&self) -> String {
        match self {
            Self::Cpu { .. } => {
                format!("{} cores, {}", machine::core_count(), machine::vector_unit().0)
            }
            Self::Gpus(found) => format!("{} x {}", found.gpus.len(), found.gpus[0].name),
        }
    }

    /// The settings with fewer slots, if the user has not set their number, and the engine runs on
    /// a processor or there is too little memory for the slots' tables.
    pub(crate) fn with_slots(
        &self,
        settings: &EngineSettings,
        spec: &ModelSpec,
    ) -> Result<EngineSettings> {
        if settings.slots_given {
            return Ok(settings.clone());
        }
        let Self::Gpus(found) = self else {
            let slot_count = settings.slot_count.min(CPU_SLOTS_USUAL);
            return Ok(EngineSettings { slot_count, ..settings.clone() });
        };
        let bytes = |slot_count| {
            let settings = EngineSettings { slot_count, ..settings.clone() };
            gpu_bytes(found, &options(&settings, spec), spec)
        };
        let least_bytes = bytes(1)?;
        let share = found.free_bytes.saturating_sub(least_bytes) / SLOTS_SHARE;
        let mut slot_count = settings.slot_count;
        while slot_count > 1 && bytes(slot_count)? - least_bytes > share {
            slot_count /= 2;
        }
        if slot_count < settings.slot_count {
            progress_line(&format!(
                "{slot_count} requests run at once: more would take too much of the GPUs' memory \
                 (--slots)"
            ));
        }
        Ok(EngineSettings { slot_count, ..settings.clone() })
    }

    /// The memory of this engine, given the longest chunk and the size of the checkpoint's weights.
    pub(crate) fn room(
        &self,
        settings: &EngineSettings,
        chunk_max: u32,
        spec: &ModelSpec,
        weights_bytes: u64,
    ) -> Result<Room> {
        let Self::Gpus(found) = self else {
            let memory = machine::memory();
            let free = memory.map_or(MEMORY_ASSUMED, |memory| memory.free);
            return Ok(Room {
                fixed: "weights",
                fixed_bytes: weights_bytes,
                memory,
                kv_bytes: free / KV_SHARE,
                value_bytes: kilotok_cpu::VALUE_BYTES,
                step: None,
            });
        };
        let count = found.gpus.len() as u64;
        let options = options(settings, spec);
        let token_max = step_tokens(settings, chunk_max, spec);
        let multiprocessors = found.multiprocessors();
        let options =
            options.with_longest_steps(spec, multiprocessors, found.free_bytes, token_max)?;
        let step = step_bound(spec, token_max, options.sizes.token_max);
        let fixed_bytes = gpu_bytes(found, &options, spec)? * count;
        let memory = Memory {
            total: found.gpus.iter().map(|gpu| gpu.memory_bytes).sum(),
            free: found.free_bytes * count,
        };
        ensure!(
            fixed_bytes < memory.free,
            "the model needs {} besides keys and values, and the GPUs have {} free of {}: take \
             more of them (--ranks), have fewer requests run at once (--slots), or --engine cpu",
            BinaryBytes(fixed_bytes),
            BinaryBytes(memory.free),
            BinaryBytes(memory.total)
        );
        let left = memory.free - fixed_bytes;
        Ok(Room {
            fixed: "weights and work",
            fixed_bytes,
            memory: Some(memory),
            kv_bytes: left - left / GPU_SHARE,
            value_bytes: kilotok_cuda::VALUE_BYTES,
            step: Some(step),
        })
    }
}

/// The bound of steps on GPUs, if `asked` tokens were asked for and `token_max` are possible, and
/// the reason for it.
fn step_bound(spec: &ModelSpec, asked: u32, token_max: u32) -> StepBound {
    let why = if token_max < asked.min(kilotok_cuda::step_max(spec)) {
        "longer steps would take too much of the GPUs' memory"
    } else {
        "the GPUs' kernels take no longer steps"
    };
    StepBound { token_max, why }
}

/// Finds GPUs that can run the model.
fn look(settings: &EngineSettings, spec: &ModelSpec) -> Result<Found, StartError> {
    let found = Found::look(settings.rank_count, &environment::toolchain())?;
    let options = options(settings, spec);
    options.memory_map(spec, found.multiprocessors())?;
    options.check_kernels(spec, &found)?;
    Ok(found)
}

/// Bytes of a GPU in use with one page of each group, including the driver's own.
fn gpu_bytes(found: &Found, options: &CudaOptions, spec: &ModelSpec) -> Result<u64> {
    let map = options.memory_map(spec, found.multiprocessors())?;
    Ok(map.bytes() + kilotok_cuda::RESERVE_BYTES)
}

/// The options that are known before pages are counted.
fn options(settings: &EngineSettings, spec: &ModelSpec) -> CudaOptions {
    let sizes = Sizes {
        rank_count: settings.rank_count,
        slot_count: settings.slot_count,
        token_max: kilotok_cuda::TOKENS_MAX,
        position_max: context_asked(settings, spec),
        page_tokens: settings.page_tokens,
        page_count: 1,
    };
    CudaOptions { sizes, toolchain: environment::toolchain(), ..CudaOptions::default() }
}

/// The device's line in the table that is printed at start.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks = |count| if count == 1 { "1 rank".to_owned() } else { format!("{count} ranks") };
        match self {
            Self::Cpu { why, rank_count } => {
                let (cores, (unit, _)) = (machine::core_count(), machine::vector_unit());
                let ranks = ranks(*rank_count);
                write!(f, "reference engine on the processor: {cores} cores, {unit}, {ranks}")?;
                write!(f, "\n  no GPU: {why}")
            }
            Self::Gpus(found) => {
                let (gpu, ranks) = (&found.gpus[0], ranks(found.gpus.len()));
                write!(f, "{}: {} multiprocessors, {ranks}", gpu.name, gpu.multiprocessors)?;
                let driver = found.driver.version;
                match &found.compiler {
                    Ok((path, version)) => {
                        write!(f, "\n  driver for CUDA {driver}, {} {version}", path.display())
                    }
                    Err(_) => write!(f, "\n  driver for CUDA {driver}, no NVRTC"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kilotok_testkit::Toy;

    use super::*;

    fn settings(kind: EngineKind) -> EngineSettings {
        let (context_max, kv_bytes) = (None, None);
        EngineSettings {
            kind,
            rank_count: 1,
            slot_count: 4,
            slots_given: true,
            page_tokens: 16,
            context_max,
            kv_bytes,
        }
    }

    #[test]
    fn gpus_are_used_where_they_are_and_it_says_why_not() {
        let spec = Toy::pro_fp4().spec();
        let chosen = Device::new(&settings(EngineKind::Auto), &spec).unwrap();
        match (&chosen, Device::new(&settings(EngineKind::Cuda), &spec)) {
            (Device::Cpu { why, .. }, Err(error)) => {
                let error = format!("{error:#}");
                assert!(error.starts_with("--engine cuda") && error.contains(why), "{error}");
                assert!(chosen.to_string().contains(why), "{chosen}");
            }
            (Device::Gpus(found), Ok(_)) => {
                assert!(chosen.to_string().contains(&found.gpus[0].name), "{chosen}");
            }
            (chosen, asked_for) => panic!("{chosen} unasked, {asked_for:?} when asked for"),
        }
        let room = chosen.room(&settings(EngineKind::Auto), 8192, &spec, 1 << 20).unwrap();
        assert!(room.kv_bytes > 0);
        let processor = Device::new(&settings(EngineKind::Cpu), &spec).unwrap();
        assert!(processor.to_string().contains("as wished"), "{processor}");
        let room = processor.room(&settings(EngineKind::Cpu), 1 << 20, &spec, 1 << 20).unwrap();
        assert_eq!(room.step, None, "a processor takes steps of any length");
    }

    #[test]
    fn steps_of_gpus_are_bounded_by_kernels_or_memory_and_it_says_which() {
        const KERNELS: &str = "the GPUs' kernels take no longer steps";
        let (wide, narrow) = (Toy::pro_fp4().spec(), Toy::flash().spec());
        for (spec, free_gib, asked, expected) in [
            (&wide, 64, 20_000, StepBound { token_max: 8192, why: KERNELS }),
            (&wide, 64, 1000, StepBound { token_max: 1000, why: KERNELS }),
            (&narrow, 64, 20_000, StepBound { token_max: kilotok_cuda::TOKENS_MAX, why: KERNELS }),
        ] {
            let options = options(&settings(EngineKind::Cuda), spec);
            let found = options.with_longest_steps(spec, 132, free_gib << 30, asked).unwrap();
            assert_eq!(step_bound(spec, asked, found.sizes.token_max), expected);
        }
        let options = options(&settings(EngineKind::Cuda), &wide);
        let bytes = |token_max| {
            let sizes = Sizes { token_max, ..options.sizes.clone() };
            let options = CudaOptions { sizes, ..options.clone() };
            options.memory_map(&wide, 132).unwrap().bytes()
        };
        // The wide pass may use a quarter of what the narrow pass leaves. That is too little for
        // its buffers.
        let narrow_bytes = bytes(kilotok_cuda::TOKENS_MAX) + kilotok_cuda::RESERVE_BYTES;
        let free = narrow_bytes + 3 * (bytes(8192) - bytes(kilotok_cuda::TOKENS_MAX));
        let found = options.with_longest_steps(&wide, 132, free, 20_000).unwrap();
        assert_eq!(found.sizes.token_max, 4096);
        let bound = step_bound(&wide, 20_000, found.sizes.token_max);
        assert!(bound.why.contains("memory"), "{bound:?}");
    }
}
