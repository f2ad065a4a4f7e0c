//! Submitting steps, waiting for them, and dropping engines.

use kilotok_engine::difference;
use kilotok_engine::trace::{Header, Recorded, Trace, TraceStep, read, replay, write};
use kilotok_engine::{Engine, EngineError, Row, RowTokens, StepId, StepOutput, StepPlan};

use crate::host::{Host, How};

use super::cases::{all, plain, prompt_length, run_same};
use super::counts::{chunk, held};
use super::{Make, Verdict};

/// Plans for a prompt and then for single tokens, none of which depends on an output.
fn blind_plans(engine: &dyn Engine, steps: u32) -> Vec<StepPlan> {
    let caps = engine.caps();
    let length = (prompt_length(caps) as u32).min(caps.token_max);
    let row = |step: u32| {
        let whole = chunk(caps, 0, 0, length + step);
        if step == 0 {
            return Row { sample: true, logprobs: Some(0), ..whole };
        }
        let tokens = RowTokens::Held { draft_count: 0 };
        let start = length + step - 1;
        Row { setup: None, start, tokens, sample: true, logprobs: Some(0), ..whole }
    };
    (0..steps).map(|step| StepPlan { rows: vec![row(step)] }).collect()
}

/// The outputs of the plans, run one at a time.
fn outputs(engine: &mut dyn Engine, plans: &[StepPlan]) -> Result<Vec<StepOutput>, String> {
    let steps = plans.iter().cloned().map(|plan| TraceStep { plan, output: None });
    let trace = Trace { header: Header::new("any", 1), steps: steps.collect() };
    replay(engine, &trace).map_err(|error| error.to_string())
}

/// An output with old contents, which must be overwritten.
fn used() -> StepOutput {
    StepOutput { rows: vec![kilotok_engine::RowOutput::default(); 3] }
}

pub(super) fn waits(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let most = engine.caps().steps_in_flight_max as usize;
    let plans = blind_plans(&*engine, most as u32 + 2);
    let expected = outputs(&mut *make(), &plans)?;
    let wrong = |found: Result<(), EngineError>, what: &str| match found {
        Err(EngineError::WrongStep { .. }) => Ok(()),
        other => Err(format!("waiting for {what} gave {other:?}")),
    };
    let mut out = used();
    wrong(engine.wait(StepId(0), &mut out), "a step when none is in flight")?;
    let mut ids = Vec::new();
    for plan in &plans[..most] {
        ids.push(engine.submit(plan).map_err(|error| error.to_string())?);
    }
    match engine.submit(&plans[most]) {
        Err(EngineError::Busy { in_flight }) if in_flight == most => {}
        other => return Err(format!("one step too many gave {other:?}")),
    }
    if let Some(newest) = ids[1..].last() {
        wrong(engine.wait(*newest, &mut out), "the newest of several")?;
    }
    wrong(engine.wait(StepId(u64::MAX), &mut out), "a step that was never submitted")?;
    for (id, expected) in ids.iter().zip(&expected) {
        out = used();
        engine.wait(*id, &mut out).map_err(|error| error.to_string())?;
        if let Some(difference) = difference(expected, &out) {
            return Err(format!("{id:?}: {difference}"));
        }
        wrong(engine.wait(*id, &mut out), "a step again")?;
    }
    let rest = outputs(&mut *engine, &plans[most..])?;
    match difference(&expected[most..].to_vec(), &rest) {
        Some(difference) => Err(format!("after the errors: {difference}")),
        None => Ok(()),
    }
}

pub(super) fn ahead(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let most = engine.caps().steps_in_flight_max as usize;
    let plans = blind_plans(&*engine, 12);
    let expected = outputs(&mut *make(), &plans)?;
    let mut ids = std::collections::VecDeque::new();
    let mut found = Vec::new();
    for plan in &plans {
        if ids.len() == most {
            found.push(wait_oldest(&mut *engine, &mut ids)?);
        }
        ids.push_back(engine.submit(plan).map_err(|error| error.to_string())?);
    }
    while !ids.is_empty() {
        found.push(wait_oldest(&mut *engine, &mut ids)?);
    }
    match difference(&expected, &found) {
        Some(difference) => Err(difference.to_string()),
        None => Ok(()),
    }
}

fn wait_oldest(
    engine: &mut dyn Engine,
    ids: &mut std::collections::VecDeque<StepId>,
) -> Result<StepOutput, String> {
    let mut out = used();
    let oldest = ids.pop_front().ok_or("nothing is in flight")?;
    engine.wait(oldest, &mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

pub(super) fn drops(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let plans = blind_plans(&*engine, 2);
    let expected = outputs(&mut *make(), &plans)?;
    for plan in plans.iter().take(engine.caps().steps_in_flight_max as usize) {
        engine.submit(plan).map_err(|error| error.to_string())?;
    }
    drop(engine);
    match difference(&expected, &outputs(&mut *make(), &plans)?) {
        Some(difference) => Err(format!("the next engine: {difference}")),
        None => Ok(()),
    }
}

pub(super) fn empty(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let mut plans = blind_plans(&*engine, 3);
    let expected = outputs(&mut *engine, &plans)?;
    for place in [3, 1, 0] {
        plans.insert(place, StepPlan::default());
    }
    let mut found = outputs(&mut *engine, &plans)?;
    for place in [0, 2, 5] {
        if !found[place].rows.is_empty() {
            return Err(format!("rows came of a plan without rows: {:?}", found[place]));
        }
    }
    found.retain(|output| !output.rows.is_empty());
    match difference(&expected, &found) {
        Some(difference) => Err(format!("around empty plans: {difference}")),
        None => Ok(()),
    }
}

/// Records a run with all features, writes the trace as text, reads it, and replays it.
pub(super) fn replays(make: Make<'_>) -> Verdict {
    let mut engine = Recorded::new(make());
    let cases = all(&mut engine)?;
    let how = |index: usize| How {
        joins: index as u32 / 3,
        chunk: 10 + index as u32,
        drafts: held(&engine, 3, 2),
        ..How::default()
    };
    let together: Vec<_> = (cases.iter().enumerate()).map(|(i, case)| (case, how(i))).collect();
    let few = &together[..together.len().min(engine.caps().slot_count as usize)];
    run_same(&mut Host::new(&mut engine, 9), "while recorded", few)?;
    plain(&mut engine, 22, 10)?;
    let mut text = Vec::new();
    let trace = engine.into_trace(Header::new("any", 1));
    write(&trace, &mut text).map_err(|error| error.to_string())?;
    let trace = read(&text[..]).map_err(|error| error.to_string())?;
    replay(&mut *make(), &trace).map(drop).map_err(|error| error.to_string())
}
