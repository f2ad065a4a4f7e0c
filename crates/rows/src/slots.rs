//! What slots hold between steps: how a request chooses its tokens, and the drafts that wait to
//! be verified.

use kilotok_abi::{SlotId, TokenId};
use kilotok_engine::{Row, RowTokens, SlotSetup};
use kilotok_sampling::{Fault, Sampler, Setup};

use crate::batch::Batch;

/// All slots of an engine.
pub struct Slots {
    slots: Vec<Option<Slot>>,
    vocab_size: usize,
}

pub(crate) struct Slot {
    sampler: Sampler,
    /// Whether the choice of a token reads the tokens before it.
    keeps_history: bool,
    /// Positions whose tokens are in the sampler's history.
    known: u32,
    held: Option<Held>,
}

/// The token chosen last, whose keys and values no page has yet, and guesses of what follows it.
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

    /// Whether the slot can run the row: it is set up, and holds what the row counts on.
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

    /// The token that a checked row counts on, and the first drafts after it.
    pub fn held(&self, slot: SlotId, draft_count: usize) -> Vec<TokenId> {
        let held = self.slots[slot.0 as usize].as_ref().and_then(|slot| slot.held.as_ref());
        let held = held.expect("a checked row's tokens are held");
        [&[held.anchor], &held.drafts[..draft_count]].concat()
    }

    pub fn held_mut(&mut self, slot: SlotId) -> Option<&mut Held> {
        self.slots[slot.0 as usize].as_mut()?.held.as_mut()
    }

    /// The slot of a checked row.
    pub(crate) fn slot_mut(&mut self, slot: SlotId) -> &mut Slot {
        self.slots[slot.0 as usize].as_mut().expect("a checked row's slot is set up")
    }

    /// Takes in new requests and the tokens that the host sent; what was held is in the batch now.
    pub fn enter(&mut self, batch: &Batch<'_>) {
        for row in &batch.rows {
            if let Some(setup) = &row.plan.setup {
                self.slots[row.plan.slot.0 as usize] = Some(Slot::new(setup));
            }
            let slot = self.slot_mut(row.plan.slot);
            slot.held = None;
            let tokens = &batch.tokens[row.first..row.first + row.known()];
            for (token, position) in tokens.iter().zip(row.plan.start..) {
                slot.learn(position, *token);
            }
        }
    }
}

impl Slot {
    fn new(setup: &SlotSetup) -> Self {
        let sampler = Sampler::new(sampling_setup(setup), &setup.history);
        let keeps_history = setup.needs_history();
        Self { sampler, keeps_history, known: setup.history.len() as u32, held: None }
    }

    /// Adds a token to the history, unless its position is in it.
    fn learn(&mut self, position: u32, token: TokenId) {
        if position == self.known {
            self.sampler.push(token);
            self.known += 1;
        }
    }

    /// Chooses the tokens from `first` on, see [`Sampler::verify`], and holds the last of them.
    pub(crate) fn verify(
        &mut self,
        first: u32,
        drafts: &[TokenId],
        masks: &[Vec<u32>],
        logits: &[f32],
        tokens: &mut Vec<TokenId>,
    ) -> Result<(), Fault> {
        let verified = self.sampler.verify(first, drafts, masks, logits, tokens);
        let end = first + tokens.len() as u32;
        self.known = end;
        self.held =
            tokens.last().map(|&anchor| Held { start: end - 1, anchor, drafts: Vec::new() });
        verified
    }
}

fn sampling_setup(setup: &SlotSetup) -> Setup {
    Setup {
        sampling: setup.sampling,
        prompt_count: setup.prompt_count,
        logit_bias: setup.logit_bias.clone(),
        bad_words: setup.bad_words.clone(),
        end_tokens: setup.end_tokens.clone(),
    }
}
