//! Dummy weights: every rank gets the same numbers, and their size suits a model.

use kilotok_model::{Format, LayerWeight, Part, Ranks, Shard, WeightDecl, WeightId};
use kilotok_weights::{Dummy, Tensor, TensorData, WeightSource};

fn decl(id: WeightId, shape: &[usize], format: Format, shard: Shard) -> WeightDecl {
    let name = format!("{id:?}");
    WeightDecl { id, part: Part::Target, name, shape: shape.to_vec(), format, shard, stack: None }
}

fn layer(weight: LayerWeight) -> WeightId {
    WeightId::Layer(Part::Target, 0, weight)
}

/// One weight of every format and every shard rule.
fn decls() -> Vec<WeightDecl> {
    let fused = Shard::Qkv { chunks: 4, q_heads: 16, kv_heads: 8, qk_dim: 24, v_dim: 16 };
    let fused_rows = 16 * 24 + 8 * (24 + 16);
    let fp8 = |chunk_rows| Format::Fp8 { chunk_rows };
    vec![
        decl(WeightId::Embedding, &[96, 320], Format::Float, Shard::Rows),
        decl(layer(LayerWeight::Qkv), &[fused_rows, 320], fp8(fused_rows / 4), fused),
        decl(layer(LayerWeight::Down), &[320, 320], fp8(320), Shard::Columns),
        decl(
            layer(LayerWeight::Key),
            &[32, 50],
            Format::Float,
            Shard::KvHeads { heads: 4, dim: 8 },
        ),
        decl(layer(LayerWeight::Output), &[40, 72], Format::Float, Shard::Columns),
        decl(layer(LayerWeight::Sinks), &[16], Format::Float, Shard::Columns),
        decl(layer(LayerWeight::Router), &[6, 50], Format::Float, Shard::Whole),
        decl(layer(LayerWeight::RouterCorrection), &[6], Format::Float, Shard::Whole),
        decl(layer(LayerWeight::InputNorm), &[50], Format::Float, Shard::Whole),
        decl(WeightId::Expert(0, 1, LayerWeight::Gate), &[64, 96], Format::Mxfp4, Shard::Rows),
        decl(WeightId::Expert(0, 1, LayerWeight::Down), &[50, 512], Format::Mxfp4, Shard::Columns),
    ]
}

fn read(dummy: Dummy, decl: &WeightDecl, ranks: Ranks) -> Tensor {
    dummy.read(decl, &decl.slice(ranks)).expect("dummies have every weight")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![f32::NAN; tensor.rows * tensor.cols];
    for (row, values) in values.chunks_mut(tensor.cols).enumerate() {
        tensor.decode_row(row, values);
    }
    values
}

fn deviation(values: &[f32]) -> f64 {
    let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    (squares / values.len() as f64).sqrt()
}

#[test]
fn a_rank_has_its_part_of_the_whole() {
    let dummy = Dummy::new(3);
    for decl in decls() {
        let whole = values(&read(dummy, &decl, Ranks::ALONE));
        let slice = decl.slice(Ranks::ALONE);
        // Rows of the stored weight, because even a single rank may have them in another order.
        let order: Vec<_> = slice.rows.iter().cloned().flatten().collect();
        for (rank, count) in [1, 2, 4, 8].into_iter().flat_map(|n| (0..n).map(move |r| (r, n))) {
            let ranks = Ranks { rank, count };
            let part = read(dummy, &decl, ranks);
            let slice = decl.slice(ranks);
            let mut wanted = Vec::new();
            for row in slice.rows.iter().cloned().flatten() {
                let at = order.iter().position(|other| *other == row).expect("a row of the whole");
                let row = &whole[at * decl.cols()..(at + 1) * decl.cols()];
                wanted.extend_from_slice(&row[slice.cols.clone()]);
            }
            assert_eq!(values(&part), wanted, "{} {ranks:?}", decl.name);
        }
    }
}

#[test]
fn seeds_and_names_make_other_numbers() {
    for decl in decls() {
        let first = read(Dummy::new(1), &decl, Ranks::ALONE);
        assert_eq!(read(Dummy::new(1), &decl, Ranks::ALONE), first);
        assert_ne!(read(Dummy::new(2), &decl, Ranks::ALONE), first);
        let other = WeightDecl { name: "other".to_owned(), ..decl };
        assert_ne!(read(Dummy::new(1), &other, Ranks::ALONE), first);
    }
}

