//! The arguments of a step's kernels on the GPU: the batch, and the addresses of everything else.
//! Addresses are in the rank's own memory, unless a comment says otherwise.

use crate::layout::{abi_constants, abi_struct};

/// The most ranks: the GPUs of a node.
pub const RANKS_MAX: usize = 8;
/// The most page groups of a model: full and window layers of the target, the drafter's.
pub const GROUPS_MAX: usize = 4;
/// The size of a counter that CTAs share: a cache line.
pub const COUNTER_BYTES: usize = 128;
/// Bytes of a plan that one thread and one CTA copy from the host's memory.
pub const PLAN_THREAD_BYTES: usize = 16;
pub const PLAN_CTA_BYTES: usize = 4096;
/// Counters of a launch: `Counter` of `kernels/include/kilotok/cta.cuh`.
pub const COUNTERS: usize = 4;
/// Tokens of a span: the wide pass computes the drafter's context of whole spans of a step.
pub const SPAN_TOKENS: usize = 128;

abi_constants! {
    /// The collectives of the wide pass on several ranks, each with flags of its own.
    pub enum WideCollective {
        /// A reduce-scatter: parts of tokens, to the tokens' owners.
        Parts = 0,
        /// An all-gather of what norms make of tokens: operands, 1 / rms and taps.
        Norms = 1,
        /// An all-gather of the chosen experts.
        Choices = 2,
        /// An all-gather of the tokens that need logits.
        Wanted = 3,
    }
}

abi_struct! {
    /// One token of a batch.
    pub struct BatchToken : 16 {
        pub token: u32,
        pub position: u32,
        /// Index of its row.
        pub row: u32,
        /// Row of the buffer of taps: the token's index in the target's batch.
        pub tap: u32,
    }
}

abi_struct! {
    /// Consecutive tokens of one sequence.
    pub struct BatchRow : 32 {
        /// Position of the first token.
        pub start: u32,
        /// Index of the first token in the batch.
        pub first: u32,
        pub count: u32,
        /// The row's slot if its drafts are drawn at random; `!0` if they are the likeliest tokens.
        pub slot: u32,
        /// By page group: page p of the sequence is `pages[pages_at + p]`, the sum wrapping.
        pub pages_at: [u32; 4],
    }
}

abi_struct! {
    /// The counts of a batch.
    pub struct Batch : 16 {
        pub token_count: u32,
        pub row_count: u32,
        /// Tokens after which logits are needed.
        pub wanted_count: u32,
        /// An upper bound of the collectives before this launch, the same on all ranks.
        pub collectives: u32,
    }
}

abi_struct! {
    /// The addresses by which a rank accesses the others.
    pub struct Peers : 64 {
        /// The receive buffer of each rank, see `kernels/include/kilotok/comm/all_reduce.cuh`.
        pub receivers: [u64; 8],
    }
}

abi_struct! {
    /// One layer: its kinds, weights, and pages of keys and values. Layouts are those of
    /// `kernels/include/kilotok/layout`.
    pub struct LayerMemory : 152 {
        /// Index into the model's kinds of attention.
        pub attention: u32,
        /// Index into the model's kinds of feed-forward network.
        pub feed_forward: u32,
        /// The tap that is written after the layer, `!0` for none.
        pub tap: u32,
        pub reserved: u32,
        pub input_norm: u64,
        pub qkv: u64,
        /// F32, in the order of the rows of `qkv`; zeros for rows without a bias.
        pub qkv_bias: u64,
        pub q_norm: u64,
        pub k_norm: u64,
        pub sinks: u64,
        pub output: u64,
        /// F32 `[hidden]`. 0 on all ranks but the first.
        pub output_bias: u64,
        pub post_norm: u64,
        pub router: u64,
        pub router_bias: u64,
        /// Gate and up of the dense network, or of expert 0; the others follow.
        pub gate_up: u64,
        /// Biases of gate and up, F32 pairs `[experts, width]`.
        pub gate_up_bias: u64,
        pub down: u64,
        /// F32 `[experts, hidden]`. 0 on all ranks but the first.
        pub down_bias: u64,
        /// BF16, `[pages, kv_heads, page_tokens]` in groups of 8 positions; `layout/buffers.cuh`
        /// has the layout of a group.
        pub keys: u64,
        pub values: u64,
    }
}

