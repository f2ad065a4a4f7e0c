//! The size of every buffer of a rank: the host's side of `kernels/include/kilotok/gemm/matrix.cuh`
//! and `layout/buffers.cuh`. The generated header has these numbers, and the kernels do not compile
//! if theirs differ.

use std::fmt::Write;

use kilotok_abi::{CANDIDATES_MAX, COUNTER_BYTES, COUNTERS, Candidate, LayerMemory, PARTS_MAX};
use kilotok_model::{ModelSpec, Part, WeightFormat};

use crate::batch::{Arrays, drafts_together};
use crate::constants::{Attention, Constants};
use crate::wide;
use crate::wide_attention;

/// A chunk of weights is `CHUNK_ROWS` rows of `CHUNK_COLUMNS` columns.
pub(crate) const CHUNK_ROWS: usize = 16;
pub(crate) const CHUNK_COLUMNS: usize = 64;
/// Consumer warps of a CTA, which share a matrix's columns (split-K).
pub(crate) const CONSUMER_WARPS: usize = 12;
/// The most row tiles of the residual stream that a CTA owns: as many as its epilogue has warps.
pub(crate) const OWNER_TILES_MAX: usize = 3;
/// Rows of gate in a row tile; as many rows of up follow them.
pub(crate) const GATE_ROWS: usize = 8;
/// Tokens in a tile of the tensor cores.
pub(crate) const TILE_TOKENS: usize = 8;
/// Padding between rows of gathered tokens in shared memory, so that they lie in different banks.
const GATHERED_PADDING: usize = 64;
/// Query heads of a tile, and the layout of their dimensions as operand A: steps of 32 dimensions,
/// in each of which a lane holds 16 values.
pub(crate) const TILE_HEADS: usize = 16;
const QUERY_STEP: usize = 32;
const QUERY_STEP_VALUES: usize = 2 * 32 * 8;
/// Dimensions of a partial result of attention that share a maximum and a sum.
const PART_DIMS: usize = 32;
/// The most partial results of a token's attention: those of chunks of keys, and one of a draft's
/// own rows.
const ATTENTION_PARTS: usize = 128 + 1;
/// Values of the stream in one packet of 16 bytes to another rank, and the number of sets of
/// packets and sums.
const PACKET_VALUES: usize = 8;
const PACKET_BYTES: usize = 16;
const PACKET_SETS: usize = 2;
/// The GEMMs of a layer that read a norm: projections, network.
const READERS: usize = 2;
/// The counters of a launch.
pub(crate) const BARRIER_BYTES: usize = COUNTERS * COUNTER_BYTES;
/// Bytes of the flags of all ranks, which follow the packets and sums of all-reduces. After them
/// come a packet of 16 bytes for each draft and rank, the logits, and a packet for each candidate
/// of a draft.
const FLAGS_BYTES: usize = 128;
/// The alignment of a token's logits, in values.
const LOGITS_ALIGNMENT: usize = 16;
/// F32 values in a cache line.
const LINE_VALUES: usize = 32;
/// In the wide pass experts have few rows if they have at most this many on average. With more, too
/// many would have two runs, of the `FEW_ROWS` rows of `wide/runs.cuh`, which read weights twice.
const FEW_ROWS_MEAN: usize = 24;
pub(crate) const F32: usize = size_of::<f32>();
pub(crate) const BF16: usize = 2;

/// The layout of a matrix, see `gemm/matrix.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub(crate) format: WeightFormat,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_tiles: usize,
}

impl Matrix {
    pub(crate) fn column_warps(self) -> usize {
        CONSUMER_WARPS / self.row_tiles
    }

    pub(crate) fn chunk_bytes(self) -> usize {
        match self.format {
            WeightFormat::Float => 2048,
            WeightFormat::Fp8 => 1024 + 64,
            WeightFormat::Mxfp4 => 512 + 32,
        }
    }

    pub(crate) fn step_bytes(self) -> usize {
        CONSUMER_WARPS * self.chunk_bytes()
    }

    pub(crate) fn steps(self) -> usize {
        self.columns.div_ceil(CHUNK_COLUMNS).div_ceil(self.column_warps())
    }

