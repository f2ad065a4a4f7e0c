//! What the host uploads for a step. The plan has the batches of all its launches, the counters of
//! their grid barriers, the rows' sampling settings and the pages. The lists have the masks of
//! rows, and of each request that enters a slot its settings, biases, bad words and end tokens.

use std::ops::Range;

use kilotok_abi::{
    BAD_TOKENS_MAX, BAD_WORDS_MAX, BY_MATCH, BY_REJECTION, Batch as Header, Bias, COUNTER_BYTES,
    END_TOKENS_MAX, PLAN_THREAD_BYTES, SampleMemory, SampleRow, Slot, SlotLists, Wanted,
};
use kilotok_batch::{Batch, BatchRow, Sizes, wanted, wanted_tokens};
use kilotok_engine::{Caps, EngineError, PageGroup, Row, RowTokens, SlotSetup, Verification};

use crate::batch::{Arrays, DeviceBatch, DraftRow, DraftShape, Spans, drafts_together};
use crate::buffers::BARRIER_BYTES;
use crate::constants::Constants;
use crate::order;
use crate::wide::{self, WidePlaces, WideStep};

/// Stands for no token, mask or draft.
const NONE: u32 = !0;
/// The alignment of lists: kernels read them in whole words, some of 8 bytes.
const LIST_ALIGNMENT: usize = 16;

/// The layout of the plan, which is copied by one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) target: Arrays,
    /// The header of the context's batch, which shares the target's arrays.
    pub(crate) context: usize,
    /// The header of the batch of the wide pass's head: a kernel writes it (`begin_head` in
    /// `step/wide.cuh`).
    pub(crate) head: usize,
    pub(crate) sample_rows: usize,
    pub(crate) wanted: usize,
    /// As many batches as the drafts of all rows can need.
    pub(crate) drafts: Vec<Arrays>,
    /// [`BARRIER_BYTES`] for each launch: counters, which begin at zero in each step's plan.
    pub(crate) counters: usize,
    /// At the end, because they are the largest part and seldom all used. The arrays of a wide step
    /// follow them.
    pub(crate) pages: usize,
    pub(crate) bytes: usize,
}

impl Places {
    pub(crate) fn new(
        constants: &Constants,
        sizes: &Sizes,
        groups: &[PageGroup],
        wide_capacity: usize,
    ) -> Self {
        let tokens_max = constants.launch.tokens_max;
        let token_max = tokens_max.max(wide_capacity);
        let (rows_max, wanted_max) = wide::rows_and_wanted_max(wide_capacity > 0);
        let row_max = rows_max.min(sizes.slot_count as usize);
        let target = Arrays::new(0, tokens_max);
        let context = target.end;
        let head = context + size_of::<Header>();
        let sample_rows = head + size_of::<Header>();
        let wanted = sample_rows + tokens_max * size_of::<SampleRow>();
        let mut end = wanted + tokens_max * size_of::<Wanted>();
        let draft_batches = match constants.draft_rows {
            0 => 0,
            draft_rows => row_max.div_ceil(drafts_together(tokens_max, draft_rows)),
        };
        let mut draft = || {
            let arrays = Arrays::new(end, tokens_max);
            end = arrays.end;
            arrays
        };
        let drafts = (0..draft_batches).map(|_| draft()).collect();
        let of_row: usize =
            groups.iter().map(|group| pages_max(group, sizes.position_max, token_max)).sum();
        let counters = end.next_multiple_of(COUNTER_BYTES);
        let mut places = Self {
            target,
            context,
            head,
            sample_rows,
            wanted,
            drafts,
            counters,
            pages: 0,
            bytes: 0,
        };
        places.pages = counters + places.launches() * BARRIER_BYTES;
        let wide_counts = if wide_capacity > 0 {
            (wide_capacity, row_max, wanted_max.min(wide_capacity))
        } else {
            Default::default()
        };
        places.bytes = end_of(places.wide(row_max * of_row, wide_counts).end);
        places
    }

    /// The places of a wide step's arrays (tokens, rows and wanted tokens), behind `page_count`
    /// pages.
    fn wide(&self, page_count: usize, counts: (usize, usize, usize)) -> WidePlaces {
        let tokens = self.pages + page_count * size_of::<u32>();
        WidePlaces::new(tokens.next_multiple_of(PLAN_THREAD_BYTES), counts)
    }

