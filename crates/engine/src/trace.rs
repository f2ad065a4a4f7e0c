//! Recorded steps. A trace is a text file of JSON lines: a header, then one line per step with its
//! plan and, optionally, its output. Any engine for the same model can run it again.

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::difference::{Difference, difference};
use crate::{Caps, Engine, EngineError, StepId, StepOutput, StepPlan};

const VERSION: u32 = 1;

/// The engine that a trace needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the format.
    pub kilotok_trace: u32,
    /// A toy's name or a checkpoint's path.
    pub model: String,
    pub ranks: u32,
    /// Where its weights come from, such as `dummy`; absent when they were read from files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_format: Option<String>,
    /// Limits of the engine that was recorded: plans name its slots and pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caps: Option<Caps>,
}

/// One step of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceStep {
    pub plan: StepPlan,
    /// Compared with the output of a replay; absent when any output will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<StepOutput>,
}

/// Steps in the order in which they ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub header: Header,
    pub steps: Vec<TraceStep>,
}

/// A trace that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("line {line}: {source}")]
    Line { line: usize, source: serde_json::Error },
    #[error("the trace is empty, it lacks a header")]
    Empty,
    #[error("the trace is of version {0}, this reads version {VERSION}")]
    Version(u32),
}

/// A replay that differs from its trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("step {step}: {source}")]
    Engine { step: usize, source: EngineError },
    #[error("step {step}: {found} rows came out, expected {expected}")]
    RowCount { step: usize, expected: usize, found: usize },
    #[error("step {step}, row {row}: {difference}")]
    Differs { step: usize, row: usize, difference: Difference },
}

impl Header {
    pub fn new(model: &str, ranks: u32) -> Self {
        let model = model.to_owned();
        Self { kilotok_trace: VERSION, model, ranks, load_format: None, caps: None }
    }
}

/// Reads a trace; empty lines are passed over.
pub fn read(text: impl BufRead) -> Result<Trace, TraceError> {
    let mut header = None;
    let mut steps = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line?;
        let wrong = |source| TraceError::Line { line: index + 1, source };
        if line.trim().is_empty() {
        } else if header.is_none() {
            header = Some(serde_json::from_str::<Header>(&line).map_err(wrong)?);
        } else {
            steps.push(serde_json::from_str(&line).map_err(wrong)?);
        }
    }
    let header = header.ok_or(TraceError::Empty)?;
    match header.kilotok_trace {
        VERSION => Ok(Trace { header, steps }),
        other => Err(TraceError::Version(other)),
    }
}

/// Writes a trace as [`read`] reads it.
pub fn write(trace: &Trace, mut text: impl Write) -> io::Result<()> {
    writeln!(text, "{}", serde_json::to_string(&trace.header)?)?;
    for step in &trace.steps {
        writeln!(text, "{}", serde_json::to_string(step)?)?;
    }
    text.flush()
}

/// Runs every step of a trace, one at a time, and returns the outputs.
///
/// # Errors
/// The first step that fails, or whose output differs from the trace's by a bit.
pub fn replay(engine: &mut dyn Engine, trace: &Trace) -> Result<Vec<StepOutput>, ReplayError> {
    let mut outputs = Vec::with_capacity(trace.steps.len());
    for (step, TraceStep { plan, output: expected }) in trace.steps.iter().enumerate() {
        let output = engine.run(plan).map_err(|source| ReplayError::Engine { step, source })?;
        if let Some(expected) = expected {
            compare(step, expected, &output)?;
        }
        outputs.push(output);
    }
    Ok(outputs)
}

fn compare(step: usize, expected: &StepOutput, found: &StepOutput) -> Result<(), ReplayError> {
    if expected.rows.len() != found.rows.len() {
        let (expected, found) = (expected.rows.len(), found.rows.len());
        return Err(ReplayError::RowCount { step, expected, found });
    }
    for (row, (expected, found)) in expected.rows.iter().zip(&found.rows).enumerate() {
        if let Some(difference) = difference(expected, found) {
            return Err(ReplayError::Differs { step, row, difference });
        }
    }
    Ok(())
}

/// An engine whose steps are recorded, except refused plans and steps that failed.
pub struct Recorded<E: Engine + ?Sized> {
    steps: Vec<TraceStep>,
    in_flight: VecDeque<(StepId, StepPlan)>,
    engine: Box<E>,
}

impl<E: Engine + ?Sized> Recorded<E> {
    pub fn new(engine: Box<E>) -> Self {
        Self { steps: Vec::new(), in_flight: VecDeque::new(), engine }
    }

    /// The steps that were waited for, and the engine's limits.
    pub fn into_trace(self, mut header: Header) -> Trace {
        header.caps = Some(self.engine.caps().clone());
        Trace { header, steps: self.steps }
    }
}

impl<E: Engine + ?Sized> Engine for Recorded<E> {
    fn caps(&self) -> &Caps {
        self.engine.caps()
    }

    fn submit(&mut self, plan: &StepPlan) -> Result<StepId, EngineError> {
        let id = self.engine.submit(plan)?;
        self.in_flight.push_back((id, plan.clone()));
        Ok(id)
    }

    fn wait(&mut self, step: StepId, out: &mut StepOutput) -> Result<(), EngineError> {
        let result = self.engine.wait(step, out);
        if matches!(result, Err(EngineError::WrongStep { .. })) {
            return result;
        }
        if let Some((_, plan)) = self.in_flight.pop_front()
            && result.is_ok()
        {
            self.steps.push(TraceStep { plan, output: Some(out.clone()) });
        }
        result
    }
}
