//! The wide pass: a step of more tokens than the narrow pass takes is a chain of launches, one for
//! each phase of each layer (`kernels/step/wide.cu`). Here are the launches of the layers in their
//! order, the memory that they work in, and which models they cannot run yet. `Rank::passes` puts
//! them, sampling and the drafts into one chain.

use kilotok_abi::{
    BatchRow, BatchToken, CANDIDATES_MAX, ChoicePart, Judged, Memory, PARTS_MAX, Report,
    SPAN_TOKENS, SampleMemory, SampleRow, Stamp, TOPS_MAX, Top, VerifyMemory, WANTED_MAX, Wanted,
    WideCollective, WideMemory,
};
use kilotok_model::WeightFormat;

use crate::buffers::{BF16, CHUNK_COLUMNS, F32, Matrix, TILE_TOKENS, largest};
use crate::constants::{Constants, FeedForward, LayerKinds, TOKENS_MAX};
use crate::memory_map::MemoryMap;
use crate::wide_attention;

/// The most tokens of a step, where memory allows. It computes for more than ten times as long as
/// it reads weights, so longer chunks of prompts would gain little.
pub(crate) const CAPACITY_MAX: u32 = 8192;
/// Capacities are multiples of the tokens that a CTA multiplies at a time.
const CAPACITY_STEP: u32 = 128;
const _: () = assert!(SPAN_TOKENS == CAPACITY_STEP as usize, "a span is multiplied at once");

/// Launches of the head in a step, at most, each with an all-gather.
pub(crate) const HEADS_MAX: u32 = WANTED_MAX.div_ceil(TOKENS_MAX) as u32;
/// The most rows of a step: requests that decode together. More would gain little, as a step with
/// this many reads nearly all experts. `wide/attn_rows.cuh` has room for as many.
pub(crate) const ROWS_MAX: usize = 256;

/// Steps of at least `MANY_ROWS` rows take `wide_attention_rows`: in layers with a window if rows
/// have at most `SHORT_TOKENS` tokens, a tile, on average; in others if each row has one.
const MANY_ROWS: u32 = 16;
const SHORT_TOKENS: u32 = 16;

/// `PANEL_COLUMNS` of `wide/products.cuh`.
const PANEL_COLUMNS: usize = 64;
const WORD: usize = size_of::<u32>();

/// Row tiles and tokens of an item of `wide/gemm_few.cuh`.
const FEW_ROW_TILES: usize = 4;
const FEW_TOKENS: usize = 128;

/// The most tokens with which q, k and v are multiplied by the GEMM of few tokens: `TOKENS_MAX` of
/// `FewWork` in `wide/gemm_few.cuh`.
pub(crate) fn few_tokens(qkv: Matrix, grid: usize) -> usize {
    let row_groups = (qkv.units() * qkv.row_tiles).div_ceil(FEW_ROW_TILES);
    if qkv.format == WeightFormat::Mxfp4 { 0 } else { grid / row_groups * FEW_TOKENS }
}

/// Room for steps of up to `token_max` tokens.
pub(crate) fn capacity(token_max: u32) -> usize {
    token_max.next_multiple_of(CAPACITY_STEP) as usize
}

/// Rows and wanted tokens of a step at most, with and without the wide pass.
pub(crate) fn rows_and_wanted_max(has_wide: bool) -> (usize, usize) {
    if has_wide { (ROWS_MAX, WANTED_MAX) } else { (TOKENS_MAX, TOKENS_MAX) }
}

/// A kernel of the wide pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WideKernel {
    Embed,
    InputNorm,
    Qkv,
    QkvFew,
    Heads,
    Attention,
    AttentionRows,
    Output,
    PostNorm,
    DenseGateUp,
    DenseDown,
    RouterScores,
    TopKExperts,
    SortChoices,
    GateUp,
    GateUpFew,
    Down,
    DownFew,
    Combine,
    GatherWanted,
    Fuse,
    ContextNorm,
    ContextKeys,
    ContextHeads,
    End,
}

/// The number of threads in a CTA: a constant of the kernels by its name.
const GEMM_THREADS: &str = "WIDE_GEMM_THREADS";
const ATTENTION_THREADS: &str = "WIDE_ATTENTION_THREADS";
const MOVE_THREADS: &str = "WIDE_MOVE_THREADS";
const NORM_THREADS: &str = "WIDE_NORM_THREADS";
const ROUTER_THREADS: &str = "WIDE_ROUTER_THREADS";
const EXPERTS_THREADS: &str = "WIDE_EXPERTS_THREADS";
const CHOICE_THREADS: &str = "WIDE_CHOICE_THREADS";

