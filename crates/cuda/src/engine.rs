//! The GPU engine behind the seam. The host resolves tokens, keeps the slots and verifies; the GPUs
//! run the model.

use std::iter::once;

use kilotok_engine::{Caps, Engine, EngineError, StepId, StepOutput, StepPlan, check_plan};
use kilotok_rows::{Batch, Slots, likeliest, verify, wanted_tokens};

use crate::batch::{DeviceBatch, DraftRow};
use crate::driver::Pinned;
use crate::fault::cause;
use crate::rank::{Pass, Rank};

/// Computes steps on GPUs, when they are submitted.
pub struct CudaEngine {
    pub(crate) caps: Caps,
    pub(crate) ranks: Vec<Rank>,
    /// `[wanted, vocab]` of all ranks.
    pub(crate) logits: Pinned,
    pub(crate) slots: Slots,
    /// Rows of one draft; 0 without a drafter.
    pub(crate) draft_rows: usize,
    /// Exchanges between ranks so far, or more, and in a pass at most.
    pub(crate) exchanges: u32,
    pub(crate) exchanges_max: u32,
    pub(crate) next_step: u64,
    pub(crate) finished: Option<(StepId, StepOutput)>,
    /// What broke a GPU. Nothing runs on it after that.
    pub(crate) broken: Option<EngineError>,
}

/// Tokens of a step at most: what a batch of the kernels holds.
pub const TOKENS_MAX: u32 = 64;

impl CudaEngine {
    /// The target over all tokens, their choice, then context and drafts.
    fn run(&mut self, batch: &Batch<'_>, out: &mut StepOutput) -> Result<(), EngineError> {
        let wanted = wanted_tokens(batch);
        let target = DeviceBatch::target(batch, &wanted, &self.caps.groups);
        self.pass(Pass::Target, &target)?;
        let logits = logits(&self.logits)?;
        let vocab_size = self.caps.vocab_size as usize;
        let logits = &logits[..wanted.len() * vocab_size];
        let committed = verify(vocab_size, batch, logits, &mut self.slots, out);
        if self.draft_rows == 0 {
            return Ok(());
        }
        if !committed.is_empty() {
            self.pass(Pass::DraftContext, &target.context(&committed))?;
        }
        let rows = self.draft_rows(batch);
        for rows in rows.chunks(TOKENS_MAX as usize / self.draft_rows) {
            self.draft(batch, &target, rows, out)?;
        }
        Ok(())
    }

    /// The rows that ask for drafts and hold a token to draft after.
    fn draft_rows(&mut self, batch: &Batch<'_>) -> Vec<DraftRow> {
        let asking = batch.rows.iter().enumerate().filter(|(_, row)| row.plan.draft_next > 0);
        let rows = asking.filter_map(|(index, row)| {
            let held = self.slots.held_mut(row.plan.slot)?;
            Some(DraftRow {
                row: index,
                anchor: held.anchor,
                start: held.start,
                draft_count: row.plan.draft_next,
            })
        });
        rows.collect()
    }

    /// Drafts for as many rows as one batch holds.
    fn draft(
        &mut self,
        batch: &Batch<'_>,
        target: &DeviceBatch,
        rows: &[DraftRow],
        out: &mut StepOutput,
    ) -> Result<(), EngineError> {
        self.pass(Pass::DraftRows, &target.drafts(rows, self.draft_rows))?;
        let mut logits = logits(&self.logits)?.chunks_exact(self.caps.vocab_size as usize);
        for row in rows {
            let plan = batch.rows[row.row].plan;
            let own = logits.by_ref().take(row.draft_count as usize);
            let drafts: Vec<_> = own.map(likeliest).collect();
            if plan.report_drafts {
                out.rows[row.row].drafts.clone_from(&drafts);
            }
            if let Some(held) = self.slots.held_mut(plan.slot) {
                held.drafts = drafts;
            }
        }
        Ok(())
    }

    /// Runs a kernel on all ranks, and waits for it and its logits.
    fn pass(&mut self, pass: Pass, batch: &DeviceBatch) -> Result<(), EngineError> {
        self.try_pass(pass, batch).map_err(|error| {
            // The others end too, if only because their waits do.
            let others = self.ranks.iter().filter_map(|rank| rank.finish().err());
            cause(once(error.clone()).chain(others)).unwrap_or(error)
        })
    }

    fn try_pass(&mut self, pass: Pass, batch: &DeviceBatch) -> Result<(), EngineError> {
        for rank in &mut self.ranks {
            rank.start(pass, batch, self.exchanges)?;
        }
        self.exchanges = self.exchanges.wrapping_add(self.exchanges_max);
        for rank in &self.ranks {
            rank.fetch_logits(batch.wanted_count(), &mut self.logits)?;
        }
        self.ranks.iter().try_for_each(Rank::finish)
    }
}

fn logits(pinned: &Pinned) -> Result<&[f32], EngineError> {
    let broken = |error: crate::driver::DriverError| EngineError::Device {
        rank: 0,
        reason: error.to_string(),
    };
    Ok(bytemuck::cast_slice(pinned.read().map_err(broken)?))
}

impl Engine for CudaEngine {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        if self.finished.is_some() {
            return Err(EngineError::Busy { in_flight: 1 });
        }
        check_plan(&self.caps, plan)?;
        let batch = Batch::new(plan, &self.slots)?;
        let mut out = StepOutput::default();
        if batch.token_count() > 0 {
            self.slots.enter(&batch);
            let ran = self.run(&batch, &mut out);
            ran.inspect_err(|error| self.broken = Some(error.clone()))?;
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
