//! How far rows advance, and how much a plan may request.

use kilotok_abi::{PageId, SlotId};
use kilotok_engine::{Caps, Engine, PageRun, Row, RowTokens, StepPlan, Verification};

use crate::host::{Drafts, Host, How, Request};

use super::cases::{REPLY, plain, prompt_length, text};
use super::{Make, Verdict};

/// With drafts of known accuracy, the number of rows is known. In every run, the host also checks
/// that no row produces too many or too few tokens.
pub(super) fn exact(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let length = prompt_length(engine.caps());
    let case = plain(&mut *engine, 20, length)?;
    let most = engine.caps().draft_max;
    for (count, right) in [(0, 0), (1, 0), (1, 1), (3, 2), (most, 0), (most, most)] {
        let right = right.min(most);
        let how = How { drafts: case.guess(count, right), ..How::default() };
        let reply = Host::new(&mut *engine, 1).run(&case.request, &how);
        let reply = reply.map_err(|error| error.to_string())?;
        let expected = REPLY.div_ceil(right + 1);
        if reply.sampled_rows != expected {
            let found = reply.sampled_rows;
            return Err(format!(
                "{REPLY} tokens took {found} rows, not {expected}; {right} of {count} drafts right"
            ));
        }
    }
    Ok(())
}

/// If acceptance is assumed, wrong drafts count as right ones, or right ones as wrong.
pub(super) fn assumed(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let length = prompt_length(engine.caps());
    let mut case = plain(&mut *engine, 20, length)?;
    let most = engine.caps().draft_max;
    for (chance, count, right, rows) in [
        (1.0, 3, 0, REPLY.div_ceil(4)),
        (1.0, most, 1, REPLY.div_ceil(most + 1)),
        (0.0, 3.min(most), 3.min(most), REPLY),
    ] {
        let how = How { drafts: case.guess(count, right), ..How::default() };
        case.request.setup.verification = Verification::Assumed { chance };
        let reply = Host::new(&mut *engine, 1).run(&case.request, &how);
        let found = reply.map_err(|error| error.to_string())?.sampled_rows;
        if found != rows {
            return Err(format!("{REPLY} tokens took {found} rows, not {rows}; chance {chance}"));
        }
    }
    Ok(())
}

/// Each of these plans is at a limit in one respect.
pub(super) fn at_limits(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let caps = engine.caps().clone();
    for (name, plan) in plans_at_limits(&caps) {
        let mut host = Host::new(&mut *engine, 0);
        host.submit(&plan).map_err(|error| format!("{name}: {error}"))?;
        plain(&mut *engine, 21, 9).map_err(|error| format!("after {name}: {error}"))?;
    }
    Ok(())
}

fn plans_at_limits(caps: &Caps) -> Vec<(&'static str, StepPlan)> {
    let last = caps.slot_count - 1;
    let one = |row| StepPlan { rows: vec![row] };
    let row_count = caps.row_max.min(caps.slot_count).min(caps.token_max);
    let rows = (0..row_count).map(|slot| chunk(caps, slot, 0, 1));
    let longest = caps.token_max.min(caps.position_max);
    let mut plans = vec![
        ("as many rows as can be", StepPlan { rows: rows.collect() }),
        ("as many tokens as can be", one(chunk(caps, 0, 0, longest))),
        ("as many wanted tokens as can be", one(scored(caps, caps.wanted_max.min(longest)))),
        ("the last position", one(chunk(caps, last, caps.position_max - 1, 1))),
    ];
    let mut drafted = chunk(caps, 0, 0, 1 + caps.draft_max);
    drafted.sample = true;
    drafted.logprobs = Some(caps.logprobs_max);
    if let RowTokens::Given { draft_count, .. } = &mut drafted.tokens {
        *draft_count = caps.draft_max;
    }
    if caps.drafter {
        drafted.draft_next = caps.draft_max;
    }
    plans.push(("as many drafts and log-probabilities as can be", one(drafted)));
    plans
}

/// A row of `count` tokens, all of which are scored.
fn scored(caps: &Caps, count: u32) -> Row {
    let row = chunk(caps, 0, 0, count);
    Row { scored: text(caps, 1, count as usize), ..row }
}

/// A row that enters its slot, with pages numbered downwards from the last one. If there are too
/// few pages, they are used several times.
pub(super) fn chunk(caps: &Caps, slot: u32, start: u32, count: u32) -> Row {
    let share = |page_count: u32| (page_count / caps.slot_count).max(1);
    let runs = caps.groups.iter().map(|group| {
        let first = group.first_needed(start) / group.page_tokens;
        let end = (start + count).div_ceil(group.page_tokens);
        let own = share(group.page_count);
        let page = |index: u32| {
            let place = if count > 1 { index } else { index % own + slot * own };
            PageId(group.page_count - 1 - place % group.page_count)
        };
        PageRun { first, pages: (first..end).map(page).collect() }
    });
    let mut request = Request::greedy(Vec::new(), 1);
    request.setup.prompt_count = start + count;
    let tokens = text(caps, u64::from(slot), count as usize);
    Row {
        setup: Some(Box::new(request.setup)),
        sample: false,
        pages: runs.collect(),
        ..Row::new(SlotId(slot), start, RowTokens::Given { tokens, draft_count: 0 })
    }
}

/// Held drafts, at most as many as the engine can make; none without a drafter.
pub(super) fn held(engine: &dyn Engine, made: u32, used: u32) -> Drafts {
    let most = if engine.caps().drafter { engine.caps().draft_max } else { 0 };
    Drafts::Held { made: made.min(most), used: used.min(most) }
}
