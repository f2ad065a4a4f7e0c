//! Slices of made-up tensors in which every value tells where it was stored.

use kilotok_model::{LayerWeight, Part as Files, Ranks, Shard, Stack, WeightId};

use super::*;

const F8_ONE: u8 = 0x38;
const F8_TWO: u8 = 0x40;
const F8_FOUR: u8 = 0x48;

fn decl(shape: &[usize], format: Format, shard: Shard) -> WeightDecl {
    WeightDecl {
        id: WeightId::Layer(Files::Target, 0, LayerWeight::Qkv),
        part: Files::Target,
        name: "weight".to_owned(),
        shape: shape.to_vec(),
        format,
        shard,
        stack: None,
    }
}

fn read(decl: &WeightDecl, ranks: Ranks, dtype: Dtype, stored: &[Vec<u8>]) -> Result<Tensor, Flaw> {
    let slice = decl.slice(ranks);
    check_slice(decl, &slice).expect("a slice of the weight");
    let shapes = decl.stored();
    let bytes: Vec<_> = stored
        .iter()
        .zip(&shapes)
        .map(|(bytes, stored)| Bytes { bytes, row_bytes: bytes.len() / stored.rows })
        .collect();
    let rows: Vec<_> = bytes.iter().map(|bytes| bytes as &dyn Rows).collect();
    gather(decl, &slice, dtype, &rows)
}

fn decoded(tensor: &Tensor) -> Vec<Vec<f32>> {
    let row = |row| {
        let mut values = vec![f32::NAN; tensor.cols];
        tensor.decode_row(row, &mut values);
        values
    };
    (0..tensor.rows).map(row).collect()
}

fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

struct Fused {
    chunks: usize,
    q_heads: usize,
    kv_heads: usize,
    qk_dim: usize,
    v_dim: usize,
}

impl Fused {
    fn chunk_rows(&self) -> usize {
        (self.q_heads * self.qk_dim + self.kv_heads * (self.qk_dim + self.v_dim)) / self.chunks
    }

    /// The stored row of a dimension of a head, and the code with which rows of its kind are
    /// filled.
    fn stored_row(&self, kind: char, head: usize, dim: usize) -> (usize, u8) {
        let (q_each, kv_each) = (self.q_heads / self.chunks, self.kv_heads / self.chunks);
        let k_start = q_each * self.qk_dim;
        let v_start = k_start + kv_each * self.qk_dim;
        let (each, start, dims, code) = match kind {
            'q' => (q_each, 0, self.qk_dim, F8_ONE),
            'k' => (kv_each, k_start, self.qk_dim, F8_TWO),
            _ => (kv_each, v_start, self.v_dim, F8_FOUR),
        };
        (head / each * self.chunk_rows() + start + head % each * dims + dim, code)
    }

    /// The kind, head and dimension of each row of a rank, in an engine's order.
    fn wanted(&self, ranks: Ranks) -> Vec<(char, usize, usize)> {
        let group = self.q_heads / self.kv_heads;
        let each = self.q_heads / ranks.count;
        let q_heads: Vec<_> = (ranks.rank * each..(ranks.rank + 1) * each).collect();
        let mut kv_heads: Vec<_> = q_heads.iter().map(|head| head / group).collect();
        kv_heads.dedup();
        let mut rows = Vec::new();
        for (kind, heads, dims) in [
            ('q', &q_heads, self.qk_dim),
            ('k', &kv_heads, self.qk_dim),
            ('v', &kv_heads, self.v_dim),
        ] {
            rows.extend(heads.iter().flat_map(|head| (0..dims).map(move |dim| (kind, *head, dim))));
        }
        rows
    }
}

