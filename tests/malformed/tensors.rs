//! Checkpoints whose files are valid but whose tensors are not the model's.

use half::bf16;
use kilotok_model::{Knobs, Part, Ranks, WeightId, declare};
use kilotok_weights::{Checkpoint, TensorData, WeightSource};

use crate::good::{Model, Stored, safetensors, write};
use crate::torch::embedding;
use crate::{accepts, refuses};

const FILE: &str = "model.safetensors";
const DRAFT_FILE: &str = "dflash/dflash_draft_model.safetensors";

fn find<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"))
}

/// Changes one tensor of the target.
fn edited(name: &str, edit: impl FnOnce(&mut Stored)) -> Model {
    let mut model = Model::good();
    edit(find(&mut model.target, name));
    model
}

fn named(name: &str) -> String {
    format!("{FILE}: {name}: ")
}

fn vector(name: &str, dtype: &str, bytes: &[u8], width: usize) -> Stored {
    let (name, dtype) = (name.to_owned(), dtype.to_owned());
    Stored { name, dtype, shape: vec![bytes.len() / width], bytes: bytes.to_vec() }
}

#[test]
fn wrong_types() {
    for (name, dtype, reason) in [
        ("model.norm.weight", "F16", "has the type F16, not BF16 or F32"),
        ("model.norm.weight", "I16", "has the type I16, not BF16 or F32"),
        (
            "model.layers.0.self_attn.qkv_proj.weight",
            "F8_E5M2",
            "has the type F8_E5M2, not F8_E4M3",
        ),
        ("model.layers.0.self_attn.qkv_proj.weight", "U8", "has the type U8, not F8_E4M3"),
        ("model.layers.0.self_attn.qkv_proj.weight_scale_inv", "I32", "has the type I32, not F32"),
        ("model.layers.1.mlp.experts.2.down_proj.weight", "I8", "has the type I8, not U8"),
        (
            "model.layers.1.mlp.experts.2.down_proj.weight",
            "F8_E4M3",
            "has the type F8_E4M3, not U8",
        ),
        ("model.layers.1.mlp.experts.0.up_proj.weight_scale", "F8_E8M0", "not U8"),
        ("model.layers.1.mlp.gate.weight", "U32", "has the type U32, not BF16 or F32"),
    ] {
        let model = edited(name, |tensor| dtype.clone_into(&mut tensor.dtype));
        refuses(&model.files(), &[&named(name), reason]);
    }
}

#[test]
fn wrong_shapes() {
    // 2 chunks of 4 * 24 + 24 + 16 = 136 rows have 2 scale rows each, not 272 / 128 = 3 together.
    let qkv = "model.layers.0.self_attn.qkv_proj.weight";
    let scales = format!("{qkv}_scale_inv");
    for (name, shape, reason) in [
        (qkv, vec![64, 272], "has the shape [64, 272], not [272, 64]"),
        (qkv, vec![272 * 64], "has the shape [17408], not [272, 64]"),
        (qkv, vec![1, 272, 64], "has the shape [1, 272, 64], not [272, 64]"),
        (&scales, vec![3, 1], "has the shape [3, 1], not [4, 1]"),
        (&scales, vec![1, 4], "has the shape [1, 4], not [4, 1]"),
        ("model.norm.weight", vec![1, 64], "has the shape [1, 64], not [64]"),
        ("model.norm.weight", vec![0], "has the shape [0], not [64]"),
        ("model.norm.weight", vec![], "has the shape [], not [64]"),
        ("lm_head.weight", vec![95, 64], "has the shape [95, 64], not [96, 64]"),
        ("model.layers.1.mlp.experts.1.gate_proj.weight", vec![32, 64], "not [32, 32]"),
        ("model.layers.1.self_attn.attention_sink_bias", vec![4], "has the shape [4], not [8]"),
    ] {
        let model = edited(name, |tensor| {
            let width = tensor.bytes.len() / tensor.shape.iter().product::<usize>();
            tensor.bytes.resize(shape.iter().product::<usize>() * width, 0);
            tensor.shape = shape;
        });
        refuses(&model.files(), &[&named(name), reason]);
    }
}