impl WideKernel {
    /// In the order of their discriminants: name, and name of the number of threads.
    pub(crate) const ALL: [(&str, &str); 25] = [
        ("wide_embed", MOVE_THREADS),
        ("wide_input_norm", NORM_THREADS),
        ("wide_qkv", GEMM_THREADS),
        ("wide_qkv_few", GEMM_THREADS),
        ("wide_heads", MOVE_THREADS),
        ("wide_attention", ATTENTION_THREADS),
        ("wide_attention_rows", ATTENTION_THREADS),
        ("wide_output", GEMM_THREADS),
        ("wide_post_norm", NORM_THREADS),
        ("wide_dense_gate_up", GEMM_THREADS),
        ("wide_dense_down", GEMM_THREADS),
        ("wide_router_scores", ROUTER_THREADS),
        ("wide_top_k_experts", CHOICE_THREADS),
        ("wide_sort_choices", MOVE_THREADS),
        ("wide_gate_up", EXPERTS_THREADS),
        ("wide_gate_up_few", EXPERTS_THREADS),
        ("wide_down", EXPERTS_THREADS),
        ("wide_down_few", EXPERTS_THREADS),
        ("wide_combine", MOVE_THREADS),
        ("wide_gather_wanted", MOVE_THREADS),
        ("wide_fuse", GEMM_THREADS),
        ("wide_context_norm", NORM_THREADS),
        ("wide_context_keys", GEMM_THREADS),
        ("wide_context_heads", MOVE_THREADS),
        ("wide_end", MOVE_THREADS),
    ];

    /// Whether its launches compute the drafter's context.
    fn is_context(self) -> bool {
        matches!(self, Self::Fuse | Self::ContextNorm | Self::ContextKeys | Self::ContextHeads)
    }

    /// The phase of its launches, for stamps.
    fn stamp(self) -> Stamp {
        match self {
            Self::Embed => Stamp::Embed,
            Self::InputNorm | Self::PostNorm => Stamp::AddRmsNorm,
            Self::Qkv | Self::QkvFew => Stamp::Project,
            Self::Heads => Stamp::AttentionIn,
            Self::Attention | Self::AttentionRows => Stamp::Attention,
            Self::Output => Stamp::Output,
            Self::DenseGateUp | Self::GateUp | Self::GateUpFew => Stamp::GateUp,
            Self::DenseDown | Self::Down | Self::DownFew => Stamp::Down,
            Self::RouterScores => Stamp::RouterParts,
            Self::TopKExperts => Stamp::Routes,
            Self::SortChoices => Stamp::GatherRows,
            Self::Combine => Stamp::Combine,
            // The phase includes the head and sampling, which follow it.
            Self::GatherWanted => Stamp::Head,
            Self::Fuse => Stamp::Fuse,
            Self::ContextNorm => Stamp::ContextNorm,
            Self::ContextKeys | Self::ContextHeads => Stamp::ContextKeys,
            Self::End => Stamp::Ended,
        }
    }
}

/// A launch of the wide pass: a kernel, for a layer of the target or of the drafter. The slice is,
/// for the head, the first of its wanted tokens and their number; for a norm, the columns of the
/// experts' products that it adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WideLaunch {
    pub(crate) kernel: WideKernel,
    pub(crate) layer: u32,
    pub(crate) slice: (u32, u32),
    /// If it takes part in a collective, the number of the collective in the step. A launch that
    /// sends parts has the number of the norm that adds them.
    pub(crate) collective: u32,
    /// Where the step's last tokens begin, if it computes these alone.
    tail: Option<Tail>,
    /// The stamp that it makes, which is of the launch before it, and the stamp's place.
    stamp: (Stamp, u32),
}

/// The bytes of the stream and of the queries before the first of a step's last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tail {
    stream: u64,
    queries: u64,
}

impl WideLaunch {
    fn new(kernel: WideKernel, layer: u32) -> Self {
        let stamp = (Stamp::Begun, 0);
        Self { kernel, layer, slice: (0, 0), collective: 0, tail: None, stamp }
    }

    fn numbered(self, collective: u32) -> Self {
        Self { collective, ..self }
    }

