//! The bytes that a rank reads in a round, by phase: each weight once, in its published precision
//! or the one to which it is converted, and the keys and values of the context.

use std::collections::BTreeMap;

use kilotok_abi::Stamp;
use kilotok_engine::StepPart;
use kilotok_model::{
    AttentionSpec, ExpertsSpec, FP8_TILE, FeedForwardSpec, Format, LayerSpec, LayerWeight,
    ModelSpec, Part, Ranks, WeightDecl, WeightId, declare,
};

use super::figures::Figures;
use super::rounds::Shape;
use crate::engine;

/// Indexed by part of the step and phase.
pub(super) struct RoundBytes(BTreeMap<(StepPart, Stamp), f64>);

impl RoundBytes {
    /// The bytes of one of `rank_count` ranks, if `experts` of each layer are read.
    pub(super) fn new(spec: &ModelSpec, rank_count: usize, shape: Shape, experts: f64) -> Self {
        let mut bytes = Self(BTreeMap::new());
        let ranks = Ranks { rank: 0, count: rank_count };
        for decl in declare(spec) {
            let mut read = rank_bytes(&decl, ranks);
            if let WeightId::Expert(layer, ..) = decl.id
                && let FeedForwardSpec::Experts(all) = &spec.layers[layer].feed_forward
            {
                read *= experts / all.count as f64;
            }
            if let WeightId::Layer(Part::Target, layer, LayerWeight::Router) = decl.id
                && let FeedForwardSpec::Experts(all) = &spec.layers[layer].feed_forward
            {
                read = (decl.rows() * decl.cols() * all.router.dtype.bytes()) as f64;
            }
            for phase in readers(decl.id) {
                bytes.add(phase, read);
            }
        }
        for (part, layers) in [
            (StepPart::Verify, Some(&spec.layers)),
            (StepPart::Draft, spec.drafter.as_ref().map(|drafter| &drafter.layers)),
        ] {
            let layers = layers.into_iter().flatten();
            let read: f64 = layers.map(|layer| context_bytes(layer, ranks, shape)).sum();
            bytes.add((part, Stamp::Attention), read);
        }
        bytes.0.retain(|(part, phase), _| match (part, &spec.drafter) {
            (StepPart::Verify, _) => true,
            (StepPart::Draft, None) => false,
            // The drafter's context is updated with all tokens, even if no drafts are wanted.
            (StepPart::Draft, Some(_)) => shape.draft > 0 || is_of_context(*phase),
        });
        bytes
    }

    fn add(&mut self, phase: (StepPart, Stamp), bytes: f64) {
        *self.0.entry(phase).or_default() += bytes;
    }

    pub(super) fn of(&self, part: StepPart, phase: Stamp) -> f64 {
        self.0.get(&(part, phase)).copied().unwrap_or_default()
    }

    pub(super) fn of_part(&self, wanted: StepPart) -> f64 {
        self.0.iter().filter(|((part, _), _)| *part == wanted).map(|(_, bytes)| bytes).sum()
    }

    /// The time in microseconds to read all bytes at `read_rate` bytes per second.
    pub(super) fn floor_us(&self, read_rate: f64) -> f64 {
        self.0.values().sum::<f64>() / read_rate * 1e6
    }
}

/// How many distinct experts of a layer `token_count` tokens choose at random, averaged over all
/// layers with experts.
pub(super) fn distinct_experts(spec: &ModelSpec, token_count: u32) -> f64 {
    let layers = spec.layers.iter().filter_map(|layer| match &layer.feed_forward {
        FeedForwardSpec::Experts(experts) => {
            Some(experts.count as f64 * share_chosen(experts, token_count))
        }
        FeedForwardSpec::Dense(_) => None,
    });
    Figures::of(layers).mean
}

/// The share of a layer's experts that at least one token chooses.
fn share_chosen(experts: &ExpertsSpec, token_count: u32) -> f64 {
    1.0 - (1.0 - experts.top_k as f64 / experts.count as f64).powf(f64::from(token_count))
}

/// The bytes of a rank's part of a weight.
fn rank_bytes(decl: &WeightDecl, ranks: Ranks) -> f64 {
    let slice = decl.slice(ranks);
    let share = slice.row_count() * slice.cols.len();
    let values = (decl.rows() * decl.cols()) as f64;
    let whole = match decl.format {
        // One byte for each value, and a scale for each row of a column tile.
        Format::FloatToFp8 => values * (1.0 + size_of::<f32>() as f64 / FP8_TILE as f64),
        _ => engine::declared_bytes(decl) as f64,
    };
    whole * share as f64 / values
}

