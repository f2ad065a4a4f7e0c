//! Norm, q/k/v projection, per-head norm, rotation, value scale, and the write to the pages.

use kilotok_model::{AttentionSpec, Ranks};
use kilotok_rows::Batch;

use crate::math::rms_norm_in_place;
use crate::matmul::{matmul, transpose};
use crate::pages::LayerPages;
use crate::rope::rotate;
use crate::weights::LayerWeights;

/// Queries, keys and values of one rank: `[tokens, heads * dim]` each.
pub(crate) struct Projected {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

/// What the projection of a layer needs besides its weights.
pub(crate) struct Projection<'a> {
    pub(crate) spec: &'a AttentionSpec,
    pub(crate) weights: &'a LayerWeights,
    pub(crate) norm_eps: f32,
}

/// Projects normed activations `h` and keeps keys and values of the target. Returns the queries,
/// by rank.
pub(crate) fn run(
    projection: &Projection<'_>,
    batch: &Batch<'_>,
    h: &[f32],
    pages: &mut [LayerPages],
) -> Vec<Vec<f32>> {
    let mut queries = Vec::with_capacity(pages.len());
    for (rank, pages) in pages.iter_mut().enumerate() {
        let Projected { q, k, v } = projection.all(rank, h, &batch.positions);
        let (k_width, v_width) = (k.len() / batch.token_count(), v.len() / batch.token_count());
        for (token, &position) in batch.positions.iter().enumerate() {
            let run = &batch.row(token).pages[pages.group];
            let keys = &k[token * k_width..][..k_width];
            pages.write(run, position, keys, &v[token * v_width..][..v_width]);
        }
        queries.push(q);
    }
    queries
}

impl Projection<'_> {
    /// Queries, keys and values of a rank.
    pub(crate) fn all(&self, rank: usize, h: &[f32], positions: &[u32]) -> Projected {
        let n = positions.len();
        let products = self.weights.ranks[rank].qkv.iter().flat_map(|w| matmul(w, h));
        let rows: Vec<f32> = products.collect();
        let (q_rows, kv_heads) = self.shares(rank);
        let k_rows = kv_heads * self.spec.qk_dim;
        let (q, kv) = rows.split_at(q_rows * n);
        let (k, v) = kv.split_at(k_rows * n);
        let mut q = transpose(q, n);
        self.finish_heads(&mut q, &self.weights.q_norm, positions);
        let (k, v) = self.finish_kv(transpose(k, n), transpose(v, n), positions);
        Projected { q, k, v }
    }

    /// Keys and values alone, from a split projection.
    pub(crate) fn kv(&self, rank: usize, c: &[f32], positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let n = positions.len();
        let [_, key, value] = &self.weights.ranks[rank].qkv[..] else {
            panic!("a drafter's projections are split");
        };
        let (k, v) = (transpose(&matmul(key, c), n), transpose(&matmul(value, c), n));
        self.finish_kv(k, v, positions)
    }

    /// Query rows and K/V heads of a rank.
    fn shares(&self, rank: usize) -> (usize, usize) {
        let ranks = Ranks { rank, count: self.weights.ranks.len() };
        let q_heads = ranks.share(self.spec.q_heads).len();
        (q_heads * self.spec.qk_dim, ranks.kv_share(self.spec.kv_heads).len())
    }

    fn finish_kv(
        &self,
        mut k: Vec<f32>,
        mut v: Vec<f32>,
        positions: &[u32],
    ) -> (Vec<f32>, Vec<f32>) {
        self.finish_heads(&mut k, &self.weights.k_norm, positions);
        for value in &mut v {
            *value *= self.spec.value_scale;
        }
        (k, v)
    }

    /// Norm and rotation of query or key heads.
    fn finish_heads(&self, heads: &mut [f32], norm: &[f32], positions: &[u32]) {
        if self.spec.qk_norm {
            rms_norm_in_place(heads, norm, self.norm_eps);
        }
        let width = heads.len().checked_div(positions.len()).unwrap_or(0);
        for (heads, &position) in heads.chunks_exact_mut(width.max(1)).zip(positions) {
            let angles = self.weights.rope.angles(position);
            for head in heads.chunks_exact_mut(self.spec.qk_dim) {
                rotate(head, &angles);
            }
        }
    }
}
