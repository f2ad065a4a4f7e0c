//! How many drafts each row verifies, and how many it makes for its next step: the numbers that
//! give the most tokens per microsecond. They depend on the acceptance in earlier steps and on the
//! size of the batch, never on what the target samples in this step, so they cannot bias its
//! tokens.

use kilotok_engine::Verification;

use crate::Cost;
use crate::cost::Size;
use crate::draft_costs::DraftCost;

/// Acceptance rate assumed of a drafter without observations.
const RATE_FIRST: f32 = 0.8;
/// How far one observation moves a request's rate.
const RATE_STEP: f32 = 0.05;
/// How far one observation moves the rate of all requests; less, since requests differ.
const RATE_STEP_ALL: f32 = 0.02;
/// After a step without drafts of a request, its rate moves towards that of all requests by at most
/// this fraction of the distance. It moves more slowly the further away it is, because a large
/// distance is less likely to be bad luck. So a request with a few rejected drafts soon drafts
/// again, if drafts pay for others, and one whose drafts are always rejected seldom does.
const RATE_RETURN: f32 = 0.1;
/// Lower bound of a rate, from which it can recover.
const RATE_MIN: f32 = 0.01;

/// Probability that each draft is accepted, given that those before it were.
#[derive(Clone, Debug)]
pub(crate) struct Acceptance {
    rates: Vec<f32>,
}

impl Acceptance {
    pub(crate) fn new(draft_max: u32) -> Self {
        Self { rates: vec![RATE_FIRST; draft_max as usize] }
    }

    /// Records how many drafts of one request were verified and how many of these were accepted;
    /// `all` is the acceptance of all requests.
    pub(crate) fn observe(&mut self, drafted: u32, accepted: u32, all: &Self) {
        self.move_rates(RATE_STEP, drafted, accepted);
        let unseen = drafted.min(accepted + 1) as usize;
        for (rate, all) in self.rates.iter_mut().zip(&all.rates).skip(unseen) {
            let likeness = rate.min(*all) / rate.max(*all);
            *rate += RATE_RETURN * likeness.powi(3) * (all - *rate);
        }
    }

    fn move_rates(&mut self, step: f32, drafted: u32, accepted: u32) {
        for (index, rate) in (0..drafted.min(accepted + 1)).zip(&mut self.rates) {
            let right = if index < accepted { 1.0 } else { 0.0 };
            *rate = (*rate + step * (right - *rate)).max(RATE_MIN);
        }
    }

    /// Probability that the first draft is accepted, the first two, and so on.
    fn survivals(&self) -> impl Iterator<Item = f32> {
        self.rates.iter().scan(1.0, |survival, rate| {
            *survival *= rate;
            Some(*survival)
        })
    }
}

/// Acceptance of all requests, by the rule that verifies their drafts. New requests begin with it.
pub(crate) struct AcceptanceByRule {
    matched: Acceptance,
    rejection: Acceptance,
}

impl AcceptanceByRule {
    pub(crate) fn new(draft_max: u32) -> Self {
        let first = Acceptance::new(draft_max);
        Self { matched: first.clone(), rejection: first }
    }

    pub(crate) fn of(&self, rule: Verification) -> &Acceptance {
        if rule.is_rejection() { &self.rejection } else { &self.matched }
    }

    pub(crate) fn observe(&mut self, rule: Verification, drafted: u32, accepted: u32) {
        let all = if rule.is_rejection() { &mut self.rejection } else { &mut self.matched };
        all.move_rates(RATE_STEP_ALL, drafted, accepted);
    }
}

/// A row that can draft.
pub(crate) struct DraftingRow<'a> {
    pub(crate) acceptance: &'a Acceptance,
    /// Drafts that it can verify now.
    pub(crate) held: u32,
    /// Drafts that it can make now, for its next step.
    pub(crate) next_max: u32,
}

/// How many drafts a row verifies and makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drafts {
    pub(crate) verified: u32,
    pub(crate) made: u32,
}

/// Most drafts of a trial: those of about eight rows, which engines make at once.
const TRIED_MAX: u32 = 64;

/// Steps of the fixed-point search for the best rate. Each closes most of the gap; two or three
/// suffice.
const RATE_ROUNDS: usize = 8;

