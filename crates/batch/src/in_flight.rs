//! Step ids of an engine that runs at most one step at a time.

use kilotok_engine::{EngineError, StepId};

/// The step that was submitted and not yet waited for, with the engine's own data about it.
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
    /// [`EngineError::Busy`] while a step is in flight.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.step.is_some() { Err(EngineError::Busy { in_flight: 1 }) } else { Ok(()) }
    }

    /// Records a step that was started, and gives it an id.
    pub fn start(&mut self, known: T) -> StepId {
        let step = StepId(self.next);
        self.next += 1;
        self.step = Some((step, known));
        step
    }

    /// # Errors
    /// [`EngineError::WrongStep`] when another step is in flight, which then stays in flight.
    pub fn take(&mut self, step: StepId) -> Result<T, EngineError> {
        let taken = self.step.take_if(|(own, _)| *own == step);
        taken.map(|(_, known)| known).ok_or(EngineError::WrongStep { step })
    }
}
