//! The layout of a rank's memory, and the addresses in it that kernels are given.

use std::collections::BTreeMap;

use kilotok_abi::{
    BAD_TOKENS_MAX, BAD_WORDS_MAX, CANDIDATES_MAX, ChoicePart, DraftMemory, END_TOKENS_MAX, Judged,
    LayerMemory, Memory, PARTS_MAX, Peers, RECENT_MAX, STAMPS_MAX, SampleMemory, Slot, Stamped,
    VerifyMemory, WideMemory,
};
use kilotok_batch::{Grouping, Sizes};
use kilotok_engine::PageGroup;
use kilotok_model::{ModelSpec, Part};

use crate::buffers::{BARRIER_BYTES, Buffer, LayerBuffer, Working, weight_buffers};
use crate::constants::{Constants, LayerKinds};
use crate::memory_map::MemoryMap;
use crate::order;
use crate::results::ResultPlaces;
use crate::upload::Places;
use crate::wide;

/// Bytes of the stamps of one launch.
const LAUNCH_STAMP_BYTES: usize = STAMPS_MAX * size_of::<Stamped>();
/// The tap of a layer that is not tapped.
const NO_TAP: u32 = !0;

/// The plan of a rank's memory. It is made twice: at address 0 to find how much memory to take,
/// then at the address of that memory.
pub(crate) struct Layout {
    pub(crate) map: MemoryMap,
    /// The addresses of weights.
    pub(crate) weights: BTreeMap<Buffer, u64>,
    /// The argument of the target's kernels, without the fields that only a rank can fill in.
    pub(crate) memory: Memory,
    pub(crate) sampling: SampleMemory,
    drafting: DraftMemory,
    /// The memory of wide steps, if there is room for any.
    pub(crate) wide: Option<WideMemory>,
    /// Numbers from 0 on: the wanted tokens of the wide pass's head.
    head_wanted: u64,
    /// Offsets in the buffer for the host's uploads.
    pub(crate) upload: Places,
    /// Offsets in the host's memory for results.
    pub(crate) results: ResultPlaces,
    /// Bytes of the stamps of each launch; 0 in kernels without stamps.
    pub(crate) stamp_bytes: usize,
    /// The receive buffer, to which other ranks write.
    pub(crate) receiver: u64,
    layers: Vec<LayerMemory>,
    draft_layers: Vec<LayerMemory>,
}

impl Layout {
    pub(crate) fn new(
        spec: &ModelSpec,
        constants: &Constants,
        sizes: &Sizes,
        grouping: &Grouping,
        Extent { stamps, wide_capacity }: Extent,
        base: u64,
    ) -> Self {
        let mut map = MemoryMap::new(base);
        let mut weights = BTreeMap::new();
        for (buffer, bytes) in weight_buffers(spec, constants) {
            weights.insert(buffer, map.add(part_of(buffer), format!("{buffer:?}"), bytes as u64));
        }
        let taps = spec.drafter.as_ref().map_or(&[][..], |drafter| &drafter.taps);
        let tap =
            |index| taps.iter().position(|tap| *tap == index).map_or(NO_TAP, |tap| tap as u32);
        let mut layers = |part, kinds: &[LayerKinds], groups: &[usize]| -> Vec<LayerMemory> {
            let layers = kinds.iter().zip(groups).enumerate();
            let layer = layers.map(|(index, (kinds, group))| {
                let tap = if part == Part::Target { tap(index) } else { NO_TAP };
                let group = &grouping.groups[*group];
                layer(&mut map, &weights, constants, (part, index), *kinds, group, tap)
            });
            layer.collect()
        };
        let target = layers(Part::Target, &constants.layers, &grouping.target);
        let draft_layers = layers(Part::Drafter, &constants.draft_layers, &grouping.drafter);
        let working = Working::new(constants);
        let upload = Places::new(constants, sizes, &grouping.groups, wide_capacity);
        let stamp_bytes = if stamps { upload.launches() * LAUNCH_STAMP_BYTES } else { 0 };
        let limits = wide::rows_and_wanted_max(wide_capacity > 0);
        let results = ResultPlaces::new(limits, constants.launch.tokens_max, upload.drafts.len());
        let mut memory = memory(&mut map, &weights, &working, &upload);
        memory.barrier = memory.batch + upload.counters as u64;
        if stamps {
            memory.trace = map.add("work", "stamps".to_owned(), stamp_bytes as u64);
        }
        let head_wanted = map.add("work", "head_wanted".to_owned(), word_bytes(constants));
        let head_batch = memory.batch + upload.head as u64;
        let wide = (wide_capacity > 0)
            .then(|| wide::memory(&mut map, constants, wide_capacity, head_batch));
        let receiver = map.add("work", "receiver".to_owned(), working.receiver as u64);
        let sampling = SampleMemory {
            rows: memory.batch + upload.sample_rows as u64,
            wanted: memory.batch + upload.wanted as u64,
            drafts: memory.batch + upload.drafts.first().map_or(0, |first| first.header as u64),
            logits: working.gathered.map_or(memory.logits, |place| receiver + place as u64),
            ..tables(&mut map, constants, sizes.slot_count as usize, limits.1)
        };
        let drafting = drafting(&mut map, &working, &sampling);
        Self {
            map,
            weights,
            memory,
            sampling,
            drafting,
            wide,
            head_wanted,
            upload,
            results,
            stamp_bytes,
            receiver,
            layers: target,
            draft_layers,
        }
    }