    pub(crate) fn units(self) -> usize {
        self.rows.div_ceil(CHUNK_ROWS * self.row_tiles)
    }

    /// Rows including those that fill the last unit.
    pub(crate) fn padded_rows(self) -> usize {
        self.units() * CHUNK_ROWS * self.row_tiles
    }

    pub(crate) fn bytes(self) -> usize {
        self.units() * self.steps() * self.step_bytes()
    }

    /// Bytes of an operand's row, including the zeros after the last column.
    fn operand_bytes(self) -> usize {
        self.steps() * self.column_warps() * CHUNK_COLUMNS * BF16
    }
}

impl Attention {
    /// First row of the keys in the fused projection; q rows are padded to a whole tile.
    pub(crate) fn key_row(&self) -> usize {
        (self.q_heads * self.qk_dim).next_multiple_of(CHUNK_ROWS)
    }

    /// Values of a token's queries, in tiles of the tensor cores.
    pub(crate) fn query_values(&self) -> usize {
        let tiles = self.kv_heads * (self.q_heads / self.kv_heads).div_ceil(TILE_HEADS);
        tiles * self.qk_dim.div_ceil(QUERY_STEP) * QUERY_STEP_VALUES
    }

    /// Values of all partial results of a token's attention: weighted sums, and their maxima and
    /// sums.
    fn part_values(&self) -> usize {
        self.q_heads * ATTENTION_PARTS * (self.v_dim + 2 * self.v_dim.div_ceil(PART_DIMS))
    }

    pub(crate) fn qkv_rows(&self) -> usize {
        self.key_row() + self.kv_heads * (self.qk_dim + self.v_dim)
    }

    /// Whether rows of q and k that are rotated together lie half a chunk apart in one chunk. Then
    /// the epilogue of the GEMM applies RoPE. It cannot if a norm of each head comes before RoPE,
    /// or if heads are not whole chunks.
    pub(crate) fn is_paired(&self) -> bool {
        let whole = |dims: usize| dims.is_multiple_of(CHUNK_ROWS);
        self.qk_norm_eps.is_none()
            && whole(self.qk_dim)
            && whole(self.v_dim)
            && whole(self.rope.dims)
    }
}

/// The matrices of each kind.
impl Constants {
    pub(crate) fn qkv(&self, kind: usize) -> Matrix {
        let kind = &self.attentions[kind];
        Matrix { format: kind.format, rows: kind.qkv_rows(), columns: self.hidden, row_tiles: 1 }
    }

    pub(crate) fn output(&self, kind: usize) -> Matrix {
        let kind = &self.attentions[kind];
        let columns = kind.q_heads * kind.v_dim;
        let (format, row_tiles) = (kind.output_format, self.owner_tiles());
        Matrix { format, rows: self.hidden, columns, row_tiles }
    }

    /// The output projections of the first `kinds` kinds, without repetitions: each has an operand
    /// of its own, see `KindOperand` in `layout/buffers.cuh`.
    pub(crate) fn outputs(&self, kinds: usize) -> Vec<Matrix> {
        different((0..kinds).map(|kind| self.output(kind)))
    }

    /// The same for `down` of dense networks.
    pub(crate) fn dense_downs(&self, kinds: usize) -> Vec<Matrix> {
        let dense = (0..kinds).filter(|kind| self.feed_forwards[*kind].experts == 0);
        different(dense.map(|kind| self.down(kind)))
    }

    /// Gate and up of one expert, or of the dense network.
    pub(crate) fn gate_up(&self, kind: usize) -> Matrix {
        let kind = &self.feed_forwards[kind];
        let rows = kind.width.next_multiple_of(GATE_ROWS) * 2;
        Matrix { format: kind.format, rows, columns: self.hidden, row_tiles: 1 }
    }

    pub(crate) fn down(&self, kind: usize) -> Matrix {
        let kind = &self.feed_forwards[kind];
        let (columns, row_tiles) = (kind.width, self.owner_tiles());
        Matrix { format: kind.format, rows: self.hidden, columns, row_tiles }
    }

    pub(crate) fn head(&self) -> Matrix {
        let rows = self.vocab / self.launch.ranks;
        Matrix { format: WeightFormat::Float, rows, columns: self.hidden, row_tiles: 1 }
    }

