//! How families spell the tensors of their checkpoints. A new family takes [`Names::USUAL`], the
//! spelling of Hugging Face's models, and says where its own is another.

/// The names of a family's tensors. From `input_norm` on they follow a layer's prefix; a matrix
/// ends in `.weight`, and its bias in `.bias`.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
    /// A layer's prefix is this, its number and a dot.
    pub(crate) layers: &'static str,
    pub(crate) input_norm: &'static str,
    pub(crate) post_norm: &'static str,
    /// q, k and v as one matrix.
    pub(crate) qkv: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) output: &'static str,
    /// The whole name, which does not end in `.weight`. So is that of the correction.
    pub(crate) sinks: &'static str,
    pub(crate) router: &'static str,
    pub(crate) router_correction: &'static str,
    /// Prefix of the dense network's matrices.
    pub(crate) dense: &'static str,
    /// Prefix of the experts' matrices, numbered or stacked.
    pub(crate) experts: &'static str,
    /// Whether some checkpoints have the experts of a layer apart, and others in one tensor.
    pub(crate) may_stack_experts: bool,
    /// Tensors that may stay unread: how their whole names begin, and why.
    pub(crate) skipped: &'static [(&'static str, &'static str)],
}

impl Names {
    pub(crate) const USUAL: Self = Self {
        embedding: "model.embed_tokens",
        final_norm: "model.norm",
        head: "lm_head",
        layers: "model.layers.",
        input_norm: "input_layernorm",
        post_norm: "post_attention_layernorm",
        qkv: "self_attn.qkv_proj",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        output: "self_attn.o_proj",
        sinks: "self_attn.attention_sink_bias",
        router: "mlp.gate",
        router_correction: "mlp.gate.e_score_correction_bias",
        dense: "mlp.",
        experts: "mlp.experts.",
        may_stack_experts: false,
        skipped: &[],
    };

    /// DFlash drafters, whatever their target.
    pub(crate) const DRAFTER: Self = Self { layers: "layers.", final_norm: "norm", ..Self::USUAL };

    /// Whether a tensor belongs to the language model, by the beginning of its name.
    pub(crate) fn is_of_text(&self, tensor: &str) -> bool {
        let starts =
            |module: &str| tensor.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        tensor.starts_with(self.layers)
            || [self.embedding, self.final_norm, self.head].map(starts).contains(&true)
    }

    pub(crate) fn skip_reason(&self, tensor: &str) -> Option<&'static str> {
        let skipped = self.skipped.iter().find(|(prefix, _)| tensor.starts_with(prefix));
        skipped.map(|(_, reason)| *reason)
    }
}
