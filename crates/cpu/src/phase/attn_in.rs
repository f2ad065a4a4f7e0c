//! Norm, q/k/v projection, bias, per-head norm, rotation, value scale, and the write to the pages.

use kilotok_batch::Batch;
use kilotok_model::{AttentionSpec, Ranks};

use crate::math::{add_bias, rms_norm_in_place};
use crate::matmul::{matmul, vectors};
use crate::pages::LayerPages;
use crate::rope::rotate;
use crate::weights::{LayerWeights, RankWeights};

/// Queries, keys and values of one rank, of each token one after the other.
pub(crate) struct Projected {
    rows: Vec<f32>,
    q_width: usize,
    k_width: usize,
    width: usize,
}

impl Projected {
    fn row(&self, token: usize) -> &[f32] {
        &self.rows[token * self.width..][..self.width]
    }

    /// `[heads, qk_dim]`
    pub(crate) fn q(&self, token: usize) -> &[f32] {
        &self.row(token)[..self.q_width]
    }

    /// `[kv_heads, qk_dim]`
    pub(crate) fn k(&self, token: usize) -> &[f32] {
        &self.row(token)[self.q_width..][..self.k_width]
    }

    /// `[kv_heads, v_dim]`
    pub(crate) fn v(&self, token: usize) -> &[f32] {
        &self.row(token)[self.q_width + self.k_width..]
    }
}

/// A layer's projection.
pub(crate) struct Projection<'a> {
    pub(crate) spec: &'a AttentionSpec,
    pub(crate) weights: &'a LayerWeights,
}

/// Projects normed activations `h` and keeps keys and values of the target. By rank.
pub(crate) fn run(
    projection: &Projection<'_>,
    batch: &Batch<'_>,
    h: &[f32],
    pages: &mut [LayerPages],
) -> Vec<Projected> {
    let ranks = pages.iter_mut().enumerate().map(|(rank, pages)| {
        let projected = projection.all(rank, h, &batch.positions);
        for (token, &position) in batch.positions.iter().enumerate() {
            let run = &batch.row(token).pages[pages.group];
            pages.write(run, position, projected.k(token), projected.v(token));
        }
        projected
    });
    ranks.collect()
}

impl Projection<'_> {
    /// Queries, keys and values of a rank.
    pub(crate) fn all(&self, rank: usize, h: &[f32], positions: &[u32]) -> Projected {
        let ranks = Ranks { rank, count: self.weights.ranks.len() };
        let q_width = ranks.share(self.spec.q_heads).len() * self.spec.qk_dim;
        let RankWeights { qkv, qkv_bias, .. } = &self.weights.ranks[rank];
        let rows = matmul(qkv, &vectors(h, qkv[0].cols));
        self.finish(ranks, q_width, rows, qkv_bias, positions)
    }

    /// Keys and values alone, from a split projection.
    pub(crate) fn kv(&self, rank: usize, c: &[f32], positions: &[u32]) -> Projected {
        let ranks = Ranks { rank, count: self.weights.ranks.len() };
        let RankWeights { qkv, qkv_bias, .. } = &self.weights.ranks[rank];
        assert_eq!(qkv.len(), 3, "a drafter's projections are split");
        let kv = &qkv[1..];
        let bias = qkv_bias.get(qkv[0].rows..).unwrap_or_default();
        self.finish(ranks, 0, matmul(kv, &vectors(c, kv[0].cols)), bias, positions)
    }

    /// Bias, norm and rotation of queries and keys, scale of values.
    fn finish(
        &self,
        ranks: Ranks,
        q_width: usize,
        mut rows: Vec<f32>,
        bias: &[f32],
        positions: &[u32],
    ) -> Projected {
        let Self { spec, weights } = *self;
        let kv_heads = ranks.kv_share(spec.kv_heads).len();
        let k_width = kv_heads * spec.qk_dim;
        let width = q_width + k_width + kv_heads * spec.v_dim;
        for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
            add_bias(row, bias);
            let (heads, v) = row.split_at_mut(q_width + k_width);
            if let Some(eps) = spec.qk_norm_eps {
                let (q, k) = heads.split_at_mut(q_width);
                rms_norm_in_place(q, &weights.q_norm, eps);
                rms_norm_in_place(k, &weights.k_norm, eps);
            }
            let angles = weights.rope.angles(position);
            for head in heads.chunks_exact_mut(spec.qk_dim) {
                rotate(head, &angles);
            }
            for value in v {
                *value *= spec.value_scale;
            }
        }
        Projected { rows, q_width, k_width, width }
    }
}
