//! Batches as kernels read them: which tokens of which rows, where logits are needed, and the pages
//! of every row. What a kernel is given lies in one run of bytes, copied at once.

use kilotok_abi::{Batch as Header, BatchRow, BatchToken, GROUPS_MAX, TokenId};
use kilotok_engine::{PageGroup, Row};
use kilotok_rows::{Batch, Sizes};

use crate::constants::Constants;
use crate::places::Working;

/// A token without a row in the embedding: the drafter's mask. `phase/embed.cuh` has the same.
const MASK_TOKEN: u32 = !0;

/// Where the parts of a batch lie in its buffer, behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
    pub(crate) wanted: usize,
    pub(crate) pages: usize,
    pub(crate) bytes: usize,
}

impl Places {
    pub(crate) fn new(
        working: &Working,
        constants: &Constants,
        sizes: &Sizes,
        groups: &[PageGroup],
    ) -> Self {
        let tokens = size_of::<Header>();
        let rows = tokens + working.tokens;
        let wanted = rows + working.rows;
        let pages = wanted + working.wanted;
        let token_max = constants.launch.tokens_max;
        let row_max = token_max.min(sizes.slot_count as usize);
        let of_row: usize =
            groups.iter().map(|group| pages_max(group, sizes.position_max, token_max)).sum();
        Self { tokens, rows, wanted, pages, bytes: pages + row_max * of_row * size_of::<u32>() }
    }
}

/// Pages of a group that a row can need in one batch.
fn pages_max(group: &PageGroup, position_max: u32, token_max: usize) -> usize {
    let all = position_max.div_ceil(group.page_tokens) as usize;
    group.window.map_or(all, |keys| {
        // The window before the first token and the tokens; both ends may cut a page.
        let reach = keys as usize + token_max;
        all.min(reach.div_ceil(group.page_tokens as usize) + 1)
    })
}

/// A batch for one launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeviceBatch {
    tokens: Vec<BatchToken>,
    rows: Vec<BatchRow>,
    wanted: Vec<u32>,
    pages: Vec<u32>,
}

/// A row that asks for drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DraftRow {
    /// Place in the target's batch.
    pub(crate) row: usize,
    /// The newest token, and its position.
    pub(crate) anchor: TokenId,
    pub(crate) start: u32,
    pub(crate) draft_count: u32,
}

impl DeviceBatch {
    /// The target's: all tokens of the plan's rows, and the pages of every group.
    pub(crate) fn target(batch: &Batch<'_>, wanted: &[usize], groups: &[PageGroup]) -> Self {
        let mut own =
            Self { wanted: wanted.iter().map(|&token| token as u32).collect(), ..Self::default() };
        for row in &batch.rows {
            let pages_at = own.add_pages(row.plan, groups);
            own.add_row(row.plan.start, row.count, pages_at);
        }
        for (index, token) in own.tokens.iter_mut().enumerate() {
            (token.token, token.tap) = (batch.tokens[index], index as u32);
        }
        own
    }

    /// Committed tokens of the target's batch, whose taps become the drafter's context.
    pub(crate) fn context(&self, committed: &[usize]) -> Self {
        let mut own = Self::default();
        for run in committed.chunk_by(|a, b| self.tokens[*a].row == self.tokens[*b].row) {
            let first = &self.tokens[run[0]];
            let place = own.tokens.len();
            own.add_row(first.position, run.len(), self.rows[first.row as usize].pages_at);
            for (token, &tap) in own.tokens[place..].iter_mut().zip(run) {
                (token.token, token.tap) = (self.tokens[tap].token, tap as u32);
            }
        }
        own
    }

    /// Drafts of rows of the target's batch: the newest token of each, then masks.
    pub(crate) fn drafts(&self, rows: &[DraftRow], draft_rows: usize) -> Self {
        let mut own = Self::default();
        for row in rows {
            let first = own.tokens.len();
            own.add_row(row.start, draft_rows, self.rows[row.row].pages_at);
            own.tokens[first..].iter_mut().for_each(|token| token.token = MASK_TOKEN);
            own.tokens[first].token = row.anchor;
            let drafted = first as u32 + 1..=first as u32 + row.draft_count;
            own.wanted.extend(drafted);
        }
        own
    }

