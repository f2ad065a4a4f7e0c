//! Weights by identity, and the tensors in which a checkpoint stores them.

use crate::shard::Shard;

/// FP8 matrices have one scale per tile of this many rows and columns.
pub const FP8_TILE: usize = 128;
/// MXFP4 rows have one scale per this many values.
pub const MXFP4_GROUP: usize = 32;
/// What floats may be stored as.
const FLOATS: &[Dtype] = &[Dtype::Bf16, Dtype::F32];

/// Which set of files a weight comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The model's folder.
    Target,
    /// Its `dflash` folder.
    Drafter,
}

/// Names a weight independently of any checkpoint's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightId {
    Embedding,
    FinalNorm,
    Head,
    Layer(Part, usize, LayerWeight),
    /// Layer, expert, and one of `Gate`, `Up`, `Down`.
    Expert(usize, usize, LayerWeight),
    /// Fuses the tapped streams into the drafter's context.
    DraftFc,
    DraftContextNorm,
    DraftNorm,
    /// The embedding of the mask token, where the target's table does not hold it.
    DraftMask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerWeight {
    InputNorm,
    /// q, k and v as one matrix.
    Qkv,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Sinks,
    Output,
    OutputBias,
    PostNorm,
    Router,
    RouterBias,
    /// Takes part in choosing the experts, not in weighting them.
    RouterCorrection,
    Gate,
    Up,
    Down,
    /// Biases of `gate` of all experts, `[experts, width]`.
    GateBias,
    UpBias,
    /// Biases of `down` of all experts, `[experts, hidden]`.
    DownBias,
}

impl LayerWeight {
    /// Whether it is added to what a matrix makes.
    pub fn is_bias(self) -> bool {
        matches!(
            self,
            Self::QueryBias
                | Self::KeyBias
                | Self::ValueBias
                | Self::OutputBias
                | Self::RouterBias
                | Self::GateBias
                | Self::UpBias
                | Self::DownBias
        )
    }
}

/// Element types as safetensors spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
    F8E4m3,
    U8,
}

/// How a declared weight is stored, and what it becomes when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Float,
    /// Floats that become FP8 as they are read, with a scale for each row of a column tile.
    FloatToFp8,
    /// The rows of scale tiles begin anew every `chunk_rows` rows of the matrix; a plain matrix
    /// is one chunk.
    Fp8 {
        chunk_rows: usize,
    },
    Mxfp4,
}

/// A weight that the model needs.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightDecl {
    pub id: WeightId,
    pub part: Part,
    /// The beginning of the names of its stored tensors.
    pub name: String,
    /// `[out, in]`, or `[n]` for a vector.
    pub shape: Vec<usize>,
    pub format: Format,
    pub shard: Shard,
    /// Where it lies, if it shares its stored tensors with other weights. It is then a matrix of
    /// floats or MXFP4.
    pub stack: Option<Stack>,
}

/// Tensors that hold several weights of the same size, such as those of all experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The shape of all values. All dimensions but the last together count rows.
    pub shape: Vec<usize>,
    /// The weight's rows among these.
    pub rows: Stride,
    /// Its columns among these. MXFP4 has all of them.
    pub cols: Stride,
}

/// Every `step`-th place from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    pub first: usize,
    pub step: usize,
}

/// A tensor that a checkpoint must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    pub name: String,
    /// Any of these is accepted.
    pub dtypes: &'static [Dtype],
    pub shape: Vec<usize>,
    /// The number of rows, which are runs of equally many elements: a weight's rows, or its rows of
    /// scales.
    pub rows: usize,
}

impl Dtype {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::F8E4m3 | Self::U8 => 1,
        }
    }

    /// As safetensors spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F8E4m3 => "F8_E4M3",
            Self::U8 => "U8",
        }
    }
}

impl WeightDecl {
    /// Rows of the matrix; a vector is one row.
    pub fn rows(&self) -> usize {
        if self.shape.len() == 2 { self.shape[0] } else { 1 }
    }

    /// Columns of the matrix, or the vector's length.
    pub fn cols(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// The tensors that hold this weight: its values, then its scales.
    pub fn stored(&self) -> Vec<StoredTensor> {
        let (rows, cols) = (self.rows(), self.cols());
        let tensor = |suffix: &str, dtypes, shape: Vec<usize>| StoredTensor {
            name: format!("{}{suffix}", self.name),
            dtypes,
            rows: if shape.len() == 2 { shape[0] } else { 1 },
            shape,
        };
        if let Some(stack) = &self.stack {
            return self.stacked(stack);
        }
        match self.format {
            Format::Float | Format::FloatToFp8 => {
                vec![tensor("", FLOATS, self.shape.clone())]
            }
            Format::Fp8 { chunk_rows } => {
                let tiles = rows / chunk_rows * chunk_rows.div_ceil(FP8_TILE);
                vec![
                    tensor("", &[Dtype::F8E4m3], vec![rows, cols]),
                    tensor("_scale_inv", &[Dtype::F32], vec![tiles, cols.div_ceil(FP8_TILE)]),
                ]
            }
            Format::Mxfp4 => vec![
                tensor("", &[Dtype::U8], vec![rows, cols / 2]),
                tensor("_scale", &[Dtype::U8], vec![rows, cols / MXFP4_GROUP]),
            ],
        }
    }

    /// The stored tensors of a stack. Those of MXFP4 have a dimension for the bytes of a group.
    fn stacked(&self, stack: &Stack) -> Vec<StoredTensor> {
        let (cols, outer) = stack.shape.split_last().expect("a stack has columns");
        let tensor = |suffix: &str, dtypes, inner: &[usize]| StoredTensor {
            name: format!("{}{suffix}", self.name),
            dtypes,
            shape: [outer, inner].concat(),
            rows: outer.iter().product(),
        };
        if self.format == Format::Mxfp4 {
            let groups = cols / MXFP4_GROUP;
            vec![
                tensor("_blocks", &[Dtype::U8], &[groups, MXFP4_GROUP / 2]),
                tensor("_scales", &[Dtype::U8], &[groups]),
            ]
        } else {
            vec![tensor("", FLOATS, &[*cols])]
        }
    }

    /// How many weights share its stored tensors in equal parts, itself included.
    pub fn stack_size(&self) -> usize {
        let values = |shape: &[usize]| shape.iter().product::<usize>();
        self.stack.as_ref().map_or(1, |stack| values(&stack.shape) / values(&self.shape))
    }

    /// The row of its stored tensors that holds a row of the weight, or that row's scales.
    pub fn stored_row(&self, row: usize) -> usize {
        self.stack.as_ref().map_or(row, |stack| stack.rows.at(row))
    }

    /// The column of a stored tensor of floats that holds a column of the weight.
    pub fn stored_col(&self, col: usize) -> usize {
        self.stack.as_ref().map_or(col, |stack| stack.cols.at(col))
    }
}

impl Stride {
    /// Consecutive places.
    pub fn run_from(first: usize) -> Self {
        Self { first, step: 1 }
    }

    pub fn at(self, index: usize) -> usize {
        self.first + index * self.step
    }
}

impl Format {
    /// Row of the scale tensor that belongs to a row of an FP8 matrix.
    pub fn scale_row(self, row: usize) -> usize {
        match self {
            Self::Fp8 { chunk_rows } => {
                row / chunk_rows * chunk_rows.div_ceil(FP8_TILE) + row % chunk_rows / FP8_TILE
            }
            Self::Float | Self::FloatToFp8 | Self::Mxfp4 => row,
        }
    }
}
