//! A look inside a running step, for comparing with other implementations.

/// Called with every value as soon as it is final.
pub type Watch = Box<dyn FnMut(Seen<'_>) + Send>;

/// One value of a step.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// The residual stream of a position: before the first layer (0), after layer `index - 1`
    /// otherwise. `[hidden]`
    Hidden { index: usize, position: u32, values: &'a [f32] },
    /// The experts that a position goes to, in rising order, and how far the score of the last one
    /// that was chosen is ahead of the next.
    Experts { layer: usize, position: u32, experts: &'a [usize], lead: f32 },
    /// The target's logits after a position. `[vocab]`
    Logits { position: u32, values: &'a [f32] },
    /// What a draft layer keeps of a committed position: keys after norm and rotation, values
    /// after scaling, of one rank. `[kv_heads * dim]` each
    DraftContext { layer: usize, position: u32, keys: &'a [f32], values: &'a [f32] },
    /// The drafter's logits for a position. `[vocab]`
    DraftLogits { position: u32, values: &'a [f32] },
}
