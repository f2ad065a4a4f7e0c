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

/// Where the wait of a record stands in [`WAITS`].
fn place(fault: &Fault) -> usize {
    fault.code.saturating_sub(1) as usize
}

/// The launch in which a wait ran out.
fn launch(fault: &Fault) -> String {
    match LAUNCHES.get(fault.launch as usize) {
        Some(launch) => (*launch).to_owned(),
        None => format!("launch {}", fault.launch),
    }
}

/// The error that the record of a wait which ran out tells of.
fn timeout(fault: &Fault) -> EngineError {
    let Fault { rank, cta, phase, .. } = *fault;
    let launch = launch(fault);
    EngineError::Timeout { rank: rank as usize, cta, launch, phase, waited_for: waited_for(fault) }
}

/// The wait, with the numbers that mean something there.
fn waited_for(fault: &Fault) -> String {
    let Fault { code, wanted, seen, .. } = *fault;
    let Some(waits) = WAITS.get(place(fault)) else {
        return format!("number {code} (wanted {wanted}, saw {seen})");
    };
    match place(fault) {
        GRID | OPERAND => format!("{waits} ({wanted} arrivals wanted, {seen} came)"),
        PEER => format!("{waits}: nothing came from {seen} (exchange {wanted})"),
        _ => (*waits).to_owned(),
    }
}

/// A rank that did not do its part of a step.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) rank: usize,
    /// What the driver says of it, or that it has not come to an end.
    pub(crate) reason: String,
    pub(crate) runs: bool,
    /// The wait that ran out on it, if it says so.
    pub(crate) record: Option<Fault>,
}

/// Of the ranks that failed at once, what began it. It is one that broke without a wait; of
/// several such, since the driver tells of one GPU's end on all that reach it, one for which
/// another waited in vain. Else it is a wait of a rank's own; whoever waited for others, and most
/// for other ranks, is not to blame.
pub(crate) fn cause(failed: &[Failed]) -> Option<EngineError> {
    let silent: Vec<usize> = silent(failed).collect();
    let key = |failed_one: &Failed| match failed_one.record.as_ref().map(place) {
        None if silent.len() == 1 || waiter(failed, failed_one.rank).is_some() => 0,
        Some(PEER) => 3,
        Some(GRID | OPERAND | VALUE) => 2,
        Some(_) => 1,
        None => 4,
    };
    let first = failed.iter().min_by_key(|failed_one| key(failed_one))?;
    if let Some(record) = &first.record {
        return Some(timeout(record));
    }
    let Failed { rank, reason, .. } = first;
    let more = if let Some(record) = waiter(failed, *rank) {
        let launch = launch(&record);
        format!("; rank {} waited for it in phase {} of {launch}", record.rank, record.phase)
    } else if silent.len() > 1 {
        let others: Vec<_> = silent.iter().filter(|other| *other != rank).collect();
        format!("; so did others, by rank {others:?}, and none says which was first")
    } else {
        String::new()
    };
    Some(EngineError::Device { rank: *rank, reason: format!("{reason}{more}") })
}

/// What one says that waited for this rank in vain.
fn waiter(failed: &[Failed], rank: usize) -> Option<Fault> {
    let mut records = failed.iter().filter_map(|failed| failed.record);
    records.find(|fault| place(fault) == PEER && fault.seen as usize == rank)
}

/// Ranks of which only the driver says that they failed.
pub(crate) fn silent(failed: &[Failed]) -> impl Iterator<Item = usize> {
    failed.iter().filter(|failed| failed.record.is_none()).map(|failed| failed.rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: u32, rank: u32) -> Fault {
        Fault { code, rank, cta: 17, launch: 2, phase: 41, wanted: 15, seen: 7 }
    }

    #[test]
    fn a_wait_is_named_with_its_place() {
        let text = |code| timeout(&fault(code, 3)).to_string();
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
    }

    fn failed(record: Fault) -> Failed {
        let rank = record.rank as usize;
        Failed { rank, reason: "lost".into(), runs: false, record: Some(record) }
    }

    fn silent(rank: usize) -> Failed {
        Failed { rank, reason: "lost".into(), runs: false, record: None }
    }

    /// Which of them began it.
    fn who(failed: &[Failed]) -> usize {
        match cause(failed) {
            Some(EngineError::Device { rank, .. } | EngineError::Timeout { rank, .. }) => rank,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_waited_for_another_rank_is_not_the_cause() {
        let waits = |code, rank| failed(fault(code, rank));
        let (grid, pages, peer, value) = (waits(1, 0), waits(2, 1), waits(4, 2), waits(8, 3));
        let who_of = |failed: &[&Failed]| who(&failed.iter().copied().cloned().collect::<Vec<_>>());
        assert_eq!(who_of(&[&peer, &grid]), 0);
        assert_eq!(who_of(&[&peer, &value, &pages]), 1);
        assert_eq!(who_of(&[&peer, &value]), 3);
        assert_eq!(who_of(&[&grid, &silent(5), &pages]), 5);
        assert_eq!(who_of(&[&waits(4, 0), &peer]), 0);
        assert!(cause(&[]).is_none());
    }

    #[test]
    fn of_several_that_say_nothing_it_is_the_one_for_which_others_waited() {
        // Records here are of waits for rank 7.
        let peer = failed(fault(4, 2));
        let all = [silent(0), silent(1), peer.clone(), silent(7)];
        let error = cause(&all).unwrap().to_string();
        let place = "rank 2 waited for it in phase 41 of the choice of tokens";
        assert_eq!(error, format!("rank 7: lost; {place}"));
        // Nobody waited for those: who says why is nearer to the cause.
        assert_eq!(who(&[silent(0), silent(1), peer.clone()]), 2);
        assert_eq!(who(&[silent(0), silent(1), peer, failed(fault(1, 3))]), 3);
        let error = cause(&[silent(2), silent(4), silent(5)]).unwrap().to_string();
        assert!(error.starts_with("rank 2: lost; so did others, by rank [4, 5],"), "{error}");
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
