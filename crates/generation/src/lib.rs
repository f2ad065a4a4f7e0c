//! Runs requests on one engine: admission bounds how many there are, the engine's thread plans and
//! runs steps, workers make grammar masks, and each reply comes back in increments. This crate
//! knows no HTTP and no JSON: `server` makes requests of what clients send, and encodes replies.

mod bell;
mod drive;
pub mod gate;
mod guide;
mod health;
pub mod metrics;
mod pace;
mod post;
mod stopwatch;
mod updates;

pub use gate::{Gate, GateOptions};
pub use metrics::Metrics;
