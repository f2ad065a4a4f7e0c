//! Loading many pieces at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kilotok_model::{
    Dtype, Format, Knobs, Part, Ranks, Shard, Slice, WeightDecl, WeightId, check_ranks, declare,
};
use kilotok_weights::{
    Checkpoint, Dummy, LoadError, Piece, Problem, Progress, Quiet, Tensor, TensorData, WeightError,
    WeightSource, load,
};

#[derive(Default)]
struct Counter {
    total: AtomicU64,
    done: AtomicU64,
    cancel_at: Option<u64>,
}

impl Progress for Counter {
    fn begin(&self, total_bytes: u64) {
        assert_eq!(self.total.swap(total_bytes, Ordering::Relaxed), 0);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        self.cancel_at.is_some_and(|at| self.done.load(Ordering::Relaxed) >= at)
    }
}

fn pieces(count: usize, rank_count: usize) -> Vec<Piece> {
    let piece = |index, rank| Piece {
        decl: WeightDecl {
            id: WeightId::Embedding,
            part: Part::Target,
            name: format!("weight {index}"),
            shape: vec![16, 64],
            format: [Format::Float, Format::Mxfp4, Format::Fp8 { chunk_rows: 16 }][index % 3],
            shard: Shard::Rows,
            stack: None,
        },
        ranks: Ranks { rank, count: rank_count },
    };
    (0..count).flat_map(|index| (0..rank_count).map(move |rank| piece(index, rank))).collect()
}

#[test]
fn every_piece_is_placed_once_and_counted() {
    let pieces = pieces(100, 4);
    let (progress, placed) = (Counter::default(), Mutex::new(BTreeMap::new()));
    load(&Dummy::new(1), &pieces, &progress, |piece, tensor| {
        assert_eq!((tensor.rows, tensor.cols), (4, 64));
        let key = (piece.decl.name.clone(), piece.ranks.rank);
        *placed.lock().expect("no panic").entry(key).or_insert(0) += 1;
    })
    .expect("dummies have every weight");
    let placed = placed.into_inner().expect("no panic");
    assert_eq!(placed.len(), pieces.len());
    assert!(placed.values().all(|times| *times == 1));
    let (total, done) = (progress.total.into_inner(), progress.done.into_inner());
    assert!(total > 0);
    assert_eq!(done, total);
}

#[test]
fn a_cancelled_load_stops() {
    let pieces = pieces(10_000, 1);
    let progress = Counter { cancel_at: Some(1), ..Counter::default() };
    let placed = AtomicUsize::new(0);
    let result = load(&Dummy::new(1), &pieces, &progress, |_, _| {
        placed.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(result, Err(LoadError::Cancelled));
    let placed = placed.into_inner();
    assert!((1..1000).contains(&placed), "{placed}");
}

#[test]
fn a_load_that_is_cancelled_before_it_begins_reads_nothing() {
    let progress = Counter { cancel_at: Some(0), ..Counter::default() };
    let result = load(&Dummy::new(1), &pieces(3, 1), &progress, |_, _| panic!("placed"));
    assert_eq!(result, Err(LoadError::Cancelled));
}

struct Broken;

impl WeightSource for Broken {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        if decl.name == "weight 7" {
            let (file, tensor) = ("a.safetensors".to_owned(), decl.name.clone());
            return Err(WeightError(Problem { file, tensor, reason: "is bad".to_owned() }));
        }
        Dummy::new(1).read(decl, slice)
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        Dummy::new(1).dtype(decl)
    }
}

#[test]
fn a_bad_weight_ends_the_load_by_name() {
    let error = load(&Broken, &pieces(10, 2), &Quiet, |_, _| {}).expect_err("weight 7 is bad");
    assert_eq!(error.to_string(), "a.safetensors: weight 7: is bad");
}

/// Checkpoints of the parity tests, written with PyTorch's libraries.
#[test]
fn checkpoints_of_other_writers_are_read_at_every_rank_count() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures");
    let mut names: Vec<_> = std::fs::read_dir(fixtures)
        .expect("the fixtures are committed")
        .map(|entry| entry.expect("a fixture").path())
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for folder in names {
        let checkpoint = Checkpoint::open(&folder, &Knobs::default())
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for count in [1, 2, 4, 8] {
            if check_ranks(checkpoint.spec(), count).is_err() {
                continue;
            }
            let decls = declare(checkpoint.spec());
            let pieces: Vec<_> = decls
                .into_iter()
                .flat_map(|decl| {
                    (0..count)
                        .map(move |rank| Piece { decl: decl.clone(), ranks: Ranks { rank, count } })
                })
                .collect();
            let (progress, read) = (Counter::default(), AtomicU64::new(0));
            load(&checkpoint, &pieces, &progress, |piece, tensor| {
                let slice = piece.decl.slice(piece.ranks);
                let bytes = match &tensor.data {
                    TensorData::F32(values) => values.len() * 4,
                    TensorData::Bf16(values) => values.len() * 2,
                    TensorData::Fp8 { codes, .. } => codes.len(),
                    TensorData::Mxfp4 { codes, scales } => codes.len() + scales.len(),
                };
                read.fetch_add(bytes as u64, Ordering::Relaxed);
                assert_eq!((tensor.rows, tensor.cols), (slice.row_count(), slice.cols.len()));
                let mut values = vec![f32::NAN; tensor.cols];
                for row in 0..tensor.rows {
                    tensor.decode_row(row, &mut values);
                    assert!(values.iter().all(|value| value.is_finite()));
                }
            })
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            assert_eq!(progress.total.into_inner(), read.into_inner());
        }
    }
}
