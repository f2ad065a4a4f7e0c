//! The published models: that their configs are read as what they are, and that the declared
//! weights add up to the published files, byte for byte.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use kilotok_model::{
    AttentionSpec, Dtype, FeedForwardSpec, Format, Knobs, LayerWeight, ModelSpec, Part, QkvLayout,
    Ranks, Reach, RouterDtype, Shard, WeightDecl, WeightFormat, WeightId, check_ranks, declare,
    read_config, read_drafter,
};
use serde_json::Value;

use crate::configs;

pub(crate) fn spec(config: &Value) -> ModelSpec {
    read_config("config.json", &config.to_string(), &Knobs::default()).expect("a good config")
}

pub(crate) fn with_drafter(config: &Value, drafter: &Value) -> ModelSpec {
    let mut spec = spec(config);
    let file = "dflash/config.json";
    let drafter = read_drafter(file, &drafter.to_string(), &spec, &Knobs::default());
    spec.drafter = Some(drafter.expect("a good config"));
    spec
}

/// Stored as published: routers and their biases in F32, every other float in BF16.
fn float_dtype(id: WeightId) -> Dtype {
    match id {
        WeightId::Layer(_, _, LayerWeight::Router | LayerWeight::RouterCorrection) => Dtype::F32,
        _ => Dtype::Bf16,
    }
}

/// Bytes of a weight's tensors, by type.
fn stored_bytes(decl: &WeightDecl) -> impl Iterator<Item = (Dtype, usize)> {
    let id = decl.id;
    decl.stored().into_iter().map(move |tensor| {
        let dtype = if let [only] = tensor.dtypes { *only } else { float_dtype(id) };
        (dtype, tensor.shape.iter().product::<usize>() * dtype.bytes())
    })
}

/// Tensors of a model in BF16, MXFP4 and FP8, and their bytes.
pub(crate) fn stored_totals(spec: &ModelSpec) -> (usize, usize) {
    let stored = declare(spec).into_iter().flat_map(|decl| decl.stored());
    let bytes = |shape: &[usize], dtype: Dtype| shape.iter().product::<usize>() * dtype.bytes();
    let tensors: BTreeMap<_, _> =
        stored.map(|tensor| (tensor.name, bytes(&tensor.shape, tensor.dtypes[0]))).collect();
    (tensors.len(), tensors.values().sum())
}

fn bytes_where(decls: &[WeightDecl], chosen: impl Fn(WeightId) -> bool) -> usize {
    let decls = decls.iter().filter(|decl| chosen(decl.id));
    decls.flat_map(stored_bytes).map(|(_, bytes)| bytes).sum()
}

fn bytes_of_dtype(decls: &[WeightDecl], wanted: Dtype) -> usize {
    let tensors = decls.iter().flat_map(stored_bytes);
    tensors.filter(|(dtype, _)| *dtype == wanted).map(|(_, bytes)| bytes).sum()
}

fn find(decls: &[WeightDecl], layer: usize, weight: LayerWeight) -> &WeightDecl {
    let id = WeightId::Layer(Part::Target, layer, weight);
    decls.iter().find(|decl| decl.id == id).expect("a weight of the layer")
}

#[test]
fn pro_is_what_its_card_says() {
    let spec = with_drafter(&configs::pro_fp4(), &configs::pro_drafter());
    assert_eq!((spec.layers.len(), spec.hidden_size, spec.vocab_size), (70, 6144, 152_576));
    assert_eq!(spec.end_tokens, [151_645]);
    assert!(!spec.multimodal);
    let global: Vec<_> = (0..70)
        .filter(|layer: &usize| spec.layers[*layer].attention.reach == Reach::Full)
        .collect();
    assert_eq!(global, [0, 7, 15, 23, 31, 39, 47, 55, 62, 69]);
    for (index, layer) in spec.layers.iter().enumerate() {
        let attention = &layer.attention;
        let is_global = global.contains(&index);
        assert_eq!(attention.window(), if is_global { None } else { Some(128) });
        assert_eq!(attention.sinks, !is_global);
        assert_eq!((attention.q_heads, attention.kv_heads), (128, 8));
        assert_eq!((attention.qk_dim, attention.v_dim), (192, 128));
        assert_eq!(attention.rope.dims, 64);
        assert_eq!(attention.rope.base, if is_global { 1e7 } else { 1e4 });
        assert_eq!(attention.value_scale, 0.612);
        assert_eq!(attention.qkv, QkvLayout::Fused { chunks: 8 });
        match &layer.feed_forward {
            FeedForwardSpec::Dense(dense) => assert_eq!((index, dense.width), (0, 16384)),
            FeedForwardSpec::Experts(experts) => {
                assert_eq!((experts.count, experts.top_k, experts.width), (384, 8, 2048));
                assert_eq!(experts.format, WeightFormat::Mxfp4);
                assert_eq!(experts.router.dtype, RouterDtype::F32);
                assert!(experts.router.normalise && experts.router.scale == 1.0);
            }
        }
    }
    let drafter = spec.drafter.unwrap();
    assert_eq!((drafter.rows, drafter.mask_token, drafter.layers.len()), (8, 151_669, 5));
    assert_eq!(drafter.taps, [0, 15, 31, 47, 69]);
    let attention = &drafter.layers[4].attention;
    assert_eq!(attention.window(), Some(1024));
    assert_eq!((attention.rope.dims, attention.rope.base), (64, 1e4));
    assert!(
        attention.sinks && attention.qk_norm_eps == Some(1e-5) && attention.value_scale == 0.612
    );
}