/// Each kind has its own value, and each chunk has its own scales. A read value therefore tells its
/// kind, and the row and column of the scale that was used.
#[test]
fn fused_projections_give_each_rank_its_heads_and_their_scales() {
    const COLS: usize = 256;
    let pro = Fused { chunks: 8, q_heads: 128, kv_heads: 8, qk_dim: 192, v_dim: 128 };
    let v2_5_full = Fused { chunks: 4, q_heads: 64, kv_heads: 4, qk_dim: 192, v_dim: 128 };
    let v2_5_window = Fused { chunks: 4, q_heads: 64, kv_heads: 8, qk_dim: 192, v_dim: 128 };
    for fused in [pro, v2_5_full, v2_5_window] {
        let (chunks, chunk_rows) = (fused.chunks, fused.chunk_rows());
        let Fused { q_heads, kv_heads, qk_dim, v_dim, .. } = fused;
        let shard = Shard::Qkv { chunks, q_heads, kv_heads, qk_dim, v_dim };
        let rows = chunks * chunk_rows;
        let decl = decl(&[rows, COLS], Format::Fp8 { chunk_rows }, shard);
        let mut codes = vec![0; rows * COLS];
        for (kind, head, dim) in fused.wanted(Ranks::ALONE) {
            let (row, code) = fused.stored_row(kind, head, dim);
            codes[row * COLS..(row + 1) * COLS].fill(code);
        }
        assert!(!codes.contains(&0), "every row belongs to a head");
        let scale_rows = chunks * chunk_rows.div_ceil(128);
        let scales = f32_bytes((0..scale_rows * 2).map(|index| 1.0 + index as f32));
        let stored = [codes, scales];
        for count in [1, 2, 4, 8] {
            for rank in 0..count {
                let ranks = Ranks { rank, count };
                let tensor = read(&decl, ranks, Dtype::F8E4m3, &stored).expect("good numbers");
                let wanted = fused.wanted(ranks);
                assert_eq!((tensor.rows, tensor.cols), (wanted.len(), COLS));
                for (values, (kind, head, dim)) in decoded(&tensor).iter().zip(wanted) {
                    let (row, _) = fused.stored_row(kind, head, dim);
                    let scale_row =
                        row / chunk_rows * chunk_rows.div_ceil(128) + row % chunk_rows / 128;
                    let value = match kind {
                        'q' => 1.0,
                        'k' => 2.0,
                        _ => 4.0,
                    };
                    let [left, right] =
                        [0, 1].map(|tile| value * (1 + scale_row * 2 + tile) as f32);
                    let at = (count, rank, kind, head, dim);
                    assert!(values[..128].iter().all(|value| *value == left), "{at:?}");
                    assert!(values[128..].iter().all(|value| *value == right), "{at:?}");
                }
            }
        }
    }
}

/// In the test above, the layout [Q; K; V] with scales every 128 rows would give other rows.
#[test]
fn the_plain_layout_is_another() {
    let pro = Fused { chunks: 8, q_heads: 128, kv_heads: 8, qk_dim: 192, v_dim: 128 };
    let plain = |kind, head, dim| match kind {
        'q' => head * 192 + dim,
        'k' => 128 * 192 + head * 192 + dim,
        _ => 136 * 192 + head * 128 + dim,
    };
    let rows = pro.wanted(Ranks::ALONE);
    let same = rows.iter().filter(|(k, h, d)| plain(*k, *h, *d) == pro.stored_row(*k, *h, *d).0);
    assert_eq!(same.count(), 16 * 192 + 128, "only the first queries and the last values");
    let format = Format::Fp8 { chunk_rows: pro.chunk_rows() };
    let (k_end, v_start) = (pro.stored_row('k', 0, 191).0, pro.stored_row('v', 0, 0).0);
    assert_eq!([k_end, v_start].map(|row| format.scale_row(row)), [25, 25]);
    assert_ne!(format.scale_row(pro.stored_row('q', 16, 0).0), 3392 / 128);
}

