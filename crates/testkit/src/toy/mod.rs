//! Small models of every family with real checkpoints: they have every feature of the published
//! ones, and random values that are quantised here. A *twin* has the same numbers as plain floats.
//! An engine must give the same results for a checkpoint and its twin.
//!
//! A few favourite tokens of a toy are likely after any other token, for the target and the drafter
//! alike, so that some drafts are accepted. This crate writes checkpoints and does not read them.

mod codec;
mod config;
mod draw;
mod files;
mod torch;

use std::path::Path;

use kilotok_abi::TokenId;
use kilotok_engine::Engine;
use kilotok_model::{
    AttentionSpec, Knobs, LayerWeight, ModelSpec, QkvLayout, WeightDecl, WeightId, declare,
    read_config, read_drafter,
};
use serde_json::Value;

use crate::host::{Host, HostError, How, Request};
use crate::mix::Stream;
use codec::Stored;

pub use files::Files;

/// A model with all its weights, in memory.
#[derive(Clone, Debug)]
pub struct Toy {
    pub name: &'static str,
    config: Value,
    drafter_config: Option<Value>,
    weights: Vec<(WeightDecl, Stored)>,
}

impl Toy {
    /// The toy with the name that a trace has.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "flash" => Some(Self::flash()),
            "dense" => Some(Self::dense()),
            "wide" => Some(Self::wide()),
            "uneven" => Some(Self::uneven()),
            "pro_dense" => Some(Self::pro_dense()),
            "pro_fp4" => Some(Self::pro_fp4()),
            "wide_experts" => Some(Self::wide_experts()),
            "v2_6_flash" => Some(Self::v2_6_flash()),
            "qwen3_moe" => Some(Self::qwen3_moe()),
            "qwen3_moe_bf16" => Some(Self::qwen3_moe_bf16()),
            "qwen3_experts" => Some(Self::qwen3_experts()),
            "qwen3_dense" => Some(Self::qwen3_dense()),
            "gpt_oss" => Some(Self::gpt_oss()),
            _ => None,
        }
    }

    /// V2-Flash's form: split projections, floats. It has more query heads than K/V heads, other
    /// numbers of heads in window layers than in the others, and more than ten experts.
    pub fn flash() -> Self {
        Self::draw("flash", config::flash(), Some(config::flash_drafter()), 11)
    }

    /// The same without experts: two experts that nearly tie cannot turn rounding into another
    /// result.
    pub fn dense() -> Self {
        Self::draw("dense", config::dense(), Some(config::flash_drafter()), 11)
    }

    /// The same with networks that give every CTA of a GPU several tiles of rows.
    pub fn wide() -> Self {
        Self::draw("wide", config::wide(), Some(config::flash_drafter()), 11)
    }

    /// The same with attention and networks whose widths differ from layer to layer.
    pub fn uneven() -> Self {
        Self::draw("uneven", config::uneven(), Some(config::uneven_drafter()), 11)
    }

    /// V2.5-Pro's form: projections fused in 8 chunks of one FP8 tile and a part, FP8 dense layer,
    /// MXFP4 experts, the rest BF16. It can be shared by 1, 2, 4 or 8 ranks.
    pub fn pro_fp4() -> Self {
        Self::draw("pro_fp4", config::pro_fp4(), Some(config::pro_drafter()), 13)
    }

    /// The same without experts.
    pub fn pro_dense() -> Self {
        Self::draw("pro_dense", config::pro_dense(), Some(config::pro_drafter()), 13)
    }

    /// The same with experts of several steps of columns.
    pub fn wide_experts() -> Self {
        Self::draw("wide_experts", config::wide_experts(), Some(config::pro_drafter()), 13)
    }

    /// V2.6-Flash's form: as V2.5-Pro's, but with fewer chunks than window layers have K/V heads,
    /// tensors of towers that are not read, and a drafter in V2.6's form. It can be shared by 1, 2,
    /// 4 or 8 ranks.
    pub fn v2_6_flash() -> Self {
        Self::draw("v2_6_flash", config::v2_6_flash(), Some(config::v2_6_drafter()), 23)
    }

    /// Qwen3-MoE's form in FP8, output matrices too; one of its layers is dense. It can be shared
    /// by 1, 2, 4 or 8 ranks.
    pub fn qwen3_moe() -> Self {
        Self::draw("qwen3_moe", config::qwen3_moe(), None, 17)
    }

    /// The same form in BF16.
    pub fn qwen3_moe_bf16() -> Self {
        Self::draw("qwen3_moe_bf16", config::unquantised(config::qwen3_moe()), None, 17)
    }

    /// The same in FP8 with experts in every layer: CUDA has a kernel for one token of it.
    pub fn qwen3_experts() -> Self {
        Self::draw("qwen3_experts", config::qwen3_experts(), None, 17)
    }

    /// The same without experts, and with a drafter: biases, YaRN, no mask of its own.
    pub fn qwen3_dense() -> Self {
        Self::draw("qwen3_dense", config::qwen3_dense(), Some(config::qwen3_drafter()), 17)
    }

    /// gpt-oss's form: biases everywhere, sinks on all layers, every other one with a window, YaRN,
    /// and MXFP4 experts stacked; a drafter with biases, without a mask of its own. It can be
    /// shared by 1 or 2 ranks.
    pub fn gpt_oss() -> Self {
        Self::draw("gpt_oss", config::gpt_oss(), Some(config::gpt_oss_drafter()), 19)
    }

    /// The same numbers without quantisation, as F32.
    #[must_use]
    pub fn float_twin(&self) -> Self {
        self.twin("float twin", config::unquantised(self.config.clone()))
    }

    /// The float twin with every number changed by up to this relative error, as if by rounding.
    /// The correction bias of experts is unchanged.
    #[must_use]
    pub fn off_by(&self, part: f32) -> Self {
        self.float_twin().change("off", |decl, values| {
            if !is_router_bias(decl.id) {
                let mut stream = Stream::named(&decl.name, 0);
                for value in values {
                    *value *= 1.0 + part * (2.0 * stream.unit() - 1.0);
                }
            }
        })
    }

    /// The float twin in which every token goes to the last experts: two experts that nearly tie
    /// cannot turn rounding into another result.
    #[must_use]
    pub fn with_fixed_experts(&self) -> Self {
        self.float_twin().change("fixed experts", |decl, values| {
            if is_router_bias(decl.id) {
                // Scores are from 0 to 1.
                for (expert, bias) in (0_u8..).zip(values) {
                    *bias = 2.0 * f32::from(expert);
                }
            }
        })
    }

    /// The same numbers as F32 with split projections, which is another family's form.
    #[must_use]
    pub fn split_twin(&self) -> Self {
        self.twin("split twin", config::split(config::unquantised(self.config.clone())))
    }

    fn draw(name: &'static str, config: Value, drafter_config: Option<Value>, seed: u64) -> Self {
        let spec = spec(&config, drafter_config.as_ref());
        let draw = |decl: WeightDecl| {
            let values = draw::values(&spec, &decl, seed);
            let stored = Stored::quantise(&decl, &values);
            (decl, stored)
        };
        let weights = declare(&spec).into_iter().map(draw).collect();
        Self { name, config, drafter_config, weights }
    }

    fn twin(&self, name: &'static str, config: Value) -> Self {
        let spec = spec(&config, self.drafter_config.as_ref());
        let take = |decl: WeightDecl| {
            let stored = Stored::F32(self.floats(&spec, decl.id));
            (decl, stored)
        };
        let weights = declare(&spec).into_iter().map(take).collect();
        Self { name, config, drafter_config: self.drafter_config.clone(), weights }
    }

    /// Changes the values of weights that are floats.
    fn change(mut self, name: &'static str, change: impl Fn(&WeightDecl, &mut [f32])) -> Self {
        self.name = name;
        for (decl, stored) in &mut self.weights {
            let mut values = stored.values(decl);
            change(decl, &mut values);
            *stored = Stored::F32(values);
        }
        self
    }

    /// The model's shapes, read from its configs.
    pub fn spec(&self) -> ModelSpec {
        spec(&self.config, self.drafter_config.as_ref())
    }

    /// The values of a weight; of a split projection even if the toy has it fused.
    fn floats(&self, spec: &ModelSpec, id: WeightId) -> Vec<f32> {
        let find = |id| self.weights.iter().find(|(decl, _)| decl.id == id);
        if let Some((decl, stored)) = find(id) {
            return stored.values(decl);
        }
        let WeightId::Layer(part, index, weight) = id else {
            panic!("{} has no {id:?}", self.name);
        };
        let fused = WeightId::Layer(part, index, LayerWeight::Qkv);
        let (decl, stored) = find(fused).expect("what is not split is fused");
        let chunks = match self.spec().layers[index].attention.qkv {
            QkvLayout::Fused { chunks } => chunks,
            QkvLayout::Split => panic!("a split projection that is not there"),
        };
        split(&stored.values(decl), chunks, &spec.layers[index].attention, weight)
    }

    /// Writes the checkpoint as on the hub, drafter included. The folder is created.
    pub fn write(&self, folder: &Path, files: Files) -> std::io::Result<()> {
        files::write(self, folder, files)
    }
}