#[test]
fn formats_are_those_of_checkpoints() {
    for decl in decls() {
        let tensor = read(Dummy::new(1), &decl, Ranks::ALONE);
        let is_router = matches!(
            decl.id,
            WeightId::Layer(_, _, LayerWeight::Router | LayerWeight::RouterCorrection)
        );
        let as_stored = match (&tensor.data, decl.format) {
            (TensorData::F32(_), Format::Float) => is_router,
            (TensorData::Bf16(_), Format::Float) => !is_router,
            (TensorData::Fp8 { .. }, Format::Fp8 { .. })
            | (TensorData::Mxfp4 { .. }, Format::Mxfp4) => true,
            _ => false,
        };
        assert!(as_stored, "{}", decl.name);
    }
}

/// With a scale of 1 / sqrt(inputs), a product is as large as its input, in every format.
#[test]
fn matrices_deviate_as_their_inputs_need() {
    let fp8 = Format::Fp8 { chunk_rows: 256 };
    for cols in [768, 2048, 6144] {
        for (format, gate, down) in [
            (Format::Float, layer(LayerWeight::Gate), layer(LayerWeight::Down)),
            (fp8, layer(LayerWeight::Gate), layer(LayerWeight::Down)),
            (
                Format::Mxfp4,
                WeightId::Expert(0, 0, LayerWeight::Gate),
                WeightId::Expert(0, 0, LayerWeight::Down),
            ),
        ] {
            for (id, gain) in [(gate, 1.0), (down, 0.5)] {
                let decl = decl(id, &[256, cols], format, Shard::Whole);
                let values = values(&read(Dummy::new(5), &decl, Ranks::ALONE));
                let relative = deviation(&values) * (cols as f64).sqrt() / gain;
                assert!((0.9..1.1).contains(&relative), "{format:?} {cols}: {relative}");
                let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>()
                    / (values.len() as f64).sqrt()
                    / deviation(&values);
                assert!(mean.abs() < 4.0, "{format:?} {cols}: {mean} deviations from 0");
            }
        }
    }
}

#[test]
fn vectors_are_near_what_they_stand_for() {
    let read = |id| {
        values(&read(Dummy::new(5), &decl(id, &[4096], Format::Float, Shard::Whole), Ranks::ALONE))
    };
    for weight in [
        LayerWeight::InputNorm,
        LayerWeight::PostNorm,
        LayerWeight::QueryNorm,
        LayerWeight::KeyNorm,
    ] {
        let norm = read(layer(weight));
        assert!(norm.iter().all(|value| (0.875..=1.125).contains(value)));
        assert!(norm.iter().any(|value| *value != 1.0));
    }
    for id in [WeightId::FinalNorm, WeightId::DraftNorm, WeightId::DraftContextNorm] {
        assert!(read(id).iter().all(|value| (0.875..=1.125).contains(value)));
    }
    let sinks = read(layer(LayerWeight::Sinks));
    assert!(sinks.iter().all(|value| value.abs() <= 1.0) && deviation(&sinks) > 0.5);
    let bias = read(layer(LayerWeight::RouterCorrection));
    assert!(bias.iter().all(|value| value.abs() <= 1.0 / 64.0) && deviation(&bias) > 0.005);
    assert!((0.97..1.03).contains(&deviation(&read(WeightId::DraftMask))));
}

/// Random directions choose every expert about equally often.
#[test]
fn routing_is_spread() {
    let (experts, hidden, tokens) = (32, 256, 4096);
    let id = layer(LayerWeight::Router);
    let router = decl(id, &[experts, hidden], Format::Float, Shard::Whole);
    let router = values(&read(Dummy::new(9), &router, Ranks::ALONE));
    let table = decl(WeightId::Embedding, &[tokens, hidden], Format::Float, Shard::Whole);
    let table = values(&read(Dummy::new(9), &table, Ranks::ALONE));
    let mut chosen = vec![0; experts];
    for token in table.chunks(hidden) {
        let score = |row: &[f32]| row.iter().zip(token).map(|(a, b)| a * b).sum::<f32>();
        let best = (0..experts).max_by(|a, b| {
            let [a, b] =
                [a, b].map(|expert| score(&router[expert * hidden..(expert + 1) * hidden]));
            a.total_cmp(&b)
        });
        chosen[best.expect("there are experts")] += 1;
    }
    let mean = tokens / experts;
    assert!(chosen.iter().all(|count| (mean / 2..mean * 2).contains(count)), "{chosen:?}");
}

