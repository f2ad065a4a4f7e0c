//! Which kinds of attention the wide pass has kernels for.

use kilotok_model::{AttentionSpec, LayerSpec, ModelSpec};

use crate::buffers::{BF16, CONSUMER_WARPS, TILE_HEADS};
use crate::constants::{Attention, Constants};
use crate::shared_memory::{PAGE_BYTES, PIECE_KEYS};

/// `DECODE_HIDDEN_MAX` of `phase/attn_schedule.cuh`.
const DECODE_HIDDEN_MAX: usize = 4095;
/// Keys that a page of the narrow pass's ring has.
const PAGE_KEYS: usize = 64;
/// Dimensions of values that a warp computes at a time of a window: `STRIP` of
/// `wide/attn_window.cuh`.
const STRIP_MAX: usize = 64;
/// The same name there: shared memory for the keys and values of a tile's windows.
const ROWS_STAGES_BYTES: usize = 216 << 10;

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
        let pieces = (keys + PIECE_KEYS - 1).div_ceil(PIECE_KEYS);
        let stage_bytes = pieces * PIECE_KEYS * (qk_dim + v_dim) * BF16;
        let strip = v_dim.min(STRIP_MAX);
        return pieces <= CONSUMER_WARPS
            && v_dim.is_multiple_of(strip)
            && strip.is_multiple_of(16)
            && stage_bytes <= ROWS_STAGES_BYTES;
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

#[cfg(test)]
mod tests {
    use kilotok_testkit::Toy;

    use super::*;

    #[test]
    fn the_wide_pass_has_the_windows_that_its_kernels_have() {
        for v_dim in [16, 32, 48, 64, 128, 192] {
            assert!(has_attention(Some(128), 64, v_dim), "values of {v_dim}");
        }
        for v_dim in [8, 24, 40, 72, 80, 96, 112, 160] {
            assert!(!has_attention(Some(128), 64, v_dim), "values of {v_dim}");
        }
        // 177 keys are in 12 pieces. 192 keys and values of 576 dimensions are 216 KiB.
        assert!(has_attention(Some(177), 384, 192));
        assert!(!has_attention(Some(178), 64, 64), "13 pieces");
        assert!(!has_attention(Some(177), 392, 192), "more than 216 KiB");
        assert!(has_attention(Some(161), 392, 192), "11 pieces");
    }

    #[test]
    fn a_model_with_other_windows_takes_the_narrow_pass() {
        let mut spec = Toy::pro_fp4().spec();
        assert_eq!(unfit(&spec), None);
        let window = spec.layers.iter_mut().find(|layer| layer.attention.window().is_some());
        window.expect("a layer with a window").attention.v_dim = 96;
        let reason = "has no attention for the window or the heads of a layer";
        assert_eq!(unfit(&spec), Some(reason));
    }
}
