//! MiMo-V2: V2-Flash, V2.5 (its text path) and V2.5-Pro, FP8 or with MXFP4 experts.

use serde_json::{Map, Value, json};

use super::{Knobs, experts_in_all, fp8, heads, limit, model, rotary_dims};
use crate::fields::Fields;
use crate::names::Names;
use crate::rope::RopeSpec;
use crate::spec::{
    Activation, AttentionSpec, DenseSpec, ExpertLayout, ExpertsSpec, Family, FeedForwardSpec,
    LayerSpec, ModelSpec, QkvLayout, Reach, RouterDtype, RouterScores, RouterSpec, WeightFormat,
};
use crate::weight::MXFP4_GROUP;

pub(super) const NAMES: Names = Names {
    skipped: &[("model.mtp.", "multi-token prediction, which the drafter replaces")],
    ..Names::USUAL
};

/// Fields that do not change what is computed, or that belong to the towers we do not run.
const IGNORED: &[&str] = &[
    "_name_or_path",
    "attention_chunk_size",
    "attention_dropout",
    "audio_config",
    "auto_map",
    "bos_token_id",
    "dtype",
    "hybrid_block_size",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "processor_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vision_config",
    "audio_token_id",
    "image_token_id",
    "video_token_id",
    "audio_start_token_id",
    "audio_end_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    "video_start_token_id",
    "video_end_token_id",
    "tokenizer_class",
];

/// How the checkpoint stores its matrices.
struct Formats {
    qkv: WeightFormat,
    dense: WeightFormat,
    experts: WeightFormat,
}

pub(super) fn read(map: &Map<String, Value>, knobs: &Knobs) -> Result<ModelSpec, Vec<String>> {
    let mut fields = Fields::new(map, "");
    fields.ignore(IGNORED);
    fields.ignore(&knobs.ignored_fields);
    let family = family(&mut fields);
    let (model, layer_count) = model(&mut fields, family, "layernorm_epsilon");
    for (name, wanted) in [
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("tie_word_embeddings", json!(false)),
    ] {
        fields.must_be(name, &wanted);
    }
    fields.may_be("rope_scaling", &json!(null));
    let formats = formats(&mut fields, layer_count);
    let full = attention(&mut fields, family, &formats, false, knobs);
    let window = attention(&mut fields, family, &formats, true, knobs);
    let dense = FeedForwardSpec::Dense(DenseSpec {
        width: fields.size("intermediate_size", limit::WIDTH),
        format: formats.dense,
        activation: Activation::SiluMul,
    });
    let experts = experts(&mut fields, &formats, knobs);
    let windows = flags(&mut fields, "hybrid_layer_pattern", layer_count);
    let sparse = flags(&mut fields, "moe_layer_freq", layer_count);
    check_formats(&mut fields, &formats, model.hidden_size, experts.width);
    experts_in_all(&mut fields, "n_routed_experts", experts.count, &sparse);
    let experts = FeedForwardSpec::Experts(experts);
    let layers = windows.iter().zip(&sparse).map(|(&is_window, &is_sparse)| LayerSpec {
        attention: if is_window { window.clone() } else { full.clone() },
        feed_forward: if is_sparse { experts.clone() } else { dense.clone() },
    });
    let layers = layers.collect();
    fields.check()?;
    let multimodal = ["vision_config", "audio_config"]
        .iter()
        .any(|name| map.get(*name).is_some_and(|value| !value.is_null()));
    Ok(ModelSpec { layers, multimodal, ..model })
}

fn family(fields: &mut Fields<'_>) -> Family {
    let flash = fields.optional("model_type").and_then(Value::as_str) == Some("mimo_v2_flash");
    let (family, architecture) = if flash {
        (Family::MimoV2Flash, "MiMoV2FlashForCausalLM")
    } else {
        (Family::MimoV2, "MiMoV2ForCausalLM")
    };
    fields.must_be("architectures", &json!([architecture]));
    if flash {
        fields.may_be("attention_projection_layout", &json!("split"));
    } else {
        fields.must_be("attention_projection_layout", &json!("fused_qkv"));
    }
    family
}

