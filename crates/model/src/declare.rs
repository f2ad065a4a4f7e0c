//! Every weight of a model, with the names that the family's checkpoints use.

use crate::names::Names;
use crate::shard::Shard;
use crate::spec::{
    AttentionSpec, DrafterSpec, ExpertLayout, ExpertsSpec, FeedForwardSpec, LayerSpec, ModelSpec,
    QkvLayout, RouterScores, WeightFormat,
};
use crate::weight::{Format, LayerWeight, Part, Stack, Stride, WeightDecl, WeightId};

/// All weights of the model and its drafter, in model order.
pub fn declare(spec: &ModelSpec) -> Vec<WeightDecl> {
    let names = spec.family.names();
    let hidden = spec.hidden_size;
    let mut list = List { decls: Vec::new(), part: Part::Target, names, hidden };
    let table = [spec.vocab_size, hidden];
    list.float(WeightId::Embedding, weight(names.embedding), &table, Shard::Rows);
    for (index, layer) in spec.layers.iter().enumerate() {
        list.layer(index, layer);
    }
    list.float(WeightId::FinalNorm, weight(names.final_norm), &[hidden], Shard::Whole);
    list.float(WeightId::Head, weight(names.head), &table, Shard::Rows);
    if let Some(drafter) = &spec.drafter {
        list.part = Part::Drafter;
        list.names = &Names::DRAFTER;
        list.drafter(drafter);
    }
    list.decls
}

impl ModelSpec {
    /// Why a tensor of the checkpoint that no weight declares may stay unread; `None` if it
    /// should not be there.
    pub fn skip_reason(&self, name: &str) -> Option<&'static str> {
        let names = self.family.names();
        let tower = self.multimodal && !names.is_of_text(name);
        names.skip_reason(name).or(tower.then_some("vision and audio; only text is served"))
    }

    /// A tensor that tells how the checkpoint stores its experts: it is there if all experts of a
    /// layer are in one tensor. `None` if the family has one layout only.
    pub fn stacked_experts_name(&self) -> Option<String> {
        let names = self.family.names();
        let is_apart = |layer: &LayerSpec| {
            matches!(&layer.feed_forward, FeedForwardSpec::Experts(experts)
                if experts.layout == ExpertLayout::Apart && experts.format == WeightFormat::Float)
        };
        let layer = self.layers.iter().position(is_apart).filter(|_| names.may_stack_experts)?;
        Some(format!("{}{layer}.{}{GATE_UP}", names.layers, names.experts))
    }

    /// The same model in a checkpoint that stores the experts of a layer in one tensor.
    #[must_use]
    pub fn with_stacked_experts(mut self) -> Self {
        for layer in &mut self.layers {
            if let FeedForwardSpec::Experts(experts) = &mut layer.feed_forward {
                experts.layout = ExpertLayout::StackedHalves;
            }
        }
        self
    }
}

/// Names of stacked experts' tensors.
const GATE_UP: &str = "gate_up_proj";
const DOWN: &str = "down_proj";

fn weight(module: &str) -> String {
    format!("{module}.weight")
}

struct List {
    decls: Vec<WeightDecl>,
    part: Part,
    names: &'static Names,
    hidden: usize,
}

impl List {
    fn push(&mut self, id: WeightId, name: String, shape: &[usize], format: Format, shard: Shard) {
        let (part, shape, stack) = (self.part, shape.to_vec(), None);
        self.decls.push(WeightDecl { id, part, name, shape, format, shard, stack });
    }

    fn float(&mut self, id: WeightId, name: String, shape: &[usize], shard: Shard) {
        self.push(id, name, shape, Format::Float, shard);
    }