    /// Has each launch of a sequence stamp the launch before it; stamps begin at `first_place`.
    /// Returns the launches that stamp the end.
    pub(crate) fn add_stamps<'a>(
        launches: impl Iterator<Item = &'a mut Self>,
        first_place: u32,
    ) -> [Self; 2] {
        let mut stamp = (Stamp::Begun, first_place);
        for launch in launches {
            launch.stamp = stamp;
            stamp = (launch.kernel.stamp(), stamp.1 + 1);
        }
        let end = Self::new(WideKernel::End, 0);
        [Self { stamp, ..end }, Self { stamp: (Stamp::Ended, stamp.1 + 1), ..end }]
    }
}

/// Which kernels each layer needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct WideLayers {
    target: Vec<LayerShape>,
    drafter: Vec<LayerShape>,
    hidden: u32,
    /// Bytes of a token's queries.
    query_bytes: u64,
    /// Whether several ranks each compute a part of what is added to the stream.
    in_parts: bool,
    /// Whether nothing but the head reads the results of the last layer.
    ends_untapped: bool,
}

#[derive(Clone, Copy, Debug)]
struct LayerShape {
    /// Whether the epilogue of its projections makes queries, keys and values.
    paired: bool,
    /// The most tokens for which its projections have a kernel of their own.
    few_tokens: usize,
    /// The most tokens of a row, on average, for which its attention has a kernel for many rows.
    row_tokens: u32,
    dense: bool,
    /// The most tokens for which its experts have kernels for few rows.
    few_rows_tokens: usize,
    /// Whether the products of its experts get a bias when they are combined.
    biased: bool,
}

impl WideLayers {
    pub(crate) fn new(constants: &Constants) -> Self {
        let shapes = |layers: &[LayerKinds]| {
            let shape = |kinds: &LayerKinds| LayerShape {
                paired: constants.attentions[kinds.attention].is_paired(),
                few_tokens: few_tokens(constants.qkv(kinds.attention), constants.launch.grid),
                row_tokens: match constants.attentions[kinds.attention].window {
                    Some(_) => SHORT_TOKENS,
                    None => u32::from(wide_attention::has_decode(constants, kinds.attention)),
                },
                dense: constants.feed_forwards[kinds.feed_forward].experts == 0,
                few_rows_tokens: constants.few_rows_tokens(kinds.feed_forward),
                biased: constants.feed_forwards[kinds.feed_forward].bias,
            };
            layers.iter().map(shape).collect()
        };
        Self {
            target: shapes(&constants.layers),
            drafter: shapes(&constants.draft_layers),
            hidden: constants.hidden as u32,
            query_bytes: (query_values(constants) * BF16) as u64,
            in_parts: constants.launch.ranks > 1,
            ends_untapped: constants.ends_untapped,
        }
    }

    /// The target's launches of a step, from embeddings to the last norm.
    pub(crate) fn target_launches(&self, step: &WideStep) -> Vec<WideLaunch> {
        let embed = WideLaunch::new(WideKernel::Embed, 0).numbered(input_norm_number(0));
        let mut launches = vec![embed];
        let layers = self.target.len() as u32;
        for (layer, shape) in (0..).zip(&self.target) {
            self.add_projections(&mut launches, layer, *shape, step);
            // A rank that owns some of a step's tokens would not own the last ones.
            let can_skip = !self.in_parts && self.ends_untapped;
            if layer + 1 == layers && can_skip && step.tail_count < step.token_count {
                self.add_tail(&mut launches, *shape, step);
                return launches;
            }
            self.add_network(&mut launches, layer, *shape, step);
        }
        self.add_input_norm(&mut launches, layers);
        launches
    }

    /// The rest of the last layer and the last norm, of the step's last tokens alone.
    fn add_tail(&self, launches: &mut Vec<WideLaunch>, shape: LayerShape, step: &WideStep) {
        let (rest, layers) = (launches.len(), self.target.len() as u32);
        let WideStep { token_count, tail_count, .. } = *step;
        if tail_count == 0 {
            return;
        }
        let tail_step = WideStep { token_count: tail_count, row_count: 1, ..*step };
        self.add_network(launches, layers - 1, shape, &tail_step);
        self.add_input_norm(launches, layers);
        let first = u64::from(token_count - tail_count);
        let stream = first * u64::from(self.hidden) * F32 as u64;
        let tail = Tail { stream, queries: first * self.query_bytes };
        launches[rest..].iter_mut().for_each(|launch| launch.tail = Some(tail));
    }

