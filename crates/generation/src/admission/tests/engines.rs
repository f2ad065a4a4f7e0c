//! Engines that the tests hold back or break.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use kilotok_engine::{EngineError, StepId, StepPlan};

use super::*;

/// An engine that finishes a step only when the test permits it.
pub(super) struct Held {
    inner: ScriptedEngine,
    permits: Receiver<()>,
    entered: SyncSender<()>,
}

/// The test's end of a held engine. Once it is dropped, the engine runs freely.
pub(super) struct Hold {
    permit: SyncSender<()>,
    entered: Receiver<()>,
}

pub(super) fn held(inner: ScriptedEngine) -> (Held, Hold) {
    let (permit, permits) = sync_channel(1000);
    let (enter, entered) = sync_channel(1000);
    (Held { inner, permits, entered: enter }, Hold { permit, entered })
}

impl Hold {
    /// Waits until a step is in flight.
    pub(super) fn entered(&self) {
        self.entered.recv_timeout(STUCK).expect("a step starts");
    }

    /// Lets a step finish.
    pub(super) fn permit(&self) {
        self.permit.send(()).unwrap();
    }
}

impl Engine for Held {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        self.inner.submit(plan)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        let _ = self.entered.try_send(());
        // An error means that the test has dropped its end.
        let _ = self.permits.recv();
        self.inner.wait(step, out)
    }
}

/// An engine whose outputs are changed.
pub(super) struct Altered<F> {
    pub(super) inner: ScriptedEngine,
    pub(super) alter: F,
}

impl<F: FnMut(StepId, &mut StepOutput) + Send> Engine for Altered<F> {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        self.inner.submit(plan)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        self.inner.wait(step, out)?;
        (self.alter)(step, out);
        Ok(())
    }
}
