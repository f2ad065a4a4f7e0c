//! Checkpoints of Qwen3-MoE and gpt-oss in the published layout, each with one fault.

use std::path::Path;

use kilotok_testkit::Toy;
use kilotok_testkit::toy::Files;
use serde_json::{Value, json};

use crate::good::{safetensors, tensors_of};
use crate::{assert_refused, read_all};

const FILE: &str = "model.safetensors";

/// One fault in a folder.
enum Fault {
    /// A changed field of `config.json`; null removes it.
    Config(&'static str, Value),
    Missing(&'static str),
    /// A changed element type of the same size.
    Type(&'static str, &'static str),
    /// A changed shape with the same number of elements.
    Shape(&'static str, Vec<usize>),
    /// Changed bytes of a tensor, from this offset on.
    Bytes(&'static str, usize, &'static [u8]),
    /// A tensor that does not belong to the model.
    Extra(&'static str),
}

use Fault::{Bytes, Config, Extra, Missing, Shape, Type};

fn spoil(folder: &Path, fault: &Fault) {
    if let Config(name, value) = fault {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[name] = value.clone();
        return std::fs::write(path, config.to_string()).unwrap();
    }
    let path = folder.join(FILE);
    let mut tensors = tensors_of(&std::fs::read(&path).unwrap());
    let name = match fault {
        Config(name, _) | Missing(name) | Type(name, _) | Shape(name, _) | Bytes(name, ..) => name,
        Extra(_) => "model.norm.weight",
    };
    let index = tensors.iter().position(|tensor| tensor.name == *name);
    let index = index.unwrap_or_else(|| panic!("there is no {name}"));
    match fault {
        Config(..) => {}
        Missing(_) => drop(tensors.remove(index)),
        Type(_, dtype) => (*dtype).clone_into(&mut tensors[index].dtype),
        Shape(_, shape) => tensors[index].shape.clone_from(shape),
        Bytes(_, at, bytes) => {
            tensors[index].bytes[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        Extra(name) => {
            let mut extra = tensors[index].clone();
            (*name).clone_into(&mut extra.name);
            tensors.push(extra);
        }
    }
    std::fs::write(path, safetensors(&tensors)).unwrap();
}

fn refuse_all(toy: &Toy, cases: &[(Fault, &str)]) {
    for (fault, wanted) in cases {
        let folder = tempfile::tempdir().unwrap();
        toy.write(folder.path(), Files::One).unwrap();
        read_all(folder.path()).unwrap();
        spoil(folder.path(), fault);
        let file = if matches!(fault, Config(..)) { "" } else { FILE };
        assert_refused(read_all(folder.path()), &[file, wanted]);
    }
}

#[test]
fn gpt_oss() {
    const GATE_UP: &str = "model.layers.1.mlp.experts.gate_up_proj_blocks";
    const SCALES: &str = "model.layers.1.mlp.experts.gate_up_proj_scales";
    const BIAS: &str = "model.layers.1.mlp.experts.gate_up_proj_bias";
    let cases = [
        (Config("num_local_experts", json!(4)), "has the shape [8, 64], not [4, 64]"),
        (Config("num_local_experts", json!(9)), "has the shape [8, 64], not [9, 64]"),
        (
            Config("intermediate_size", json!(96)),
            "has the shape [8, 128, 2, 16], not [8, 192, 2, 16]",
        ),
        (Config("num_hidden_layers", json!(5)), "layer_types has 4 entries for 5 layers"),
        (Config("head_dim", json!(32)), "has the shape [128, 64], not [256, 64]"),
        (Missing("model.layers.2.self_attn.sinks"), "model.layers.2.self_attn.sinks: is missing"),
        (Missing("model.layers.0.self_attn.o_proj.bias"), "self_attn.o_proj.bias: is missing"),
        (Missing("model.layers.0.mlp.router.bias"), "mlp.router.bias: is missing"),
        (Missing(SCALES), "gate_up_proj_scales: is missing"),
        (Missing(BIAS), "gate_up_proj_bias: is missing"),
        (Type(GATE_UP, "I8"), "gate_up_proj_blocks: has the type I8, not U8"),
        (Type(SCALES, "F8_E8M0"), "gate_up_proj_scales: has the type F8_E8M0, not U8"),
        (Type(BIAS, "F16"), "gate_up_proj_bias: has the type F16, not BF16 or F32"),
        (Shape(GATE_UP, vec![8, 128, 32]), "has the shape [8, 128, 32], not [8, 128, 2, 16]"),
        (Shape(SCALES, vec![8, 256]), "has the shape [8, 256], not [8, 128, 2]"),
        (Shape(BIAS, vec![128, 8]), "has the shape [128, 8], not [8, 128]"),
        // Row 3 of expert 2 is the expert's second row of up.
        (Bytes(SCALES, (2 * 128 + 3) * 2, &[255]), "element [259, 0] is a scale that is NaN"),
        // Infinity in the fourth gate row of expert 1.
        (Bytes(BIAS, (128 + 6) * 2, &[0x80, 0x7f]), "element [1, 6] is NaN or infinite"),
        (Extra("model.layers.0.mlp.experts.gate_up_proj"), "is not part of the model"),
        (Extra("model.layers.0.self_attn.q_norm.weight"), "is not part of the model"),
    ];
    refuse_all(&Toy::gpt_oss(), &cases);
}

#[test]
fn qwen3_moe() {
    let cases = [
        (Config("num_experts", json!(10)), "experts.10.down_proj.weight: is not part of the model"),
        (Config("num_experts", json!(13)), "experts.12.gate_proj.weight: is missing"),
        (Config("mlp_only_layers", json!([])), "model.layers.2.mlp.gate.weight: is missing"),
        (Config("quantization_config", Value::Null), "has the type F8_E4M3, not BF16 or F32"),
        (Missing("model.layers.0.self_attn.q_norm.weight"), "q_norm.weight: is missing"),
        (
            Missing("model.layers.0.self_attn.o_proj.weight_scale_inv"),
            "o_proj.weight_scale_inv: is missing",
        ),
        (Shape("model.layers.0.self_attn.k_norm.weight", vec![2, 16]), "[2, 16], not [32]"),
        (
            Extra("model.layers.0.mlp.gate.e_score_correction_bias"),
            "e_score_correction_bias: is not part of the model",
        ),
        (
            Bytes("model.layers.1.mlp.experts.3.up_proj.weight", 7, &[0x7f]),
            "experts.3.up_proj.weight: element [0, 7] is NaN",
        ),
    ];
    refuse_all(&Toy::qwen3_moe(), &cases);
}

/// Experts are stacked in one tensor in some layers, and separate in others.
#[test]
fn qwen3_moe_half_stacked() {
    let cases = [(
        Extra("model.layers.0.mlp.experts.gate_up_proj"),
        "model.layers.0.mlp.experts.gate_up_proj: has the shape [128], not [12, 384, 128]",
    )];
    let floats = Toy::qwen3_moe().float_twin();
    refuse_all(&floats, &cases);
}
