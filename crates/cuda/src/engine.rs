//! The GPU engine behind the seam. A step is one chain on every GPU's stream, without the host in
//! between: the target, the choice of tokens, the drafter's context, the drafts. The host resolves
//! tokens, keeps what slots hold, and reads the results.

use std::iter::once;
use std::time::Duration;

use kilotok_abi::SampleMemory;
use kilotok_engine::{
    Caps, Engine, EngineError, PhaseTime, StepId, StepOutput, StepPlan, StepTimes, check_plan,
};
use kilotok_rows::{Batch, InFlight, Slots};

use crate::driver::{DriverError, Pinned};
use crate::fault::cause;
use crate::rank::{Moment, Pass, Rank};
use crate::results::{Asked, ResultPlaces};
use crate::upload::{Places, Upload};

/// Computes steps on GPUs.
pub struct CudaEngine {
    pub(crate) caps: Caps,
    pub(crate) ranks: Vec<Rank>,
    pub(crate) slots: Slots,
    pub(crate) host: HostMemory,
    /// Rows of one draft; 0 without a drafter.
    pub(crate) draft_rows: usize,
    /// Exchanges between ranks so far, or more, and in a launch at most.
    pub(crate) exchanges: u32,
    pub(crate) exchanges_max: u32,
    pub(crate) in_flight: InFlight<Asked>,
    pub(crate) times: Option<StepTimes>,
    /// What broke a GPU. Nothing runs on it after that.
    pub(crate) broken: Option<EngineError>,
}

/// The host's memory that GPUs read and write, and what lies where in it.
pub(crate) struct HostMemory {
    pub(crate) upload: Pinned,
    pub(crate) upload_places: Places,
    /// As long as the longest that a step has needed.
    pub(crate) lists: Pinned,
    pub(crate) results: Pinned,
    pub(crate) result_places: ResultPlaces,
    /// Where the slots' tables are in every rank's memory.
    pub(crate) tables: SampleMemory,
    /// Of all launches of a step, if they make any.
    pub(crate) stamps: Option<Pinned>,
}

/// Tokens of a step at most: what a batch of the kernels holds.
pub const TOKENS_MAX: u32 = 64;

impl CudaEngine {
    /// Starts everything that a step does.
    fn start_step(&mut self, upload: &Upload, asked: &Asked) -> Result<(), EngineError> {
        self.try_start_step(upload, asked).map_err(|error| self.cause(error))
    }

    fn try_start_step(&mut self, upload: &Upload, asked: &Asked) -> Result<(), EngineError> {
        let numbers = (self.exchanges, self.exchanges_max);
        let launches = self.host.upload_places.passes() as u32;
        self.exchanges = self.exchanges.wrapping_add(self.exchanges_max * launches);
        let bytes = self.host.write(upload, numbers).map_err(|error| device_error(&error))?;
        let Self { ranks, host, .. } = self;
        for rank in ranks.iter_mut() {
            rank.begin((&host.upload, bytes), &host.lists, &upload.copies)?;
        }
        let all = |pass| ranks.iter().try_for_each(|rank| rank.start(pass));
        all(Pass::Target(upload.target.token_count()))?;
        all(Pass::Verify)?;
        ranks[0].note(Moment::Verified)?;
        if self.draft_rows > 0 {
            all(Pass::DraftContext(upload.target.token_count()))?;
        }
        for (batch, drafts) in upload.drafts.iter().enumerate() {
            all(Pass::DraftRows(batch, drafts.token_count()))?;
        }
        ranks[0].note(Moment::Drafted)?;
        ranks[0].fetch(asked.bytes(&host.result_places), &mut host.results)
    }

    /// Waits for the step in flight, which was asked for this.
    fn finish_step(&mut self, asked: &Asked) -> Result<StepOutput, EngineError> {
        self.try_finish_step(asked).map_err(|error| self.cause(error))
    }

    fn try_finish_step(&mut self, asked: &Asked) -> Result<StepOutput, EngineError> {
        self.ranks.iter().try_for_each(Rank::finish)?;
        let (verify, draft) = self.ranks[0].milliseconds()?;
        let duration = |milliseconds: f32| Duration::from_secs_f32(milliseconds / 1e3);
        self.times = Some(StepTimes { verify: duration(verify), draft: duration(draft) });
        let HostMemory { results, result_places, .. } = &self.host;
        let results = results.read().map_err(|error| device_error(&error))?;
        Ok(asked.output(results, result_places, &mut self.slots))
    }

    /// What began it. The other ranks end too, if only because their waits do.
    fn cause(&self, error: EngineError) -> EngineError {
        let others = self.ranks.iter().filter_map(|rank| rank.finish().err());
        cause(once(error.clone()).chain(others)).unwrap_or(error)
    }
}

/// A step that nobody waited for ends before any memory goes: ranks write to each other's.
impl Drop for CudaEngine {
    fn drop(&mut self) {
        for rank in &self.ranks {
            let _ = rank.finish();
        }
    }
}

impl HostMemory {
    /// Writes a step, and returns the bytes of its upload.
    fn write(&mut self, upload: &Upload, exchanges: (u32, u32)) -> Result<usize, DriverError> {
        let bytes = upload.lists.len();
        if bytes > self.lists.bytes() {
            self.lists = self.lists.like(bytes.next_power_of_two())?;
        }
        self.lists.write()?[..bytes].copy_from_slice(&upload.lists);
        let lists = self.lists.address();
        Ok(upload.write(&self.upload_places, lists, exchanges, self.upload.write()?))
    }
}

fn device_error(error: &DriverError) -> EngineError {
    EngineError::Device { rank: 0, reason: error.to_string() }
}

impl Engine for CudaEngine {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        self.in_flight.check()?;
        check_plan(&self.caps, plan)?;
        let batch = Batch::new(plan, &self.slots)?;
        let drafts = (TOKENS_MAX as usize).checked_div(self.draft_rows).unwrap_or(0);
        let shape = (drafts, self.draft_rows);
        let upload = Upload::new(&batch, &self.caps.groups, &self.host.tables, shape)?;
        let asked = Asked::new(&batch, &upload, TOKENS_MAX as usize);
        if !asked.is_empty() {
            self.slots.enter(&batch);
            let started = self.start_step(&upload, &asked);
            started.inspect_err(|error| self.broken = Some(error.clone()))?;
        }
        Ok(self.in_flight.start(asked))
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        let asked = self.in_flight.take(step)?;
        if asked.is_empty() {
            *out = StepOutput::default();
            return Ok(());
        }
        let finished = self.finish_step(&asked);
        *out = finished.inspect_err(|error| self.broken = Some(error.clone()))?;
        Ok(())
    }

    fn times(&self) -> Option<StepTimes> {
        self.times
    }

    fn phase_times(&mut self) -> Result<Vec<PhaseTime>, EngineError> {
        let Some(stamps) = &mut self.host.stamps else { return Ok(Vec::new()) };
        self.in_flight.check()?;
        self.ranks[0].phase_times(stamps)
    }
}