#[test]
fn the_even_column_is_in_the_low_nibble() {
    let decl = decl(&[1, 64], Format::Mxfp4, Shard::Columns);
    for hot in 0..64 {
        let mut codes = vec![0; 32];
        codes[hot / 2] = if hot % 2 == 0 { 0x02 } else { 0x20 };
        let stored = [codes, vec![127, 130]];
        let tensor = read(&decl, Ranks::ALONE, Dtype::U8, &stored).expect("good numbers");
        let mut wanted = vec![0.0; 64];
        wanted[hot] = if hot < 32 { 1.0 } else { 8.0 };
        assert_eq!(decoded(&tensor), [wanted], "{hot}");
    }
}

#[test]
fn mxfp4_is_cut_between_groups() {
    // Row r, group g: codes all 1.5, scale 2^(r - g).
    let (rows, cols) = (3, 256);
    let decl = decl(&[rows, cols], Format::Mxfp4, Shard::Columns);
    let groups = cols / 32;
    let scales = (0..rows * groups).map(|i| (127 + i / groups - i % groups) as u8);
    let stored = [vec![0x33; rows * cols / 2], scales.collect()];
    for count in [1, 2, 4, 8] {
        for rank in 0..count {
            let tensor = read(&decl, Ranks { rank, count }, Dtype::U8, &stored).expect("good");
            let first = rank * cols / count;
            for (row, values) in decoded(&tensor).iter().enumerate() {
                for (col, value) in values.iter().enumerate() {
                    let power = row as i32 - ((first + col) / 32) as i32;
                    assert_eq!(*value, 1.5 * 2.0_f32.powi(power));
                }
            }
        }
    }
    let slice = Slice { cols: 16..64, ..decl.slice(Ranks::ALONE) };
    assert!(check_slice(&decl, &slice).unwrap_err().contains("splits a group"));
}

#[test]
fn fp8_is_cut_anywhere() {
    // 3 column tiles, the last one incomplete, in parts of 40 columns: parts begin within tiles.
    let (rows, cols) = (200, 320);
    let decl = decl(&[rows, cols], Format::Fp8 { chunk_rows: rows }, Shard::Columns);
    let stored = [vec![F8_TWO; rows * cols], f32_bytes((0..2 * 3).map(|i| i as f32))];
    for rank in 0..8 {
        let ranks = Ranks { rank, count: 8 };
        let tensor = read(&decl, ranks, Dtype::F8E4m3, &stored).expect("good numbers");
        for (row, values) in decoded(&tensor).iter().enumerate() {
            for (col, value) in values.iter().enumerate() {
                let tile = (rank * 40 + col) / 128;
                assert_eq!(*value, 2.0 * (row / 128 * 3 + tile) as f32);
            }
        }
    }
}

#[test]
fn floats_become_fp8_alike_on_all_ranks() {
    let (rows, cols) = (2, 320);
    let value = |row: usize, col: usize| ((row * 131 + col * 7919) % 997) as f32 / 997.0 - 0.5;
    let size = |col: usize| [1.0, 1e-3, 0.0][col / FP8_TILE];
    let values: Vec<_> =
        (0..rows * cols).map(|i| value(i / cols, i % cols) * size(i % cols)).collect();
    let decl = decl(&[rows, cols], Format::FloatToFp8, Shard::Columns);
    let stored = [f32_bytes(values.iter().copied())];
    let whole = read(&decl, Ranks::ALONE, Dtype::F32, &stored).unwrap();
    let found = decoded(&whole);
    for (row, (found, wanted)) in found.iter().zip(values.chunks(cols)).enumerate() {
        for (tile, (found, wanted)) in
            found.chunks(FP8_TILE).zip(wanted.chunks(FP8_TILE)).enumerate()
        {
            let largest = wanted.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            for (found, wanted) in found.iter().zip(wanted) {
                // The rounding of a code with three mantissa bits, or the smallest step for the
                // largest value.
                let step = (wanted.abs() / 8.0).max(largest / 448.0 / 512.0);
                assert!((found - wanted).abs() <= step * 0.5001, "{row} {tile}: {found} {wanted}");
            }
        }
    }
    // 80 columns per rank, so that ranks share tiles.
    for rank in 0..4 {
        let part = read(&decl, Ranks { rank, count: 4 }, Dtype::F32, &stored).unwrap();
        for (part, whole) in decoded(&part).iter().zip(&found) {
            assert_eq!(part, &whole[rank * 80..(rank + 1) * 80]);
        }
    }
}

