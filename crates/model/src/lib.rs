//! What a model is: its shapes, the weights it declares and how tensor-parallel ranks share them.
//! Pure data from a checkpoint's `config.json`; no file is opened here and nothing is computed.
//!
//! A family is one file in [`families`] that turns a config into a [`ModelSpec`], and says how its
//! checkpoints spell their tensors. Everything after that reads the spec and does not know the
//! family.

mod declare;
pub mod families;
mod fields;
pub mod json;
mod names;
mod rope;
mod shard;
mod spec;
mod weight;

pub use declare::declare;
pub use families::{Knobs, read_config, read_drafter};
pub use fields::ConfigError;
pub use rope::{RopeSpec, Yarn};
pub use shard::{Ranks, RanksError, Shard, Slice, check_ranks};
pub use spec::{
    Activation, AttentionSpec, DenseSpec, DrafterSpec, ExpertLayout, ExpertsSpec, Family,
    FeedForwardSpec, LayerSpec, ModelSpec, QkvLayout, Reach, RouterDtype, RouterScores, RouterSpec,
    WeightFormat,
};
pub use weight::{
    Dtype, FP8_TILE, Format, LayerWeight, MXFP4_GROUP, Part, Stack, StoredTensor, Stride,
    WeightDecl, WeightId,
};
