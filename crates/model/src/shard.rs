//! Which part of a weight belongs to which tensor-parallel rank.

use std::ops::Range;

use crate::spec::{AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, QkvLayout, WeightFormat};
use crate::weight::{MXFP4_GROUP, WeightDecl};

/// One rank of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    pub rank: usize,
    pub count: usize,
}

impl Ranks {
    /// A model that is not shared.
    pub const ALONE: Self = Self { rank: 0, count: 1 };

    /// This rank's equal share of `n`.
    pub fn share(self, n: usize) -> Range<usize> {
        let each = n / self.count;
        self.rank * each..(self.rank + 1) * each
    }

    /// The K/V heads that this rank's query heads read. With fewer heads than ranks several
    /// ranks hold the same head.
    pub fn kv_share(self, kv_heads: usize) -> Range<usize> {
        if kv_heads >= self.count {
            self.share(kv_heads)
        } else {
            let head = self.rank * kv_heads / self.count;
            head..head + 1
        }
    }
}

/// How ranks share a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    /// Every rank holds all of it.
    Whole,
    /// The first rank holds all of it, the others nothing: it is added once to the ranks' sum.
    First,
    /// An equal run of rows each, or of a vector's values.
    Rows,
    /// An equal run of columns each, or of a vector's values.
    Columns,
    /// Rows, or a vector's values, of K/V heads: `heads` heads of `dim`, see [`Ranks::kv_share`].
    KvHeads { heads: usize, dim: usize },
    /// A fused projection of `chunks` parts `[q|k|v]`; a rank gets its q heads, then its k
    /// heads, then its v heads.
    Qkv { chunks: usize, q_heads: usize, kv_heads: usize, qk_dim: usize, v_dim: usize },
}

/// A rank's part of a weight: these rows, in this order, of these columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub rows: Vec<Range<usize>>,
    pub cols: Range<usize>,
}

impl Slice {
    pub fn row_count(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }
}

impl Shard {
    /// How many parts are read for `rank_count` ranks, those of the first ranks: one, if all ranks
    /// share it or only the first has it.
    pub fn part_count(self, rank_count: usize) -> usize {
        match self {
            Self::Whole | Self::First => 1,
            Self::Rows | Self::Columns | Self::KvHeads { .. } | Self::Qkv { .. } => rank_count,
        }
    }
}

impl WeightDecl {
    /// The part of this weight that belongs to a rank.
    pub fn slice(&self, ranks: Ranks) -> Slice {
        let (rows, cols) = (self.rows(), self.cols());
        let slice = |rows: Range<usize>, cols| Slice { rows: vec![rows], cols };
        // A vector is one row.
        let lengthwise = |part| {
            if self.shape.len() == 1 { slice(0..1, part) } else { slice(part, 0..cols) }
        };
        match self.shard {
            Shard::Whole => slice(0..rows, 0..cols),
            Shard::First if ranks.rank == 0 => slice(0..rows, 0..cols),
            Shard::First => slice(0..0, 0..cols),
            Shard::Rows => lengthwise(ranks.share(self.shape[0])),
            Shard::Columns => slice(0..rows, ranks.share(cols)),
            Shard::KvHeads { heads, dim } => {
                let heads = ranks.kv_share(heads);
                lengthwise(heads.start * dim..heads.end * dim)
            }
            Shard::Qkv { chunks, q_heads, kv_heads, qk_dim, v_dim } => {
                let (q_each, kv_each) = (q_heads / chunks, kv_heads / chunks);
                let chunk_rows = q_each * qk_dim + kv_each * (qk_dim + v_dim);
                // Start of one head's rows, given its kind's offset within a chunk.
                let at = |head: usize, each: usize, offset: usize, dim: usize| {
                    let start = head / each * chunk_rows + offset + head % each * dim;
                    start..start + dim
                };
                let q = ranks.share(q_heads);
                let kv = ranks.kv_share(kv_heads);
                let k_offset = q_each * qk_dim;
                let v_offset = k_offset + kv_each * qk_dim;
                let mut rows = Vec::new();
                rows.extend(q.map(|head| at(head, q_each, 0, qk_dim)));
                rows.extend(kv.clone().map(|head| at(head, kv_each, k_offset, qk_dim)));
                rows.extend(kv.map(|head| at(head, kv_each, v_offset, v_dim)));
                Slice { rows: merge(rows), cols: 0..cols }
            }
        }
    }
}

/// Joins neighbouring ranges, so that whole chunks are read in one go.
fn merge(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

/// A model that cannot be shared by so many ranks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model cannot be shared by {count} ranks: {}", problems.join("; "))]
pub struct RanksError {
    pub count: usize,
    pub problems: Vec<String>,
}

/// Whether every weight of the model can be shared by `count` ranks.
///
/// # Errors
/// All sizes that do not divide, by name.
pub fn check_ranks(spec: &ModelSpec, count: usize) -> Result<(), RanksError> {
    let mut problems = Vec::new();
    if matches!(count, 1 | 2 | 4 | 8) {
        divide(&mut problems, "vocab_size", spec.vocab_size, count);
        for (index, layer) in spec.layers.iter().enumerate() {
            check_layer(&mut problems, &format!("layer {index}"), layer, count);
        }
        if let Some(drafter) = &spec.drafter {
            divide(&mut problems, "hidden_size", spec.hidden_size, count);
            for (index, layer) in drafter.layers.iter().enumerate() {
                check_layer(&mut problems, &format!("drafter layer {index}"), layer, count);
            }
        }
    } else {
        problems.push("the number of ranks must be 1, 2, 4 or 8".to_owned());
    }
    if problems.is_empty() { Ok(()) } else { Err(RanksError { count, problems }) }
}

fn check_layer(problems: &mut Vec<String>, name: &str, layer: &LayerSpec, count: usize) {
    let AttentionSpec { q_heads, kv_heads, .. } = layer.attention;
    divide(problems, &format!("{name}: query heads"), q_heads, count);
    if kv_heads % count != 0 && !count.is_multiple_of(kv_heads) {
        problems.push(format!("{name}: {kv_heads} K/V heads"));
    }
    let width = layer.feed_forward.width();
    divide(problems, &format!("{name}: feed-forward width"), width, count);
    if let FeedForwardSpec::Experts(experts) = &layer.feed_forward
        && experts.format == WeightFormat::Mxfp4
        && !(width / count).is_multiple_of(MXFP4_GROUP)
    {
        problems.push(format!("{name}: expert width {width} splits a group of {MXFP4_GROUP}"));
    }
}

fn divide(problems: &mut Vec<String>, name: &str, n: usize, count: usize) {
    if !n.is_multiple_of(count) {
        problems.push(format!("{name} is {n}"));
    }
}

impl AttentionSpec {
    /// How ranks share the fused projection.
    pub(crate) fn qkv_shard(&self) -> Option<Shard> {
        let QkvLayout::Fused { chunks } = self.qkv else {
            return None;
        };
        Some(Shard::Qkv {
            chunks,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            qk_dim: self.qk_dim,
            v_dim: self.v_dim,
        })
    }
}
