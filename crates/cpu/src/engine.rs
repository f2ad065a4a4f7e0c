//! The reference engine's implementation of `Engine`.

use kilotok_batch::{Batch, InFlight, Samplers, SizeError, Slots};
use kilotok_engine::{Caps, Engine, EngineError, StepId, StepOutput, StepPlan, check_plan};
use kilotok_model::{ModelSpec, RanksError, check_ranks};
use kilotok_weights::{LoadError, Progress, WeightSource};

use crate::CpuOptions;
use crate::pages::Pages;
use crate::step::{self, Model};
use crate::watch::Watch;
use crate::weights;

/// Keys and values are F32.
pub const VALUE_BYTES: usize = size_of::<f32>();

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Ranks(#[from] RanksError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(
        "{bytes} bytes of keys and values do not fit the memory: take fewer than {page_count} \
         pages of {page_tokens} tokens"
    )]
    Memory { bytes: u64, page_count: u32, page_tokens: u32 },
}

/// Computes steps on the CPU, when they are submitted.
pub struct CpuEngine {
    pub(crate) caps: Caps,
    pub(crate) model: Model,
    pub(crate) pages: Pages,
    pub(crate) slots: Slots,
    pub(crate) samplers: Samplers,
    pub(crate) watch: Option<Watch>,
    in_flight: InFlight<StepOutput>,
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
        options.check()?;
        check_ranks(spec, options.rank_count)?;
        let weights = weights::read(source, spec, options.rank_count, progress)?;
        let grouping = options.groups(spec, VALUE_BYTES);
        let pages = Pages::allocate(&grouping, spec, options.rank_count);
        let pages = pages.ok_or(StartError::Memory {
            bytes: grouping.bytes(),
            page_count: options.page_count,
            page_tokens: options.page_tokens,
        })?;
        Ok(Self {
            caps: options.caps(spec, &grouping),
            model: Model { spec: spec.clone(), weights },
            pages,
            slots: Slots::new(options.slot_count as usize, spec.vocab_size),
            samplers: Samplers::new(options.slot_count as usize, spec.vocab_size),
            watch: None,
            in_flight: InFlight::default(),
        })
    }

    /// Shows every later step to `watch`.
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }
}

impl Engine for CpuEngine {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        self.in_flight.check()?;
        check_plan(&self.caps, plan)?;
        let batch = Batch::new(plan, &self.slots)?;
        let mut out = StepOutput::default();
        if batch.token_count() > 0 {
            self.slots.enter(&batch);
            step::run(self, &batch, &mut out);
        }
        Ok(self.in_flight.start(out))
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        *out = self.in_flight.take(step)?;
        Ok(())
    }
}
