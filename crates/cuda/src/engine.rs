//! The GPU engine. A step is one chain of launches on every GPU's stream, without the host in
//! between: target, verify, the drafter's context, the drafts. The host resolves the plan's tokens,
//! keeps the content of slots, and reads the results.
//!
//! While a step is computed, the next one's chain is enqueued behind a doorbell, in the same shape.
//! If the next plan fits it, `submit` only writes the plan into its mailbox and rings. Until then
//! the mailbox holds an empty batch. To discard a chain, the host rings without writing a plan: its
//! kernels find no tokens and return.

use std::hint::spin_loop;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kilotok_abi::{PLAN_CTA_BYTES, SampleMemory};
use kilotok_batch::{Batch, InFlight, Slots};
use kilotok_engine::{
    Caps, Engine, EngineError, PhaseTime, StepId, StepOutput, StepPlan, StepTimes, check_plan,
};

use crate::batch::{DraftShape, Spans};
use crate::chain::{Shape, Target, Tiles};
use crate::driver::doorbell::{Doorbell, dismiss_pending};
use crate::driver::{Pinned, now};
use crate::fault::{RankFailure, cause, silent_count, suspects};
use crate::rank::{Chain, Rank, WAIT_MAX_MS};
use crate::results::{Asked, ResultPlaces};
use crate::upload::{Copy, Places, Upload};
use crate::watch::{ACKNOWLEDGE_MAX, RankState, Watch};
use crate::wide::{self, WideStep};

/// Computes steps on GPUs.
pub struct CudaEngine {
    pub(crate) caps: Caps,
    pub(crate) ranks: Vec<Rank>,
    pub(crate) slots: Slots,
    pub(crate) host: HostMemory,
    pub(crate) draft_shape: DraftShape,
    /// An upper bound of the collectives so far, and of those in one launch.
    pub(crate) collectives: u32,
    pub(crate) collectives_max: u32,
    pub(crate) doorbell: Arc<Doorbell>,
    /// How long the step in flight may take at these GPUs' clocks.
    pub(crate) step_max: Duration,
    /// How long narrow steps and wide steps may take.
    pub(crate) step_limits: [Duration; 2],
    /// Steps of more tokens take the wide pass, if there is room for it.
    pub(crate) wide_above: Option<usize>,
    /// The number of the last chain that was enqueued.
    pub(crate) number: u32,
    /// The shape of the chain of that number, if it was enqueued ahead.
    pub(crate) ahead: Option<Shape>,
    /// The step in flight, and its chain.
    pub(crate) in_flight: InFlight<InFlightStep>,
    /// The times of the last step that was waited for.
    pub(crate) times: Option<StepTimes>,
    /// The error of a GPU. Nothing runs on it after that.
    pub(crate) broken: Option<EngineError>,
}

/// What a step must return, and the chain that runs it; no chain for a step without rows.
pub(crate) struct InFlightStep {
    asked: Asked,
    watch: Option<Watch>,
}

/// The host's memory that GPUs access, and its layout.
pub(crate) struct HostMemory {
    /// The mailboxes of chains with even and with odd numbers. A chain's mailbox is written when
    /// the chain before it has been waited for or is void: by then, the chain that last used the
    /// mailbox has read it.
    pub(crate) mailboxes: [Pinned; 2],
    pub(crate) upload_places: Places,
    pub(crate) lists: Pinned,
    pub(crate) result_places: ResultPlaces,
    /// The slots' tables in every rank's memory.
    pub(crate) tables: SampleMemory,
    /// The stamps of all launches of a step, in kernels that make them.
    pub(crate) stamps: Option<Pinned>,
}