#[test]
fn tensors_that_are_missing() {
    for name in [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.weight_scale_inv",
        "model.layers.1.mlp.experts.2.gate_proj.weight_scale",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.self_attn.attention_sink_bias",
    ] {
        let mut model = Model::good();
        model.target.retain(|tensor| tensor.name != name);
        refuses(&model.files(), &[&named(name), "is missing"]);
    }
    let mut model = Model::good();
    model.draft.retain(|tensor| tensor.name != "fc.weight");
    refuses(&model.files(), &[&format!("{DRAFT_FILE}: fc.weight: is missing")]);
}

#[test]
fn tensors_that_nobody_declared() {
    for name in [
        "model.layers.0.self_attn.attention_sink_bias",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.experts.3.gate_proj.weight",
        "model.layers.1.mlp.shared_experts.gate_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "lm_head.bias",
        "visual.patch_embed.weight",
        "",
    ] {
        let mut model = Model::good();
        model.target.push(vector(name, "BF16", &[0; 16], 2));
        refuses(&model.files(), &[FILE, name, "is not part of the model"]);
    }
    // All tensors of a drafter must be read.
    let mut model = Model::good();
    model.draft.push(vector("model.mtp.layers.0.enorm.weight", "BF16", &[0; 16], 2));
    refuses(&model.files(), &[DRAFT_FILE, "mtp.layers.0.enorm.weight: is not part of the model"]);
    let mut model = Model::good();
    model.draft.push(vector("model.fc.weight", "BF16", &[0; 16], 2));
    refuses(&model.files(), &[DRAFT_FILE, "model.fc.weight: is in dflash/", "too"]);
}

#[test]
fn names_do_not_flood_the_message() {
    let mut model = Model::good();
    let hostile = format!("a\nb\x1b[31m{}", "c".repeat(100_000));
    model.target.push(vector(&hostile, "BF16", &[0; 16], 2));
    refuses(&model.files(), &[FILE, "a\\nb\\u{1b}[31mccc", "...: is not part of the model"]);
    let mut model = Model::good();
    for index in 0..100 {
        model.target.push(vector(&format!("extra.{index:03}"), "BF16", &[0; 16], 2));
    }
    model.target.retain(|tensor| tensor.name != "model.norm.weight");
    let wanted =
        ["model.norm.weight: is missing", "extra.018: is not part of the model", "\nand 81 more"];
    refuses(&model.files(), &wanted);
}

#[test]
fn floats_that_are_none() {
    for bad in [bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY] {
        let name = "model.layers.1.self_attn.o_proj.weight";
        let model = edited(name, |tensor| {
            let at = (5 * 128 + 77) * 2;
            tensor.bytes[at..at + 2].copy_from_slice(&bad.to_le_bytes());
        });
        refuses(&model.files(), &[&named(name), "element [5, 77] is NaN or infinite"]);
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let name = "model.layers.1.mlp.gate.weight";
        let model = edited(name, |tensor| {
            let at = (2 * 64 + 63) * 4;
            tensor.bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
        });
        refuses(&model.files(), &[&named(name), "element [2, 63] is NaN or infinite"]);
    }
    let mut model = Model::good();
    find(&mut model.draft, "norm.weight").bytes[..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    refuses(&model.files(), &[&format!("{DRAFT_FILE}: norm.weight: element [0, 0] is NaN")]);
}

#[test]
fn codes_and_scales_that_are_none() {
    let qkv = "model.layers.0.self_attn.qkv_proj.weight";
    for bad in [0x7f, 0xff] {
        let model = edited(qkv, |tensor| tensor.bytes[271 * 64 + 3] = bad);
        refuses(&model.files(), &[&named(qkv), "element [271, 3] is NaN"]);
    }
    let scales = format!("{qkv}_scale_inv");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, f32::MAX] {
        let model = edited(&scales, |tensor| {
            tensor.bytes[12..16].copy_from_slice(&bad.to_le_bytes());
        });
        let reason = "element [3, 0] is a scale that is negative, NaN or too large";
        refuses(&model.files(), &[&named(&scales), reason]);
    }
    let scales = "model.layers.1.mlp.experts.2.down_proj.weight_scale";
    for bad in [253, 255] {
        let model = edited(scales, |tensor| tensor.bytes[63] = bad);
        refuses(&model.files(), &[&named(scales), "element [63, 0] is a scale that is NaN"]);
    }
}

