//! A toy as a folder: configs, safetensors files with or without an index, and the drafter.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use kilotok_model::{Part, WeightDecl, WeightId};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::Toy;
use super::codec::Stored;
use super::torch::mask_embedding;

/// How the tensors are divided into files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// `model.safetensors`
    One,
    /// This many files, without regard to layers, and an index.
    Sharded(usize),
}

struct FileTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

pub(super) fn write(toy: &Toy, folder: &Path, files: Files) -> io::Result<()> {
    let drafter = folder.join("dflash");
    fs::create_dir_all(&drafter)?;
    fs::write(folder.join("config.json"), pretty(&toy.config)?)?;
    fs::write(drafter.join("config.json"), pretty(&toy.drafter_config)?)?;
    let mut target = Vec::new();
    let mut own = Vec::new();
    for (decl, stored) in &toy.weights {
        match (decl.part, decl.id) {
            (_, WeightId::DraftMask) => {
                let spec = toy.spec();
                let token = spec.drafter.map_or(0, |drafter| drafter.mask_token);
                let values: Vec<_> =
                    stored.values(decl).into_iter().map(half::bf16::from_f32).collect();
                fs::write(drafter.join(&decl.name), mask_embedding(token, &values))?;
            }
            (Part::Drafter, _) => own.extend(tensors(decl, stored)),
            (Part::Target, _) => target.extend(tensors(decl, stored)),
        }
    }
    target.push(left_out());
    write_file(&drafter.join("dflash_draft_model.safetensors"), &own)?;
    match files {
        Files::One => write_file(&folder.join("model.safetensors"), &target),
        Files::Sharded(count) => write_sharded(folder, target, count),
    }
}

/// A tensor of the multi-token prediction layers, which published checkpoints have and kilotok does
/// not read.
fn left_out() -> FileTensor {
    let name = "model.mtp.layers.0.enorm.weight".to_owned();
    FileTensor { name, dtype: Dtype::BF16, shape: vec![4], bytes: vec![0; 8] }
}

fn tensors(decl: &WeightDecl, stored: &Stored) -> Vec<FileTensor> {
    let declared = decl.stored().into_iter().zip(stored.tensors());
    declared
        .map(|(tensor, (dtype, bytes))| FileTensor {
            name: tensor.name,
            dtype,
            shape: tensor.shape,
            bytes,
        })
        .collect()
}

fn write_sharded(folder: &Path, mut tensors: Vec<FileTensor>, count: usize) -> io::Result<()> {
    // String order, in which expert 10 comes before expert 2, as published files have it.
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let total: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let each = tensors.len().div_ceil(count);
    let mut map = BTreeMap::new();
    for (index, shard) in tensors.chunks(each).enumerate() {
        let file = format!("model_pp0_ep{index}_shard0.safetensors");
        write_file(&folder.join(&file), shard)?;
        map.extend(shard.iter().map(|tensor| (tensor.name.clone(), file.clone())));
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), pretty(&index)?)
}

fn write_file(path: &Path, tensors: &[FileTensor]) -> io::Result<()> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (&tensor.name, view.expect("as many bytes as the shape needs"))
    });
    safetensors::serialize_to_file(views, None, path).map_err(io::Error::other)
}

fn pretty(value: &serde_json::Value) -> io::Result<String> {
    serde_json::to_string_pretty(value).map_err(io::Error::other)
}
