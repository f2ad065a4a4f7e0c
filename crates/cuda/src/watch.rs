//! Judges whether ranks react to the doorbell, by the progress they report: the last chain that
//! each has begun, and the last one that it has ended.

use std::time::{Duration, Instant};

use crate::driver::doorbell::reached;

/// How long an idle rank may take to begin: less than the time limit of a kernel's waits, so that a
/// rank which waits for it is not taken for the cause.
pub(crate) const ACKNOWLEDGE_MAX: Duration = Duration::from_millis(800);

/// The progress of all ranks since the doorbell was rung for a chain.
pub(crate) struct Watch {
    pub(crate) start: Instant,
    number: u32,
    ranks: Vec<Seen>,
}

/// A rank's progress, and since when it has been the same.
struct Seen {
    progress: (u32, u32),
    since: Instant,
}

/// The state of a rank with respect to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RankState {
    Ended,
    /// It computes this chain or one before, or has time left to begin.
    Busy,
    /// It was idle for too long and did not begin.
    Unresponsive,
}

impl Watch {
    /// Begins now, with the ranks' progress.
    pub(crate) fn new(
        number: u32,
        progress: impl Iterator<Item = (u32, u32)>,
        now: Instant,
    ) -> Self {
        Self {
            start: now,
            number,
            ranks: progress.map(|progress| Seen { progress, since: now }).collect(),
        }
    }

    pub(crate) fn judge(&mut self, rank: usize, progress: (u32, u32), now: Instant) -> RankState {
        let seen = &mut self.ranks[rank];
        if progress != seen.progress {
            *seen = Seen { progress, since: now };
        }
        let (begun, ended) = progress;
        if reached(ended, self.number) {
            return RankState::Ended;
        }
        let idle = begun == ended;
        if idle && now.duration_since(seen.since) > ACKNOWLEDGE_MAX {
            RankState::Unresponsive
        } else {
            RankState::Busy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;

    #[test]
    fn a_rank_that_does_not_begin_is_unresponsive_after_a_while() {
        let start = now();
        let mut watch = Watch::new(7, [(6, 6), (6, 6)].into_iter(), start);
        let after = |times: u32| start + ACKNOWLEDGE_MAX * times;
        assert_eq!(watch.judge(0, (6, 6), after(1)), RankState::Busy);
        assert_eq!(watch.judge(0, (6, 6), after(2)), RankState::Unresponsive);
        // A rank that has begun is not, however long it takes.
        assert_eq!(watch.judge(1, (7, 6), after(2)), RankState::Busy);
        assert_eq!(watch.judge(1, (7, 6), after(9)), RankState::Busy);
        assert_eq!(watch.judge(1, (7, 7), after(9)), RankState::Ended);
        // The next chain may be complete already.
        assert_eq!(watch.judge(1, (8, 8), after(9)), RankState::Ended);
    }

    #[test]
    fn a_chain_before_counts_as_hearing() {
        let start = now();
        let after = |times: u32| start + ACKNOWLEDGE_MAX * times;
        let mut watch = Watch::new(7, [(5, 5)].into_iter(), start);
        assert_eq!(watch.judge(0, (6, 5), after(3)), RankState::Busy);
        assert_eq!(watch.judge(0, (6, 6), after(6)), RankState::Busy, "it has just ended that one");
        assert_eq!(watch.judge(0, (6, 6), after(8)), RankState::Unresponsive);
    }
}