#[test]
fn floats_keep_their_type_and_vectors_are_one_row() {
    let decl = decl(&[8], Format::Float, Shard::Columns);
    let ranks = Ranks { rank: 3, count: 4 };
    let values = (0..8).map(|i| i as f32);
    let tensor = read(&decl, ranks, Dtype::F32, &[f32_bytes(values.clone())]).expect("good");
    assert_eq!(tensor, Tensor { rows: 1, cols: 2, data: TensorData::F32(vec![6.0, 7.0]) });
    let bytes = values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
    let tensor = read(&decl, ranks, Dtype::Bf16, &[bytes]).expect("good numbers");
    assert!(matches!(tensor.data, TensorData::Bf16(_)));
    assert_eq!(decoded(&tensor), [[6.0, 7.0]]);
    assert_eq!(tensor.bytes(), 4);
}

/// E8M0 at both ends of its range: products stay exact down to subnormals, and scales that would
/// overflow are refused.
#[test]
fn extreme_scales() {
    let decl = decl(&[1, 32], Format::Mxfp4, Shard::Columns);
    let value = |code: u8, scale: u8| {
        let stored = [vec![code | code << 4; 16], vec![scale]];
        let tensor = read(&decl, Ranks::ALONE, Dtype::U8, &stored)?;
        Ok::<_, Flaw>(decoded(&tensor)[0][31])
    };
    assert_eq!(value(1, 0), Ok(2.0_f32.powi(-128)));
    assert_eq!(value(15, 0), Ok(-6.0 * 2.0_f32.powi(-127)));
    assert_eq!(value(7, 252), Ok(6.0 * 2.0_f32.powi(125)));
    for scale in [253, 254, 255] {
        let flaw = value(0, scale).unwrap_err();
        assert_eq!(flaw.to_string(), "element [0, 0] is a scale that is NaN or too large");
    }
}

/// Errors give the place in the whole stored tensor, whatever part is read.
#[test]
fn flaws_are_told_where_they_are() {
    let last = Ranks { rank: 1, count: 2 };
    let float = decl(&[4, 6], Format::Float, Shard::Columns);
    for (bits, is_bad) in [(0x7f80, true), (0xff80, true), (0x7fc1, true), (0x7f7f, false)] {
        let mut values = vec![0_u16; 24];
        values[2 * 6 + 5] = bits;
        let bytes = bytemuck::cast_slice(&values).to_vec();
        let error = read(&float, last, Dtype::Bf16, &[bytes]).err().map(|flaw| flaw.to_string());
        let wanted = "element [2, 5] is NaN or infinite".to_owned();
        assert_eq!(error, is_bad.then_some(wanted), "{bits:#06x}");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [1.0; 24];
        values[3 * 6 + 4] = bad;
        let flaw = read(&float, last, Dtype::F32, &[f32_bytes(values)]).unwrap_err();
        assert_eq!(flaw.to_string(), "element [3, 4] is NaN or infinite");
    }
    let fp8 = decl(&[300, 256], Format::Fp8 { chunk_rows: 150 }, Shard::Rows);
    for code in [0x7f, 0xff] {
        let mut codes = vec![0; 300 * 256];
        codes[299 * 256 + 200] = code;
        let stored = [codes, f32_bytes([1.0; 8])];
        let flaw = read(&fp8, last, Dtype::F8E4m3, &stored).unwrap_err();
        assert_eq!(
            (flaw.in_scales, flaw.to_string().as_str()),
            (false, "element [299, 200] is NaN")
        );
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0, -f32::MIN_POSITIVE, f32::MAX] {
        let mut scales = [1.0; 8];
        scales[3 * 2 + 1] = bad;
        let stored = [vec![0; 300 * 256], f32_bytes(scales)];
        let flaw = read(&fp8, last, Dtype::F8E4m3, &stored).unwrap_err();
        assert!(flaw.in_scales, "{bad}");
        assert!(flaw.to_string().starts_with("element [3, 1] is a scale that"), "{flaw}");
    }
    let zero = [vec![F8_ONE; 300 * 256], f32_bytes([0.0; 8])];
    read(&fp8, last, Dtype::F8E4m3, &zero).expect("a tile of zeros may have the scale zero");
}

