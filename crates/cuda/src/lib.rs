//! The GPU engine. For up to 64 tokens one launch of a persistent kernel runs a whole pass over the
//! model's layers (the narrow pass); more tokens are a chain of launches (the wide pass). Kernels
//! are compiled for the loaded model, on the machine that runs it, from sources in the binary. The
//! driver is looked up when it is first needed, so the same binary runs with GPUs and without.
//!
//! Every byte of GPU memory is planned before any is allocated, and none is allocated later.

mod batch;
mod buffers;
mod chain;
mod compile;
mod constants;
mod driver;
mod engine;
mod fault;
mod layout;
mod memory_map;
mod nvrtc;
mod order;
mod rank;
mod repack;
mod results;
mod shared_memory;
mod sources;
mod stamps;
mod start;
mod upload;
mod watch;
mod wide;
mod wide_attention;

pub use compile::Toolchain;
pub use driver::{DRIVER_MIN, Driver, DriverError, Gpu};
pub use engine::{CudaEngine, TOKENS_MAX};
pub use kilotok_batch::Sizes;
pub use memory_map::{DoesNotFit, MemoryMap, RESERVE_BYTES};
pub use nvrtc::{CompileError, Version};
pub use start::{CudaOptions, Found, StartError, VALUE_BYTES, step_max};
