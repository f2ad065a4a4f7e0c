//! The interface between scheduling and computing. A [`StepPlan`] says what one step does, a
//! [`StepOutput`] what it produced. Both are plain data with a text form, so a failing step is a
//! file that any engine can replay. This crate computes nothing and knows no model.

mod caps;
mod check;
mod difference;
mod plan;
pub mod trace;

use std::time::Duration;

use kilotok_abi::Stamp;

pub use caps::{Caps, PageGroup, PageKind, WINDOW_SLACK};
pub use check::{DRAFT_TEMPERATURE_MAX, check_plan};
pub use difference::{Difference, difference};
pub use plan::{
    PageRun, Row, RowFault, RowOutput, RowTokens, SlotSetup, StepId, StepOutput, StepPlan,
    TokenLogprob, TokenLogprobs, Verification,
};

/// Runs steps. Between steps an engine keeps nothing of a request but the bytes in the pages and
/// slots that plans name, so a request is dropped by not naming it again.
pub trait Engine: Send {
    /// Limits and page groups, fixed at start.
    fn caps(&self) -> &Caps;

    /// Starts a step. At most [`Caps::steps_in_flight_max`] may be started and not waited for.
    ///
    /// # Errors
    /// [`EngineError::Plan`] when the plan breaks a limit; the state is then unchanged.
    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError>;

    /// Waits for a step and writes its output, rows in plan order. Steps are waited for in the
    /// order in which they were submitted.
    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError>;

    /// Starts a step and waits for it.
    ///
    /// # Errors
    /// Those of [`Engine::submit`] and [`Engine::wait`].
    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput, EngineError> {
        let step = self.submit(plan)?;
        let mut out = StepOutput::default();
        self.wait(step, &mut out)?;
        Ok(out)
    }

    /// How long the devices took for the last step that was waited for. It is known until the next
    /// step is submitted; `None` for an engine without devices.
    fn times(&self) -> Option<StepTimes> {
        None
    }

    /// How long each phase of the last step took, in order, if the engine was started to measure
    /// it. Must be called after every step, while none is in flight.
    ///
    /// # Errors
    /// When the measured times are inconsistent.
    fn phase_times(&mut self) -> Result<Vec<PhaseTime>, EngineError> {
        Ok(Vec::new())
    }

    /// Bytes a second that a device reads of its own memory, measured by plain loads while no step
    /// is in flight; `None` for an engine without devices.
    ///
    /// # Errors
    /// A device that fails.
    fn read_rate(&mut self) -> Result<Option<f64>, EngineError> {
        Ok(None)
    }
}

/// How long the parts of a step took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// The target's pass over all tokens, and the choice of tokens.
    pub verify: Duration,
    pub draft: Duration,
}

/// A part of a step, as in [`StepTimes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepPart {
    Verify,
    Draft,
}

/// Time that one multiprocessor of a device spent on a phase, in all layers and launches together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTime {
    pub part: StepPart,
    pub phase: Stamp,
    pub own: Duration,
    /// Waiting for the other multiprocessors, at the barriers after the phase.
    pub wait: Duration,
    /// For the routing phase, the number of experts read, one again for every eight of its tokens;
    /// for other phases 0.
    pub experts: u64,
}

/// Why a step did not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The plan is illegal: a bug of its maker.
    #[error("plan refused, row {row}: {reason}")]
    Plan { row: usize, reason: String },
    /// More steps were submitted than the engine holds.
    #[error("{in_flight} steps are in flight, the engine holds no more")]
    Busy { in_flight: usize },
    /// The step is not the oldest one in flight.
    #[error("step {step} is not the oldest in flight")]
    WrongStep { step: StepId },
    /// A device broke. The engine runs no further step.
    #[error("rank {rank}: {reason}")]
    Device { rank: usize, reason: String },
    /// A wait on a device timed out. `phase` is the number of grid barriers at which the CTA had
    /// arrived in this launch, or in the wide pass the layer. The engine runs no further step.
    #[error("rank {rank}, CTA {cta}, phase {phase} of {launch}: waited too long for {waited_for}")]
    Timeout { rank: usize, cta: u32, launch: String, phase: u32, waited_for: String },
}
