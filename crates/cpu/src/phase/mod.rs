//! The fused operations of a step, one file each, in the order in which a step runs them.
//!
//! Activations are F32, `[tokens, width]`, row-major. A phase that ranks share computes each
//! rank's part in turn and adds the parts in rank order, as the all-reduce between GPUs does.

pub(crate) mod attn;
pub(crate) mod attn_in;
pub(crate) mod attn_out;
pub(crate) mod dense;
pub(crate) mod draft;
pub(crate) mod embed;
pub(crate) mod experts;
pub(crate) mod head;
#[cfg(test)]
mod kernels;
pub(crate) mod router;
