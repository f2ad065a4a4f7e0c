//! What is said of a GPU that gave up.

use kilotok_abi::Fault;
use kilotok_engine::EngineError;

/// What a wait was for: `Waits` of `kernels/include/kilotok/comm/wait.cuh`, from 1 on.
const WAITS: [&str; 8] = [
    "all CTAs at a grid barrier",
    "a page of weights",
    "a page that is free for weights",
    "another rank",
    "the router's choice of experts",
    "sums of a CTA's own warps",
    "an operand of the experts",
    "a value of another CTA",
];

/// Places in it.
const GRID: usize = 0;
const PEER: usize = 3;
const OPERAND: usize = 6;
const VALUE: usize = 7;

/// In which launch of a step: `Launch` there, from 0 on.
const LAUNCHES: [&str; 5] = [
    "a kernel",
    "the target's pass",
    "the choice of tokens",
    "the drafter's context",
    "a drafter's pass",
];

/// The error that a record tells of, if a wait ran out.
pub(crate) fn timeout_of(fault: &Fault) -> Option<EngineError> {
    let Fault { code, rank, cta, launch, phase, .. } = *fault;
    let launch = match LAUNCHES.get(launch as usize) {
        Some(launch) => (*launch).to_owned(),
        None => format!("launch {launch}"),
    };
    let waited_for = waited_for(code.checked_sub(1)? as usize, fault);
    Some(EngineError::Timeout { rank: rank as usize, cta, launch, phase, waited_for })
}

/// The wait at a place of [`WAITS`], with the numbers that mean something there.
fn waited_for(place: usize, fault: &Fault) -> String {
    let Fault { code, wanted, seen, .. } = *fault;
    let Some(waits) = WAITS.get(place) else {
        return format!("number {code} (wanted {wanted}, saw {seen})");
    };
    match place {
        GRID | OPERAND => format!("{waits} ({wanted} arrivals wanted, {seen} came)"),
        PEER => format!("{waits}: nothing came from {seen} (exchange {wanted})"),
        _ => (*waits).to_owned(),
    }
}

/// Of what ranks say after one of them broke, in their order, what began it: a GPU that failed
/// without a wait, else a wait of its own; whoever waited for others, and most for other ranks, is
/// not to blame.
pub(crate) fn cause(errors: impl IntoIterator<Item = EngineError>) -> Option<EngineError> {
    errors.into_iter().min_by_key(|error| match error {
        EngineError::Timeout { waited_for, .. } => {
            let is = |place: usize| waited_for.starts_with(WAITS[place]);
            if is(PEER) {
                3
            } else if [GRID, OPERAND, VALUE].into_iter().any(is) {
                2
            } else {
                1
            }
        }
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: u32, rank: u32) -> Fault {
        Fault { code, rank, cta: 17, launch: 2, phase: 41, wanted: 15, seen: 7 }
    }

    #[test]
    fn a_wait_is_named_with_its_place() {
        let text = |code| timeout_of(&fault(code, 3)).unwrap().to_string();
        let place = "rank 3, CTA 17, phase 41 of the choice of tokens: waited too long for ";
        for (code, waited_for) in [
            (1, "all CTAs at a grid barrier (15 arrivals wanted, 7 came)"),
            (2, "a page of weights"),
            (4, "another rank: nothing came from 7 (exchange 15)"),
            (8, "a value of another CTA"),
            (99, "number 99 (wanted 15, saw 7)"),
        ] {
            assert_eq!(text(code), format!("{place}{waited_for}"));
        }
        assert_eq!(timeout_of(&fault(0, 3)), None);
    }

    #[test]
    fn who_waited_for_another_rank_is_not_the_cause() {
        let timeout = |code, rank| timeout_of(&fault(code, rank)).unwrap();
        let (grid, pages, peer) = (timeout(1, 0), timeout(2, 1), timeout(4, 2));
        let value = timeout(8, 3);
        let broken = EngineError::Device { rank: 3, reason: "lost".into() };
        let cause_of = |errors: &[&EngineError]| cause(errors.iter().copied().cloned());
        assert_eq!(cause_of(&[&peer, &grid]), Some(grid.clone()));
        assert_eq!(cause_of(&[&peer, &value, &pages]), Some(pages.clone()));
        assert_eq!(cause_of(&[&peer, &value]), Some(value));
        assert_eq!(cause_of(&[&grid, &broken, &pages]), Some(broken));
        assert_eq!(cause_of(&[&timeout(4, 0), &peer]), Some(timeout(4, 0)));
        assert_eq!(cause_of(&[]), None);
    }

    /// Whether an enum of the kernels has a number for each text, from the first on.
    fn check_numbers(name: &str, first: usize, texts: &[&str]) {
        let header = crate::sources::file("include/kilotok/comm/wait.cuh").unwrap();
        let start = header.find(&format!("enum class {name}")).unwrap();
        let list = &header[start..start + header[start..].find('}').unwrap()];
        let names: Vec<_> = list.split(['{', ',']).filter(|part| part.contains('=')).collect();
        assert_eq!(names.len(), texts.len(), "a text for each of {list}");
        for (number, name) in (first..).zip(names) {
            assert!(name.trim().ends_with(&format!("= {number}")), "{name} is number {number}");
        }
    }

    #[test]
    fn the_kernels_number_waits_and_launches_the_same_way() {
        check_numbers("Waits", 1, &WAITS);
        check_numbers("Launch", 0, &LAUNCHES);
    }
}
