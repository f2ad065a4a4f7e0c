//! gpt-oss: gpt-oss-20b and gpt-oss-120b, as published.

use serde_json::{Map, Value, json};

use super::{Knobs, experts_in_all, limit, model, router_dtype, usual_attention, window};
use crate::fields::Fields;
use crate::names::Names;
use crate::spec::{
    Activation, AttentionSpec, ExpertLayout, ExpertsSpec, Family, FeedForwardSpec, LayerSpec,
    ModelSpec, Reach, RouterScores, RouterSpec, WeightFormat,
};
use crate::weight::MXFP4_GROUP;

pub(super) const NAMES: Names =
    Names { sinks: "self_attn.sinks", router: "mlp.router", ..Names::USUAL };

/// Fields that do not change what is computed. `hidden_act` is silu in the published files, which
/// is not what is computed, see [`ALPHA`].
const IGNORED: &[&str] = &[
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "experts_per_token",
    "hidden_act",
    "initial_context_length",
    "initializer_range",
    "model_type",
    "output_router_logits",
    "pad_token_id",
    "router_aux_loss_coef",
    "transformers_version",
    "use_cache",
];

/// Alpha of the activation. The published configs do not name it.
const ALPHA: f64 = 1.702;

pub(super) fn read(map: &Map<String, Value>, knobs: &Knobs) -> Result<ModelSpec, Vec<String>> {
    let mut fields = Fields::new(map, "");
    fields.ignore(IGNORED);
    fields.ignore(&knobs.ignored_fields);
    fields.must_be("architectures", &json!(["GptOssForCausalLM"]));
    fields.must_be("attention_bias", &json!(true));
    fields.may_be("tie_word_embeddings", &json!(false));
    let (model, layer_count) = model(&mut fields, Family::GptOss, "rms_norm_eps");
    let format = format(&mut fields);
    let window = window(&mut fields, knobs);
    let reaches = reaches(&mut fields, layer_count, window);
    let attention = AttentionSpec { sinks: true, bias: true, ..usual_attention(&mut fields) };
    let experts = experts(&mut fields, format, knobs);
    if format == WeightFormat::Mxfp4 {
        for (name, size) in
            [("hidden_size", model.hidden_size), ("intermediate_size", experts.width)]
        {
            if !size.is_multiple_of(MXFP4_GROUP) {
                fields.problem(name, format!("is {size}, not in MXFP4 groups of {MXFP4_GROUP}"));
            }
        }
    }
    experts_in_all(&mut fields, "num_local_experts", experts.count, &vec![true; layer_count]);
    let layers = reaches.into_iter().map(|reach| LayerSpec {
        attention: AttentionSpec { reach, ..attention.clone() },
        feed_forward: FeedForwardSpec::Experts(experts.clone()),
    });
    let layers = layers.collect();
    fields.check()?;
    Ok(ModelSpec { layers, ..model })
}

/// What each layer sees; the published models have windows on every even layer.
fn reaches(fields: &mut Fields<'_>, layer_count: usize, window: Reach) -> Vec<Reach> {
    const NAME: &str = "layer_types";
    let Some(listed) = fields.optional(NAME) else {
        fields.problem(NAME, "is missing");
        return Vec::new();
    };
    let listed = listed.as_array().map_or(&[][..], Vec::as_slice);
    if listed.len() != layer_count {
        let what = format!("has {} entries for {layer_count} layers", listed.len());
        fields.problem(NAME, what);
    }
    let reach = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(window),
        Some("full_attention") => Ok(Reach::Full),
        _ => Err(format!("has {kind}; kilotok knows sliding_attention and full_attention")),
    };
    listed.iter().map(reach).collect::<Result<_, _>>().unwrap_or_else(|what| {
        fields.problem(NAME, what);
        Vec::new()
    })
}

fn experts(fields: &mut Fields<'_>, format: WeightFormat, knobs: &Knobs) -> ExpertsSpec {
    let count = fields.size("num_local_experts", limit::EXPERTS);
    let cut = fields.number("swiglu_limit", 1e-3, 1e6) as f32;
    fields.may_be("swiglu_alpha", &json!(ALPHA));
    ExpertsSpec {
        count,
        top_k: fields.size("num_experts_per_tok", count),
        width: fields.size("intermediate_size", limit::WIDTH),
        format,
        activation: Activation::ClampedSwiglu { alpha: ALPHA as f32, limit: cut },
        layout: ExpertLayout::StackedInterleaved,
        bias: true,
        router: RouterSpec {
            scores: RouterScores::Softmax,
            bias: true,
            // The softmax is over the chosen experts alone.
            normalise: true,
            scale: 1.0,
            dtype: router_dtype(fields, knobs),
        },
    }
}

/// How the experts are stored. Every other matrix is floats. Without `quantization_config` all are,
/// but then transformers has written the experts transposed.
fn format(fields: &mut Fields<'_>) -> WeightFormat {
    const UNCONVERTED: [&str; 4] =
        ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"];
    let Some(map) = fields.object("quantization_config") else {
        fields.problem("quantization_config", "is missing; kilotok reads MXFP4 experts only");
        return WeightFormat::Float;
    };
    let mut quant = Fields::new(map, "quantization_config.");
    quant.must_be("quant_method", &json!("mxfp4"));
    let listed = quant.optional("modules_to_not_convert").and_then(Value::as_array);
    let listed = listed.map_or(&[][..], Vec::as_slice);
    if let Some(absent) = UNCONVERTED.iter().find(|name| !listed.contains(&json!(name))) {
        let what = format!("lacks {absent}, which kilotok reads as BF16");
        quant.problem("modules_to_not_convert", what);
    }
    if let Some(other) = listed.iter().find(|name| !UNCONVERTED.map(Value::from).contains(name)) {
        let what = format!("has {other}, which kilotok reads as MXFP4");
        quant.problem("modules_to_not_convert", what);
    }
    fields.problems.extend(quant.finish());
    WeightFormat::Mxfp4
}
