//! Which kinds of attention the wide pass has kernels for.

use kilotok_model::{AttentionSpec, LayerSpec, ModelSpec};

use crate::buffers::{BF16, CONSUMER_WARPS, TILE_HEADS};
use crate::constants::{Attention, Constants};
use crate::shared_memory::{PAGE_BYTES, PIECE_KEYS};

/// `DECODE_HIDDEN_MAX` of `phase/attn_schedule.cuh`.
const DECODE_HIDDEN_MAX: usize = 4095;
/// Keys that a page of the narrow pass's ring has.
const PAGE_KEYS: usize = 64;

/// Why the wide pass cannot run this model; `None` if it can.
pub(crate) fn unfit(spec: &ModelSpec) -> Option<&'static str> {
    let attention = |layer: &LayerSpec| {
        let AttentionSpec { qk_dim, v_dim, .. } = layer.attention;
        has_attention(layer.attention.window(), qk_dim, v_dim)
    };
    if !spec.layers.iter().all(attention) {
        return Some("has no attention for the window or the heads of a layer");
    }
    None
}

/// `HAS_ATTENTION` of `wide/attn.cuh`.
pub(crate) fn has_attention(window: Option<usize>, qk_dim: usize, v_dim: usize) -> bool {
    if let Some(keys) = window {
        return (keys + PIECE_KEYS - 1).div_ceil(PIECE_KEYS) <= CONSUMER_WARPS;
    }
    let page_bytes = PAGE_KEYS * (qk_dim + v_dim) * BF16;
    let whole = v_dim.is_multiple_of(16) && qk_dim.is_multiple_of(16);
    whole && v_dim <= 128 && qk_dim <= 192 && page_bytes <= PAGE_BYTES
}

/// `HAS_DECODE` of `phase/attn_schedule.cuh`.
pub(crate) fn has_decode(constants: &Constants, kind: usize) -> bool {
    let Attention { q_heads, kv_heads, qk_dim, v_dim, window, .. } = constants.attentions[kind];
    let streamed = kind < constants.draft_attention && window.is_none();
    let one_tile = (q_heads / kv_heads).div_ceil(TILE_HEADS) == 1;
    let small = constants.hidden <= DECODE_HIDDEN_MAX;
    streamed && has_attention(window, qk_dim, v_dim) && one_tile && small
}