#[test]
fn what_is_good_is_accepted() {
    accepts(&Model::good().files());
    // Without a drafter.
    let mut files = Model::good().files();
    files.retain(|name, _| !name.starts_with("dflash"));
    accepts(&files);
    // A BF16 router, an F32 norm.
    let router = edited("model.layers.1.mlp.gate.weight", |tensor| {
        let numbers =
            tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        tensor.bytes = numbers.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
        "BF16".clone_into(&mut tensor.dtype);
    });
    accepts(&router.files());
    let norm = edited("model.norm.weight", |tensor| {
        tensor.bytes = (0..64_u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
        "F32".clone_into(&mut tensor.dtype);
    });
    accepts(&norm.files());
    // Prediction layers may be in the file, and towers if the model is multimodal.
    let mut model = Model::good();
    model.target.push(vector("model.mtp.layers.0.enorm.weight", "F16", &[0; 16], 2));
    accepts(&model.files());
    model.config["vision_config"] = serde_json::json!({"depth": 1});
    model.target.push(vector("visual.weight", "F4", &[0; 4], 1));
    model.target.last_mut().unwrap().shape = vec![8];
    accepts(&model.files());
    // A drafter whose tensors' names have a prefix, in a file with another name.
    let mut model = Model::good();
    for tensor in &mut model.draft {
        tensor.name.insert_str(0, "model.");
    }
    let mut files = model.files();
    files.remove(DRAFT_FILE);
    files.insert("dflash/model.safetensors".to_owned(), safetensors(&model.draft));
    accepts(&files);
}

/// The values that are read are those that were written.
#[test]
fn good_numbers_are_read_as_they_are() {
    let model = Model::good();
    let folder = tempfile::tempdir().unwrap();
    write(&model.files(), folder.path());
    let checkpoint = Checkpoint::open(folder.path(), &Knobs::default()).unwrap();
    let stored = |name: &str| model.target.iter().find(|tensor| tensor.name == name).unwrap();
    for decl in declare(checkpoint.spec()) {
        let read = checkpoint.read(&decl, &decl.slice(Ranks::ALONE)).unwrap();
        match (read.data, decl.id) {
            (TensorData::Bf16(values), WeightId::DraftMask) => {
                let bytes: Vec<_> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                assert_eq!(bytes, embedding());
            }
            (TensorData::Bf16(values), _) if decl.part == Part::Target => {
                let bytes: Vec<_> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                assert_eq!(bytes, stored(&decl.name).bytes, "{}", decl.name);
            }
            (TensorData::Mxfp4 { codes, scales }, _) => {
                assert_eq!(codes, stored(&decl.name).bytes, "{}", decl.name);
                let name = format!("{}_scale", decl.name);
                assert_eq!(scales, stored(&name).bytes, "{name}");
            }
            _ => {}
        }
    }
    assert_eq!(checkpoint.skipped(), []);
}

#[test]
fn what_is_skipped_is_told() {
    let mut model = Model::good();
    model.target.push(vector("model.mtp.layers.0.enorm.weight", "BF16", &[0; 16], 2));
    model.target.push(vector("model.mtp.layers.1.enorm.weight", "BF16", &[0; 16], 2));
    let folder = tempfile::tempdir().unwrap();
    write(&model.files(), folder.path());
    let checkpoint = Checkpoint::open(folder.path(), &Knobs::default()).unwrap();
    let [skipped] = checkpoint.skipped() else { panic!("one reason") };
    assert_eq!((skipped.tensor_count, skipped.bytes), (2, 32));
    assert!(skipped.reason.contains("multi-token prediction"));
}
