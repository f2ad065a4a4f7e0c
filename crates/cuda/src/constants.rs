//! The constants of a model that the kernels are compiled with: the kinds of attention and
//! feed-forward network of its layers, as one rank holds them, and the generated header.

#[cfg(test)]
mod tests;

use std::fmt::Write;

use kilotok_abi::GROUPS_MAX;
use kilotok_batch::Grouping;
use kilotok_model::{
    Activation, AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, Ranks, RopeSpec, RouterDtype,
    RouterScores, WeightFormat, check_ranks,
};

use crate::buffers::{CHUNK_COLUMNS, CHUNK_ROWS, OWNER_TILES_MAX, TILE_TOKENS, Working, planned};

/// Rows of operands, weights and keys are multiples of 16 bytes (this many BF16 values), the unit
/// of a copy.
const ALIGNED_VALUES: usize = 8;
/// Positions whose keys and values lie together in a page, as in `layout/buffers.cuh`.
const GROUP_KEYS: usize = 8;
/// The most tokens of a batch: their scaled residual stream fits a CTA's scratch memory.
pub(crate) const TOKENS_MAX: usize = 64;
/// A thread of full attention keeps half as many sums in registers.
const VALUE_DIM_MAX: usize = 192;
/// The most experts of a layer: an owner's 48 columns of their F32 router weights fit the ring.
const EXPERTS_MAX: usize = 816;
/// The largest vocabulary: with so many tokens the sampler's sums of probabilities do not overflow.
const VOCAB_MAX: usize = 1 << 18;
/// The most experts of a token: the choices of `TOKENS_MAX` tokens, sorted by expert, fit a CTA's
/// shared memory.
const TOP_K_MAX: usize = 16;

/// How the kernels are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) ranks: usize,
    /// CTAs of a rank: one for each SM of its GPU.
    pub(crate) grid: usize,
    /// The most tokens of a batch.
    pub(crate) tokens_max: usize,
    /// Positions in a page.
    pub(crate) page_tokens: usize,
}

/// A model's constants. Sizes are one rank's share, except the vocabulary and the hidden size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constants {
    pub(crate) launch: Launch,
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    /// Rows of one draft; 0 without a drafter.
    pub(crate) draft_rows: usize,
    pub(crate) taps: usize,
    /// Whether no drafter taps the last layer, so nothing but the head reads its results.
    pub(crate) ends_untapped: bool,
    pub(crate) norm_eps: f32,
    pub(crate) draft_norm_eps: f32,
    pub(crate) attentions: Vec<Attention>,
    /// The drafter's kinds follow the target's.
    pub(crate) draft_attention: usize,
    pub(crate) feed_forwards: Vec<FeedForward>,
    pub(crate) draft_feed_forward: usize,
    pub(crate) layers: Vec<LayerKinds>,
    pub(crate) draft_layers: Vec<LayerKinds>,
}

/// One kind of attention, as in `shape.cuh`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attention {
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) qk_dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) rope: RopeSpec,
    pub(crate) window: Option<usize>,
    pub(crate) page_group: usize,
    pub(crate) sinks: bool,
    pub(crate) bias: bool,
    pub(crate) qk_norm_eps: Option<f32>,
    pub(crate) value_scale: f32,
    pub(crate) format: WeightFormat,
    pub(crate) output_format: WeightFormat,
}

/// One kind of feed-forward network, as in `shape.cuh`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FeedForward {
    /// 0 for a dense network.
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) width: usize,
    pub(crate) format: WeightFormat,
    pub(crate) activation: Activation,
    /// Whether gate, up and down of experts have biases.
    pub(crate) bias: bool,
    pub(crate) scores: RouterScores,
    /// Whether a vector is added to the scores before experts are chosen.
    pub(crate) router_bias: bool,
    pub(crate) router_dtype: RouterDtype,
    pub(crate) normalise: bool,
    pub(crate) scale: f32,
}

/// The kinds of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerKinds {
    pub(crate) attention: usize,
    pub(crate) feed_forward: usize,
}

/// A model that the kernels cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the GPU kernels cannot run this model: {}", problems.join("; "))]
pub(crate) struct UnfitError {
    pub(crate) problems: Vec<String>,
}

