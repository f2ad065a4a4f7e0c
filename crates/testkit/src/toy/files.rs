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
    fs::create_dir_all(folder)?;
    fs::write(folder.join("config.json"), pretty(&toy.config)?)?;
    let mut target = BTreeMap::new();
    let mut own = BTreeMap::new();
    if let Some(config) = &toy.drafter_config {
        fs::create_dir_all(&drafter)?;
        fs::write(drafter.join("config.json"), pretty(config)?)?;
    }
    for (decl, stored) in &toy.weights {
        match (decl.part, decl.id) {
            (_, WeightId::DraftMask) => {
                let spec = toy.spec();
                let token = spec.drafter.map_or(0, |drafter| drafter.mask_token);
                let values: Vec<_> =
                    stored.values(decl).into_iter().map(half::bf16::from_f32).collect();
                fs::write(drafter.join(&decl.name), mask_embedding(token, &values))?;
            }
            (Part::Drafter, _) => add(&mut own, decl, stored),
            (Part::Target, _) => add(&mut target, decl, stored),
        }
    }
    // Sorted as strings, so that expert 10 comes before expert 2, as in published files.
    let mut target: Vec<_> = target.into_values().collect();
    let spec = toy.spec();
    target.extend(left_out().into_iter().filter(|own| spec.skip_reason(&own.name).is_some()));
    if toy.drafter_config.is_some() {
        let own: Vec<_> = own.into_values().collect();
        write_file(&drafter.join("dflash_draft_model.safetensors"), &own)?;
    }
    match files {
        Files::One => write_file(&folder.join("model.safetensors"), &target),
        Files::Sharded(count) => write_sharded(folder, &target, count),
    }
}

/// Tensors of the multi-token prediction layers and of the towers for images and audio. Published
/// checkpoints have them, and kilotok does not read them.
fn left_out() -> [FileTensor; 3] {
    let names = [
        "model.mtp.layers.0.enorm.weight",
        "visual.layers.0.attn.qkv.weight",
        "audio_encoder.conv.weight",
    ];
    names.map(|name| {
        let name = name.to_owned();
        FileTensor { name, dtype: Dtype::BF16, shape: vec![4], bytes: vec![0; 8] }
    })
}

/// Adds a weight's tensors, or its part of tensors that it shares with other weights.
fn add(tensors: &mut BTreeMap<String, FileTensor>, decl: &WeightDecl, stored: &Stored) {
    for (tensor, (dtype, bytes)) in decl.stored().into_iter().zip(stored.tensors()) {
        let whole = tensors.entry(tensor.name.clone()).or_insert_with(|| FileTensor {
            name: tensor.name,
            dtype,
            shape: tensor.shape,
            bytes: vec![0; bytes.len() * decl.stack_size()],
        });
        if decl.stack.is_none() {
            whole.bytes = bytes;
            continue;
        }
        let (whole_row, row) = (whole.bytes.len() / tensor.rows, bytes.len() / decl.rows());
        // Columns are only apart in rows that have more than this weight.
        let run = if row == whole_row { row } else { row / decl.cols() };
        for (index, values) in bytes.chunks_exact(row).enumerate() {
            for (col, values) in values.chunks_exact(run).enumerate() {
                let start = decl.stored_row(index) * whole_row + decl.stored_col(col) * run;
                whole.bytes[start..start + run].copy_from_slice(values);
            }
        }
    }
}

fn write_sharded(folder: &Path, tensors: &[FileTensor], count: usize) -> io::Result<()> {
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
