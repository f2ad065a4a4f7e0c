//! What slots hold between steps: the last chosen token, and the drafts to verify next.

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{Row, RowTokens, SlotSetup, Verification};
use kilotok_sampling::Setup;

use crate::batch::Batch;

/// All slots of an engine.
pub struct Slots {
    slots: Vec<Option<Slot>>,
    vocab_size: usize,
}

struct Slot {
    /// Whether the choice of a token reads the tokens before it.
    keeps_history: bool,
    verification: Verification,
    rule: Verification,
    /// Number of positions whose tokens are in the sampler's history.
    known: u32,
    held: Option<Held>,
}

/// The last chosen token, whose keys and values are not in the KV cache yet, and its drafts.
pub struct Held {
    /// Position of `anchor`.
    pub start: u32,
    pub anchor: TokenId,
    pub drafts: Vec<TokenId>,
}

impl Slots {
    pub fn new(count: usize, vocab_size: usize) -> Self {
        Self { slots: (0..count).map(|_| None).collect(), vocab_size }
    }

    /// Checks that the slot is set up and holds the tokens that the row refers to.
    pub fn check(&self, row: &Row) -> Result<(), String> {
        if let Some(setup) = &row.setup {
            return sampling_setup(setup).check(self.vocab_size).map_err(|error| error.to_string());
        }
        let Some(slot) = &self.slots[row.slot.0 as usize] else {
            return Err(format!("slot {} was never set up", row.slot));
        };
        if slot.keeps_history && row.start > slot.known {
            return Err(format!(
                "starts at {}, but only {} tokens are known",
                row.start, slot.known
            ));
        }
        let RowTokens::Held { draft_count } = row.tokens else { return Ok(()) };
        let lacks_mask = !row.masks.is_empty() && row.masks.len() <= draft_count as usize;
        if lacks_mask && !slot.verification.is_rejection() {
            let count = row.masks.len();
            return Err(format!("{count} masks for {draft_count} drafts that are matched"));
        }
        match &slot.held {
            None => Err(format!("slot {} holds no token", row.slot)),
            Some(held) if held.start != row.start => {
                Err(format!("starts at {}, slot {} at {}", row.start, row.slot, held.start))
            }
            Some(held) if held.drafts.len() < draft_count as usize => {
                let held = held.drafts.len();
                Err(format!("{draft_count} drafts, slot {} holds {held}", row.slot))
            }
            Some(_) => Ok(()),
        }
    }

    /// The held token of a row that passed [`Self::check`], and the first drafts after it.
    pub fn held(&self, slot: SlotId, draft_count: usize) -> Vec<TokenId> {
        let held = self.slots[slot.0 as usize].as_ref().and_then(|slot| slot.held.as_ref());
        let held = held.expect("a checked row's tokens are held");
        [&[held.anchor], &held.drafts[..draft_count]].concat()
    }

    pub fn held_mut(&mut self, slot: SlotId) -> Option<&mut Held> {
        self.slots[slot.0 as usize].as_mut()?.held.as_mut()
    }

    /// The rule by which a checked row's drafts are made and verified. Greedy requests are matched:
    /// both rules give them the same tokens.
    pub fn rule(&self, row: &Row) -> Verification {
        let slot = || self.slots[row.slot.0 as usize].as_ref().map(|slot| slot.rule);
        row.setup.as_deref().map(rule_of).or_else(slot).unwrap_or_default()
    }

    /// Sets up the slots of new requests and counts the tokens that the host sent. Held tokens are
    /// in the batch by now, so slots let go of them.
    pub fn enter(&mut self, batch: &Batch<'_>) {
        for row in &batch.rows {
            let slot = &mut self.slots[row.plan.slot.0 as usize];
            if let Some(setup) = &row.plan.setup {
                let (keeps_history, known) = (setup.needs_history(), setup.history.len() as u32);
                let (verification, rule) = (setup.verification, rule_of(setup));
                *slot = Some(Slot { keeps_history, verification, rule, known, held: None });
            }
            let slot = slot.as_mut().expect("a checked row's slot is set up");
            slot.held = None;
            slot.known = slot.known.max(row.plan.start + row.known() as u32);
        }
    }

    /// Records the tokens chosen for a row of the batch, from position `first` on, and holds the
    /// last of them.
    pub fn commit(&mut self, slot: SlotId, first: u32, tokens: &[TokenId]) {
        let slot = self.slots[slot.0 as usize].as_mut().expect("a row's slot is set up");
        let end = first + tokens.len() as u32;
        slot.known = end;
        slot.held =
            tokens.last().map(|&anchor| Held { start: end - 1, anchor, drafts: Vec::new() });
    }
}

fn rule_of(setup: &SlotSetup) -> Verification {
    let greedy = Setup::new(setup.sampling, setup.prompt_count).is_greedy();
    if greedy && setup.verification.is_rejection() {
        Verification::Match
    } else {
        setup.verification
    }
}

pub(crate) fn sampling_setup(setup: &SlotSetup) -> Setup {
    Setup {
        sampling: setup.sampling,
        prompt_count: setup.prompt_count,
        logit_bias: setup.biases(),
        bad_words: setup.bad_words.clone(),
        end_tokens: setup.end_tokens.clone(),
    }
}
