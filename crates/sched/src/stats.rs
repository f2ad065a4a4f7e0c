//! Counters and gauges for metrics, as plain data. Counters only grow.

use kilotok_engine::Verification;

/// The scheduler's current state and its totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub running: u32,
    pub waiting: u32,
    /// Replies that wait for another one to compute their prompt.
    pub deferred: u32,
    /// One per page group of the engine.
    pub groups: Vec<GroupUsage>,
    /// Planned steps with at least one row.
    pub step_count: u64,
    /// Tokens of prompts that started, and how many of them were in the prefix cache.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemption_count: u64,
    /// Sampled tokens, without those after a request's end.
    pub output_count: u64,
    /// Rows that verified drafts.
    pub draft_row_count: u64,
    /// Drafts that sample and match verified.
    pub matched: DraftCounts,
    /// Drafts that rejection sampling verified.
    pub judged: DraftCounts,
    /// Drafts whose acceptance was assumed.
    pub assumed: DraftCounts,
}

/// Drafts of one rule, by their index in the row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    pub verified: Vec<u64>,
    pub accepted: Vec<u64>,
}

impl DraftCounts {
    fn new(draft_max: u32) -> Self {
        let places = vec![0; draft_max as usize];
        Self { verified: places.clone(), accepted: places }
    }
}

/// Pages of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUsage {
    pub page_count: u32,
    /// Used by running requests.
    pub used: u32,
    /// Cached for later requests, evicted when pages run out.
    pub kept: u32,
    /// Whether it holds windows, and not all positions of a text.
    pub windowed: bool,
}

impl Stats {
    /// Nothing yet, of rows of up to `draft_max` drafts.
    pub(crate) fn new(draft_max: u32) -> Self {
        let drafts = DraftCounts::new(draft_max);
        let (matched, judged, assumed) = (drafts.clone(), drafts.clone(), drafts);
        Self { matched, judged, assumed, ..Self::default() }
    }

    /// How full the fullest group is, among those that hold all positions of a text; 1 is full.
    /// Pages of windows say little: each step uses them anew, and there are enough for all slots.
    pub fn usage(&self) -> f64 {
        let whole = self.groups.iter().filter(|group| !group.windowed);
        let part = |group: &GroupUsage| f64::from(group.used) / f64::from(group.page_count.max(1));
        whole.map(part).fold(0.0, f64::max)
    }

    pub(crate) fn count_drafts(&mut self, rule: Verification, verified: u32, accepted: u32) {
        self.draft_row_count += u64::from(verified > 0);
        let counts = match rule {
            Verification::Match => &mut self.matched,
            Verification::Rejection { .. } => &mut self.judged,
            Verification::Assumed { .. } => &mut self.assumed,
        };
        for (counters, count) in
            [(&mut counts.verified, verified), (&mut counts.accepted, accepted)]
        {
            for counter in &mut counters[..count as usize] {
                *counter += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_counted_by_the_rule_that_verified_them() {
        let mut stats = Stats::new(3);
        stats.count_drafts(Verification::Match, 3, 1);
        stats.count_drafts(Verification::Rejection { draft_temperature: 1.0 }, 2, 2);
        stats.count_drafts(Verification::Assumed { chance: 0.5 }, 1, 1);
        stats.count_drafts(Verification::Match, 0, 0);
        assert_eq!(stats.draft_row_count, 3);
        assert_eq!((stats.matched.verified, stats.matched.accepted), (vec![1; 3], vec![1, 0, 0]));
        let judged = [stats.judged.verified, stats.judged.accepted];
        assert_eq!(judged, [[1, 1, 0], [1, 1, 0]].map(Vec::from));
        let assumed = [stats.assumed.verified, stats.assumed.accepted];
        assert_eq!(assumed, [[1, 0, 0], [1, 0, 0]].map(Vec::from));
    }
}