fn is_router_bias(id: WeightId) -> bool {
    matches!(id, WeightId::Layer(_, _, LayerWeight::RouterCorrection))
}

/// # Panics
/// If kilotok cannot read the toy's config.
fn spec(config: &Value, drafter_config: Option<&Value>) -> ModelSpec {
    let knobs = Knobs::default();
    let text = config.to_string();
    let mut spec = read_config("config.json", &text, &knobs).unwrap_or_else(|e| panic!("{e}"));
    let read = |config: &Value| {
        let drafter = read_drafter("dflash/config.json", &config.to_string(), &spec, &knobs);
        drafter.unwrap_or_else(|e| panic!("{e}"))
    };
    spec.drafter = drafter_config.map(read);
    spec
}

/// The q, k or v rows of a fused projection, whose chunks are `[q | k | v]` of some heads each.
fn split(fused: &[f32], chunks: usize, spec: &AttentionSpec, weight: LayerWeight) -> Vec<f32> {
    let kv_heads = spec.kv_heads / chunks;
    let q = spec.q_heads / chunks * spec.qk_dim;
    let (k, v) = (kv_heads * spec.qk_dim, kv_heads * spec.v_dim);
    let rows = match weight {
        LayerWeight::Query => 0..q,
        LayerWeight::Key => q..q + k,
        LayerWeight::Value => q + k..q + k + v,
        other => panic!("{other:?} is no part of a fused projection"),
    };
    let cols = fused.len() / chunks / (q + k + v);
    let chunks = fused.chunks_exact((q + k + v) * cols);
    chunks.flat_map(|chunk| &chunk[rows.start * cols..rows.end * cols]).copied().collect()
}

