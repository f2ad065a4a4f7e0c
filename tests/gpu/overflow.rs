//! Weights so large that numbers overflow: on a GPU, as on the reference, the row must end with a
//! fault, never with a token.

use half::bf16;
use kilotok_cpu::CpuEngine;
use kilotok_engine::{Engine, RowFault, difference};
use kilotok_model::LayerWeight::{self, Down, Gate, InputNorm, Output, PostNorm, Up};
use kilotok_model::{Dtype, Slice, WeightDecl, WeightId};
use kilotok_testkit::host::{Drafts, Host, How, Request};
use kilotok_weights::{Checkpoint, Quiet, Tensor, TensorData, WeightError, WeightSource};

use crate::{DENSE, GPT_OSS, PRO, UNEVEN, cuda_from, cuda_with, sizes, wide};

/// Multiplied by this, most numbers still fit F32 and BF16, but no sum of their squares does.
const LARGE: f32 = 1e30;

/// A model in which some weights are multiplied by that.
struct Scaled {
    weights: &'static [LayerWeight],
}

impl WeightSource for Scaled {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        let mut tensor = DENSE.read(decl, slice)?;
        if matches!(decl.id, WeightId::Layer(_, _, weight) if self.weights.contains(&weight)) {
            match &mut tensor.data {
                TensorData::F32(values) | TensorData::Fp8 { scales: values, .. } => {
                    for value in values {
                        *value *= LARGE;
                    }
                }
                TensorData::Bf16(values) => {
                    for value in values {
                        *value = bf16::from_f32(value.to_f32() * LARGE);
                    }
                }
                TensorData::Mxfp4 { .. } => unreachable!("a dense model has no experts"),
            }
        }
        Ok(tensor)
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        DENSE.dtype(decl)
    }
}

/// A model in whose embedding table one token's row is multiplied by that.
struct OneLarge(&'static Checkpoint);

/// The token with the large row.
const LARGE_TOKEN: usize = 7;

impl WeightSource for OneLarge {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        let mut tensor = self.0.read(decl, slice)?;
        if decl.id == WeightId::Embedding {
            let row = LARGE_TOKEN * tensor.cols..(LARGE_TOKEN + 1) * tensor.cols;
            match &mut tensor.data {
                TensorData::F32(values) => values[row].iter_mut().for_each(|x| *x *= LARGE),
                TensorData::Bf16(values) => {
                    values[row].iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * LARGE));
                }
                _ => unreachable!("a table is floats"),
            }
        }
        Ok(tensor)
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        self.0.dtype(decl)
    }
}

/// A reply must be the same before and after one whose numbers overflow.
fn no_overflow_outlives_its_request(engine: &mut dyn Engine) {
    let drafts = engine.caps().draft_max;
    let how = How { drafts: Drafts::Held { made: drafts, used: drafts }, ..How::default() };
    let mut reply = |prompt: std::ops::Range<u32>| {
        Host::new(&mut *engine, 0).run(&Request::greedy(prompt.collect(), 8), &how).unwrap()
    };
    let before = reply(100..120);
    let overflowing = reply(0..20);
    assert!(matches!(overflowing.fault, Some(RowFault::NotFinite { .. })));
    let after = reply(100..120);
    assert_eq!(difference(&before, &after), None);
    assert_eq!(before.drafts, after.drafts);
}

/// If kinds of layers have different widths, one kind must not leave NaN where another expects
/// zeros.
#[test]
fn an_overflow_does_not_outlive_its_request() {
    needs_gpus!(1);
    let mut engine = cuda_from(UNEVEN.spec(), &OneLarge(&UNEVEN), &sizes(1));
    no_overflow_outlives_its_request(&mut *engine);
}

/// The same with the wide pass, MXFP4 experts, shared token buffers, and sinks.
#[test]
fn an_overflow_in_a_wide_step_does_not_outlive_its_request() {
    needs_gpus!(1);
    for checkpoint in [&*PRO, &*GPT_OSS] {
        let source = OneLarge(checkpoint);
        let mut engine = cuda_with(checkpoint.spec(), &source, &wide(1), Some(0));
        assert_eq!(engine.caps().wide_from, Some(1), "all steps take the wide pass");
        no_overflow_outlives_its_request(&mut *engine);
    }
}

#[test]
fn what_overflows_is_a_fault() {
    needs_gpus!(1);
    let request = Request::greedy((0..20).collect(), 4);
    for weights in [&[Output][..], &[Gate], &[Gate, Up], &[Down], &[InputNorm], &[PostNorm]] {
        let source = Scaled { weights };
        let reference = CpuEngine::start(DENSE.spec(), &source, &sizes(1), &Quiet).unwrap();
        let found = cuda_from(DENSE.spec(), &source, &sizes(1));
        for mut engine in [Box::new(reference) as Box<dyn Engine>, found] {
            let reply = Host::new(&mut *engine, 0).run(&request, &How::default()).unwrap();
            let is_told = matches!(reply.fault, Some(RowFault::NotFinite { .. }));
            assert!(is_told && reply.tokens.is_empty(), "{weights:?}: {:?}", reply.tokens);
        }
    }
}