/// The phases that read a weight. The embedding is left out: only the rows of the step's tokens are
/// read.
fn readers(id: WeightId) -> Vec<(StepPart, Stamp)> {
    let (verify, draft) = (StepPart::Verify, StepPart::Draft);
    match id {
        WeightId::Embedding => vec![],
        WeightId::FinalNorm => vec![(verify, Stamp::AddRmsNorm)],
        WeightId::Head => vec![(verify, Stamp::Head), (draft, Stamp::Head)],
        WeightId::DraftFc => vec![(draft, Stamp::Fuse)],
        WeightId::DraftContextNorm => vec![(draft, Stamp::ContextNorm)],
        WeightId::DraftNorm => vec![(draft, Stamp::AddRmsNorm)],
        WeightId::DraftMask => vec![(draft, Stamp::Embed)],
        WeightId::Expert(_, _, weight) | WeightId::Layer(Part::Target, _, weight) => {
            vec![(verify, reader(weight))]
        }
        // Read for the context, and again for the draft's own rows.
        WeightId::Layer(Part::Drafter, _, LayerWeight::Key | LayerWeight::Value) => {
            vec![(draft, Stamp::ContextKeys), (draft, Stamp::Project)]
        }
        WeightId::Layer(Part::Drafter, _, weight) => vec![(draft, reader(weight))],
    }
}

fn reader(weight: LayerWeight) -> Stamp {
    match weight {
        LayerWeight::InputNorm | LayerWeight::PostNorm => Stamp::AddRmsNorm,
        LayerWeight::Qkv
        | LayerWeight::Query
        | LayerWeight::Key
        | LayerWeight::Value
        | LayerWeight::QueryBias
        | LayerWeight::KeyBias
        | LayerWeight::ValueBias => Stamp::Project,
        LayerWeight::QueryNorm | LayerWeight::KeyNorm => Stamp::AttentionIn,
        LayerWeight::Sinks => Stamp::Attention,
        LayerWeight::Output | LayerWeight::OutputBias => Stamp::Output,
        LayerWeight::Router => Stamp::RouterParts,
        LayerWeight::RouterBias | LayerWeight::RouterCorrection => Stamp::Routes,
        LayerWeight::Gate | LayerWeight::Up | LayerWeight::GateBias | LayerWeight::UpBias => {
            Stamp::GateUp
        }
        LayerWeight::Down | LayerWeight::DownBias => Stamp::Down,
    }
}

fn is_of_context(phase: Stamp) -> bool {
    matches!(phase, Stamp::Fuse | Stamp::ContextNorm | Stamp::ContextKeys)
}

