//! Reads many weights at once. This module knows neither where they come from nor where they go.

use kilotok_model::{Dtype, Format, MXFP4_GROUP, Ranks, Slice, WeightDecl};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use crate::problem::WeightError;
use crate::tensor::Tensor;

/// Something that weights are read from.
pub trait WeightSource: Sync {
    /// Reads a slice of a weight, and checks every number in it.
    ///
    /// # Errors
    /// The source does not have the weight, the slice is not within it, or a number is NaN,
    /// infinite or an invalid scale; the error then names the file, the tensor and the element.
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError>;

    /// The type in which the weight's values are stored.
    ///
    /// # Errors
    /// The source does not have the weight.
    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError>;
}

/// Receives the progress of a load.
pub trait Progress: Sync {
    /// Called once, before anything is read.
    fn begin(&self, total_bytes: u64);
    /// Called from many threads, after each piece. All calls add up to the total.
    fn advance(&self, bytes: u64);
    /// Whether to stop loading.
    fn cancelled(&self) -> bool;
}

/// Shows nothing and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// One piece of work: a rank's part of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub decl: WeightDecl,
    pub ranks: Ranks,
}

/// A load that ended early. Weights that were placed before stay placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Weight(#[from] WeightError),
    #[error("loading was cancelled")]
    Cancelled,
}

/// Reads the pieces in parallel, in no particular order, and passes each to `place` as soon as it
/// has been read. Besides what `place` keeps, there is at most one piece per thread in memory. A
/// cancelled load ends when the pieces in progress are done.
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

/// Bytes of a slice's values and of its MXFP4 scales. Used only to show progress.
fn slice_bytes(decl: &WeightDecl, slice: &Slice, dtype: Dtype) -> u64 {
    let values = slice.row_count() as u64 * slice.cols.len() as u64;
    match decl.format {
        Format::Float | Format::FloatToFp8 => values * dtype.bytes() as u64,
        Format::Fp8 { .. } => values,
        Format::Mxfp4 => values / 2 + values / MXFP4_GROUP as u64,
    }
}
