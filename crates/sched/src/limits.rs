//! What the operator of a server may set. Sizes that the engine fixes are in its `Caps`.

use kilotok_engine::Caps;

use crate::Cost;

/// Bounds of queue, batch and step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests in the scheduler's queue. A caller that bounds requests itself leaves room for all.
    pub queue_max: u32,
    /// Requests that run at once, if the engine has slots for them.
    pub running_max: u32,
    /// Prompt tokens of a step.
    pub chunk_max: u32,
    /// Prompt tokens of a step in which other rows decode, even where `step_us_max` is exceeded.
    pub chunk_min: u32,
    /// Microseconds that a step with decode rows should take. Prompt chunks are cut to fit, except
    /// where prompts would then lose more time than decoding requests lose otherwise.
    pub step_us_max: u32,
    /// Whether chunks are cut to fit even then, as in Sarathi-Serve's stall-free scheduling. Single
    /// steps still take longer, to measure what the wide pass costs.
    pub stall_free: bool,
    /// Running requests above which nothing is drafted.
    pub draft_rows_max: u32,
    /// Number of later arrivals that one level of priority is worth.
    pub aging: u32,
    /// Cost of steps until steps were measured.
    pub cost: Cost,
    /// Share of the time that exploration may lose: steps that draft where others do not, or the
    /// other way round, to measure both. With 0 nothing is learnt from step times, and plans do
    /// not depend on the speed of the machine.
    pub learning_share: f32,
    /// Whether pages are cached for requests that start with the same tokens.
    pub prefix_cache: bool,
}

impl Limits {
    /// Requests that run at once on an engine. Where a step has fewer rows, they take turns.
    pub fn running(&self, caps: &Caps) -> u32 {
        self.running_max.min(caps.slot_count).max(1)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_max: u32::MAX,
            running_max: u32::MAX,
            chunk_max: 8192,
            chunk_min: 16,
            // With a wide pass of 20 ms, prompts get a third of its time to themselves.
            step_us_max: 35_000,
            stall_free: false,
            draft_rows_max: u32::MAX,
            aging: 256,
            cost: Cost { base_us: 2_000.0, token_us: 20.0, draft_us: 200.0 },
            // Two steps in 192: enough to notice what changes within seconds.
            learning_share: 1.0 / 96.0,
            prefix_cache: true,
        }
    }
}