#[test]
fn slices_beyond_the_weight_are_refused() {
    let decl = decl(&[4, 6], Format::Float, Shard::Whole);
    for (rows, cols) in [(0..5, 0..6), (0..4, 0..7), (3..usize::MAX, 0..6)] {
        let slice = Slice { rows: vec![rows], cols };
        let error = check_slice(&decl, &slice).unwrap_err();
        assert!(error.contains("is not within [4, 6]"), "{error}");
    }
}

/// A stack `[2 experts, alternating gate and up rows, 64 columns]`: its MXFP4 rows, and the place
/// of a bad scale.
#[test]
fn a_part_of_a_stack_is_its_rows_alone() {
    let up = |shard| WeightDecl {
        stack: Some(Stack {
            shape: vec![2, 8, 64],
            rows: Stride { first: 8 + 1, step: 2 },
            cols: Stride::run_from(0),
        }),
        ..decl(&[4, 64], Format::Mxfp4, shard)
    };
    // Every code of row r is r % 8, and every scale 1.
    let codes: Vec<u8> = (0..16_u8).flat_map(|row| [row % 8 * 0x11; 32]).collect();
    let mut scales = vec![127; 16 * 2];
    let stored = [codes.clone(), scales.clone()];
    let tensor = read(&up(Shard::Rows), Ranks { rank: 1, count: 2 }, Dtype::U8, &stored).unwrap();
    // Rows 9, 11, 13 and 15 are the expert's up weight. They have the values of codes 1, 3, 5 and
    // 7.
    assert_eq!(decoded(&tensor), [[3.0; 64], [6.0; 64]]);
    let tensor =
        read(&up(Shard::Columns), Ranks { rank: 0, count: 2 }, Dtype::U8, &stored).unwrap();
    assert_eq!(decoded(&tensor), [[0.5; 32], [1.5; 32], [3.0; 32], [6.0; 32]]);
    scales[13 * 2 + 1] = 255;
    let flaw = read(&up(Shard::Rows), Ranks::ALONE, Dtype::U8, &[codes, scales]).unwrap_err();
    assert_eq!((flaw.in_scales, flaw.row, flaw.col), (true, 13, 1));
}

#[test]
fn columns_of_a_stack_may_be_apart() {
    let decl = WeightDecl {
        stack: Some(Stack {
            shape: vec![2, 8],
            rows: Stride::run_from(0),
            cols: Stride { first: 1, step: 2 },
        }),
        ..decl(&[2, 4], Format::Float, Shard::Columns)
    };
    let mut values: Vec<f32> = (0..16_u8).map(f32::from).collect();
    let bytes =
        |values: &[f32]| vec![values.iter().flat_map(|value| value.to_le_bytes()).collect()];
    let ranks = Ranks { rank: 1, count: 2 };
    let tensor = read(&decl, ranks, Dtype::F32, &bytes(&values)).unwrap();
    assert_eq!(decoded(&tensor), [[5.0, 7.0], [13.0, 15.0]]);
    // A number of another weight is not looked at, one of its own is told by its place.
    values[4] = f32::NAN;
    assert!(read(&decl, ranks, Dtype::F32, &bytes(&values)).is_ok());
    values[13] = f32::NAN;
    let flaw = read(&decl, ranks, Dtype::F32, &bytes(&values)).unwrap_err();
    assert_eq!((flaw.in_scales, flaw.row, flaw.col), (false, 1, 5));
}