/// The bytes of keys and values that the rows of a round attend to in a layer.
fn context_bytes(layer: &LayerSpec, ranks: Ranks, shape: Shape) -> f64 {
    let attention: &AttentionSpec = &layer.attention;
    let seen =
        attention.window().map_or(shape.context as usize, |keys| keys.min(shape.context as usize));
    let heads = ranks.kv_share(attention.kv_heads).len();
    let values = heads * (attention.qk_dim + attention.v_dim);
    f64::from(shape.batch) * (seen * values * kilotok_cuda::VALUE_BYTES) as f64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kilotok_model::{Knobs, RouterDtype};
    use kilotok_testkit::Toy;
    use kilotok_weights::read_spec;

    use super::*;

    const SHAPE: Shape = Shape { batch: 1, draft: 7, chunk: None, context: 4096 };

    fn uniform(spec: &ModelSpec, rank_count: usize, shape: Shape) -> RoundBytes {
        RoundBytes::new(spec, rank_count, shape, distinct_experts(spec, shape.token_count()))
    }

    #[test]
    fn tokens_choose_experts_at_random() {
        let spec = Toy::pro_fp4().spec();
        let top_k = distinct_experts(&spec, 1);
        assert!((top_k - top_k.round()).abs() < 1e-9, "one token has its own: {top_k}");
        assert!(distinct_experts(&spec, 8) > top_k);
    }

    /// Calculated by hand for one of eight ranks of the 1T shape.
    #[test]
    fn a_phase_reads_its_weights() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/models/slice");
        let spec = read_spec(&folder, &Knobs::default()).unwrap();
        let bytes = uniform(&spec, 1, SHAPE);
        let is = |part, phase, expected: f64| {
            let found = bytes.of(part, phase);
            assert!((found - expected).abs() < 1.0, "{part:?} {phase:?}: {found}, not {expected}");
        };
        let (verify, draft) = (StepPart::Verify, StepPart::Draft);
        let hidden = 6144.0;
        is(verify, Stamp::RouterParts, 69.0 * 384.0 * hidden * 4.0);
        // A rank's part of an expert is 256 wide, with half a byte and a 32nd for each weight. Its
        // part of the dense network is 2048 wide, with a byte for each weight and four bytes for
        // each 128 x 128.
        let distinct = 384.0 * (1.0 - (47.0_f64 / 48.0).powi(8));
        let down = distinct * 69.0 * 256.0 * hidden * (0.5 + 1.0 / 32.0)
            + 2048.0 * hidden * (1.0 + 4.0 / 16384.0);
        is(verify, Stamp::Down, down);
        is(verify, Stamp::GateUp, 2.0 * down);
        // The keys and values of all 4096 positions in ten layers, and of 128 positions in the
        // others, where a bias for each head is read too.
        let position = (192.0 + 128.0) * 2.0;
        is(verify, Stamp::Attention, (10.0 * 4096.0 + 60.0 * 128.0) * position + 60.0 * 16.0 * 2.0);
        let router_dtype = Some(RouterDtype::Bf16);
        let knobs = Knobs { router_dtype, draft_fp8: true, ..Knobs::default() };
        let rounded = uniform(&read_spec(&folder, &knobs).unwrap(), 1, SHAPE);
        assert_eq!(
            bytes.of(verify, Stamp::RouterParts),
            2.0 * rounded.of(verify, Stamp::RouterParts)
        );
        // Five layers of 2048 x 6144, with two bytes per weight, or with one byte and a scale of
        // four bytes per 128 weights.
        let network = 5.0 * 2048.0 * hidden;
        is(draft, Stamp::Down, network * 2.0);
        assert_eq!(rounded.of(draft, Stamp::Down), network * (1.0 + 1.0 / 32.0));
        assert_eq!(bytes.of(verify, Stamp::Head), bytes.of(draft, Stamp::Head));
        let sum = bytes.of_part(verify) + bytes.of_part(draft);
        assert!((bytes.floor_us(4e12) - sum / 4e6).abs() < 1e-6);
    }

    #[test]
    fn fewer_experts_are_fewer_bytes() {
        let spec = Toy::pro_fp4().spec();
        let read = |experts| {
            let bytes = RoundBytes::new(&spec, 1, SHAPE, experts);
            [Stamp::GateUp, Stamp::Output].map(|phase| bytes.of(StepPart::Verify, phase))
        };
        let ([few, output], [many, same]) = (read(2.0), read(4.0));
        assert!(few < many && output == same, "{few} {many} {output} {same}");
    }

    #[test]
    fn ranks_share_what_can_be_shared() {
        let spec = Toy::pro_fp4().spec();
        let (one, two) = (uniform(&spec, 1, SHAPE), uniform(&spec, 2, SHAPE));
        let both = |phase| {
            let verify = StepPart::Verify;
            (one.of(verify, phase), two.of(verify, phase))
        };
        for phase in [Stamp::GateUp, Stamp::Down, Stamp::Output, Stamp::Head] {
            let (one, two) = both(phase);
            assert!(one > 0.0 && one == two * 2.0, "{phase:?}: {one}, {two}");
        }
        let (one, two) = both(Stamp::RouterParts);
        assert!(one > 0.0 && one == two, "every rank has the whole router: {one}, {two}");
    }

    #[test]
    fn what_does_not_run_reads_nothing() {
        let spec = Toy::pro_fp4().spec();
        let bytes = uniform(&spec, 1, Shape { draft: 0, ..SHAPE });
        assert_eq!(bytes.of(StepPart::Draft, Stamp::Head), 0.0);
        assert!(bytes.of(StepPart::Draft, Stamp::ContextKeys) > 0.0);
        let alone = ModelSpec { drafter: None, ..spec };
        assert_eq!(uniform(&alone, 1, SHAPE).of_part(StepPart::Draft), 0.0);
    }
}
