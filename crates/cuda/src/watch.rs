//! Whether ranks do what the bell was rung for, by what they tell: the last chain that each has
//! begun, and the last that it has ended.

use std::time::{Duration, Instant};

use crate::driver::bell::reached;

/// How long a rank that has nothing to do may take to begin: less than a kernel waits for anything,
/// so that whoever waits for such a rank in vain is found not to be the cause.
pub(crate) const HEARS_MAX: Duration = Duration::from_millis(800);

/// A look at all ranks since the bell was rung for a chain.
pub(crate) struct Watch {
    pub(crate) start: Instant,
    number: u32,
    ranks: Vec<Seen>,
}

/// What a rank told, and since when.
struct Seen {
    told: (u32, u32),
    since: Instant,
}

/// How a rank stands to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Ended,
    /// It computes this chain or one before, or may yet hear.
    Busy,
    /// It had nothing to do for long, and did not begin.
    Deaf,
}

impl Watch {
    /// From now on, by what the ranks tell.
    pub(crate) fn new(number: u32, told: impl Iterator<Item = (u32, u32)>, now: Instant) -> Self {
        Self { start: now, number, ranks: told.map(|told| Seen { told, since: now }).collect() }
    }

    pub(crate) fn judge(&mut self, rank: usize, told: (u32, u32), now: Instant) -> Standing {
        let seen = &mut self.ranks[rank];
        if told != seen.told {
            *seen = Seen { told, since: now };
        }
        let (begun, ended) = told;
        if reached(ended, self.number) {
            return Standing::Ended;
        }
        let idle = begun == ended;
        if idle && now.duration_since(seen.since) > HEARS_MAX {
            Standing::Deaf
        } else {
            Standing::Busy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;

    #[test]
    fn a_rank_that_does_not_begin_is_deaf_after_a_while() {
        let start = now();
        let mut watch = Watch::new(7, [(6, 6), (6, 6)].into_iter(), start);
        let after = |times: u32| start + HEARS_MAX * times;
        assert_eq!(watch.judge(0, (6, 6), after(1)), Standing::Busy);
        assert_eq!(watch.judge(0, (6, 6), after(2)), Standing::Deaf);
        // Whoever has begun is not, however long it takes.
        assert_eq!(watch.judge(1, (7, 6), after(2)), Standing::Busy);
        assert_eq!(watch.judge(1, (7, 6), after(9)), Standing::Busy);
        assert_eq!(watch.judge(1, (7, 7), after(9)), Standing::Ended);
        // The next one may be through already.
        assert_eq!(watch.judge(1, (8, 8), after(9)), Standing::Ended);
    }

    #[test]
    fn a_chain_before_counts_as_hearing() {
        let start = now();
        let after = |times: u32| start + HEARS_MAX * times;
        let mut watch = Watch::new(7, [(5, 5)].into_iter(), start);
        assert_eq!(watch.judge(0, (6, 5), after(3)), Standing::Busy);
        assert_eq!(watch.judge(0, (6, 6), after(6)), Standing::Busy, "it has just ended that one");
        assert_eq!(watch.judge(0, (6, 6), after(8)), Standing::Deaf);
    }
}