impl Constants {
    /// # Errors
    /// All sizes that the kernels do not support.
    pub(crate) fn new(spec: &ModelSpec, launch: Launch) -> Result<Self, UnfitError> {
        let problems = problems(spec, launch);
        if !problems.is_empty() {
            return Err(UnfitError { problems });
        }
        let mut constants = Self {
            launch,
            hidden: spec.hidden_size,
            vocab: spec.vocab_size,
            draft_rows: spec.drafter.as_ref().map_or(0, |drafter| drafter.rows),
            taps: spec.drafter.as_ref().map_or(0, |drafter| drafter.taps.len()),
            ends_untapped: spec
                .drafter
                .as_ref()
                .is_none_or(|drafter| !drafter.taps.contains(&(spec.layers.len() - 1))),
            norm_eps: spec.norm_eps,
            draft_norm_eps: spec.drafter.as_ref().map_or(spec.norm_eps, |drafter| drafter.norm_eps),
            attentions: Vec::new(),
            draft_attention: 0,
            feed_forwards: Vec::new(),
            draft_feed_forward: 0,
            layers: Vec::new(),
            draft_layers: Vec::new(),
        };
        // Neither the number of pages nor their bytes matter here.
        let grouping = Grouping::new(spec, 1, launch.page_tokens as u32, 0);
        constants.layers = constants.kinds(&spec.layers, &grouping.target, (0, 0));
        constants.draft_attention = constants.attentions.len();
        constants.draft_feed_forward = constants.feed_forwards.len();
        if let Some(drafter) = &spec.drafter {
            let first = (constants.draft_attention, constants.draft_feed_forward);
            constants.draft_layers = constants.kinds(&drafter.layers, &grouping.drafter, first);
        }
        let (groups, max) = (grouping.groups.len(), GROUPS_MAX);
        if groups > max {
            let problems = vec![format!("its layers have {groups} kinds of pages, at most {max}")];
            return Err(UnfitError { problems });
        }
        let problems = constants.shared_problems();
        if problems.is_empty() { Ok(constants) } else { Err(UnfitError { problems }) }
    }

    /// The kinds of these layers. New kinds are added. Kinds before `first` belong to other layers.
    fn kinds(
        &mut self,
        layers: &[LayerSpec],
        page_groups: &[usize],
        first: (usize, usize),
    ) -> Vec<LayerKinds> {
        let mut kinds = Vec::with_capacity(layers.len());
        for (layer, page_group) in layers.iter().zip(page_groups) {
            let attention = self.attention(&layer.attention, *page_group);
            let feed_forward = self.feed_forward(&layer.feed_forward);
            kinds.push(LayerKinds {
                attention: place(&mut self.attentions, first.0, attention),
                feed_forward: place(&mut self.feed_forwards, first.1, feed_forward),
            });
        }
        kinds
    }

    fn attention(&self, spec: &AttentionSpec, page_group: usize) -> Attention {
        let ranks = self.launch.ranks;
        Attention {
            q_heads: spec.q_heads / ranks,
            kv_heads: Ranks { rank: 0, count: ranks }.kv_share(spec.kv_heads).len(),
            qk_dim: spec.qk_dim,
            v_dim: spec.v_dim,
            rope: spec.rope,
            window: spec.window(),
            page_group,
            sinks: spec.sinks,
            bias: spec.bias,
            qk_norm_eps: spec.qk_norm_eps,
            value_scale: spec.value_scale,
            format: spec.qkv_format,
            output_format: spec.output_format,
        }
    }

    fn feed_forward(&self, spec: &FeedForwardSpec) -> FeedForward {
        let width = spec.width() / self.launch.ranks;
        match spec {
            FeedForwardSpec::Dense(dense) => FeedForward {
                experts: 0,
                top_k: 0,
                width,
                format: dense.format,
                activation: dense.activation,
                bias: false,
                scores: RouterScores::CorrectedSigmoid,
                router_bias: false,
                router_dtype: RouterDtype::F32,
                normalise: false,
                scale: 1.0,
            },
            FeedForwardSpec::Experts(experts) => FeedForward {
                experts: experts.count,
                top_k: experts.top_k,
                width,
                format: experts.format,
                activation: experts.activation,
                bias: experts.bias,
                scores: experts.router.scores,
                router_bias: experts.router.bias
                    || experts.router.scores == RouterScores::CorrectedSigmoid,
                router_dtype: experts.router.dtype,
                normalise: experts.router.normalise,
                scale: experts.router.scale,
            },
        }
    }

