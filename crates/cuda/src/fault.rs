//! What is said of a GPU that gave up.

use kilotok_abi::Fault;
use kilotok_engine::EngineError;

/// What a wait was for: `Waits` of `kernels/include/kilotok/comm/wait.cuh`, from 1 on.
const WAITS: [&str; 7] = [
    "all CTAs at a grid barrier",
    "a page of weights",
    "a page that is free for weights",
    "another rank",
    "the router's choice of experts",
    "sums of a CTA's own warps",
    "an operand of the experts",
];

/// Places in it.
const GRID: usize = 0;
const PEER: usize = 3;

/// The error that a record tells of, if a wait ran out.
pub(crate) fn timeout_of(fault: &Fault) -> Option<EngineError> {
    if fault.code == 0 {
        return None;
    }
    let waits = (fault.code as usize).checked_sub(1).and_then(|place| WAITS.get(place));
    let waited_for = match waits {
        Some(waits) => (*waits).to_owned(),
        None => format!("number {}", fault.code),
    };
    Some(EngineError::Timeout {
        rank: fault.rank as usize,
        cta: fault.cta,
        phase: fault.phase,
        waited_for,
        wanted: fault.wanted,
        seen: fault.seen,
    })
}

/// Of what ranks say after one of them broke, in their order, what began it: a GPU that failed
/// without a wait, else a wait of its own; whoever waited for others, and most for other ranks, is
/// not to blame.
pub(crate) fn cause(errors: impl IntoIterator<Item = EngineError>) -> Option<EngineError> {
    errors.into_iter().min_by_key(|error| match error {
        EngineError::Timeout { waited_for, .. } if waited_for == WAITS[PEER] => 3,
        EngineError::Timeout { waited_for, .. } if waited_for == WAITS[GRID] => 2,
        EngineError::Timeout { .. } => 1,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: u32, rank: u32) -> Fault {
        Fault { code, rank, cta: 17, phase: 41, wanted: 5, seen: 4 }
    }

    #[test]
    fn a_wait_is_named_with_its_place() {
        let text = timeout_of(&fault(2, 3)).unwrap().to_string();
        for part in ["rank 3", "CTA 17", "phase 41", "a page of weights", "5", "4"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(timeout_of(&fault(0, 3)), None);
        assert!(timeout_of(&fault(99, 0)).unwrap().to_string().contains("phase 41"));
    }

    #[test]
    fn who_waited_for_another_rank_is_not_the_cause() {
        let timeout = |code, rank| timeout_of(&fault(code, rank)).unwrap();
        let (grid, pages, peer) = (timeout(1, 0), timeout(2, 1), timeout(4, 2));
        let broken = EngineError::Device { rank: 3, reason: "lost".into() };
        let cause_of = |errors: &[&EngineError]| cause(errors.iter().copied().cloned());
        assert_eq!(cause_of(&[&peer, &grid]), Some(grid.clone()));
        assert_eq!(cause_of(&[&peer, &grid, &pages]), Some(pages.clone()));
        assert_eq!(cause_of(&[&grid, &broken, &pages]), Some(broken));
        assert_eq!(cause_of(&[&timeout(4, 0), &peer]), Some(timeout(4, 0)));
        assert_eq!(cause_of(&[]), None);
    }

    #[test]
    fn the_kernels_number_waits_the_same_way() {
        let header = crate::sources::file("include/kilotok/comm/wait.cuh").unwrap();
        let start = header.find("enum class Waits").unwrap();
        let list = &header[start..start + header[start..].find('}').unwrap()];
        let names: Vec<_> = list.split(['{', ',']).filter(|part| part.contains('=')).collect();
        assert_eq!(names.len(), WAITS.len(), "a text for each of {list}");
        for (number, name) in (1..).zip(names) {
            assert!(name.trim().ends_with(&format!("= {number}")), "{name} is number {number}");
        }
    }
}
