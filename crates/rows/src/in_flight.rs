//! The steps of an engine that has at most one in flight.

use kilotok_engine::{EngineError, StepId};

/// The step that was submitted and not waited for, with whatever the engine knows of it.
pub struct InFlight<T> {
    next: u64,
    step: Option<(StepId, T)>,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { next: 0, step: None }
    }
}

impl<T> InFlight<T> {
    /// # Errors
    /// When there is no room for a step.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.step.is_some() { Err(EngineError::Busy { in_flight: 1 }) } else { Ok(()) }
    }

    /// Names a step that was started.
    pub fn start(&mut self, known: T) -> StepId {
        let step = StepId(self.next);
        self.next += 1;
        self.step = Some((step, known));
        step
    }

    /// # Errors
    /// When the step is not the one in flight, which then stays so.
    pub fn take(&mut self, step: StepId) -> Result<T, EngineError> {
        let taken = self.step.take_if(|(own, _)| *own == step);
        taken.map(|(_, known)| known).ok_or(EngineError::WrongStep { step })
    }
}
