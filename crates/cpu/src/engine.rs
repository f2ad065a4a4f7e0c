//! The reference engine behind the seam.

use kilotok_engine::{
    Caps, Engine, EngineError, PageGroup, StepId, StepOutput, StepPlan, check_plan,
};
use kilotok_model::{ModelSpec, RanksError, check_ranks};
use kilotok_weights::{LoadError, Progress, WeightSource};

use crate::pages::{Grouping, Pages};
use crate::slots::Slots;
use crate::step::{self, Batch, Model};
use crate::watch::Watch;
use crate::weights;

/// Alternatives that a row may ask for beside each token; OpenAI's API allows as many.
const LOGPROBS_MAX: u32 = 20;

/// Slots beyond this are a typing error: a step has a row for each.
const SLOTS_MAX: u32 = 1 << 16;

/// How much an engine can hold.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Tensor-parallel ranks to compute as, one after the other: 1, 2, 4 or 8.
    pub rank_count: usize,
    pub slot_count: u32,
    /// Tokens of one step.
    pub token_max: u32,
    /// Positions of a sequence.
    pub position_max: u32,
    pub page_tokens: u32,
    /// Pages of each group.
    pub page_count: u32,
}

impl Default for CpuOptions {
    /// Enough for a few short conversations.
    fn default() -> Self {
        Self {
            rank_count: 1,
            slot_count: 8,
            token_max: 512,
            position_max: 4096,
            page_tokens: 16,
            page_count: 1024,
        }
    }
}

impl CpuOptions {
    /// The page groups that an engine with these options has, before its memory is taken.
    pub fn groups(&self, spec: &ModelSpec) -> Vec<PageGroup> {
        Grouping::new(spec, self.page_tokens, self.page_count).groups
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Ranks(#[from] RanksError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{name} must be from 1 to {max}")]
    Option { name: &'static str, max: u32 },
    #[error(
        "{bytes} bytes of keys and values do not fit the memory: take fewer than {page_count} \
         pages of {page_tokens} tokens"
    )]
    Memory { bytes: u64, page_count: u32, page_tokens: u32 },
}

/// Computes steps on the CPU, when they are submitted.
pub struct CpuEngine {
    caps: Caps,
    model: Model,
    pages: Pages,
    slots: Slots,
    watch: Option<Watch>,
    next_step: u64,
    finished: Option<(StepId, StepOutput)>,
}

impl CpuEngine {
    /// Reads the weights and takes the memory of all pages.
    ///
    /// # Errors
    /// When the ranks cannot share the model, an option is zero, or a weight cannot be read.
    pub fn start(
        spec: &ModelSpec,
        source: &dyn WeightSource,
        options: &CpuOptions,
        progress: &dyn Progress,
    ) -> Result<Self, StartError> {
        for (name, value, max) in [
            ("slot_count", options.slot_count, SLOTS_MAX),
            ("token_max", options.token_max, u32::MAX),
            ("position_max", options.position_max, u32::MAX),
            ("page_tokens", options.page_tokens, u32::MAX),
            ("page_count", options.page_count, u32::MAX),
        ] {
            if value == 0 || value > max {
                return Err(StartError::Option { name, max });
            }
        }
        check_ranks(spec, options.rank_count)?;
        let weights = weights::read(source, spec, options.rank_count, progress)?;
        let grouping = Grouping::new(spec, options.page_tokens, options.page_count);
        let pages = grouping.allocate(spec, options.rank_count);
        let pages = pages.ok_or(StartError::Memory {
            bytes: grouping.bytes(),
            page_count: options.page_count,
            page_tokens: options.page_tokens,
        })?;
        Ok(Self {
            caps: caps(spec, options, grouping),
            model: Model { spec: spec.clone(), weights },
            pages,
            slots: Slots::new(options.slot_count as usize, spec.vocab_size),
            watch: None,
            next_step: 0,
            finished: None,
        })
    }

    /// Shows every later step to `watch`.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }
}

fn caps(spec: &ModelSpec, options: &CpuOptions, grouping: Grouping) -> Caps {
    // Without a drafter a row may still bring drafts of its own.
    const GIVEN_DRAFTS_MAX: u32 = 7;
    let draft_max = spec.drafter.as_ref().map_or(GIVEN_DRAFTS_MAX, |d| d.rows as u32 - 1);
    Caps {
        vocab_size: spec.vocab_size as u32,
        position_max: options.position_max.min(spec.position_max as u32),
        slot_count: options.slot_count,
        row_max: options.slot_count,
        token_max: options.token_max,
        draft_max,
        drafter: spec.drafter.is_some(),
        logprobs_max: LOGPROBS_MAX.min(spec.vocab_size as u32),
        steps_in_flight_max: 1,
        groups: grouping.groups,
    }
}

impl Engine for CpuEngine {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        if self.finished.is_some() {
            return Err(EngineError::Busy { in_flight: 1 });
        }
        check_plan(&self.caps, plan)?;
        let batch = Batch::new(plan, &self.slots)?;
        let Self { model, pages, slots, watch, .. } = self;
        let mut out = StepOutput::default();
        if batch.len() > 0 {
            slots.enter(&batch);
            step::run(model, pages, slots, &batch, watch, &mut out);
        }
        let step = StepId(self.next_step);
        self.next_step += 1;
        self.finished = Some((step, out));
        Ok(step)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        match self.finished.take_if(|(finished, _)| *finished == step) {
            Some((_, finished)) => {
                *out = finished;
                Ok(())
            }
            None => Err(EngineError::WrongStep { step }),
        }
    }
}
