//! Decodes packed weights as the kernels do, and compares them with the values of the tensors.

use std::collections::BTreeMap;

use kilotok_model::{
    Dtype, FP8_TILE, FeedForwardSpec, Format, Knobs, MXFP4_GROUP, ModelSpec, Ranks, RouterDtype,
    Shard, Slice, WeightFormat, declare,
};
use kilotok_testkit::toy::Files;
use kilotok_testkit::{Random, Toy};
use kilotok_weights::{Checkpoint, Dummy, WeightError, WeightSource};

use super::*;
use crate::buffers::{CHUNK_COLUMNS, CONSUMER_WARPS, weight_buffers};
use crate::constants::Launch;

/// Fills buffers beforehand, to find bytes that are never written.
const UNWRITTEN: u8 = 0xa5;

/// Operand A of a step of 16 columns: the registers of a lane.
type Registers = [u32; 4];

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// `Chunk<F>::load` and the decoding in `multiply`, for one lane.
fn registers(format: WeightFormat, chunk: &[u8], lane: usize) -> [Registers; 4] {
    let words =
        |at: usize| -> [u32; 4] { std::array::from_fn(|i| word(chunk, at + lane * 16 + i * 4)) };
    match format {
        WeightFormat::Float => std::array::from_fn(|step| words(step * 512)),
        WeightFormat::Fp8 => {
            let first = |word: u32| word & 0x87f0_87f0;
            let second = |word: u32| ((word << 4) & 0x80f0_80f0) | ((word >> 4) & 0x0700_0700);
            std::array::from_fn(|step| {
                let words = words(step / 2 * 512);
                let (low, high) = (words[step % 2 * 2], words[step % 2 * 2 + 1]);
                [first(low), second(low), first(high), second(high)]
            })
        }
        WeightFormat::Mxfp4 => {
            const HOME: u32 = 0x81c0_81c0;
            const FOURTH: u32 = 0x0603_0603;
            let words = words(0);
            std::array::from_fn(|step| {
                let (x, y) = (words[step / 2 * 2], words[step / 2 * 2 + 1]);
                let z = (x & FOURTH) | ((y << 2) & !FOURTH);
                let (own, last) = if step % 2 == 0 { (x, z << 6) } else { (y, z.rotate_right(4)) };
                [own & HOME, (own << 4) & HOME, own.rotate_right(6) & HOME, last & HOME]
            })
        }
    }
}

/// The factor of a product with column `column` of row `row` of the chunk, including that of the
/// activations.
fn scale(format: WeightFormat, chunk: &[u8], row: usize, column: usize) -> f64 {
    match format {
        WeightFormat::Float => 1.0,
        WeightFormat::Fp8 => {
            let lane = row % 8 * 4;
            let at = if row < 8 { 1024 } else { 1056 };
            f64::from(f32::from_bits(word(chunk, at + lane / 4 * 4))) * 2.0_f64.powi(100)
        }
        WeightFormat::Mxfp4 => {
            let scales = word(chunk, 512 + row % 8 * 4);
            let i = row / 8 * 2 + column / 32;
            let moved = if i < 3 { scales << (23 - 8 * i) } else { scales >> 1 };
            let scale = f32::from_bits(moved & 0x7f80_0000);
            assert!(scale.is_finite());
            f64::from(scale) * 2.0_f64.powi(100)
        }
    }
}

/// What lane 4g + q holds: register, half, row and column within the step.
fn held(lane: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let (g, q) = (lane / 4, lane % 4);
    (0..8).map(move |i| {
        let (register, half) = (i / 2, i % 2);
        (register, half, g + register % 2 * 8, register / 2 * 8 + 2 * q + half)
    })
}

