//! A small good checkpoint with all features: fused FP8 projections, MXFP4 experts, a drafter and
//! its mask. The code that writes it is its own, so that it can also write faulty ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::bf16;
use kilotok_model::{
    Dtype, Knobs, ModelSpec, Part, WeightDecl, WeightId, declare, read_config, read_drafter,
};
use serde_json::{Map, Value, json};

use crate::torch::{self, MASK_TOKEN};

/// A folder: paths and bytes.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A tensor to be written, correct or not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) config: Value,
    pub(crate) target: Vec<Stored>,
    pub(crate) draft_config: Value,
    pub(crate) draft: Vec<Stored>,
    pub(crate) mask: Vec<u8>,
}

impl Model {
    pub(crate) fn good() -> Self {
        let (config, draft_config) = (config(), draft_config());
        let decls = declare(&spec(&config, &draft_config));
        let of = |part| {
            let decls = decls.iter().filter(move |decl: &&WeightDecl| {
                decl.part == part && decl.id != WeightId::DraftMask
            });
            decls.flat_map(tensors).collect()
        };
        let (target, draft) = (of(Part::Target), of(Part::Drafter));
        Self { config, target, draft_config, draft, mask: torch::good() }
    }

    pub(crate) fn files(&self) -> Files {
        Files::from([
            ("config.json".to_owned(), self.config.to_string().into_bytes()),
            ("model.safetensors".to_owned(), safetensors(&self.target)),
            ("dflash/config.json".to_owned(), self.draft_config.to_string().into_bytes()),
            ("dflash/dflash_draft_model.safetensors".to_owned(), safetensors(&self.draft)),
            ("dflash/mask_embedding.pt".to_owned(), self.mask.clone()),
        ])
    }

    /// The target in two files and an index. `edit` may change the index and the files' tensors.
    pub(crate) fn sharded(
        &self,
        edit: impl FnOnce(&mut Map<String, Value>, &mut [Vec<Stored>; 2]),
    ) -> Files {
        const NAMES: [&str; 2] =
            ["model_pp0_ep0_shard0.safetensors", "model_pp0_ep1_shard0.safetensors"];
        let mut shards = [Vec::new(), Vec::new()];
        let mut weight_map = Map::new();
        for tensor in &self.target {
            let shard = usize::from(tensor.name.contains("experts.1"));
            weight_map.insert(tensor.name.clone(), NAMES[shard].into());
            shards[shard].push(tensor.clone());
        }
        edit(&mut weight_map, &mut shards);
        let mut files = self.files();
        files.remove("model.safetensors");
        for (name, tensors) in NAMES.iter().zip(&shards) {
            files.insert((*name).to_owned(), safetensors(tensors));
        }
        let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
        files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
        files
    }
}

pub(crate) fn spec(config: &Value, draft_config: &Value) -> ModelSpec {
    let knobs = Knobs::default();
    let mut spec = read_config("config.json", &config.to_string(), &knobs).unwrap();
    let drafter = read_drafter("dflash/config.json", &draft_config.to_string(), &spec, &knobs);
    spec.drafter = Some(drafter.unwrap());
    spec
}

pub(crate) fn write(files: &Files, folder: &Path) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn config() -> Value {
    json!({
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 96,
        "tie_word_embeddings": false,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "v_head_dim": 16,
        "swa_num_attention_heads": 8,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "partial_rotary_factor": 0.334,
        "rope_theta": 10_000_000,
        "swa_rope_theta": 10_000,
        "sliding_window": 8,
        "sliding_window_size": 8,
        "add_swa_attention_sink_bias": true,
        "add_full_attention_sink_bias": false,
        "attention_value_scale": 0.612,
        "attention_bias": false,
        "intermediate_size": 160,
        "moe_intermediate_size": 32,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "n_shared_experts": null,
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": true,
        "layernorm_epsilon": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "eos_token_id": 95,
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "quantization_config": quantization(),
    })
}

fn quantization() -> Value {
    let ignored = [0, 1].map(|layer| format!("model.layers.{layer}.self_attn.o_proj"));
    json!({
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "ignored_layers": ignored,
        "store_dtype": "mxfp4",
        "mxfp4_block_size": 32,
    })
}

fn draft_config() -> Value {
    json!({
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "v_head_dim": 16,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10_000,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": false,
        "block_size": 4,
        "sliding_window": 16,
        "num_target_layers": 2,
        "dflash_config": {
            "target_layer_ids": [0, 1],
            "mask_token_id": MASK_TOKEN,
            "use_swa": true,
            "swa_window_size": 16,
            "attention_sink_bias": true,
            "attention_value_scale": 0.612,
        },
    })
}

/// A weight's tensors, with numbers that are different everywhere.
fn tensors(decl: &WeightDecl) -> Vec<Stored> {
    let stored = decl.stored().into_iter().map(|tensor| {
        let seed =
            tensor.name.bytes().fold(7_usize, |sum, byte| sum * 31 % 9973 + usize::from(byte));
        let is_router = tensor.name.ends_with("mlp.gate.weight") || tensor.name.ends_with("bias");
        let dtype = match tensor.dtypes {
            [only] => *only,
            _ if is_router && decl.part == Part::Target && !tensor.name.contains("sink") => {
                Dtype::F32
            }
            _ => Dtype::Bf16,
        };
        let element = |index: usize| -> Vec<u8> {
            let n = ((index * 37 + seed) % 101) as u8;
            match dtype {
                Dtype::F32 => (f32::from(n) / 64.0).to_le_bytes().to_vec(),
                Dtype::Bf16 => bf16::from_f32(f32::from(n) / 64.0 - 0.5).to_le_bytes().to_vec(),
                Dtype::F8E4m3 | Dtype::U8 => vec![n],
            }
        };
        Stored {
            name: tensor.name,
            dtype: dtype.name().to_owned(),
            bytes: (0..tensor.shape.iter().product()).flat_map(element).collect(),
            shape: tensor.shape,
        }
    });
    stored.collect()
}

/// A safetensors file of these tensors, in this order.
pub(crate) fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for Stored { name, dtype, shape, bytes } in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    with_header(&Value::from(header).to_string(), &data)
}

pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A file's header text and its data.
pub(crate) fn split_header(file: &[u8]) -> (String, Vec<u8>) {
    let (length, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (String::from_utf8(header.to_vec()).unwrap(), data.to_vec())
}

/// The tensors of a good file.
pub(crate) fn tensors_of(file: &[u8]) -> Vec<Stored> {
    let (header, data) = split_header(file);
    let header: Map<String, Value> = serde_json::from_str(&header).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let tensor = |(name, entry): (String, Value)| {
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let [begin, end] = [0, 1].map(|i| number(&entry["data_offsets"][i]));
        Stored {
            name,
            dtype: entry["dtype"].as_str().unwrap().to_owned(),
            shape: entry["shape"].as_array().unwrap().iter().map(number).collect(),
            bytes: data[begin..end].to_vec(),
        }
    };
    tensors.map(tensor).collect()
}
