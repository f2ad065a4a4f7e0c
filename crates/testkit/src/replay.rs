//! Recorded steps. A trace is a text file of JSON lines: a header, then one line per step with its
//! plan and, optionally, its output. Any engine for the same model can run it again.

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};

use kilotok_engine::{Caps, Engine, EngineError, StepId, StepOutput, StepPlan};
use serde::{Deserialize, Serialize};

use crate::difference::{Difference, difference};

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
        let failed = |source| ReplayError::Engine { step, source };
        let id = engine.submit(plan).map_err(failed)?;
        let mut output = StepOutput::default();
        engine.wait(id, &mut output).map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Drafts, Host, How, Request};
    use crate::scripted::{DraftAccuracy, ScriptedEngine};

    fn engine() -> Box<ScriptedEngine> {
        Box::new(ScriptedEngine::new(ScriptedEngine::caps(), DraftAccuracy::Percent(50)))
    }

    fn recorded() -> Trace {
        let mut engine = Recorded::new(engine());
        let how = How { drafts: Drafts::Held { made: 3, used: 3 }, ..How::default() };
        let request = Request::greedy(vec![1, 2, 3], 9);
        Host::new(&mut engine, 1).run_all(&[(&request, &how), (&request, &how)]).unwrap();
        engine.into_trace(Header::new("scripted", 1))
    }

    fn text(trace: &Trace) -> String {
        let mut text = Vec::new();
        write(trace, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_trace_survives_its_text() {
        let trace = recorded();
        let text = text(&trace);
        assert_eq!(text.lines().count(), trace.steps.len() + 1);
        assert_eq!(read(text.as_bytes()).unwrap(), trace);
        let outputs = replay(&mut *engine(), &trace).unwrap();
        assert_eq!(outputs[0].rows.len(), 2);
    }

    #[test]
    fn a_difference_is_named() {
        let mut trace = recorded();
        let output = trace.steps[1].output.as_mut().unwrap();
        let logprob = &mut output.rows[1].logprobs[0].chosen.logprob;
        *logprob = logprob.next_up();
        let error = replay(&mut *engine(), &trace).unwrap_err().to_string();
        assert!(error.starts_with("step 1, row 1: logprobs[0].chosen.logprob is -"), "{error}");
    }

    #[test]
    fn an_output_may_be_left_out() {
        let mut trace = recorded();
        trace.steps[2].output = None;
        replay(&mut *engine(), &read(text(&trace).as_bytes()).unwrap()).unwrap();
    }

    #[test]
    fn a_failing_step_is_named_and_not_recorded() {
        let mut failing = engine();
        failing.fail_at(2, EngineError::Busy { in_flight: 7 });
        let error = replay(&mut *failing, &recorded()).unwrap_err();
        let source = EngineError::Busy { in_flight: 7 };
        assert_eq!(error, ReplayError::Engine { step: 2, source });
        let mut failing = engine();
        failing.fail_at(0, EngineError::Busy { in_flight: 7 });
        let mut failing = Recorded::new(failing);
        let id = failing.submit(&StepPlan::default()).unwrap();
        failing.wait(id, &mut StepOutput::default()).unwrap_err();
        assert_eq!(failing.into_trace(Header::new("scripted", 1)).steps, []);
    }

    #[test]
    fn bad_traces_are_refused() {
        assert!(matches!(read(&b""[..]), Err(TraceError::Empty)));
        let newer = br#"{"kilotok_trace":2,"model":"m","ranks":1}"#;
        assert!(matches!(read(&newer[..]), Err(TraceError::Version(2))));
        let bad = b"{\"kilotok_trace\":1,\"model\":\"m\",\"ranks\":1}\n\n{\"plan\":3}\n";
        let error = read(&bad[..]).unwrap_err().to_string();
        assert!(error.starts_with("line 3: "), "{error}");
    }
}