    /// A rank's rows of the matrix that fuses the taps.
    pub(crate) fn fuse(&self) -> Matrix {
        let rows = self.hidden.div_ceil(self.launch.ranks);
        let columns = self.taps.max(1) * self.hidden;
        Matrix { format: WeightFormat::Float, rows, columns, row_tiles: 1 }
    }

    /// Bytes of the distributions (laws) that a slot's drafts are drawn from.
    pub(crate) fn laws_bytes(&self) -> usize {
        self.draft_rows * CANDIDATES_MAX * size_of::<Candidate>()
    }

    /// The distance between the logits of two wanted tokens.
    pub(crate) fn logits_stride(&self) -> usize {
        self.vocab.next_multiple_of(LOGITS_ALIGNMENT)
    }

    /// Tiles of rows of the residual stream that a CTA owns: as few as give every row an owner.
    fn owner_tiles(&self) -> usize {
        self.hidden.div_ceil(CHUNK_ROWS).div_ceil(self.launch.grid)
    }

    pub(crate) fn owner_rows(&self) -> usize {
        self.owner_tiles() * CHUNK_ROWS
    }

    pub(crate) fn owner_units(&self) -> usize {
        self.hidden.div_ceil(self.owner_rows())
    }

    /// Values of a token in `projected`: the most of any kind, or keys and values of all the
    /// drafter's layers, because its context computes them at once.
    pub(crate) fn projected_rows(&self) -> usize {
        let rows = self.attentions.iter().map(Attention::qkv_rows).max();
        let key_values = self.attentions.iter().map(|kind| kind.qkv_rows() - kind.key_row()).max();
        rows.unwrap_or(0).max(self.draft_layers.len() * key_values.unwrap_or(0))
    }

    /// Values of a token in `router_scores`, in whole cache lines.
    pub(crate) fn score_values(&self) -> usize {
        let kinds = self.feed_forwards.iter();
        let experts = kinds.clone().map(|kind| kind.experts).max().unwrap_or(0);
        let top_k = kinds.map(|kind| kind.top_k.max(1)).max().unwrap_or(1);
        (experts + 1 + 2 * top_k).next_multiple_of(LINE_VALUES)
    }

    /// The number of a router's experts including padding.
    pub(crate) fn router_width(&self, kind: usize) -> usize {
        self.feed_forwards[kind].experts.next_multiple_of(CHUNK_ROWS)
    }

    fn router_bytes(&self, kind: usize) -> usize {
        let weight_bytes = self.feed_forwards[kind].router_dtype.bytes();
        self.owner_units() * self.owner_rows() * self.router_width(kind) * weight_bytes
    }

    /// The most tokens of a wide step whose experts have few rows; 0 for a dense network.
    pub(crate) fn few_rows_tokens(&self, kind: usize) -> usize {
        let kind = &self.feed_forwards[kind];
        FEW_ROWS_MEAN * kind.experts / kind.top_k.max(1)
    }

    /// The number of networks of a kind: its experts, or 1 for a dense one.
    fn networks(&self, kind: usize) -> usize {
        self.feed_forwards[kind].experts.max(1)
    }

    /// Bytes of the keys and of the values of one page in one layer.
    pub(crate) fn page_bytes(&self, kind: usize) -> (usize, usize) {
        let kind = &self.attentions[kind];
        let rows = kind.kv_heads * self.launch.page_tokens;
        (rows * kind.qk_dim * BF16, rows * kind.v_dim * BF16)
    }
}