/// The most tokens of a step of the narrow pass: a batch of its kernels.
pub const TOKENS_MAX: u32 = crate::constants::TOKENS_MAX as u32;
/// A step's end is polled without a pause for this long, and then with one.
const SPIN_MAX: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_micros(50);
/// How long a step may take after its doorbell rang, at the fastest clock: longer than any wait of
/// its kernels, whose fault records say more, and less than the two seconds within which a stalled
/// rank is reported.
pub(crate) const STEP_MAX: Duration = Duration::from_millis(1800);
/// The same for a step of the wide pass. The largest takes less than a second, except in contexts
/// of a million tokens, where attention takes several.
pub(crate) const WIDE_STEP_MAX: Duration = Duration::from_secs(30);
/// The interval at which the driver is asked for errors.
const CHECK_EACH: Duration = Duration::from_millis(1);
/// How long to wait for a fault record if only one rank has none. Waits of different kinds time out
/// within hundredths of a second of each other (`grace_ms` in `comm/wait.cuh`).
const RECORD_MAX: Duration = Duration::from_millis(50);

/// The order of time limits: an unresponsive rank is found first. Then the kernels' waits time out,
/// before the step does, because their records say more. All is reported within two seconds.
const _: () = {
    let waits_ms = WAIT_MAX_MS as u128 + RECORD_MAX.as_millis();
    assert!(ACKNOWLEDGE_MAX.as_millis() < WAIT_MAX_MS as u128 && waits_ms < STEP_MAX.as_millis());
    assert!(STEP_MAX.as_millis() < 2000);
};

impl CudaEngine {
    /// Begins the step's chain, and enqueues the next one.
    fn start_step(&mut self, upload: &Upload) -> Result<Watch, EngineError> {
        let start = now();
        self.step_max = self.step_limits[usize::from(upload.wide.is_some())];
        let started = self.try_start_step(upload);
        started.map_err(|failed| self.cause(Some(&failed), start))
    }

    fn try_start_step(&mut self, upload: &Upload) -> Result<Watch, RankFailure> {
        let collectives = (self.collectives, self.collectives_max);
        let launches = self.host.upload_places.passes() as u32;
        let step_max = self.collectives_max * launches + wide::HEADS_MAX;
        self.collectives = self.collectives.wrapping_add(step_max);
        self.host.lists.write()[..upload.lists.len()].copy_from_slice(&upload.lists);
        let narrow = self.ranks[0].narrow();
        let step = Shape::of(upload, narrow, upload.bytes(&self.host.upload_places));
        let fits = self.ahead.take().is_some_and(|ahead| ahead.fits(&step));
        if !(fits && upload.copies.is_empty() && self.answer(upload, collectives)) {
            self.start_now(upload, collectives, &step)?;
        }
        let progress = self.ranks.iter().map(Rank::progress);
        let watch = Watch::new(self.number, progress, now());
        self.start_ahead(step.ahead(narrow, self.host.upload_places.bytes))?;
        Ok(watch)
    }

    /// Gives the step to the waiting chain. False if no chain waits any more.
    fn answer(&mut self, upload: &Upload, collectives: (u32, u32)) -> bool {
        let Self { doorbell, host, number, .. } = self;
        doorbell.answer(*number, || host.write(*number, upload, collectives))
    }

    /// Enqueues a chain for the step, after the waiting one. All ranks have theirs before any
    /// begins, because their kernels wait for each other with a time limit. A wide chain begins at
    /// once, because a stream takes only about a thousand launches before it runs.
    fn start_now(
        &mut self,
        upload: &Upload,
        collectives: (u32, u32),
        shape: &Shape,
    ) -> Result<(), RankFailure> {
        let _nothing_pending = dismiss_pending();
        self.number = self.number.wrapping_add(1);
        self.host.write(self.number, upload, collectives);
        if shape.wide().is_some() {
            self.doorbell.ring(self.number);
            return self.start_chain(shape, &upload.copies);
        }
        let started = self.start_chain(shape, &upload.copies);
        if started.is_err() {
            self.host.write_nothing(self.number);
        }
        self.doorbell.ring(self.number);
        started
    }

    /// Launches every kernel once with an empty batch. The driver loads a kernel at its first
    /// launch: that takes milliseconds and waits for the stream, so it must not happen behind a
    /// doorbell.
    pub(crate) fn warm_up(&mut self) -> Result<(), EngineError> {
        self.launch_all().map_err(|failed| self.cause(Some(&failed), now()))?;
        let ended = self.ranks.iter().try_for_each(Rank::finish);
        ended.map_err(|_| self.cause(None, now()))
    }

