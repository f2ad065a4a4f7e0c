//! The arithmetic that replaces a model. Every position stores a number in each page group, as a
//! layer stores keys and values. The result of a position is a hash of the numbers that it attends
//! to: first those of the windows, then, together with that result, those of the whole text. The
//! next position's numbers depend on it, so a page that is missing, stale or another sequence's
//! changes every later token. An engine with a script stores the text in its pages too.

use std::iter;
use std::ops::Range;

use kilotok_abi::TokenId;
use kilotok_engine::{Caps, PageGroup, PageKind, PageRun};

use crate::mix::mix;

/// The pages of all groups, with one number per position.
pub(super) struct Memory {
    groups: Vec<Vec<u64>>,
    /// The token at each position, in the pages of the first group that holds all positions.
    tokens: Vec<TokenId>,
    whole: usize,
}

impl Memory {
    pub(super) fn new(caps: &Caps) -> Self {
        let group = |group: &PageGroup| vec![0; (group.page_count * group.page_tokens) as usize];
        let sees_all = |group: &PageGroup| group.kind != PageKind::Draft && group.window.is_none();
        let whole = caps.groups.iter().position(sees_all).unwrap_or_default();
        let groups: Vec<Vec<u64>> = caps.groups.iter().map(group).collect();
        Self { tokens: vec![0; groups[whole].len()], groups, whole }
    }

    /// The tokens at the positions below `end`.
    pub(super) fn text(&self, caps: &Caps, runs: &[PageRun], end: u32) -> Vec<TokenId> {
        let mut text = Vec::with_capacity(end as usize);
        for places in places(&caps.groups[self.whole], &runs[self.whole], 0..end) {
            text.extend_from_slice(&self.tokens[places]);
        }
        text
    }

    pub(super) fn note(&mut self, caps: &Caps, runs: &[PageRun], start: u32, tokens: &[TokenId]) {
        for (position, token) in (start..).zip(tokens) {
            self.tokens[place(&caps.groups[self.whole], &runs[self.whole], position)] = *token;
        }
    }

    pub(super) fn read(&self, caps: &Caps, group: usize, run: &PageRun, position: u32) -> u64 {
        self.groups[group][place(&caps.groups[group], run, position)]
    }

    fn read_all(&self, group: &PageGroup, run: &PageRun, at: usize, range: Range<u32>) -> Vec<u64> {
        let mut values = Vec::with_capacity(range.len());
        for places in places(group, run, range) {
            values.extend_from_slice(&self.groups[at][places]);
        }
        values
    }

    pub(super) fn write(
        &mut self,
        caps: &Caps,
        group: usize,
        run: &PageRun,
        position: u32,
        value: u64,
    ) {
        self.groups[group][place(&caps.groups[group], run, position)] = value;
    }
}

fn place(group: &PageGroup, run: &PageRun, position: u32) -> usize {
    let page = run.pages[(position / group.page_tokens - run.first) as usize];
    (page.0 * group.page_tokens + position % group.page_tokens) as usize
}

/// The places of positions, page by page: tests read whole sequences at every step.
fn places(
    group: &PageGroup,
    run: &PageRun,
    positions: Range<u32>,
) -> impl Iterator<Item = Range<usize>> {
    let mut next = positions.start;
    iter::from_fn(move || {
        let left = positions.end.saturating_sub(next);
        let count = left.min(group.page_tokens - next % group.page_tokens);
        let first = (count > 0).then(|| place(group, run, next))?;
        next += count;
        Some(first..first + count as usize)
    })
}

/// A sequence as stored in its pages, and the hashes that depend on it.
#[derive(Clone)]
pub(super) struct SequenceState {
    position: u32,
    /// One per group of the target, full attention last.
    layers: Vec<Layer>,
}

#[derive(Clone)]
struct Layer {
    group: usize,
    window: Option<u32>,
    /// The position of the first value.
    first: u32,
    values: Vec<u64>,
    /// For a layer that attends to all positions: the running hash of all values.
    folds: Vec<u64>,
}