    /// Makes every batch empty.
    pub(crate) fn clear(&self, bytes: &mut [u8]) {
        let drafts = self.drafts.iter().map(|arrays| arrays.header);
        let own = [self.target.header, self.context, self.head];
        for header in own.into_iter().chain(drafts) {
            bytes[header..][..size_of::<Header>()].fill(0);
        }
    }

    /// Launches of a step that have collectives.
    pub(crate) fn passes(&self) -> usize {
        order::pass(self.launches())
    }

    /// All launches of a step after that of the plan.
    pub(crate) fn launches(&self) -> usize {
        order::DRAFTS + self.drafts.len()
    }
}

/// The end of a plan, rounded up to the bytes that one thread copies.
fn end_of(bytes: usize) -> usize {
    bytes.next_multiple_of(PLAN_THREAD_BYTES)
}

/// Pages of a group that a row can need in one batch.
fn pages_max(group: &PageGroup, position_max: u32, token_max: usize) -> usize {
    let all = position_max.div_ceil(group.page_tokens) as usize;
    group.window.map_or(all, |keys| {
        // The window before the first token and the tokens; both ends may lie within a page.
        let reach = keys as usize + token_max;
        all.min(reach.div_ceil(group.page_tokens as usize) + 1)
    })
}

/// The most bytes of the lists of a step: a mask for every token, and for every row the lists of a
/// request that enters its slot. A history is no longer than a sequence, and every token has at
/// most one bias.
pub(crate) fn lists_bytes(constants: &Constants, caps: &Caps) -> usize {
    let word = size_of::<u32>();
    let masks = caps.wanted_max as usize * constants.vocab.div_ceil(u32::BITS as usize) * word;
    let of_row = [
        caps.position_max as usize * word,
        constants.vocab * size_of::<Bias>(),
        size_of::<Slot>(),
        BAD_TOKENS_MAX * word,
        BAD_WORDS_MAX * word,
        END_TOKENS_MAX * word,
    ];
    let of_row: usize = of_row.iter().map(|bytes| bytes.next_multiple_of(LIST_ALIGNMENT)).sum();
    masks.next_multiple_of(LIST_ALIGNMENT) + caps.row_max as usize * of_row
}

/// A range of the lists that is copied to an offset of a rank's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) to: usize,
    pub(crate) from: Range<usize>,
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Upload {
    pub(crate) target: DeviceBatch,
    pub(crate) drafts: Vec<DeviceBatch>,
    /// The step's counts and places for the wide pass, if the step takes it.
    pub(crate) wide: Option<WideStep>,
    pub(crate) rows: Vec<SampleRow>,
    wanted: Vec<Wanted>,
    /// In the wide pass: the tokens of which the drafter's context is computed.
    context: Spans,
    /// Masks, then all lists whose length depends on the request. Kernels read them in the host's
    /// memory, except what is copied.
    pub(crate) lists: Vec<u8>,
    pub(crate) copies: Vec<Copy>,
}

impl Upload {
    /// `tables` has offsets in a rank's memory where kernels have addresses. A batch takes `drafts`
    /// drafts of this shape.
    ///
    /// # Errors
    /// [`EngineError::Plan`] for a request that exceeds the tables.
    pub(crate) fn new(
        batch: &Batch<'_>,
        groups: &[PageGroup],
        tables: &SampleMemory,
        (drafts, shape): (usize, DraftShape),
    ) -> Result<Self, EngineError> {
        let target = DeviceBatch::target(batch, &wanted_tokens(batch), groups);
        let mut own = Self { target, ..Self::default() };
        for (index, row) in batch.rows.iter().enumerate() {
            own.add_row(index, row);
        }
        for (index, row) in batch.rows.iter().enumerate() {
            if let Some(setup) = &row.plan.setup {
                let refuse = |reason| EngineError::Plan { row: index, reason };
                own.add_request(index, setup, tables).map_err(refuse)?;
            }
        }
        let asking = batch.rows.iter().enumerate().filter(|(_, row)| row.plan.draft_next > 0);
        let asking = asking
            .map(|(index, row)| DraftRow {
                row: index,
                drawn: row.rule.is_rejection().then_some(row.plan.slot),
                draft_count: row.plan.draft_next,
            })
            .collect::<Vec<_>>();
        for (draft, row) in asking.iter().enumerate() {
            own.rows[row.row].draft = draft as u32;
        }
        own.drafts =
            asking.chunks(drafts.max(1)).map(|rows| own.target.drafts(rows, shape)).collect();
        Ok(own)
    }