abi_struct! {
    /// The memory of a rank.
    pub struct Memory : 312 {
        /// The batch: a [`Batch`], then arrays.
        pub batch: u64,
        pub tokens: u64,
        pub rows: u64,
        /// Indices of the wanted tokens in the batch.
        pub wanted: u64,
        pub pages: u64,
        /// [`LayerMemory`] of every target layer.
        pub layers: u64,
        /// The same for the drafter.
        pub draft_layers: u64,
        /// `[vocab / ranks, hidden]`, BF16, row by row.
        pub embedding: u64,
        pub final_norm: u64,
        pub head: u64,
        pub draft_fc: u64,
        pub draft_context_norm: u64,
        pub draft_norm: u64,
        /// `[hidden]`, F32.
        pub draft_mask: u64,
        /// RoPE: for each kind of attention `[ROPE_PAIRS_MAX]` frequencies, F32.
        pub frequencies: u64,
        /// Cosine and sine by kind of attention, token and pair, `[kinds, TOKENS_MAX, pairs max]`.
        pub angles: u64,
        /// Operand `[TOKENS_MAX, hidden]`: the residual stream times the weights of the next norm.
        pub normed: u64,
        /// `[readers, TOKENS_MAX, owner units]`, F32: sums of squares of each owner's part of the
        /// stream.
        pub squares: u64,
        /// `[TOKENS_MAX, rows]`, F32: products of the q, k and v projections.
        pub projected: u64,
        /// Queries after norm and RoPE, as operand A, BF16; see `layout/buffers.cuh`.
        pub queries: u64,
        /// Keys and values of a draft's own rows, BF16: `[TOKENS_MAX, kv_heads, qk_dim]`.
        pub own_keys: u64,
        /// `[TOKENS_MAX, kv_heads, v_dim]`, BF16.
        pub own_values: u64,
        /// Partial results of attention over chunks of keys.
        pub attention_parts: u64,
        /// Operand `[TOKENS_MAX, q_heads * v_dim]`.
        pub attended: u64,
        /// `[owner units, TOKENS_MAX, experts]`, F32.
        pub router_parts: u64,
        /// For each token the scores of experts, 1 / rms, chosen experts and their weights, 32 bits
        /// each.
        pub router_scores: u64,
        /// Operand `[TOKENS_MAX, dense width]`.
        pub dense_inner: u64,
        /// Operand `[rows of a tile * top_k, expert width]`; behind it the operand of gathered
        /// tokens, see `layout/buffers.cuh`.
        pub expert_inner: u64,
        /// Operand `[TOKENS_MAX, taps * hidden]`.
        pub taps: u64,
        /// `[TOKENS_MAX, hidden]`, F32: the drafter's fused context before its norm.
        pub fused: u64,
        /// `[TOKENS_MAX, vocab / ranks]`, F32.
        pub logits: u64,
        /// The [`crate::DraftMemory`].
        pub drafting: u64,
        /// `[TOKENS_MAX]`: the drafts chosen, one for each wanted token. In the host's memory.
        pub drafted: u64,
        /// [`COUNTERS`] that CTAs share, each in [`COUNTER_BYTES`]; zero when a kernel starts.
        pub barrier: u64,
        /// A [`Fault`] in the host's memory.
        pub fault: u64,
        /// This rank.
        pub rank: u32,
        /// How long after its beginning a launch may wait for anything, in milliseconds.
        pub wait_max_ms: u32,
        /// The [`Peers`].
        pub peers: u64,
        /// [`crate::Stamped`] of this launch, in kernels with stamps, else 0.
        pub trace: u64,
        /// [`Timestamps`] in the host's memory.
        pub timestamps: u64,
    }
}