    /// The generated `kilotok/model.h`.
    pub(crate) fn header(&self) -> String {
        let mut text = String::from(BEGIN);
        let launch = self.launch;
        for (name, value) in [
            ("RANKS", launch.ranks),
            ("GRID", launch.grid),
            ("TOKENS_MAX", launch.tokens_max),
            ("PAGE_TOKENS", launch.page_tokens),
            ("HIDDEN", self.hidden),
            ("VOCAB", self.vocab),
            ("LAYERS", self.layers.len()),
            ("DRAFT_LAYERS", self.draft_layers.len()),
            ("DRAFT_ROWS", self.draft_rows),
            ("TAPS", self.taps),
            ("ATTENTION_KINDS", self.attentions.len()),
            ("DRAFT_ATTENTION", self.draft_attention),
            ("FEED_FORWARD_KINDS", self.feed_forwards.len()),
            ("DRAFT_FEED_FORWARD", self.draft_feed_forward),
        ] {
            line(&mut text, &format!("constexpr int {name} = {value};"));
        }
        for (name, value) in [("NORM_EPS", self.norm_eps), ("DRAFT_NORM_EPS", self.draft_norm_eps)]
        {
            line(&mut text, &format!("constexpr float {name} = {value:?}f;"));
        }
        line(&mut text, "\nconstexpr Attention ATTENTIONS[] = {");
        for kind in &self.attentions {
            entry(&mut text, &kind.fields());
        }
        line(&mut text, "};\n\nconstexpr FeedForward FEED_FORWARDS[] = {");
        for kind in &self.feed_forwards {
            entry(&mut text, &kind.fields());
        }
        line(
            &mut text,
            "};\n\n// What the host plans; layout/planned.cuh and step/verify.cuh compare.",
        );
        line(&mut text, "namespace planned {\n");
        text += &planned(self, &Working::new(self));
        text += "\n}  // namespace planned\n\n}  // namespace kilotok\n";
        text
    }

    /// The RoPE frequencies of every kind of attention, each followed by zeros up to the same
    /// number.
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let pairs_max = self.rope_pairs_max();
        let mut frequencies = vec![0.0; self.attentions.len() * pairs_max];
        for (kind, place) in self.attentions.iter().zip(frequencies.chunks_exact_mut(pairs_max)) {
            place.iter_mut().zip(kind.rope.frequencies()).for_each(|(to, from)| *to = from);
        }
        frequencies
    }

    pub(crate) fn rope_pairs_max(&self) -> usize {
        self.attentions.iter().map(|kind| (kind.rope.dims / 2).max(1)).max().unwrap_or(1)
    }
}

/// The most columns of a line of the header.
const HEADER_COLUMNS: usize = 100;
const BEGIN: &str = "\
// The constants of a model as one GPU runs it. Generated by crates/cuda/src/constants.rs.
#pragma once

#include \"kilotok/shape.cuh\"

namespace kilotok {

";

fn line(text: &mut String, words: &str) {
    writeln!(text, "{words}").expect("a string takes everything");
}

/// The fields of a struct, on as many lines as they need.
fn entry(text: &mut String, fields: &str) {
    let mut own = String::from("    {");
    for (index, field) in fields.split(", ").enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        if own.len() + separator.len() + field.len() + "},".len() > HEADER_COLUMNS {
            line(text, &format!("{own},"));
            own = format!("     {field}");
        } else {
            own = own + separator + field;
        }
    }
    line(text, &format!("{own}}},"));
}

/// The index of an equal entry from `first` on. If there is none, the entry is added.
fn place<T: PartialEq>(list: &mut Vec<T>, first: usize, entry: T) -> usize {
    let found = list[first..].iter().position(|other| *other == entry);
    found.map_or_else(
        || {
            list.push(entry);
            list.len() - 1
        },
        |index| first + index,
    )
}

impl Attention {
    fn fields(&self) -> String {
        designated(&[
            ("q_heads", self.q_heads.to_string()),
            ("kv_heads", self.kv_heads.to_string()),
            ("qk_dim", self.qk_dim.to_string()),
            ("v_dim", self.v_dim.to_string()),
            ("rope_pairs", (self.rope.dims / 2).to_string()),
            ("rope_magnitude", float(self.rope.magnitude())),
            ("window", self.window.unwrap_or(0).to_string()),
            ("page_group", self.page_group.to_string()),
            ("sinks", self.sinks.to_string()),
            ("bias", self.bias.to_string()),
            ("qk_norm", self.qk_norm_eps.is_some().to_string()),
            ("qk_norm_eps", float(self.qk_norm_eps.unwrap_or(0.0))),
            ("paired", self.is_paired().to_string()),
            ("value_scale", float(self.value_scale)),
            ("format", format_name(self.format).to_owned()),
            ("output_format", format_name(self.output_format).to_owned()),
        ])
    }
}

impl FeedForward {
    fn fields(&self) -> String {
        let (activation, alpha, limit) = match self.activation {
            Activation::SiluMul => ("SiluMul", 0.0, 0.0),
            Activation::ClampedSwiglu { alpha, limit } => ("ClampedSwiglu", alpha, limit),
        };
        let scores = match self.scores {
            RouterScores::CorrectedSigmoid => "CorrectedSigmoid",
            RouterScores::Softmax => "Softmax",
        };
        designated(&[
            ("experts", self.experts.to_string()),
            ("top_k", self.top_k.to_string()),
            ("width", self.width.to_string()),
            ("format", format_name(self.format).to_owned()),
            ("activation", format!("Activation::{activation}")),
            ("alpha", float(alpha)),
            ("limit", float(limit)),
            ("bias", self.bias.to_string()),
            ("scores", format!("RouterScores::{scores}")),
            ("router_bias", self.router_bias.to_string()),
            ("router_bf16", (self.router_dtype == RouterDtype::Bf16).to_string()),
            ("normalise", self.normalise.to_string()),
            ("scale", float(self.scale)),
        ])
    }
}