    /// The launches that gather the wanted tokens, as many as the head takes at a time.
    pub(crate) fn wanted_launches(&self, wanted_count: u32) -> impl Iterator<Item = WideLaunch> {
        let layers = self.target.len() as u32;
        let gather = WideLaunch::new(WideKernel::GatherWanted, layers);
        let slices = (0..).zip(slices(wanted_count, TOKENS_MAX as u32));
        slices.map(move |(index, slice)| WideLaunch {
            slice,
            ..gather.numbered(input_norm_number(layers) + index)
        })
    }

    /// The launches of a layer up to its queries, keys and values.
    fn add_projections(
        &self,
        launches: &mut Vec<WideLaunch>,
        layer: u32,
        shape: LayerShape,
        step: &WideStep,
    ) {
        let of_layer = |kernel| WideLaunch::new(kernel, layer);
        self.add_input_norm(launches, layer);
        let few = step.token_count as usize <= shape.few_tokens;
        launches.push(of_layer(if few { WideKernel::QkvFew } else { WideKernel::Qkv }));
        launches.extend((!shape.paired).then(|| of_layer(WideKernel::Heads)));
    }

    /// The others: attention, its output projection and the network.
    fn add_network(
        &self,
        launches: &mut Vec<WideLaunch>,
        layer: u32,
        shape: LayerShape,
        step: &WideStep,
    ) {
        let of_layer = |kernel| WideLaunch::new(kernel, layer);
        let rows = step.row_count;
        let many_rows = rows >= MANY_ROWS && step.token_count <= rows * shape.row_tokens;
        let attention = if many_rows { WideKernel::AttentionRows } else { WideKernel::Attention };
        launches.push(of_layer(attention));
        let number = post_norm_number(layer);
        launches.push(of_layer(WideKernel::Output).numbered(number));
        // On one rank the choice of experts computes what is left of the norm.
        let norm = of_layer(WideKernel::PostNorm).numbered(number);
        launches.extend((shape.dense || self.in_parts).then_some(norm));
        let next = input_norm_number(layer + 1);
        if shape.dense {
            launches.push(of_layer(WideKernel::DenseGateUp));
            return launches.push(of_layer(WideKernel::DenseDown).numbered(next));
        }
        launches.push(of_layer(WideKernel::RouterScores));
        launches.push(of_layer(WideKernel::TopKExperts).numbered(number));
        launches.push(of_layer(WideKernel::SortChoices));
        let experts = if step.token_count as usize <= shape.few_rows_tokens {
            [WideKernel::GateUpFew, WideKernel::DownFew]
        } else {
            [WideKernel::GateUp, WideKernel::Down]
        };
        launches.extend(experts.map(of_layer));
        let combine = of_layer(WideKernel::Combine).numbered(next);
        launches.extend((self.in_parts || shape.biased).then_some(combine));
    }

    /// The norm before a layer, or before the head. It adds the experts' products if they have not
    /// been combined: if one rank has all of them and there is no bias.
    fn add_input_norm(&self, launches: &mut Vec<WideLaunch>, layer: u32) {
        let is_down = |kernel| matches!(kernel, WideKernel::Down | WideKernel::DownFew);
        let products = launches.last().is_some_and(|last| is_down(last.kernel));
        let slice = (0, if products { self.hidden } else { 0 });
        let norm = WideLaunch::new(WideKernel::InputNorm, layer);
        launches.push(WideLaunch { slice, ..norm.numbered(input_norm_number(layer)) });
    }

    /// The launches that make the drafter's context; none without a drafter. Their tokens are those
    /// of [`WideStep::context_count`], numbered without gaps.
    pub(crate) fn context_launches(&self) -> Vec<WideLaunch> {
        if self.drafter.is_empty() {
            return Vec::new();
        }
        let number = post_norm_number(self.target.len() as u32);
        let mut launches = vec![WideLaunch::new(WideKernel::Fuse, 0).numbered(number)];
        launches.push(WideLaunch::new(WideKernel::ContextNorm, 0).numbered(number));
        for (layer, shape) in (0..).zip(&self.drafter) {
            launches.push(WideLaunch::new(WideKernel::ContextKeys, layer));
            if !shape.paired {
                launches.push(WideLaunch::new(WideKernel::ContextHeads, layer));
            }
        }
        launches
    }
}

/// The number of the collectives in the norm before a layer. [`post_norm_number`] is that of its
/// second norm and of the choice of experts. The all-gathers of wanted tokens, one for each slice,
/// are numbered from that of the last norm on. Each [`WideCollective`] has flags of its own.
fn input_norm_number(layer: u32) -> u32 {
    2 * layer + 1
}

