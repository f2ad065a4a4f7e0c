//! The model's weights as the phases want them: by layer, then by rank.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kilotok_model::{
    FeedForwardSpec, LayerSpec, LayerWeight, ModelSpec, Part, Ranks, RouterDtype, Shard, WeightId,
    declare,
};
use kilotok_weights::{LoadError, Piece, Progress, Tensor, TensorData, WeightSource, load};

use crate::rope::Rope;

/// Weights that all ranks share are held once.
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
    pub(crate) router: Option<RouterWeights>,
    pub(crate) ranks: Vec<RankWeights>,
}

pub(crate) struct RouterWeights {
    /// `[experts, hidden]`
    pub(crate) matrix: Tensor,
    pub(crate) bias: Vec<f32>,
}

/// One rank's part of a layer.
pub(crate) struct RankWeights {
    /// One fused matrix, or q, k and v: together `[q + k + v rows, hidden]`.
    pub(crate) qkv: Vec<Tensor>,
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
        let copies = if decl.shard == Shard::Whole { 1 } else { rank_count };
        for rank in 0..copies {
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

    fn by_rank(&mut self, id: WeightId) -> Vec<Tensor> {
        (0..self.rank_count).map(|rank| self.take(id, rank)).collect()
    }

    fn model(&mut self, spec: &ModelSpec) -> ModelWeights {
        let layers = spec.layers.iter().enumerate();
        ModelWeights {
            embedding: self.by_rank(WeightId::Embedding),
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
                mask: self.vector(WeightId::DraftMask, 0),
            }),
        }
    }

    fn layer(&mut self, part: Part, index: usize, spec: &LayerSpec) -> LayerWeights {
        let id = |weight| WeightId::Layer(part, index, weight);
        let norm = |shelf: &mut Self, weight| {
            if spec.attention.qk_norm { shelf.vector(id(weight), 0) } else { Vec::new() }
        };
        LayerWeights {
            input_norm: self.vector(id(LayerWeight::InputNorm), 0),
            post_norm: self.vector(id(LayerWeight::PostNorm), 0),
            q_norm: norm(self, LayerWeight::QueryNorm),
            k_norm: norm(self, LayerWeight::KeyNorm),
            rope: Rope::new(spec.attention.rope),
            router: self.router(part, index, spec),
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
        let bias = self.vector(WeightId::Layer(part, index, LayerWeight::RouterBias), 0);
        Some(RouterWeights { matrix, bias })
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
            FeedForwardSpec::Experts(experts) => (0..experts.count)
                .map(|expert| self.mlp(rank, |weight| WeightId::Expert(index, expert, weight)))
                .collect(),
        };
        RankWeights {
            qkv: qkv.iter().map(|weight| self.take(id(*weight), rank)).collect(),
            sinks: if spec.attention.sinks {
                self.vector(id(LayerWeight::Sinks), rank)
            } else {
                Vec::new()
            },
            output: self.take(id(LayerWeight::Output), rank),
            feed_forward,
        }
    }

    fn mlp(&mut self, rank: usize, id: impl Fn(LayerWeight) -> WeightId) -> Mlp {
        Mlp {
            gate: self.take(id(LayerWeight::Gate), rank),
            up: self.take(id(LayerWeight::Up), rank),
            down: self.take(id(LayerWeight::Down), rank),
        }
    }
}