/// A buffer of weights, named as in `Memory` and `LayerMemory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Buffer {
    Embedding,
    FinalNorm,
    Head,
    DraftFc,
    DraftContextNorm,
    DraftNorm,
    DraftMask,
    Layer(Part, usize, LayerBuffer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum LayerBuffer {
    InputNorm,
    Qkv,
    QkvBias,
    QueryNorm,
    KeyNorm,
    Sinks,
    Output,
    OutputBias,
    PostNorm,
    Router,
    RouterBias,
    GateUp,
    GateUpBias,
    Down,
    DownBias,
}

/// Every buffer of weights of a rank, and its bytes.
pub(crate) fn weight_buffers(spec: &ModelSpec, constants: &Constants) -> Vec<(Buffer, usize)> {
    let vector = constants.hidden * F32;
    let rows = constants.vocab / constants.launch.ranks;
    let mut buffers = vec![
        (Buffer::Embedding, rows * constants.hidden * BF16),
        (Buffer::FinalNorm, vector),
        (Buffer::Head, constants.head().bytes()),
    ];
    if let Some(drafter) = &spec.drafter {
        buffers.extend([
            (Buffer::DraftFc, constants.fuse().bytes()),
            (Buffer::DraftContextNorm, vector),
            (Buffer::DraftNorm, vector),
        ]);
        buffers.extend(drafter.own_mask.then_some((Buffer::DraftMask, vector)));
    }
    for (part, layers) in
        [(Part::Target, &constants.layers), (Part::Drafter, &constants.draft_layers)]
    {
        for (index, kinds) in layers.iter().enumerate() {
            let (attention, feed_forward) = (kinds.attention, kinds.feed_forward);
            let sizes = layer_buffers(constants, attention, feed_forward);
            let sizes = sizes.into_iter().filter(|(_, bytes)| *bytes > 0);
            let named = |(buffer, bytes)| (Buffer::Layer(part, index, buffer), bytes);
            buffers.extend(sizes.map(named));
        }
    }
    buffers
}

/// The buffers of a layer; those that it does not have take no bytes.
fn layer_buffers(
    constants: &Constants,
    attention: usize,
    feed_forward: usize,
) -> [(LayerBuffer, usize); 15] {
    let vector = constants.hidden * F32;
    let kind = &constants.attentions[attention];
    let per_head = if kind.qk_norm_eps.is_some() { kind.qk_dim * F32 } else { 0 };
    let networks = constants.networks(feed_forward);
    let network = &constants.feed_forwards[feed_forward];
    let biases = if network.bias { networks * F32 } else { 0 };
    [
        (LayerBuffer::InputNorm, vector),
        (LayerBuffer::Qkv, constants.qkv(attention).bytes()),
        (
            LayerBuffer::QkvBias,
            if kind.bias { constants.qkv(attention).padded_rows() * F32 } else { 0 },
        ),
        (LayerBuffer::QueryNorm, per_head),
        (LayerBuffer::KeyNorm, per_head),
        (LayerBuffer::Sinks, if kind.sinks { kind.q_heads * F32 } else { 0 }),
        (LayerBuffer::Output, constants.output(attention).bytes()),
        (
            LayerBuffer::OutputBias,
            if kind.bias { constants.output(attention).padded_rows() * F32 } else { 0 },
        ),
        (LayerBuffer::PostNorm, vector),
        (LayerBuffer::Router, constants.router_bytes(feed_forward)),
        (LayerBuffer::RouterBias, if network.router_bias { network.experts * F32 } else { 0 }),
        (LayerBuffer::GateUp, networks * constants.gate_up(feed_forward).bytes()),
        (LayerBuffer::GateUpBias, 2 * network.width * biases),
        (LayerBuffer::Down, networks * constants.down(feed_forward).bytes()),
        (LayerBuffer::DownBias, constants.hidden * biases),
    ]
}

/// Bytes of a step's working buffers, named as in `Memory`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Working {
    pub(crate) layers: usize,
    pub(crate) draft_layers: usize,
    pub(crate) frequencies: usize,
    pub(crate) angles: usize,
    pub(crate) normed: usize,
    pub(crate) squares: usize,
    pub(crate) projected: usize,
    pub(crate) queries: usize,
    pub(crate) own_keys: usize,
    pub(crate) own_values: usize,
    pub(crate) attention_parts: usize,
    pub(crate) attended: usize,
    pub(crate) router_parts: usize,
    pub(crate) router_scores: usize,
    pub(crate) dense_inner: usize,
    pub(crate) expert_inner: usize,
    pub(crate) taps: usize,
    pub(crate) fused: usize,
    pub(crate) logits: usize,
    pub(crate) draft_parts: usize,
    pub(crate) draft_candidates: usize,
    /// The receive buffer, see `comm/all_reduce.cuh` and `comm/all_gather.cuh`.
    pub(crate) receiver: usize,
    /// The offset in it of the logits of all ranks, if there are several.
    pub(crate) gathered: Option<usize>,
}

