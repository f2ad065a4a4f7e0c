//! The order of a step's launches after that of the plan, which is the order of
//! [`kilotok_abi::Launch`]. Counters, stamps and collectives are numbered by it.

use kilotok_abi::Launch;
use kilotok_engine::StepPart;

/// Indices of launches; the target's is 0.
pub(crate) const VERIFY: usize = index(Launch::Verify);
pub(crate) const CONTEXT: usize = index(Launch::DraftContext);
/// The first batch of drafts; the others follow.
pub(crate) const DRAFTS: usize = index(Launch::DraftRows);

const fn index(launch: Launch) -> usize {
    launch as usize - Launch::Target as usize
}

/// The index of a launch among the passes, which are all launches but verify: they reduce over
/// ranks, and their collectives are numbered in this order.
pub(crate) const fn pass(launch: usize) -> usize {
    assert!(launch != VERIFY);
    if launch < VERIFY { launch } else { launch - 1 }
}

/// The part of a step to which a launch belongs.
pub(crate) fn part(launch: usize) -> StepPart {
    if launch <= VERIFY { StepPart::Verify } else { StepPart::Draft }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_are_numbered_in_their_order_and_passes_without_verify() {
        assert_eq!([VERIFY, CONTEXT, DRAFTS], [1, 2, 3]);
        assert_eq!([0, CONTEXT, DRAFTS, DRAFTS + 1].map(pass), [0, 1, 2, 3]);
        let (verify, draft) = (StepPart::Verify, StepPart::Draft);
        assert_eq!([0, VERIFY, CONTEXT, DRAFTS].map(part), [verify, verify, draft, draft]);
    }
}
