//! Every weight of a model, with the names that the family's checkpoints use.

use crate::shard::Shard;
use crate::spec::{
    AttentionSpec, DrafterSpec, FeedForwardSpec, LayerSpec, ModelSpec, QkvLayout, WeightFormat,
};
use crate::weight::{Format, LayerWeight, Part, WeightDecl, WeightId};

/// All weights of the model and its drafter, in model order.
pub fn declare(spec: &ModelSpec) -> Vec<WeightDecl> {
    let mut list = List { decls: Vec::new(), part: Part::Target };
    let hidden = spec.hidden_size;
    let table = [spec.vocab_size, hidden];
    list.float(WeightId::Embedding, "model.embed_tokens.weight", &table, Shard::Rows);
    for (index, layer) in spec.layers.iter().enumerate() {
        list.layer(index, &format!("model.layers.{index}"), layer, hidden);
    }
    list.float(WeightId::FinalNorm, "model.norm.weight", &[hidden], Shard::Whole);
    list.float(WeightId::Head, "lm_head.weight", &table, Shard::Rows);
    if let Some(drafter) = &spec.drafter {
        list.drafter(drafter, hidden);
    }
    list.decls
}

impl ModelSpec {
    /// Why a tensor of the checkpoint that no weight declares may stay unread; `None` if it
    /// should not be there.
    pub fn skip_reason(&self, name: &str) -> Option<&'static str> {
        const TEXT: [&str; 4] = ["model.layers.", "model.embed_tokens.", "model.norm.", "lm_head."];
        if name.starts_with("model.mtp.") {
            Some("multi-token prediction, which the drafter replaces")
        } else if self.multimodal && !TEXT.iter().any(|prefix| name.starts_with(prefix)) {
            Some("vision and audio; only text is served")
        } else {
            None
        }
    }
}

struct List {
    decls: Vec<WeightDecl>,
    part: Part,
}

impl List {
    fn push(&mut self, id: WeightId, name: &str, shape: &[usize], format: Format, shard: Shard) {
        let (part, name, shape) = (self.part, name.to_owned(), shape.to_vec());
        self.decls.push(WeightDecl { id, part, name, shape, format, shard });
    }

    fn float(&mut self, id: WeightId, name: &str, shape: &[usize], shard: Shard) {
        self.push(id, name, shape, Format::Float, shard);
    }

    fn matrix(
        &mut self,
        id: WeightId,
        name: &str,
        [rows, cols]: [usize; 2],
        format: WeightFormat,
        shard: Shard,
    ) {
        let format = match format {
            WeightFormat::Float => Format::Float,
            // Drafters are published as floats.
            WeightFormat::Fp8 if self.part == Part::Drafter => Format::FloatToFp8,
            WeightFormat::Fp8 => Format::Fp8 { chunk_rows: rows },
            WeightFormat::Mxfp4 => Format::Mxfp4,
        };
        self.push(id, name, &[rows, cols], format, shard);
    }

    fn layer(&mut self, index: usize, prefix: &str, layer: &LayerSpec, hidden: usize) {
        let part = self.part;
        let id = |weight| WeightId::Layer(part, index, weight);
        let norm = format!("{prefix}.input_layernorm.weight");
        self.float(id(LayerWeight::InputNorm), &norm, &[hidden], Shard::Whole);
        self.attention(id, &format!("{prefix}.self_attn"), &layer.attention, hidden);
        let norm = format!("{prefix}.post_attention_layernorm.weight");
        self.float(id(LayerWeight::PostNorm), &norm, &[hidden], Shard::Whole);
        let mlp = format!("{prefix}.mlp");
        match &layer.feed_forward {
            FeedForwardSpec::Dense(dense) => {
                self.gate_up_down(id, &mlp, dense.width, hidden, dense.format);
            }
            FeedForwardSpec::Experts(experts) => {
                let (router, bias) = (LayerWeight::Router, LayerWeight::RouterBias);
                let name = format!("{mlp}.gate.weight");
                self.float(id(router), &name, &[experts.count, hidden], Shard::Whole);
                let name = format!("{mlp}.gate.e_score_correction_bias");
                self.float(id(bias), &name, &[experts.count], Shard::Whole);
                for expert in 0..experts.count {
                    let id = |weight| WeightId::Expert(index, expert, weight);
                    let prefix = format!("{mlp}.experts.{expert}");
                    self.gate_up_down(id, &prefix, experts.width, hidden, experts.format);
                }
            }
        }
    }

