//! Weights by identity, and the tensors in which a checkpoint stores them.

use crate::shard::Shard;

/// FP8 matrices have one scale per tile of this many rows and columns.
pub const FP8_TILE: usize = 128;
/// MXFP4 rows have one scale per this many values.
pub const MXFP4_GROUP: usize = 32;

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
    /// The embedding of the mask token, which the target's table does not hold.
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
    QueryNorm,
    KeyNorm,
    Sinks,
    Output,
    PostNorm,
    Router,
    RouterBias,
    Gate,
    Up,
    Down,
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
    /// Name of its first stored tensor.
    pub name: String,
    /// `[out, in]`, or `[n]` for a vector.
    pub shape: Vec<usize>,
    pub format: Format,
    pub shard: Shard,
}

/// A tensor that a checkpoint must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    pub name: String,
    /// Any of these is accepted.
    pub dtypes: &'static [Dtype],
    pub shape: Vec<usize>,
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
        let tensor = |suffix: &str, dtypes, shape| StoredTensor {
            name: format!("{}{suffix}", self.name),
            dtypes,
            shape,
        };
        match self.format {
            Format::Float | Format::FloatToFp8 => {
                vec![tensor("", &[Dtype::Bf16, Dtype::F32], self.shape.clone())]
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
