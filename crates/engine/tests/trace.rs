//! Traces that are written, read and replayed.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use kilotok_engine::trace::{
    Header, Recorded, ReplayError, Trace, TraceError, read, replay, write,
};
use kilotok_engine::{Engine, EngineError, StepOutput, StepPlan};
use kilotok_testkit::host::{Drafts, Host, How, Request};
use kilotok_testkit::{DraftAccuracy, ScriptedEngine};

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