    fn attention(
        &mut self,
        id: impl Fn(LayerWeight) -> WeightId,
        prefix: &str,
        spec: &AttentionSpec,
        hidden: usize,
    ) {
        let (q_rows, kv_heads) = (spec.q_heads * spec.qk_dim, spec.kv_heads);
        if let (Some(shard), QkvLayout::Fused { chunks }) = (spec.qkv_shard(), spec.qkv) {
            let shape = [spec.qkv_rows(), hidden];
            let format = match spec.qkv_format {
                WeightFormat::Fp8 => Format::Fp8 { chunk_rows: shape[0] / chunks },
                WeightFormat::Float => Format::Float,
                WeightFormat::Mxfp4 => Format::Mxfp4,
            };
            let name = format!("{prefix}.qkv_proj.weight");
            self.push(id(LayerWeight::Qkv), &name, &shape, format, shard);
        } else {
            let kv = |dim| Shard::KvHeads { heads: kv_heads, dim };
            for (weight, letter, rows, shard) in [
                (LayerWeight::Query, 'q', q_rows, Shard::Rows),
                (LayerWeight::Key, 'k', kv_heads * spec.qk_dim, kv(spec.qk_dim)),
                (LayerWeight::Value, 'v', kv_heads * spec.v_dim, kv(spec.v_dim)),
            ] {
                let name = format!("{prefix}.{letter}_proj.weight");
                self.matrix(id(weight), &name, [rows, hidden], spec.qkv_format, shard);
            }
        }
        if spec.qk_norm {
            for (weight, letter) in [(LayerWeight::QueryNorm, 'q'), (LayerWeight::KeyNorm, 'k')] {
                let name = format!("{prefix}.{letter}_norm.weight");
                self.float(id(weight), &name, &[spec.qk_dim], Shard::Whole);
            }
        }
        if spec.sinks {
            let name = format!("{prefix}.attention_sink_bias");
            // A vector's values are its columns.
            self.float(id(LayerWeight::Sinks), &name, &[spec.q_heads], Shard::Columns);
        }
        let name = format!("{prefix}.o_proj.weight");
        let shape = [hidden, spec.q_heads * spec.v_dim];
        self.float(id(LayerWeight::Output), &name, &shape, Shard::Columns);
    }

    fn gate_up_down(
        &mut self,
        id: impl Fn(LayerWeight) -> WeightId,
        prefix: &str,
        width: usize,
        hidden: usize,
        format: WeightFormat,
    ) {
        for (weight, name, shape, shard) in [
            (LayerWeight::Gate, "gate", [width, hidden], Shard::Rows),
            (LayerWeight::Up, "up", [width, hidden], Shard::Rows),
            (LayerWeight::Down, "down", [hidden, width], Shard::Columns),
        ] {
            let name = format!("{prefix}.{name}_proj.weight");
            self.matrix(id(weight), &name, shape, format, shard);
        }
    }

    fn drafter(&mut self, spec: &DrafterSpec, hidden: usize) {
        self.part = Part::Drafter;
        let fc = [hidden, spec.taps.len() * hidden];
        self.float(WeightId::DraftFc, "fc.weight", &fc, Shard::Rows);
        self.float(WeightId::DraftContextNorm, "hidden_norm.weight", &[hidden], Shard::Whole);
        for (index, layer) in spec.layers.iter().enumerate() {
            self.layer(index, &format!("layers.{index}"), layer, hidden);
        }
        self.float(WeightId::DraftNorm, "norm.weight", &[hidden], Shard::Whole);
        self.float(WeightId::DraftMask, "mask_embedding.pt", &[hidden], Shard::Whole);
    }
}
