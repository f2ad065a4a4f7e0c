//! The limits of an engine, fixed at start.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::Row;

/// A group with a window keeps pages of this many more tokens before the end of a text, so that a
/// later text may differ in them and still start from the prefix cache. They are a stop string and
/// the drafts behind it, or the tokens with which a template opens a reply.
pub const WINDOW_SLACK: u32 = 16;

/// Limits of an engine. A plan that stays within them is accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Caps {
    pub vocab_size: u32,
    /// Positions are below this.
    pub position_max: u32,
    pub slot_count: u32,
    /// Rows of one step.
    pub row_max: u32,
    /// Tokens of one step, drafts included.
    pub token_max: u32,
    /// Tokens of one step whose logits are wanted, see [`crate::Row::wanted_count`].
    pub wanted_max: u32,
    /// Steps of this many tokens or more take the wide pass, which has its own base time and time
    /// per token; `None` for an engine with one pass.
    pub wide_from: Option<u32>,
    /// Drafts of one row, made by the engine or brought by the row.
    pub draft_max: u32,
    /// Whether the engine has a drafter of its own. Without one a row may still bring drafts.
    pub drafter: bool,
    /// Alternatives reported beside each token's log-probability.
    pub logprobs_max: u32,
    pub steps_in_flight_max: u32,
    /// In the order in which [`crate::Row::pages`] names them.
    pub groups: Vec<PageGroup>,
}

/// Layers with the same window, whose pages are taken and freed together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageGroup {
    pub kind: PageKind,
    /// Positions of one page.
    pub page_tokens: u32,
    pub page_count: u32,
    /// Keys that a position sees, itself included; `None` sees all. Older pages may be freed.
    pub window: Option<u32>,
    /// Bytes of one page on all ranks together.
    pub page_bytes: u64,
}

impl PageGroup {
    /// The oldest position that a step starting at `start` may read.
    pub fn first_needed(&self, start: u32) -> u32 {
        self.window.map_or(0, |keys| start.saturating_sub(keys - 1))
    }

    /// The row's positions that later rows may read, as ascending ranges with gaps between them.
    /// They are the windows before [`Row::later_starts`] and all that comes after the last start.
    /// Whole pages are counted, so that a page which a later row names is complete up to the
    /// position at which that row starts.
    pub fn read_later(&self, row: &Row) -> Vec<Range<u32>> {
        let all = row.start..row.end();
        if self.window.is_none() || row.later_starts.is_empty() {
            return vec![all];
        }
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for (index, &start) in row.later_starts.iter().enumerate() {
            let is_last = index + 1 == row.later_starts.len();
            let first = self.first_needed(start) / self.page_tokens * self.page_tokens;
            let range = first.max(all.start)..if is_last { all.end } else { start.min(all.end) };
            match ranges.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ if range.is_empty() => (),
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageKind {
    /// K/V of the target's full-attention layers.
    Full,
    /// K/V of the target's sliding-window layers.
    Window,
    /// Context K/V of the drafter.
    Draft,
}

#[cfg(test)]
mod tests {
    use kilotok_abi::SlotId;

    use super::*;
    use crate::RowTokens;

    /// What a row over `start..end` must leave for rows that start at these positions.
    fn read_later(window: Option<u32>, start: u32, end: u32, starts: &[u32]) -> Vec<(u32, u32)> {
        let (page_count, page_bytes) = (100, 0);
        let group =
            PageGroup { kind: PageKind::Draft, page_tokens: 4, page_count, window, page_bytes };
        let tokens = vec![0; (end - start) as usize];
        let row = Row {
            later_starts: starts.to_vec(),
            ..Row::new(SlotId(0), start, RowTokens::Given { tokens, draft_count: 0 })
        };
        group.read_later(&row).into_iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn later_rows_read_the_windows_before_their_starts() {
        let window = Some(6);
        assert_eq!(read_later(window, 10, 100, &[40, 96]), [(32, 40), (88, 100)]);
        assert_eq!(read_later(window, 10, 100, &[40, 44, 96]), [(32, 44), (88, 100)], "joined");
        assert_eq!(read_later(window, 38, 100, &[40, 90]), [(38, 40), (84, 100)], "of this row");
        assert_eq!(read_later(window, 40, 100, &[40, 90]), [(84, 100)], "all before the row");
        assert_eq!(read_later(window, 40, 42, &[20]), [(40, 42)], "a start before the row");
        assert_eq!(read_later(window, 0, 9, &[2, 8]), [(0, 9)]);
    }

    #[test]
    fn without_a_window_or_starts_they_may_read_all() {
        assert_eq!(read_later(None, 10, 100, &[96]), [(10, 100)]);
        assert_eq!(read_later(Some(6), 10, 100, &[]), [(10, 100)]);
    }
}