    fn launch_all(&mut self) -> Result<(), RankFailure> {
        let _nothing_pending = dismiss_pending();
        let narrow = [Tiles::One, Tiles::Many].map(|tiles| (Target::Narrow(tiles), tiles));
        let one_token = (Target::OneToken, Tiles::One);
        let one_token = self.ranks[0].narrow().has_one_token.then_some(one_token);
        let wide = (Target::Wide(WideStep::default()), Tiles::One);
        let wide = self.wide_above.map(|_| wide);
        for (target, tiles) in narrow.into_iter().chain(one_token).chain(wide) {
            self.number = self.number.wrapping_add(1);
            self.host.write_nothing(self.number);
            self.doorbell.ring(self.number);
            let batches = usize::from(self.draft_shape.rows > 0);
            let upload_bytes = self.host.upload_places.bytes.min(PLAN_CTA_BYTES);
            let shape = Shape { target, drafts: vec![tiles; batches], upload_bytes };
            self.start_chain(&shape, &[])?;
        }
        Ok(())
    }

    /// Enqueues a chain that waits for the doorbell, and does nothing unless a plan is written for
    /// it.
    fn start_ahead(&mut self, shape: Shape) -> Result<(), RankFailure> {
        self.number = self.number.wrapping_add(1);
        self.host.write_nothing(self.number);
        self.doorbell.start_ahead(self.number, || self.start_chain(&shape, &[]))?;
        self.ahead = Some(shape);
        Ok(())
    }

    fn start_chain(&self, shape: &Shape, copies: &[Copy]) -> Result<(), RankFailure> {
        let Self { number, host: HostMemory { lists, .. }, .. } = self;
        let mailbox = self.host.mailbox(*number);
        let chain = Chain { number: *number, shape, mailbox, lists, copies };
        self.ranks.iter().try_for_each(|rank| rank.begin(&chain))?;
        for pass in self.ranks[0].passes(shape) {
            self.ranks.iter().try_for_each(|rank| rank.launch(&chain, pass))?;
        }
        self.ranks.iter().try_for_each(|rank| rank.end(&chain))
    }

    /// Waits for the step in flight, and reads what was asked for.
    fn finish_step(&mut self, asked: &Asked, watch: Watch) -> Result<StepOutput, EngineError> {
        self.wait_for(watch)?;
        let (first, result_places) = (&self.ranks[0], &self.host.result_places);
        self.times = Some(first.times());
        let mut bytes = vec![0; asked.bytes(result_places)];
        first.results(&mut bytes);
        Ok(asked.output(&bytes, result_places, &mut self.slots))
    }

    /// Waits until every rank has ended a chain.
    fn wait_for(&self, mut watch: Watch) -> Result<(), EngineError> {
        let start = watch.start;
        let mut checked = start;
        loop {
            let now = now();
            let Some(rank) = self.first_busy(&mut watch, now)? else { return Ok(()) };
            if now - start > self.step_max {
                return Err(self.cause(Some(&rank.endless(self.number, self.step_max)), start));
            }
            if now - checked > CHECK_EACH {
                checked = now;
                if self.ranks.iter().any(Rank::is_broken) {
                    return Err(self.cause(None, start));
                }
            }
            if now - start > SPIN_MAX {
                thread::sleep(PAUSE);
            } else {
                spin_loop();
            }
        }
    }

    /// The first rank that has not ended, if any.
    ///
    /// # Errors
    /// A rank did not react to the doorbell. Ranks that waited for it are not the cause, so this
    /// comes before their errors are read.
    fn first_busy(&self, watch: &mut Watch, now: Instant) -> Result<Option<&Rank>, EngineError> {
        let mut busy = None;
        for (index, rank) in self.ranks.iter().enumerate() {
            match watch.judge(index, rank.progress(), now) {
                RankState::Ended => {}
                RankState::Busy => busy = busy.or(Some(rank)),
                RankState::Unresponsive => {
                    self.give_up();
                    return Err(rank.unresponsive());
                }
            }
        }
        Ok(busy)
    }

    /// Abandons all ranks: one that has not ended may still write to the others' memory.
    fn give_up(&self) {
        self.ranks.iter().for_each(Rank::abandon);
    }

