//! The families that kilotok knows, each read from its own config.

mod dflash;
mod mimo_v2;

use serde_json::Value;

use crate::fields::{ConfigError, parse};
use crate::spec::{DrafterSpec, ModelSpec, RouterDtype};

/// Choices on which the published implementations disagree, or which a config leaves open. The
/// defaults are the ones that the published acceptance figures were measured with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Knobs {
    /// Keys that a sliding-window position sees. Default: `sliding_window`, itself included;
    /// SGLang and transformers see one more.
    pub window_keys: Option<usize>,
    /// `RoPE` base of the drafter. Default: its `rope_theta`, not its `backbone_rotary_base`.
    pub draft_rope_base: Option<f64>,
    /// Whether the drafter sees only its window. Default: as its config says (`use_swa`).
    pub draft_window: Option<bool>,
    /// Whether the drafter's feed-forward networks are converted to FP8 as they are read. Default:
    /// they stay as published.
    pub draft_fp8: bool,
    /// Precision of the router's matrix. Default: `moe_router_dtype`, F32 where that is absent.
    pub router_dtype: Option<RouterDtype>,
    /// Config fields that may be ignored although kilotok does not know them.
    pub ignored_fields: Vec<String>,
}

/// Upper limits of sizes in a config. Larger ones are mistakes or attacks.
pub(crate) mod limit {
    pub(crate) const VOCAB: usize = 1 << 22;
    pub(crate) const WIDTH: usize = 1 << 18;
    pub(crate) const LAYERS: usize = 1024;
    pub(crate) const HEADS: usize = 4096;
    pub(crate) const HEAD_DIM: usize = 4096;
    pub(crate) const EXPERTS: usize = 4096;
    /// Of all layers together; each is several weights to declare.
    pub(crate) const EXPERTS_IN_ALL: usize = 1 << 17;
    pub(crate) const POSITIONS: usize = 1 << 30;
    pub(crate) const DRAFT_ROWS: usize = 64;
}

/// Reads a model's `config.json`. The drafter, if any, is read separately and set afterwards.
///
/// # Errors
/// Everything that is unknown, missing or contradictory, in one message.
pub fn read_config(file: &str, text: &str, knobs: &Knobs) -> Result<ModelSpec, ConfigError> {
    let map = parse(file, text)?;
    let model_type = map.get("model_type").and_then(Value::as_str);
    let result = match model_type {
        Some("mimo_v2_flash" | "mimo_v2") => mimo_v2::read(&map, knobs),
        other => Err(vec![format!(
            "model_type is {}; kilotok knows mimo_v2_flash and mimo_v2",
            other.map_or("missing or not a string".to_owned(), |name| format!("{name:?}"))
        )]),
    };
    result.map_err(|problems| ConfigError { file: file.to_owned(), problems })
}

/// Reads the `config.json` of a drafter for this target.
///
/// # Errors
/// As [`read_config`]; a drafter made for another target is contradictory.
pub fn read_drafter(
    file: &str,
    text: &str,
    target: &ModelSpec,
    knobs: &Knobs,
) -> Result<DrafterSpec, ConfigError> {
    let map = parse(file, text)?;
    dflash::read(&map, target, knobs)
        .map_err(|problems| ConfigError { file: file.to_owned(), problems })
}

/// Number of rotated dimensions: the factor times the head's dimensions, rounded down. It must be
/// even, since dimensions rotate in pairs.
fn rotary_dims(factor: f64, head_dim: usize) -> Result<usize, String> {
    let dims = (factor * head_dim as f64) as usize;
    if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
        return Err(format!("{factor} rotates {dims} of {head_dim} dimensions"));
    }
    Ok(dims)
}