/// The header totals of the published files, less the multi-token prediction layers.
#[test]
fn pro_fp4_adds_up_to_its_files() {
    const QKV: usize = 27136 * 6144;
    const DENSE: usize = 3 * 16384 * 6144;
    let decls = declare(&spec(&configs::pro_fp4()));
    assert_eq!(bytes_of_dtype(&decls, Dtype::U8), 531_351_207_936);
    let prediction = 3 * (QKV + DENSE);
    assert_eq!(bytes_of_dtype(&decls, Dtype::F8E4m3), 13_378_781_184 - prediction);
    // The sister's router is BF16 and so no part of its F32 total.
    let router = 69 * 384 * 6144;
    let prediction = 3 * (216 * 48 + 3 * 128 * 48);
    let elements = bytes_of_dtype(&decls, Dtype::F32) / 4;
    assert_eq!(elements, 857_088 - prediction + router);
    let expert = |id| matches!(id, WeightId::Expert(3, 7, _));
    assert_eq!(bytes_where(&decls, expert), 20_054_016);
    let names: Vec<_> = decls.iter().filter(|decl| expert(decl.id)).collect();
    let names: Vec<_> = names.iter().flat_map(|decl| decl.stored()).map(|t| t.name).collect();
    let prefix = "model.layers.3.mlp.experts.7.";
    let wanted = ["gate_proj", "up_proj", "down_proj"]
        .map(|name| [format!("{prefix}{name}.weight"), format!("{prefix}{name}.weight_scale")]);
    assert_eq!(names, wanted.as_flattened());
}

#[test]
fn pro_fp8_has_fp8_experts() {
    let decls = declare(&spec(&configs::pro_fp8()));
    let expert = |id| matches!(id, WeightId::Expert(1, 0, _));
    // 2048 x 6144 codes and 16 x 48 scales, three times.
    assert_eq!(bytes_where(&decls, expert), 3 * (2048 * 6144 + 16 * 48 * 4));
    assert_eq!(bytes_of_dtype(&decls, Dtype::U8), 0);
}

/// Per category, as an engine counted them in the published files of V2.5.
#[test]
fn v2_5_adds_up_to_its_files() {
    let spec = spec(&configs::v2_5());
    assert!(spec.multimodal);
    let decls = declare(&spec);
    let bytes = |chosen: fn(WeightId) -> bool| bytes_where(&decls, chosen);
    assert_eq!(bytes(|id| matches!(id, WeightId::Expert(1, 0, _))), 25_171_968);
    assert_eq!(bytes(|id| matches!(id, WeightId::Expert(..))), 302_869_118_976);
    assert_eq!(bytes(|id| id == WeightId::Head), 1_249_902_592);
    assert_eq!(bytes(|id| id == WeightId::Embedding), 1_249_902_592);
    let router = |id| matches!(id, WeightId::Layer(_, _, LayerWeight::Router));
    assert_eq!(bytes_where(&decls, router), 197_132_288);
    let bias = |id| matches!(id, WeightId::Layer(_, _, LayerWeight::RouterCorrection));
    let dense = |id| {
        use LayerWeight::{Down, Gate, Up};
        matches!(id, WeightId::Layer(_, _, Gate | Up | Down))
    };
    assert_eq!(bytes_where(&decls, dense), 201_375_744);
    let others = |id| {
        let table = matches!(id, WeightId::Head | WeightId::Embedding | WeightId::Expert(..));
        !(table || router(id) || bias(id) || dense(id))
    };
    assert_eq!(bytes_where(&decls, others), 6_094_778_240);
}