/// The first numbers of each recipe. Engines that make weights on a device must make the same ones.
#[test]
fn the_numbers_are_pinned() {
    let first = |decl: &WeightDecl| {
        let tensor = read(Dummy::new(0x0123_4567_89ab_cdef), decl, Ranks::ALONE);
        let hash = |bytes: &[u8]| {
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
        };
        let floats = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        match &tensor.data {
            TensorData::F32(values) => [hash(&floats(values)), 0],
            TensorData::Bf16(values) => {
                let bytes: Vec<_> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                [hash(&bytes), 0]
            }
            TensorData::Fp8 { codes, scales, .. } => [hash(codes), hash(&floats(scales))],
            TensorData::Mxfp4 { codes, scales } => [hash(codes), hash(scales)],
        }
    };
    let hashes: Vec<_> = decls().iter().map(first).collect();
    assert_eq!(hashes, PINNED, "{hashes:#018x?}");
}

const PINNED: [[u64; 2]; 11] = [
    [0x93f5_fb31_9807_59bd, 0],
    [0x337e_b4ea_bb63_2c14, 0xffb0_c029_befa_3c25],
    [0x701d_c6fd_4b53_6dc2, 0x9757_4e7b_64ce_2425],
    [0xf87d_ac79_f771_2568, 0],
    [0x1b7e_0f30_cb18_aa18, 0],
    [0xfbe3_d846_1049_2df0, 0],
    [0xf2be_2aa7_e5df_8ec6, 0],
    [0x33f3_8100_02d8_2a51, 0],
    [0x5b76_32b8_a356_0560, 0],
    [0x3cca_c3c6_5191_141f, 0xe233_3f6a_cec7_1a02],
    [0x75ec_e603_7acf_cb7e, 0x751e_aab7_91c3_68a7],
];

/// Numbers from a script that was written only from the description at the top of `src/dummy.rs`.
#[test]
fn the_description_is_complete() {
    let values = |id, name: &str, shape: &[usize], format| {
        let decl = decl(id, shape, format, Shard::Whole);
        let decl = WeightDecl { name: name.to_owned(), ..decl };
        values(&read(Dummy::new(1), &decl, Ranks::ALONE))
    };
    // Spread 222, exponent -9.
    let output = values(layer(LayerWeight::Output), "a", &[2, 4], Format::Float);
    let wanted = [19, 118, 131, 2, 145, -157, -37, 161].map(|n| n as f32 / 512.0);
    assert_eq!(output, wanted);
    let norm = values(layer(LayerWeight::InputNorm), "norm", &[8], Format::Float);
    let wanted = [-5, -15, -8, 9, 7, -7, 9, -14].map(|n| 1.0 + n as f32 / 128.0);
    assert_eq!(norm, wanted);
    // Factor 162, exponent -17, byte 0 of the scales ends in 5.
    let format = Format::Fp8 { chunk_rows: 2 };
    let fp8 = values(layer(LayerWeight::Output), "b", &[2, 8], format);
    let wanted = [13, -10, -6, -14, 1, 14, 12, -9, -11, -10, 2, 4, -5, 7, 15, -3];
    assert_eq!(fp8, wanted.map(|n| n as f32 * 0.021_011_353));
    // Exponent -5, raised 74, but neither group is.
    let mxfp4 = values(layer(LayerWeight::Up), "c", &[1, 64], Format::Mxfp4);
    assert_eq!(mxfp4[..4], [2.0, 1.5, -6.0, 0.0].map(|value| value / 32.0));
    let wanted = [0.125, 0.0625, -0.046_875, 0.03125, -0.125, -0.015_625, 0.1875, -0.046_875];
    assert_eq!(mxfp4[28..36], wanted);
}