    /// The cause of the failure of a step that began at `start`, whether it was found here or on a
    /// rank. A GPU may fail without a fault record, and the driver reports that failure on all GPUs
    /// with access to it. Then this waits for the records of the other ranks, which name the rank
    /// that they waited for.
    fn cause(&self, here: Option<&RankFailure>, start: Instant) -> EngineError {
        drop(dismiss_pending());
        let mut last = None;
        let failed = loop {
            let failed = suspects(self.failed(here));
            let now = now();
            let runs = failed.iter().any(|failed| failed.runs);
            if now - start > self.step_max {
                if runs {
                    self.give_up();
                }
                break failed;
            }
            match silent_count(&failed) {
                0 => break failed,
                1 if !runs && now - *last.get_or_insert(now) > RECORD_MAX => break failed,
                _ => thread::sleep(PAUSE),
            }
        };
        cause(&failed).unwrap_or_else(|| {
            let reason = "a GPU broke, and then did not say why".to_owned();
            EngineError::Device { rank: 0, reason }
        })
    }

    /// The failures of all ranks, and `here` for its rank if that has no other.
    fn failed(&self, here: Option<&RankFailure>) -> Vec<RankFailure> {
        let said = self.ranks.iter().filter_map(|rank| rank.unfinished(self.number, self.step_max));
        let mut failed: Vec<RankFailure> = said.collect();
        let here = here.filter(|here| failed.iter().all(|failed| failed.rank != here.rank));
        failed.extend(here.cloned());
        failed
    }
}

/// A step that was not waited for ends before any memory is freed: ranks write to each other's
/// memory.
impl Drop for CudaEngine {
    fn drop(&mut self) {
        for rank in &self.ranks {
            let _ = rank.finish();
        }
    }
}

impl HostMemory {
    fn mailbox(&self, number: u32) -> &Pinned {
        &self.mailboxes[number as usize % 2]
    }

    /// Writes a step for the chain of that number.
    fn write(&mut self, number: u32, upload: &Upload, collectives: (u32, u32)) {
        let mailbox = self.mailboxes[number as usize % 2].write();
        upload.write(&self.upload_places, self.lists.address(), collectives, mailbox);
    }

    /// Writes an empty batch for the chain of that number.
    fn write_nothing(&mut self, number: u32) {
        self.upload_places.clear(self.mailboxes[number as usize % 2].write());
    }
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
        let drafts = (TOKENS_MAX as usize).checked_div(self.draft_shape.rows).unwrap_or(0);
        let shape = (drafts, self.draft_shape);
        let mut upload = Upload::new(&batch, &self.caps.groups, &self.host.tables, shape)?;
        upload.check(self.host.lists.bytes())?;
        if self.wide_above.is_some_and(|above| upload.target.token_count() > above) {
            let context = Spans::new(&batch.in_context(&self.caps.groups));
            upload.widen(&self.host.upload_places, context);
        }
        let asked = Asked::new(&batch, &upload, TOKENS_MAX as usize);
        let mut watch = None;
        self.times = None;
        if !asked.is_empty() {
            self.slots.enter(&batch);
            let started = self.start_step(&upload);
            watch = Some(started.inspect_err(|error| self.broken = Some(error.clone()))?);
        }
        Ok(self.in_flight.start(InFlightStep { asked, watch }))
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        let InFlightStep { asked, watch } = self.in_flight.take(step)?;
        let Some(watch) = watch else {
            *out = StepOutput::default();
            return Ok(());
        };
        let finished = self.finish_step(&asked, watch);
        *out = finished.inspect_err(|error| self.broken = Some(error.clone()))?;
        Ok(())
    }

    fn times(&self) -> Option<StepTimes> {
        self.times
    }

    fn phase_times(&mut self) -> Result<Vec<PhaseTime>, EngineError> {
        let Some(stamps) = &self.host.stamps else { return Ok(Vec::new()) };
        self.in_flight.check()?;
        self.ranks[0].phase_times(stamps)
    }

    fn read_rate(&mut self) -> Result<Option<f64>, EngineError> {
        self.in_flight.check()?;
        self.ranks[0].read_rate().map(Some)
    }
}

#[cfg(test)]
mod tests;
