//! Batches in the kernels' layout: the tokens of each row, where logits are needed, and the pages
//! of every row.

use kilotok_abi::{Batch as Header, BatchRow, BatchToken, GROUPS_MAX, SPAN_TOKENS, SlotId};
use kilotok_batch::Batch;
use kilotok_engine::{PageGroup, Row};
use kilotok_model::ModelSpec;

/// A token without a row in the embedding: the mask that a drafter brings, as in `phase/embed.cuh`.
const MASK_TOKEN: u32 = !0;

/// The slot of rows whose drafts are the likeliest tokens.
const NO_SLOT: u32 = !0;

/// The layout of a batch: a header, then arrays for the longest batch, as `DraftBatch` in
/// `kernels/step/verify.cuh`, which compares them at compile time. Pages are stored elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrays {
    pub(crate) header: usize,
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
    pub(crate) wanted: usize,
    pub(crate) end: usize,
}

impl Arrays {
    pub(crate) fn new(header: usize, tokens_max: usize) -> Self {
        let tokens = header + size_of::<Header>();
        let rows = tokens + tokens_max * size_of::<BatchToken>();
        let wanted = rows + tokens_max * size_of::<BatchRow>();
        Self { header, tokens, rows, wanted, end: wanted + tokens_max * size_of::<u32>() }
    }
}

/// The number of drafts of `draft_rows` rows that one batch holds. Without drafts it is one, as in
/// the kernels.
pub(crate) fn drafts_together(tokens_max: usize, draft_rows: usize) -> usize {
    tokens_max.checked_div(draft_rows).unwrap_or(1)
}

/// The rows of one draft: the newest token, then masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DraftShape {
    /// 0 without a drafter.
    pub(crate) rows: usize,
    pub(crate) mask: u32,
}

impl DraftShape {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        spec.drafter.as_ref().map_or(Self { rows: 0, mask: MASK_TOKEN }, |drafter| Self {
            rows: drafter.rows,
            mask: if drafter.own_mask { MASK_TOKEN } else { drafter.mask_token },
        })
    }
}

/// A batch for one launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeviceBatch {
    tokens: Vec<BatchToken>,
    rows: Vec<BatchRow>,
    wanted: Vec<u32>,
    pub(crate) pages: Vec<u32>,
}

/// Spans of a step's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans {
    /// Ascending.
    pub(crate) numbers: Vec<u32>,
    /// Tokens of all of them.
    pub(crate) token_count: u32,
}

impl Spans {
    /// The spans that have one of the tokens that are `true`.
    pub(crate) fn new(tokens: &[bool]) -> Self {
        let spans = (0..).zip(tokens.chunks(SPAN_TOKENS));
        let (numbers, counts): (Vec<u32>, Vec<u32>) = spans
            .filter(|(_, span)| span.contains(&true))
            .map(|(number, span)| (number, span.len() as u32))
            .unzip();
        Self { numbers, token_count: counts.iter().sum() }
    }
}

/// A row for which drafts are requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DraftRow {
    /// Index in the target's batch.
    pub(crate) row: usize,
    /// The row's slot, if the drafts are drawn.
    pub(crate) drawn: Option<SlotId>,
    pub(crate) draft_count: u32,
}

impl DeviceBatch {
    /// The target's batch: all tokens of the plan's rows, and the pages of every group.
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

    /// A batch of drafts of rows of the target's batch: the newest token of each, then masks. The
    /// verify kernel writes that token and its position.
    pub(crate) fn drafts(&self, rows: &[DraftRow], shape: DraftShape) -> Self {
        let mut own = Self::default();
        for row in rows {
            let first = own.tokens.len();
            own.add_row(0, shape.rows, self.rows[row.row].pages_at);
            if let (Some(slot), Some(own)) = (row.drawn, own.rows.last_mut()) {
                own.slot = slot.0;
            }
            own.tokens[first..].iter_mut().for_each(|token| token.token = shape.mask);
            let drafted = first as u32 + 1..=first as u32 + row.draft_count;
            own.wanted.extend(drafted);
        }
        own
    }