fn post_norm_number(layer: u32) -> u32 {
    2 * layer + 2
}

/// Slices of up to `max` of `count` tokens: first, number. Without tokens, which warms up the
/// kernels, there is one empty slice.
fn slices(count: u32, max: u32) -> impl Iterator<Item = (u32, u32)> {
    let firsts = (0..count.div_ceil(max).max(1)).map(move |index| index * max);
    firsts.map(move |first| (first, (count - first).min(max)))
}

/// What the launches of a step must know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WideStep {
    pub(crate) token_count: u32,
    pub(crate) row_count: u32,
    pub(crate) wanted_count: u32,
    /// The last tokens of its last row, if these are the wanted ones; otherwise all tokens. Other
    /// tokens need only keys and values of the last layer, unless a drafter taps it.
    pub(crate) tail_count: u32,
    /// Tokens of the spans of which the drafter's context is computed.
    pub(crate) context_count: u32,
    pub(crate) places: WidePlaces,
}

/// Where the arrays of a wide step lie in its plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WidePlaces {
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
    /// The row of the last tokens alone.
    pub(crate) tail_row: usize,
    pub(crate) wanted: usize,
    pub(crate) sample_rows: usize,
    pub(crate) sample_wanted: usize,
    pub(crate) spans: usize,
    pub(crate) end: usize,
}

impl WidePlaces {
    pub(crate) fn new(
        tokens: usize,
        (token_count, row_count, wanted_count): (usize, usize, usize),
    ) -> Self {
        let rows = tokens + token_count * size_of::<BatchToken>();
        let tail_row = rows + row_count * size_of::<BatchRow>();
        let sample_rows = tail_row + size_of::<BatchRow>();
        let sample_wanted = sample_rows + row_count * size_of::<SampleRow>();
        let wanted = sample_wanted + wanted_count * size_of::<Wanted>();
        let spans = wanted + wanted_count * WORD;
        let end = spans + token_count.div_ceil(SPAN_TOKENS) * WORD;
        Self { tokens, rows, tail_row, wanted, sample_rows, sample_wanted, spans, end }
    }
}

impl WideStep {
    /// The memory with the step's arrays where they lie in the plan, which begins at `plan`.
    fn place(&self, plan: u64, memory: &Memory) -> Memory {
        let at = |place: usize| plan + place as u64;
        let WidePlaces { tokens, rows, wanted, .. } = self.places;
        Memory { tokens: at(tokens), rows: at(rows), wanted: at(wanted), ..*memory }
    }

    /// The argument of sampling from the wanted token `first` on.
    pub(crate) fn sampling(&self, arguments: &VerifyMemory, first: u32) -> VerifyMemory {
        let VerifyMemory { memory, sampling } = arguments;
        let plan = memory.batch;
        let from = |address: u64, each: usize| address + first as u64 * each as u64;
        let sampling = SampleMemory {
            rows: plan + self.places.sample_rows as u64,
            wanted: from(plan + self.places.sample_wanted as u64, size_of::<Wanted>()),
            choice_parts: from(sampling.choice_parts, PARTS_MAX * size_of::<ChoicePart>()),
            judged: from(sampling.judged, CANDIDATES_MAX * size_of::<Judged>()),
            reports: from(sampling.reports, size_of::<Report>()),
            tops: from(sampling.tops, TOPS_MAX * size_of::<Top>()),
            ..*sampling
        };
        VerifyMemory { memory: self.place(plan, memory), sampling }
    }

    /// The argument of a launch; `memory` is the narrow pass's.
    pub(crate) fn memory(
        &self,
        wide: &WideMemory,
        memory: &Memory,
        launch: WideLaunch,
    ) -> WideMemory {
        let mut own = WideMemory {
            memory: self.place(memory.batch, memory),
            token_count: self.token_count,
            row_count: self.row_count,
            wanted_count: self.wanted_count,
            layer: launch.layer,
            slice_first: launch.slice.0,
            slice_count: launch.slice.1,
            collective: launch.collective,
            stamp: launch.stamp.0 as u32,
            stamp_place: launch.stamp.1,
            ..*wide
        };
        if launch.kernel.is_context() {
            own.spans = memory.batch + self.places.spans as u64;
            own.token_count = self.context_count;
        }
        if let Some(Tail { stream, queries }) = launch.tail {
            let first = u64::from(self.token_count - self.tail_count);
            own.memory.tokens += first * size_of::<BatchToken>() as u64;
            own.memory.rows = memory.batch + self.places.tail_row as u64;
            own.stream += stream;
            own.queries += queries;
            (own.token_count, own.row_count) = (self.tail_count, 1);
        }
        own
    }
}

