//! Plans that must be refused, without any effect.

use kilotok_engine::{Caps, Engine, EngineError, Row, RowTokens, StepOutput, StepPlan};

use crate::host::{Host, How};

use super::bad_plans::SPOILS;
use super::cases::{Case, all, prompt_length};
use super::counts::{chunk, held};
use super::{Make, Verdict};

/// Runs requests together. Before each step, its plan is submitted with every illegal change. The
/// replies must be the same as without that.
pub(super) fn all_spoiled(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let caps = engine.caps().clone();
    let mut cases = all(&mut *engine)?;
    cases.retain(|case| ["seeded", "seeded mask", "repetition", "everything"].contains(&case.name));
    cases[0].request.score = true;
    cases[0] = Case::new(&mut *engine, "scored", cases[0].request.clone())?;
    let hows: Vec<_> =
        cases.iter().enumerate().map(|(index, case)| how(index, case, &caps)).collect();
    let jobs: Vec<_> = cases.iter().zip(&hows).map(|(case, how)| (&case.request, how)).collect();
    let mut accepted_once = vec![false; SPOILS.len()];
    let mut probe = |engine: &mut dyn Engine, plan: &StepPlan| {
        for (tried, (name, spoil)) in accepted_once.iter_mut().zip(SPOILS) {
            let mut bad = plan.clone();
            if spoil(&mut bad, &caps) {
                *tried = true;
                refuse(engine, name, &bad)?;
            }
        }
        Ok(())
    };
    let replies = Host::new(&mut *engine, 3).run_probed(&jobs, &mut probe);
    let replies = replies.map_err(|error| error.to_string())?;
    for (case, reply) in cases.iter().zip(&replies) {
        case.same("after refused plans", reply)?;
    }
    let untried = SPOILS.iter().zip(&accepted_once).find(|(_, tried)| !**tried);
    match untried {
        Some(((name, _), _)) if !(caps.drafter && name.contains("without a drafter")) => {
            Err(format!("the kit had no occasion to try {name}"))
        }
        _ => Ok(()),
    }
}

/// Between them, the rows of these requests have everything to which an illegal change applies.
fn how(index: usize, case: &Case, caps: &Caps) -> How {
    let chunk = prompt_length(caps) as u32 / 3;
    match index {
        0 => How { chunk, ..How::default() },
        1 => How { drafts: case.guess(3, 2), ..How::default() },
        2 => How { joins: 4, drafts: case.guess(2, 0), ..How::default() },
        _ => How { joins: 2, drafts: case.guess(1, 1), preempt: vec![4], ..How::default() },
    }
}

fn refuse(engine: &mut dyn Engine, name: &str, bad: &StepPlan) -> Verdict {
    match engine.submit(bad) {
        Err(EngineError::Plan { .. }) => Ok(()),
        Err(other) => Err(format!("refused {name} as: {other}")),
        Ok(_) => Err(format!("accepted {name}")),
    }
}

/// Plans that only the engine can refuse, because only it knows what a slot holds.
pub(super) fn held_only(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let caps = engine.caps().clone();
    let drafts = |count| match held(&*engine, count, count) {
        crate::host::Drafts::Held { made, .. } => made,
        _ => 0,
    };
    let made = drafts(2);
    let prompt = chunk(&caps, 1, 0, 5);
    let sampled = Row { sample: true, draft_next: made, ..prompt.clone() };
    let from_slot = |row: &Row, draft_count| Row {
        setup: None,
        start: row.end(),
        tokens: RowTokens::Held { draft_count },
        sample: true,
        draft_next: 0,
        ..chunk(&caps, row.slot.0, 0, row.end() + 1 + draft_count)
    };
    let given = Row { setup: None, ..chunk(&caps, 2, 0, 3) };
    refuse_row(&mut *engine, "a row in a slot that was never set up", given)?;
    let fresh = from_slot(&chunk(&caps, 3, 0, 4), 0);
    refuse_row(&mut *engine, "held tokens of a slot that was never set up", fresh)?;
    step(&mut *engine, prompt.clone())?;
    refuse_row(&mut *engine, "held tokens before one was chosen", from_slot(&prompt, 0))?;
    step(&mut *engine, sampled.clone())?;
    if made < caps.draft_max {
        refuse_row(&mut *engine, "more drafts than are held", from_slot(&sampled, made + 1))?;
    }
    // The refusals have not changed the slot: its row is still valid, and uses up the drafts.
    let good = from_slot(&sampled, 0);
    step(&mut *engine, good.clone())?;
    if caps.draft_max > 0 {
        refuse_row(&mut *engine, "drafts that were dropped", from_slot(&good, 1))?;
    }
    let again = Row { setup: sampled.setup.clone(), ..prompt.clone() };
    step(&mut *engine, again)?;
    refuse_row(&mut *engine, "held tokens of the request before", from_slot(&prompt, 0))
}

fn refuse_row(engine: &mut dyn Engine, name: &str, row: Row) -> Verdict {
    refuse(engine, name, &StepPlan { rows: vec![row] })
}

fn step(engine: &mut dyn Engine, row: Row) -> Result<StepOutput, String> {
    let plan = StepPlan { rows: vec![row] };
    Host::new(engine, 0).submit(&plan).map_err(|error| error.to_string())
}
