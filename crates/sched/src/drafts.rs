//! How many drafts each row verifies: as many as make the step give the most tokens per
//! microsecond. Decided by what was accepted in earlier steps and by the size of the batch, never
//! by what the target will choose in this one, so that the choice cannot favour a token.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::Cost;

/// Acceptance of a drafter nobody has seen yet.
const RATE_FIRST: f32 = 0.8;
/// How far one observation moves a rate.
const RATE_STEP: f32 = 0.1;
/// How far a rate that was not observed goes back towards [`RATE_FIRST`], so that a drafter that
/// was given up is tried again.
const RATE_DRIFT: f32 = 0.01;

/// How likely each draft is accepted when those before it were.
#[derive(Clone, Debug)]
pub(crate) struct Acceptance {
    rates: Vec<f32>,
}

impl Acceptance {
    pub(crate) fn new(draft_max: u32) -> Self {
        Self { rates: vec![RATE_FIRST; draft_max as usize] }
    }

    pub(crate) fn observe(&mut self, drafted: u32, accepted: u32) {
        for (index, rate) in (0..).zip(&mut self.rates) {
            *rate += if index < accepted {
                RATE_STEP * (1.0 - *rate)
            } else if index == accepted && index < drafted {
                -RATE_STEP * *rate
            } else {
                RATE_DRIFT * (RATE_FIRST - *rate)
            };
        }
    }
}

/// A row that could verify drafts.
pub(crate) struct Drafter<'a> {
    pub(crate) acceptance: &'a Acceptance,
    pub(crate) draft_max: u32,
}

/// The next draft of a row.
struct Candidate {
    /// How likely it and all before it are accepted.
    survival: f32,
    row: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.survival.total_cmp(&other.survival).then(other.row.cmp(&self.row))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Drafts of each row, at most `budget` together. The likeliest one is added while that makes
/// tokens cheaper.
pub(crate) fn share_drafts(rows: &[Drafter<'_>], cost: Cost, budget: u32) -> Vec<u32> {
    let mut counts = vec![0_u32; rows.len()];
    let mut heap: BinaryHeap<_> =
        (0..rows.len()).filter_map(|row| next(rows, row, 0, 1.0)).collect();
    let mut expected = rows.len() as f32;
    let mut us = cost.of(rows.len() as u32);
    for _ in 0..budget {
        let Some(mut likeliest) = heap.peek_mut() else {
            break;
        };
        let Candidate { survival, row } = *likeliest;
        if survival * us <= expected * cost.token_us {
            break;
        }
        expected += survival;
        us += cost.token_us;
        counts[row] += 1;
        match next(rows, row, counts[row], survival) {
            Some(candidate) => *likeliest = candidate,
            None => drop(PeekMut::pop(likeliest)),
        }
    }
    counts
}

/// The draft of a row after `count` that survive with probability `survival`.
fn next(rows: &[Drafter<'_>], row: usize, count: u32, survival: f32) -> Option<Candidate> {
    let Drafter { acceptance, draft_max } = &rows[row];
    let rate = acceptance.rates.get(count as usize).filter(|_| count < *draft_max)?;
    Some(Candidate { survival: survival * rate, row })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(drafted: u32, accepted: u32) -> Acceptance {
        let mut acceptance = Acceptance::new(7);
        for _ in 0..50 {
            acceptance.observe(drafted, accepted);
        }
        acceptance
    }

    fn share(acceptances: &[&Acceptance], cost: Cost, budget: u32) -> Vec<u32> {
        let rows = acceptances.iter().map(|acceptance| Drafter { acceptance, draft_max: 7 });
        share_drafts(&rows.collect::<Vec<_>>(), cost, budget)
    }

    #[test]
    fn good_drafters_draft_more() {
        let (good, bad) = (after(7, 7), after(7, 0));
        let cost = Cost { base_us: 1000.0, token_us: 100.0 };
        assert_eq!(share(&[&good, &bad], cost, 100), [7, 0]);
        assert_eq!(share(&[&good, &good], cost, 5), [3, 2]);
        let middling = after(7, 3);
        assert_eq!(share(&[&middling], cost, 100), [3]);
    }

    #[test]
    fn drafts_end_where_a_token_costs_as_much_as_it_brings() {
        let good = after(7, 6);
        let cheap = Cost { base_us: 1000.0, token_us: 0.0 };
        assert_eq!(share(&[&good], cheap, 100), [7]);
        let dear = Cost { base_us: 0.0, token_us: 100.0 };
        assert_eq!(share(&[&good], dear, 100), [0]);
        // The same drafter in a batch that already fills the step.
        let step = Cost { base_us: 1000.0, token_us: 100.0 };
        let many = vec![&good; 200];
        assert!(share(&many, step, 10_000).iter().sum::<u32>() > 0);
        let middling = after(7, 1);
        assert!(share(&vec![&middling; 200], step, 10_000).iter().all(|count| *count <= 1));
    }

    #[test]
    fn a_drafter_that_was_given_up_is_tried_again() {
        let mut bad = after(7, 0);
        let cost = Cost { base_us: 1000.0, token_us: 100.0 };
        assert_eq!(share(&[&bad], cost, 7), [0]);
        for _ in 0..100 {
            bad.observe(0, 0);
        }
        assert!(share(&[&bad], cost, 7)[0] > 0);
    }
}