impl SequenceState {
    /// Reads the values that positions below `start` have stored.
    pub(super) fn read(memory: &Memory, caps: &Caps, runs: &[PageRun], start: u32) -> Self {
        let target = caps.groups.iter().enumerate().filter(|(_, g)| g.kind != PageKind::Draft);
        let layers = target.map(|(group, spec)| {
            let first = spec.first_needed(start);
            let values = memory.read_all(spec, &runs[group], group, first..start);
            let folds = if spec.window.is_none() { folds_of(&values) } else { Vec::new() };
            Layer { group, window: spec.window, first, values, folds }
        });
        let mut layers: Vec<_> = layers.collect();
        layers.sort_by_key(|layer| layer.window.is_none());
        Self { position: start, layers }
    }

    /// Appends a token. Returns the state that determines the next token.
    pub(super) fn push(&mut self, token: TokenId) -> u64 {
        let before = self.position.checked_sub(1).map_or(0, |before| self.context(before));
        let mut state = mix(before ^ mix(u64::from(self.position) << 32 | u64::from(token)));
        for layer in &mut self.layers {
            layer.push(state);
            state = mix(layer.fold() ^ state.rotate_left(32));
        }
        self.position += 1;
        state
    }

    /// Removes the positions from `end` on.
    pub(super) fn truncate(&mut self, end: u32) {
        for layer in &mut self.layers {
            layer.values.truncate((end - layer.first) as usize);
            layer.folds.truncate((end - layer.first) as usize);
        }
        self.position = self.position.min(end);
    }

    /// Stores the values of the positions from `start` on in the pages.
    pub(super) fn write(&self, memory: &mut Memory, caps: &Caps, runs: &[PageRun], start: u32) {
        for layer in &self.layers {
            for position in start..self.position {
                let value = layer.values[(position - layer.first) as usize];
                memory.write(caps, layer.group, &runs[layer.group], position, value);
            }
        }
    }

    /// The correct context of the drafter at a position: the hash of the text up to it.
    pub(super) fn context(&self, position: u32) -> u64 {
        let everything = self.layers.last().expect("a group sees the whole text");
        everything.folds[position as usize]
    }
}

/// The running hash of values.
fn folds_of(values: &[u64]) -> Vec<u64> {
    let mut folds = Vec::with_capacity(values.len());
    let mut fold = 0;
    for value in values {
        fold = mix(fold ^ value);
        folds.push(fold);
    }
    folds
}

impl Layer {
    fn push(&mut self, value: u64) {
        self.values.push(value);
        if self.window.is_none() {
            let before = self.folds.last().copied().unwrap_or_default();
            self.folds.push(mix(before ^ value));
        }
    }

    fn fold(&self) -> u64 {
        match self.window {
            None => self.folds.last().copied().unwrap_or_default(),
            Some(keys) => {
                let seen = &self.values[self.values.len().saturating_sub(keys as usize)..];
                seen.iter().fold(0, |fold, value| mix(fold ^ value))
            }
        }
    }
}

/// The logits of a state. One token in sixteen is likelier than the others, so that replies contain
/// repetitions and penalties have an effect. A wanted token is certain unless it is forbidden.
pub(super) fn logits(state: u64, vocab_size: u32, wanted: Option<TokenId>) -> Vec<f32> {
    const CERTAIN: f32 = 40.0;
    let logit = |token: u32| {
        let chance = (mix(state ^ u64::from(token)) >> 40) as f32 / (1 << 24) as f32;
        if token % 16 == 5 { 8.0 * chance + 3.0 } else { 8.0 * chance }
    };
    let mut logits: Vec<f32> = (0..vocab_size).map(logit).collect();
    if let Some(logit) = wanted.and_then(|token| logits.get_mut(token as usize)) {
        *logit += CERTAIN;
    }
    logits
}