    /// The arguments of each launch, from that of the target and the address of results.
    pub(crate) fn arguments(&self, target: &Memory, results: u64) -> Arguments {
        let result = |place: usize| results + place as u64;
        let drafted = result(self.results.drafted);
        let sampling = SampleMemory {
            row_choices: result(self.results.row_choices),
            chosen: result(self.results.chosen),
            reports: result(self.results.reports),
            tops: result(self.results.tops),
            ..self.sampling
        };
        let stamps = if self.stamp_bytes > 0 { LAUNCH_STAMP_BYTES } else { 0 };
        let launch = |index: usize| Memory {
            barrier: target.barrier + (index * BARRIER_BYTES) as u64,
            trace: target.trace + (index * stamps) as u64,
            ..*target
        };
        let place = |place: usize| target.batch + place as u64;
        let drafts = self.upload.drafts.iter().enumerate();
        let drafts = drafts.map(|(index, arrays)| Memory {
            batch: place(arrays.header),
            tokens: place(arrays.tokens),
            rows: place(arrays.rows),
            wanted: place(arrays.wanted),
            drafted: drafted + (index * self.results.drafted_each * size_of::<u32>()) as u64,
            ..launch(order::DRAFTS + index)
        });
        Arguments {
            verify: VerifyMemory { memory: launch(order::VERIFY), sampling },
            context: Memory { batch: place(self.upload.context), ..launch(order::CONTEXT) },
            head: Memory {
                batch: place(self.upload.head),
                wanted: self.head_wanted,
                // The launches of the wide pass stamp in that of the target.
                trace: launch(order::VERIFY).trace,
                ..launch(0)
            },
            wide: self.wide,
            drafts: drafts.collect(),
            target: *target,
        }
    }

    /// Tables that kernels read: their addresses and bytes.
    pub(crate) fn tables(&self, constants: &Constants) -> [(u64, Vec<u8>); 5] {
        let bytes = |layers: &[LayerMemory]| bytemuck::cast_slice(layers).to_vec();
        let frequencies = bytemuck::cast_slice(&constants.frequencies()).to_vec();
        let numbers: Vec<u32> = (0..constants.launch.tokens_max as u32).collect();
        [
            (self.memory.layers, bytes(&self.layers)),
            (self.memory.draft_layers, bytes(&self.draft_layers)),
            (self.memory.frequencies, frequencies),
            (self.head_wanted, bytemuck::cast_slice(&numbers).to_vec()),
            (self.memory.drafting, bytemuck::bytes_of(&self.drafting).to_vec()),
        ]
    }
}

