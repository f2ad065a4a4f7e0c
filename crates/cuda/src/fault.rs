//! Error messages for a wait that timed out on a GPU, and the choice of the rank that caused a
//! failure.

use kilotok_abi::{Fault, Launch, Waits};
use kilotok_engine::EngineError;

/// What a wait was for.
fn waits_text(waits: Waits) -> &'static str {
    match waits {
        Waits::Grid => "all CTAs at a grid barrier",
        Waits::Page => "a page of the ring",
        Waits::FreePage => "a page that is free for weights",
        Waits::Peer => "another rank",
        Waits::Routes => "the router's choice of experts",
        Waits::Sums => "sums of a CTA's own warps",
        Waits::Operand => "an operand of the experts",
        Waits::Value => "a value of another CTA",
    }
}

/// The launch in which a wait timed out.
fn launch(fault: &Fault) -> String {
    let text = match Launch::of(fault.launch) {
        Some(Launch::Other) => "a kernel",
        Some(Launch::Target) => "the target's pass",
        Some(Launch::Verify) => "the choice of tokens",
        Some(Launch::DraftContext) => "the drafter's context",
        Some(Launch::DraftRows) => "a drafter's pass",
        Some(Launch::Wide) => "the wide pass (its phases are layers)",
        None => return format!("launch {}", fault.launch),
    };
    text.to_owned()
}

/// The error for a fault record.
fn timeout(fault: &Fault) -> EngineError {
    let Fault { rank, cta, phase, .. } = *fault;
    let launch = launch(fault);
    EngineError::Timeout { rank: rank as usize, cta, launch, phase, waited_for: waited_for(fault) }
}

/// The wait, with the numbers of the record that have a meaning for it.
fn waited_for(fault: &Fault) -> String {
    let Fault { code, wanted, seen, .. } = *fault;
    let Some(waits) = Waits::of(code) else {
        return format!("number {code} (wanted {wanted}, saw {seen})");
    };
    let text = waits_text(waits);
    match waits {
        Waits::Grid | Waits::Operand => format!("{text} ({wanted} arrivals wanted, {seen} came)"),
        Waits::Peer => format!("{text}: nothing came from {seen} (collective {wanted})"),
        _ => text.to_owned(),
    }
}

/// A rank that has failed.
#[derive(Clone, Debug)]
pub(crate) struct RankFailure {
    pub(crate) rank: usize,
    /// The driver's error, or that the rank has not finished.
    pub(crate) reason: String,
    pub(crate) runs: bool,
    /// How many chains it is behind the last one.
    pub(crate) behind: u32,
    /// The record of the wait that timed out on it, if there is one.
    pub(crate) record: Option<Fault>,
}

/// Of the ranks that failed at the same time, those that may be the cause. The driver reports one
/// GPU's failure also on others with access to it: a rank that has ended more chains than another
/// is not the cause.
pub(crate) fn suspects(mut failed: Vec<RankFailure>) -> Vec<RankFailure> {
    let behind = failed.iter().map(|failed| failed.behind).max();
    failed.retain(|failed| Some(failed.behind) == behind);
    failed
}

/// The number of suspects that may still write a record: those that run, or whose failure only the
/// driver has reported.
pub(crate) fn silent_count(suspects: &[RankFailure]) -> usize {
    suspects.iter().filter(|failed| failed.record.is_none()).count()
}

/// The cause among the suspects. First comes a rank without a record for which another rank waited;
/// then a wait within a rank, because its waits for other ranks would have timed out first; then a
/// failure that only the driver reported. A rank that waited for CTAs, and above all for other
/// ranks, is not the cause.
pub(crate) fn cause(suspects: &[RankFailure]) -> Option<EngineError> {
    let key = |failed: &RankFailure| match failed.record.map(|fault| Waits::of(fault.code)) {
        None if waiter(suspects, failed.rank).is_some() => 0,
        None if failed.runs => 5,
        None => 3,
        Some(Some(Waits::Peer)) => 4,
        Some(Some(Waits::Grid | Waits::Operand | Waits::Value)) => 2,
        Some(_) => 1,
    };
    let first = suspects.iter().min_by_key(|failed| key(failed))?;
    if let Some(record) = &first.record {
        return Some(timeout(record));
    }
    let RankFailure { rank, reason, .. } = first;
    let silent = suspects.iter().filter(|failed| failed.record.is_none());
    let others: Vec<_> = silent.map(|failed| failed.rank).filter(|other| other != rank).collect();
    let more = if let Some(record) = waiter(suspects, *rank) {
        let launch = launch(&record);
        format!("; rank {} waited for it in phase {} of {launch}", record.rank, record.phase)
    } else if others.is_empty() {
        String::new()
    } else {
        format!("; so did others, by rank {others:?}, and none says which was first")
    };
    Some(EngineError::Device { rank: *rank, reason: format!("{reason}{more}") })
}