    fn matrix(
        &mut self,
        id: WeightId,
        name: String,
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

    fn layer(&mut self, index: usize, layer: &LayerSpec) {
        let (part, names, hidden) = (self.part, self.names, self.hidden);
        let id = |weight| WeightId::Layer(part, index, weight);
        let prefix = format!("{}{index}.", names.layers);
        let norm = weight(&format!("{prefix}{}", names.input_norm));
        self.float(id(LayerWeight::InputNorm), norm, &[hidden], Shard::Whole);
        self.attention(id, &prefix, &layer.attention);
        let norm = weight(&format!("{prefix}{}", names.post_norm));
        self.float(id(LayerWeight::PostNorm), norm, &[hidden], Shard::Whole);
        match &layer.feed_forward {
            FeedForwardSpec::Dense(dense) => {
                let prefix = format!("{prefix}{}", names.dense);
                self.gate_up_down(id, &prefix, dense.width, dense.format);
            }
            FeedForwardSpec::Experts(experts) => {
                self.router(id, &prefix, experts);
                let prefix = format!("{prefix}{}", names.experts);
                self.experts(index, &prefix, experts);
                if experts.bias {
                    self.expert_biases(id, &prefix, experts);
                }
            }
        }
    }

    fn attention(
        &mut self,
        id: impl Fn(LayerWeight) -> WeightId,
        prefix: &str,
        spec: &AttentionSpec,
    ) {
        let (names, hidden) = (self.names, self.hidden);
        self.qkv(&id, prefix, spec);
        if spec.qk_norm_eps.is_some() {
            for (norm, name) in
                [(LayerWeight::QueryNorm, names.query_norm), (LayerWeight::KeyNorm, names.key_norm)]
            {
                let name = weight(&format!("{prefix}{name}"));
                self.float(id(norm), name, &[spec.qk_dim], Shard::Whole);
            }
        }
        if spec.sinks {
            let name = format!("{prefix}{}", names.sinks);
            self.float(id(LayerWeight::Sinks), name, &[spec.q_heads], Shard::Columns);
        }
        let name = format!("{prefix}{}", names.output);
        let shape = [hidden, spec.q_heads * spec.v_dim];
        let output = id(LayerWeight::Output);
        self.matrix(output, weight(&name), shape, spec.output_format, Shard::Columns);
        if spec.bias {
            self.bias(id(LayerWeight::OutputBias), &name, hidden, Shard::First);
        }
    }

    fn qkv(&mut self, id: impl Fn(LayerWeight) -> WeightId, prefix: &str, spec: &AttentionSpec) {
        let (names, hidden) = (self.names, self.hidden);
        if let (Some(shard), QkvLayout::Fused { chunks }) = (spec.qkv_shard(), spec.qkv) {
            let shape = [spec.qkv_rows(), hidden];
            let format = match spec.qkv_format {
                WeightFormat::Fp8 => Format::Fp8 { chunk_rows: shape[0] / chunks },
                WeightFormat::Float => Format::Float,
                WeightFormat::Mxfp4 => Format::Mxfp4,
            };
            let name = weight(&format!("{prefix}{}", names.qkv));
            return self.push(id(LayerWeight::Qkv), name, &shape, format, shard);
        }
        let heads = spec.kv_heads;
        let kv = |dim| Shard::KvHeads { heads, dim };
        for (matrix, bias, name, rows, shard) in [
            (
                LayerWeight::Query,
                LayerWeight::QueryBias,
                names.query,
                spec.q_heads * spec.qk_dim,
                Shard::Rows,
            ),
            (
                LayerWeight::Key,
                LayerWeight::KeyBias,
                names.key,
                heads * spec.qk_dim,
                kv(spec.qk_dim),
            ),
            (
                LayerWeight::Value,
                LayerWeight::ValueBias,
                names.value,
                heads * spec.v_dim,
                kv(spec.v_dim),
            ),
        ] {
            let name = format!("{prefix}{name}");
            self.matrix(id(matrix), weight(&name), [rows, hidden], spec.qkv_format, shard);
            if spec.bias {
                self.bias(id(bias), &name, rows, shard);
            }
        }
    }

    fn bias(&mut self, id: WeightId, module: &str, length: usize, shard: Shard) {
        self.float(id, format!("{module}.bias"), &[length], shard);
    }

    fn router(&mut self, id: impl Fn(LayerWeight) -> WeightId, prefix: &str, spec: &ExpertsSpec) {
        let (names, hidden) = (self.names, self.hidden);
        let name = format!("{prefix}{}", names.router);
        let shape = [spec.count, hidden];
        self.float(id(LayerWeight::Router), weight(&name), &shape, Shard::Whole);
        if spec.router.bias {
            self.bias(id(LayerWeight::RouterBias), &name, spec.count, Shard::Whole);
        }
        if spec.router.scores == RouterScores::CorrectedSigmoid {
            let name = format!("{prefix}{}", names.router_correction);
            self.float(id(LayerWeight::RouterCorrection), name, &[spec.count], Shard::Whole);
        }
    }

    fn experts(&mut self, layer: usize, prefix: &str, spec: &ExpertsSpec) {
        for expert in 0..spec.count {
            let id = |weight| WeightId::Expert(layer, expert, weight);
            if spec.layout == ExpertLayout::Apart {
                let prefix = format!("{prefix}{expert}.");
                self.gate_up_down(id, &prefix, spec.width, spec.format);
            } else {
                self.stacked_gate_up_down(id, prefix, expert, spec);
            }
        }
    }

    fn gate_up_down(
        &mut self,
        id: impl Fn(LayerWeight) -> WeightId,
        prefix: &str,
        width: usize,
        format: WeightFormat,
    ) {
        let hidden = self.hidden;
        for (matrix, name, shape, shard) in [
            (LayerWeight::Gate, "gate_proj", [width, hidden], Shard::Rows),
            (LayerWeight::Up, "up_proj", [width, hidden], Shard::Rows),
            (LayerWeight::Down, DOWN, [hidden, width], Shard::Columns),
        ] {
            let name = weight(&format!("{prefix}{name}"));
            self.matrix(id(matrix), name, shape, format, shard);
        }
    }

    /// The matrices of one expert, which are parts of `[experts, 2 * width, hidden]` and
    /// `[experts, hidden, width]`.
    fn stacked_gate_up_down(
        &mut self,
        id: impl Fn(LayerWeight) -> WeightId,
        prefix: &str,
        expert: usize,
        spec: &ExpertsSpec,
    ) {
        let (hidden, count, width) = (self.hidden, spec.count, spec.width);
        let [gate, up] = gate_and_up(spec);
        let of_expert =
            |stride: Stride| Stride { first: expert * 2 * width + stride.first, ..stride };
        let down_rows = Stride::run_from(expert * hidden);
        let inner = [width, hidden];
        for (matrix, name, stack, rows, shape, shard) in [
            (LayerWeight::Gate, GATE_UP, [2 * width, hidden], of_expert(gate), inner, Shard::Rows),
            (LayerWeight::Up, GATE_UP, [2 * width, hidden], of_expert(up), inner, Shard::Rows),
            (LayerWeight::Down, DOWN, [hidden, width], down_rows, [hidden, width], Shard::Columns),
        ] {
            self.matrix(id(matrix), format!("{prefix}{name}"), shape, spec.format, shard);
            let shape = [&[count][..], &stack].concat();
            self.stack(Stack { shape, rows, cols: Stride::run_from(0) });
        }
    }

    /// The biases of all experts: parts of `[experts, 2 * width]`, and `[experts, hidden]`.
    fn expert_biases(
        &mut self,
        id: impl Fn(LayerWeight) -> WeightId,
        prefix: &str,
        spec: &ExpertsSpec,
    ) {
        let (count, width) = (spec.count, spec.width);
        let [gate, up] = gate_and_up(spec);
        for (bias, cols) in [(LayerWeight::GateBias, gate), (LayerWeight::UpBias, up)] {
            let name = format!("{prefix}{GATE_UP}_bias");
            self.float(id(bias), name, &[count, width], Shard::Columns);
            self.stack(Stack { shape: vec![count, 2 * width], rows: Stride::run_from(0), cols });
        }
        let name = format!("{prefix}{DOWN}_bias");
        self.float(id(LayerWeight::DownBias), name, &[count, self.hidden], Shard::First);
    }

    /// Makes the last weight a part of a stack.
    fn stack(&mut self, stack: Stack) {
        self.decls.last_mut().expect("a weight").stack = Some(stack);
    }

    fn drafter(&mut self, spec: &DrafterSpec) {
        let (names, hidden) = (self.names, self.hidden);
        let fc = [hidden, spec.taps.len() * hidden];
        self.float(WeightId::DraftFc, "fc.weight".to_owned(), &fc, Shard::Rows);
        let norm = "hidden_norm.weight".to_owned();
        self.float(WeightId::DraftContextNorm, norm, &[hidden], Shard::Whole);
        for (index, layer) in spec.layers.iter().enumerate() {
            self.layer(index, layer);
        }
        self.float(WeightId::DraftNorm, weight(names.final_norm), &[hidden], Shard::Whole);
        if spec.own_mask {
            let mask = "mask_embedding.pt".to_owned();
            self.float(WeightId::DraftMask, mask, &[hidden], Shard::Whole);
        }
    }
}

/// The places of gate's values and of up's values where an expert has both in one tensor.
fn gate_and_up(spec: &ExpertsSpec) -> [Stride; 2] {
    match spec.layout {
        ExpertLayout::StackedInterleaved => [0, 1].map(|first| Stride { first, step: 2 }),
        ExpertLayout::Apart | ExpertLayout::StackedHalves => [0, spec.width].map(Stride::run_from),
    }
}