/// Designated initialisers, in the order of the struct.
fn designated(fields: &[(&str, String)]) -> String {
    let fields = fields.iter().map(|(name, value)| format!(".{name} = {value}"));
    fields.collect::<Vec<_>>().join(", ")
}

fn float(value: f32) -> String {
    format!("{value:?}f")
}

fn format_name(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Float => "Format::Bf16",
        WeightFormat::Fp8 => "Format::Fp8",
        WeightFormat::Mxfp4 => "Format::Mxfp4",
    }
}

/// All properties of the model that the kernels do not support.
fn problems(spec: &ModelSpec, launch: Launch) -> Vec<String> {
    let mut problems =
        check_ranks(spec, launch.ranks).err().map_or_else(Vec::new, |error| error.problems);
    let Launch { ranks, grid, tokens_max, page_tokens } = launch;
    if !problems.is_empty() {
        return problems;
    }
    if grid == 0 || page_tokens == 0 || tokens_max == 0 || !tokens_max.is_multiple_of(TILE_TOKENS) {
        problems.push(format!(
            "{grid} CTAs, pages of {page_tokens} tokens and batches of {tokens_max}, which come in \
             tiles of {TILE_TOKENS}"
        ));
    }
    if !page_tokens.is_multiple_of(GROUP_KEYS) {
        problems.push(format!("pages of {page_tokens} tokens are no multiple of {GROUP_KEYS}"));
    }
    at_most(&mut problems, "tokens of a batch", tokens_max, TOKENS_MAX);
    at_most(&mut problems, "vocab_size", spec.vocab_size, VOCAB_MAX);
    aligned(&mut problems, "hidden_size", spec.hidden_size);
    // A rank sends its share of the fused taps eight columns at a time.
    aligned(&mut problems, "a rank's share of hidden_size", spec.hidden_size.div_ceil(ranks));
    let hidden_max = grid * OWNER_TILES_MAX * CHUNK_ROWS;
    if spec.hidden_size > hidden_max {
        problems.push(format!(
            "hidden_size is {}, at most {hidden_max} on a GPU of {grid} multiprocessors",
            spec.hidden_size,
        ));
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        check_layer(&mut problems, &format!("layer {index}"), layer, ranks);
    }
    if let Some(drafter) = &spec.drafter {
        at_most(&mut problems, "rows of a draft", drafter.rows, tokens_max);
        for (index, layer) in drafter.layers.iter().enumerate() {
            let name = format!("drafter layer {index}");
            check_layer(&mut problems, &name, layer, ranks);
            if layer.attention.qkv_format != WeightFormat::Float {
                problems.push(format!("{name}: {} projections", layer.attention.qkv_format));
            }
        }
    }
    problems
}

fn check_layer(problems: &mut Vec<String>, name: &str, layer: &LayerSpec, ranks: usize) {
    aligned(problems, &format!("{name}: width of a key head"), layer.attention.qk_dim);
    aligned(problems, &format!("{name}: width of a value head"), layer.attention.v_dim);
    at_most(
        problems,
        &format!("{name}: width of a value head"),
        layer.attention.v_dim,
        VALUE_DIM_MAX,
    );
    let width = layer.feed_forward.width() / ranks;
    aligned(problems, &format!("{name}: a rank's feed-forward width"), width);
    let format = layer.feed_forward.format();
    if let FeedForwardSpec::Experts(experts) = &layer.feed_forward {
        at_most(problems, &format!("{name}: experts"), experts.count, EXPERTS_MAX);
        at_most(problems, &format!("{name}: experts of a token"), experts.top_k, TOP_K_MAX);
    }
    let attended = layer.attention.q_heads * layer.attention.v_dim / ranks;
    for (what, format, width) in [
        ("feed-forward width", format, width),
        ("width of attention", layer.attention.output_format, attended),
    ] {
        // A rank's scale tiles begin where those of the whole matrix do.
        if format == WeightFormat::Fp8 && ranks > 1 && !width.is_multiple_of(CHUNK_COLUMNS) {
            problems.push(format!(
                "{name}: a rank's {what} is {width}; FP8 weights come in {CHUNK_COLUMNS}s"
            ));
        }
    }
}

fn aligned(problems: &mut Vec<String>, name: &str, size: usize) {
    if !size.is_multiple_of(ALIGNED_VALUES) {
        problems.push(format!("{name} is {size}, no multiple of {ALIGNED_VALUES}"));
    }
}

fn at_most(problems: &mut Vec<String>, name: &str, size: usize, max: usize) {
    if size > max {
        problems.push(format!("{name} is {size}, at most {max}"));
    }
}