/// The record of a rank that waited for this rank.
fn waiter(failed: &[RankFailure], rank: usize) -> Option<Fault> {
    let mut records = failed.iter().filter_map(|failed| failed.record);
    let for_peer = |fault: &Fault| Waits::of(fault.code) == Some(Waits::Peer);
    records.find(|fault| for_peer(fault) && fault.seen as usize == rank)
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
            (2, "a page of the ring"),
            (4, "another rank: nothing came from 7 (collective 15)"),
            (8, "a value of another CTA"),
            (99, "number 99 (wanted 15, saw 7)"),
        ] {
            assert_eq!(text(code), format!("{place}{waited_for}"));
        }
    }

    fn failed(record: Fault) -> RankFailure {
        RankFailure { record: Some(record), ..silent(record.rank as usize) }
    }

    fn silent(rank: usize) -> RankFailure {
        RankFailure { rank, reason: "lost".into(), runs: false, behind: 1, record: None }
    }

    /// The rank that caused the failure.
    fn cause_rank(failed: &[&RankFailure]) -> usize {
        let failed: Vec<_> = failed.iter().copied().cloned().collect();
        match cause(&suspects(failed)) {
            Some(EngineError::Device { rank, .. } | EngineError::Timeout { rank, .. }) => rank,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_rank_that_waited_for_another_is_not_the_cause() {
        let waits = |code, rank| failed(fault(code, rank));
        let (grid, pages, peer, value) = (waits(1, 0), waits(2, 1), waits(4, 2), waits(8, 3));
        assert_eq!(cause_rank(&[&peer, &grid]), 0);
        assert_eq!(cause_rank(&[&peer, &value, &pages]), 1);
        assert_eq!(cause_rank(&[&peer, &value]), 3);
        assert_eq!(cause_rank(&[&waits(4, 0), &peer]), 0);
        assert!(cause(&[]).is_none());
    }

    #[test]
    fn a_rank_without_a_record_is_the_cause_if_others_waited_for_it_or_for_others() {
        // These records are of waits for rank 7.
        let (peer, grid) = (failed(fault(4, 2)), failed(fault(1, 3)));
        assert_eq!(cause_rank(&[&silent(0), &silent(1), &peer, &grid, &silent(7)]), 7);
        assert_eq!(cause_rank(&[&silent(0), &peer, &grid]), 3);
        assert_eq!(cause_rank(&[&peer, &silent(5)]), 5);
        let running = RankFailure { runs: true, ..silent(0) };
        assert_eq!(cause_rank(&[&running, &silent(4)]), 4);
        assert_eq!(cause_rank(&[&RankFailure { rank: 7, ..running }, &silent(4), &peer]), 7);
        let error = |failed: &[RankFailure]| cause(failed).unwrap().to_string();
        let place = "rank 2 waited for it in phase 41 of the choice of tokens";
        assert_eq!(error(&[silent(0), peer, silent(7)]), format!("rank 7: lost; {place}"));
        let none_says = "so did others, by rank [4, 5], and none says which was first";
        let all = [silent(2), silent(4), silent(5)];
        assert_eq!(error(&all), format!("rank 2: lost; {none_says}"));
    }

    #[test]
    fn a_rank_that_has_ended_more_than_another_is_not_the_cause() {
        let ended = RankFailure { behind: 0, ..silent(0) };
        assert_eq!(cause_rank(&[&ended, &failed(fault(1, 1))]), 1);
        assert_eq!(cause_rank(&[&ended, &silent(1)]), 1);
        let all = [ended, silent(1), failed(fault(1, 2))];
        assert_eq!(
            silent_count(&suspects(all.to_vec())),
            1,
            "rank 0 is no suspect, so its record is not waited for"
        );
    }
}