    /// Adds the row's sampling settings and masks.
    fn add_row(&mut self, index: usize, row: &BatchRow<'_>) {
        let Row { slot, tokens, sample, masks, logprobs, scored, setup, .. } = row.plan;
        let draft_count = tokens.draft_count();
        let held = matches!(tokens, RowTokens::Held { .. });
        let choice_count = match masks.len() {
            _ if !sample => 0,
            0 => draft_count + 1,
            masks => masks as u32,
        };
        let judged = held && draft_count > 0 && row.rule.is_rejection();
        let rule = if judged { BY_REJECTION } else { BY_MATCH };
        let wanted_first = self.wanted.len() as u32;
        self.wanted.extend(wanted(row).map(|token| Wanted {
            row: index as u32,
            token: token as u32,
            scored: scored.get(token).copied().unwrap_or(NONE),
            reserved: 0,
        }));
        let mask_first = match masks.first() {
            Some(mask) => self.lists.len() / size_of_val(mask.as_slice()),
            None => NONE as usize,
        };
        for mask in masks {
            self.lists.extend_from_slice(bytemuck::cast_slice(mask));
        }
        self.rows.push(SampleRow {
            slot: slot.0,
            known_count: row.known() as u32,
            choice_count,
            fresh: u32::from(setup.is_some()),
            wanted_first,
            wanted_count: self.wanted.len() as u32 - wanted_first,
            mask_first: mask_first as u32,
            top_count: logprobs.unwrap_or(NONE),
            history: 0,
            biases: 0,
            history_count: 0,
            bias_count: 0,
            draft: NONE,
            verified: row.assumed().unwrap_or(rule as u32),
        });
    }

    /// Adds the lists of a request that enters its slot.
    fn add_request(
        &mut self,
        index: usize,
        setup: &SlotSetup,
        tables: &SampleMemory,
    ) -> Result<(), String> {
        let SlotSetup { sampling, prompt_count, logit_bias, bad_words, end_tokens, .. } = setup;
        let mut lists = SlotLists::new(*sampling, *prompt_count, logit_bias, bad_words, end_tokens)
            .map_err(|limit| limit.to_string())?;
        if let Verification::Rejection { draft_temperature } = setup.verification {
            lists.slot.draft_temperature = draft_temperature;
        }
        let slot = self.rows[index].slot as usize;
        let history = if setup.needs_history() { &setup.history[..] } else { &[] };
        let history_at = self.add_list(bytemuck::cast_slice(history)).start as u64;
        let biases_at = self.add_list(bytemuck::cast_slice(&lists.biases)).start as u64;
        let row = &mut self.rows[index];
        (row.history, row.history_count) = (history_at, history.len() as u32);
        (row.biases, row.bias_count) = (biases_at, lists.biases.len() as u32);
        let word = size_of::<u32>();
        for (table, row_bytes, bytes) in [
            (tables.slots, size_of::<Slot>(), bytemuck::bytes_of(&lists.slot)),
            (tables.bad_tokens, BAD_TOKENS_MAX * word, bytemuck::cast_slice(&lists.bad_tokens)),
            (tables.bad_ends, BAD_WORDS_MAX * word, bytemuck::cast_slice(&lists.bad_ends)),
            (tables.end_tokens, END_TOKENS_MAX * word, bytemuck::cast_slice(&lists.end_tokens)),
        ] {
            let from = self.add_list(bytes);
            if !from.is_empty() {
                self.copies.push(Copy { to: table as usize + slot * row_bytes, from });
            }
        }
        Ok(())
    }

    fn add_list(&mut self, bytes: &[u8]) -> Range<usize> {
        self.lists.resize(self.lists.len().next_multiple_of(LIST_ALIGNMENT), 0);
        let start = self.lists.len();
        self.lists.extend_from_slice(bytes);
        start..self.lists.len()
    }

    /// # Errors
    /// [`EngineError::Plan`] if the lists exceed the memory for them, which only happens with a
    /// history beyond the last position.
    pub(crate) fn check(&self, lists_bytes: usize) -> Result<(), EngineError> {
        let bytes = self.lists.len();
        if bytes <= lists_bytes {
            return Ok(());
        }
        let reason = format!("the lists of its step take {bytes} bytes, at most {lists_bytes}");
        Err(EngineError::Plan { row: self.rows.len().saturating_sub(1), reason })
    }