abi_struct! {
    /// The argument of a launch of the wide pass: the buffers of a step of many tokens, and its
    /// sizes. Buffers have room for `capacity` tokens; the layout of operands is in
    /// `kernels/include/kilotok/wide/token_ring.cuh`.
    pub struct WideMemory : 560 {
        /// The memory of this step. Its tokens, rows and wanted tokens are not where a narrow step
        /// has them.
        pub memory: Memory,
        /// The [`Batch`] of the head and of sampling, written anew for each of their launches.
        pub head_batch: u64,
        /// `[capacity, hidden]`, F32: the residual stream.
        pub stream: u64,
        /// `[tokens of a share, hidden]`, F32: what a single rank adds, and the router's sums.
        pub part: u64,
        /// Operand `[capacity, hidden]`: the stream times the weights of the next norm.
        pub normed: u64,
        /// The same row by row, for experts.
        pub normed_rows: u64,
        /// `[capacity]`, F32.
        pub inverse_rms: u64,
        /// Cosine and sine, `[kinds, capacity, pairs max]`.
        pub angles: u64,
        /// `[capacity]` tokens' queries, BF16.
        pub queries: u64,
        /// `[capacity, rows]`, F32: products of q, k and v before QK norm and RoPE.
        pub projected: u64,
        /// Operand `[capacity, q_heads * v_dim]`.
        pub attended: u64,
        /// Operand `[capacity, dense width]`.
        pub dense_inner: u64,
        /// Operand `[capacity, taps * hidden]`.
        pub taps: u64,
        /// `[capacity, SCORES_EACH]`, F32: the experts' scores.
        pub scores: u64,
        /// `[capacity, top_k]`: the chosen experts and their weights.
        pub experts: u64,
        pub weights: u64,
        /// Experts work on a slice of the tokens at a time. For each expert: its first row, and its
        /// number of tokens.
        pub first_rows: u64,
        pub counts: u64,
        /// The row of each choice, the choice of each row, and the factor of each row's products.
        pub rows: u64,
        pub choices: u64,
        pub factors: u64,
        /// By row of an expert: the operand of inner values, and the products, BF16.
        pub expert_inner: u64,
        pub products: u64,
        /// With several ranks: the ranks' parts of this rank's tokens, BF16, and flags of
        /// each [`WideCollective`]; see `kernels/include/kilotok/wide/ranks.cuh`.
        pub received: u64,
        pub flags: u64,
        /// The spans of [`SPAN_TOKENS`] tokens of which the drafter's context is computed, by their
        /// numbers in the step, ascending. Its launches count these tokens alone.
        pub spans: u64,
        pub capacity: u32,
        /// Rows of experts for which there is room.
        pub expert_capacity: u32,
        pub token_count: u32,
        pub row_count: u32,
        pub wanted_count: u32,
        /// The layer of this launch.
        pub layer: u32,
        /// For the head, the first of this launch's wanted tokens and their number. For a norm, the
        /// columns of the experts' products that it adds: all or none.
        pub slice_first: u32,
        pub slice_count: u32,
        /// If this launch takes part in a collective, the number of the collective in the step.
        pub collective: u32,
        /// In kernels with stamps: the [`crate::Stamp`] that this launch makes when it begins, of
        /// the launch before it, and the stamp's place in `memory.trace`.
        pub stamp: u32,
        pub stamp_place: u32,
        pub reserved: u32,
    }
}

abi_struct! {
    /// The argument of the kernel that copies a step's plan.
    pub struct PlanMemory : 40 {
        /// The plan in the host's memory, which begins with the target's [`Batch`].
        pub from: u64,
        /// The plan in the GPU's memory.
        pub to: u64,
        /// A word of the host's memory that is set to `number`.
        pub acknowledged: u64,
        /// [`Timestamps`] in the host's memory.
        pub timestamps: u64,
        /// A multiple of [`PLAN_THREAD_BYTES`].
        pub bytes: u32,
        pub number: u32,
    }
}

abi_struct! {
    /// The argument of the kernel that measures how fast memory is read.
    pub struct ReadMemory : 24 {
        pub from: u64,
        /// At most this many bytes are read: a multiple of what all threads read at once.
        pub bytes: u64,
        /// A word whose write depends on what was read, so that the compiler cannot remove the
        /// reads.
        pub to: u64,
    }
}

abi_struct! {
    /// The progress of a step: the low words of the GPU's clock, in nanoseconds.
    pub struct Timestamps : 16 {
        /// The doorbell was acknowledged.
        pub begun: u32,
        /// Tokens were verified.
        pub verified: u32,
        /// The next drafts were chosen.
        pub drafted: u32,
        pub reserved: u32,
    }
}
