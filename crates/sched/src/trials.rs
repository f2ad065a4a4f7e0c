//! Exploration for the cost model. Steps that are never tried have no measured cost, and drafts
//! that are never made have no measured acceptance. So now and then a trial step drafts although
//! other steps do not, or does not draft although others do. Trials do not bias tokens.
//!
//! Trials may cost a fixed share of the time. A trial without drafts is charged all of its time. A
//! trial with drafts is charged only what it loses, compared with the same tokens without drafts.
//! Drafts that pay lose nothing, so their trials go on until the measured acceptance is high enough
//! for the scheduler to draft.

use crate::draft_costs::{CLASS_COUNT, class};

/// Steps charged to a trial: itself and the next, in which its drafts or their absence show.
const STEP_COUNT: u32 = 2;
/// At first one step in this many is a trial, until a class of row counts has this many steps with
/// drafts and as many without: a single outlier would otherwise count for long.
const FIRST: u32 = 8;

/// A step is charged at most this many times the usual time. A pause of the whole machine says
/// nothing about trials, and its debt could never be paid back.
const CHARGE_MAX: f32 = 8.0;
/// How far one step moves the usual time.
const USUAL_STEP: f32 = 1.0 / 64.0;

pub(crate) struct Trials {
    /// The trials' share of all time.
    share: f32,
    /// What is left of the trials' share, in microseconds; they wait while it is negative.
    balance_us: f32,
    /// Time of a usual step, without outliers; 0 before the first.
    usual_us: f32,
    /// Steps that are yet to be charged.
    charged: u32,
    /// Whether the trial is one of drafts.
    drafts: bool,
    /// Steps without drafts, and with them, by class of row counts.
    seen: [[u32; 2]; CLASS_COUNT],
    /// Steps since the last trial.
    since: u32,
}

impl Trials {
    pub(crate) fn new(share: f32) -> Self {
        Self {
            share,
            balance_us: 0.0,
            usual_us: 0.0,
            charged: 0,
            drafts: false,
            seen: [[0; 2]; CLASS_COUNT],
            since: 0,
        }
    }

    fn is_young(&self, row_count: u32) -> bool {
        self.seen[class(row_count)].iter().any(|count| *count < FIRST)
    }

    /// Whether a step of `row_count` rows should be a trial.
    pub(crate) fn is_due(&self, row_count: u32) -> bool {
        let waits =
            if self.is_young(row_count) { self.since < FIRST } else { self.balance_us < 0.0 };
        // The drafts of a trial are verified before the next one begins.
        self.share > 0.0 && self.charged == 0 && !waits
    }

    /// Begins a trial of drafts, or of a step without them.
    pub(crate) fn begin(&mut self, row_count: u32, drafts: bool) {
        self.charged = if self.is_young(row_count) { 0 } else { STEP_COUNT };
        self.drafts = drafts;
        self.since = 0;
    }

    /// Records a step without prompts. Its tokens would take `worth_us` in steps without drafts.
    pub(crate) fn observe(&mut self, row_count: u32, us: f32, worth_us: f32, drafting: bool) {
        let us = if self.usual_us > 0.0 { us.min(CHARGE_MAX * self.usual_us) } else { us };
        self.usual_us += if self.usual_us > 0.0 { USUAL_STEP * (us - self.usual_us) } else { us };
        let seen = &mut self.seen[class(row_count)][usize::from(drafting)];
        *seen = seen.saturating_add(1);
        self.since = self.since.saturating_add(1);
        // Unused time is not saved up.
        self.balance_us = (self.balance_us + self.share * us).min(0.0);
        if self.charged > 0 {
            self.charged -= 1;
            // A trial of drafts is charged what it loses, and repays what it gains.
            let charge_us = if self.drafts { us - worth_us } else { us };
            self.balance_us = (self.balance_us - charge_us).min(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of trials in this many steps, and their share of the time.
    fn trials(share: f32, step_count: u32) -> (u32, f32) {
        let mut trials = Trials::new(share);
        let (mut count, mut all, mut tried) = (0, 0.0, 0.0);
        for step in 0..step_count {
            let due = trials.is_due(1);
            if due {
                trials.begin(1, true);
                count += 1;
            }
            let us = (1000 + step * 613 % 9000) as f32;
            all += us;
            if trials.charged > 0 {
                tried += us;
            }
            trials.observe(1, us, 0.0, !due);
        }
        (count, tried / all)
    }

    #[test]
    fn trials_keep_to_their_share() {
        assert_eq!(trials(0.0, 20_000), (0, 0.0));
        for share in [0.01, 0.25] {
            let (_, ratio) = trials(share, 20_000);
            assert!(ratio <= share && ratio >= 0.8 * share, "{share}: {ratio}");
        }
    }

    #[test]
    fn a_pause_in_a_trial_is_not_owed_in_full() {
        let mut trials = Trials::new(1.0 / 64.0);
        let mut step = |us: f32| {
            let due = trials.is_due(1);
            if due {
                trials.begin(1, true);
            }
            trials.observe(1, us, 0.0, !due);
            due
        };
        for _ in 0..1000 {
            step(5000.0);
        }
        while !step(5000.0) {}
        // Ten minutes, in the other step that the trial is charged for.
        step(600e6);
        assert!((0..2000).any(|_| step(5000.0)), "ten seconds later drafts are tried again");
    }

    #[test]
    fn drafts_that_pay_are_tried_again_at_once() {
        let mut trials = Trials::new(1.0 / 64.0);
        let mut count = |worth_us: f32| {
            let mut step = |index: u32| {
                let due = trials.is_due(1);
                if due {
                    trials.begin(1, true);
                }
                let of_trial = trials.charged > 0;
                let worth_us = if of_trial { worth_us } else { 1000.0 };
                trials.observe(1, 1000.0, worth_us, index.is_multiple_of(2));
                due
            };
            (0..2000).filter(|index| step(*index)).count()
        };
        assert!(count(900.0) > 100, "a loss of a tenth is a tenth of the charge");
        assert!(count(1100.0) > 900);
        assert!(count(0.0) < 25);
    }

    #[test]
    fn both_kinds_of_step_are_soon_seen_several_times() {
        assert_eq!(trials(0.01, FIRST).0, 0);
        assert_eq!(trials(0.01, 8 * FIRST).0, 7);
        assert!(trials(0.01, 10 * FIRST).0 <= 10);
    }
}