/// All values of a packed matrix, padding included, by row of the matrix.
fn unpack(matrix: Matrix, bytes: &[u8]) -> Vec<Vec<f32>> {
    let columns = matrix.steps() * matrix.column_warps() * CHUNK_COLUMNS;
    let mut values = vec![vec![f32::NAN; columns]; matrix.units() * matrix.row_tiles * CHUNK_ROWS];
    assert_eq!(bytes.len(), matrix.bytes());
    for (index, chunk) in bytes.chunks_exact(matrix.chunk_bytes()).enumerate() {
        // `[unit][step][warp]`
        let (warp, step) = (index % CONSUMER_WARPS, index / CONSUMER_WARPS % matrix.steps());
        let unit = index / CONSUMER_WARPS / matrix.steps();
        let tile = unit * matrix.row_tiles + warp / matrix.column_warps();
        let first = (step * matrix.column_warps() + warp % matrix.column_warps()) * CHUNK_COLUMNS;
        for lane in 0..32 {
            let registers = registers(matrix.format, chunk, lane);
            for (step, registers) in registers.iter().enumerate() {
                for (register, half, row, column) in held(lane) {
                    let bits = (registers[register] >> (16 * half)) as u16;
                    let code = f64::from(bf16::from_bits(bits).to_f32());
                    let column = step * 16 + column;
                    let scale = scale(matrix.format, chunk, row, column);
                    values[tile * CHUNK_ROWS + row][first + column] = (code * scale) as f32;
                }
            }
        }
    }
    values
}

/// The expected rows of a tensor.
fn decoded(tensor: &Tensor) -> Vec<Vec<f32>> {
    let float = matches!(tensor.data, TensorData::F32(_) | TensorData::Bf16(_));
    let mut row = vec![0.0; tensor.cols];
    let mut rows = Vec::new();
    for index in 0..tensor.rows {
        tensor.decode_row(index, &mut row);
        let round = |value: &f32| if float { bf16::from_f32(*value).to_f32() } else { *value };
        rows.push(row.iter().map(round).collect());
    }
    rows
}

/// A tensor of random values, whose columns are those from `first_col` on of a larger one.
fn tensor(
    random: &mut Random,
    format: WeightFormat,
    rows: usize,
    cols: usize,
    first_col: usize,
) -> Tensor {
    let count = rows * cols;
    let data = match format {
        WeightFormat::Float => {
            let value = |_| f32::from_bits(0x3000_0000 | random.bits() as u32 & 0x8fff_ffff);
            TensorData::F32((0..count).map(value).collect())
        }
        WeightFormat::Fp8 => {
            let tiles = (first_col + cols).div_ceil(FP8_TILE) - first_col / FP8_TILE;
            let codes = (0..count).map(|_| random.bits() as u8);
            // The code of a NaN, which does not occur, becomes another.
            let codes = codes.map(|code| if code & 0x7f == 0x7f { 0x7e } else { code });
            let codes = codes.collect();
            let scale = |_| f32::from_bits(0x3000_0000 | random.bits() as u32 & 0x0fff_ffff);
            let scales = (0..rows * tiles).map(scale).collect();
            TensorData::Fp8 { codes, scales, first_col }
        }
        WeightFormat::Mxfp4 => TensorData::Mxfp4 {
            codes: (0..count / 2).map(|_| random.bits() as u8).collect(),
            scales: (0..count / MXFP4_GROUP).map(|_| random.below(229) as u8).collect(),
        },
    };
    Tensor { rows, cols, data }
}

#[test]
fn packed_matrices_are_read_back_as_they_were() {
    let mut random = Random::new(1);
    for format in [WeightFormat::Float, WeightFormat::Fp8, WeightFormat::Mxfp4] {
        for (rows, columns, row_tiles) in
            [(16, 64, 1), (17, 32, 1), (40, 800, 1), (48, 256, 3), (100, 96, 3), (128, 512, 3)]
        {
            let tensor = tensor(&mut random, format, rows, columns, 128 + 64);
            let matrix = Matrix { format, rows, columns, row_tiles };
            let tensors = [tensor];
            let bytes = matrix::pack(matrix, &tensors, &matrix::stacked(&tensors, 1)).unwrap();
            let found = unpack(matrix, &bytes);
            let padded = found[0].len();
            let mut wanted = decoded(&tensors[0]);
            for row in &mut wanted {
                row.resize(padded, 0.0);
            }
            wanted.resize(found.len(), vec![0.0; padded]);
            assert_eq!(found, wanted, "{format} {rows} x {columns}");
        }
    }
}