/// Of the 166 GB that are published, the rest is the drafter, towers and multi-token prediction.
#[test]
fn v2_6_flash_fits_two_gpus_of_141_gb() {
    let spec = with_drafter(&configs::v2_6_flash(), &v2_6_drafter(configs::v2_5_drafter()));
    assert!(spec.multimodal && spec.norm_eps == 1e-6);
    for layer in &spec.layers[1..] {
        let FeedForwardSpec::Experts(experts) = &layer.feed_forward else { panic!("experts") };
        assert_eq!(
            (experts.format, experts.router.dtype),
            (WeightFormat::Mxfp4, RouterDtype::Bf16)
        );
    }
    let decls = declare(&spec);
    let experts = bytes_where(&decls, |id| matches!(id, WeightId::Expert(..)));
    // 2048 x 4096 weights of 4.25 bits, three times, of 256 experts in 47 layers.
    assert_eq!(experts, 47 * 256 * 3 * 2048 * 4096 * 17 / 32);
    // Four global K/V heads: each is held by two of eight ranks.
    for count in [1, 2, 4, 8] {
        check_ranks(&spec, count).unwrap();
    }
}

/// V2.6-Pro has the weights of V2.5-Pro, but for the type of its routers.
#[test]
fn v2_6_pro_is_v2_5_pro_with_bf16_routers() {
    let spec = with_drafter(&configs::v2_6_pro(), &v2_6_drafter(configs::pro_drafter()));
    assert!(spec.multimodal);
    for layer in &spec.layers[1..] {
        let FeedForwardSpec::Experts(experts) = &layer.feed_forward else { panic!("experts") };
        assert_eq!(experts.router.dtype, RouterDtype::Bf16);
    }
    let older = with_drafter(&configs::pro_fp4(), &configs::pro_drafter());
    let shapes = |spec| -> Vec<_> {
        let decls = declare(spec).into_iter();
        decls.map(|decl| (decl.name, decl.shape, decl.format)).collect()
    };
    assert_eq!(shapes(&spec), shapes(&older));
    for count in [1, 2, 4, 8] {
        check_ranks(&spec, count).unwrap();
    }
}

#[test]
fn v2_5_dflash_is_v2_5_with_a_drafter() {
    let spec = with_drafter(&configs::v2_5(), &configs::v2_5_drafter());
    let drafter = spec.drafter.as_ref().unwrap();
    assert_eq!((drafter.rows, drafter.mask_token, drafter.layers.len()), (8, 151_675, 5));
    assert_eq!(drafter.taps, [0, 11, 23, 35, 47]);
    for layer in &drafter.layers {
        let attention = &layer.attention;
        assert_eq!(
            (attention.q_heads, attention.kv_heads, attention.window()),
            (64, 8, Some(1024))
        );
        assert_eq!((attention.qk_norm_eps, attention.value_scale), (Some(1e-6), 0.612));
    }
    for count in [1, 2, 4, 8] {
        check_ranks(&spec, count).unwrap();
    }
}

/// V2.6 drafters list their layers' types instead of saying `use_swa`.
fn v2_6_drafter(mut config: Value) -> Value {
    config["layer_types"] = vec!["sliding_attention"; 5].into();
    config["is_causal"] = false.into();
    let dflash = config["dflash_config"].as_object_mut().unwrap();
    dflash.retain(|name, _| name != "use_swa" && name != "backbone_rotary_base");
    config
}

#[test]
fn drafters_add_up_to_their_files() {
    for (spec, bytes) in [
        (with_drafter(&configs::pro_fp4(), &configs::pro_drafter()), 5_536_632_576),
        (with_drafter(&configs::v2_5(), &configs::v2_5_drafter()), 2_936_114_304),
    ] {
        let decls = declare(&spec);
        let is_mask = |decl: &WeightDecl| decl.id == WeightId::DraftMask;
        let tensors: Vec<_> =
            decls.into_iter().filter(|decl| decl.part == Part::Drafter && !is_mask(decl)).collect();
        assert_eq!(tensors.len(), 63);
        assert_eq!(bytes_of_dtype(&tensors, Dtype::Bf16), bytes);
        assert_eq!(bytes_where(&tensors, |_| true), bytes);
    }
}

#[test]
fn flash_has_three_projections() {
    let spec = spec(&configs::v2_flash());
    let decls = declare(&spec);
    for (layer, kv_heads) in [(0, 4), (1, 8)] {
        let shape = |weight| &find(&decls, layer, weight).shape[..];
        assert_eq!(shape(LayerWeight::Query), [64 * 192, 4096]);
        assert_eq!(shape(LayerWeight::Key), [kv_heads * 192, 4096]);
        assert_eq!(shape(LayerWeight::Value), [kv_heads * 128, 4096]);
    }
    assert_eq!(spec.layers[0].attention.rope.base, 5e6);
    assert_eq!(spec.position_max, 262_144);
    assert!(!decls.iter().any(|decl| decl.name.contains("qkv_proj")));
}

