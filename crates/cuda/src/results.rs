//! The results of a step in the host's memory, and the output and the slots that follow from them.

use std::ops::Range;

use bytemuck::Pod;
use kilotok_abi::{ChoiceFault, Report, RowChoice, SlotId, TOPS_MAX, TokenId, Top};
use kilotok_batch::{Batch, Slots};
use kilotok_engine::{RowFault, RowOutput, StepOutput, TokenLogprob, TokenLogprobs};

use crate::upload::Upload;

/// Stands for no draft: drawn drafts end before logits that are not finite.
const NO_DRAFT: TokenId = !0;

/// The layout of the host's memory that a rank's kernels write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResultPlaces {
    pub(crate) row_choices: usize,
    pub(crate) chosen: usize,
    /// Chosen drafts. Every batch of drafts has as many places as the longest.
    pub(crate) drafted: usize,
    pub(crate) drafted_each: usize,
    /// Reports and tops are at the end, because few steps read them.
    pub(crate) reports: usize,
    pub(crate) tops: usize,
    pub(crate) bytes: usize,
}

impl ResultPlaces {
    /// Places for this many rows and wanted tokens, and for batches of drafts of `drafted_each`
    /// tokens.
    pub(crate) fn new(
        (rows_max, wanted_max): (usize, usize),
        drafted_each: usize,
        draft_batches: usize,
    ) -> Self {
        let row_choices = 0;
        let chosen = row_choices + rows_max * size_of::<RowChoice>();
        let drafted = chosen + wanted_max * size_of::<u32>();
        let reports = drafted + draft_batches * drafted_each * size_of::<u32>();
        let tops = reports + wanted_max * size_of::<Report>();
        let bytes = tops + wanted_max * TOPS_MAX * size_of::<Top>();
        Self { row_choices, chosen, drafted, drafted_each, reports, tops, bytes }
    }
}

/// What a step must return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    rows: Vec<AskedRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AskedRow {
    slot: SlotId,
    /// The position of the first token to choose, and its index among the wanted tokens. None is
    /// chosen if the row does not sample.
    first: u32,
    sampled: usize,
    /// The successors to report, and the index of the first.
    scored: Vec<TokenId>,
    wanted: usize,
    logprobs: Option<u32>,
    /// Indices of the row's drafts.
    drafts: Range<usize>,
    report_drafts: bool,
}

impl Asked {
    pub(crate) fn new(batch: &Batch<'_>, upload: &Upload, tokens_max: usize) -> Self {
        let mut drafts = draft_places(upload, tokens_max).into_iter();
        let rows = batch.rows.iter().zip(&upload.rows).map(|(row, sample)| AskedRow {
            slot: row.plan.slot,
            first: row.plan.start + sample.known_count,
            sampled: (sample.wanted_first + sample.wanted_count) as usize
                - (row.count - row.known() + 1).min(sample.wanted_count as usize),
            scored: row.plan.scored.clone(),
            wanted: sample.wanted_first as usize,
            logprobs: row.plan.logprobs,
            drafts: if row.plan.draft_next > 0 { drafts.next().unwrap_or(0..0) } else { 0..0 },
            report_drafts: row.plan.report_drafts,
        });
        Self { rows: rows.collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of the results that are read.
    pub(crate) fn bytes(&self, places: &ResultPlaces) -> usize {
        let any = |of: fn(&AskedRow) -> bool| self.rows.iter().any(of);
        if any(|row| row.logprobs.is_some_and(|count| count > 0)) {
            places.bytes
        } else if any(|row| row.logprobs.is_some() || !row.scored.is_empty()) {
            places.tops
        } else {
            places.reports
        }
    }

    /// The output of the step, from the bytes of its results.
    pub(crate) fn output(
        &self,
        bytes: &[u8],
        places: &ResultPlaces,
        slots: &mut Slots,
    ) -> StepOutput {
        let results = Results { bytes, places };
        let rows = self.rows.iter().enumerate();
        StepOutput { rows: rows.map(|(index, row)| row.output(index, &results, slots)).collect() }
    }
}

/// Indices of each row's drafts, in the order of the rows that request some.
fn draft_places(upload: &Upload, tokens_max: usize) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    for (index, batch) in upload.drafts.iter().enumerate() {
        let mut at = index * tokens_max;
        for count in batch.wanted_by_row() {
            places.push(at..at + count);
            at += count;
        }
    }
    places
}

struct Results<'a> {
    bytes: &'a [u8],
    places: &'a ResultPlaces,
}