#[test]
fn every_code_of_every_place_comes_home() {
    for (format, codes) in [(WeightFormat::Fp8, 256), (WeightFormat::Mxfp4, 16)] {
        for code in (0..codes).filter(|code| code & 0x7f != 0x7f) {
            let byte = if format == WeightFormat::Fp8 { code } else { code * 17 } as u8;
            let (rows, cols) = (CHUNK_ROWS, CHUNK_COLUMNS);
            let data = if format == WeightFormat::Fp8 {
                let scales = vec![1.0; rows];
                TensorData::Fp8 { codes: vec![byte; rows * cols], scales, first_col: 0 }
            } else {
                let scales = vec![127; rows * cols / MXFP4_GROUP];
                TensorData::Mxfp4 { codes: vec![byte; rows * cols / 2], scales }
            };
            let tensors = [Tensor { rows, cols, data }];
            let matrix = Matrix { format, rows, columns: cols, row_tiles: 1 };
            let bytes = matrix::pack(matrix, &tensors, &matrix::stacked(&tensors, 1)).unwrap();
            let found = unpack(matrix, &bytes);
            let wanted = decoded(&tensors[0]);
            assert!(found.iter().zip(&wanted).all(|(found, row)| found[..cols] == *row), "{code}");
        }
    }
}

#[test]
fn what_the_kernels_cannot_read_is_refused() {
    let mut random = Random::new(2);
    let refused = |tensor: Tensor, format| {
        let (rows, columns) = (tensor.rows, tensor.cols);
        let tensors = [tensor];
        let matrix = Matrix { format, rows, columns, row_tiles: 1 };
        matrix::pack(matrix, &tensors, &matrix::stacked(&tensors, 1)).unwrap_err()
    };
    let said = refused(tensor(&mut random, WeightFormat::Fp8, 16, 128, 32), WeightFormat::Fp8);
    assert!(said.contains("column 32"), "{said}");
    let mut huge = tensor(&mut random, WeightFormat::Fp8, 16, 128, 0);
    let TensorData::Fp8 { scales, .. } = &mut huge.data else { panic!() };
    scales[3] = 1e33;
    let said = refused(huge, WeightFormat::Fp8);
    assert!(said.contains("1e33"), "{said}");
    let mut huge = tensor(&mut random, WeightFormat::Mxfp4, 16, 128, 0);
    let TensorData::Mxfp4 { scales, .. } = &mut huge.data else { panic!() };
    scales[5] = 229;
    let said = refused(huge, WeightFormat::Mxfp4);
    assert!(said.contains("2^102"), "{said}");
    let said = refused(tensor(&mut random, WeightFormat::Float, 16, 64, 0), WeightFormat::Fp8);
    assert!(said.contains("FP8"), "{said}");
}

/// Every buffer of a rank, filled from a source.
struct Filled<'a> {
    spec: &'a ModelSpec,
    constants: &'a Constants,
    tensors: BTreeMap<WeightId, Tensor>,
    buffers: BTreeMap<Buffer, Vec<u8>>,
}

fn fill<'a>(
    source: &dyn WeightSource,
    spec: &'a ModelSpec,
    constants: &'a Constants,
    ranks: Ranks,
) -> Filled<'a> {
    let mut buffers: BTreeMap<_, _> = weight_buffers(spec, constants)
        .into_iter()
        .map(|(buffer, bytes)| (buffer, (vec![UNWRITTEN; bytes], 0)))
        .collect();
    let repacker = Repacker::new(constants);
    let mut tensors = BTreeMap::new();
    let mut decls = declare(spec);
    // Any order must work.
    decls.sort_by_key(|decl| decl.name.len() % 7);
    for decl in &decls {
        let tensor = source.read(decl, &decl.slice(ranks)).unwrap();
        if let Some(repacked) = repacker.repack(decl, tensor.clone()).unwrap() {
            let (bytes, written) = buffers.get_mut(&repacked.buffer).expect("a planned buffer");
            bytes[repacked.offset..][..repacked.bytes.len()].copy_from_slice(&repacked.bytes);
            *written += repacked.bytes.len();
        }
        tensors.insert(decl.id, tensor);
    }
    let whole = |(buffer, (bytes, written)): (Buffer, (Vec<u8>, usize))| {
        assert_eq!(bytes.len(), written, "{buffer:?} is written whole, once");
        (buffer, bytes)
    };
    Filled { spec, constants, tensors, buffers: buffers.into_iter().map(whole).collect() }
}