/// A 0 or 1 for each layer.
fn flags(fields: &mut Fields<'_>, name: &str, layer_count: usize) -> Vec<bool> {
    let flags = fields.ids(name, 2);
    if flags.len() != layer_count {
        let what = format!("has {} entries for {layer_count} layers", flags.len());
        fields.problem(name, what);
    }
    flags.into_iter().map(|flag| flag == 1).collect()
}

fn attention(
    fields: &mut Fields<'_>,
    family: Family,
    formats: &Formats,
    is_window: bool,
    knobs: &Knobs,
) -> AttentionSpec {
    let [q_name, kv_name, qk_name, v_name, base_name, sink_name] = if is_window {
        [
            "swa_num_attention_heads",
            "swa_num_key_value_heads",
            "swa_head_dim",
            "swa_v_head_dim",
            "swa_rope_theta",
            "add_swa_attention_sink_bias",
        ]
    } else {
        [
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "v_head_dim",
            "rope_theta",
            "add_full_attention_sink_bias",
        ]
    };
    let (q_heads, kv_heads) = heads(fields, q_name, kv_name);
    let qk_dim = fields.size(qk_name, limit::HEAD_DIM);
    let factor = fields.number("partial_rotary_factor", 0.0, 1.0);
    let dims = rotary_dims(factor, qk_dim).unwrap_or_else(|what| {
        fields.problem("partial_rotary_factor", what);
        0
    });
    // Every layer, windowed ones too, is stored in as many chunks as there are global K/V heads.
    let qkv = if family == Family::MimoV2Flash {
        QkvLayout::Split
    } else {
        let chunks = fields.size("num_key_value_heads", limit::HEADS);
        if !q_heads.is_multiple_of(chunks) || !kv_heads.is_multiple_of(chunks) {
            let what = format!("is {kv_heads}, not shared evenly by {chunks} chunks");
            fields.problem(kv_name, what);
        }
        QkvLayout::Fused { chunks }
    };
    AttentionSpec {
        reach: if is_window { window(fields, knobs) } else { Reach::Full },
        q_heads,
        kv_heads,
        qk_dim,
        v_dim: fields.size(v_name, limit::HEAD_DIM),
        rope: RopeSpec::plain(dims, fields.number(base_name, 1.0, 1e12)),
        sinks: fields.bool(sink_name),
        qk_norm_eps: None,
        bias: false,
        value_scale: value_scale(fields),
        qkv,
        qkv_format: formats.qkv,
        output_format: WeightFormat::Float,
    }
}

fn value_scale(fields: &mut Fields<'_>) -> f32 {
    // Null means that values are not scaled.
    match fields.optional("attention_value_scale") {
        Some(_) => fields.number("attention_value_scale", 1e-3, 1e3) as f32,
        None => 1.0,
    }
}

fn window(fields: &mut Fields<'_>, knobs: &Knobs) -> Reach {
    let reach = super::window(fields, knobs);
    let keys = fields.size("sliding_window", limit::POSITIONS);
    if fields.optional("sliding_window_size").is_some() {
        let other = fields.size("sliding_window_size", limit::POSITIONS);
        if other != keys {
            let what = format!("is {other}, but sliding_window is {keys}");
            fields.problem("sliding_window_size", what);
        }
    }
    reach
}