    /// Adds the pages that a row reads and writes. Returns for each group the index at which page 0
    /// of the sequence would be.
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
        self.rows.push(BatchRow { start, first, count: count as u32, slot: NO_SLOT, pages_at });
        let token = |position| BatchToken { token: 0, position, row, tap: 0 };
        self.tokens.extend((start..start + count as u32).map(token));
    }

    /// The number of the last tokens of the last row, if these are the wanted ones; otherwise that
    /// of all tokens.
    pub(crate) fn tail_count(&self) -> u32 {
        let count = self.tokens.len() as u32;
        let first = count - self.wanted.len() as u32;
        let together = self.wanted.iter().copied().eq(first..count);
        let in_last = self.rows.last().is_some_and(|row| row.first <= first);
        if together && in_last { count - first } else { count }
    }

    /// The last `count` tokens of the last row, as the only row of a batch.
    pub(crate) fn tail_row(&self, count: u32) -> BatchRow {
        let row = self.rows.last().expect("a step has rows");
        BatchRow { start: row.start + row.count - count, first: 0, count, ..*row }
    }

    pub(crate) fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// The number of wanted tokens of each row.
    pub(crate) fn wanted_by_row(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().map(|row| {
            let own = row.first..row.first + row.count;
            self.wanted.iter().filter(|token| own.contains(token)).count()
        })
    }

    /// The batch's header; `collectives` is the number of collectives before the launch.
    pub(crate) fn header(&self, collectives: u32) -> Header {
        Header {
            token_count: self.tokens.len() as u32,
            row_count: self.rows.len() as u32,
            wanted_count: self.wanted.len() as u32,
            collectives,
        }
    }

    /// Writes everything except the pages.
    pub(crate) fn write(&self, arrays: &Arrays, collectives: u32, bytes: &mut [u8]) {
        let mut write = |place: usize, from: &[u8]| {
            bytes[place..][..from.len()].copy_from_slice(from);
        };
        write(arrays.header, bytemuck::bytes_of(&self.header(collectives)));
        write(arrays.tokens, bytemuck::cast_slice(&self.tokens));
        write(arrays.rows, bytemuck::cast_slice(&self.rows));
        write(arrays.wanted, bytemuck::cast_slice(&self.wanted));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kilotok_abi::{PageId, Sampling, TokenId};
    use kilotok_batch::Slots;
    use kilotok_engine::{PageKind, PageRun, RowTokens, SlotSetup, StepPlan};
    use kilotok_testkit::Toy;

    use super::*;

    pub(crate) const DRAFTS: DraftShape = DraftShape { rows: 4, mask: 17 };
    pub(crate) const GROUPS: [PageGroup; 2] =
        [group(PageKind::Full, None), group(PageKind::Draft, Some(9))];

    const fn group(kind: PageKind, window: Option<u32>) -> PageGroup {
        PageGroup { kind, page_tokens: 4, page_count: 100, window, page_bytes: 0 }
    }

    pub(crate) fn row(slot: u32, start: u32, tokens: Vec<TokenId>, first_page: u32) -> Row {
        let end = (start + tokens.len() as u32).div_ceil(4);
        let run = |first: u32| PageRun {
            first,
            // One page more than is needed.
            pages: (first..=end).map(|page| PageId(10 * slot + page)).collect(),
        };
        Row {
            setup: Some(Box::new(SlotSetup::new(Sampling::GREEDY, 1))),
            pages: vec![run(0), run(first_page)],
            draft_next: 3,
            ..Row::new(SlotId(slot), start, RowTokens::Given { tokens, draft_count: 0 })
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
        let progress: Vec<_> =
            target.tokens.iter().map(|t| (t.token, t.position, t.row, t.tap)).collect();
        let meant = [(5, 0, 0, 0), (6, 1, 0, 1), (7, 2, 0, 2), (8, 17, 1, 3), (9, 18, 1, 4)];
        assert_eq!(progress, meant);
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
    fn wanted_tokens_at_the_end_are_a_row_of_their_own() {
        let rows = vec![row(1, 0, vec![5, 6, 7], 0), row(2, 17, vec![8, 9], 2)];
        let plan = StepPlan { rows };
        let batch = Batch::new(&plan, &Slots::new(3, 50)).unwrap();
        let tail = |wanted: &[usize]| DeviceBatch::target(&batch, wanted, &GROUPS).tail_count();
        assert_eq!([tail(&[]), tail(&[4]), tail(&[3, 4])], [0, 1, 2]);
        assert_eq!([tail(&[3]), tail(&[2, 4]), tail(&[2, 3, 4])], [5; 3], "not at the end");
        let target = DeviceBatch::target(&batch, &[4], &GROUPS);
        let (row, tail) = (target.rows[1], target.tail_row(1));
        assert_eq!((tail.start, tail.first, tail.count), (18, 0, 1));
        assert_eq!(tail.pages_at, row.pages_at);
    }

    #[test]
    fn the_context_has_the_spans_that_later_rows_read() {
        // A window of 9 in pages of 4. The second row begins at token 300.
        let found = |first: &[u32], second: &[u32]| {
            let mut rows = vec![row(0, 0, vec![5; 300], 0), row(1, 0, vec![7; 90], 0)];
            (rows[0].later_starts, rows[1].later_starts) = (first.to_vec(), second.to_vec());
            let plan = StepPlan { rows };
            let batch = Batch::new(&plan, &Slots::new(3, 50)).unwrap();
            let Spans { numbers, token_count } = Spans::new(&batch.in_context(&GROUPS));
            (numbers, token_count)
        };
        assert_eq!(found(&[], &[]), (vec![0, 1, 2, 3], 390), "they may start anywhere");
        assert_eq!(found(&[100, 300], &[88]), (vec![0, 2, 3], 262));
        assert_eq!(found(&[130, 140], &[88]), (vec![0, 1, 2, 3], 390));
        assert_eq!(found(&[300], &[30, 80]), (vec![2, 3], 134));
        assert_eq!(found(&[300], &[30, 40]), (vec![2, 3], 134), "all after the last");
    }

    #[test]
    fn drafts_are_masks_after_a_token() {
        let target = target();
        let likeliest = DraftRow { row: 1, drawn: None, draft_count: 3 };
        let rows = [likeliest, DraftRow { row: 0, drawn: Some(SlotId(5)), draft_count: 1 }];
        let drafts = target.drafts(&rows, DRAFTS);
        assert_eq!(drafts.tokens.len(), 8);
        let masks = [1, 2, 3, 5, 6, 7].map(|index: usize| drafts.tokens[index].token);
        assert_eq!(masks, [DRAFTS.mask; 6]);
        assert_eq!(drafts.wanted, [1, 2, 3, 5]);
        assert_eq!(drafts.rows[0].pages_at, target.rows[1].pages_at);
        assert_eq!((drafts.rows[1].first, drafts.rows[1].count), (4, 4));
        assert_eq!([drafts.rows[0].slot, drafts.rows[1].slot], [NO_SLOT, 5]);
    }

    #[test]
    fn a_mask_is_the_drafters_own_or_a_token_of_the_target() {
        let (own, targets) = (Toy::pro_fp4().spec(), Toy::gpt_oss().spec());
        assert_eq!(DraftShape::new(&own).mask, MASK_TOKEN);
        assert_eq!(DraftShape::new(&targets), DraftShape { rows: 10, mask: 252 });
        let header = include_str!("../../../kernels/include/kilotok/phase/embed.cuh");
        assert!(header.contains("constexpr uint32_t MASK_TOKEN = ~0u;"));
    }

    #[test]
    fn what_is_written_is_where_kernels_look() {
        let target = target();
        let arrays = Arrays::new(32, 8);
        assert_eq!((arrays.tokens, arrays.rows, arrays.wanted, arrays.end), (48, 176, 432, 464));
        let mut bytes = vec![0; arrays.end];
        target.write(&arrays, 40, &mut bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([word(32), word(36), word(40), word(44)], [5, 2, 2, 40]);
        assert_eq!([word(48), word(48 + 16 + 4)], [5, 1], "a token, the position of the next");
        assert_eq!([word(176), word(176 + 32)], [0, 17], "where rows start");
        assert_eq!([word(432), word(436)], [2, 4]);
    }
}
