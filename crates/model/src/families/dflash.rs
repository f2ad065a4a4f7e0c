//! DFlash drafters: those of MiMo-V2 checkpoints, which have sinks, a window and a mask of their
//! own, and those that z-lab publishes for other models, which have none of them.

use serde_json::{Map, Value, json};

use super::{Knobs, heads, limit, rotary_dims, usual_attention};
use crate::fields::Fields;
use crate::rope::RopeSpec;
use crate::spec::{
    Activation, AttentionSpec, DenseSpec, DrafterSpec, Family, FeedForwardSpec, LayerSpec,
    ModelSpec, QkvLayout, Reach, WeightFormat,
};

/// Fields that do not change what is computed. The drafter has no vocabulary of its own, so its
/// `vocab_size` means nothing (and is wrong in the Pro drafter); the window is `swa_window_size`.
const IGNORED: &[&str] = &[
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_sliding_window",
    "num_anchors",
    "loss_decay_gamma",
    "vocab_size",
];
/// Settings of the training, and a `RoPE` base that the measured engines do not use.
const IGNORED_DFLASH: &[&str] = &["num_anchors", "loss_decay_gamma", "backbone_rotary_base"];

pub(super) fn read(
    map: &Map<String, Value>,
    target: &ModelSpec,
    knobs: &Knobs,
) -> Result<DrafterSpec, Vec<String>> {
    let mut fields = Fields::new(map, "");
    fields.ignore(IGNORED);
    fields.ignore(&knobs.ignored_fields);
    for (name, wanted) in [
        ("architectures", json!(["DFlashDraftModel"])),
        ("model_type", json!("qwen3")),
        ("hidden_act", json!("silu")),
        ("hidden_size", json!(target.hidden_size)),
        ("num_target_layers", json!(target.layers.len())),
    ] {
        fields.must_be(name, &wanted);
    }
    fields.may_be("tie_word_embeddings", &json!(false));
    fields.may_be("is_causal", &json!(false));
    let norm_eps = fields.number("rms_norm_eps", 1e-12, 1e-2) as f32;
    let rows = fields.size("block_size", limit::DRAFT_ROWS);
    if rows < 2 {
        fields.problem("block_size", "leaves nothing to draft");
    }
    let layer_count = fields.size("num_hidden_layers", limit::LAYERS);
    let dflash_map = fields.object("dflash_config");
    if dflash_map.is_none() {
        fields.problem("dflash_config", "is missing");
    }
    let empty = Map::new();
    let mut dflash = Fields::new(dflash_map.unwrap_or(&empty), "dflash_config.");
    dflash.ignore(IGNORED_DFLASH);
    let taps = dflash.ids("target_layer_ids", target.layers.len());
    if taps.is_empty() {
        dflash.problem("target_layer_ids", "names no layer");
    }
    let twice = taps.iter().enumerate().find(|(place, tap)| taps[..*place].contains(tap));
    if let Some((_, tap)) = twice {
        dflash.problem("target_layer_ids", format!("names layer {tap} twice"));
    }
    let mask_token = dflash.id("mask_token_id", target.vocab_size) as u32;
    let own_mask = matches!(target.family, Family::MimoV2Flash | Family::MimoV2);
    let attention = if own_mask {
        of_mimo(&mut fields, &mut dflash, layer_count, norm_eps, knobs)
    } else {
        of_others(&mut fields, layer_count, norm_eps)
    };
    let width = fields.size("intermediate_size", limit::WIDTH);
    let format = if knobs.draft_fp8 { WeightFormat::Fp8 } else { WeightFormat::Float };
    let dense = DenseSpec { width, format, activation: Activation::SiluMul };
    let layer = LayerSpec { attention, feed_forward: FeedForwardSpec::Dense(dense) };
    fields.problems.extend(dflash.finish());
    fields.check()?;
    let layers = vec![layer; layer_count];
    Ok(DrafterSpec { rows, taps, mask_token, own_mask, norm_eps, layers })
}

/// Attention like that of the target, but with q/k norms and over all keys.
fn of_others(fields: &mut Fields<'_>, layer_count: usize, norm_eps: f32) -> AttentionSpec {
    fields.may_be("layer_types", &json!(vec!["full_attention"; layer_count]));
    // This field means nothing if all layers have full attention.
    fields.ignore(&["sliding_window"]);
    AttentionSpec {
        qk_norm_eps: Some(norm_eps),
        bias: fields.bool("attention_bias"),
        ..usual_attention(fields)
    }
}

fn of_mimo(
    fields: &mut Fields<'_>,
    dflash: &mut Fields<'_>,
    layer_count: usize,
    norm_eps: f32,
    knobs: &Knobs,
) -> AttentionSpec {
    fields.must_be("attention_bias", &json!(false));
    fields.may_be("rope_scaling", &json!(null));
    let (q_heads, kv_heads) = heads(fields, "num_attention_heads", "num_key_value_heads");
    let qk_dim = fields.size("head_dim", limit::HEAD_DIM);
    let v_dim = match fields.optional("v_head_dim") {
        Some(_) => fields.size("v_head_dim", limit::HEAD_DIM),
        None => qk_dim,
    };
    let factor = fields.number("partial_rotary_factor", 0.0, 1.0);
    let dims = rotary_dims(factor, qk_dim).unwrap_or_else(|what| {
        fields.problem("partial_rotary_factor", what);
        0
    });
    let stated_base = fields.number("rope_theta", 1.0, 1e12);
    let base = knobs.draft_rope_base.unwrap_or(stated_base);
    if !(1.0..=1e12).contains(&base) {
        fields.problem("rope_theta", format!("of the knob draft_rope_base is {base}"));
    }
    AttentionSpec {
        reach: reach(fields, dflash, layer_count, knobs),
        q_heads,
        kv_heads,
        qk_dim,
        v_dim,
        rope: RopeSpec::plain(dims, base),
        sinks: dflash.bool("attention_sink_bias"),
        qk_norm_eps: Some(norm_eps),
        bias: false,
        value_scale: dflash.number("attention_value_scale", 1e-3, 1e3) as f32,
        qkv: QkvLayout::Split,
        qkv_format: WeightFormat::Float,
        output_format: WeightFormat::Float,
    }
}

/// Older drafters say `use_swa`; newer ones list every layer as `sliding_attention` instead.
fn reach(
    fields: &mut Fields<'_>,
    dflash: &mut Fields<'_>,
    layer_count: usize,
    knobs: &Knobs,
) -> Reach {
    let listed = fields.optional("layer_types").is_some();
    if listed {
        fields.must_be("layer_types", &json!(vec!["sliding_attention"; layer_count]));
        // Without it such layers would be causal within the draft.
        fields.must_be("is_causal", &json!(false));
        dflash.may_be("use_swa", &json!(true));
    }
    let stated = listed || dflash.bool("use_swa");
    let keys = fields.size("sliding_window", limit::POSITIONS);
    if dflash.optional("swa_window_size").is_some() {
        let other = dflash.size("swa_window_size", limit::POSITIONS);
        if other != keys {
            let what = format!("is {other}, but sliding_window is {keys}");
            dflash.problem("swa_window_size", what);
        }
    }
    if knobs.draft_window.unwrap_or(stated) { Reach::Window { keys } } else { Reach::Full }
}