/// The arguments of a step's launches.
pub(crate) struct Arguments {
    pub(crate) target: Memory,
    pub(crate) verify: VerifyMemory,
    pub(crate) context: Memory,
    pub(crate) drafts: Vec<Memory>,
    /// The argument of the head after the wide pass, and the fields that all launches of the wide
    /// pass share.
    pub(crate) head: Memory,
    pub(crate) wide: Option<WideMemory>,
}

/// What options add to a rank's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) stamps: bool,
    /// Tokens of a step of the wide pass, at most.
    pub(crate) wide_capacity: usize,
}

/// Bytes of an array that has a word for each token of the narrow pass.
fn word_bytes(constants: &Constants) -> u64 {
    (constants.launch.tokens_max * size_of::<u32>()) as u64
}

fn part_of(buffer: Buffer) -> &'static str {
    match buffer {
        Buffer::Embedding | Buffer::FinalNorm | Buffer::Head => "embedding and head",
        Buffer::Layer(Part::Target, ..) => "weights of the layers",
        Buffer::DraftFc | Buffer::DraftContextNorm | Buffer::DraftNorm | Buffer::DraftMask => {
            "weights of the drafter"
        }
        Buffer::Layer(Part::Drafter, ..) => "weights of the drafter's layers",
    }
}

/// Places a layer's pages in the map.
fn layer(
    map: &mut MemoryMap,
    weights: &BTreeMap<Buffer, u64>,
    constants: &Constants,
    (part, index): (Part, usize),
    kinds: LayerKinds,
    group: &PageGroup,
    tap: u32,
) -> LayerMemory {
    let of = |buffer| weights.get(&Buffer::Layer(part, index, buffer)).copied().unwrap_or_default();
    let (key_bytes, value_bytes) = constants.page_bytes(kinds.attention);
    let mut pages = |what: &str, bytes: usize| {
        let bytes = u64::from(group.page_count).saturating_mul(bytes as u64);
        map.add("pages", format!("{part:?} layer {index} {what}"), bytes)
    };
    LayerMemory {
        attention: kinds.attention as u32,
        feed_forward: kinds.feed_forward as u32,
        tap,
        reserved: 0,
        input_norm: of(LayerBuffer::InputNorm),
        qkv: of(LayerBuffer::Qkv),
        qkv_bias: of(LayerBuffer::QkvBias),
        q_norm: of(LayerBuffer::QueryNorm),
        k_norm: of(LayerBuffer::KeyNorm),
        sinks: of(LayerBuffer::Sinks),
        output: of(LayerBuffer::Output),
        output_bias: of(LayerBuffer::OutputBias),
        post_norm: of(LayerBuffer::PostNorm),
        router: of(LayerBuffer::Router),
        router_bias: of(LayerBuffer::RouterBias),
        gate_up: of(LayerBuffer::GateUp),
        gate_up_bias: of(LayerBuffer::GateUpBias),
        down: of(LayerBuffer::Down),
        down_bias: of(LayerBuffer::DownBias),
        keys: pages("keys", key_bytes),
        values: pages("values", value_bytes),
    }
}

