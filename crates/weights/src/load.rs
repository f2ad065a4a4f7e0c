//! Reads many weights at once. Knows neither where they come from nor where they go.

use kilotok_model::{Dtype, Format, MXFP4_GROUP, Ranks, Slice, WeightDecl};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use crate::problem::WeightError;
use crate::tensor::Tensor;

/// Something that weights are read from.
pub trait WeightSource: Sync {
    /// The slice of the weight, every number in it checked.
    ///
    /// # Errors
    /// A weight that the source does not have, a slice that is not within it, or a number that is
    /// NaN, infinite or no sensible scale: the file, the tensor and the element.
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError>;

    /// The type in which the weight's values are stored.
    ///
    /// # Errors
    /// A weight that the source does not have.
    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError>;
}

/// Receives the progress of a load.
pub trait Progress: Sync {
    /// Called once, before anything is read.
    fn begin(&self, total_bytes: u64);
    /// Called from many threads, after each piece; the sum is the total.
    fn advance(&self, bytes: u64);
    /// Whether to give up.
    fn cancelled(&self) -> bool;
}

/// Shows nothing and never gives up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// One piece of work: this rank's part of this weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub decl: WeightDecl,
    pub ranks: Ranks,
}

/// A load that ended early. What was placed until then stays placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Weight(#[from] WeightError),
    #[error("loading was cancelled")]
    Cancelled,
}

/// Reads the pieces in parallel, in no order, and hands each to `place` as soon as it is there.
/// Besides what `place` keeps there is at most one piece in memory per thread. A cancelled load
/// stops when the pieces in work are done.
///
/// # Errors
/// The first weight that cannot be read, or [`LoadError::Cancelled`].
pub fn load(
    source: &dyn WeightSource,
    pieces: &[Piece],
    progress: &dyn Progress,
    place: impl Fn(&Piece, Tensor) + Sync,
) -> Result<(), LoadError> {
    let slice = |piece: &Piece| piece.decl.slice(piece.ranks);
    let bytes = |piece: &Piece, slice: &Slice| {
        source.dtype(&piece.decl).map(|dtype| slice_bytes(&piece.decl, slice, dtype))
    };
    let total = pieces.iter().map(|piece| bytes(piece, &slice(piece))).sum::<Result<_, _>>()?;
    progress.begin(total);
    pieces.par_iter().try_for_each(|piece| {
        if progress.cancelled() {
            return Err(LoadError::Cancelled);
        }
        let slice = slice(piece);
        let tensor = source.read(&piece.decl, &slice)?;
        place(piece, tensor);
        progress.advance(bytes(piece, &slice)?);
        Ok(())
    })
}

/// Bytes of a slice's values and of MXFP4 scales; for progress alone.
fn slice_bytes(decl: &WeightDecl, slice: &Slice, dtype: Dtype) -> u64 {
    let values = slice.row_count() as u64 * slice.cols.len() as u64;
    match decl.format {
        Format::Float | Format::FloatToFp8 => values * dtype.bytes() as u64,
        Format::Fp8 { .. } => values,
        Format::Mxfp4 => values / 2 + values / MXFP4_GROUP as u64,
    }
}