fn experts(fields: &mut Fields<'_>, formats: &Formats, knobs: &Knobs) -> ExpertsSpec {
    let count = fields.size("n_routed_experts", limit::EXPERTS);
    let top_k = fields.size("num_experts_per_tok", count);
    for (name, wanted) in [
        ("scoring_func", json!("sigmoid")),
        ("topk_method", json!("noaux_tc")),
        ("n_group", json!(1)),
        ("topk_group", json!(1)),
    ] {
        fields.must_be(name, &wanted);
    }
    fields.may_be("n_shared_experts", &json!(0));
    let scale = match fields.optional("routed_scaling_factor") {
        Some(_) => fields.number("routed_scaling_factor", 1e-3, 1e3) as f32,
        None => 1.0,
    };
    let stated = match fields.optional("moe_router_dtype") {
        Some(_) => fields.choice(
            "moe_router_dtype",
            &[("float32", RouterDtype::F32), ("bfloat16", RouterDtype::Bf16)],
        ),
        None => None,
    };
    let dtype = knobs.router_dtype.or(stated).unwrap_or(RouterDtype::F32);
    ExpertsSpec {
        count,
        top_k,
        width: fields.size("moe_intermediate_size", limit::WIDTH),
        format: formats.experts,
        activation: Activation::SiluMul,
        layout: ExpertLayout::Apart,
        bias: false,
        router: RouterSpec {
            scores: RouterScores::CorrectedSigmoid,
            bias: false,
            normalise: fields.bool("norm_topk_prob"),
            scale,
            dtype,
        },
    }
}

/// Reads `quantization_config`. Without one all matrices are floats.
fn formats(fields: &mut Fields<'_>, layer_count: usize) -> Formats {
    let float = WeightFormat::Float;
    let Some(map) = fields.object("quantization_config") else {
        return Formats { qkv: float, dense: float, experts: float };
    };
    let mut quant = Fields::new(map, "quantization_config.");
    fp8(&mut quant);
    check_ignored_layers(&mut quant, layer_count);
    let experts = match quant.optional("store_dtype") {
        None => Some(WeightFormat::Fp8),
        Some(_) => quant
            .choice("store_dtype", &[("fp8", WeightFormat::Fp8), ("mxfp4", WeightFormat::Mxfp4)]),
    };
    if experts == Some(WeightFormat::Mxfp4) {
        quant.must_be("mxfp4_block_size", &json!(MXFP4_GROUP));
    }
    fields.problems.extend(quant.finish());
    let fp8 = WeightFormat::Fp8;
    Formats { qkv: fp8, dense: fp8, experts: experts.unwrap_or(fp8) }
}

/// Every output projection stays BF16, and nothing else does.
fn check_ignored_layers(quant: &mut Fields<'_>, layer_count: usize) {
    const NAME: &str = "ignored_layers";
    // Left over in the published configs; there is no such layer.
    const DANGLING: &str = "model.decoder.self_attn.o_proj";
    let empty = Vec::new();
    let listed = quant.optional(NAME).and_then(Value::as_array).unwrap_or(&empty);
    let listed: Vec<_> = listed.iter().map(|name| name.as_str().unwrap_or_default()).collect();
    let wanted: Vec<_> =
        (0..layer_count).map(|layer| format!("model.layers.{layer}.self_attn.o_proj")).collect();
    if let Some(absent) = wanted.iter().find(|name| !listed.contains(&name.as_str())) {
        quant.problem(NAME, format!("lacks {absent}, which kilotok reads as BF16"));
    }
    let known = |name: &str| name == DANGLING || wanted.iter().any(|wanted| wanted == name);
    if let Some(other) = listed.iter().find(|name| !known(name)) {
        quant.problem(NAME, format!("has {other:?}, which kilotok reads as FP8"));
    }
}

/// MXFP4 rows are cut into whole groups.
fn check_formats(
    fields: &mut Fields<'_>,
    formats: &Formats,
    hidden_size: usize,
    expert_width: usize,
) {
    if formats.experts != WeightFormat::Mxfp4 {
        return;
    }
    for (name, size) in [("hidden_size", hidden_size), ("moe_intermediate_size", expert_width)] {
        if !size.is_multiple_of(MXFP4_GROUP) {
            fields.problem(name, format!("is {size}, not in MXFP4 groups of {MXFP4_GROUP}"));
        }
    }
}