impl Working {
    pub(crate) fn new(constants: &Constants) -> Self {
        let tokens = constants.launch.tokens_max;
        let owners = constants.owner_units();
        let pairs = constants.rope_pairs_max();
        let kinds = constants.attentions.len();
        let attention = |of: &dyn Fn(usize) -> usize| largest(kinds, of);
        let heads =
            |of: fn(&Attention) -> usize| attention(&|kind| of(&constants.attentions[kind]));
        let operands = |matrices: Vec<Matrix>| {
            tokens * matrices.into_iter().map(Matrix::operand_bytes).sum::<usize>()
        };
        let inner = largest(constants.feed_forwards.len(), &|kind| {
            let has_experts = constants.feed_forwards[kind].experts > 0;
            if has_experts { constants.down(kind).operand_bytes() } else { 0 }
        });
        let feed_forwards = constants.feed_forwards.iter();
        let experts = feed_forwards.clone().map(|kind| kind.experts).max().unwrap_or(0);
        let top_k = feed_forwards.map(|kind| kind.top_k.max(1)).max().unwrap_or(1);
        // The part of a row that one step of `down` reads.
        let gathered_step = CONSUMER_WARPS / constants.owner_tiles() * CHUNK_COLUMNS * BF16;
        // A whole step of every warp, so that a matrix of any number of row tiles may read it.
        let normed = constants.hidden.next_multiple_of(CHUNK_COLUMNS * CONSUMER_WARPS) * BF16;
        let projected = constants.projected_rows();
        let (receiver, gathered) = receiver(constants);
        Self {
            layers: constants.layers.len() * size_of::<LayerMemory>(),
            draft_layers: constants.draft_layers.len() * size_of::<LayerMemory>(),
            frequencies: kinds * pairs * F32,
            angles: kinds * tokens * pairs * 2 * F32,
            normed: tokens * normed,
            squares: READERS * tokens * owners.next_multiple_of(4) * F32,
            projected: tokens * projected * F32,
            queries: tokens * heads(Attention::query_values) * BF16,
            own_keys: tokens * heads(|kind| kind.kv_heads * kind.qk_dim) * BF16,
            own_values: tokens * heads(|kind| kind.kv_heads * kind.v_dim) * BF16,
            attention_parts: tokens * heads(Attention::part_values) * F32,
            attended: operands(constants.outputs(kinds)),
            router_parts: owners * tokens * experts * F32,
            router_scores: tokens * constants.score_values() * F32,
            dense_inner: operands(constants.dense_downs(constants.feed_forwards.len())),
            expert_inner: TILE_TOKENS * top_k * inner
                + inner / gathered_step * tokens * top_k * (gathered_step + GATHERED_PADDING),
            taps: tokens * constants.fuse().operand_bytes(),
            fused: tokens * constants.fuse().rows * F32,
            logits: tokens * constants.head().units() * CHUNK_ROWS * F32,
            draft_parts: tokens * PARTS_MAX * size_of::<u64>(),
            draft_candidates: tokens * PARTS_MAX * CANDIDATES_MAX * size_of::<u64>(),
            receiver,
            gathered,
        }
    }
}

/// Bytes of the receive buffer, and the offset in it of the logits of all ranks.
fn receiver(constants: &Constants) -> (usize, Option<usize>) {
    let (ranks, tokens) = (constants.launch.ranks, constants.launch.tokens_max);
    let token_packets = constants.owner_rows() / PACKET_VALUES;
    // Packets of every rank, and sums.
    let packet_bytes = ranks * PACKET_BYTES + PACKET_VALUES * F32;
    let all_reduce = PACKET_SETS * constants.owner_units() * tokens * token_packets * packet_bytes;
    if ranks == 1 {
        return (all_reduce, None);
    }
    let gathered = all_reduce + FLAGS_BYTES + tokens * ranks * PACKET_BYTES;
    let candidates = gathered + tokens * constants.logits_stride() * F32;
    (candidates + tokens * ranks * CANDIDATES_MAX * PACKET_BYTES, Some(gathered))
}

fn different(matrices: impl Iterator<Item = Matrix>) -> Vec<Matrix> {
    let mut found = Vec::new();
    for matrix in matrices {
        if !found.contains(&matrix) {
            found.push(matrix);
        }
    }
    found
}