    /// Bytes of everything except the lists, rounded up to the bytes that one thread copies.
    pub(crate) fn bytes(&self, places: &Places) -> usize {
        let pages = places.pages + self.target.pages.len() * size_of::<u32>();
        end_of(self.wide.map_or(pages, |step| step.places.end))
    }

    /// Has the step take the wide pass, with the drafter's context of these spans.
    pub(crate) fn widen(&mut self, places: &Places, context: Spans) {
        let Header { token_count, row_count, wanted_count, .. } = self.target.header(0);
        let counts = (token_count as usize, row_count as usize, wanted_count as usize);
        let places = places.wide(self.target.pages.len(), counts);
        let tail_count = self.target.tail_count();
        let context_count = context.token_count;
        self.context = context;
        self.wide = Some(WideStep {
            token_count,
            row_count,
            wanted_count,
            tail_count,
            context_count,
            places,
        });
    }

    /// Writes everything except the lists, whose address is `lists`. `collectives` is the number of
    /// collectives before the first launch, `of_launch` that of each launch.
    pub(crate) fn write(
        &self,
        places: &Places,
        lists: u64,
        (collectives, of_launch): (u32, u32),
        bytes: &mut [u8],
    ) {
        let at_launch =
            |launch: usize| collectives.wrapping_add(order::pass(launch) as u32 * of_launch);
        let (mut target, sampling) = (places.target, (places.sample_rows, places.wanted));
        let sampling = self.wide.map_or(sampling, |WideStep { places, .. }| {
            let WidePlaces { tokens, rows, wanted, .. } = places;
            target = Arrays { tokens, rows, wanted, ..target };
            (places.sample_rows, places.sample_wanted)
        });
        self.target.write(&target, at_launch(0), bytes);
        for (index, (batch, arrays)) in self.drafts.iter().zip(&places.drafts).enumerate() {
            batch.write(arrays, at_launch(order::DRAFTS + index), bytes);
        }
        let mut write = |place: usize, from: &[u8]| {
            bytes[place..][..from.len()].copy_from_slice(from);
        };
        let context = Header { wanted_count: 0, ..self.target.header(at_launch(order::CONTEXT)) };
        write(places.context, bytemuck::bytes_of(&context));
        if let Some(WideStep { places, token_count, tail_count, .. }) = &self.wide
            && tail_count < token_count
        {
            write(places.tail_row, bytemuck::bytes_of(&self.target.tail_row(*tail_count)));
        }
        if let Some(WideStep { places, .. }) = &self.wide {
            write(places.spans, bytemuck::cast_slice(&self.context.numbers));
        }
        let row = |row: &SampleRow| SampleRow {
            history: lists + row.history,
            biases: lists + row.biases,
            ..*row
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        write(sampling.0, bytemuck::cast_slice(&rows));
        write(sampling.1, bytemuck::cast_slice(&self.wanted));
        write(places.pages, bytemuck::cast_slice(&self.target.pages));
    }
}

#[cfg(test)]
mod tests {
    use kilotok_abi::SlotId;
    use kilotok_batch::Slots;
    use kilotok_engine::StepPlan;

    use super::*;
    use crate::batch::tests::{DRAFTS, GROUPS, row};

    fn tables() -> SampleMemory {
        SampleMemory {
            vocab: 50,
            stride: 64,
            mask_words: 2,
            slots: 1000,
            bad_tokens: 1 << 20,
            bad_ends: 2 << 20,
            end_tokens: 3 << 20,
            ..bytemuck::Zeroable::zeroed()
        }
    }