impl Filled<'_> {
    /// Compares a matrix with these rows of tensors, zeros elsewhere.
    fn check(
        &self,
        buffer: Buffer,
        index: usize,
        matrix: Matrix,
        rows: &[(usize, &Tensor, usize)],
    ) {
        let bytes = &self.buffers[&buffer][index * matrix.bytes()..][..matrix.bytes()];
        let found = unpack(matrix, bytes);
        let mut wanted = vec![vec![0.0; found[0].len()]; found.len()];
        let mut decoded_of: BTreeMap<*const Tensor, Vec<Vec<f32>>> = BTreeMap::new();
        for &(place, tensor, row) in rows {
            let rows = decoded_of.entry(tensor).or_insert_with(|| decoded(tensor));
            wanted[place][..tensor.cols].copy_from_slice(&rows[row]);
        }
        assert!(found == wanted, "{buffer:?} {index}");
    }

    fn check_plain(&self, buffer: Buffer, index: usize, matrix: Matrix, id: WeightId) {
        let tensor = &self.tensors[&id];
        let rows: Vec<_> = (0..tensor.rows).map(|row| (row, tensor, row)).collect();
        assert_eq!((tensor.rows, tensor.cols), (matrix.rows, matrix.columns), "{id:?}");
        self.check(buffer, index, matrix, &rows);
    }

    fn check_vector(&self, buffer: Buffer, id: WeightId) {
        let tensor = &self.tensors[&id];
        let mut values = vec![0.0; tensor.cols];
        tensor.decode_row(0, &mut values);
        assert_eq!(self.floats(buffer), values, "{buffer:?}");
    }

    fn floats(&self, buffer: Buffer) -> Vec<f32> {
        let words = self.buffers[&buffer].as_chunks::<4>().0.iter();
        words.map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn check_all(&self) {
        let constants = self.constants;
        let embedding = decoded(&self.tensors[&WeightId::Embedding]).concat();
        let found = self.buffers[&Buffer::Embedding].as_chunks::<2>().0.iter();
        let found: Vec<_> = found.map(|bits| bf16::from_le_bytes(*bits).to_f32()).collect();
        assert_eq!(found, embedding);
        self.check_vector(Buffer::FinalNorm, WeightId::FinalNorm);
        self.check_plain(Buffer::Head, 0, constants.head(), WeightId::Head);
        self.check_plain(Buffer::DraftFc, 0, constants.fuse(), WeightId::DraftFc);
        self.check_vector(Buffer::DraftContextNorm, WeightId::DraftContextNorm);
        self.check_vector(Buffer::DraftNorm, WeightId::DraftNorm);
        if self.spec.drafter.as_ref().is_some_and(|drafter| drafter.own_mask) {
            self.check_vector(Buffer::DraftMask, WeightId::DraftMask);
        }
        for (part, layers) in
            [(Part::Target, &constants.layers), (Part::Drafter, &constants.draft_layers)]
        {
            for (index, kinds) in layers.iter().enumerate() {
                self.check_layer(part, index, *kinds);
            }
        }
    }

    fn check_layer(&self, part: Part, index: usize, kinds: LayerKinds) {
        let id = |weight| WeightId::Layer(part, index, weight);
        let buffer = |buffer| Buffer::Layer(part, index, buffer);
        let has_bias = self.tensors.contains_key(&id(LayerWeight::RouterBias));
        let router_bias =
            if has_bias { LayerWeight::RouterBias } else { LayerWeight::RouterCorrection };
        for (place, weight) in [
            (LayerBuffer::InputNorm, LayerWeight::InputNorm),
            (LayerBuffer::QueryNorm, LayerWeight::QueryNorm),
            (LayerBuffer::KeyNorm, LayerWeight::KeyNorm),
            (LayerBuffer::Sinks, LayerWeight::Sinks),
            (LayerBuffer::PostNorm, LayerWeight::PostNorm),
            (LayerBuffer::RouterBias, router_bias),
        ] {
            let present = self.tensors.contains_key(&id(weight));
            assert_eq!(self.buffers.contains_key(&buffer(place)), present, "{place:?}");
            if present {
                self.check_vector(buffer(place), id(weight));
            }
        }
        self.check_qkv(part, index, kinds.attention);
        let output = self.constants.output(kinds.attention);
        self.check_plain(buffer(LayerBuffer::Output), 0, output, id(LayerWeight::Output));
        if self.constants.attentions[kinds.attention].bias {
            self.check_output_bias(buffer(LayerBuffer::OutputBias), id(LayerWeight::OutputBias));
        }
        let experts = self.constants.feed_forwards[kinds.feed_forward].experts;
        for network in 0..experts.max(1) {
            let id = |weight| match experts {
                0 => id(weight),
                _ => WeightId::Expert(index, network, weight),
            };
            let (gate, up) =
                (&self.tensors[&id(LayerWeight::Gate)], &self.tensors[&id(LayerWeight::Up)]);
            let rows = (0..gate.rows).flat_map(|row| {
                let tile = row / 8 * 16 + row % 8;
                [(tile, gate, row), (tile + 8, up, row)]
            });
            let matrix = self.constants.gate_up(kinds.feed_forward);
            let rows: Vec<_> = rows.collect();
            self.check(buffer(LayerBuffer::GateUp), network, matrix, &rows);
            let down = self.constants.down(kinds.feed_forward);
            self.check_plain(buffer(LayerBuffer::Down), network, down, id(LayerWeight::Down));
        }
        if experts > 0 {
            self.check_router(index, &self.tensors[&id(LayerWeight::Router)]);
        }
    }

    fn check_qkv(&self, part: Part, index: usize, kind: usize) {
        let attention = &self.constants.attentions[kind];
        let queries = attention.q_heads * attention.qk_dim;
        let keys = queries.div_ceil(16) * 16;
        let values = keys + attention.kv_heads * attention.qk_dim;
        let tensor = |weight| self.tensors.get(&WeightId::Layer(part, index, weight));
        let mut rows = Vec::new();
        // Of each place in the matrix: its tensor, the row of that, and its bias.
        if let Some(fused) = tensor(LayerWeight::Qkv) {
            let place = |row| if row < queries { row } else { row - queries + keys };
            rows.extend((0..fused.rows).map(|row| (place(row), fused, row, 0.0)));
        } else {
            for (weight, bias, first) in [
                (LayerWeight::Query, LayerWeight::QueryBias, 0),
                (LayerWeight::Key, LayerWeight::KeyBias, keys),
                (LayerWeight::Value, LayerWeight::ValueBias, values),
            ] {
                let own = tensor(weight).unwrap();
                assert_eq!(tensor(bias).is_some(), attention.bias);
                let biases =
                    tensor(bias).map_or(vec![0.0; own.rows], |bias| decoded(bias).concat());
                let row = |(row, bias)| (first + row, own, row, bias);
                rows.extend(biases.into_iter().enumerate().map(row));
            }
        }
        if attention.is_paired() {
            // Dimension d of a rotated pair, and d + pairs, in tiles of eight and eight.
            let (dims, pairs) = (attention.qk_dim, attention.rope.dims / 2);
            for (place, ..) in rows.iter_mut().filter(|row| row.0 < values) {
                let dim = *place % dims;
                let pair = dim % pairs;
                if dim < 2 * pairs {
                    *place = *place - dim + pair / 8 * 16 + dim / pairs * 8 + pair % 8;
                }
            }
        }
        let buffer = |buffer| Buffer::Layer(part, index, buffer);
        let matrix = self.constants.qkv(kind);
        if attention.bias {
            let mut wanted = vec![0.0; matrix.rows.next_multiple_of(16)];
            for &(place, _, _, bias) in &rows {
                wanted[place] = bias;
            }
            assert_eq!(self.floats(buffer(LayerBuffer::QkvBias)), wanted);
        }
        let rows: Vec<_> = rows.into_iter().map(|(place, own, row, _)| (place, own, row)).collect();
        self.check(buffer(LayerBuffer::Qkv), 0, matrix, &rows);
    }

    /// Only the first rank has any.
    fn check_output_bias(&self, buffer: Buffer, id: WeightId) {
        let mut wanted = decoded(&self.tensors[&id]).concat();
        assert!(wanted.is_empty() || wanted.iter().any(|bias| *bias != 0.0));
        wanted.resize(self.constants.owner_units() * self.constants.owner_rows(), 0.0);
        assert_eq!(self.floats(buffer), wanted);
    }

    fn check_router(&self, index: usize, tensor: &Tensor) {
        let FeedForwardSpec::Experts(experts) = &self.spec.layers[index].feed_forward else {
            panic!("a router without experts")
        };
        let rounded = experts.router.dtype == RouterDtype::Bf16;
        let buffer = Buffer::Layer(Part::Target, index, LayerBuffer::Router);
        let found: Vec<f32> = if rounded {
            let halves = self.buffers[&buffer].as_chunks::<2>().0.iter();
            halves.map(|bits| bf16::from_le_bytes(*bits).to_f32()).collect()
        } else {
            self.floats(buffer)
        };
        let mut wanted = vec![vec![0.0; tensor.cols]; tensor.rows];
        for (expert, row) in wanted.iter_mut().enumerate() {
            tensor.decode_row(expert, row);
        }
        let tiles = experts.count.div_ceil(16);
        let steps = self.constants.owner_rows() / 16;
        assert_eq!(found.len(), self.constants.owner_units() * tiles * steps * 256);
        for (place, found) in found.into_iter().enumerate() {
            // The words of a lane are pairs along the columns: of row g and row g + 8, then of
            // both, 8 columns further on. F32 has the second half of all lanes after the first.
            let (step, place) = (place / 256, place % 256);
            let (lane, word) = if rounded {
                (place / 8, place % 8 / 2)
            } else {
                (place % 128 / 4, place / 128 * 2 + place % 4 / 2)
            };
            let (owner_tile, step) = (step / steps, step % steps);
            let expert = owner_tile % tiles * 16 + word % 2 * 8 + lane / 4;
            let column =
                (owner_tile / tiles * steps + step) * 16 + word / 2 * 8 + lane % 4 * 2 + place % 2;
            let value = wanted.get(expert).and_then(|row| row.get(column)).copied().unwrap_or(0.0);
            let value = if rounded { bf16::from_f32(value).to_f32() } else { value };
            assert_eq!(found, value, "{column} {expert}");
        }
    }
}

