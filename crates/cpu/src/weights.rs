//! The model's weights as the phases want them: by layer, then by rank.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kilotok_model::{
    DrafterSpec, ExpertsSpec, FeedForwardSpec, LayerSpec, LayerWeight, ModelSpec, Part, Ranks,
    RouterDtype, WeightId, declare,
};
use kilotok_weights::{LoadError, Piece, Progress, Tensor, TensorData, WeightSource, load};

use crate::rope::Rope;

/// Weights that all ranks share, or that only the first one has, are held once. Biases that a model
/// does not have are empty.
pub(crate) struct ModelWeights {
    /// By rank: `[vocab / ranks, hidden]`.
    pub(crate) embedding: Vec<Tensor>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: Vec<f32>,
    /// By rank: `[vocab / ranks, hidden]`.
    pub(crate) head: Vec<Tensor>,
    pub(crate) drafter: Option<DrafterWeights>,
}

pub(crate) struct LayerWeights {
    pub(crate) input_norm: Vec<f32>,
    pub(crate) post_norm: Vec<f32>,
    /// Per head, when the attention has them.
    pub(crate) q_norm: Vec<f32>,
    pub(crate) k_norm: Vec<f32>,
    /// Not read but made of the spec.
    pub(crate) rope: Rope,
    /// Bias of the output projection, `[hidden]`.
    pub(crate) output_bias: Vec<f32>,
    pub(crate) router: Option<RouterWeights>,
    /// Bias of each expert's `down`, `[hidden]`.
    pub(crate) down_bias: Vec<Vec<f32>>,
    pub(crate) ranks: Vec<RankWeights>,
}

pub(crate) struct RouterWeights {
    /// `[experts, hidden]`
    pub(crate) matrix: Tensor,
    pub(crate) bias: Vec<f32>,
    /// Added to scores where experts are chosen.
    pub(crate) correction: Vec<f32>,
}

/// One rank's part of a layer.
pub(crate) struct RankWeights {
    /// One fused matrix, or q, k and v: together `[q + k + v rows, hidden]`.
    pub(crate) qkv: Vec<Tensor>,
    /// `[q + k + v rows]`
    pub(crate) qkv_bias: Vec<f32>,
    /// One per query head of the rank, or none.
    pub(crate) sinks: Vec<f32>,
    /// `[hidden, q_heads * v_dim]`
    pub(crate) output: Tensor,
    /// One, or one per expert.
    pub(crate) feed_forward: Vec<Mlp>,
}

pub(crate) struct Mlp {
    pub(crate) gate: Tensor,
    pub(crate) up: Tensor,
    pub(crate) down: Tensor,
    /// `[width]`
    pub(crate) gate_bias: Vec<f32>,
    pub(crate) up_bias: Vec<f32>,
}

pub(crate) struct DrafterWeights {
    /// By rank: `[hidden / ranks, taps * hidden]`.
    pub(crate) fc: Vec<Tensor>,
    pub(crate) context_norm: Vec<f32>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) norm: Vec<f32>,
    /// Embedding of the mask token.
    pub(crate) mask: Vec<f32>,
}

/// Reads all weights of a model for so many ranks.
pub(crate) fn read(
    source: &dyn WeightSource,
    spec: &ModelSpec,
    rank_count: usize,
    progress: &dyn Progress,
) -> Result<ModelWeights, LoadError> {
    let mut pieces = Vec::new();
    for decl in declare(spec) {
        for rank in 0..decl.shard.part_count(rank_count) {
            pieces.push(Piece { decl: decl.clone(), ranks: Ranks { rank, count: rank_count } });
        }
    }
    let read = Mutex::new(HashMap::with_capacity(pieces.len()));
    load(source, &pieces, progress, |piece, tensor| {
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert((piece.decl.id, piece.ranks.rank), tensor);
    })?;
    let read = read.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut shelf = Shelf { read, rank_count };
    Ok(shelf.model(spec))
}

/// Tensors that wait to be put in their place.
struct Shelf {
    read: HashMap<(WeightId, usize), Tensor>,
    rank_count: usize,
}

impl Shelf {
    fn take(&mut self, id: WeightId, rank: usize) -> Tensor {
        self.read.remove(&(id, rank)).unwrap_or_else(|| panic!("{id:?} of rank {rank} was read"))
    }

    fn vector(&mut self, id: WeightId, rank: usize) -> Vec<f32> {
        let tensor = self.take(id, rank);
        let mut values = vec![0.0; tensor.cols];
        tensor.decode_row(0, &mut values);
        values
    }

    /// A bias, or nothing if the model does not have it.
    fn bias(&mut self, id: WeightId, rank: usize) -> Vec<f32> {
        if self.read.contains_key(&(id, rank)) { self.vector(id, rank) } else { Vec::new() }
    }

    /// The biases of each of `count` experts, empty if the model does not have them.
    fn biases(&mut self, id: WeightId, rank: usize, count: usize) -> Vec<Vec<f32>> {
        let Some(tensor) = self.read.remove(&(id, rank)) else { return vec![Vec::new(); count] };
        let row = |row| {
            let mut values = vec![0.0; tensor.cols];
            tensor.decode_row(row, &mut values);
            values
        };
        (0..count).map(row).collect()
    }

    fn by_rank(&mut self, id: WeightId) -> Vec<Tensor> {
        (0..self.rank_count).map(|rank| self.take(id, rank)).collect()
    }

