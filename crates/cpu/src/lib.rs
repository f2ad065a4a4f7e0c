//! The reference engine: every phase of a step, written for reading. GPU kernels are tested against
//! it (`phase/<name>.rs` beside `kernels/include/kilotok/phase/<name>.cuh`); it also serves small
//! models on a laptop.
//!
//! A value never depends on what else is computed: each is summed in an order fixed by the model's
//! shape and the position alone, whatever the vector unit, the number of threads or the rows of the
//! step. This is how the engine keeps invariant 10 of `crates/README.md`.

#![expect(clippy::inline_always, reason = "what is compiled for a vector unit must inline into it")]

mod engine;
mod math;
mod matmul;
mod pages;
mod phase;
mod prefetch;
mod products;
mod rope;
mod step;
mod watch;
mod weights;

pub use engine::{CpuEngine, StartError, VALUE_BYTES};
pub use kilotok_batch::Sizes as CpuOptions;
pub use watch::{Seen, Watch};