    fn upload(rows: Vec<Row>) -> Result<Upload, EngineError> {
        let plan = StepPlan { rows };
        let batch = Batch::new(&plan, &Slots::new(3, 50)).unwrap();
        Upload::new(&batch, &GROUPS, &tables(), (2, DRAFTS))
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn rows_name_their_wanted_tokens_masks_and_drafts() {
        let mut rows = vec![row(1, 0, vec![5, 6, 7], 0), row(2, 17, vec![8, 9], 2)];
        rows[0].scored = vec![6, 7];
        rows[0].draft_next = 0;
        rows[1].masks = vec![vec![1, 2]];
        rows[1].logprobs = Some(4);
        let upload = upload(rows).unwrap();
        let wanted: Vec<_> = upload.wanted.iter().map(|w| (w.row, w.token, w.scored)).collect();
        assert_eq!(wanted, [(0, 0, 6), (0, 1, 7), (0, 2, NONE), (1, 1, NONE)]);
        let [first, second] = &upload.rows[..] else { panic!("two rows") };
        assert_eq!((first.wanted_first, first.wanted_count, first.draft), (0, 3, NONE));
        assert_eq!((first.mask_first, first.top_count), (NONE, NONE));
        assert_eq!((second.wanted_first, second.wanted_count, second.draft), (3, 1, 0));
        assert_eq!((second.mask_first, second.top_count), (0, 4));
        assert_eq!([word(&upload.lists, 0), word(&upload.lists, 4)], [1, 2]);
        assert_eq!(upload.drafts.len(), 1);
    }

    #[test]
    fn held_drafts_are_judged_by_their_slots_rule() {
        let sampled = |temperature| {
            let mut row = row(1, 0, vec![5], 0);
            let setup = row.setup.as_mut().unwrap();
            setup.sampling.temperature = temperature;
            setup.verification = Verification::Rejection { draft_temperature: 0.5 };
            StepPlan { rows: vec![row] }
        };
        let mut slots = Slots::new(3, 50);
        let held = |slots: &mut Slots, plan: &StepPlan, masks: usize| {
            slots.enter(&Batch::new(plan, slots).unwrap());
            slots.commit(SlotId(1), 1, &[7]);
            slots.held_mut(SlotId(1)).unwrap().drafts = vec![8, 9];
            let tokens = RowTokens::Held { draft_count: 2 };
            let masks = vec![vec![1, 2]; masks];
            Row { setup: None, tokens, masks, ..row(1, 1, vec![0; 3], 0) }
        };
        let upload = |slots: &Slots, plan: &StepPlan| {
            let batch = Batch::new(plan, slots).unwrap();
            Upload::new(&batch, &GROUPS, &tables(), (2, DRAFTS)).unwrap().rows[0]
        };
        for (temperature, verified) in [(1.0, BY_REJECTION), (0.0, BY_MATCH)] {
            let begins = sampled(temperature);
            let own = upload(&slots, &begins);
            assert_eq!((own.verified, own.choice_count), (BY_MATCH as u32, 1), "no drafts yet");
            for (masks, choice_count) in [(0, 3), (3, 3), (2, 2)] {
                let plan = StepPlan { rows: vec![held(&mut slots, &begins, masks)] };
                let row = upload(&slots, &plan);
                assert_eq!((row.verified, row.choice_count), (verified as u32, choice_count));
            }
        }
    }

    #[test]
    fn a_request_goes_to_its_slots_tables() {
        let mut rows = vec![row(1, 0, vec![5, 6, 7], 0)];
        let setup = rows[0].setup.as_mut().unwrap();
        setup.history = vec![5, 6, 7];
        setup.bad_words = vec![vec![1, 2], vec![3]];
        setup.end_tokens = vec![44];
        setup.logit_bias = vec![(9, 0.5)];
        let upload = upload(rows.clone()).unwrap();
        let read = |to: usize| {
            let copy = upload.copies.iter().find(|copy| copy.to == to).expect("a copy goes there");
            &upload.lists[copy.from.clone()]
        };
        let words = |to: usize| -> Vec<u32> {
            let bytes = read(to);
            (0..bytes.len()).step_by(4).map(|at| word(bytes, at)).collect()
        };
        assert_eq!(words((1 << 20) + BAD_TOKENS_MAX * 4), [1, 2, 3]);
        assert_eq!(words((2 << 20) + BAD_WORDS_MAX * 4), [2, 3]);
        assert_eq!(words((3 << 20) + END_TOKENS_MAX * 4), [44]);
        let slot: Slot = bytemuck::pod_read_unaligned(read(1000 + size_of::<Slot>()));
        assert_eq!((slot.bad_word_count, slot.end_token_count, slot.biased), (2, 1, 1));
        let row = &upload.rows[0];
        assert_eq!((row.fresh, row.history_count, row.bias_count), (1, 3, 1));
        assert_eq!(word(&upload.lists, row.history as usize + 4), 6);
        assert_eq!(word(&upload.lists, row.biases as usize), 9);
        let bytes = upload.lists.len();
        assert_eq!(upload.check(bytes), Ok(()));
        assert!(upload.check(bytes - 1).unwrap_err().to_string().contains("at most"));
        // What exceeds the tables is refused.
        rows[0].setup.as_mut().unwrap().end_tokens = vec![1; END_TOKENS_MAX + 1];
        let refused = super::tests::upload(rows).unwrap_err().to_string();
        assert!(refused.contains("row 0") && refused.contains("end_tokens"), "{refused}");
    }

    #[test]
    fn launches_number_their_collectives_apart() {
        let rows = vec![row(0, 0, vec![5], 0), row(1, 0, vec![6], 0), row(2, 0, vec![7], 0)];
        let upload = upload(rows).unwrap();
        assert_eq!(upload.drafts.len(), 2, "two drafts fit a batch");
        let drafts = vec![Arrays::new(2000, 8), Arrays::new(3000, 8)];
        let target = Arrays::new(0, 8);
        let context = target.end;
        let head = context + size_of::<Header>();
        let (sample_rows, wanted, pages) = (1000, 1500, 4000);
        let counters = 3900;
        let places = Places {
            target,
            context,
            head,
            sample_rows,
            wanted,
            drafts,
            counters,
            pages,
            bytes: 4100,
        };
        let mut bytes = vec![0; places.bytes];
        upload.write(&places, 1 << 32, (40, 7), &mut bytes);
        let pages = upload.target.pages.len() * size_of::<u32>();
        assert_eq!(upload.bytes(&places), (4000 + pages).next_multiple_of(PLAN_THREAD_BYTES));
        let collectives = [0, context, 2000, 3000].map(|header| word(&bytes, header + 12));
        assert_eq!(collectives, [40, 47, 54, 61]);
        assert_eq!(word(&bytes, context + 8), 0, "the context wants no logits");
        let row: SampleRow =
            bytemuck::pod_read_unaligned(&bytes[sample_rows..][..size_of::<SampleRow>()]);
        assert_eq!(row.history >> 32, 1, "lists are named by their address");
        places.clear(&mut bytes);
        assert_eq!([0, context, 2000, 3000].map(|header| word(&bytes, header)), [0; 4]);
    }

    #[test]
    fn arrays_of_a_wide_step_follow_the_pages() {
        let mut upload = upload(vec![row(0, 0, vec![5, 6], 0), row(1, 0, vec![7], 0)]).unwrap();
        let target = Arrays::new(0, 8);
        let (context, sample_rows, wanted, counters, pages) = (500, 1000, 1500, 2000, 3000);
        let head = context + size_of::<Header>();
        let bytes = 4000;
        let drafts = vec![Arrays::new(2100, 8)];
        let places =
            Places { target, context, head, sample_rows, wanted, drafts, counters, pages, bytes };
        upload.widen(&places, Spans::new(&[true; 3]));
        let step = upload.wide.unwrap();
        assert_eq!((step.token_count, step.row_count, step.wanted_count), (3, 2, 2));
        assert_eq!(step.tail_count, 3, "a token of another row than the last is wanted");
        let behind = pages + upload.target.pages.len() * size_of::<u32>();
        let WidePlaces { tokens, rows, tail_row, wanted, sample_rows, sample_wanted, spans, end } =
            step.places;
        assert_eq!((spans, step.context_count), (end - 4, 3), "one span");
        assert!(tokens >= behind && tokens < behind + PLAN_THREAD_BYTES);
        assert_eq!(upload.bytes(&places), end.next_multiple_of(PLAN_THREAD_BYTES));
        let mut bytes = vec![0; places.bytes];
        upload.write(&places, 0, (0, 0), &mut bytes);
        let words = |at: usize, each: usize, count: usize| -> Vec<u32> {
            (0..count).map(|index| word(&bytes, at + index * each)).collect()
        };
        assert_eq!((words(tokens, 16, 3), word(&bytes, target.tokens)), (vec![5, 6, 7], 0));
        assert_eq!(words(rows + 4, 32, 2), [0, 2], "the first token of each row");
        assert_eq!(tail_row, rows + 2 * 32);
        assert_eq!(words(wanted, 4, 2), [1, 2], "of the step's tokens");
        assert_eq!(words(sample_rows, 64, 2), [0, 1], "slots");
        assert_eq!(words(sample_wanted, 16, 2), [0, 1], "rows");
    }

    #[test]
    fn a_window_needs_few_pages() {
        let (full, window) = (&GROUPS[0], &GROUPS[1]);
        assert_eq!(pages_max(full, 1000, 64), 250);
        // 9 keys and 64 tokens may begin anywhere in a page.
        assert_eq!(pages_max(window, 1000, 64), 20);
        assert_eq!(pages_max(window, 40, 64), 10);
    }
}
