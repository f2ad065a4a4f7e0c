//! Numbers for metrics, as plain data. Counters only grow.

/// What the scheduler does now and did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub running: u32,
    pub waiting: u32,
    /// Copies that wait for another one to compute their prompt.
    pub deferred: u32,
    /// One per page group of the engine.
    pub groups: Vec<GroupUsage>,
    /// Steps planned that had rows.
    pub step_count: u64,
    /// Tokens of prompts that started, and how many of them lay in pages already.
    pub prefix_queries: u64,
    pub prefix_hits: u64,
    pub preemption_count: u64,
    /// Tokens chosen, those after a request's end left out.
    pub output_count: u64,
    /// Rows that verified drafts.
    pub draft_row_count: u64,
    /// Drafts verified and accepted, by their place in the row.
    pub drafted: Vec<u64>,
    pub accepted: Vec<u64>,
}

/// Pages of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUsage {
    pub page_count: u32,
    /// Used by running requests.
    pub used: u32,
    /// Kept for later requests, given up when pages run out.
    pub kept: u32,
}

impl Stats {
    pub(crate) fn count_drafts(&mut self, drafted: u32, accepted: u32) {
        self.draft_row_count += u64::from(drafted > 0);
        for (counters, count) in [(&mut self.drafted, drafted), (&mut self.accepted, accepted)] {
            for counter in &mut counters[..count as usize] {
                *counter += 1;
            }
        }
    }
}