impl Results<'_> {
    fn read<T: Pod>(&self, place: usize, index: usize) -> T {
        bytemuck::pod_read_unaligned(
            &self.bytes[place + index * size_of::<T>()..][..size_of::<T>()],
        )
    }

    /// The report of a wanted token about its successor.
    fn logprobs(
        &self,
        wanted: usize,
        token: TokenId,
        (logprob, rank): (f32, u32),
        top_count: u32,
    ) -> TokenLogprobs {
        let top = |index| {
            let Top { token, logprob } = self.read(self.places.tops, wanted * TOPS_MAX + index);
            TokenLogprob { token, logprob }
        };
        let chosen = TokenLogprob { token, logprob };
        TokenLogprobs { chosen, rank, top: (0..top_count as usize).map(top).collect() }
    }
}

impl AskedRow {
    fn output(&self, index: usize, results: &Results<'_>, slots: &mut Slots) -> RowOutput {
        let places = results.places;
        let choice: RowChoice = results.read(places.row_choices, index);
        let chosen = |i: usize| results.read(places.chosen, self.sampled + i);
        let tokens: Vec<TokenId> = (0..choice.token_count as usize).map(chosen).collect();
        let top_count = self.logprobs.unwrap_or(0);
        let scored = self.scored.iter().take(choice.scored_count as usize).enumerate();
        let scored = scored.map(|(i, &token)| {
            let report: Report = results.read(places.reports, self.wanted + i);
            let found = (report.scored, report.scored_rank);
            results.logprobs(self.wanted + i, token, found, top_count)
        });
        let scored = scored.collect();
        let reported = if self.logprobs.is_some() { &tokens[..] } else { &[] };
        let logprobs = reported.iter().enumerate().map(|(i, &token)| {
            let report: Report = results.read(places.reports, self.sampled + i);
            let found = (report.chosen, report.chosen_rank);
            results.logprobs(self.sampled + i, token, found, top_count)
        });
        let logprobs = logprobs.collect();
        let (mut held_count, mut drafts) = (0, Vec::new());
        if !tokens.is_empty() {
            slots.commit(self.slot, self.first, &tokens);
            if let Some(held) = slots.held_mut(self.slot) {
                let drafted = self.drafts.clone().map(|place| results.read(places.drafted, place));
                held.drafts = drafted.take_while(|&draft| draft != NO_DRAFT).collect();
                held_count = held.drafts.len() as u32;
                if self.report_drafts {
                    drafts.clone_from(&held.drafts);
                }
            }
        }
        RowOutput { tokens, logprobs, scored, held_count, drafts, fault: fault(&choice) }
    }
}

fn fault(choice: &RowChoice) -> Option<RowFault> {
    let position = choice.fault_position;
    match choice.fault {
        fault if fault == ChoiceFault::None as u32 => None,
        fault if fault == ChoiceFault::NotFinite as u32 => Some(RowFault::NotFinite { position }),
        _ => Some(RowFault::NothingAllowed { position }),
    }
}

#[cfg(test)]
mod tests {
    use kilotok_abi::SampleMemory;
    use kilotok_engine::StepPlan;

    use super::*;
    use crate::batch::tests::{DRAFTS, GROUPS, row};

    const PLACES: ResultPlaces = ResultPlaces {
        row_choices: 0,
        chosen: 128,
        drafted: 160,
        drafted_each: 8,
        reports: 224,
        tops: 352,
        bytes: 352 + 8 * TOPS_MAX * size_of::<Top>(),
    };

    fn write<T: Pod>(bytes: &mut [u8], place: usize, index: usize, value: &T) {
        let size = size_of::<T>();
        bytes[place + index * size..][..size].copy_from_slice(bytemuck::bytes_of(value));
    }

    /// What the step asked for, and the slots that its rows have entered.
    fn asked_of(plan: &StepPlan) -> (Slots, Asked) {
        let mut slots = Slots::new(3, 50);
        let batch = Batch::new(plan, &slots).unwrap();
        let tables: SampleMemory = bytemuck::Zeroable::zeroed();
        let upload = Upload::new(&batch, &GROUPS, &tables, (1, DRAFTS)).unwrap();
        slots.enter(&batch);
        let asked = Asked::new(&batch, &upload, 8);
        (slots, asked)
    }

