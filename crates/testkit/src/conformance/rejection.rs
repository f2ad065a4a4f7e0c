//! Rejection sampling: tokens depend on the number of drafts that each row verifies, but on nothing
//! else about how a request is run. `crates/batch/tests/law` checks that they have the
//! target's distribution.

use kilotok_engine::Verification;

use crate::host::{Host, How};

use super::cases::{Case, few, run_same};
use super::counts::held;
use super::{Make, Verdict};

const REJECTION: Verification = Verification::Rejection { draft_temperature: 1.0 };

pub(super) fn repeats(make: Make<'_>) -> Verdict {
    let mut engine = make();
    let how = How { drafts: held(&*engine, 3, 3), ..How::default() };
    let mut cases = few(&mut *engine)?;
    for case in &mut cases {
        case.request.setup.verification = REJECTION;
        let reply = Host::new(&mut *engine, 0).run(&case.request, &how);
        let reply = reply.map_err(|error| format!("{}, alone: {error}", case.name))?;
        if case.request.setup.sampling.temperature == 0.0 {
            case.same("greedy", &reply)?;
        }
        case.reply = reply;
    }
    for seed in 50..53 {
        let ways = cases.iter().enumerate().map(|(index, case)| {
            let (joins, chunk) = ((index as u32 + seed) % 3, 5 + 7 * (seed - 50));
            (case, How { joins, chunk, ..how.clone() })
        });
        let ways: Vec<(&Case, How)> = ways.collect();
        run_same(&mut Host::new(&mut *engine, u64::from(seed)), "among others", &ways)?;
    }
    Ok(())
}