/// The largest value over all kinds.
pub(crate) fn largest(kinds: usize, of: &dyn Fn(usize) -> usize) -> usize {
    (0..kinds).map(of).max().unwrap_or(0)
}

/// The sizes and offsets that the kernels compute too, as C++.
pub(crate) fn planned(constants: &Constants, working: &Working) -> String {
    let tokens_max = constants.launch.tokens_max;
    let batch = Arrays::new(0, tokens_max);
    let mut text = String::new();
    let mut write = |name: &str, value: String| {
        let array = if value.starts_with('{') { "[]" } else { "" };
        writeln!(text, "constexpr size_t {name}{array} = {value};")
            .expect("a string takes everything");
    };
    for (name, bytes) in [
        ("HEAD", constants.head().bytes()),
        ("FUSE", constants.fuse().bytes()),
        ("ANGLES", working.angles),
        ("NORMED", working.normed),
        ("SQUARES", working.squares),
        ("PROJECTED", working.projected),
        ("QUERIES", working.queries),
        ("ATTENTION_PARTS", working.attention_parts),
        ("ATTENDED", working.attended),
        ("ROUTER_PARTS", working.router_parts),
        ("ROUTER_SCORES", working.router_scores),
        ("DENSE_INNER", working.dense_inner),
        ("EXPERT_INNER", working.expert_inner),
        ("TAPS", working.taps),
        ("FUSED", working.fused),
        ("OWN_KEYS", working.own_keys),
        ("OWN_VALUES", working.own_values),
        ("LOGITS", working.logits),
        ("LOGITS_STRIDE", constants.logits_stride()),
        // Only for several ranks.
        ("LOGITS_OFFSET", working.gathered.unwrap_or(0)),
        ("DRAFT_PARTS", working.draft_parts),
        ("DRAFT_CANDIDATES", working.draft_candidates),
        ("LAWS", constants.laws_bytes()),
        ("RECEIVER", working.receiver),
        ("SHARED", constants.shared_bytes()),
        ("BATCH_TOKENS", batch.tokens),
        ("BATCH_ROWS", batch.rows),
        ("BATCH_WANTED", batch.wanted),
        ("BATCH", batch.end),
        ("BATCH_DRAFTS", drafts_together(tokens_max, constants.draft_rows)),
    ] {
        write(name, bytes.to_string());
    }
    let list = |count: usize, of: &dyn Fn(usize) -> usize| {
        let bytes: Vec<_> = (0..count).map(|kind| of(kind).to_string()).collect();
        format!("{{{}}}", bytes.join(", "))
    };
    let attentions = constants.attentions.len();
    write("QKV", list(attentions, &|kind| constants.qkv(kind).bytes()));
    write("OUTPUT", list(attentions, &|kind| constants.output(kind).bytes()));
    let wide_attention = |kind: usize| {
        let kind = &constants.attentions[kind];
        usize::from(wide_attention::has_attention(kind.window, kind.qk_dim, kind.v_dim))
    };
    write("WIDE_ATTENTION", list(attentions, &wide_attention));
    let decode = |kind: usize| usize::from(wide_attention::has_decode(constants, kind));
    write("DECODE", list(attentions, &decode));
    let few_tokens = |kind: usize| wide::few_tokens(constants.qkv(kind), constants.launch.grid);
    write("WIDE_FEW_QKV", list(attentions, &few_tokens));
    write("TILE", list(attentions, &|kind| constants.tile_bytes(kind)));
    write("KEY_PAGE", list(attentions, &|kind| constants.page_bytes(kind).0));
    write("VALUE_PAGE", list(attentions, &|kind| constants.page_bytes(kind).1));
    let feed_forwards = constants.feed_forwards.len();
    write("ROUTER", list(feed_forwards, &|kind| constants.router_bytes(kind)));
    write("GATE_UP", list(feed_forwards, &|kind| constants.gate_up(kind).bytes()));
    write("DOWN", list(feed_forwards, &|kind| constants.down(kind).bytes()));
    write("WIDE_FEW_ROWS", list(feed_forwards, &|kind| constants.few_rows_tokens(kind)));
    text
}