/// The table of fused projections: rows of a chunk, rows of scales of a chunk, in all and naively.
#[test]
fn scale_rows_begin_anew_in_each_chunk() {
    let (pro, v2_5) = (spec(&configs::pro_fp4()), spec(&configs::v2_5()));
    for (spec, layer, chunks, chunk_rows, chunk_scales) in [
        (&pro, 0, 8, 3392, 27),
        (&pro, 1, 8, 3392, 27),
        (&v2_5, 0, 4, 3392, 27),
        (&v2_5, 1, 4, 3712, 29),
    ] {
        let decls = declare(spec);
        let qkv = find(&decls, layer, LayerWeight::Qkv);
        assert_eq!(qkv.format, Format::Fp8 { chunk_rows });
        assert_eq!(qkv.rows(), chunks * chunk_rows);
        let AttentionSpec { q_heads, kv_heads, qk_dim, v_dim, .. } = spec.layers[layer].attention;
        // Which rows a rank gets of this, tests of `weights` check head by head.
        assert_eq!(qkv.shard, Shard::Qkv { chunks, q_heads, kv_heads, qk_dim, v_dim });
        let scales = &qkv.stored()[1];
        assert_eq!(
            scales.name,
            format!("model.layers.{layer}.self_attn.qkv_proj.weight_scale_inv")
        );
        assert_eq!(scales.shape, [chunks * chunk_scales, spec.hidden_size / 128]);
        for row in 0..qkv.rows() {
            let wanted = row / chunk_rows * chunk_scales + row % chunk_rows / 128;
            assert_eq!(qkv.format.scale_row(row), wanted);
        }
    }
    let pro = declare(&pro);
    let qkv = find(&pro, 0, LayerWeight::Qkv);
    assert_eq!(qkv.stored()[1].shape[0], 216);
    assert_eq!(qkv.rows().div_ceil(128), 212);
    // The last K rows and the first V rows of a chunk share a scale.
    assert_eq!(
        [3199, 3200, 3263, 3264, 3327, 3328].map(|row| qkv.format.scale_row(row)),
        [24, 25, 25, 25, 25, 26]
    );
}

/// At eight ranks a rank of Pro is a chunk as it is stored.
#[test]
fn eight_ranks_of_pro_take_whole_chunks() {
    let spec = with_drafter(&configs::pro_fp4(), &configs::pro_drafter());
    let decls = declare(&spec);
    for rank in 0..8 {
        let ranks = Ranks { rank, count: 8 };
        let rows = |weight| find(&decls, 5, weight).slice(ranks).rows;
        let cols = |weight| find(&decls, 5, weight).slice(ranks).cols;
        let run = |each: usize| -> Range<usize> { rank * each..(rank + 1) * each };
        assert_eq!(rows(LayerWeight::Qkv), [run(3392)]);
        assert_eq!(cols(LayerWeight::Output), run(2048));
        assert_eq!(cols(LayerWeight::Sinks), run(16));
        assert_eq!(rows(LayerWeight::Router)[0], 0..384);
        let of = |id| decls.iter().find(|decl| decl.id == id).unwrap().slice(ranks);
        let expert = |weight| of(WeightId::Expert(5, 3, weight));
        assert_eq!(expert(LayerWeight::Gate).rows, [run(256)]);
        assert_eq!(expert(LayerWeight::Up).rows, [run(256)]);
        assert_eq!(expert(LayerWeight::Down).cols, run(256));
        assert_eq!(of(WeightId::Embedding).rows, [run(19072)]);
        assert_eq!(of(WeightId::Head).rows, [run(19072)]);
        assert_eq!(of(WeightId::DraftFc).rows, [run(768)]);
        let draft = |weight| of(WeightId::Layer(Part::Drafter, 0, weight));
        assert_eq!(draft(LayerWeight::Query).rows, [run(2048)]);
        assert_eq!(draft(LayerWeight::Key).rows, [run(128)]);
        assert_eq!(draft(LayerWeight::QueryNorm).cols, 0..128);
    }
}