/// Bytes of an operand with this many columns, as `wide/token_ring.cuh` has it.
fn operand_bytes(columns: usize, capacity: usize) -> usize {
    columns.div_ceil(CHUNK_COLUMNS) * CHUNK_COLUMNS * BF16 * capacity
}

/// The most rows of the experts, as `wide/routes.cuh` has them.
fn expert_rows(constants: &Constants, capacity: usize) -> usize {
    largest(constants.draft_feed_forward, &|kind| {
        let kind = &constants.feed_forwards[kind];
        let choices = capacity * kind.top_k;
        choices.next_multiple_of(TILE_TOKENS) + kind.experts.min(choices) * TILE_TOKENS
    })
}

/// Values of a token's queries: the most of any kind.
fn query_values(constants: &Constants) -> usize {
    largest(constants.attentions.len(), &|kind| constants.attentions[kind].query_values())
}

/// Takes the buffers of steps of up to `capacity` tokens.
pub(crate) fn memory(
    map: &mut MemoryMap,
    constants: &Constants,
    capacity: usize,
    head_batch: u64,
) -> WideMemory {
    let network = |of: &dyn Fn(&FeedForward) -> usize| {
        largest(constants.draft_feed_forward, &|kind| of(&constants.feed_forwards[kind]))
    };
    let mut take = |name: &str, bytes: usize| {
        map.add("steps of many tokens", format!("wide {name}"), bytes as u64)
    };
    let hidden = constants.hidden;
    let unpaired = constants.attentions.iter().any(|kind| !kind.is_paired());
    let projected = if unpaired { constants.projected_rows() } else { 0 };
    let expert_width = network(&|kind| if kind.experts > 0 { kind.width } else { 0 });
    let (experts, top_k) = (network(&|kind| kind.experts), network(&|kind| kind.top_k));
    let rows = expert_rows(constants, capacity);
    let normed_rows = if experts > 0 { capacity * hidden * BF16 } else { 0 };
    let angles = constants.attentions.len() * constants.rope_pairs_max() * 2 * F32;
    let operands = |matrices: Vec<Matrix>| {
        matrices.iter().map(|matrix| operand_bytes(matrix.columns, capacity)).sum()
    };
    let choices = capacity * top_k;
    let ranks = constants.launch.ranks;
    // Received tokens: the parts of this rank's share of the tokens, from all ranks.
    let received = capacity.next_multiple_of(ranks);
    let of_ranks = |bytes| if ranks > 1 { bytes } else { 0 };
    let flags = WideCollective::VALUES.len() * ranks * constants.launch.grid * WORD;
    WideMemory {
        head_batch,
        stream: take("stream", capacity * hidden * F32),
        // With several ranks only the router uses it, for the rank's own tokens.
        part: take("part", capacity.div_ceil(ranks) * hidden * F32),
        normed: take("normed", operand_bytes(hidden, capacity)),
        normed_rows: take("normed_rows", normed_rows),
        inverse_rms: take("inverse_rms", capacity * F32),
        angles: take("angles", capacity * angles),
        queries: take("queries", capacity * query_values(constants) * BF16),
        projected: take("projected", capacity * projected * F32),
        attended: take("attended", operands(constants.outputs(constants.draft_attention))),
        dense_inner: take(
            "dense_inner",
            operands(constants.dense_downs(constants.draft_feed_forward)),
        ),
        taps: take("taps", operand_bytes(constants.taps * hidden, capacity)),
        scores: take(
            "scores",
            if experts > 0 { capacity * constants.score_values() * F32 } else { 0 },
        ),
        experts: take("experts", capacity * top_k * WORD),
        weights: take("weights", capacity * top_k * F32),
        first_rows: take("first_rows", (experts + 1) * WORD),
        counts: take("counts", experts * WORD),
        rows: take("rows", choices * WORD),
        choices: take("choices", rows * WORD),
        factors: take("factors", rows * 2 * F32),
        expert_inner: take("expert_inner", operand_bytes(expert_width, rows)),
        products: take("products", rows * hidden.next_multiple_of(PANEL_COLUMNS) * BF16),
        received: take("received", of_ranks(received * hidden * BF16)),
        flags: take("flags", of_ranks(flags)),
        capacity: capacity as u32,
        expert_capacity: rows as u32,
        ..bytemuck::Zeroable::zeroed()
    }
}
