//! Checkpoints and dummy weights: opens a folder, checks every tensor against what the model
//! declares, and reads each rank's part in the checkpoint's own number format.
//!
//! This crate knows files and formats. It does not know for what a weight is used, or on which
//! device.

mod checkpoint;
mod codes;
mod dummy;
mod files;
mod folder;
mod gather;
mod header;
pub mod hub;
mod load;
mod mask;
mod problem;
mod stream;
mod tensor;

pub use checkpoint::{Checkpoint, Skipped, read_spec};
pub use dummy::Dummy;
pub use header::{HeaderTensor, parse_header};
pub use load::{LoadError, Piece, Progress, Quiet, WeightSource, load};
pub use mask::{Mask, parse_mask};
pub use problem::{CheckpointError, Problem, Problems, WeightError};
pub use tensor::{Tensor, TensorData};
