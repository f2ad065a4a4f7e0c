//! The model as closed data. All sizes are in elements, of the whole model, before ranks share it.

use std::fmt;

use crate::rope::RopeSpec;

/// Which family a checkpoint belongs to: how it spells its tensors, see `families`. The shapes are
/// below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `mimo_v2_flash`: split q, k and v projections.
    MimoV2Flash,
    /// `mimo_v2`: V2.5 (its text path) and V2.5-Pro, fused projection.
    MimoV2,
    /// `qwen3_moe`: Qwen3-30B-A3B, Qwen3-Coder-30B-A3B, Qwen3-235B-A22B.
    Qwen3Moe,
    /// `gpt_oss`: gpt-oss-20b and gpt-oss-120b.
    GptOss,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MimoV2Flash => "MiMo-V2-Flash",
            Self::MimoV2 => "MiMo-V2.5",
            Self::Qwen3Moe => "Qwen3-MoE",
            Self::GptOss => "gpt-oss",
        })
    }
}

/// A target model, with its drafter if it has one.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub norm_eps: f32,
    /// Positions that the model was trained for.
    pub position_max: usize,
    /// Tokens that end a reply.
    pub end_tokens: Vec<u32>,
    pub layers: Vec<LayerSpec>,
    /// Whether the checkpoint also holds vision and audio towers, which are not read.
    pub multimodal: bool,
    pub drafter: Option<DrafterSpec>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    pub attention: AttentionSpec,
    pub feed_forward: FeedForwardSpec,
}

/// Grouped-query attention. Query head j reads K/V head j / (`q_heads` / `kv_heads`).
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    pub reach: Reach,
    pub q_heads: usize,
    pub kv_heads: usize,
    /// Width of a query or key head; scores are scaled by its inverse square root.
    pub qk_dim: usize,
    /// Width of a value head.
    pub v_dim: usize,
    pub rope: RopeSpec,
    /// One learned logit per query head that enters the softmax's sum and carries no value.
    pub sinks: bool,
    /// Epsilon of the RMS norm of each query and key head before rotation, where there is one.
    pub qk_norm_eps: Option<f32>,
    /// Whether q, k, v and the output have biases.
    pub bias: bool,
    /// Values are multiplied by this before they are cached.
    pub value_scale: f32,
    pub qkv: QkvLayout,
    pub qkv_format: WeightFormat,
    pub output_format: WeightFormat,
}

/// Which keys a position sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Every earlier one.
    Full,
    /// The last `keys`, itself included.
    Window { keys: usize },
}

/// How a checkpoint stores the q, k and v projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// Three matrices.
    Split,
    /// One matrix of `chunks` equal parts, each `[q heads | k heads | v heads]` of its share.
    Fused { chunks: usize },
}

/// How a checkpoint stores a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// BF16 or F32, as its header says.
    Float,
    /// FP8 E4M3 with an F32 scale per 128 x 128 values.
    Fp8,
    /// FP4 E2M1 with an E8M0 scale per group of 32 values of a row.
    Mxfp4,
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float => "BF16 or F32",
            Self::Fp8 => "FP8",
            Self::Mxfp4 => "MXFP4",
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum FeedForwardSpec {
    Dense(DenseSpec),
    Experts(ExpertsSpec),
}

/// down(activation(gate x, up x))
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseSpec {
    pub width: usize,
    pub format: WeightFormat,
    pub activation: Activation,
}

/// What becomes of gate and up, value by value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// gate * sigmoid(gate) * up
    SiluMul,
    /// gate * sigmoid(alpha * gate) * (up + 1), with gate at most `limit` and up within `limit` of
    /// zero.
    ClampedSwiglu { alpha: f32, limit: f32 },
}

/// A router chooses `top_k` of `count` experts, each a [`DenseSpec`] of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    pub count: usize,
    pub top_k: usize,
    pub width: usize,
    pub format: WeightFormat,
    pub activation: Activation,
    pub layout: ExpertLayout,
    /// Whether gate, up and down have biases. That of down is weighted like the expert's output.
    pub bias: bool,
    pub router: RouterSpec,
}

/// How a checkpoint stores the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// Three matrices for each expert.
    Apart,
    /// The gates and ups of all experts in one tensor, their downs in another. Of each expert
    /// first the rows of gate, then those of up.
    StackedHalves,
    /// The same with a row of gate and a row of up in turn.
    StackedInterleaved,
}

/// How the router's products become scores, and which experts these choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterSpec {
    pub scores: RouterScores,
    /// Whether the router's matrix has a bias.
    pub bias: bool,
    /// Divide the chosen scores by their sum.
    pub normalise: bool,
    /// Multiplies the weights last.
    pub scale: f32,
    pub dtype: RouterDtype,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScores {
    /// A sigmoid of each product. A correction is added to choose the experts, not to weigh them.
    CorrectedSigmoid,
    /// The softmax over all experts. Normalised, it is the softmax over the chosen ones.
    Softmax,
}

/// Precision of the router's matrix; its products are summed in F32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterDtype {
    F32,
    Bf16,
}

impl RouterDtype {
    /// Bytes of one weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A DFlash drafter: layers of the target's kind whose keys and values come from two sources,
/// the target's residual streams for committed positions and the draft's own rows.
#[derive(Clone, Debug, PartialEq)]
pub struct DrafterSpec {
    /// Rows of one draft pass: the newest token, then masks. One less is drafted.
    pub rows: usize,
    /// Target layers after which the residual stream is tapped, in the order of concatenation.
    pub taps: Vec<usize>,
    pub mask_token: u32,
    /// Whether the drafter brings an embedding of the mask token; else the target's table has it.
    pub own_mask: bool,
    pub norm_eps: f32,
    pub layers: Vec<LayerSpec>,
}

impl AttentionSpec {
    /// Rows of the q, k and v projections together.
    pub fn qkv_rows(&self) -> usize {
        self.q_heads * self.qk_dim + self.kv_heads * (self.qk_dim + self.v_dim)
    }

    /// Keys seen at most, `None` for all.
    pub fn window(&self) -> Option<usize> {
        match self.reach {
            Reach::Full => None,
            Reach::Window { keys } => Some(keys),
        }
    }
}

impl FeedForwardSpec {
    /// Inner width, of one expert where there are several.
    pub fn width(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.width,
            Self::Experts(experts) => experts.width,
        }
    }

    pub fn format(&self) -> WeightFormat {
        match self {
            Self::Dense(dense) => dense.format,
            Self::Experts(experts) => experts.format,
        }
    }

    pub fn activation(&self) -> Activation {
        match self {
            Self::Dense(dense) => dense.activation,
            Self::Experts(experts) => experts.activation,
        }
    }
}