/// V2.5's global layers have four K/V heads, so at eight ranks two share one.
#[test]
fn ranks_share_heads_when_there_are_too_few() {
    let decls = declare(&spec(&configs::v2_flash()));
    let key = find(&decls, 0, LayerWeight::Key);
    assert_eq!(key.shard, Shard::KvHeads { heads: 4, dim: 192 });
    for rank in 0..8 {
        let head = rank / 2;
        let rows = &key.slice(Ranks { rank, count: 8 }).rows;
        assert_eq!(rows[0], head * 192..(head + 1) * 192);
    }
}

#[test]
fn ranks_that_do_not_divide_are_refused_by_name() {
    let mut spec = with_drafter(&configs::pro_fp4(), &configs::pro_drafter());
    assert_eq!(
        check_ranks(&spec, 3).unwrap_err().problems,
        ["the number of ranks must be 1, 2, 4 or 8"]
    );
    spec.vocab_size += 1;
    spec.layers[2].attention.kv_heads = 6;
    if let FeedForwardSpec::Experts(experts) = &mut spec.layers[1].feed_forward {
        experts.width = 64 * 3;
    }
    let error = check_ranks(&spec, 4).unwrap_err().to_string();
    for part in [
        "vocab_size is 152577",
        "layer 2: 6 K/V heads",
        "layer 1: expert width 192 splits a group of 32",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn knobs_decide_what_configs_leave_open() {
    let knobs = Knobs {
        window_keys: Some(129),
        draft_rope_base: Some(5e6),
        draft_window: Some(false),
        draft_fp8: true,
        router_dtype: Some(RouterDtype::Bf16),
        ignored_fields: vec!["some_field".to_owned()],
        ..Knobs::default()
    };
    let mut config = configs::pro_fp4();
    config["some_field"] = 7.into();
    let spec = read_config("config.json", &config.to_string(), &knobs).unwrap();
    assert_eq!(spec.layers[1].attention.window(), Some(129));
    let FeedForwardSpec::Experts(experts) = &spec.layers[1].feed_forward else { panic!("sparse") };
    assert_eq!(experts.router.dtype, RouterDtype::Bf16);
    let text = configs::pro_drafter().to_string();
    let drafter = read_drafter("dflash/config.json", &text, &spec, &knobs).unwrap();
    assert_eq!(drafter.layers[0].attention.reach, Reach::Full);
    assert_eq!(drafter.layers[0].attention.rope.base, 5e6);
    // FP8 where it is computed with, floats where it is stored.
    assert_eq!(drafter.layers[0].feed_forward.format(), WeightFormat::Fp8);
    let down = WeightId::Layer(Part::Drafter, 0, LayerWeight::Down);
    let spec = ModelSpec { drafter: Some(drafter), ..spec };
    let down = declare(&spec).into_iter().find(|decl| decl.id == down).unwrap();
    assert_eq!(down.format, Format::FloatToFp8);
    let stored = down.stored();
    assert_eq!((stored.len(), stored[0].dtypes), (1, &[Dtype::Bf16, Dtype::F32][..]));
}

#[test]
fn newer_drafters_are_read_too() {
    let spec = with_drafter(&configs::pro_fp4(), &v2_6_drafter(configs::pro_drafter()));
    assert_eq!(spec.drafter.unwrap().layers[0].attention.window(), Some(1024));
}

#[test]
fn what_is_not_read_has_a_reason() {
    let (pro, v2_5) = (spec(&configs::pro_fp4()), spec(&configs::v2_5()));
    let prediction = "model.mtp.layers.0.eh_proj.weight";
    assert!(pro.skip_reason(prediction).is_some() && v2_5.skip_reason(prediction).is_some());
    for tower in ["visual.layers.0.attn.qkv.weight", "audio_encoder.conv.weight"] {
        assert!(v2_5.skip_reason(tower).is_some());
        assert_eq!(pro.skip_reason(tower), None);
    }
    for text in ["model.layers.3.mlp.extra.weight", "lm_head.bias", "model.norm.bias"] {
        assert_eq!(v2_5.skip_reason(text), None);
    }
}

/// Configs without weights, which benches run with dummy ones.
#[test]
fn models_to_measure_are_read_and_shared() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/models");
    let folders = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for folder in folders.filter(|path| path.is_dir()) {
        let read = |file: &str| {
            let text = std::fs::read_to_string(folder.join(file)).ok();
            text.map(|text| serde_json::from_str(&text).expect("JSON"))
        };
        let config: Value = read("config.json").expect("a config");
        let spec = match read("dflash/config.json") {
            Some(drafter) => with_drafter(&config, &drafter),
            None => spec(&config),
        };
        check_ranks(&spec, 1).unwrap();
        count += 1;
    }
    assert!(count > 10, "{count} models");
}