/// Numbers of drafts for each row, at most `budget` verified in all: those that bring more tokens
/// for their time than the step does without them. A row makes as many drafts as are worth
/// verifying in its next step; drafts that are already made are not a reason to make more.
pub(crate) fn share_drafts(rows: &[DraftingRow<'_>], cost: DraftCost, budget: u32) -> Vec<Drafts> {
    let DraftCost { alone_us, drafting: cost } = cost;
    let alone = rows.len() as f32 / alone_us.max(1.0);
    let drafting = best_rate(rows, cost);
    let rate = drafting.max(alone);
    let verified = within(budget, rows, |row| row.worth(row.held, rate, cost).0);
    let made = within(budget, rows, |row| {
        let (count, gain) = row.worth(row.next_max, rate, cost);
        if drafting > alone && gain > rate * cost.draft_us { count } else { 0 }
    });
    verified.into_iter().zip(made).map(|(verified, made)| Drafts { verified, made }).collect()
}

/// Drafts for a trial: the first rows make as many as they can, but no more than the next step can
/// verify. Drafts of more rows would show nothing more.
pub(crate) fn try_drafts(rows: &[DraftingRow<'_>], budget: u32) -> Vec<Drafts> {
    let mut left = budget.min(TRIED_MAX);
    let mut tried = |row: &DraftingRow<'_>| {
        let made = row.next_max.min(left);
        left -= made;
        Drafts { verified: 0, made }
    };
    rows.iter().map(&mut tried).collect()
}

/// Largest tokens per microsecond that steps of these rows can reach, where each row drafts its
/// best number or none.
fn best_rate(rows: &[DraftingRow<'_>], cost: Cost) -> f32 {
    let row_count = rows.len() as u32;
    let alone_us = cost.of(Size { token_count: row_count, drafting_count: 0 });
    let mut rate = rows.len() as f32 / alone_us.max(1.0);
    for _ in 0..RATE_ROUNDS {
        let (mut tokens, mut us) = (rows.len() as f32, alone_us);
        for row in rows {
            let (count, gain) = row.worth(row.next_max.max(row.held), rate, cost);
            if gain > rate * cost.draft_us {
                tokens += gain + rate * cost.token_us * count as f32;
                us += cost.draft_us + cost.token_us * count as f32;
            }
        }
        let better = tokens / us.max(1.0);
        if better <= rate {
            break;
        }
        rate = better;
    }
    rate
}

/// Each row's wanted number; if they exceed the budget, the likeliest drafts of all rows.
fn within(
    budget: u32,
    rows: &[DraftingRow<'_>],
    wanted: impl Fn(&DraftingRow<'_>) -> u32,
) -> Vec<u32> {
    let mut counts: Vec<u32> = rows.iter().map(wanted).collect();
    if counts.iter().sum::<u32>() <= budget {
        return counts;
    }
    let mut all: Vec<(f32, usize)> = Vec::new();
    for (index, (row, count)) in rows.iter().zip(&mut counts).enumerate() {
        let survivals = row.acceptance.survivals().take(*count as usize);
        all.extend(survivals.map(|survival| (survival, index)));
        *count = 0;
    }
    // The sort is stable: a row's first drafts come first, and of equally likely ones the first
    // row's.
    all.sort_by(|(left, _), (right, _)| right.total_cmp(left));
    for (_, row) in all.into_iter().take(budget as usize) {
        counts[row] += 1;
    }
    counts
}

impl DraftingRow<'_> {
    /// How many of up to `count_max` drafts are worth verifying at a rate of `rate` tokens per
    /// microsecond, and how many more tokens they bring than the step has in the same time without
    /// them.
    fn worth(&self, count_max: u32, rate: f32, cost: Cost) -> (u32, f32) {
        let dear = rate * cost.token_us;
        let survivals = self.acceptance.survivals().take(count_max as usize);
        let gains = survivals.map(|survival| survival - dear).take_while(|gain| *gain > 0.0);
        gains.fold((0, 0.0), |(count, sum), gain| (count + 1, sum + gain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(drafted: u32, accepted: u32) -> Acceptance {
        let mut acceptance = Acceptance::new(7);
        for _ in 0..50 {
            acceptance.move_rates(0.1, drafted, accepted);
        }
        acceptance
    }

    fn rows<'a>(acceptances: &[&'a Acceptance], held: u32) -> Vec<DraftingRow<'a>> {
        let row = |acceptance: &&'a Acceptance| DraftingRow { acceptance, held, next_max: 7 };
        acceptances.iter().map(row).collect()
    }

    /// With steps whose time is linear.
    fn shared(rows: &[DraftingRow<'_>], cost: Cost, budget: u32) -> Vec<Drafts> {
        let alone_us = cost.of(Size { token_count: rows.len() as u32, drafting_count: 0 });
        share_drafts(rows, DraftCost { alone_us, drafting: cost }, budget)
    }

    fn verified(acceptances: &[&Acceptance], cost: Cost, budget: u32) -> Vec<u32> {
        let drafts = shared(&rows(acceptances, 7), cost, budget);
        drafts.into_iter().map(|drafts| drafts.verified).collect()
    }

    fn made(acceptances: &[&Acceptance], cost: Cost) -> Vec<u32> {
        let drafts = shared(&rows(acceptances, 0), cost, 10_000);
        assert!(drafts.iter().all(|drafts| drafts.verified == 0));
        drafts.into_iter().map(|drafts| drafts.made).collect()
    }

    const DEAR: Cost = Cost { base_us: 1000.0, token_us: 300.0, draft_us: 2500.0 };
    const STEP: Cost = Cost { base_us: 1000.0, token_us: 100.0, draft_us: 0.0 };

    #[test]
    fn good_drafters_draft_more() {
        let (good, bad) = (after(7, 7), after(7, 0));
        assert_eq!(verified(&[&good, &bad], STEP, 100), [7, 0]);
        assert_eq!(verified(&[&good, &good], STEP, 5), [3, 2]);
        let middling = after(7, 3);
        assert_eq!(verified(&[&middling], STEP, 100), [3]);
        assert_eq!(made(&[&good, &bad, &middling], STEP), [7, 0, 3]);
    }

    #[test]
    fn drafts_end_where_a_token_costs_as_much_as_it_brings() {
        let good = after(7, 6);
        let cheap = Cost { token_us: 0.0, ..STEP };
        assert_eq!(verified(&[&good], cheap, 100), [7]);
        let dear = Cost { base_us: 0.0, ..STEP };
        assert_eq!(verified(&[&good], dear, 100), [0]);
        // The same drafter in a batch that already fills the step.
        let many = vec![&good; 200];
        assert!(verified(&many, STEP, 10_000).iter().sum::<u32>() > 0);
        let middling = after(7, 1);
        assert!(verified(&vec![&middling; 200], STEP, 10_000).iter().all(|count| *count <= 1));
    }

    /// The best number of drafts, found by trying each.
    fn best(acceptance: &Acceptance, cost: Cost) -> u32 {
        let rate = |count: u32| {
            let tokens: f32 = acceptance.survivals().take(count as usize).sum();
            let size = Size { token_count: 1 + count, drafting_count: u32::from(count > 0) };
            (1.0 + tokens) / cost.of(size)
        };
        (0..=7).max_by(|a, b| rate(*a).total_cmp(&rate(*b))).unwrap()
    }

    #[test]
    fn a_row_alone_makes_as_many_as_give_most_tokens_for_the_time() {
        let mut seen = [0; 8];
        for accepted in 0..=7 {
            for base_us in [10.0, 300.0, 3500.0, 100_000.0] {
                for draft_us in [0.0, 100.0, 1000.0, 5400.0, 100_000.0] {
                    let acceptance = after(7, accepted);
                    let cost = Cost { base_us, token_us: 900.0, draft_us };
                    let count = made(&[&acceptance], cost)[0];
                    assert_eq!(count, best(&acceptance, cost), "{accepted} {cost:?}");
                    seen[count as usize] += 1;
                }
            }
        }
        assert!(seen.iter().filter(|count| **count > 0).count() > 4, "{seen:?}");
    }

    #[test]
    fn drafts_that_are_there_are_verified_though_more_are_not_worth_making() {
        let acceptance = after(7, 3);
        let cost = Cost { draft_us: 1e6, ..STEP };
        let drafts = shared(&rows(&[&acceptance], 7), cost, 100);
        assert_eq!(drafts, [Drafts { verified: 3, made: 0 }]);
    }

    #[test]
    fn a_request_that_was_unlucky_soon_drafts_like_all() {
        let all = after(7, 5);
        let mut own = all.clone();
        (0..12).for_each(|_| own.observe(7, 0, &all));
        let (few, usual) = (made(&[&own], DEAR)[0], made(&[&all], DEAR)[0]);
        assert!(few < usual, "{few}");
        (0..100).for_each(|_| own.observe(0, 0, &all));
        assert_eq!(made(&[&own], DEAR)[0], usual);
    }

    #[test]
    fn a_trial_makes_drafts_that_the_next_step_can_verify() {
        let acceptance = after(7, 0);
        let rows = rows(&vec![&acceptance; 50], 0);
        let made = |budget| {
            let drafts = try_drafts(&rows, budget).into_iter();
            drafts.map(|drafts| drafts.made).filter(|made| *made > 0).collect::<Vec<_>>()
        };
        assert!(made(0).is_empty());
        assert_eq!(made(14), [7, 7]);
        assert_eq!(made(1000).iter().sum::<u32>(), TRIED_MAX);
    }

    #[test]
    fn a_rate_above_that_of_all_stays_a_probability() {
        let (all, mut own) = (after(7, 0), after(7, 7));
        (0..1000).for_each(|_| own.observe(0, 0, &all));
        assert!(own.rates.iter().all(|rate| (RATE_MIN..=1.0).contains(rate)), "{own:?}");
    }

    #[test]
    fn a_request_whose_drafts_never_help_seldom_tries() {
        let (all, mut own) = (after(7, 5), after(7, 0));
        let mut tries = 0;
        for _ in 0..1000 {
            let tried = made(&[&own], DEAR)[0];
            own.observe(tried, 0, &all);
            tries += u32::from(tried > 0);
        }
        assert!(tries < 100, "{tries} of 1000 steps");
    }
}