    fn model(&mut self, spec: &ModelSpec) -> ModelWeights {
        let layers = spec.layers.iter().enumerate();
        let embedding = self.by_rank(WeightId::Embedding);
        let mask = spec.drafter.as_ref().map(|drafter| self.mask(drafter, &embedding));
        ModelWeights {
            embedding,
            layers: layers.map(|(index, layer)| self.layer(Part::Target, index, layer)).collect(),
            final_norm: self.vector(WeightId::FinalNorm, 0),
            head: self.by_rank(WeightId::Head),
            drafter: spec.drafter.as_ref().map(|drafter| DrafterWeights {
                fc: self.by_rank(WeightId::DraftFc),
                context_norm: self.vector(WeightId::DraftContextNorm, 0),
                layers: (drafter.layers.iter().enumerate())
                    .map(|(index, layer)| self.layer(Part::Drafter, index, layer))
                    .collect(),
                norm: self.vector(WeightId::DraftNorm, 0),
                mask: mask.unwrap_or_default(),
            }),
        }
    }

    /// The embedding of a drafter's mask token, its own or the target's.
    fn mask(&mut self, drafter: &DrafterSpec, embedding: &[Tensor]) -> Vec<f32> {
        if drafter.own_mask {
            return self.vector(WeightId::DraftMask, 0);
        }
        let (token, rank_rows) = (drafter.mask_token as usize, embedding[0].rows);
        let mut mask = vec![0.0; embedding[0].cols];
        embedding[token / rank_rows].decode_row(token % rank_rows, &mut mask);
        mask
    }

    fn layer(&mut self, part: Part, index: usize, spec: &LayerSpec) -> LayerWeights {
        let id = |weight| WeightId::Layer(part, index, weight);
        let norm = |shelf: &mut Self, weight| {
            if spec.attention.qk_norm_eps.is_some() {
                shelf.vector(id(weight), 0)
            } else {
                Vec::new()
            }
        };
        let experts = match &spec.feed_forward {
            FeedForwardSpec::Dense(_) => 1,
            FeedForwardSpec::Experts(experts) => experts.count,
        };
        LayerWeights {
            input_norm: self.vector(id(LayerWeight::InputNorm), 0),
            post_norm: self.vector(id(LayerWeight::PostNorm), 0),
            q_norm: norm(self, LayerWeight::QueryNorm),
            k_norm: norm(self, LayerWeight::KeyNorm),
            rope: Rope::new(spec.attention.rope),
            output_bias: self.bias(id(LayerWeight::OutputBias), 0),
            router: self.router(part, index, spec),
            down_bias: self.biases(id(LayerWeight::DownBias), 0, experts),
            ranks: (0..self.rank_count).map(|rank| self.rank(part, index, spec, rank)).collect(),
        }
    }

    fn router(&mut self, part: Part, index: usize, spec: &LayerSpec) -> Option<RouterWeights> {
        let FeedForwardSpec::Experts(experts) = &spec.feed_forward else { return None };
        let mut matrix = self.take(WeightId::Layer(part, index, LayerWeight::Router), 0);
        if experts.router.dtype == RouterDtype::Bf16
            && let TensorData::F32(values) = &matrix.data
        {
            matrix.data =
                TensorData::Bf16(values.iter().copied().map(half::bf16::from_f32).collect());
        }
        let mut bias = |weight| self.bias(WeightId::Layer(part, index, weight), 0);
        let correction = bias(LayerWeight::RouterCorrection);
        Some(RouterWeights { matrix, bias: bias(LayerWeight::RouterBias), correction })
    }

    fn rank(&mut self, part: Part, index: usize, spec: &LayerSpec, rank: usize) -> RankWeights {
        let id = |weight| WeightId::Layer(part, index, weight);
        let fused = self.read.contains_key(&(id(LayerWeight::Qkv), rank));
        let qkv: &[_] = if fused {
            &[LayerWeight::Qkv]
        } else {
            &[LayerWeight::Query, LayerWeight::Key, LayerWeight::Value]
        };
        let feed_forward = match &spec.feed_forward {
            FeedForwardSpec::Dense(_) => vec![self.mlp(rank, id)],
            FeedForwardSpec::Experts(experts) => self.experts(part, index, experts, rank),
        };
        let mut qkv_bias = Vec::new();
        for bias in [LayerWeight::QueryBias, LayerWeight::KeyBias, LayerWeight::ValueBias] {
            qkv_bias.extend(self.bias(id(bias), rank));
        }
        RankWeights {
            qkv: qkv.iter().map(|weight| self.take(id(*weight), rank)).collect(),
            qkv_bias,
            sinks: if spec.attention.sinks {
                self.vector(id(LayerWeight::Sinks), rank)
            } else {
                Vec::new()
            },
            output: self.take(id(LayerWeight::Output), rank),
            feed_forward,
        }
    }

    fn experts(&mut self, part: Part, index: usize, spec: &ExpertsSpec, rank: usize) -> Vec<Mlp> {
        let [gates, ups] = [LayerWeight::GateBias, LayerWeight::UpBias]
            .map(|bias| self.biases(WeightId::Layer(part, index, bias), rank, spec.count));
        let biases = gates.into_iter().zip(ups).enumerate();
        let expert = |(expert, (gate_bias, up_bias))| {
            let mlp = self.mlp(rank, |weight| WeightId::Expert(index, expert, weight));
            Mlp { gate_bias, up_bias, ..mlp }
        };
        biases.map(expert).collect()
    }

    fn mlp(&mut self, rank: usize, id: impl Fn(LayerWeight) -> WeightId) -> Mlp {
        Mlp {
            gate: self.take(id(LayerWeight::Gate), rank),
            up: self.take(id(LayerWeight::Up), rank),
            down: self.take(id(LayerWeight::Down), rank),
            gate_bias: Vec::new(),
            up_bias: Vec::new(),
        }
    }
}