fn check_model(source: &dyn WeightSource, spec: &ModelSpec, counts: &[usize]) {
    // Owners of few rows, and of many.
    for (&ranks, grid) in counts.iter().flat_map(|ranks| [(ranks, 132), (ranks, 3)]) {
        let launch = Launch { ranks, grid, tokens_max: 64, page_tokens: 8 };
        let constants = Constants::new(spec, launch).unwrap();
        for rank in 0..ranks {
            fill(source, spec, &constants, Ranks { rank, count: ranks }).check_all();
        }
    }
}

fn check_toy(toy: &Toy, counts: &[usize]) {
    let folder = tempfile::tempdir().unwrap();
    toy.write(folder.path(), Files::One).unwrap();
    let checkpoint = Checkpoint::open(folder.path(), &Knobs::default()).unwrap();
    check_model(&checkpoint, checkpoint.spec(), counts);
}

#[test]
fn a_quantised_model_is_repacked_for_any_ranks() {
    check_toy(&Toy::pro_fp4(), &[1, 2, 4, 8]);
}

#[test]
fn split_projections_floats_and_uneven_sizes_are_repacked() {
    check_toy(&Toy::flash(), &[1, 2, 4]);
    check_toy(&Toy::pro_fp4().split_twin(), &[8]);
}

#[test]
fn biases_lie_as_the_rows_of_their_matrices() {
    check_toy(&Toy::qwen3_dense(), &[1, 2]);
    check_toy(&Toy::gpt_oss(), &[1, 2]);
}

#[test]
fn a_router_has_experts_of_several_tiles_and_is_rounded_where_the_model_says_so() {
    for dtype in [RouterDtype::F32, RouterDtype::Bf16] {
        let mut spec = Toy::pro_fp4().spec();
        for layer in &mut spec.layers {
            if let FeedForwardSpec::Experts(experts) = &mut layer.feed_forward {
                experts.count = 40;
                experts.router.dtype = dtype;
            }
        }
        check_model(&Halves(Dummy::new(3)), &spec, &[1]);
    }
}

/// Dummy weights whose routers are not exact in BF16.
struct Halves(Dummy);

impl WeightSource for Halves {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        let mut tensor = self.0.read(decl, slice)?;
        if let (Format::Float, Shard::Whole, TensorData::F32(values)) =
            (decl.format, decl.shard, &mut tensor.data)
        {
            for value in values {
                *value *= 1.000_1;
            }
        }
        Ok(tensor)
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        self.0.dtype(decl)
    }
}