/// Places the buffers of a step. Buffers that the model has no use for are not read.
fn memory(
    map: &mut MemoryMap,
    weights: &BTreeMap<Buffer, u64>,
    working: &Working,
    upload: &Places,
) -> Memory {
    let of = |buffer| weights.get(&buffer).copied().unwrap_or_default();
    let batch = map.add("batch", "batch".to_owned(), upload.bytes as u64);
    let mut work = |name: &str, bytes: usize| map.add("work", name.to_owned(), bytes as u64);
    Memory {
        batch,
        tokens: batch + upload.target.tokens as u64,
        rows: batch + upload.target.rows as u64,
        wanted: batch + upload.target.wanted as u64,
        pages: batch + upload.pages as u64,
        layers: work("layers", working.layers),
        draft_layers: work("draft_layers", working.draft_layers),
        embedding: of(Buffer::Embedding),
        final_norm: of(Buffer::FinalNorm),
        head: of(Buffer::Head),
        draft_fc: of(Buffer::DraftFc),
        draft_context_norm: of(Buffer::DraftContextNorm),
        draft_norm: of(Buffer::DraftNorm),
        draft_mask: of(Buffer::DraftMask),
        frequencies: work("frequencies", working.frequencies),
        angles: work("angles", working.angles),
        normed: work("normed", working.normed),
        squares: work("squares", working.squares),
        projected: work("projected", working.projected),
        queries: work("queries", working.queries),
        own_keys: work("own_keys", working.own_keys),
        own_values: work("own_values", working.own_values),
        attention_parts: work("attention_parts", working.attention_parts),
        attended: work("attended", working.attended),
        router_parts: work("router_parts", working.router_parts),
        router_scores: work("router_scores", working.router_scores),
        dense_inner: work("dense_inner", working.dense_inner),
        expert_inner: work("expert_inner", working.expert_inner),
        taps: work("taps", working.taps),
        fused: work("fused", working.fused),
        logits: work("logits", working.logits),
        drafting: work("drafting", size_of::<DraftMemory>()),
        drafted: 0,
        barrier: 0,
        fault: 0,
        rank: 0,
        wait_max_ms: 0,
        peers: work("peers", size_of::<Peers>()),
        trace: 0,
        timestamps: 0,
    }
}

/// Places the buffers in which drafts are chosen.
fn drafting(map: &mut MemoryMap, working: &Working, sampling: &SampleMemory) -> DraftMemory {
    let mut work = |name: &str, bytes: usize| map.add("work", name.to_owned(), bytes as u64);
    DraftMemory {
        parts: work("draft_parts", working.draft_parts),
        candidates: work("draft_candidates", working.draft_candidates),
        slots: sampling.slots,
        proposals: sampling.proposals,
    }
}

/// Places the slots' tables and the working buffers of sampling.
fn tables(
    map: &mut MemoryMap,
    constants: &Constants,
    slot_count: usize,
    wanted_max: usize,
) -> SampleMemory {
    let (word, stride) = (size_of::<u32>(), constants.logits_stride());
    let tokens_max = constants.launch.tokens_max;
    let drafted_max = if constants.draft_rows > 0 { wanted_max } else { 0 };
    let mut take = |name: &str, count: usize, bytes: usize| {
        map.add("slots and sampling", name.to_owned(), (count * bytes) as u64)
    };
    let mut of_slots = |name, bytes| take(name, slot_count, bytes);
    SampleMemory {
        vocab: constants.vocab as u32,
        stride: stride as u32,
        mask_words: constants.vocab.div_ceil(u32::BITS as usize) as u32,
        reserved: 0,
        slots: of_slots("slots", size_of::<Slot>()),
        biases: of_slots("biases", stride * word),
        counts: of_slots("counts", stride * size_of::<u16>()),
        recent: of_slots("recent", RECENT_MAX * word),
        bad_tokens: of_slots("bad_tokens", BAD_TOKENS_MAX * word),
        bad_ends: of_slots("bad_ends", BAD_WORDS_MAX * word),
        end_tokens: of_slots("end_tokens", END_TOKENS_MAX * word),
        proposals: of_slots("proposals", constants.laws_bytes()),
        rows: 0,
        wanted: 0,
        masks: 0,
        processed: take("processed", tokens_max, stride * word),
        choice_parts: take("choice_parts", wanted_max, PARTS_MAX * size_of::<ChoicePart>()),
        judged: take("judged", drafted_max, CANDIDATES_MAX * size_of::<Judged>()),
        row_choices: 0,
        chosen: 0,
        reports: 0,
        tops: 0,
        logits: 0,
        drafts: 0,
    }
}

#[cfg(test)]
mod tests {
    use kilotok_batch::Sizes;
    use kilotok_testkit::Toy;

    use super::*;
    use crate::constants::Launch;
    use crate::engine::TOKENS_MAX;

    const BASE: u64 = 1 << 40;

    fn layout(spec: &ModelSpec, base: u64) -> (Layout, Constants) {
        layout_with(spec, 1, false, base)
    }

