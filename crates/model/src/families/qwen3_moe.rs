//! Qwen3-MoE: Qwen3-30B-A3B, Qwen3-Coder-30B-A3B and Qwen3-235B-A22B, BF16 or FP8.

use serde_json::{Map, Value, json};

use super::{Knobs, experts_in_all, fp8, limit, model, router_dtype, usual_attention};
use crate::fields::Fields;
use crate::names::Names;
use crate::spec::{
    Activation, AttentionSpec, DenseSpec, ExpertLayout, ExpertsSpec, Family, FeedForwardSpec,
    LayerSpec, ModelSpec, RouterScores, RouterSpec, WeightFormat,
};

/// Some files have the experts of a layer stacked, as transformers 5 holds them in memory.
pub(super) const NAMES: Names = Names { may_stack_experts: true, ..Names::USUAL };

/// Fields that do not change what is computed.
const IGNORED: &[&str] = &[
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "initializer_range",
    "max_window_layers",
    "model_type",
    "output_router_logits",
    "pad_token_id",
    "router_aux_loss_coef",
    "transformers_version",
    "use_cache",
];

pub(super) fn read(map: &Map<String, Value>, knobs: &Knobs) -> Result<ModelSpec, Vec<String>> {
    let mut fields = Fields::new(map, "");
    fields.ignore(IGNORED);
    fields.ignore(&knobs.ignored_fields);
    fields.must_be("architectures", &json!(["Qwen3MoeForCausalLM"]));
    fields.must_be("hidden_act", &json!("silu"));
    for (name, wanted) in [
        ("attention_bias", json!(false)),
        ("qkv_bias", json!(false)),
        ("tie_word_embeddings", json!(false)),
        ("use_qk_norm", json!(true)),
        ("use_sliding_window", json!(false)),
        ("shared_expert_intermediate_size", json!(0)),
    ] {
        fields.may_be(name, &wanted);
    }
    // This field means nothing unless `use_sliding_window` is true.
    fields.ignore(&["sliding_window"]);
    let (model, layer_count) = model(&mut fields, Family::Qwen3Moe, "rms_norm_eps");
    let format = format(&mut fields);
    let attention = AttentionSpec {
        qk_norm_eps: Some(model.norm_eps),
        qkv_format: format,
        output_format: format,
        ..usual_attention(&mut fields)
    };
    let experts = experts(&mut fields, format, knobs);
    let sparse = sparse_layers(&mut fields, layer_count);
    let name = experts_name(&mut fields);
    experts_in_all(&mut fields, name, experts.count, &sparse);
    // This field means nothing where every layer has experts.
    let width = match fields.optional("intermediate_size") {
        Some(_) => fields.size("intermediate_size", limit::WIDTH),
        None if sparse.contains(&false) => fields.size("intermediate_size", limit::WIDTH),
        None => 1,
    };
    let dense = DenseSpec { width, format, activation: Activation::SiluMul };
    let layers = sparse.into_iter().map(|is_sparse| LayerSpec {
        attention: attention.clone(),
        feed_forward: if is_sparse {
            FeedForwardSpec::Experts(experts.clone())
        } else {
            FeedForwardSpec::Dense(dense)
        },
    });
    let layers = layers.collect();
    fields.check()?;
    Ok(ModelSpec { layers, ..model })
}

fn experts(fields: &mut Fields<'_>, format: WeightFormat, knobs: &Knobs) -> ExpertsSpec {
    let name = experts_name(fields);
    let count = fields.size(name, limit::EXPERTS);
    ExpertsSpec {
        count,
        top_k: fields.size("num_experts_per_tok", count),
        width: fields.size("moe_intermediate_size", limit::WIDTH),
        format,
        activation: Activation::SiluMul,
        layout: ExpertLayout::Apart,
        bias: false,
        router: RouterSpec {
            scores: RouterScores::Softmax,
            bias: false,
            normalise: fields.bool("norm_topk_prob"),
            scale: 1.0,
            dtype: router_dtype(fields, knobs),
        },
    }
}

/// The name that the published files use, or that of transformers 5.
fn experts_name(fields: &mut Fields<'_>) -> &'static str {
    let is_new = fields.optional("num_local_experts").is_some();
    if is_new && fields.optional("num_experts").is_none() {
        "num_local_experts"
    } else {
        "num_experts"
    }
}

/// Which layers have experts: every `decoder_sparse_step`-th, less those of `mlp_only_layers`.
fn sparse_layers(fields: &mut Fields<'_>, layer_count: usize) -> Vec<bool> {
    let step = match fields.optional("decoder_sparse_step") {
        Some(_) => fields.size("decoder_sparse_step", limit::LAYERS),
        None => 1,
    };
    let dense = match fields.optional("mlp_only_layers") {
        Some(_) => fields.ids("mlp_only_layers", layer_count),
        None => Vec::new(),
    };
    let sparse = |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&layer);
    (0..layer_count).map(sparse).collect()
}

/// How all matrices but tables and routers are stored.
fn format(fields: &mut Fields<'_>) -> WeightFormat {
    let Some(map) = fields.object("quantization_config") else {
        return WeightFormat::Float;
    };
    let mut quant = Fields::new(map, "quantization_config.");
    fp8(&mut quant);
    let unconverted = |name: &str| {
        let module = name.rsplit('.').next().unwrap_or_default();
        module.ends_with("norm")
            || name.ends_with("mlp.gate")
            || ["lm_head", "embed_tokens"].contains(&module)
    };
    for list in ["modules_to_not_convert", "ignored_layers"] {
        let listed = quant.optional(list).and_then(Value::as_array).into_iter().flatten();
        let mut names = listed.map(|name| name.as_str().unwrap_or_default());
        if let Some(other) = names.find(|name| !unconverted(name)) {
            quant.problem(list, format!("has {other:?}, which kilotok reads as FP8"));
        }
    }
    fields.problems.extend(quant.finish());
    WeightFormat::Fp8
}
