//! The constants of the models whose headers are committed, so that kernels can be compiled without
//! a GPU or a checkpoint.

use std::fs;
use std::path::PathBuf;

use kilotok_model::{DenseSpec, Knobs};
use kilotok_testkit::Toy;
use kilotok_weights::read_spec;

use super::*;

const LAUNCH: Launch = Launch { ranks: 1, grid: 132, tokens_max: 64, page_tokens: 8 };

fn spec(folder: &str) -> ModelSpec {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    read_spec(&folder, &Knobs::default()).unwrap()
}

/// The folder, and its expected header. Pages of 16 tokens are the default of `serve` and `bench`.
/// The toys have few tokens, and smaller pages, so that they have many. The last two have a kernel
/// for one token.
fn examples() -> [(&'static str, String); 6] {
    let header = |spec: &ModelSpec, page_tokens| {
        Constants::new(spec, Launch { page_tokens, ..LAUNCH }).unwrap().header()
    };
    [
        ("toy_pro", header(&Toy::pro_fp4().spec(), 8)),
        ("toy_v2_6_flash", header(&Toy::v2_6_flash().spec(), 8)),
        ("demo", header(&spec("crates/demo/checkpoint"), 16)),
        ("slice", header(&spec("benches/models/slice"), 16)),
        ("gpt_oss_20b", header(&spec("benches/models/gpt_oss_20b"), 16)),
        ("qwen3_30b_fp8", header(&spec("benches/models/qwen3_30b_fp8"), 16)),
    ]
}

fn path(example: &str) -> PathBuf {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../kernels/models");
    models.join(example).join("kilotok/model.h")
}

#[test]
fn the_committed_headers_are_current() {
    for (name, header) in examples() {
        let committed = fs::read_to_string(path(name)).unwrap_or_default();
        assert!(
            committed == header,
            "kernels/models/{name} is stale: run \
             `cargo test -p kilotok-cuda write_the_committed_headers -- --ignored`"
        );
    }
}

#[test]
#[ignore = "writes into the source tree"]
fn write_the_committed_headers() {
    for (name, header) in examples() {
        let path = path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, header).unwrap();
    }
}

#[test]
fn a_rank_has_its_share_of_every_kind() {
    let spec = Toy::pro_fp4().spec();
    let alone = Constants::new(&spec, LAUNCH).unwrap();
    let eighth = Constants::new(&spec, Launch { ranks: 8, ..LAUNCH }).unwrap();
    for (whole, part) in alone.attentions.iter().zip(&eighth.attentions) {
        assert_eq!((whole.q_heads, whole.kv_heads), (part.q_heads * 8, part.kv_heads * 8));
        assert_eq!((whole.qk_dim, whole.page_group), (part.qk_dim, part.page_group));
    }
    for (whole, part) in alone.feed_forwards.iter().zip(&eighth.feed_forwards) {
        assert_eq!((whole.width, whole.experts), (part.width * 8, part.experts));
    }
    // Four ranks share two K/V heads: each holds one whole head.
    let spec = Toy::flash().spec();
    let quarter = Constants::new(&spec, Launch { ranks: 4, ..LAUNCH }).unwrap();
    let heads = quarter.attentions.iter().map(|kind| (kind.q_heads, kind.kv_heads));
    assert_eq!(heads.collect::<Vec<_>>(), [(2, 1), (2, 1), (2, 1)]);
}

#[test]
fn layers_know_their_kinds_and_the_drafter_has_its_own() {
    let constants = Constants::new(&Toy::pro_fp4().spec(), LAUNCH).unwrap();
    let kinds = |layers: &[LayerKinds]| -> Vec<_> {
        layers.iter().map(|kinds| (kinds.attention, kinds.feed_forward)).collect()
    };
    assert_eq!(kinds(&constants.layers), [(0, 0), (1, 1), (1, 1), (0, 1)]);
    assert_eq!(kinds(&constants.draft_layers), [(2, 2), (2, 2)]);
    assert_eq!((constants.draft_attention, constants.draft_feed_forward), (2, 2));
    let groups: Vec<_> = constants.attentions.iter().map(|kind| kind.page_group).collect();
    assert_eq!(groups, [0, 1, 2]);

    let mut spec = Toy::pro_fp4().spec();
    spec.drafter = None;
    let constants = Constants::new(&spec, LAUNCH).unwrap();
    assert_eq!((constants.draft_attention, constants.draft_feed_forward), (2, 2));
    assert_eq!((constants.attentions.len(), constants.feed_forwards.len()), (2, 2));
}

