//! How a model's layers fall into page groups.

use kilotok_engine::{PageGroup, PageKind};
use kilotok_model::{AttentionSpec, ModelSpec};

/// The page groups, and for each layer the index of its group.
pub struct Grouping {
    pub groups: Vec<PageGroup>,
    pub target: Vec<usize>,
    pub drafter: Vec<usize>,
}

impl Grouping {
    /// Layers with the same window share a group; the drafter's layers have groups of their own.
    /// One element of a key or value takes `value_bytes`. Where a layer has fewer K/V heads than
    /// there are ranks, heads are replicated, and each rank stores one. How many pages a group has
    /// is not set.
    pub fn new(spec: &ModelSpec, rank_count: usize, page_tokens: u32, value_bytes: usize) -> Self {
        let mut grouping = Self { groups: Vec::new(), target: Vec::new(), drafter: Vec::new() };
        let mut place = |kind, attention: &AttentionSpec| {
            let index = grouping.place(kind, attention, page_tokens);
            let heads = attention.kv_heads.max(rank_count);
            let width = heads * (attention.qk_dim + attention.v_dim);
            let bytes = (width * value_bytes) as u64 * u64::from(page_tokens);
            let group = &mut grouping.groups[index];
            group.page_bytes = group.page_bytes.saturating_add(bytes);
            index
        };
        let target = spec.layers.iter().map(|layer| {
            let window = layer.attention.window();
            let kind = if window.is_some() { PageKind::Window } else { PageKind::Full };
            place(kind, &layer.attention)
        });
        let target = target.collect();
        let layers = spec.drafter.iter().flat_map(|drafter| &drafter.layers);
        let drafter = layers.map(|layer| place(PageKind::Draft, &layer.attention)).collect();
        Self { target, drafter, ..grouping }
    }

    /// Index of the group of such a layer. A missing group is added.
    fn place(&mut self, kind: PageKind, attention: &AttentionSpec, page_tokens: u32) -> usize {
        let window = attention.window().map(|keys| keys as u32);
        let same = |group: &PageGroup| group.kind == kind && group.window == window;
        self.groups.iter().position(same).unwrap_or_else(|| {
            let (page_count, page_bytes) = (0, 0);
            self.groups.push(PageGroup { kind, page_tokens, page_count, window, page_bytes });
            self.groups.len() - 1
        })
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        let group =
            |group: &PageGroup| group.page_bytes.saturating_mul(u64::from(group.page_count));
        self.groups.iter().map(group).fold(0, u64::saturating_add)
    }
}