    fn sizes(rank_count: usize) -> Sizes {
        Sizes { rank_count, token_max: TOKENS_MAX, page_count: 7, ..Sizes::default() }
    }

    fn layout_with(spec: &ModelSpec, ranks: usize, stamps: bool, base: u64) -> (Layout, Constants) {
        let sizes = sizes(ranks);
        let page_tokens = sizes.page_tokens as usize;
        let launch = Launch { ranks, grid: 132, tokens_max: TOKENS_MAX as usize, page_tokens };
        let constants = Constants::new(spec, launch).unwrap();
        let grouping = sizes.groups(spec, 2);
        let extent = Extent { stamps, wide_capacity: 0 };
        (Layout::new(spec, &constants, &sizes, &grouping, extent, base), constants)
    }

    #[test]
    fn both_plans_are_the_same_but_for_the_base() {
        let spec = Toy::pro_fp4().spec();
        let ((at_zero, _), (at_base, constants)) = (layout(&spec, 0), layout(&spec, BASE));
        assert_eq!(at_zero.map.bytes(), at_base.map.bytes());
        assert_eq!(at_zero.memory.logits + BASE, at_base.memory.logits);
        let end = BASE + at_base.map.bytes();
        for (address, bytes) in at_base.tables(&constants) {
            assert!(address >= BASE && address + bytes.len() as u64 <= end);
        }
    }

    #[test]
    fn every_launch_has_room_for_its_stamps_where_they_are_wanted() {
        let spec = Toy::pro_fp4().spec();
        let ((without, _), (with, _)) = (layout(&spec, BASE), layout_with(&spec, 1, true, BASE));
        let places = |layout: &Layout| {
            let Arguments { target, verify, context, drafts, .. } =
                layout.arguments(&layout.memory, 0);
            let drafts = drafts.iter().map(|memory| memory.trace);
            let first = [target.trace, verify.memory.trace, context.trace];
            first.into_iter().chain(drafts).collect::<Vec<_>>()
        };
        assert!(places(&without).iter().all(|place| *place == 0));
        assert_eq!(without.map.bytes() + with.stamp_bytes as u64, with.map.bytes());
        let end = with.memory.trace + with.stamp_bytes as u64;
        let each = (with.memory.trace..end).step_by(STAMPS_MAX * size_of::<Stamped>());
        assert_eq!(places(&with), each.collect::<Vec<_>>());
    }

    #[test]
    fn layers_have_their_pages_and_taps() {
        for spec in [Toy::flash().spec(), Toy::pro_fp4().spec()] {
            let (layout, constants) = layout(&spec, BASE);
            let drafter = spec.drafter.as_ref().unwrap();
            let taps = layout.layers.iter().enumerate().filter(|(_, layer)| layer.tap != NO_TAP);
            let mut taps: Vec<_> = taps.map(|(index, layer)| (layer.tap, index)).collect();
            taps.sort_unstable();
            assert_eq!(taps.iter().map(|(_, index)| *index).collect::<Vec<_>>(), drafter.taps);
            assert!(layout.draft_layers.iter().all(|layer| layer.tap == NO_TAP));
            for (layer, kinds) in layout.layers.iter().zip(&constants.layers) {
                let (keys, _) = constants.page_bytes(kinds.attention);
                assert!(layer.values >= layer.keys + 7 * keys as u64, "keys before values");
                let experts = constants.feed_forwards[kinds.feed_forward].experts > 0;
                assert_eq!(layer.router != 0, experts);
            }
        }
    }

    #[test]
    fn the_pages_of_all_layers_are_what_the_groups_say() {
        // The second has fewer K/V heads than ranks, each of which has a whole one.
        for (spec, ranks) in [(Toy::pro_fp4().spec(), 1), (Toy::flash().spec(), 4)] {
            let (layout, _) = layout_with(&spec, ranks, false, BASE);
            let pages = layout.map.regions().iter().filter(|region| region.part == "pages");
            let bytes = pages.map(|region| region.bytes).sum::<u64>();
            assert_eq!(bytes * ranks as u64, sizes(ranks).groups(&spec, 2).bytes());
        }
    }
}