    /// The pages that a row reads and writes. Returns, by group, where page 0 of the sequence
    /// would be.
    fn add_pages(&mut self, row: &Row, groups: &[PageGroup]) -> [u32; GROUPS_MAX] {
        let mut pages_at = [0; GROUPS_MAX];
        for ((run, group), at) in row.pages.iter().zip(groups).zip(&mut pages_at) {
            let first = group.first_needed(row.start) / group.page_tokens;
            let end = row.end().div_ceil(group.page_tokens);
            *at = (self.pages.len() as u32).wrapping_sub(first);
            let needed = &run.pages[(first - run.first) as usize..(end - run.first) as usize];
            self.pages.extend(needed.iter().map(|page| page.0));
        }
        pages_at
    }

    fn add_row(&mut self, start: u32, count: usize, pages_at: [u32; GROUPS_MAX]) {
        let (row, first) = (self.rows.len() as u32, self.tokens.len() as u32);
        self.rows.push(BatchRow { start, first, count: count as u32, reserved: 0, pages_at });
        let token = |position| BatchToken { token: 0, position, row, tap: 0 };
        self.tokens.extend((start..start + count as u32).map(token));
    }

    pub(crate) fn wanted_count(&self) -> usize {
        self.wanted.len()
    }

    /// Writes the batch as kernels read it, after so many exchanges between ranks, and returns the
    /// bytes written. One without pages of its own leaves those of the batch before it.
    pub(crate) fn write(&self, places: &Places, exchanges: u32, bytes: &mut [u8]) -> usize {
        let header = Header {
            token_count: self.tokens.len() as u32,
            row_count: self.rows.len() as u32,
            wanted_count: self.wanted.len() as u32,
            exchanges,
        };
        let mut end = 0;
        let mut write = |place: usize, from: &[u8]| {
            bytes[place..][..from.len()].copy_from_slice(from);
            end = place + from.len();
        };
        write(0, bytemuck::bytes_of(&header));
        write(places.tokens, bytemuck::cast_slice(&self.tokens));
        write(places.rows, bytemuck::cast_slice(&self.rows));
        write(places.wanted, bytemuck::cast_slice(&self.wanted));
        if !self.pages.is_empty() {
            write(places.pages, bytemuck::cast_slice(&self.pages));
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use kilotok_abi::{PageId, Sampling, SlotId};
    use kilotok_engine::{PageKind, PageRun, RowTokens, SlotSetup, StepPlan};
    use kilotok_rows::Slots;

    use super::*;

    const GROUPS: [PageGroup; 2] = [group(PageKind::Full, None), group(PageKind::Draft, Some(9))];

    const fn group(kind: PageKind, window: Option<u32>) -> PageGroup {
        PageGroup { kind, page_tokens: 4, page_count: 100, window, page_bytes: 0 }
    }

    fn row(slot: u32, start: u32, tokens: Vec<TokenId>, first_page: u32) -> Row {
        let end = (start + tokens.len() as u32).div_ceil(4);
        let run = |first: u32| PageRun {
            first,
            // One page more than is needed.
            pages: (first..=end).map(|page| PageId(10 * slot + page)).collect(),
        };
        Row {
            slot: SlotId(slot),
            setup: Some(Box::new(SlotSetup::new(Sampling::GREEDY, 1))),
            start,
            tokens: RowTokens::Given { tokens, draft_count: 0 },
            sample: true,
            pages: vec![run(0), run(first_page)],
            masks: Vec::new(),
            logprobs: None,
            scored: Vec::new(),
            draft_next: 3,
            report_drafts: false,
        }
    }

    fn target() -> DeviceBatch {
        let rows = vec![row(1, 0, vec![5, 6, 7], 0), row(2, 17, vec![8, 9], 2)];
        let plan = StepPlan { rows };
        let batch = Batch::new(&plan, &Slots::new(3, 50)).unwrap();
        DeviceBatch::target(&batch, &[2, 4], &GROUPS)
    }

    #[test]
    fn a_batch_names_tokens_rows_and_pages() {
        let target = target();
        let told: Vec<_> =
            target.tokens.iter().map(|t| (t.token, t.position, t.row, t.tap)).collect();
        let meant = [(5, 0, 0, 0), (6, 1, 0, 1), (7, 2, 0, 2), (8, 17, 1, 3), (9, 18, 1, 4)];
        assert_eq!(told, meant);
        let rows: Vec<_> =
            target.rows.iter().map(|row| (row.start, row.first, row.count)).collect();
        assert_eq!(rows, [(0, 0, 3), (17, 3, 2)]);
        assert_eq!(target.wanted, [2, 4]);
        // Position 18 of the second row is in page 4; its window begins at 9, in page 2.
        let page = |row: usize, group: usize, page: u32| {
            target.pages[target.rows[row].pages_at[group].wrapping_add(page) as usize]
        };
        assert_eq!([page(0, 0, 0), page(0, 1, 0)], [10, 10]);
        assert_eq!([page(1, 0, 0), page(1, 0, 4), page(1, 1, 2), page(1, 1, 4)], [20, 24, 22, 24]);
        assert_eq!(target.pages.len(), 1 + 1 + 5 + 3, "only pages that are needed");
    }

    #[test]
    fn context_keeps_positions_taps_and_pages() {
        let target = target();
        let context = target.context(&[0, 1, 3]);
        let told: Vec<_> =
            context.tokens.iter().map(|t| (t.token, t.position, t.row, t.tap)).collect();
        assert_eq!(told, [(5, 0, 0, 0), (6, 1, 0, 1), (8, 17, 1, 3)]);
        let rows: Vec<_> =
            context.rows.iter().map(|row| (row.start, row.first, row.count)).collect();
        assert_eq!(rows, [(0, 0, 2), (17, 2, 1)]);
        assert_eq!(context.rows[1].pages_at, target.rows[1].pages_at);
        assert!(context.pages.is_empty() && context.wanted.is_empty());
        // A row of which nothing is committed is left out.
        assert_eq!(target.context(&[4]).rows.len(), 1);
    }

    #[test]
    fn drafts_are_an_anchor_and_masks() {
        let target = target();
        let rows = [
            DraftRow { row: 1, anchor: 30, start: 19, draft_count: 3 },
            DraftRow { row: 0, anchor: 31, start: 3, draft_count: 1 },
        ];
        let drafts = target.drafts(&rows, 4);
        let tokens: Vec<_> = drafts.tokens.iter().map(|token| token.token).collect();
        let mask = MASK_TOKEN;
        assert_eq!(tokens, [30, mask, mask, mask, 31, mask, mask, mask]);
        assert_eq!(drafts.tokens[7].position, 6);
        assert_eq!(drafts.wanted, [1, 2, 3, 5]);
        assert_eq!(drafts.rows[0].pages_at, target.rows[1].pages_at);
        let header = include_str!("../../../kernels/include/kilotok/phase/embed.cuh");
        assert!(header.contains("constexpr uint32_t MASK_TOKEN = ~0u;"));
    }

    #[test]
    fn what_is_written_is_where_kernels_look() {
        let target = target();
        let places = Places { tokens: 16, rows: 176, wanted: 304, pages: 320, bytes: 500 };
        let mut bytes = vec![0; places.bytes];
        let end = target.write(&places, 40, &mut bytes);
        assert_eq!(end, 320 + target.pages.len() * 4);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([word(0), word(4), word(8), word(12)], [5, 2, 2, 40]);
        assert_eq!([word(16), word(16 + 16 + 4)], [5, 1], "a token, the position of the next");
        assert_eq!([word(176), word(176 + 32)], [0, 17], "where rows start");
        assert_eq!([word(304), word(308), word(320)], [2, 4, 10]);
        // Without pages the last batch's stay.
        let drafts = target.drafts(&[DraftRow { row: 0, anchor: 1, start: 3, draft_count: 1 }], 4);
        assert!(drafts.write(&places, 41, &mut bytes) <= 320);
        assert_eq!(bytes[320], 10);
    }

    #[test]
    fn a_window_needs_few_pages() {
        let (full, window) = (&GROUPS[0], &GROUPS[1]);
        assert_eq!(pages_max(full, 1000, 64), 250);
        // 9 keys and 64 tokens begin anywhere in a page.
        assert_eq!(pages_max(window, 1000, 64), 20);
        assert_eq!(pages_max(window, 40, 64), 10);
    }
}