    #[test]
    fn places_follow_each_other() {
        assert_eq!(ResultPlaces::new((8, 8), 8, 2), PLACES);
    }

    /// A scored prompt without drafts, a row with a fault after one token, one without a token.
    #[test]
    fn results_become_outputs_and_slots() {
        let mut rows =
            vec![row(1, 0, vec![5, 6], 0), row(2, 17, vec![8, 9], 2), row(0, 4, vec![7], 0)];
        (rows[0].scored, rows[0].logprobs, rows[0].draft_next) = (vec![6], Some(1), 0);
        (rows[1].report_drafts, rows[1].draft_next) = (true, 2);
        let plan = StepPlan { rows };
        let (mut slots, asked) = asked_of(&plan);
        let mut bytes = vec![0; PLACES.bytes];
        let fault = ChoiceFault::NotFinite as u32;
        let choices = [(1, 1, 0), (1, 0, fault), (0, 0, ChoiceFault::NothingAllowed as u32)];
        for (index, (token_count, scored_count, fault)) in choices.into_iter().enumerate() {
            let choice = RowChoice { token_count, scored_count, fault, fault_position: 20 };
            write(&mut bytes, PLACES.row_choices, index, &choice);
        }
        // The wanted tokens are both tokens of the first row, then the last of each other one.
        (0..4_u32).for_each(|i| write(&mut bytes, PLACES.chosen, i as usize, &(40 + i)));
        (0..16_u32).for_each(|i| write(&mut bytes, PLACES.drafted, i as usize, &i));
        for index in 0..2 {
            let chosen = -1.0 - index as f32;
            let report = Report { chosen, chosen_rank: 3, scored: chosen - 0.5, scored_rank: 4 };
            write(&mut bytes, PLACES.reports, index, &report);
            let top = Top { token: 20 + index as u32, logprob: -0.25 };
            write(&mut bytes, PLACES.tops, index * TOPS_MAX, &top);
        }
        assert_eq!(asked.bytes(&PLACES), PLACES.bytes);
        let out = asked.output(&bytes, &PLACES, &mut slots).rows;
        assert_eq!(out[0].tokens, [41]);
        let told = |found: &TokenLogprobs| (found.chosen.token, found.chosen.logprob, found.rank);
        assert_eq!(told(&out[0].logprobs[0]), (41, -2.0, 3));
        assert_eq!(told(&out[0].scored[0]), (6, -1.5, 4));
        assert_eq!((out[0].logprobs[0].top[0].token, out[0].scored[0].top[0].token), (21, 20));
        assert_eq!((&out[1].tokens[..], &out[1].drafts[..]), (&[42][..], &[0, 1][..]));
        assert_eq!([0, 1, 2].map(|row: usize| out[row].held_count), [0, 2, 0]);
        assert_eq!(out[1].fault, Some(RowFault::NotFinite { position: 20 }));
        assert_eq!(out[2].fault, Some(RowFault::NothingAllowed { position: 20 }));
        assert_eq!(slots.held(SlotId(2), 2), [42, 0, 1]);
        assert_eq!(slots.held(SlotId(1), 0), [41]);
        assert!(slots.held_mut(SlotId(0)).is_none() && out[2].drafts.is_empty());
    }

    /// A drafter's logits that are not finite end the drafts, and the scheduler is told.
    #[test]
    fn drawn_drafts_end_where_none_could_be_drawn() {
        let plan = StepPlan { rows: vec![row(1, 0, vec![5, 6], 0)] };
        let (mut slots, asked) = asked_of(&plan);
        let mut bytes = vec![0; PLACES.bytes];
        let choice = RowChoice { token_count: 1, scored_count: 0, fault: 0, fault_position: 0 };
        write(&mut bytes, PLACES.row_choices, 0, &choice);
        for (index, draft) in [7, NO_DRAFT, 8].into_iter().enumerate() {
            write(&mut bytes, PLACES.drafted, index, &draft);
        }
        let out = asked.output(&bytes, &PLACES, &mut slots).rows;
        assert_eq!(out[0].held_count, 1);
        assert_eq!(slots.held(SlotId(1), 1), [0, 7]);
    }
}
