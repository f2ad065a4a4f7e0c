//! The families that kilotok knows, each read from its own config.

mod dflash;
mod gpt_oss;
mod mimo_v2;
mod qwen3_moe;
mod rope;

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::fields::{ConfigError, Fields, parse};
use crate::names::Names;
use crate::spec::{
    AttentionSpec, DrafterSpec, Family, ModelSpec, QkvLayout, Reach, RouterDtype, WeightFormat,
};
use crate::weight::FP8_TILE;

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
    /// Folder of the drafter. Default: `dflash` in the model's folder, if there is one.
    pub drafter: Option<PathBuf>,
    /// Whether the drafter's feed-forward networks are converted to FP8 as they are read. Default:
    /// they stay as published.
    pub draft_fp8: bool,
    /// Precision of the router's matrix. Default: `moe_router_dtype` of MiMo, F32 where that is
    /// absent; of other families the type of all floats.
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
    /// Experts of all layers together; each is several weights to declare.
    pub(crate) const EXPERTS_IN_ALL: usize = 1 << 17;
    pub(crate) const POSITIONS: usize = 1 << 30;
    pub(crate) const DRAFT_ROWS: usize = 64;
}

type Reader = fn(&Map<String, Value>, &Knobs) -> Result<ModelSpec, Vec<String>>;

/// The function that reads a config, by the config's `model_type`.
const READERS: &[(&str, Reader)] = &[
    ("mimo_v2_flash", mimo_v2::read),
    ("mimo_v2", mimo_v2::read),
    ("qwen3_moe", qwen3_moe::read),
    ("gpt_oss", gpt_oss::read),
];

impl Family {
    /// How its checkpoints spell their tensors.
    pub(crate) fn names(self) -> &'static Names {
        match self {
            Self::MimoV2Flash | Self::MimoV2 => &mimo_v2::NAMES,
            Self::Qwen3Moe => &qwen3_moe::NAMES,
            Self::GptOss => &gpt_oss::NAMES,
        }
    }
}

/// Reads a model's `config.json`. The drafter, if any, is read separately and set afterwards.
///
/// # Errors
/// Everything that is unknown, missing or contradictory, in one message.
pub fn read_config(file: &str, text: &str, knobs: &Knobs) -> Result<ModelSpec, ConfigError> {
    let map = parse(file, text)?;
    let model_type = map.get("model_type").and_then(Value::as_str);
    let reader = READERS.iter().find(|(name, _)| Some(*name) == model_type);
    let result = match reader {
        Some((_, read)) => read(&map, knobs),
        None => Err(vec![format!(
            "model_type is {}; kilotok knows {}",
            model_type.map_or("missing or not a string".to_owned(), |name| format!("{name:?}")),
            READERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
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

/// Tokens that end a reply.
fn end_tokens(fields: &mut Fields<'_>, vocab_size: usize) -> Vec<u32> {
    let tokens = fields.ids("eos_token_id", vocab_size);
    if tokens.is_empty() {
        fields.problem("eos_token_id", "names no token");
    }
    tokens.into_iter().map(|token| token as u32).collect()
}

/// Query heads, a whole number for each K/V head.
fn heads(fields: &mut Fields<'_>, q_name: &str, kv_name: &str) -> (usize, usize) {
    let q_heads = fields.size(q_name, limit::HEADS);
    let kv_heads = fields.size(kv_name, limit::HEADS);
    if !q_heads.is_multiple_of(kv_heads) {
        fields.problem(q_name, format!("is {q_heads}, no multiple of {kv_name} {kv_heads}"));
    }
    (q_heads, kv_heads)
}

/// What the config of every family says of the whole model, which has no layers yet, and the number
/// of its layers.
fn model(fields: &mut Fields<'_>, family: Family, norm_eps: &str) -> (ModelSpec, usize) {
    let vocab_size = fields.size("vocab_size", limit::VOCAB);
    let hidden_size = fields.size("hidden_size", limit::WIDTH);
    let layer_count = fields.size("num_hidden_layers", limit::LAYERS);
    let model = ModelSpec {
        family,
        vocab_size,
        hidden_size,
        norm_eps: fields.number(norm_eps, 1e-12, 1e-2) as f32,
        position_max: fields.size("max_position_embeddings", limit::POSITIONS),
        end_tokens: end_tokens(fields, vocab_size),
        layers: Vec::new(),
        multimodal: false,
        drafter: None,
    };
    (model, layer_count)
}

/// Full attention as the usual families have it: one `head_dim`, all of it rotated, queries, keys
/// and values stored apart as floats. What differs, a family sets.
fn usual_attention(fields: &mut Fields<'_>) -> AttentionSpec {
    let (q_heads, kv_heads) = heads(fields, "num_attention_heads", "num_key_value_heads");
    let dim = fields.size("head_dim", limit::HEAD_DIM);
    if !dim.is_multiple_of(2) {
        fields.problem("head_dim", format!("is {dim}; dimensions rotate in pairs"));
    }
    AttentionSpec {
        reach: Reach::Full,
        q_heads,
        kv_heads,
        qk_dim: dim,
        v_dim: dim,
        rope: rope::read(fields, dim),
        sinks: false,
        qk_norm_eps: None,
        bias: false,
        value_scale: 1.0,
        qkv: QkvLayout::Split,
        qkv_format: WeightFormat::Float,
        output_format: WeightFormat::Float,
    }
}

fn window(fields: &mut Fields<'_>, knobs: &Knobs) -> Reach {
    let keys = fields.size("sliding_window", limit::POSITIONS);
    let chosen = knobs.window_keys.unwrap_or(keys);
    if chosen != keys && chosen != keys + 1 {
        let what = format!("is {keys}; the knob window_keys says {chosen}, not that or one more");
        fields.problem("sliding_window", what);
    }
    Reach::Window { keys: chosen }
}

/// The router's type in families that store it like other floats.
fn router_dtype(fields: &mut Fields<'_>, knobs: &Knobs) -> RouterDtype {
    // transformers 5 writes `dtype`.
    let mut stated = |name: &str| {
        fields.optional(name)?;
        fields.choice(name, &[("bfloat16", RouterDtype::Bf16), ("float32", RouterDtype::F32)])
    };
    let stated = (stated("torch_dtype"), stated("dtype"));
    knobs.router_dtype.or(stated.0).or(stated.1).unwrap_or(RouterDtype::Bf16)
}

/// Refuses more experts in all layers together than can be declared. `sparse` is true for each
/// layer that has experts.
fn experts_in_all(fields: &mut Fields<'_>, name: &str, count: usize, sparse: &[bool]) {
    let layers = sparse.iter().filter(|sparse| **sparse).count();
    let max = limit::EXPERTS_IN_ALL;
    if layers * count > max {
        let what = format!("is {count} in each of {layers} layers, more than {max} in all");
        fields.problem(name, what);
    }
}

/// Checks what every FP8 checkpoint that kilotok reads says of itself.
fn fp8(quant: &mut Fields<'_>) {
    for (name, wanted) in [
        ("quant_method", json!("fp8")),
        ("fmt", json!("e4m3")),
        ("activation_scheme", json!("dynamic")),
        ("weight_block_size", json!([FP8_TILE, FP8_TILE])),
    ] {
        quant.must_be(name, &wanted);
    }
}