/// This toy's drafter has another epsilon than the target.
#[test]
fn heads_are_normed_with_the_epsilon_of_their_kind() {
    let header = Constants::new(&Toy::qwen3_dense().spec(), LAUNCH).unwrap().header();
    let fields = header.split(".qk_norm_eps = ").skip(1);
    let found: Vec<_> = fields.map(|rest| rest.split(',').next().unwrap()).collect();
    assert_eq!(found, ["1e-6f", "0.01f"]);
}

#[test]
fn floats_of_the_header_keep_their_bits() {
    let mut constants = Constants::new(&Toy::pro_fp4().spec(), LAUNCH).unwrap();
    for bits in [0x3f1c_ac08_u32, 0x3400_0000, 0x3586_37bd, 0x4b80_0001, 0x0000_0001] {
        constants.norm_eps = f32::from_bits(bits);
        let header = constants.header();
        let printed = header.split(" NORM_EPS = ").nth(1).and_then(|rest| rest.split("f;").next());
        assert_eq!(printed.unwrap().parse::<f32>().unwrap().to_bits(), bits);
    }
}

#[test]
fn frequencies_fall_by_the_base_from_one() {
    let constants = Constants::new(&spec("benches/models/slice"), LAUNCH).unwrap();
    let frequencies = constants.frequencies();
    assert_eq!(frequencies.len(), 3 * 32);
    // 1e7^(-1/2) and 1e4^(-1/2) are the frequencies of the middle pair.
    for (kind, middle) in [(0, 3.162_277_7e-4), (1, 0.01), (2, 0.01)] {
        let own: &[f32] = &frequencies[kind * 32..(kind + 1) * 32];
        assert_eq!(own[0], 1.0);
        assert!((own[16] / middle - 1.0).abs() < 1e-6, "{} is not {middle}", own[16]);
    }
}

#[test]
fn what_the_kernels_cannot_run_is_refused_by_name() {
    let refused = |spec: &ModelSpec, launch| Constants::new(spec, launch).unwrap_err().to_string();
    let spec = Toy::pro_fp4().spec();
    let said = refused(&spec, Launch { tokens_max: 60, ..LAUNCH });
    assert!(said.contains("batches of 60"), "{said}");
    let said = refused(&spec, Launch { tokens_max: 72, ..LAUNCH });
    assert!(said.contains("at most 64"), "{said}");
    let said = refused(&spec, Launch { page_tokens: 12, ..LAUNCH });
    assert!(said.contains("pages of 12 tokens are no multiple of 8"), "{said}");
    let said = refused(&spec, Launch { grid: 2, ..LAUNCH });
    assert!(said.contains("hidden_size is 128, at most 96"), "{said}");
    let said = refused(&spec, Launch { ranks: 3, ..LAUNCH });
    assert!(said.contains("1, 2, 4 or 8"), "{said}");
    let mut odd = spec.clone();
    odd.layers[2].attention.qk_dim = 44;
    let said = refused(&odd, LAUNCH);
    assert!(said.contains("layer 2: width of a key head is 44"), "{said}");
    // A rank's columns of the FP8 down projection would begin in the middle of a scale tile.
    let mut narrow = spec;
    let dense =
        DenseSpec { width: 256, format: WeightFormat::Fp8, activation: Activation::SiluMul };
    narrow.layers[0].feed_forward = FeedForwardSpec::Dense(dense);
    let said = refused(&narrow, Launch { ranks: 8, ..LAUNCH });
    assert!(said.contains("layer 0") && said.contains("32"), "{said}");
}
