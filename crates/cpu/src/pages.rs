//! Keys and values, in pages.

use std::ops::Range;

use kilotok_batch::Grouping;
use kilotok_engine::{PageGroup, PageRun};
use kilotok_model::{AttentionSpec, ModelSpec, Ranks};

/// The K/V of one layer on one rank, all pages of its group. A page holds
/// `[kv_heads, page_tokens, qk_dim]` keys and `[kv_heads, page_tokens, v_dim]` values.
pub(crate) struct LayerPages {
    /// Place of the layer's group in [`kilotok_engine::Row::pages`].
    pub(crate) group: usize,
    page_tokens: usize,
    kv_heads: usize,
    qk_dim: usize,
    v_dim: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Keys `[count, qk_dim]` and values `[count, v_dim]` of a head that lie together, from position
/// `first` on.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) first: u32,
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
}

/// The pages of a whole model.
pub(crate) struct Pages {
    /// By target layer, then rank.
    pub(crate) target: Vec<Vec<LayerPages>>,
    /// By drafter layer, then rank.
    pub(crate) drafter: Vec<Vec<LayerPages>>,
}

impl Pages {
    /// Takes the memory of all pages; `None` if there is not enough.
    pub(crate) fn allocate(
        grouping: &Grouping,
        spec: &ModelSpec,
        rank_count: usize,
    ) -> Option<Self> {
        let layer = |group: usize, attention: &AttentionSpec| {
            let rank = |rank| {
                let kv_heads = Ranks { rank, count: rank_count }.kv_share(attention.kv_heads).len();
                LayerPages::new(group, &grouping.groups[group], kv_heads, attention)
            };
            (0..rank_count).map(rank).collect::<Option<Vec<_>>>()
        };
        let drafter_layers = spec.drafter.iter().flat_map(|drafter| &drafter.layers);
        Some(Self {
            target: (grouping.target.iter().zip(&spec.layers))
                .map(|(&group, spec)| layer(group, &spec.attention))
                .collect::<Option<_>>()?,
            drafter: (grouping.drafter.iter().zip(drafter_layers))
                .map(|(&group, spec)| layer(group, &spec.attention))
                .collect::<Option<_>>()?,
        })
    }
}

/// `count` zeros, if there is memory for them.
fn zeros(count: usize) -> Option<Vec<f32>> {
    Vec::<f32>::new().try_reserve_exact(count).ok()?;
    // Unlike a filled one, a vector made of zeros takes no memory until it is written.
    Some(vec![0.0; count])
}

impl LayerPages {
    fn new(
        group: usize,
        pages: &PageGroup,
        kv_heads: usize,
        attention: &AttentionSpec,
    ) -> Option<Self> {
        let AttentionSpec { qk_dim, v_dim, .. } = *attention;
        let page_tokens = pages.page_tokens as usize;
        let positions =
            (pages.page_count as usize).checked_mul(page_tokens)?.checked_mul(kv_heads)?;
        Some(Self {
            group,
            page_tokens,
            kv_heads,
            qk_dim,
            v_dim,
            keys: zeros(positions.checked_mul(qk_dim)?)?,
            values: zeros(positions.checked_mul(v_dim)?)?,
        })
    }

    /// Stores a position: `keys` is `[kv_heads, qk_dim]`, `values` `[kv_heads, v_dim]`.
    pub(crate) fn write(&mut self, run: &PageRun, position: u32, keys: &[f32], values: &[f32]) {
        let (page, within) = self.locate(run, position);
        for head in 0..self.kv_heads {
            let place = (page * self.kv_heads + head) * self.page_tokens + within;
            let (qk_dim, v_dim) = (self.qk_dim, self.v_dim);
            self.keys[place * qk_dim..][..qk_dim].copy_from_slice(&keys[head * qk_dim..][..qk_dim]);
            self.values[place * v_dim..][..v_dim].copy_from_slice(&values[head * v_dim..][..v_dim]);
        }
    }

    /// Keys and values of one head at some positions, page by page.
    pub(crate) fn runs<'a>(
        &'a self,
        run: &PageRun,
        head: usize,
        positions: Range<u32>,
        mut see: impl FnMut(Run<'a>),
    ) {
        let Range { start: mut first, end } = positions;
        while first < end {
            let (page, within) = self.locate(run, first);
            let count = (self.page_tokens - within).min((end - first) as usize);
            let place = (page * self.kv_heads + head) * self.page_tokens + within;
            let keys = &self.keys[place * self.qk_dim..][..count * self.qk_dim];
            let values = &self.values[place * self.v_dim..][..count * self.v_dim];
            see(Run { first, keys, values });
            first += count as u32;
        }
    }

    /// Page number and place within the page.
    fn locate(&self, run: &PageRun, position: u32) -> (usize, usize) {
        let position = position as usize;
        let page = run.pages[position / self.page_tokens - run.first as usize];
        (page.0 as usize, position % self.page_tokens)
    }
}
