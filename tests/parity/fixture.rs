//! Reads fixtures, runs one sequence, and measures errors.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kilotok_abi::{PageId, Sampling, SlotId, TokenId};
use kilotok_cpu::{CpuEngine, CpuOptions, Seen};
use kilotok_engine::{Engine, PageRun, Row, RowOutput, RowTokens, SlotSetup, StepPlan};
use kilotok_model::{Knobs, ModelSpec};
use kilotok_weights::{Checkpoint, Quiet, WeightSource};
use safetensors::SafeTensors;

/// Values that are computed in F32 in another order differ only by rounding: a few hundred
/// additions with an error of 6e-8 each, amplified by a few layers.
pub(crate) const TOLERANCE: f32 = 1e-4;

const SEQUENCE_MAX: u32 = 128;
const PAGE_TOKENS: u32 = 8;

/// A model's folder, and the values that another implementation computed from it.
pub(crate) struct Fixture {
    pub(crate) checkpoint: Checkpoint,
    expected: Vec<u8>,
}

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        let folder =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures").join(name);
        let expected = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&expected).unwrap();
        let window_keys = metadata.metadata().as_ref().unwrap()["window_keys"].parse().unwrap();
        // The fixture has 0 for a model without windows.
        let window_keys = Some(window_keys).filter(|keys| *keys > 0);
        let knobs = Knobs { window_keys, ..Knobs::default() };
        let checkpoint = Checkpoint::open(&folder, &knobs).unwrap();
        Self { checkpoint, expected }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.expected).unwrap().tensor(name).is_ok()
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().as_chunks().0.to_vec()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    pub(crate) fn tokens(&self, name: &str) -> Vec<TokenId> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    pub(crate) fn start(&self, rank_count: usize) -> Sequence {
        Sequence::new(self.checkpoint.spec(), &self.checkpoint, rank_count)
    }
}

/// All values that an engine reported from its steps; for each name and position, the last one.
#[derive(Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<ByPosition>>);

type ByPosition = BTreeMap<(String, u32), Vec<f32>>;

impl Notes {
    fn add(&self, seen: Seen<'_>) {
        let (name, position, values) = match seen {
            Seen::Hidden { index, position, values } => {
                (format!("hidden.{index}"), position, values.to_vec())
            }
            Seen::Logits { position, values } => ("logits".into(), position, values.to_vec()),
            Seen::DraftLogits { position, values } => {
                ("draft_logits".into(), position, values.to_vec())
            }
            Seen::DraftContext { layer, position, keys, values } => {
                (format!("context.{layer}"), position, [keys, values].concat())
            }
            Seen::Experts { .. } => return,
        };
        self.0.lock().unwrap().insert((name, position), values);
    }

    pub(crate) fn get(&self, name: &str, position: u32) -> Vec<f32> {
        self.0.lock().unwrap()[&(name.to_owned(), position)].clone()
    }
}

/// One sequence, alone in an engine.
pub(crate) struct Sequence {
    engine: CpuEngine,
    pub(crate) notes: Notes,
    /// The position of the next row.
    pub(crate) start: u32,
    is_set_up: bool,
    pub(crate) rank_count: usize,
}

impl Sequence {
    pub(crate) fn new(spec: &ModelSpec, source: &dyn WeightSource, rank_count: usize) -> Self {
        let options = CpuOptions {
            rank_count,
            slot_count: 1,
            token_max: SEQUENCE_MAX,
            position_max: SEQUENCE_MAX,
            page_tokens: PAGE_TOKENS,
            page_count: SEQUENCE_MAX / PAGE_TOKENS,
        };
        let mut engine = CpuEngine::start(spec, source, &options, &Quiet).unwrap();
        let notes = Notes::default();
        let notebook = notes.clone();
        engine.watch(Box::new(move |seen| notebook.add(seen)));
        Self { engine, notes, start: 0, is_set_up: false, rank_count }
    }

    /// Runs known tokens and drafts, chooses greedily, and drafts if the model can. No fault may
    /// occur.
    pub(crate) fn step(&mut self, tokens: RowTokens) -> RowOutput {
        let row = self.run(tokens);
        assert_eq!(row.fault, None);
        row
    }

    /// Like [`Self::step`], but the row may end with a fault.
    pub(crate) fn run(&mut self, tokens: RowTokens) -> RowOutput {
        let known = tokens.count() - tokens.draft_count();
        let caps = self.engine.caps();
        let every_page =
            PageRun { first: 0, pages: (0..SEQUENCE_MAX / PAGE_TOKENS).map(PageId).collect() };
        let setup = SlotSetup::new(Sampling::GREEDY, known);
        let row = Row {
            setup: (!self.is_set_up).then(|| Box::new(setup)),
            scored: vec![0; tokens.count() as usize],
            pages: vec![every_page; caps.groups.len()],
            draft_next: if caps.drafter { caps.draft_max } else { 0 },
            report_drafts: true,
            ..Row::new(SlotId(0), self.start, tokens)
        };
        self.is_set_up = true;
        let row = self.engine.run(&StepPlan { rows: vec![row] }).unwrap().rows.remove(0);
        self.start += known + row.tokens.len() as u32 - 1;
        row
    }
}

pub(crate) fn given(tokens: &[TokenId], draft_count: u32) -> RowTokens {
    RowTokens::Given { tokens: tokens.to_vec(), draft_count }
}

/// The place of the largest error, and the error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Worst {
    pub(crate) error: f32,
    place: String,
}

impl Worst {
    /// Takes one more vector into account. Its error is its largest difference, relative to the
    /// largest expected value.
    pub(crate) fn see(&mut self, place: String, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{place}");
        let differences = found.iter().zip(expected).map(|(found, expected)| found - expected);
        let error = largest(differences) / largest(expected.iter().copied());
        if error.total_cmp(&self.error).is_ge() {
            *self = Self { error, place };
        }
    }

    pub(crate) fn check(&self) {
        let Self { error, place } = self;
        assert!(*error < TOLERANCE, "{place} is off by {error}");
    }
}

/// The largest magnitude. NaN counts as larger than all others, so it cannot hide.
fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.map(f32::abs).max_by(f32::total_cmp).unwrap()
}