/// The tokens of a greedy reply, if the log-probabilities of the two likeliest tokens differ by at
/// least `gap` everywhere. Engines whose numbers differ by less than half of it choose the same
/// tokens.
fn steady_reply(
    engine: &mut dyn Engine,
    prompt: &[TokenId],
    token_max: u32,
    gap: f32,
) -> Result<Option<Vec<TokenId>>, HostError> {
    let request = Request { top: 2, ..Request::greedy(prompt.to_vec(), token_max) };
    let reply = Host::new(engine, 0).run(&request, &How::default())?;
    let mut gaps = reply.logprobs.iter().map(|found| found.top[0].logprob - found.top[1].logprob);
    Ok(gaps.all(|found| found >= gap).then_some(reply.tokens))
}

/// Finds a prompt for comparing engines that round differently: the first of a thousand random
/// prompts whose greedy reply is the same on all these engines, with gaps of at least `gap`.
pub fn steady_prompt(
    engines: &mut [Box<dyn Engine>],
    length: usize,
    token_max: u32,
    gap: f32,
) -> Result<Option<Vec<TokenId>>, HostError> {
    let vocab_size = engines[0].caps().vocab_size as usize;
    for seed in 0..1000 {
        let mut stream = Stream::new(seed);
        let prompt: Vec<_> = (0..length).map(|_| stream.below(vocab_size) as TokenId).collect();
        let mut replies =
            engines.iter_mut().map(|engine| steady_reply(&mut **engine, &prompt, token_max, gap));
        let Some(first) = replies.next().transpose()?.flatten() else { continue };
        let mut same = true;
        for reply in replies {
            same &= reply?.as_ref() == Some(&first);
        }
        if same {
            return Ok(Some(prompt));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use kilotok_model::{Dtype, Ranks, check_ranks};
    use kilotok_weights::{Checkpoint, WeightSource};

    use super::*;

    /// Reads every weight of every rank back, and compares it with the toy's.
    fn check(toy: &Toy, files: Files, counts: &[usize]) {
        let folder = tempfile::tempdir().unwrap();
        toy.write(folder.path(), files).unwrap();
        let checkpoint = Checkpoint::open(folder.path(), &Knobs::default()).unwrap();
        assert_eq!(*checkpoint.spec(), toy.spec());
        for (count, (decl, stored)) in
            counts.iter().flat_map(|count| toy.weights.iter().map(move |weight| (*count, weight)))
        {
            let meant = stored.values(decl);
            for rank in 0..count {
                let slice = decl.slice(Ranks { rank, count });
                let tensor = checkpoint.read(decl, &slice).unwrap();
                let rows = slice.rows.iter().cloned().flatten();
                let mut found = vec![0.0; tensor.cols];
                for (index, row) in rows.enumerate() {
                    tensor.decode_row(index, &mut found);
                    let meant = &meant[row * decl.cols()..][slice.cols.clone()];
                    assert_eq!(found, meant, "{} {} row {row}", toy.name, decl.name);
                }
            }
        }
    }

    #[test]
    fn toys_are_checkpoints() {
        check(&Toy::flash(), Files::One, &[1, 2]);
        check(&Toy::flash(), Files::Sharded(3), &[1]);
    }

    #[test]
    fn pro_is_shared_by_any_ranks() {
        let toy = Toy::pro_fp4();
        for count in [1, 2, 4, 8] {
            check_ranks(&toy.spec(), count).unwrap();
        }
        check(&toy, Files::Sharded(2), &[1, 2, 4, 8]);
    }

    #[test]
    fn v2_6_flash_is_shared_by_any_ranks() {
        let toy = Toy::v2_6_flash();
        assert!(toy.spec().multimodal);
        for count in [1, 2, 4, 8] {
            check_ranks(&toy.spec(), count).unwrap();
        }
        check(&toy, Files::Sharded(2), &[1, 8]);
    }

    #[test]
    fn other_families_are_checkpoints() {
        check(&Toy::qwen3_moe(), Files::Sharded(2), &[1, 2, 4, 8]);
        check(&Toy::qwen3_moe().float_twin(), Files::One, &[1]);
        check(&Toy::gpt_oss(), Files::Sharded(2), &[1, 2]);
    }

    #[test]
    fn twins_have_the_same_numbers() {
        let toy = Toy::pro_fp4();
        check(&toy.float_twin(), Files::One, &[1, 8]);
        let split = toy.split_twin();
        check(&split, Files::One, &[2]);
        let all = |toy: &Toy| -> Vec<f32> {
            toy.weights.iter().flat_map(|(decl, stored)| stored.values(decl)).collect()
        };
        // As multisets they must be equal, because splitting only moves rows.
        let sorted = |mut values: Vec<f32>| {
            values.sort_by(f32::total_cmp);
            values
        };
        assert_eq!(sorted(all(&toy)), sorted(all(&split)));
        assert_eq!(all(&toy), all(&toy.float_twin()));
    }

    #[test]
    fn pro_has_every_format_and_an_uneven_chunk() {
        let toy = Toy::pro_fp4();
        let stored: Vec<_> = toy.weights.iter().flat_map(|(decl, _)| decl.stored()).collect();
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F8E4m3, Dtype::U8] {
            assert!(stored.iter().any(|tensor| tensor.dtypes.contains(&dtype)), "{dtype:?}");
        }
        let fused = stored.iter().find(|tensor| tensor.name.ends_with("qkv_proj.weight_scale_inv"));
        assert_eq!(fused.unwrap().shape, [16, 1], "two rows of scales per chunk, not 11 in all");
    }
}
